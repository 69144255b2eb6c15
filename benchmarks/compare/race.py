"""Runs each contender in its own process. Every contender has one turn per round."""

import contextlib
import json
import random
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any


class Failed(Exception):
    """A contender cannot do what was requested. The message says why."""


class Contender:
    """A worker process (worker.py)."""

    def __init__(self, name: str, root: Path, **options: int) -> None:
        flags = [f"--{key}={value}" for key, value in options.items() if value]
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, "-m", "compare.worker", name, str(root), *flags],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[1],
        )
        assert self.process.stdout is not None
        if not self.process.stdout.readline():
            assert self.process.stderr is not None
            lines = self.process.stderr.read().strip().splitlines() or ["no reason given"]
            raise Failed(lines[-1])

    def ask(self, name: str, **arguments: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([name, arguments]) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": "it ended"}
        if "error" in answer:
            raise Failed(answer["error"])
        return answer["value"]

    def close(self) -> None:
        if self.process.poll() is None:
            with contextlib.suppress(Failed, OSError):
                self.ask("end")
            assert self.process.stdin is not None
            self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> "Contender":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


TURN = 4  # starts in a row


def interleaved(contenders: list[Contender], rounds: int, dice: random.Random) -> dict[str, Any]:
    """Time each contender: a few starts per round, in a new random order in each round.

    The first start of a turn finds the caches and idle CPUs as another contender left them. It is
    reported separately ("first"); the others are consecutive starts."""
    times: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    first: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for number in range(-max(rounds // 10, 3), rounds):
        for contender in dice.sample(contenders, len(contenders)):
            begun, *rest = contender.ask("time", n=TURN)
            if number >= 0:
                first[contender.name].append(begun)
                times[contender.name] += rest
    return {
        name: summary(values) | {"first": summary(first[name])["median"]}
        for name, values in times.items()
    }


def summary(values: list[float]) -> dict[str, float]:
    """Median and percentiles in µs."""
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    found = {"median": statistics.median(values), "p10": cuts[9], "p90": cuts[89]}
    found |= {"p95": cuts[94], "p99": cuts[98]}
    return {name: round(value * 1e6, 1) for name, value in found.items()} | {"n": len(values)}
