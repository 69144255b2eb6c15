"""stdin, stdout and stderr of a spawn: what the child gets and which ends the caller keeps."""

from __future__ import annotations

import fcntl
import os

from fastns.errors import SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO, Any, TypeAlias

    Stdio: TypeAlias = int | IO[Any] | None

PIPE, STDOUT, DEVNULL = -1, -2, -3  # the values they have in subprocess
NAMES = ("stdin", "stdout", "stderr")


class StdioPlan:
    """The child's three fds (-1: the caller's own) and the caller's pipe ends (-1: none).

    Every fd for the child is at least 3, so that putting one in place cannot overwrite another.
    Close with close_child() once the child is started, or close_all() when it was not.
    """

    def __init__(self, stdin: Stdio, stdout: Stdio, stderr: Stdio) -> None:
        self.child = [-1, -1, -1]
        self.parent = [-1, -1, -1]
        self._opened: list[int] = []
        try:
            for index, value in enumerate((stdin, stdout, stderr)):
                self._set(index, value)
        except BaseException:
            self.close_all()
            raise

    def _set(self, index: int, value: Stdio) -> None:
        if value is None:
            if not _is_open(index):
                self.child[index] = self._own(os.open(os.devnull, os.O_RDWR))
        elif value == PIPE:
            ends = os.pipe()
            ours = 1 if index == 0 else 0
            self.parent[index] = ends[ours]
            self.child[index] = self._own(ends[1 - ours])
        elif value == DEVNULL:
            self.child[index] = self._own(os.open(os.devnull, os.O_RDWR))
        elif value == STDOUT:
            if index != 2:
                raise SpecError(NAMES[index], "STDOUT is for stderr only")
            # stdout's own fd may be put in place by then; its source is still there.
            source = self.child[1] if self.child[1] >= 0 else 1
            self.child[2] = source if source > 2 else self._own(os.dup(source))
        else:
            fileno = getattr(value, "fileno", None)
            fd = value if isinstance(value, int) else fileno() if fileno else -1
            if isinstance(value, bool) or fd < 0:
                raise SpecError(
                    NAMES[index], f"{value!r}: None, PIPE, DEVNULL, an open fd or a file expected"
                )
            if fd > 2:
                self.child[index] = fd
            elif fd != index:
                self.child[index] = self._own(os.dup(fd))

    def _own(self, fd: int) -> int:
        if fd < 3:
            high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
            os.close(fd)
            fd = high
        self._opened.append(fd)
        return fd

    def close_child(self) -> None:
        for fd in self._opened:
            os.close(fd)
        self._opened.clear()

    def close_all(self) -> None:
        self.close_child()
        for index, fd in enumerate(self.parent):
            if fd >= 0:
                os.close(fd)
            self.parent[index] = -1


def check_pass_fds(pass_fds: Any) -> tuple[int, ...]:
    """pass_fds as an ascending tuple without 0, 1, 2, which are always there."""
    try:
        fds = sorted(set(pass_fds))
    except TypeError:
        raise SpecError("pass_fds", f"{pass_fds!r}: a sequence of open fds expected") from None
    for fd in fds:
        if isinstance(fd, bool) or not isinstance(fd, int) or not 0 <= fd < 2**31:
            raise SpecError("pass_fds", f"{fd!r}: an open fd expected")
    return tuple(fd for fd in fds if fd > 2)


def _is_open(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_GETFD)
    except OSError:
        return False
    return True
