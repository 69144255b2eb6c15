"""Ops for the root: how its tree is made, filled and entered.

It is made on top of "/", where the caller's paths still lead to the sources of binds;
docs/architecture/mounts.md has the steps.
"""

from __future__ import annotations

import os

from fastns import _core, _view
from fastns._compile import mounts
from fastns._compile.decide import DEV, parsed
from fastns._compile.ops import Op
from fastns._compile.process import mapped_ids
from fastns.mount_options import ATTR_RDONLY, MS_NODEV, MS_NOSUID, MS_PRIVATE, MS_SLAVE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastns._compile.decide import Decisions
    from fastns.spec import Spec

LAYERS = (b"root", b"upper", b"work")  # directories of an overlay's scratch
READ_ONLY_ROOT = Op("read_only", "read_only", note="/")


def root(d: Decisions, file_flags: int = 0) -> Iterator[Op]:
    """A root of the sandbox's own, until it is entered; file_flags: MOUNT_ATTR_* of its files."""
    spec, path = d.spec, root_path(d.spec)
    on_scratch = spec.overlay or bool(spec.files)
    place = (b"lower" if spec.overlay else b"root") if on_scratch else None
    if d.root_alone:
        yield from mounts.open_sources(d)
    else:
        flags = propagation(d)
        note = "rslave" if flags == MS_SLAVE else "rprivate"
        yield Op("propagation", "propagation", flags=flags, note=note)
    if d.layout is None:
        yield root_tree_op(d, spec.read_only and not spec.overlay)
    yield from mapped_ids(d)  # the way to the root was the caller's; from here on, things are made
    if on_scratch:
        names = [*LAYERS, b"lower"] if spec.overlay else [b"root"]
        names += [b"files"] if spec.files else []
        yield mounts.scratch_op(d, "overlay" if spec.overlay else "file", names)
    if d.layout is not None:
        yield _root_tmpfs_op(d, place)
        yield from _host_directories(d, d.layout)
    elif d.root_alone:
        yield Op("tree_namespace", "rootfs", source=path)
    else:
        yield Op("root_attach", "rootfs", source=path, target=place, note="attached")
    if spec.overlay:
        yield overlay_op(d, b"lower")
    for mount in d.own:
        yield from mounts.mounted(d, mount)
    layers = d.layers
    for shown in d.led_to:  # late: it may lie in /run
        yield _led_to_op(d, shown, mounts.how_made(d, shown, layers))
        layers = (*layers, (shown, False))
    for number, destination in enumerate(spec.files):
        how = mounts.how_made(d, destination, layers)
        target = os.fsencode(destination)
        yield mounts.file_op(d, number, destination, target, how, file_flags)
    for at, op in mounts.masks(d):
        if not _view.lies_in(at, d.fresh):
            yield op
    if d.layout is not None or (spec.overlay and spec.read_only):
        yield READ_ONLY_ROOT


def enter_root(d: Decisions) -> Iterator[Op]:
    spec, path = d.spec, root_path(d.spec)
    if d.root_alone:
        return  # it is "/" already
    if spec.root_mode == "chroot":
        yield Op("chroot", "chroot", source=path)
    else:
        yield pivot_op(path, 2 if spec.overlay or spec.files else 1)


def other_root(d: Decisions) -> Iterator[Op]:
    """Without a mount namespace of its own: only another directory is "/"."""
    if d.spec.rootfs is not None:
        note = os.fspath(d.spec.rootfs)
        yield Op("root_tree", "rootfs", source=root_path(d.spec), note=note)
        yield Op("chroot", "chroot", note=note)


def root_path(spec: Spec) -> bytes:
    return os.fsencode(os.path.abspath(spec.rootfs) if spec.rootfs is not None else "/")


def propagation(d: Decisions) -> int:
    """Nothing made here gets out; what the host mounts later is seen if a mount asks for it."""
    slave = any(parsed(mount).propagation == MS_SLAVE for mount in d.mounts)
    return MS_SLAVE if slave else MS_PRIVATE


def root_tree_op(d: Decisions, read_only: bool) -> Op:
    """The tree of the rootfs. Its files keep their owners inside."""
    source = root_path(d.spec)
    how = _core.HOW_RECURSIVE | (_core.HOW_IDMAP if d.ids else 0)
    flags = (ATTR_RDONLY if read_only else 0) | mounts.no_devices(d.spec)
    note = f"{os.fsdecode(source)} {'ro' if read_only else 'rw'}"
    return Op("root_tree", "rootfs", how, flags, source=source, note=note)


def pivot_op(source: bytes, beneath: int) -> Op:
    """beneath: how many mounts, one on the other, are "/" by then."""
    return Op("pivot_root", "pivot_root", arg=beneath, source=source)


def overlay_op(d: Decisions, lower: bytes) -> Op:
    data = b"lowerdir=" + lower + b",upperdir=upper,workdir=work"
    if d.in_user_namespace:
        data += b",userxattr"  # trusted.* attributes need the initial namespace (overlayfs)
    flags = MS_NODEV if mounts.no_devices(d.spec) else 0
    note = "a throw-away layer over the root"
    return Op("overlay", "overlay", flags=flags, data=data, note=note)


# ---- a root of the host's directories ----


def _root_tmpfs_op(d: Decisions, target: bytes | None) -> Op:
    """A tmpfs with the directories that something is mounted on."""
    listed = b"".join(os.fsencode(name) + b"\0" for name in d.points)
    options = ",".join(["mode=755", *mounts.tmpfs_limits(d.spec, DEV.destination)]).encode()
    flags, note = MS_NOSUID | MS_NODEV, "a tmpfs for " + " ".join("/" + name for name in d.points)
    return Op("root_tmpfs", "rootfs", 0, flags, len(listed), None, target, options, listed, note)


def _host_directories(d: Decisions, layout: _view.Layout) -> Iterator[Op]:
    """The host's system directories, with all that is mounted below them, read-only. They keep the
    host's owners: a sandbox with ids of its own cannot use what is root's alone."""
    flags = ATTR_RDONLY | mounts.no_devices(d.spec)
    for path in layout.shown:
        source, note = os.fsencode(path), f"{path} ro"
        target = source.lstrip(b"/")
        yield Op("show", "rootfs", flags=flags, source=source, target=target, note=note)
    for path, leads_to in layout.links:
        yield mounts.symlink_op("rootfs", path, leads_to)


def _led_to_op(d: Decisions, path: str, how: int) -> Op:
    """What a link in these directories leads to."""
    how |= _core.HOW_RECURSIVE | _core.HOW_IF_THERE
    flags, place = ATTR_RDONLY | mounts.no_devices(d.spec), os.fsencode(path)
    return Op("bind", "rootfs", how, flags, source=place, target=place, note=f"{path} ro")
