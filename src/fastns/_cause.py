"""Why a sandbox has ended: what this process did, and what its cgroups have counted."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Literal, TypeAlias

    from fastns._core import Plan

    Cause: TypeAlias = Literal[
        "exited",
        "signaled",
        "timeout",
        "cpu_time",
        "oom",
        "pids",
        "output_limit",
        "seccomp",
        "killed",
    ]
    Counts: TypeAlias = Mapping[str, int | None]


# signal(7), on x86_64 and aarch64. The module `signal` brings `enum`.
SIGILL, SIGTRAP, SIGABRT, SIGKILL, SIGSEGV, SIGSYS = 4, 5, 6, 9, 11, 31
# Over a limit on memory or CPU time a process is ended by SIGKILL; one that was refused another, or
# has lost one, may end itself, by abort(), which for pid 1 of a namespace comes to SIGSEGV (x86-64)
# or SIGTRAP (aarch64), or by an instruction that is none.
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
    """What is known to have ended the first process goes before what a counter lets guess.

    Args:
        counts: of its cgroups, if it had any. They are of all its processes: a limit that was met
            is the cause only of an end of the first one that may come of it.
        timed_out: it was killed here when its time was over. killed: by Sandbox.kill().
        over: more came out of it than max_output, for which it is ended. A limit that only cuts
            the output off ends nobody.
        plan: how it was made: SIGSYS ends nobody by itself, but where there is a filter.
        signals: those that this process has sent it.
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
