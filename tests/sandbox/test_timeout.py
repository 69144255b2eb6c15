"""Time limits, kill() and Ctrl-C: every process of the sandbox ends."""

from __future__ import annotations

import codecs
import fcntl
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import eventually, marked, marker, script

import fastns


@pytest.fixture(params=["direct", "init"])
def plan(request: pytest.FixtureRequest, probe_rootfs: Path) -> fastns.Plan:
    return fastns.compile(fastns.Spec(rootfs=probe_rootfs, init=request.param == "init"))


@pytest.fixture(params=["direct", "init"])
def busybox(request: pytest.FixtureRequest, busybox_rootfs: Path) -> fastns.Plan:
    return fastns.compile(fastns.Spec(rootfs=busybox_rootfs, init=request.param == "init"))


@pytest.fixture
def host_pids(busybox_rootfs: Path) -> fastns.Plan:
    return fastns.compile(fastns.Spec(rootfs=busybox_rootfs, namespaces={"pid": "host"}))


# ---- run(timeout=) ----


def test_run_ends_and_reaps_at_its_timeout(plan: fastns.Plan) -> None:
    mark = marker()
    with pytest.raises(fastns.TimeoutExpired) as caught:
        fastns.run(["/probe", "--sleep", mark], spec=plan, timeout=0.05)
    assert isinstance(caught.value, subprocess.TimeoutExpired)
    assert caught.value.timeout == 0.05
    assert caught.value.cmd == ["/probe", "--sleep", mark]
    assert (caught.value.stdout, caught.value.stderr) == (None, None)
    assert marked(mark) == []


def test_the_output_so_far_comes_with_the_timeout(busybox: fastns.Plan) -> None:
    code = "echo out; echo err >&2; sleep 300"
    with pytest.raises(fastns.TimeoutExpired) as caught:
        fastns.run(["sh", "-c", code], spec=busybox, timeout=0.3, capture_output=True, text=True)
    assert (caught.value.stdout, caught.value.stderr) == ("out\n", "err\n")


@pytest.mark.parametrize(
    ("encoding", "errors", "said", "text"),
    [
        ("utf-16", None, "a\\0b\\0c", "ab"),  # no BOM, and half a character at the end
        ("utf-32", "ignore", "a\\0\\0\\0b", "a"),
        ("idna", None, "a.xn--tda.", "a.\xfc."),
        ("utf-8", "test_timeout_fails", "a\\377", "a\ufffd"),
    ],
    ids=lambda value: value if value and value.isidentifier() else "",
)
def test_no_codec_hides_the_timeout(
    busybox_rootfs: Path, encoding: str, errors: str | None, said: str, text: str
) -> None:
    """Not even codecs and error handlers that fail."""

    def fails(_error: UnicodeError) -> tuple[str, int]:
        raise RuntimeError

    codecs.register_error("test_timeout_fails", fails)
    spec = fastns.Spec(rootfs=busybox_rootfs)
    args = ["sh", "-c", f"printf '{said}'; sleep 300"]
    mode: Any = {"encoding": encoding, "errors": errors}
    with pytest.raises(fastns.TimeoutExpired) as caught:
        fastns.run(args, spec=spec, timeout=0.3, capture_output=True, **mode)
    assert caught.value.stdout == text
    with fastns.spawn(args, spec=spec, stdout=fastns.PIPE, **mode) as sandbox:
        with pytest.raises(fastns.TimeoutExpired) as caught:
            sandbox.communicate(timeout=0.3)
        assert caught.value.stdout == text
        sandbox.kill()


def test_daemons_end_with_the_timeout(busybox: fastns.Plan) -> None:
    """Orphans that ignore signals and have their own sessions end with the pid namespace."""
    mark = marker()
    code = f"trap '' TERM INT HUP; (setsid sleep {mark} &); (setsid sleep {mark} &); sleep {mark}"
    with pytest.raises(fastns.TimeoutExpired):
        fastns.run(["sh", "-c", code], spec=busybox, timeout=0.3)
    assert marked(mark) == []


def test_the_tree_ends_without_a_pid_namespace(host_pids: fastns.Plan) -> None:
    mark = marker()
    code = f"sh -c 'sleep {mark} & sleep {mark}' & sleep {mark} & setsid sleep {mark} & wait"
    with pytest.raises(fastns.TimeoutExpired):
        fastns.run(["sh", "-c", code], spec=host_pids, timeout=0.3)
    assert eventually(lambda: marked(mark) == [])


def test_a_tree_that_keeps_growing_ends(host_pids: fastns.Plan) -> None:
    mark = marker()
    code = f"while :; do sleep {mark} & sleep 0.01; done"
    with pytest.raises(fastns.TimeoutExpired):
        fastns.run(["sh", "-c", code], spec=host_pids, timeout=0.3)
    assert eventually(lambda: marked(mark) == [])


@pytest.mark.parametrize("timeout", [0, -1, 1e-9])
def test_no_time_at_all(plan: fastns.Plan, timeout: float) -> None:
    """Without any time, run() raises TimeoutExpired at once."""
    with pytest.raises(fastns.TimeoutExpired):
        fastns.run(["/probe", "--sleep", "60"], spec=plan, timeout=timeout)


