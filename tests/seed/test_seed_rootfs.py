"""The seed's root: steps 1 and 2 make a root with commands, step 3 adds files and a volume, and
newns.c mounts all of them. Tested with chroot, as in the seed, and with pivot_root.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import support
from seed.ways import Box, Outside, Shell, Way, isolated, with_user

import fastns
from fastns import Mount, SpawnError, Spec
from fastns.spec import MASKED_PATHS, READONLY_PATHS

SYSTEM_PATHS = {*MASKED_PATHS, *READONLY_PATHS}
COMMANDS = ["bash", "ls", "ps", "mount", "hostname", "ipcs"]
OWN = {
    "hosts": "1.1.1.1 egon_hostname\n",
    "hostname": "egon_hostname\n",
    "resolv.conf": "nameserver 202.110.110.213\n",
}
SEED_MOUNTS = [  # source, destination, type: the lines of newns.c, in its order
    ("proc", "/proc", "proc"),
    ("sysfs", "/sys", "sysfs"),
    ("none", "/tmp", "tmpfs"),
    ("udev", "/dev", "devtmpfs"),
    ("devpts", "/dev/pts", "devpts"),
    ("shm", "/dev/shm", "tmpfs"),
    ("tmpfs", "/run", "tmpfs"),
]


def allowed(mounts: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """These mounts, with a tmpfs instead of devtmpfs, which only root may mount, for users."""
    if support.is_root():
        return mounts
    return [(s, d, "tmpfs" if t == "devtmpfs" else t) for s, d, t in mounts]


@pytest.fixture
def own_root(public_dir: Path, way: Way) -> Iterator[Path]:
    """A root with the seed's commands, built from Python or from the command line."""
    dest = public_dir / "own-root"
    words = [*COMMANDS, "sh"]
    if way.name == "python":
        fastns.rootfs.build(dest, words)
    else:
        subprocess.run(
            [sys.executable, "-m", "fastns", "rootfs", "build", str(dest), *words],
            check=True,
            capture_output=True,
        )
    yield dest
    shutil.rmtree(dest)


@pytest.fixture
def conf(public_dir: Path) -> Iterator[Path]:
    """The seed's directory conf/, and its directory t1 with egon_test.txt."""
    path = public_dir / "conf"
    (path / "t1").mkdir(parents=True)
    for name, content in OWN.items():
        (path / name).write_text(content)
    (path / "t1" / "egon_test.txt").write_text("from the host\n")
    for each in (path, *path.rglob("*")):
        each.chmod(0o755 if each.is_dir() else 0o644)
    yield path
    shutil.rmtree(path)


def binds(conf: Path) -> list[tuple[str, str]]:
    return [*((str(conf / name), f"/etc/{name}") for name in OWN), (str(conf / "t1"), "/mnt")]


def mounted(listed: str) -> list[tuple[str, str, str]]:
    """The output of mount(8) as source, destination, type."""
    return [(words[0], words[2], words[4]) for words in map(str.split, listed.splitlines())]


# ---- steps 1 and 2 ----


def test_rootfs(way: Way, own_root: Path, outside: Outside) -> None:
    """The commands run, and only that root is visible."""
    box = Box(Spec(rootfs=own_root), ["--rootfs", str(own_root)])
    assert (own_root / "bin" / "sh").exists()
    with way.shell(box) as shell:
        for name in COMMANDS:
            path = shell.ask(f"command -v {name}").strip()
            assert (own_root / path.lstrip("/")).exists(), path
            assert shell.ask(f"{path} --version")
        assert shell.ask("hostname") == os.uname().nodename + "\n"
        assert len(shell.ask("ps aux").splitlines()) == 3
        assert set(shell.ask("ls -A /").split()) == set(os.listdir(own_root))
        assert shell.ask("ls -A /..") == shell.ask("ls -A /")
        assert shell.ask("ls -di /").split()[0] == str(own_root.stat().st_ino)
        assert "No such file" in shell.ask(f"ls {own_root}", status=2)
        outside.is_the_same(alive=1)
        assert shell.leave() == 0
    outside.is_the_same()
    assert way.run(box, "sh", "-c", "echo $0") == "sh\n"


