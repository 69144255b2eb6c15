"""Limits are enforced by cgroups, reported in the result, and removed with the sandbox."""

from __future__ import annotations

import concurrent.futures
import errno
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import hidden
import pytest
import support
from inside import WAYS, groups, runner
from processes import eventually, marked, marker, running

import fastns
from fastns import CompletedSandbox, Plan, Sandbox, SpawnError, Spec, SpecError, Template, run
from fastns._policy import cgroup_plan, cgroups
from fastns.limits import Limits

MIB = 1 << 20
ONE_OF_EACH: dict[str, Any] = {"memory": "32m", "pids_limit": 20, "cpus": 0.5, "cpuset": "0"}
SHARED = "container"  # its commands share a cgroup, so their peaks are not known
root_only = pytest.mark.as_root
with_cgroups = pytest.mark.with_cgroups


@with_cgroups
@pytest.mark.parametrize("way", [way for way in WAYS if way != SHARED])  # see test_container.py
def test_memory(busybox_rootfs: Path, way: str) -> None:
    """A sandbox that exceeds the limit ends with the cause "oom". The next one is not affected."""
    fill = ["sh", "-c", "dd if=/dev/zero of=/tmp/file bs=1M count={} 2>/dev/null"]
    with runner(way, rootfs=busybox_rootfs, memory="32m") as go:
        for _ in range(2):
            over = go([*fill[:2], fill[2].format(40)])
            assert over.cause == "oom"
            assert over.exit_code == 128 + signal.SIGKILL
            assert way == SHARED or 31 * MIB < over.usage.memory_peak <= 32 * MIB
            go(["rm", "-f", "/tmp/file"])
            under = go([*fill[:2], fill[2].format(20)])  # the memory is free again
            assert (under.cause, under.returncode) == ("exited", 0)
            assert way == SHARED or 20 * MIB < under.usage.memory_peak < 31 * MIB
            go(["rm", "-f", "/tmp/file"])
            assert under.limits == ("memory",)
    with runner(way, rootfs=busybox_rootfs) as go:  # the control
        free = go([*fill[:2], fill[2].format(40)])
        assert (free.cause, free.returncode, free.limits) == ("exited", 0, ())
        assert free.usage.memory_peak is None


@with_cgroups
@pytest.mark.parametrize("kind", ["heap", "memfd", "shm"])
def test_every_kind_of_memory_counts(debian_rootfs: Path, kind: str) -> None:
    code = {
        "heap": "x = bytearray(64 << 20)",
        "memfd": "import os; os.write(os.memfd_create('x'), bytes(64 << 20))",
        "shm": "open('/dev/shm/x', 'wb').write(bytes(64 << 20))",
    }[kind]
    run(["python3", "-c", "import os"], spec=Spec(rootfs=debian_rootfs))  # as read_through() does
    with runner("template", rootfs=debian_rootfs, memory="48m") as go:
        assert go(["python3", "-c", code]).cause == "oom"
        assert go(["python3", "-c", code.replace("64", "8")]).cause == "exited"


@with_cgroups
@pytest.mark.parametrize("way", WAYS)
def test_pids(busybox_rootfs: Path, way: str) -> None:
    """A sandbox has no more processes than the limit, and "pids" is the cause."""
    bomb = ["sh", "-c", "for i in 1 2 3 4 5 6 7 8 9; do sleep 0.1 & done; wait"]
    with runner(way, rootfs=busybox_rootfs, pids_limit=6) as go:
        for _ in range(2):
            over = go(bomb, capture_output=True)
            assert over.returncode != 0
            assert over.cause == "pids"
            assert over.usage.pids_peak == (None if way == SHARED else 6)
            under = go(["sh", "-c", "sleep 0 & wait"])
            assert (under.cause, under.returncode) == ("exited", 0)
            assert way == SHARED or under.usage.pids_peak in (2, 3)
    with runner(way, rootfs=busybox_rootfs) as go:
        assert go(bomb).returncode == 0


