"""Spec → the two plans of a template: what its server does once, and what each sandbox does.

The server builds the root and stays in it, in namespaces of its own. A sandbox is a clone of it
with new ones. It does only what must not be shared: its own /proc, an empty file system on each
writable mount, its network's lo, its ids and limits.
"""

from __future__ import annotations

import os

from fastns import _core, _view
from fastns._compile import identity, made, rights, with_profile
from fastns._compile.caller import Caller
from fastns._compile.contents import DEV, is_throw_away, parsed
from fastns._compile.decide import Decisions, decide
from fastns._compile.mounts import file_op, how_of_bind, masks, mount, mount_op, scratch_op
from fastns._compile.ops import Op
from fastns._compile.root import (
    LAYERS,
    READ_ONLY_ROOT,
    enter_root,
    overlay_op,
    pivot_op,
    propagation_op,
    root,
    root_path,
    root_tree_op,
)
from fastns.errors import SpecError
from fastns.mount_options import ATTR_RDONLY
from fastns.spec import IDMapping, Mount, Spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

DEV_READ_ONLY = Op("read_only", "read_only", _core.HOW_NO_SYMLINKS, target=b"/dev", note="/dev")


def compile_template(spec: Spec | None, netns_pool: int = 0) -> _core.Plan:
    """The plan of a template's server; its `sandbox` is the plan of each sandbox.

    Raises: SpecError when a template cannot have what the spec asks for.
    """
    return compile_template_for(with_profile(spec or Spec()), Caller.current(), None, netns_pool)


def compile_template_for(
    spec: Spec, caller: Caller, layout: _view.Layout | None = None, netns_pool: int = 0
) -> _core.Plan:
    """The same for a given caller and a given view of the host; None is the host's own.

    Raises: SpecError when a template of this caller cannot have what the spec asks for.
    """
    server, each = decide_template(spec, caller, layout, netns_pool)
    sandbox = made(
        each, _sandbox_ops(each), method="template", netns_pool=netns_pool, cgroups=each.cgroups
    )
    first = (*rights.first(server), *identity.join_first(server))
    return made(server, _server_ops(server, each), first, sandbox=sandbox)


# ---- decide ----


def decide_template(
    spec: Spec, caller: Caller, layout: _view.Layout | None = None, netns_pool: int = 0
) -> tuple[Decisions, Decisions]:
    """What is decided for the server, and for each of its sandboxes."""
    _refuse_what_no_template_has(spec, netns_pool)
    if caller.initial_user_namespace:
        caller = Caller(**{**vars(caller), "tree_namespaces": False})
    else:
        # Its privileges end where a sandbox may take mounts away: a user namespace for each.
        caller = Caller(caller.uid, caller.gid, caller.uniform, 0, False)
    d = decide(spec, caller, layout, netns_ahead=netns_pool > 0)
    if d.id_map not in ("none", "self", "range"):
        _refuse("user", "ids other than the caller's need a range, which is not there yet")
    own_user = d.id_map == "self"
    fresh = [one for one in d.mounts if _is_fresh(one, own_user, netns_pool)]
    places = tuple([one.destination for one in fresh])
    _refuse_below(places, spec, d.mounts)

    split = d.filter == "whole"
    shared = d.id_map == "none"  # rights that all sandboxes have to give up are the server's to do
    own = [one for m in d.mounts for one in _of_server(d, m, m not in fresh)]
    server = d.but(
        by_range=(),
        copied=(),
        id_map="none" if d.ids else d.id_map,
        own=tuple(own),
        fresh=places,
        led_to=tuple([path for path in d.led_to if not _view.lies_in(path, places)]),
        maps_first=False,
        bounding=d.bounding and shared,
        filter="first" if split else "none",
    )
    absent = ["user", "time", *(["network"] if netns_pool else [])]
    new = [kind for kind in d.new if kind not in absent]
    uid, gid = (IDMapping(number, number, 1) for number in (spec.uid, spec.gid))
    each = d.but(
        # A user namespace of its own, in which the server's mounts are locked.
        new=(*new, "user") if own_user else tuple(new),
        uids=(uid,),
        gids=(gid,),
        inotify=None,
        own=tuple(fresh),
        fresh=places,
        hop=False,
        maps_first=False,
        bounding=d.bounding and not shared,
        filter="rest" if split else d.filter,
    )
    return server, each


def _refuse_what_no_template_has(spec: Spec, netns_pool: int) -> None:
    for kind in ("pid", "mount"):
        if spec.namespace(kind) != "new":
            _refuse("namespaces", f"{kind}={spec.namespace(kind)!r}: each sandbox has its own")
    if netns_pool and spec.namespace("network") != "new":
        raise SpecError("netns_pool", "its sandboxes have no network namespaces of their own")
    for kind in ("user", "time"):
        if spec.namespace(kind).startswith("/"):
            _refuse("namespaces", f"it cannot join a {kind} namespace")
    if spec.init:
        _refuse("init", "there is no reaper in its sandboxes yet")
    if spec.root_mode != "pivot_root":
        _refuse("root_mode", "'pivot_root' expected")
    if spec.uid_mappings or spec.gid_mappings:
        _refuse("uid_mappings", "ranges of ids are not there yet")


def _refuse_below(fresh: Sequence[str], spec: Spec, mounts: Sequence[Mount]) -> None:
    """What the server mounts or puts there could not be seen."""
    shared = [one.destination for one in mounts if one.type in ("bind", "devtmpfs")]
    for destination in () if spec.overlay else (*shared, *spec.files):
        for path in fresh:
            if destination.startswith(path + "/"):
                _refuse("mounts", f"{destination}: {path} is empty in each sandbox")


def _refuse(field: str, why: str) -> None:
    raise SpecError(field, f"a Template cannot have this: {why}")


