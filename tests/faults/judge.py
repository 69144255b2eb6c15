"""Judges the result of a fault, which must be a correct sandbox or an error that says what
happened."""

from __future__ import annotations

import errno
import re
from typing import Any, NamedTuple

from faults.case import SIGNALS, Fault, Seen
from faults.posture import difference
from faults.roles import CALLER

ERRNOS = ("EPERM", "ENOMEM", "EMFILE", "EINTR", "EAGAIN", "ENOSPC", "ENOSYS")

# Calls that cannot fail with these errnos, or whose failure cannot be handled.
CANNOT_FAIL = frozenset(
    re.findall(
        r"\w+",
        """exit exit_group close munmap rt_sigreturn restart_syscall getpid gettid getppid getuid
        geteuid getgid getegid getresuid getresgid getgroups uname umask sched_yield brk futex
        set_robust_list set_tid_address arch_prctl rseq clock_gettime gettimeofday time getrandom
        getcpu alarm pause""",
    )
)

RIGHT, TYPED, MISSED = "right", "typed", "missed"


class Rule(NamedTuple):
    """Another acceptable result of a fault, and why."""

    role: str  # "": any
    calls: tuple[str, ...]  # (): any
    outcome: str  # the type of an exception, or the errno of a SpawnError
    why: str
    stage: str = ""  # of a SpawnError; "": any


_MEMORY = ("mmap", "mremap", "mprotect", "brk")
RULES = (
    Rule(CALLER, _MEMORY, "MemoryError", "malloc(3) and Python report it so"),
    Rule("", _MEMORY, "ENOMEM", "memory is short, whatever the errno; malloc(3) does the same"),
    Rule(
        CALLER,
        ("mmap",),
        "SystemError",
        "CPython 3.11 reports it so if it lacks memory for a frame",
    ),
    Rule(CALLER, ("mmap", "clone3"), "EAGAIN", "pthread_create(3) has no ENOMEM", stage="cgroup"),
    Rule("fastns", ("sendto", "write"), "ECANCELED", "a message that cannot be sent has no errno"),
    Rule("newuidmap", (), "EPERM", "its status says only that it failed"),
    Rule("newgidmap", (), "EPERM", "its status says only that it failed"),
    Rule(
        "newuidmap", (), "ECANCELED", "it fails during dynamic linking, and its death is reported"
    ),
    Rule(
        "newgidmap", (), "ECANCELED", "it fails during dynamic linking, and its death is reported"
    ),
)


# Documented fallbacks: the way and the call ("": any), the errno, and how the sandbox then differs.
FALLBACKS = (
    # A bind that cannot be idmapped is plain (docs/guide/files-and-ids.md).
    (
        "",
        "mount_setattr",
        "EPERM",
        re.compile(
            r"\.out\.mounts\[\d+\]\.options: .* instead of \['idmapped'.*"
            r"|\.out\.root\.mnt\.[ug]id: 65534 instead of 0"
        ),
    ),
    # Where processes are scarce, a fresh sandbox takes the place of a room
    # (docs/architecture/templates.md).
    (
        "template-rooms",
        "",
        "EAGAIN",
        re.compile(
            r"\.out\.([ps]id|pgid|proc_pids\[0\]): 1 instead of 'its own'"
            r"|\.out\.ppid: 0 instead of 1"
        ),
    ),
)


def verdict(fault: Fault, seen: Seen, want: list[Any]) -> tuple[str, list[str]]:
    """Return RIGHT, TYPED, MISSED or the kind of error, and lines that say why."""
    if seen.hung:
        return "hang", seen.hung
    if not seen.hit:
        return MISSED, []
    if seen.left:
        return "left", seen.left + _errors(seen.outcome)
    if seen.killed:
        return RIGHT, []
    outcome = seen.outcome
    if outcome is None or "broken" in outcome:
        return "died", [str(outcome)]
    if "error" in outcome:
        return _error(fault, outcome["error"])
    verdicts = [
        _one(fault, have, right) for have, right in zip(outcome["results"], want, strict=True)
    ]
    for kind, lines in verdicts:
        if kind not in (RIGHT, TYPED):
            return kind, lines
    return (TYPED, []) if any(kind == TYPED for kind, _ in verdicts) else (RIGHT, [])


def _one(fault: Fault, have: Any, want: Any) -> tuple[str, list[str]]:
    if "error" in have:
        return _error(fault, have["error"])
    lines = difference(want, have)
    if not lines:
        return RIGHT, []
    for way, call, what, how in FALLBACKS:
        named = way in ("", fault.way) and call in ("", fault.point.call) and what == fault.what
        if named and all(how.fullmatch(line) for line in lines):
            return RIGHT, []
    if fault.what == "SIGKILL" and have["code"] == -9:
        return TYPED, []  # the command was killed, and the result says so
    return "posture", lines


def _errors(outcome: Any) -> list[str]:
    return [_line(outcome["error"])] if outcome and "error" in outcome else []


def _line(error: dict[str, Any]) -> str:
    return f"{error['type']} {error['stage'] or ''} {error['text']}"


def _error(fault: Fault, error: dict[str, Any]) -> tuple[str, list[str]]:
    lines = [_line(error), error["where"]]
    if fault.what == "SIGSTOP":
        late = error["type"] == "TimeoutExpired" and fault.point.role != CALLER
        return (TYPED, []) if late else ("error of a stop", lines)
    if fault.what == "SIGCONT":
        return "error of a continue", lines
    if fault.what == "SIGKILL":
        told = error["type"] == "SpawnError" and error["errno"] == errno.ECANCELED
        return (TYPED, []) if told else ("error of a kill", lines)
    said = error["type"]
    if said == "SpawnError" and error["stage"]:
        said = errno.errorcode.get(error["errno"], "")
    allowed = [rule for rule in RULES if applies(rule, fault)]
    if said == fault.what or any(
        said == rule.outcome and rule.stage in ("", error["stage"]) for rule in allowed
    ):
        return TYPED, []
    return ("errno" if error["fastns"] else "untyped"), lines


def applies(rule: Rule, fault: Fault) -> bool:
    return rule.role in ("", fault.point.role) and (
        not rule.calls or fault.point.call in rule.calls
    )


assert not set(ERRNOS) & set(SIGNALS)
