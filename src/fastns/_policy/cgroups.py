"""Limits → cgroups: which controllers of this machine enforce them, and by which files.

plan() decides, by reading; Cgroups (made at the first spawn) makes a cgroup of this process's own,
`fastns/<pid>-<random>`, in each hierarchy that is needed. The leaves in it, one for each sandbox
that is alive, are those of csrc/caller/cgroup.c. A lock on its directory says that its owner
lives: what is found
without one was left by a caller that was killed, and is removed.
"""

from __future__ import annotations

import _thread
import atexit
import contextlib
import errno
import fcntl
import functools
import os
import re
import signal
import stat
import time
import weakref

from fastns import _core
from fastns._args import shown
from fastns._record import record
from fastns._stdio import above_stdio
from fastns.errors import SpawnError, SpecError
from fastns.limits import ranges_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TypeAlias

    from fastns.limits import Limits

    Setting: TypeAlias = tuple[int, str, str, str]  # place, file, text, the limit it is for

CPU_PERIOD = 100_000  # us
PATIENCE_MS = 200  # the kernel takes a while to let go of an ended sandbox's cgroup
# Left of the memory limit for what the kernel charges before a command is executed, such as page
# tables; ten times what was measured.
START_MEMORY = 512 << 10
RENEW = ""  # begins anew in a new cgroup: version 2 has no other way before Linux 6.12
GROUP = "fastns"
CHECK = "check"  # a leaf in which each setting is tried once
OWN = re.compile(r"[0-9]+-[0-9a-f]{8}")  # what is made there: <pid>-<random>
ATTEMPTS = 100  # each is lost only to a sweep that comes between two system calls
UNIFIED = "cgroup2"
PROCS = "cgroup.procs"
# ENODEV: of a cgroup that was just removed; EOPNOTSUPP: the processes of a threaded one.
NOT_THERE = (
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EACCES,
    errno.EPERM,
    errno.ENODEV,
    errno.EOPNOTSUPP,
)
# The kernel's answers to a value that it does not accept, or a limit that it does not have. Any
# other errno (ENOMEM, EBUSY, EAGAIN, ...) says nothing about the value.
REFUSED = (
    errno.EINVAL,
    errno.ERANGE,
    errno.EACCES,  # CPUs of version 1 that the cgroup above does not have
    errno.ENODEV,
    errno.ENXIO,
    errno.EOPNOTSUPP,
    errno.ENOENT,
)
ALLOWED = {"io": "whole disks of this machine"}
WRITES = ("wbps", "wiops")
BUFFERED = (
    "wbps and wiops cannot be enforced here: only cgroup version 2, with the io and memory "
    "controllers, knows whose a buffered write is. Limit reads alone (rbps, riops), or give "
    "require_limits=False: the rates then hold for direct and synchronous writes, and io is not "
    "among the enforced limits"
)
# The controller that enforces a limit, in cgroup v2's words; v1 calls io blkio.
CONTROLLER = {
    "memory": "memory",
    "memory_swap": "memory",
    "pids_limit": "pids",
    "cpus": "cpu",
    "cpu_weight": "cpu",
    "cpuset": "cpuset",
    "io": "io",
    "cpu_time": "cpuacct",
}


class Unfit(OSError):
    """Why cgroups cannot be made in a place."""


@record(frozen=True)
class Hierarchy:
    """One mounted cgroup hierarchy, as this process sees it."""

    unified: bool
    controllers: tuple[str, ...]
    mount: str  # where it is mounted
    own: str  # directory of the cgroup that this process is in; may be out of sight


@record(frozen=True)
class Place:
    """Where cgroups are made in a hierarchy: a directory that has, or may have, a `fastns`."""

    hierarchy: Hierarchy
    parent: str
    controllers: tuple[str, ...]  # those that are used


