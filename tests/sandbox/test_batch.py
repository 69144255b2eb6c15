"""run_batch() and spawn_batch(): order, limits, and failures that affect only their own job."""

from __future__ import annotations

import functools
import gc
import itertools
import os
import pickle
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from processes import eventually, marked, marker

import fastns
from fastns import Job

PAGE = os.sysconf("SC_PAGE_SIZE")
SMALL: dict[str, Any] = {"default_mounts": False, "network": "host"}


@pytest.fixture(params=["direct", "init"])
def plan(request: pytest.FixtureRequest, probe_rootfs: Path) -> fastns.Plan:
    spec = fastns.Spec(rootfs=probe_rootfs, init=request.param == "init", **SMALL)
    return fastns.compile(spec)


@pytest.fixture
def busybox(busybox_rootfs: Path) -> fastns.Plan:
    return fastns.compile(fastns.Spec(rootfs=busybox_rootfs))


def test_results_come_in_order(plan: fastns.Plan) -> None:
    jobs = [Job(["/probe", "--echo"], input=b"%d" % i) for i in range(300)]
    outcomes = fastns.run_batch(jobs, spec=plan, concurrency=8)
    assert [o.stdout for o in outcomes if isinstance(o, fastns.CompletedSandbox)] == [
        b"%d" % i for i in range(300)
    ]
    assert [o.args for o in outcomes if isinstance(o, fastns.CompletedSandbox)] == [
        job.args for job in jobs
    ]


def test_failing_jobs_among_two_thousand(plan: fastns.Plan) -> None:
    """A failure affects only its own job. It is returned at the job's index, with its stage."""
    poisons: list[tuple[Job, str]] = [
        (Job(["/missing"]), "exec"),
        (Job(["/true"], cwd="/missing"), "chdir"),
        (Job(["/etc"]), "exec"),
        (Job(["/probe", "--sleep", "60"], timeout=0.02), "timeout"),
    ]
    turn = itertools.cycle(poisons)
    jobs: list[Job] = []
    expected: list[object] = []
    for i in range(2000):
        if i % 10 == 3:
            job, what = next(turn)
        else:
            job, what = Job(["/probe", "--exit", str(i % 100)]), str(i % 100)
        jobs.append(job)
        expected.append(what)
    outcomes = fastns.run_batch(jobs, spec=plan, concurrency=4)
    got = []
    for outcome in outcomes:
        if isinstance(outcome, fastns.SpawnError):
            got.append(outcome.stage)
        elif isinstance(outcome, fastns.TimeoutExpired):
            assert outcome.timeout == 0.02
            got.append("timeout")
        else:
            got.append(str(outcome.returncode))
    assert got == expected


@pytest.mark.parametrize("concurrency", [1, 3, 8])
def test_no_more_alive_than_allowed(busybox_rootfs: Path, concurrency: int, tmp_path: Path) -> None:
    """Each job counts the jobs that run at the same time. The first jobs wait until the count
    reaches the limit, and it must never be higher."""
    tmp_path.chmod(0o777)
    spec = fastns.Spec(
        rootfs=busybox_rootfs, mounts=[fastns.Mount("/mnt", source=str(tmp_path), options=["rw"])]
    )
    count = "n=$(ls /mnt | wc -l); echo $n"  # ls leaves out the hidden .full
    code = f"touch /mnt/$0; {count}; until [ -e /mnt/.full ]; do sleep 0.01; {count}; "
    code += f"[ $n -lt {concurrency} ] || touch /mnt/.full; done; sleep 0.03; {count}; rm /mnt/$0"
    jobs = [["sh", "-c", code, str(i)] for i in range(40)]
    seen = set()
    for outcome in fastns.run_batch(jobs, spec=spec, concurrency=concurrency, timeout=60):
        assert isinstance(outcome, fastns.CompletedSandbox)
        assert outcome.returncode == 0
        seen |= set(map(int, outcome.stdout.split()))
    assert max(seen) == concurrency


