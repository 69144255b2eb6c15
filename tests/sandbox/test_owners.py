"""Binds in root's sandboxes keep the owners of files if the file system can be idmapped. Otherwise,
and with noidmap, root's files belong to nobody. Dry runs and errors say which."""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from inside import WAYS, runner
from processes import script

import fastns
from fastns import Mount, SpawnError, Spec, Template

pytestmark = pytest.mark.as_root


@pytest.fixture
def volume(public_dir: Path) -> Iterator[Path]:
    """A directory with a file that only root may read, and one that only root may write."""
    path = public_dir / "owners"
    for name, mode in (("closed", 0o700), ("shared", 0o755)):
        (path / name).mkdir(parents=True)
        (path / name / "file").write_text("of root\n")
        (path / name).chmod(mode)
    yield path
    shutil.rmtree(path)


def sh(run: Any, code: str) -> tuple[int, str]:
    done = run(["sh", "-c", code], capture_output=True, text=True, stdin=fastns.DEVNULL)
    return done.returncode, done.stdout + done.stderr


LIST = "ls /mnt; stat -c '%u %g' /mnt/file"
WRITE = "echo made >/mnt/made && mkdir /mnt/dir && stat -c '%u %g' /mnt/made /mnt/dir"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("more", [{}, {"overlay": True}, {"capabilities": ["SYS_ADMIN"]}], ids=str)
def test_a_volume_keeps_its_owners(
    busybox_rootfs: Path, volume: Path, way: str, more: dict[str, Any]
) -> None:
    for options in ([], ["rbind"], ["idmap"]):
        mounts = [Mount("/mnt", source=volume / "closed", options=options)]
        with runner(way, rootfs=busybox_rootfs, mounts=mounts, **more) as run:
            assert sh(run, LIST) == (0, "file\n0 0\n")
        mounts = [Mount("/mnt", source=volume / "shared", options=options)]
        with runner(way, rootfs=busybox_rootfs, mounts=mounts, **more) as run:
            assert sh(run, WRITE) == (0, "0 0\n0 0\n")
        made = volume / "shared" / "made"
        assert (made.stat().st_uid, made.stat().st_gid) == (0, 0)
        made.unlink()
        (volume / "shared" / "dir").rmdir()


@pytest.mark.parametrize("way", WAYS)
def test_noidmap_makes_roots_files_nobodys(busybox_rootfs: Path, volume: Path, way: str) -> None:
    """Control for the test above."""
    for name, code in (("closed", LIST), ("shared", WRITE)):
        mounts = [Mount("/mnt", source=volume / name, options=["rbind", "noidmap"])]
        with runner(way, rootfs=busybox_rootfs, mounts=mounts) as run:
            status, seen = sh(run, code)
            assert status != 0
            assert "Permission denied" in seen
            assert sh(run, "stat -c %u /mnt") == (0, "65534\n")


@pytest.mark.parametrize("way", WAYS)
def test_without_a_rootfs_only_the_volume_keeps_its_owners(volume: Path, way: str) -> None:
    """Other files of the host belong to nobody, and so does the volume by its host path."""
    mounts = [Mount("/mnt", source=volume / "closed")]
    with runner(way, mounts=mounts) as run:
        assert sh(run, "cat /mnt/file") == (0, "of root\n")
        assert sh(run, f"cat {volume}/closed/file")[0] != 0
        assert sh(run, "cat /etc/shadow")[0] != 0


