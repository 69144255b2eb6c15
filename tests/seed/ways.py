"""The two ways in which a person starts a container: from Python (fastns.run, fastns.spawn), and
with `python -m fastns run`. Also the check that the host does not change.
"""

from __future__ import annotations

import os
import pickle
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import support
from processes import eventually

import fastns
from fastns import Spec

CLI = [sys.executable, "-m", "fastns", "run"]
SECONDS = 20.0  # the test fails if an answer takes longer

_FLAGS = {"mount": "mountns", "cgroup": "cgroupns", "user": "userns"}
_MARK = "=== asked "
_IN_PYTHON = """
import pickle, sys
import fastns
spec = pickle.loads(bytes.fromhex(sys.argv[1]))
sys.exit(fastns.run(sys.argv[2:], spec=spec).exit_code)
"""


# ---- starting ----


@dataclass(frozen=True)
class Box:
    """One container, described for each of the two ways."""

    spec: Spec = field(default_factory=Spec)
    flags: Sequence[str] = ()


def host_but(*new: str) -> dict[str, str]:
    """All namespaces are the host's except these. `user` and `time` keep their defaults."""
    return {kind: "new" if kind in new else "host" for kind in list(support.NAMESPACES)[:6]}


def flags(namespaces: dict[str, str]) -> list[str]:
    """These namespaces as command-line flags."""
    return [
        f"--{_FLAGS.get(kind, kind)}={'private' if value == 'new' else value}"
        for kind, value in namespaces.items()
    ]


def isolated(pid: int) -> set[str]:
    """The namespaces that a process does not share with this one."""
    return {
        kind
        for kind, name in support.NAMESPACES.items()
        if os.readlink(f"/proc/{pid}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}")
    }


def with_user(*kinds: str) -> set[str]:
    """These namespaces, and the user namespace that every sandbox gets."""
    return {*kinds, "user"}


class Way:
    """One of the two ways: `name` is "python" or "cli"."""

    def __init__(self, name: str) -> None:
        self.name = name

    def run(self, box: Box, *command: str, exit_code: int = 0) -> str:
        """The command's stdout. Its exit code must be this one, and its stderr empty."""
        done: Any
        if self.name == "python":
            done = fastns.run(
                command, spec=box.spec, capture_output=True, text=True, timeout=SECONDS
            )
            code = done.exit_code
        else:
            argv = self.argv(box, *command)
            done = subprocess.run(argv, capture_output=True, text=True, timeout=SECONDS)
            code = done.returncode
        assert (code, done.stderr) == (exit_code, ""), done.stdout
        return str(done.stdout)

    def steps(self, box: Box) -> list[str]:
        """The steps of a dry run, one per line."""
        if self.name == "python":
            return list(fastns.compile(box.spec).describe())
        argv = [*CLI, "--dry-run", *box.flags, "--", "true"]
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()

    def argv(self, box: Box, *command: str) -> list[str]:
        """The argv that starts the box in a separate process, for example on a terminal."""
        if self.name == "cli":
            return [*CLI, *box.flags, "--", *command]
        return [sys.executable, "-c", _IN_PYTHON, pickle.dumps(box.spec).hex(), *command]

    @contextmanager
    def shell(self, box: Box, *command: str) -> Iterator[Shell]:
        """A sandbox in which bash, or the command, runs until the block ends."""
        words = command or ("bash",)
        if self.name == "python":
            with fastns.spawn(
                words,
                spec=box.spec,
                stdin=fastns.PIPE,
                stdout=fastns.PIPE,
                stderr=fastns.STDOUT,
            ) as sandbox:
                try:
                    yield Shell(sandbox, os.getpid(), sandbox.pid)
                finally:
                    sandbox.kill()
        else:
            with subprocess.Popen(
                self.argv(box, *words),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            ) as process:
                try:
                    yield Shell(process, process.pid, None)
                finally:
                    process.terminate()  # `fastns run` ends its sandbox too


# ---- talking to a sandbox ----


