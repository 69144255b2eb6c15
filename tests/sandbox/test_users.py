"""Ids, groups and maps, seen from inside and outside, and the other attributes of the process."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import inside
import pytest
import support

import fastns
from fastns import IDMapping, Mount, Rlimit, SpawnError, Spec, SpecError

Report = Callable[..., dict[str, Any]]


def id_map(sandbox: fastns.Sandbox, name: str) -> list[list[int]]:
    """An id map of a running sandbox, as the host reads it."""
    lines = Path(f"/proc/{sandbox.pid}/{name}").read_text().splitlines()
    return [[int(word) for word in line.split()] for line in lines]


# ---- ids and groups ----


@pytest.mark.as_root
@pytest.mark.parametrize("user", ["0:0", "1234:2345", "1234", "65534:65534", "4294967294:5"])
@pytest.mark.parametrize("ids", ["range", "host"])
def test_a_user(report: Report, user: str, ids: str) -> None:
    """The command has the spec's ids and groups, and no others."""
    fields: dict[str, Any] = {"user": user, "additional_gids": [7, 8]}
    if ids == "host":
        fields["namespaces"] = {"user": "host"}
    elif user == "4294967294:5":
        with pytest.raises(SpecError, match="below 65536"):
            report(**fields)
        return
    seen = report(**fields)
    uid, _, gid = user.partition(":")
    assert {seen[name] for name in ("uid", "euid", "suid")} == {int(uid)}
    assert {seen[name] for name in ("gid", "egid", "sgid")} == {int(gid or 0)}
    assert sorted(seen["groups"]) == [7, 8]


@pytest.mark.as_root
def test_the_callers_groups_stay_outside(report: Report) -> None:
    """A sandbox does not inherit the caller's supplementary groups."""
    before = os.getgroups()
    os.setgroups([4, 20, 24])
    try:
        assert report()["groups"] == []
        assert report(user="5:6")["groups"] == []
        assert report(user="5:6", additional_gids=[4])["groups"] == [4]
    finally:
        os.setgroups(before)


def test_an_ordinary_user_has_no_capabilities(report: Report) -> None:
    """Uid 0 has none either, except those of the spec."""
    spec: dict[str, Any] = {"user": "5:6"}
    if not support.is_root():
        spec.update(inside.ranges())
    seen = report(**spec)["capabilities"]
    assert (seen["effective"], seen["permitted"], seen["ambient"]) == (0, 0, 0)
    assert report()["capabilities"]["effective"] == 0
    assert report(capabilities=["NET_RAW"])["capabilities"]["effective"] == 1 << 13


def test_a_sandboxes_file_belongs_to_the_mapped_id(public_dir: Path, probe: Path) -> None:
    """A file made inside belongs to the id outside that the map gives."""
    place = public_dir / "owned"
    place.mkdir()
    place.chmod(0o777)
    ranges = inside.ranges()
    first = ranges["uid_mappings"][0].host_id
    cases: list[tuple[dict[str, Any], int]] = [
        ({"namespaces": {"user": "new"}}, os.geteuid()),
        ({"namespaces": {"user": "new"}, "user": "77:78"}, os.geteuid()),
        (ranges, first),
        ({**ranges, "user": "5:6"}, first + 5),
    ]
    for number, (fields, owner) in enumerate(cases):
        mounts = [Mount("/tmp/out", source=str(place)), Mount("/probe", source=str(probe))]
        spec = Spec(mounts=mounts, **fields)
        done = fastns.run(["/probe", "--write", f"/tmp/out/{number}", "x"], spec=spec)
        assert done.returncode == 0
        assert (place / str(number)).stat().st_uid == owner, fields
        (place / str(number)).unlink()
    place.rmdir()


# ---- id maps ----


def test_method_and_id_map_are_reported(probe_rootfs: Path) -> None:
    """There is no silent fallback: plan and handle say how the start is made and who writes the
    maps."""
    ranges = inside.ranges()
    root = support.is_root()
    single = ("direct", "self")
    cases: list[tuple[dict[str, Any], tuple[str, str]]] = [
        ({}, ("direct", "range") if root else single),
        *([({"namespaces": {"user": "host"}}, ("direct", "none"))] if root else []),
        *([({"namespaces": {"user": "host"}, "user": "5:6"}, ("direct", "none"))] if root else []),
        ({"namespaces": {"user": "new"}}, single),
        ({"namespaces": {"user": "new"}, "user": "7:8"}, single),
        ({"user": "5:6"}, ("direct", "range") if root else single),
        ({"init": True}, ("direct", "range" if root else "self")),
        (ranges, ("direct", "parent" if root else "newuidmap")),
        ({**ranges, "init": True}, ("direct", "parent" if root else "newuidmap")),
    ]
    for fields, expected in cases:
        spec = Spec(rootfs=probe_rootfs, **fields)
        plan = fastns.compile(spec)
        assert (plan.method, plan.id_map) == expected, fields
        with fastns.spawn(["/true"], spec=spec) as sandbox:
            assert (sandbox.method, sandbox.id_map) == expected, fields
        assert sandbox.returncode == 0


