"""Limits of a spec: the accepted values, the files of a cgroup that are written, and the cause."""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from plans import of_this_caller

from fastns import SpawnError, Spec, SpecError, _core, compile
from fastns._command import cause_of
from fastns._policy import cgroup_plan, cgroups
from fastns.limits import Limits, parse_size
from fastns.spec import CGROUP_LIMITS


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (4096, 4096),
        ("512b", 512),
        ("1k", 1024),
        ("64m", 64 << 20),
        ("2G", 2 << 30),
        ("1GiB", 1 << 30),
    ],
)
def test_a_size(text: Any, size: int) -> None:
    assert parse_size("memory", text) == size


@pytest.mark.parametrize(
    "text", ["", "m", "1.5g", "-1", "1mm", "1bb", 0, -1, True, 1.5, b"1m", 2**63]
)
def test_an_invalid_size(text: Any) -> None:
    with pytest.raises(SpecError) as caught:
        parse_size("memory", text)
    assert caught.value.field == "memory"


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("memory", {"memory": "4k"}),
        ("memory", {"memory": []}),
        ("memory", {"memory": {}}),
        ("pids_limit", {"pids_limit": {}}),
        ("cpus", {"cpus": {}}),
        ("cpuset", {"cpuset": {}}),
        ("cpu_time", {"cpu_time": {}}),
        ("memory_swap", {"memory_swap": "64m"}),
        ("memory_swap", {"memory": "64m", "memory_swap": "32m"}),
        ("memory_swap", {"memory": "64m", "memory_swap": -2}),
        ("pids_limit", {"pids_limit": 0}),
        ("pids_limit", {"pids_limit": "5"}),
        ("cpus", {"cpus": 0}),
        ("cpus", {"cpus": float("nan")}),
        ("cpus", {"cpus": True}),
        ("cpu_weight", {"cpu_weight": 10001}),
        ("cpu_time", {"cpu_time": 0}),
        ("cpu_time", {"cpu_time": "1s"}),
        ("cpu_time", {"cpu_time": True}),
        ("cpu_time", {"cpu_time": float("nan")}),
        ("cpuset", {"cpuset": "0-"}),
        ("cpuset", {"cpuset": 0}),
        ("cpuset", {"cpuset": "3-1"}),
        ("cpuset", {"cpuset": "0,5-4"}),
        ("io", {"io": ["/dev/sda"]}),
        ("io", {"io": {"sda": {"rbps": 1}}}),
        ("io", {"io": {"/dev/\0": {"rbps": 1}}}),
        ("io", {"io": {"/dev/\ud800": {"rbps": 1}}}),
        ("io", {"io": {"8:0": {"speed": 1}}}),
        ("io", {"io": {"8:0": {}}}),
        ("io", {"io": {"8:0": {"rbps": 0}}}),
        ("cgroup_parent", {"pids_limit": 5, "cgroup_parent": "/a/../b"}),
        ("require_limits", {"require_limits": 1}),
    ],
)
def test_an_invalid_limit(field: str, fields: dict[str, Any]) -> None:
    with pytest.raises(SpecError) as caught:
        Spec(**fields)
    assert caught.value.field == field


def test_without_limits_there_are_no_cgroups() -> None:
    assert Spec().limits() is None
    plan = compile(Spec())
    assert plan.cgroups is None
    assert "cgroup" not in [op.code for op in plan.ops]
    assert "cgroup" in plan.namespaces


def tree(root: Path, unified: bool, *controllers: str) -> cgroup_plan.Hierarchy:
    (root / "user").mkdir(parents=True, exist_ok=True)
    for directory in (root, root / "user"):
        (directory / "cgroup.controllers").write_text(" ".join(controllers))
        (directory / "cgroup.subtree_control").write_text("")
        (directory / "cgroup.procs").write_text("1\n")
    (root / "user/cgroup.type").write_text("domain\n")
    (root / "memory.memsw.limit_in_bytes").write_text("")
    (root / "cpuset.mems").write_text("0\n")
    return cgroup_plan.Hierarchy(unified, controllers, str(root), str(root / "user"))


