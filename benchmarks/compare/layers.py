"""Times a bare process, and direct starts that each isolate one thing more than the last."""

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
    """Medians in µs. Each start also isolates what those above do; the last is from a template."""
    true = str(root / "true")

    host: dict[str, Any] = {"network": "host", "user": "host"}

    def with_new(*kinds: str) -> Contender:
        namespaces = HOST | dict.fromkeys(kinds, "new")
        return sandbox(Spec(namespaces=namespaces, seccomp="unconfined"), true)

    def rooted(**fields: Any) -> Contender:
        fields = {"default_mounts": False, "namespaces": host, "seccomp": "unconfined", **fields}
        return sandbox(Spec(rootfs=str(root), **fields))

    contenders = {
        "a bare process": posix_spawn(true),
        "fastns, nothing isolated": with_new(),
        "+ uts": with_new("uts"),
        "+ ipc": with_new("uts", "ipc"),
        "+ cgroup": with_new("uts", "ipc", "cgroup"),
        "+ pid": with_new("uts", "ipc", "cgroup", "pid"),
        "+ mount, own root": rooted(),
        "+ /proc and /tmp": rooted(mounts=MOUNTS),
        "+ filter": rooted(mounts=MOUNTS, seccomp="default"),
        "+ /sys, /dev, /run, masked paths": rooted(default_mounts=True, seccomp="default"),
        "+ user": sandbox(Spec(rootfs=str(root), network="host")),
    }
    # ready=0: a ready sandbox would do a part of its start before it is timed.
    with Template(Spec(rootfs=str(root), network="host"), ready=0) as made:
        contenders["the same by Template.run"] = lambda: made.run(["/true"]) and None
        times = interleaved(contenders, rounds)
    return {name: round(statistics.median(values) * 1e6, 1) for name, values in times.items()}
