"""The doctor's checks that start nothing: kernel, settings, devices, ids and cgroups.

They read files, or make system calls that change nothing.
"""

from __future__ import annotations

import errno
import grp
import os
import platform
import pwd
import re
import shutil
import stat
from pathlib import Path

from fastns import _core
from fastns._compile import userns
from fastns._compile.decide import CAP_SETGID, CAP_SETUID, Caller
from fastns._compile.root import DEVICES
from fastns._light import record
from fastns._surroundings import OUT_OF_A_FILTER, REFUSED, Surroundings, forbidding_sysctls
from fastns.errors import SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

OLDEST_KERNEL = (5, 12)
MFD_EXEC = 0x0010
SYSTEM_CALLS = {"open_tree": 428, "clone3": 435, "openat2": 437, "mount_setattr": 442}
"""The calls to try, and their numbers, which are the same on every architecture but alpha."""
REPLACEABLE_CALLS = ("clone3", "openat2")
"""Calls that have slower replacements. The one of clone3 cannot make a time namespace."""


@record(frozen=True)
class Finding:
    """What a check found."""

    ok: bool | None  # None: neither good nor bad
    detail: str
    fix: str | None = None  # None: nothing to do, or no fix known


def kernel() -> Finding:
    """Whether the kernel is new enough to have mount_setattr()."""
    release = platform.release()
    match = re.match(r"(\d+)\.(\d+)", release)
    needed = ".".join(map(str, OLDEST_KERNEL))
    fix = f"use Linux {needed} or later"
    if match is None:
        return Finding(False, f"cannot read the version {release!r}", fix)
    if (int(match[1]), int(match[2])) < OLDEST_KERNEL:
        return Finding(False, f"{release}, older than {needed}", fix)
    return Finding(True, release)


def has_sys_admin() -> bool:
    """Whether this process holds CAP_SYS_ADMIN in its user namespace."""
    return Caller.current().privileged


def surroundings() -> Finding:
    """Whether this process is in a container, a sandbox or a user namespace."""
    around = Surroundings.current()
    if around.unread:
        return Finding(False, around.words(), "mount -t proc proc /proc")
    return Finding(None, around.words())


def privilege() -> Finding:
    """The user, its rights, and the ids of its sandboxes."""
    if not has_sys_admin():
        found = "without CAP_SYS_ADMIN: each sandbox gets a user namespace"
    elif Surroundings.current().in_user_namespace:
        rights = "with CAP_SYS_ADMIN, in this user namespace only"
        found = f"{rights}: its sandboxes have the ids of this namespace"
    elif not has_range():
        rights = "with CAP_SYS_ADMIN, without CAP_CHOWN, CAP_SETUID or CAP_SETGID"
        found = f"{rights}: its sandboxes have its own ids"
    else:
        found = "with CAP_SYS_ADMIN: a range of ids for its sandboxes"
    return Finding(None, f"uid {os.geteuid()} {found}")


def has_range() -> bool:
    """Whether the sandboxes of this process have a range of ids of their own."""
    return Caller.current().maps_a_range


def user_namespace_settings() -> Finding:
    """The sysctls that can forbid user namespaces."""
    found = forbidding_sysctls(has_sys_admin())
    return Finding(True, "nothing forbids them") if found is None else Finding(False, *found)


def system_call(name: str) -> Finding:
    """Whether the kernel has this call: if so, it fails with EINVAL for invalid arguments."""
    import ctypes  # no other check needs it

    invalid, zero = ctypes.c_ulong(~0), ctypes.c_ulong(0)
    arguments = {
        "open_tree": (invalid, zero, invalid),  # unknown flags
        "clone3": (zero, zero),  # size 0
        "openat2": (invalid, zero, zero, zero),  # size 0
        "mount_setattr": (invalid, zero, invalid, zero, zero),  # unknown flags
    }[name]
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall(ctypes.c_long(SYSTEM_CALLS[name]), *arguments)
    code = ctypes.get_errno()
    if code == errno.EINVAL:
        return Finding(True, "available")
    confined = code in REFUSED and Surroundings.current().confined
    fix = OUT_OF_A_FILTER if confined else "use a newer kernel"
    return Finding(False, f"{os.strerror(code)} ({errno.errorcode.get(code, code)})", fix)


