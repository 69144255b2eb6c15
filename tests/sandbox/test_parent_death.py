"""die_with_parent: a sandbox ends when its caller is killed, in every way of starting."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import support
from processes import eventually, marked, marker, running

import fastns
from fastns import Spec, seccomp

CALLER = """
import sys
import fastns
root, mark, call, fields = sys.argv[1:]
spec = fastns.Spec(rootfs=root, **eval(fields))
sleep = ["/probe", "--sleep", mark]
if call == "spawn":
    sandbox = fastns.spawn(sleep, spec=spec)
    print("spawned", flush=True)
    sandbox.wait()
elif call == "run":
    fastns.run(sleep, spec=spec, timeout=300)
else:
    fastns.run_batch([sleep] * 4, spec=spec, timeout=300, concurrency=4)
"""
WAYS: dict[str, dict[str, Any]] = {
    "direct": {},
    "host's ids": {"namespaces": {"user": "host"}},
    "one id": {"namespaces": {"user": "new"}},
    "another user": {"user": "7:7"},
    "host's pids": {"namespaces": {"pid": "host"}},
    "init": {"init": True},
    "init, another user": {"init": True, "user": "7:7"},
    "capabilities": {"capabilities": ["NET_RAW"]},
    "setuid programs": {"no_new_privileges": False},
    "a profile": {"seccomp": seccomp.default_profile()},
}
FOR_ROOT = ("host's ids", "another user", "init, another user")


def killed(root: Path, call: str, fields: dict[str, Any], sandboxes: int = 1) -> list[int]:
    """Kill the caller. Return the sandboxes that survive it, and kill them."""
    mark = marker()
    args = [sys.executable, "-c", CALLER, str(root), mark, call, repr(fields)]
    with subprocess.Popen(args, stdout=subprocess.DEVNULL) as caller:
        assert eventually(lambda: len(running("/probe", "--sleep", mark)) == sandboxes)
        caller.kill()
    if fields.get("die_with_parent"):
        eventually(lambda: not running("/probe", "--sleep", mark))
    left = running("/probe", "--sleep", mark)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: not running("/probe", "--sleep", mark))
    return left


@pytest.mark.parametrize("way", WAYS)
def test_it_ends_with_the_caller(probe_rootfs: Path, way: str) -> None:
    if way in FOR_ROOT and not support.is_root():
        support.skip_missing("root")
    fields = {**WAYS[way], "die_with_parent": True}
    assert killed(probe_rootfs, "spawn", fields) == []


@pytest.mark.parametrize("call", ["run", "batch"])
def test_sandboxes_of_run_and_run_batch_end_with_the_caller(probe_rootfs: Path, call: str) -> None:
    fields = {"die_with_parent": True}
    assert killed(probe_rootfs, call, fields, 4 if call == "batch" else 1) == []


def test_by_default_it_survives_the_caller(probe_rootfs: Path) -> None:
    assert len(killed(probe_rootfs, "spawn", {})) == 1


@pytest.mark.parametrize("flags", [[], ["--init"], ["--max-output", "1m"]])
def test_the_command_line_always_sets_it(probe_rootfs: Path, flags: list[str]) -> None:
    mark = marker()
    args = [sys.executable, "-m", "fastns", "run", *flags, "--rootfs", str(probe_rootfs)]
    with subprocess.Popen([*args, "--", "/probe", "--sleep", mark]) as caller:
        assert eventually(lambda: len(running("/probe", "--sleep", mark)) == 1)
        caller.kill()
    assert eventually(lambda: not marked(mark))


def test_a_template_accepts_the_field(probe_rootfs: Path) -> None:
    """The field adds no op, because a template's sandboxes end with the caller anyway."""
    with fastns.Template(Spec(rootfs=probe_rootfs, die_with_parent=True)) as template:
        assert "parent_death" not in str(template)
        assert template.run(["/true"]).returncode == 0
