"""Rooms: sandboxes of a Template with reuse=True, which serve one command after another."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import pty
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import children, eventually, marker, running, script, server_pid

from fastns import (
    DEVNULL,
    PIPE,
    ClosedError,
    CompletedSandbox,
    Job,
    Mount,
    Sandbox,
    SpawnError,
    Spec,
    Template,
    TimeoutExpired,
)

TIMEOUT = 60


@pytest.fixture(params=["rootfs", "host"])
def spec(request: pytest.FixtureRequest, busybox_rootfs: Path) -> Spec:
    if request.param == "host":
        return Spec()
    return Spec(rootfs=busybox_rootfs, overlay=True)


@pytest.fixture
def rooms(spec: Spec) -> Iterator[Template]:
    with Template(spec, reuse=True, ready=1) as template:
        yield template


def commands(keeper: int) -> list[int]:
    """The processes of a room's command, which are in the keeper's pid namespace."""
    return children(keeper, of_its_own=False)


def zombie(pid: int) -> bool:
    return ") Z" in Path(f"/proc/{pid}/stat").read_text()


def gone(*pids: int) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


class Sleeper:
    """A command that sleeps, which a thread runs."""

    def __init__(self, template: Template) -> None:
        self.command = ["sleep", marker()]
        self.outcome: object = None
        self._template = template
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        # Earlier, the request may still be in the socket, and another room would run the command.
        assert eventually(self.runs)

    def _run(self) -> None:
        try:
            self.outcome = self._template.run(self.command, timeout=TIMEOUT).returncode
        except SpawnError as error:
            self.outcome = (error.stage, error.errno)

    def runs(self) -> bool:
        return bool(running(*self.command))

    def end(self) -> object:
        """Waits for its end. Returns the command's exit code, or the error's stage and errno."""
        self._thread.join()
        assert eventually(lambda: not self.runs())
        return self.outcome


def sh(template: Template, script: str, **options: Any) -> tuple[int, str, bool]:
    done = template.run(
        ["sh", "-c", script], capture_output=True, text=True, timeout=TIMEOUT, **options
    )
    assert done.stderr == ""
    return done.returncode, done.stdout, done.reused


def test_a_room_serves_again(rooms: Template) -> None:
    inside = "for name in mnt net pid; do readlink /proc/self/ns/$name; done"
    served = [sh(rooms, inside) for _ in range(10)]
    assert [reused for _, _, reused in served] == [False] + [True] * 9
    assert len({out for _, out, _ in served}) == 1
    stats = rooms.stats()
    assert (stats.rooms_made, stats.rooms_reused, stats.why_fresh) == (1, 9, "")


def test_a_fresh_template_never_reuses(spec: Spec) -> None:
    """A control."""
    with Template(spec) as template:
        served = [sh(template, "readlink /proc/self/ns/mnt") for _ in range(4)]
        assert {reused for _, _, reused in served} == {False}
        assert len({out for _, out, _ in served}) == 4
        assert template.stats().rooms_made == 0


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("exit 3", 3),
        ("kill -9 $$", -9),
        ("kill -ABRT $$", -6),
        ("kill -ALRM $$", -14),
        ("kill -TERM 0", -15),
    ],
)
def test_how_a_command_ends(rooms: Template, script: str, code: int) -> None:
    """The command is not pid 1, which would ignore most signals."""
    assert sh(rooms, script)[0] == code
    assert sh(rooms, "echo $$")[0] == 0


def test_a_broken_pipe(rooms: Template) -> None:
    """The caller ignores SIGPIPE, but the command does not."""
    assert signal.getsignal(signal.SIGPIPE) == signal.SIG_IGN
    near, far = os.pipe()
    os.close(near)
    with open(far, "wb") as out:
        assert rooms.run(["cat", "/dev/zero"], stdout=out, timeout=TIMEOUT).returncode == -13


def test_each_stream_is_captured_exactly(rooms: Template) -> None:
    data = bytes(range(256)) * 100
    script = "head -c 300000 /dev/zero; head -c 200000 /dev/zero >&2; cat; echo wrong >&2"
    for _ in range(2):
        done = rooms.run(["sh", "-c", script], input=data, capture_output=True, timeout=TIMEOUT)
        assert done.stdout == bytes(300000) + data
        assert done.stderr == bytes(200000) + b"wrong\n"
    assert done.reused


def test_input_output_and_large_arguments(rooms: Template) -> None:
    data = os.urandom(1 << 20)
    done = rooms.run(["cat"], input=data, capture_output=True)
    assert done.stdout == data
    word = "x" * 100_000  # more than a request holds: it is passed in a memory file
    for _ in range(3):
        assert sh(rooms, f"echo {word}") == (0, word + "\n", True)
    assert sh(rooms, "echo $LEFT; pwd; umask", env={"LEFT": "a"}, cwd="/tmp")[1] == (
        "a\n/tmp\n0022\n"
    )
    assert sh(rooms, "echo $LEFT; pwd")[1] == "\n/\n"


def test_a_command_has_only_its_three_fds(rooms: Template) -> None:
    sh(rooms, "true")
    done = rooms.run(["ls", "/proc/self/fd"], capture_output=True, text=True)
    assert done.stdout.split() == ["0", "1", "2", "3"]  # 3: the directory that ls reads
    assert done.reused


def test_the_keeper_is_out_of_sight(rooms: Template) -> None:
    """It is pid 1, with the command's uid."""
    script = "ls -d /proc/1 /proc/1/* 2>/dev/null; cat /proc/1/status 2>/dev/null; ls -d /proc/$$"
    code, out, _ = sh(rooms, script)
    assert (code, out.count("\n")) == (0, 1)  # a control: its own directory


