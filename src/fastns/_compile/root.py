"""Emits the ops by which the program creates, fills and enters the root.

The root is mounted on top of "/". There, the caller's paths still lead to the sources of binds:
docs/architecture/mounts.md explains the steps.
"""

from __future__ import annotations

import os
import stat

from fastns import _core, _view
from fastns._compile.decide import DEV, TYPE_AT
from fastns._compile.ops import PROC_MAGIC, SYSFS_MAGIC, Op
from fastns._compile.process import mapped_ids
from fastns._spec_values import parsed
from fastns.mount_options import (
    ATTR_NODEV,
    ATTR_NOEXEC,
    ATTR_NOSUID,
    ATTR_RDONLY,
    MS_NOATIME,
    MS_NODEV,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_SLAVE,
    MS_UNBINDABLE,
)
from fastns.spec import MASKED_PATHS, READONLY_PATHS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fastns._compile.decide import Decisions, Layers
    from fastns.spec import Mount, Spec

DEVICES = {
    **{"null": (1, 3), "zero": (1, 5), "full": (1, 7)},
    **{"random": (1, 8), "urandom": (1, 9), "tty": (5, 0)},
}
DEV_LINKS = {
    **{"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1"},
    **{"stderr": "/proc/self/fd/2", "ptmx": "pts/ptmx"},
}
MOUNTED_BELOW_DEV = ("/dev/pts", "/dev/shm")
NO_SYMLINKS_AT = ("/proc", "/sys", "/dev")  # CVE-2019-19921
PROPAGATION = {MS_SLAVE: _core.HOW_SLAVE, MS_UNBINDABLE: _core.HOW_UNBINDABLE}
MAGIC = {"proc": PROC_MAGIC, "sysfs": SYSFS_MAGIC}

# Without size=, a tmpfs may take half of the machine's memory (tmpfs(5)).
DEFAULT_SIZE = 512 << 20
SIZES = dict.fromkeys(("/run", "/dev", "/dev/shm"), 64 << 20)
BLOCK = 4096  # bytes; the unit of nr_blocks (tmpfs(5)). One inode is allowed for each block
FEWEST_FILES = 1024  # also in a small tmpfs: /dev needs some for its devices
MOST_FILES = 1 << 40  # the kernel accepts no more than 2**54
LAYERS = (b"root", b"upper", b"work")  # directories in an overlay's scratch tmpfs
READ_ONLY_ROOT = Op("read_only", "read_only", note="/")


def root(d: Decisions, file_flags: int = 0) -> Iterator[Op]:
    """Builds the sandbox's own root, but does not enter it. file_flags: MOUNT_ATTR_* for the spec's
    files."""
    spec, path = d.spec, root_path(d.spec)
    on_scratch = spec.overlay or bool(spec.files)
    place = (b"lower" if spec.overlay else b"root") if on_scratch else None
    if d.root_alone:
        yield from open_sources(d)
    else:
        flags = propagation(d)
        note = "rslave" if flags == MS_SLAVE else "rprivate"
        yield Op("propagation", "propagation", flags=flags, note=note)
    if d.layout is None:
        yield root_tree_op(d, spec.read_only and not spec.overlay)
    yield from mapped_ids(d)  # after the root was opened as the caller, before anything is created
    if on_scratch:
        names = [*LAYERS, b"lower"] if spec.overlay else [b"root"]
        names += [b"files"] if spec.files else []
        yield scratch_op(d, "overlay" if spec.overlay else "file", names, None, "scratch tmpfs")
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
        yield from mounted(d, mount)
    layers = d.layers
    for shown in d.led_to:  # after the mounts: a target may be in /run
        yield _led_to_op(d, shown, how_made(d, shown, layers))
        layers = (*layers, (shown, False))
    for number, destination in enumerate(spec.files):
        how = how_made(d, destination, layers)
        target = os.fsencode(destination)
        yield file_op(d, number, destination, target, how, file_flags)
    for at, op in masks(d):
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
    """Without a new mount namespace: makes the rootfs "/" by chroot, if there is one."""
    if d.spec.rootfs is not None:
        note = os.fspath(d.spec.rootfs)
        yield Op("root_tree", "rootfs", source=root_path(d.spec), note=note)
        yield Op("chroot", "chroot", note=note)


