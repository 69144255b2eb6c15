"""Helpers to find processes, wait for conditions and run scripts in a new interpreter."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from fastns import Template

_numbers = itertools.count(1)


def marker() -> str:
    """A unique number of seconds to sleep, by which marked() finds the process."""
    return f"300.{os.getpid()}{next(_numbers):04}"


def marked(text: str) -> list[int]:
    """Pids of the live processes with this word in their argv, in this pid namespace and all below
    it."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:  # the process has ended
            continue
        if text.encode() in words:  # a zombie's argv is empty
            found.append(int(pid))
    return found


def running(*argv: str) -> list[int]:
    """Pids of the live processes with exactly this argv.

    One word does not identify a command: it may also be in the argv of the process that starts the
    command, and in that of a child that shares its memory or has not executed yet.
    """
    wanted = b"".join(os.fsencode(word) + b"\0" for word in argv)
    found = []
    for pid in marked(argv[-1]):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes() == wanted:
                found.append(pid)
    return found


def children(pid: int, of_its_own: bool = True) -> list[int]:
    """A server's children in pid namespaces of their own, which are sandboxes. If not `of_its_own`,
    the others: its closer."""
    found = []
    depth = len(_pids(pid))
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if (len(_pids(int(child))) > depth) is of_its_own:
                found.append(int(child))
    return found


def _pids(pid: int) -> list[str]:
    """The pid in each pid namespace, outermost first. Empty for a process that is being reaped."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next((line for line in status.splitlines() if line.startswith("NSpid")), "").split()[1:]


def server_pid(template: Template) -> int:
    """The pid of the template's server."""
    assert template._server is not None
    return template._server.pid


def eventually(condition: Callable[[], object], seconds: float = 10) -> bool:
    """Wait until the condition is true; return False after this time, which only a failing test
    uses up."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def script(
    code: str, *args: str, timeout: float = 60, first: str = "", prefix: Sequence[str] = ()
) -> str:
    """Run Python code in a new interpreter and return its stdout. It must succeed, with an empty
    stderr. `first` is code to run before fastns is imported, `prefix` a command that runs the
    interpreter.

    The code may use `children()` and `fds()`, which list the children and fds of its process. The
    fd of the range's user namespace, which the first spawn would leave open, is opened beforehand.
    """
    done = subprocess.run(
        [*prefix, sys.executable, "-W", "error", "-c", first + _PRELUDE + code, *args],
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    assert done.stderr == "", done.stderr
    return done.stdout


_PRELUDE = """
import contextlib, os, pathlib, signal, sys, threading, time
import fastns

def children():
    found = []
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found += pathlib.Path(f"/proc/self/task/{task}/children").read_text().split()
    return found

def fds():  # without the memory files that the engine keeps: the program and plans
    here = os.open("/proc/self/fd", os.O_RDONLY)
    try:
        found = []
        for fd in set(os.listdir(here)) - {str(here)}:
            with contextlib.suppress(FileNotFoundError):  # the fd that lists the directory
                if not os.readlink(fd, dir_fd=here).startswith("/memfd:fastns-"):
                    found.append(fd)
        return sorted(found)
    finally:
        os.close(here)

_plan = fastns.compile(fastns.Spec())
if _plan.ids is not None:
    fastns._core.user_namespace(_plan.ids, _plan.inotify)

"""
