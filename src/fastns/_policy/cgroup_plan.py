"""Finds which cgroup hierarchies are mounted, where in them the caller may make cgroups, and which
controllers and files enforce a plan's limits. Changes nothing: cgroups.py makes the cgroups.
"""

from __future__ import annotations

import _thread
import errno
import os
import stat

from fastns._args import shown
from fastns._light import record
from fastns._policy.cgroups import GROUP, PROCS, Cgroups, lines, words
from fastns.errors import SpecError
from fastns.limits import ranges_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TypeAlias

    from fastns.limits import Limits

    # A place is an index into CgroupPlan.places.
    Setting: TypeAlias = tuple[int, str, str, str]  # place, file, text, limit
    # Name, place, file, key ("": the file is one number), unit, whether it is a peak, the text that
    # resets it (None: nothing resets it).
    Counter: TypeAlias = tuple[str, int, str, str, int, bool, str | None]

CPU_PERIOD = 100_000  # us
# The part of the memory limit that arguments and environment cannot have: the kernel also charges
# page tables and the like before a command is executed. Ten times what was measured.
START_MEMORY = 512 << 10
WRITES = ("wbps", "wiops")
BUFFERED = (
    "wbps and wiops cannot be enforced here: only cgroup version 2, with the io and memory "
    "controllers, records which cgroup a buffered write belongs to. Limit reads alone (rbps, "
    "riops), or give require_limits=False: the rates then hold for direct and synchronous writes, "
    "and io is not among the enforced limits"
)
# Limit -> the controller that enforces it, by its name in version 2. Version 1 calls io blkio.
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
NEW = ""  # as `reset`: only a new cgroup starts at 0 (memory.peak before Linux 6.12)
# What is read when a sandbox has ended: controller, cgroup version, then the fields of a Counter.
COUNTERS: tuple[tuple[str, int, str, str, str, int, str | None], ...] = (
    ("cpuacct", 1, "cpu_time", "cpuacct.usage", "", 1, None),
    ("cpuacct", 2, "cpu_time", "cpu.stat", "usage_usec", 1000, None),
    ("memory", 1, "oom_kills", "memory.oom_control", "oom_kill", 1, None),
    ("memory", 1, "memory_peak", "memory.max_usage_in_bytes", "", 1, "0"),
    ("memory", 2, "oom_kills", "memory.events", "oom_kill", 1, None),
    ("memory", 2, "memory_peak", "memory.peak", "", 1, NEW),
    ("io", 1, "io_read", "blkio.throttle.io_service_bytes", "Read", 1, None),
    ("io", 1, "io_write", "blkio.throttle.io_service_bytes", "Write", 1, None),
    ("io", 2, "io_read", "io.stat", "rbytes", 1, None),
    ("io", 2, "io_write", "io.stat", "wbytes", 1, None),
    ("pids", 1, "pids_refused", "pids.events", "max", 1, None),
    ("pids", 1, "pids_peak", "pids.peak", "", 1, NEW),
    ("pids", 2, "pids_refused", "pids.events", "max", 1, None),
    ("pids", 2, "pids_peak", "pids.peak", "", 1, NEW),
)
# Is it version 2 -> the file with the bytes charged, the file that reclaims memory, and what to
# write to that.
CHARGED = {
    True: ("memory.current", "memory.reclaim", str(1 << 30)),
    False: ("memory.usage_in_bytes", "memory.force_empty", "0"),
}

_making = _thread.allocate_lock()


def _after_fork() -> None:
    global _making
    _making = _thread.allocate_lock()  # another thread of the parent may have held it


os.register_at_fork(after_in_child=_after_fork)


class Unfit(OSError):
    """Cgroups cannot be made in a place, and why."""


@record(frozen=True)
class Hierarchy:
    """One mounted cgroup hierarchy, as this process sees it."""

    unified: bool  # cgroup version 2
    controllers: tuple[str, ...]  # by their names in version 2
    mount: str
    own: str  # directory of this process's cgroup; `mount` if the cgroup is not below it

    def has(self, controller: str) -> bool:
        """Whether it has the controller, or needs none: version 2 always counts CPU time."""
        return controller in self.controllers or (self.unified and controller == "cpuacct")


