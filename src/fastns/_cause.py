"""Finds out why a sandbox ended, from what this process did to it and what its cgroups counted."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Literal, TypeAlias

    from fastns._core import Plan

    Cause: TypeAlias = Literal[
        "exited", "signaled", "timeout", "cpu_time", "oom", "pids", "output_limit", "seccomp",
        "killed",
    ]  # fmt: skip
    Counts: TypeAlias = Mapping[str, int | None]


# signal(7), on x86_64 and aarch64. Importing `signal` would import `enum`.
SIGILL, SIGTRAP, SIGABRT, SIGKILL, SIGSEGV, SIGSYS = 4, 5, 6, 9, 11, 31
# Signals by which a process may end because of a limit. The limits on memory and CPU time kill with
# SIGKILL. A process that cannot fork, or whose child was killed, may call abort(), which ends pid 1
# of a namespace by SIGSEGV (x86-64) or SIGTRAP (aarch64), or run an invalid instruction (SIGILL).
OF_A_LIMIT = (-SIGKILL, -SIGABRT, -SIGSEGV, -SIGTRAP, -SIGILL)


def cause_of(
    returncode: int,
    counts: Counts | None = None,
    *,
    timed_out: bool = False,
    killed: bool = False,
    over: bool = False,
    plan: Plan | None = None,
    signals: frozenset[int] = frozenset(),
) -> Cause:
    """Returns the cause. One that is certain (timeout, output limit, kill, seccomp) outranks one
    inferred from counters.

    Args:
        counts: from its cgroups, if it had any. They cover all its processes, so a limit that was
            reached is the cause only if the first process ended in a way that a limit can explain.
        timed_out: it was killed at its time limit.
        killed: it was killed by Sandbox.kill().
        over: it was killed because it wrote more than max_output.
        plan: says whether there is a filter. Without one, SIGSYS is a signal like any other.
        signals: the signals that this process has sent to it.
    """
    if timed_out:
        return "timeout"
    if over:
        return "output_limit"
    if returncode == 0:
        return "exited"
    sent = -returncode in signals
    if killed and returncode == -SIGKILL:
        return "killed"
    if returncode == -SIGSYS and not sent and plan and plan.filtered:
        return "seccomp"
    counts = counts or {}
    if not sent and (returncode > 0 or returncode in OF_A_LIMIT):
        if counts.get("cpu_time_over"):
            return "cpu_time"
        if counts.get("oom_kills"):
            return "oom"
        if counts.get("pids_refused"):
            return "pids"
    return "exited" if returncode > 0 else "signaled"
