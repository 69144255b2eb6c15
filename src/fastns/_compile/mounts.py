"""Ops for what is in the root: mounts, devices, injected files, masks, the scratch tmpfs."""

from __future__ import annotations

import os
import stat

from fastns import _core, _tmpfs
from fastns._compile.contents import DEV, TYPE_AT, is_throw_away, parsed
from fastns._compile.ops import PROC_MAGIC, SYSFS_MAGIC, Op
from fastns.mount_options import (
    ATTR_NODEV,
    ATTR_NOEXEC,
    ATTR_NOSUID,
    ATTR_RDONLY,
    MS_NODEV,
    MS_SLAVE,
    MS_UNBINDABLE,
)
from fastns.spec import MASKED_PATHS, READONLY_PATHS, Mount, Spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fastns._compile.contents import Layers
    from fastns._compile.decide import Decisions

DEVICES = {
    "null": (1, 3),
    "zero": (1, 5),
    "full": (1, 7),
    "random": (1, 8),
    "urandom": (1, 9),
    "tty": (5, 0),
}
DEV_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}
MOUNTED_BELOW_DEV = ("/dev/pts", "/dev/shm")
NO_SYMLINKS_AT = ("/proc", "/sys", "/dev")  # CVE-2019-19921
PROPAGATION = {MS_SLAVE: _core.HOW_SLAVE, MS_UNBINDABLE: _core.HOW_UNBINDABLE}


def mount(d: Decisions, mount: Mount) -> list[Op]:
    """A mount at its place, and what a /dev of our own is filled with."""
    if mount is not DEV:
        return [mount_op(d, mount)]
    return [_dev_op(d) if d.layout else mount_op(d, DEV), *_devices(d)]


def mount_op(d: Decisions, mount: Mount, place: bytes | None = None) -> Op:
    """A mount at its destination, or at a `place` that is made for it."""
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
        target = target.lstrip(b"/")  # relative: of the root's tmpfs
    more = []
    if mount.type == "tmpfs":
        more = _tmpfs.limits(mount.destination, tmpfs_size(d.spec), options.data)
    data = ",".join([option for option in (_owners(d, mount), *more) if option])
    no_devices = mount.type == "overlay" and not options.attr_clr & ATTR_NODEV
    return Op(
        "mount",
        "mount",
        how,
        options.ms_flags | (MS_NODEV if no_devices else 0),
        0,
        os.fsencode(mount.source or mount.type),
        target,
        mount.type.encode(),
        os.fsencode(data) or None,
        _note(mount, more),
    )


def _bind_op(d: Decisions, mount: Mount, how: int, target: bytes) -> Op:
    assert mount.source is not None  # Mount's own check
    options = parsed(mount)
    cleared = options.attr_clr
    has_devices = bool(cleared & ATTR_NODEV)  # "dev" was given
    if options.recursive:
        how |= _core.HOW_RECURSIVE
        if d.in_user_namespace:
            cleared &= ~ATTR_NODEV  # nodev of a mount below is locked there
    how |= how_of_bind(mount) | (_core.HOW_AHEAD if d.root_alone else 0)
    how |= next((bind[2] for bind in d.binds if bind[0] == mount.destination), 0)
    return Op(
        "bind",
        "mount",
        how,
        options.attr_set | (0 if has_devices else ATTR_NODEV),
        cleared,
        os.fsencode(mount.source),
        target,
        note=_note(mount),
    )


def _how_to(mount: Mount) -> int:
    strict = mount.type in TYPE_AT.values() or mount.destination in NO_SYMLINKS_AT
    return _core.HOW_NO_SYMLINKS if strict else 0


def how_of_bind(mount: Mount) -> int:
    """HOW_* that stays with a bind when it is bound once more."""
    return _how_to(mount) | PROPAGATION.get(parsed(mount).propagation, 0)


def how_made(d: Decisions, destination: str, layers: Layers) -> int:
    """HOW_* of a target: a missing one is made where it is gone with the sandbox."""
    return _core.HOW_CREATE | d.owned if is_throw_away(destination, layers) else 0


def _note(mount: Mount, more: Sequence[str] = ()) -> str:
    origin = f" from {mount.source}" if mount.type == "bind" else ""
    options = ",".join([*mount.options, *more])
    return f"{mount.destination} {mount.type}{origin}{' ' if options else ''}{options}"


def _owners(d: Decisions, mount: Mount) -> str:
    """The options for the file system. Ids in them are those of who mounts it: the caller's."""
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


def no_devices(spec: Spec) -> int:
    """Attributes of a root with a /dev of its own: whoever made the root may have put the host's
    disks in it."""
    return ATTR_NODEV if spec.default_mounts else 0


