"""A handle behaves like subprocess.Popen, and has more attributes."""

from __future__ import annotations

import gc
import os
import re
import resource
import select
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from processes import eventually, marked, marker, script

import fastns


@pytest.fixture(params=["direct", "init"])
def plan(request: pytest.FixtureRequest, probe_rootfs: Path) -> fastns.Plan:
    return fastns.compile(fastns.Spec(rootfs=probe_rootfs, init=request.param == "init"))


# ---- the end ----


def test_poll_and_wait(plan: fastns.Plan) -> None:
    """poll() returns None until the end. Then poll() and wait() return the same returncode."""
    with fastns.spawn(["/probe", "--echo"], spec=plan, stdin=-1, stdout=-1) as sandbox:
        assert sandbox.poll() is None
        assert sandbox.returncode is None
        assert sandbox.exit_code is None
        assert (sandbox.usage, sandbox.wall_time) == (None, None)
        assert sandbox.stdin is not None
        sandbox.stdin.close()
        assert sandbox.wait() == sandbox.wait(0) == sandbox.poll() == sandbox.returncode == 0
        assert sandbox.exit_code == 0


def test_wait_with_a_timeout_kills_nothing(plan: fastns.Plan) -> None:
    with fastns.spawn(["/probe", "--sleep", "0.3"], spec=plan) as sandbox:
        with pytest.raises(subprocess.TimeoutExpired) as caught:
            sandbox.wait(timeout=0.01)
        assert isinstance(caught.value, fastns.TimeoutExpired)
        assert caught.value.timeout == 0.01
        assert sandbox.wait(20) == 0


@pytest.mark.parametrize("code", [0, 1, 2, 126, 127, 128, 137, 255])
def test_the_exit_code(plan: fastns.Plan, code: int) -> None:
    """An exit code over 128 is not taken for a signal."""
    done = fastns.run(["/probe", "--exit", str(code)], spec=plan)
    assert (done.returncode, done.exit_code) == (code, code)


@pytest.mark.parametrize(
    "number",
    [signal.SIGKILL, signal.SIGTERM, signal.SIGABRT, signal.SIGHUP, signal.SIGRTMIN + 2],
)
def test_a_signal_is_a_negative_returncode(busybox_rootfs: Path, number: int) -> None:
    """This is so with init=True too, where the reaper reports how the command ended."""
    for fields in ({"init": True}, {"namespaces": {"pid": "host"}}):
        spec = fastns.Spec(rootfs=busybox_rootfs, **fields)
        done = fastns.run(["sh", "-c", f"kill -{int(number)} $$; sleep 60"], spec=spec)
        assert (done.returncode, done.exit_code) == (-number, 128 + number)


def test_a_crash(plan: fastns.Plan) -> None:
    """The returncode is the negative number of the signal."""
    assert fastns.run(["/probe", "--crash"], spec=plan).returncode == -signal.SIGILL


def test_check(plan: fastns.Plan) -> None:
    """check=True raises a CalledProcessError with the output."""
    argv = ["/probe", "--exit", "3"]
    with pytest.raises(fastns.CalledProcessError) as caught:
        fastns.run(argv, spec=plan, check=True, capture_output=True)
    assert isinstance(caught.value, subprocess.CalledProcessError)
    assert (caught.value.returncode, caught.value.cmd) == (3, argv)
    assert (caught.value.stdout, caught.value.stderr) == (b"", b"")


# ---- signals ----


def test_send_signal(busybox_rootfs: Path) -> None:
    """The command's handler runs, whether the command is pid 1 or a child of the reaper."""
    code = "trap 'echo got; exit 5' USR1; echo ready; while :; do sleep 0.01; done"
    for init in (False, True):
        spec = fastns.Spec(rootfs=busybox_rootfs, init=init)
        with fastns.spawn(["sh", "-c", code], spec=spec, stdout=-1) as sandbox:
            assert sandbox.stdout is not None
            assert sandbox.stdout.readline() == b"ready\n"
            sandbox.send_signal(signal.SIGUSR1)
            assert sandbox.stdout.read() == b"got\n"
            assert sandbox.wait(20) == 5


