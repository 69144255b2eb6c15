"""An unfiltered program uses ptrace(2). A tracer learns of its tracee's end before the parent does,
and any process can make its parent its tracer. The caller must neither hang because of this nor
report a live sandbox as ended."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import support
from inside import runner
from processes import eventually, marked, marker

import fastns
from fastns import Spec, TimeoutExpired

SOURCE = r"""
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <unistd.h>
static int hold(int pid, int options)
{
    return ptrace(PTRACE_SEIZE, pid, 0, options) == 0;
}
static int stopped;
static void *stay(void *none)
{
    stopped = (int)syscall(SYS_gettid);
    for (;;)
        pause();
    return none;
}
static void *ask(void *none)
{
    ptrace(PTRACE_TRACEME, 0, 0, 0);
    return none;
}
/* Leaves an orphan that traces `thread`: no parent can reap the tracee while the tracer sleeps. */
static void leave_tracer(double seconds, int thread, int options)
{
    int ends[2];
    char one = 0;
    sigset_t ends_of_children; /* a SIGCHLD delivered to a tracee would stop it for good */
    sigemptyset(&ends_of_children);
    sigaddset(&ends_of_children, SIGCHLD);
    sigprocmask(SIG_BLOCK, &ends_of_children, 0);
    prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0);
    if (pipe(ends) < 0)
        _exit(3);
    if (fork() == 0) {
        if (fork())
            _exit(0);
        one = hold(thread, options);
        write(ends[1], &one, 1);
        for (int fd = 0; fd < 8; fd++)
            close(fd);
        usleep((useconds_t)(seconds * 1e6));
        _exit(0);
    }
    if (read(ends[0], &one, 1) != 1 || !one)
        _exit(4);
}
int main(int argc, char **argv)
{
    pthread_t threads[16];
    (void)argc;
    if (!strcmp(argv[1], "threads")) {
        for (int i = 0; i < 16; i++)
            pthread_create(&threads[i], 0, ask, 0);
        for (int i = 0; i < 16; i++)
            pthread_join(threads[i], 0);
    } else if (!strcmp(argv[1], "thread stays")) { /* the first thread ends before it */
        pthread_create(&threads[0], 0, ask, 0);
        pthread_exit(0);
    } else if (!strcmp(argv[1], "stop")) {
        ask(0);
        raise(SIGUSR1);
    } else if (!strcmp(argv[1], "held")) {
        leave_tracer(atof(argv[2]), getpid(), 0);
    } else if (!strcmp(argv[1], "held at its end")) {
        leave_tracer(atof(argv[2]), getpid(), PTRACE_O_TRACEEXIT);
        pause();
    } else if (!strcmp(argv[1], "thread held")) {
        pthread_create(&threads[0], 0, stay, 0);
        while (!*(volatile int *)&stopped)
            usleep(100);
        leave_tracer(atof(argv[2]), stopped, PTRACE_O_TRACEEXIT);
        pause();
    } else if (!strcmp(argv[1], "hold")) { /* trace every process that appears; its own pid is 1 */
        for (;;) {
            for (int pid = 2; pid < 100; pid++)
                if (pid != getpid() && hold(pid, 0))
                    write(1, "h", 1);
            usleep(1000);
        }
    } else if (!strcmp(argv[1], "sleep")) {
        usleep((useconds_t)(atof(argv[2]) * 1e6));
    }
    return 7;
}
"""
OPEN: dict[str, Any] = {"seccomp": "unconfined"}
HOST_PID: dict[str, Any] = {**OPEN, "namespaces": {"pid": "host"}}


@pytest.fixture(scope="module")
def root(busybox_rootfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with the program above."""
    place = tmp_path_factory.mktemp("traced")
    root = support.copy_tree(busybox_rootfs, place / "root")
    (place / "traced.c").write_text(SOURCE)
    support.compile_static(place / "traced.c", root / "bin/traced")
    return root