@record(frozen=True)
class CgroupPlan:
    """What Cgroups makes, and csrc/caller/cgroup.c puts into each leaf."""

    places: tuple[Place, ...]
    settings: tuple[Setting, ...]  # of each leaf
    counters: tuple[tuple[str, int, str, str, int, bool, str | None], ...]
    memory: tuple[int, str, str, str] | None  # place, bytes charged, reclaim: file, text
    cpu_time: int  # ns; 0: any
    enforced: tuple[str, ...]  # names of limits
    unenforced: tuple[str, ...]
    shares: tuple[Setting, ...] = ()  # of the plan's own cgroups, which compete with other plans'

    @property
    def unified(self) -> bool:
        """Whether a sandbox can be cloned into its cgroup: one is of version 2."""
        return any(place.hierarchy.unified for place in self.places)

    @property
    def args_max(self) -> int:
        """Bytes of arguments and environment that the memory limit leaves room for, beside what the
        kernel takes for a start; 0: no memory limit."""
        files = ("memory.max", "memory.limit_in_bytes")
        limits = [int(text) for _, file, text, _ in self.settings if file in files]
        return max(1, min(limits) - START_MEMORY) if limits else 0

    def making(self) -> _thread.LockType:
        """Held while they are made: many threads may be the first to use a plan."""
        return _making

    def make(self) -> Cgroups:
        """For this process, which removes them at its end at the latest."""
        _at_exit()
        return Cgroups(self)


# ---- what is there -------------------------------------------------------------------------------


def hierarchies() -> list[Hierarchy]:
    """Those that are mounted here; cgroup v2 is the first."""
    own: dict[str, str] = {}  # controllers as /proc/self/cgroup lists them -> path
    for line in _lines("/proc/self/cgroup"):
        _, names, path = line.split(":", 2)
        own[names] = path
    found = []
    for line in _lines("/proc/self/mountinfo"):
        fields, _, rest = line.partition(" - ")
        root, mount = fields.split(" ")[3:5]
        kind, _, options = rest.split(" ")[:3]  # a source may be empty
        if kind not in ("cgroup", UNIFIED):
            continue
        unified = kind == UNIFIED
        mount = os.fsdecode(os.fsencode(mount).decode("unicode_escape").encode("latin-1"))
        if unified:
            controllers = tuple(" ".join(_lines(f"{mount}/cgroup.controllers")).split())
            path = own.get("", "/")
        else:
            names = next((n for n in own if n and set(n.split(",")) <= set(options.split(","))), "")
            controllers = tuple("io" if name == "blkio" else name for name in names.split(","))
            path = own.get(names, "/") if names else "/"
        relative = os.path.relpath(path, root)
        directory = os.path.normpath(os.path.join(mount, relative))
        if relative.startswith(".."):
            directory = mount
        found.append(Hierarchy(unified, controllers, mount, directory))
    return sorted(found, key=lambda hierarchy: not hierarchy.unified)


def places_of(hierarchy: Hierarchy) -> list[str]:
    """Directories in which a `fastns` may be made: the first that can be used is."""
    found = [hierarchy.mount]
    above = hierarchy.own
    while above.startswith(hierarchy.mount + "/"):
        found.append(above)
        above = os.path.dirname(above)
    return found


def find_place(hierarchy: Hierarchy, controllers: tuple[str, ...], parent: str | None) -> Place:
    """Where a cgroup with these controllers can be made: at the top, where docker has its own; else
    in the own cgroup or above it, as far as a part of the tree was delegated to this user.

    Raises: Unfit, saying of one place why not; SpawnError."""
    candidates = places_of(hierarchy)
    if parent is not None:
        candidates = [os.path.normpath(f"{hierarchy.mount}/{parent.lstrip('/')}")]
    failure: Unfit | None = None
    for candidate in candidates:
        try:
            _check_place(hierarchy, candidate, controllers)
            return Place(hierarchy, candidate, controllers)
        except Unfit as exc:
            if failure is None:
                failure = exc
    assert failure is not None
    raise failure


