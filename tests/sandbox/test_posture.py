"""Thousands of sandboxes in each way of starting are the same: nothing depends on a race or an
earlier sandbox."""

import json
import os
import resource
from pathlib import Path
from typing import Any

import pytest
import support

import fastns
from fastns import Container, Spec, Template, compile
from fastns.spec import DEFAULT_RLIMITS, READONLY_PATHS

SPAWNS = 2000 if support.LONG else 250
CHUNK = 250
WAYS = ("direct", "init", "template", "ready", "kept", "rooms")
VARY = ("boottime", "monotonic", "root", "hostname", "domainname")
KINDS = {"pid", "mnt", "uts", "ipc", "net", "cgroup"}


def plain(report: dict[str, Any], in_room: bool = False) -> dict[str, Any]:
    """The report without what always differs: numbers of inodes, mounts and devices, and in a room
    the pid."""
    kept = {name: value for name, value in report.items() if name not in VARY}
    host = {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in report["namespaces"]}
    kept["namespaces"] = sorted(
        kind for kind, link in report["namespaces"].items() if link != host[kind]
    )
    kept["fds"] = [(fd["fd"], fd["target"].split(":")[0]) for fd in report["fds"]]
    kept["mounts"] = [
        (
            mount["point"],
            mount["type"],
            *mount["options"],
            *mount["propagation"],
            *mount["super_options"],
        )
        for mount in report["mounts"]
    ]
    kept["dev"] = {
        name: (entry["type"], entry["mode"], entry["uid"], entry["gid"], entry["target"])
        for name, entry in report["dev"].items()
    }
    if in_room:
        own = report["pid"]
        for name in ("pid", "sid", "pgid"):
            kept[name] = "own" if report[name] == own else "another's"
        kept["proc_pids"] = ["own" if pid == own else "another's" for pid in report["proc_pids"]]
    return kept


