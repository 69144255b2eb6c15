"""Checks of a Spec's fields, alone and together. A default Spec needs none of them."""

from __future__ import annotations

import os
from _collections_abc import Mapping, Sequence

from fastns._args import (
    MAX_ID,
    MAX_PATH,
    check_cwd,
    check_env,
    check_inside,
    check_list,
    check_one_of,
    check_path,
    check_whole,
    encode,
    shown,
    wrong,
)
from fastns._spec_values import (
    KINDS,
    Default,
    FrozenMap,
    IDMapping,
    Mount,
    Rlimit,
    directories_above,
    outside,
)
from fastns.errors import SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from fastns.spec import Spec

MAX_GROUPS = 64
MAX_NAME = 64  # bytes, __NEW_UTS_LEN (uname(2))
MAX_FILE = 16 << 20  # bytes
MAX_MAPPINGS = 340  # user_namespaces(7)
FLAGS = (
    *("read_only", "overlay", "default_mounts", "init"),
    *("die_with_parent", "require_limits", "no_new_privileges", "allow_setid"),
)
LISTS = {
    **{"mounts": Mount, "uid_mappings": IDMapping, "gid_mappings": IDMapping},
    **{"rlimits": Rlimit, "additional_gids": int, "capabilities": str},
}
MAPPINGS = ("namespaces", "files", "env", "io")
NEEDS_NEW_MOUNTS = (
    *("mounts", "files", "overlay", "read_only"),
    *("tmpfs_size", "masked_paths", "readonly_paths"),
)


def check(spec: Spec) -> None:
    """Checks all fields, and stores them in normalized form. Raises: SpecError."""
    _types(spec)
    _namespaces(spec)
    _root(spec)
    _mounts(spec)
    _process(spec)
    _ids(spec)
    _limits(spec)
    if spec.capabilities:
        from fastns.capabilities import names  # few specs need it

        _put(spec, "capabilities", names(spec.capabilities))
    _seccomp(spec)
    _landlock(spec)


def _put(spec: Spec, name: str, value: object) -> None:
    object.__setattr__(spec, name, value)


def _types(spec: Spec) -> None:
    for name in FLAGS:
        value = getattr(spec, name)
        if not isinstance(value, bool):
            raise wrong(name, value, "True or False")
    for name, kind in LISTS.items():
        items = check_list(name, getattr(spec, name), f"of {kind.__name__}")
        for item in items:
            if not isinstance(item, kind) or isinstance(item, bool):
                raise wrong(name, item, kind.__name__)
        _put(spec, name, items)
    for name in MAPPINGS:
        value = getattr(spec, name)
        if not isinstance(value, Mapping):
            raise wrong(name, value, "a mapping")
        _put(spec, name, FrozenMap(value))
    for name in ("masked_paths", "readonly_paths"):
        value = getattr(spec, name)
        if value is not None:
            paths = check_list(name, value, "of paths, or None")
            _put(spec, name, tuple(check_inside(name, path) for path in paths))


# ---- namespaces and the root ----


def _namespaces(spec: Spec) -> None:
    plain = {}
    for kind, value in spec.namespaces.items():
        check_one_of("namespaces", kind, KINDS)
        plain[kind] = _namespace(f"namespaces.{kind}", value, "new")
    _put(spec, "namespaces", FrozenMap(plain))
    if not isinstance(spec.network, Default):
        if spec.network in ("bridge", "pasta"):
            raise SpecError(
                "network",
                f"{spec.network!r} is not available yet: expected 'none', 'host' or the path of a "
                "network namespace",
            )
        _put(spec, "network", _namespace("network", spec.network, "none"))
        wanted = "new" if spec.network == "none" else spec.network
        if spec.namespaces.get("network", wanted) != wanted:
            raise SpecError(
                "network",
                f"{spec.network!r} contradicts namespaces['network'] = "
                f"{spec.namespaces['network']!r}: give one of them",
            )
    if spec.namespace("pid") != "new" and spec.init:
        raise SpecError("init", "the reaper is pid 1: it needs namespaces['pid'] = 'new'")


def _namespace(name: str, value: Any, own: str) -> Any:
    """Returns a field's value, which must be the word `own`, "host" or a path."""
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if text in (own, "host"):
        return text
    if not isinstance(text, str) or not text.startswith("/"):
        raise wrong(name, value, f"'{own}', 'host' or a path such as /proc/42/ns/net")
    encode(name, text, MAX_PATH)
    return text


