"""decide(): makes every choice between two ways to carry out a spec, before any op exists.

It runs in the caller, changes nothing, and asks fastns._policy and _view what this machine has. The
emitters (process.py, root.py) turn its Decisions into ops and choose nothing.
"""

from __future__ import annotations

import os

from fastns import _core, _view
from fastns._light import cached, record
from fastns._spec_values import (
    KINDS,
    IDMapping,
    Mount,
    directories_above,
    outside,
    parsed,
    with_options,
)
from fastns.errors import SpecError
from fastns.mount_options import MS_SLAVE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from fastns._policy.cgroup_plan import CgroupPlan
    from fastns.spec import Spec

    Ids = tuple[int, int, int]  # a user namespace's range: first uid, first gid, how many
    Joined = tuple[tuple[str, str], ...]  # kind and path
    Layers = tuple[tuple[str, bool], ...]  # destination, and whether it is private to the sandbox
    # Destination, source, is it recursive, may it be plain, why it must be plain ("": it need not).
    Bind = tuple[str, str, bool, bool, str]

CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_SETGID, CAP_SETUID = 1 << 0, 1 << 1, 1 << 6, 1 << 7
CAP_SETPCAP, CAP_SYS_PTRACE, CAP_SYS_ADMIN, CAP_MKNOD = 1 << 8, 1 << 19, 1 << 21, 1 << 27
MAPS_A_RANGE = CAP_CHOWN | CAP_SETGID | CAP_SETUID | CAP_SYS_ADMIN
DEV = Mount("/dev", type="tmpfs", source="tmpfs", options=["nosuid", "noexec", "mode=755"])
"""The default /dev, which is filled with devices."""
DEVPTS_OPTIONS = ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "max=64")
DEFAULT_MOUNTS = (
    Mount("/proc", type="proc", source="proc", options=["nosuid", "nodev", "noexec"]),
    Mount("/sys", type="sysfs", source="sysfs", options=["ro", "nosuid", "nodev", "noexec"]),
    Mount("/tmp", type="tmpfs", source="tmpfs", options=["nosuid", "nodev", "mode=1777"]),
    Mount("/run", type="tmpfs", source="tmpfs", options=["nosuid", "nodev", "mode=755"]),
    DEV,
    Mount("/dev/pts", type="devpts", source="devpts", options=DEVPTS_OPTIONS),
    Mount("/dev/shm", type="tmpfs", source="shm", options=["nosuid", "nodev", "mode=1777"]),
)
TYPE_AT = {"/proc": "proc", "/sys": "sysfs"}
FILTERS: dict[object, str] = {"unconfined": "none", "default": "whole"}
HOME = "/root"  # of uid 0, in DEFAULT_ENV


@record(frozen=True)
class Caller:
    """Everything about the caller that a plan depends on."""

    uid: int
    gid: int
    uniform: bool  # real, effective and saved ids are the same
    capabilities: int  # the effective ones, one bit each
    initial_user_namespace: bool
    may_setgroups: bool = True
    tree_namespaces: bool = False  # the kernel has them (Linux 7.0), and this caller may use them
    owns_its_proc: bool = True  # it may write the files of its own process in /proc
    spared: bool = False  # its oom_score_adj is below 0

    @property
    def privileged(self) -> bool:
        return bool(self.capabilities & CAP_SYS_ADMIN)

    @property
    def maps_a_range(self) -> bool:
        """Whether it may map a range of ids for its sandboxes itself, without newuidmap(1)."""
        able = self.capabilities & MAPS_A_RANGE == MAPS_A_RANGE
        return self.initial_user_namespace and able

    @classmethod
    def current(cls) -> Caller:
        uids, gids = os.getresuid(), os.getresgid()
        initial = _read("/proc/self/uid_map").split() in ([b"0", b"0", b"4294967295"], [])
        capabilities = _core.capabilities()
        return cls(
            uid=uids[1],
            gid=gids[1],
            uniform=len(set(uids)) == 1 and len(set(gids)) == 1,
            capabilities=capabilities,
            initial_user_namespace=initial,
            may_setgroups=initial or _read("/proc/self/setgroups").strip() != b"deny",
            tree_namespaces=initial and bool(capabilities & CAP_SYS_ADMIN) and _has_trees(),
            owns_its_proc=bool(capabilities & CAP_DAC_OVERRIDE) or _core.is_dumpable(),
            spared=is_spared(),
        )


@cached(1)
def is_spared(path: str = "/proc/self/oom_score_adj") -> bool:
    """Whether oom_score_adj is below 0. Cached, as reading it would slow down each start."""
    return _read(path).startswith(b"-")