# All of this works on the process itself, and none of it on pid 1, which has the same uid.
ON_PROCESS = """
import os, signal, sys
pid = os.getpid() if sys.argv[1] == "self" else 1
attempts = {
    **{name: lambda name=name: open(f"/proc/{pid}/{name}", "rb").close()
       for name in ("mem", "maps", "environ", "status", "cmdline")},
    **{name: lambda name=name: os.readlink(f"/proc/{pid}/{name}")
       for name in ("exe", "cwd", "ns/net", "fd/0")},
    "fds": lambda: os.listdir(f"/proc/{pid}/fd"),
    "root": lambda: os.listdir(f"/proc/{pid}/root"),
}
for name, attempt in attempts.items():
    try:
        attempt()
        print(name, "worked")
    except OSError as error:
        print(name, "failed")
if pid == 1:
    for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGCHLD, 34, 64):
        os.kill(1, number)
"""


def test_the_keeper_is_out_of_reach(debian_rootfs: Path) -> None:
    """So are its memory and its fds, and signals do nothing to it. A command can change its limits
    and its scheduling, which ends the room: see test_leftovers.py."""
    with Template(Spec(rootfs=debian_rootfs, overlay=True), reuse=True, ready=1) as template:

        def tried(whom: str) -> tuple[dict[str, str], bool]:
            command = ["python3", "-B", "-c", ON_PROCESS, whom]
            done = template.run(command, stdin=DEVNULL, capture_output=True, text=True)
            assert done.stderr == ""
            return dict(line.split() for line in done.stdout.splitlines()), done.reused

        own, _ = tried("self")  # a control
        assert set(own.values()) == {"worked"}
        assert tried("pid 1") == (dict.fromkeys(own, "failed"), True)
        assert sh(template, "echo ok") == (0, "ok\n", True)


# What a process has from its parent.
INHERITED = """
grep -E '^(Umask|Groups|NoNewPrivs|Seccomp|Sig(Blk|Ign|Cgt|Q)|ShdPnd|Cap|Cpus|Mems|THP|Tracer)' \\
    /proc/self/status
cut -d' ' -f18,19,40,41 /proc/self/stat  # priority, nice, real-time priority, policy
cat /proc/self/limits /proc/self/oom_score_adj /proc/self/personality /proc/self/coredump_filter
cat /proc/self/cgroup /proc/self/uid_map
pwd; umask; env; ulimit -a; id
ls -ldn / /tmp /run /dev /dev/* /dev/shm /sys | sed 's/ [A-Z][a-z][a-z] .*:[^ ]* / /'
readlink /proc/self/fd/0 | sed 's/[0-9]//g'
"""


