"""What works on this machine: probes of the kernel, and sandboxes really tried.

`examine()` runs every check, in the order they depend on each other. What a sandbox needs is tried
by starting one; the rest is read from /proc, or asked of a system call that changes nothing.
Nothing stays behind.
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
import tempfile
from functools import partial
from pathlib import Path

from fastns import _core
from fastns._compile import MAPS_A_RANGE, Caller
from fastns._record import record
from fastns._surroundings import (
    CAP_SETGID,
    CAP_SETUID,
    OUT_OF_A_FILTER,
    REFUSED,
    TO_MAP_ROOT,
    Surroundings,
    forbidding_sysctls,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    import fastns

NAMESPACES = ("user", "mount", "pid", "uts", "ipc", "network", "cgroup", "time")
OLDEST_KERNEL = (5, 12)
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
MFD_EXEC = 0x0010
TRY_OPTIONS: Any = {"capture_output": True, "timeout": 10.0}
TOP_DIRECTORIES = ("bin", "sbin", "lib", "lib32", "lib64", "usr", "nix", "gnu")
"""Where programs and their libraries are, below /."""

SYSTEM_CALLS = {"open_tree": 428, "clone3": 435, "openat2": 437, "mount_setattr": 442}
"""Numbers of the calls that are probed: the same on every architecture but alpha."""
REPLACEABLE_CALLS = ("clone3", "openat2")
"""Without these an older call does: slower, and without a time namespace."""


@record(frozen=True)
class Check:
    """The result of one check.

    `ok` is None for what is neither good nor bad. `level` is "basic" (without it a sandbox with
    default settings does not start) or "extra" (a feature is missing). `fix` says what to do, and
    is None where there is nothing to do or nothing known.
    """

    name: str
    ok: bool | None
    level: str
    detail: str
    fix: str | None = None


@record(frozen=True)
class Finding:
    """What a probe saw; the words are those of Check."""

    ok: bool | None
    detail: str
    fix: str | None = None


def examine() -> Iterator[Check]:
    """Run every check, each as it is asked for."""
    for name, level, probe in _probes():
        try:
            found = probe()
        except Exception as error:  # a check that cannot be made has failed
            found = failed(error)
        yield Check(name, found.ok, level, found.detail, found.fix)


def _probes() -> Iterator[tuple[str, str, Callable[[], Finding]]]:
    """(name, level, probe) of each check."""
    user_level = "extra" if has_sys_admin() else "basic"
    yield "kernel", "basic", kernel
    yield "surroundings", "extra", surroundings
    yield "privilege", "extra", privilege
    yield "user namespace settings", user_level, user_namespace_settings
    for call in SYSTEM_CALLS:
        level = "extra" if call in REPLACEABLE_CALLS else "basic"
        yield f"{call}()", level, partial(system_call, call)
    yield "pidfd", "basic", pidfd
    yield "executable memfd", "basic", executable_memfd
    yield "program", "basic", program
    yield "devices", "basic", devices
    for space in NAMESPACES:
        level = {"user": user_level, "time": "extra"}.get(space, "basic")
        yield f"{space} namespace", level, partial(namespace, space)
    yield "/proc inside", "basic", proc_inside
    yield "system call filter", "basic", filters
    yield "profiles of one's own", "extra", profiles
    yield "landlock", "extra", landlock
    yield "default sandbox", "basic", attempt
    yield "overlay on tmpfs", "extra", overlay
    yield "idmapped mounts", "extra", idmapped_mounts
    yield "template", "extra", template
    yield "mount tables", "extra", mount_tables
    yield "id ranges", "extra", id_ranges
    yield "supplementary groups", "extra", supplementary_groups
    yield "cgroup", "extra", cgroup
    yield "limits", "extra", limits


# What the kernel says


def kernel() -> Finding:
    """Its version, against the oldest one with mount_setattr()."""
    release = platform.release()
    match = re.match(r"(\d+)\.(\d+)", release)
    needed = ".".join(map(str, OLDEST_KERNEL))
    if match is None:
        return Finding(
            False, f"cannot read the version {release!r}", f"use Linux {needed} or later"
        )
    version = (int(match[1]), int(match[2]))
    if version < OLDEST_KERNEL:
        return Finding(False, f"{release}, older than {needed}", f"use Linux {needed} or later")
    return Finding(True, release)


def has_sys_admin() -> bool:
    """Whether this process holds CAP_SYS_ADMIN in its user namespace."""
    return Caller.current().privileged


def surroundings() -> Finding:
    """Whether this is a container, a sandbox, a user namespace."""
    around = Surroundings.current()
    if around.unread:
        return Finding(False, around.words(), "mount -t proc proc /proc")
    return Finding(None, around.words())


def privilege() -> Finding:
    """Who runs this, and what follows."""
    uid = os.geteuid()
    if not has_sys_admin():
        return Finding(None, f"uid {uid} without CAP_SYS_ADMIN: each sandbox gets a user namespace")
    if Surroundings.current().in_user_namespace:
        follows = "in this user namespace only: its sandboxes have the ids of this namespace"
        return Finding(None, f"uid {uid} with CAP_SYS_ADMIN, {follows}")
    if not has_range():
        follows = "without CAP_CHOWN, CAP_SETUID or CAP_SETGID: its sandboxes have its own ids"
        return Finding(None, f"uid {uid} with CAP_SYS_ADMIN, {follows}")
    return Finding(None, f"uid {uid} with CAP_SYS_ADMIN: a range of ids for its sandboxes")


def has_range() -> bool:
    """Whether the sandboxes of this process have a range of ids of their own."""
    caller = Caller.current()
    return caller.initial_user_namespace and caller.capabilities & MAPS_A_RANGE == MAPS_A_RANGE


def user_namespace_settings() -> Finding:
    """The sysctls that can forbid user namespaces."""
    found = forbidding_sysctls(has_sys_admin())
    return Finding(True, "nothing forbids them") if found is None else Finding(False, *found)


def system_call(name: str) -> Finding:
    """Call it with arguments that every kernel that has it refuses as invalid."""
    import ctypes  # no other check needs it

    invalid = ctypes.c_ulong(~0)
    zero = ctypes.c_ulong(0)
    arguments = {
        "open_tree": (invalid, zero, invalid),  # unknown flags
        "clone3": (zero, zero),  # a size of nothing
        "openat2": (invalid, zero, zero, zero),  # the same
        "mount_setattr": (invalid, zero, invalid, zero, zero),  # unknown flags
    }[name]
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall(ctypes.c_long(SYSTEM_CALLS[name]), *arguments)
    code = ctypes.get_errno()
    if code == errno.EINVAL:
        return Finding(True, "there")
    fix = "use a newer kernel"
    if code in REFUSED and Surroundings.current().confined:
        fix = OUT_OF_A_FILTER
    return Finding(False, f"{os.strerror(code)} ({errno.errorcode.get(code, code)})", fix)


def mount_tables() -> Finding:
    """What each start copies of the mounts."""
    if not system_call("open_tree").ok:
        return Finding(None, "not known: open_tree() is refused")
    mounts = len(Path("/proc/self/mountinfo").read_bytes().splitlines())
    if Caller.current().tree_namespaces:
        return Finding(
            None,
            "a direct start in a rootfs begins with that alone (OPEN_TREE_NAMESPACE); with an "
            f"overlay, files or no rootfs it copies the {mounts} mounts here, a Template few",
        )
    able = not has_range() or _core.has_tree_namespaces()  # others are not told
    why = "this caller" if able else "this kernel"
    return Finding(
        None,
        f"a direct start copies the {mounts} mounts here, a Template only its own few; {why} has "
        "no OPEN_TREE_NAMESPACE (Linux 7.0, CAP_SYS_ADMIN)",
    )


def pidfd() -> Finding:
    """A file descriptor that stands for a process."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        return Finding(False, f"pidfd_open: {error.strerror}", "use Linux 5.3 or later")
    return Finding(True, "there")