def _check_place(hierarchy: Hierarchy, parent: str, controllers: tuple[str, ...]) -> None:
    group = f"{parent}/{GROUP}"
    if not os.path.isdir(parent):
        raise Unfit(errno.ENOENT, os.strerror(errno.ENOENT), parent)
    if not os.access(group if os.path.isdir(group) else parent, os.W_OK | os.X_OK):
        raise Unfit(errno.EACCES, os.strerror(errno.EACCES), parent)
    if not hierarchy.unified:
        return
    # Who enters it needs a right to the one above both it and where he comes from (cgroups(7)).
    common = os.path.commonpath((hierarchy.own, parent))
    if not os.access(f"{common}/{PROCS}", os.W_OK):
        reason = f"processes of {hierarchy.own} may not be moved from one to another below it"
        raise Unfit(errno.EACCES, reason, f"{common}/{PROCS}")
    there = " ".join(_lines(f"{parent}/cgroup.controllers")).split()
    for name in controllers:
        if name not in there:
            raise Unfit(errno.ENODEV, f"the {name} controller was not given to it", parent)
    for directory in (parent, group):
        if os.path.isdir(directory):
            _check_switches(directory, controllers)


def _check_switches(directory: str, controllers: tuple[str, ...]) -> None:
    """Whether its children have these controllers, or can be given them."""
    control = f"{directory}/cgroup.subtree_control"
    on = " ".join(_lines(control)).split()
    off = [name for name in controllers if name not in on]
    if off and not os.access(control, os.W_OK):
        raise Unfit(errno.EACCES, f"{', '.join(off)} cannot be switched on", control)
    # Only the root may have processes and controllers for its children (cgroups(7)).
    if off and os.path.exists(f"{directory}/cgroup.type") and _lines(f"{directory}/{PROCS}"):
        raise Unfit(errno.EBUSY, "it has processes of its own", directory)


# ---- limits → files --------------------------------------------------------------------------


def plan(limits: Limits, parent: str | None, required: bool) -> CgroupPlan:
    """How these limits are enforced here.

    Raises: SpecError, naming the limit, when one cannot be and is `required`."""
    there = hierarchies()
    reasons: dict[str, str] = {}
    chosen: dict[Hierarchy, list[str]] = {}
    for limit in limits.given():
        controller = CONTROLLER[limit]
        hierarchy = next((h for h in there if has(h, controller)), None)
        if hierarchy is None:
            reasons[limit] = f"no cgroup hierarchy with the {controller} controller is mounted"
            continue
        used = chosen.setdefault(hierarchy, [])
        needed = [controller]
        # Buffered data reaches the disk later. Only the memory controller records whose it is.
        if limit == "io" and hierarchy.unified and limits_writes(limits):
            needed += [name for name in ("memory",) if has(hierarchy, name)]
        used += [name for name in needed if name not in used]
    places = []
    for hierarchy, controllers in sorted(chosen.items(), key=lambda item: not item[0].unified):
        place, failures = find_for(hierarchy, controllers, parent)
        if place is not None:
            places.append(place)
        for limit in limits.given():
            exc = failures.get(CONTROLLER[limit])
            if exc is not None:
                reasons[limit] = f"{exc.filename}: {exc.strerror}"
    if reasons and required:
        limit, reason = next(iter(reasons.items()))
        raise SpecError(
            limit,
            f"cannot be enforced here: {reason}. A writable cgroup is needed (as root, or one that "
            "was delegated: systemd-run --user --scope -p Delegate=yes); cgroup_parent names "
            "another, require_limits=False does without",
        )
    if "io" not in reasons and limits_writes(limits) and not any(map(_holds_writes, places)):
        if required:
            raise SpecError("io", BUFFERED)
        reasons["io"] = BUFFERED  # the rates are set nevertheless
    return _with_files(limits, places, tuple(reasons))


def limits_writes(limits: Limits) -> bool:
    return any(key in WRITES for _, rates in limits.io for key, _ in rates)