def test_a_higher_concurrency_than_jobs(plan: fastns.Plan) -> None:
    """Concurrency may be higher than the number of jobs."""
    outcomes = fastns.run_batch([["/true"]] * 3, spec=plan, concurrency=4096)
    assert len(outcomes) == 3


def test_no_thread_is_left(plan: fastns.Plan) -> None:
    before = threads()
    fastns.run_batch([["/true"]] * 20, spec=plan, concurrency=10)
    assert eventually(lambda: threads() <= before)


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


@pytest.mark.parametrize("function", [fastns.run_batch, fastns.spawn_batch])
def test_no_jobs(plan: fastns.Plan, function: Any) -> None:
    """A batch without jobs returns an empty list."""
    assert function([], spec=plan) == []
    assert function(iter(()), spec=plan) == []


def test_jobs_from_a_generator(plan: fastns.Plan) -> None:
    """Jobs may come from a generator, as lists and as Jobs."""

    def jobs() -> Iterator[Job | list[str]]:
        for i in range(5):
            yield ["/probe", "--exit", str(i)]
            yield Job(["/probe", "--exit", str(i)])

    outcomes = fastns.run_batch(jobs(), spec=plan)
    codes = [o.returncode for o in outcomes if isinstance(o, fastns.CompletedSandbox)]
    assert codes == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


@pytest.mark.parametrize(
    ("job", "field"),
    [
        ("ls -l", "jobs[2]"),
        (b"ls", "jobs[2]"),
        (7, "jobs[2]"),
        (None, "jobs[2]"),
        ([], "jobs[2].args"),
        (["a\0b"], "jobs[2].args"),
        ([7], "jobs[2].args"),
        (Job("ls -l"), "jobs[2].args"),  # type: ignore[arg-type]
        (Job(["/true"], input="text"), "jobs[2].input"),
        (Job(["/true"], input=7), "jobs[2].input"),  # type: ignore[arg-type]
        (Job(["/true"], timeout=float("nan")), "jobs[2].timeout"),
        (Job(["/true"], env={"A=": "b"}), "jobs[2].env"),
        (Job(["/true"], cwd="relative"), "jobs[2].cwd"),
    ],
)
def test_a_bad_job_is_named_before_anything_starts(
    plan: fastns.Plan, probe_rootfs: Path, job: Any, field: str, tmp_path: Path
) -> None:
    tmp_path.chmod(0o777)
    mount = fastns.Mount("/mnt", source=str(tmp_path), options=["rw"])
    spec = fastns.Spec(rootfs=probe_rootfs, mounts=[mount])
    good = ["/probe", "--write", "/mnt/started", "x"]
    with pytest.raises(fastns.SpecError) as caught:
        fastns.run_batch([good, good, job, good], spec=spec)
    assert caught.value.field == field
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "64k", 2**63])
def test_a_bad_max_output(plan: fastns.Plan, value: Any) -> None:
    with pytest.raises(fastns.SpecError, match="max_output"):
        fastns.run_batch([["/true"]], spec=plan, max_output=value)


def test_spawn_batch_refuses_input_and_timeouts(plan: fastns.Plan) -> None:
    for job in (Job(["/true"], input=b"x"), Job(["/true"], timeout=1)):
        with pytest.raises(fastns.SpecError, match=r"jobs\[1\].*run_batch"):
            fastns.spawn_batch([["/true"], job], spec=plan)


# ---- input, output and usage of jobs ----


def test_each_job_has_its_own_arguments(busybox: fastns.Plan) -> None:
    code = "echo $0 $NAME $PWD; cat"
    jobs = [
        Job(["sh", "-c", code, str(i)], input=f"in {i}", env={"NAME": f"n{i}"}, cwd=f"/{d}")
        for i, d in enumerate(("tmp", "etc"))
    ]
    outcomes = fastns.run_batch(jobs, spec=busybox, text=True)
    texts = [o.stdout for o in outcomes if isinstance(o, fastns.CompletedSandbox)]
    assert texts == ["0 n0 /tmp\nin 0", "1 n1 /etc\nin 1"]


