"""Compares a Template with os.posix_spawn: one start at a time, in batches and for a minute.

Each ratio is from a run in which only its two contenders take turns, because the work just before a
start changes its cost. Stores the figures in results/template.json.
"""

import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from contenders import Contender, interleaved, posix_spawn
from report import table

import fastns
from fastns import Mount, Spec, Template

RESULTS = Path(__file__).with_name("results") / "template.json"
SECONDS = int(os.environ.get("FASTNS_BENCH_SECONDS", "60"))
MOUNTS = [Mount("/proc", type="proc"), Mount("/tmp", type="tmpfs")]
BARE = "os.posix_spawn"


def spec(rootfs: Path, **fields: Any) -> Spec:
    """The bare configuration: pid, mount, uts, ipc and cgroup namespaces, /proc and /tmp.

    DEFAULT adds all default defences together; bench_layers.py adds one at a time.
    """
    fields = {
        "network": "host",
        "namespaces": {"user": "host"},
        "seccomp": "unconfined",
        "default_mounts": False,
        "mounts": MOUNTS,
        **fields,
    }
    return Spec(rootfs=str(rootfs), **fields)


def keep(name: str, figures: object) -> None:
    RESULTS.parent.mkdir(exist_ok=True)
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    kept[name] = figures
    RESULTS.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n")


def runner(run: Callable[[list[str]], fastns.CompletedSandbox]) -> Contender:
    args = ["/true"]

    def contender() -> None:
        if run(args).returncode != 0:
            raise RuntimeError("the sandbox failed")

    return contender


DEFAULT = {"default_mounts": True, "mounts": [], "namespaces": {}, "seccomp": "default"}
LIMITS = {"memory": "64m", "pids_limit": 32, "cpus": 1}
NONE_AHEAD = {"ready": 0}
# Way -> fields of the spec, options of the template, the goal for the ratio.
WAYS: dict[str, tuple[dict[str, Any], dict[str, Any], float]] = {
    "Template.run": ({}, {}, 1.22),
    "Template.run, ready=0": ({}, NONE_AHEAD, 1.22),
    "Template.run, ready=4": ({}, {"ready": 4}, 1.05),
    "Template.run, overlay": ({"overlay": True}, {}, 1.55),
    "Template.run, overlay, ready=0": ({"overlay": True}, NONE_AHEAD, 1.55),
    "Template.run, all defences": (DEFAULT, {}, 1.45),
    "Template.run, all defences, ready=0": (DEFAULT, NONE_AHEAD, 1.45),
    "Template.run, all defences, memory, pids, cpus": ({**DEFAULT, **LIMITS}, {}, 2.6),
    "Template.run, all defences, memory, pids, cpus, ready=0": (
        {**DEFAULT, **LIMITS},
        NONE_AHEAD,
        2.6,
    ),
}
DIRECT: dict[str, tuple[dict[str, Any], float]] = {
    "fastns.run": ({}, 1.5),
    "fastns.run, all defences": (DEFAULT, 2.0),
}


def figures(times: dict[str, list[float]], name: str) -> dict[str, float]:
    values = times[name]
    median = statistics.median(values)
    cuts = statistics.quantiles(values, n=100)
    return {
        "median_us": round(median * 1e6, 1),
        "p10_us": round(cuts[9] * 1e6, 1),
        "p90_us": round(cuts[89] * 1e6, 1),
        "p99/p50": round(cuts[98] / median, 2),
        "ratio": round(median / statistics.median(times[BARE]), 3),
    }


@pytest.mark.parametrize("name", [*WAYS, *DIRECT])
def test_ratios(name: str, rootfs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = posix_spawn(str(rootfs / "true"))
    if name in DIRECT:
        fields, limit = DIRECT[name]
        plan = fastns.compile(spec(rootfs, **fields))
        times = interleaved({BARE: bare, name: runner(lambda args: fastns.run(args, spec=plan))})
    else:
        fields, options, limit = WAYS[name]
        with Template(spec(rootfs, **fields), **options) as template:
            times = interleaved({BARE: bare, name: runner(template.run)})
    found = figures(times, name)
    keep(name, found)
    with capsys.disabled():
        print("\n" + table("start to reaped, µs, static true", times, BARE))
        print(f"to reach: {name} / {BARE} <= {limit}: {found['ratio']}")
        print(f"to reach: its p99 / p50 <= 2.5: {found['p99/p50']}")


def test_batch(rootfs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Sandboxes per second, including their removal, compared with a loop of bare processes."""
    jobs = [["/true"]] * 5000
    bare = posix_spawn(str(rootfs / "true"))
    rates: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[[], object]) -> None:
        start = time.perf_counter()
        work()
        rates.setdefault(name, []).append(len(jobs) / (time.perf_counter() - start))

    with Template(spec(rootfs)) as template:
        for _ in range(3):
            timed(BARE, lambda: [bare() for _ in jobs])
            timed("concurrency 2, captured", lambda: template.run_batch(jobs, concurrency=2))
            for n in (2, 4, 8):
                timed(
                    f"concurrency {n}",
                    lambda n=n: template.run_batch(jobs, concurrency=n, capture_output=False),
                )
    base = statistics.median(rates[BARE])
    found = {
        name: {
            "per_second": [round(rate) for rate in values],
            "ratio": round(statistics.median(values) / base, 2),
        }
        for name, values in rates.items()
    }
    keep("run_batch of 5,000", found)
    with capsys.disabled():
        for name, values in found.items():
            print(f"\n{name:24} {values['per_second']} a second, {values['ratio']}", end="")
        best = max(entry["ratio"] for entry in found.values())  # type: ignore[type-var]
        print(f"\nto reach: run_batch of 5,000 / {BARE} loop >= 1.3: {best}")


def available() -> int:
    """Available memory in MiB."""
    with open("/proc/meminfo") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("MemAvail")) >> 10


def test_sustained(rootfs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Starts at full rate, with new network namespaces. Fails if any start fails; prints whether
    the rate dropped or memory was lost."""
    before = available()
    counts: list[int] = []
    failed = 0
    with Template(spec(rootfs, network="none")) as template:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            start, done = time.monotonic(), 0
            while time.monotonic() - start < 1:
                results = template.run_batch([["/true"]] * 50, concurrency=4, capture_output=False)
                failed += sum(getattr(result, "returncode", 1) != 0 for result in results)
                done += len(results)
            counts.append(round(done / (time.monotonic() - start)))
    deadline = time.monotonic() + 10
    while available() < before - 64 and time.monotonic() < deadline:
        time.sleep(0.1)
    steady = statistics.median(counts[-3:]) / statistics.median(counts[:3])
    keep(
        f"sustained {SECONDS} s, own network namespaces",
        {
            "per_second": counts,
            "failed": failed,
            "last/first": round(steady, 2),
            "memory_lost_mib": before - available(),
        },
    )
    with capsys.disabled():
        print(f"\n{SECONDS} s, sandboxes a second: {counts}")
        print(f"failed {failed}, memory lost {before - available()} MiB")
        print(f"to reach: last seconds / first >= 0.9: {steady:.2f}")
    assert failed == 0
