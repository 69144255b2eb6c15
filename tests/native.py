"""Helpers of the tests of fastns-exec: run it, and make plan files with `fastns compile`."""

from __future__ import annotations

import os
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from fastns.cli import main

PROGRAM = Path(sysconfig.get_path("scripts")) / "fastns-exec"
"""An installation has it beside `fastns`."""


def compiled(path: Path, *options: str) -> Path:
    """Write a plan file with `fastns compile` and these options."""
    assert main(["compile", *options, "-o", os.fspath(path)]) == 0
    return path


def execute(*words: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run fastns-exec with these arguments."""
    command = [PROGRAM, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)