def test_terminate(busybox_rootfs: Path) -> None:
    """A reaper forwards the signal. The kernel drops it for a pid 1 without a handler."""
    spec = fastns.Spec(rootfs=busybox_rootfs, init=True)
    with fastns.spawn(["sleep", "60"], spec=spec) as sandbox:
        sandbox.terminate()
        assert sandbox.wait(20) == -signal.SIGTERM
    spec = fastns.Spec(rootfs=busybox_rootfs)
    with fastns.spawn(["sleep", "60"], spec=spec) as sandbox:
        sandbox.terminate()
        with pytest.raises(fastns.TimeoutExpired):
            sandbox.wait(0.05)
        sandbox.kill()
        assert sandbox.wait(20) == -signal.SIGKILL


def test_signals_after_the_end_do_nothing(plan: fastns.Plan) -> None:
    with fastns.spawn(["/true"], spec=plan) as sandbox:
        select.select([sandbox.pidfd], [], [], 20)
        sandbox.send_signal(signal.SIGTERM)  # ended, not reaped
        sandbox.wait()
        sandbox.send_signal(signal.SIGTERM)
        sandbox.terminate()
        sandbox.kill()
        assert sandbox.returncode == 0


def test_a_signal_that_does_not_exist(plan: fastns.Plan) -> None:
    """Sending it raises OSError, and the sandbox keeps running."""
    with fastns.spawn(["/probe", "--sleep", "60"], spec=plan) as sandbox:
        with pytest.raises(OSError, match="Invalid argument"):
            sandbox.send_signal(1234)
        assert sandbox.poll() is None
        sandbox.kill()


# ---- attributes ----


def test_pid_and_pidfd(plan: fastns.Plan) -> None:
    """Both refer to the sandbox's first process. Reaping the process closes the pidfd."""
    mark = marker()
    with fastns.spawn(["/probe", "--sleep", mark], spec=plan) as sandbox:
        pid = sandbox.pid
        assert Path(f"/proc/{pid}/status").exists()
        info = Path(f"/proc/self/fdinfo/{sandbox.pidfd}").read_text()
        assert f"Pid:\t{pid}\n" in info
        assert not os.get_inheritable(sandbox.pidfd)
        assert select.select([sandbox.pidfd], [], [], 0)[0] == []
        assert eventually(lambda: marked(mark))
        sandbox.kill()
        assert select.select([sandbox.pidfd], [], [], 20)[0] == [sandbox.pidfd]
        sandbox.wait()
        assert sandbox.pidfd == -1
        assert sandbox.pid == pid


def test_repr(plan: fastns.Plan) -> None:
    with fastns.spawn(["/true"], spec=plan) as sandbox:
        assert repr(sandbox) == f"<fastns.Sandbox pid {sandbox.pid}, running: ['/true']>"
        sandbox.wait()
        assert repr(sandbox) == f"<fastns.Sandbox pid {sandbox.pid}, returncode 0: ['/true']>"


def test_repr_of_a_result(plan: fastns.Plan, busybox_rootfs: Path) -> None:
    numbers = r"wall_time=[\d.e-]+, user_time=[\d.e-]+, system_time=[\d.e-]+, max_rss=\d+"
    shown = repr(fastns.run(["/true"], spec=plan))
    form = rf"CompletedSandbox\(args=\['/true'\], returncode=0, cause='exited', {numbers}\)"
    assert re.fullmatch(form, shown), shown
    spec = fastns.Spec(rootfs=busybox_rootfs, max_output=2)
    code = ["sh", "-c", "echo long; exit 3"]
    shown = repr(fastns.run(code, spec=spec, capture_output=True, text=True))
    assert "returncode=3, cause=" in shown
    assert "stdout='lo', stderr='', truncated=True, wall_time=" in shown


