"""Where the time goes: a bare clone, then one namespace or one step of the root more each time.

Each layer is a benchmark of its own for pytest-benchmark; test_layers_interleaved times them all in
turn in one loop, which is the comparison to trust.
"""

from pathlib import Path

import pytest
from contenders import KINDS, Contender, interleaved, sandbox
from report import table

from fastns import Mount, Spec

HOST = dict.fromkeys(KINDS, "host")
TMPFS = [Mount(f"/{name}", type="tmpfs") for name in ("tmp", "run", "dev")]
LAYERS = (
    "clone and exec",
    "+ uts",
    "+ ipc",
    "+ cgroup",
    "+ pid",
    "+ mount, root, pivot_root",
    "+ proc",
    "+ three tmpfs",
    "+ default mounts",
    "+ overlay",
    "+ network, lo up",
    "+ user",
)


def layer(name: str, rootfs: Path) -> Contender:
    """The contender that has all layers up to `name`."""
    index = LAYERS.index(name)
    namespaces = dict(HOST)
    for at, kind in ((1, "uts"), (2, "ipc"), (3, "cgroup"), (4, "pid"), (5, "mount")):
        if index >= at:
            namespaces[kind] = "new"
    for at, kind in ((10, "network"), (11, "user")):
        if index >= at:
            namespaces[kind] = "new"
    if index < 5:
        return sandbox(Spec(namespaces=namespaces), str(rootfs / "true"))
    mounts = [Mount("/proc", type="proc")] * (index >= 6) + TMPFS * (index >= 7)
    full = index >= 8
    spec = Spec(
        rootfs=str(rootfs),
        namespaces=namespaces,
        default_mounts=full,
        mounts=() if full else mounts,
        overlay=index >= 9,
    )
    return sandbox(spec)


@pytest.mark.parametrize("name", LAYERS)
def test_layer(name: str, rootfs: Path, benchmark) -> None:  # type: ignore[no-untyped-def]
    benchmark.pedantic(layer(name, rootfs), rounds=100, warmup_rounds=10)


def test_layers_interleaved(rootfs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    times = interleaved({name: layer(name, rootfs) for name in LAYERS}, 200)
    with capsys.disabled():
        print("\n" + table("layers, µs, each with all above it", times, LAYERS[0]))
