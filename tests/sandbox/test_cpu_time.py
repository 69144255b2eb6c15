"""cpu_time limits all processes of a sandbox together, whether or not the caller waits, with both
versions of cgroups."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import support
from inside import WAYS, groups, runner
from processes import eventually

import fastns
from fastns import Plan, Spec, Template, run
from fastns._policy import cgroup_plan

LIMIT = 0.3
SPIN = "while :; do :; done"
LOADS = {
    "one process": SPIN,
    "children": f"for i in 1 2 3 4; do ({SPIN}) & done; wait",
    "a daemon": f"setsid sh -c '{SPIN}' & sleep 60",
    "one after the other": "while :; do (i=0; while [ $i -lt 2000 ]; do i=$((i+1)); done); done",
    "a survivor": f"trap '' TERM INT HUP; ({SPIN}) & {SPIN}",
}
with_cgroups = pytest.mark.with_cgroups


@pytest.fixture(params=["version 2", "version 1"])
def version(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    unified = request.param == "version 2"
    there = [h for h in cgroup_plan.hierarchies() if h.unified == unified]
    if not there:
        support.skip_missing(f"a hierarchy of cgroup {request.param}")
    monkeypatch.setattr(cgroup_plan, "hierarchies", lambda: there)


@contextlib.contextmanager
def planned(rootfs: Path, cpu_time: float) -> Iterator[Plan]:
    plan = fastns.compile(Spec(rootfs=rootfs, cpu_time=cpu_time))
    try:
        yield plan
    finally:
        plan.close()


@pytest.fixture
def little(busybox_rootfs: Path) -> float:
    """More CPU seconds than a start takes on this machine."""
    with planned(busybox_rootfs, 60) as plan:
        started = [run(["sh", "-c", "exit 0"], spec=plan).usage.cpu_time for _ in range(5)]
    return 0.02 + 6 * max(started)


EACH = [way for way in WAYS if way != "container"]  # whose limit is the container's


@with_cgroups
@pytest.mark.usefixtures("version")
@pytest.mark.parametrize(("way", "load"), [*itertools.product(EACH[::2], LOADS),
                                         *itertools.product(EACH[1::2], ["children"])])  # fmt: skip
def test_a_sandbox_is_killed_at_the_limit(busybox_rootfs: Path, way: str, load: str) -> None:
    with runner(way, rootfs=busybox_rootfs, cpu_time=LIMIT) as go:
        done = go(["sh", "-c", LOADS[load]])
        assert (done.cause, done.exit_code) == ("cpu_time", 137)
        assert done.usage.cpu_time >= LIMIT
        assert done.limits == ("cpu_time",)
        after = go(["sh", "-c", "exit 3"])  # the next sandbox has the whole limit
        assert (after.cause, after.returncode) == ("exited", 3)
        assert after.usage.cpu_time < LIMIT


@with_cgroups
@pytest.mark.parametrize("way", WAYS)
def test_sleep_costs_nothing(busybox_rootfs: Path, way: str) -> None:
    with runner(way, rootfs=busybox_rootfs, cpu_time=LIMIT) as go:
        done = go(["sleep", "0.7"])
    assert (done.cause, done.returncode) == ("exited", 0)


@with_cgroups
def test_below_the_limit_nothing_is_killed(busybox_rootfs: Path) -> None:
    count = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done"
    with planned(busybox_rootfs, 600) as much, planned(busybox_rootfs, 0.05) as little:
        free = run(["sh", "-c", count], spec=much)
        assert (free.cause, free.returncode) == ("exited", 0)
        assert free.usage.cpu_time > 0.05
        assert run(["sh", "-c", count], spec=little).cause == "cpu_time"


@with_cgroups
def test_the_limit_holds_while_nobody_waits(busybox_rootfs: Path) -> None:
    with planned(busybox_rootfs, LIMIT) as plan, fastns.spawn(["sh", "-c", SPIN], spec=plan) as box:
        stat = Path(f"/proc/{box.pid}/stat")
        assert eventually(lambda: stat.read_text().rpartition(")")[2].split()[0] == "Z")
        assert box.wait() == -9
        assert box.cause == "cpu_time"


@with_cgroups
def test_each_sandbox_of_a_batch_has_its_own_limit(busybox_rootfs: Path, little: float) -> None:
    jobs = [["sh", "-c", SPIN if n % 4 == 0 else "exit 0"] for n in range(24)]
    ends = ["exited" if n % 4 else "cpu_time" for n in range(24)]
    with Template(Spec(rootfs=busybox_rootfs, cpu_time=little)) as template:
        assert [one.cause for one in template.run_batch(jobs, concurrency=8)] == ends
    with planned(busybox_rootfs, little) as plan:
        assert [one.cause for one in fastns.run_batch(jobs, spec=plan, concurrency=8)] == ends


@with_cgroups
def test_a_used_up_cgroup_is_not_used_again(busybox_rootfs: Path, little: float) -> None:
    """The kernel kills each process that is cloned into a cgroup on which cgroup.kill was ever
    used."""
    with planned(busybox_rootfs, little) as plan:
        for _ in range(3):
            assert run(["sh", "-c", SPIN], spec=plan).cause == "cpu_time"
            assert run(["true"], spec=plan).returncode == 0


@with_cgroups
def test_a_closed_plan_leaves_no_cgroup_and_no_thread(busybox_rootfs: Path, little: float) -> None:
    before = groups()
    threads = set(os.listdir("/proc/self/task"))
    plan = fastns.compile(Spec(rootfs=busybox_rootfs, cpu_time=little))
    run(["sh", "-c", SPIN], spec=plan)
    assert set(groups()) > set(before)
    assert len(set(os.listdir("/proc/self/task")) - threads) == 1
    plan.close()
    assert groups() == before
    assert set(os.listdir("/proc/self/task")) <= threads


@with_cgroups
def test_a_forked_process_has_its_own_thread(busybox_rootfs: Path, little: float) -> None:
    plan = fastns.compile(Spec(rootfs=busybox_rootfs, cpu_time=little))
    assert run(["sh", "-c", SPIN], spec=plan).cause == "cpu_time"
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if run(["sh", "-c", SPIN], spec=plan).cause == "cpu_time" else 2
            plan.close()
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    assert run(["sh", "-c", SPIN], spec=plan).cause == "cpu_time"
    plan.close()


@with_cgroups
def test_its_thread_blocks_all_signals(busybox_rootfs: Path) -> None:
    """fastns starts a thread to watch the CPU time, which must not take the caller's signals."""
    threads = set(os.listdir("/proc/self/task"))
    plan = fastns.compile(Spec(rootfs=busybox_rootfs, cpu_time=60))
    box = fastns.spawn(["sleep", "60"], spec=plan)
    (own,) = set(os.listdir("/proc/self/task")) - threads
    status = Path(f"/proc/self/task/{own}/status").read_text()
    blocked = int(
        next(line for line in status.splitlines() if line.startswith("SigBlk")).split()[1], 16
    )
    assert blocked & 0x7FFFFFFE == 0x7FFFFFFE & ~(1 << 8 | 1 << 18)  # except SIGKILL and SIGSTOP
    box.kill()
    box.wait()
    plan.close()


@with_cgroups
def test_from_many_threads(busybox_rootfs: Path, little: float) -> None:
    """The limit applies to each sandbox that threads start from one plan."""
    causes = []

    def work() -> None:
        for _ in range(3):
            causes.append(run(["sh", "-c", SPIN], spec=plan).cause)

    with planned(busybox_rootfs, little) as plan:
        workers = [threading.Thread(target=work) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert causes == ["cpu_time"] * 12


@with_cgroups
def test_a_closed_plan_still_limits_its_sandboxes(busybox_rootfs: Path) -> None:
    with planned(busybox_rootfs, LIMIT) as plan:
        box = fastns.spawn(["sh", "-c", SPIN], spec=plan)
    assert box.wait(timeout=10) == -9
    assert box.cause == "cpu_time"
