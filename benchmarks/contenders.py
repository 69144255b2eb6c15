"""Contenders, and the loop that times them in turn.

Absolute times drift on a shared machine. So one loop times all contenders in turn, and benchmarks
compare the ratios of their medians.
"""

import os
import time
from collections.abc import Callable

import fastns
from fastns import Spec

Contender = Callable[[], None]
KINDS = ("pid", "mount", "uts", "ipc", "network", "user", "cgroup", "time")


def sandbox(spec: Spec, command: str = "/true") -> Contender:
    """Starts a sandbox by spawn() and reaps it. The plan is compiled once."""
    plan = fastns.compile(spec)

    def contender() -> None:
        if fastns.spawn([command], spec=plan).wait() != 0:
            raise RuntimeError("the sandbox failed")

    return contender


def template(spec: Spec, command: str = "/true") -> Contender:
    """Does the same from a running Template without ready sandboxes."""
    made = fastns.Template(spec, ready=0)

    def contender() -> None:
        if made.spawn([command]).wait() != 0:
            raise RuntimeError("the sandbox failed")

    return contender


def posix_spawn(command: str) -> Contender:
    def contender() -> None:
        pid = os.posix_spawn(command, [command], {})
        if os.waitpid(pid, 0)[1] != 0:
            raise RuntimeError("the process failed")

    return contender


def interleaved(contenders: dict[str, Contender], rounds: int = 300) -> dict[str, list[float]]:
    """Time each contender `rounds` times, in turn, after a warm-up of a tenth of the rounds.

    Returns the seconds of each start.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(-rounds // 10, rounds):
        for name, contender in contenders.items():
            start = time.perf_counter()
            contender()
            if number >= 0:
                times[name].append(time.perf_counter() - start)
    return times
