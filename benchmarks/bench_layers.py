"""The cost of each layer: a bare clone, then one more namespace or step at a time.

test_layer times each layer alone, with pytest-benchmark. To compare layers, use
test_layers_interleaved, which times all of them in turn: the machine's speed drifts between
benchmarks.
"""

from pathlib import Path
from typing import Any

import pytest
from contenders import KINDS, Contender, interleaved, posix_spawn, sandbox, template
from report import table

from fastns import Mount, Rlimit, Spec

Fields = dict[str, Any]
HOST = dict.fromkeys(KINDS, "host")
TMPFS = [Mount(f"/{name}", type="tmpfs") for name in ("tmp", "run", "dev")]
PROC = [Mount("/proc", type="proc")]
LIMITS: Fields = {"memory": "64m", "pids_limit": 64, "cpus": 1.5}
OPEN: Fields = {  # no default defences, but capabilities are always dropped
    "default_mounts": False,
    "masked_paths": (),
    "readonly_paths": (),
    "no_new_privileges": False,
    "seccomp": "unconfined",
    "allow_setid": True,
}
RANGE = "+ user namespace of a range"  # root's default
MASKS: Fields = {"masked_paths": None, "readonly_paths": None}
# The five default limits cannot be left out, so five more show what they cost.
FIVE_LIMITS: Fields = {
    "rlimits": [
        Rlimit(f"RLIMIT_{name}", -1, -1) for name in ("CPU", "FSIZE", "DATA", "RSS", "LOCKS")
    ]
}
LAYERS: dict[str, Fields] = {  # each adds to those above it; "new": a new namespace
    "clone and exec": {},
    "+ uts": {"new": "uts"},
    "+ ipc": {"new": "ipc"},
    "+ cgroup": {"new": "cgroup"},
    "+ pid": {"new": "pid"},
    "+ mount, root, pivot_root": {"new": "mount"},
    "+ proc": {"mounts": PROC},
    "+ three tmpfs": {"mounts": [*PROC, *TMPFS]},
    "+ default mounts": {"mounts": (), "default_mounts": True},
    "+ masked and read-only paths": MASKS,
    "+ no_new_privileges": {"no_new_privileges": True},
    "+ filter": {"seccomp": "default"},
    "+ no set-id files": {"allow_setid": False},
    "+ five more limits": FIVE_LIMITS,
    RANGE: {},
    "+ overlay": {"overlay": True},
    "+ network, lo up": {"new": "network"},
    "+ user": {"new": "user"},
    "+ memory, pids, cpus": LIMITS,
}
DEFENCES = (
    "+ masked and read-only paths",
    "+ no_new_privileges",
    "+ filter",
    "+ no set-id files",
    "+ five more limits",
    RANGE,
    "+ memory, pids, cpus",
)


def layer(name: str, rootfs: Path) -> Contender:
    """A contender with all layers up to `name`."""
    namespaces, fields = dict(HOST), dict(OPEN)
    for step, added in LAYERS.items():
        fields |= added
        if step == RANGE:
            del namespaces["user"]
        if "new" in fields:
            namespaces[fields.pop("new")] = "new"
        if step == name:
            break
    if namespaces["mount"] == "host":
        return sandbox(Spec(namespaces=namespaces, **fields), str(rootfs / "true"))
    return sandbox(Spec(rootfs=str(rootfs), namespaces=namespaces, **fields))


@pytest.mark.parametrize("name", LAYERS)
def test_layer(name: str, rootfs: Path, benchmark) -> None:  # type: ignore[no-untyped-def]
    benchmark.pedantic(layer(name, rootfs), rounds=100, warmup_rounds=10)


def test_layers_interleaved(rootfs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    times = interleaved({name: layer(name, rootfs) for name in LAYERS}, 200)
    with capsys.disabled():
        print("\n" + table("layers, µs, each including those above it", times, "clone and exec"))


def test_defences_of_a_template(rootfs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Time a template with one more defence at a time, in the host's network, and a bare start."""
    fields = OPEN | {"default_mounts": True, "network": "host", "namespaces": {"user": "host"}}
    contenders = {"os.posix_spawn": posix_spawn(str(rootfs / "true"))}
    contenders["Template, default mounts"] = template(Spec(rootfs=str(rootfs), **fields))
    for name in DEFENCES:
        fields |= LAYERS[name]
        if name == RANGE:
            del fields["namespaces"]
        contenders[name] = template(Spec(rootfs=str(rootfs), **fields))
    times = interleaved(contenders, 300)
    with capsys.disabled():
        print("\n" + table("a template's defences, µs", times, "os.posix_spawn"))


def test_binds_and_the_view(rootfs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Time default sandboxes with a plain bind, with an idmapped one, and without a rootfs."""

    def bind(*options: str) -> list[Mount]:
        # On an existing mount point: X-mount.mkdir would make the bind plain.
        return [Mount("/tmp", source=str(rootfs), options=["ro", *options])]

    contenders = {
        "os.posix_spawn": posix_spawn(str(rootfs / "true")),
        "rootfs, a plain bind": sandbox(Spec(rootfs=str(rootfs), mounts=bind("noidmap"))),
        "rootfs, its owners kept": sandbox(Spec(rootfs=str(rootfs), mounts=bind())),
        "no rootfs, a plain bind": sandbox(Spec(mounts=bind("noidmap")), "/tmp/true"),
    }
    times = interleaved(contenders, 300)
    with capsys.disabled():
        print("\n" + table("default sandboxes, µs", times, "os.posix_spawn"))
