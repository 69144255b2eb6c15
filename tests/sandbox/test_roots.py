"""Sandboxes start on each kind of root, and the probe reports from inside. Other tests rely on
this."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fastns

Report = Callable[..., dict[str, Any]]


@pytest.mark.parametrize("name", ["bash_rootfs", "busybox_rootfs", "debian_rootfs"])
def test_a_root_runs_its_own_programs(request: pytest.FixtureRequest, name: str) -> None:
    root: Path = request.getfixturevalue(name)
    done = fastns.run(
        ["sh", "-c", "pwd && ls -a / && ps"],
        spec=fastns.Spec(rootfs=root),
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert (done.returncode, done.stderr) == (0, "")
    words = done.stdout.split()
    assert words[0] == "/"
    assert set(os.listdir(root)) <= set(words)
    assert done.stdout.splitlines()[-1].split()[-1] == "ps"


def test_the_report_is_made_inside(report: Report, host_report: dict[str, Any]) -> None:
    seen = report("one", "two", hostname="inside", run={"env": {"NAME": "value"}})
    assert seen["pid"] == 1
    assert seen["argv"][-2:] == ["one", "two"]
    assert seen["hostname"] == "inside"
    assert seen["environ"] == ["NAME=value"]
    for name in ("cgroup", "ipc", "mnt", "net", "pid", "uts"):
        assert seen["namespaces"][name] != host_report["namespaces"][name], name
    assert seen["namespaces"]["time"] == host_report["namespaces"]["time"]
    assert set(seen["root"]) >= {"probe", "true"}


def test_the_report_without_a_rootfs(report: Report) -> None:
    """The probe is in the host's view."""
    assert {"probe", "usr", "etc"} <= set(report(rootfs=None)["root"])


def test_the_report_of_a_plan(report: Report, probe_rootfs: Path) -> None:
    """report() accepts a plan as its spec."""
    plan = fastns.compile(fastns.Spec(rootfs=probe_rootfs, hostname="planned"))
    assert report(spec=plan)["hostname"] == "planned"