def _holds_writes(place: Place) -> bool:
    return place.hierarchy.unified and {"io", "memory"} <= set(place.controllers)


def find_for(
    hierarchy: Hierarchy, controllers: list[str], parent: str | None
) -> tuple[Place | None, dict[str, Unfit]]:
    """One place for all these controllers, or for those that have any; why the others have none."""

    def find(names: list[str]) -> Place:
        return find_place(hierarchy, tuple(n for n in names if n in hierarchy.controllers), parent)

    failures: dict[str, Unfit] = {}
    try:
        return find(controllers), failures
    except Unfit:
        for name in controllers:
            try:
                find([name])
            except Unfit as exc:
                failures[name] = exc
    rest = [name for name in controllers if name not in failures]
    try:
        return (find(rest) if rest else None), failures
    except Unfit as exc:  # each has a place, but not the same
        return None, failures | dict.fromkeys(rest, exc)


def has(hierarchy: Hierarchy, controller: str) -> bool:
    """cgroup v2 accounts for CPU time by itself: there is nothing to switch on."""
    return controller in hierarchy.controllers or (hierarchy.unified and controller == "cpuacct")


def _with_files(limits: Limits, places: list[Place], unenforced: tuple[str, ...]) -> CgroupPlan:
    settings: list[Setting] = []
    shares: list[Setting] = []
    counters: list[tuple[str, int, str, str, int, bool, str | None]] = []
    memory = None
    for number, place in enumerate(places):
        v2 = place.hierarchy.unified
        for controller in place.controllers:
            for limit, file, text in _files(controller, limits, place):
                settings.append((number, file, text, limit))
        if "cpu" in place.controllers and limits.cpu_weight is not None:
            # All leaves of a plan weigh the same: it says nothing there. 100 is the kernel's own
            # weight, which version 1 calls 1024 shares.
            weight = limits.cpu_weight if v2 else limits.cpu_weight * 1024 // 100
            file = "cpu.weight" if v2 else "cpu.shares"
            shares.append((number, file, str(weight), "cpu_weight"))
        if v2:
            counters.append(("cpu_time", number, "cpu.stat", "usage_usec", 1000, False, None))
        elif "cpuacct" in place.controllers:
            counters.append(("cpu_time", number, "cpuacct.usage", "", 1, False, None))
        if "memory" in place.controllers:
            if v2:
                counters += [
                    ("oom_kills", number, "memory.events", "oom_kill", 1, False, None),
                    ("memory_peak", number, "memory.peak", "", 1, True, RENEW),
                ]
                memory = (number, "memory.current", "memory.reclaim", str(1 << 30))
            else:
                counters += [
                    ("oom_kills", number, "memory.oom_control", "oom_kill", 1, False, None),
                    ("memory_peak", number, "memory.max_usage_in_bytes", "", 1, True, "0"),
                ]
                memory = (number, "memory.usage_in_bytes", "memory.force_empty", "0")
        if "pids" in place.controllers:
            counters += [
                ("pids_refused", number, "pids.events", "max", 1, False, None),
                ("pids_peak", number, "pids.peak", "", 1, True, RENEW),
            ]
        if "io" in place.controllers:
            file = "io.stat" if v2 else "blkio.throttle.io_service_bytes"
            for kind, key in (
                ("io_read", "rbytes" if v2 else "Read"),
                ("io_write", "wbytes" if v2 else "Write"),
            ):
                counters.append((kind, number, file, key, 1, False, None))
    enforced = tuple(name for name in limits.given() if name not in unenforced)
    cpu_time = limits.cpu_time if "cpu_time" in enforced else None
    return CgroupPlan(
        tuple(places),
        tuple(settings),
        tuple(counters),
        memory,
        round((cpu_time or 0) * 1e9),
        enforced,
        unenforced,
        tuple(shares),
    )


