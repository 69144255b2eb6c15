"""Times short programs in turn: whole processes, from start to end.

`python -c pass`, an import of `subprocess` and, if it is installed, bubblewrap are for comparison.
"""

from __future__ import annotations

import compileall
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fastns

ROUNDS = 25
NOTHING = "python -c pass"
CONTENDERS = {
    NOTHING: ["-c", "pass"],
    "python -m of an empty module": ["-m", "empty"],
    "python -c 'import subprocess'": ["-c", "import subprocess"],
    "subprocess.run()": ["-c", "import subprocess; subprocess.run(['/bin/true'])"],
    "fastns.run()": ["-c", "import fastns; fastns.run(['/bin/true'])"],
    "python -m fastns run": ["-m", "fastns", "run", "--", "/bin/true"],
    "fastns run": ["-c", "from fastns.cli import program; program()", "run", "--", "/bin/true"],
}
BUBBLEWRAP = ["--unshare-all", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev"]


def timed(command: list[str], cwd: Path) -> tuple[float, float]:
    """Seconds until the process is reaped, and CPU seconds (user and system) with its children."""
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=cwd, stdin=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, command
    return wall, usage.ru_utime + usage.ru_stime


def test_whole_processes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compileall.compile_dir(Path(fastns.__file__).parent, quiet=1)  # as pip does
    (tmp_path / "empty.py").touch()
    commands = {name: [sys.executable, *words] for name, words in CONTENDERS.items()}
    bwrap = shutil.which("bwrap")
    if bwrap is not None:
        commands["bubblewrap"] = [bwrap, *BUBBLEWRAP, "/bin/true"]
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for number in range(ROUNDS + 1):
        for name, command in commands.items():
            found = timed(command, tmp_path)
            if number:  # the first run reads files from the disk
                times[name].append(found)
    walls, cpus = (
        {name: statistics.median(found[of] for found in times[name]) * 1e3 for name in times}
        for of in (0, 1)
    )
    width = max(map(len, times))
    with capsys.disabled():
        print(f"\nwhole processes, medians of {ROUNDS} in turns, ms; over {NOTHING}")
        print(f"  {'':{width}}   wall   over    CPU   over")
        for name in times:
            wall, cpu = walls[name], cpus[name]
            print(
                f"  {name:{width}} {wall:6.1f} {wall - walls[NOTHING]:6.1f}"
                f" {cpu:6.1f} {cpu - cpus[NOTHING]:6.1f}"
            )
