"""decide(): every choice between two ways to carry out a spec, before any op exists.

The emitters (root.py, mounts.py, identity.py, rights.py) turn Decisions into ops and choose
nothing. decide() changes nothing; it asks _userns, _cgroups and _landlock what this machine has.
"""

from __future__ import annotations

from fastns import _core, _view
from fastns._compile import contents
from fastns._compile.caller import CAP_MKNOD, CAP_SETPCAP, CAP_SETUID, CAP_SYS_PTRACE, Caller
from fastns._record import record
from fastns.errors import SpecError
from fastns.mount_options import MS_SLAVE
from fastns.spec import KINDS, IDMapping, Mount, Spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from fastns._cgroups import CgroupPlan

    Joined = tuple[tuple[str, str], ...]  # kind and path


@record(frozen=True)
class Decisions:
    """How one process carries out a spec: a sandbox, the server of a template, or one of the
    template's sandboxes."""

    spec: Spec

    # Namespaces, by kind.
    new: tuple[str, ...]  # made for it
    by_range: tuple[str, ...]  # of those, made by a process in the range's user namespace
    copied: tuple[str, ...]  # of those, made (again) once that user namespace is joined
    join_first: Joined  # before the sandbox is cloned: see hop
    join: Joined  # by the sandbox itself
    user_last: bool  # root joins a user namespace after all others, where its rights end
    in_user_namespace: bool  # its own, or the caller's
    hop: bool  # another process joins namespaces first, and then clones the sandbox

    # Ids.
    ids: tuple[int, int, int] | None  # range of the user namespace that it joins (_userns.py)
    id_map: str  # who writes the maps, as Sandbox.id_map has it
    uids: Sequence[IDMapping]  # of a new user namespace
    gids: Sequence[IDMapping]
    inotify: bytes | None  # limit of a new user namespace
    sets_groups: bool
    sets_ids: bool
    pipe_owner: tuple[int, int] | None  # who the command is to the caller, where that is another

    # The root and what is mounted in it.
    layout: _view.Layout | None  # the root is made of these directories of the host
    led_to: tuple[str, ...]  # where links in these directories lead
    root_alone: bool  # the mount namespace starts with the root's tree, not with the caller's
    mounts: tuple[Mount, ...]  # all that a sandbox sees, in order
    own: tuple[Mount, ...]  # those that this process mounts
    fresh: tuple[str, ...]  # destinations of what each sandbox of a template mounts itself
    points: tuple[str, ...]  # directories that the root's tmpfs starts with, without the first "/"
    layers: contents.Layers
    binds: tuple[contents.Bind, ...]
    slave: bool  # a mount listens to the host's
    makes_nodes: bool  # devices are made; else they are bound

    # Rights.
    cgroups: CgroupPlan | None
    spared: bool  # by the OOM killer, as the caller is
    maps_first: bool
    bounding: bool  # the bounding set can be reduced, and has to be
    keep: int  # HOW_KEEP: rights that loading a filter takes stay over the change of ids
    landlock: int  # version of the interface; 0: not used
    filter: str  # "none", "profile", or which part of the default one: _filters.WHOLE, FIRST, REST

    @property
    def owned(self) -> int:
        """HOW_* of what is made for the sandbox: its uid 0 owns it."""
        return _core.HOW_OWNED if self.ids else 0

    @property
    def by_op(self) -> set[str]:
        """The new namespaces that no clone makes."""
        cgroup = ["cgroup"] if self.cgroups else []
        return {*self.by_range, *cgroup, *(["mount"] if self.root_alone else [])}

    def but(self, **changes: Any) -> Decisions:
        return Decisions(**{**vars(self), **changes})


