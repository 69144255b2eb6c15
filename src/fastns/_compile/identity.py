"""Ops for who a process is: the namespaces that it joins or makes, their maps, names, its ids."""

from __future__ import annotations

import os

from fastns import _core
from fastns._compile.ops import (
    CLONE_FLAGS,
    PROC_MAGIC,
    Op,
    clone_flags,
    setgid_op,
    setuid_op,
    write_op,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from fastns._compile.decide import Decisions
    from fastns.spec import IDMapping

NO_GROUPS = Op("setgroups", "setgroups", note="none")


# ---- namespaces ----


def join_first(d: Decisions) -> list[Op]:
    """What is joined before the sandbox is cloned."""
    ops = [setns_op(kind, path, d.user_last) for kind, path in d.join_first]
    if d.user_last:
        # Inside, groups may be out of reach (setgroups "deny"): the caller's stay behind now.
        path = dict(d.join_first)["user"]
        last = Op("join_user", "setns", source=os.fsencode(path), note=path)
        ops = [NO_GROUPS, *ops, last]
    return ops


def join(d: Decisions) -> list[Op]:
    return [setns_op(kind, path) for kind, path in d.join]


def setns_op(kind: str, path: str, user_last: bool = False) -> Op:
    how = _core.HOW_OPEN if user_last and kind == "user" else 0
    source, note = os.fsencode(path), f"{kind} {path}"
    return Op("setns", "setns", how, CLONE_FLAGS[kind], source=source, note=note)


def own_namespaces(d: Decisions) -> list[Op]:
    """Made by a process in the range's user namespace, and joined: they belong to it then."""
    if not d.by_range:
        return []
    flags, note = clone_flags(d.by_range), " ".join(d.by_range)
    return [Op("own_namespaces", "unshare", flags=flags, note=note)]


def join_range(d: Decisions) -> list[Op]:
    """The user namespace that all sandboxes of this process share is joined once everything that
    takes the caller's rights is done: the other namespaces and the mounts stay out of its reach.

    `copied` namespaces begin with a copy of what is there. Mounts that another user namespace has
    made are locked in it: the sandbox cannot uncover them or make them writable.
    """
    if d.id_map != "range" or d.ids is None:
        return []
    uid, gid, size = d.ids
    note = f"uids {uid}-{uid + size - 1}, gids {gid}-{gid + size - 1}"
    ops = [Op("join_user", "id_map", note=note)]
    if d.copied:
        flags, note = clone_flags(d.copied), " ".join(d.copied)
        ops.append(Op("unshare", "unshare", flags=flags, note=note))
    return ops


def names(d: Decisions) -> list[Op]:
    given = (("hostname", d.spec.hostname), ("domainname", d.spec.domainname))
    return [Op(kind, kind, data=os.fsencode(name), note=name) for kind, name in given if name]


def loopback(d: Decisions) -> list[Op]:
    return [Op("loopback", "network", note="lo up")] if "network" in d.new else []


# ---- ids ----


def maps(d: Decisions) -> list[Op]:
    """Of a new user namespace: its limit on inotify, and its maps if it writes them itself."""
    ops = []
    if d.inotify is not None:
        from fastns import _userns

        path, note = _userns.INOTIFY_LIMIT.encode(), "inotify instances: half of the caller's"
        how = _core.HOW_OPTIONAL
        ops.append(Op("write", "rlimit", how, PROC_MAGIC, target=path, data=d.inotify, note=note))
    if d.id_map == "self":
        # An unprivileged process has to give setgroups up before gid_map (user_namespaces(7)).
        ops += [
            write_op("id_map", "setgroups", b"deny"),
            write_op("id_map", "gid_map", map_text(d.gids)),
            write_op("id_map", "uid_map", map_text(d.uids)),
        ]
    return ops


def map_text(mappings: Iterable[IDMapping]) -> bytes:
    return b"".join(b"%d %d %d\n" % (m.container_id, m.host_id, m.size) for m in mappings)


def become_mapped(d: Decisions) -> list[Op]:
    """In a namespace whose maps another process writes, this one is nobody until it takes a mapped
    id, and nobody cannot create files. It comes once the root's tree is open: the way there is the
    caller's."""
    if d.id_map not in ("parent", "newuidmap"):
        return []
    uid = 0 if _maps(d.uids, 0) else d.spec.uid
    gid = 0 if _maps(d.gids, 0) else d.spec.gid
    return [setgid_op(gid), setuid_op(uid)]


def _maps(mappings: Iterable[IDMapping], container_id: int) -> bool:
    return any(m.container_id <= container_id < m.container_id + m.size for m in mappings)


def ids(d: Decisions) -> list[Op]:
    """The command's ids."""
    spec, ops = d.spec, []
    if d.id_map == "range" and spec.uid:
        # A change from uid 0 inside to another one ends the rights that joining gave.
        ops.append(setuid_op(0))
    if d.sets_groups:
        groups = b"".join(gid.to_bytes(4, "little") for gid in spec.additional_gids)
        note = " ".join(map(str, spec.additional_gids)) or "none"
        count = len(spec.additional_gids)
        ops.append(Op("setgroups", "setgroups", arg=count, data=groups or None, note=note))
    return [*ops, setgid_op(spec.gid), setuid_op(spec.uid)] if d.sets_ids else ops
