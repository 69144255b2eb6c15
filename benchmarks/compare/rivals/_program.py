"""Shared by the contenders that are programs, which subprocess.run starts."""

import shutil
import subprocess
from pathlib import Path


def find(program: str) -> str:
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin") or ""


def first_line(*command: str) -> str:
    """The first line of a command's output, such as its version."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = (done.stdout or done.stderr).strip().splitlines()
    return lines[0] if lines else "unknown"


class Program:
    """A contender that is defined by its argv."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def argv(self, command: str) -> list[str]:
        raise NotImplementedError

    def run(self, command: str) -> int:
        return subprocess.run(self.argv(command), check=False).returncode

    def output(self, command: str) -> str:
        done = subprocess.run(self.argv(command), capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(done.stderr.strip() or f"ended with {done.returncode}")
        return done.stdout

    def close(self) -> None:
        pass
