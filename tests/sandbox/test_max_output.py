"""Output beyond max_output is read and dropped while the command continues, or ends the sandbox."""

import functools
import json
import os
import select
import signal
import subprocess
import sys
import time

import pytest
from inside import WAYS, runner
from processes import eventually, marker, running

import fastns
from fastns import PIPE, Spec, Template

LIMIT = 1000
MUCH = ["sh", "-c", "head -c 300000 /dev/zero; head -c 999 /dev/zero >&2; exit 3"]


@pytest.mark.parametrize("way", WAYS)
def test_run_truncates(way: str) -> None:
    with runner(way, max_output="1000") as run:
        done = run(MUCH, capture_output=True)
        assert (len(done.stdout), len(done.stderr)) == (LIMIT, 999)
        assert (done.returncode, done.truncated, done.cause) == (3, True, "exited")
        done = run(["echo", "short"], capture_output=True, text=True)
        assert (done.stdout, done.truncated, done.cause) == ("short\n", False, "exited")


def test_exactly_the_limit_is_not_over_it() -> None:
    for size, over in ((LIMIT, False), (LIMIT + 1, True)):
        command = ["head", "-c", str(size), "/dev/zero"]
        done = fastns.run(command, spec=Spec(max_output=LIMIT), capture_output=True)
        assert (len(done.stdout), done.truncated) == (LIMIT, over)


def test_batches_and_communicate_truncate() -> None:
    spec = Spec(max_output=LIMIT)
    (done,) = fastns.run_batch([MUCH], spec=spec)
    assert isinstance(done, fastns.CompletedSandbox)
    assert (len(done.stdout), done.truncated, done.cause) == (LIMIT, True, "exited")
    (done,) = fastns.run_batch([MUCH], spec=spec, max_output=5)  # overrides the spec's limit
    assert isinstance(done, fastns.CompletedSandbox)
    assert len(done.stdout) == 5
    with fastns.spawn(MUCH, spec=spec, stdout=PIPE, stderr=PIPE) as sandbox:
        out, err = sandbox.communicate(timeout=20)
    assert (len(out), len(err)) == (LIMIT, 999)
    assert (sandbox.truncated, sandbox.cause) == (True, "exited")
    with Template(spec) as template, template.spawn(MUCH, stdout=PIPE) as sandbox:
        out, _ = sandbox.communicate(timeout=20)
    assert (len(out), sandbox.truncated, sandbox.cause) == (LIMIT, True, "exited")


@pytest.mark.parametrize("way", WAYS)
def test_text_is_cut_between_characters(way: str) -> None:
    """An incomplete last character is dropped. It is not an error."""
    say = ["printf", "éééé%s"]
    with runner(way, max_output=3) as run:
        done = run(say, capture_output=True, text=True)
        assert (done.stdout, done.truncated) == ("é", True)
        assert run(say, stdout=PIPE, encoding="utf-8", errors="replace").stdout == "é"
        with pytest.raises(fastns.DecodeError):  # this stream was not cut
            run(["sh", "-c", r"printf 'a\303'; printf 1234 >&2"], capture_output=True, text=True)


def test_text_of_batches_and_communicate_is_cut_between_characters() -> None:
    spec, jobs = Spec(max_output=3), [["printf", "éééé"], ["echo", "ab"]]
    with Template(spec) as template:
        for results in (
            fastns.run_batch(jobs, spec=spec, text=True),
            fastns.run_batch(jobs, max_output=3, text=True),
            template.run_batch(jobs, text=True),
        ):
            assert [done.stdout for done in results] == ["é", "ab\n"]
        for spawn in (template.spawn, functools.partial(fastns.spawn, spec=spec)):
            with spawn(jobs[0], stdout=PIPE, text=True) as sandbox:
                assert sandbox.communicate() == ("é", None)


def test_endless_output_ends_by_the_timeout() -> None:
    spec = Spec(max_output=LIMIT)
    with pytest.raises(fastns.TimeoutExpired) as caught:
        fastns.run(["yes"], spec=spec, capture_output=True, timeout=0.3)
    assert len(caught.value.stdout) == LIMIT
    assert (caught.value.truncated, caught.value.cause) == (True, "timeout")


