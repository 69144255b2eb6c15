"""firejail, without a profile."""

import shutil
import tempfile
from pathlib import Path

from compare.rivals import _program

NAME = "firejail"
NOTE = "the host's root (Debian's package has no chroot), no cgroup namespace"


def find() -> str:
    return _program.find("firejail")


def version() -> str:
    return _program.first_line(find(), "--version")


class Rival(_program.Program):
    def __init__(self, root: Path) -> None:
        # Not in /tmp or /var/tmp: a private /tmp hides both.
        self.place = tempfile.TemporaryDirectory(prefix="fastns-firejail-", dir=Path.home())
        super().__init__(Path(self.place.name))
        for name in ("true", "probe"):
            shutil.copy(root / name, self.root)

    def argv(self, command: str) -> list[str]:
        options = ["--quiet", "--noprofile", "--private-tmp", "--ipc-namespace"]
        return [find(), *options, f"{self.root}{command}"]

    def close(self) -> None:
        self.place.cleanup()
