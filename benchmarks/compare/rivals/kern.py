"""kern, from the wheel kern-sandbox. Raced if it is in PATH."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import fastns
from compare.rivals import _program

NAME = "kern"
NOTE = "and a user namespace, a /dev, a masked /proc; cgroups disabled"


def find() -> str:
    return _program.find("kern")


def version() -> str:
    return _program.first_line(find(), "--version")


class Rival(_program.Program):
    def __init__(self, root: Path) -> None:
        self.place = tempfile.TemporaryDirectory(prefix="fastns-kern-")
        super().__init__(Path(self.place.name, "root"))
        copy_programs(root, self.root)
        self.name = f"fastns-{os.getpid()}"
        os.environ |= {"XDG_RUNTIME_DIR": self.place.name, "XDG_DATA_HOME": self.place.name}
        leave_cgroups_alone()

    def argv(self, command: str) -> list[str]:
        root = ["--rootfs", str(self.root), "--bind-rootfs", "--tmpfs", "/tmp"]
        options = [*root, "--net", "--quiet", "--allow-uncapped"]
        return [find(), "box", self.name, *options, "--", command]

    def close(self) -> None:
        self.place.cleanup()


def copy_programs(root: Path, to: Path) -> None:
    """Make a separate root, because kern writes to its root. Leaves out the files that other
    contenders put into /dev."""
    to.mkdir()
    for entry in root.iterdir():
        if entry.is_file():
            shutil.copy(entry, to)
        else:
            (to / entry.name).mkdir()


def leave_cgroups_alone() -> None:
    """Hide from kern, in this process only, what it sets limits with: cgroups and systemd-run.

    Where kern cannot set limits, it would try again in each start, and leave files in
    /sys/fs/cgroup.
    """
    fastns.unshare("mount")
    hidden = [["-t", "tmpfs", "-o", "ro", "tmpfs", "/sys/fs/cgroup"]]
    if runner := shutil.which("systemd-run"):
        hidden.append(["--bind", "/dev/null", runner])
    for arguments in [["--make-rprivate", "/"], *hidden]:
        subprocess.run(["mount", *arguments], check=True)
