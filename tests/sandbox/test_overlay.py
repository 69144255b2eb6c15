"""overlay=True adds a layer that disappears with the sandbox. Also: mounts of type overlay."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import inside
import pytest
import support

import fastns
from fastns import Mount, SpawnError, Spec, SpecError


def tree(root: Path) -> dict[str, tuple[Any, ...]]:
    """Mode, owner, times and content of everything below, to detect any change."""
    found = {}
    for path in (root, *root.rglob("*")):
        st = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[str(path)] = (st.st_mode, st.st_uid, st.st_mtime_ns, st.st_ctime_ns, content)
    return found


def test_the_lower_layer_is_unchanged(bash_rootfs: Path) -> None:
    """Changes are visible inside, and gone afterwards."""
    before = tree(bash_rootfs)
    script = (
        "echo new > /new; mkdir -p /home/deep; echo more >> /etc/hosts; rm /etc/hostname;"
        " rm -r /usr/share 2>/dev/null || true; echo other > /bin/true;"
        " cat /new; tail -n1 /etc/hosts 2>/dev/null || cat /etc/hosts;"
        " [ ! -e /etc/hostname ]; [ -d /home/deep ]"
    )
    assert "more" in inside.shell(bash_rootfs, script, overlay=True)
    assert tree(bash_rootfs) == before
    names = inside.shell(bash_rootfs, "ls /", overlay=True).split()
    assert "new" not in names


def test_two_layers_are_separate(bash_rootfs: Path) -> None:
    with (
        inside.dialogue(bash_rootfs, overlay=True) as one,
        inside.dialogue(bash_rootfs, overlay=True) as two,
    ):
        assert one("echo one > /mark; echo one > /etc/hosts; cat /mark") == "one\n"
        assert two("cat /mark") != "one\n"
        assert two("cat /etc/hosts") == (bash_rootfs / "etc" / "hosts").read_text()
        assert two("echo two > /mark; cat /mark") == "two\n"
        assert one("cat /mark /etc/hosts") == "one\none\n"


def test_the_parts_of_an_overlay_are_out_of_reach(bash_rootfs: Path) -> None:
    """The upper directory is not in any mount of the sandbox."""
    out = inside.shell(bash_rootfs, "mount; echo x > /seen; ls /", overlay=True)
    assert sum("overlay" in line for line in out.splitlines()) == 1
    for name in ("upper", "lower", "work", "scratch"):
        assert name not in out.splitlines()


def test_read_only_over_an_overlay(bash_rootfs: Path) -> None:
    """The root becomes read-only only after mount points are made in it."""
    mounts = [Mount("/made/for/this", type="tmpfs")]
    fields: dict[str, Any] = {"overlay": True, "read_only": True, "mounts": mounts}
    out = inside.shell(bash_rootfs, "echo x > /made/for/this/f; cat /made/for/this/f", **fields)
    assert out == "x\n"
    for script in ("echo x > /new", "echo x >> /etc/hosts", "mkdir /made/more"):
        with pytest.raises(ChildProcessError, match="Read-only"):
            inside.shell(bash_rootfs, script, **fields)
    assert not (bash_rootfs / "made").exists()


@pytest.mark.parametrize("user", ["0:0", "5:6"])
def test_with_a_range_of_ids(probe_rootfs: Path, user: str) -> None:
    """The layer's directories must belong to an id of the range to be writable inside."""
    spec = Spec(rootfs=probe_rootfs, overlay=True, user=user, **inside.ranges())
    assert fastns.run(["/true"], spec=spec).returncode == 0
    made = fastns.run(["/probe", "--write", "/tmp/x", "x"], spec=spec)
    assert made.returncode == 0


def test_with_one_id(probe_rootfs: Path) -> None:
    """An unprivileged caller's sandboxes have one id by default."""
    spec = Spec(rootfs=probe_rootfs, overlay=True, namespaces={"user": "new"})
    assert fastns.run(["/probe", "--write", "/new", "x"], spec=spec).returncode == 0
    assert not (probe_rootfs / "new").exists()


