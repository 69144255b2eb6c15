"""What happens where the kernel, or a filter around the caller, lacks a system call."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from hidden import without

RUN = """
import sys
from fastns import Spec, run, SpawnError
"""


@pytest.mark.parametrize("extra", ["", ", init=True", ", overlay=True"])
def test_clone_stands_in_for_clone3(probe_rootfs: Path, extra: str) -> None:
    code = f"""{RUN}
for _ in range(3):
    done = run(["/probe", "--exit", "5"], spec=Spec(rootfs=sys.argv[1]{extra}))
    assert done.returncode == 5, done
print("ran")
"""
    assert without("clone3", errno.ENOSYS, code, str(probe_rootfs)) == "ran\n"


def test_a_time_namespace_needs_clone3(probe_rootfs: Path) -> None:
    code = f"""{RUN}
try:
    run(["/true"], spec=Spec(rootfs=sys.argv[1], namespaces={{"time": "new"}}))
except SpawnError as exc:
    print(exc.stage, exc.errno, exc.op_index, "clone3" in exc.hint)
"""
    out = without("clone3", errno.ENOSYS, code, str(probe_rootfs))
    assert out.split() == ["clone", str(errno.ENOSYS), "-1", "True"]


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.EPERM])
def test_targets_are_found_without_openat2(probe_rootfs: Path, error: int) -> None:
    code = f"""{RUN}
done = run(["/probe", "--stat", "/tmp/a/b"], capture_output=True, spec=Spec(
    rootfs=sys.argv[1], files={{"/tmp/a/b": "text", "/etc/hosts": "own"}}))
assert done.returncode == 0, done
done = run(["/probe", "--read", "/etc/hosts"], spec=Spec(
    rootfs=sys.argv[1], files={{"/etc/hosts": "own"}}), capture_output=True)
print(done.stdout.decode())
"""
    assert without("openat2", error, code, str(probe_rootfs)).strip() == "own"
