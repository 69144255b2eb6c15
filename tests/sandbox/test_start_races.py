"""What may happen to a start from outside: a fork in another thread, a helper that is killed."""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import support

WAYS = [
    pytest.param("", id="direct"),
    pytest.param(", init=True", id="reaper"),
    pytest.param(", user='7:7'", id="staged", marks=pytest.mark.as_root),
]
PLAN = """
import os, sys, threading, time
import fastns
root = sys.argv[1]
plan = fastns.compile(fastns.Spec(rootfs=root, default_mounts=False, network="host"{fields}))
"""

FORKS = """
over = threading.Event()
forked = []
def fork():
    while not over.is_set() and len(forked) < 2000:
        pid = os.fork()
        if pid == 0:
            time.sleep(30)
            os._exit(0)
        forked.append(pid)
thread = threading.Thread(target=fork)
thread.start()
start = time.monotonic()
for _ in range(40):
    fastns.spawn(["/true"], spec=plan).wait()
took = time.monotonic() - start
over.set()
thread.join()
for pid in forked:
    os.kill(pid, 9)
    os.waitpid(pid, 0)
print(len(forked), took)
"""


def script(body: str, fields: str) -> list[str]:
    return [sys.executable, "-W", "ignore", "-c", PLAN.format(fields=fields) + body]


@pytest.mark.parametrize("fields", WAYS)
def test_a_fork_in_another_thread_does_not_hold_a_start_up(probe_rootfs: Path, fields: str) -> None:
    """What was forked has a copy of every fd, so no end of a pipe can be the news of exec."""
    done = subprocess.run(
        [*script(FORKS, fields), str(probe_rootfs)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=100,
    )
    n_forked, took = done.stdout.split()
    assert int(n_forked) > 20
    assert float(took) < 15


KILLED = """
def running():
    pids = open(f"/proc/self/task/{os.getpid()}/children").read().split()
    states = [open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] for pid in pids]
    return [state for state in states if state != "Z"]
try:
    kept = fastns.spawn(["/probe", "--sleep", "60"], spec=plan)
    print("started")
except fastns.SpawnError as error:
    print(error.stage, error.errno)
    deadline = time.monotonic() + 10
    while running() and time.monotonic() < deadline:
        time.sleep(0.01)
print("running:", len(running()))
"""


@pytest.mark.parametrize("when", [1, 9], ids=["killed", "control"])
@pytest.mark.parametrize("fields", WAYS[1:])
def test_a_helper_that_is_killed_leaves_nothing_running(
    probe_rootfs: Path, fields: str, when: int
) -> None:
    """Killed when it is about to hand the pidfd over: nobody else knows of the sandbox."""
    if shutil.which("strace") is None:
        support.skip_missing("strace (tests/setup.sh installs it)")
    inject = f"inject=sendmsg:signal=KILL:when={when}"
    strace = ["strace", "-f", "-qqq", "-e", "trace=sendmsg", "-e", inject, "-o", "/dev/null"]
    done = subprocess.run(
        [*strace, *script(KILLED, fields), str(probe_rootfs)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=100,
    )
    if when == 1:
        assert done.stdout.splitlines() == [f"helper {errno.ECANCELED}", "running: 0"]
    else:
        assert done.stdout.splitlines() == ["started", "running: 1"]
