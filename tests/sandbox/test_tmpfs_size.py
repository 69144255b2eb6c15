"""Every tmpfs of a sandbox has a limit on bytes and on files, in every way of starting."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import support
from inside import runner

import fastns
from fastns import Mount, SpecError
from fastns import Spec as PlainSpec

WAYS = ["direct", "init", "user", "template", "ready", "user-template"]
PLACES = ("/tmp", "/run", "/dev/shm")
MiB = 1 << 20


def sizes(go: Any) -> dict[str, tuple[int, int]]:
    """Each tmpfs -> its bytes and inodes."""
    done = go(["/probe"], capture_output=True)
    devices = [os.fsdecode(op.target) for op in fastns.compile().ops if op.stage == "device"]
    found = {}
    for mount in support.parse_report(done.stdout)["mounts"]:
        options = dict(option.partition("=")[::2] for option in mount["super_options"])
        bound = mount["point"] in devices  # a device of the host, whose /dev may be a tmpfs
        if mount["type"] == "tmpfs" and not bound:
            size = int(options["size"].rstrip("k")) * 1024
            found[mount["point"]] = (size, int(options["nr_inodes"].rstrip("k")))
    return found


@pytest.mark.parametrize("way", WAYS)
def test_every_tmpfs_has_a_size(probe_rootfs: Path, way: str) -> None:
    masked: dict[str, Any] = {"masked_paths": []}  # a mask is a tmpfs too
    with runner(way, rootfs=probe_rootfs, **masked) as go:
        found = sizes(go)
    small = (64 * MiB, 16384)
    assert found == {
        "/tmp": (512 * MiB, 131072),
        "/run": small,
        "/dev": small,
        "/dev/shm": small,
    }
    with runner(way, rootfs=probe_rootfs, tmpfs_size="1m", **masked) as go:
        assert sizes(go) == dict.fromkeys(found, (MiB, 1024))


FILL = """
for place in {places}; do
    dd if=/dev/zero of=$place/big bs=64k count=200 2>&1 | grep -o 'No space left on device'
    stat -c %s $place/big
done
"""
BOMB = """
for place in {places}; do
    i=0; while true 2>/dev/null >$place/$i; do i=$((i+1)); [ $i -gt 5000 ] && break; done
    echo $i
done
"""


def written(root: Path, way: str, script: str, places: tuple[str, ...], **fields: Any) -> list[str]:
    with runner(way, rootfs=root, **fields) as go:
        text = script.format(places=" ".join(places))
        done = go(["sh", "-c", text], capture_output=True, text=True, timeout=60)
    return str(done.stdout).splitlines()


@pytest.fixture(scope="module")
def own_rootfs(busybox_rootfs: Path, public_dir: Path) -> Iterator[Path]:
    """A root owned by the tests' user, which makes a layer over it writable."""
    root = public_dir / "sized"
    shutil.copytree(busybox_rootfs, root, symlinks=True)
    yield root
    shutil.rmtree(root)


@pytest.mark.parametrize("way", WAYS)
def test_a_full_disk(own_rootfs: Path, way: str) -> None:
    """Each tmpfs, and the overlay's layer, takes no more bytes than the size."""
    places = (*PLACES, "/root")  # the last is the overlay's layer
    fields = {"tmpfs_size": "2m", "overlay": True}
    lines = written(own_rootfs, way, FILL, places, **fields)
    assert lines[0::2] == ["No space left on device"] * 4
    assert all(MiB < int(size) <= 2 * MiB for size in lines[1::2])


@pytest.mark.parametrize("way", WAYS)
def test_an_inode_bomb(own_rootfs: Path, way: str) -> None:
    """Each tmpfs, and the overlay's layer, has a limit on files too."""
    places = (*PLACES, "/root")
    lines = written(own_rootfs, way, BOMB, places, tmpfs_size="1m", overlay=True)
    assert len(lines) == 4
    assert all(900 < int(files) <= 1024 for files in lines), lines


def test_a_larger_tmpfs_holds_more(busybox_rootfs: Path) -> None:
    """Control for the tests above."""
    mounts = [Mount("/tmp", type="tmpfs", options=["size=64m"])]
    fields: dict[str, Any] = {"tmpfs_size": "1m", "mounts": mounts}
    assert written(busybox_rootfs, "direct", FILL, ("/tmp",), **fields) == [str(200 << 16)]
    assert written(busybox_rootfs, "direct", BOMB, ("/tmp",), **fields) == ["5001"]


def test_files_do_not_count_towards_the_size(busybox_rootfs: Path) -> None:
    """The size limits only what is written to them later."""
    files = {"/etc/hosts": b"x" * (3 * MiB)}
    spec = PlainSpec(rootfs=busybox_rootfs, files=files, tmpfs_size="1m")
    done = fastns.run(["wc", "-c", "/etc/hosts"], spec=spec, capture_output=True)
    assert done.stdout.split()[0] == b"%d" % (3 * MiB)
    script = "cat /dev/zero >>/etc/hosts; wc -c </etc/hosts"
    done = fastns.run(["sh", "-c", script], spec=spec, capture_output=True)
    assert int(done.stdout) <= 4 * MiB
    assert b"No space left" in done.stderr


def test_the_hosts_memory(busybox_rootfs: Path) -> None:
    """A full /tmp takes no more memory than its size, and all of it is freed."""

    def shared() -> int:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("Shmem:")) // 1024

    before = shared()
    spec = PlainSpec(rootfs=busybox_rootfs, tmpfs_size="16m")
    script = "cat /dev/zero >/tmp/x; grep Shmem: /proc/meminfo"
    done = fastns.run(["sh", "-c", script], spec=spec, capture_output=True, text=True)
    assert (
        int(done.stdout.split()[1]) // 1024 - before < 16 + 16
    )  # other processes may use some meanwhile


@pytest.mark.parametrize("value", [0, -1, "0", "1x", "50%", 1.5, True, [1]])
def test_an_invalid_size(value: Any) -> None:
    with pytest.raises(SpecError) as caught:
        PlainSpec(tmpfs_size=value)
    assert caught.value.field == "tmpfs_size"


def test_tmpfs_size_needs_a_mount_namespace() -> None:
    with pytest.raises(SpecError) as caught:
        PlainSpec(namespaces={"mount": "host"}, tmpfs_size="1m")
    assert caught.value.field == "tmpfs_size"
