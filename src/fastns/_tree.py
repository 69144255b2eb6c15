"""Ending a process and its descendants, for sandboxes without a pid namespace of their own.

Each process is stopped before its children are listed, so that it cannot start more meanwhile, and
is held by a pidfd, so that a number used again is not hit. What has left the tree (a daemon whose
parent ended) is not found: only a pid namespace holds everything.
"""

import contextlib
import os
import signal


def kill_tree(pid: int) -> None:
    held: list[int] = []
    pending = [pid]
    try:
        while pending:
            current = pending.pop()
            with contextlib.suppress(ProcessLookupError, PermissionError):
                pidfd = os.pidfd_open(current)
                held.append(pidfd)
                signal.pidfd_send_signal(pidfd, signal.SIGSTOP)
                pending.extend(_children(current))
        for pidfd in held:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    finally:
        for pidfd in held:
            os.close(pidfd)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    gone = contextlib.suppress(FileNotFoundError, ProcessLookupError)
    with gone:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with gone, open(f"/proc/{pid}/task/{thread}/children") as file:
                found.extend(map(int, file.read().split()))
    return found
