"""Starts that are disturbed by forks in other threads, by kills, by signals or by reused pids."""

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
    pytest.param(", namespaces={'pid': '/proc/self/ns/pid'}", id="hop", marks=pytest.mark.as_root),
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
def test_forks_in_another_thread_do_not_delay_starts(probe_rootfs: Path, fields: str) -> None:
    """A forked process has a copy of every fd, so a start must not rely on EOF on a pipe to learn
    of the exec."""
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
def children():
    return open(f"/proc/self/task/{os.getpid()}/children").read().split()
try:
    kept = fastns.spawn(["/probe", "--sleep", "60"], spec=plan)
    print("started")
except fastns.SpawnError as error:
    print(error.stage, error.errno)
print("children:", len(children()))
"""


@pytest.mark.parametrize("when", [1, 9], ids=["killed", "control"])
@pytest.mark.parametrize("fields", WAYS[2:])
def test_the_hop_process_is_killed(probe_rootfs: Path, fields: str, when: int) -> None:
    """The hop process is killed before it sends the pidfd, when no other process knows of the
    sandbox."""
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
        assert done.stdout.splitlines() == [f"clone {errno.ECANCELED}", "children: 0"]
    else:
        assert done.stdout.splitlines() == ["started", "children: 1"]


SIGNALS = """
import signal
got = []
signal.signal(signal.SIGINT, lambda *_: got.append(1))
over = threading.Event()
results = []
def spawn():
    while not over.is_set():
        sandbox = fastns.spawn(["/true"], spec=plan)
        results.append(sandbox.wait())
threads = [threading.Thread(target=spawn) for _ in range(3)]
for thread in threads:
    thread.start()
while len(got) <= 100 or len(results) <= 100:
    os.killpg(0, signal.SIGINT)
    time.sleep(0.0005)
over.set()
for thread in threads:
    thread.join()
while len(os.listdir("/proc/self/task")) > 1:  # a thread may outlive its join() a little
    time.sleep(0.01)
children = open(f"/proc/self/task/{os.getpid()}/children").read().split()
print(set(results) <= {0, -signal.SIGINT}, children)
"""


@pytest.mark.parametrize("fields", WAYS)
def test_a_signal_to_the_process_group(probe_rootfs: Path, fields: str) -> None:
    """Ctrl-C reaches the whole group. The caller handles it. The command may die of it, and is
    reaped as usual. The processes that set the sandbox up ignore it."""
    done = subprocess.run(
        [*script(SIGNALS, fields), str(probe_rootfs)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=100,
        start_new_session=True,
    )
    assert done.stdout == "True []\n"


REUSED = """
import signal
sandbox = fastns.spawn(["/probe", "--exit", "0"], spec=plan)
os.waitpid(sandbox.pid, 0)
open("/proc/sys/kernel/ns_last_pid", "w").write(str(sandbox.pid - 1))
other = os.fork()
if other == 0:
    time.sleep(60)
    os._exit(0)
print(other == sandbox.pid)
sandbox._process.kill_all()
time.sleep(0.1)
print(os.waitpid(other, os.WNOHANG))
os.kill(other, signal.SIGKILL)
"""


@pytest.mark.as_root
def test_kill_all_leaves_a_reused_pid_alone(probe_rootfs: Path) -> None:
    """A sandbox without a pid namespace of its own is killed by its pids, but only while its pidfd
    shows that it is alive."""
    command = script(REUSED, ", namespaces={'pid': 'host'}")
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", *command, str(probe_rootfs)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=100,
    )
    assert done.stdout == "True\n(0, 0)\n"