def reports(way: str, spec: Spec) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []

    def take(run_batch: Any) -> None:
        while len(found) < SPAWNS:
            for done in run_batch([["/probe"]] * CHUNK):
                assert isinstance(done, fastns.CompletedSandbox), done
                found.append(plain(json.loads(done.stdout), way == "rooms"))

    if way in ("direct", "init"):
        plan = compile(spec)
        assert plan.method == "direct"
        take(lambda jobs: fastns.run_batch(jobs, spec=plan))
    else:
        ready = 4 if way == "ready" else None
        with Template(spec, ready=ready, reuse=way == "rooms") as template:
            if way == "ready":  # one at a time: a batch uses no ready sandboxes
                while len(found) < SPAWNS:
                    done = template.run(["/probe"], stdin=fastns.DEVNULL, capture_output=True)
                    found.append(plain(json.loads(done.stdout)))
            else:
                take(template.run_batch)
            stats = template.stats()
            assert (stats.networks_reused > SPAWNS // 2) is (way == "kept")
            assert (stats.rooms_reused > SPAWNS // 2) is (way == "rooms")
    return found


def expected_limits() -> dict[str, list[int]]:
    """The caller's limits, except those with a default: the lower of it and half the caller's."""
    names = {name for name in dir(resource) if name.startswith("RLIMIT_")} - {"RLIMIT_OFILE"}
    found = {name: list(resource.getrlimit(getattr(resource, name))) for name in names}
    for limit in DEFAULT_RLIMITS:
        soft = found[limit.type][0]
        share = 2**64 if soft == -1 else soft // 2
        if limit.type == "RLIMIT_NOFILE":
            share = max(share, min(soft, 256))
        if limit.type != "RLIMIT_CORE":
            found[limit.type] = [min(limit.soft, share), min(limit.hard, share)]
        elif support.is_root() or found[limit.type][1] != 0:
            found[limit.type] = [1, 1]
    return found


@pytest.mark.parametrize("way", WAYS)
def test_thousands_of_reports_are_the_same(way: str, probe_rootfs: Path) -> None:
    given = {"init": way == "init", "read_only": way == "kept", "overlay": way == "rooms"}
    spec = Spec(rootfs=probe_rootfs, **given)
    first, *others = reports(way, spec)
    for number, other in enumerate(others, 1):
        differs = {name: (first[name], other[name]) for name in first if first[name] != other[name]}
        assert not differs, (number, differs)

    root, init, rooms = support.is_root(), way == "init", way == "rooms"
    assert first["capabilities"] == dict.fromkeys(
        ("effective", "permitted", "inheritable", "bounding", "ambient"), 0
    )
    assert (first["no_new_privs"], first["seccomp"], first["securebits"]) == (1, 2, 0)
    assert [fd for fd, _ in first["fds"]] == [0, 1, 2]
    assert first["fds"][1:] == [(1, "pipe"), (2, "pipe")]
    assert set(first["namespaces"]) == KINDS | {"user"}
    assert first["uid_map"].split()[::2] == ["0", "65536" if root else "1"]
    if root:
        assert first["dev"]["shm"][2:4] == (0, 0)
        assert first["dev"]["null"][1:4] == (0o666, 65534, 65534)  # owned by nobody
    pid = "own" if rooms else 2 if init else 1
    assert (first["pid"], first["ppid"]) == (pid, 1 if init or rooms else 0)
    assert first["sid"] == first["pgid"] == pid or init
    assert first["proc_pids"] == ([1, 2] if init else [pid])  # a room's pid 1 is hidden
    assert (first["uid"], first["gid"], first["umask"]) == (0, 0, 0o022)
    assert first["groups"] == ([] if root else first["groups"])
    assert first["environ"] == [
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME=/root",
        "TERM=xterm",
        "LANG=C.UTF-8",
    ]
    assert first["rlimits"] == expected_limits() | {
        "RLIMIT_LOCKS": first["rlimits"]["RLIMIT_LOCKS"]
    }
    assert int(first["personality"], 16) == 0
    assert int(first["oom_score_adj"]) >= 0
    assert {line.rpartition(":")[2] for line in first["cgroup"].splitlines()} == {"/"}
    assert first["keyring"] == "EPERM"  # test_keyring.py checks that it has its own
    assert first["signals"] == {"blocked": [], "ignored": [], "caught": []}
    assert list(first["interfaces"]) == ["lo"]
    assert first["queues"] == []
    mounts = {point: options for point, _kind, *options in first["mounts"]}
    for point, options in mounts.items():
        if point != "/":
            assert "nosuid" in options, point
    for point in READONLY_PATHS:
        assert not os.path.exists(point) or "ro" in mounts[point]
    assert "ro" in mounts["/sys"]


def test_a_command_in_a_room_has_the_posture_of_a_fresh_one(probe_rootfs: Path) -> None:
    """Its pid and the options of mounts differ, as rooms need."""
    spec = Spec(rootfs=probe_rootfs, overlay=True)
    found = []
    for reuse in (False, True):
        with Template(spec, reuse=reuse, ready=1) as template:
            template.run(["/true"], stdin=fastns.DEVNULL)
            done = template.run(["/probe"], stdin=fastns.DEVNULL, capture_output=True)
            assert done.reused is reuse
            found.append(plain(json.loads(done.stdout), in_room=True))
    fresh, room = found
    assert (fresh.pop("ppid"), room.pop("ppid")) == (0, 1)
    ways = {
        "proc": {"hidepid=2", "hidepid=invisible"},
        **{kind: {"noatime", "relatime"} for kind in ("tmpfs", "devpts", "overlay")},
    }
    for report in found:
        mounts = report["mounts"]
        report["mounts"] = [
            [word for word in mount if word not in ways.get(mount[1], ())] for mount in mounts
        ]
    assert room == fresh


def test_a_command_in_a_container_has_the_posture_of_a_direct_one(probe_rootfs: Path) -> None:
    """Its pid differs, and it sees the container's other processes."""
    spec = Spec(rootfs=probe_rootfs)
    direct = fastns.run(["/probe"], spec=spec, stdin=fastns.DEVNULL, capture_output=True)
    with Container(spec) as container:
        for _ in range(3):
            inside = container.run(["/probe"], stdin=fastns.DEVNULL, capture_output=True)
    first, second = (plain(json.loads(done.stdout), in_room=True) for done in (direct, inside))
    assert (first.pop("ppid"), second.pop("ppid")) == (0, json.loads(inside.stdout)["pid"] - 1)
    assert (first.pop("proc_pids"), second.pop("proc_pids")) == (
        ["own"],
        ["another's", "another's", "own"],
    )
    assert second == first


def test_a_report_that_differs_is_seen(probe_rootfs: Path) -> None:
    """The control: with one defence off the report differs."""
    with Template(Spec(rootfs=probe_rootfs)) as template:
        base = template.run(["/probe"], capture_output=True)
    usual = plain(json.loads(base.stdout))
    fields: dict[str, dict[str, Any]] = {
        "seccomp": {"seccomp": "unconfined"},
        "no_new_privs": {"no_new_privileges": False},
        "capabilities": {"capabilities": ["NET_RAW"]},
        "mounts": {"masked_paths": []},
        "umask": {"umask": 0},
        "environ": {"env": {"A": "b"}},
        "interfaces": {"network": "host"},
        "namespaces": {"namespaces": {"uts": "host"}},
        "keyring": {"seccomp": "unconfined"},
        "rlimits": {"rlimits": [fastns.Rlimit("RLIMIT_CORE", 0, 0)]},
        "ppid": {"init": True},
    }
    for name, changed in fields.items():
        spec = Spec(rootfs=probe_rootfs, **changed)
        done = fastns.run(["/probe"], spec=spec, capture_output=True)
        assert plain(json.loads(done.stdout))[name] != usual[name], name