EVERYTHING: dict[str, Any] = {
    "memory": "64m",
    "memory_swap": "96m",
    "pids_limit": 5,
    "cpus": 1.5,
    "cpu_weight": 100,
    "cpuset": "0-1",
    "io": {"8:0": {"rbps": 5, "wiops": 6}},
    "cpu_time": 2.5,
}


def test_the_lists_of_limits_agree() -> None:
    assert set(CGROUP_LIMITS) == set(vars(Limits())) == set(cgroup_plan.CONTROLLER)


def files_of(plan: cgroup_plan.CgroupPlan) -> list[tuple[str, str]]:
    return [(file, text) for _, file, text, _ in plan.settings]


def test_the_files_of_version_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tree(tmp_path, True, "memory", "pids", "cpu", "cpuset", "io")
    monkeypatch.setattr(cgroup_plan, "hierarchies", lambda: [place])
    monkeypatch.setattr(cgroup_plan, "_no_swap", lambda: False)
    plan = cgroup_plan.plan(Limits(**EVERYTHING), None, True)
    assert files_of(plan) == [
        ("memory.max", str(64 << 20)),
        ("memory.swap.max", str(32 << 20)),
        ("memory.oom.group", "1"),
        ("pids.max", "5"),
        ("cpu.max", "150000 100000"),
        ("cpuset.cpus", "0-1"),
        ("io.max", "8:0 rbps=5 wiops=6"),
    ]
    assert plan.weights == ((0, "cpu.weight", "100", "cpu_weight"),)
    assert {limit for *_, limit in (*plan.settings, *plan.weights)} == set(EVERYTHING) - {
        "cpu_time"
    }
    assert plan.places == (
        cgroup_plan.Place(place, str(tmp_path), ("memory", "pids", "cpu", "cpuset", "io")),
    )
    assert plan.enforced == tuple(cgroup_plan.CONTROLLER)
    assert plan.unenforced == ()


def test_the_files_of_version_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("memory", "pids", "cpu", "cpuset", "io", "cpuacct")
    places = [tree(tmp_path / name, False, name) for name in names]
    monkeypatch.setattr(cgroup_plan, "hierarchies", lambda: places)
    plan = cgroup_plan.plan(Limits(**EVERYTHING), None, False)
    assert (plan.enforced, plan.unenforced) == (
        tuple(name for name in cgroup_plan.CONTROLLER if name != "io"),
        ("io",),
    )
    assert files_of(plan) == [
        ("memory.limit_in_bytes", str(64 << 20)),
        ("memory.memsw.limit_in_bytes", str(96 << 20)),
        ("pids.max", "5"),
        ("cpu.cfs_period_us", "100000"),
        ("cpu.cfs_quota_us", "150000"),
        ("cpuset.mems", "0"),
        ("cpuset.cpus", "0-1"),
        ("blkio.throttle.read_bps_device", "8:0 5"),
        ("blkio.throttle.write_iops_device", "8:0 6"),
    ]
    assert plan.weights == ((2, "cpu.shares", "1024", "cpu_weight"),)
    assert [place.controllers for place in plan.places] == [(name,) for name in names]
    assert plan.cpu_time == 2_500_000_000
    assert ("cpu_time", 5, "cpuacct.usage", "", 1, False, None) in plan.counters


READS, WRITES = {"8:0": {"rbps": 5, "riops": 6}}, {"8:0": {"riops": 5}, "8:1": {"wbps": 6}}