def root_path(spec: Spec) -> bytes:
    return os.fsencode(os.path.abspath(spec.rootfs) if spec.rootfs is not None else "/")


def propagation(d: Decisions) -> int:
    """Mounts made inside never propagate to the host. Later mounts of the host appear inside only
    if a mount has rslave."""
    slave = any(parsed(mount).propagation == MS_SLAVE for mount in d.mounts)
    return MS_SLAVE if slave else MS_PRIVATE


def root_tree_op(d: Decisions, read_only: bool) -> Op:
    """The tree of the rootfs. Inside, its files keep their owners."""
    source = root_path(d.spec)
    how = _core.HOW_RECURSIVE | (_core.HOW_IDMAP if d.ids else 0)
    flags = (ATTR_RDONLY if read_only else 0) | no_devices(d.spec)
    note = f"{os.fsdecode(source)} {'ro' if read_only else 'rw'}"
    return Op("root_tree", "rootfs", how, flags, source=source, note=note)


def pivot_op(source: bytes, beneath: int) -> Op:
    """beneath: the number of mounts that are stacked on "/" at this point."""
    return Op("pivot_root", "pivot_root", arg=beneath, source=source)


def overlay_op(d: Decisions, lower: bytes) -> Op:
    data = b"lowerdir=" + lower + b",upperdir=upper,workdir=work"
    if d.in_user_namespace:
        data += b",userxattr"  # the usual trusted.* attributes need the initial user namespace
    flags = MS_NODEV if no_devices(d.spec) else 0
    flags |= MS_NOATIME if d.serves_again else 0
    note = "a throw-away layer over the root"
    return Op("overlay", "overlay", flags=flags, data=data, note=note)


# ---- a root of the host's directories ----


def _root_tmpfs_op(d: Decisions, target: bytes | None) -> Op:
    """A tmpfs with the mount points."""
    listed = b"".join(os.fsencode(name) + b"\0" for name in d.points)
    options = ",".join(["mode=755", *tmpfs_limits(d.spec, DEV.destination)]).encode()
    flags, note = MS_NOSUID | MS_NODEV, "a tmpfs for " + " ".join("/" + name for name in d.points)
    return Op("root_tmpfs", "rootfs", 0, flags, len(listed), None, target, options, listed, note)


def _host_directories(d: Decisions, layout: _view.Layout) -> Iterator[Op]:
    """The host's system directories with all mounts below them, read-only. They are not idmapped:
    a sandbox with ids of its own cannot read what only root may read."""
    flags = ATTR_RDONLY | no_devices(d.spec)
    for path in layout.shown:
        source, note = os.fsencode(path), f"{path} ro"
        target = source.lstrip(b"/")
        if d.serves_again:
            yield _layer_op(d, source, target, f"{note}, as a layer")
        else:
            yield Op("show", "rootfs", flags=flags, source=source, target=target, note=note)
    for path, leads_to in layout.links:
        yield symlink_op("rootfs", path, leads_to)


def _layer_op(d: Decisions, source: bytes, target: bytes, note: str) -> Op:
    """A directory of the host as an overlay without an upper layer: nobody listens at its sockets,
    so a sandbox that serves again cannot pass an fd to the host. An overlay of that kind needs
    a second layer, so it gets a directory that is empty."""
    data = b"lowerdir=%s:proc%s" % (source, b",userxattr" if d.in_user_namespace else b"")
    flags = MS_RDONLY | MS_NOATIME | (MS_NODEV if no_devices(d.spec) else 0)
    return Op("mount", "rootfs", 0, flags, 0, b"overlay", target, b"overlay", data, note)