def test_with_chroot_and_init(bash_rootfs: Path) -> None:
    """An overlay works with chroot and with init."""
    for fields in ({"root_mode": "chroot"}, {"init": True}):
        out = inside.shell(bash_rootfs, "echo x > /new; cat /new", overlay=True, **fields)
        assert out == "x\n"
    assert not (bash_rootfs / "new").exists()


def test_many_at_once(probe_rootfs: Path) -> None:
    """Concurrent sandboxes have separate layers, and the root does not change."""
    before = tree(probe_rootfs)
    jobs = [["/probe", "--write", "/same", str(n)] for n in range(50)]
    done = fastns.run_batch(jobs, spec=Spec(rootfs=probe_rootfs, overlay=True), concurrency=8)
    assert [getattr(each, "returncode", each) for each in done] == [0] * 50
    assert tree(probe_rootfs) == before


def test_overlay_needs_a_rootfs() -> None:
    with pytest.raises(SpecError, match="rootfs") as caught:
        Spec(overlay=True)
    assert caught.value.field == "overlay"


# ---- mounts of type overlay ----


@pytest.fixture
def base(public_dir: Path) -> Iterator[Path]:
    path = public_dir / "layers"
    for name in ("lower", "second", "upper", "work"):
        (path / name).mkdir(parents=True)
    (path / "lower" / "file").write_text("below")
    (path / "second" / "file").write_text("hidden")
    (path / "second" / "more").write_text("second")
    yield path
    shutil.rmtree(path)


def layers(base: Path, *names: str, more: tuple[str, ...] = ()) -> Mount:
    lower = "lowerdir=" + ":".join(str(base / name) for name in names)
    return Mount("/mnt", type="overlay", options=[lower, *more])


def test_layers_read_only(bash_rootfs: Path, base: Path) -> None:
    """Without an upper directory nothing can be written."""
    mounts = [layers(base, "lower", "second")]
    assert inside.shell(bash_rootfs, "cat /mnt/file /mnt/more", mounts=mounts) == "belowsecond"
    with pytest.raises(ChildProcessError, match="Read-only"):
        inside.shell(bash_rootfs, "echo x > /mnt/new", mounts=mounts)


def test_an_upper_layer_of_the_caller(bash_rootfs: Path, base: Path) -> None:
    """The layer's files have the host's owners. With a range of ids, root's files would belong to
    nobody inside, so root's sandbox needs the host's ids."""
    fields: dict[str, Any] = {"namespaces": {"user": "host"}} if support.is_root() else {}
    more = [f"upperdir={base / 'upper'}", f"workdir={base / 'work'}"]
    if not support.is_root():
        more.append("userxattr")
    mounts = [layers(base, "lower", more=tuple(more))]
    script = "cat /mnt/file; echo above > /mnt/new; echo changed > /mnt/file"
    assert inside.shell(bash_rootfs, script, mounts=mounts, **fields) == "below"
    assert (base / "upper" / "new").read_text() == "above\n"
    assert (base / "lower" / "file").read_text() == "below"
    assert inside.shell(bash_rootfs, "cat /mnt/file", mounts=mounts, **fields) == "changed\n"
    _make_removable(base / "work")


def _make_removable(work: Path) -> None:
    for path in work.rglob("*"):  # overlayfs leaves a directory of mode 0 there
        os.chmod(path, 0o700)


def test_a_missing_layer(probe_rootfs: Path, base: Path) -> None:
    """The error points at the overlay's mount."""
    plan = fastns.compile(Spec(rootfs=probe_rootfs, mounts=[layers(base, "nothing")]))
    with pytest.raises(SpawnError) as caught:
        fastns.run(["/true"], spec=plan)
    exc = caught.value
    assert (exc.stage, exc.errno, exc.path) == ("mount", errno.ENOENT, "/mnt")
    assert plan.ops[exc.op_index].type == b"overlay"


def test_lowerdir_is_needed() -> None:
    with pytest.raises(SpecError, match="lowerdir="):
        Mount("/mnt", type="overlay", options=["upperdir=/a", "workdir=/b"])
