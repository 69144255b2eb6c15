"""Suspends each system call of a start, and of everything that it starts."""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Callable, Iterator
from typing import NoReturn

from faults import notify
from faults.worker import Board

CALLS = {number: name for name, number in notify.numbers().items()}
TIMEOUT_MS = 60_000


@contextlib.contextmanager
def suspended(start: Callable[[], object]) -> Iterator[tuple[int, int]]:
    """Runs start() in a forked process, and suspends each system call of it and its descendants.
    Yields the listener (notify.py) and that process's pid."""
    board = Board()
    up, down = os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)
    caller = os.fork()
    if caller == 0:
        _call(board, (up[1], down[0]), start)
    os.close(up[1])
    fds = [up[0], *down]
    try:
        assert os.read(up[0], 1), "the filter could not be installed"
        fds.append(notify.take_listener(caller, board.listener))
        os.write(down[1], b"x")
        yield fds[-1], caller
    finally:
        for fd in fds:  # without a listener, suspended calls fail, and the start with them
            os.close(fd)
        os.waitpid(caller, 0)


def _call(board: Board, pipes: tuple[int, int], start: Callable[[], object]) -> NoReturn:
    try:
        for fd, fixed in zip(pipes, (notify.TO_SUPERVISOR, notify.FROM_SUPERVISOR), strict=True):
            os.dup2(fd, fixed, inheritable=False)
            os.close(fd)
        board.listener = notify.install(notify.ALL)
        os.write(notify.TO_SUPERVISOR, b"x")
        os.read(notify.FROM_SUPERVISOR, 1)
        os.close(board.listener)
        start()
    finally:
        os._exit(0)


def calls(listener: int) -> Iterator[notify.Call]:
    """The calls of all processes, as they are suspended, until all have ended."""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    while True:
        events = poll.poll(TIMEOUT_MS)
        assert events, "nothing happens"
        if not events[0][1] & select.POLLIN:
            return
        call = notify.receive(listener)
        if call is not None:
            yield call