@with_cgroups
@pytest.mark.parametrize("way", WAYS)
def test_cpus(busybox_rootfs: Path, way: str) -> None:
    """With a fifth of a CPU, the sandbox waits most of the time."""
    spin = ["sh", "-c", "timeout 1 sh -c 'while :; do :; done'; true"]
    with runner(way, rootfs=busybox_rootfs, cpus=0.2) as go:
        done = go(spin)
        assert done.wall_time > 1.5 * (done.usage.user_time + done.usage.system_time)
    with runner(way, rootfs=busybox_rootfs, cpuset="0") as go:
        assert go(["nproc"], capture_output=True).stdout == b"1\n"


@with_cgroups
def test_io_reaches_the_kernel(busybox_rootfs: Path, tmp_path: Path) -> None:
    device = next((p.name for p in Path("/sys/block").iterdir()), None)
    if device is None:
        support.skip_missing("a block device")
    number = Path(f"/sys/block/{device}/dev").read_text().strip()
    limits = Limits(io={number: {"rbps": 1 << 20, "riops": 7}})
    plan = cgroup_plan.plan(limits, None, True)
    texts = {file: text for _, file, text, _ in plan.settings}
    assert plan.enforced == ("io",)
    io = {number: {"rbps": 1 << 20, "riops": 7}}
    compiled = fastns.compile(Spec(rootfs=busybox_rootfs, io=io))
    with fastns.spawn(["sleep", "60"], spec=compiled) as sandbox:
        found = "".join(
            Path(group, "0", file).read_text()
            for group in groups()
            for file in texts
            if Path(group, "0", file).exists()
        )
        sandbox.kill()
    compiled.close()
    assert str(1 << 20) in found
    assert number in found


@with_cgroups
@pytest.mark.parametrize("fields", [{}, {"cpus": 64}], ids=["weights", "weight and none"])
def test_weights_of_two_plans_that_want_the_same_cpu(
    busybox_rootfs: Path, fields: dict[str, Any]
) -> None:
    """A plan with ten times the weight gets more of the one CPU. The default weight is 100."""
    spin = ["sh", "-c", "while :; do :; done"]
    light = fields or {"cpu_weight": 100}
    specs = [
        Spec(rootfs=busybox_rootfs, cpuset="0", **weight)
        for weight in (light, {"cpu_weight": 1000})
    ]
    plans = [fastns.compile(spec) for spec in specs]
    with (
        fastns.spawn(spin, spec=plans[0]) as first,
        fastns.spawn(spin, spec=plans[1]) as second,
    ):
        start = [ticks(first), ticks(second)]

        def used() -> list[int]:
            return [ticks(first) - start[0], ticks(second) - start[1]]

        enough = eventually(lambda: sum(used()) > os.sysconf("SC_CLK_TCK"), 60)  # a second of CPU
        little, much = used()
        first.kill()
        second.kill()
    for plan in plans:
        plan.close()
    assert enough
    assert much > 3 * little, (little, much)


def ticks(sandbox: Sandbox) -> int:
    """The CPU time used by the sandbox's first process, in clock ticks."""
    words = Path(f"/proc/{sandbox.pid}/stat").read_text().rpartition(")")[2].split()
    return int(words[11]) + int(words[12])


@with_cgroups
@pytest.mark.parametrize("way", WAYS)
def test_the_sandbox_is_at_the_top_of_its_cgroups(busybox_rootfs: Path, way: str) -> None:
    with runner(way, rootfs=busybox_rootfs, **ONE_OF_EACH) as go:
        shown = go(["cat", "/proc/self/cgroup"], capture_output=True, text=True).stdout
        fds = go(["ls", "/proc/self/fd"], capture_output=True, text=True).stdout
    paths = {line.split(":", 2)[1]: line.split(":", 2)[2] for line in shown.splitlines()}
    limited = [place for place in cgroup_plan.hierarchies() if "pids" in place.controllers]
    assert paths["" if limited[0].unified else "pids"] == "/"
    assert len(fds.split()) == 4  # 0, 1, 2 and the fd that ls uses; no cgroup's fd