def _led_to_op(d: Decisions, path: str, how: int) -> Op:
    """Binds the target of a link that leads out of the host's directories."""
    how |= _core.HOW_RECURSIVE | _core.HOW_IF_THERE
    flags, place = ATTR_RDONLY | no_devices(d.spec), os.fsencode(path)
    return Op("bind", "rootfs", how, flags, source=place, target=place, note=f"{path} ro")


# ---- mounts and devices ----


def mounted(d: Decisions, mount: Mount) -> Iterator[Op]:
    """A mount at its destination. The default /dev also gets its devices."""
    if mount is not DEV:
        yield mount_op(d, mount)
        return
    if d.layout is None:
        yield mount_op(d, DEV)
    else:  # a directory of the root's tmpfs: it takes half the time of another tmpfs
        note = f"/dev tmpfs {','.join(DEV.options)}, of the root"
        flags = ATTR_NOSUID | ATTR_NOEXEC
        yield Op("show", "mount", d.owned, flags, ATTR_NODEV, b"dev", b"dev", note=note)
    yield from _devices(d)


def mount_op(d: Decisions, mount: Mount, place: bytes | None = None) -> Op:
    """A mount at its destination, or at `place`, which is created for it."""
    how = _how_to(mount)
    if place is not None:
        how |= _core.HOW_CREATE | d.owned
    else:
        how |= how_made(d, mount.destination, d.layers)
        how |= _core.HOW_CREATE if parsed(mount).mkdir else 0
    target = place or os.fsencode(mount.destination)
    return (_bind_op if mount.type == "bind" else _fs_op)(d, mount, how, target)


def _fs_op(d: Decisions, mount: Mount, how: int, target: bytes) -> Op:
    options = parsed(mount)
    if mount.destination.lstrip("/") in d.points:
        target = target.lstrip(b"/")  # relative to the root's tmpfs
    more = []
    if mount.type == "tmpfs":
        more = tmpfs_limits(d.spec, mount.destination, options.data)
    data = os.fsencode(",".join(filter(None, (_owners(d, mount), *more)))) or None
    no_devices = mount.type == "overlay" and not options.attr_clr & ATTR_NODEV
    flags = options.ms_flags | (MS_NODEV if no_devices else 0)
    source, kind, note = os.fsencode(mount.source or mount.type), mount.type, _note(mount, more)
    return Op("mount", "mount", how, flags, 0, source, target, kind.encode(), data, note)


def _bind_op(d: Decisions, mount: Mount, how: int, target: bytes) -> Op:
    options = parsed(mount)
    cleared = options.attr_clr
    has_devices = bool(cleared & ATTR_NODEV)  # the option "dev"
    if options.recursive:
        how |= _core.HOW_RECURSIVE
        if d.in_user_namespace:
            cleared &= ~ATTR_NODEV  # locked on the mounts below, so it cannot be cleared there
    how |= how_of_bind(mount) | (_core.HOW_AHEAD if d.root_alone else 0)
    for destination, _, _, optional, plain in d.binds:
        if destination == mount.destination and not plain:
            how |= _core.HOW_IDMAP | (_core.HOW_OPTIONAL if optional else 0)
    flags = options.attr_set | (0 if has_devices else ATTR_NODEV)
    source = os.fsencode(mount.source or "")
    return Op("bind", "mount", how, flags, cleared, source, target, note=_note(mount))


def how_made(d: Decisions, destination: str, layers: Layers) -> int:
    """HOW_* of a target: a missing target is created only where it disappears with the sandbox."""
    within = destination.startswith
    above = [(len(path), gone) for path, gone in layers if within(path.rstrip("/") + "/")]
    return _core.HOW_CREATE | d.owned if max(above)[1] else 0


def _how_to(mount: Mount) -> int:
    strict = mount.type in MAGIC or mount.destination in NO_SYMLINKS_AT
    return _core.HOW_NO_SYMLINKS if strict else 0