def decide(
    spec: Spec, caller: Caller, layout: _view.Layout | None = None, *, netns_ahead: bool = False
) -> Decisions:
    """All that is decided about a spec.

    Args:
        layout: the host's directories for a root that is made of them; None: this machine's.
        netns_ahead: network namespaces are made before they are needed, so not by the sandbox.
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
    own_user = kinds["user"] == "new" or "user" in joined  # that no other sandbox has
    in_user_namespace = own_user or not caller.initial_user_namespace
    if not caller.privileged and not own_user:
        _refuse_without_rights(spec, new)
    first, here = _joins(joined, own_user)
    hop = bool(first)

    id_map, uids, gids, inotify = _maps(spec, caller, "user" in new)
    if ids is not None:
        id_map = "range"
    by_range: tuple[str, ...] = ()
    copied: tuple[str, ...] = ()
    if ids is not None and spec.capabilities:
        by_range = _made_by_range(caller, new, netns_ahead)
        again = ["mount"] if "CAP_SYS_ADMIN" in spec.capabilities else []
        copied = tuple([kind for kind in (*again, "cgroup") if kind in new])
    same = caller.uniform and (spec.uid, spec.gid) == (caller.uid, caller.gid)
    mapped = own_user or ids is not None
    changes = id_map != "self" and (mapped or caller.privileged or not (spec.user == "0:0" or same))
    may_setgroups = caller.may_setgroups and "user" not in joined

    mounted = kinds["mount"] == "new"
    shown = (layout or _view.layout()) if mounted and spec.rootfs is None else None
    hosts_root = _may_be_hosts_root(spec, caller, uids, ids)
    recursive = in_user_namespace
    mounts = contents.mounts(spec, kinds, recursive, hosts_root) if mounted else ()
    alone = mounted and not hop and _may_start_with_root(spec, caller, ids, "user" in new, mounts)

    return Decisions(
        spec=spec,
        new=new,
        by_range=by_range,
        copied=copied,
        join_first=first,
        join=here,
        user_last="user" in joined and caller.privileged,
        in_user_namespace=in_user_namespace,
        hop=hop,
        ids=ids,
        id_map=id_map,
        uids=uids,
        gids=gids,
        inotify=inotify,
        sets_groups=changes and (may_setgroups or bool(spec.additional_gids)),
        sets_ids=changes and (mapped or not same),
        pipe_owner=_pipe_owner(spec, caller, kinds, ids, id_map),
        layout=shown,
        led_to=contents.led_to(spec, shown),
        root_alone=alone,
        mounts=mounts,
        own=mounts,
        fresh=(),
        points=contents.points(shown, mounts),
        layers=contents.layers(spec, shown, mounts),
        binds=contents.binds(spec) if ids else (),
        slave=any(contents.parsed(mount).propagation == MS_SLAVE for mount in mounts),
        makes_nodes=not in_user_namespace and bool(caller.capabilities & CAP_MKNOD),
        cgroups=cgroups,
        spared=caller.spared,
        # Writing its own maps before it executes the program leaves uid 0 its capabilities. But
        # memory of who executes in a mapped namespace belongs to that, and a pid 1 that stays has
        # to keep its own from the command. Who may not write to its /proc cannot do it there.
        maps_first=id_map == "self" and not hop and not spec.init and caller.owns_its_proc,
        bounding=bool(caller.capabilities & CAP_SETPCAP) or mapped,
        keep=_kept_rights(spec),
        landlock=_landlock_version(spec, caller.privileged or own_user),
        filter=_filter(spec),
    )


# ---- namespaces ----


def _refuse_without_rights(spec: Spec, new: Sequence[str]) -> None:
    what = new or (["rootfs"] if spec.rootfs is not None else [])
    if what:
        raise SpecError(
            "namespaces",
            f"an unprivileged caller cannot have {', '.join(what)} with user='host': leave "
            "'user' out, or say 'new'",
        )


def _joins(joined: dict[str, str], own_user: bool) -> tuple[Joined, Joined]:
    """What is joined before the sandbox is cloned, and by the sandbox.

    A joined pid namespace holds only later clones. A user namespace owns what is made later, and in
    a new one there is no right to join anything outside it. The mount namespace is joined last: the
    other paths are the caller's.
    """
    order = {"user": 0, "mount": 2}
    kinds = sorted(joined, key=lambda kind: order.get(kind, 1))
    first = [(kind, joined[kind]) for kind in kinds if own_user or kind == "pid"]
    here = [(kind, joined[kind]) for kind in kinds if not own_user and kind != "pid"]
    return tuple(first), tuple(here)


def _made_by_range(caller: Caller, new: Sequence[str], netns_ahead: bool) -> tuple[str, ...]:
    """Capabilities count only in namespaces that belong to the range's user namespace.

    To join what a process is in takes the right to trace it (setns(2)). That process is undumpable,
    so only CAP_SYS_PTRACE outside gives that right (CVE-2016-9962).
    """
    kinds = [kind for kind in ("network", "uts", "ipc") if kind in new]
    if netns_ahead and "network" in kinds:
        kinds.remove("network")
    if kinds and not caller.capabilities & CAP_SYS_PTRACE:
        raise SpecError(
            "capabilities",
            "to have namespaces in which they count, root needs CAP_SYS_PTRACE: give it to "
            "this process (of an outer container: --cap-add SYS_PTRACE), or say "
            "namespaces={'user': 'host'}, where they count on the host",
        )
    return tuple(kinds)


# ---- ids ----


def _range(spec: Spec, caller: Caller) -> tuple[int, int, int] | None:
    """The range of ids of the user namespace that root's sandboxes join; None: they join none."""
    if not caller.maps_a_range or spec.asks_for("user"):
        return None
    from fastns import _userns  # only root has a range

    ids = _userns.range_of_root()
    wishes = {"user": (spec.uid, spec.gid), "additional_gids": spec.additional_gids}
    for field, wanted in wishes.items():
        if max(wanted, default=0) >= ids[2]:
            raise SpecError(
                field,
                f"{max(wanted)}: below {ids[2]} expected, the ids of its user namespace; "
                "namespaces={'user': 'host'} has all",
            )
    return ids