def _root(spec: Spec) -> None:
    if spec.rootfs is not None:
        _put(spec, "rootfs", check_path("rootfs", spec.rootfs))
    check_one_of("root_mode", spec.root_mode, ("pivot_root", "chroot"))
    if spec.overlay and spec.rootfs is None:
        words = "needs a rootfs: without one the host's directories are shown read-only"
        raise SpecError("overlay", words)
    mount = spec.namespace("mount")
    if mount == "new":
        return
    joined = mount != "host"
    whose = "the mounts of the sandbox that is joined" if joined else "the host's mounts"
    for name in NEEDS_NEW_MOUNTS:
        if getattr(spec, name):
            raise SpecError(name, f"would change {whose}: namespaces['mount'] = 'new' is needed")
    for name, default in (("rootfs", None), ("root_mode", "pivot_root")):
        if joined and getattr(spec, name) != default:
            raise SpecError(
                name, "a joined mount namespace has a root of its own: leave this field out"
            )
    if spec.rootfs is not None and spec.root_mode == "pivot_root":
        raise SpecError("root_mode", "pivot_root needs namespaces['mount'] = 'new'; use 'chroot'")


def _mounts(spec: Spec) -> None:
    """Mounts and files. A later mount must not hide an earlier one."""
    places: set[str] = set()
    below: dict[str, str] = {}  # a directory -> a destination somewhere below it
    for mount in spec.mounts:
        place = mount.destination
        if place in places:
            raise SpecError("mounts", f"{place} is given twice")
        if place in below:
            raise SpecError("mounts", f"{place} would hide {below[place]}: put {place} first")
        places.add(place)
        below.update(dict.fromkeys(directories_above(place), place))
    files: dict[str, str | bytes] = {}
    for destination, content in spec.files.items():
        place = check_inside("files", destination)
        if isinstance(destination, str) and destination.endswith("/"):
            raise SpecError("files", f"{shown(destination)}: a file's path ends with its name")
        if place in places or place in files:
            raise SpecError("files", f"{place} is given twice, in mounts or files")
        _content(place, content)
        parents = directories_above(place)
        other = below.get(place) or next((p for p in parents if p in files), None)
        if other is not None:
            raise SpecError("files", f"{place} and {other}: a file cannot also be a directory")
        files[place] = content
        below.update(dict.fromkeys(parents, place))
    _put(spec, "files", FrozenMap(files))


def _content(place: str, content: object) -> None:
    if not isinstance(content, str | bytes):
        raise wrong("files", content, "str or bytes", f"{place}: ")
    try:
        size = len(content if isinstance(content, bytes) else content.encode())
    except UnicodeEncodeError:
        raise SpecError("files", f"{place}: text with surrogates; give bytes") from None
    if size > MAX_FILE:
        raise SpecError(
            "files", f"{place}: {size} bytes, the limit is {MAX_FILE}; bind a file instead"
        )


# ---- the process and its ids ----


def _process(spec: Spec) -> None:
    for name in ("hostname", "domainname"):
        value = getattr(spec, name)
        if value is None:
            continue
        # isprintable() is false for control characters, lone surrogates and all space but " ".
        plain = isinstance(value, str) and value.isprintable() and not {" ", "/"} & {*value}
        if not plain or not 1 <= len(value.encode()) <= MAX_NAME:
            raise wrong(name, value, f"1 to {MAX_NAME} bytes of UTF-8 without spaces and '/'")
        if spec.namespace("uts") != "new":
            words = "would rename the host or the joined sandbox: needs namespaces['uts'] = 'new'"
            raise SpecError(name, words)
    check_env(spec.env)
    for key, value in spec.env.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise SpecError("env", f"{shown(key)}: expected str, not bytes")
    _put(spec, "cwd", check_path("cwd", spec.cwd))
    check_cwd(spec.cwd)
    check_whole("umask", spec.umask, 0, 0o777)
    types = [rlimit.type for rlimit in spec.rlimits]
    twice = next((name for name in types if types.count(name) > 1), None)
    if twice is not None:
        raise SpecError("rlimits", f"{twice} is given twice")