def how_of_bind(mount: Mount) -> int:
    """HOW_* of a bind that also apply when the bind is itself bound elsewhere."""
    return _how_to(mount) | PROPAGATION.get(parsed(mount).propagation, 0)


def _note(mount: Mount, more: Sequence[str] = ()) -> str:
    origin = f" from {mount.source}" if mount.type == "bind" else ""
    options = ",".join([*mount.options, *more])
    return f"{mount.destination} {mount.type}{origin}{' ' if options else ''}{options}"


def _owners(d: Decisions, mount: Mount) -> str:
    """The options for the file system. Ids in them become ids outside, because the kernel reads
    them in the caller's user namespace."""
    data = parsed(mount).data
    if d.ids is None or mount.type not in ("tmpfs", "devpts", "proc"):
        return data
    options = [option for option in data.split(",") if option]
    for i, name in enumerate(("uid", "gid")):
        given = [option for option in options if option.startswith(f"{name}=")]
        if given or mount.type == "tmpfs":
            inside = int(given[0].partition("=")[2]) if given else 0
            options = [option for option in options if option not in given]
            options.append(f"{name}={d.ids[i] + inside}")
    return ",".join(options)


def open_sources(d: Decisions) -> Iterator[Op]:
    """Opens the sources of binds while the caller's paths can still be resolved."""
    for mount in d.mounts:
        if mount.type == "bind":
            how = _core.HOW_RECURSIVE if parsed(mount).recursive else 0
            source = os.fsencode(os.path.abspath(mount.source or ""))
            yield Op("bind_source", "mount", how, source=source, note=str(mount.source))


def no_devices(spec: Spec) -> int:
    """ATTR_NODEV for a root, which may contain the host's disks, if there is a default /dev."""
    return ATTR_NODEV if spec.default_mounts else 0


def _devices(d: Decisions) -> Iterator[Op]:
    for name, (major, minor) in DEVICES.items():
        path = f"/dev/{name}".encode()
        if d.makes_nodes:
            mode, number = stat.S_IFCHR | 0o666, os.makedev(major, minor)
            note = f"/dev/{name} {major}:{minor}"
            yield Op("device", "device", flags=mode, arg=number, target=path, note=note)
        else:  # read-only: nobody inside can change the host's mode, but the device is writable
            flags = ATTR_RDONLY | ATTR_NOSUID | ATTR_NOEXEC
            how, note = _core.HOW_CREATE, f"/dev/{name} bound"
            yield Op("bind", "device", how, flags, source=path, target=path, note=note)
    for place in MOUNTED_BELOW_DEV:
        target = place.encode()
        yield Op("directory", "directory", d.owned, arg=0o755, target=target, note=place)
    for name, leads_to in DEV_LINKS.items():
        yield symlink_op("symlink", f"/dev/{name}", leads_to)


def symlink_op(stage: str, path: str, leads_to: str) -> Op:
    source, target = os.fsencode(leads_to), os.fsencode(path)
    return Op("symlink", stage, source=source, target=target, note=f"{path} -> {leads_to}")


# ---- limits of a tmpfs: bytes, and files, each of which takes memory too ----


def tmpfs_limits(spec: Spec, destination: str, given: str = "") -> list[str]:
    """The options `size` and `nr_inodes` of a tmpfs at `destination`, except those given."""
    options = dict(option.partition("=")[::2] for option in given.split(",") if option)
    more = []
    if "size" in options:
        size = _bytes(options["size"])
    elif "nr_blocks" in options:
        size = _bytes(options["nr_blocks"]) * BLOCK
    else:
        size = int(spec.tmpfs_size or SIZES.get(destination, DEFAULT_SIZE))
        more.append(f"size={size}")
    if size and "nr_inodes" not in options:  # size=0: the spec asks for no limit
        more.append(f"nr_inodes={_files_in(size)}")
    return more


