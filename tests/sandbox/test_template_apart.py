"""A template's sandbox cannot harm the caller, the server or other sandboxes."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import support

from fastns import Spec, Template, run

HOST_NET: dict[str, Any] = {"network": "host"}
READY = {"fresh": 0, "ready": 2}
ATTACKER = r"""
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <unistd.h>
static void *traced(void *refused)
{
    if (ptrace(PTRACE_TRACEME, 0, 0, 0) < 0)
        *(volatile int *)refused = 1;
    return 0;
}
int main(int argc, char **argv)
{
    int n = argc > 2 ? atoi(argv[2]) : 0;
    pthread_t threads[128];
    if (!strcmp(argv[1], "kill"))
        return kill(0, n);
    if (!strcmp(argv[1], "trace")) {
        static int refused;
        for (int i = 0; i < n; i++)
            refused |= pthread_create(&threads[i], 0, traced, &refused);
        for (int i = 0; i < n; i++)
            pthread_join(threads[i], 0);
        return refused ? 3 : 0;
    }
    if (!strcmp(argv[1], "key")) /* adds a key to the session keyring */
        return syscall(SYS_add_key, "user", "fastns-test", "x", 1, -3) < 0;
    return 2;
}
"""


@pytest.fixture(scope="module")
def root(busybox_rootfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root that contains the attacker's program."""
    root = support.copy_tree(busybox_rootfs, tmp_path_factory.mktemp("apart") / "root")
    source = root.parent / "attacker.c"
    source.write_text(ATTACKER)
    command = ["cc", "-O1", "-static", "-pthread", "-o", str(root / "bin/attacker"), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return root


@pytest.mark.parametrize("ready", READY.values(), ids=READY)
def test_a_signal_to_its_group_reaches_no_other_process(root: Path, ready: int) -> None:
    with Template(Spec(rootfs=root, **HOST_NET), ready=ready) as template:
        with template.spawn(["sleep", "60"]) as sibling:
            for _ in range(3):
                assert template.run(["attacker", "kill", "9"]).returncode in (0, -signal.SIGKILL)
            assert sibling.poll() is None
            sibling.kill()
        assert template.run(["true"]).returncode == 0


@pytest.mark.parametrize("ready", READY.values(), ids=READY)
def test_it_has_a_session_of_its_own(root: Path, ready: int) -> None:
    """A sandbox has its own session, and therefore no controlling terminal."""
    with Template(Spec(rootfs=root, **HOST_NET), ready=ready) as template:
        with template.spawn(["sleep", "60"]) as sandbox:
            assert template._server is not None
            sessions = {os.getsid(pid) for pid in (0, template._server.pid, sandbox.pid)}
            assert len(sessions) == 3
            sandbox.kill()
        script = "(: </dev/tty) 2>/dev/null || echo none"
        done = template.run(["sh", "-c", script], capture_output=True, text=True)
        assert done.stdout == "none\n"


def test_threads_that_made_the_server_their_tracer_are_reaped(root: Path) -> None:
    """After PTRACE_TRACEME only the parent, here the server, can reap the thread. The default
    filter refuses it."""
    assert run(["attacker", "trace", "1"], spec=Spec(rootfs=root)).returncode == 3
    with Template(Spec(rootfs=root, seccomp="unconfined", **HOST_NET)) as template:
        for _ in range(3):
            assert template.run(["attacker", "trace", "100"], timeout=20).returncode == 0
            assert template.run(["true"], timeout=20).returncode == 0
        with template.spawn(["attacker", "trace", "100"]) as sandbox:
            assert sandbox.wait(20) == 0


def test_no_key_is_added_to_the_callers_session(root: Path) -> None:
    """The caller has a session keyring, as after a login. The control is a direct start, which may
    add a key to its own."""
    libc = ctypes.CDLL(None, use_errno=True)
    if os.uname().machine != "x86_64" or libc.syscall(250, 1, None) < 0:
        support.skip_missing("keyctl(2)")
    spec = Spec(rootfs=root, seccomp="unconfined", **HOST_NET)
    with Template(spec) as template:
        assert template.run(["attacker", "key"]).returncode != 0
    assert run(["attacker", "key"], spec=spec).returncode == 0


def test_a_large_tmpfs_is_freed_without_delaying_the_next_start(root: Path) -> None:
    script = "i=0; while [ $i -lt 20000 ]; do : >/tmp/$i; i=$((i+1)); done"
    with Template(Spec(rootfs=root, **HOST_NET)) as template:
        assert template.run(["sh", "-c", script], timeout=60).returncode == 0
        start = time.monotonic()
        assert template.run(["true"]).returncode == 0
        assert time.monotonic() - start < 5


TTY = """
import os, pty, sys
from fastns import Spec, Template
with Template(Spec(rootfs=sys.argv[1], network="host")) as template:
    done = template.run(["sh", "-c", "(: </dev/tty) 2>/dev/null && echo reached || echo none"],
                        stdin=-3, capture_output=True, text=True)
open(sys.argv[2], "w").write(done.stdout)
"""


def test_the_callers_terminal_is_out_of_reach(root: Path, tmp_path: Path) -> None:
    """The caller has a controlling terminal, made by script(1)."""
    out = tmp_path / "out"
    command = [sys.executable, "-c", TTY, str(root), str(out)]
    subprocess.run(
        ["script", "-qec", " ".join(map("'{}'".format, command)), "/dev/null"],
        check=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
    )
    assert out.read_text() == "none\n"