@record(frozen=True)
class Place:
    """Where cgroups are made in a hierarchy: in `fastns`, a directory that is made if missing."""

    hierarchy: Hierarchy
    parent: str  # the directory of `fastns`
    controllers: tuple[str, ...]  # those that the plan uses


@record(frozen=True)
class CgroupPlan:
    """What Cgroups makes for a plan, and what csrc/caller/cgroup.c writes to and reads from the
    cgroup of each sandbox."""

    places: tuple[Place, ...]
    settings: tuple[Setting, ...]  # of each sandbox's cgroup
    counters: tuple[Counter, ...]
    memory: tuple[int, str, str, str] | None  # place, then a value of CHARGED
    cpu_time: int  # ns; 0: not limited
    enforced: tuple[str, ...]  # names of limits
    unenforced: tuple[str, ...]
    weights: tuple[Setting, ...] = ()  # of the plan's own cgroups

    @property
    def unified(self) -> bool:
        """Whether a sandbox can be cloned into a cgroup: version 2 is used."""
        return any(place.hierarchy.unified for place in self.places)

    @property
    def args_max(self) -> int:
        """Bytes that the memory limit leaves for arguments and environment; 0: no memory limit."""
        files = ("memory.max", "memory.limit_in_bytes")
        limits = [int(text) for _, file, text, _ in self.settings if file in files]
        return max(1, min(limits) - START_MEMORY) if limits else 0

    def making(self) -> _thread.LockType:
        """The lock for make(): several threads may use a new plan at once."""
        return _making

    def make(self) -> Cgroups:
        """Makes the cgroups for this process."""
        return Cgroups(self)


def plan(limits: Limits, parent: str | None, required: bool) -> CgroupPlan:
    """How these limits are enforced here. Changes nothing.

    Args: parent: the only place to use; None: the best one. required: all limits must be enforced.
    Raises: SpecError, naming the limit, if a required one cannot be enforced."""
    mounted = hierarchies()
    writes = any(key in WRITES for _, rates in limits.io for key, _ in rates)
    reasons: dict[str, str] = {}  # why a limit cannot be enforced
    chosen: dict[Hierarchy, dict[str, None]] = {}  # controllers to use, in order
    for limit in limits.given():
        controller = CONTROLLER[limit]
        hierarchy = next((h for h in mounted if h.has(controller)), None)
        if hierarchy is None:
            reasons[limit] = f"no cgroup hierarchy with the {controller} controller is mounted"
            continue
        used = chosen.setdefault(hierarchy, {})
        used[controller] = None
        # Buffered data is written to the disk later. Only the memory controller records which
        # cgroup it belongs to.
        if limit == "io" and hierarchy.unified and writes:
            used |= {"memory": None} if hierarchy.has("memory") else {}
    places = []
    for hierarchy, controllers in sorted(chosen.items(), key=lambda item: not item[0].unified):
        place, failures = find_for(hierarchy, list(controllers), parent)
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
    attributed = any(p.hierarchy.unified and {"io", "memory"} <= set(p.controllers) for p in places)
    if "io" not in reasons and writes and not attributed:
        if required:
            raise SpecError("io", BUFFERED)
        reasons["io"] = BUFFERED  # still set: they hold for direct and synchronous writes
    return _with_files(limits, places, tuple(reasons))


