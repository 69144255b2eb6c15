"""Programs that use up a resource. A limit ends each program, the cause names that limit, and
neither the host nor other sandboxes are affected."""

import os
import random
from pathlib import Path
from typing import NamedTuple

import pytest
import support
from escape.results import RESULTS
from inside import runner
from processes import children, eventually, server_pid

import fastns
from fastns import Job, Spec, Template

EMULATED = os.environ.get("FASTNS_EMULATED") == "1"
RUNS = 1000 if support.LONG else 40 if EMULATED else 75
SECONDS = 12 if EMULATED else 0.8  # the timeout of a load that may end by timeout
PATIENCE = 300  # the timeout of other loads: even on a busy machine they reach another limit first


class Load(NamedTuple):
    script: str
    causes: set[str]  # it must end by one of these

    @property
    def seconds(self) -> float:
        return SECONDS if "timeout" in self.causes else PATIENCE


LOADS = {
    "F1 fork bomb": Load("f() { f | f & }; f; f; sleep 60", {"pids", "timeout", "oom"}),
    "F1 many children": Load(
        "i=0; while [ $i -lt 200 ]; do sleep 60 & i=$((i+1)); done; wait", {"pids"}
    ),
    "F2 heap": Load("exec tail /dev/zero", {"oom"}),
    "F2 tmpfs": Load("exec dd if=/dev/zero of=/tmp/x bs=1M count=200", {"oom"}),
    "F2 memfd": Load("exec /mnt/attack fill_memory_file 200", {"oom"}),
    "F2 shared memory": Load("exec dd if=/dev/zero of=/dev/shm/x bs=1M count=200", {"oom"}),
    "F3 inodes": Load("i=0; while :; do : >/tmp/$i; i=$((i+1)); done", {"timeout", "oom"}),
    "F5 fds": Load(
        'i=3; while [ $i -lt 5000 ]; do eval "exec $i</dev/null" || exit 9; i=$((i+1)); done',
        {"exited"},
    ),
    "F6 output": Load("exec yes", {"timeout"}),
    "F7 zombies": Load("while :; do (:) & done", {"timeout", "pids", "oom"}),
    "F8 daemons": Load("setsid sleep 60 & setsid sleep 60 & (sleep 60 &) & exit 0", {"exited"}),
    "F11 CPU in children": Load(
        "for i in 1 2 3 4; do (while :; do :; done) & done; wait", {"timeout"}
    ),
    "F12 asleep": Load("exec sleep 60", {"timeout"}),
    "F13 namespaces": Load("unshare -U true; exit 5", {"exited"}),
    "none": Load("exit 7", {"exited"}),
}


@pytest.mark.as_root
def test_all_of_them_mixed(busybox_rootfs: Path, attack_root: Path) -> None:
    names = random.Random(4).choices(list(LOADS), k=RUNS)
    spec = Spec(
        rootfs=busybox_rootfs, memory="32m", pids_limit=24, cpus=1.5, max_output="64k",
        rlimits=[fastns.Rlimit("RLIMIT_NOFILE", 256, 256)],
        mounts=[fastns.Mount("/mnt", source=attack_root)],
    )  # fmt: skip
    seen: dict[str, set[str]] = {}
    with Template(spec) as template:
        loads = [LOADS[name] for name in names]
        jobs = [Job(["sh", "-c", load.script], timeout=load.seconds) for load in loads]
        results = template.run_batch(jobs, concurrency=4)
        for name, done in zip(names, results, strict=True):
            assert not isinstance(done, fastns.SpawnError), (name, done)
            seen.setdefault(name, set()).add(done.cause)
            assert len(done.stdout or b"") <= 64 << 10
            if name == "F6 output":
                assert done.truncated
            if name == "none":
                assert done.returncode == 7
        # No process may be left, and the next sandbox must work.
        assert eventually(lambda: not [p for p in children(server_pid(template)) if is_busybox(p)])
        assert template.run(["true"]).returncode == 0
    for name, causes in seen.items():
        blocked = causes <= LOADS[name].causes
        RESULTS[name] = ("blocked" if blocked else "FAILED", " ".join(sorted(causes)))
    wrong = {name: causes for name, causes in seen.items() if not causes <= LOADS[name].causes}
    assert not wrong, wrong


WITHOUT_CGROUPS = ("F5 fds", "F6 output", "F8 daemons", "F12 asleep", "F13 namespaces", "none")
BY_RLIMITS = (
    "F1 fork bomb",
    "F1 many children",
    "F7 zombies",
)  # RLIMIT_NPROC, which counts per user


@pytest.mark.parametrize("way", ["direct", "init", "template", "ready"])
def test_loads_without_cgroups(busybox_rootfs: Path, way: str) -> None:
    """RLIMIT_*, the timeout and max_output bound them even for a user without delegated cgroups."""
    rlimits = [fastns.Rlimit("RLIMIT_NOFILE", 256, 256), fastns.Rlimit("RLIMIT_NPROC", 24, 24)]
    fields = {"rootfs": busybox_rootfs, "max_output": "64k", "rlimits": rlimits}
    with runner(way, **fields) as run:
        for name in (*WITHOUT_CGROUPS, *BY_RLIMITS):
            load = LOADS[name]
            seconds = SECONDS if name in BY_RLIMITS else load.seconds
            try:
                done = run(["sh", "-c", load.script], capture_output=True, timeout=seconds)
                cause = done.cause
            except fastns.TimeoutExpired as exc:
                done, cause = None, "timeout"
                assert len(exc.stdout or b"") <= 64 << 10
            causes = {"timeout", "exited"} if name in BY_RLIMITS else LOADS[name].causes
            blocked = cause in causes
            RESULTS.setdefault(name, ("blocked" if blocked else "FAILED", f"{way}: {cause}"))
            assert blocked, (name, cause)
            if name == "none":
                assert done is not None
                assert done.returncode == 7
        assert run(["true"]).returncode == 0


@pytest.mark.as_user
@pytest.mark.parametrize(("limit", "value"), [("memory", "32m"), ("pids_limit", 24)])
def test_limits_that_need_cgroups(busybox_rootfs: Path, limit: str, value: object) -> None:
    """`memory` includes memory files, and both limits apply to all processes of a sandbox together.
    Without cgroups they are an error, not a weaker limit."""
    case = f"{'F2' if limit == 'memory' else 'F1'} {limit} of the whole"
    if support.has_cgroups():
        with runner(
            "direct", rootfs=busybox_rootfs, **{limit: value}
        ) as run:  # the block closes its plan
            assert run(["true"]).limits == (limit,)
        RESULTS[case] = ("blocked", "cgroups are delegated")
        return
    spec = Spec(rootfs=busybox_rootfs, **{limit: value})  # type: ignore[arg-type]
    with pytest.raises(fastns.SpecError) as caught:
        fastns.run(["true"], spec=spec)
    assert caught.value.field == limit
    assert fastns.run(["true"], spec=Spec(rootfs=busybox_rootfs)).returncode == 0  # the control
    RESULTS[case] = ("not without cgroups", "SpecError")


def is_busybox(pid: int) -> bool:
    """Whether the process runs a sandbox's command. If not, it is one of the server's own."""
    try:
        return b"busybox" in Path(f"/proc/{pid}/maps").read_bytes()
    except OSError:
        return False
