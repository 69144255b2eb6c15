"""cgroup v2: what the files of a sandbox's cgroup contain and do, and how fastns handles delegated
and unusable parts of the tree. tests/kernels.sh also runs this file on other kernels."""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import support
from inside import WAYS, groups, ranges, runner
from processes import eventually

import fastns
from fastns import Sandbox, Spec, SpecError, Template, _machine
from fastns._policy import cgroup_plan
from fastns._policy.cgroup_plan import Hierarchy

pytestmark = pytest.mark.with_cgroups

NEEDED = {"memory", "pids", "cpu", "cpuset", "io"}
DISK = Path("/dev/ram0")
MIB = 1 << 20
SPIN = ["sh", "-c", "while :; do :; done"]


@pytest.fixture(autouse=True)
def tree() -> Hierarchy:
    for hierarchy in cgroup_plan.hierarchies():
        if hierarchy.unified and set(hierarchy.controllers) >= NEEDED:
            return hierarchy
    support.skip_missing("cgroup version 2 with its controllers")


@contextlib.contextmanager
def alive(args: list[str], **fields: Any) -> Iterator[Sandbox]:
    """A running sandbox. Its plan is closed afterwards, which removes its cgroups."""
    plan = fastns.compile(Spec(**fields))
    try:
        with fastns.spawn(args, spec=plan) as box:
            yield box
            box.kill()
    finally:
        plan.close()


def cgroup_of(tree: Hierarchy, sandbox: Sandbox) -> Path:
    path = Path(f"/proc/{sandbox.pid}/cgroup").read_text().split("0::", 1)[1].strip()
    return Path(tree.mount + path)


def count(cgroup: Path, file: str, key: str) -> int:
    words = (cgroup / file).read_text().split()
    return int(words[words.index(key) + 1]) if key in words else 0


def a_disk() -> str:
    return next(
        (path / "dev").read_text().strip()
        for path in sorted(Path("/sys/block").iterdir(), key=lambda path: path.name != DISK.name)
    )


def test_the_files_of_a_cgroup(tree: Hierarchy, busybox_rootfs: Path) -> None:
    """The files contain the limits of the spec."""
    disk = a_disk()
    spec = Spec(
        rootfs=busybox_rootfs, memory="32m", pids_limit=7, cpus=0.25, cpu_weight=50, cpuset="0",
        io={disk: {"rbps": MIB, "wiops": 7}},
    )  # fmt: skip
    with Template(spec) as template, template.spawn(["sleep", "60"]) as box:
        cgroup = cgroup_of(tree, box)
        expected = {
            "memory.max": str(32 * MIB),
            "memory.oom.group": "1",
            "pids.max": "7",
            "pids.current": "1",
            "cpu.max": "25000 100000",
            "cpu.weight": "100",  # the default; cpu_weight is set on the parent, see below
            "cpuset.cpus.effective": "0",
            "io.max": f"{disk} rbps={MIB} wbps=max riops=max wiops=7",
        }
        if not cgroup_plan._no_swap():
            expected["memory.swap.max"] = "0"
        found = {file: (cgroup / file).read_text().strip() for file in expected}
        assert found == expected
        assert (cgroup.parent / "cpu.weight").read_text() == "50\n"
        assert (cgroup / "cgroup.procs").read_text() == f"{box.pid}\n"
        box.kill()
    assert not cgroup.exists()


@pytest.mark.parametrize("way", [*WAYS, "ranges"])
def test_each_sandbox_has_its_own_cgroup(tree: Hierarchy, busybox_rootfs: Path, way: str) -> None:
    """A sandbox starts in it by CLONE_INTO_CGROUP, or enters it later if another step, such as
    newuidmap, must come first."""
    before = groups()
    fields: dict[str, Any] = ranges() if way == "ranges" else {}
    spec = Spec(rootfs=busybox_rootfs, memory="32m", pids_limit=9, init=way == "init", **fields)
    with contextlib.ExitStack() as stack:
        if way in ("template", "ready"):
            template = stack.enter_context(Template(spec, ready=2 * (way == "ready")))
            boxes = [template.spawn(["sleep", "60"]) for _ in range(2)]
        else:
            plan = fastns.compile(spec)
            stack.callback(plan.close)
            boxes = [fastns.spawn(["sleep", "60"], spec=plan) for _ in range(2)]
        cgroups = [cgroup_of(tree, box) for box in boxes]
        assert len(set(cgroups)) == 2
        assert all(str(cgroup.parent) in groups() for cgroup in cgroups)
        processes = 2 if way == "init" else 1
        assert all(eventually(lambda at=cgroup: pids(at) == processes) for cgroup in cgroups)
        for box in boxes:
            box.kill()
            box.wait()
            assert (box.cause, box.limits) == ("killed", ("memory", "pids_limit"))
    assert groups() == before


