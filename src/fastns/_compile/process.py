"""Emits the ops for the process itself: joined namespaces, id maps, names, limits, ids, rights."""

from __future__ import annotations

import os

from fastns import _core
from fastns._compile.ops import CLONE_FLAGS, PROC_MAGIC, Op, clone_flags, id_op, write_op
from fastns._spec_values import Rlimit, outside
from fastns.spec import DEFAULT_RLIMITS, Spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from fastns._compile.decide import Decisions
    from fastns.spec import IDMapping

LEAST_FDS = 256  # halving the caller's limit on open files does not go below this
NO_NEW_PRIVILEGES = Op("no_new_privileges", "no_new_privileges")


# ---- namespaces and their maps ----


def first(d: Decisions) -> Iterator[Op]:
    """The first ops. With a hop, they run before its clone."""
    if d.spared:
        yield write_op("oom_score_adj", "oom_score_adj", b"0")
    # Before anything that could crash, and before the default filter, which protects this limit.
    core = [rlimit for rlimit in d.spec.rlimits if rlimit.type == "RLIMIT_CORE"]
    if core:
        yield _rlimit_op(core[0])
    else:  # optional, as raising a hard limit of 0 requires CAP_SYS_RESOURCE
        yield _rlimit_op(DEFAULT_RLIMITS[0], _core.HOW_OPTIONAL)
    if d.user_last:
        # Drops the caller's groups now: the user namespace may forbid it (setgroups "deny").
        yield Op("setgroups", "setgroups", note="none")
    for kind, path in d.join_first:
        yield _setns_op(kind, path, _core.HOW_OPEN if d.user_last and kind == "user" else 0)
    if d.user_last:
        path = dict(d.join_first)["user"]
        yield Op("join_user", "setns", source=os.fsencode(path), note=path)


def _setns_op(kind: str, path: str, how: int = 0) -> Op:
    source, note = os.fsencode(path), f"{kind} {path}"
    return Op("setns", "setns", how, CLONE_FLAGS[kind], source=source, note=note)


def namespaces(d: Decisions) -> Iterator[Op]:
    """Joins namespaces, and completes those that the clone has created."""
    for kind, path in d.join:
        yield _setns_op(kind, path)
    if d.inotify is not None and d.ids is None:
        from fastns._compile import userns

        path, note = userns.INOTIFY_LIMIT, "inotify instances: half of the caller's"
        how, target = _core.HOW_OPTIONAL, path.encode()
        yield Op("write", "rlimit", how, PROC_MAGIC, target=target, data=d.inotify, note=note)
    if d.id_map == "self":
        # An unprivileged process must disable setgroups before it writes gid_map
        # (user_namespaces(7)).
        yield write_op("id_map", "setgroups", b"deny")
        yield write_op("id_map", "gid_map", map_text(d.gids))
        yield write_op("id_map", "uid_map", map_text(d.uids))
    if d.by_range:
        note = " ".join(d.by_range)
        yield Op("own_namespaces", "unshare", flags=clone_flags(d.by_range), note=note)


def map_text(mappings: Iterable[IDMapping]) -> bytes:
    return b"".join(b"%d %d %d\n" % (m.container_id, m.host_id, m.size) for m in mappings)


def mapped_ids(d: Decisions) -> Iterator[Op]:
    """Changes to a mapped id if another process wrote the maps: an unmapped one cannot create
    files."""
    if d.id_map in ("parent", "newuidmap"):
        for code, mappings, own in (("setgid", d.gids, d.spec.gid), ("setuid", d.uids, d.spec.uid)):
            yield id_op(code, own if outside(mappings, 0) is None else 0)


def cgroup(d: Decisions) -> Iterator[Op]:
    """Enters the cgroup, then makes the cgroup namespace, whose root is this cgroup."""
    if d.cgroups is not None:
        flags = CLONE_FLAGS["cgroup"] if "cgroup" in d.new else 0
        yield Op("cgroup", "cgroup", flags=flags, note=" ".join(d.cgroups.enforced))


def names(spec: Spec) -> Iterator[Op]:
    for kind, name in (("hostname", spec.hostname), ("domainname", spec.domainname)):
        if name is not None:
            yield Op(kind, kind, data=os.fsencode(name), note=name)


def loopback(d: Decisions) -> Iterator[Op]:
    if "network" in d.new:
        yield Op("loopback", "network", note="lo up")


def keyring(spec: Spec, how: int = 0) -> Op:
    """A new session keyring. It counts against the user's quota of about 200. So with the default
    filter, which refuses all calls about keys, it is optional."""
    how |= _core.HOW_OPTIONAL if spec.seccomp == "default" else 0
    return Op("keyring", "keyring", how, note="of its own")


# ---- limits, ids, rights ----


def command(d: Decisions) -> Iterator[Op]:
    """The ops that follow once everything around the command is in place, of a direct start and of
    a template's sandbox. Their order matters."""
    yield from limits(d.spec)
    yield from identity(d)
    yield from rights(d)


def identity(d: Decisions) -> Iterator[Op]:
    yield from umask(d.spec)
    yield from join_range(d)
    yield from bounding(d)
    yield from ids(d)
    if d.dies_with_parent:
        yield Op("parent_death", "parent_death")  # after the change of ids, which would clear it


def umask(spec: Spec) -> Iterator[Op]:
    yield Op("umask", "umask", arg=spec.umask, note=f"{spec.umask:04o}")


