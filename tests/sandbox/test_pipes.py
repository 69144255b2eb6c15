"""Input and output work in any amount and order, as text or bytes, and never hang."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import marked, marker, script

import fastns

MIB = 1 << 20
Run = Callable[..., fastns.CompletedSandbox]


@pytest.fixture(params=["direct", "init"])
def plan(request: pytest.FixtureRequest, probe_rootfs: Path) -> fastns.Plan:
    init = request.param == "init"
    return fastns.compile(fastns.Spec(rootfs=probe_rootfs, default_mounts=False, init=init))


@pytest.fixture(params=["direct", "init"])
def shell(request: pytest.FixtureRequest, busybox_rootfs: Path) -> Run:
    """`shell(code)` runs code with the root's sh and captures its output."""
    plan = fastns.compile(fastns.Spec(rootfs=busybox_rootfs, init=request.param == "init"))

    def run(code: str, **arguments: Any) -> fastns.CompletedSandbox:
        arguments = {"capture_output": True, "timeout": 30, **arguments}
        return fastns.run(["sh", "-c", code], spec=plan, **arguments)

    return run


# ---- amounts ----


def test_32_mib_both_ways(plan: fastns.Plan) -> None:
    """32 MiB of input and of output at once do not deadlock."""
    data = random.Random(7).randbytes(MIB) * 32
    done = fastns.run(["/probe", "--echo"], spec=plan, input=data, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == data


def test_both_streams_interleaved(plan: fastns.Plan) -> None:
    """Each stream is captured whole."""
    argv = ["/probe", "--flood", "both", str(4 * MIB + 1)]
    done = fastns.run(argv, spec=plan, capture_output=True, timeout=60)
    assert done.stdout == done.stderr == b"x" * (4 * MIB + 1)


def test_no_output_is_empty_bytes(plan: fastns.Plan) -> None:
    done = fastns.run(["/true"], spec=plan, capture_output=True)
    assert (done.stdout, done.stderr) == (b"", b"")


def test_streams_that_are_not_captured_are_none(plan: fastns.Plan) -> None:
    done = fastns.run(["/probe", "--flood", "stderr", "3"], spec=plan, stderr=fastns.PIPE)
    assert (done.stdout, done.stderr) == (None, b"xxx")


def test_stderr_into_stdout(shell: Run) -> None:
    """stdout has both streams, in the order of the writes."""
    done = shell(
        "echo out; echo err >&2; echo out",
        capture_output=False,
        stdout=fastns.PIPE,
        stderr=fastns.STDOUT,
    )
    assert (done.stdout, done.stderr) == (b"out\nerr\nout\n", None)


@pytest.mark.parametrize("data", [bytearray(b"abc"), memoryview(b"abc")])
def test_input_may_be_any_bytes(plan: fastns.Plan, data: Any) -> None:
    assert fastns.run(["/probe", "--echo"], spec=plan, input=data, stdout=-1).stdout == b"abc"


# ---- commands that do not read their input ----


@pytest.mark.parametrize(
    "code", ["exec <&-; sleep 0.1; echo done", "echo done", "read -n1; echo done"]
)
def test_input_that_is_not_wanted(shell: Run, code: str) -> None:
    """A command may ignore its input. EPIPE is then no error, and this process gets no SIGPIPE."""
    done = shell(code, input=b"y" * 4 * MIB)
    assert (done.returncode, done.stdout) == (0, b"done\n")


def test_input_for_a_program_that_ends_at_once(plan: fastns.Plan) -> None:
    """Input that is not read is no error."""
    for _ in range(50):
        assert fastns.run(["/true"], spec=plan, input=b"x" * MIB).returncode == 0


def test_sigpipe_at_its_default_does_not_end_the_caller(probe_rootfs: Path) -> None:
    """Some programs set the default action, to end silently when their output is closed."""
    code = """
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
spec = fastns.Spec(rootfs=sys.argv[1])
print(fastns.run(["/true"], spec=spec, input=b"x" * (1 << 20)).returncode)
jobs = [fastns.Job(["/true"], input=b"x" * (1 << 20))]
print(fastns.run_batch(jobs, spec=spec)[0].returncode)
"""
    assert script(code, str(probe_rootfs)) == "0\n0\n"


def test_empty_input_is_an_end_of_file(plan: fastns.Plan) -> None:
    done = fastns.run(["/probe", "--echo"], spec=plan, input=b"", stdout=-1, timeout=20)
    assert done.stdout == b""


def test_a_pipe_without_input_is_closed(plan: fastns.Plan) -> None:
    with fastns.spawn(["/probe", "--echo"], spec=plan, stdin=-1, stdout=-1) as sandbox:
        assert sandbox.communicate(timeout=20) == (b"", None)


# ---- processes that keep the pipes open ----


def test_daemons_in_a_pid_namespace_do_not_delay_the_end(plan: fastns.Plan) -> None:
    """The daemons have the pipes open, but die with pid 1."""
    mark = marker()
    argv = ["/probe", "--fork-hold", "3", mark]
    done = fastns.run(argv, spec=plan, capture_output=True, timeout=20)
    assert len(done.stdout.split()) == 3
    assert marked(mark) == []


def test_children_that_outlive_the_command_are_read(busybox_rootfs: Path) -> None:
    """With the host's pid namespace, the output ends when the last writer closes the pipe."""
    spec = fastns.Spec(rootfs=busybox_rootfs, namespaces={"pid": "host"})
    code = "(sleep 0.2; echo late) & echo early"
    done = fastns.run(["sh", "-c", code], spec=spec, capture_output=True, timeout=20)
    assert done.stdout == b"early\nlate\n"


def test_an_endless_writer_in_another_session_ends_at_the_timeout(busybox_rootfs: Path) -> None:
    spec = fastns.Spec(rootfs=busybox_rootfs, namespaces={"pid": "host"})
    code = "(setsid sh -c 'echo $$; exec yes' &) ; sleep 300"
    with pytest.raises(fastns.TimeoutExpired) as caught:
        fastns.run(["sh", "-c", code], spec=spec, capture_output=True, timeout=0.3)
    output = caught.value.stdout
    pid = int(output.split(b"\n", 1)[0])  # it dies of SIGPIPE
    assert len(output) > 100_000
    with pytest.raises(ProcessLookupError):
        os.kill(_settled(pid), 0)


def _settled(pid: int) -> int:
    """Wait for a process to end, whoever reaps it. Return a pid that no process can have."""
    from processes import eventually

    def gone() -> bool:
        try:
            return b"\0" not in Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return True

    assert eventually(gone)
    return 2**22 + 1 if gone() else pid


# ---- text ----


@pytest.mark.parametrize(
    ("arguments", "output", "expected"),
    [
        ({"text": True}, r"a\r\nb\rc\n", "a\nb\nc\n"),
        ({"text": True}, r"\303\244", "ä"),
        ({"encoding": "latin-1"}, r"\344", "ä"),
        ({"encoding": "ascii", "errors": "replace"}, r"\344", "\ufffd"),
        ({"errors": "ignore"}, r"a\377b", "ab"),
    ],
)
def test_text(shell: Run, arguments: dict[str, Any], output: str, expected: str) -> None:
    """Both streams are decoded as the arguments say."""
    done = shell(f"printf '{output}' | tee /dev/stderr", **arguments)
    assert (done.stdout, done.stderr) == (expected, expected)


def test_text_that_cannot_be_decoded(shell: Run) -> None:
    with pytest.raises(UnicodeDecodeError):
        shell(r"printf '\377'", text=True)


def test_a_character_cut_by_the_pipe(plan: fastns.Plan) -> None:
    """A character that two reads return in parts is decoded whole."""
    text = "ä€😀" * 100_000  # of 2, 3 and 4 bytes: reads end inside characters
    argv = ["/probe", "--echo"]
    done = fastns.run(argv, spec=plan, input=text, text=True, capture_output=True, timeout=20)
    assert done.stdout == text


@pytest.mark.parametrize("field", ["encoding", "errors"])
def test_an_unknown_codec_is_found_before_the_start(plan: fastns.Plan, field: str) -> None:
    with pytest.raises(fastns.SpecError) as caught:
        fastns.spawn(["/true"], spec=plan, stdout=-1, stderr=-1, **{field: "nonsense"})
    assert caught.value.field == field


def test_text_streams_of_a_handle(plan: fastns.Plan) -> None:
    """In text mode, the streams take and return str."""
    argv = ["/probe", "--echo"]
    with fastns.spawn(argv, spec=plan, stdin=-1, stdout=-1, text=True) as sandbox:
        assert sandbox.stdin is not None
        assert sandbox.stdout is not None
        for line in ("one\n", "zwei ä\n"):
            sandbox.stdin.write(line)
            sandbox.stdin.flush()
            assert sandbox.stdout.readline() == line
        sandbox.stdin.close()
        assert sandbox.stdout.read() == ""
    assert sandbox.returncode == 0


# ---- communicate ----


def test_communicate_after_wait(plan: fastns.Plan) -> None:
    """The output is still in the pipe."""
    argv = ["/probe", "--flood", "both", "100"]
    with fastns.spawn(argv, spec=plan, stdout=-1, stderr=-1) as sandbox:
        assert sandbox.wait(20) == 0
        assert sandbox.communicate(timeout=20) == (b"x" * 100, b"x" * 100)


def test_communicate_again_gives_the_same(plan: fastns.Plan) -> None:
    with fastns.spawn(["/probe", "--echo"], spec=plan, stdin=-1, stdout=-1) as sandbox:
        first = sandbox.communicate(b"abc", timeout=20)
        assert sandbox.communicate(timeout=20) == first == (b"abc", None)
        with pytest.raises(ValueError, match="earlier"):
            sandbox.communicate(b"more")


def test_communicate_goes_on_after_a_timeout(shell: Run, busybox_rootfs: Path) -> None:
    code = "echo first; echo err >&2; cat >/dev/null; sleep 0.4; echo second"
    spec = fastns.Spec(rootfs=busybox_rootfs)
    with fastns.spawn(["sh", "-c", code], spec=spec, stdin=-1, stdout=-1, stderr=-1) as sandbox:
        with pytest.raises(fastns.TimeoutExpired) as caught:
            sandbox.communicate(b"x" * MIB, timeout=0.2)
        assert (caught.value.stdout, caught.value.stderr) == (b"first\n", b"err\n")
        assert sandbox.poll() is None
        assert sandbox.communicate(timeout=20) == (b"first\nsecond\n", b"err\n")


CUT = r"printf 'a\303\251\r\nb\377\303'; sleep 60"


def test_output_until_a_timeout_is_text_in_text_mode(busybox_rootfs: Path) -> None:
    """U+FFFD replaces invalid bytes, and an incomplete last character is left out."""
    spec = fastns.Spec(rootfs=busybox_rootfs)
    with pytest.raises(fastns.TimeoutExpired) as caught:
        fastns.run(["sh", "-c", CUT], spec=spec, stdout=fastns.PIPE, text=True, timeout=0.5)
    assert (caught.value.stdout, caught.value.stderr) == ("a\u00e9\nb\ufffd", None)
    (late,) = fastns.run_batch([["sh", "-c", CUT]], spec=spec, errors="replace", timeout=0.5)
    assert isinstance(late, fastns.TimeoutExpired)
    assert (late.stdout, late.stderr) == ("a\u00e9\nb\ufffd", "")
    with fastns.spawn(["sh", "-c", CUT], spec=spec, stdout=fastns.PIPE, text=True) as sandbox:
        with pytest.raises(fastns.TimeoutExpired) as caught:
            sandbox.communicate(timeout=0.5)
        assert caught.value.output == "a\u00e9\nb\ufffd"
        sandbox.kill()


def test_a_reused_fd_number_is_not_waited_for(plan: fastns.Plan) -> None:
    """wait() closes the pidfd after a first communicate(). The second communicate() must not wait
    for another fd with the same number."""
    pipe = os.pipe()
    with fastns.spawn(["/probe", "--sleep", "0.2"], spec=plan, stdout=-1) as sandbox:
        with pytest.raises(fastns.TimeoutExpired):
            sandbox.communicate(timeout=0.01)
        number = sandbox.pidfd
        assert sandbox.wait(20) == 0
        assert sandbox.pidfd == -1
        os.dup2(pipe[0], number)  # an fd that never becomes readable
        try:
            signal.setitimer(signal.ITIMER_REAL, 5)
            previous = signal.signal(signal.SIGALRM, _too_long)
            assert sandbox.communicate() == (b"", None)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)
            for fd in (number, *pipe):
                os.close(fd)