def executable_memfd() -> Finding:
    """A file in memory that may be executed: how the program is started."""
    try:
        try:
            fd = os.memfd_create("fastns-doctor", os.MFD_CLOEXEC | MFD_EXEC)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            fd = os.memfd_create("fastns-doctor", os.MFD_CLOEXEC)  # before Linux 6.3: executable
    except OSError as error:
        return Finding(False, f"memfd_create: {error.strerror}", "sysctl vm.memfd_noexec=1")
    try:
        allowed = os.fstat(fd).st_mode & 0o111 != 0
    finally:
        os.close(fd)
    if not allowed:
        return Finding(False, "vm.memfd_noexec forbids it", "sysctl vm.memfd_noexec=1")
    return Finding(True, "there")


def program() -> Finding:
    """What carries out the plans of sandboxes."""
    path = Path(__file__).with_name("_program")
    if not path.is_file():
        return Finding(False, f"{path} is missing", "reinstall fastns")
    return Finding(True, str(path))


def devices() -> Finding:
    """The devices that a sandbox's /dev shows."""
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
    """What lets an unprivileged user map more than one id: newuidmap, newgidmap, /etc/sub[ug]id."""
    around = Surroundings.current()
    held = around.capabilities if around.unread is None else _core.capabilities()
    maps = held & (CAP_SETUID | CAP_SETGID) == CAP_SETUID | CAP_SETGID
    if around.in_user_namespace and min(around.uids, around.gids) <= 1:
        return Finding(None, "this user namespace has one id: there is no range to be mapped")
    if around.in_user_namespace and maps:
        return Finding(None, f"the {around.uids} ids of this user namespace, without newuidmap")
    if os.geteuid() == 0 and maps:
        if not has_range():
            return Finding(None, "root maps any id without newuidmap")
        from fastns._policy import userns

        uid, gid, size = userns.range_of_root()
        ranges = f"uids {uid}-{uid + size - 1}, gids {gid}-{gid + size - 1}"
        return Finding(None, f"root maps any id without newuidmap; sandboxes have {ranges}")
    if around.no_new_privileges:
        return Finding(
            False,
            "newuidmap gains no rights under no_new_privileges",
            "start this process without it",
        )
    missing = [name for name in ("newuidmap", "newgidmap") if shutil.which(name) is None]
    if missing:
        return Finding(False, f"not installed: {', '.join(missing)}", "install the package uidmap")
    uid = os.geteuid()
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = str(uid)
    lacking = [path for path in ("/etc/subuid", "/etc/subgid") if not _has_range(path, user, uid)]
    if lacking:
        return Finding(
            False,
            f"no range for {user} in {' and '.join(lacking)}",
            f"usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}",
        )
    return Finding(True, f"newuidmap, newgidmap and ranges for {user}")