@pytest.mark.parametrize("way", ["plan", "template"])
def test_a_decode_error_affects_only_its_job(busybox_rootfs: Path, way: str) -> None:
    bad = ["sh", "-c", r"printf 'b\344d'; echo err >&2; exit 3"]
    jobs = [["echo", "ä"], bad, ["echo", "c"]]
    spec = fastns.Spec(rootfs=busybox_rootfs)
    with fastns.Template(spec) as template:
        run = (
            template.run_batch
            if way == "template"
            else functools.partial(fastns.run_batch, spec=spec)
        )
        before, error, after = run(jobs, text=True)
        latin = run([bad], encoding="latin-1")[0]
        replaced = run([bad], errors="replace")[0]
    assert isinstance(before, fastns.CompletedSandbox)
    assert isinstance(after, fastns.CompletedSandbox)
    assert (before.stdout, after.stdout) == ("ä\n", "c\n")
    assert isinstance(error, fastns.DecodeError)
    assert isinstance(error, UnicodeDecodeError)
    assert (error.stdout, error.stderr, error.object) == (b"b\344d", b"err\n", b"b\344d")
    assert (error.returncode, error.cause, error.truncated) == (3, "exited", False)
    assert error.usage is not None
    assert error.wall_time is not None
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), vars(copy)) == (str(error), vars(error))
    assert (latin.stdout, replaced.stdout) == ("bäd", "b\ufffdd")  # type: ignore[union-attr]


def test_any_error_of_a_codec_is_a_decode_error(busybox_rootfs: Path) -> None:
    """Some codecs raise a UnicodeError that is not a UnicodeDecodeError."""
    spec = fastns.Spec(rootfs=busybox_rootfs, max_output=3)
    jobs = [["printf", "a..b"], ["printf", "b"]]
    error, after = fastns.run_batch(jobs, spec=spec, encoding="idna", errors="replace")
    assert isinstance(error, fastns.DecodeError)
    assert isinstance(after, fastns.DecodeError)
    assert (error.stdout, error.object, error.truncated) == (b"a..", b"a..", True)
    (cut,) = fastns.run_batch([["printf", r"a\0b\0"]], spec=spec, encoding="utf-16")  # no BOM
    assert isinstance(cut, fastns.CompletedSandbox)
    assert (cut.stdout, cut.truncated) == ("a", True)


@pytest.mark.parametrize("field", ["encoding", "errors"])
def test_a_bad_codec(plan: fastns.Plan, field: str) -> None:
    """An unknown encoding or error handler is a SpecError."""
    with pytest.raises(fastns.SpecError) as caught:
        fastns.run_batch([["/true"]], spec=plan, **{field: "nonsense"})
    assert caught.value.field == field


def test_an_interrupt_right_after_an_open_leaks_no_fd(probe_rootfs: Path) -> None:
    """The interrupt comes before the new fd is stored anywhere. nothing_left() finds leaks."""

    def interrupt(frame: FrameType, event: str, arg: object) -> None:
        opened = event == "return" and frame.f_code.co_name == "open_null"
        if opened or (event == "c_return" and arg is os.open):
            sys.setprofile(None)
            raise KeyboardInterrupt

    spec = fastns.Spec(rootfs=probe_rootfs)
    plan = fastns.compile(spec)
    with fastns.Template(spec) as template:
        template.run(["/true"])
        fastns.run_batch([["/true"]], spec=plan)  # warm up: imports open files too
        starts = (
            lambda: fastns.run_batch([["/true"]], spec=plan),
            lambda: fastns.spawn_batch([["/true"]], spec=plan),
            fastns.Template(spec).__enter__,
        )
        for start in starts:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)
                sys.setprofile(interrupt)
                with pytest.raises(KeyboardInterrupt):
                    start()
                gc.collect()