def test_every_way_of_running_sets_the_same_attributes(plan: fastns.Plan) -> None:
    """A run without options takes a shorter path, which makes its result in C."""
    plain = fastns.run(["/true"], spec=plan)
    other = fastns.run(["/true"], spec=plan, stdin=fastns.DEVNULL)
    measured = ("_used", "_times", "wall_time")
    plain_values, other_values = (
        {name: value for name, value in vars(done).items() if name not in measured}
        for done in (plain, other)
    )
    assert plain_values == other_values
    assert vars(plain).keys() == vars(other).keys()


def test_usage(busybox_rootfs: Path) -> None:
    """Usage covers the whole sandbox: here the shell's child does the work."""
    code = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"
    for init in (False, True):
        spec = fastns.Spec(rootfs=busybox_rootfs, init=init)
        done = fastns.run(["sh", "-c", f"sh -c '{code}'; true"], spec=spec)
        assert done.usage.user_time > 0.005
        assert done.usage.user_time + done.usage.system_time < done.wall_time * 2 + 0.1
        assert done.usage.max_rss > 100_000
        assert done.wall_time > 0.005


def test_max_rss_of_a_large_command(busybox_rootfs: Path) -> None:
    """max_rss is the command's if the command is larger than the caller."""
    spec = fastns.Spec(rootfs=busybox_rootfs, init=True)
    own = (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )  # the max_rss of a direct start is never below this
    code = f"dd if=/dev/zero of=/dev/null bs={own + 200_000_000} count=1 2>/dev/null; true"
    done = fastns.run(["sh", "-c", code], spec=spec)
    assert done.usage.max_rss > own + 150_000_000
    assert done.usage.max_rss_exact


def test_wall_time_ends_with_the_sandbox(plan: fastns.Plan) -> None:
    """wall_time is set when poll() finds the end, and a later wait() does not change it."""
    with fastns.spawn(["/true"], spec=plan) as sandbox:
        select.select([sandbox.pidfd], [], [], 20)
        sandbox.poll()
        first = sandbox.wall_time
        time.sleep(0.05)
        sandbox.wait()
        assert sandbox.wall_time == first is not None


# ---- with and without a `with` block ----


def test_the_block_waits(plan: fastns.Plan) -> None:
    """The end of the block waits for the end of the sandbox."""
    with fastns.spawn(["/probe", "--sleep", "0.05"], spec=plan) as sandbox:
        assert sandbox.poll() is None
    assert sandbox.returncode == 0


def test_the_block_closes_the_pipes(plan: fastns.Plan) -> None:
    """A command that waits for input gets EOF and ends."""
    with fastns.spawn(["/probe", "--echo"], spec=plan, stdin=-1, stdout=-1, stderr=-1) as sandbox:
        files = (sandbox.stdin, sandbox.stdout, sandbox.stderr)
    assert sandbox.returncode == 0
    assert all(file is not None and file.closed for file in files)


def test_an_exception_in_the_block_ends_the_sandbox(plan: fastns.Plan) -> None:
    mark = marker()
    with (
        pytest.raises(ZeroDivisionError),
        fastns.spawn(["/probe", "--sleep", mark], spec=plan, stdin=-1) as sandbox,
    ):
        raise ZeroDivisionError
    assert sandbox.returncode == -signal.SIGKILL
    assert marked(mark) == []


def test_a_dropped_handle_ends_its_sandbox(plan: fastns.Plan) -> None:
    mark = marker()
    sandbox = fastns.spawn(["/probe", "--sleep", mark], spec=plan)
    with pytest.warns(ResourceWarning, match=f"{sandbox.pid} was still running"):  # noqa: PT031
        del sandbox
        gc.collect()
    assert marked(mark) == []


def test_a_handle_of_an_ended_sandbox_is_dropped_silently(plan: fastns.Plan) -> None:
    sandbox = fastns.spawn(["/true"], spec=plan)
    select.select([sandbox.pidfd], [], [], 20)
    del sandbox  # a warning would be an error, and the fixture nothing_left finds zombies
    gc.collect()


# ---- other threads and children of the caller ----