def supplementary_groups() -> Finding:
    """Which ones a sandbox keeps: in a user namespace with a single id they cannot be given up."""
    caller = Caller.current()
    if caller.capabilities & CAP_SETGID and caller.may_setgroups:
        return Finding(None, "a sandbox has none of the caller's")
    kept = sorted(set(os.getgroups()) - {os.getegid()})
    if not kept:
        return Finding(None, "none to keep")
    return Finding(
        None,
        f"a sandbox keeps {', '.join(map(_group_name, kept))}: files and sockets of these groups "
        "are open to it, so bind none of them (docker's or lxd's socket is as good as root). With "
        "ranges of ids (uid_mappings, gid_mappings) it keeps no group",
    )


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _has_range(path: str, user: str, uid: int) -> bool:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return False
    return any(line.split(":")[0] in (user, str(uid)) for line in lines if line.count(":") == 2)


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
    """Which limits can be enforced, by which cgroups."""
    from fastns._policy import cgroup_hierarchies, cgroup_plan

    there: list[str] = []
    missing: list[str] = []
    hierarchies = cgroup_hierarchies.hierarchies()
    for controller in dict.fromkeys(cgroup_plan.CONTROLLER.values()):
        hierarchy = next((h for h in hierarchies if h.has(controller)), None)
        if hierarchy is None:
            missing.append(f"{controller}: no such controller")
            continue
        _, failures = cgroup_hierarchies.find_for(hierarchy, [controller], None)
        missing += [f"{name}: {exc.filename}: {exc.strerror}" for name, exc in failures.items()]
        if not failures:
            there.append(f"{controller} (version {2 if hierarchy.unified else 1})")
    detail = "by cgroups: " + (", ".join(there) or "none")
    if not missing:
        return Finding(True, detail)
    fix = (
        "as root, or with a part of the tree delegated: systemd-run --user --scope -p Delegate=yes"
    )
    return Finding(False, f"{detail}; not: {'; '.join(missing)}", fix)


# What is tried


def filters() -> Finding:
    """Whether there is a default filter for this machine; a start without one has to be asked
    for."""
    import fastns
    from fastns._policy import filters

    try:
        size = len(filters.default(setid=True)) // 8
    except fastns.SpecError as error:
        return failed(error)
    return Finding(True, f"{size} instructions")


def profiles() -> Finding:
    """Whether a profile of one's own can be made into a filter."""
    import fastns
    from fastns import seccomp

    try:
        seccomp.build({"defaultAction": "SCMP_ACT_ALLOW"})
    except fastns.SpecError as error:
        fix = "install libseccomp (Debian: libseccomp2)"
        return Finding(False, str(error), fix)
    return Finding(True, "by libseccomp")