def test_a_command_inherits_what_it_has_in_a_fresh_sandbox(spec: Spec, rooms: Template) -> None:
    def found(template: Template, **options: Any) -> tuple[str, bool]:
        _, out, reused = sh(template, INHERITED, stdin=DEVNULL, **options)
        return out, reused

    with Template(spec) as fresh:
        usual, _ = found(fresh)
        changed, _ = found(fresh, cwd="/tmp")
    assert changed != usual  # a control
    assert [found(rooms) for _ in range(3)] == [(usual, False), (usual, True), (usual, True)]


def test_what_runs_on_is_killed_and_does_not_disturb(rooms: Template) -> None:
    seconds = marker()
    started = f"sleep {seconds} & sleep {seconds} & (setsid sleep {seconds} &) ; exit 0"
    assert sh(rooms, f"{{ {started}; }} >/dev/null 2>&1")[0] == 0
    assert running("sleep", seconds) == []  # the reply comes after their end
    code, out, reused = sh(rooms, "ls /proc | grep -c '^[0-9]'")
    assert (code, reused) == (0, True)
    assert int(out) <= 3  # sh, ls, grep


def test_orphans_are_reaped_while_the_command_runs(rooms: Template) -> None:
    script = "(sleep 0 & ) ; sleep 0.3; cat /proc/*/stat 2>/dev/null | grep -c ') Z' || true"
    assert sh(rooms, script)[1] == "0\n"


def test_a_file_that_was_left_ends_the_room(rooms: Template) -> None:
    sh(rooms, "true")
    assert sh(rooms, "echo left >/tmp/left")[2]
    assert sh(rooms, "ls /tmp") == (0, "", False)
    assert rooms.stats().rooms_touched == 1


def test_a_timeout_ends_the_room_and_counts_only_its_command(rooms: Template) -> None:
    sh(rooms, "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done")
    with pytest.raises(TimeoutExpired) as caught:
        rooms.run(["sleep", "1000"], timeout=0.2)
    assert caught.value.usage is not None
    before = sh(rooms, "true")
    assert before[2] is False
    whole = rooms.run(["sh", "-c", "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done"])
    assert whole.usage.user_time > caught.value.usage.user_time


def test_a_timeout_returns_the_output_so_far(rooms: Template) -> None:
    for _ in range(2):
        with pytest.raises(TimeoutExpired) as caught:
            rooms.run(["sh", "-c", "echo early; sleep 1000"], capture_output=True, timeout=1)
        assert caught.value.stdout == b"early\n"
    assert sh(rooms, "echo ok") == (0, "ok\n", False)


def test_a_timeout_at_any_instant_of_a_start(rooms: Template) -> None:
    for timeout in (0, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3) * 5:
        with pytest.raises(TimeoutExpired):
            rooms.run(["sleep", "1000"], timeout=timeout)
        assert sh(rooms, f"echo {timeout}")[:2] == (0, f"{timeout}\n")


def test_the_usage_is_that_of_the_command_and_all_that_it_left(rooms: Template) -> None:
    spin = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done"
    # The pipe keeps the shell waiting for the orphan.
    orphan = rooms.run(["sh", "-c", f"x=$( ( ( {spin} ) & ) )"], timeout=TIMEOUT).usage
    assert rooms.run(["true"]).usage.user_time < orphan.user_time / 2
    large = rooms.run(["sh", "-c", "x=$(head -c 20000000 /dev/zero | tr '\\0' a)"])
    assert large.usage.max_rss > 20_000_000
    assert rooms.run(["true"]).usage.max_rss < 20_000_000
    with pytest.raises(TimeoutExpired) as caught:
        rooms.run(["sleep", "1000"], timeout=0.1)
    assert caught.value.usage is not None
    assert not caught.value.usage.max_rss_exact