def _is_fresh(one: Mount, own_user: bool, netns_pool: int) -> bool:
    """Whether each sandbox mounts it for itself. The /sys of a network namespace that is not its
    own is not its to mount."""
    if own_user and netns_pool and one.type == "sysfs":
        return False
    return one is not DEV and one.type not in ("bind", "devtmpfs")


def _of_server(d: Decisions, one: Mount, is_shared: bool) -> Iterator[Mount]:
    """What the server mounts at the place of one mount."""
    if one is DEV or one.type in ("bind", "devtmpfs"):
        yield one
        return
    # A sandbox cannot make a missing target where its root shows other owners.
    if d.ids and d.layout is None and not d.spec.overlay and parsed(one).mkdir:
        yield one
    # In a user namespace of its own it can mount another one only where one is there already.
    if d.id_map == "self" and one.type in ("proc", "sysfs"):
        yield beneath(one)


def beneath(one: Mount) -> Mount:
    """The server's mount beneath a sandbox's own one, seen if the sandbox unmounts that. Its /proc
    shows only processes that may be traced; it is writable, as the server writes id maps there."""
    options = list(one.options)
    if one.type == "proc":
        options = [*(option for option in options if option != "ro"), "hidepid=2"]
    return Mount(one.destination, type=one.type, source=one.source, options=options)


# ---- emit ----


def _server_ops(d: Decisions, each: Decisions) -> list[Op]:
    filters = rights.filter(d)
    return [
        *identity.join(d),
        *identity.maps(d),
        *(_parts(d) if d.spec.overlay else _shared_root(d)),
        *identity.names(d),  # a new uts namespace starts with those of the server's
        *rights.bounding(d),
        rights.keyring(d.spec, _core.HOW_SEALED),  # all sandboxes have the same
        # Most of the default filter is the server's own: to load it takes a fifth of a start.
        *([rights.NO_NEW_PRIVILEGES] if filters and d.spec.no_new_privileges else []),
        *filters,
    ]


def _sandbox_ops(d: Decisions) -> list[Op]:
    return [
        *identity.maps(d),
        *identity.own_namespaces(d),
        *(_layer(d) if d.spec.overlay else _fresh_mounts(d)),
        *identity.loopback(d),
        *rights.cgroup(d),
        *rights.limits(d.spec),
        *identity.join_range(d),
        *rights.bounding(d),
        *identity.ids(d),
        *rights.last(d),  # it ends with the server, and that with the caller: no parent_death
    ]


def _shared_root(d: Decisions) -> list[Op]:
    """Nothing in it can be written that all sandboxes see, but what the spec gives them."""
    ops = root(d, ATTR_RDONLY)
    if d.spec.default_mounts and "/dev" in [one.destination for one in d.mounts]:
        ops.append(DEV_READ_ONLY)
    return [*ops, *enter_root(d)]


def _fresh_mounts(d: Decisions) -> list[Op]:
    mounts = [mount_op(d, one) for one in d.own]
    covering = [op for at, op in masks(d) if _view.lies_in(at, d.fresh)]
    return [Op("root_tree", "rootfs", source=b"/", note="/"), *mounts, *covering]


# ---- a layer for each sandbox ----


def _parts(d: Decisions) -> list[Op]:
    """The server's root holds the parts: /lower, /dev, and what is bound, in /parts. Each sandbox
    puts them together over a layer of its own."""
    source = os.fsencode(root_path(d))
    ops = [
        propagation_op(d),
        root_tree_op(d, read_only=True),
        scratch_op(d, "rootfs", [b"lower", b"layers", b"files"], None, "tmpfs for the parts"),
        Op("root_attach", "rootfs", source=source, target=b"lower", note="attached"),
        Op("root_scratch", "rootfs"),
    ]
    parts = _part_names(d)
    for one in d.own:
        part = parts.get(one.destination)
        ops += mount(d, one) if part is None else [mount_op(d, one, part)]
    for number, destination in enumerate(d.spec.files):
        part = b"/parts/file%d" % number
        ops.append(file_op(d, number, destination, part, _core.HOW_CREATE, ATTR_RDONLY))
    if DEV in d.mounts:
        ops.append(DEV_READ_ONLY)
    return [*ops, pivot_op(source, 1)]


def _part_names(d: Decisions) -> dict[str, bytes]:
    """Where the server's root has what is to be bound to a destination."""
    return {
        one.destination: b"/parts/%d" % number
        for number, one in enumerate(d.mounts)
        if one.type in ("bind", "devtmpfs")
    }


def _layer(d: Decisions) -> list[Op]:
    ops = [scratch_op(d, "overlay", LAYERS, b"/layers"), overlay_op(d, b"/lower")]
    parts = _part_names(d)
    for one in d.mounts:
        if one.destination in d.fresh:
            ops.append(mount_op(d, one))
        else:
            part = parts.get(one.destination, os.fsencode(one.destination))
            ops.append(_put(d, "mount", part, one.destination, how_of_bind(one)))
    for number, destination in enumerate(d.spec.files):
        ops.append(_put(d, "file", b"/parts/file%d" % number, destination))
    ops += [op for _, op in masks(d)]
    return [*ops, *([READ_ONLY_ROOT] if d.spec.read_only else []), pivot_op(b"/", 1)]


def _put(d: Decisions, stage: str, part: bytes, destination: str, how: int = 0) -> Op:
    """A part of the server's root, with all that is mounted below it, into each sandbox's."""
    how |= _core.HOW_RECURSIVE
    if is_throw_away(destination, d.layers):
        how |= _core.HOW_CREATE | d.owned
    target = os.fsencode(destination)
    return Op("bind", stage, how, source=part, target=target, note=destination)
