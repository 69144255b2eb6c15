"""Spec → the two plans of a template: what its server does once, and what each sandbox does.

The server builds the root and stays in it, in namespaces of its own. A sandbox is a clone of the
server in new namespaces. It only sets up what must not be shared: its own /proc, an empty file
system on each writable mount, its network's lo, its ids and limits.
"""

from __future__ import annotations

import os

from fastns import _core, _view
from fastns._compile import checked, made, process, root
from fastns._compile.decide import DEV, Caller, Decisions, decide
from fastns._compile.ops import Op
from fastns._spec_values import IDMapping, Mount, parsed, with_options
from fastns.errors import SpecError
from fastns.mount_options import ATTR_RDONLY
from fastns.spec import READONLY_PATHS, Spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

DEV_READ_ONLY = Op("read_only", "read_only", _core.HOW_NO_SYMLINKS, target=b"/dev", note="/dev")
# The keeper has them too, and its own CPU time, memory, fds and processes count.
KEEPERS_LIMITS = ("RLIMIT_AS", "RLIMIT_CPU", "RLIMIT_DATA", "RLIMIT_NOFILE", "RLIMIT_NPROC")
SHARED_TYPES = ("bind", "devtmpfs")  # the server mounts them for all sandboxes


def compile_template(spec: Spec | None, *, reuse: bool = False) -> _core.Plan:
    """The plan of a template's server; its `sandbox` is the plan of each sandbox. Raises: SpecError
    when the spec asks for what this caller, or a template, cannot have."""
    return compile_template_for(checked(spec), Caller.current(), reuse=reuse)


def compile_template_for(
    spec: Spec,
    caller: Caller,
    layout: _view.Layout | None = None,
    *,
    reuse: bool = False,
) -> _core.Plan:
    """As compile_template(), for a given caller and a given view of the host. layout: see
    compile_for()."""
    server, each = decide_template(spec, caller, layout, reuse=reuse)
    how: dict[str, Any] = {
        "method": "template",
        "mount_namespace": "template",
        "keeps_networks": each.keeps_networks,
        "rooms": each.serves_again,
        "ahead": _needs_only_its_fds(each),
    }
    sandbox = made(each, (), _sandbox_ops(each), **how)
    first = process.first(server)
    return made(server, first, _server_ops(server), sandbox=sandbox, cgroups=None)


# ---- decide ----


def decide_template(
    spec: Spec,
    caller: Caller,
    layout: _view.Layout | None = None,
    *,
    reuse: bool = False,
) -> tuple[Decisions, Decisions]:
    """The decisions for the server, and for each of its sandboxes."""
    _refuse_what_no_template_has(spec)
    d = decide(spec, _as_a_templates(caller), layout)
    if d.id_map not in ("none", "self", "range"):
        _refuse("user", "ids other than the caller's, which need a range of ids")
    own_user, keeps_networks = d.id_map == "self", _keeps_networks(d)
    serves_again = reuse and not _why_fresh(d)
    d = d.but(keeps_networks=keeps_networks)
    if serves_again:
        d = d.but(mounts=tuple(map(_of_room, d.mounts)), serves_again=True)
    # A sandbox cannot mount the /sys of a network namespace that its user namespace does not own.
    shared = (*SHARED_TYPES, "sysfs") if keeps_networks else SHARED_TYPES
    fresh = tuple([m for m in d.mounts if m is not DEV and m.type not in shared])
    places = tuple([mount.destination for mount in fresh])
    by_server = [mount.destination for mount in d.mounts if mount.type in shared]
    for destination in () if spec.overlay else (*by_server, *spec.files):
        for path in places:
            if destination.startswith(path + "/"):
                _refuse(
                    "mounts", f"{destination} is below {path}, which starts empty in each sandbox"
                )
    split = d.filter == "whole"
    bounds_all = d.id_map == "none"  # a new user namespace would give a full set again

    server = d.but(
        by_range=(),
        copied=(),
        id_map="none" if d.ids else d.id_map,
        own=tuple([one for mount in d.mounts for one in _of_server(d, mount, shared)]),
        fresh=places,
        led_to=tuple([path for path in d.led_to if not _view.lies_in(path, places)]),
        maps_first=False,
        bounding=d.bounding and bounds_all,
        filter="first" if split else "none",
    )
    absent = ("user", "time", "network") if keeps_networks else ("user", "time")
    new = tuple([kind for kind in d.new if kind not in absent])
    each = d.but(
        new=(*new, "user") if own_user else new,  # a new user namespace locks the server's mounts
        join_first=(),
        join=(),
        user_last=False,
        uids=(IDMapping(spec.uid, spec.uid, 1),),
        gids=(IDMapping(spec.gid, spec.gid, 1),),
        inotify=d.inotify if d.ids else None,
        own=fresh,
        fresh=places,
        dies_with_parent=False,  # a sandbox ends with the server, which ends with the caller
        maps_first=False,
        bounding=d.bounding and not bounds_all,
        filter="rest" if split else d.filter,
    )
    return server, each


