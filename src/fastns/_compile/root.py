"""Ops for the root: how its tree is made, filled and entered.

What is made for it is hidden on top of "/" at first, so that the caller's paths still lead to the
sources of binds; docs/architecture.md has the steps.
"""

from __future__ import annotations

import os

from fastns import _core, _tmpfs, _view
from fastns._compile.contents import DEV
from fastns._compile.identity import become_mapped
from fastns._compile.mounts import (
    file_op,
    how_made,
    masks,
    mount,
    no_devices,
    open_sources,
    scratch_op,
    symlink_op,
    tmpfs_size,
)
from fastns._compile.ops import Op
from fastns.mount_options import ATTR_RDONLY, MS_NODEV, MS_NOSUID, MS_PRIVATE, MS_SLAVE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fastns._compile.decide import Decisions

LAYERS = (b"root", b"upper", b"work")  # directories of an overlay's scratch
READ_ONLY_ROOT = Op("read_only", "read_only", note="/")


def root(d: Decisions, file_flags: int = 0) -> list[Op]:
    """A root of the sandbox's own; file_flags: MOUNT_ATTR_* of the spec's files."""
    spec = d.spec
    path = os.fsencode(root_path(d))
    on_scratch = spec.overlay or bool(spec.files)
    place = (b"lower" if spec.overlay else b"root") if on_scratch else None
    ops = (
        open_sources(d)
        if d.root_alone
        else [propagation_op(d, "rslave" if d.slave else "rprivate")]
    )
    if d.layout is None:
        ops.append(root_tree_op(d))
    ops += become_mapped(d)  # before anything is made
    if on_scratch:
        names = [*LAYERS, b"lower"] if spec.overlay else [b"root"]
        names += [b"files"] if spec.files else []
        ops.append(scratch_op(d, "overlay" if spec.overlay else "file", names))
    if d.layout is not None:
        ops += [_root_tmpfs_op(d, place), *_host_directories(d, d.layout)]
    elif d.root_alone:
        ops.append(Op("tree_namespace", "rootfs", source=path))
    else:
        ops.append(Op("root_attach", "rootfs", source=path, target=place, note="attached"))
    if spec.overlay:
        ops.append(overlay_op(d, b"lower"))
    for one in d.own:
        ops += mount(d, one)
    layers = d.layers
    for shown in d.led_to:
        ops.append(_led_to_op(d, shown, how_made(d, shown, layers)))
        layers = (*layers, (shown, False))
    for number, destination in enumerate(spec.files):
        how = how_made(d, destination, layers) & _core.HOW_CREATE
        target = os.fsencode(destination)
        ops.append(file_op(d, number, destination, target, how, file_flags))
    ops += [op for at, op in masks(d) if not _view.lies_in(at, d.fresh)]
    if d.layout is not None or (spec.overlay and spec.read_only):
        ops.append(READ_ONLY_ROOT)
    return ops


def enter_root(d: Decisions) -> list[Op]:
    path = os.fsencode(root_path(d))
    if d.root_alone:
        return []  # it is "/" already
    if d.spec.root_mode == "chroot":
        return [Op("chroot", "chroot", source=path)]
    return [pivot_op(path, 2 if d.spec.overlay or d.spec.files else 1)]


def rootfs_alone(d: Decisions) -> list[Op]:
    """Without a mount namespace of its own it can only change its root."""
    if d.spec.rootfs is None:
        return []
    source, note = os.fsencode(root_path(d)), os.fspath(d.spec.rootfs)
    return [
        Op("root_tree", "rootfs", source=source, note=note),
        Op("chroot", "chroot", note=note),
    ]


def root_path(d: Decisions) -> str:
    return os.path.abspath(d.spec.rootfs) if d.spec.rootfs is not None else "/"


def propagation_op(d: Decisions, note: str = "") -> Op:
    return Op("propagation", "propagation", flags=MS_SLAVE if d.slave else MS_PRIVATE, note=note)


def root_tree_op(d: Decisions, read_only: bool | None = None) -> Op:
    """The tree of the rootfs. Its files keep their owners inside."""
    if read_only is None:
        read_only = d.spec.read_only and not d.spec.overlay
    root = root_path(d)
    return Op(
        "root_tree",
        "rootfs",
        _core.HOW_RECURSIVE | (_core.HOW_IDMAP if d.ids else 0),
        (ATTR_RDONLY if read_only else 0) | no_devices(d.spec),
        source=os.fsencode(root),
        note=f"{root} {'ro' if read_only else 'rw'}",
    )


def pivot_op(source: bytes, beneath: int) -> Op:
    """beneath: how many mounts, one on the other, are "/" by then."""
    return Op("pivot_root", "pivot_root", arg=beneath, source=source)


def overlay_op(d: Decisions, lower: bytes) -> Op:
    data = b"lowerdir=" + lower + b",upperdir=upper,workdir=work"
    if d.in_user_namespace:
        data += b",userxattr"  # trusted.* attributes need the initial namespace (overlayfs)
    flags = MS_NODEV if no_devices(d.spec) else 0
    note = "a throw-away layer over the root"
    return Op("overlay", "overlay", flags=flags, data=data, note=note)


# ---- a root of the host's directories ----


def _root_tmpfs_op(d: Decisions, target: bytes | None) -> Op:
    """A tmpfs with the directories that something is mounted on."""
    listed = b"".join(os.fsencode(name) + b"\0" for name in d.points)
    options = ",".join(["mode=755", *_tmpfs.limits(DEV.destination, tmpfs_size(d.spec))])
    return Op(
        "root_tmpfs",
        "rootfs",
        flags=MS_NOSUID | MS_NODEV,
        arg=len(listed),
        target=target,
        type=options.encode(),
        data=listed,
        note="a tmpfs for " + " ".join("/" + name for name in d.points),
    )


def _host_directories(d: Decisions, layout: _view.Layout) -> list[Op]:
    """The host's system directories, with all that is mounted below them, read-only. They keep the
    host's owners: a sandbox with ids of its own cannot use what is root's alone."""
    ops = []
    for path in layout.shown:
        source, flags = os.fsencode(path), ATTR_RDONLY | no_devices(d.spec)
        target, note = source.lstrip(b"/"), f"{path} ro"
        ops.append(Op("show", "rootfs", flags=flags, source=source, target=target, note=note))
    return [*ops, *(symlink_op("rootfs", path, leads_to) for path, leads_to in layout.links)]


def _led_to_op(d: Decisions, path: str, how: int) -> Op:
    """What a link in these directories leads to. Mounted late: it may lie in /run."""
    how |= _core.HOW_RECURSIVE | _core.HOW_IF_THERE
    flags, place = ATTR_RDONLY | no_devices(d.spec), os.fsencode(path)
    return Op("bind", "rootfs", how, flags, source=place, target=place, note=f"{path} ro")