@with_cgroups
def test_limits_and_cause_of_handles(busybox_rootfs: Path) -> None:
    """A handle names the enforced limits and, after the end, the cause."""
    plan = fastns.compile(Spec(rootfs=busybox_rootfs, **ONE_OF_EACH))
    with Template(Spec(rootfs=busybox_rootfs, **ONE_OF_EACH)) as template:
        for start in (template.spawn, lambda args: fastns.spawn(args, spec=plan)):
            with start(["sleep", "60"]) as sandbox:
                assert set(sandbox.limits) == set(ONE_OF_EACH)
                assert sandbox.cause is None
                sandbox.kill()
            assert sandbox.cause == "killed"
            assert sandbox.usage is not None
            assert sandbox.usage.memory_peak
        with template.spawn(["sleep", "60"]) as sandbox:
            os.kill(sandbox.pid, signal.SIGKILL)
        assert sandbox.cause == "signaled"
    plan.close()


def needs_oom_kills_of_single_processes() -> None:
    """Skip with cgroup version 2, where memory.oom.group kills the whole sandbox."""
    if all(h.unified for h in cgroup_plan.hierarchies() if h.has("memory")):
        support.skip_missing("a hierarchy of cgroup version 1")


CHILD_OVER = """
import os, sys, time
if not (pid := os.fork()):
    x = b"x" * (64 << 20)
print(os.waitpid(pid, 0)[1], flush=True)
time.sleep(float(sys.argv[1]))
sys.exit(3)
"""


@with_cgroups
@pytest.mark.parametrize("way", WAYS)
def test_memory_of_a_child_and_the_end_of_the_sandbox(debian_rootfs: Path, way: str) -> None:
    """An OOM kill of a child is the cause only if no timeout ended the sandbox."""
    needs_oom_kills_of_single_processes()
    command = ["python3", "-c", CHILD_OVER]
    with runner(way, rootfs=debian_rootfs, memory="32m") as go:
        done = go([*command, "0"], capture_output=True)
        assert (done.cause, done.returncode) == ("oom", 3)
        with pytest.raises(fastns.TimeoutExpired) as caught:
            go([*command, "60"], capture_output=True, timeout=1 + 5 * done.wall_time)
    assert (caught.value.stdout, caught.value.cause) == (b"9\n", "timeout")
    assert caught.value.limits == ("memory",)


@with_cgroups
def test_memory_of_a_child_and_kill(debian_rootfs: Path) -> None:
    """The cause is "killed", although the kernel killed a child before."""
    needs_oom_kills_of_single_processes()
    plan = fastns.compile(Spec(rootfs=debian_rootfs, memory="32m"))
    with fastns.spawn(["python3", "-c", CHILD_OVER, "60"], spec=plan, stdout=-1) as sandbox:
        assert sandbox.stdout is not None
        assert sandbox.stdout.readline() == b"9\n"
        sandbox.kill()
    plan.close()
    assert sandbox.cause == "killed"


@with_cgroups
@pytest.mark.parametrize("way", WAYS)
def test_processes_refused_and_then_the_filter(busybox_rootfs: Path, way: str) -> None:
    """If the filter kills the command, "seccomp" is the cause, not "pids"."""
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_KILL_PROCESS"}],
    }
    forks = "(for i in 1 2 3 4 5; do sleep 1 & done)"
    with runner(way, rootfs=busybox_rootfs, pids_limit=4, seccomp=profile) as go:
        assert go(["sh", "-c", f"{forks}; exit 3"], stderr=fastns.DEVNULL).cause == "pids"
        done = go(["sh", "-c", f"{forks}; exec mkdir /tmp/x"], stderr=fastns.DEVNULL)
    assert (done.returncode, done.cause) == (-signal.SIGSYS, "seccomp")