# ---- on_output_limit="kill" ----

ENDLESS = ["sh", "-c", "echo error >&2; yes & yes"]


@pytest.mark.parametrize("way", WAYS)
def test_kill_ends_the_sandbox_at_once(way: str) -> None:
    """The control: with "truncate" only the timeout ends it."""
    with runner(way, max_output=LIMIT, on_output_limit="kill") as run:
        for _ in range(2):  # the second start reuses the first one's resources
            done = run(ENDLESS, capture_output=True)
            assert (done.returncode, done.cause, done.truncated) == (-9, "output_limit", True)
            assert (len(done.stdout), done.stderr) == (LIMIT, b"error\n")
            assert done.exit_code == 137
        done = run(["head", "-c", str(LIMIT), "/dev/zero"], capture_output=True)
        assert (done.returncode, done.cause, done.truncated) == (0, "exited", False)
        done = run(["sh", "-c", "yes >&2"], stderr=PIPE, timeout=60)
        assert done.cause == "output_limit"
        done = run(["head", "-c", "5000", "/dev/zero"])  # not captured: no limit
        assert done.cause == "exited"
    with (
        runner(way, max_output=LIMIT) as run,
        pytest.raises(fastns.TimeoutExpired) as caught,
    ):
        run(ENDLESS, capture_output=True, timeout=0.3)
    assert caught.value.cause == "timeout"


def test_a_command_that_ended_over_the_limit() -> None:
    """A quick command may write all of its output to the pipe and end before the limit is seen."""
    spec = Spec(max_output=10, on_output_limit="kill")
    for _ in range(20):
        done = fastns.run(["echo", "hello, world"], spec=spec, stdout=PIPE)
        assert (done.cause, done.truncated, done.stdout) == ("output_limit", True, b"hello, wor")


def test_kill_ends_the_whole_process_tree() -> None:
    mark = marker()
    spec = Spec(max_output=10, on_output_limit="kill", namespaces={"pid": "host"})
    code = f"sleep {mark} & yes"
    done = fastns.run(["sh", "-c", code], spec=spec, capture_output=True, timeout=60)
    assert done.cause == "output_limit"
    assert eventually(lambda: not running("sleep", mark))


def test_kill_in_a_batch_affects_only_one_job() -> None:
    spec = Spec(max_output=LIMIT, on_output_limit="kill")
    jobs = [ENDLESS, ["echo", "short"]] * 4 + [["sleep", "60"]]
    with Template(spec) as template:
        for batch in (template.run_batch, functools.partial(fastns.run_batch, spec=spec)):
            results = batch([*jobs[:-1], fastns.Job(jobs[-1], timeout=0.2)], concurrency=3)
            assert [done.cause for done in results] == [*("output_limit", "exited") * 4, "timeout"]
            assert [len(done.stdout) for done in results] == [*(LIMIT, 6) * 4, 0]
            (done,) = batch([["yes"]], max_output=5)
            assert (done.cause, len(done.stdout)) == ("output_limit", 5)


def test_kill_with_communicate() -> None:
    """communicate() ends a sandbox that exceeds the limit."""
    spec = Spec(max_output=LIMIT, on_output_limit="kill")
    with Template(spec) as template:
        for spawn in (template.spawn, functools.partial(fastns.spawn, spec=spec)):
            with spawn(ENDLESS, stdout=PIPE, stderr=PIPE) as sandbox:
                out, err = sandbox.communicate(timeout=60)
                assert (len(out), err) == (LIMIT, b"error\n")
                assert sandbox.communicate() == (out, err)
            assert (sandbox.returncode, sandbox.cause) == (-9, "output_limit")
            with spawn(["echo", "short"], stdout=PIPE) as sandbox:
                assert sandbox.communicate() == (b"short\n", None)
            assert sandbox.cause == "exited"


def test_an_invalid_on_output_limit() -> None:
    for wrong in ("stop", None, True, b"kill"):
        with pytest.raises(fastns.SpecError, match="expected one of truncate, kill") as caught:
            Spec(on_output_limit=wrong)  # type: ignore[arg-type]
        assert caught.value.field == "on_output_limit"