def _files(controller: str, limits: Limits, place: Place) -> Iterator[tuple[str, str, str]]:
    """What is written into the files of a leaf, in order: for which limit, file, text."""
    v2 = place.hierarchy.unified
    if controller == "memory" and limits.memory is not None:
        yield "memory", "memory.max" if v2 else "memory.limit_in_bytes", str(limits.memory)
        both = limits.memory if limits.memory_swap is None else limits.memory_swap
        limit = "memory" if limits.memory_swap is None else "memory_swap"
        if v2:
            swap = "max" if both == -1 else str(both - limits.memory)
            if not _no_swap():
                yield limit, "memory.swap.max", swap
            yield "memory", "memory.oom.group", "1"
        elif both != -1 and os.path.exists(f"{place.parent}/memory.memsw.limit_in_bytes"):
            yield limit, "memory.memsw.limit_in_bytes", str(both)
    elif controller == "pids":
        yield "pids_limit", "pids.max", str(limits.pids_limit)
    elif controller == "cpu" and limits.cpus is not None:
        quota = round(limits.cpus * CPU_PERIOD)
        if v2:
            yield "cpus", "cpu.max", f"{quota} {CPU_PERIOD}"
        else:
            yield "cpus", "cpu.cfs_period_us", str(CPU_PERIOD)
            yield "cpus", "cpu.cfs_quota_us", str(quota)
    elif controller == "cpuset" and limits.cpuset is not None:
        _check_cpus(limits.cpuset, f"{place.parent}/cpuset.cpus{'.effective' if v2 else ''}")
        if not v2:  # empty at first, and then not even root may enter
            yield "cpuset", "cpuset.mems", " ".join(_lines(f"{place.parent}/cpuset.mems"))
        yield "cpuset", "cpuset.cpus", limits.cpuset
    elif controller == "io":
        names = {
            "rbps": "blkio.throttle.read_bps_device",
            "wbps": "blkio.throttle.write_bps_device",
            "riops": "blkio.throttle.read_iops_device",
            "wiops": "blkio.throttle.write_iops_device",
        }
        for device, rates in limits.io:
            number = _device(device)
            if v2:
                yield "io", "io.max", " ".join((number, *(f"{key}={rate}" for key, rate in rates)))
            for key, rate in () if v2 else rates:
                yield "io", names[key], f"{number} {rate}"


def _check_cpus(cpuset: str, file: str) -> None:
    """Version 2 takes any CPUs, and where none of them is there a cgroup has all that are."""
    there = "".join(_lines(file)).strip()
    have = {cpu for first, last in ranges_of(there) for cpu in range(first, last + 1)}
    for first, last in ranges_of(cpuset):
        if have and not all(cpu in have for cpu in range(first, last + 1)):
            reason = f"{shown(cpuset)}: some of CPUs {there} expected, no others are here"
            raise SpecError("cpuset", reason)


def _device(name: str) -> str:
    if not name.startswith("/"):
        return name
    try:
        status = os.stat(name)
    except OSError as exc:
        raise SpecError("io", f"{name}: {exc.strerror}") from None
    if not stat.S_ISBLK(status.st_mode):
        raise SpecError("io", f"{name}: a block device expected")
    return f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"


def _no_swap() -> bool:
    return not _lines("/proc/swaps")[1:]


def _lines(path: str) -> list[str]:
    """None, where there is no such file, or not for this caller. Raises: SpawnError."""
    try:
        with open(path, "rb") as file:
            data: bytes | None = file.read()
        if data is None:  # Python's word for EAGAIN
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        # Other mounts' names may be anything but a newline.
        text = os.fsdecode(data)
        return text.removesuffix("\n").split("\n") if text else []
    except OSError as exc:
        if exc.errno in NOT_THERE:
            return []
        raise SpawnError("cgroup", exc.errno or errno.EIO, path=path) from None


# ---- what is made --------------------------------------------------------------------------------

_live: weakref.WeakSet[Cgroups] = weakref.WeakSet()
_left: list[str] = []  # was not empty when its plan was closed: a sandbox was still running
_making = _thread.allocate_lock()


