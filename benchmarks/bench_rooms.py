"""Compares sandboxes of a Template with os.posix_spawn: fresh ones, and rooms that serve again.

All have the defaults, with a network namespace of their own. Without a rootfs the command is the
host's static busybox, else a static program that does nothing; os.posix_spawn starts the same. Each
run is added to results/rooms.json.
"""

import contextlib
import json
import os
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import pytest
from compare.__main__ import machine
from contenders import Contender, interleaved, posix_spawn

from fastns import Spec, Template

RESULTS = Path(__file__).with_name("results") / "rooms.json"
ROUNDS = int(os.environ.get("FASTNS_BENCH_ROUNDS", "300"))
BATCHES = max(2, ROUNDS // 50)  # of each kind, in turn with a loop of bare processes
JOBS = 600
LOOP = 300
BARE = "os.posix_spawn"
CASES: dict[str, tuple[dict[str, Any], bool]] = {  # fields of the spec, and whether it reuses
    "fresh": ({}, False),
    "fresh, overlay": ({"overlay": True}, False),
    "fresh, read-only": ({"read_only": True}, False),
    "fresh, limits": ({"read_only": True, "memory": "64m", "pids_limit": 32, "cpus": 1}, False),
    "rooms": ({"overlay": True}, True),
    "Spec(), fresh": ({}, False),
    "Spec(), rooms": ({}, True),
}


def bare(command: list[str]) -> Contender:
    """posix_spawn() of a command with arguments."""

    def start() -> None:
        pid = os.posix_spawn(command[0], command, {})
        if os.waitpid(pid, 0)[1] != 0:
            raise RuntimeError("the process failed")

    return start


def contender(template: Template, command: list[str]) -> Contender:
    def start() -> None:
        if template.run(command).returncode != 0:
            raise RuntimeError("the sandbox failed")

    return start


def rate_of_loop(start: Contender) -> float:
    begin = time.perf_counter()
    for _ in range(LOOP):
        start()
    return LOOP / (time.perf_counter() - begin)


def rate_of_batch(template: Template, command: list[str], captured: bool) -> float:
    """Sandboxes a second: two at once, or four whose output is captured."""
    concurrency = 4 if captured else 2
    begin = time.perf_counter()
    results = template.run_batch([command] * JOBS, concurrency=concurrency, capture_output=captured)
    seconds = time.perf_counter() - begin
    if any(getattr(result, "returncode", 1) != 0 for result in results):
        raise RuntimeError("a sandbox failed")
    return JOBS / seconds


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[int(len(values) * share)]


def measure(names: list[str], rootfs: Path | None, command: list[str], program: Contender) -> None:
    """Times all cases in turn with a bare process, and keeps the ratios."""
    with contextlib.ExitStack() as stack:
        templates = {}
        for name in names:
            fields, reuse = CASES[name]
            spec = Spec(rootfs=rootfs, **fields)
            templates[name] = stack.enter_context(Template(spec, reuse=reuse))
        starts = {BARE: program}
        starts |= {name: contender(template, command) for name, template in templates.items()}
        times = interleaved(starts, ROUNDS)
        loops = [rate_of_loop(program)]
        rates: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in names}
        for _ in range(BATCHES):
            for name, template in templates.items():
                for captured in (False, True):
                    rates[name][captured].append(rate_of_batch(template, command, captured))
            loops.append(rate_of_loop(program))
    bare_us, loop = statistics.median(times[BARE]), statistics.median(loops)
    found = {}
    for name in names:
        median = statistics.median(times[name])
        found[name] = {
            "one_at_a_time": round(median / bare_us, 2),
            "p99/p50": round(quantile(times[name], 0.99) / median, 2),
            "two_at_once": round(statistics.median(rates[name][0]) / loop, 2),
            "four_captured": round(statistics.median(rates[name][1]) / loop, 2),
        }
        print(f"\n{name:20} " + "  ".join(f"{key} {value}" for key, value in found[name].items()))
    keep(bare_us, found)


def keep(bare_us: float, found: dict[str, dict[str, float]]) -> None:
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    kept["machine"] = machine()
    kept["figures"] = "ratios to os.posix_spawn: of medians, or of the rate of a loop"
    load = round(os.getloadavg()[0], 1)
    run = {"bare_us": round(bare_us * 1e6, 1), "load": load, "cases": found}
    kept.setdefault("runs", []).append(run)
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n")


def test_with_a_rootfs(rootfs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [name for name in CASES if not name.startswith("Spec()")]
    with capsys.disabled():
        measure(names, rootfs, ["/true"], posix_spawn(str(rootfs / "true")))


def test_without_a_rootfs(capsys: pytest.CaptureFixture[str]) -> None:
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("missing: busybox")
    names = [name for name in CASES if name.startswith("Spec()")]
    with capsys.disabled():
        measure(names, None, [busybox, "true"], bare([busybox, "true"]))