COMMAND = [sys.executable, "-m", "fastns", "run", "--max-output", "1000"]


def test_the_flag() -> None:
    """--max-output truncates each stream, and the status says so."""
    status, write = os.pipe()
    command = [*COMMAND, "--status-fd", str(write), *MUCH]
    done = subprocess.run(command, capture_output=True, pass_fds=[write], timeout=30)
    os.close(write)
    with open(status) as file:
        outcome = json.load(file)
    assert (done.returncode, len(done.stdout), len(done.stderr)) == (3, LIMIT, 999)
    assert (outcome["exit_code"], outcome["cause"]) == (3, "exited")
    assert outcome["truncated"]


def test_the_flag_on_output_limit() -> None:
    """--on-output-limit kill ends the sandbox, for `run` and for `batch`."""
    command = [*COMMAND, "--on-output-limit", "kill", "--status-fd"]
    for words, code in ((ENDLESS, 137), (["head", "-c", "1001", "/dev/zero"], 0)):
        status, write = os.pipe()
        done = subprocess.run(
            [*command, str(write), *words], capture_output=True, pass_fds=[write], timeout=60
        )
        os.close(write)
        with open(status) as file:
            outcome = json.load(file)
        assert len(done.stdout) == LIMIT
        assert (outcome["cause"], outcome["truncated"]) == ("output_limit", True)
        assert done.returncode == outcome["exit_code"] == code or (code, done.returncode) == (
            0,
            137,
        )
    batch = [sys.executable, "-m", "fastns", "batch", "--max-output", "1000", "-"]
    done = subprocess.run(
        [*batch, "--on-output-limit", "kill"],
        input=json.dumps({"args": ENDLESS}).encode(),
        capture_output=True,
        timeout=60,
    )
    (result,) = map(json.loads, done.stdout.splitlines())
    assert (result["cause"], result["exit_code"]) == ("output_limit", 137)


def test_the_flag_and_a_reader_that_closes_the_pipe() -> None:
    """The command gets EPIPE and ends."""
    with subprocess.Popen([*COMMAND, "yes"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert eventually(lambda: process.poll() is not None)
        assert process.returncode == 1  # EPIPE: the kernel sends pid 1 of a namespace no SIGPIPE


STUCK = [*COMMAND[:-1], "1m"]


@pytest.mark.parametrize("end", ["timeout", "signal", "signal after the end"])
def test_the_flag_and_a_reader_that_does_not_read(end: str) -> None:
    """fastns waits for the reader only until a timeout or a signal."""
    read, write = os.pipe()
    words = ["--timeout", "0.5s", "yes"] if end == "timeout" else ["yes"]
    if end == "signal after the end":
        words = ["head", "-c", "120000", "/dev/zero"]  # almost two full pipes
    with subprocess.Popen([*STUCK, *words], stdout=write) as process:
        os.close(write)
        try:
            if end != "timeout":
                assert select.select([read], [], [], 30)[0]
                time.sleep(0.3)
                assert process.poll() is None
                process.terminate()
            code = process.wait(timeout=20)
        finally:
            os.close(read)
    assert code == (124 if end == "timeout" else 128 + signal.SIGTERM)


def test_the_flag_and_a_slow_reader() -> None:
    """The reader gets all output written before the end, however the sandbox ended."""
    for then, code in (("exit 3", 3), ("sleep 60", 128 + signal.SIGTERM)):
        words = ["sh", "-c", f"head -c 100000 /dev/zero; echo done >&2; {then}"]
        with subprocess.Popen([*STUCK, *words], stdout=-1, stderr=-1) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stderr.readline() == b"done\n"
            if code != 3:
                process.terminate()
            got = 0
            while data := os.read(process.stdout.fileno(), 4096):
                got += len(data)
                time.sleep(0.02)
            assert (got, process.wait()) == (100000, code)


def test_the_flag_and_signals() -> None:
    """A signal to fastns ends the sandbox."""
    mark = marker()
    with subprocess.Popen([*COMMAND, "sleep", mark]) as process:
        assert eventually(lambda: running("sleep", mark))
        process.terminate()
        assert process.wait(timeout=20) == 128 + signal.SIGTERM
