"""User, section 2.6 of the seed: ids inside differ from those outside, one id can exist in two
namespaces at once, and an unprivileged user needs no privileged helper to map one id.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import support
from seed.ways import SECONDS, Box, Outside, Way, isolated

from fastns import IDMapping, Mount, Spec


def mapped(root: Path, user: str, outside_id: int, *mounts: Mount) -> Box:
    """A box in which root maps 2000 ids, starting at `outside_id`. A user maps only its own id."""
    words = ["--rootfs", str(root), "--user", user]
    words += [word for mount in mounts for word in ("-v", f"{mount.source}:{mount.destination}")]
    if not support.is_root():
        return Box(Spec(rootfs=root, user=user, mounts=mounts), words)
    ids = [IDMapping(0, outside_id, 2000)]
    map_words = ["--uidmap", f"0:{outside_id}:2000", "--gidmap", f"0:{outside_id}:2000"]
    return Box(
        Spec(rootfs=root, user=user, mounts=mounts, uid_mappings=ids, gid_mappings=ids),
        [*words, *map_words],
    )


def outside_ids(pid: int) -> tuple[int, int]:
    """A process's effective uid and gid, as the host sees them."""
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    return int(status["Uid"].split()[1]), int(status["Gid"].split()[1])


@pytest.fixture
def volume(public_dir: Path) -> Iterator[Path]:
    """A directory that uid 0 of the sandbox may write to."""
    path = public_dir / "volume"
    path.mkdir()
    if support.is_root():
        os.chown(path, 100000, 100000)
    yield path
    shutil.rmtree(path)


def test_uid_0_is_an_ordinary_uid_outside(
    way: Way, bash_rootfs: Path, volume: Path, probe: Path, outside: Outside
) -> None:
    ids = (100000, 100000) if support.is_root() else (os.geteuid(), os.getegid())
    mounts = (Mount("/mnt", source=volume), Mount("/tmp/probe", source=probe))
    with way.shell(mapped(bash_rootfs, "0:0", 100000, *mounts)) as shell:
        assert shell.ask("id -u; id -g") == "0\n0\n"
        seen = shell.report("/tmp/probe")
        assert (seen["uid"], seen["euid"], seen["gid"]) == (0, 0, 0)
        assert seen["uid_map"].split()[:2] == ["0", str(ids[0])]
        assert "user" in isolated(shell.pid)
        assert outside_ids(shell.pid) == ids
        assert 0 not in ids

        shell.ask("touch /mnt/made")
        made = (volume / "made").stat()
        assert (made.st_uid, made.st_gid) == ids
        assert shell.ask("stat -c %u:%g /mnt/made") == "0:0\n"
        # uid 0 inside has no rights over the files of the host's root
        assert "Read-only file system" in shell.ask("echo > /proc/sys/kernel/panic", status=1)
        outside.is_the_same(alive=1)
        assert shell.leave() == 0
    outside.is_the_same()


@pytest.mark.parametrize("user", ["0:0", "1000:1000"])
def test_one_id_in_two_namespaces(way: Way, bash_rootfs: Path, user: str, outside: Outside) -> None:
    """If the caller is root, the two ids are different users of the host."""
    number = int(user.partition(":")[0])
    with (
        way.shell(mapped(bash_rootfs, user, 100000)) as one,
        way.shell(mapped(bash_rootfs, user, 200000)) as two,
    ):
        assert one.ask("id -u") == two.ask("id -u") == f"{number}\n"
        namespaces = {os.readlink(f"/proc/{pid}/ns/user") for pid in ("self", one.pid, two.pid)}
        assert len(namespaces) == 3
        seen = [outside_ids(one.pid)[0], outside_ids(two.pid)[0]]
        if support.is_root():
            assert seen == [100000 + number, 200000 + number]
        else:
            assert seen == [os.geteuid()] * 2
        outside.is_the_same(alive=2)
        assert one.leave() == 0
        assert two.leave() == 0
    outside.is_the_same()


# ---- without root ----


def without_new_privileges(argv: list[str]) -> subprocess.CompletedProcess[str]:
    """Run with no_new_privs, which disables set-user-ID helpers."""
    return subprocess.run(
        ["setpriv", "--no-new-privs", *argv], capture_output=True, text=True, timeout=SECONDS
    )


@pytest.mark.as_user
def test_one_id_needs_no_helper(way: Way, bash_rootfs: Path, outside: Outside) -> None:
    box = Box(Spec(rootfs=bash_rootfs), ["--rootfs", str(bash_rootfs)])
    done = without_new_privileges(way.argv(box, "bash", "-c", "id -u; cat /proc/self/uid_map"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["0", "0", str(os.geteuid()), "1"]
    outside.is_the_same()


@pytest.mark.as_user
def test_a_range_needs_a_helper(way: Way, bash_rootfs: Path, outside: Outside) -> None:
    """The control: a range needs newuidmap, which fails if its set-user-ID bit has no effect."""
    ranges = [IDMapping(0, subordinate("/etc/subuid"), 10)]
    groups = [IDMapping(0, subordinate("/etc/subgid"), 10)]
    box = Box(
        Spec(rootfs=bash_rootfs, uid_mappings=ranges, gid_mappings=groups),
        [
            *("--rootfs", str(bash_rootfs)),
            *("--uidmap", f"0:{ranges[0].host_id}:10", "--gidmap", f"0:{groups[0].host_id}:10"),
        ],
    )
    assert way.run(box, "id", "-u") == "0\n"
    done = without_new_privileges(way.argv(box, "id", "-u"))
    assert done.returncode == (125 if way.name == "cli" else 1)
    assert "id_map" in done.stderr
    assert done.stdout == ""
    outside.is_the_same()


def subordinate(table: str) -> int:
    """The first id of this user's range in /etc/subuid or /etc/subgid."""
    name = pwd.getpwuid(os.getuid()).pw_name
    found = re.search(rf"^(?:{name}|{os.getuid()}):(\d+):\d+$", Path(table).read_text(), re.M)
    if found is None:
        support.skip_missing(f"a range of this user in {table} (tests/setup.sh makes it)")
    return int(found[1])