# ---- step 3 ----


def test_own_files_and_a_volume(way: Way, bash_rootfs: Path, conf: Path, outside: Outside) -> None:
    """Bound files cover those of the root; a file written to the volume is on the host."""
    before = {name: (bash_rootfs / "etc" / name).read_bytes() for name in OWN}
    box = Box(
        Spec(
            rootfs=bash_rootfs,
            mounts=[Mount(d, source=s, options=["idmap"]) for s, d in binds(conf)],
        ),
        [
            *("--rootfs", str(bash_rootfs)),
            *(word for s, d in binds(conf) for word in ("-v", f"{s}:{d}:idmap")),
        ],
    )
    with way.shell(box) as shell:
        for name, content in OWN.items():
            assert shell.ask(f"cat /etc/{name}") == content
        assert shell.ask("ls /mnt") == "egon_test.txt\n"
        assert shell.ask("cat /mnt/egon_test.txt") == "from the host\n"
        shell.ask("echo from inside > /mnt/answer.txt")
        assert (conf / "t1" / "answer.txt").read_text() == "from inside\n"
        assert list((bash_rootfs / "mnt").iterdir()) == []
        outside.is_the_same(alive=1)
        assert shell.leave() == 0
    outside.is_the_same()
    assert {name: (bash_rootfs / "etc" / name).read_bytes() for name in OWN} == before
    assert way.run(box, "cat", "/etc/hosts") == OWN["hosts"]


# ---- newns.c ----


def check_inside(shell: Shell) -> None:
    """Everything that the seed checks in its container, except the mounts."""
    assert shell.ask("pwd") == "/\n"
    assert shell.ask("echo $$") == "1\n"
    assert shell.ask("hostname") == "container\n"
    assert len(shell.ask("ipcs -q").split("\n")) == 5  # title and headings, no queue
    processes = [row.split(maxsplit=10)[10] for row in shell.ask("ps aux").splitlines()[1:]]
    assert processes == ["bash -l", "ps aux"]
    for name, content in OWN.items():
        assert shell.ask(f"cat /etc/{name}") == content
    assert shell.ask("ls /mnt; cat /mnt/egon_test.txt") == "egon_test.txt\nfrom the host\n"
    assert isolated(shell.pid) == with_user("pid", "mount", "uts", "ipc", "network", "cgroup")


def check_outside(outside: Outside, root: Path) -> None:
    outside.is_the_same(alive=1)
    for name in ("proc", "sys", "tmp", "dev", "run", "mnt"):
        assert list((root / name).iterdir()) == [], name


@pytest.mark.parametrize("mode", ["chroot", "pivot_root"])
def test_newns(way: Way, bash_rootfs: Path, conf: Path, mode: str, outside: Outside) -> None:
    """The container has exactly the mounts that newns.c makes."""
    table = allowed(SEED_MOUNTS)
    spec = Spec(
        rootfs=bash_rootfs,
        root_mode=mode,
        hostname="container",
        default_mounts=False,
        mounts=[
            *(Mount(point, type=kind, source=source) for source, point, kind in table),
            *(Mount(target, source=source) for source, target in binds(conf)),
        ],
    )
    words = ["--rootfs", str(bash_rootfs), "--hostname", "container", "--no-default-mounts"]
    words += ["--chroot"] if mode == "chroot" else []
    for source, point, kind in table:
        words += ["--mount", f"type={kind},src={source},dst={point}"]
    for source, target in binds(conf):
        words += ["-v", f"{source}:{target}"]

    # chroot and pivot_root look the same inside. The steps show which one was used.
    steps = [step.partition("[")[0] for step in way.steps(Box(spec, words))]
    assert [step for step in steps if step in ("chroot", "pivot_root")] == [mode]
    with way.shell(Box(spec, words), "bash", "-l") as shell:
        check_inside(shell)
        assert set(shell.ask("ls -A /").split()) == set(os.listdir(bash_rootfs))
        found = mounted(shell.ask("mount"))
        assert found[0][1] == "/"
        assert found[1 : len(table) + 1] == table
        assert [point for _, point, _ in found[len(table) + 1 :]] == [d for _, d in binds(conf)]
        check_outside(outside, bash_rootfs)
        assert shell.leave() == 0
    outside.is_the_same()