@pytest.mark.parametrize("timeout", [float("nan"), float("inf"), 1e300, "1", True, 1j])
def test_an_invalid_timeout(plan: fastns.Plan, timeout: Any) -> None:
    """An invalid timeout is a SpecError."""
    for call in (fastns.run, lambda args, **rest: fastns.run_batch([args], **rest)):
        with pytest.raises(fastns.SpecError, match="timeout"):
            call(["/true"], spec=plan, timeout=timeout)


@pytest.fixture
def leased_rootfs(tmp_path: Path) -> Iterator[Path]:
    """A root in which this process has a lease on /true. Opening the file blocks until the lease is
    released or the kernel breaks it (fs.lease-break-time)."""
    for name in ("proc", "sys", "dev", "tmp", "run"):
        (tmp_path / name).mkdir()
    shutil.copy("/bin/busybox", tmp_path / "true")
    ignored = signal.signal(signal.SIGIO, signal.SIG_IGN)  # sent when an open blocks
    with open(tmp_path / "true", "rb") as file:
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        yield tmp_path
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    signal.signal(signal.SIGIO, ignored)


IDS = {"namespaces": {"user": "new"}}


@pytest.mark.parametrize(
    "fields",
    [{}, {"init": True}, {"overlay": True}, IDS, {"capabilities": ["NET_ADMIN"]}],
    ids=["direct", "init", "overlay", "own ids", "capabilities"],
)
def test_a_command_that_cannot_be_opened_in_time(
    leased_rootfs: Path, fields: dict[str, Any]
) -> None:
    """The timeout applies while the exec blocks."""
    with open("/proc/sys/fs/lease-break-time") as file:
        lease_break = int(file.read())
    plan = fastns.compile(fastns.Spec(rootfs=leased_rootfs, **fields))
    with pytest.raises(fastns.TimeoutExpired) as caught:
        fastns.run(["/true"], spec=plan, timeout=0.3)
    assert caught.value.wall_time < lease_break / 2
    first, second = fastns.run_batch([["/true"]] * 2, spec=plan, timeout=0.3)
    for result in (first, second):
        assert isinstance(result, fastns.TimeoutExpired)
        assert result.wall_time < lease_break / 2


def test_time_enough(plan: fastns.Plan) -> None:
    """A very long timeout is allowed."""
    assert fastns.run(["/true"], spec=plan, timeout=1e9).returncode == 0


def test_a_timeout_while_the_input_is_stuck(busybox: fastns.Plan) -> None:
    """The timeout applies if the command does not read its input."""
    data = b"x" * (1 << 20)
    with pytest.raises(fastns.TimeoutExpired):
        fastns.run(["sleep", "300"], spec=busybox, input=data, timeout=0.1, capture_output=True)


# ---- kill() ----


def test_kill_ends_every_process(busybox: fastns.Plan) -> None:
    mark = marker()
    code = f"(setsid sleep {mark} &); sleep {mark} & sleep {mark}"
    with fastns.spawn(["sh", "-c", code], spec=busybox) as sandbox:
        assert eventually(lambda: len(marked(mark)) == 3)
        sandbox.kill()
        assert sandbox.wait(20) == -signal.SIGKILL
        assert marked(mark) == []


def test_kill_ends_the_tree_without_a_pid_namespace(host_pids: fastns.Plan) -> None:
    mark = marker()
    code = f"sh -c 'sleep {mark} & sleep {mark} & wait' & setsid sleep {mark} & wait"
    with fastns.spawn(["sh", "-c", code], spec=host_pids) as sandbox:
        assert eventually(lambda: len(marked(mark)) == 3)
        sandbox.kill()
        assert sandbox.wait(20) == -signal.SIGKILL
    assert eventually(lambda: marked(mark) == [])


def test_processes_that_outlive_the_command(busybox: fastns.Plan) -> None:
    """The whole sandbox ends with the command."""
    mark = marker()
    done = fastns.run(["sh", "-c", f"sleep {mark} & exit 4"], spec=busybox, timeout=20)
    assert done.returncode == 4
    assert marked(mark) == []


def test_a_batch_ends_trees_and_daemons(busybox: fastns.Plan, host_pids: fastns.Plan) -> None:
    mark = marker()
    code = f"sleep {mark} & setsid sleep {mark} & wait"
    for plan in (busybox, host_pids):
        jobs = [["sh", "-c", code]] * 4
        outcomes = fastns.run_batch(jobs, spec=plan, timeout=0.3, concurrency=4)
        assert [type(outcome) for outcome in outcomes] == [fastns.TimeoutExpired] * 4
        assert eventually(lambda: marked(mark) == [])


# ---- Ctrl-C ----