@with_cgroups
def test_limits_and_cause_on_the_command_line(debian_rootfs: Path) -> None:
    """The status of `fastns run` has the limits and the cause."""
    needs_oom_kills_of_single_processes()
    command = [sys.executable, "-m", "fastns", "run", "--rootfs", str(debian_rootfs), "-m", "32m"]
    over = ["python3", "-c", CHILD_OVER]

    def outcome(words: list[str]) -> dict[str, Any]:
        told, found = support.run_with_status([*command, "--status-fd", "{}", *words])
        assert found["exit_code"] == told.returncode
        return found

    first = outcome([*over, "0"])
    assert (first["exit_code"], first["cause"]) == (3, "oom")
    late = outcome(["--timeout", str(1 + 5 * first["wall_time"]), *over, "60"])
    assert (late["exit_code"], late["cause"]) == (124, "timeout")
    assert late["limits"] == ["memory"]


@with_cgroups
def test_batches(busybox_rootfs: Path) -> None:
    """The limits apply to each sandbox of a batch."""
    jobs = [["sh", "-c", "dd if=/dev/zero of=/tmp/x bs=1M count=40"], ["true"], ["/missing"]] * 10
    with Template(Spec(rootfs=busybox_rootfs, **ONE_OF_EACH)) as template:
        for i, result in enumerate(template.run_batch(jobs, concurrency=4)):
            if i % 3 == 2:
                assert isinstance(result, SpawnError)
            else:
                assert isinstance(result, CompletedSandbox)
                assert result.cause == ("oom" if i % 3 == 0 else "exited")
        handles = template.spawn_batch([["sleep", "60"]] * 5)
        live = {
            directory.name
            for group in groups()
            for directory in Path(group).iterdir()
            if directory.is_dir() and (directory / "cgroup.procs").read_text()
        }
        assert len(live) == 5
        for handle in handles:
            assert isinstance(handle, Sandbox)
            handle.kill()
            handle.wait()


@with_cgroups
def test_empty_cgroups_are_reused(busybox_rootfs: Path) -> None:
    with Template(Spec(rootfs=busybox_rootfs, **ONE_OF_EACH)) as template:
        for _ in range(8):
            template.run(["true"])
            template.run(["sh", "-c", "dd if=/dev/zero of=/tmp/x bs=1M count=8"])
        numbers = {
            directory.name
            for group in groups()
            for directory in Path(group).iterdir()
            if directory.is_dir()
        }
    # What one sandbox wrote to a tmpfs may still be charged when the next one starts.
    assert len(numbers) <= 20


@with_cgroups
def test_no_cgroup_is_left(busybox_rootfs: Path) -> None:
    before = groups()
    with Template(Spec(rootfs=busybox_rootfs, **ONE_OF_EACH)) as template:
        template.run_batch([["true"]] * 20, concurrency=8)
        assert len(groups()) > len(before)
    plan = fastns.compile(Spec(rootfs=busybox_rootfs, **ONE_OF_EACH))
    run(["true"], spec=plan)
    plan.close()
    assert groups() == before


CRASH = """
import os, sys, fastns
null = {"stdin": -3, "stdout": -3, "stderr": -3}
sandbox = fastns.spawn(["sleep", "60"], spec=fastns.Spec(memory="32m"), **null)
print(sandbox.pid, os.getpid(), flush=True)
os.kill(os.getpid(), 9)
"""