def open_sources(d: Decisions) -> list[Op]:
    """The sources of binds, which are out of reach once the caller's view is left."""
    return [
        Op(
            "bind_source",
            "mount",
            _core.HOW_RECURSIVE if parsed(mount).recursive else 0,
            source=os.fsencode(os.path.abspath(mount.source or "")),
            note=str(mount.source),
        )
        for mount in d.mounts
        if mount.type == "bind"
    ]


# ---- /dev ----


def _dev_op(d: Decisions) -> Op:
    """/dev as a directory of the root's tmpfs: another tmpfs would take twice as long."""
    note = f"/dev tmpfs {','.join(DEV.options)}, of the root"
    flags = ATTR_NOSUID | ATTR_NOEXEC
    return Op("show", "mount", d.owned, flags, ATTR_NODEV, b"dev", b"dev", note=note)


def _devices(d: Decisions) -> Iterator[Op]:
    """Where devices cannot be made they are bound, read-only: they can be written to, but their
    modes, which are the host's, cannot be changed."""
    for name, (major, minor) in DEVICES.items():
        path = f"/dev/{name}".encode()
        if d.makes_nodes:
            mode, number = stat.S_IFCHR | 0o666, os.makedev(major, minor)
            note = f"/dev/{name} {major}:{minor}"
            yield Op("device", "device", flags=mode, arg=number, target=path, note=note)
        else:
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


# ---- the scratch tmpfs and files ----


def tmpfs_size(spec: Spec) -> int | None:
    return int(spec.tmpfs_size) if spec.tmpfs_size is not None else None


def scratch_op(
    d: Decisions,
    stage: str,
    names: Sequence[bytes],
    target: bytes | None = None,
    note: str = "scratch tmpfs",
) -> Op:
    """A tmpfs with directories of these names. Its size counts the spec's files on top of what may
    be written."""
    files = [len(_content(content)) for content in d.spec.files.values()]
    size = (tmpfs_size(d.spec) or _tmpfs.DEFAULT_SIZE) + _tmpfs.room_for(files)
    inodes = _tmpfs.files_in(size) + len(files)
    listed = b"".join(name + b"\0" for name in names)
    return Op(
        "scratch",
        stage,
        d.owned,
        arg=len(listed),
        target=target,
        type=b"mode=755,size=%d,nr_inodes=%d" % (size, inodes),
        data=listed,
        note=f"{note} size={size},nr_inodes={inodes}",
    )


def file_op(
    d: Decisions, number: int, destination: str, target: bytes, how: int, flags: int = 0
) -> Op:
    """The spec's file with this number, bound from the scratch; flags: MOUNT_ATTR_*."""
    data = _content(d.spec.files[destination])
    return Op(
        "file_bind",
        "file",
        how | d.owned,
        flags,
        len(data),
        b"%d" % number,
        target,
        data=data,
        note=f"{destination} ({len(data)} bytes)",
    )


def _content(content: str | bytes) -> bytes:
    return content if isinstance(content, bytes) else content.encode()


# ---- masks ----


def masks(d: Decisions) -> list[tuple[str, Op]]:
    """The ops that hide paths or make them read-only, each with the first of its paths.

    Names below /proc and /sys are looked up in what is mounted there, all in one op. The other
    paths are the spec's own.
    """
    spec = d.spec
    given: list[tuple[str, str, Sequence[str]]] = []
    for code, stage, wanted, default in (
        ("mask", "masked_paths", spec.masked_paths, MASKED_PATHS),
        ("read_only_paths", "readonly_paths", spec.readonly_paths, READONLY_PATHS),
    ):
        standard = default if spec.default_mounts else ()
        given.append((code, stage, standard if wanted is None else wanted))
    found = []
    for base in TYPE_AT:
        for code, stage, paths in given:
            below = [path for path in paths if path.startswith(base + "/")]
            if below:
                found.append((below[0], _mask_op(code, stage, base, below, _magic_at(d, base))))
    for code, stage, paths in given:
        for path in paths:
            if path.split("/")[1] not in ("proc", "sys"):
                found.append((path, _mask_op(code, stage, "/", [path], 0)))
    return found


def _magic_at(d: Decisions, place: str) -> int:
    """The type of file system that has to be there, as statfs(2) has it; 0: any."""
    magic = {"proc": PROC_MAGIC, "sysfs": SYSFS_MAGIC}
    for mount in d.mounts:
        if mount.destination == place:
            hosts = mount.type == "bind" and mount.source == place
            return magic.get(TYPE_AT[place] if hosts else mount.type, 0)
    return 0


def _mask_op(code: str, stage: str, base: str, paths: Sequence[str], magic: int) -> Op:
    names = b"".join(os.fsencode(path[len(base) :].lstrip("/")) + b"\0" for path in paths)
    how, target = _core.HOW_NO_SYMLINKS, base.encode()
    note = " ".join(paths)
    return Op(code, stage, how, magic, len(names), target=target, data=names, note=note)
