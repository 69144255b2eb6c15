"""Where the microseconds go: a bare process, then one thing more each time, by direct spawns."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import statistics

from bench_layers import HOST
from contenders import Contender, interleaved, posix_spawn, sandbox

from fastns import Mount, Spec, Template

MOUNTS = [Mount("/proc", type="proc"), Mount("/tmp", type="tmpfs")]


def measure(root: Path, rounds: int) -> dict[str, float]:
    """Medians in µs, each with all above it; the last is another way to the same."""
    true = str(root / "true")

    def with_new(*kinds: str) -> Contender:
        return sandbox(Spec(namespaces=HOST | dict.fromkeys(kinds, "new")), true)

    five: dict[str, Any] = {"namespaces": {"network": "host", "user": "host"}}
    bare_root = Spec(rootfs=str(root), default_mounts=False, **five)
    full = Spec(rootfs=str(root), default_mounts=False, mounts=MOUNTS, **five)
    contenders = {
        "a bare process": posix_spawn(true),
        "fastns, nothing isolated": with_new(),
        "+ uts": with_new("uts"),
        "+ ipc": with_new("uts", "ipc"),
        "+ cgroup": with_new("uts", "ipc", "cgroup"),
        "+ pid": with_new("uts", "ipc", "cgroup", "pid"),
        "+ mount, own root": sandbox(bare_root),
        "+ /proc and /tmp": sandbox(full),
    }
    with Template(full, parked=0) as made:  # nothing done before it is measured
        contenders["the same by Template.run"] = lambda: made.run(["/true"]) and None
        times = interleaved(contenders, rounds)
    return {name: round(statistics.median(values) * 1e6, 1) for name, values in times.items()}