@pytest.mark.parametrize(
    ("unified", "controllers", "io", "held"),
    [
        (False, ["io"], READS, True),
        (False, ["io"], WRITES, False),
        (False, ["io", "memory"], WRITES, False),
        (True, ["io"], READS, True),
        (True, ["io"], WRITES, False),
        (True, ["io", "memory"], WRITES, True),
    ],
)
def test_io_is_enforced_if_it_limits_buffered_writes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    unified: bool,
    controllers: list[str],
    io: dict[str, Any],
    held: bool,
) -> None:
    """Version 1 limits only direct writes. Version 2 limits buffered ones with the memory
    controller."""
    monkeypatch.setattr(cgroup_plan, "hierarchies", lambda: [tree(tmp_path, unified, *controllers)])
    limits = Limits(io=io)
    if not held:
        with pytest.raises(SpecError, match="buffered write") as caught:
            cgroup_plan.plan(limits, None, True)
        assert caught.value.field == "io"
    plan = cgroup_plan.plan(limits, None, False)
    assert plan.enforced == (("io",) if held else ())
    assert plan.unenforced == (() if held else ("io",))
    assert len(plan.settings) == (1 if unified and io is READS else 2)
    needs_memory = unified and io is WRITES and "memory" in controllers
    assert plan.places[0].controllers == (("io", "memory") if needs_memory else ("io",))


@pytest.mark.parametrize(("weight", "shares"), [(1, 10), (50, 512), (1000, 10240), (10000, 102400)])
def test_shares_are_weights_of_version_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weight: int, shares: int
) -> None:
    """The default of shares is 1024, that of weights 100."""
    monkeypatch.setattr(cgroup_plan, "hierarchies", lambda: [tree(tmp_path, False, "cpu")])
    plan = cgroup_plan.plan(Limits(cpu_weight=weight), None, True)
    assert (files_of(plan), [text for _, _, text, _ in plan.weights]) == ([], [str(shares)])