_has_trees = cached(1)(_core.has_tree_namespaces)


def _read(path: str) -> bytes:
    """The content of a file of /proc. Without /proc it is empty; a step that needs /proc fails
    later."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read() or b""  # None: EAGAIN
    except OSError:
        return b""


@record(frozen=True)
class Decisions:
    """How one kind of process carries out a spec: a sandbox, a template's server, or each of the
    template's sandboxes."""

    spec: Spec

    # Namespaces, by kind.
    new: tuple[str, ...]  # created for it
    by_range: tuple[str, ...]  # of these, those created by a process in the range's user namespace
    copied: tuple[str, ...]  # copied by the sandbox once it has joined that user namespace
    join_first: Joined  # joined by the hop process, which then clones the sandbox
    join: Joined  # joined by the sandbox
    user_last: bool  # root joins the user namespace last, as its rights end there
    in_user_namespace: bool  # a new one, a joined one, or the caller's; a range does not count

    # Ids.
    ids: Ids | None  # the range of the user namespace that it joins
    id_map: str  # who writes the maps: see Sandbox.id_map
    uids: Sequence[IDMapping]  # of a new user namespace
    gids: Sequence[IDMapping]
    inotify: bytes | None  # the limit of a new user namespace, or of the range's
    sets_groups: bool
    sets_ids: bool
    pipe_owner: tuple[int, int] | None  # the ids outside that its pipes are given to

    # The root and what is mounted in it.
    layout: _view.Layout | None  # the root is made of these directories of the host
    led_to: tuple[str, ...]  # targets of links in these directories that are not in them
    root_alone: bool  # the mount namespace starts with the root's tree, not with the caller's
    mounts: tuple[Mount, ...]  # all that a sandbox sees, in order
    own: tuple[Mount, ...]  # the mounts that this process makes
    fresh: tuple[str, ...]  # destinations of the mounts that each sandbox of a template makes
    keeps_networks: bool  # the sandboxes of a template get network namespaces that serve again
    serves_again: bool  # a sandbox of a template, if nothing shows that it was used
    points: tuple[str, ...]  # directories to make in the root's tmpfs, without the first "/"
    layers: Layers
    binds: tuple[Bind, ...]  # the spec's, in a sandbox with a range of ids
    makes_nodes: bool  # devices are created; otherwise they are bound

    # Rights and limits.
    cgroups: CgroupPlan | None
    spared: bool  # the caller's oom_score_adj is below 0
    dies_with_parent: bool
    maps_first: bool  # it writes its maps before it executes the program
    bounding: bool  # it reduces the bounding set
    landlock: int  # version of its interface; 0: not used
    filter: str  # "none", "profile", or a part of the default filter: "whole", "first", "rest"

    @property
    def owned(self) -> int:
        """HOW_OWNED if the sandbox's uid 0 must own what is created for it, otherwise 0."""
        return _core.HOW_OWNED if self.ids else 0

    @property
    def keep(self) -> int:
        """HOW_KEEP if a filter or Landlock needs rights that a change of ids would drop, otherwise
        0."""
        needed = self.spec.seccomp != "unconfined" or self.spec.landlock
        return _core.HOW_KEEP if needed and not self.spec.no_new_privileges else 0

    def but(self, **changes: Any) -> Decisions:
        return Decisions(**{**vars(self), **changes})