def _too_long(number: int, frame: object) -> None:
    raise AssertionError("communicate() waits for an fd that is not the sandbox's")


def test_input_for_a_stdin_that_is_closed_or_no_pipe(plan: fastns.Plan) -> None:
    """communicate() refuses input that it cannot write."""
    with fastns.spawn(["/probe", "--echo"], spec=plan, stdin=-1, stdout=-1) as sandbox:
        assert sandbox.stdin is not None
        sandbox.stdin.close()
        with pytest.raises(ValueError, match="closed"):
            sandbox.communicate(b"x")
    with (
        fastns.spawn(["/true"], spec=plan) as sandbox,
        pytest.raises(fastns.SpecError, match=r"stdin=PIPE"),
    ):
        sandbox.communicate(b"x")


def test_communicate_sends_buffered_input_first(plan: fastns.Plan) -> None:
    with fastns.spawn(["/probe", "--echo"], spec=plan, stdin=-1, stdout=-1) as sandbox:
        assert sandbox.stdin is not None
        sandbox.stdin.write(b"buffered ")
        assert sandbox.communicate(b"rest", timeout=20)[0] == b"buffered rest"


# ---- like subprocess ----


@pytest.mark.parametrize(
    "arguments",
    [
        {"capture_output": True},
        {"capture_output": True, "text": True},
        {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT},
        {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE},
        {"input": b"some\ntext", "stdout": subprocess.PIPE},
        {"stdin": subprocess.DEVNULL, "capture_output": True},
        {"capture_output": True, "encoding": "latin-1"},
    ],
)
def test_the_same_results_as_subprocess(busybox_rootfs: Path, arguments: dict[str, Any]) -> None:
    code = "cat; echo ou; echo er >&2; exit 3"
    if "input" not in arguments:
        arguments = {"stdin": subprocess.DEVNULL, **arguments}
    argv = [str(busybox_rootfs / "bin/busybox"), "sh", "-c", code]
    expected = subprocess.run(argv, **arguments)
    spec = fastns.Spec(rootfs=busybox_rootfs)
    got = fastns.run(["sh", "-c", code], spec=spec, **arguments)
    assert isinstance(got, subprocess.CompletedProcess)
    assert (got.returncode, got.stdout, got.stderr) == (
        expected.returncode,
        expected.stdout,
        expected.stderr,
    )
