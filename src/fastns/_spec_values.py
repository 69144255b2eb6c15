"""The values that a Spec is made of: mounts, ranges of ids, resource limits, frozen mappings."""

from __future__ import annotations

import os
from _collections_abc import Iterable, Iterator, Mapping, Sequence

from fastns import mount_options
from fastns._args import (
    MAX_ID,
    check_inside,
    check_list,
    check_one_of,
    check_path,
    check_whole,
    shown,
    wrong,
)
from fastns._light import record
from fastns.errors import SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Literal, TypeAlias

    MountType: TypeAlias = Literal[
        "bind", "tmpfs", "proc", "sysfs", "devtmpfs", "devpts", "mqueue", "overlay", "cgroup2"
    ]
    _Items = Mapping[str, Any]
else:
    _Items = Mapping

KINDS = ("pid", "mount", "uts", "ipc", "network", "user", "cgroup", "time")
UNLIMITED = -1
HIGHEST_LIMIT = 2**64 - 1  # RLIM_INFINITY
RLIMIT_NAMES = """
    CPU FSIZE DATA STACK CORE RSS NPROC NOFILE MEMLOCK AS LOCKS SIGPENDING MSGQUEUE NICE RTPRIO
    RTTIME
"""  # in the order of their numbers on x86-64 and aarch64 (setrlimit(2))
RLIMITS = {f"RLIMIT_{name}": number for number, name in enumerate(RLIMIT_NAMES.split())}


class FrozenMap(_Items):
    """An immutable mapping: hashable, picklable, equal to any mapping with the same items."""

    __slots__ = ("_hash", "_items")

    def __init__(self, items: Mapping[str, Any] | None = None) -> None:
        self._items = dict(items or {})
        self._hash: int | None = None

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        if self._hash is None:  # each run() asks for it, and a mapping of files may be large
            self._hash = hash(frozenset(self._items.items()))
        return self._hash

    def __repr__(self) -> str:
        return repr(self._items)

    def __reduce__(self) -> tuple[type[FrozenMap], tuple[dict[str, Any]]]:
        return (FrozenMap, (self._items,))


NOTHING = FrozenMap()


class Default(str):
    """A default value that can be distinguished from an equal value that the caller passed."""


@record(frozen=True)
class Mount:
    """One thing mounted inside the root.

    Args:
        destination: absolute path inside.
        type: bind, tmpfs, proc, sysfs, devtmpfs, devpts, mqueue, overlay or cgroup2.
        source: for a bind, an absolute path outside; for other types a name that mount(8) shows.
        options: as in mount(8) and OCI, such as ro, nosuid, noexec, size=64m, mode=1777, rbind.
            An unknown option is an error that lists those of the type. X-mount.mkdir creates a
            missing destination. Sandboxes that root starts have ids of their own. There, a bind is
            an idmapped mount, which keeps owners: root's files belong to uid 0 inside. In a plain
            bind they belong to nobody. A bind is plain with noidmap, if a file system in it cannot
            be idmapped, or if X-mount.mkdir creates a target in it; with idmap the last two are
            errors. Device files in a bind can be opened only with dev.
    """

    destination: str
    type: MountType = "bind"
    source: str | os.PathLike[str] | None = None
    options: Sequence[str] = ()

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "destination", check_inside("mounts.destination", self.destination))
        if isinstance(self.type, str) and self.type.startswith("/"):
            words = f"{shown(self.type)}: a type such as bind expected; the path outside is source="
            raise SpecError("mounts.type", words)
        check_one_of("mounts.type", self.type, mount_options.TYPES)
        options = check_list("mounts.options", self.options, "such as ['ro', 'nosuid']")
        put(self, "options", options)
        put(self, "_parsed", mount_options.parse(self.type, options))
        if self.source is not None:
            put(self, "source", check_path("mounts.source", self.source))
        if self.type == "bind" and not os.fspath(self.source or "").startswith("/"):
            words = f"{shown(self.source)}: a bind needs an absolute path outside"
            raise SpecError("mounts.source", words)


def parsed(mount: Mount) -> mount_options.ParsedOptions:
    """The options of a mount as the kernel takes them."""
    options: mount_options.ParsedOptions = vars(mount)["_parsed"]
    return options


def with_options(mount: Mount, *options: str) -> Mount:
    return Mount(mount.destination, type=mount.type, source=mount.source, options=options)


@record(frozen=True)
class IDMapping:
    """Maps `size` ids inside, from `container_id` up, to those outside from `host_id` up."""

    container_id: int
    host_id: int
    size: int

    def __post_init__(self) -> None:
        for name in ("container_id", "host_id"):
            check_whole(f"id mapping.{name}", getattr(self, name), 0, MAX_ID)
        check_whole("id mapping.size", self.size, 1, MAX_ID + 1)
        for name in ("container_id", "host_id"):
            if getattr(self, name) + self.size > MAX_ID + 1:
                raise SpecError(
                    f"id mapping.{name}", f"with size {self.size}, the range exceeds {MAX_ID}"
                )


@record(frozen=True)
class Rlimit:
    """A resource limit by its name, "nofile" or RLIMIT_NOFILE; -1 is unlimited.

    `type` is the OCI name, RLIMIT_NOFILE, however it was given.
    """

    type: str
    soft: int
    hard: int

    def __post_init__(self) -> None:
        names = RLIMIT_NAMES.lower().split()
        name = self.type.lower().removeprefix("rlimit_") if isinstance(self.type, str) else None
        if name not in names:
            raise wrong("rlimits.type", self.type, f"one of {', '.join(names)}")
        object.__setattr__(self, "type", f"RLIMIT_{name.upper()}")
        for name in ("soft", "hard"):
            check_whole(f"rlimits.{name}", getattr(self, name), UNLIMITED, HIGHEST_LIMIT)
        soft, hard = self.values
        if soft > hard:
            raise SpecError("rlimits.soft", f"{self.soft} exceeds the hard limit {self.hard}")

    @property
    def number(self) -> int:
        """The kernel's number of the resource."""
        return RLIMITS[self.type]

    @property
    def values(self) -> tuple[int, int]:
        """The soft and the hard limit as the kernel represents them."""
        soft, hard = (HIGHEST_LIMIT if n == UNLIMITED else n for n in (self.soft, self.hard))
        return soft, hard


def outside(mappings: Iterable[IDMapping], inside: int) -> int | None:
    """The id outside to which an id inside is mapped; None: it is not mapped."""
    for m in mappings:
        if m.container_id <= inside < m.container_id + m.size:
            return m.host_id + inside - m.container_id
    return None


def writes_to_host(mount: Mount) -> bool:
    """Whether a sandbox can change files of the host through this mount."""
    options = parsed(mount)
    # A mount that the host makes later appears in a slave with its own options, perhaps writable.
    slave = options.propagation == mount_options.MS_SLAVE
    if options.attr_set & mount_options.ATTR_RDONLY and not slave:
        return False
    layer = mount.type == "overlay" and "upperdir=" in options.data
    return layer or mount.type in ("bind", "devtmpfs")


def directories_above(path: str) -> list[str]:
    """The directories above a plain absolute path, without "/"."""
    above = [""]
    for name in path.split("/")[1:-1]:
        above.append(f"{above[-1]}/{name}")
    return above[1:]
