"""`fastns` with a stdout or stderr that is closed, full or unread."""

from __future__ import annotations

import subprocess
import sys

import pytest

FULL = "fastns: stdout: No space left on device\n"
WORDS = [
    "doctor",
    "doctor --json",
    "run --dry-run -- ls",
    "run --help",
    "batch --help",
    "rootfs build --help",
    "--help",
    "--version",
]


def shell(words: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which `fastns` is defined."""
    line = f'fastns() {{ {sys.executable} -m fastns "$@"; }}; {words}'
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=120)


@pytest.fixture(params=["", "1"], ids=["buffered", "unbuffered"])
def either_buffering(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", request.param)


@pytest.mark.usefixtures("either_buffering")
@pytest.mark.parametrize("words", WORDS)
def test_a_full_stdout_is_an_error(words: str) -> None:
    done = shell(f"fastns {words} >/dev/full")
    assert (done.returncode, done.stderr) == (125, FULL)


@pytest.mark.parametrize("words", WORDS)
def test_a_closed_stdout_is_no_error(words: str) -> None:
    expected = shell(f"fastns {words} >/dev/null").returncode
    done = shell(f"fastns {words} >&-")
    assert (done.returncode, done.stdout, done.stderr) == (expected, "", "")


@pytest.mark.usefixtures("either_buffering")
@pytest.mark.parametrize("words", WORDS)
def test_an_unread_stdout_ends_it_silently(words: str) -> None:
    done = shell(f"exec 3> >(:); wait $!; fastns {words} >&3")
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("stderr", ["&-", "/dev/full"])
def test_an_error_that_cannot_be_printed(stderr: str) -> None:
    """fastns still exits with 125."""
    done = shell(f"fastns run --nope 2>{stderr}")
    assert (done.returncode, done.stdout, done.stderr) == (125, "", "")
