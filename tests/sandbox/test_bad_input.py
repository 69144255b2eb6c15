"""A command that cannot be executed, or a root that cannot be reached, raises a SpawnError with its
stage, errno, op and path. conftest.py checks that nothing is left behind.

See also test_bad_input_steps.py for failing ops, test_bad_input_limits.py for limits,
test_bad_input_arguments.py for arguments, test_leaks.py for a lack of fds, and
tests/unit/test_spec*.py for values that a Spec refuses.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import support

import fastns
from fastns import SpawnError, Spec


@pytest.fixture(scope="module")
def root(public_dir: Path, probe_rootfs: Path) -> Iterator[Path]:
    """A root with a file of each kind that cannot be executed."""
    path = support.copy_tree(probe_rootfs, public_dir / "bad-root")
    bin = path / "bin"
    bin.mkdir()
    (bin / "text").write_text("just text, without #!\n")
    (bin / "empty").write_text("")
    (bin / "script").write_text("#!/no/such/interpreter\n")
    (bin / "loop").write_text("#!/bin/loop\n")
    header = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHI", 2, 8, 1)  # EM_MIPS
    (bin / "alien").write_bytes(header + bytes(64))
    shutil.copy("/bin/ls", bin / "dynamic")  # its loader is missing in this root
    (bin / "plain").write_text("#!/true\n")
    (bin / "directory").mkdir()
    os.mkfifo(bin / "fifo")
    (bin / "link").symlink_to("link")
    for each in bin.iterdir():
        if not each.is_symlink():
            each.chmod(0o644 if each.name == "plain" else 0o755)
    yield path
    shutil.rmtree(path)


EXEC = {
    "missing": ("/no/such", errno.ENOENT),
    "not in PATH": ("nosuch", errno.ENOENT),
    "missing directory": ("/true/x", errno.ENOTDIR),
    "not executable": ("/bin/plain", errno.EACCES),
    "directory": ("/bin/directory", errno.EACCES),
    "fifo": ("/bin/fifo", errno.EACCES),
    "text": ("/bin/text", errno.ENOEXEC),
    "empty": ("/bin/empty", errno.ENOEXEC),
    "another architecture": ("/bin/alien", errno.ENOEXEC),
    "link to itself": ("/bin/link", errno.ELOOP),
    "script of itself": ("/bin/loop", errno.ELOOP),
    "no interpreter": ("/bin/script", errno.ENOENT),
    "no loader": ("/bin/dynamic", errno.ENOENT),
}


@pytest.mark.parametrize("extra", [{}, {"init": True}], ids=["direct", "init"])
@pytest.mark.parametrize("case", EXEC)
def test_exec(root: Path, case: str, extra: dict[str, Any]) -> None:
    """The error has the errno of the exec, and a hint if an interpreter or a loader is missing."""
    command, error = EXEC[case]
    with pytest.raises(SpawnError) as caught:
        fastns.run([command], spec=Spec(rootfs=root, **extra))
    exc = caught.value
    assert (exc.stage, exc.errno, exc.op_index, exc.path) == ("exec", error, -1, command)
    assert exc.found == (case in ("no interpreter", "no loader"))
    assert not exc.found or "interpreter" in (exc.hint or "")


def test_a_rootfs_out_of_reach() -> None:
    """Root finds no such file; other users may not search its directory."""
    with pytest.raises(SpawnError) as caught:
        fastns.run(["/true"], spec=Spec(rootfs="/proc/1/fdinfo/x"))
    assert (caught.value.stage, caught.value.path) == ("rootfs", "/proc/1/fdinfo/x")
    assert caught.value.op_index >= 0


def test_too_many_arguments(root: Path) -> None:
    """Arguments that are too long fail with E2BIG at exec, with a hint."""
    with pytest.raises(SpawnError) as caught:
        fastns.run(["/true", *["x" * 100_000] * 60], spec=Spec(rootfs=root))
    exc = caught.value
    assert (exc.stage, exc.errno, exc.path) == ("exec", errno.E2BIG, "/true")
    assert exc.hint


def test_modes_of_the_cases(root: Path) -> None:
    """Control for EXEC: on a file system that ignores modes, its cases would be meaningless."""
    assert stat.S_ISFIFO((root / "bin" / "fifo").stat().st_mode)
    assert not os.stat(root / "bin" / "plain").st_mode & 0o111
