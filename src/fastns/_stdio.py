"""stdin, stdout and stderr of a start: what the child gets, and which ends the caller keeps."""

from __future__ import annotations

import errno
import os

from fastns import _core
from fastns._args import shown
from fastns.errors import SpawnError, SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO, Any, TypeAlias

    Stdio: TypeAlias = int | IO[Any] | None

PIPE, STDOUT, DEVNULL = -1, -2, -3  # the values they have in subprocess
NAMES = ("stdin", "stdout", "stderr")
PIPES = (_core.PIPE_STDIN, _core.PIPE_STDOUT, _core.PIPE_STDERR)


class StdioPlan:
    """The child's three fds (-1: the caller's own) and the caller's pipe ends (None: no pipe).

    Close with close_child() once the child has started, or close_all() if it has not.
    """

    def __init__(
        self,
        stdin: Stdio,
        stdout: Stdio,
        stderr: Stdio,
        owner: tuple[int, int] | None = None,
    ) -> None:
        self._owner = owner  # of pipes, so that the sandbox's user can reopen them (/dev/stderr)
        self.child = [-1, -1, -1]
        self.parent: list[_core.Fd | None] = [None, None, None]
        self._opened: list[_core.Fd] = []
        # All are checked before anything is opened: a new pipe could get the number of a closed fd.
        values = [_wanted(i, value) for i, value in enumerate((stdin, stdout, stderr))]
        try:
            for index, value in enumerate(values):
                self._set(index, value)
        except OSError as exc:  # no fd is left
            self.close_all()
            raise SpawnError("stdio", exc.errno or 0) from None
        except BaseException:
            self.close_all()
            raise

    def _set(self, index: int, value: int) -> None:
        if value == PIPE:
            reading, writing = _core.open_pipe(self._owner)
            ours, theirs = (writing, reading) if index == 0 else (reading, writing)
            self.parent[index] = ours
            self.child[index] = self._own(theirs)
        elif value == DEVNULL:
            self.child[index] = self._own(_core.open_null())
        elif value == STDOUT:
            self.child[2] = self.child[1] if self.child[1] >= 0 else 1
        elif value != index:  # not copied: closing the copy would drop the caller's record locks
            self.child[index] = value

    def _own(self, fd: _core.Fd) -> int:
        self._opened.append(fd)
        return fd.fileno()

    def close_child(self) -> None:
        for fd in self._opened:
            fd.close()

    def close_all(self) -> None:
        self.close_child()
        for fd in self.parent:
            if fd is not None:
                fd.close()


class RunStreams:
    """The streams of a command that is run to its end: its fds, and which of them are pipes
    (_core.PIPE_*) that the C loop creates and serves. Close with close() when it has ended."""

    def __init__(self, stdin: Stdio, stdout: Stdio, stderr: Stdio) -> None:
        self.fds = [-1, -1, -1]
        self.pipes = 0
        self._null: _core.Fd | None = None
        values = [_wanted(i, value) for i, value in enumerate((stdin, stdout, stderr))]
        for index, value in enumerate(values):
            if value == PIPE:
                self.pipes |= PIPES[index]
            elif value == STDOUT:
                self.pipes |= _core.PIPE_JOINED
            elif value == DEVNULL:
                self.fds[index] = self._devnull()
            elif value != index:
                self.fds[index] = value

    def _devnull(self) -> int:
        if self._null is None:
            self._null = open_null()
        return self._null.fileno()

    def close(self) -> None:
        if self._null is not None:
            self._null.close()


def above_stdio(fd: int) -> int:
    """Move an fd to a number above those of the standard streams."""
    if fd > 2:
        return fd
    import fcntl  # seldom needed

    high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(fd)
    return high


def open_null() -> _core.Fd:
    """/dev/null, at a number above those of the standard streams. Raises SpawnError, stage
    "stdio"."""
    try:
        return _core.open_null()
    except OSError as exc:
        raise SpawnError("stdio", exc.errno or 0) from None


def _wanted(index: int, value: Any) -> int:
    """PIPE, STDOUT, DEVNULL, or an open fd; `index` itself is the caller's own stream."""
    if value is None:
        return index if is_open(index) else DEVNULL
    fd = value
    if not isinstance(value, int):
        try:
            fd = value.fileno()
        except (AttributeError, TypeError, ValueError):  # no file, without an fd, or closed
            fd = None
    elif value == STDOUT and index != 2:
        raise SpecError(NAMES[index], "STDOUT is for stderr only: PIPE, DEVNULL or a file expected")
    elif value in (PIPE, STDOUT, DEVNULL):
        return value
    if isinstance(fd, bool) or not isinstance(fd, int) or not 0 <= fd < 2**31:
        raise SpecError(
            NAMES[index], f"{shown(value)}: None, PIPE, DEVNULL, an open fd or a file expected"
        )
    if not is_open(fd):
        raise SpawnError("stdio", errno.EBADF)
    return fd


def check_pass_fds(pass_fds: Any) -> tuple[int, ...]:
    """pass_fds as an ascending tuple without 0, 1, 2, which are always there."""
    try:
        fds = sorted(set(pass_fds))
    except TypeError:
        raise SpecError("pass_fds", f"{shown(pass_fds)}: a sequence of open fds expected") from None
    for fd in fds:
        if isinstance(fd, bool) or not isinstance(fd, int) or not 0 <= fd < 2**31:
            raise SpecError("pass_fds", f"{shown(fd)}: an open fd expected")
        if not is_open(fd):  # a new fd of this start could get its number
            raise SpawnError("fds", errno.EBADF)
    return tuple(fd for fd in fds if fd > 2)


def is_open(fd: int) -> bool:
    try:
        os.get_inheritable(fd)  # F_GETFD, without the import of fcntl
    except OSError:
        return False
    return True
