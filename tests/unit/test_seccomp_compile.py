"""The built-in filter compiler: each comparison at its boundaries, and the numbers of calls."""

from __future__ import annotations

import itertools
import random

import pytest
from bpf import ALLOW, ARCHES, COMPARE, ERRNO, KILL_PROCESS, X32_BIT, interpret, name_of

from fastns._policy.bpf import program
from fastns._policy.syscalls import AUDIT_ARCH, numbers

WORDS = (0, 1, 2, 7, 8, 0xFFFFFFFE, 0xFFFFFFFF)
VALUES = tuple(high << 32 | low for high, low in itertools.product((0, 1, 0xFFFFFFFF), WORDS))
GETPPID = {"x86_64": 110, "aarch64": 173}


@pytest.mark.parametrize("machine", AUDIT_ARCH)
@pytest.mark.parametrize("op", COMPARE)
def test_a_comparison(op: str, machine: str) -> None:
    holds = COMPARE[op]
    for value, second in itertools.product(VALUES, (0, 1, 7 << 32, 0xFFFFFFFF00000007)):
        group = [(3, op.removeprefix("SCMP_CMP_"), value, second)]
        code = program(ALLOW, [(ERRNO | 5, ["getppid"], [group])], machine)
        for given in (*VALUES, value & second, second):
            expected = ERRNO | 5 if holds(given, value, second) else ALLOW
            args = (9, 9, 9, given, 9, 9)
            assert interpret(code, ARCHES[machine], GETPPID[machine], args) == expected


def test_random_rules() -> None:
    """The first rule that matches decides."""
    for seed in range(300):
        dice = random.Random(seed)
        small = [dice.choice((0, 1, 2, 3, 4, 6, 8, 1 << 32)) for _ in range(4)]
        rules = [
            (
                ERRNO | number,
                ["getppid"],
                [
                    [
                        (
                            index,
                            dice.choice(list(COMPARE))[9:],
                            dice.choice(small),
                            dice.choice(small),
                        )
                        for index in dice.sample(range(3), dice.randrange(4))
                    ]
                    for _ in range(dice.randrange(1, 3))
                ],
            )
            for number in range(1, dice.randrange(2, 9))
        ]
        code = program(ALLOW, rules, "x86_64")
        for _ in range(60):
            args = tuple(dice.choice((*small, small[0] + 1, small[1] | small[2])) for _ in range(3))
            expected = next(
                (
                    action
                    for action, _, groups in rules
                    for group in groups
                    if all(
                        COMPARE[f"SCMP_CMP_{op}"](args[i], one, two) for i, op, one, two in group
                    )
                ),
                ALLOW,
            )
            assert interpret(code, ARCHES["x86_64"], 110, args) == expected, (seed, args)


def test_other_calls_numbers_and_architectures() -> None:
    rules = [(ALLOW, ["read", "no_such_call", "getppid"], [[]])]
    for machine, arch in AUDIT_ARCH.items():
        code = program(ERRNO | 38, rules, machine)
        known = {numbers(machine)[name] for name in ("read", "getppid")}
        for number in (*range(500), 2**32 - 1):
            expected = ALLOW if number in known else ERRNO | 38
            assert interpret(code, arch, number) == expected
        for other in (*ARCHES.values(), 0):
            if other != arch:
                assert interpret(code, other, 0) == KILL_PROCESS
    code = program(ALLOW, [], "x86_64")
    for number in (X32_BIT, X32_BIT | 1, 2**31, 2**32 - 2):
        assert interpret(code, ARCHES["x86_64"], number) == KILL_PROCESS


@pytest.mark.parametrize("machine", AUDIT_ARCH)
def test_the_numbers_are_those_of_libseccomp(machine: str) -> None:
    known = numbers(machine)
    assert len(known) > 250
    for name, number in known.items():
        assert name_of(number, machine) == name
