"""A caller with more live sandboxes than fds: the sandboxes without a pidfd work like the rest."""

from __future__ import annotations

import subprocess
import sys

import pytest
from processes import eventually, marked, marker

LIMIT = 320

SET_UP = f"""
import gc, os, resource, signal, subprocess, sys
import fastns
from fastns import PIPE, Spec, SpawnError, Template, TimeoutExpired

resource.setrlimit(resource.RLIMIT_NOFILE, ({LIMIT}, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
root, mark = sys.argv[1:]
template = Template(Spec(rootfs=root, network="host"))

def fds():
    return len(os.listdir("/proc/self/fd"))

template.run(["true"])
template.spawn(["true"]).wait()
before = fds()
crowd = [template.spawn(["sleep", mark]) for _ in range({LIMIT})]
assert fds() < {LIMIT} - 20
last = crowd[-1]
"""

CASES = {
    "poll": """
assert all(sandbox.poll() is None for sandbox in crowd)
held = fds()
assert all(sandbox.poll() is None for sandbox in crowd)
assert fds() == held
""",
    "wait": """
try:
    last.wait(timeout=0.05)
except TimeoutExpired:
    pass
else:
    raise AssertionError
for sandbox in crowd:
    sandbox.kill()
assert {sandbox.wait() for sandbox in crowd} == {-signal.SIGKILL}
assert fds() == before
""",
    "ended": """
quick = template.spawn(["sh", "-c", "exit 7"])
while quick.poll() is None:
    pass
assert quick.wait() == 7 and quick.usage is not None and quick.cause == "exited"
""",
    "pidfd": """
fd = last.pidfd
assert fd >= 0 and last.pidfd == fd
signal.pidfd_send_signal(fd, signal.SIGKILL)
assert last.wait() == -signal.SIGKILL and last.pidfd == -1
""",
    "signal": """
last.send_signal(signal.SIGKILL)
assert last.wait(10) == -signal.SIGKILL
last.send_signal(signal.SIGKILL)  # does nothing, as in subprocess
""",
    "communicate": """
cat = template.spawn(["cat"], stdin=PIPE, stdout=PIPE)
assert cat.communicate(b"text") == (b"text", None) and cat.returncode == 0
""",
    "drop": """
crowd.clear()
del last
gc.collect()
assert fds() == before
assert template.run(["sh", "-c", "exit 3"]).returncode == 3
""",
    "batch": """
more = template.spawn_batch([["sleep", mark]] * 100 + [["/missing"]])
assert isinstance(more.pop(), SpawnError)
assert all(sandbox.poll() is None for sandbox in more)
for sandbox in more:
    sandbox.kill()
assert {sandbox.wait() for sandbox in more} == {-signal.SIGKILL}
assert [r.returncode for r in template.run_batch([["true"]] * 50)] == [0] * 50
""",
    "server killed": """
os.kill(template._server.pid, signal.SIGKILL)
for sandbox in crowd:
    try:
        sandbox.wait()
    except SpawnError as error:
        assert error.stage == "helper"
    else:
        raise AssertionError
assert template.run(["true"]).returncode == 0
""",
    "forked": """
pid = os.fork()
if pid == 0:
    try:
        last.wait()
    except SpawnError as error:
        os._exit(0 if error.stage == "wait" else 2)
    os._exit(3)
assert os.waitpid(pid, 0)[1] == 0
assert last.poll() is None
""",
    "threads": """
import threading
ends = []
waiting = [threading.Thread(target=lambda: ends.append(last.wait())) for _ in range(8)]
for thread in waiting:
    thread.start()
last.kill()
for thread in waiting:
    thread.join(20)
assert ends == [-signal.SIGKILL] * 8
""",
}


@pytest.mark.parametrize("case", CASES)
def test_more_alive_than_fds(busybox_rootfs: str, case: str) -> None:
    mark = marker()
    script = SET_UP + CASES[case]
    subprocess.run([sys.executable, "-c", script, busybox_rootfs, mark], check=True, timeout=60)
    assert eventually(lambda: not marked(mark))
