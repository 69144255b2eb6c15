"""Mount options: the meaning of each, the types that take it, and what is refused."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import pytest

from fastns.errors import SpecError
from fastns.mount_options import DATA, FLAGS, PROPAGATIONS, TYPES, ParsedOptions, names, parse

# Copied from <linux/mount.h>, independently of the table under test.
MS = {
    "ro": 0x1, "nosuid": 0x2, "nodev": 0x4, "noexec": 0x8, "noatime": 0x400, "nodiratime": 0x800,
    "relatime": 0x200000, "strictatime": 0x1000000,
}  # fmt: skip
ATTR = {
    "ro": 0x1, "nosuid": 0x2, "nodev": 0x4, "noexec": 0x8, "noatime": 0x10, "strictatime": 0x20,
    "nodiratime": 0x80,
}  # fmt: skip
CLEARED = {
    "rw": 0x1, "suid": 0x2, "dev": 0x4, "exec": 0x8,
    "noatime": 0x70, "relatime": 0x70, "strictatime": 0x70,
}  # fmt: skip
UNBINDABLE, PRIVATE, SLAVE = 0x20000, 0x40000, 0x80000


@pytest.mark.parametrize("name", FLAGS)
def test_a_flag(name: str) -> None:
    """A flag sets and clears the bits that <linux/mount.h> defines."""
    expected = ParsedOptions(
        ms_flags=MS.get(name, 0), attr_set=ATTR.get(name, 0), attr_clr=CLEARED.get(name, 0)
    )
    assert parse("bind", [name]) == expected
    assert parse("tmpfs", [name]) == expected


def test_all_flags_are_tested() -> None:
    assert set(MS) | set(CLEARED) | {"defaults"} == set(FLAGS)


def test_the_bits_are_the_same_in_python() -> None:
    # statvfs(3) returns the same bits that mount(2) takes.
    shown = {
        "ro": os.ST_RDONLY,
        "nosuid": os.ST_NOSUID,
        "nodev": os.ST_NODEV,
        "noexec": os.ST_NOEXEC,
        "noatime": os.ST_NOATIME,
        "nodiratime": os.ST_NODIRATIME,
    }
    assert {name: FLAGS[name][1] for name in shown} == shown


PARSED: list[tuple[str, Sequence[str], dict[str, Any]]] = [
    ("bind", [], {}),
    ("bind", ["bind"], {}),
    ("bind", ["rbind"], {"recursive": True}),
    ("bind", ["private"], {"propagation": PRIVATE}),
    ("bind", ["rprivate"], {"propagation": PRIVATE}),
    ("bind", ["slave"], {"propagation": SLAVE}),
    ("bind", ["rslave"], {"propagation": SLAVE}),
    ("bind", ["unbindable"], {"propagation": UNBINDABLE}),
    ("bind", ["runbindable"], {"propagation": UNBINDABLE}),
    ("bind", ["X-mount.mkdir"], {"mkdir": True}),
    ("tmpfs", ["x-mount.mkdir"], {"mkdir": True}),
    (
        "bind",
        ["rbind", "ro", "nosuid", "nodev", "rslave"],
        {"recursive": True, "ms_flags": 7, "attr_set": 7, "propagation": SLAVE},
    ),
    ("bind", ["ro", "dev"], {"ms_flags": 1, "attr_set": 1, "attr_clr": 4}),
    ("bind", ["noatime", "rw"], {"ms_flags": 0x400, "attr_set": 0x10, "attr_clr": 0x71}),
    ("bind", ["ro", "ro"], {"ms_flags": 1, "attr_set": 1}),
    ("tmpfs", ("size=64m",), {"data": "size=64m"}),
    ("tmpfs", ["size=1G"], {"data": "size=1G"}),
    ("tmpfs", ["size=50%"], {"data": "size=50%"}),
    ("tmpfs", ["size=65536"], {"data": "size=65536"}),
    ("tmpfs", ["size=1m", "size=1m"], {"data": "size=1m"}),
    (
        "tmpfs",
        ["nosuid", "mode=1777", "nr_inodes=10k", "nr_blocks=5", "uid=1", "gid=4294967294"],
        {
            "ms_flags": 2,
            "attr_set": 2,
            "data": "mode=1777,nr_inodes=10k,nr_blocks=5,uid=1,gid=4294967294",
        },
    ),
    (
        "devpts",
        ["newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        {"data": "newinstance,ptmxmode=0666,mode=0620,gid=5"},
    ),
    ("proc", ["hidepid=2", "subset=pid"], {"data": "hidepid=2,subset=pid"}),
    ("proc", ["hidepid=invisible", "gid=5"], {"data": "hidepid=invisible,gid=5"}),
    (
        "overlay",
        ["lowerdir=/a:/b", "upperdir=/u", "workdir=/w", "userxattr"],
        {"data": "lowerdir=/a:/b,upperdir=/u,workdir=/w,userxattr"},
    ),
    ("cgroup2", ["nsdelegate", "ro"], {"ms_flags": 1, "attr_set": 1, "data": "nsdelegate"}),
    ("sysfs", ["ro"], {"ms_flags": 1, "attr_set": 1}),
    ("mqueue", ["noexec"], {"ms_flags": 8, "attr_set": 8}),
    ("devtmpfs", ["mode=755"], {"data": "mode=755"}),
]


@pytest.mark.parametrize(("type", "options", "fields"), PARSED)
def test_options_are_parsed(type: str, options: Sequence[str], fields: dict[str, Any]) -> None:
    assert parse(type, options) == ParsedOptions(**fields)


REFUSED: list[tuple[str, Sequence[Any], str]] = [
    # unknown, or of another type
    ("bind", ["readonly"], "'readonly' is not an option of bind"),
    ("bind", ["nosiud"], "did you mean nosuid"),
    ("bind", ["RO"], "is not an option"),
    ("bind", ["ro "], "is not an option"),
    ("bind", ["ro,nosuid"], "is not an option"),
    ("bind", ["ro=1"], "is not an option"),
    ("bind", ["size=64m"], "'size=64m' is not an option of bind"),
    ("bind", ["mode=755"], "accepted: ro, rw"),
    ("bind", ["lowerdir=/a"], "is not an option of bind"),
    ("tmpfs", ["bind"], "'bind' is not an option of tmpfs"),
    ("tmpfs", ["rbind"], "accepted: ro, rw"),
    ("tmpfs", ["private"], "is not an option of tmpfs"),
    ("tmpfs", ["szie=64m"], "did you mean size="),
    ("tmpfs", ["newinstance"], "is not an option of tmpfs"),
    ("tmpfs", ["subset=pid"], "is not an option of tmpfs"),
    ("proc", ["size=1m"], "is not an option of proc"),
    ("sysfs", ["mode=755"], "is not an option of sysfs"),
    ("mqueue", ["size=1m"], "is not an option of mqueue"),
    ("devpts", ["size=1m"], "is not an option of devpts"),
    ("overlay", ["lowerdir=/a", "size=1m"], "is not an option of overlay"),
    ("tmpfs", ["lowerdir=/a"], "is not an option of tmpfs"),
    ("tmpfs", ["x" * 5000], "is not an option of tmpfs"),
    # mounts would propagate to the host
    ("bind", ["shared"], "would appear outside; use private or slave"),
    ("bind", ["rshared"], "would appear outside; use private or slave"),
    ("tmpfs", ["shared"], "would appear outside"),
    # contradictions
    ("bind", ["ro", "rw"], "'ro' and 'rw' cannot be combined"),
    ("bind", ["rw", "nosuid", "ro"], "'rw' and 'ro' cannot be combined"),
    ("bind", ["suid", "nosuid"], "cannot be combined"),
    ("bind", ["dev", "nodev"], "cannot be combined"),
    ("bind", ["exec", "noexec"], "cannot be combined"),
    ("bind", ["noatime", "relatime"], "cannot be combined"),
    ("bind", ["noatime", "strictatime"], "cannot be combined"),
    ("bind", ["bind", "rbind"], "cannot be combined"),
    ("bind", ["private", "slave"], "cannot be combined"),
    ("bind", ["unbindable", "rslave"], "cannot be combined"),
    ("tmpfs", ["size=1m", "size=2m"], "'size=1m' and 'size=2m' cannot be combined"),
    # values
    ("tmpfs", ["size"], "64m, 1g, 50% or bytes"),
    ("tmpfs", ["size="], "64m, 1g, 50% or bytes"),
    ("tmpfs", ["size=big"], "64m, 1g, 50% or bytes"),
    ("tmpfs", ["size=-1"], "64m, 1g, 50% or bytes"),
    ("tmpfs", ["size=1.5g"], "64m, 1g, 50% or bytes"),
    ("tmpfs", ["size=64mb"], "64m, 1g, 50% or bytes"),
    ("tmpfs", ["size=1m\n"], "64m, 1g, 50% or bytes"),
    ("tmpfs", ["size=\u0661"], "64m, 1g, 50% or bytes"),
    ("tmpfs", ["size=1m,mode=777"], "64m, 1g, 50% or bytes"),
    ("tmpfs", ["mode=999"], "an octal mode such as 0755"),
    ("tmpfs", ["mode=rwx"], "an octal mode such as 0755"),
    ("tmpfs", ["mode=0o755"], "an octal mode such as 0755"),
    ("tmpfs", ["uid=root"], "uid= with"),
    ("tmpfs", ["uid=-1"], "uid= with"),
    ("tmpfs", ["gid=4294967295"], "the maximum is 4294967294"),
    ("tmpfs", ["nr_inodes=x"], "nr_inodes= with"),
    ("tmpfs", ["nr_blocks=50%"], "nr_blocks= with"),  # the kernel takes % for the size only
    ("devpts", ["newinstance=1"], "newinstance without a value"),
    ("devpts", ["ptmxmode=8"], "an octal mode"),
    ("proc", ["hidepid=5"], "hidepid= with"),
    ("proc", ["subset=net"], "subset= with pid"),
    ("overlay", ["lowerdir="], "lowerdir= with"),
    ("overlay", ["lowerdir=/a,upperdir=/b"], "a value cannot contain a comma"),
    ("overlay", [], "an overlay needs lowerdir="),
    ("overlay", ["upperdir=/u", "workdir=/w"], "an overlay needs lowerdir="),
    ("overlay", ["lowerdir=/" + "x" * 4090], "the limit is 4095"),
    ("overlay", ["lowerdir=/" + "x" * 2100, "upperdir=/" + "x" * 2100], "the limit is 4095"),
    ("overlay", ["lowerdir=/\ud800"], "surrogate"),
    # not options at all
    ("tmpfs", [""], "non-empty strings"),
    ("tmpfs", [b"ro"], "non-empty strings"),
    ("tmpfs", [5], "non-empty strings"),
    ("tmpfs", [None], "non-empty strings"),
    ("tmpfs", ["ro\0"], "NUL"),
    ("tmpfs", ["size=1m\0"], "NUL"),
]


@pytest.mark.parametrize(("type", "options", "words"), REFUSED)
def test_options_are_refused(type: str, options: Sequence[Any], words: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse(type, options)
    assert caught.value.field == "mounts.options"
    assert words in caught.value.reason
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("type", TYPES)
def test_all_options_that_an_error_suggests_are_accepted(type: str) -> None:
    """The error about an unknown option suggests those of names()."""
    values = {
        "size=": "1m", "nr_blocks=": "5", "nr_inodes=": "5", "mode=": "755", "ptmxmode=": "666",
        "uid=": "0", "gid=": "0", "max=": "5", "hidepid=": "2", "subset=": "pid", "lowerdir=": "/a",
        "upperdir=": "/u", "workdir=": "/w", "index=": "on", "metacopy=": "on",
        "redirect_dir=": "on",
    }  # fmt: skip
    needed = ["lowerdir=/a"] if type == "overlay" else []
    for name in names(type):
        option = name + values[name] if name.endswith("=") else name
        parse(type, [*needed, option])


def test_each_type_has_its_own_options() -> None:
    assert set(DATA) <= set(TYPES)
    assert not {"size=", "mode=", "lowerdir="} & set(names("bind"))
    assert set(PROPAGATIONS) <= set(names("bind"))
    assert not set(PROPAGATIONS) & set(names("tmpfs"))