def by_run(args: list[str], spec: Any) -> int:
    return int(fastns.run(args, spec=spec, timeout=20).returncode)


def by_output(args: list[str], spec: Any) -> int:
    return int(fastns.run(args, spec=spec, timeout=20, capture_output=True).returncode)


def by_batch(args: list[str], spec: Any) -> int:
    done = list(fastns.run_batch([args] * 6, spec=spec, timeout=20))
    assert {item.returncode for item in done} == {7}  # type: ignore[union-attr]
    return 7


def by_wait(args: list[str], spec: Any) -> int:
    with fastns.spawn(args, spec=spec) as sandbox:
        return sandbox.wait()


def by_poll(args: list[str], spec: Any) -> int:
    with fastns.spawn(args, spec=spec) as sandbox:
        assert eventually(lambda: sandbox.poll() is not None)
        assert sandbox.returncode is not None
        return sandbox.returncode


WAITS: list[Callable[[list[str], Any], int]] = [by_run, by_output, by_batch, by_wait, by_poll]


@pytest.mark.parametrize("wait", WAITS)
@pytest.mark.parametrize("fields", [OPEN, HOST_PID, {**OPEN, "init": True}], ids=str)
@pytest.mark.parametrize("what", ["threads", "thread stays"])
def test_threads_that_made_the_caller_their_tracer(
    root: Path, what: str, fields: dict[str, Any], wait: Callable[[list[str], Any], int]
) -> None:
    """Only the caller can reap the threads, and the sandbox has not ended until it does."""
    code = 0 if what == "thread stays" else 7
    if wait is by_batch and code == 0:
        return
    assert wait(["traced", what], Spec(rootfs=root, **fields)) == code


def test_traceme_in_threads_with_the_default_filter(root: Path) -> None:
    """With the default filter, such a sandbox ends as usual."""
    assert by_run(["traced", "threads"], Spec(rootfs=root)) == 7


@pytest.mark.parametrize("way", ["direct", "init", "template", "ready"])
def test_run_does_not_end_when_the_sandbox_stops(root: Path, way: str) -> None:
    """The sandbox makes the caller its tracer, which is notified of stops too."""
    with runner(way, rootfs=root, **OPEN) as run, pytest.raises(TimeoutExpired):
        run(["traced", "stop"], timeout=0.5)


@pytest.mark.parametrize("init", [False, True], ids=["direct", "init"])
@pytest.mark.parametrize("template", [False, True], ids=["spawn", "template"])
def test_poll_of_a_stopped_sandbox(root: Path, init: bool, template: bool) -> None:
    """poll() does not take a stopped sandbox for ended."""
    spec = Spec(rootfs=root, init=init and not template, **OPEN)
    with contextlib.ExitStack() as stack:
        spawn: Any = functools.partial(fastns.spawn, spec=spec)
        if template:
            spawn = stack.enter_context(fastns.Template(spec)).spawn
        sandbox = stack.enter_context(spawn(["traced", "stop"]))
        for _ in range(20):
            assert sandbox.poll() is None
            time.sleep(0.01)
        sandbox.kill()
        assert sandbox.wait(20) == -9


# ---- a tracer that outlives its tracee ----


@pytest.mark.parametrize("wait", WAITS)
def test_a_tracee_ends_when_its_tracer_does(
    root: Path, wait: Callable[[list[str], Any], int]
) -> None:
    assert wait(["traced", "held", "0.3"], Spec(rootfs=root, **HOST_PID)) == 7