def pids(cgroup: Path) -> int:
    return int((cgroup / "pids.current").read_text())


def test_throttling(tree: Hierarchy, busybox_rootfs: Path) -> None:
    """The kernel throttles a sandbox that uses more than cpus."""
    fields: dict[str, Any] = {"rootfs": busybox_rootfs, "pids_limit": 5}
    with alive(SPIN, cpus=0.1, **fields) as box:
        slow = cgroup_of(tree, box)
        assert eventually(lambda: count(slow, "cpu.stat", "nr_throttled") > 1)
        assert count(slow, "cpu.stat", "throttled_usec") > 0
    with alive(SPIN, cpus=64, **fields) as box:  # the control
        free = cgroup_of(tree, box)
        assert eventually(lambda: count(free, "cpu.stat", "usage_usec") > 300_000)
        assert count(free, "cpu.stat", "nr_throttled") == 0


@pytest.mark.parametrize("way", [way for way in WAYS if way != "container"])
def test_a_sandbox_out_of_memory_ends_as_a_whole(busybox_rootfs: Path, way: str) -> None:
    """The kernel kills all of its processes, because memory.oom.group is set."""
    fill = "sleep 60 & dd if=/dev/zero of=/tmp/x bs=1M count={} 2>/dev/null; echo survived"
    with runner(way, rootfs=busybox_rootfs, memory="32m", pids_limit=9) as go:
        for _ in range(2):
            over = go(["sh", "-c", fill.format(40)], capture_output=True)
            assert (over.cause, over.exit_code, over.stdout) == ("oom", 137, b"")
            assert 30 * MIB < over.usage.memory_peak <= 32 * MIB
            under = go(["sh", "-c", fill.format(4)], capture_output=True)
            assert (under.cause, under.stdout) == ("exited", b"survived\n")
            assert 4 * MIB < under.usage.memory_peak < 16 * MIB
            assert under.usage.pids_peak in (3, 4)
            little = go(["true"])
            assert little.usage.memory_peak < 4 * MIB
            assert little.usage.pids_peak in (1, 2)


def test_swap(busybox_rootfs: Path) -> None:
    """memory_swap lets a sandbox use swap beyond its memory limit."""
    if cgroup_plan._no_swap():
        support.skip_missing("swap")
    fill = ["sh", "-c", "dd if=/dev/zero of=/tmp/x bs=1M count=24 2>/dev/null"]
    with runner("template", rootfs=busybox_rootfs, memory="16m") as go:
        assert go(fill).cause == "oom"
    with runner("template", rootfs=busybox_rootfs, memory="16m", memory_swap="20m") as go:
        assert go(fill).cause == "oom"
    with runner("template", rootfs=busybox_rootfs, memory="16m", memory_swap="64m") as go:
        assert (done := go(fill)).returncode == 0
        assert done.usage.memory_peak <= 16 * MIB


@pytest.mark.as_root
def test_io(busybox_rootfs: Path) -> None:
    """At the limited rate the read takes about two seconds. The test requires more than one."""
    if not DISK.is_block_device():
        support.skip_missing(str(DISK))
    read = ["dd", "if=/disk", "of=/dev/null", "bs=64k", "count=32", "iflag=direct"]
    mounts = [fastns.Mount("/disk", source=str(DISK), options=["dev"])]
    who = {"user": "host"}  # the device must belong to the host's root
    for rate, slow in ((MIB, True), (1 << 40, False)):
        fields: dict[str, Any] = {
            "mounts": mounts, "namespaces": who, "io": {str(DISK): {"rbps": rate}},
        }  # fmt: skip
        with runner("direct", rootfs=busybox_rootfs, overlay=True, **fields) as go:
            done = go(read, capture_output=True)
            assert (done.returncode, done.limits) == (0, ("io",)), done.stderr
            assert done.usage.io_read >= 2 * MIB
            assert done.wall_time > 1 or not slow


