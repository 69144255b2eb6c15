"""What is timed, and how: contenders, and interleaved rounds.

Absolute times drift on a shared machine, so contenders are timed in turn within one loop and
compared as ratios of their medians.
"""

import os
import time
from collections.abc import Callable

import fastns
from fastns import Spec

Contender = Callable[[], None]
KINDS = ("pid", "mount", "uts", "ipc", "network", "user", "cgroup", "time")


def sandbox(spec: Spec, command: str = "/true") -> Contender:
    """Spawn to reaped, through a plan compiled once."""
    plan = fastns.compile(spec)

    def contender() -> None:
        if fastns.spawn([command], spec=plan).wait() != 0:
            raise RuntimeError("the sandbox failed")

    return contender


def template(spec: Spec, command: str = "/true") -> Contender:
    """The same from a Template, whose server is there already, and no sandbox."""
    made = fastns.Template(spec, parked=0)

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
    """`rounds` times each contender in turn; seconds, after a tenth of the rounds as warm-up."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(-rounds // 10, rounds):
        for name, contender in contenders.items():
            start = time.perf_counter()
            contender()
            if number >= 0:
                times[name].append(time.perf_counter() - start)
    return times
