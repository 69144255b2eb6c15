"""What of /proc and /sys a sandbox cannot see or change, in every way one is started."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import support
from hostile import Swapping
from inside import runner

import fastns
from fastns import Mount, SpawnError, Spec
from fastns.spec import MASKED_PATHS, READONLY_PATHS

WAYS = ("direct", "init", "template", "parked", "overlay", "layers")
LOOK = r"""
for path in "$@"; do
    if [ -d "$path" ]; then echo "$path: $(ls -A "$path" | wc -l)"
    elif [ -e "$path" ]; then echo "$path: $( (wc -c <"$path") 2>/dev/null || echo refused)"
    else echo "$path: missing"; fi
done
"""


def started(way: str, **fields: Any) -> Any:
    """As runner(), with two more ways: a layer over the root, directly and from a template."""
    if way in ("overlay", "layers"):
        return runner("direct" if way == "overlay" else "template", overlay=True, **fields)
    return runner(way, **fields)


def look(run: Any, paths: tuple[str, ...]) -> dict[str, str]:
    done = run(["sh", "-c", LOOK, "sh", *paths], capture_output=True, text=True)
    return dict(line.split(": ") for line in done.stdout.splitlines())


@pytest.mark.parametrize("way", WAYS)
def test_masked_paths_are_empty(way: str, bash_rootfs: Path) -> None:
    with started(way, rootfs=bash_rootfs) as run:
        found = look(run, MASKED_PATHS)
    assert set(found) == set(MASKED_PATHS)
    assert set(found.values()) <= {"0", "missing"}, found
    there = {path for path in MASKED_PATHS if os.path.exists(path)}
    assert {path for path, size in found.items() if size == "0"} == there
    # The control: some of them have something to show.
    with started(way, rootfs=bash_rootfs, masked_paths=[]) as run:
        shown = look(run, MASKED_PATHS)
    assert any(size not in ("0", "missing", "refused") for size in shown.values()), shown


@pytest.mark.parametrize("way", WAYS)
def test_read_only_paths_cannot_be_written(way: str, bash_rootfs: Path) -> None:
    """Not by uid 0 either. A sysctl of its own network namespace can be tried without harm; in a
    user namespace it takes a capability."""
    write = ["sh", "-c", "echo 99 >/proc/sys/net/ipv4/ip_default_ttl"]
    fields = {"rootfs": bash_rootfs, "capabilities": ["NET_ADMIN"]}
    with started(way, **fields) as run:
        done = run(write, capture_output=True, text=True)
        assert done.returncode != 0
        assert "Read-only file system" in done.stderr
        assert run(["sh", "-c", "echo 1 >/proc/self/oom_score_adj"]).returncode == 0
        mounts = run(["cat", "/proc/mounts"], capture_output=True, text=True).stdout
        points = {line.split()[1]: line.split()[3].split(",")[0] for line in mounts.splitlines()}
        for path in READONLY_PATHS:
            assert not os.path.exists(path) or points[path] == "ro"
        # Taking it away needs what nobody has here.
        for command in ("umount /proc/sys", "mount -o remount,rw /proc/sys", "umount /proc"):
            assert run(["sh", "-c", command], capture_output=True).returncode != 0
    with started(way, **fields, readonly_paths=[]) as run:
        assert run(write, capture_output=True).returncode == 0


@pytest.mark.parametrize("way", WAYS)
def test_paths_of_ones_own(way: str, bash_rootfs: Path) -> None:
    fields = {
        "rootfs": bash_rootfs,
        "masked_paths": ["/etc", "/etc/nothing", "/nothing/at/all"],
        "readonly_paths": ["/tmp", "/dev/shm"],
    }
    script = "ls /etc | wc -l; for d in /tmp /dev/shm /run; do (: >$d/x) 2>&1 && echo $d; done"
    with started(way, **fields) as run:
        done = run(["/bin/sh", "-c", script], capture_output=True, text=True)
    assert [line for line in done.stdout.splitlines() if ":" not in line] == ["0", "/run"]


def test_none_without_the_default_mounts(bash_rootfs: Path) -> None:
    spec = Spec(rootfs=bash_rootfs, default_mounts=False, mounts=[Mount("/proc", type="proc")])
    done = fastns.run(["cat", "/proc/mounts"], spec=spec, capture_output=True, text=True)
    assert [line.split()[1] for line in done.stdout.splitlines()][1:] == ["/proc"]


def test_with_the_namespaces_of_the_host(bash_rootfs: Path) -> None:
    """/proc and /sys are the host's own, bound."""
    spec = Spec(rootfs=bash_rootfs, namespaces={"pid": "host"}, network="host")
    with runner("direct", rootfs=bash_rootfs, namespaces={"pid": "host"}, network="host") as run:
        assert set(look(run, MASKED_PATHS).values()) <= {"0", "missing"}
    script = "echo 0 >/proc/sys/kernel/core_uses_pid"
    done = fastns.run(["sh", "-c", script], spec=spec, capture_output=True, text=True)
    assert "Read-only file system" in done.stderr


def test_a_proc_that_is_not_one_is_refused(bash_rootfs: Path, tmp_path: Path) -> None:
    """Its directory swapped for another between the mount and the masks: they would miss it."""
    root = support.copy_tree(bash_rootfs, tmp_path / "root")
    (root / "other").mkdir()
    spec = Spec(rootfs=root, network="host")
    seen = {"ran": 0, "refused": 0}
    with Swapping(root / "proc", root / "other"):
        for _ in range(500):
            try:
                done = fastns.run(
                    ["sh", "-c", "cat /proc/keys /other/keys 2>/dev/null | wc -c"],
                    spec=spec,
                    capture_output=True,
                    text=True,
                )
            except SpawnError as exc:
                assert exc.stage in ("masked_paths", "readonly_paths"), exc
                seen["refused"] += 1
                continue
            assert done.stdout == "0\n"
            seen["ran"] += 1
    assert seen["ran"] > 0, seen


def test_it_is_refused_to_mask_without_a_mount_namespace_of_its_own() -> None:
    for field in ("masked_paths", "readonly_paths"):
        with pytest.raises(fastns.SpecError, match=field):
            Spec(namespaces={"mount": "host"}, **{field: ["/usr"]})  # type: ignore[arg-type]


def test_the_flag(bash_rootfs: Path) -> None:
    command = [sys.executable, "-m", "fastns", "run", "--cap-add", "NET_ADMIN"]
    command += ["--rootfs", str(bash_rootfs)]
    write = ["sh", "-c", "echo 99 >/proc/sys/net/ipv4/ip_default_ttl"]
    assert subprocess.run([*command, *write], capture_output=True).returncode != 0
    opened = [*command, "--security-opt", "systempaths=unconfined", *write]
    assert subprocess.run(opened, capture_output=True).returncode == 0