def _as_a_templates(caller: Caller) -> Caller:
    if caller.initial_user_namespace:
        return Caller(**{**vars(caller), "tree_namespaces": False})
    # The caller is treated as unprivileged. So each sandbox gets a user namespace of its own, in
    # which it cannot unmount what the server has mounted.
    return Caller(caller.uid, caller.gid, caller.uniform, 0, False)


def _keeps_networks(d: Decisions) -> bool:
    """Whether an unused network namespace may serve the next sandbox. So no sandbox may be able to
    change it in a way that the server does not see, or to leave an fd of it to another."""
    spec = d.spec
    procs = [mount for mount in d.mounts if mount.type == "proc"]
    return (
        "network" in d.new
        and d.id_map in ("range", "self")
        and d.filter == "whole"
        and not spec.capabilities
        and not spec.writes_to_host()
        # In a user namespace, the server can mount its /proc only where sandboxes mount theirs.
        and (bool(procs) or d.id_map == "range")
        # The host's uid 0 could change the modes of files in /proc/net, and sysctls.
        and not any("rw" in mount.options for mount in procs)
    )


def _needs_only_its_fds(d: Decisions) -> bool:
    """Whether only the limit on open files has to wait for a request: before that limit, passed fds
    get their numbers. A cgroup comes with the request, and entering it takes rights. What a profile
    or Landlock refuses is not known, and waiting for the request must be possible under it."""
    spec = d.spec
    own_limits = any(rlimit.type != "RLIMIT_CORE" for rlimit in spec.rlimits)
    usual = d.filter in ("none", "rest") and not spec.landlock
    return usual and d.cgroups is None and not own_limits


def why_fresh(spec: Spec | None) -> str:
    """Why no sandbox of a template can serve again; "": it can."""
    return _why_fresh(decide(checked(spec), _as_a_templates(Caller.current())))


def _why_fresh(d: Decisions) -> str:
    spec = d.spec
    given = {
        "a rootfs without overlay": spec.rootfs is not None and not spec.overlay,
        "mounts of the host below its directories": _shows_mounts(d),
        "files": bool(spec.files),
        "mounts other than tmpfs": any(m.type != "tmpfs" for m in spec.mounts),
        "a mount with strictatime": any("strictatime" in m.options for m in spec.mounts),
        "a mount below a directory of the root": any(map(_is_deep, d.mounts)),
        "no /proc": all(m.type != "proc" for m in d.mounts),
        "the host's ipc namespace": "ipc" not in d.new,
        "the host's network": "network" not in d.new,
        "limits that cgroups enforce": spec.limits() is not None,
        "a writable /proc/sys": "/proc/sys" not in _read_only(spec),
        "Landlock": bool(spec.landlock),
        "capabilities": bool(spec.capabilities),
        # A set-user-ID program could take an id whose processes the keeper may not kill.
        "no_new_privileges=False": not spec.no_new_privileges,
        "a seccomp profile": d.filter != "whole",
        "rlimits that would hold for the keeper too": any(
            r.type in KEEPERS_LIMITS for r in spec.rlimits
        ),
        "ids of the host": not _keeps_networks(d),
    }
    return next((why for why, found in given.items() if found), "")