def test_missing_cpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cpuset with missing CPUs is an error. The kernel's version 2 would accept it and run the
    sandbox on all CPUs."""
    for unified, file in ((True, "cpuset.cpus.effective"), (False, "cpuset.cpus")):
        place = tree(tmp_path / file, unified, "cpuset")
        (tmp_path / file / file).write_text("0-1,4\n")
        monkeypatch.setattr(cgroup_plan, "hierarchies", lambda place=place: [place])
        for cpuset in ("9", "0-3", "1-2", "4,5", "0-99999"):
            with pytest.raises(SpecError) as caught:
                cgroup_plan.plan(Limits(cpuset=cpuset), None, False)
            assert caught.value.field == "cpuset"
            assert "0-1,4" in caught.value.reason
        for cpuset in ("0-1,4", "4", "1"):
            plan = cgroup_plan.plan(Limits(cpuset=cpuset), None, True)
            assert ("cpuset.cpus", cpuset) in files_of(plan)


def test_mounts_with_unusual_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """mountinfo may contain a form feed or invalid UTF-8 in a path, and an empty source."""
    files = {
        "/proc/self/cgroup": ["0::/"],
        "/proc/self/mountinfo": [
            "1 0 0:1 / /a\x0cb rw - tmpfs none rw",
            "2 0 0:2 / /c rw - tmpfs  rw",
            "3 0 0:3 / /d\udcff\\040e rw shared:1 - cgroup2 cgroup2 rw",
        ],
        "/d\udcff e/cgroup.controllers": ["memory pids"],
    }
    for module in (cgroup_plan, cgroups):
        monkeypatch.setattr(module, "lines", files.__getitem__)
    (found,) = cgroup_plan.hierarchies()
    assert (found.mount, found.controllers) == ("/d\udcff e", ("memory", "pids"))


def test_lines_of_missing_and_unreadable_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "strange").write_bytes(b"\xff\n")  # other users choose names in mountinfo
    assert cgroups.lines(str(tmp_path / "strange")) == ["\udcff"]
    (tmp_path / "feed").write_bytes(b"a\x0cb\rc\n\nd\n")
    assert cgroups.lines(str(tmp_path / "feed")) == ["a\x0cb\rc", "", "d"]
    (tmp_path / "empty").touch()
    assert cgroups.lines(str(tmp_path / "empty")) == []
    assert cgroups.lines(str(tmp_path / "missing")) == []
    assert cgroups.lines(str(tmp_path / "strange/below")) == []
    with pytest.raises(SpawnError) as caught:
        cgroups.lines(str(tmp_path))
    assert (caught.value.stage, caught.value.errno) == ("cgroup", errno.EISDIR)


@pytest.mark.parametrize("what", ["hierarchies", "places", "swap"])
def test_no_fd_to_find_cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """If no fd is free, that is the error: no controller is reported missing, no plan cached."""
    place = tree(tmp_path, True, "memory")
    full = True
    at = {"hierarchies": "/proc/self/", "places": str(tmp_path), "swap": "/proc/swaps"}[what]

    def refuse(path: Any, *args: Any, **options: Any) -> Any:
        if full and str(path).startswith(at):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), path)
        return open(path, *args, **options)

    if what != "hierarchies":
        monkeypatch.setattr(cgroup_plan, "hierarchies", lambda: [place])
    monkeypatch.setattr(cgroups, "open", refuse, raising=False)
    spec = Spec(memory="63m", hostname=f"no-fd-for-{what}", require_limits=False)
    with pytest.raises(SpawnError) as caught:
        of_this_caller(spec)
    assert (caught.value.stage, caught.value.errno) == ("cgroup", errno.EMFILE)
    assert str(caught.value.path).startswith(at)
    assert "RLIMIT_NOFILE" in str(caught.value.hint)
    full = False
    monkeypatch.setattr(cgroup_plan, "hierarchies", lambda: [place])
    assert of_this_caller(spec).limits == ("memory",)


def test_cpu_time_alone_needs_no_controller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tree(tmp_path, True)
    monkeypatch.setattr(cgroup_plan, "hierarchies", lambda: [place])
    plan = cgroup_plan.plan(Limits(cpu_time=1), None, True)
    assert plan.places == (cgroup_plan.Place(place, str(tmp_path), ()),)
    assert (files_of(plan), plan.cpu_time, plan.enforced) == ([], 10**9, ("cpu_time",))
    assert ("cpu_time", 0, "cpu.stat", "usage_usec", 1000, False, None) in plan.counters


def test_memory_alone_is_without_swap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tree(tmp_path, True, "memory")
    monkeypatch.setattr(cgroup_plan, "hierarchies", lambda: [place])
    monkeypatch.setattr(cgroup_plan, "_no_swap", lambda: False)
    files = dict(files_of(cgroup_plan.plan(Limits(memory="64m"), None, True)))
    assert files["memory.swap.max"] == "0"
    anything = Limits(memory="64m", memory_swap=-1)
    assert dict(files_of(cgroup_plan.plan(anything, None, True)))["memory.swap.max"] == "max"


def test_a_limit_without_its_controller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tree(tmp_path, True, "pids")
    monkeypatch.setattr(cgroup_plan, "hierarchies", lambda: [place])
    limits = Limits(memory="64m", pids_limit=5)
    with pytest.raises(SpecError) as caught:
        cgroup_plan.plan(limits, None, True)
    assert caught.value.field == "memory"
    plan = cgroup_plan.plan(limits, None, False)
    assert (plan.enforced, plan.unenforced) == (("pids_limit",), ("memory",))


def test_a_cgroup_with_processes_of_its_own(tmp_path: Path) -> None:
    """Such a cgroup cannot enable controllers for its children, except the root (cgroups(7))."""
    place = tree(tmp_path, True, "pids")
    with pytest.raises(OSError, match="processes of its own"):
        cgroup_plan.find_place(place, ("pids",), "/user")
    (tmp_path / "user/cgroup.subtree_control").write_text("pids")  # already enabled
    assert cgroup_plan.find_place(place, ("pids",), "user").parent == str(tmp_path / "user")
    (tmp_path / "user/cgroup.subtree_control").write_text("")
    (tmp_path / "user/cgroup.procs").write_text("")
    assert cgroup_plan.find_place(place, ("pids",), "/user").parent == str(tmp_path / "user")


FILTERED = SimpleNamespace(filtered=True)  # in place of a Plan with a filter


@pytest.mark.parametrize(
    ("cause", "returncode", "facts"),
    [  # a certain cause outranks one inferred from counters
        ("exited", 3, {}),
        ("exited", 0, {}),
        ("signaled", -11, {}),
        ("timeout", -9, {"timed_out": True}),
        ("killed", -9, {"killed": True}),
        ("exited", 0, {"killed": True}),
        ("output_limit", 0, {"over": True}),
        ("output_limit", -9, {"over": True, "counts": {"oom_kills": 1}}),
        ("timeout", -9, {"over": True, "timed_out": True}),
        ("oom", -9, {"counts": {"oom_kills": 1}}),
        ("timeout", -9, {"counts": {"oom_kills": 1}, "timed_out": True}),  # an OOM kill of a child
        ("timeout", 0, {"counts": {"oom_kills": 1}, "timed_out": True}),
        ("killed", -9, {"counts": {"oom_kills": 1}, "killed": True}),
        ("signaled", -9, {"counts": {"oom_kills": 1}, "signals": {signal.SIGKILL}}),
        ("signaled", -15, {"counts": {"oom_kills": 1, "pids_refused": 1}}),
        ("oom", 1, {"counts": {"oom_kills": 1, "pids_refused": 1}}),
        ("oom", -6, {"counts": {"oom_kills": 1}}),
        ("exited", 0, {"counts": {"oom_kills": 1}}),
        ("cpu_time", -9, {"counts": {"cpu_time_over": 1, "oom_kills": 1}}),
        ("timeout", -9, {"counts": {"cpu_time_over": 1}, "timed_out": True}),
        ("exited", 0, {"counts": {"cpu_time_over": 1}}),
        ("signaled", -9, {"counts": {"cpu_time_over": 0}}),
        ("pids", 2, {"counts": {"pids_refused": 3}}),
        ("pids", -6, {"counts": {"pids_refused": 3}}),
        ("seccomp", -31, {"counts": {"pids_refused": 3, "oom_kills": 1}, "plan": FILTERED}),
        ("signaled", -31, {"plan": FILTERED, "signals": {signal.SIGSYS}}),
        ("exited", 0, {"counts": {"pids_refused": 3}}),
        ("signaled", -9, {"counts": {"oom_kills": None, "pids_refused": None}}),
    ],
)
def test_the_cause(cause: str, returncode: int, facts: dict[str, Any]) -> None:
    counts = facts.pop("counts", None)
    assert cause_of(returncode, counts, **facts) == cause


def test_a_pool_that_cannot_be_made_closes_its_fds() -> None:
    fds = [os.dup(0) for _ in range(9)]
    with pytest.raises(ValueError, match="too many"):
        _core.CgroupPool(tuple((fd, True) for fd in fds), (), (), None, 0)
    assert [fd for fd in fds if os.path.exists(f"/proc/self/fd/{fd}")] == []


def test_limits_can_be_replaced() -> None:
    limits = Limits(io={"8:0": {"rbps": 1 << 20}}, memory="32m")  # type: ignore[arg-type]
    changed = dataclasses.replace(limits, memory=64 << 20)
    assert (changed.io, changed.memory) == (limits.io, 64 << 20)


def test_a_cgroup_that_cannot_be_listed_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_path: str) -> None:
        raise OSError(errno.EMFILE, "no fd is free")

    directory = tmp_path / "cgroup"
    directory.mkdir()
    monkeypatch.setattr(os, "scandir", fail)
    assert cgroups._remove(str(directory))
    assert not directory.exists()
