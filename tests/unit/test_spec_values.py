"""What Spec, Mount, IDMapping and Rlimit accept and normalise. Specs compare and hash by value."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastns.errors import SpecError
from fastns.spec import DEFAULT_ENV, KINDS, RLIMITS, FrozenMap, IDMapping, Mount, Rlimit, Spec

RANGE = (IDMapping(0, 100000, 1000),)
TOP = 2**32 - 2  # the highest id
HOST = {"mount": "host"}


def bind(destination: str) -> Mount:
    return Mount(destination, source="/srv")


def refused(make: Callable[[], object], field: str, words: str) -> None:
    with pytest.raises(SpecError, match=words) as caught:
        make()
    assert caught.value.field == field


def spec_id(value: object) -> str | None:
    return str(value)[:40] if isinstance(value, dict) else None


@pytest.mark.parametrize("name", ["nofile", "NOFILE", "RLIMIT_NOFILE", "rlimit_nofile"])
def test_all_spellings_of_a_resource_are_equal(name: str) -> None:
    limit = Rlimit(name, 1, 2)
    assert limit.type == "RLIMIT_NOFILE"
    assert limit == Rlimit("RLIMIT_NOFILE", 1, 2)
    refused(lambda: Spec(rlimits=[limit, Rlimit("nofile", 3, 3)]), "rlimits", "given twice")


def test_the_signature_has_the_fields() -> None:
    names = [field.name for field in dataclasses.fields(Spec)]
    for shown in (inspect.signature(Spec), inspect.signature(Spec.__init__)):
        parameters = [each for each in shown.parameters.values() if each.name != "self"]
        assert [each.name for each in parameters] == names
        assert {each.kind for each in parameters} == {inspect.Parameter.KEYWORD_ONLY}
        assert shown.parameters["hostname"].annotation == "str | None"
        assert shown.parameters["umask"].default == 0o022


def test_the_defaults() -> None:
    spec = Spec()
    assert {f.name: getattr(spec, f.name) for f in dataclasses.fields(Spec)} == {
        "rootfs": None,
        "root_mode": "pivot_root",
        "read_only": False,
        "overlay": False,
        "hostname": None,
        "domainname": None,
        "namespaces": {},
        "mounts": (),
        "default_mounts": True,
        "tmpfs_size": None,
        "masked_paths": None,
        "readonly_paths": None,
        "files": {},
        "env": {},
        "cwd": "/",
        "umask": 0o022,
        "user": "0:0",
        "additional_gids": (),
        "uid_mappings": (),
        "gid_mappings": (),
        "network": "none",
        "rlimits": (),
        "init": False,
        "die_with_parent": False,
        "memory": None,
        "memory_swap": None,
        "pids_limit": None,
        "cpus": None,
        "cpu_weight": None,
        "cpuset": None,
        "cpu_time": None,
        "io": {},
        "cgroup_parent": None,
        "max_output": None,
        "on_output_limit": "truncate",
        "require_limits": True,
        "capabilities": (),
        "no_new_privileges": True,
        "seccomp": "default",
        "allow_setid": False,
        "landlock": None,
    }


NEW = dict.fromkeys(KINDS, "new") | {"user": "host", "time": "host"}
EFFECTIVE: list[tuple[dict[str, Any], dict[str, str]]] = [
    ({}, {}),
    ({"namespaces": {"pid": "host", "time": "new"}}, {"pid": "host", "time": "new"}),
    ({"namespaces": {"user": "new"}}, {"user": "new"}),
    ({"namespaces": {"ipc": Path("/n/ipc")}}, {"ipc": "/n/ipc"}),
    ({"uid_mappings": RANGE, "gid_mappings": RANGE}, {"user": "new"}),
    ({"network": "none"}, {"network": "new"}),
    ({"network": "host"}, {"network": "host"}),
    ({"network": Path("/n/net")}, {"network": "/n/net"}),
    ({"namespaces": {"network": "host"}}, {"network": "host"}),
    ({"network": "none", "namespaces": {"network": "new"}}, {"network": "new"}),
    ({"network": "host", "namespaces": {"network": "host"}}, {"network": "host"}),
    ({"network": "/n", "namespaces": {"network": "/n"}}, {"network": "/n"}),
]


@pytest.mark.parametrize(("fields", "changed"), EFFECTIVE, ids=spec_id)
def test_the_effective_namespaces(fields: dict[str, Any], changed: dict[str, str]) -> None:
    spec = Spec(**fields)
    assert {kind: spec.namespace(kind) for kind in KINDS} == NEW | changed


BIND = Mount("/mnt", source="/srv")
LAYERED = ["lowerdir=/a", "upperdir=/b", "workdir=/c"]
WRITING: list[tuple[dict[str, Any], bool]] = [
    ({}, False),
    ({"mounts": [Mount("/mnt", type="tmpfs")]}, False),
    ({"mounts": [Mount("/mnt", source="/srv", options=["ro"])]}, False),
    ({"mounts": [Mount("/mnt", source="/srv", options=["ro"]), Mount("/opt", source="/o")]}, True),
    ({"mounts": [BIND]}, True),
    ({"mounts": [Mount("/mnt", source="/srv", options=["rbind", "rw"])]}, True),
    ({"mounts": [Mount("/mnt", source="/srv", options=["ro", "rslave"])]}, True),
    ({"mounts": [Mount("/mnt", source="/srv", options=["ro", "private"])]}, False),
    ({"mounts": [Mount("/mnt", type="devtmpfs")]}, True),
    ({"mounts": [Mount("/mnt", type="overlay", options=["lowerdir=/a"])]}, False),
    ({"mounts": [Mount("/mnt", type="overlay", options=LAYERED)]}, True),
    ({"rootfs": "/r"}, True),
    ({"rootfs": "/r", "read_only": True}, False),
    ({"rootfs": "/r", "overlay": True}, False),
    ({"rootfs": "/r", "overlay": True, "mounts": [BIND]}, True),
    ({"rootfs": "/r", "read_only": True, "mounts": [BIND]}, True),
    ({"namespaces": {"mount": "host"}}, True),
    ({"namespaces": {"mount": "/n/mnt"}}, True),
]


@pytest.mark.parametrize(("fields", "writes"), WRITING, ids=spec_id)
def test_whether_files_of_the_host_can_be_written(fields: dict[str, Any], writes: bool) -> None:
    assert Spec(**fields).writes_to_host() is writes


def test_asks_for_is_false_for_the_default() -> None:
    assert not Spec().asks_for("user")
    assert Spec(namespaces={"user": "host"}).asks_for("user")
    assert Spec(uid_mappings=RANGE, gid_mappings=RANGE).asks_for("user")


def test_an_explicit_network_survives_replace_and_pickle() -> None:
    default, explicit = Spec(), Spec(network="none")
    assert default == explicit
    for copied in (
        dataclasses.replace(default, hostname="box"),
        pickle.loads(pickle.dumps(default)),
        copy.deepcopy(default),
    ):
        joined = dataclasses.replace(copied, namespaces={"network": "host"})
        assert joined.namespace("network") == "host"
    kept = dataclasses.replace(explicit, hostname="box")
    host = {"network": "host"}
    for copied in (kept, copy.deepcopy(kept), pickle.loads(pickle.dumps(kept))):
        with pytest.raises(SpecError, match="contradicts"):
            dataclasses.replace(copied, namespaces=host)


NORMALISED: list[tuple[dict[str, Any], str, object]] = [
    ({"rootfs": Path("roots/a")}, "rootfs", "roots/a"),
    ({"rootfs": "/" + "x" * 4094}, "rootfs", "/" + "x" * 4094),
    ({"root_mode": "chroot", "rootfs": "/r", "namespaces": HOST}, "rootfs", "/r"),
    ({"hostname": "x" * 64}, "hostname", "x" * 64),
    ({"hostname": "bücher.example_1-2"}, "hostname", "bücher.example_1-2"),
    ({"user": 1000}, "user", "1000:0"),
    ({"user": "1000"}, "user", "1000:0"),
    ({"user": "01000:007"}, "user", "1000:7"),
    ({"user": f"{TOP}:{TOP}"}, "user", f"{TOP}:{TOP}"),
    ({"umask": 0}, "umask", 0),
    ({"umask": 0o777}, "umask", 0o777),
    ({"cwd": Path("/srv/x")}, "cwd", "/srv/x"),
    ({"additional_gids": [4, TOP]}, "additional_gids", (4, TOP)),
    ({"additional_gids": range(64)}, "additional_gids", tuple(range(64))),
    ({"files": {"//etc/./hosts": "x"}}, "files", {"/etc/hosts": "x"}),
    ({"files": {Path("/a"): b"\xff"}}, "files", {"/a": b"\xff"}),
    ({"files": {"/a": "", "/ab": "", "/b/a": ""}}, "files", {"/a": "", "/ab": "", "/b/a": ""}),
    ({"files": {"/a/b": ""}, "mounts": [bind("/a")]}, "files", {"/a/b": ""}),
    ({"mounts": [bind("/a"), bind("/a/b")]}, "mounts", (bind("/a"), bind("/a/b"))),
    ({"mounts": [bind("/a/b"), bind("/ab")]}, "mounts", (bind("/a/b"), bind("/ab"))),
    ({"mounts": [bind("/proc"), bind("/dev/shm")]}, "mounts", (bind("/proc"), bind("/dev/shm"))),
    ({"env": {"A": "\udcff", "B": ""}}, "env", {"A": "\udcff", "B": ""}),
    ({"env": {"A": "x" * 131069}}, "env", {"A": "x" * 131069}),
    ({"uid_mappings": list(RANGE), "gid_mappings": RANGE}, "uid_mappings", RANGE),
]


@pytest.mark.parametrize(("fields", "name", "value"), NORMALISED, ids=spec_id)
def test_a_field_is_normalised(fields: dict[str, Any], name: str, value: object) -> None:
    found = getattr(Spec(**fields), name)
    assert found == value
    assert type(found) is (FrozenMap if isinstance(value, dict) else type(value))


def test_a_mount_is_normalised() -> None:
    mount = Mount("//mnt/./data//", source=Path("/srv"), options=["ro"])  # type: ignore[arg-type]
    assert mount == Mount("/mnt/data", "bind", "/srv", ("ro",))
    assert isinstance(mount.options, tuple)
    assert Mount("/t", type="tmpfs").source is None


def test_uid_and_gid() -> None:
    spec = Spec(user="1000:7")
    assert (spec.uid, spec.gid) == (1000, 7)


def test_the_environment_extends_clean_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTNS_CALLERS_OWN", "secret")
    assert Spec(rootfs="/r").environment() == DEFAULT_ENV
    assert set(DEFAULT_ENV) == {"PATH", "HOME", "TERM", "LANG"}
    assert Spec(rootfs="/r", user="5").environment() == DEFAULT_ENV | {"HOME": "/"}
    for spec in (Spec(), Spec(user="5")):  # /tmp is the only writable directory inside
        assert spec.environment() == DEFAULT_ENV | {"HOME": "/tmp"}
    for spec in (Spec(mounts=[bind("/root")]), Spec(namespaces=HOST), Spec(default_mounts=False)):
        assert spec.environment()["HOME"] == "/root"
    changed = Spec(user="5", env={"HOME": "/h", "A": "b"}).environment()
    assert changed == DEFAULT_ENV | {"HOME": "/h", "A": "b"}


def test_the_largest_ranges_and_limits() -> None:
    assert IDMapping(0, 0, TOP + 1).size == TOP + 1
    assert IDMapping(TOP, TOP, 1).host_id == TOP
    many = [IDMapping(i, i, 1) for i in range(340)]
    assert len(Spec(uid_mappings=many, gid_mappings=many).uid_mappings) == 340
    for soft, hard in ((0, 0), (5, -1), (-1, -1), (2**64 - 1, -1), (-1, 2**64 - 1)):
        limit = Rlimit("RLIMIT_NOFILE", soft, hard)
        assert (limit.soft, limit.hard, limit.number) == (soft, hard, 7)


def test_the_numbers_of_limits_are_those_of_python() -> None:
    import resource

    known = {name: getattr(resource, name) for name in RLIMITS if hasattr(resource, name)}
    assert len(known) >= 15  # of 16; no Python has RLIMIT_LOCKS
    assert known == {name: RLIMITS[name] for name in known}


# ---- values: equal, hashable, picklable, frozen ----

FULL = Spec(
    rootfs="/r",
    overlay=True,
    hostname="box",
    namespaces={"user": "new"},
    mounts=[Mount("/m", source="/s", options=["ro"])],
    files={"/etc/hosts": "x", "/b": b"\xff"},
    env={"A": "b", "C": "d"},
    user="1:2",
    uid_mappings=RANGE,
    gid_mappings=RANGE,
    rlimits=[Rlimit("RLIMIT_CORE", 0, 0)],
    network="host",
)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_spec_is_pickled(protocol: int) -> None:
    copied = pickle.loads(pickle.dumps(FULL, protocol))
    assert copied == FULL
    assert hash(copied) == hash(FULL)
    assert copied.env == {"A": "b", "C": "d"}


def test_a_spec_is_a_value() -> None:
    assert copy.deepcopy(FULL) == FULL
    assert dataclasses.replace(FULL) == FULL
    other = dataclasses.replace(FULL, hostname="other")
    assert other != FULL
    assert len({FULL, other, copy.copy(FULL)}) == 2
    assert Spec(env={"A": "1", "B": "2"}) == Spec(env={"B": "2", "A": "1"})
    assert hash(Spec(env={"A": "1", "B": "2"})) == hash(Spec(env={"B": "2", "A": "1"}))
    assert Spec() != object()


def test_replace_checks_again() -> None:
    refused(lambda: dataclasses.replace(FULL, rootfs=None), "overlay", "needs a rootfs")


@pytest.mark.parametrize("value", [FULL, FULL.mounts[0], RANGE[0], FULL.rlimits[0]])
def test_nothing_can_be_changed(value: Any) -> None:
    name = dataclasses.fields(value)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, name, 1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        delattr(value, name)


def test_later_changes_by_the_caller_do_not_affect_a_spec() -> None:
    env, mounts = {"A": "b"}, [bind("/a")]
    spec = Spec(env=env, mounts=mounts)
    env["A"] = "c"
    mounts.clear()
    assert spec.env == {"A": "b"}
    assert spec.mounts == (bind("/a"),)
    with pytest.raises(TypeError):
        spec.env["A"] = "c"  # type: ignore[index]


def test_a_spec_needs_no_heavy_imports() -> None:
    code = (
        "import sys; before = set(sys.modules); import fastns.spec; "
        "print(*sorted({'dataclasses', 'inspect', 'subprocess', 'fastns._core'} "
        "& set(sys.modules) - before), 'fastns.spec' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["True"]