@pytest.mark.parametrize("user", ["0:0", "1234:2345"])
def test_one_id(report: Report, probe_rootfs: Path, user: str) -> None:
    """The id is the caller's, so mapping it needs no rights and no helper program."""
    uid, gid = map(int, user.split(":"))
    fields: dict[str, Any] = {"user": user, "namespaces": {"user": "new"}}
    seen = report(**fields)
    assert (seen["uid"], seen["gid"]) == (uid, gid)
    assert (seen["setgroups"] or "").strip() == "deny"
    assert seen["uid_map"].split() == [str(uid), str(os.geteuid()), "1"]
    spec = Spec(rootfs=probe_rootfs, **fields)
    with fastns.spawn(["/probe", "--echo"], spec=spec, stdin=fastns.PIPE) as sandbox:
        assert id_map(sandbox, "uid_map") == [[uid, os.geteuid(), 1]]
        assert id_map(sandbox, "gid_map") == [[gid, os.getegid(), 1]]


@pytest.mark.parametrize("user", ["0:0", "5:6"])
def test_a_range(report: Report, probe_rootfs: Path, user: str) -> None:
    """The command has the spec's ids and groups, and the maps are the spec's."""
    ranges = inside.ranges()
    spec = Spec(rootfs=probe_rootfs, user=user, additional_gids=[9], **ranges)
    seen = report(spec=spec)
    assert f"{seen['uid']}:{seen['gid']}" == user
    assert seen["groups"] == [9]
    with fastns.spawn(["/probe", "--echo"], spec=spec, stdin=fastns.PIPE) as sandbox:
        for name in ("uid", "gid"):
            first = ranges[f"{name}_mappings"][0].host_id
            assert id_map(sandbox, f"{name}_map") == [[0, first, 1000]]


def test_several_ranges(report: Report) -> None:
    """A map may have the caller's id and several ranges, with gaps, in any order."""
    first = {name: mapping[0].host_id for name, mapping in inside.ranges().items()}
    uid, gid = first["uid_mappings"], first["gid_mappings"]
    uids = [IDMapping(500, uid, 10), IDMapping(0, os.geteuid(), 1), IDMapping(1, uid + 100, 50)]
    gids = [IDMapping(0, os.getegid(), 1), IDMapping(1, gid, 100)]
    seen = report(uid_mappings=uids, gid_mappings=gids, user="505:60")
    assert (seen["uid"], seen["gid"]) == (505, 60)
    lines = sorted(line.split() for line in seen["uid_map"].splitlines())
    assert lines == sorted([str(m.container_id), str(m.host_id), str(m.size)] for m in uids)


@pytest.mark.as_root
def test_root_maps_any_range(report: Report) -> None:
    uids = [IDMapping(0, 0, 4294967295)]
    assert report(uid_mappings=uids, gid_mappings=uids)["uid_map"].split()[2] == "4294967295"


