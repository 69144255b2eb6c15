"""A lost message causes an error, never an endless wait or an invented result."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from hidden import KILL, hider
from processes import eventually, marked, marker, script

import fastns
from fastns import SpawnError, Spec

# ---- a template's server ----

LOST_REPLY = """
hide_it()
template = fastns.Template(fastns.Spec(rootfs=sys.argv[1]), ready=int(sys.argv[2]))
def ways():
    yield template.run, ["/true"]
    yield template.run_batch, [["/true"]]
    yield (lambda args: template.spawn(args).wait()), ["/true"]
    yield (lambda _: template.stats()), None
for way, args in ways():
    try:
        result = way(args)
    except fastns.SpawnError as error:
        result = error
    result = result[0] if isinstance(result, list) else result
    print(result)
template.close()
"""


@pytest.mark.parametrize("ready", ["0", "2"])
def test_a_reply_that_could_not_be_sent(probe_rootfs: Path, ready: str) -> None:
    """A caller whose reply is lost fails with ECANCELED."""
    code = hider("sendto", errno.ENOBUFS, 2, 100) + LOST_REPLY
    out = script(code, str(probe_rootfs), ready)
    assert out.splitlines() == ["helper: Operation canceled (ECANCELED)"] * 4


LOST_LOCK = """
with fastns.Template(fastns.Spec(rootfs=sys.argv[1]), ready=int(sys.argv[2])) as template:
    template.run(["/true"])
    before = len(fds())
    hide_it()  # in this process, not in the server
    try:
        print(template.spawn(["/probe", "--sleep", sys.argv[3]]))
    except fastns.SpawnError as error:
        print(error)
    print(template.run(["/true"]).returncode, len(fds()) == before)
"""


@pytest.mark.parametrize("ready", ["0", "1"])
def test_a_lock_that_cannot_be_taken(probe_rootfs: Path, ready: str) -> None:
    """The caller learns from a lock that the command was executed. The calls that fail are
    fcntl(F_GETLK), F_SETLK and F_SETLKW."""
    mark = marker()
    code = hider("fcntl", errno.ENOLCK, 1, 5, 7) + LOST_LOCK
    out = script(code, str(probe_rootfs), ready, mark)
    assert out.splitlines()[0] == "helper: No locks available (ENOLCK)"
    assert out.splitlines()[1] == "0 True"
    assert marked(mark) == []


# ---- a reaper ----


def sockets() -> set[int]:
    """The fds of this process that are sockets."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            if os.readlink(f"/proc/self/fd/{fd}").startswith("socket:"):
                found.add(int(fd))
    return found


def test_an_end_that_could_not_be_reported(probe_rootfs: Path) -> None:
    """The wait fails, and there is no returncode."""
    before = sockets()
    spec = Spec(rootfs=probe_rootfs, init=True)
    sandbox = fastns.spawn(["/probe", "--echo"], spec=spec, stdin=fastns.PIPE)
    (control,) = sockets() - before
    with socket.socket(fileno=os.dup(control)) as copy:
        copy.shutdown(socket.SHUT_RDWR)
    with pytest.raises(SpawnError) as caught, sandbox:
        pass  # closes its stdin, which ends it
    assert (caught.value.stage, caught.value.errno) == ("init", errno.EPIPE)
    assert caught.value.hint
    assert sandbox.returncode is None
    sandbox.kill()  # does nothing


# ---- the process that makes the range's user namespace ----

KILLED_MEANWHILE = """
import os
from fastns import _core
hide_it()
_core.user_namespace((os.getuid(), os.getgid(), 1), b"")
"""


def test_no_process_keeps_a_killed_callers_memory() -> None:
    """The caller is killed when it opens the first id map of a process that shares its memory."""
    mark = marker()
    code = hider("openat", KILL) + KILLED_MEANWHILE
    done = subprocess.run([sys.executable, "-c", code, mark], stdout=subprocess.DEVNULL)
    assert done.returncode == -31  # SIGSYS
    assert eventually(lambda: marked(mark) == [], 5)
