"""The measurements: each function races some contenders and returns plain data for the report."""

import contextlib
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compare import isolation, race, rivals
from compare.race import Contender, Failed

FASTNS = "fastns_template"
BARE = "posix_spawn"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def started(names: list[str], root: Path, **options: int) -> Iterator[list[Contender]]:
    """Yield the contenders that can start; print why the others cannot."""
    with contextlib.ExitStack() as stack:
        found = []
        for name in names:
            try:
                found.append(stack.enter_context(Contender(name, root, **options)))
            except Failed as reason:
                say(f"  {name}: {reason}")
        yield found


def present() -> tuple[list[str], dict[str, str]]:
    """Return the contenders that are installed, and for the others why they are missing."""
    here, missing = [], {}
    for name in rivals.names():
        module = rivals.load(name)
        if module.find() or name in (BARE, "subprocess_run") or name.startswith("fastns"):
            here.append(name)
        else:
            missing[module.NAME] = "not found in PATH"
    return here, missing


def look_inside(names: list[str], root: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what each contender isolates, as a probe inside sees it, and why others cannot run."""
    outside = isolation.seen_outside(root)
    found, failed = {}, {}
    for name in names:
        module = rivals.load(name)
        try:
            with Contender(name, root) as contender:
                inside = contender.ask("probe")
            found[name] = isolation.compare(inside, outside)
        except Failed as reason:
            failed[module.NAME] = str(reason)
    return found, failed


def latency(names: list[str], root: Path, rounds: int, dice: random.Random) -> dict[str, Any]:
    with started(names, root) as contenders:
        return race.interleaved(contenders, rounds, dice)


def rates(root: Path, seconds: float, jobs: int) -> dict[str, dict[str, float]]:
    """Starts per second, by threads that start in a loop and by run_batch."""
    found: dict[str, dict[str, float]] = {}
    names = [BARE, "fastns_direct", FASTNS]
    with started(names, root) as contenders:
        for threads in (1, 2, 4, 8):
            for contender in contenders:
                rate = contender.ask("rate", threads=threads, seconds=seconds)
                found.setdefault(contender.name, {})[str(threads)] = round(rate)
        for concurrency in (1, 2, 4, 8):
            for contender in contenders[1:]:
                rate = contender.ask("batch", n=jobs, concurrency=concurrency)
                key = f"{contender.name} run_batch"
                found.setdefault(key, {})[str(concurrency)] = round(rate)
    return found


def against(
    option: str, sizes: list[int], names: list[str], root: Path, rounds: int, dice: random.Random
) -> dict[str, dict[str, float]]:
    """Medians for each value of a worker's option (memory or mounts)."""
    found: dict[str, dict[str, float]] = {}
    for size in sizes:
        say(f"  {option} {size}")
        with started(names, root, **{option: size}) as contenders:
            for name, times in race.interleaved(contenders, rounds, dice).items():
                found.setdefault(name, {})[str(size)] = times["median"]
    return found


def live(root: Path, sizes: list[int], rounds: int) -> dict[str, Any]:
    """Times starts while other sandboxes of the same template are alive."""
    found: dict[str, Any] = {"start_us": {}, "kib_each": {}, "spawn_us": {}}
    alive = 0
    with started([FASTNS], root) as contenders:
        for size in sizes:
            say(f"  live {size}")
            if size > alive:
                try:
                    grown = contenders[0].ask("grow", n=size - alive)
                except Failed as reason:
                    found["stopped"] = f"{size}: {reason}"
                    break
                found["kib_each"][str(size)] = round(grown["kib"], 1)
                found["spawn_us"][str(size)] = round(grown["last"] * 1e6, 1)
                found.setdefault("first_spawn_us", round(grown["first"] * 1e6, 1))
                alive = size
            times = contenders[0].ask("time", n=rounds)
            found["start_us"][str(size)] = race.summary(times)["median"]
    return found


def users(root: Path, rounds: int, dice: random.Random) -> dict[str, Any]:
    """The same template, started by root and by an unprivileged user (nobody)."""
    with contextlib.ExitStack() as stack:
        try:
            as_root = stack.enter_context(Contender(FASTNS, root))
            as_user = stack.enter_context(Contender(FASTNS, root, uid=65534))
        except Failed as reason:
            return {"failed": str(reason)}
        as_user.name = "unprivileged"
        as_root.name = "root"
        return race.interleaved([as_root, as_user], rounds, dice)
