"""A bare process, with which all others are compared."""

import os
import subprocess
from pathlib import Path

NAME = "os.posix_spawn"
NOTE = "isolates nothing"


def find() -> str:
    return ""


def version() -> str:
    return "Python's"


class Rival:
    def __init__(self, root: Path) -> None:
        self.root = root

    def run(self, command: str) -> int:
        path = f"{self.root}{command}"
        return os.waitstatus_to_exitcode(os.waitpid(os.posix_spawn(path, [path], {}), 0)[1])

    def output(self, command: str) -> str:
        return subprocess.run([f"{self.root}{command}"], stdout=-1, text=True, check=True).stdout

    def close(self) -> None:
        pass