def _shows_mounts(d: Decisions) -> bool:
    """Whether a room cannot show the host's directories as layers, which leave out mounts."""
    return d.layout is not None and (bool(d.led_to) or _view.has_mounts_below(d.layout.shown))


def _is_deep(mount: Mount) -> bool:
    """Whether its target may be made in a directory that a command can reach. It cannot change
    /dev."""
    path = mount.destination
    return path.count("/") > (2 if path.startswith("/dev/") else 1)


def _read_only(spec: Spec) -> Sequence[str]:
    return READONLY_PATHS if spec.readonly_paths is None else spec.readonly_paths


def _of_room(mount: Mount) -> Mount:
    """Without access times, reading is no change. The command cannot see the keeper."""
    if mount is DEV or mount.type not in ("tmpfs", "devpts", "proc"):
        return mount
    return with_options(mount, *mount.options, "hidepid=2" if mount.type == "proc" else "noatime")


def _refuse_what_no_template_has(spec: Spec) -> None:
    for kind in ("pid", "mount"):
        if spec.namespace(kind) != "new":
            _refuse("namespaces", f"{kind}={spec.namespace(kind)!r}: each sandbox has its own")
    for kind in ("user", "time"):
        if spec.namespace(kind).startswith("/"):
            _refuse("namespaces", f"it cannot join a {kind} namespace")
    if spec.init:
        _refuse("init", "its sandboxes cannot have an init yet")
    if spec.root_mode != "pivot_root":
        _refuse("root_mode", "expected 'pivot_root'")
    if spec.uid_mappings or spec.gid_mappings:
        _refuse("uid_mappings", "ranges of ids are not supported yet")


def _refuse(field: str, why: str) -> None:
    raise SpecError(field, f"a Template does not support this: {why}")


def _of_server(d: Decisions, mount: Mount, shared: tuple[str, ...]) -> Iterator[Mount]:
    """What the server mounts at the destination of this mount: nothing, the mount, or a variant."""
    if mount is DEV or mount.type in shared:
        yield mount
        return
    # A sandbox cannot make a missing target in an idmapped root.
    if d.ids and d.layout is None and not d.spec.overlay and parsed(mount).mkdir:
        yield mount
    # In its user namespace, a sandbox can mount a proc or sysfs only if the server has mounted one.
    # If the sandbox unmounts its own, the server's appears. So the server's /proc shows only
    # processes that the reader may trace (hidepid=2). It is writable: the server writes id maps
    # there.
    if d.id_map == "self" and mount.type in ("proc", "sysfs"):
        writable = [option for option in mount.options if option not in ("ro", "hidepid=2")]
        yield mount if mount.type == "sysfs" else with_options(mount, *writable, "hidepid=2")


# ---- emit ----


def _server_ops(d: Decisions) -> Iterator[Op]:
    yield from process.namespaces(d)
    if d.spec.overlay:
        yield from _parts(d)
    else:
        yield from root.root(d, ATTR_RDONLY)
        if d.spec.default_mounts and any(m.destination == DEV.destination for m in d.mounts):
            yield DEV_READ_ONLY
        yield from root.enter_root(d)
    yield from process.names(d.spec)  # new uts namespaces copy the names
    yield from process.bounding(d)
    yield process.keyring(d.spec, _core.HOW_SEALED)  # all sandboxes share it
    if d.filter != "none" and d.spec.no_new_privileges:
        yield process.NO_NEW_PRIVILEGES
    # Most of the default filter: if each sandbox loaded it, that would take a fifth of a start.
    yield from process.seccomp_filter(d)
    yield from process.network_filter(d)


