"""The fault campaign: `make faults`.

It first records all system calls of each way of starting. Then it makes each call of each process
fail with each errno, or interrupts it with a signal: one fault per start.

usage: python -m faults [--sample N] [--seed N] [--ways A,B] [--users root,user] [--only REGEX]
                        [--jobs N] [--json FILE] [CASE ...]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import selectors
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import support

from faults import notify
from faults.case import SIGNALS, Fault
from faults.judge import CANNOT_FAIL, ERRNOS, MISSED, RIGHT, TYPED
from faults.roles import Point
from faults.slot import Slot, warm
from faults.ways import WAYS, Setting, way_of
from faults.worker import Who

USER = "fastns-test"
SAMPLE = 20_000  # of about 70,000 faults; two CPUs need a quarter of an hour
FINE = (RIGHT, TYPED, MISSED)
Request = tuple[Any, dict[str, Any]]  # its name, and the message to a slot
Result = tuple[Fault, str, list[str]]


def main() -> int:
    args = _arguments()
    if not os.environ.get("FASTNS_FAULTS_INSIDE"):  # faults must not affect the host
        os.environ["FASTNS_FAULTS_INSIDE"] = "1"
        apart = ["unshare", "--mount", "--uts", "--ipc", "--net", "--propagation", "private"]
        os.execvp("unshare", [*apart, sys.executable, "-m", "faults", *sys.argv[1:]])
    with tempfile.TemporaryDirectory(prefix="fastns-faults-", dir="/var/tmp") as directory:
        return Campaign(Path(directory), args).run()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make faults")
    parser.add_argument("--sample", type=int, default=SAMPLE, help="number of faults; 0: all")
    parser.add_argument("--seconds", type=float, default=0, help="stop after this time; 0: never")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--users", default="root,user")
    parser.add_argument("--only", default="", help="a regular expression for cases")
    parser.add_argument("--what", default=",".join((*ERRNOS, *SIGNALS)))
    parser.add_argument("--jobs", type=int, default=2 * (os.cpu_count() or 1))
    parser.add_argument("--json", default="")
    parser.add_argument("cases", nargs="*")
    return parser.parse_args()


class Campaign:
    def __init__(self, directory: Path, args: argparse.Namespace) -> None:
        self.args = args
        self.directory = directory
        directory.chmod(0o755)
        root = make_root(directory)
        volume = directory / "volume"
        volume.mkdir(0o755)
        (volume / "file").write_text("of the host\n")
        self.users = {"root": Who(0, 0), "user": Who.named(USER)}
        first = next(
            int(line.split(":")[1])
            for line in Path("/etc/subuid").read_text().splitlines()
            if line.startswith(f"{USER}:")
        )
        warm(str(root))
        self.setting = Setting(str(root), str(volume), False, "", first, None)
        self.names = {number: name for name, number in notify.numbers().items()}
        self.points: dict[tuple[str, str], list[Point]] = {}
        self.want: dict[tuple[str, str], list[Any]] = {}
        self.free = list(range(16 * args.jobs))  # numbers of slots

    def run(self) -> int:
        begin = time.monotonic()
        pairs = [
            (way, user) for user in self.args.users.split(",") for way in self.args.ways.split(",")
        ]
        if self.args.cases:
            faults = [Fault.parse(text) for text in self.args.cases]
            pairs = sorted({(fault.way, fault.user) for fault in faults})
        for (way, user), answer in self.request_all(
            [(pair, {"observe": pair}) for pair in pairs], [], float("inf")
        ):
            if "failed" in answer:
                print(f"{way} as {user} cannot be observed: {answer['failed']}")
                return 2
            self.points[way, user] = [Point(*point) for point in answer["points"]]
            self.want[way, user] = answer["want"]
        if not self.args.cases:
            faults = self.choose(pairs)
        print(f"{len(faults)} faults, observed in {time.monotonic() - begin:.0f} s", flush=True)
        results = self.campaign(faults)
        report(results, pairs, self.args.json, verbose=bool(self.args.cases))
        print(f"{time.monotonic() - begin:.0f} s")
        return any(kind not in FINE for _, kind, _ in results)

    def choose(self, pairs: list[tuple[str, str]]) -> list[Fault]:
        whats = self.args.what.split(",")
        faults = [
            Fault(way, user, point, what)
            for way, user in pairs
            for point in self.points[way, user]
            for what in whats
            if (what in SIGNALS or point.call not in CANNOT_FAIL)
            and (what != "SIGSTOP" or way_of(way).timed)
        ]
        if self.args.only:
            faults = [fault for fault in faults if re.search(self.args.only, str(fault))]
        seed = int(time.time()) if self.args.seed is None else self.args.seed
        random.Random(seed).shuffle(faults)
        if self.args.sample or self.args.seconds:
            print(f"some of {len(faults)} faults: --seed {seed}")
            faults = faults[: self.args.sample or None]
        return faults

    def campaign(self, faults: list[Fault]) -> list[Result]:
        end = time.monotonic() + self.args.seconds if self.args.seconds else float("inf")
        requests = [(fault, {"inject": str(fault)}) for fault in faults]
        # Starts with a SIGSTOP wait most of the time.
        waiting = [request for request in requests if request[0].what == "SIGSTOP"]
        busy = [request for request in requests if request[0].what != "SIGSTOP"]
        return [
            (fault, answer["kind"], answer["lines"])
            for fault, answer in self.request_all(busy, waiting, end)
        ]

    def request_all(
        self, busy: list[Request], waiting: list[Request], end: float
    ) -> list[tuple[Any, Any]]:
        """Run all requests in slots; start none after `end`."""
        answers: list[tuple[Any, Any]] = []
        total, told = len(busy) + len(waiting), time.monotonic()
        given: dict[Slot, tuple[list[Request], Request]] = {}
        again: list[Any] = []  # requests repeated because their slot died, for example of a kill
        selector = selectors.DefaultSelector()

        def give(slot: Slot, queue: list[Request]) -> None:
            if queue and time.monotonic() < end:
                given[slot] = (queue, queue.pop())
                slot.tell(given[slot][1][1])
            else:
                drop(slot)

        def drop(slot: Slot) -> None:
            given.pop(slot, None)
            selector.unregister(slot.socket)
            slot.close()
            self.free.append(slot.number)

        def begin(queue: list[Request]) -> None:
            slot = Slot(self, self.free.pop())
            selector.register(slot.socket, selectors.EVENT_READ, slot)
            give(slot, queue)

        for queue, jobs in ((busy, self.args.jobs), (waiting, 8 * self.args.jobs)):
            queue.reverse()
            for _ in range(min(jobs, len(queue))):
                begin(queue)
        while given:
            for key, _ in selector.select(60):
                slot = key.data
                queue, (name, request) = given[slot]
                try:
                    answers.append((name, slot.hear()))
                    if answers[-1][1].get("renew"):
                        drop(slot)
                        begin(queue)
                    else:
                        give(slot, queue)
                except EOFError:
                    if name in again:
                        lines = ["the slot died twice"]
                        answers.append((name, {"kind": "harness", "lines": lines}))
                    else:
                        print(f"a slot died, retrying: {name}")
                        again.append(name)
                        queue.append((name, request))
                    drop(slot)
                    begin(queue)
            if time.monotonic() > told + 10:
                told = time.monotonic()
                wrong = sum(answer.get("kind", RIGHT) not in FINE for _, answer in answers)
                print(f"  {len(answers)} of {total}, {wrong} wrong", file=sys.stderr, flush=True)
        selector.close()
        return answers


def make_root(directory: Path) -> Path:
    """A root with the probe."""
    root = directory / "root"
    for name in ("dev", "etc", "mnt", "proc", "run", "sys", "tmp"):
        (root / name).mkdir(parents=True)
    for name in ("hosts", "hostname", "resolv.conf"):
        (root / "etc" / name).write_text(f"the root's own {name}\n")
    probe = support.compile_static(support.TESTS / "probe.c", support.BUILD / "tests" / "probe")
    shutil.copy(probe, root / "probe")
    for path in (root, *root.rglob("*")):
        path.chmod(0o644 if path.parent.name == "etc" else 0o755)
    return root


def report(results: Any, pairs: Any, json_file: str, verbose: bool) -> None:
    by_pair: dict[tuple[str, str], Counter[str]] = {pair: Counter() for pair in pairs}
    for fault, kind, _ in results:
        by_pair[fault.way, fault.user][kind] += 1
    kinds = sorted({kind for counter in by_pair.values() for kind in counter} - {*FINE})
    head = ["way", "as", "injections", RIGHT, TYPED, "wrong", *kinds, "(missed)"]
    rows = []
    for (way, user), counter in by_pair.items():
        rows.append([way, user, *_figures(counter, kinds)])
    rows.append(["all", "", *_figures(sum(by_pair.values(), Counter()), kinds)])
    widths = [max(len(str(row[i])) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, *rows]:
        print("  ".join(f"{cell!s:>{width}}" for cell, width in zip(row, widths, strict=True)))
    wrong = [(fault, kind, lines) for fault, kind, lines in results if kind in kinds]
    for fault, kind, lines in results if verbose else wrong[:200]:
        print(f"{kind}: make faults CASE={fault}")
        for line in lines[:20]:
            print("    " + line.replace("\n", "\n    "))
    if json_file:
        Path(json_file).write_text(
            json.dumps([(str(fault), kind, lines) for fault, kind, lines in results])
        )


def _figures(counter: Counter[str], kinds: list[str]) -> list[int]:
    wrong = sum(counter[kind] for kind in kinds)
    right, typed = counter[RIGHT], counter[TYPED]
    found = (counter[kind] for kind in kinds)
    return [right + typed + wrong, right, typed, wrong, *found, counter[MISSED]]


if __name__ == "__main__":
    sys.exit(main())
