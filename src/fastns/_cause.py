"""Why a sandbox has ended: what this process did, and what its cgroups have counted."""

from __future__ import annotations

import signal

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


def cause_of(
    returncode: int,
    counts: Counts | None = None,
    *,
    timed_out: bool = False,
    killed: bool = False,
    truncated: bool = False,
    plan: Plan | None = None,
    signals: frozenset[int] = frozenset(),
) -> Cause:
    """
    Args:
        counts: of its cgroups, if it had any. A limit that was met counts where the command has not
            ended well for all that.
        timed_out: it was killed here when its time was over. killed: by Sandbox.kill().
        truncated: more came out of it than max_output.
        plan: how it was made: SIGSYS ends nobody by itself, but where there is a filter.
        signals: those that this process has sent it.
    """
    if returncode == 0 and not timed_out and not truncated:
        return "exited"
    counts = counts or {}
    if counts.get("oom_kills") and returncode:
        return "oom"
    if counts.get("cpu_time_over") and returncode:
        return "cpu_time"
    if timed_out:
        return "timeout"
    if killed and returncode == -signal.SIGKILL:
        return "killed"
    if counts.get("pids_refused") and returncode:
        return "pids"
    if returncode == -signal.SIGSYS and signal.SIGSYS not in signals and plan and plan.filtered:
        return "seccomp"
    if truncated:
        return "output_limit"
    return "exited" if returncode >= 0 else "signaled"