def ends_of_time(args: list[str], spec: Any) -> Iterator[Callable[[], None]]:
    """Waits that end the sandbox at their timeout."""

    def run(**more: Any) -> None:
        with pytest.raises(TimeoutExpired):
            fastns.run(args, spec=spec, timeout=0.5, **more)

    def batch() -> None:
        found = list(fastns.run_batch([args] * 3, spec=spec, timeout=0.5))
        assert [item.cause for item in found] == ["timeout"] * 3  # type: ignore[union-attr]

    def kill() -> None:
        with fastns.spawn(args, spec=spec) as sandbox:
            with pytest.raises(TimeoutExpired):
                sandbox.wait(0.5)
            assert sandbox.poll() is None
            sandbox.kill()
            assert sandbox.wait(20) == 7

    def drop() -> None:
        sandbox = fastns.spawn(args, spec=spec)
        with pytest.raises(TimeoutExpired):
            sandbox.wait(0.5)
        with pytest.warns(ResourceWarning, match="was still running"):
            del sandbox

    yield from (run, lambda: run(capture_output=True), batch, kill, drop)


KILLED: dict[str, tuple[dict[str, Any], bool]] = {
    "own": (OPEN, False),
    "host": (HOST_PID, False),
    "template": (OPEN, True),
}


@pytest.mark.parametrize(("fields", "template"), KILLED.values(), ids=KILLED)
@pytest.mark.parametrize("what", ["held at its end", "thread held"])
def test_a_tracee_that_stops_while_it_is_killed(
    root: Path, what: str, fields: dict[str, Any], template: bool
) -> None:
    """With PTRACE_O_TRACEEXIT a process stops while it ends, and a second SIGKILL changes nothing.
    Its tracer survives until the first process of the pid namespace has ended."""
    mark = marker()
    spec = Spec(rootfs=root, **fields)
    args = ["traced", what, mark]
    with contextlib.ExitStack() as stack:
        by: Any = stack.enter_context(fastns.Template(spec)) if template else None
        run = by.run if by else functools.partial(fastns.run, spec=spec)
        batch = by.run_batch if by else functools.partial(fastns.run_batch, spec=spec)
        spawn = by.spawn if by else functools.partial(fastns.spawn, spec=spec)
        started = time.monotonic()
        for more in ({}, {"capture_output": True}):
            with pytest.raises(TimeoutExpired):
                run(args, timeout=0.2, **more)
        found = list(batch([args] * 3, timeout=0.2))
        assert [item.cause for item in found] == ["timeout"] * 3
        with spawn(args) as sandbox:
            with pytest.raises(TimeoutExpired):
                sandbox.wait(0.2)
            sandbox.kill()
            assert sandbox.wait(20) == -9
        assert time.monotonic() - started < 10
        assert eventually(lambda: not marked(mark))
        assert run(["traced", "sleep", "0"]).returncode == 7


@pytest.mark.parametrize("way", range(5), ids=["run", "output", "batch", "kill", "drop"])
def test_a_tracer_that_does_not_detach_is_killed(root: Path, way: int) -> None:
    """The tracer is killed even if it has left the process tree, where killing the tree does not
    reach it."""
    mark = marker()
    end = list(ends_of_time(["traced", "held", mark], Spec(rootfs=root, **HOST_PID)))[way]
    end()
    assert eventually(lambda: not marked(mark))


def test_a_sandbox_that_traces_its_joiners(root: Path) -> None:
    """The tracer is killed at the tracee's timeout."""
    given = {"namespaces": {"user": "new"}, "capabilities": ["ALL"], **OPEN}
    spec = Spec(rootfs=root, **given)
    with fastns.spawn(["traced", "hold"], spec=spec, stdout=fastns.PIPE) as holder:
        names = {"user": "user", "pid": "pid", "mount": "mnt"}
        joined = {kind: f"/proc/{holder.pid}/ns/{name}" for kind, name in names.items()}
        joiner = Spec(namespaces=joined, **OPEN)
        with pytest.raises(TimeoutExpired):
            fastns.run(["traced", "sleep", "0.3"], spec=joiner, timeout=1)
        assert holder.stdout is not None
        assert holder.stdout.read(1) == b"h"  # it did trace one
        assert holder.wait(20) == -9
    assert fastns.run(["traced", "sleep", "0"], spec=Spec(rootfs=root, **OPEN)).returncode == 7