def mount_tables() -> Finding:
    """How many mounts each start copies."""
    if not system_call("open_tree").ok:
        return Finding(None, "unknown: open_tree() is refused")
    mounts = len(Path("/proc/self/mountinfo").read_bytes().splitlines())
    if Caller.current().tree_namespaces:
        return Finding(
            None,
            "a direct start in a rootfs begins with that alone (OPEN_TREE_NAMESPACE); with an "
            f"overlay, files or no rootfs it copies the {mounts} mounts here, a Template few",
        )
    able = not has_range() or _core.has_tree_namespaces()  # others cannot find out
    why = "this caller" if able else "this kernel"
    return Finding(
        None,
        f"a direct start copies the {mounts} mounts here, a Template only its own few; {why} has "
        "no OPEN_TREE_NAMESPACE (Linux 7.0, CAP_SYS_ADMIN)",
    )


def pidfd() -> Finding:
    """Whether the kernel has pidfds."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        return Finding(False, f"pidfd_open: {error.strerror}", "use Linux 5.3 or later")
    return Finding(True, "available")


def executable_memfd() -> Finding:
    """Whether a file in memory may be executed. Each start executes the program from one."""
    fix = "sysctl vm.memfd_noexec=1"
    try:
        try:
            fd = os.memfd_create("fastns-doctor", os.MFD_CLOEXEC | MFD_EXEC)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            fd = os.memfd_create("fastns-doctor", os.MFD_CLOEXEC)  # before Linux 6.3: executable
    except OSError as error:
        return Finding(False, f"memfd_create: {error.strerror}", fix)
    allowed = os.fstat(fd).st_mode & 0o111 != 0
    os.close(fd)
    return (
        Finding(True, "available") if allowed else Finding(False, "vm.memfd_noexec forbids it", fix)
    )


def program() -> Finding:
    """Whether the program, which runs the ops of plans, is installed."""
    path = Path(__file__).with_name("_program")
    if not path.is_file():
        return Finding(False, f"{path} is missing", "reinstall fastns")
    return Finding(True, str(path))


def devices() -> Finding:
    """Whether the host has the devices that a sandbox's /dev shows."""
    missing = [name for name in DEVICES if not _is_device(Path("/dev", name))]
    if not missing:
        return Finding(True, ", ".join(DEVICES))
    names = ", ".join(f"/dev/{name}" for name in missing)
    return Finding(False, f"not a character device: {names}", "mount a devtmpfs on /dev")


def _is_device(path: Path) -> bool:
    try:
        return stat.S_ISCHR(path.stat().st_mode)
    except OSError:
        return False


def id_ranges() -> Finding:
    """Whether this user can map more than one id, by its rights or by newuidmap and newgidmap."""
    around = Surroundings.current()
    held = around.capabilities if around.unread is None else _core.capabilities()
    maps = held & (CAP_SETUID | CAP_SETGID) == CAP_SETUID | CAP_SETGID
    if around.in_user_namespace and min(around.uids, around.gids) <= 1:
        return Finding(None, "this user namespace has one id: it has no range to map")
    if around.in_user_namespace and maps:
        return Finding(None, f"the {around.uids} ids of this user namespace, without newuidmap")
    if os.geteuid() == 0 and maps:
        if not has_range():
            return Finding(None, "root maps any id without newuidmap")
        uid, gid, size = userns.range_of_root()
        ranges = f"uids {uid}-{uid + size - 1}, gids {gid}-{gid + size - 1}"
        return Finding(None, f"root maps any id without newuidmap; sandboxes have {ranges}")
    if around.no_new_privileges:
        detail = "newuidmap gains no rights under no_new_privileges"
        return Finding(False, detail, "start this process without it")
    missing = [name for name in ("newuidmap", "newgidmap") if shutil.which(name) is None]
    if missing:
        return Finding(False, f"not installed: {', '.join(missing)}", "install the package uidmap")
    uid = os.geteuid()
    user = _name(pwd.getpwuid, uid)
    lacking = [path for path in ("/etc/subuid", "/etc/subgid") if not _has_range(path, user, uid)]
    if lacking:
        return Finding(
            False,
            f"no range for {user} in {' and '.join(lacking)}",
            f"usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}",
        )
    return Finding(True, f"newuidmap, newgidmap and ranges for {user}")