def rights(d: Decisions) -> Iterator[Op]:
    """Landlock and filters need no_new_privileges or CAP_SYS_ADMIN. Without the former,
    capabilities are dropped last."""
    if d.spec.no_new_privileges:
        yield from given_up(d.spec)
    yield from restrictions(d)
    if not d.spec.no_new_privileges:
        yield _capabilities_op("capabilities", d.spec)


def given_up(spec: Spec, kept: int = 0) -> Iterator[Op]:
    """The rights that no_new_privileges keeps an exec from giving back. kept: capabilities, one bit
    each, that this process keeps beside the spec's."""
    yield _capabilities_op("capabilities", spec, kept=kept)
    yield NO_NEW_PRIVILEGES


def restrictions(d: Decisions) -> Iterator[Op]:
    if d.spec.landlock:  # before the filter, which may refuse its calls
        from fastns._policy import landlock

        yield from landlock.ops(d.spec.landlock, d.landlock, d.keep)
    yield from seccomp_filter(d)


def limits(spec: Spec) -> Iterator[Op]:
    given = {rlimit.type: rlimit for rlimit in spec.rlimits if rlimit.type != "RLIMIT_CORE"}
    for rlimit in DEFAULT_RLIMITS[1:]:
        if rlimit.type not in given:
            least = LEAST_FDS if rlimit.type == "RLIMIT_NOFILE" else 0
            yield _rlimit_op(rlimit, _core.HOW_HALF, least)
    yield from map(_rlimit_op, given.values())


def raised_limits(spec: Spec) -> Iterator[Op]:
    """Lets a process that has given up its rights give these limits to its children."""
    for rlimit in spec.rlimits:
        if rlimit.type != "RLIMIT_CORE":
            yield _rlimit_op(rlimit, _core.HOW_RAISE)


def _rlimit_op(rlimit: Rlimit, how: int = 0, least: int = 0) -> Op:
    data = b"".join(limit.to_bytes(8, "little") for limit in rlimit.values)
    note = f"{rlimit.type} {rlimit.soft}:{rlimit.hard}"
    note += " at most" if how & _core.HOW_HALF else ""
    return Op("rlimit", "rlimit", how, rlimit.number, least, data=data, note=note)


def join_range(d: Decisions) -> Iterator[Op]:
    """Joins the range's user namespace after everything that requires the caller's rights. So the
    mounts, and the namespaces made with those rights, belong to the host's user namespace and are
    out of the sandbox's reach.

    In a copied mount namespace, these mounts are locked: the sandbox can neither unmount them nor
    make them writable.
    """
    if d.id_map != "range":
        return
    assert d.ids is not None
    uid, gid, size = d.ids
    note = f"uids {uid}-{uid + size - 1}, gids {gid}-{gid + size - 1}"
    yield Op("join_user", "id_map", note=note)
    if d.copied:
        yield Op("unshare", "unshare", flags=clone_flags(d.copied), note=" ".join(d.copied))


def bounding(d: Decisions, how: int = 0) -> Iterator[Op]:
    """Reduces the bounding set, if the process may. If not, only no_new_privileges keeps an exec
    from gaining capabilities. how: HOW_KEEP in any case, or 0."""
    if d.bounding:
        yield _capabilities_op("bounding", d.spec, d.keep | how)


def _capabilities_op(code: str, spec: Spec, how: int = 0, kept: int = 0) -> Op:
    mask, note = 0, " ".join(spec.capabilities) or "none"
    if spec.capabilities:
        from fastns import capabilities

        mask = capabilities.mask(spec.capabilities)
    return Op(code, "capabilities", how, kept, arg=mask, note=note)


def ids(d: Decisions) -> Iterator[Op]:
    spec = d.spec
    if d.id_map == "range" and spec.uid:
        # Joining the namespace gave all capabilities; a change from uid 0 to another drops them.
        yield id_op("setuid", 0)
    if d.sets_groups:
        yield setgroups_op(spec.additional_gids)
    if d.sets_ids:
        yield id_op("setgid", spec.gid)
        yield id_op("setuid", spec.uid)


def setgroups_op(gids: Sequence[int]) -> Op:
    groups = b"".join(gid.to_bytes(4, "little") for gid in gids)
    note = " ".join(map(str, gids)) or "none"
    return Op("setgroups", "setgroups", arg=len(gids), data=groups or None, note=note)


def network_filter(d: Decisions) -> Iterator[Op]:
    if d.keeps_networks:
        from fastns import _filters

        code = _filters.network()
        yield Op("seccomp", "seccomp", d.keep, 0, len(code) // 8, data=code, note="no groups")


def seccomp_filter(d: Decisions) -> Iterator[Op]:
    """The filter of system calls, or the part of it that this process loads."""
    spec, flags = d.spec, 0
    if d.filter == "none":
        return
    if d.filter == "profile":
        from fastns import seccomp

        profile = seccomp.profile_of(spec.seccomp)
        code, note, flags = seccomp.build(profile, spec.capabilities), "profile", profile.flags
    else:
        from fastns import _filters  # only where something is filtered

        setid = spec.allow_setid or not spec.writes_to_host()
        name = "default" if setid else "default, no set-id files"
        if d.filter == "whole":
            code, note = _filters.default(spec.capabilities, setid=setid), name
        else:
            first, rest = _filters.default_parts(spec.capabilities, setid=setid)
            is_first = d.filter == "first"
            code, note = (first, f"{name}, for all") if is_first else (rest, "default, the rest")
    yield Op("seccomp", "seccomp", d.keep, flags, len(code) // 8, data=code, note=note)