def _with_files(limits: Limits, places: list[Place], unenforced: tuple[str, ...]) -> CgroupPlan:
    settings: list[Setting] = []
    weights: list[Setting] = []
    counters: list[Counter] = []
    memory = None
    for number, place in enumerate(places):
        v2 = place.hierarchy.unified
        for controller in place.controllers:
            for limit, file, text in _files(controller, limits, place):
                settings.append((number, file, text, limit))
        for controller in (*place.controllers, *(("cpuacct",) if v2 else ())):
            for owner, version, name, file, key, unit, reset in COUNTERS:
                if (owner, version) == (controller, 2 if v2 else 1):
                    is_peak = name.endswith("_peak")
                    counters.append((name, number, file, key, unit, is_peak, reset))
        if "cpu" in place.controllers and limits.cpu_weight is not None:
            # All sandboxes of a plan weigh the same, so the weight is set on the plan's own cgroup.
            # 100 is the kernel's default, which version 1 calls 1024 shares.
            weight = limits.cpu_weight if v2 else limits.cpu_weight * 1024 // 100
            file = "cpu.weight" if v2 else "cpu.shares"
            weights.append((number, file, str(weight), "cpu_weight"))
        if "memory" in place.controllers:
            memory = (number, *CHARGED[v2])
    enforced = tuple(name for name in limits.given() if name not in unenforced)
    cpu_time = round((limits.cpu_time or 0) * 1e9) if "cpu_time" in enforced else 0
    files = tuple(settings), tuple(counters), memory
    return CgroupPlan(tuple(places), *files, cpu_time, enforced, unenforced, tuple(weights))


def _files(controller: str, limits: Limits, place: Place) -> Iterator[tuple[str, str, str]]:
    """What is written to a sandbox's cgroup: (limit, file, text), in order."""
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
        if not v2:  # empty in a new cgroup; until it is set, not even root may enter
            yield "cpuset", "cpuset.mems", " ".join(lines(f"{place.parent}/cpuset.mems"))
        yield "cpuset", "cpuset.cpus", limits.cpuset
    elif controller == "io":
        for device, rates in limits.io:
            number = _device(device)
            if v2:
                yield "io", "io.max", " ".join((number, *(f"{key}={rate}" for key, rate in rates)))
            else:
                for key, rate in rates:
                    way = "read" if key.startswith("r") else "write"
                    yield "io", f"blkio.throttle.{way}_{key[1:]}_device", f"{number} {rate}"


def _check_cpus(cpuset: str, file: str) -> None:
    """Raises SpecError if a CPU is not available here. The kernel does not check: version 2 accepts
    any CPU, and allows all CPUs if none of those named exists."""
    there = "".join(lines(file)).strip()
    have = {cpu for first, last in ranges_of(there) for cpu in range(first, last + 1)}
    for first, last in ranges_of(cpuset):
        if have and not all(cpu in have for cpu in range(first, last + 1)):
            reason = f"{shown(cpuset)}: only CPUs {there} are available"
            raise SpecError("cpuset", reason)


def _device(name: str) -> str:
    """The numbers of a block device, "major:minor"."""
    if not name.startswith("/"):
        return name
    try:
        status = os.stat(name)
    except OSError as exc:
        raise SpecError("io", f"{name}: {exc.strerror}") from None
    if not stat.S_ISBLK(status.st_mode):
        raise SpecError("io", f"{name}: expected a block device")
    return f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"


def _no_swap() -> bool:
    return not lines("/proc/swaps")[1:]


# ---- hierarchies, and places in them ----


def hierarchies() -> list[Hierarchy]:
    """The mounted hierarchies; cgroup version 2 comes first."""
    own: dict[str, str] = {}  # the controllers of a line in /proc/self/cgroup -> its path
    for line in lines("/proc/self/cgroup"):
        _, names, path = line.split(":", 2)
        own[names] = path
    found = []
    for line in lines("/proc/self/mountinfo"):
        fields, _, rest = line.partition(" - ")
        root, mount = fields.split(" ")[3:5]
        kind, _, options = rest.split(" ")[:3]  # not split(): the source may be empty
        if kind not in ("cgroup", "cgroup2"):
            continue
        mount = os.fsdecode(os.fsencode(mount).decode("unicode_escape").encode("latin-1"))
        if kind == "cgroup2":
            names = ""
            controllers = words(f"{mount}/cgroup.controllers")
        else:
            names = next((n for n in own if n and set(n.split(",")) <= set(options.split(","))), "")
            controllers = ["io" if name == "blkio" else name for name in names.split(",")]
        path = own.get(names, "/") if names or kind == "cgroup2" else "/"
        relative = os.path.relpath(path, root)
        outside = relative.startswith("..")
        directory = mount if outside else os.path.normpath(os.path.join(mount, relative))
        found.append(Hierarchy(kind == "cgroup2", tuple(controllers), mount, directory))
    return sorted(found, key=lambda hierarchy: not hierarchy.unified)


