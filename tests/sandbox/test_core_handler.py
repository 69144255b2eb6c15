"""The kernel runs a core dump handler on the host, as root. It must not run for a sandbox. The
setting affects the whole machine, so the test runs in a separate kernel (tests/kernels.sh)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import support
from inside import WAYS
from processes import eventually

PATTERN = Path("/proc/sys/kernel/core_pattern")
SCRIPT = """
import os, sys
from inside import runner
import fastns
way, root, seccomp, uid = sys.argv[1:]

def crash():
    with runner(way, rootfs=root, seccomp=seccomp) as run:
        return run(["/exhaust", "crash"], capture_output=True).stdout

if uid != "0":
    fastns.compile()  # import everything now
    crash()
    os.setgroups([])
    os.setgid(int(uid))
    os.setuid(int(uid))
print(crash().decode())
"""


@pytest.fixture
def handler() -> Iterator[str]:
    """Set a handler that writes a unique word to the kernel's log; return that word."""
    if os.environ.get("FASTNS_EMULATED") != "1":
        support.skip_missing("a separate kernel (tests/kernels.sh)")
    word = f"fastns-core-{os.urandom(8).hex()}"
    before = PATTERN.read_text()
    PATTERN.write_text(f"|/bin/sh -c echo${{IFS}}{word}>/dev/kmsg;cat>/dev/null")
    yield word
    PATTERN.write_text(before)


def times(word: str) -> int:
    """How often the word occurs in the kernel's log."""
    return subprocess.run(["dmesg"], capture_output=True, check=True).stdout.count(word.encode())


@pytest.mark.as_root
@pytest.mark.parametrize("uid", [0, 54321], ids=["root", "user"])
@pytest.mark.parametrize("way", WAYS)
def test_the_handler_does_not_run(handler: str, exhaust_root: Path, way: str, uid: int) -> None:
    """The control: without the filter a program can set the limit to 0, and the handler runs."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    for seccomp, dumped in (("default", 0), ("unconfined", 1)):
        words = [way, str(exhaust_root), seccomp, str(uid)]
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, *words], capture_output=True, env=environment
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == [b"11", b"%d" % dumped]
    crashes = 2 if uid else 1  # the crashes without the filter
    assert eventually(lambda: times(handler) == crashes)
