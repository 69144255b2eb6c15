"""Thousands of spawns do not change the calling process, neither while they run nor after."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import support

import fastns

THREADS, ROUNDS = 4, 60
LIBC = ctypes.CDLL(None)
LIBC.__errno_location.restype = ctypes.POINTER(ctypes.c_int)
PR_GET_DUMPABLE, PR_SET_DUMPABLE = 3, 4

Action = Callable[[], None]


def actions(root: Path) -> dict[str, Action]:
    """One start for each path through the engine, and starts that fail."""
    me = (os.getuid(), os.getgid())

    def spec(**fields: Any) -> fastns.Plan:
        fields = {"rootfs": root, "default_mounts": False, "network": "host", **fields}
        return fastns.compile(fastns.Spec(**fields))

    def runs(plan: fastns.Plan) -> Action:
        def action() -> None:
            assert fastns.run(["/true"], spec=plan).returncode == 0

        return action

    def fails(plan: fastns.Plan, stage: str, args: str = "/true", **arguments: Any) -> Action:
        def action() -> None:
            with pytest.raises(fastns.SpawnError) as caught:
                fastns.run([args], spec=plan, **arguments)
            assert caught.value.stage == stage

        return action

    own_user = {"namespaces": {"user": "new"}}
    missing = fastns.Mount("/missing", type="tmpfs")
    found = {
        "direct": runs(spec()),
        "direct, mounts": runs(spec(default_mounts=True)),
        "direct, own user namespace": runs(spec(**own_user)),
        "init": runs(spec(init=True)),
        "init, own user namespace": runs(spec(init=True, **own_user)),
        "direct, no command": fails(spec(), "exec", "/missing"),
        "direct, no directory": fails(spec(), "chdir", cwd="/missing"),
        "direct, no target": fails(spec(mounts=[missing]), "mount"),
        "init, no command": fails(spec(init=True), "exec", "/missing"),
        "init, no target": fails(spec(init=True, mounts=[missing]), "mount"),
    }
    if support.is_root():
        ids = fastns.IDMapping(0, 100000, 1000)
        found["other ids"] = runs(spec(user="1234:2345"))
        found["other ids, no command"] = fails(spec(user="1234:2345"), "exec", "/missing")
        mapped = spec(uid_mappings=[ids], gid_mappings=[ids], user="1:1")
        found["a range of ids"] = runs(mapped)
        assert me == (0, 0)
    return found


# ---- what must not change ----


def state() -> dict[str, object]:
    status = dict(
        line.split(":\t", 1) for line in Path("/proc/thread-self/status").read_text().splitlines()
    )
    owner = os.stat("/proc/self")
    return {
        "dumpable": LIBC.prctl(PR_GET_DUMPABLE, 0, 0, 0, 0),
        "owner": (owner.st_uid, owner.st_gid),
        "mask": signal.pthread_sigmask(signal.SIG_BLOCK, []),
        "handlers": [signal.getsignal(n) for n in signal.valid_signals()],
        "status": [status[name] for name in STATUS],
        "cwd": os.getcwd(),
        "fds": fds(),
        "namespaces": [os.readlink(f"/proc/thread-self/ns/{n}") for n in NAMESPACES],
        "ids": (os.getresuid(), os.getresgid(), os.getgroups()),
    }


STATUS = ("Umask", "Uid", "Gid", "Groups", "SigBlk", "SigIgn", "SigCgt", "CapEff", "NoNewPrivs")
NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "pid_for_children", "time", "user", "uts")


def fds() -> dict[int, tuple[int, int]]:
    """Each open fd and its file, except the memfds that fastns keeps."""
    found = {}
    for fd in map(int, os.listdir("/proc/self/fd")):
        try:
            file, leads_to = os.fstat(fd), os.readlink(f"/proc/self/fd/{fd}")
        except OSError:  # the fd that listed the directory
            continue
        if leads_to.startswith("/memfd:fastns-"):
            continue
        found[fd] = (file.st_dev, file.st_ino)
    return found


def mappings() -> int:
    return len(Path("/proc/self/maps").read_text().splitlines())


@contextmanager
def watched() -> Iterator[list[str]]:
    """Watch the process from a separate thread during the block; yield what changed."""
    seen: list[str] = []
    stop = threading.Event()
    dumpable = LIBC.prctl(PR_GET_DUMPABLE, 0, 0, 0, 0)
    owner, mask = os.stat("/proc/self").st_uid, os.umask(0o022)
    os.umask(mask)
    cwd = os.getcwd()

    def look() -> None:
        while not stop.is_set():
            for _ in range(50):
                if LIBC.prctl(PR_GET_DUMPABLE, 0, 0, 0, 0) != dumpable:
                    seen.append("dumpable")
            if os.stat("/proc/self").st_uid != owner:
                seen.append("owner")
            if os.getcwd() != cwd:
                seen.append("cwd")
            if signal.pthread_sigmask(signal.SIG_BLOCK, []):
                seen.append("mask")

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def in_threads(action: Callable[[int], None]) -> None:
    """Run the action in THREADS threads at once, and raise the first exception."""
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            action(number)
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_the_watch_sees_a_change() -> None:
    """Control for watched(): it sees a change that lasts about as long as one start."""
    with watched() as seen:
        for _ in range(50):
            LIBC.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
            LIBC.usleep(500)
            LIBC.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
    assert set(seen) & {"dumpable", "owner"}


def test_thousands_of_spawns_change_nothing(probe_rootfs: Path) -> None:
    mask = {signal.SIGUSR1, signal.SIGRTMIN + 3}
    todo = list(actions(probe_rootfs).values())
    before = state()

    def spawn_all(number: int) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, mask)
        of_thread = state()
        for i in range(ROUNDS):
            for action in todo[number:] + todo[:number]:
                action()
            assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask, i
        after = state()
        for key in set(after) - {"fds"}:  # other threads' pipes come and go
            assert after[key] == of_thread[key], key

    in_threads(lambda number: [action() for action in todo].clear())
    maps = mappings()
    with watched() as seen:
        in_threads(spawn_all)
    assert set(seen) == set()
    assert state() == before
    # Allows for a stack per concurrent start and malloc's arenas of the new threads.
    assert mappings() <= maps + 4 * THREADS


def test_a_single_thread_needs_no_more_mappings(probe_rootfs: Path) -> None:
    todo = list(actions(probe_rootfs).values())
    for action in todo * 3:
        action()
    maps = mappings()
    for action in todo * 40:
        action()
    assert mappings() <= maps + 2


def test_errno_is_kept(probe_rootfs: Path) -> None:
    """Neither a start that works nor one that fails changes the thread's errno."""
    from fastns import _core

    def spawn(plan: fastns.Plan, command: bytes) -> int:
        where = LIBC.__errno_location()
        arguments = ((command,), (), (command,), b"/", (-1, -1, -1), ())
        where[0] = 4242
        try:
            process = _core.spawn(plan, None, *arguments)
        except fastns.SpawnError:
            return int(where[0])
        kept = int(where[0])
        assert process.wait()
        assert process.reap()
        return kept

    for init in (False, True):
        plan = fastns.compile(fastns.Spec(rootfs=probe_rootfs, default_mounts=False, init=init))
        assert spawn(plan, b"/true") == 4242
        assert spawn(plan, b"/missing") == 4242


