"""A template's batch requests jobs ahead, never runs more of them at once than its limit, and never
leaves one waiting."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from processes import eventually, marked, marker, running

from fastns import CompletedSandbox, Job, Mount, SpawnError, Spec, Template, TimeoutExpired

COUNT = "touch /mnt/$0; ls /mnt | wc -l; sleep 0.02; ls /mnt | wc -l; rm /mnt/$0"


def sharing(root: Path, shared: Path, **fields: Any) -> Spec:
    """A spec whose sandboxes share /mnt."""
    shared.mkdir(exist_ok=True)
    shared.chmod(0o777)
    mounts = [Mount("/mnt", source=str(shared), options=["rw"])]
    return Spec(rootfs=root, mounts=mounts, **fields)


def most_seen(results: list[Any]) -> int:
    for result in results:
        assert isinstance(result, CompletedSandbox), result
        assert result.returncode == 0
    return max(int(n) for result in results for n in result.stdout.split())


@pytest.mark.parametrize("concurrency", [1, 2, 5])
def test_no_more_alive_than_allowed(busybox_rootfs: Path, tmp_path: Path, concurrency: int) -> None:
    """Each job counts the jobs that run at the same time. The highest count equals the limit."""
    spec = sharing(busybox_rootfs, tmp_path / "shared")
    jobs = [["sh", "-c", COUNT, str(i)] for i in range(40)]
    with Template(spec) as template:
        assert most_seen(template.run_batch(jobs, concurrency=concurrency)) == concurrency


def test_each_batch_has_its_own_limit(busybox_rootfs: Path, tmp_path: Path) -> None:
    """Three threads run batches, each in its own directory, on one server."""
    seen: dict[int, int] = {}

    def run(template: Template, concurrency: int) -> None:
        code = f"cd /mnt/{concurrency}; " + COUNT.replace("/mnt", ".")
        jobs = [["sh", "-c", code, str(i)] for i in range(30)]
        seen[concurrency] = most_seen(template.run_batch(jobs, concurrency=concurrency))

    for n in (1, 2, 4):
        (tmp_path / str(n)).mkdir()
        (tmp_path / str(n)).chmod(0o777)
    with Template(sharing(busybox_rootfs, tmp_path)) as template:
        threads = [threading.Thread(target=run, args=(template, n)) for n in (1, 2, 4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert seen == {1: 1, 2: 2, 4: 4}


def test_a_long_job_delays_no_other(busybox_rootfs: Path, tmp_path: Path) -> None:
    """The first job ends only after the last has run, so no job must queue behind the first."""
    wait = ["sh", "-c", "until [ -e /mnt/done ]; do sleep 0.01; done"]
    jobs = [wait] + [["true"]] * 30 + [["touch", "/mnt/done"]]
    with Template(sharing(busybox_rootfs, tmp_path / "shared")) as template:
        results = template.run_batch(jobs, concurrency=2)
    assert [getattr(result, "returncode", result) for result in results] == [0] * len(jobs)


def test_failing_jobs_free_their_places(busybox_rootfs: Path) -> None:
    jobs = [Job(["/missing"]), Job(["true"], cwd="/missing"), Job(["true"])] * 100
    with Template(Spec(rootfs=busybox_rootfs)) as template:
        results = template.run_batch(jobs, concurrency=2)
    for i, result in enumerate(results):
        if i % 3 == 2:
            assert isinstance(result, CompletedSandbox)
        else:
            assert isinstance(result, SpawnError)
            assert result.stage == ("exec", "chdir")[i % 3]


def test_a_jobs_timeout_begins_with_its_turn(busybox_rootfs: Path) -> None:
    """Six jobs of 0.5 s run one after the other, and each ends within its 2.5 s. The last job
    exceeds its timeout."""
    jobs = [Job(["sleep", "0.5"], timeout=2.5)] * 6 + [Job(["sleep", "60"], timeout=0.1)]
    with Template(Spec(rootfs=busybox_rootfs)) as template:
        results = template.run_batch(jobs, concurrency=1)
    assert [type(result) for result in results] == [CompletedSandbox] * 6 + [TimeoutExpired]


def test_a_jobs_wall_time_begins_with_its_turn(busybox_rootfs: Path) -> None:
    """The jobs' wall times therefore add up to about the time of the batch."""
    times = []
    with Template(Spec(rootfs=busybox_rootfs)) as template:
        start = time.monotonic()
        for result in template.run_batch([["sleep", "0.5"]] * 4, concurrency=1):
            assert isinstance(result, CompletedSandbox)
            times.append(result.wall_time)
        whole = time.monotonic() - start
    assert min(times) >= 0.5
    assert sum(times) < 1.5 * whole  # counted from the requests it would be 2.5 times