@with_cgroups
def test_a_killed_callers_cgroups_are_swept(busybox_rootfs: Path) -> None:
    """Cgroups of live callers stay."""
    with Template(Spec(rootfs=busybox_rootfs, memory="32m")) as mine:
        mine.run(["true"])
        living = groups()
        crash = subprocess.run([sys.executable, "-c", CRASH], capture_output=True, text=True)
        pid, caller = map(int, crash.stdout.split())
        left = [Path(path) for path in groups(caller)]
        assert left
        assert os.path.exists(f"/proc/{pid}")  # the control: it is still alive
        end = time.monotonic() + 10
        while any(path.exists() for path in left) and time.monotonic() < end:
            with Template(Spec(rootfs=busybox_rootfs, memory="32m")) as template:
                template.run(["true"])
        assert not any(path.exists() for path in left)
        ended = Path(f"/proc/{pid}/cmdline")
        assert not ended.exists() or not ended.read_bytes()  # or a zombie that nobody reaps
        assert set(living) <= set(groups())
        assert mine.run(["true"]).returncode == 0


CRASH_OF_MANY = """
import os, sys, fastns
null = {"stdin": -3, "stdout": -3, "stderr": -3}
plan = fastns.compile(fastns.Spec(memory="32m"))
boxes = [fastns.spawn(["sleep", sys.argv[1]], spec=plan, **null) for _ in range(20)]
print(os.getpid(), flush=True)
os.kill(os.getpid(), 9)
"""


@with_cgroups
def test_a_killed_callers_sandboxes_are_killed_by_the_next_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Even a start that does not wait for their end kills them."""
    word = marker()
    crash = subprocess.run([sys.executable, "-c", CRASH_OF_MANY, word], capture_output=True)
    caller = int(crash.stdout)
    assert eventually(lambda: len(running("sleep", word)) == 20)  # the control
    assert len(groups(caller)) == 1
    plan = fastns.compile(Spec(memory="32m"))
    with monkeypatch.context() as patch:
        patch.setattr(cgroups, "PATIENCE_MS", 0)
        run(["true"], spec=plan)
    plan.close()
    assert eventually(lambda: not marked(word))
    cgroups.sweep(home_of("memory"), time.monotonic() + 10)
    assert groups(caller) == []


def home_of(controller: str) -> str:
    """The directory in which cgroups with this controller are made."""
    (place,) = cgroup_plan.plan(Limits(**{controller: 1 << 30}), None, True).places
    return f"{place.parent}/{cgroup_plan.GROUP}"


@with_cgroups
@pytest.mark.parametrize("name", ["team-a", "{pid}-notes", "{pid}-0123abcd-old", "x{pid}-0123abcd"])
def test_a_sweep_leaves_foreign_cgroups_alone(name: str) -> None:
    home = Path(home_of("memory"))
    plan = fastns.compile(Spec(memory="32m"))
    run(["true"], spec=plan)
    plan.close()
    foreign = home / name.format(pid=os.getpid())
    foreign.mkdir()
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            (foreign / "cgroup.procs").write_text(str(process.pid))
            cgroups.sweep(str(home), time.monotonic() + 10)
            assert process.poll() is None
            assert (foreign / "cgroup.procs").read_text() == f"{process.pid}\n"
        finally:
            process.kill()
            process.wait()
            assert eventually(lambda: cgroups._remove_empty(str(foreign), 0))


@pytest.fixture
def sweeps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """While this list is not empty, another caller sweeps each cgroup that this process makes,
    before this process can lock it."""
    left = [""]
    make = os.mkdir

    def mkdir(path: str, mode: int = 0o777) -> None:
        make(path, mode)
        if left and cgroups.OWN.fullmatch(os.path.basename(path)):
            left.pop()
            cgroups.sweep(os.path.dirname(path), 0)
            assert not os.path.exists(path)

    monkeypatch.setattr(os, "mkdir", mkdir)
    return left


@with_cgroups
def test_a_cgroup_swept_before_its_lock_is_made_again(sweeps: list[str]) -> None:
    sweeps *= 3
    plan = fastns.compile(Spec(**ONE_OF_EACH))
    done = run(["true"], spec=plan)
    assert (done.returncode, done.limits, sweeps) == (0, tuple(ONE_OF_EACH), [])
    plan.close()


@with_cgroups
def test_other_users_cannot_lock_them() -> None:
    """Only the owner may open a plan's cgroups, and so lock them."""
    plan = fastns.compile(Spec(**ONE_OF_EACH))
    before = groups()
    assert run(["true"], spec=plan).returncode == 0
    made = set(groups()) - set(before)
    assert made
    assert {stat.S_IMODE(os.stat(path).st_mode) for path in made} == {0o700}
    plan.close()


