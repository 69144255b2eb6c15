"""crun, the OCI runtime written in C that podman uses."""

import os
import subprocess
import tempfile
from pathlib import Path

import fastns
from compare.rivals import _oci, _program

NAME = "crun"
NOTE = "keeps no capabilities; cgroups disabled"


def find() -> str:
    return _program.find("crun")


def version() -> str:
    return _program.first_line(find(), "--version")


class Rival(_program.Program):
    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.place = tempfile.TemporaryDirectory(prefix="fastns-crun-")
        self.name = f"fastns-{os.getpid()}"
        if Path("/sys/fs/cgroup/unified").is_dir():
            # crun refuses machines with both versions of cgroups: hide version 2 from it.
            fastns.unshare("mount")
            subprocess.run(["mount", "--make-rprivate", "/"], check=True)
            subprocess.run(["umount", "/sys/fs/cgroup/unified"], check=True)

    def argv(self, command: str) -> list[str]:
        bundle = _oci.bundle(self.root, Path(self.place.name), command, self.name)
        options = ["--root", f"{self.place.name}/state", "--cgroup-manager=disabled"]
        return [find(), *options, "run", "--bundle", str(bundle), self.name]

    def close(self) -> None:
        self.place.cleanup()