def _ids(spec: Spec) -> None:
    _put(spec, "user", check_user(spec.user))
    if len(spec.additional_gids) > MAX_GROUPS:
        raise SpecError("additional_gids", f"{len(spec.additional_gids)}: at most {MAX_GROUPS}")
    for gid in spec.additional_gids:
        check_whole("additional_gids", gid, 0, MAX_ID)
    if bool(spec.uid_mappings) != bool(spec.gid_mappings):
        missing = "gid_mappings" if spec.uid_mappings else "uid_mappings"
        raise SpecError(missing, "uid_mappings and gid_mappings are needed together")
    if not spec.uid_mappings:
        return
    if spec.namespace("user") != "new":
        words = "mappings are made for a new user namespace: namespaces['user'] = 'new'"
        raise SpecError("uid_mappings", words)
    _mappings("uid_mappings", spec.uid_mappings, user=[spec.uid])
    groups = spec.additional_gids
    _mappings("gid_mappings", spec.gid_mappings, user=[spec.gid], additional_gids=groups)


def check_user(value: Any) -> str:
    """Returns it as "uid:gid"."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**64:
        value = str(value)
    if not isinstance(value, str):
        raise wrong("user", value, "'uid' or 'uid:gid'")
    uid, colon, gid = value.partition(":")
    for part in (uid, gid) if colon else (uid,):
        if not (part.isascii() and part.isdigit() and len(part) <= 10 and int(part) <= MAX_ID):
            raise SpecError(
                "user",
                f"{shown(value)}: expected 'uid' or 'uid:gid', numbers from 0 to {MAX_ID}; "
                "names are not looked up",
            )
    return f"{int(uid)}:{int(gid) if colon else 0}"


def _mappings(field: str, mappings: Sequence[IDMapping], **mapped: Sequence[int]) -> None:
    """mapped: ids of other fields, which must be in the mappings."""
    if len(mappings) > MAX_MAPPINGS:
        raise SpecError(field, f"{len(mappings)} ranges: the kernel takes at most {MAX_MAPPINGS}")
    for side in ("container_id", "host_id"):
        end = 0
        for start, size in sorted((getattr(m, side), m.size) for m in mappings):
            if start < end:
                raise SpecError(field, f"ranges overlap at {side} {start}")
            end = start + size
    for name, ids in mapped.items():
        for number in ids:
            if outside(mappings, number) is None:
                raise SpecError(name, f"{number} is not in {field}")


# ---- limits, seccomp and Landlock ----


def _limits(spec: Spec) -> None:
    _put(spec, "io", _frozen(spec.io))
    spec.limits()
    for name in ("max_output", "tmpfs_size"):
        if getattr(spec, name) is not None:
            from fastns.limits import parse_size  # few specs need it

            _put(spec, name, parse_size(name, getattr(spec, name)))
    check_one_of("on_output_limit", spec.on_output_limit, ("truncate", "kill"))
    if spec.cgroup_parent is not None:
        _put(spec, "cgroup_parent", check_path("cgroup_parent", spec.cgroup_parent))
        if ".." in spec.cgroup_parent.split("/"):
            raise SpecError("cgroup_parent", "expected a path without '..'")


def _seccomp(spec: Spec) -> None:
    if not isinstance(spec.seccomp, Mapping):
        _put(spec, "seccomp", check_path("seccomp", spec.seccomp))
        return
    from fastns.seccomp import check  # most specs have the default profile

    check(spec.seccomp)
    _put(spec, "seccomp", _frozen(spec.seccomp))


def _frozen(value: Any) -> Any:
    """Mappings and lists, at any depth, as immutable values."""
    if isinstance(value, Mapping):
        return FrozenMap({key: _frozen(item) for key, item in value.items()})
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return tuple(map(_frozen, value))
    return value


def _landlock(spec: Spec) -> None:
    given = spec.landlock
    if given is None:
        return
    form = "expected {'read': [paths], 'write': [paths]}, with at least one path"
    if not isinstance(given, Mapping) or not set(given) <= {"read", "write"}:
        raise SpecError("landlock", f"{shown(given)}: {form}")
    found = {}
    for kind, paths in given.items():
        field = f"landlock.{kind}"
        paths = check_list(field, paths, "of paths")
        found[kind] = tuple(path if path == "/" else check_inside(field, path) for path in paths)
    if not any(found.values()):  # without a path, not even the command could be executed
        raise SpecError("landlock", f"{shown(given)}: {form}")
    _put(spec, "landlock", FrozenMap(found))