@with_cgroups
def test_a_cgroup_that_is_always_swept_is_an_error(sweeps: list[str]) -> None:
    """The number of retries is limited."""
    sweeps *= 1000
    plan = fastns.compile(Spec(pids_limit=7))
    with pytest.raises(SpawnError) as caught:
        run(["true"], spec=plan)
    assert (caught.value.stage, caught.value.errno) == ("cgroup", errno.ENOENT)
    sweeps.clear()
    assert run(["true"], spec=plan).returncode == 0
    plan.close()


CLOSED_FIRST = """
import os, fastns
plan = fastns.compile(fastns.Spec(pids_limit=10))
box = fastns.spawn(["sleep", "60"], spec=plan)
plan.close()
box.kill()
print(box.wait(), os.getpid())
"""


@with_cgroups
def test_a_plan_closed_before_its_sandbox_has_ended() -> None:
    """No cgroup is left, and wait() works."""
    done = subprocess.run([sys.executable, "-c", CLOSED_FIRST], capture_output=True, text=True)
    status, pid = map(int, done.stdout.split())
    assert status == -9
    assert groups(pid) == []


FORKED = """
import os, fastns
plan = fastns.compile(fastns.Spec(pids_limit=10))
fastns.run(["true"], spec=plan)
pid = os.fork()
done = fastns.run(["sh", "-c", "exit 3"], spec=plan)
if pid == 0:
    os._exit(done.returncode)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), done.returncode, done.limits)
print(fastns.run(["true"], spec=plan).returncode)
"""


@with_cgroups
def test_a_forked_caller_has_cgroups_of_its_own() -> None:
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True)
    assert done.stdout == "3 3 ('pids_limit',)\n0\n", done.stderr


@with_cgroups
def test_a_setting_that_the_kernel_refuses() -> None:
    """A refused setting is a SpecError, raised before any process exists."""
    before = groups()
    plan = fastns.compile(Spec(io={"999:9": {"rbps": 5}}))
    with pytest.raises(SpecError) as caught:
        run(["true"], spec=plan)
    assert caught.value.field == "io"
    assert "999:9 " in caught.value.reason
    assert "expected whole disks of this machine" in caught.value.reason
    assert groups() == before


@with_cgroups
def test_missing_cpus() -> None:
    """Missing CPUs are a SpecError, even with require_limits=False."""
    with pytest.raises(SpecError) as caught:
        run(["true"], spec=Spec(cpuset="0,4000", require_limits=False))
    assert caught.value.field == "cpuset"


