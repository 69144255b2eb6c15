"""Compares fastns-exec with bubblewrap: whole processes, in turn, as a shell or a judge runs them.

bubblewrap gets the same namespaces and mounts. fastns-exec also sets up a range of ids, a seccomp
filter, masked paths and resource limits, all within the measured time.
"""

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
from contenders import Contender, interleaved, posix_spawn
from report import ratio, table

from fastns.cli import main

PROGRAM = Path(sysconfig.get_path("scripts")) / "fastns-exec"
TRUE = "/bin/true"
ROUNDS = 100
BWRAP = ["--die-with-parent", "--new-session", "--unshare-pid", "--unshare-uts", "--unshare-ipc"]
MOUNTS = ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--tmpfs", "/run"]
CASES: dict[str, tuple[list[str], list[str]]] = {
    "as it comes": ([], ["--unshare-net"]),
    "with the host's network": (["--network", "host"], []),
}


def shown() -> list[str]:
    """bubblewrap's options for the system directories that a sandbox without a rootfs sees."""
    words = []
    for path in ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc", "/opt"):
        if os.path.islink(path):
            words += ["--symlink", os.readlink(path), path]
        elif os.path.isdir(path):
            words += ["--ro-bind", path, path]
    return words


def program(*words: str) -> Contender:
    """Runs a program to its end."""

    def contender() -> None:
        pid = os.posix_spawn(words[0], words, os.environ)
        if os.waitpid(pid, 0)[1] != 0:
            raise RuntimeError(f"{words[0]} failed")

    return contender


@pytest.mark.parametrize("name", CASES)
def test_whole_processes(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bubblewrap = shutil.which("bwrap")
    if bubblewrap is None:
        pytest.skip("missing: bubblewrap (make setup-compare)")
    options, more = CASES[name]
    plan = str(tmp_path / "a.plan")
    assert main(["compile", *options, "-o", plan]) == 0
    spaces = [*BWRAP, "--unshare-cgroup", *more]
    others: dict[str, Contender] = {
        "os.posix_spawn": posix_spawn(TRUE),
        "fastns-exec": program(str(PROGRAM), plan, "--", TRUE),
        "bubblewrap": program(bubblewrap, *spaces, *shown(), *MOUNTS, TRUE),
    }
    subprocess.run([PROGRAM, plan, "--", TRUE], check=True)
    times = interleaved(others, ROUNDS)
    with capsys.disabled():
        print("\n" + table(f"{name}: start to end of a process, µs", times, "os.posix_spawn"))
        found = ratio(times, "fastns-exec", "bubblewrap")
        print(f"to reach: fastns-exec / bubblewrap <= 1.0: {found:.2f}")