def decide(spec: Spec, caller: Caller, layout: _view.Layout | None = None) -> Decisions:
    """All decisions about a spec.

    Args:
        layout: the host's directories, of which the root is made without a rootfs; None: those of
            this machine.
    Raises: SpecError when the spec asks for what this caller cannot have.
    """
    kinds = {kind: spec.namespace(kind) for kind in KINDS}
    if not caller.privileged and not spec.asks_for("user"):
        kinds["user"] = "new"
    ids = _range(spec, caller)
    if ids is not None:
        kinds["user"] = "range"
    new = tuple([kind for kind in KINDS if kinds[kind] == "new"])
    joined = {kind: path for kind, path in kinds.items() if path.startswith("/")}
    cgroups = _cgroups_for(spec)
    own_user = kinds["user"] == "new" or "user" in joined
    in_user_namespace = own_user or not caller.initial_user_namespace
    if not caller.privileged and not own_user:
        _refuse_without_rights(spec, new)
    first, here = _joins(joined, own_user)

    id_map, uids, gids, inotify = _maps(spec, caller, "user" in new)
    if first and id_map == "self" and caller.privileged and caller.uid:
        # After a hop, the program is undumpable for good, and its files in /proc belong to root.
        raise SpecError(
            "namespaces",
            "only uid 0 can have a new user namespace and join others: leave 'user' out, say "
            "'host', or give uid_mappings and gid_mappings",
        )
    if ids is not None:
        from fastns._compile import userns

        id_map, inotify = "range", userns.inotify_limit()
    by_range: tuple[str, ...] = ()
    copied: tuple[str, ...] = ()
    if ids is not None and spec.capabilities:
        by_range = _made_by_range(caller, new)
        again = ["mount"] if "CAP_SYS_ADMIN" in spec.capabilities else []
        copied = tuple([kind for kind in (*again, "cgroup") if kind in new])
    same = caller.uniform and (spec.uid, spec.gid) == (caller.uid, caller.gid)
    mapped = own_user or ids is not None
    changes = id_map != "self" and (mapped or caller.privileged or not (spec.user == "0:0" or same))
    may_setgroups = caller.may_setgroups and "user" not in joined

    mounted = kinds["mount"] == "new"
    shown = (layout or _view.layout()) if mounted and spec.rootfs is None else None
    hosts_root = _may_be_hosts_root(spec, caller, uids, ids)
    mounts = _mounts(spec, kinds, in_user_namespace, hosts_root) if mounted else ()
    led_to, points = ((), ()) if shown is None else _bare_root(spec, shown, mounts)
    alone = mounted and not first and _may_start_with_root(spec, caller, ids, "user" in new, mounts)

    return Decisions(
        spec=spec,
        new=new,
        by_range=by_range,
        copied=copied,
        join_first=first,
        join=here,
        user_last="user" in joined and caller.privileged,
        in_user_namespace=in_user_namespace,
        ids=ids,
        id_map=id_map,
        uids=uids,
        gids=gids,
        inotify=inotify,
        sets_groups=changes and (may_setgroups or bool(spec.additional_gids)),
        sets_ids=changes and (mapped or not same),
        pipe_owner=_pipe_owner(spec, caller, kinds["user"], ids, id_map),
        layout=shown,
        led_to=led_to,
        root_alone=alone,
        mounts=mounts,
        own=mounts,
        fresh=(),
        keeps_networks=False,
        serves_again=False,
        points=points,
        layers=(
            ("/", spec.overlay or shown is not None),
            *((path, False) for path in (shown.paths if shown else ())),
            *((mount.destination, mount.type == "tmpfs") for mount in mounts),
        ),
        binds=_binds(spec) if ids else (),
        makes_nodes=not in_user_namespace and bool(caller.capabilities & CAP_MKNOD),
        cgroups=cgroups,
        spared=caller.spared,
        dies_with_parent=spec.die_with_parent,
        # With its maps written first, uid 0 keeps its capabilities over exec. But a mapped
        # namespace owns the memory of what is executed in it: a command with capabilities could
        # read the memory of its reaper.
        maps_first=id_map == "self" and not first and not spec.init and caller.owns_its_proc,
        bounding=bool(caller.capabilities & CAP_SETPCAP) or mapped,
        landlock=_landlock_version(spec, caller.privileged or own_user),
        filter=FILTERS.get(spec.seccomp, "profile"),
    )


# ---- namespaces ----


def _refuse_without_rights(spec: Spec, new: Sequence[str]) -> None:
    what = ", ".join(new) or ("rootfs" if spec.rootfs is not None else None)
    if what:
        words = f"an unprivileged caller cannot have {what} with user='host'"
        raise SpecError("namespaces", f"{words}: leave 'user' out, or say 'new'")


def _joins(joined: dict[str, str], own_user: bool) -> tuple[Joined, Joined]:
    """The namespaces that are joined before the sandbox is cloned, and those that it joins itself.

    A joined pid namespace applies only to later clones. A user namespace owns the namespaces that
    are made later, and a process in a new one cannot join any that is outside. The mount namespace
    comes last: the paths of the others are paths of the caller.
    """
    order = {"user": 0, "mount": 2}
    kinds = sorted(joined, key=lambda kind: order.get(kind, 1))
    first = [(kind, joined[kind]) for kind in kinds if own_user or kind == "pid"]
    here = [(kind, joined[kind]) for kind in kinds if not own_user and kind != "pid"]
    return tuple(first), tuple(here)


