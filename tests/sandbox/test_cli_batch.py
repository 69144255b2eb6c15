"""`fastns batch` with real sandboxes: ten thousand jobs, streams, signals, limits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
import support
from processes import eventually, marked, marker

TIMEOUT = 120  # reached only if a test fails


def command(root: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "fastns", "batch", "--rootfs", str(root), *words]


def lines(jobs: list[Any]) -> bytes:
    return "".join(f"{json.dumps(job)}\n" for job in jobs).encode()


def run(
    root: Path, jobs: list[Any], *words: str
) -> tuple[int, list[dict[str, Any]], subprocess.CompletedProcess[bytes]]:
    """Pass the jobs on stdin. Return the exit code, the results and the completed process."""
    done = subprocess.run(
        command(root, *words, "-"), input=lines(jobs), capture_output=True, timeout=TIMEOUT
    )
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done


@contextmanager
def started(root: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        command(root, *words), stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    )
    with process:
        late = threading.Timer(TIMEOUT, process.kill)
        late.start()
        try:
            yield process
        finally:
            late.cancel()
            process.kill()


def ends(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout


@pytest.fixture(params=["template", "plan"])
def way(request: pytest.FixtureRequest) -> list[str]:
    """Options with which a batch starts from a template, and options with which it cannot."""
    return [] if request.param == "template" else ["--init"]


def test_ten_thousand_jobs_of_which_one_in_ten_fails(busybox_rootfs: Path, tmp_path: Path) -> None:
    """Each failure affects only its own job. The others run, and all are reported in order."""
    poisons: list[dict[str, Any]] = [
        {"args": ["missing"]},
        {"args": ["true"], "cwd": "/missing"},
        {"args": ["sleep", "60"], "timeout": 0.02},
    ]
    count = 10_000 if support.is_root() or support.LONG else 2_000
    jobs, expected = [], []
    for i in range(count):
        if i % 10 == 3:
            kind = i // 10 % 3
            jobs.append({"id": f"bad {i}", **poisons[kind]})
            expected.append((i, f"bad {i}", ("exec", "chdir", "timeout")[kind]))
        else:
            jobs.append({"id": i, "args": ["echo", str(i)]})
            expected.append((i, i, f"{i}\n"))
    source, target = tmp_path / "jobs.jsonl", tmp_path / "results.jsonl"
    source.write_bytes(lines(jobs))
    words = ["-j", "4", "--verbose", "-o", str(target), str(source)]
    done = subprocess.run(
        command(busybox_rootfs, *words), capture_output=True, text=True, timeout=TIMEOUT
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "fastns: batch: using a template\n"
    found, good = [], 0
    for line in target.read_text().splitlines():
        result = json.loads(line)
        if "error" in result:
            what = result["stage"]
            assert result["errno"] == "ENOENT"
            assert result["path"] == {"exec": "missing", "chdir": "/missing"}[what]
        elif result["timed_out"]:
            what = "timeout"
            assert (result["exit_code"], result["signal"]) == (124, "SIGKILL")
        else:
            what = result["stdout"]
            good += result["exit_code"] == 0
        found.append((result["index"], result["id"], what))
    assert found == expected
    assert good == count * 9 // 10


def test_jobs_from_stdin(busybox_rootfs: Path, way: list[str]) -> None:
    """Jobs may be lists or objects. Results have their output, exit code and id."""
    code = "cat; echo $A $B; pwd; echo err >&2; exit $C"
    jobs: list[Any] = [
        ["echo", "one"],
        {"args": ["sh", "-c", code], "input": "é\n", "env": {"B": "b", "C": "3"}, "cwd": "/tmp"},
        {"args": ["sh", "-c", "printf 'a\\377'"], "id": {"any": ["thing", None]}},
    ]
    exit_code, results, _ = run(busybox_rootfs, jobs, *way, "-e", "A=a")
    assert exit_code == 1
    assert [(r["index"], r["exit_code"], r["stdout"], r["stderr"]) for r in results] == [
        (0, 0, "one\n", ""),
        (1, 3, "é\na b\n/tmp\n", "err\n"),
        (2, 0, "a\ufffd", ""),
    ]
    assert (results[2]["id"], results[2]["stdout_base64"]) == ({"any": ["thing", None]}, "Yf8=")
    assert all(0 < r["wall_time"] < TIMEOUT and r["usage"]["max_rss"] > 0 for r in results)


def test_success_exits_with_0(busybox_rootfs: Path, way: list[str]) -> None:
    exit_code, results, done = run(busybox_rootfs, [["true"]] * 20, *way)
    assert (exit_code, len(results), done.stderr) == (0, 20, b"")


def test_verbose_shows_the_plan(busybox_rootfs: Path) -> None:
    _, _, done = run(busybox_rootfs, [["true"]], "--init", "--verbose")
    assert done.stderr.startswith(b"fastns: batch: using the compiled plan, not a template: ")


def test_the_timeout_is_for_jobs_without_one(busybox_rootfs: Path, way: list[str]) -> None:
    jobs = [
        {"args": ["sh", "-c", "echo so far; sleep 60"]},
        {"args": ["sleep", "0.6"], "timeout": 60},
    ]
    exit_code, results, _ = run(busybox_rootfs, jobs, *way, "--timeout", "300ms", "-j", "2")
    assert exit_code == 1
    assert [(r["timed_out"], r["exit_code"]) for r in results] == [(True, 124), (False, 0)]
    assert results[0]["stdout"] == "so far\n"
    assert results[0]["wall_time"] >= 0.3


def test_output_beyond_the_limit_is_dropped(busybox_rootfs: Path, way: list[str]) -> None:
    """The limit applies to each stream of each job. A job whose output is cut off still runs to its
    end."""
    code = "yes | head -c $0; yes n | head -c 10 >&2; exit 7"
    jobs = [["sh", "-c", code, size] for size in ("65536", "65537", "3000000")]
    jobs.append(["sh", "-c", "yes | head -c 70000; sleep 60"])
    exit_code, results, _ = run(busybox_rootfs, jobs, *way, "--max-output", "64k", "--timeout", "1")
    assert exit_code == 1
    assert [len(r["stdout"]) for r in results] == [65536] * 4
    assert [r["stderr"] for r in results] == ["n\n" * 5] * 3 + [""]
    assert [r.get("truncated", False) for r in results] == [False, True, True, True]
    assert [r["exit_code"] for r in results] == [7, 7, 7, 124]


def test_results_are_written_before_the_input_ends(busybox_rootfs: Path) -> None:
    with started(busybox_rootfs, "-") as process:
        stdin, stdout = ends(process)
        stdin.write(lines([["echo", str(i)] for i in range(1100)]))
        read = os.fdopen(os.dup(stdout.fileno()), "rb")
        with read:
            first = [json.loads(read.readline())["stdout"] for _ in range(1000)]
            assert first == [f"{i}\n" for i in range(1000)]
            assert process.poll() is None
            stdin.close()
            assert len(read.readlines()) == 100
        assert process.wait(TIMEOUT) == 0


def test_a_pause_of_the_input_starts_the_jobs_read_so_far(busybox_rootfs: Path) -> None:
    with started(busybox_rootfs, "-") as process:
        stdin, stdout = ends(process)
        for i in range(2):
            stdin.write(lines([["echo", str(i)]]))
            assert json.loads(stdout.readline())["stdout"] == f"{i}\n"
        stdin.close()
        assert process.wait(TIMEOUT) == 0


def test_a_result_is_written_while_later_jobs_run(busybox_rootfs: Path) -> None:
    mark = marker()
    with started(busybox_rootfs, "-j", "2", "-") as process:
        stdin, stdout = ends(process)
        stdin.write(lines([["echo", "first"], ["sleep", mark]]))
        stdin.close()
        assert json.loads(stdout.readline())["stdout"] == "first\n"
        assert eventually(lambda: len(marked(mark)) == 1)
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT) == 130
    assert eventually(lambda: marked(mark) == [])


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def all_ended(pids: list[str]) -> Callable[[], bool]:
    return lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_batch_and_keeps_the_results(
    busybox_rootfs: Path, way: list[str], tmp_path: Path, number: int
) -> None:
    """Results that wait for an earlier job are kept too. No process is left.

    The last few jobs before the signal may have ended without the caller knowing yet.
    """
    in_flight = 8  # -j 4, and four that a template is sent ahead
    mark = marker()
    target = tmp_path / "results.jsonl"
    jobs = [["echo", "0"], ["sleep", mark], *[["echo", str(i)] for i in range(2, 50)]]
    jobs += [["sleep", mark]] * 1500
    with started(busybox_rootfs, *way, "-j", "4", "-o", str(target), "-") as process:
        stdin, _ = ends(process)
        stdin.write(lines(jobs))
        assert eventually(lambda: len(marked(mark)) == 4)
        before = children(process.pid)
        assert before
        process.send_signal(number)
        assert process.wait(TIMEOUT) == 128 + number
    assert eventually(lambda: marked(mark) == [])
    assert eventually(all_ended(before))
    results = [json.loads(line) for line in target.read_text().splitlines()]
    indexes = [result["index"] for result in results]
    assert indexes == sorted(indexes)
    assert {0, *range(2, 50 - in_flight)} <= set(indexes) <= {0, *range(2, 50)}
    assert [r["stdout"] for r in results] == [f"{i}\n" for i in indexes]


def test_a_signal_while_it_reads(busybox_rootfs: Path) -> None:
    """A signal ends a batch that waits for input."""
    with started(busybox_rootfs, "-") as process:
        stdin, stdout = ends(process)
        stdin.write(lines([["echo", "1"]]))
        assert json.loads(stdout.readline())["exit_code"] == 0
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT) == 130
        assert stdout.read() == b""


def test_a_second_signal_does_not_wait_for_the_reader(busybox_rootfs: Path) -> None:
    """The first Ctrl-C waits until the results are read, so they are not lost."""
    with started(busybox_rootfs, "-") as process:
        stdin, stdout = ends(process)
        stdin.write(lines([["sh", "-c", "yes | head -c 1000000"]] * 3))
        stdin.close()
        assert stdout.read(1) == b"{"
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT) == 130


def test_a_closed_output_ends_the_batch(busybox_rootfs: Path, way: list[str]) -> None:
    mark = marker()
    with started(busybox_rootfs, *way, "-j", "2", "-") as process:
        stdin, stdout = ends(process)
        stdin.write(lines([["echo", "1"], ["sleep", "0.5"], *[["sleep", mark]] * 5]))
        stdin.close()
        assert stdout.readline()
        stdout.close()
        assert process.wait(TIMEOUT) == 141
    assert eventually(lambda: marked(mark) == [])


def test_a_slow_reader_does_not_delay_timeouts(busybox_rootfs: Path) -> None:
    """The second job is killed at its timeout although the pipe is full."""
    mark = marker()
    with started(busybox_rootfs, "-j", "2", "-") as process:
        stdin, stdout = ends(process)
        flood = {"args": ["sh", "-c", "yes | head -c 1000000"]}
        stdin.write(lines([flood, {"args": ["sleep", mark], "timeout": 1.5}]))
        stdin.close()
        assert stdout.read(1) == b"{"
        assert eventually(lambda: marked(mark) != [])
        assert eventually(lambda: marked(mark) == [])
        rest = b"{" + stdout.readall()  # type: ignore[attr-defined]
        assert [json.loads(line)["timed_out"] for line in rest.splitlines()] == [False, True]
        assert process.wait(TIMEOUT) == 1


def test_a_missing_root_is_125(tmp_path: Path) -> None:
    exit_code, results, done = run(tmp_path, [["true"]])
    assert (exit_code, results) == (125, [])
    assert done.stderr.startswith(b"fastns: ")
