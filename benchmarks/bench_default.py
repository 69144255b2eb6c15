"""Compares a start with the defaults, which include a network namespace, with os.posix_spawn.

Both run the same static program. The sandbox's only option is a read-only bind with that program.
Each run is added to results/default.json, with the load of the machine.

On a busy machine, run this under `chrt -r 20`: a real-time priority keeps other work away from the
caller and its sandboxes, but not from the kernel's worker that takes network namespaces down.
"""

import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from compare.__main__ import machine
from contenders import Contender, interleaved, posix_spawn

import fastns
from fastns import Mount, Spec, Template

RESULTS = Path(__file__).with_name("results") / "default.json"
ROUNDS = int(os.environ.get("FASTNS_BENCH_ROUNDS", "300"))
STREAK = 20
"""Starts of one contender without a pause: more than are ready."""
BARE = "os.posix_spawn"
Run = Callable[[list[str]], fastns.CompletedSandbox]


def spec(rootfs: Path) -> Spec:
    return Spec(mounts=[Mount("/mnt", source=str(rootfs), options=["ro", "noidmap"])])


def contender(run: Run) -> Contender:
    def start() -> None:
        if run(["/mnt/true"]).returncode != 0:
            raise RuntimeError("the sandbox failed")

    return start


def streaks(first: Contender, second: Contender) -> list[tuple[float, float]]:
    """Seconds per start of both contenders, which take turns in streaks."""
    found = []
    for _ in range(ROUNDS // 10):
        seconds = []
        for start in (first, second):
            begin = time.perf_counter()
            for _ in range(STREAK):
                start()
            seconds.append((time.perf_counter() - begin) / STREAK)
        found.append((seconds[0], seconds[1]))
    return found


def summary(pairs: list[tuple[float, float]]) -> dict[str, float]:
    """The medians, their ratio and the spread, from pairs of a bare start and a sandboxed one."""
    bare, own = (statistics.median(values) for values in zip(*pairs, strict=True))
    cuts = statistics.quantiles([second for _, second in pairs], n=10)
    return {
        "bare_us": round(bare * 1e6, 1),
        "median_us": round(own * 1e6, 1),
        "p10_us": round(cuts[0] * 1e6, 1),
        "p90_us": round(cuts[-1] * 1e6, 1),
        "ratio": round(own / bare, 2),
    }


def keep(name: str, figures: dict[str, float]) -> None:
    """Append a run to the stored runs of the same name."""
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    kept["machine"] = machine()
    run = {**figures, "load": round(os.getloadavg()[0], 1)}
    kept.setdefault("runs", {}).setdefault(name, []).append(run)
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n")


def measure(name: str, rootfs: Path, run: Run) -> None:
    """Measure starts in turn with a bare process, which leaves time to prepare the next sandbox,
    and in streaks, which leave none."""
    bare, own = posix_spawn(str(rootfs / "true")), contender(run)
    times = interleaved({BARE: bare, name: own}, ROUNDS)
    keep(f"{name}, in turns", summary(list(zip(times[BARE], times[name], strict=True))))
    keep(f"{name}, one after the other", summary(streaks(bare, own)))


def test_run(rootfs: Path) -> None:
    plan = fastns.compile(spec(rootfs))
    measure("fastns.run", rootfs, lambda args: fastns.run(args, spec=plan))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Template.run", {}),
        ("Template(ready=0).run", {"ready": 0}),
    ],
)
def test_template(name: str, options: dict[str, int], rootfs: Path) -> None:
    with Template(spec(rootfs), **options) as template:
        measure(name, rootfs, template.run)
