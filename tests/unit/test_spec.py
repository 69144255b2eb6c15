"""What Spec, Mount, IDMapping and Rlimit refuse. Errors name the field and the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fastns.errors import SpecError
from fastns.spec import KINDS, IDMapping, Mount, Rlimit, Spec

RANGE = (IDMapping(0, 100000, 1000),)
TOP = 2**32 - 2  # the highest id


def bind(destination: str) -> Mount:
    return Mount(destination, source="/srv")


class BytesPath:
    """A path-like object of bytes, which os accepts and a spec does not."""

    def __fspath__(self) -> bytes:
        return b"/x"


def refused(make: Callable[[], object], field: str, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        make()
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field}: ")
    assert words in caught.value.reason
    assert len(str(caught.value)) < 400  # even for a long value
    assert "\n" not in str(caught.value)


def spec_id(value: object) -> str | None:
    return str(value)[:40] if isinstance(value, dict) else None


JOINED, HOST = {"mount": "/proc/42/ns/mnt"}, {"mount": "host"}
INVALID_SPECS: list[tuple[dict[str, Any], str, str]] = [
    # the root
    ({"rootfs": ""}, "rootfs", "not empty"),
    ({"rootfs": "/x\0y"}, "rootfs", "NUL"),
    ({"rootfs": b"/x"}, "rootfs", "str or PathLike"),
    ({"rootfs": 5}, "rootfs", "str or PathLike"),
    ({"rootfs": True}, "rootfs", "str or PathLike"),
    ({"rootfs": BytesPath()}, "rootfs", "a path that is not empty"),
    ({"rootfs": "\ud800"}, "rootfs", "surrogate"),
    ({"rootfs": "/" + "x" * 4095}, "rootfs", "the limit is 4095"),
    ({"root_mode": "switch_root"}, "root_mode", "pivot_root, chroot"),
    ({"root_mode": None}, "root_mode", "pivot_root, chroot"),
    ({"root_mode": ["chroot"]}, "root_mode", "pivot_root, chroot"),
    ({"read_only": 1}, "read_only", "True or False"),
    ({"read_only": "yes"}, "read_only", "True or False"),
    ({"overlay": None}, "overlay", "True or False"),
    ({"default_mounts": 0}, "default_mounts", "True or False"),
    ({"init": "no"}, "init", "True or False"),
    ({"overlay": True}, "overlay", "needs a rootfs"),
    # names
    ({"hostname": ""}, "hostname", "1 to 64 bytes"),
    ({"hostname": "x" * 65}, "hostname", "1 to 64 bytes"),
    ({"hostname": "é" * 33}, "hostname", "1 to 64 bytes"),
    ({"hostname": b"box"}, "hostname", "UTF-8"),
    ({"hostname": 5}, "hostname", "UTF-8"),
    ({"hostname": "a b"}, "hostname", "without spaces"),
    ({"hostname": "a\nb"}, "hostname", "without spaces"),
    ({"hostname": "a\0"}, "hostname", "without spaces"),
    ({"hostname": "a\x7f"}, "hostname", "without spaces"),
    ({"hostname": "a\x85b"}, "hostname", "without spaces"),
    ({"hostname": "a\u2028b"}, "hostname", "without spaces"),
    ({"hostname": "a\udcff"}, "hostname", "UTF-8"),
    ({"hostname": "a/b"}, "hostname", "'/'"),
    ({"domainname": "a b"}, "domainname", "without spaces"),
    ({"domainname": "x" * 65}, "domainname", "1 to 64 bytes"),
    ({"hostname": "box", "namespaces": {"uts": "host"}}, "hostname", "would rename the host"),
    ({"hostname": "box", "namespaces": {"uts": "/n/uts"}}, "hostname", "joined sandbox"),
    ({"domainname": "d", "namespaces": {"uts": "host"}}, "domainname", "would rename the host"),
    ({"domainname": "d", "namespaces": {"uts": "/n/uts"}}, "domainname", "joined sandbox"),
    # namespaces
    ({"namespaces": {"net": "new"}}, "namespaces", "pid, mount, uts, ipc, network, user"),
    ({"namespaces": {1: "new"}}, "namespaces", "one of pid"),
    ({"namespaces": ["pid"]}, "namespaces", "expected a mapping"),
    ({"namespaces": None}, "namespaces", "expected a mapping"),
    ({"namespaces": {"pid": "private"}}, "namespaces.pid", "'new', 'host' or a path"),
    ({"namespaces": {"pid": "proc/1/ns/pid"}}, "namespaces.pid", "'new', 'host' or a path"),
    ({"namespaces": {"ipc": None}}, "namespaces.ipc", "'new', 'host' or a path"),
    ({"namespaces": {"ipc": True}}, "namespaces.ipc", "'new', 'host' or a path"),
    ({"namespaces": {"uts": "/n\0"}}, "namespaces.uts", "NUL"),
    ({"namespaces": {"uts": BytesPath()}}, "namespaces.uts", "'new', 'host' or a path"),
    *(
        ({"namespaces": {kind: value}}, f"namespaces.{kind}", "'new', 'host' or a path")
        for kind in KINDS
        for value in ("", "private", "none", "proc/1/ns/net")
    ),
    *(({"namespaces": {kind: "/a\0b"}}, f"namespaces.{kind}", "NUL") for kind in KINDS),
    *(
        ({"namespaces": {kind: "/" + "x" * 5000}}, f"namespaces.{kind}", "the limit is 4095")
        for kind in KINDS
    ),
    *(
        ({"namespaces": {kind: "new"}}, "namespaces", "one of pid, mount, uts")
        for kind in ("mnt", "PID", "", "users", None)
    ),
    ({"network": ""}, "network", "expected"),
    ({"network": "private"}, "network", "expected"),
    ({"network": "None"}, "network", "expected"),
    ({"network": 1}, "network", "expected"),
    ({"network": "bridge"}, "network", "not available yet"),
    ({"network": "pasta"}, "network", "not available yet"),
    ({"network": "new"}, "network", "'none', 'host' or a path"),
    ({"network": None}, "network", "expected"),
    ({"network": "net"}, "network", "'none', 'host' or a path such as"),
    ({"network": "none", "namespaces": {"network": "host"}}, "network", "contradicts"),
    ({"network": "host", "namespaces": {"network": "new"}}, "network", "contradicts"),
    ({"network": "/a", "namespaces": {"network": "/b"}}, "network", "contradicts"),
    ({"network": "/a", "namespaces": {"network": "new"}}, "network", "contradicts"),
    ({"network": "none", "namespaces": {"network": "/b"}}, "network", "contradicts"),
    ({"init": True, "namespaces": {"pid": "host"}}, "init", "namespaces['pid'] = 'new'"),
    ({"init": True, "namespaces": {"pid": "/n/pid"}}, "init", "pid 1"),
    # without a new mount namespace
    ({"mounts": [bind("/a")], "namespaces": HOST}, "mounts", "change the host's mounts"),
    ({"files": {"/a": ""}, "namespaces": HOST}, "files", "change the host's mounts"),
    ({"read_only": True, "namespaces": HOST}, "read_only", "change the host's mounts"),
    ({"overlay": True, "rootfs": "/r", "namespaces": HOST}, "overlay", "change the host's"),
    ({"rootfs": "/r", "namespaces": HOST}, "root_mode", "use 'chroot'"),
    ({"mounts": [bind("/a")], "namespaces": JOINED}, "mounts", "that is joined"),
    ({"files": {"/a": ""}, "namespaces": JOINED}, "files", "that is joined"),
    ({"read_only": True, "namespaces": JOINED}, "read_only", "that is joined"),
    ({"overlay": True, "rootfs": "/r", "namespaces": JOINED}, "overlay", "that is joined"),
    ({"rootfs": "/r", "namespaces": JOINED}, "rootfs", "a root of its own"),
    ({"root_mode": "chroot", "namespaces": JOINED}, "root_mode", "a root of its own"),
    # mounts
    ({"mounts": None}, "mounts", "a list of Mount"),
    ({"mounts": bind("/a")}, "mounts", "a list of Mount"),
    ({"mounts": "/a:/b"}, "mounts", "a list of Mount"),
    ({"mounts": ["/a:/b"]}, "mounts", "expected Mount"),
    ({"mounts": iter([bind("/a")])}, "mounts", "a list of Mount"),
    ({"mounts": [bind("/a"), bind("//a/.")]}, "mounts", "/a is given twice"),
    ({"mounts": [bind("/a/b"), bind("/a")]}, "mounts", "/a would hide /a/b: put /a first"),
    ({"mounts": [bind("/a/b/c/d"), bind("/a/b")]}, "mounts", "/a/b would hide /a/b/c/d"),
    ({"files": []}, "files", "expected a mapping"),
    ({"files": {"hosts": ""}}, "files", "an absolute path"),
    ({"files": {"/": ""}}, "files", "root itself"),
    ({"files": {"/a/": ""}}, "files", "ends with its name"),
    ({"files": {"/a/../b": ""}}, "files", "without '..'"),
    ({"files": {"/a\0": ""}}, "files", "NUL"),
    ({"files": {b"/a": ""}}, "files", "str or PathLike"),
    ({"files": {"/" + "n" * 256: ""}}, "files", "at most 255 bytes"),
    ({"files": {"/a": 5}}, "files", "str or bytes"),
    ({"files": {"/a": None}}, "files", "str or bytes"),
    ({"files": {"/a": bytearray(b"x")}}, "files", "str or bytes"),
    ({"files": {"/a": "\udcff"}}, "files", "give bytes"),
    ({"files": {"/a": bytes((16 << 20) + 1)}}, "files", "16777217 bytes, the limit is 16777216"),
    ({"files": {"/a": "", "//a": ""}}, "files", "/a is given twice"),
    ({"files": {"/a": ""}, "mounts": [bind("/a")]}, "files", "/a is given twice"),
    ({"files": {"/a": "", "/a/b": ""}}, "files", "/a/b and /a: a file cannot"),
    ({"files": {"/a/b/c": "", "/a": ""}}, "files", "/a and /a/b/c: a file cannot"),
    ({"files": {"/a": ""}, "mounts": [bind("/a/b")]}, "files", "/a and /a/b: a file cannot"),
    # the process
    ({"env": [("A", "b")]}, "env", "expected a mapping"),
    ({"env": {"": "x"}}, "env", "a name without '='"),
    ({"env": {"A=B": "x"}}, "env", "a name without '='"),
    ({"env": {"A\0": "x"}}, "env", "NUL"),
    ({"env": {"A": "x\0"}}, "env", "NUL"),
    ({"env": {"A": 5}}, "env", "expected str or bytes"),
    ({"env": {"A": None}}, "env", "expected str or bytes"),
    ({"env": {"A": b"x"}}, "env", "not bytes"),
    ({"env": {b"A": "x"}}, "env", "not bytes"),
    ({"env": {"A": "\ud800"}}, "env", "surrogate"),
    ({"env": {"A": "x" * 131070}}, "env", "the limit is 131071"),
    ({"cwd": ""}, "cwd", "not empty"),
    ({"cwd": "tmp"}, "cwd", "an absolute path"),
    ({"cwd": "/a\0"}, "cwd", "NUL"),
    ({"cwd": None}, "cwd", "str or PathLike"),
    ({"cwd": "/" + "x" * 4095}, "cwd", "the limit is 4095"),
    ({"umask": -1}, "umask", "from 0 to 511"),
    ({"umask": 0o1000}, "umask", "from 0 to 511"),
    ({"umask": "022"}, "umask", "a whole number"),
    ({"umask": True}, "umask", "a whole number"),
    ({"rlimits": [("RLIMIT_CPU", 1, 1)]}, "rlimits", "expected Rlimit"),
    ({"rlimits": Rlimit("RLIMIT_CPU", 1, 1)}, "rlimits", "a list of Rlimit"),
    ({"rlimits": [Rlimit("RLIMIT_CPU", 1, 1)] * 2}, "rlimits", "RLIMIT_CPU is given twice"),
    # ids
    ({"user": "root"}, "user", "names are not looked up"),
    ({"user": ""}, "user", "'uid' or 'uid:gid'"),
    ({"user": ":0"}, "user", "'uid' or 'uid:gid'"),
    ({"user": "0:"}, "user", "'uid' or 'uid:gid'"),
    ({"user": "0:0:0"}, "user", "'uid' or 'uid:gid'"),
    ({"user": "-1"}, "user", "'uid' or 'uid:gid'"),
    ({"user": "+1"}, "user", "'uid' or 'uid:gid'"),
    ({"user": "\u0661"}, "user", "'uid' or 'uid:gid'"),
    ({"user": -1}, "user", "numbers from 0 to 4294967294"),
    ({"user": TOP + 1}, "user", "numbers from 0 to 4294967294"),
    ({"user": f"0:{TOP + 1}"}, "user", "numbers from 0 to 4294967294"),
    ({"user": True}, "user", "'uid' or 'uid:gid'"),
    ({"user": None}, "user", "'uid' or 'uid:gid'"),
    ({"additional_gids": 5}, "additional_gids", "a list of int"),
    ({"additional_gids": ["5"]}, "additional_gids", "expected int"),
    ({"additional_gids": [True]}, "additional_gids", "expected int"),
    ({"additional_gids": [-1]}, "additional_gids", "from 0 to"),
    ({"additional_gids": [TOP + 1]}, "additional_gids", "from 0 to 4294967294"),
    ({"additional_gids": range(65)}, "additional_gids", "at most 64"),
    ({"uid_mappings": RANGE}, "gid_mappings", "needed together"),
    ({"gid_mappings": RANGE}, "uid_mappings", "needed together"),
    ({"uid_mappings": [(0, 0, 1)], "gid_mappings": RANGE}, "uid_mappings", "expected IDMapping"),
    (
        {"uid_mappings": RANGE, "gid_mappings": RANGE, "namespaces": {"user": "host"}},
        "uid_mappings",
        "namespaces['user'] = 'new'",
    ),
    (
        {"uid_mappings": RANGE, "gid_mappings": RANGE, "namespaces": {"user": "/n/user"}},
        "uid_mappings",
        "a new user namespace",
    ),
    (
        {"uid_mappings": [*RANGE, IDMapping(999, 5, 1)], "gid_mappings": RANGE},
        "uid_mappings",
        "overlap at container_id 999",
    ),
    (
        {"uid_mappings": RANGE, "gid_mappings": [*RANGE, IDMapping(1000, 100999, 1)]},
        "gid_mappings",
        "overlap at host_id 100999",
    ),
    (
        {"uid_mappings": [IDMapping(i, i, 1) for i in range(341)], "gid_mappings": RANGE},
        "uid_mappings",
        "at most 340",
    ),
    ({"uid_mappings": RANGE, "gid_mappings": RANGE, "user": "1000"}, "user", "1000 is not in"),
    (
        {"uid_mappings": RANGE, "gid_mappings": RANGE, "user": "0:1000"},
        "user",
        "1000 is not in",
    ),
    (
        {"uid_mappings": RANGE, "gid_mappings": RANGE, "additional_gids": [7, 1000]},
        "additional_gids",
        "1000 is not in gid_mappings",
    ),
]


@pytest.mark.parametrize(("fields", "field", "words"), INVALID_SPECS, ids=spec_id)
def test_a_spec_is_refused(fields: dict[str, Any], field: str, words: str) -> None:
    refused(lambda: Spec(**fields), field, words)


INVALID_PARTS: list[tuple[Callable[..., object], tuple[Any, ...], str, str]] = [
    (Mount, ("mnt",), "mounts.destination", "an absolute path"),
    (Mount, ("",), "mounts.destination", "not empty"),
    (Mount, (b"/mnt",), "mounts.destination", "str or PathLike"),
    (Mount, ("/", "tmpfs"), "mounts.destination", "use rootfs"),
    (Mount, ("//./", "tmpfs"), "mounts.destination", "use rootfs"),
    (Mount, ("/a/../b", "tmpfs"), "mounts.destination", "without '..'"),
    (Mount, ("/a\0b", "tmpfs"), "mounts.destination", "NUL"),
    (Mount, ("/" + "a/" * 2048, "tmpfs"), "mounts.destination", "the limit is 4095"),
    (Mount, ("/a", "ext4"), "mounts.type", "one of bind, tmpfs, proc"),
    (Mount, ("/a", "none"), "mounts.type", "one of bind, tmpfs, proc"),
    (Mount, ("/a", "/b"), "mounts.type", "'/b': a type such as bind expected"),
    (Mount, ("/a", None), "mounts.type", "one of bind"),
    (Mount, ("/a", ["bind"]), "mounts.type", "one of bind"),
    (Mount, ("/a",), "mounts.source", "a bind needs an absolute path outside"),
    (Mount, ("/a", "bind", "srv"), "mounts.source", "'srv': a bind needs an absolute path"),
    (Mount, ("/a", "bind", ""), "mounts.source", "not empty"),
    (Mount, ("/a", "bind", "/s\0"), "mounts.source", "NUL"),
    (Mount, ("/a", "bind", b"/s"), "mounts.source", "str or PathLike"),
    (Mount, ("/a", "tmpfs", 5), "mounts.source", "str or PathLike"),
    (Mount, ("/a", "bind", "/s", "ro"), "mounts.options", "a list such as ['ro', 'nosuid']"),
    (Mount, ("/a", "bind", "/s", b"ro"), "mounts.options", "a list such as"),
    (Mount, ("/a", "bind", "/s", {"ro"}), "mounts.options", "a list such as"),
    (Mount, ("/a", "bind", "/s", None), "mounts.options", "a list such as"),
    (Mount, ("/a", "bind", "/s", ["readonly"]), "mounts.options", "not an option of bind"),
    (IDMapping, (-1, 0, 1), "id mapping.container_id", "from 0 to"),
    (IDMapping, (0, -1, 1), "id mapping.host_id", "from 0 to"),
    (IDMapping, (0, 0, 0), "id mapping.size", "from 1 to"),
    (IDMapping, (True, 0, 1), "id mapping.container_id", "a whole number"),
    (IDMapping, (0, "0", 1), "id mapping.host_id", "a whole number"),
    (IDMapping, (1, 0, TOP + 1), "id mapping.container_id", "the range exceeds 4294967294"),
    (IDMapping, (0, TOP, 2), "id mapping.host_id", "the range exceeds 4294967294"),
    (Rlimit, ("files", 1, 1), "rlimits.type", "'files': expected one of cpu, fsize"),
    (Rlimit, ("RLIMIT_RLIMIT_CPU", 1, 1), "rlimits.type", "one of cpu"),
    (Rlimit, (7, 1, 1), "rlimits.type", "one of cpu"),
    (Rlimit, (["RLIMIT_CPU"], 1, 1), "rlimits.type", "one of cpu"),
    (Rlimit, ("RLIMIT_CPU", 2, 1), "rlimits.soft", "2 exceeds the hard limit 1"),
    (Rlimit, ("RLIMIT_CPU", -1, 2**64 - 2), "rlimits.soft", "exceeds the hard limit"),
    (Rlimit, ("RLIMIT_CPU", 1, -2), "rlimits.hard", "from -1 to"),
    (Rlimit, ("RLIMIT_CPU", 1, 2**64), "rlimits.hard", "from -1 to"),
    (Rlimit, ("RLIMIT_CPU", None, 1), "rlimits.soft", "a whole number"),
    (Rlimit, ("RLIMIT_CPU", 1.5, 2), "rlimits.soft", "a whole number"),
]


@pytest.mark.parametrize(("make", "values", "field", "words"), INVALID_PARTS)
def test_a_part_is_refused(
    make: Callable[..., object], values: tuple[Any, ...], field: str, words: str
) -> None:
    refused(lambda: make(*values), field, words)


def test_positional_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="positional"):
        Spec("rootfs")  # type: ignore[call-arg]


def test_an_unknown_kind_of_namespace_is_refused() -> None:
    refused(lambda: Spec().namespace("net"), "namespaces", "network")


def test_a_misspelt_field() -> None:
    fields: dict[str, Any] = {"memmory": "64m"}
    with pytest.raises(TypeError, match=r"argument 'memmory'. Did you mean 'memory'\?$"):
        Spec(**fields)
    with pytest.raises(TypeError, match=r"argument 'timeout'. It is an argument of run\(\), "):
        Spec(**{"timeout": 1})
    with pytest.raises(TypeError, match=r"argument 'xyzzy'$"):
        Spec(**{"xyzzy": 1})
    with pytest.raises(TypeError, match="argument 'optoins'"):
        Mount("/x", **{"optoins": []})