def test_a_room_that_cannot_start_a_process(rooms: Template, tmp_path: Path) -> None:
    """The command runs once, elsewhere, and no error is reported."""
    sh(rooms, "true")
    (keeper,) = children(server_pid(rooms))
    resource.prlimit(keeper, resource.RLIMIT_NPROC, (0, 0))
    with open(tmp_path / "out", "wb") as out:
        done = rooms.run(["echo", "once"], stdout=out, timeout=TIMEOUT)
    assert (done.returncode, done.reused) == (0, False)
    assert sh(rooms, "echo next")[:2] == (0, "next\n")
    assert (tmp_path / "out").read_text() == "once\n"


@pytest.mark.parametrize("busy", [False, True])
def test_a_keeper_that_is_killed(rooms: Template, busy: bool) -> None:
    sh(rooms, "true")
    sleeper = Sleeper(rooms) if busy else None
    for pid in children(server_pid(rooms)):
        if busy is bool(commands(pid)):
            os.kill(pid, signal.SIGKILL)
    assert sleeper is None or sleeper.end() == -9
    assert sh(rooms, "echo ok") == (0, "ok\n", False)


def test_a_keeper_that_is_stopped(rooms: Template) -> None:
    """Its command cannot start, but its time limit holds."""
    sh(rooms, "true")
    (keeper,) = children(server_pid(rooms))
    os.kill(keeper, signal.SIGSTOP)
    with pytest.raises(TimeoutExpired):
        rooms.run(["true"], timeout=0.3)
    assert sh(rooms, "echo ok") == (0, "ok\n", False)
    assert eventually(lambda: gone(keeper))


def test_keepers_that_are_killed_at_any_instant(rooms: Template, tmp_path: Path) -> None:
    """A request runs once, or not at all, and the outcome says so."""
    sh(rooms, "true")
    server, over, rounds = server_pid(rooms), threading.Event(), 200

    def kill() -> None:
        for pause in itertools.cycle((0.001, 0.002, 0.005, 0.01)):
            for pid in children(server):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if over.wait(pause):
                return

    killer = threading.Thread(target=kill)
    killer.start()
    outcomes: Counter[object] = Counter()
    worked = []
    try:
        with open(tmp_path / "ran", "ab") as out:
            for n in range(rounds):
                try:
                    done = rooms.run(["sh", "-c", f"echo {n}"], stdout=out, timeout=TIMEOUT)
                    outcomes[done.returncode] += 1
                    if done.returncode == 0:
                        worked.append(n)
                except SpawnError as error:
                    outcomes[error.stage, error.errno] += 1
    finally:
        over.set()
        killer.join()
    ran = [int(line) for line in (tmp_path / "ran").read_text().split()]
    assert len(set(ran)) == len(ran)  # none twice
    assert set(worked) <= set(ran)  # none lost
    assert set(outcomes) <= {0, -signal.SIGKILL, ("clone", errno.ECANCELED)}
    assert len(outcomes) > 1  # a control: some were killed
    assert sh(rooms, "echo ok")[:2] == (0, "ok\n")
    assert server_pid(rooms) == server


def test_a_server_that_is_killed(rooms: Template) -> None:
    """Its rooms and their commands end with it, and the next command gets another."""
    sleeper = Sleeper(rooms)
    server = server_pid(rooms)
    keepers = children(server)
    os.kill(server, signal.SIGKILL)
    assert sleeper.end() == ("helper", errno.ECANCELED)
    assert eventually(lambda: gone(*keepers))
    assert sh(rooms, "echo ok") == (0, "ok\n", False)
    assert server_pid(rooms) != server


def test_a_template_that_is_closed(spec: Spec) -> None:
    """All its processes end with it."""
    template = Template(spec, reuse=True, ready=2)
    sh(template, "true")
    sleeper = Sleeper(template)
    server = server_pid(template)
    pids = [server, *children(server)]
    template.close()
    assert sleeper.end() == ("helper", errno.ECANCELED)
    assert eventually(lambda: gone(*pids))
    with pytest.raises(ClosedError):
        template.run(["true"])


def test_an_interrupt(rooms: Template) -> None:
    """Ctrl-C ends the command and its room."""
    sh(rooms, "true")
    command = ["sleep", marker()]

    def interrupt() -> None:
        if eventually(lambda: running(*command)):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        rooms.run(command, timeout=TIMEOUT)
    thread.join()
    assert eventually(lambda: not running(*command))
    assert sh(rooms, "echo ok") == (0, "ok\n", False)