def test_a_job_with_a_timeout_after_one_that_timed_out(busybox_rootfs: Path) -> None:
    """The timeout closes the first job's connection. The next job with a timeout must not wait
    behind one that was requested ahead over another connection."""
    jobs = [["true"]] * 4
    jobs += [Job(["sleep", "60"], timeout=0.03), Job(["sleep", "0.1"], timeout=1), ["sleep", "0.5"]]
    with Template(Spec(rootfs=busybox_rootfs)) as template:
        for _ in range(4):
            results = template.run_batch(jobs, concurrency=1)
            assert [type(result) for result in results[4:]] == [
                TimeoutExpired,
                CompletedSandbox,
                CompletedSandbox,
            ]


def test_jobs_that_time_out_before_they_start(busybox_rootfs: Path) -> None:
    jobs = [Job(["sleep", "60"], timeout=0.0) if i % 2 else Job(["true"]) for i in range(200)]
    with Template(Spec(rootfs=busybox_rootfs)) as template:
        results = template.run_batch(jobs, concurrency=4)
    for i, result in enumerate(results):
        assert isinstance(result, TimeoutExpired if i % 2 else CompletedSandbox), result


FEW_FDS = """
import os, resource, sys, fastns
with fastns.Template(fastns.Spec(rootfs=sys.argv[1])) as template:
    template.run_batch([["true"]] * 2, concurrency=1)
    used = max(map(int, os.listdir("/proc/self/fd")))
    # each live sandbox needs a connection and two pipes; a start needs a few more
    limit = used + 4 * 3 + 8
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    results = template.run_batch([["true"]] * 100, concurrency=4)
    assert [r.returncode for r in results] == [0] * 100
    limit = used + 3
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    results = template.run_batch([["true"]] * 10, concurrency=4)
    assert any(isinstance(r, fastns.SpawnError) for r in results)
"""


def test_no_job_is_requested_ahead_if_fds_are_scarce(busybox_rootfs: Path) -> None:
    """The fds that four sandboxes need are enough for a concurrency of four. The control: with
    fewer, jobs fail."""
    subprocess.run([sys.executable, "-c", FEW_FDS, busybox_rootfs], check=True, timeout=60)


INTERRUPTED = """
import os, sys, fastns

def run(jobs):
    with fastns.Template(fastns.Spec(rootfs=sys.argv[1])) as template:
        print("running", flush=True)
        template.run_batch(jobs, concurrency=2)

run([["true"]] * 20)
before = os.listdir("/proc/self/fd")
try:
    run([["sleep", sys.argv[2]]] * 20)
except KeyboardInterrupt:
    interrupted = True
sys.exit(3 if interrupted and os.listdir("/proc/self/fd") == before else 4)
"""


def test_an_interrupt_ends_jobs_requested_ahead_too(busybox_rootfs: Path) -> None:
    mark = marker()
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, busybox_rootfs, mark], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == process.stdout.readline() == b"running\n"
        assert eventually(lambda: running("sleep", mark))
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 3
    assert eventually(lambda: not marked(mark))
