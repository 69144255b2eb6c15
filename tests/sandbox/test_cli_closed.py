"""`fastns` when it is called with stdin, stdout or stderr closed."""

from __future__ import annotations

import subprocess
import sys

import pytest


def shell(words: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which `fastns` is defined."""
    line = f'fastns() {{ {sys.executable} -m fastns "$@"; }}; {words}'
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("code", [0, 7])
def test_the_commands_exit_code(closed: str, code: int) -> None:
    """fastns exits with the command's code, whichever streams are closed."""
    done = shell(f"fastns run -- sh -c 'exit {code}' {closed}")
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


def test_fds_of_fastns_do_not_replace_them() -> None:
    """Regression test: a byte 15 that the command wrote to stderr was taken for signal 15,
    SIGTERM."""
    done = shell(r"fastns run -- sh -c 'printf \\17 >&2; exit 7' >&- 2>&-")
    assert done.returncode == 7
    done = shell("fastns run -- sh -c 'file=$(readlink /proc/$$/fd/1); echo $file >&2' >&-")
    assert done.stderr == "/dev/null\n"


@pytest.mark.parametrize("max_output", ["", "--max-output 1k"])
def test_a_closed_stdout_fails_as_without_fastns(max_output: str) -> None:
    done = shell(f"fastns run {max_output} -- sh -c 'echo a; echo b >&2; exit 3' >&-")
    assert done.returncode == 3
    assert done.stderr.endswith("b\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("echo '[\"true\"]' | fastns batch - >&-", "stdout: Bad file descriptor"),
        ("fastns batch - <&-", "stdin: Bad file descriptor"),
    ],
)
def test_a_batch_needs_stdin_and_stdout(words: str, message: str) -> None:
    done = shell(words)
    assert done.returncode == 125
    assert done.stderr.splitlines()[0] == f"fastns: {message}"


def test_a_full_stdout_of_bench() -> None:
    """A full stdout is an error, a closed one is not."""
    done = shell("fastns bench --rounds 1 >/dev/full")
    assert (done.returncode, done.stderr) == (125, "fastns: stdout: No space left on device\n")
    assert shell("fastns bench --rounds 1 >&-").returncode == 0
