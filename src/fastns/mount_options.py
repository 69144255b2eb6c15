"""Mount options: what each name means, and for which types of mount.

The names are those of mount(8) and of the OCI runtime specification. Mount checks its options with
this module, and the compiler turns them into the kernel's flags.
"""

from __future__ import annotations

from _collections_abc import Iterable

from fastns._args import MAX_ID, encode, shown, wrong
from fastns._light import record
from fastns.errors import SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    _Kind: TypeAlias = tuple[str, Callable[[str], bool]]  # what is expected, and its check

TYPES = ("bind", "tmpfs", "proc", "sysfs", "devtmpfs", "devpts", "mqueue", "overlay", "cgroup2")

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_NOATIME, MS_NODIRATIME = 1024, 2048
MS_UNBINDABLE, MS_PRIVATE, MS_SLAVE = 1 << 17, 1 << 18, 1 << 19
MS_RELATIME, MS_STRICTATIME = 1 << 21, 1 << 24

# mount_setattr(2). ATTR_ATIME is a field of several bits.
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV, ATTR_NOEXEC = 0x1, 0x2, 0x4, 0x8
ATTR_ATIME, ATTR_NOATIME, ATTR_STRICTATIME, ATTR_NODIRATIME = 0x70, 0x10, 0x20, 0x80


@record(frozen=True)
class ParsedOptions:
    """Options as the kernel takes them: flags and data of mount(2), or bits of mount_setattr(2)."""

    ms_flags: int = 0
    attr_set: int = 0
    attr_clr: int = 0
    data: str = ""
    recursive: bool = False
    propagation: int = 0
    mkdir: bool = False
    idmap: bool | None = None  # None: if the file system supports it


# Name -> group, MS_*, attributes to set and to clear. Options of one group exclude each other.
FLAGS = {
    "ro": ("ro", MS_RDONLY, ATTR_RDONLY, 0),
    "rw": ("ro", 0, 0, ATTR_RDONLY),
    "nosuid": ("suid", MS_NOSUID, ATTR_NOSUID, 0),
    "suid": ("suid", 0, 0, ATTR_NOSUID),
    "nodev": ("dev", MS_NODEV, ATTR_NODEV, 0),
    "dev": ("dev", 0, 0, ATTR_NODEV),
    "noexec": ("exec", MS_NOEXEC, ATTR_NOEXEC, 0),
    "exec": ("exec", 0, 0, ATTR_NOEXEC),
    "noatime": ("atime", MS_NOATIME, ATTR_NOATIME, ATTR_ATIME),
    "relatime": ("atime", MS_RELATIME, 0, ATTR_ATIME),
    "strictatime": ("atime", MS_STRICTATIME, ATTR_STRICTATIME, ATTR_ATIME),
    "nodiratime": ("nodiratime", MS_NODIRATIME, ATTR_NODIRATIME, 0),
    "defaults": ("defaults", 0, 0, 0),
}
MAX_DATA = 4095  # bytes of all options for the file system: a page with its NUL (mount(2))
MKDIR = ("X-mount.mkdir", "x-mount.mkdir")
PROPAGATIONS = {"private": MS_PRIVATE, "slave": MS_SLAVE, "unbindable": MS_UNBINDABLE}
PROPAGATIONS |= {f"r{name}": flag for name, flag in PROPAGATIONS.items()}


def _is_number(value: str, digits: int = 10) -> bool:
    return value.isascii() and value.isdigit() and len(value) <= digits


def _is_octal(value: str) -> bool:
    return 1 <= len(value) <= 4 + value.startswith("0") and not value.strip("01234567")


def _is_count(value: str, units: str = "kmg") -> bool:
    return _is_number(value[:-1] if value[-1:].lower() in tuple(units) else value, 19)


def _is_size(value: str) -> bool:
    return _is_number(value[:-1], 3) if value.endswith("%") else _is_count(value, "kmgt")


def _is_path(value: str) -> bool:
    return value != "" and "\0" not in value


def _one_of(*words: str) -> _Kind:
    return " or ".join(words), words.__contains__