FORKED = """
root = sys.argv[1]
spec = fastns.Spec(rootfs=root, overlay=True) if root else fastns.Spec()

def shown():
    command = ["readlink", "/proc/self/ns/mnt"]
    done = template.run(command, stdin=fastns.DEVNULL, capture_output=True, text=True)
    return done.stdout, done.reused

with fastns.Template(spec, reuse=True, ready=1) as template:
    first = shown()
    pid = os.fork()
    if pid == 0:
        own = shown()
        right = own[0] != first[0] and not own[1] and shown() == (own[0], True)
        template.close()
        os._exit(0 if right else 1)
    print(os.waitpid(pid, 0)[1], first[1], shown() == (first[0], True))
"""


def test_a_forked_caller_has_rooms_of_its_own(spec: Spec) -> None:
    assert script(FORKED, str(spec.rootfs or "")) == "0 False True\n"


def test_statistics_after_the_server_was_killed(rooms: Template) -> None:
    """They are those of the next server."""
    sh(rooms, "true")
    assert rooms.stats().rooms_made == 1
    server = server_pid(rooms)
    os.kill(server, signal.SIGKILL)
    assert eventually(lambda: not Path(f"/proc/{server}").exists() or zombie(server))
    assert rooms.stats().rooms_reused == 0
    assert sh(rooms, "echo ok")[1] == "ok\n"


def test_nothing_is_left_when_the_caller_is_killed(busybox_rootfs: Path) -> None:
    script = """
import sys
from fastns import Spec, Template
template = Template(Spec(rootfs=sys.argv[1], overlay=True), reuse=True)
template.run(["true"])
print(template._running().pid, flush=True)
template.run(["sleep", "1000"])
"""
    with subprocess.Popen(
        [sys.executable, "-c", script, str(busybox_rootfs)], stdout=subprocess.PIPE, text=True
    ) as caller:
        assert caller.stdout is not None
        server = int(caller.stdout.readline())
        assert eventually(lambda: any(map(commands, children(server))))
        rooms = children(server)
        caller.kill()
    assert eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in (server, *rooms)))


def test_threads_get_their_own_results(rooms: Template) -> None:
    wrong: list[tuple[int, str]] = []

    def run(number: int) -> None:
        for i in range(50):
            word = f"{number}-{i}"
            code, out, _ = sh(rooms, f"cat; echo {word}; exit {number}", input=f"in {word}\n")
            if (code, out) != (number, f"in {word}\n{word}\n"):
                wrong.append((number, out))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("concurrency", [1, 2, 8])
def test_a_batch(rooms: Template, concurrency: int) -> None:
    jobs = [["sh", "-c", f"echo {i}; exit {i % 7}"] for i in range(100)]
    results = rooms.run_batch(jobs, concurrency=concurrency, capture_output=True, text=True)
    assert [(done.returncode, done.stdout) for done in results] == [  # type: ignore[union-attr]
        (i % 7, f"{i}\n") for i in range(100)
    ]
    reused = [done.reused for done in results]  # type: ignore[union-attr]
    assert reused.count(False) <= concurrency
    again = rooms.run_batch([["true"]] * concurrency, concurrency=concurrency)
    assert all(done.reused for done in again)  # type: ignore[union-attr]


@pytest.mark.parametrize("concurrency", [1, 2, 8])
def test_a_batch_in_which_some_time_out(rooms: Template, concurrency: int) -> None:
    """Their rooms end. All others get their own results."""
    jobs = [Job(["sh", "-c", f"cat; echo {i}"], input=f"in {i}\n") for i in range(100)]
    for i in range(5, 100, 20):
        jobs[i] = Job(["sleep", "1000"], timeout=0.05)
    results = rooms.run_batch(jobs, concurrency=concurrency, text=True)
    reused = 0
    for i, done in enumerate(results):
        if i % 20 == 5:
            assert isinstance(done, TimeoutExpired)
        else:
            assert isinstance(done, CompletedSandbox), done
            assert (done.returncode, done.stdout) == (0, f"in {i}\n{i}\n")
            reused += done.reused
    assert reused >= 100 - 2 * 5 - concurrency