def test_two_threads_wait_for_one_handle(plan: fastns.Plan) -> None:
    """Each thread gets its result, and none hangs."""
    for _ in range(50):
        codes: list[object] = []
        with fastns.spawn(["/probe", "--echo"], spec=plan, stdin=-1, stdout=-1) as sandbox:

            def wait(sandbox: fastns.Sandbox = sandbox, codes: list[object] = codes) -> None:
                codes.append(sandbox.wait())

            def communicate(sandbox: fastns.Sandbox = sandbox, codes: list[object] = codes) -> None:
                codes.append(sandbox.communicate(b"x"))

            threads = [threading.Thread(target=target) for target in (wait, wait, communicate)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(20)
                assert not thread.is_alive()
        assert sorted(codes, key=str) == [(b"x", None), 0, 0]


def test_two_threads_kill_and_wait(plan: fastns.Plan) -> None:
    """The sandbox is killed, and no thread hangs."""
    for _ in range(50):
        with fastns.spawn(["/probe", "--sleep", "60"], spec=plan) as sandbox:
            threads = [
                threading.Thread(target=target)
                for target in (sandbox.wait, sandbox.kill, sandbox.kill, sandbox.poll)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(20)
                assert not thread.is_alive()
        assert sandbox.returncode == -signal.SIGKILL


def test_sigchld_ignored(probe_rootfs: Path) -> None:
    """The kernel then reaps children itself. Each wait raises an error that says so; none hangs."""
    code = """
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for init in (False, True):
    spec = fastns.Spec(rootfs=sys.argv[1], init=init)
    sandbox = fastns.spawn(["/probe", "--sleep", "0.05"], spec=spec)
    calls = [sandbox.wait, sandbox.poll, sandbox.communicate,
             lambda: fastns.run(["/true"], spec=spec),
             lambda: fastns.run(["/true"], spec=spec, capture_output=True)]
    for call in calls:
        try:
            call()
        except fastns.SpawnError as exc:
            print(exc.stage, exc.strerror, "SIGCHLD" in exc.hint)
    sandbox.kill()
    for outcome in fastns.run_batch([["/true"]] * 3, spec=spec):
        print(outcome.stage, outcome.strerror)
    try:
        fastns.run(["/missing"], spec=spec)
    except fastns.SpawnError as exc:
        print(exc.stage, exc.strerror)
    del sandbox
"""
    lines = script(code, str(probe_rootfs)).splitlines()
    once = ["wait No child processes True"] * 5 + ["wait No child processes"] * 3
    assert lines == [*once, "exec No such file or directory"] * 2


def test_another_thread_that_reaps_everything(probe_rootfs: Path) -> None:
    """A child watcher of the application may do this. A wait returns the result or fails; it never
    hangs and never returns another sandbox's result."""
    code = """
stop = threading.Event()
def reap():
    while not stop.is_set():
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            pass
        time.sleep(0.0001)
thread = threading.Thread(target=reap)
thread.start()
lost = right = 0
for i in range(300):
    spec = fastns.Spec(rootfs=sys.argv[1], default_mounts=False, init=i % 3 == 0)
    try:
        done = fastns.run(["/probe", "--exit", str(i % 50)], spec=spec)
    except fastns.SpawnError as exc:
        assert (exc.stage, exc.errno) == ("wait", 10), exc
        lost += 1
    else:
        assert done.returncode == i % 50
        right += 1
stop.set()
thread.join()
assert lost + right == 300
assert lost
"""
    script(code, str(probe_rootfs))


def test_no_sigchld_handler_is_needed_or_changed(plan: fastns.Plan) -> None:
    got: list[int] = []

    def handler(number: int, frame: object) -> None:
        got.append(number)

    before = signal.signal(signal.SIGCHLD, handler)
    try:
        assert fastns.run(["/true"], spec=plan).returncode == 0
        assert signal.getsignal(signal.SIGCHLD) is handler
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert set(got) == {signal.SIGCHLD}


def test_other_children_are_not_reaped(plan: fastns.Plan) -> None:
    with subprocess.Popen(["sleep", "0.2"]) as other:
        for _ in range(20):
            assert fastns.run(["/true"], spec=plan).returncode == 0
        assert other.wait() == 0