def test_stdin_is_empty_without_input(plan: fastns.Plan) -> None:
    (outcome,) = fastns.run_batch([["/probe", "--echo"]], spec=plan, timeout=20)
    assert isinstance(outcome, fastns.CompletedSandbox)
    assert (outcome.returncode, outcome.stdout, outcome.stderr) == (0, b"", b"")


def test_input_without_capture(busybox: fastns.Plan) -> None:
    """Jobs get their input even if their output is not captured."""
    jobs = [Job(["sh", "-c", "read x; exit $x"], input=b"%d\n" % i) for i in (3, 4)]
    outcomes = fastns.run_batch(jobs, spec=busybox, capture_output=False)
    results = [(o.returncode, o.stdout) for o in outcomes if not isinstance(o, Exception)]
    assert results == [(3, None), (4, None)]


def test_much_input_and_output_at_once(plan: fastns.Plan) -> None:
    """Jobs with more data than a pipe can hold do not deadlock."""
    data = os.urandom(1 << 20) * 4
    jobs = [Job(["/probe", "--echo"], input=data)] * 6
    for outcome in fastns.run_batch(jobs, spec=plan, concurrency=3):
        assert isinstance(outcome, fastns.CompletedSandbox)
        assert outcome.stdout == data


def test_the_timeout_counts_for_each_job(plan: fastns.Plan) -> None:
    """A job's timeout counts from its own start, not from the start of the batch."""
    mark = marker()
    nap = ["/probe", "--sleep", "0.15"]
    jobs = [*[Job(nap)] * 6, Job(["/probe", "--sleep", mark]), Job(nap, timeout=0.01)]
    outcomes = fastns.run_batch(jobs, spec=plan, timeout=0.8, concurrency=1)
    assert [type(o) for o in outcomes[:6]] == [fastns.CompletedSandbox] * 6
    late, early = outcomes[6:]
    assert isinstance(late, fastns.TimeoutExpired)
    assert isinstance(early, fastns.TimeoutExpired)
    assert (late.timeout, early.timeout) == (0.8, 0.01)
    assert marked(mark) == []


def test_the_output_so_far(busybox: fastns.Plan) -> None:
    """A job that times out has the output that it wrote before."""
    job = ["sh", "-c", "echo out; echo err >&2; sleep 60"]
    for timeout in (0.3, 3, 30):  # on a busy machine the shell may not start in time
        (outcome,) = fastns.run_batch([job], spec=busybox, timeout=timeout, text=True)
        assert isinstance(outcome, fastns.TimeoutExpired)
        if outcome.stderr:
            break
    assert (outcome.stdout, outcome.stderr) == ("out\n", "err\n")


def test_a_timed_out_job_has_its_usage(plan: fastns.Plan) -> None:
    (outcome,) = fastns.run_batch([["/probe", "--sleep", "60"]], spec=plan, timeout=0.2)
    assert isinstance(outcome, fastns.TimeoutExpired)
    assert outcome.returncode == -signal.SIGKILL
    assert outcome.usage is not None
    assert outcome.usage.user_time >= 0
    assert outcome.wall_time is not None
    assert outcome.wall_time >= 0.2
    assert not outcome.truncated


@pytest.mark.parametrize("init", [False, True])
def test_max_output_is_for_each_stream_of_each_job(busybox_rootfs: Path, init: bool) -> None:
    code = "yes | head -c $0; yes | head -c 99 >&2"
    jobs = [["sh", "-c", code, size] for size in ("100", "101", "1000000")]
    spec = fastns.Spec(rootfs=busybox_rootfs, init=init)
    with fastns.Template(fastns.Spec(rootfs=busybox_rootfs)) as template:
        for outcomes in (
            fastns.run_batch(jobs, spec=spec, max_output=100),
            template.run_batch(jobs, max_output=100),
        ):
            done = [o for o in outcomes if isinstance(o, fastns.CompletedSandbox)]
            assert [(len(o.stdout), len(o.stderr)) for o in done] == [(100, 99)] * 3
            assert [o.truncated for o in done] == [False, True, True]
            assert [o.returncode for o in done] == [0, 0, 0]