def _made_by_range(caller: Caller, new: Sequence[str]) -> tuple[str, ...]:
    """The namespaces that a process in the range's user namespace makes for the sandbox to join:
    capabilities count only in namespaces that belong to that user namespace.

    To join another process's namespaces, one must have the right to trace it (setns(2)). This
    process is undumpable (CVE-2016-9962), so only CAP_SYS_PTRACE outside gives that right.
    """
    kinds = [kind for kind in ("network", "uts", "ipc") if kind in new]
    if kinds and not caller.capabilities & CAP_SYS_PTRACE:
        raise SpecError(
            "capabilities",
            "for namespaces in which capabilities count, root needs CAP_SYS_PTRACE: give it to "
            "this process (of an outer container: --cap-add SYS_PTRACE), or say "
            "namespaces={'user': 'host'}, where they count on the host",
        )
    return tuple(kinds)


# ---- ids ----


def _range(spec: Spec, caller: Caller) -> Ids | None:
    """The range of ids of the user namespace that root's sandboxes join; None: they join none."""
    if not caller.maps_a_range or spec.asks_for("user"):
        return None
    from fastns._compile import userns  # only root has a range

    ids = userns.range_of_root()
    wishes = {"user": (spec.uid, spec.gid), "additional_gids": spec.additional_gids}
    for field, wanted in wishes.items():
        if max(wanted, default=0) >= ids[2]:
            raise SpecError(
                field,
                f"{max(wanted)}: expected an id below {ids[2]}, as the sandbox has no others; "
                "namespaces={'user': 'host'} allows all ids",
            )
    return ids


def _maps(
    spec: Spec, caller: Caller, new_user: bool
) -> tuple[str, Sequence[IDMapping], Sequence[IDMapping], bytes | None]:
    """For a new user namespace: who writes its maps, the maps, and its limit on inotify."""
    if not new_user:
        return "none", (), (), None
    from fastns._compile import userns

    uids = spec.uid_mappings or (IDMapping(spec.uid, caller.uid, 1),)
    gids = spec.gid_mappings or (IDMapping(spec.gid, caller.gid, 1),)
    if not (_is_own_id(uids, caller.uid) and _is_own_id(gids, caller.gid)):
        way = "parent" if caller.capabilities & CAP_SETUID else "newuidmap"
    elif spec.additional_gids:
        raise SpecError(
            "additional_gids",
            "a user namespace with a single mapped id cannot have supplementary groups: "
            "give gid_mappings with a range",
        )
    else:
        way = "self"
    return way, uids, gids, userns.inotify_limit()


def _is_own_id(mappings: Sequence[IDMapping], own: int) -> bool:
    return len(mappings) == 1 and mappings[0].size == 1 and mappings[0].host_id == own


def _pipe_owner(
    spec: Spec, caller: Caller, user: str, ids: Ids | None, id_map: str
) -> tuple[int, int] | None:
    """The (uid, gid) outside that the pipes are given to. None: the caller keeps them, as the
    command has its ids or it has no right to change their owner."""
    if ids is not None:
        return ids[0] + spec.uid, ids[1] + spec.gid
    if id_map == "parent":
        uid, gid = outside(spec.uid_mappings, spec.uid), outside(spec.gid_mappings, spec.gid)
        return uid or 0, gid or 0
    if user == "host" and caller.privileged and spec.user != "0:0":
        return spec.uid, spec.gid
    return None


# ---- the root ----


def _may_be_hosts_root(
    spec: Spec, caller: Caller, uids: Sequence[IDMapping], ids: Ids | None
) -> bool:
    """Whether a uid inside may be the host's uid 0. False in a sandbox with CAP_SYS_ADMIN."""
    if ids is not None or "CAP_SYS_ADMIN" in spec.capabilities:
        return False
    return any(m.host_id == 0 for m in uids) if uids else caller.privileged


def _may_start_with_root(
    spec: Spec, caller: Caller, ids: Ids | None, new_user: bool, mounts: Sequence[Mount]
) -> bool:
    """Whether the mount namespace can start with the root's tree alone. Others need the caller's
    mounts for longer: to make a scratch tmpfs, or to bind devices."""
    binds = [parsed(mount) for mount in mounts if mount.type == "bind"]
    return (
        caller.tree_namespaces
        and bool(caller.capabilities & CAP_MKNOD)
        and not spec.init
        and (ids is None or not spec.capabilities)
        and spec.rootfs is not None
        and not spec.overlay
        and not spec.files
        and spec.root_mode == "pivot_root"
        and not new_user
        and len(binds) <= _core.MAX_SOURCES
        and all(bind.propagation != MS_SLAVE for bind in binds)
    )


