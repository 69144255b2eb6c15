"""Finds out which process makes a system call, without a list of a start's processes.

A process is identified by the program it executes ("child" if it shares the caller's memory) and by
its number among the processes of that program that make this call. This number does not depend on
whether all calls are suspended or only this one.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import NamedTuple

CALLER, CHILD, COMMAND = "caller", "child", "command"


class Point(NamedTuple):
    """The `count`th time that the `which`th process of a role makes a call. Both begin at 1."""

    role: str
    which: int
    call: str
    count: int


class Roles:
    """The processes of one start, learned from their calls."""

    def __init__(self, worker: int, command: str) -> None:
        self._worker = worker
        self._command = command
        self._own = os.readlink(f"/proc/{worker}/exe")
        self._process_of: dict[int, int] = {}
        self._seen: dict[tuple[str, str], list[int]] = {}
        self._calls: Counter[tuple[str, int, str]] = Counter()

    def process(self, tid: int) -> int:
        """The thread's process, or 0 if it has ended."""
        if tid not in self._process_of:
            try:
                with open(f"/proc/{tid}/status") as file:
                    line = next(line for line in file if line.startswith("Tgid:"))
            except OSError:
                return 0
            self._process_of[tid] = int(line.split()[1])
        return self._process_of[tid]

    def point(self, tid: int, call: str) -> Point | None:
        """The point of this call. None if the command makes it, or if the process has ended."""
        process = self.process(tid)
        role = self._role(process, tid)
        if role is None:
            return None
        of_kind = self._seen.setdefault((role, call), [])
        if process not in of_kind:
            of_kind.append(process)
        which = of_kind.index(process) + 1
        self._calls[role, which, call] += 1
        return Point(role, which, call, self._calls[role, which, call])

    def _role(self, process: int, tid: int) -> str | None:
        if process == self._worker:
            return CALLER
        try:
            program = os.readlink(f"/proc/{tid}/exe")
        except OSError:
            return None
        if program == self._own:
            return CHILD
        name = os.path.basename(program)
        if name.startswith("memfd:"):
            name = _first_argument(tid) or name
        return None if name == self._command else name


def _first_argument(tid: int) -> str:
    try:
        with open(f"/proc/{tid}/cmdline", "rb") as file:
            return file.read(64).split(b"\0")[0].decode()
    except OSError:
        return ""
