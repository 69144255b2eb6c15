"""runc, the OCI runtime written in Go that Docker uses."""

import os
import tempfile
from pathlib import Path

from compare.rivals import _oci, _program

NAME = "runc"
NOTE = "keeps no capabilities; also makes and removes cgroups"


def find() -> str:
    return _program.find("runc")


def version() -> str:
    return _program.first_line(find(), "--version")


class Rival(_program.Program):
    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.place = tempfile.TemporaryDirectory(prefix="fastns-runc-")
        self.name = f"fastns-{os.getpid()}"

    def argv(self, command: str) -> list[str]:
        bundle = _oci.bundle(self.root, Path(self.place.name), command, self.name)
        state = f"{self.place.name}/state"
        return [find(), "--root", state, "run", "--bundle", str(bundle), self.name]

    def close(self) -> None:
        self.place.cleanup()