def supplementary_groups() -> Finding:
    """Which of the caller's groups a sandbox keeps. With only one id mapped it cannot drop them."""
    caller = Caller.current()
    if caller.capabilities & CAP_SETGID and caller.may_setgroups:
        return Finding(None, "a sandbox has none of the caller's")
    kept = sorted(set(os.getgroups()) - {os.getegid()})
    if not kept:
        return Finding(None, "none to keep")
    names = ", ".join(_name(grp.getgrgid, gid) for gid in kept)
    return Finding(
        None,
        f"a sandbox keeps {names}: files and sockets of these groups "
        "are open to it, so bind none of them (docker's or lxd's socket is as good as root). With "
        "ranges of ids (uid_mappings, gid_mappings) it keeps no group",
    )


def _name(lookup: Callable[[int], tuple[Any, ...]], number: int) -> str:
    """The name of a user or group; without one, its number."""
    try:
        return str(lookup(number)[0])
    except KeyError:
        return str(number)


def _has_range(path: str, user: str, uid: int) -> bool:
    return any(owner in (user, str(uid)) for owner, _, _ in userns.entries(path))


def cgroup() -> Finding:
    """Which hierarchy is mounted, and its controllers."""
    top = Path("/sys/fs/cgroup")
    for kind, directory in (("version 2", top), ("hybrid", top / "unified")):
        try:
            controllers = (directory / "cgroup.controllers").read_text().split()
        except OSError:
            continue
        return Finding(None, f"{kind}; in cgroup2: {', '.join(controllers) or 'no controllers'}")
    return Finding(None, "version 1" if any(top.glob("*/cgroup.procs")) else "not mounted")


def limits() -> Finding:
    """Which cgroup controllers can enforce limits here, and their cgroup version."""
    from fastns._policy import cgroup_plan

    there, missing = [], []
    hierarchies = cgroup_plan.hierarchies()
    for controller in dict.fromkeys(cgroup_plan.CONTROLLER.values()):
        hierarchy = next((h for h in hierarchies if h.has(controller)), None)
        if hierarchy is None:
            missing.append(f"{controller}: no such controller")
            continue
        _, failures = cgroup_plan.find_for(hierarchy, [controller], None)
        missing += [f"{name}: {exc.filename}: {exc.strerror}" for name, exc in failures.items()]
        if not failures:
            there.append(f"{controller} (version {2 if hierarchy.unified else 1})")
    detail = "by cgroups: " + (", ".join(there) or "none")
    if not missing:
        return Finding(True, detail)
    delegated = "with a part of the tree delegated: systemd-run --user --scope -p Delegate=yes"
    return Finding(False, f"{detail}; not: {'; '.join(missing)}", f"as root, or {delegated}")


def landlock() -> Finding:
    """Which version of Landlock the kernel has, for Spec.landlock."""
    from fastns._policy import landlock

    try:
        version = landlock.abi()
    except SpecError as error:
        fix = "use a kernel, 5.13 or later, with landlock in lsm="
        return Finding(False, error.reason.partition(";")[0], fix)
    newest = max(landlock.SINCE)
    lacks = "" if version >= newest else f"; ABI {newest} can restrict more"
    return Finding(True, f"ABI {version}{lacks}")
