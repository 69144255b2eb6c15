"""Time limits, kill(), Ctrl-C and the caller's end work on stopped processes too."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import support
from processes import children, eventually, marked, marker, script, server_pid

import fastns
from fastns import SpawnError, Spec, Template, TimeoutExpired


class Alarm(BaseException):
    """Like KeyboardInterrupt, but raised by SIGALRM, which only these tests send."""


@contextmanager
def alarm(seconds: float = 0.3) -> Iterator[None]:
    """Raise Alarm in the block after this time, unless the block ends earlier."""

    def ring(*_: object) -> None:
        raise Alarm

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(params=[0, 2], ids=["none", "ahead"])
def template(probe_rootfs: Path, request: pytest.FixtureRequest) -> Iterator[Template]:
    with Template(Spec(rootfs=probe_rootfs), ready=request.param) as template:
        assert eventually(lambda: len(children(server_pid(template))) == request.param)
        yield template


def state(pid: int) -> str:
    """The state that ps(1) shows, such as T for stopped, or "-" if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except OSError:
        return "-"


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    assert eventually(lambda: state(pid) == "T")


SLEEP = ["/probe", "--sleep", "300"]


# ---- a template's server ----


def test_time_limits_while_the_server_is_stopped(template: Template) -> None:
    """Time limits still apply, and no other sandbox is affected."""
    neighbour = template.spawn(SLEEP)
    server = server_pid(template)
    for timeout in (0.05, 0.5):
        stop(server)
        with pytest.raises(TimeoutExpired):
            template.run(SLEEP, timeout=timeout)
    stop(server)
    results = template.run_batch([SLEEP] * 3, timeout=0.3, concurrency=2)
    assert [type(result) for result in results] == [TimeoutExpired] * 3
    assert server_pid(template) == server
    assert neighbour.poll() is None
    neighbour.kill()
    assert neighbour.wait() == -signal.SIGKILL


def test_a_stopped_server_is_continued(template: Template) -> None:
    """A caller that waits for a reply sends the server SIGCONT."""
    sandbox, other = template.spawn(["/true"]), template.spawn(SLEEP)
    server = server_pid(template)
    assert eventually(lambda: state(sandbox.pid) in "-Z")
    ways: list[Callable[[], Any]] = [
        sandbox.wait,
        lambda: template.spawn(["/true"]).wait(),
        lambda: template.run(["/true"]).returncode,
        lambda: template.run_batch([["/true"]])[0].returncode,  # type: ignore[union-attr]
        lambda: (other.kill(), other.wait() + signal.SIGKILL)[1],
        lambda: template.stats().networks_touched,
    ]
    for way in ways:
        stop(server)
        assert way() == 0
    assert server_pid(template) == server


def test_a_server_that_is_stopped_again_and_again(template: Template) -> None:
    """The server is killed with all its sandboxes, and the next start gets another server."""
    neighbour = template.spawn(SLEEP)
    server, done = server_pid(template), threading.Event()
    pidfd = os.pidfd_open(server)

    def stop_it() -> None:
        while not done.is_set():
            try:
                signal.pidfd_send_signal(pidfd, signal.SIGSTOP)
            except ProcessLookupError:
                return
            os.sched_yield()

    thread = threading.Thread(target=stop_it)
    thread.start()
    try:
        with pytest.raises(TimeoutExpired):
            template.run(SLEEP, timeout=0.2)
        try:
            neighbour.kill()
            assert neighbour.wait() == -signal.SIGKILL
        except SpawnError as error:
            assert (error.stage, error.errno) == ("helper", errno.ECANCELED)
    finally:
        done.set()
        thread.join()
        os.close(pidfd)
    assert template.run(["/true"]).returncode == 0


def test_other_threads_run_while_the_server_is_stopped(template: Template) -> None:
    """A thread that waits for the server has released the GIL."""
    stop(server_pid(template))
    waiter = threading.Thread(target=lambda: template.spawn(["/true"]).wait())
    waiter.start()
    ticks = 0
    while waiter.is_alive():
        ticks += 1
        waiter.join(0.001)
    assert ticks > 10


def test_a_stopped_servers_control_socket_is_full(template: Template) -> None:
    """More connections are requested than fit into the socket. Each request waits its turn."""
    server = template._server
    assert server is not None
    stop(server.pid)
    results = template.run_batch([["/true"]] * 600, concurrency=600)
    assert [getattr(result, "returncode", result) for result in results] == [0] * 600
    assert template._server is server


# ---- a template's other processes ----


@pytest.mark.parametrize("way", ["run", "spawn"])
def test_ctrl_c_while_a_ready_sandbox_is_stopped(probe_rootfs: Path, way: str) -> None:
    """That sandbox is killed, and the template still works."""
    with Template(Spec(rootfs=probe_rootfs), ready=1) as template:
        server = server_pid(template)
        assert eventually(lambda: len(children(server)) == 1)
        (ahead,) = children(server)
        stop(ahead)
        with pytest.raises(Alarm), alarm():
            template.run(SLEEP) if way == "run" else template.spawn(SLEEP)
        assert state(ahead) in "-Z"
        assert template.run(["/true"]).returncode == 0
        assert server_pid(template) == server