def test_newns_by_default(way: Way, bash_rootfs: Path, conf: Path, outside: Outside) -> None:
    """The same container with the default mounts, pivot_root and a minimal /dev."""
    spec = Spec(
        rootfs=bash_rootfs,
        hostname="container",
        mounts=[Mount(target, source=source, options=["ro"]) for source, target in binds(conf)],
    )
    words = ["--rootfs", str(bash_rootfs), "--hostname", "container"]
    for source, target in binds(conf):
        words += ["-v", f"{source}:{target}:ro"]
    devices = [] if support.is_root() else ["null", "zero", "full", "random", "urandom", "tty"]
    kinds = {
        "/proc": "proc",
        "/sys": "sysfs",
        "/tmp": "tmpfs",
        "/run": "tmpfs",
        "/dev": "tmpfs",
        "/dev/pts": "devpts",
        "/dev/shm": "tmpfs",
    }
    points = ["/", *kinds]
    points[6:6] = [f"/dev/{name}" for name in devices]
    points += [target for _, target in binds(conf)]

    with way.shell(Box(spec, words), "bash", "-l") as shell:
        check_inside(shell)
        found = [row for row in mounted(shell.ask("mount")) if row[1] not in SYSTEM_PATHS]
        assert [point for _, point, _ in found] == points
        assert {point: kind for _, point, kind in found if point in kinds} == kinds
        assert " ".join(shell.ask("ls -A /dev").split()) == (
            "fd full null ptmx pts random shm stderr stdin stdout tty urandom zero"
        )
        assert "Read-only file system" in shell.ask("echo > /mnt/egon_test.txt", status=1)
        check_outside(outside, bash_rootfs)
        assert shell.leave() == 0
    outside.is_the_same()


def test_mounts_made_inside_stay_inside(way: Way, bash_rootfs: Path, outside: Outside) -> None:
    """In the seed they appear on the host, twice."""
    flags = ["--rootfs", str(bash_rootfs), "--cap-add", "SYS_ADMIN"]
    with way.shell(Box(Spec(rootfs=bash_rootfs, capabilities=["SYS_ADMIN"]), flags)) as shell:
        shell.ask("mount -t tmpfs none /mnt && touch /mnt/inside")
        assert shell.ask("ls /mnt") == "inside\n"
        assert mounted(shell.ask("mount"))[-1] == ("none", "/mnt", "tmpfs")
        check_outside(outside, bash_rootfs)
        assert shell.leave() == 0
    outside.is_the_same()


@pytest.mark.as_user
def test_devtmpfs_is_for_root(way: Way, bash_rootfs: Path) -> None:
    """For users the start fails with an error that names the step and its errno."""
    box = Box(
        Spec(rootfs=bash_rootfs, default_mounts=False, mounts=[Mount("/dev", type="devtmpfs")]),
        ["--rootfs", str(bash_rootfs), "--no-default-mounts", "--mount", "type=devtmpfs,dst=/dev"],
    )
    if way.name == "python":
        with pytest.raises(SpawnError, match=r"mount\[\d+\] /dev: .*\(EPERM\)") as caught:
            way.run(box, "true")
        assert caught.value.stage == "mount"
        step = f"mount[{caught.value.op_index}] /dev devtmpfs"
        assert step in fastns.compile(box.spec).describe()
    else:
        done = subprocess.run(way.argv(box, "true"), capture_output=True, text=True)
        assert done.returncode == 125
        assert done.stderr.startswith("fastns: mount[")
        assert " /dev: Operation not permitted (EPERM)\n" in done.stderr
