"""The API's types: mypy accepts tests/typing/api.py, its assertions and each `type: ignore`."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import support

TYPING = support.TESTS / "typing" / "api.py"


def mypy(path: Path, cache: Path) -> tuple[int, str]:
    if importlib.util.find_spec("mypy") is None:
        support.skip_missing("mypy")
    command = [sys.executable, "-m", "mypy", "--strict", "--warn-unused-ignores"]
    done = subprocess.run(
        [*command, "--python-version", "3.11", "--cache-dir", str(cache), str(path)],
        capture_output=True,
        text=True,
        cwd=support.TESTS.parent,
        env={"MYPYPATH": "src", "PATH": "/usr/bin:/bin"},
    )
    return done.returncode, done.stdout + done.stderr


def test_the_types_of_the_api(tmp_path: Path) -> None:
    """The control is a wrong assertion, which mypy reports."""
    code, said = mypy(TYPING, tmp_path)
    assert code == 0, said
    wrong = tmp_path / "wrong.py"
    text = TYPING.read_text().replace(
        "text=True, check=True).stdout, str", "check=True).stdout, str"
    )
    wrong.write_text(text)
    code, said = mypy(wrong, tmp_path)
    assert code == 1
    assert 'Expression is of type "bytes", not "str"' in said


@pytest.mark.parametrize("name", ["Sandbox", "CompletedSandbox"])
def test_type_parameters_work_at_run_time(name: str) -> None:
    """Sandbox[str] can be evaluated, and does not import `typing`."""
    code = f"import sys, fastns; fastns.{name}[str]; sys.exit('typing' in sys.modules)"
    assert subprocess.run([sys.executable, "-I", "-c", code]).returncode == 0