INTERRUPTED = """
root, mark, call = sys.argv[1:]
spec = fastns.Spec(rootfs=root)
sleep = ["/probe", "--sleep", mark]
main = threading.main_thread().ident
before = fds()

def alive():
    found = []
    for pid in set(filter(str.isdigit, os.listdir("/proc"))) - {str(os.getpid())}:
        with contextlib.suppress(OSError):
            words = pathlib.Path("/proc", pid, "cmdline").read_text().split(chr(0))
            found += [pid] * (mark in words)
    return found

def interrupt(how):
    while not alive():  # with spawn_batch, more are still being started
        pass
    time.sleep(0.02)
    how()

calls = {
    "run": lambda: fastns.run(sleep, spec=spec),
    "run, captured": lambda: fastns.run(sleep, spec=spec, capture_output=True, input=b"x" * 10**6),
    "run, init": lambda: fastns.run(sleep, spec=fastns.Spec(rootfs=root, init=True)),
    "run_batch": lambda: fastns.run_batch([sleep] * 40, spec=spec, concurrency=4),
    "spawn_batch": lambda: fastns.spawn_batch([sleep] * 4000, spec=spec),
}

def with_communicate():
    with fastns.spawn(sleep, spec=spec, stdin=-1, stdout=-1) as sandbox:
        sandbox.communicate(b"x" * 10**6)

def with_wait():
    with fastns.spawn(sleep, spec=spec) as sandbox:
        sandbox.wait()

calls |= {"communicate": with_communicate, "wait": with_wait}
for how in (
    lambda: signal.pthread_kill(main, signal.SIGINT),
    lambda: os.kill(os.getpid(), signal.SIGINT),
):
    thread = threading.Thread(target=interrupt, args=(how,))
    thread.start()
    try:
        calls[call]()
    except KeyboardInterrupt:
        print("interrupted")
    thread.join()
    assert children() == [], children()
    assert alive() == []
    assert fds() == before, (before, fds())
"""


@pytest.mark.parametrize(
    "call",
    [
        "run",
        "run, captured",
        "run, init",
        "communicate",
        "wait",
        "run_batch",
        "spawn_batch",
    ],
)
def test_ctrl_c(probe_rootfs: Path, call: str) -> None:
    """Ctrl-C ends every sandbox of the call and leaves no fd."""
    mark = marker()
    output = script(INTERRUPTED, str(probe_rootfs), mark, call)
    assert output == "interrupted\n" * 2
    assert marked(mark) == []


def test_ctrl_c_at_any_moment(probe_rootfs: Path) -> None:
    """Signals are blocked during a start, which takes most of a run(). A signal that arrives then
    also kills the new sandbox."""
    code = """
import gc, warnings
warnings.simplefilter("ignore", ResourceWarning)
plan = fastns.compile(fastns.Spec(rootfs=sys.argv[1]))
caught = 0
before = fds()
fastns.run(["/true"], spec=plan)
for i in range(150):
    timer = threading.Timer(0.002 + (i % 30) * 0.0001, os.kill, (os.getpid(), signal.SIGINT))
    try:
        timer.start()
        while True:
            fastns.run(["/probe", "--sleep", "0"], spec=plan)
    except KeyboardInterrupt:
        caught += 1
    timer.join()
    gc.collect()
    assert children() == [], (i, children())
assert caught == 150
assert fds() == before, (before, fds())
"""
    script(code, str(probe_rootfs))


@pytest.mark.parametrize("function", ["run_batch", "spawn_batch"])
def test_ctrl_c_while_a_batch_starts(probe_rootfs: Path, function: str) -> None:
    """The threads block signals while they start sandboxes. A signal that arrives then must not be
    delayed until the last job has ended, or the script would time out."""
    code = f"""
plan = fastns.compile(fastns.Spec(rootfs=sys.argv[1], default_mounts=False))
fastns.{function}([], spec=plan)
for i in range(8):
    jobs = [["/probe", "--sleep", sys.argv[2]]] * 150
    timer = threading.Timer(0.003 + 0.002 * i, os.kill, (os.getpid(), signal.SIGINT))
    try:
        timer.start()
        outcomes = fastns.{function}(jobs, spec=plan, concurrency=150)
        for sandbox in outcomes:
            sandbox.kill()
            sandbox.wait()
        timer.join()
    except KeyboardInterrupt:
        pass
    else:
        assert {function == "spawn_batch"}
    timer.join()
    outcomes = None
    assert children() == []
"""
    script(code, str(probe_rootfs), "45", timeout=40)


AT_ANY_INSTANT = """
import signal, time
import fastns

def interrupt(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, interrupt)
plan = fastns.compile(fastns.Spec())
fastns.run(["true"], spec=plan)  # import everything first
for step in range(30):
    start = time.monotonic()
    try:
        signal.setitimer(signal.ITIMER_REAL, 20e-6 + step * 80e-6)
        fastns.run(["sleep", "20"], spec=plan)
    except KeyboardInterrupt:
        pass
    assert time.monotonic() - start < 10, step
assert not children()
"""


def test_a_signal_at_any_instant_of_the_start_is_delivered() -> None:
    """If the signal arrives just before fastns waits, it interrupts no wait. It must still be
    noticed."""
    script(AT_ANY_INSTANT)
