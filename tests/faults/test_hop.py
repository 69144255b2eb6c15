"""After a hop, RUNNING does not mean that the command has been executed. If the exec then fails,
the start must fail.

The caller may test the lock before the sandbox has taken it, and then read RUNNING. The test forces
this race: it suspends the system calls of both processes and continues them in that order.
"""

from __future__ import annotations

import errno
import os
import select
from pathlib import Path
from typing import NoReturn

import pytest

import fastns
from fastns import SpawnError, Spec
from faults import notify
from faults.worker import Board

CALLS = {number: name for name, number in notify.numbers().items()}
TIMEOUT_MS = 60_000


def start(board: Board, pipes: tuple[int, int], plan: fastns.Plan) -> NoReturn:
    """Run as the caller, with its calls and those of its children suspended."""
    code = 70
    try:
        for fd, fixed in zip(pipes, (notify.TO_SUPERVISOR, notify.FROM_SUPERVISOR), strict=True):
            os.dup2(fd, fixed, inheritable=False)
        board.listener = notify.install(notify.ALL)
        os.write(notify.TO_SUPERVISOR, b"x")
        os.read(notify.FROM_SUPERVISOR, 1)
        os.close(board.listener)
        try:
            fastns.spawn(["/missing"], spec=plan).wait()
            outcome = ["started"]
        except SpawnError as exc:
            outcome = [exc.stage, exc.errno]
        board.write(outcome)
        code = 0
    finally:
        os._exit(code)


def follow(listener: int, caller: int) -> list[str]:
    """Continue the calls in the order of the race. Return the caller's calls: from its first test
    of the lock up to the first call after RUNNING that is not a read."""
    processes: list[int] = []  # the hop process, then the sandbox
    held: dict[str, notify.Call] = {}
    calls: list[str] = []
    poll = select.poll()
    poll.register(listener, select.POLLIN)

    def release(what: str) -> None:
        if what in held:
            notify.answer(listener, held.pop(what))

    while True:
        events = poll.poll(TIMEOUT_MS)
        assert events, f"nothing happens: {calls}, held: {[*held]}"
        if not events[0][1] & select.POLLIN:  # all processes have ended
            return calls
        call = notify.receive(listener)
        if call is None:
            continue
        name = CALLS[call.number]
        if call.tid not in (caller, *processes):
            processes.append(call.tid)
        who = "caller" if call.tid == caller else ["hop", "sandbox"][processes.index(call.tid)]
        if (who, name) == ("hop", "sendmsg"):
            held["CHILD"] = call
        elif (who, name) == ("sandbox", "fcntl") and not calls:
            held["lock"] = call
        elif (who, name) == ("sandbox", "execve"):
            held["exec"] = call
            release("read")
        elif who == "caller" and "lock" in held and name == "fcntl":
            calls.append(name)
            notify.answer(listener, call)
        elif who == "caller" and "lock" in held and calls:
            calls.append(name)
            held["read"] = call
            release("lock")
        else:
            if who == "caller" and "exec" in held:
                calls.append(name)
                if name != "read":
                    release("exec")
            notify.answer(listener, call)
        if "lock" in held:
            release("CHILD")


@pytest.mark.as_root
def test_running_after_a_hop_does_not_mean_executed(probe_rootfs: Path) -> None:
    spec = Spec(rootfs=probe_rootfs, namespaces={"pid": "/proc/self/ns/pid"})
    board = Board()
    up, down = os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)
    plan = fastns.compile(spec)
    pid = os.fork()
    if pid == 0:
        start(board, (up[1], down[0]), plan)
    os.close(up[1])
    os.read(up[0], 1)
    listener = notify.take_listener(pid, board.listener)
    os.write(down[1], b"x")
    try:
        calls = follow(listener, pid)
    finally:
        for fd in (listener, up[0], *down):
            os.close(fd)
        _, status = os.waitpid(pid, 0)
        plan.close()
    # Without the second fcntl, which tests the lock again, the start would count as successful.
    assert calls == ["fcntl", "read", "read", "fcntl"]
    assert board.read() == ["exec", errno.ENOENT]
    assert status == 0
