"""`fastns rootfs build`: flags, messages, exit codes and the progress line."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fastns.cli import main
from fastns.cli import rootfs as verb


def test_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dest = f"{tmp_path}/root"
    assert main(["rootfs", "build", dest, "cat", "bash", "--extra", "/etc/passwd"]) == 0
    out, err = capsys.readouterr()
    assert re.fullmatch(rf"built {re.escape(dest)}: 2 commands, \d+ libraries, \d+\.\d MiB\n", out)
    assert err == ""
    assert Path(dest, "etc/passwd").read_bytes() == Path("/etc/passwd").read_bytes()


def test_extra_before_the_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rootfs", "build", "--extra=/etc/passwd", f"{tmp_path}/root", "cat"]) == 0
    assert "1 command, " in capsys.readouterr().out


def test_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rootfs", "build", f"{tmp_path}/root", "no-such-a", "no-such-b"]) == 125
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        "fastns: rootfs: command no-such-a: not found in PATH; "
        "command no-such-b: not found in PATH\n"
    )
    assert os.listdir(tmp_path) == []


def test_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rootfs", "build", "/usr", "cat"]) == 125
    assert capsys.readouterr().err == (
        "fastns: rootfs: /usr is a directory of this system\n"
        "hint: choose a new directory, such as ./rootfs\n"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "required: ACTION"),
        (["bild"], "invalid choice: 'bild'"),
        (["build"], "required: DIR"),
        (["build", "x"], "required: COMMAND"),
        (["build", "x", "cat", "--ekstra", "/etc"], "unknown option: --ekstra"),
        (["build", "x", "cat", "--extra"], "--extra: expected one argument"),
    ],
)
def test_usage(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rootfs", *words]) == 125
    err = capsys.readouterr().err
    assert message in err
    assert "\nhint: " in err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rootfs", "build", "--help"]) == 0
    out = capsys.readouterr().out
    assert "fastns rootfs build ./rootfs bash ls ps" in out
    assert "--extra PATH" in out
    assert "standard library" in out


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (12_897_484, "12.3 MiB"),
        (3 << 30, "3.0 GiB"),
    ],
)
def test_sizes(size: int, words: str) -> None:
    assert verb._size(size) == words


def run_on_terminal(patience: float, *words: str) -> tuple[int, str]:
    """The exit code, and the stderr that a terminal received."""
    program = (
        f"import sys, fastns.cli.rootfs as verb; verb.PATIENCE = {patience}\n"
        "from fastns.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", program, "rootfs", "build", *words],
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        seen = b""
        while True:
            try:
                chunk = os.read(ours, 4096)
            except OSError:  # EIO: the other side is closed
                break
            seen += chunk
    os.close(ours)
    return process.returncode, seen.decode()


def test_progress_on_a_terminal(tmp_path: Path) -> None:
    code, seen = run_on_terminal(0.0, f"{tmp_path}/root", "cat")
    assert code == 0
    assert re.search(r"\r\x1b\[K0/(\d+) /\S+.*\r\x1b\[K\1/\1 ", seen)
    assert seen.endswith("\r\x1b[K")


def test_no_progress_when_it_is_quick(tmp_path: Path) -> None:
    assert run_on_terminal(600.0, f"{tmp_path}/root", "cat") == (0, "")


def test_sigterm_leaves_nothing(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\nfrom fastns.rootfs import _write\nfrom fastns.cli import main\n"
        "_write._make = lambda *_: os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, "rootfs", "build", tmp_path / "root", "cat"]
    assert subprocess.run(command, check=False).returncode == 128 + signal.SIGTERM
    assert os.listdir(tmp_path) == []


def test_imports_neither_the_parser_nor_the_engine_for_help() -> None:
    program = (
        "import sys, fastns.cli.rootfs, fastns.rootfs\n"
        "print([name for name in sys.modules if name.startswith('elftools')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout == b"[]\n"