def test_a_batch_with_timeouts_and_errors(rooms: Template) -> None:
    jobs = [["sleep", "1000"], ["/missing"], ["true"], ["sh", "-c", "echo >/tmp/left"]] * 3
    results = rooms.run_batch(jobs, concurrency=3, timeout=0.5)
    kinds = [type(done).__name__ for done in results]
    assert kinds == ["TimeoutExpired", "SpawnError", *["CompletedSandbox"] * 2] * 3


def test_spawn_makes_a_new_sandbox(rooms: Template) -> None:
    sh(rooms, "true")
    with rooms.spawn(["sh", "-c", "echo $$"], stdout=PIPE, text=True) as sandbox:
        out, _ = sandbox.communicate(timeout=TIMEOUT)
    assert out == "1\n"
    for handle in rooms.spawn_batch([["sh", "-c", "exit $(($$ + 3))"]] * 3):
        assert isinstance(handle, Sandbox)
        assert handle.wait(TIMEOUT) == 4
    assert sh(rooms, "true")[2]


def a_pipe(stack: contextlib.ExitStack, _path: Path) -> int:
    near, far = os.pipe()
    stack.callback(os.close, near)
    stack.callback(os.close, far)
    return far


def a_file(stack: contextlib.ExitStack, path: Path) -> int:
    return stack.enter_context(open(path / "file", "w+b")).fileno()


def a_null(stack: contextlib.ExitStack, _path: Path) -> int:
    return stack.enter_context(open("/dev/null", "r+b")).fileno()


def a_terminal(stack: contextlib.ExitStack, _path: Path) -> int:
    ours, theirs = pty.openpty()
    stack.callback(os.close, ours)
    stack.callback(os.close, theirs)
    return theirs


def a_socket(stack: contextlib.ExitStack, _path: Path) -> int:
    ours, theirs = socket.socketpair()
    stack.enter_context(ours)
    return stack.enter_context(theirs).fileno()


def a_directory(stack: contextlib.ExitStack, path: Path) -> int:
    fd = os.open(path, os.O_RDONLY)
    stack.callback(os.close, fd)
    return fd


@pytest.mark.parametrize(
    ("opened", "exposes"),
    [
        (a_pipe, False),
        (a_file, False),
        (a_null, False),
        (a_terminal, False),
        (a_socket, True),
        (a_directory, True),
    ],
)
def test_an_fd_that_can_carry_others_ends_the_room(
    rooms: Template,
    tmp_path: Path,
    opened: Callable[[contextlib.ExitStack, Path], int],
    exposes: bool,
) -> None:
    rooms.run(["true"], stdin=DEVNULL, capture_output=True)
    for n, stream in enumerate(("stdin", "stdout", "stderr"), 1):
        with contextlib.ExitStack() as stack:
            streams: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), DEVNULL)
            streams[stream] = opened(stack, tmp_path)
            assert rooms.run(["true"], **streams).reused
        after = rooms.run(["true"], stdin=DEVNULL, capture_output=True)
        assert after.reused is not exposes, stream
        assert rooms.stats().rooms_exposed == (n if exposes else 0)
    assert rooms.stats().rooms_touched == 0


@pytest.mark.parametrize(
    ("command", "options", "stage", "code"),
    [
        (["/missing"], {}, "exec", errno.ENOENT),
        (["/etc"], {}, "exec", errno.EACCES),
        (["true"], {"cwd": "/missing"}, "chdir", errno.ENOENT),
        (["true", *["x" * 100_000] * 40], {}, "exec", errno.E2BIG),
    ],
)
def test_a_command_that_cannot_start(
    rooms: Template, command: list[str], options: dict[str, Any], stage: str, code: int
) -> None:
    for _ in range(3):
        with pytest.raises(SpawnError) as caught:
            rooms.run(command, **options)
        assert (caught.value.stage, caught.value.errno) == (stage, code)
        (error,) = rooms.run_batch([Job(command, **options)])
        assert isinstance(error, SpawnError)
        assert (error.stage, error.errno) == (stage, code)
    assert sh(rooms, "echo ok")[:2] == (0, "ok\n")


