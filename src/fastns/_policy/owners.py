"""Explains whether a bind in root's sandboxes keeps its owners, and if not, why.

Runs in the caller, for a dry run, the doctor and the hint of an error. A start does not use it: it
tries to idmap the bind. If the kernel cannot, the bind stays plain, or the start fails if the bind
has the option idmap.
"""

from __future__ import annotations

import errno
import os
import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from fastns._core import Plan

    CanIdmap: TypeAlias = Callable[[bytes, bool], int]  # Plan.can_idmap()


def plain(source: str, recursive: bool, can_idmap: CanIdmap) -> str | None:
    """Why a bind of this source is plain; None if it keeps its owners or cannot be mounted."""
    code = can_idmap(os.fsencode(source), recursive)
    if code not in (errno.EINVAL, errno.EPERM):
        return None
    if recursive:
        whole = os.path.realpath(source).rstrip("/") + "/"
        for point, kind in _mounts().values():
            below = point.startswith(whole) and point != whole
            if below and plain(point, False, can_idmap) is not None:
                return f"{kind} at {point} cannot be idmapped"
    if code == errno.EPERM:
        return "it is already idmapped, or belongs to another user namespace"
    return f"{_kind(source)} cannot be idmapped"


def notes(plan: Plan) -> dict[bytes, str]:
    """For a dry run: the target of each bind -> a note that says whether it keeps its owners."""
    found = {}
    for at, source, recursive, optional, why in plan.binds:
        reason = _reason(plan, source, recursive, why)
        outcome = "plain" if why or optional else "fails"
        words = "owners kept" if reason is None else f"{outcome}: {reason}"
        found[os.fsencode(at)] = f" ({words})"
    return found


def hint(plan: Plan, place: str, general: str | None) -> str | None:
    """A hint about a refused access to `place`, a path inside, which may be in a plain bind.

    general: the hint for any other cause."""
    found = [bind for bind in plan.binds if place == bind[0] or place.startswith(bind[0] + "/")]
    if not found:
        return general
    at, source, recursive, _, why = found[-1]  # the last one is on top
    try:
        reason = _reason(plan, source, recursive, why)
    except OSError:  # must not replace the error that is being reported
        return general
    if reason is None:
        return general
    words = (
        f"the bind at {at} is plain ({reason}), so uid 0 inside has no access to files that only "
        "root may use"
    )
    return f"{words}; or {general}" if general else words


def _reason(plan: Plan, source: str, recursive: bool, why: str) -> str | None:
    if why or plan.ids is None:
        return why or None
    return plain(source, recursive, plan.can_idmap)


def _kind(path: str) -> str:
    """The type of a path's file system."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        with open(f"/proc/self/fdinfo/{fd}") as info:
            number = re.search(r"^mnt_id:\s*(\d+)", info.read(), re.M)
    finally:
        os.close(fd)
    return _mounts().get(number[1] if number else "", ("", "its file system"))[1]


def _mounts() -> dict[str, tuple[str, str]]:
    """Mount id -> mount point and type (proc_pid_mountinfo(5))."""
    found = {}
    with open("/proc/self/mountinfo", errors="surrogateescape") as lines:
        for line in lines:
            words, _, rest = line.partition(" - ")
            number, _, _, _, point, *_ = words.split()
            point = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), point)
            found[number] = point, rest.split()[0]
    return found
