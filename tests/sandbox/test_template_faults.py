"""Regression tests for templates: threads, descriptors, limits and signals."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import children, server_pid

from fastns import Mount, Rlimit, SpawnError, Spec, Template, TimeoutExpired

HOST_NET: dict[str, Any] = {"network": "host"}


@pytest.fixture(params=[0, 2], ids=["none", "ahead"])
def ready(request: pytest.FixtureRequest) -> int:
    number: int = request.param
    return number


@pytest.fixture
def template(busybox_rootfs: Path, ready: int) -> Iterator[Template]:
    with Template(Spec(rootfs=busybox_rootfs, **HOST_NET), ready=ready) as template:
        yield template


def caller(root: Path, script: str, ready: int, **options: Any) -> str:
    """Run a script that uses `template` in a process of its own; return what it prints."""
    head = "import os, sys, fastns\nfrom fastns import Spec, Template\nroot = sys.argv[1]\n"
    template = f"Template(Spec(rootfs=root, network='host'), ready={ready})"
    head += f"template = {template}.__enter__()\n"
    done = subprocess.run(
        [sys.executable, "-c", head + textwrap.dedent(script), str(root)],
        capture_output=True,
        text=True,
        timeout=60,
        **options,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---- many threads ----


def test_runs_and_spawns_mixed(template: Template) -> None:
    """A reused connection or sandbox number never reports another sandbox's exit code."""
    template.run(["true"])
    server, outcomes, end = server_pid(template), Counter[object](), time.monotonic() + 1.5

    def work(spawns: bool, name: int) -> None:
        while time.monotonic() < end:
            args = ["sh", "-c", f"exit {name}"]
            try:
                done = template.spawn(args).wait() if spawns else template.run(args).returncode
                outcome: object = done == name
            except SpawnError as error:
                outcome = str(error)
            outcomes[outcome] += 1

    threads = [threading.Thread(target=work, args=(n % 2 == 0, n)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert set(outcomes) == {True}
    assert server_pid(template) == server


def test_threads_poll_sandboxes_of_other_threads(template: Template) -> None:
    """poll() uses any free connection, but never reports the end of another sandbox."""
    sandboxes = [template.spawn(["sh", "-c", f"sleep 0.{n}; exit {n}"]) for n in range(8)]
    found: dict[int, int | None] = {}

    def watch(n: int) -> None:
        while (code := sandboxes[n].poll()) is None:
            time.sleep(0.001)
        found[n] = code

    threads = [threading.Thread(target=watch, args=(n,)) for n in reversed(range(8))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == {n: n for n in range(8)}


def test_closed_while_threads_wait(busybox_rootfs: Path) -> None:
    """Each wait fails with ECANCELED."""
    for _ in range(10):
        template = Template(Spec(rootfs=busybox_rootfs, **HOST_NET))
        sandboxes = [template.spawn(["sleep", "60"]) for _ in range(3)]
        outcomes: list[tuple[str, int]] = []

        def wait(sandbox: Any, outcomes: Any = outcomes) -> None:
            with pytest.raises(SpawnError) as caught:
                sandbox.wait()
            outcomes.append((caught.value.stage, caught.value.errno))

        threads = [threading.Thread(target=wait, args=(sandbox,)) for sandbox in sandboxes]
        for thread in threads:
            thread.start()
        time.sleep(0.01)
        template.close()
        for thread in threads:
            thread.join(30)
        assert outcomes == [("helper", errno.ECANCELED)] * 3


# ---- the caller's file descriptors ----

CLOSED = """
    log = os.dup2(1, 100)
    for fd in {fds}:
        os.close(fd)
    for again in range(2):
        sandbox, = template.spawn_batch([["sh", "-c", "sleep 60"]])
        streams = [os.path.basename(os.readlink(f"/proc/{{sandbox.pid}}/fd/{{fd}}"))
                   for fd in {fds} if os.path.lexists(f"/proc/{{sandbox.pid}}/fd/{{fd}}")]
        os.write(log, f"{{set(streams) <= {{'null'}}}} {{sandbox.poll()}}\\n".encode())
        sandbox.kill()
        sandbox.wait()
        code = template.run(["sh", "-c", "exit 3"]).returncode
        other = fastns.run_batch([["true"]], spec=Spec(rootfs=root, network="host"))
        os.write(log, f"{{code}} {{other[0].returncode}}\\n".encode())
    left = [fd for fd in {fds} if os.path.lexists(f"/proc/self/fd/{{fd}}")]
    os.write(log, f"{{left}}\\n".encode())
    template.close()
"""


@pytest.mark.parametrize("before", [False, True], ids=["after start", "before start"])
@pytest.mark.parametrize("fds", [(0,), (1,), (2,), (1, 2), (0, 1, 2)], ids=str)
def test_standard_streams_that_are_closed(
    busybox_rootfs: Path, ready: int, fds: tuple[int, ...], before: bool
) -> None:
    """Files that fastns opens must not get these fd numbers, or the sandbox would inherit them."""
    script = textwrap.dedent(CLOSED.format(fds=fds))
    if before:
        script = "template.close(); del template\n" + script
        box = f"Template(Spec(rootfs=root, network='host'), ready={ready})"
        again = f"template = {box}.__enter__()\n"
        script = script.replace("for again", again + "for again")
    assert caller(busybox_rootfs, script, ready) == "True None\n3 0\n" * 2 + "[]\n"


def test_the_highest_fd_can_be_passed(busybox_rootfs: Path, ready: int) -> None:
    script = """
    import resource
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
    fd = os.dup2(1, 255)
    with template.spawn(["sh", "-c", "echo passed >&255"], pass_fds=[fd]) as sandbox:
        print(sandbox.wait())
    """
    assert caller(busybox_rootfs, script, ready) == "passed\n0\n"


@pytest.mark.parametrize("files", [3, 4])
def test_fewer_files_than_the_server_needs(busybox_rootfs: Path, files: int) -> None:
    """The limit applies to the command only, not to the processes that start it."""
    limits = [Rlimit("RLIMIT_NOFILE", files, files)]
    spec = Spec(rootfs=busybox_rootfs, rlimits=limits, **HOST_NET)
    for ready in (0, 1):
        with Template(spec, ready=ready) as template:
            done = template.run(["sh", "-c", "ulimit -n"], capture_output=True)
            assert done.stdout == f"{files}\n".encode(), done
            assert template.spawn(["true"]).wait() == 0


def test_wait_without_a_free_descriptor(busybox_rootfs: Path, ready: int) -> None:
    """wait() fails, but can be called again."""
    script = """
    import errno, resource, time
    sandboxes = template.spawn_batch([["sh", "-c", "exit 5"]] * 3)
    time.sleep(0.3)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
    held = []
    try:
        while True:
            held.append(os.dup(0))
    except OSError:
        pass
    for sandbox in sandboxes:
        try:
            print(sandbox.wait())
        except fastns.SpawnError as error:
            print(errno.errorcode[error.errno])
    for fd in held:
        os.close(fd)
    print([sandbox.wait() for sandbox in sandboxes])
    """
    *first, last = caller(busybox_rootfs, script, ready).splitlines()
    assert len(first) == 3
    assert set(first) <= {"5", "EMFILE"}
    assert last == "[5, 5, 5]"


def test_more_jobs_than_descriptors(busybox_rootfs: Path, ready: int) -> None:
    """A start that finds no free fd fails. The others run, and the template still works."""
    script = """
    import collections, resource
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    results = template.run_batch([["true"]] * 200, concurrency=200)
    print(sorted({getattr(result, "errno", 0) for result in results}))
    print(template.run(["true"]).returncode)
    """
    assert caller(busybox_rootfs, script, ready) == f"[0, {errno.EMFILE}]\n0\n"


# ---- memory, forks, signals ----


def test_no_memory_for_the_output(busybox_rootfs: Path, ready: int) -> None:
    """Only that run fails. The template's other sandboxes keep running, and the next run works."""
    script = """
    import errno, resource
    other = template.spawn(["sleep", "60"])
    server = template._server.pid
    size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + (60 << 20), resource.RLIM_INFINITY))
    try:
        template.run(["head", "-c", "500000000", "/dev/zero"], capture_output=True)
    except fastns.SpawnError as error:
        print(error.stage, errno.errorcode[error.errno])
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
    print(other.poll(), template.run(["true"]).returncode, template._server.pid == server)
    other.kill()
    """
    assert caller(busybox_rootfs, script, ready) == "stdio ENOMEM\nNone 0 True\n"


@pytest.mark.parametrize("timeout", [0, 1e-4, 3e-4, 1e-3, 2e-3])
def test_a_timeout_during_the_start(template: Template, timeout: float) -> None:
    """The sandbox is ended, and the template still works."""
    for _ in range(20):
        with pytest.raises(TimeoutExpired):
            template.run(["sleep", "60"], timeout=timeout)
    results = template.run_batch([["sleep", "60"]] * 3, timeout=timeout)
    assert [type(result) for result in results] == [TimeoutExpired] * 3
    assert template.run(["true"]).returncode == 0


def test_poll_in_a_forked_child_does_not_reap(busybox_rootfs: Path, ready: int) -> None:
    script = """
    import time
    sandbox = template.spawn(["sh", "-c", "exit 7"])
    time.sleep(0.2)
    child = os.fork()
    if child == 0:
        try:
            sandbox.poll()
        except fastns.SpawnError:
            pass
        os._exit(0)
    os.waitpid(child, 0)
    print(sandbox.wait())
    """
    assert caller(busybox_rootfs, script, ready) == "7\n"


HELD = """
import threading, time
def hold():
    me = template._server.pid if {served} else os.getpid()
    children = f"/proc/{{me}}/task/{{me}}/children"
    while True:
        for pid in open(children).read().split():
            try:
                if b"sleep" in open(f"/proc/{{pid}}/cmdline", "rb").read():
                    fd = os.open(f"/proc/{{pid}}/fd/1", os.O_WRONLY)
                    time.sleep(2)
                    return os.close(fd)
            except OSError:
                pass
thread = threading.Thread(target=hold)
thread.start()
spec = Spec(rootfs=root, network="host")
start = time.process_time(), time.monotonic()
if {served}:
    done, = template.run_batch([["sleep", "1"]])
else:
    done, = fastns.run_batch([["sleep", "1"]], spec=spec)
thread.join()
used, passed = time.process_time() - start[0], time.monotonic() - start[1]
print(done.returncode, passed > 1.9, used < passed / 2)
"""


@pytest.mark.parametrize("served", [False, True], ids=["direct", "template"])
def test_an_output_that_another_process_keeps_open(
    busybox_rootfs: Path, ready: int, served: bool
) -> None:
    """The sandbox has ended, but its stdout is still open. The loop waits without spinning."""
    assert caller(busybox_rootfs, HELD.format(served=served), ready) == "0 True True\n"


def test_a_storm_of_signals(busybox_rootfs: Path, ready: int) -> None:
    """Ctrl-C comes during spawn_batch(), and repeatedly while it cleans up. No sandbox is left."""
    script = """
    import gc, signal, threading, time
    mark = f"98{os.getpid()}"
    def running():
        count = 0
        for name in os.listdir("/proc"):
            if name.isdigit():
                try:
                    with open(f"/proc/{name}/cmdline") as file:
                        count += file.read() == f"sleep\\0{mark}\\0"
                except OSError:
                    pass
        return count
    over = False
    def storm():
        time.sleep(0.2)
        while not over:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.0002)
    def interrupt(number, frame):
        if not over:  # an earlier signal may be delivered only after the except clause below
            raise KeyboardInterrupt
    signal.signal(signal.SIGINT, interrupt)
    thread = threading.Thread(target=storm)
    thread.start()
    interrupted = False
    try:
        template.spawn_batch([["sleep", mark]] * 2000)
        over = True
    except KeyboardInterrupt:
        interrupted = over = True
    thread.join()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.collect()
    end = time.monotonic() + 5
    while running() and time.monotonic() < end:
        time.sleep(0.05)
    print(interrupted, running())
    """
    assert caller(busybox_rootfs, script, ready) == "True 0\n"


def test_ready_sandboxes_killed_at_any_instant(busybox_rootfs: Path, tmp_path: Path) -> None:
    """Another sandbox runs the request of a killed one, but never a request that began to run."""
    tmp_path.chmod(0o777)
    mounts = [Mount("/mnt", source=str(tmp_path))]
    spec = Spec(rootfs=busybox_rootfs, mounts=mounts, **HOST_NET)
    with Template(spec, ready=3) as template:
        template.run(["true"])
        server, over, rounds = server_pid(template), threading.Event(), 300

        def kill() -> None:
            while not over.is_set():
                for pid in children(server):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                time.sleep(0.001)

        killer = threading.Thread(target=kill)
        killer.start()
        outcomes: Counter[object] = Counter()
        said: list[int] = []
        try:
            for n in range(rounds):
                try:
                    done = template.run(["sh", "-c", f"echo {n} >>/mnt/ran"])
                    outcomes[done.returncode] += 1
                    if done.returncode == 0:
                        said.append(n)
                except SpawnError as error:
                    outcomes[error.stage, error.errno] += 1
        finally:
            over.set()
            killer.join()
        ran = [int(line) for line in (tmp_path / "ran").read_text().split()]
        assert len(set(ran)) == len(ran)  # none twice
        assert set(said) <= set(ran)  # none lost
        assert set(outcomes) <= {0, -signal.SIGKILL, ("clone", errno.ECANCELED)}
        assert outcomes[0]
        assert template.run(["true"]).returncode == 0
        assert server_pid(template) == server