# ---- parts of the tree -------------------------------------------------------------------------


@pytest.fixture
def part(tree: Hierarchy) -> Iterator[tuple[str, Path]]:
    """The cgroup_parent and the path of a cgroup whose children have only memory and pids."""
    place = Path(cgroup_plan.find_place(tree, tuple(NEEDED), None).parent)
    above = place / f"test-{os.getpid()}"
    below = above / "part"
    (place / "cgroup.subtree_control").write_text("+memory +pids")
    above.mkdir()
    (above / "cgroup.subtree_control").write_text("+memory +pids")
    below.mkdir()
    yield str(below.relative_to(tree.mount)), below
    with contextlib.suppress(FileNotFoundError):
        (below / cgroup_plan.GROUP).rmdir()
    below.rmdir()  # fails if a cgroup is left
    above.rmdir()


def test_a_parent_by_name(tree: Hierarchy, busybox_rootfs: Path, part: tuple[str, Path]) -> None:
    """The sandbox's cgroup is below the spec's cgroup_parent."""
    name, directory = part
    fields: dict[str, Any] = {"rootfs": busybox_rootfs, "memory": "32m", "cgroup_parent": name}
    with alive(["sleep", "60"], **fields) as box:
        assert directory in cgroup_of(tree, box).parents


def test_a_controller_that_is_not_delegated(busybox_rootfs: Path, part: tuple[str, Path]) -> None:
    """A limit without its controller is an error. With require_limits=False, the others apply."""
    fields: dict[str, Any] = {
        "rootfs": busybox_rootfs, "memory": "32m", "cpus": 1, "cgroup_parent": part[0],
    }  # fmt: skip
    with pytest.raises(SpecError) as caught:
        fastns.compile(Spec(**fields))
    assert caught.value.field == "cpus"
    assert "the cpu controller is not available in it" in caught.value.reason
    with runner("direct", require_limits=False, **fields) as go:
        fill = ["sh", "-c", "dd if=/dev/zero of=/tmp/x bs=1M count=40 2>/dev/null"]
        assert (done := go(fill)).limits == ("memory",)
        assert done.cause == "oom"


def test_a_parent_with_processes_of_its_own(
    tree: Hierarchy, busybox_rootfs: Path, part: tuple[str, Path]
) -> None:
    """The kernel gives controllers to children only if the parent has no processes."""
    with alive(["sleep", "60"], rootfs=busybox_rootfs, pids_limit=9) as box:
        (part[1] / "cgroup.procs").write_text(str(box.pid))
        with pytest.raises(SpecError) as caught:
            fastns.compile(Spec(memory="32m", cgroup_parent=part[0]))
        assert (caught.value.field, "processes of its own" in caught.value.reason) == (
            "memory",
            True,
        )


@pytest.mark.as_root
def test_a_parent_that_the_caller_is_not_in(part: tuple[str, Path]) -> None:
    """The caller may make cgroups there but not move its processes into them. That is an error
    before any start."""
    name, directory = part
    user = 65534
    for path in (directory, *directory.glob("cgroup.*")):
        os.chown(path, user, user)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
            try:
                fastns.compile(Spec(memory="32m", cgroup_parent=name))
                found = ("", "it was accepted")
            except SpecError as exc:
                found = (exc.field, exc.reason)
            os.write(write, pickle.dumps(found))
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        field, reason = pickle.loads(pipe.read())
    os.waitpid(pid, 0)
    assert field == "memory"
    assert "cannot move processes" in reason


@pytest.mark.as_user
def test_the_delegated_part_is_found(tree: Hierarchy, busybox_rootfs: Path) -> None:
    place = cgroup_plan.find_place(tree, tuple(NEEDED), None)
    assert place.parent != tree.mount
    assert os.stat(place.parent).st_uid == os.getuid()
    finding = _machine.limits()
    assert finding.ok, finding
    with alive(["sleep", "60"], rootfs=busybox_rootfs, memory="32m") as box:
        assert Path(place.parent) in cgroup_of(tree, box).parents