def test_a_time_limit_while_a_ready_sandbox_is_stopped(probe_rootfs: Path) -> None:
    """The time limit still applies, and the template still works."""
    with Template(Spec(rootfs=probe_rootfs), ready=1) as template:
        assert eventually(lambda: len(children(server_pid(template))) == 1)
        stop(children(server_pid(template))[0])
        with pytest.raises(TimeoutExpired):
            template.run(SLEEP, timeout=0.3)
        assert template.run(["/true"]).returncode == 0


# ---- the caller's end ----

CALLER = """
import os, signal, sys, threading
from fastns import Spec, Template
root, mark, where = sys.argv[1:]
template = Template(Spec(rootfs=root), ready=2)
def start():
    template.spawn(["/true"]).wait()
if where == "main":
    start()
else:
    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    while len(os.listdir("/proc/self/task")) > 1:
        pass
running = template.spawn(["/probe", "--sleep", mark])
print(template._server.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("where", ["main", "thread"])
def test_no_process_outlives_a_killed_caller(probe_rootfs: Path, where: str) -> None:
    """All processes end, even stopped ones, whichever thread of the caller started the server."""
    mark = marker()
    args = [sys.executable, "-c", CALLER, str(probe_rootfs), mark, where]
    with subprocess.Popen(args, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as caller:
        assert caller.stdout is not None
        server = int(caller.stdout.readline())  # alive although the thread has ended
        pidfd = os.pidfd_open(server)
        assert eventually(lambda: len(children(server)) == 3)  # two are ready
        stop(server)
        for pid in (*children(server), *children(server, False)):
            with suppress(ProcessLookupError):  # made for a connection that was closed meanwhile
                os.kill(pid, signal.SIGSTOP)
            assert eventually(lambda pid=pid: state(pid) in "TZ-")
        caller.kill()
        caller.wait()
    try:
        assert eventually(lambda: state(server) in "-Z")
        assert eventually(lambda: marked(mark) == [])
    finally:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)


# ---- starts without a template ----

# The program hangs instead of stopping itself, because pid 1 cannot do that.
HANGING_PROGRAM = "#include <unistd.h>\nint main(void) { for (;;) pause(); }\n"
# fastns finds its program beside _core.
ELSEWHERE = """
import sys
from fastns import _core
_core.__file__ = sys.argv[1] + "/_core"
"""
TIMED = """
spec = fastns.Spec(init=True)
before = fds()
for call in (lambda: fastns.run(["true"], spec=spec, timeout=0.3),
             lambda: fastns.run_batch([["true"]], spec=spec, timeout=0.3)[0]):
    try:
        result = call()
    except fastns.TimeoutExpired as error:
        result = error
    print(type(result).__name__, children(), fds() == before)
"""
GIVEN_UP = """
spec = fastns.Spec(init=True)
before = fds()
def ring(*_):
    raise TimeoutError
signal.signal(signal.SIGALRM, ring)
for call in (lambda: fastns.run(["true"], spec=spec), lambda: fastns.spawn(["true"], spec=spec),
             lambda: fastns.run_batch([["true"]], spec=spec),
             lambda: fastns.spawn_batch([["true"]], spec=spec),
             lambda: fastns.Template(fastns.Spec()).run(["true"])):
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        result = call()
    except TimeoutError as error:
        result = "given up"
    print(result, children(), fds() == before)
"""


@pytest.fixture(scope="module")
def hanging_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a program that hangs, in place of fastns' own."""
    place = tmp_path_factory.mktemp("program")
    (place / "program.c").write_text(HANGING_PROGRAM)
    support.compile_static(place / "program.c", place / "_program")
    return place


def test_a_time_limit_while_the_program_hangs(hanging_program: Path) -> None:
    """The time limit still applies, and no process and no fd is left."""
    out = script(TIMED, str(hanging_program), first=ELSEWHERE)
    assert out.splitlines() == ["TimeoutExpired [] True"] * 2


def test_ctrl_c_while_the_program_hangs(hanging_program: Path) -> None:
    """Ctrl-C ends the call, and no process and no fd is left."""
    out = script(GIVEN_UP, str(hanging_program), first=ELSEWHERE)
    assert out.splitlines() == ["given up [] True"] * 5


@pytest.mark.parametrize("init", [False, True], ids=["direct", "init"])
def test_a_sandbox_that_is_stopped(probe_rootfs: Path, init: bool) -> None:
    """The stopped process is the sandbox's first: the command or, with init, the reaper."""
    spec = Spec(rootfs=probe_rootfs, init=init)
    with fastns.spawn(SLEEP, spec=spec) as sandbox:
        stop(sandbox.pid)
        with pytest.raises(TimeoutExpired):
            sandbox.wait(0.05)
        sandbox.kill()
        assert sandbox.wait() == -signal.SIGKILL
    with fastns.spawn(SLEEP, spec=spec) as sandbox:
        stop(sandbox.pid)
        with pytest.raises(Alarm), alarm():
            sandbox.communicate()
        sandbox.kill()