def _after_fork() -> None:
    global _making
    _left.clear()  # the parent's
    _making = _thread.allocate_lock()  # another thread may have held it


os.register_at_fork(after_in_child=_after_fork)


class Cgroups:
    """The cgroups of one plan in this process, for as long as somebody uses them."""

    def __init__(self, plan: CgroupPlan) -> None:
        self.owner = os.getpid()
        self.directories: list[str] = []
        self.pool: _core.CgroupPool | None = None
        fds: list[int] = []
        name = f"{self.owner}-{os.urandom(4).hex()}"
        end = time.monotonic() + PATIENCE_MS / 1000
        try:
            for place in plan.places:
                group = f"{place.parent}/{GROUP}"
                self._make_group(place, group)
                sweep(group, end)
                fds.append(self._make_own(place, group, name))
            for number, *setting in plan.shares:
                _set(self.directories[number], *setting)
            self._check(plan)
        except BaseException:
            for fd in fds:
                os.close(fd)
            self.close()  # whoever keeps the exception keeps this object
            raise
        unified = [place.hierarchy.unified for place in plan.places]
        hierarchies = tuple(zip(fds, unified, strict=True))
        settings = tuple([setting[:3] for setting in plan.settings])
        self.pool = _core.CgroupPool(
            hierarchies, settings, plan.counters, plan.memory, plan.cpu_time
        )
        _live.add(self)

    @staticmethod
    def _make_group(place: Place, group: str) -> None:
        with contextlib.suppress(FileExistsError), _failing(group):
            os.mkdir(group, 0o755)
        _enable(place, place.parent)
        _enable(place, group)

    def _make_own(self, place: Place, group: str, name: str) -> int:
        directory = f"{group}/{name}"
        with _failing(directory):
            fd = _make_locked(directory)
        self.directories.append(directory)
        try:
            _enable(place, directory)
            return above_stdio(fd)
        except BaseException:
            os.close(fd)
            raise

    def _check(self, plan: CgroupPlan) -> None:
        """Writes each setting once, so that one the kernel refuses is named here."""
        for index, directory in enumerate(self.directories):
            leaf = f"{directory}/{CHECK}"
            with _failing(leaf):
                os.mkdir(leaf)
                try:
                    for number, *setting in plan.settings:
                        if number == index:
                            _set(leaf, *setting)
                finally:
                    os.rmdir(leaf)

    def close(self) -> None:
        """Removes them, but for those of a process that has forked into this one."""
        if not self.directories:  # done, or nothing was made: an interpreter that ends has no `os`
            return
        if self.owner == os.getpid():
            if self.pool is not None:
                self.pool.remove(PATIENCE_MS)
            end = time.monotonic() + PATIENCE_MS / 1000
            for directory in self.directories:
                _remove_empty(f"{directory}/{CHECK}", end)  # of a check that could not
                if not _remove_empty(directory, end):
                    _left.append(directory)
        self.directories = []

    def __del__(self) -> None:
        self.close()


def _remove_empty(directory: str, end: float) -> bool:
    """What is not empty then is looked at once more at the end, else left to the next sweep."""
    failed = False
    while True:
        try:
            os.rmdir(directory)
            return True
        except OSError as exc:
            gone = exc.errno == errno.ENOENT
            if gone or time.monotonic() > end or (exc.errno != errno.EBUSY and failed):
                return gone
            failed = exc.errno != errno.EBUSY
        time.sleep(0.001)


def _make_locked(directory: str) -> int:
    """An fd that holds its lock. Until that is held, another caller's sweep may take it for one
    that was left behind, and remove it: it is made again then."""
    for _ in range(ATTEMPTS):
        os.mkdir(directory, 0o700)  # who can open it can hold its lock, and keep others waiting
        try:
            return _lock(directory)
        except FileNotFoundError:
            continue
        except BaseException:
            os.rmdir(directory)
            raise
    raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), directory)