def _sandbox_ops(d: Decisions) -> Iterator[Op]:
    yield from process.namespaces(d)
    if d.spec.overlay:
        yield from _layer(d)
    else:
        yield Op("root_tree", "rootfs", source=b"/", note="/")
        mounts = [(mount.destination, root.mount_op(d, mount)) for mount in d.own]
        masks = [op for at, op in root.masks(d, _empty(d)) if _view.lies_in(at, d.fresh)]
        yield from _in_order(d, mounts, masks)
    yield from process.loopback(d)
    yield from process.cgroup(d)
    yield from process.command(d)


def _empty(d: Decisions) -> bytes | None:
    """An empty, read-only directory of the server, as long as nothing is mounted on it."""
    usual = d.spec.default_mounts and not d.spec.mounts and not d.spec.files
    return os.fsencode(root.MOUNTED_BELOW_DEV[-1]) if usual else None


def _in_order(d: Decisions, mounts: list[tuple[str, Op]], masks: list[Op]) -> Iterator[Op]:
    """The masks come last, except that those which show the empty directory come before a mount on
    it."""
    early = [op for op in masks if op.source]
    for destination, op in mounts:
        if destination in root.MOUNTED_BELOW_DEV:
            yield from early
            early = []
        yield op
    yield from early
    yield from (op for op in masks if not op.source)


# ---- an overlay: each sandbox assembles the server's parts over a layer of its own ----


def _parts(d: Decisions) -> Iterator[Op]:
    """The server's root consists of the parts: /lower, /dev, and in /parts what sandboxes bind."""
    source = root.root_path(d.spec)
    yield Op("propagation", "propagation", flags=root.propagation(d))
    yield root.root_tree_op(d, read_only=True)
    names = (b"lower", b"layers", b"files")
    yield root.scratch_op(d, "rootfs", names, None, "tmpfs for the parts")
    yield Op("root_attach", "rootfs", source=source, target=b"lower", note="attached")
    yield Op("root_scratch", "rootfs")
    parts = _part_names(d)
    for mount in d.own:
        if mount.destination in parts:
            yield root.mount_op(d, mount, parts[mount.destination])
        else:
            yield from root.mounted(d, mount)
    for number, destination in enumerate(d.spec.files):
        how, part = _core.HOW_CREATE, b"/parts/file%d" % number
        yield root.file_op(d, number, destination, part, how, ATTR_RDONLY)
    if any(mount is DEV for mount in d.mounts):
        yield DEV_READ_ONLY
    yield root.pivot_op(source, 1)


def _part_names(d: Decisions) -> dict[str, bytes]:
    """Destination → the path in the server's root that sandboxes bind there."""
    numbered = enumerate(d.mounts)
    return {m.destination: b"/parts/%d" % i for i, m in numbered if m.type in SHARED_TYPES}


def _layer(d: Decisions) -> Iterator[Op]:
    yield root.scratch_op(d, "overlay", root.LAYERS, b"/layers", "scratch tmpfs")
    yield root.overlay_op(d, b"/lower")
    parts = _part_names(d)
    mounts = []
    for mount in d.mounts:
        if mount.destination in d.fresh:
            op = root.mount_op(d, mount)
        else:
            part = parts.get(mount.destination, os.fsencode(mount.destination))
            op = _bind_part(d, "mount", part, mount.destination, root.how_of_bind(mount))
        mounts.append((mount.destination, op))
    for number, destination in enumerate(d.spec.files):
        op = _bind_part(d, "file", b"/parts/file%d" % number, destination)
        mounts.append((destination, op))
    yield from _in_order(d, mounts, [op for _, op in root.masks(d, _empty(d))])
    if d.spec.read_only:
        yield root.READ_ONLY_ROOT
    yield root.pivot_op(b"/", 1)


def _bind_part(d: Decisions, stage: str, part: bytes, destination: str, how: int = 0) -> Op:
    """Binds a part of the server's root into the sandbox's root, with the mounts below it."""
    how |= _core.HOW_RECURSIVE | root.how_made(d, destination, d.layers)
    target = os.fsencode(destination)
    return Op("bind", stage, how, source=part, target=target, note=destination)