class Shell:
    """A sandbox on pipes. Its command is a bash that can be asked, or any other that prints.

    `parent` is the pid of the process that started it: this one, or `fastns run`.
    """

    def __init__(self, process: Any, parent: int, pid: int | None) -> None:
        self._process = process
        self._pid = pid
        self._read = b""
        self._heard = False
        self.parent = parent

    @property
    def pid(self) -> int:
        """The host's pid of its first process. The sandbox must have printed something, because
        until then the only child of `fastns run` may be a hop process.
        """
        assert self._heard, "ask it something first"
        if self._pid is None:
            children = Path(f"/proc/{self.parent}/task/{self.parent}/children")
            assert eventually(lambda: len(children.read_text().split()) == 1)
            self._pid = int(children.read_text())
        return self._pid

    def ask(self, line: str, status: int = 0) -> str:
        """What bash prints for one line. The line's exit status must be `status`."""
        self._process.stdin.write(f'{line}\necho "{_MARK}$?"\n'.encode())
        self._process.stdin.flush()
        text, _, code = self.read_to(rf"{re.escape(_MARK)}\d+\n").rpartition(_MARK)
        assert int(code) == status, (line, text)
        return text

    def report(self, probe: str | Path) -> dict[str, Any]:
        """The report of the probe at this path inside."""
        return support.parse_report(self.ask(str(probe)).encode())

    def read_to(self, pattern: str) -> str:
        """The output up to and including the pattern."""
        deadline = time.monotonic() + SECONDS
        fd = self._process.stdout.fileno()
        while not (found := re.search(pattern.encode(), self._read)):
            if not select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise AssertionError(f"no {pattern!r} in time: {self._read!r}")
            got = os.read(fd, 65536)
            assert got, f"ended before {pattern!r}: {self._read!r}"
            self._read += got
        text, self._read = self._read[: found.end()], self._read[found.end() :]
        self._heard = True
        return text.decode()

    def leave(self, exit_code: int = 0) -> int:
        """Type `exit`, as a person does; return the exit code that the caller gets."""
        self._process.stdin.write(f"exit {exit_code}\n".encode())
        self._process.stdin.flush()
        return self._ended()

    def end_of_input(self) -> int:
        """Close its stdin; return the exit code."""
        self._process.stdin.close()
        return self._ended()

    def _ended(self) -> int:
        code: int = self._process.wait(timeout=SECONDS)
        return code


class Terminal:
    """A program on its own controlling terminal, and the person who types there."""

    def __init__(self, argv: Sequence[str]) -> None:
        self._master, slave = pty.openpty()
        try:
            self._process = subprocess.Popen(
                ["setsid", "--ctty", *argv], stdin=slave, stdout=slave, stderr=slave
            )
        except BaseException:
            os.close(self._master)
            raise
        finally:
            os.close(slave)
        self._read = b""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        os.close(self._master)  # hangs up: what is left on the terminal gets SIGHUP
        self._process.wait(timeout=SECONDS)

    @property
    def pid(self) -> int:
        return self._process.pid

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def interrupt(self) -> None:
        """Type the terminal's interrupt character (Ctrl-C)."""
        os.write(self._master, termios.tcgetattr(self._master)[6][termios.VINTR])

    def read_to(self, pattern: str) -> str:
        """The output since the last call, up to and including the pattern."""
        deadline = time.monotonic() + SECONDS
        while not (found := re.search(pattern.encode(), self._read)):
            left = max(0.0, deadline - time.monotonic())
            if not select.select([self._master], [], [], left)[0]:
                raise AssertionError(f"no {pattern!r} on the screen: {self._read!r}")
            self._read += os.read(self._master, 65536)  # EIO: no process has the terminal open
        text, self._read = self._read[: found.end()], self._read[found.end() :]
        return text.decode()

    def wait(self) -> int:
        """The returncode, as in subprocess."""
        return self._process.wait(timeout=SECONDS)


def shell_code(returncode: int) -> int:
    """What a shell's $? would show."""
    return returncode if returncode >= 0 else 128 - returncode


SIGINT_CODE = 128 + signal.SIGINT


# ---- the host ----


class Outside:
    """The state of the host and of this process when this object was made: mounts, names, queues,
    namespaces and ids. Tests compare it with the state during and after a sandbox."""

    def __init__(self) -> None:
        self._before = support.host_state()

    def is_the_same(self, *, alive: int = 0) -> None:
        """Check that nothing has changed, except that this process has `alive` more children."""
        now = support.host_state()
        for kind, was in self._before.items():
            if kind not in ("fds", "children"):
                assert now[kind] == was, kind
        children = [child for child in now["children"] if child not in self._before["children"]]
        assert len(children) == alive, children