def test_a_pending_signal_is_delivered_once_and_here(probe_rootfs: Path) -> None:
    """Signals are blocked around the clone, because the child runs in the caller's memory. None is
    lost, and none runs the caller's handler in the child."""
    got: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: got.append(os.getpid()))
    try:
        plan = fastns.compile(fastns.Spec(rootfs=probe_rootfs, default_mounts=False))
        for _ in range(200):
            timer = threading.Timer(0.0005, os.kill, (os.getpid(), signal.SIGUSR2))
            timer.start()
            assert fastns.run(["/true"], spec=plan).returncode == 0
            timer.join()
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert got == [os.getpid()] * 200


LOCKED = """
import fcntl, os, subprocess, sys
import fastns
file = open(sys.argv[2], "w")
os.dup2(file.fileno(), 1)
fcntl.lockf(1, fcntl.LOCK_EX)
spec = fastns.Spec(rootfs=sys.argv[1], default_mounts=False, network="host")
fastns.spawn(["/true"], spec=spec, stdin=2, stdout=1, stderr=fastns.STDOUT).wait()
locked = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'w'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
other = [sys.executable, "-c", locked, sys.argv[2]]
done = subprocess.run(other, stderr=subprocess.PIPE, text=True)
sys.stderr.write(done.stderr.splitlines()[-1])
"""


def test_record_locks_are_kept(probe_rootfs: Path, tmp_path: Path) -> None:
    """A process loses its record locks if it closes any fd of the file, even a copy (fcntl(2))."""
    command = [sys.executable, "-c", LOCKED, str(probe_rootfs), str(tmp_path / "file")]
    done = subprocess.run(command, check=True, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.stderr.startswith("BlockingIOError")


REUSED = """
import fcntl, os, sys
import fastns

def run():
    fastns.run(["/true"], spec=plan)

def kept():
    names = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    links = [os.readlink(name) for name in names if os.path.lexists(name)]
    return sum("memfd:fastns" in link for link in links)

plan = fastns.compile(
    fastns.Spec(rootfs=sys.argv[1], default_mounts=False, namespaces={"network": "host"})
)
run()
print(kept(), end=" ")
os.closerange(3, 1024)  # as daemons do
files = [os.open(f"{sys.argv[2]}{number}", os.O_RDWR | os.O_CREAT) for number in range(32)]
for file in files:
    fcntl.lockf(file, fcntl.LOCK_EX)

def locks():
    with open("/proc/locks") as lines:
        return sum(line.split()[4] == str(os.getpid()) for line in lines)

run()
print(locks())
"""


def test_locks_on_files_that_reuse_fastns_fds(probe_rootfs: Path, tmp_path: Path) -> None:
    """An application may close the fds that fastns keeps and reuse their numbers for its files."""
    command = [sys.executable, "-c", REUSED, str(probe_rootfs), str(tmp_path / "file")]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=60)
    kept, locks = map(int, done.stdout.split())
    assert kept >= 1  # the plan, and the program unless its owner has an id inside
    assert locks == 32