def _maps(
    spec: Spec, caller: Caller, new_user: bool
) -> tuple[str, Sequence[IDMapping], Sequence[IDMapping], bytes | None]:
    """Of a new user namespace: who writes its maps, the maps, and its limit on inotify."""
    if not new_user:
        return "none", (), (), None
    from fastns import _userns

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
    return way, uids, gids, _userns.inotify_limit()


def _is_own_id(mappings: Sequence[IDMapping], own: int) -> bool:
    return len(mappings) == 1 and mappings[0].size == 1 and mappings[0].host_id == own


def _pipe_owner(
    spec: Spec,
    caller: Caller,
    kinds: dict[str, str],
    ids: tuple[int, int, int] | None,
    id_map: str,
) -> tuple[int, int] | None:
    """None: the caller itself, or it has no right to give anything away."""
    if ids is not None:
        return ids[0] + spec.uid, ids[1] + spec.gid
    if id_map == "parent":
        return _outside(spec.uid_mappings, spec.uid), _outside(spec.gid_mappings, spec.gid)
    if kinds["user"] == "host" and caller.privileged and spec.user != "0:0":
        return spec.uid, spec.gid
    return None


def _outside(mappings: Sequence[IDMapping], inside: int) -> int:
    """The caller's id of a mapped one."""
    for m in mappings:
        if m.container_id <= inside < m.container_id + m.size:
            return m.host_id + inside - m.container_id
    return 0


# ---- the root ----


def _may_be_hosts_root(
    spec: Spec, caller: Caller, uids: Sequence[IDMapping], ids: tuple[int, int, int] | None
) -> bool:
    """Whether a uid inside may be the host's uid 0, in a sandbox without CAP_SYS_ADMIN."""
    if ids is not None or "CAP_SYS_ADMIN" in spec.capabilities:
        return False
    return any(m.host_id == 0 for m in uids) if uids else caller.privileged


def _may_start_with_root(
    spec: Spec,
    caller: Caller,
    ids: tuple[int, int, int] | None,
    new_user: bool,
    mounts: Sequence[Mount],
) -> bool:
    """Whether the mount namespace can be made of the root's tree alone: a scratch tmpfs beneath it
    needs the caller's view, and so does the source of a device that is bound."""
    binds = [contents.parsed(mount) for mount in mounts if mount.type == "bind"]
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


# ---- rights and limits ----


def _cgroups_for(spec: Spec) -> CgroupPlan | None:
    """What enforces the limits; None: there are none, or the spec may do without them."""
    limits = spec.limits()
    if limits is None:
        return None
    from fastns import _cgroups  # most specs have no limits

    plan = _cgroups.plan(limits, spec.cgroup_parent, spec.require_limits)
    return plan if plan.places else None


def _kept_rights(spec: Spec) -> int:
    """Without no_new_privileges, a filter and Landlock take a right that the change of ids ends."""
    needed = spec.seccomp != "unconfined" or spec.landlock
    return _core.HOW_KEEP if needed and not spec.no_new_privileges else 0


def _landlock_version(spec: Spec, has_admin: bool) -> int:
    if not spec.landlock:
        return 0
    if not spec.no_new_privileges and not has_admin:
        raise SpecError("landlock", "needs no_new_privileges=True, or CAP_SYS_ADMIN")
    from fastns import _landlock  # most specs have none

    return _landlock.abi()


def _filter(spec: Spec) -> str:
    if spec.seccomp == "unconfined":
        return "none"
    return "whole" if spec.seccomp == "default" else "profile"