@pytest.mark.as_user
def test_newuidmap_is_missing(probe_rootfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without newuidmap the start fails: a single id never replaces a requested range."""
    monkeypatch.setenv("PATH", "/nonexistent")
    spec = Spec(rootfs=probe_rootfs, **inside.ranges())
    with pytest.raises(SpawnError) as caught:
        fastns.run(["/true"], spec=spec)
    assert (caught.value.stage, caught.value.errno) == ("id_map", errno.ENOENT)
    assert "uidmap" in (caught.value.hint or "")
    assert (
        fastns.run(["/true"], spec=Spec(rootfs=probe_rootfs)).returncode == 0
    )  # needs no newuidmap


def test_groups_need_a_range() -> None:
    with pytest.raises(SpecError) as caught:
        fastns.compile(Spec(namespaces={"user": "new"}, additional_gids=[5]))
    assert caught.value.field == "additional_gids"
    assert "gid_mappings" in caught.value.reason


# ---- environment, directory, mask, limits ----


def test_the_environment_is_clean(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTNS_SECRET", "the caller's")
    monkeypatch.setenv("LD_PRELOAD", "")
    clean = {
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME=/root",
        "TERM=xterm",
        "LANG=C.UTF-8",
    }
    for fields in ({}, {"init": True}):
        assert set(report(**fields)["environ"]) == clean
        assert set(report(env={"MORE": "1", "TERM": "dumb"}, **fields)["environ"]) == (
            clean - {"TERM=xterm"} | {"TERM=dumb", "MORE=1"}
        )
        assert report(env={"MORE": "1"}, run={"env": {"ONLY": "2"}}, **fields)["environ"] == [
            "ONLY=2"
        ]


@pytest.mark.parametrize("init", [False, True])
def test_umask_and_directory(report: Report, init: bool) -> None:
    """Both are the spec's or the call's, never the caller's."""
    before = os.umask(0o077)  # the caller's umask is not inherited
    try:
        assert report(init=init)["umask"] == 0o022
        seen = report(umask=0o027, cwd="/tmp", init=init)
        assert (seen["umask"], seen["cwd"]) == (0o027, "/tmp")
        assert report(cwd="/tmp", run={"cwd": "/etc"}, init=init)["cwd"] == "/etc"
        # The modes of mounts do not depend on the caller's umask.
        assert report(init=init)["root"]["tmp"]["mode"] == 0o1777
    finally:
        os.umask(before)


@pytest.mark.parametrize(("cwd", "code"), [("/missing", errno.ENOENT), ("/probe", errno.ENOTDIR)])
@pytest.mark.parametrize("init", [False, True])
def test_an_invalid_working_directory(probe_rootfs: Path, cwd: str, code: int, init: bool) -> None:
    """The start fails at chdir, with a hint."""
    with pytest.raises(SpawnError) as caught:
        fastns.run(["/true"], spec=Spec(rootfs=probe_rootfs, cwd=cwd, init=init))
    error = caught.value
    assert (error.stage, error.errno, error.op_index, error.path) == ("chdir", code, -1, cwd)
    assert error.hint
    with pytest.raises(SpawnError) as caught:
        fastns.run(["/true"], spec=Spec(rootfs=probe_rootfs, init=init), cwd=cwd)
    assert (caught.value.stage, caught.value.errno) == ("chdir", code)


@pytest.fixture
def closed(public_dir: Path) -> Iterator[Path]:
    """A directory of the host that only its owner may enter."""
    path = public_dir / "closed"
    path.mkdir(mode=0o700)
    yield path
    path.rmdir()


def test_a_directory_closed_to_the_user(closed: Path) -> None:
    """The sandbox enters its working directory with the ids of the command."""
    ranges = {} if support.is_root() else inside.ranges()
    mount = Mount(str(closed), source=closed)
    spec = Spec(user="5:6", cwd=str(closed), mounts=[mount], **ranges)
    with pytest.raises(SpawnError) as caught:
        fastns.run(["/bin/true"], spec=spec)
    assert (caught.value.stage, caught.value.errno) == ("chdir", errno.EACCES)


@pytest.mark.parametrize("init", [False, True])
def test_limits(report: Report, init: bool) -> None:
    """The spec's limits apply inside, and the caller's do not change."""
    own = resource.getrlimit(resource.RLIMIT_CORE)
    limits = [
        Rlimit("RLIMIT_NOFILE", 64, 128),
        Rlimit("RLIMIT_CORE", 0, 0),
        Rlimit("RLIMIT_CPU", 100, -1),
        Rlimit("RLIMIT_FSIZE", 2**40, 2**41),
    ]
    seen = report(rlimits=limits, init=init)["rlimits"]
    for limit in limits:
        assert seen[limit.type] == [limit.soft, limit.hard]
    assert resource.getrlimit(resource.RLIMIT_CORE) == own


@pytest.mark.as_user
def test_a_limit_over_the_hard_one(probe_rootfs: Path) -> None:
    """Rights in a user namespace do not permit raising a hard limit."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    plan = fastns.compile(
        Spec(rootfs=probe_rootfs, rlimits=[Rlimit("RLIMIT_NOFILE", hard + 1, hard + 1)])
    )
    with pytest.raises(SpawnError) as caught:
        fastns.run(["/true"], spec=plan)
    assert (caught.value.stage, caught.value.errno) == ("rlimit", errno.EPERM)
    assert plan.ops[caught.value.op_index].code == "rlimit"
