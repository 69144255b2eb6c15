"""A start that fails because of the caller's environment has the right hint: without /proc, and in
a sandbox."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import support

import fastns
from fastns import Mount, Spec, _view

START = """
import sys
import fastns
for namespaces in ({}, {"user": "new"}):
    for init in (False, True):
        try:
            fastns.run(["/bin/true"], spec=fastns.Spec(namespaces=namespaces, init=init))
            print("started")
        except fastns.SpawnError as error:
            print(error.stage, error.hint)
"""


def test_without_a_proc() -> None:
    """Ids are mapped by writing to /proc. The hint must not blame newuidmap."""
    words = [] if support.is_root() else ["-U", "-r"]
    hide = 'umount -l /proc 2>/dev/null || mount -t tmpfs none /proc; exec "$@"'
    command = ["unshare", "-m", *words, "sh", "-c", hide, "sh", sys.executable, "-c", START]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    for line in lines:
        assert line.startswith("id_map ")
        assert "mount -t proc proc /proc" in line
        assert "uidmap package" not in line


def nested(**fields: Any) -> list[str]:
    """The lines that START prints in a sandbox."""
    code = "import sys, fastns; print(sys.prefix, sys.base_prefix, fastns.__file__, sep='\\n')"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    prefix, base, module = found.stdout.split()
    shown = _view.layout().shown
    places = [prefix, base, module.rpartition("/src/fastns/")[0] or prefix]
    mounts = [
        Mount(place, source=place, options=["ro"])
        for place in sorted(set(places), key=len)
        if not _view.lies_in(place, shown)
    ]
    done = fastns.run(
        [sys.executable, "-c", START],
        spec=Spec(mounts=mounts, env={"LANG": "C.UTF-8"}, **fields),
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    return list(done.stdout.splitlines())


def test_in_a_sandbox() -> None:
    """The hint names one obstacle after another: the outer seccomp filter, the capability, the
    masked paths. It does not blame a sysctl."""
    open_calls = {"seccomp": "unconfined"}
    for line in nested():
        assert "seccomp=unconfined" in line
        assert "sysctl" not in line
    for line in nested(**open_calls):
        assert line.startswith("id_map ")
        assert "CAP_SETFCAP" in line
    for line in nested(**open_calls, capabilities=["SETFCAP"]):
        assert line.startswith("mount ")
        assert "systempaths=unconfined" in line
    opened = nested(**open_calls, capabilities=["SETFCAP"], masked_paths=[], readonly_paths=[])
    assert opened == ["started"] * 4


@pytest.mark.as_root
def test_in_a_sandbox_of_another_user() -> None:
    """Starts work in a sandbox without a filter, masks or read-only paths."""
    opened = nested(seccomp="unconfined", user="1000:1000", masked_paths=[], readonly_paths=[])
    assert opened == ["started"] * 4
