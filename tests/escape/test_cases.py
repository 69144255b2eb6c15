"""Every case has a test, in this directory or in the table of elsewhere.py."""

import re

import support
from escape.elsewhere import ELSEWHERE
from escape.results import RESULTS
from escape.test_escape import CASES
from escape.test_loads import LOADS
from escape.test_starting import CASES as STARTING
from escape.test_terminal import CASES as TERMINAL

NUMBERS = {
    "A": (1, 2, 3, 4, 5, 6, 7),
    "B": (1, 2, 5, 7),
    "C": (1, 2, 3, 5, 7, 9, 11, 13, 15),
    "D": (1, 2, 5, 6),
    "E": (1, 2, 4, 6, 7),
    "F": (1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13),
    "G": (2, 3, 4, 6, 7),
}


def test_every_case_has_a_test() -> None:
    names = [*(case.name for case in CASES), *LOADS, *STARTING, *TERMINAL, *ELSEWHERE]
    tried = {name.split()[0] for name in names}
    wanted = {f"{family}{number}" for family, numbers in NUMBERS.items() for number in numbers}
    assert wanted - tried == set()


def test_tests_elsewhere_exist() -> None:
    for number, (where, what) in ELSEWHERE.items():
        path, _, name = where.partition("::")
        text = (support.TESTS / path).read_text()
        assert name == "{any}" or re.search(rf"^def {name}\(", text, re.MULTILINE), where
        RESULTS[f"{number} {what}"] = ("elsewhere", f"tests/{where.removesuffix('::{any}')}")
