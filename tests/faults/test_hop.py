"""After a hop, RUNNING does not mean that the command has been executed. If the exec then fails,
the start must fail.

The caller may test the lock before the sandbox has taken it, and then read RUNNING. The test forces
this race: it suspends the system calls of both processes and continues them in that order.
"""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

import fastns
from fastns import SpawnError, Spec
from faults import notify, steps
from faults.worker import Board


def follow(listener: int, caller: int) -> list[str]:
    """Continue the calls in the order of the race. Return the caller's calls: from its first test
    of the lock up to the first call after RUNNING that is not a read."""
    processes: list[int] = []  # the hop process, then the sandbox
    held: dict[str, notify.Call] = {}
    calls: list[str] = []

    def release(what: str) -> None:
        if what in held:
            notify.answer(listener, held.pop(what))

    for call in steps.calls(listener):
        name = steps.CALLS[call.number]
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
    return calls


@pytest.mark.as_root
def test_running_after_a_hop_does_not_mean_executed(probe_rootfs: Path) -> None:
    spec = Spec(rootfs=probe_rootfs, namespaces={"pid": "/proc/self/ns/pid"})
    plan, board = fastns.compile(spec), Board()

    def start() -> None:
        try:
            fastns.spawn(["/missing"], spec=plan).wait()
            board.write(["started"])
        except SpawnError as exc:
            board.write([exc.stage, exc.errno])

    with steps.suspended(start) as (listener, caller):
        calls = follow(listener, caller)
    plan.close()
    # Without the second fcntl, which tests the lock again, the start would count as successful.
    assert calls == ["fcntl", "read", "read", "fcntl"]
    assert board.read() == ["exec", errno.ENOENT]