@with_cgroups
def test_no_fd_to_make_cgroups_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lack of fds is a SpawnError, not a SpecError, because the limit's value is valid."""
    before = groups()
    plan = fastns.compile(Spec(pids_limit=1234))
    real = os.open

    def refuse(path: Any, *args: Any, **options: Any) -> int:
        if str(path).endswith("check/pids.max"):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), path)
        return real(path, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(SpawnError) as caught:
            run(["true"], spec=plan)
    assert (caught.value.stage, caught.value.errno) == ("cgroup", errno.EMFILE)
    assert "RLIMIT_NOFILE" in str(caught.value.hint)
    assert groups() == before
    assert run(["true"], spec=plan).returncode == 0
    plan.close()


@with_cgroups
def test_a_cgroup_that_cannot_be_entered(busybox_rootfs: Path) -> None:
    """The start fails: a sandbox never runs without its limits."""
    with Template(Spec(rootfs=busybox_rootfs, pids_limit=9)) as template:
        before = set(groups())
        template.run(["true"])
        (own,) = set(groups()) - before or {groups()[0]}
        os.rmdir(f"{own}/0")
        with pytest.raises(SpawnError) as caught:
            template.run(["true"])
        assert caught.value.stage == "cgroup"


UNIFIED = """
import sys, fastns
from pathlib import Path
from fastns._policy import cgroup_plan, cgroups
tree = next(place for place in cgroup_plan.hierarchies() if place.unified)
place = cgroup_plan.Place(tree, tree.mount, ())
plan = cgroup_plan.CgroupPlan((place,), (), (), None, 0, ("x",), ())
cgroup_plan.plan = lambda *_: plan
spec = fastns.Spec(rootfs=sys.argv[1], pids_limit=5)
for start in (lambda args: fastns.spawn(args, spec=spec), fastns.Template(spec).spawn):
    with start(["sleep", "60"]) as sandbox:
        print(Path(f"/proc/{sandbox.pid}/cgroup").read_text().split("0::")[1].strip())
        sandbox.kill()
"""


@root_only
@pytest.mark.parametrize("hide", [False, True], ids=["clone3", "clone"])
def test_cloned_into_a_cgroup_of_version_2(busybox_rootfs: Path, hide: bool) -> None:
    """The start uses CLONE_INTO_CGROUP. Without clone3, the new process enters its cgroup later."""
    if not any(place.unified for place in cgroup_plan.hierarchies()):
        support.skip_missing("cgroup v2")
    if hide:
        out = hidden.without("clone3", 38, UNIFIED, str(busybox_rootfs))
    else:
        command = [sys.executable, "-c", UNIFIED, str(busybox_rootfs)]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = out.splitlines()
    assert len(lines) == 2
    assert all(re.fullmatch(r"/fastns/\d+-[0-9a-f]+/0", line) for line in lines), out


# ---- without the right to make cgroups ----


@pytest.mark.as_user
@pytest.mark.parametrize("limit", [*ONE_OF_EACH, "cpu_time"])
def test_a_limit_that_cannot_be_enforced_is_an_error(limit: str) -> None:
    spec = Spec(cgroup_parent="/", **{limit: ONE_OF_EACH.get(limit, 1.5)})
    with pytest.raises(SpecError) as caught:
        run(["true"], spec=spec)
    assert caught.value.field == limit
    assert "require_limits=False" in caught.value.reason


@pytest.mark.as_user
def test_require_limits_false_permits_a_start_without_limits(busybox_rootfs: Path) -> None:
    spec = Spec(rootfs=busybox_rootfs, cgroup_parent="/", require_limits=False, **ONE_OF_EACH)
    done = run(["cat", "/proc/self/cgroup"], spec=spec, capture_output=True)
    assert (done.returncode, done.limits) == (0, ())
    with Template(spec) as template:
        assert template.run(["true"]).limits == ()


def test_a_missing_cgroup_parent() -> None:
    """A missing parent is a SpecError for the limit that needs a cgroup."""
    with pytest.raises(SpecError) as caught:
        run(["true"], spec=Spec(pids_limit=5, cgroup_parent="/nowhere"))
    assert caught.value.field == "pids_limit"
    assert "nowhere" in caught.value.reason


@with_cgroups
def test_threads_make_a_plans_cgroups_once(busybox_rootfs: Path) -> None:
    """If each thread made its own, all but the last would be removed while in use."""
    before = groups()
    for number in range(5):
        plan = fastns.compile(Spec(rootfs=busybox_rootfs, pids_limit=100 + number))
        together = threading.Barrier(8)

        def work(plan: Plan = plan, together: threading.Barrier = together) -> CompletedSandbox:
            together.wait()
            return run(["true"], spec=plan)

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            futures = [pool.submit(work) for _ in range(8)]
            assert [future.result().returncode for future in futures] == [0] * 8
        assert len(groups()) == len(before) + 1
        plan.close()