def cli(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fastns", "run", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_on_the_command_line(busybox_rootfs: Path, volume: Path) -> None:
    """-v keeps owners, and has the options idmap and noidmap."""
    box = ("--rootfs", busybox_rootfs)
    closed, shared = volume / "closed", volume / "shared"
    done = cli(*box, "-v", f"{closed}:/mnt", "--", "ls", "/mnt")
    assert (done.returncode, done.stdout) == (0, "file\n")
    assert cli(*box, "-v", f"{shared}:/mnt", "--", "touch", "/mnt/made").returncode == 0
    assert (shared / "made").stat().st_uid == 0
    assert cli(*box, "-v", f"{closed}:/mnt:noidmap", "--", "ls", "/mnt").returncode == 1
    assert cli(*box, "-v", f"{closed}:/mnt:ro", "--", "touch", "/mnt/x").returncode == 1
    assert cli(*box, "-v", f"{closed}:/mnt:ro,idmap", "--", "ls", "/mnt").returncode == 0
    done = cli(*box, "-v", f"{closed}:/mnt:idmap,noidmap", "--", "ls", "/mnt")
    assert done.returncode == 125
    assert "'idmap' and 'noidmap' cannot be combined" in done.stderr


# ---- whether a bind keeps owners or is plain ----


def steps(*mounts: Mount, **fields: Any) -> list[str]:
    """The lines of a dry run about binds at /mnt and below."""
    plan = fastns.compile(Spec(mounts=mounts, **fields))
    return [line.partition(" ")[2] for line in plan.describe() if "] /mnt" in line]


def test_a_dry_run_says_whether_owners_are_kept(busybox_rootfs: Path, volume: Path) -> None:
    box = {"rootfs": busybox_rootfs}
    kept = steps(Mount("/mnt", source=volume), **box)
    assert kept == [f"/mnt bind from {volume} (owners kept)"]
    (plain,) = steps(Mount("/mnt", source=volume, options=["noidmap"]), **box)
    assert plain.endswith(" noidmap (plain: it has noidmap)")
    (proc,) = steps(Mount("/mnt", source="/proc/sys/kernel", options=["rbind"]), **box)
    assert proc.endswith(" (plain: proc cannot be idmapped)")
    (fails,) = steps(Mount("/mnt", source="/proc/sys/kernel", options=["idmap"]), **box)
    assert fails.endswith(" (fails: proc cannot be idmapped)")
    hosts = steps(Mount("/mnt", source=volume), namespaces={"user": "host"})
    assert hosts == [f"/mnt bind from {volume}"]
    done = cli("--dry-run", "-v", f"{volume}:/mnt", "--", "true")
    assert f"/mnt bind from {volume} rbind (owners kept)" in done.stdout


def test_a_missing_target_is_made_in_a_plain_bind(busybox_rootfs: Path, volume: Path) -> None:
    """The caller makes the target, and in an idmapped tree the caller is nobody."""
    mounts = (
        Mount("/mnt", source=volume),
        Mount("/mnt/a", source=volume / "shared", options=["X-mount.mkdir"]),
        Mount("/mnt/a/b", type="tmpfs", options=["X-mount.mkdir"]),
    )
    lines = steps(*mounts, rootfs=busybox_rootfs)
    assert [line.partition(" (")[2] for line in lines[:2]] == [
        "plain: /mnt/a is made in it)", "plain: /mnt/a/b is made in it)",
    ]  # fmt: skip
    with runner("direct", rootfs=busybox_rootfs, mounts=mounts) as run:
        assert sh(run, "touch /mnt/a/b/x && ls /mnt/a/b") == (0, "x\n")
    assert (volume / "shared" / "b").stat().st_uid == 0


PLAIN = """
import ctypes, pathlib, subprocess
assert ctypes.CDLL(None).unshare(0x20000) == 0
root, base, way = sys.argv[1:]
subprocess.run(["mount", "--make-rprivate", "/"], check=True)
subprocess.run(["mount", "-t", "ramfs", "ramfs", f"{base}/closed"], check=True)
subprocess.run(["chmod", "700", f"{base}/closed"], check=True)
def attempt(source, code, **fields):
    mounts = [fastns.Mount("/mnt", source=source, options=["rbind"])]
    spec = fastns.Spec(rootfs=root, init=way == "init", mounts=mounts, **fields)
    note = [line for line in fastns.compile(spec).describe() if "/mnt bind" in line][0]
    print(note.partition("rbind ")[2])
    template = fastns.Template(spec) if way == "template" else None
    more = {} if template else {"spec": spec}
    try:
        done = (template or fastns).run(["sh", "-c", code], capture_output=True, text=True, **more)
        print(done.returncode, done.stdout.strip(), done.stderr.strip())
    except fastns.SpawnError as error:
        print(error.stage, error.errno, error.hint)
    if template:
        template.close()
attempt(f"{base}/closed", "ls /mnt; stat -c %u /mnt")
attempt(base, "stat -c %u /mnt /mnt/shared")
attempt(f"{base}/closed", "true", cwd="/mnt")
"""


@pytest.mark.parametrize("way", ["direct", "init", "template"])
def test_a_volume_that_cannot_be_idmapped(busybox_rootfs: Path, volume: Path, way: str) -> None:
    """A bind of a ramfs is plain. A ramfs below a volume makes the whole bind plain."""
    out = script(PLAIN, str(busybox_rootfs), str(volume), way).splitlines()
    assert out[:4] == [
        "(plain: ramfs cannot be idmapped)",
        "0 65534 ls: can't open '/mnt': Permission denied",
        f"(plain: ramfs at {volume}/closed cannot be idmapped)",
        "0 65534",
    ]
    assert out[4:6] == ["65534 ", "(plain: ramfs cannot be idmapped)"]
    words = "the bind at /mnt is plain (ramfs cannot be idmapped), so uid 0 inside has no access"
    assert out[6].startswith(f"chdir {errno.EACCES} {words}")


IDMAPPED = """
import ctypes, struct, subprocess
libc = ctypes.CDLL(None)
root, base = sys.argv[1:]
assert libc.unshare(0x20000) == 0
subprocess.run(["mount", "--make-rprivate", "/"], check=True)
tree = libc.syscall(428, -100, f"{base}/shared".encode(), 1)  # open_tree, OPEN_TREE_CLONE
space = fastns._core.user_namespace((300000, 300000, 65536), b"")
attr = struct.pack("QQQQ", 0x100000, 0, 0, space)  # MOUNT_ATTR_IDMAP
assert libc.syscall(442, tree, b"", 0x1000, attr, 32) == 0  # mount_setattr, AT_EMPTY_PATH
assert libc.syscall(429, tree, b"", -100, f"{base}/closed".encode(), 4) == 0  # move_mount
os.close(tree)
for options in (["rbind"], ["rbind", "idmap"]):
    mount = fastns.Mount("/mnt", source=f"{base}/closed", options=options)
    plan = fastns.compile(fastns.Spec(rootfs=root, mounts=[mount]))
    print([line for line in plan.describe() if "/mnt bind" in line][0].partition(" (")[2])
    words = ["stat", "-c", "%u", "/mnt"]
    try:
        print(fastns.run(words, spec=plan, capture_output=True, text=True).stdout.strip())
    except fastns.SpawnError as error:
        print(error.stage, error.errno)
"""


def test_a_volume_that_is_idmapped_already(busybox_rootfs: Path, volume: Path) -> None:
    """The volume's bind is plain. With idmap the start fails."""
    out = script(IDMAPPED, str(busybox_rootfs), str(volume)).splitlines()
    why = "it is already idmapped, or belongs to another user namespace)"
    assert out == [f"plain: {why}", "65534", f"fails: {why}", f"mount {errno.EPERM}"]


@pytest.mark.parametrize("way", ["direct", "template"])
@pytest.mark.parametrize("cwd", ["/mnt", "/mnt/deep"])
def test_an_error_says_that_a_bind_is_plain(
    busybox_rootfs: Path, volume: Path, way: str, cwd: str
) -> None:
    (volume / "closed" / "deep").mkdir()
    for options, words in ((["noidmap"], "the bind at /mnt is plain (it has noidmap)"), ([], "")):
        mounts = [Mount("/mnt", source=volume / "closed", options=options)]
        user = "0:0" if words else "7:7"  # the control: uid 7 may not enter it in any case
        spec = Spec(rootfs=busybox_rootfs, mounts=mounts, cwd=cwd, user=user)
        with Template(spec) as template, pytest.raises(SpawnError) as caught:
            _ = template.run(["true"]) if way == "template" else fastns.run(["true"], spec=spec)
        error = caught.value
        assert (error.stage, error.errno) == ("chdir", errno.EACCES)
        assert (error.hint or "").startswith(words)
        assert bool(words) == ("the bind" in (error.hint or ""))
