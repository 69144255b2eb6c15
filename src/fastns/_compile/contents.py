"""What is mounted in a root: the default mounts, which of them a spec replaces, and how the mounts
depend on each other. Part of decide()."""

from __future__ import annotations

import os

from fastns import _core, _view, mount_options
from fastns._cache import cached
from fastns.spec import Mount, Spec, directories_above

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Layers = tuple[tuple[str, bool], ...]  # destination, and whether it is gone with the sandbox
    Bind = tuple[str, str, int, str]  # destination, source, HOW_*, why it is plain ("": it is not)

DEV = Mount("/dev", type="tmpfs", source="tmpfs", options=["nosuid", "noexec", "mode=755"])
"""The default /dev, which is filled with devices."""
DEFAULT_MOUNTS = (
    Mount("/proc", type="proc", source="proc", options=["nosuid", "nodev", "noexec"]),
    Mount("/sys", type="sysfs", source="sysfs", options=["ro", "nosuid", "nodev", "noexec"]),
    Mount("/tmp", type="tmpfs", source="tmpfs", options=["nosuid", "nodev", "mode=1777"]),
    Mount("/run", type="tmpfs", source="tmpfs", options=["nosuid", "nodev", "mode=755"]),
    DEV,
    Mount(
        "/dev/pts",
        type="devpts",
        source="devpts",
        options=["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "max=64"],
    ),
    Mount("/dev/shm", type="tmpfs", source="shm", options=["nosuid", "nodev", "mode=1777"]),
)
TYPE_AT = {"/proc": "proc", "/sys": "sysfs"}
HOME = "/root"  # of uid 0, in DEFAULT_ENV


def parsed(mount: Mount) -> mount_options.ParsedOptions:
    return _parsed(mount.type, tuple(mount.options))


_parsed = cached(512)(mount_options.parse)


def mounts(
    spec: Spec, kinds: Mapping[str, str], in_user_namespace: bool, hosts_root: bool
) -> tuple[Mount, ...]:
    """The default mounts that the spec does not replace, then those of the spec in their order.

    hosts_root: whether a uid inside may be the host's uid 0.
    """
    replaced = [mount.destination for mount in spec.mounts]
    kept = [
        _of_host(mount, kinds, in_user_namespace)
        for mount in (DEFAULT_MOUNTS if spec.default_mounts else ())
        if not _view.lies_in(mount.destination, replaced)
    ]
    every = (*kept, *spec.mounts)
    return tuple([_closed(mount) for mount in every]) if hosts_root else every


def _of_host(mount: Mount, kinds: Mapping[str, str], in_user_namespace: bool) -> Mount:
    """/proc and /sys show the pid and the network namespace of who mounts them. The kernel refuses
    a fresh one of the host's to a user namespace, and on top of itself, so the host's is bound."""
    owner = {"/proc": "pid", "/sys": "network"}.get(mount.destination)
    if owner is None or kinds[owner] != "host":
        return mount
    # A user namespace may not uncover what lies below a directory: all of it or nothing.
    bind = "rbind" if in_user_namespace else "bind"
    options = [bind, *mount.options]
    return Mount(mount.destination, source=mount.destination, options=options)


def _closed(mount: Mount) -> Mount:
    """Makes /proc and /sys read-only where a uid inside may own their files, whose modes are the
    same in every instance on the machine. "rw" in the spec overrides this."""
    hosts = mount.type == "bind" and mount.source in TYPE_AT
    if not (hosts or mount.type in TYPE_AT.values()) or {"ro", "rw"} & {*mount.options}:
        return mount
    options = [*mount.options, "ro"]
    return Mount(mount.destination, type=mount.type, source=mount.source, options=options)


def led_to(spec: Spec, layout: _view.Layout | None) -> tuple[str, ...]:
    """Where links in the host's directories lead, as far as the spec mounts nothing there."""
    if layout is None:
        return ()
    given = [mount.destination for mount in spec.mounts]
    found = _view.led_to(layout.shown, resolver=shows_resolver(spec))
    return tuple([path for path in found if not _view.lies_in(path, given)])


def shows_resolver(spec: Spec) -> bool:
    return spec.namespace("network") != "new"


def points(layout: _view.Layout | None, mounts: Sequence[Mount]) -> tuple[str, ...]:
    """The directories that a root of the host's directories needs for what is mounted on it."""
    if layout is None:
        return ()
    shown = [*layout.shown, *(path for path, _ in layout.links)]
    places = [*layout.shown, HOME]
    for mount in mounts:
        if mount.type != "bind" and not _view.lies_in(mount.destination, shown):
            places.append(mount.destination)
            shown.append(mount.destination)
    paths = (path for place in places for path in (*directories_above(place), place))
    return tuple(dict.fromkeys(path.lstrip("/") for path in paths))


def layers(spec: Spec, layout: _view.Layout | None, mounts: Sequence[Mount]) -> Layers:
    """Each file system of the sandbox: where it is, and whether it is gone with the sandbox."""
    links = layout.links if layout else ()
    shown = (*(layout.shown if layout else ()), *(path for path, _ in links))
    return (
        ("/", spec.overlay or layout is not None),
        *((path, False) for path in shown),
        *((mount.destination, mount.type == "tmpfs") for mount in mounts),
    )


def is_throw_away(destination: str, layers: Layers) -> bool:
    """Whether the file system that a path is to be made in is gone with the sandbox."""
    above = [
        (len(path), gone)
        for path, gone in layers
        if path == "/" or destination.startswith(path + "/")
    ]
    return max(above)[1]


# ---- owners ----


def binds(spec: Spec) -> tuple[Bind, ...]:
    """Binds of the spec keep their owners: where the kernel can, or with the option idmap else
    fail. Other binds show the host, where root's files stay out of reach."""
    found = []
    for number, mount in enumerate(spec.mounts):
        if mount.type != "bind":
            continue
        options = parsed(mount)
        how, why = _core.HOW_IDMAP, ""
        if options.idmap is False:
            why = "it has noidmap"
        elif options.idmap is None:
            how |= _core.HOW_OPTIONAL
            made = _made_in(mount, spec.mounts[number + 1 :])
            why = f"{made} is made in it" if made else ""
        how = (0 if why else how) | (_core.HOW_RECURSIVE if options.recursive else 0)
        found.append((mount.destination, os.fspath(mount.source or ""), how, why))
    return tuple(found)


def _made_in(bind: Mount, later: Sequence[Mount]) -> str | None:
    """A missing target that a later mount makes in this bind; None: there is none. The caller
    makes it, and cannot make anything in an idmapped tree."""
    below = [mount for mount in later if _is_below(mount, bind)]
    for i, mount in enumerate(below):
        if parsed(mount).mkdir and not any(_is_below(mount, one) for one in below[:i]):
            return mount.destination
    return None


def _is_below(mount: Mount, other: Mount) -> bool:
    return mount.destination.startswith(other.destination + "/")