def test_all_output_is_kept_otherwise(plan: fastns.Plan) -> None:
    """Without max_output nothing is dropped."""
    (outcome,) = fastns.run_batch([["/probe", "--flood", "stdout", "300000"]], spec=plan)
    assert isinstance(outcome, fastns.CompletedSandbox)
    assert (len(outcome.stdout), outcome.truncated) == (300000, False)
    assert not fastns.run(["/true"], spec=plan).truncated


def test_usage_of_each(plan: fastns.Plan) -> None:
    """Each result has the usage and the wall time of its own job."""
    for outcome in fastns.run_batch([["/true"], ["/true"]], spec=plan):
        assert isinstance(outcome, fastns.CompletedSandbox)
        assert outcome.usage.max_rss > 0
        assert outcome.wall_time > 0


def test_a_signal_of_one(plan: fastns.Plan) -> None:
    """A job that a signal ends has a negative returncode. The next job is not affected."""
    outcomes = fastns.run_batch([["/probe", "--crash"], ["/true"]], spec=plan)
    codes = [o.returncode for o in outcomes if isinstance(o, fastns.CompletedSandbox)]
    assert codes == [-signal.SIGILL, 0]


# ---- spawn_batch ----


def test_spawn_batch(plan: fastns.Plan) -> None:
    """spawn_batch() returns a running sandbox's handle or an error for each job, in order."""
    mark = marker()
    jobs = [["/probe", "--sleep", mark]] * 3 + [["/missing"]] + [["/probe", "--exit", "3"]]
    outcomes = fastns.spawn_batch(jobs, spec=plan, concurrency=3)
    assert isinstance(outcomes[3], fastns.SpawnError)
    assert (outcomes[3].stage, outcomes[3].path) == ("exec", "/missing")
    running = [o for o in outcomes if isinstance(o, fastns.Sandbox)]
    assert [s.args for s in running] == jobs[:3] + jobs[4:]
    assert running[3].wait(20) == 3
    assert eventually(lambda: len(marked(mark)) >= 3)
    for sandbox in running[:3]:
        assert sandbox.poll() is None
        sandbox.kill()
        assert sandbox.wait(20) == -signal.SIGKILL
    assert marked(mark) == []


def test_hundreds_alive_at_once(plan: fastns.Plan) -> None:
    """spawn_batch() can start hundreds of sandboxes that live at once."""
    mark = marker()
    outcomes = fastns.spawn_batch([["/probe", "--sleep", mark]] * 150, spec=plan)
    running = [o for o in outcomes if isinstance(o, fastns.Sandbox)]
    assert len(running) == 150
    assert len({s.pid for s in running}) == 150
    for sandbox in running:
        sandbox.kill()
    assert {sandbox.wait(20) for sandbox in running} == {-signal.SIGKILL}


# ---- memory and fds ----


def rss() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def test_memory_is_freed(plan: fastns.Plan) -> None:
    """The memory of a batch with much output is freed with its results."""
    jobs = [["/probe", "--flood", "stdout", "300000"]] * 100

    def batch() -> None:
        outcomes = fastns.run_batch([*jobs, ["/missing"]], spec=plan)
        assert sum(len(o.stdout) for o in outcomes[:-1]) == 30_000_000  # type: ignore[union-attr]

    for _ in range(3):
        batch()
    before = rss()
    for _ in range(6):
        batch()
    # The output is 180 MB. The allocator's arenas, one per thread, keep some of it.
    assert rss() - before < 60_000_000


def test_small_outputs_take_little(plan: fastns.Plan) -> None:
    """The buffers of a job are freed when the job ends, not when the batch does."""
    fastns.run_batch([["/true"]] * 50, spec=plan)
    before = rss()
    outcomes = fastns.run_batch([["/true"]] * 1500, spec=plan)
    assert rss() - before < 1500 * 4096
    assert len(outcomes) == 1500


