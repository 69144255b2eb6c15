"""The caller: a process that performs one start. It is forked from one that has imported fastns.

It reports through memory shared with the supervisor, so it makes no system call between the start
and the report. Its open fds, signal settings and the like show whether a sandbox inherits them.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import json
import mmap
import os
import pwd
import signal
import traceback
from typing import Any, NamedTuple, NoReturn

import fastns
from faults import notify
from faults.ways import Setting, way_of

SIZE = 1 << 20
HEADER = 16  # bytes: the state, the listener's fd + 1, the length of the text
INSTALLED, READY, STARTING, ENDED, DONE = range(1, 6)

_PR_SET_DUMPABLE = 4
_libc = ctypes.CDLL(None, use_errno=True)


class Board:
    """The memory that the caller and the supervisor share."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, SIZE)

    @property
    def state(self) -> int:
        return self._memory[0]

    @state.setter
    def state(self, value: int) -> None:
        self._memory[0] = value

    @property
    def listener(self) -> int:
        return int.from_bytes(self._memory[4:8], "little") - 1

    @listener.setter
    def listener(self, fd: int) -> None:
        self._memory[4:8] = (fd + 1).to_bytes(4, "little")

    def write(self, value: Any) -> None:
        text = json.dumps(value, default=str).encode()
        assert len(text) <= SIZE - HEADER, "report too large"
        self._memory[8:12] = len(text).to_bytes(4, "little")
        self._memory[HEADER : HEADER + len(text)] = text

    def read(self) -> Any:
        size = int.from_bytes(self._memory[8:12], "little")
        return json.loads(self._memory[HEADER : HEADER + size]) if size else None

    def clear(self) -> None:
        self._memory[:HEADER] = bytes(HEADER)


class Who(NamedTuple):
    """The uid and gid of the caller."""

    uid: int
    gid: int

    @classmethod
    def named(cls, name: str) -> Who:
        entry = pwd.getpwnam(name)
        return cls(entry.pw_uid, entry.pw_gid)


def work(
    board: Board, pipes: tuple[int, int], way: str, setting: Setting, who: Who, number: int | None
) -> NoReturn:
    """Everything that the process does, from fork to exit. `pipes` lead to and from the
    supervisor."""
    code = 70
    try:
        for fd, fixed in zip(pipes, (notify.TO_SUPERVISOR, notify.FROM_SUPERVISOR), strict=True):
            os.dup2(fd, fixed, inheritable=False)
            os.close(fd)
        _be_untidy()
        board.listener = notify.install(number)
        os.read(notify.FROM_SUPERVISOR, 1)
        os.close(board.listener)
        _become(who)
        _tell(board, READY)
        start = way_of(way)(setting)
        start.prepare()
        outcome = _start(board, start)
        start.close()
        gc.collect()
        board.write(outcome)
        _tell(board, DONE)
        code = 0
    except BaseException:
        board.write({"broken": traceback.format_exc()})
        _tell(board, DONE)
    finally:
        os._exit(code)


def _start(board: Board, start: Any) -> Any:
    error = None
    board.state = STARTING
    try:
        results = start.start()
    except BaseException as exc:
        error = exc
    board.state = ENDED
    if error is not None:
        return {"error": _said(error)}
    return {"results": [_result(result) for result in results]}


def _result(result: Any) -> Any:
    if isinstance(result, BaseException):
        return {"error": _said(result)}
    for stream in ("out", "err"):
        if isinstance(result[stream], bytes):
            result[stream] = result[stream].decode("utf-8", "surrogateescape")
    return result


def _said(error: BaseException) -> dict[str, Any]:
    return {
        "type": type(error).__name__,
        "fastns": isinstance(error, fastns.FastnsError),
        "stage": getattr(error, "stage", None),
        "errno": getattr(error, "errno", None),
        "op_index": getattr(error, "op_index", None),
        "text": str(error),
        "where": "".join(traceback.format_tb(error.__traceback__)[-4:]),
    }


def _tell(board: Board, state: int) -> None:
    board.state = state
    os.write(notify.TO_SUPERVISOR, b"x")
    os.read(notify.FROM_SUPERVISOR, 1)


def _be_untidy() -> None:
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    for fd in (20, 21, 40, 150):
        os.set_inheritable(fcntl.fcntl(os.open("/etc", os.O_RDONLY), fcntl.F_DUPFD, fd), True)
    os.close(null)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    os.umask(0o77)
    os.chdir("/usr")
    os.environ["CALLERS"] = "own"
    _libc.syscall({"x86_64": 250, "aarch64": 219}[os.uname().machine], 1, None)


def _become(who: Who) -> None:
    os.setgroups([who.gid, 4242])
    if who.uid == 0:
        return
    os.setresgid(who.gid, who.gid, who.gid)
    os.setresuid(who.uid, who.uid, who.uid)
    _libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)