def _mounts(
    spec: Spec, kinds: Mapping[str, str], in_user_namespace: bool, hosts_root: bool
) -> tuple[Mount, ...]:
    """The default mounts that the spec does not replace, then the spec's in their order."""
    replaced = [mount.destination for mount in spec.mounts]
    kept = [
        _of_host(mount, kinds, in_user_namespace)
        for mount in (DEFAULT_MOUNTS if spec.default_mounts else ())
        if not _view.lies_in(mount.destination, replaced)
    ]
    every = (*kept, *spec.mounts)
    return tuple([_protected(mount) for mount in every]) if hosts_root else every


def _of_host(mount: Mount, kinds: Mapping[str, str], in_user_namespace: bool) -> Mount:
    """Replaces a /proc or /sys whose namespace is the host's by a bind of the host's.

    A new instance shows the pid or network namespace of the process that mounts it. If that is the
    host's, the kernel refuses the mount in a user namespace, and on top of the host's instance."""
    owner = {"/proc": "pid", "/sys": "network"}.get(mount.destination)
    if owner is None or kinds[owner] != "host":
        return mount
    # In a user namespace, a bind must include the mounts below: it must not uncover what they hide.
    options = ["rbind" if in_user_namespace else "bind", *mount.options]
    return Mount(mount.destination, source=mount.destination, options=options)


def _protected(mount: Mount) -> Mount:
    """Makes a /proc or /sys read-only, because a uid inside may own their files, and a change of a
    mode there shows in every instance on the machine. "rw" in the spec overrides this."""
    hosts = mount.type == "bind" and mount.source in TYPE_AT
    if not (hosts or mount.type in TYPE_AT.values()) or {"ro", "rw"} & {*mount.options}:
        return mount
    return with_options(mount, *mount.options, "ro")


def shows_resolver(spec: Spec) -> bool:
    return spec.namespace("network") != "new"


def _bare_root(
    spec: Spec, layout: _view.Layout, mounts: Sequence[Mount]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Decisions.led_to and points, for a root made of the host's directories."""
    given = [mount.destination for mount in spec.mounts]
    found = _view.led_to(layout.shown, resolver=shows_resolver(spec))
    shown = list(layout.paths)
    places = [*layout.shown, HOME]
    for mount in mounts:
        if mount.type != "bind" and not _view.lies_in(mount.destination, shown):
            places.append(mount.destination)
            shown.append(mount.destination)
    paths = (path for place in places for path in (*directories_above(place), place))
    return (
        tuple([path for path in found if not _view.lies_in(path, given)]),
        tuple(dict.fromkeys(path.lstrip("/") for path in paths)),
    )


def _binds(spec: Spec) -> tuple[Bind, ...]:
    """Only the spec's binds keep their owners: always with the option idmap, otherwise where the
    kernel can. Other binds show the host, where root's files must stay out of reach."""
    found = []
    for number, mount in enumerate(spec.mounts):
        if mount.type != "bind":
            continue
        options = parsed(mount)
        why = "it has noidmap" if options.idmap is False else ""
        if options.idmap is None:
            made = _made_in(mount, spec.mounts[number + 1 :])
            why = f"{made} is made in it" if made else ""
        optional = options.idmap is None and not why
        source = os.fspath(mount.source or "")
        found.append((mount.destination, source, options.recursive, optional, why))
    return tuple(found)


def _made_in(bind: Mount, later: Sequence[Mount]) -> str | None:
    """The target that a later mount may create in this bind, or None. It is created with the
    caller's ids, which cannot create anything in an idmapped tree."""
    places: list[str] = []  # later mounts in the bind, whose own contents are not part of the bind
    for mount in later:
        if _view.lies_in(mount.destination, [bind.destination]):
            if parsed(mount).mkdir and not _view.lies_in(mount.destination, places):
                return mount.destination
            places.append(mount.destination)
    return None


# ---- rights and limits ----


def _cgroups_for(spec: Spec) -> CgroupPlan | None:
    """What enforces the limits; None: there are none, or none can be enforced."""
    limits = spec.limits()
    if limits is None:
        return None
    from fastns._policy import cgroup_plan  # most specs have no limits

    plan = cgroup_plan.plan(limits, spec.cgroup_parent, spec.require_limits)
    return plan if plan.places else None


def _landlock_version(spec: Spec, has_admin: bool) -> int:
    if not spec.landlock:
        return 0
    if not spec.no_new_privileges and not has_admin:
        raise SpecError("landlock", "needs no_new_privileges=True, or CAP_SYS_ADMIN")
    from fastns._policy import landlock  # most specs have none

    return landlock.abi()