def _lock(directory: str) -> int:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        os.stat(directory)
        return fd
    except BaseException:
        os.close(fd)
        raise


def sweep(group: str, end: float) -> None:
    """Removes what callers have left behind that are gone: all that still runs in it is killed at
    once, then waited for until `end` (time.monotonic()); what is left is for the next sweep."""
    try:
        left = [f"{group}/{name}" for name in os.listdir(group) if OWN.fullmatch(name)]
    except OSError:
        return
    for until in (0.0, end):
        left = [directory for directory in left if not _clear(directory, until)]


def _clear(directory: str, end: float) -> bool:
    """Kills and removes what is in it, unless its owner lives. False: some of it is there still."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        while not _remove(directory):
            if time.monotonic() > end:
                return False
            time.sleep(0.001)
    except OSError:
        pass  # its owner lives, or it is not ours
    finally:
        os.close(fd)
    return True


def _remove(directory: str) -> bool:
    """One try. False: something in it has not ended yet."""
    found = [directory]
    for path in found:  # grows meanwhile
        with contextlib.suppress(OSError):
            found += [entry.path for entry in os.scandir(path) if entry.is_dir()]
    for path in found:
        _kill(path)
    try:
        for path in reversed(found):
            os.rmdir(path)
    except OSError as exc:
        if exc.errno != errno.EBUSY:
            raise
        return False
    return True


def _kill(leaf: str) -> None:
    with contextlib.suppress(OSError):
        return _write(f"{leaf}/cgroup.kill", "1")  # version 2, Linux 5.14: also what forks
    with contextlib.suppress(OSError):
        for pid in _lines(f"{leaf}/{PROCS}"):
            if pid != "0":  # of a pid namespace out of sight; to kill(2) it is the caller's group
                with contextlib.suppress(OSError):
                    os.kill(int(pid), signal.SIGKILL)


def _enable(place: Place, directory: str) -> None:
    """Makes the controllers available to the children of a directory."""
    if place.hierarchy.unified:
        control = f"{directory}/cgroup.subtree_control"
        on = " ".join(_lines(control)).split()
        text = " ".join(f"+{name}" for name in place.controllers if name not in on)
        if text:
            with _failing(control, text):
                _write(control, text)
    elif "cpuset" in place.controllers and directory != place.parent:
        for file in ("cpuset.cpus", "cpuset.mems"):
            if not "".join(_lines(f"{directory}/{file}")).strip():
                with _failing(f"{directory}/{file}"):
                    above = "".join(_lines(f"{os.path.dirname(directory)}/{file}"))
                    _write(f"{directory}/{file}", above)


def _set(directory: str, file: str, text: str, limit: str) -> None:
    """Writes a setting. Raises: SpecError, naming the limit, when the kernel does not take it."""
    try:
        with _failing(f"{directory}/{file}"):
            _write(f"{directory}/{file}", text)
    except SpawnError as exc:
        if exc.errno not in REFUSED:
            raise
        allowed = ALLOWED.get(limit, "what this kernel has, and the cgroups above allow,")
        reason = (
            f"the kernel does not take {text!r} for {file} ({exc.strerror}): {allowed} expected"
        )
        raise SpecError(limit, reason) from None


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


@contextlib.contextmanager
def _failing(path: str, text: str | None = None) -> Iterator[None]:
    try:
        yield
    except FileExistsError:
        raise
    except OSError as exc:
        known = text is None or exc.errno not in REFUSED
        hint = None if known else f"the kernel does not take {text!r}"
        raise SpawnError("cgroup", exc.errno or errno.EIO, path=path, hint=hint) from None


@functools.cache
def _at_exit() -> None:
    atexit.register(_close_all)


def _close_all() -> None:
    for cgroups in list(_live):
        cgroups.close()
    for directory in _left:
        with contextlib.suppress(OSError):
            for entry in os.scandir(directory):
                if entry.is_dir():
                    os.rmdir(entry.path)
            os.rmdir(directory)