def test_a_room_that_cannot_be_made(public_dir: Path) -> None:
    """Each command gets the error of its room."""
    root = public_dir / "blocked-root"
    for name in ("dev", "proc", "run", "sys", "tmp"):
        (root / name).mkdir(parents=True)
    (root / "blocked").touch()
    spec = Spec(rootfs=root, overlay=True, mounts=[Mount("/blocked", type="tmpfs")])
    with Template(spec, reuse=True, ready=1) as template:
        for _ in range(4):
            with pytest.raises(SpawnError) as caught:
                template.run(["true"], timeout=TIMEOUT)
            assert (caught.value.stage, caught.value.path) == ("mount", "/blocked")
        for error in template.run_batch([["true"]] * 20, concurrency=4, timeout=TIMEOUT):
            assert isinstance(error, SpawnError)
            assert (error.stage, error.path) == ("mount", "/blocked")
        with pytest.raises(SpawnError) as caught:
            template.spawn(["true"])
        assert caught.value.stage == "mount"


def test_a_room_serves_a_thousand_commands(rooms: Template) -> None:
    results = rooms.run_batch([["true"]] * 1010, concurrency=1)
    reused = [done.reused for done in results]  # type: ignore[union-attr]
    assert reused.count(False) == 2
    assert reused.index(False, 1) == 1000


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"overlay": False}, "a rootfs without overlay"),
        ({"overlay": False, "read_only": True}, "a rootfs without overlay"),
        ({"network": "host"}, "the host's network"),
        ({"memory": "64m", "require_limits": False}, "limits that cgroups enforce"),
        ({"seccomp": "unconfined"}, "a seccomp profile"),
        ({"capabilities": ["CAP_CHOWN"]}, "capabilities"),
        ({"files": {"/tmp/file": "text"}}, "files"),
        ({"no_new_privileges": False}, "no_new_privileges=False"),
        ({"readonly_paths": ()}, "a writable /proc/sys"),
        (
            {"mounts": [Mount("/dev/shm/a/b", type="tmpfs")]},
            "a mount below a directory of the root",
        ),
    ],
)
def test_what_makes_sandboxes_fresh(busybox_rootfs: Path, fields: dict[str, Any], why: str) -> None:
    spec = Spec(**{"rootfs": busybox_rootfs, "overlay": True, **fields})
    with Template(spec, reuse=True) as template:
        assert not any(template.run(["true"]).reused for _ in range(4))
        assert template.stats().why_fresh == why


def test_mounts_that_a_link_leads_to(busybox_rootfs: Path, public_dir: Path) -> None:
    """The proof looks at the tmpfs itself, not at the link."""
    root = public_dir / "linked-root"
    shutil.copytree(busybox_rootfs, root, symlinks=True)
    (root / "tmp").rmdir()
    (root / "var" / "tmp").mkdir(parents=True, exist_ok=True)
    (root / "tmp").symlink_to("var/tmp")
    with Template(Spec(rootfs=root, overlay=True), reuse=True, ready=1) as template:
        assert sh(template, "ls /tmp") == (0, "", False)
        assert sh(template, "echo left >/tmp/note; ls /tmp") == (0, "note\n", True)
        assert sh(template, "ls /tmp") == (0, "", False)


@pytest.mark.parametrize(
    "fields",
    [
        {"mounts": [Mount("/dev/pts", type="tmpfs")]},
        {"masked_paths": ["/dev/pts", "/tmp"]},
    ],
)
def test_a_room_without_terminals(busybox_rootfs: Path, fields: dict[str, Any]) -> None:
    spec = Spec(**{"rootfs": busybox_rootfs, "overlay": True, **fields})
    with Template(spec, reuse=True, ready=1) as template:
        assert [sh(template, "ls /dev/pts")[1:] for _ in range(2)] == [("", False), ("", True)]


NESTED = """
from fastns import Template
with Template(reuse=True, ready=1) as template:
    print([template.run(["true"]).reused for _ in range(3)], template.stats().why_fresh)
"""


def test_rooms_in_a_user_namespace() -> None:
    out = script(NESTED, prefix=["unshare", "--user", "--map-root-user"])
    assert out == "[False, True, True] \n"
