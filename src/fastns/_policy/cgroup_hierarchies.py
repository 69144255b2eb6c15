"""Which cgroup hierarchies are mounted, and where in them this process may make cgroups."""

from __future__ import annotations

import errno
import os

from fastns._record import record
from fastns.errors import SpawnError

GROUP = "fastns"  # the parent of all our cgroups
PROCS = "cgroup.procs"
UNIFIED = "cgroup2"
# ENODEV: the cgroup was just removed. EOPNOTSUPP: the processes of a threaded cgroup.
NOT_THERE = (
    *(errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ENODEV, errno.EOPNOTSUPP),
)


class Unfit(OSError):
    """Why cgroups cannot be made in a place."""


@record(frozen=True)
class Hierarchy:
    """One mounted cgroup hierarchy, as this process sees it."""

    unified: bool  # cgroup version 2
    controllers: tuple[str, ...]  # by their names in version 2
    mount: str
    own: str  # directory of this process's cgroup; may lie outside of what is mounted

    def has(self, controller: str) -> bool:
        """cgroup version 2 always counts CPU time: it needs no controller for that."""
        return controller in self.controllers or (self.unified and controller == "cpuacct")


@record(frozen=True)
class Place:
    """Where cgroups are made in a hierarchy: a directory that has, or may have, a `fastns`."""

    hierarchy: Hierarchy
    parent: str
    controllers: tuple[str, ...]  # those that are used


def hierarchies() -> list[Hierarchy]:
    """The mounted hierarchies; cgroup version 2 comes first."""
    own: dict[str, str] = {}  # controllers as /proc/self/cgroup lists them -> path
    for line in lines("/proc/self/cgroup"):
        _, names, path = line.split(":", 2)
        own[names] = path
    found = []
    for line in lines("/proc/self/mountinfo"):
        fields, _, rest = line.partition(" - ")
        root, mount = fields.split(" ")[3:5]
        kind, _, options = rest.split(" ")[:3]  # a source may be empty
        if kind not in ("cgroup", UNIFIED):
            continue
        mount = os.fsdecode(os.fsencode(mount).decode("unicode_escape").encode("latin-1"))
        if kind == UNIFIED:
            controllers = words(f"{mount}/cgroup.controllers")
            path = own.get("", "/")
        else:
            names = next((n for n in own if n and set(n.split(",")) <= set(options.split(","))), "")
            controllers = ["io" if name == "blkio" else name for name in names.split(",")]
            path = own.get(names, "/") if names else "/"
        relative = os.path.relpath(path, root)
        directory = os.path.normpath(os.path.join(mount, relative))
        if relative.startswith(".."):
            directory = mount
        found.append(Hierarchy(kind == UNIFIED, tuple(controllers), mount, directory))
    return sorted(found, key=lambda hierarchy: not hierarchy.unified)


def places_of(hierarchy: Hierarchy) -> list[str]:
    """The directories that may have a `fastns`, best first: the top, as for docker; then this
    process's cgroup and those above it, which may have been delegated to it."""
    found = [hierarchy.mount]
    above = hierarchy.own
    while above.startswith(hierarchy.mount + "/"):
        found.append(above)
        above = os.path.dirname(above)
    return found


def find_place(hierarchy: Hierarchy, controllers: tuple[str, ...], parent: str | None) -> Place:
    """The first place where cgroups with these controllers can be made, or `parent`.

    Raises: Unfit, the reason of the first candidate; SpawnError."""
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
    """One place for as many of the controllers as possible, and the reason for each other one."""

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
    except Unfit as exc:  # each has a place, but not the same one
        return None, failures | dict.fromkeys(rest, exc)


def _check_place(hierarchy: Hierarchy, parent: str, controllers: tuple[str, ...]) -> None:
    group = f"{parent}/{GROUP}"
    if not os.path.isdir(parent):
        raise Unfit(errno.ENOENT, os.strerror(errno.ENOENT), parent)
    if not os.access(group if os.path.isdir(group) else parent, os.W_OK | os.X_OK):
        raise Unfit(errno.EACCES, os.strerror(errno.EACCES), parent)
    if not hierarchy.unified:
        return
    # Moving a process takes write access to the common ancestor of both cgroups (cgroups(7)).
    common = os.path.commonpath((hierarchy.own, parent))
    if not os.access(f"{common}/{PROCS}", os.W_OK):
        reason = f"processes of {hierarchy.own} may not be moved from one to another below it"
        raise Unfit(errno.EACCES, reason, f"{common}/{PROCS}")
    available = words(f"{parent}/cgroup.controllers")
    for name in controllers:
        if name not in available:
            raise Unfit(errno.ENODEV, f"the {name} controller was not given to it", parent)
    for directory in (parent, group):
        if os.path.isdir(directory):
            _check_subtree_control(directory, controllers)


def _check_subtree_control(directory: str, controllers: tuple[str, ...]) -> None:
    """Whether the directory's children have these controllers, or can be given them."""
    control = f"{directory}/cgroup.subtree_control"
    on = words(control)
    off = [name for name in controllers if name not in on]
    if off and not os.access(control, os.W_OK):
        raise Unfit(errno.EACCES, f"{', '.join(off)} cannot be switched on", control)
    # Only the root cgroup, which has no cgroup.type, may have both processes and children with
    # controllers (cgroups(7)).
    if off and os.path.exists(f"{directory}/cgroup.type") and lines(f"{directory}/{PROCS}"):
        raise Unfit(errno.EBUSY, "it has processes of its own", directory)


def lines(path: str) -> list[str]:
    """A file's lines; none if it does not exist, or this process may not read it.

    Raises: SpawnError, stage "cgroup"."""
    try:
        with open(path, "rb") as file:
            data: bytes | None = file.read()
        if data is None:  # EAGAIN, for which read() raises nothing
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        text = os.fsdecode(data)
        # Not splitlines(): names of other mounts may have other ends of lines in them.
        return text.removesuffix("\n").split("\n") if text else []
    except OSError as exc:
        if exc.errno in NOT_THERE:
            return []
        raise SpawnError("cgroup", exc.errno or errno.EIO, path=path) from None


def words(path: str) -> list[str]:
    """A file's words, as lines() reads it."""
    return " ".join(lines(path)).split()