def places_of(hierarchy: Hierarchy) -> list[str]:
    """The directories where `fastns` may be made, best first: the top, as Docker does; then this
    process's cgroup and those above it, which may have been delegated to this process."""
    found = [hierarchy.mount]
    above = hierarchy.own
    while above.startswith(hierarchy.mount + "/"):
        found.append(above)
        above = os.path.dirname(above)
    return found


def find_place(hierarchy: Hierarchy, controllers: tuple[str, ...], parent: str | None) -> Place:
    """The first place where cgroups with these controllers can be made; only `parent`, if given.

    Raises: Unfit, for the first candidate; SpawnError if a file of a cgroup cannot be read."""
    candidates = places_of(hierarchy)
    if parent is not None:
        candidates = [os.path.normpath(f"{hierarchy.mount}/{parent.lstrip('/')}")]
    failures = []
    for candidate in candidates:
        try:
            _check_place(hierarchy, candidate, controllers)
            return Place(hierarchy, candidate, controllers)
        except Unfit as exc:
            failures.append(exc)
    raise failures[0]


def find_for(
    hierarchy: Hierarchy, controllers: list[str], parent: str | None
) -> tuple[Place | None, dict[str, Unfit]]:
    """A place for all controllers that have one, and for each other controller why it has none.

    If those controllers have no place in common, none of them has a place."""

    def find(names: list[str]) -> Place | Unfit:
        try:
            used = tuple(name for name in names if name in hierarchy.controllers)
            return find_place(hierarchy, used, parent)
        except Unfit as exc:
            return exc

    found = find(controllers)
    if isinstance(found, Place):
        return found, {}
    failures = {name: exc for name in controllers if isinstance(exc := find([name]), Unfit)}
    rest = [name for name in controllers if name not in failures]
    common = find(rest) if rest else None
    if isinstance(common, Unfit):  # each has a place, but not the same one
        return None, failures | dict.fromkeys(rest, common)
    return common, failures


def _check_place(hierarchy: Hierarchy, parent: str, controllers: tuple[str, ...]) -> None:
    group = f"{parent}/{GROUP}"
    if not os.path.isdir(parent):
        raise Unfit(errno.ENOENT, os.strerror(errno.ENOENT), parent)
    if not os.access(group if os.path.isdir(group) else parent, os.W_OK | os.X_OK):
        raise Unfit(errno.EACCES, os.strerror(errno.EACCES), parent)
    if not hierarchy.unified:
        return
    # To move a process, one must be able to write to cgroup.procs of the common ancestor of both
    # cgroups (cgroups(7)).
    common = os.path.commonpath((hierarchy.own, parent))
    if not os.access(f"{common}/{PROCS}", os.W_OK):
        reason = f"the caller cannot move processes out of {hierarchy.own}"
        raise Unfit(errno.EACCES, reason, f"{common}/{PROCS}")
    available = words(f"{parent}/cgroup.controllers")
    for name in controllers:
        if name not in available:
            raise Unfit(errno.ENODEV, f"the {name} controller is not available in it", parent)
    for directory in (parent, group):
        if os.path.isdir(directory):
            _check_subtree_control(directory, controllers)


def _check_subtree_control(directory: str, controllers: tuple[str, ...]) -> None:
    """Raises Unfit unless the directory's children have these controllers, or can get them."""
    control = f"{directory}/cgroup.subtree_control"
    on = words(control)
    off = [name for name in controllers if name not in on]
    if off and not os.access(control, os.W_OK):
        raise Unfit(errno.EACCES, f"{', '.join(off)} cannot be switched on", control)
    # Only the root cgroup, which has no cgroup.type, may have both processes and children with
    # controllers (cgroups(7)).
    if off and os.path.exists(f"{directory}/cgroup.type") and lines(f"{directory}/{PROCS}"):
        raise Unfit(errno.EBUSY, "it has processes of its own", directory)