# No regular expressions: importing `re` would take as long as all of this module.
_NUMBER: _Kind = "a number of at most 10 digits", _is_number
_OCTAL: _Kind = "an octal mode such as 0755", _is_octal
_SIZE: _Kind = "64m, 1g, 50% or bytes", _is_size
_COUNT: _Kind = "a number such as 1000 or 64k", _is_count
_PATH: _Kind = "a path", _is_path
_ON_OFF = _one_of("on", "off")
# Options that the file system gets unchanged: name -> kind of value (None: no value).
DATA: dict[str, dict[str, _Kind | None]] = {
    "tmpfs": {
        **{"size": _SIZE, "nr_blocks": _COUNT, "nr_inodes": _COUNT},
        **{"mode": _OCTAL, "uid": _NUMBER, "gid": _NUMBER},
    },
    "devtmpfs": {"size": _SIZE, "nr_inodes": _COUNT, "mode": _OCTAL},
    "devpts": {
        **{"newinstance": None, "ptmxmode": _OCTAL, "mode": _OCTAL},
        **{"uid": _NUMBER, "gid": _NUMBER, "max": _NUMBER},
    },
    "proc": {
        "hidepid": _one_of("0", "1", "2", "3", "4", "off", "noaccess", "invisible", "ptraceable"),
        "gid": _NUMBER,
        "subset": _one_of("pid"),
    },
    "overlay": {
        **{"lowerdir": _PATH, "upperdir": _PATH, "workdir": _PATH},
        **{"userxattr": None, "index": _ON_OFF, "metacopy": _ON_OFF},
        **{"redirect_dir": _one_of("on", "off", "follow", "nofollow"), "volatile": None},
    },
    "cgroup2": {"nsdelegate": None, "memory_recursiveprot": None},
}


def names(type: str) -> list[str]:
    """The options of a type; those with a value end with "="."""
    of_binds = ["bind", "rbind", "idmap", "noidmap", *PROPAGATIONS] if type == "bind" else []
    data = [n if kind is None else f"{n}=" for n, kind in DATA.get(type, {}).items()]
    return [*FLAGS, "X-mount.mkdir", *of_binds, *data]


def parse(type: str, options: Iterable[str]) -> ParsedOptions:
    """Checks the options of one mount and turns them into what the kernel takes.

    Raises: SpecError, field "mounts.options", for an unknown or contradictory option.
    """
    ms_flags = attr_set = attr_clr = propagation = 0
    recursive = mkdir = False
    idmap: bool | None = None
    data: list[str] = []
    seen: dict[str, str] = {}
    for option in options:
        if not isinstance(option, str) or not option:
            raise wrong("mounts.options", option, "non-empty strings")
        encode("mounts.options", option)
        if option in seen.values():
            continue  # given twice: mount(8) and OCI bundles allow it
        key, equals, value = option.partition("=")
        if option in FLAGS:
            group, *flags = FLAGS[option]
            ms_flags |= flags[0]
            attr_set |= flags[1]
            attr_clr |= flags[2]
        elif option in MKDIR:
            group, mkdir = "mkdir", True
        elif type == "bind" and option in ("idmap", "noidmap"):
            group, idmap = "idmap", option == "idmap"
        elif type == "bind" and option in ("bind", "rbind"):
            group, recursive = "bind", option == "rbind"
        elif type == "bind" and option in PROPAGATIONS:
            group, propagation = "propagation", PROPAGATIONS[option]
        elif option in ("shared", "rshared"):
            words = f"{option!r}: mounts inside would appear outside; use private or slave"
            raise SpecError("mounts.options", words)
        elif key in DATA.get(type, {}):
            kind = DATA[type][key]
            if (kind is None) != (not equals) or (kind and not kind[1](value)):
                form = f"{key} without a value" if kind is None else f"{key}= with {kind[0]}"
                raise wrong("mounts.options", option, form)
            if key in ("uid", "gid") and int(value) > MAX_ID:
                raise SpecError("mounts.options", f"{option!r}: the maximum is {MAX_ID}")
            # The kernel would take what follows a comma as another option (mount(2), data).
            if "," in value:
                raise SpecError(
                    "mounts.options", f"{shown(option)}: a value cannot contain a comma"
                )
            group = key
            data.append(option)
        else:
            raise _unknown(type, option)
        if group in seen:
            other = seen[group]
            raise SpecError("mounts.options", f"{other!r} and {shown(option)} cannot be combined")
        seen[group] = option
    if type == "overlay" and "lowerdir" not in seen:
        raise SpecError("mounts.options", "an overlay needs lowerdir=")
    encode("mounts.options", ",".join(data), MAX_DATA)
    return ParsedOptions(
        ms_flags, attr_set, attr_clr & ~attr_set | attr_clr & ATTR_ATIME, ",".join(data),
        recursive, propagation, mkdir, idmap,
    )  # fmt: skip


def _unknown(type: str, option: str) -> SpecError:
    import difflib  # only an error needs it

    accepted = names(type)
    close = difflib.get_close_matches(option.partition("=")[0], accepted, 2)
    meant = f" (did you mean {' or '.join(close)}?)" if close else ""
    return SpecError(
        "mounts.options",
        f"{shown(option)} is not an option of {type}{meant}; accepted: {', '.join(accepted)}",
    )