def _files_in(size: int) -> int:
    return min(max(size // BLOCK, FEWEST_FILES), MOST_FILES)


def _bytes(text: str) -> int:
    """A size as the kernel reads it: with a unit, or in percent of the memory."""
    from fastns.limits import UNITS  # most specs give no size

    if text.endswith("%"):
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return memory * int(text[:-1]) // 100
    unit = text[-1].lower()
    return int(text[:-1]) * UNITS[unit] if unit.isalpha() else int(text)


def scratch_op(
    d: Decisions, stage: str, names: Sequence[bytes], target: bytes | None, note: str
) -> Op:
    """A tmpfs with directories of these names. The spec's files add to its size."""
    files = [len(content(d.spec, destination)) for destination in d.spec.files]
    size = int(d.spec.tmpfs_size or DEFAULT_SIZE) + sum(-(-n // BLOCK) * BLOCK for n in files)
    inodes = _files_in(size) + len(files)
    listed = b"".join(name + b"\0" for name in names)
    options = b"mode=755,size=%d,nr_inodes=%d" % (size, inodes)
    note = f"{note} size={size},nr_inodes={inodes}"
    return Op("scratch", stage, d.owned, 0, len(listed), None, target, options, listed, note)


# ---- files and masks ----


def content(spec: Spec, destination: str) -> bytes:
    given = spec.files[destination]
    return given if isinstance(given, bytes) else given.encode()


def file_op(
    d: Decisions, number: int, destination: str, target: bytes, how: int, flags: int = 0
) -> Op:
    """The spec's file with this number, bound from the scratch tmpfs; flags: MOUNT_ATTR_*."""
    data, source = content(d.spec, destination), b"%d" % number
    how, size, note = how | d.owned, len(data), f"{destination} ({len(data)} bytes)"
    return Op("file_bind", "file", how, flags, size, source, target, None, data, note)


def masks(d: Decisions, empty: bytes | None = None) -> Iterator[tuple[str, Op]]:
    """The ops that hide paths or make them read-only, each as (first of its paths, op).

    For either purpose, one op covers all paths below /proc and one all paths below /sys. Each other
    path has an op of its own. empty: a directory of the root that is shown in place of those that
    are hidden; None: a tmpfs.
    """
    defaults = (MASKED_PATHS, READONLY_PATHS) if d.spec.default_mounts else ((), ())
    masked, read_only = d.spec.masked_paths, d.spec.readonly_paths
    given = (
        ("mask", "masked_paths", defaults[0] if masked is None else masked),
        ("read_only_paths", "readonly_paths", defaults[1] if read_only is None else read_only),
    )
    for base in TYPE_AT:
        for code, stage, paths in given:
            below = [path for path in paths if path.startswith(base + "/")]
            if below:
                source = empty if code == "mask" else None
                yield below[0], _mask_op(code, stage, base, below, _magic_at(d, base), source)
    for code, stage, paths in given:
        for path in paths:
            if path.split("/")[1] not in ("proc", "sys"):
                yield path, _mask_op(code, stage, "/", [path], 0)


def _magic_at(d: Decisions, place: str) -> int:
    """The type of file system expected at `place`, as statfs(2) reports it; 0: any."""
    there = {mount.destination: mount for mount in d.mounts}.get(place)
    if there is None:
        return 0
    hosts = there.type == "bind" and there.source == place
    return MAGIC.get(TYPE_AT[place] if hosts else there.type, 0)


def _mask_op(
    code: str, stage: str, base: str, paths: Sequence[str], magic: int, source: bytes | None = None
) -> Op:
    names = b"".join(os.fsencode(path[len(base) :].lstrip("/")) + b"\0" for path in paths)
    how, target, note = _core.HOW_NO_SYMLINKS, base.encode(), " ".join(paths)
    return Op(code, stage, how, magic, len(names), source, target, data=names, note=note)
