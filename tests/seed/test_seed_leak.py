"""The seed's leak: if the host's mounts are shared, as under systemd, everything that the seed's
container mounts appears on the host, twice. The mounts of a fastns sandbox stay inside.

The tests work on any machine, because a new mount namespace with shared mounts stands for the host.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import support
from seed.ways import SECONDS, Box, Outside, Shell, Way

from fastns import Mount, Spec


@dataclass(frozen=True)
class SharedHost:
    """A mount namespace with shared mounts, which the process `pid` keeps alive."""

    pid: int

    def mounts(self) -> list[str]:
        return Path(f"/proc/{self.pid}/mountinfo").read_text().splitlines()

    def enter(self, *argv: str) -> list[str]:
        """The command that runs argv there."""
        ways_in = ["--mount"] if support.is_root() else ["--mount", "--user"]
        return ["nsenter", "--target", str(self.pid), *ways_in, "--preserve-credentials", *argv]


@pytest.fixture
def shared_host() -> Iterator[SharedHost]:
    as_user = [] if support.is_root() else ["--user", "--map-root-user"]
    with subprocess.Popen(
        ["unshare", "--mount", *as_user, "sh", "-c", "mount --make-rshared / && echo up && read _"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as keeper:
        assert keeper.stdout is not None
        assert keeper.stdout.readline() == b"up\n"
        host = SharedHost(keeper.pid)
        root = next(line for line in host.mounts() if line.split()[4] == "/")
        assert " shared:" in root
        yield host
        keeper.communicate(timeout=SECONDS)


def container(name: str, root: Path) -> Box:
    """The container of fs.c, without a rootfs, or that of newns.c, whose root mode is `name`."""
    if name == "fs":
        mount = Mount("/proc", type="proc")
        return Box(
            Spec(default_mounts=False, mounts=[mount], capabilities=["SYS_ADMIN"]),
            ["--no-default-mounts", "--mount", "type=proc,dst=/proc", "--cap-add", "SYS_ADMIN"],
        )
    words = ["--rootfs", str(root), *(["--chroot"] if name == "chroot" else [])]
    spec = Spec(rootfs=root, root_mode=name, capabilities=["SYS_ADMIN"])
    return Box(spec, [*words, "--cap-add", "SYS_ADMIN"])


@pytest.mark.parametrize("name", ["fs", "chroot", "pivot_root"])
def test_no_mount_appears_on_a_host_with_shared_mounts(
    way: Way, bash_rootfs: Path, shared_host: SharedHost, name: str, outside: Outside
) -> None:
    before = shared_host.mounts()
    argv = shared_host.enter(*way.argv(container(name, bash_rootfs), "bash"))
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        try:
            shell = Shell(process, process.pid, None)
            assert shell.ask("echo $$") == "1\n"
            # A mount that the command makes stays inside too.
            place = "/root" if name == "fs" else "/mnt"
            mounts = shell.ask(f"mount -t tmpfs none {place} && mount").splitlines()
            assert mounts[-1].split()[2] == place
            assert shared_host.mounts() == before
            outside.is_the_same(alive=1)
            assert shell.leave() == 0
        finally:
            process.terminate()
    assert shared_host.mounts() == before
    outside.is_the_same()


def test_the_seeds_mount_appears_on_the_host(bash_rootfs: Path, shared_host: SharedHost) -> None:
    """The control: like the seed's program, it mounts right after CLONE_NEWNS, without making
    mounts private."""
    before = shared_host.mounts()
    target = bash_rootfs / "mnt"
    script = f"mount -t tmpfs none {target}"
    argv = ["unshare", "--mount", "--propagation", "unchanged", "sh", "-c", script]
    subprocess.run(shared_host.enter(*argv), check=True, timeout=SECONDS)
    (leaked,) = set(shared_host.mounts()) - set(before)
    assert leaked.split()[4] == str(target)
