"""isolate, the sandbox of programming contests. Raced if it is in PATH."""

import subprocess
from pathlib import Path

from compare.rivals import _program

NAME = "isolate"
NOTE = "no uts or cgroup namespace, chroot; a user of its own; making its box is not timed"


def find() -> str:
    return _program.find("isolate")


def version() -> str:
    return _program.first_line(find(), "--version")


class Rival(_program.Program):
    def __init__(self, root: Path) -> None:
        super().__init__(root)
        subprocess.run([find(), "--init"], check=True, stdout=subprocess.DEVNULL)

    def argv(self, command: str) -> list[str]:
        # Replaces the default rules, which bind the host's /bin, /dev, /lib and /usr.
        rules = ["box=./box:rw", "proc=proc:fs", "tmp:tmp", f"root={self.root}"]
        mounts = ["--no-default-dirs", *(f"--dir={rule}" for rule in rules)]
        return [find(), "--silent", "--share-net", *mounts, "--run", "--", f"/root{command}"]

    def close(self) -> None:
        subprocess.run([find(), "--cleanup"], check=False)
