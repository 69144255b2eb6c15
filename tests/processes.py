"""What the tests of handles, threads and leaks share: looking for processes, running scripts."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

_numbers = itertools.count(1)


def marker() -> str:
    """Seconds to sleep, as an argument that no other process has: `marked()` finds it again."""
    return f"300.{os.getpid()}{next(_numbers):04}"


def marked(text: str) -> list[int]:
    """Pids of the living processes, in any pid namespace below, with this word in their argv."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:  # it has ended
            continue
        if text.encode() in words:  # a zombie's argv is empty
            found.append(int(pid))
    return found


def eventually(condition: Callable[[], object], seconds: float = 10) -> bool:
    """Whether the condition comes true; the bound is for a test that fails."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def script(code: str, *args: str, timeout: float = 60) -> str:
    """Runs Python code in an interpreter of its own and returns its stdout. It has to succeed.

    The code may use `children()` and `fds()`, which list this process' own.
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _PRELUDE + code, *args],
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    assert done.stderr == ""
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

def fds():
    here = os.open("/proc/self/fd", os.O_RDONLY)
    try:
        return sorted(set(os.listdir(here)) - {str(here)})
    finally:
        os.close(here)

"""
