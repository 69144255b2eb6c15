"""fastns: a direct start, with a plan compiled once."""

from pathlib import Path

import fastns
from compare.rivals import _fastns
from compare.rivals._fastns import find, version

__all__ = ["NAME", "NOTE", "Rival", "find", "version"]
NAME = "fastns.run"
NOTE = "a direct start"


class Rival:
    def __init__(self, root: Path) -> None:
        self.plan = fastns.compile(_fastns.spec(root))

    def run(self, command: str) -> int:
        return fastns.run([command], spec=self.plan).returncode

    def output(self, command: str) -> str:
        done = fastns.run([command], spec=self.plan, capture_output=True, text=True, check=True)
        return done.stdout

    def batch(self, command: str, n: int, concurrency: int) -> None:
        jobs = [[command]] * n
        fastns.run_batch(jobs, spec=self.plan, concurrency=concurrency, capture_output=False)

    def close(self) -> None:
        pass