def landlock() -> Finding:
    """Which version of Landlock the kernel has, for Spec.landlock."""
    import fastns
    from fastns._policy import landlock

    try:
        version = landlock.abi()
    except fastns.SpecError as error:
        fix = "use a kernel, 5.13 or later, with landlock in lsm="
        return Finding(False, error.reason.partition(";")[0], fix)
    newest = max(landlock.SINCE)
    lacks = "" if version >= newest else f"; {newest} can refuse more"
    return Finding(True, f"ABI {version}{lacks}")


def attempt(**fields: Any) -> Finding:
    """Run `true` in a sandbox with these fields of a Spec."""
    import fastns

    return tried(lambda args: fastns.run(args, spec=fastns.Spec(**fields), **TRY_OPTIONS))


def template() -> Finding:
    """The same from a Template, with a pool of each kind."""
    import fastns

    def run(args: list[str]) -> fastns.CompletedSandbox:
        with fastns.Template(parked=1, netns_pool=1) as template:
            return template.run(args, **TRY_OPTIONS)

    return tried(run)


def tried(run: Callable[[list[str]], fastns.CompletedSandbox]) -> Finding:
    """What became of `true`."""
    import fastns

    program = shutil.which("true")
    if program is None:
        return Finding(False, "no program `true` to try it with", "put coreutils on PATH")
    try:
        done = run([program])
    except fastns.FastnsError as error:
        return failed(error)
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip()
        return Finding(False, f"`true` ended with {done.returncode} {said}".rstrip())
    return Finding(True, f"works ({done.wall_time * 1000:.1f} ms)")


def failed(error: Exception) -> Finding:
    """What an exception says, and what helps here."""
    import fastns

    detail = str(error) if isinstance(error, fastns.FastnsError | OSError) else repr(error)
    fix = getattr(error, "hint", None)
    if isinstance(error, fastns.SpawnError) and error.errno in REFUSED:
        around = Surroundings.current()
        if error.stage == "id_map" and around.cannot_map_root:
            fix = TO_MAP_ROOT
        elif error.stage not in ("exec", "chdir") and around.confined:
            fix = OUT_OF_A_FILTER
    if fix is not None:  # the doctor sends nobody to the doctor
        fix = "; ".join(part for part in fix.split("; ") if "fastns doctor" not in part) or None
    return Finding(False, detail, fix)


def only(*spaces: str) -> dict[str, Any]:
    """Fields of a Spec in which these namespaces alone are new."""
    modes = {name: "new" if name in spaces else "host" for name in NAMESPACES}
    del modes["network"]
    network = "none" if "network" in spaces else "host"
    return {"namespaces": modes, "network": network, "seccomp": "unconfined"}


def namespace(space: str) -> Finding:
    """A sandbox with this one new namespace (and a user namespace where one is needed)."""
    spaces = {space} if has_sys_admin() else {space, "user"}
    return attempt(**only(*spaces), default_mounts=False)


def proc_inside() -> Finding:
    """A /proc of a new pid namespace."""
    import fastns

    spaces = {"mount", "pid"} if has_sys_admin() else {"mount", "pid", "user"}
    return attempt(
        **only(*spaces), default_mounts=False, mounts=[fastns.Mount("/proc", type="proc")]
    )


def idmapped_mounts() -> Finding:
    """Whether what lies on the file system of / keeps its owners in a sandbox of root's, whose user
    namespace has ids of its own."""
    import fastns
    from fastns._policy import owners

    if not has_range():
        return Finding(None, "for root alone: others have their own id in their sandboxes")
    why = owners.plain("/", False, fastns.compile().can_idmap)
    if why is None:
        return Finding(True, "on the file system of /: roots and binds keep their owners")
    return Finding(
        False,
        f"{why}, so binds of / are plain: root's files there are nobody's inside",
        "put roots and volumes on ext4, xfs, btrfs or tmpfs (Linux 6.3), or give "
        "namespaces={'user': 'host'}",
    )


def overlay() -> Finding:
    """A throw-away layer over a root that is made of this machine's programs."""
    import fastns

    with tempfile.TemporaryDirectory(prefix="fastns-doctor-") as root:
        mounts = []
        for name in TOP_DIRECTORIES:
            host = Path("/", name)
            if host.is_symlink():
                Path(root, name).symlink_to(os.readlink(host))
            elif host.is_dir():
                Path(root, name).mkdir()
                mounts.append(fastns.Mount(str(host), source=str(host), options=["rbind", "ro"]))
        return attempt(rootfs=root, overlay=True, mounts=mounts, seccomp="unconfined")
