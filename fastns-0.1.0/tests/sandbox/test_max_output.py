"""max_output as a field of a spec: kept up to it, the rest read, so that the command goes on."""

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
def test_kept_by_run(way: str) -> None:
    with runner(way, max_output="1000") as run:
        done = run(MUCH, capture_output=True)
        assert (len(done.stdout), len(done.stderr)) == (LIMIT, 999)
        assert (done.returncode, done.truncated, done.cause) == (3, True, "output_limit")
        done = run(["echo", "short"], capture_output=True, text=True)
        assert (done.stdout, done.truncated, done.cause) == ("short\n", False, "exited")


def test_exactly_the_limit_is_not_over_it() -> None:
    for size, over in ((LIMIT, False), (LIMIT + 1, True)):
        command = ["head", "-c", str(size), "/dev/zero"]
        done = fastns.run(command, spec=Spec(max_output=LIMIT), capture_output=True)
        assert (len(done.stdout), done.truncated) == (LIMIT, over)


def test_kept_by_batches_and_communicate() -> None:
    spec = Spec(max_output=LIMIT)
    (done,) = fastns.run_batch([MUCH], spec=spec)
    assert isinstance(done, fastns.CompletedSandbox)
    assert (len(done.stdout), done.cause) == (LIMIT, "output_limit")
    (done,) = fastns.run_batch([MUCH], spec=spec, max_output=5)  # the call's own goes before
    assert isinstance(done, fastns.CompletedSandbox)
    assert len(done.stdout) == 5
    with fastns.spawn(MUCH, spec=spec, stdout=PIPE, stderr=PIPE) as sandbox:
        out, err = sandbox.communicate(timeout=20)
    assert (len(out), len(err)) == (LIMIT, 999)
    assert (sandbox.truncated, sandbox.cause) == (True, "output_limit")
    with Template(spec) as template, template.spawn(MUCH, stdout=PIPE) as sandbox:
        out, _ = sandbox.communicate(timeout=20)
    assert (len(out), sandbox.cause) == (LIMIT, "output_limit")


@pytest.mark.parametrize("way", WAYS)
def test_text_is_cut_between_characters(way: str) -> None:
    """The last one kept may be half of one: that is no fault of the command's."""
    say = ["printf", "éééé%s"]
    with runner(way, max_output=3) as run:
        done = run(say, capture_output=True, text=True)
        assert (done.stdout, done.truncated) == ("é", True)
        assert run(say, stdout=PIPE, encoding="utf-8", errors="replace").stdout == "é"
        with pytest.raises(fastns.DecodeError):  # that stream was not cut
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


COMMAND = [sys.executable, "-m", "fastns", "run", "--max-output", "1000"]


def test_the_flag() -> None:
    status, write = os.pipe()
    command = [*COMMAND, "--status-fd", str(write), *MUCH]
    done = subprocess.run(command, capture_output=True, pass_fds=[write], timeout=30)
    os.close(write)
    with open(status) as file:
        outcome = json.load(file)
    assert (done.returncode, len(done.stdout), len(done.stderr)) == (3, LIMIT, 999)
    assert (outcome["exit_code"], outcome["cause"]) == (3, "output_limit")
    assert outcome["truncated"]


def test_the_flag_and_a_reader_that_goes_away() -> None:
    with subprocess.Popen([*COMMAND, "yes"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert eventually(lambda: process.poll() is not None)
        assert process.returncode == 1  # EPIPE: pid 1 of a namespace has no SIGPIPE


STUCK = [*COMMAND[:-1], "1m"]


@pytest.mark.parametrize("end", ["timeout", "signal", "signal after the end"])
def test_the_flag_and_a_reader_that_takes_nothing(end: str) -> None:
    """It is waited for only after an end that nobody has asked for, and until somebody asks."""
    read, write = os.pipe()
    words = ["--timeout", "0.5s", "yes"] if end == "timeout" else ["yes"]
    if end == "signal after the end":
        words = ["head", "-c", "120000", "/dev/zero"]  # two pipes full, almost
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
    """What was written before the end arrives, the sandbox's own or not."""
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
    mark = marker()
    with subprocess.Popen([*COMMAND, "sleep", mark]) as process:
        assert eventually(lambda: running("sleep", mark))
        process.terminate()
        assert process.wait(timeout=20) == 128 + signal.SIGTERM