CLOSED = """
import os, sys
import fastns
for fd in map(int, sys.argv[2].split()):
    os.close(fd)
spec = fastns.Spec(rootfs=sys.argv[1], default_mounts=False, network="host")
results = fastns.spawn_batch([["/missing"]] * 20, spec=spec)
wrong = [result for result in results if getattr(result, "stage", None) != "exec"]
os._exit(len(wrong))
"""


@pytest.mark.parametrize("fds", ["0", "1 2", "0 1 2"])
def test_a_caller_with_closed_stdio_sees_failures(probe_rootfs: Path, fds: str) -> None:
    """A pipe of the start gets one of these numbers. When the child closes it, the caller must not
    take that for the exec."""
    command = [sys.executable, "-c", CLOSED, str(probe_rootfs), fds]
    assert subprocess.run(command, check=False, timeout=60).returncode == 0


# ---- functions that the command line uses ----


def test_results_arrive_while_other_jobs_run(plan: fastns.Plan) -> None:
    from fastns.batch import run_batch_by

    found: list[tuple[int, object]] = []
    seen: list[int] = []

    def each(index: int, result: Any) -> None:
        found.append((index, getattr(result, "returncode", "error")))

    def progress(done: int) -> None:
        assert done == len(found)
        seen.append(done)

    options = (2, None, True, None, None)
    for seconds in ("0.5", "5", "30"):  # on a busy machine the others may take longer
        found.clear()
        seen.clear()
        jobs = [["/probe", "--sleep", seconds], ["/probe", "--echo"], ["/missing"], ["/true"]]
        assert run_batch_by(plan, jobs, *options, progress=progress, each=each) == []
        if found[-1] == (0, 0):
            break
    assert sorted(found, key=lambda item: item[0]) == [(0, 0), (1, 0), (2, "error"), (3, 0)]
    assert found[-1] == (0, 0)
    assert seen[0] < seen[-1] == 4


@pytest.mark.parametrize("template", [False, True])
def test_a_job_that_ended_in_time_has_not_timed_out(
    probe_rootfs: Path, plan: fastns.Plan, template: bool
) -> None:
    """A job that ended in time counts as such, however late the loop notices."""
    from fastns.batch import run_batch_by

    found: dict[int, object] = {}

    def each(index: int, result: object) -> None:
        found[index] = result
        if index == 0:
            time.sleep(2.2)  # the others end meanwhile, and their timeout passes

    jobs = [Job(["/true"]), *[Job(["/probe", "--sleep", "0.3"], timeout=2)] * 2]
    options = (3, None, True, None, None)
    with fastns.Template(fastns.Spec(rootfs=probe_rootfs)) as made:
        run_batch_by(made._prepared() if template else plan, jobs, *options, each=each)
    assert [type(found[i]) for i in range(3)] == [fastns.CompletedSandbox] * 3


@pytest.mark.parametrize("where", ["progress", "each"])
def test_an_exception_in_a_callback_ends_the_batch(plan: fastns.Plan, where: str) -> None:
    from fastns.batch import run_batch_by

    mark = marker()

    def stop(*_: object) -> None:
        raise ZeroDivisionError

    jobs = [["/probe", "--sleep", mark], ["/true"]]
    with pytest.raises(ZeroDivisionError):
        run_batch_by(plan, jobs, 2, None, True, None, None, **{where: stop})
    assert marked(mark) == []


def test_an_exception_while_handles_are_made_ends_the_sandboxes(
    busybox: fastns.Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal handler may raise while a job's error message is made."""

    def interrupted(*_args: object, **_fields: object) -> None:
        raise KeyboardInterrupt

    mark = marker()
    monkeypatch.setattr(fastns.errors, "hint_for", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fastns.spawn_batch([["no-such-file"], ["sleep", mark], ["sleep", mark]], spec=busybox)
    assert eventually(lambda: not marked(mark))
