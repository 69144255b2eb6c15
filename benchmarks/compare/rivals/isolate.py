"""isolate, of the programming contests; raced when it is in PATH."""

import subprocess
from pathlib import Path

from compare.rivals import _program

NAME = "isolate"
NOTE = "its box is made once, outside the time; runs as a user of its own"


def find() -> str:
    return _program.find("isolate")


def version() -> str:
    return _program.first_line(find(), "--version")


class Rival(_program.Program):
    def __init__(self, root: Path) -> None:
        super().__init__(root)
        subprocess.run([find(), "--init"], check=True, stdout=subprocess.DEVNULL)

    def argv(self, command: str) -> list[str]:
        return [find(), "--silent", "--share-net", f"--dir=/root={self.root}", "--run", "--",
                f"/root{command}"]  # fmt: skip

    def close(self) -> None:
        subprocess.run([find(), "--cleanup"], check=False)
