"""stdin, stdout and stderr of a start: the child's fds, and the pipe ends that the caller keeps."""

from __future__ import annotations

import errno
import os

from fastns import _core
from fastns._args import wrong
from fastns.errors import SpawnError, SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO, Any, TypeAlias

    Stdio: TypeAlias = int | IO[Any] | None

PIPE, STDOUT, DEVNULL = -1, -2, -3  # the values they have in subprocess
NAMES = ("stdin", "stdout", "stderr")
PIPES = (_core.PIPE_STDIN, _core.PIPE_STDOUT, _core.PIPE_STDERR)


class RunStreams:
    """The streams of a command that _core.run() runs: the child's fds (-1: the caller's own), and
    which streams are pipes that the C loop creates and serves (_core.PIPE_*)."""

    def __init__(self, stdin: Stdio, stdout: Stdio, stderr: Stdio) -> None:
        self.fds = [-1, -1, -1]
        self.pipes = 0
        self._opened: list[_core.Fd] = []
        # All are checked before anything is opened: a new fd could get the number of a closed one.
        values = [_wanted(i, value) for i, value in enumerate((stdin, stdout, stderr))]
        for index, value in enumerate(values):
            if value == PIPE:
                self.pipes |= PIPES[index]
            elif value == STDOUT:
                self.pipes |= _core.PIPE_JOINED
            elif value == DEVNULL:
                self._opened = self._opened or [open_null()]
                self.fds[index] = self._opened[0].fileno()
            elif value != index:  # no copy: closing it would drop the caller's record locks
                self.fds[index] = value

    def close(self) -> None:
        """Closes what was opened for the child, once it has started."""
        for fd in self._opened:
            fd.close()


class StdioPlan(RunStreams):
    """The streams of a command that is spawned, and the caller's pipe ends (None: no pipe)."""

    def __init__(
        self, stdin: Stdio, stdout: Stdio, stderr: Stdio, owner: tuple[int, int] | None = None
    ) -> None:
        """owner: (uid, gid) of the pipes, so that the user inside can reopen them (/dev/stderr)."""
        super().__init__(stdin, stdout, stderr)
        self.parent: list[_core.Fd | None] = [None, None, None]
        try:
            for index in range(3):
                if self.pipes & PIPES[index]:
                    reading, writing = _core.open_pipe(owner)
                    ours, theirs = (reading, writing) if index else (writing, reading)
                    self.parent[index] = ours
                    self._opened.append(theirs)
                    self.fds[index] = theirs.fileno()
        except OSError as exc:  # no fd is left
            self.close_all()
            raise SpawnError("stdio", exc.errno or 0) from None
        except BaseException:
            self.close_all()
            raise
        if self.pipes & _core.PIPE_JOINED:
            self.fds[2] = self.fds[1] if self.fds[1] >= 0 else 1

    def close_all(self) -> None:
        """Closes the caller's pipe ends too, because the child was not started."""
        self.close()
        for fd in self.parent:
            if fd is not None:
                fd.close()


def above_stdio(fd: int) -> int:
    """Moves an fd to a number above 2, unless it has one. Returns the fd."""
    if fd > 2:
        return fd
    import fcntl  # rarely needed

    high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(fd)
    return high


def open_null() -> _core.Fd:
    """Opens /dev/null, as an fd above 2. Raises: SpawnError, stage "stdio"."""
    try:
        return _core.open_null()
    except OSError as exc:
        raise SpawnError("stdio", exc.errno or 0) from None


def _wanted(index: int, value: Any) -> int:
    """Returns PIPE, STDOUT, DEVNULL or an open fd; the fd `index` means the caller's own stream."""
    if value is None:
        return index if is_open(index) else DEVNULL
    fd = value
    if not isinstance(value, int):
        try:
            fd = value.fileno()
        except (AttributeError, TypeError, ValueError):  # not a file, without an fd, or closed
            fd = None
    elif value == STDOUT and index != 2:
        raise SpecError(NAMES[index], "STDOUT is for stderr only: expected PIPE, DEVNULL or a file")
    elif value in (PIPE, STDOUT, DEVNULL):
        return value
    if not _is_fd(fd):
        raise wrong(NAMES[index], value, "None, PIPE, DEVNULL, an open fd or a file")
    if not is_open(fd):
        raise SpawnError("stdio", errno.EBADF)
    return int(fd)


def _is_fd(fd: object) -> bool:
    return isinstance(fd, int) and not isinstance(fd, bool) and 0 <= fd < 2**31


def check_pass_fds(pass_fds: Any) -> tuple[int, ...]:
    """Returns pass_fds sorted, without 0, 1 and 2, which the child always has."""
    try:
        fds = sorted(set(pass_fds))
    except TypeError:
        raise wrong("pass_fds", pass_fds, "a sequence of open fds") from None
    for fd in fds:
        if not _is_fd(fd):
            raise wrong("pass_fds", fd, "an open fd")
        if not is_open(fd):  # a new fd of this start could get its number
            raise SpawnError("fds", errno.EBADF)
    return tuple(fd for fd in fds if fd > 2)


def is_open(fd: int) -> bool:
    try:
        os.get_inheritable(fd)  # F_GETFD, without importing fcntl
    except OSError:
        return False
    return True
