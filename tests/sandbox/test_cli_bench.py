"""`fastns bench` with real sandboxes. The tests check that times are reported, not their values."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import support
from processes import eventually

import fastns
from fastns import _bench

TIMEOUT = 120  # reached only if a test fails
SINGLE = [
    "os.posix_spawn",
    "subprocess.run",
    "fastns.run",
    "Template.run",
    "Template(ready=0).run",
    "Template.run, host's network",
    "Container.run",
    "bwrap",
    "unshare",
]
BATCHES = ["fastns.run_batch", "Template.run_batch"]
TOOLS = ("bwrap", "unshare")


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "fastns", "bench", "--rounds", "3", *words]


def bench(*words: str) -> tuple[int, dict[str, Any]]:
    """Run the benchmark. Return the exit code and the report."""
    done = subprocess.run(
        command("--json", "-", *words), capture_output=True, text=True, timeout=TIMEOUT
    )
    report = json.loads(done.stdout)
    assert isinstance(report, dict)
    return done.returncode, report


@pytest.fixture(params=["host", "rootfs"])
def root(request: pytest.FixtureRequest) -> list[str]:
    """The options for the host's root, or for a rootfs."""
    if request.param == "host":
        return []
    return ["--rootfs", str(request.getfixturevalue("probe_rootfs"))]


def test_every_contender_is_measured(root: list[str]) -> None:
    code, report = bench(*root)
    assert code == 0
    assert report["machine"]["privileged"] == support.is_root()
    assert report["rootfs"] == ("directory" if root else "host")
    rows = {row["name"]: row for row in report["contenders"]}
    assert list(rows) == SINGLE + BATCHES
    for name, row in rows.items():
        if name in TOOLS and shutil.which(name) is None:
            assert row["error"] == "not in PATH"
            continue
        assert row["error"] is None, row
        assert row["per_second"] > 0
        if name in BATCHES:
            assert row["samples"] >= _bench.BATCH_WARM_UP
            assert row["concurrency"] >= 1
        else:
            assert row["samples"] == 3
            assert 0 < row["p10"] <= row["median"] <= row["p90"] <= row["p99"]
            assert row["ratio"] > 0
    for name in ("fastns.run", "Template.run", "bwrap", *BATCHES):
        assert rows[name]["isolates"] == rows["fastns.run"]["isolates"]


def test_the_table_and_the_last_line() -> None:
    """The table has a line per contender. The last line is a summary."""
    done = subprocess.run(command(), capture_output=True, text=True, timeout=TIMEOUT)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [name for name in SINGLE + BATCHES if not any(li.startswith(name) for li in lines)] == []
    assert lines[-1].startswith("An isolated process costs ")


@pytest.mark.parametrize("network", ["host", "none"])
def test_the_report_says_what_is_isolated(network: str) -> None:
    """The report agrees with a plan, and with the plans of a template: its server's, which makes
    the network namespaces, and its sandboxes'."""
    boxes = _bench.Sandboxes.of(None)
    expected = {*boxes.spaces()} - ({"network"} if network == "host" else set())
    assert set(fastns.compile(boxes.spec(network)).namespaces) == expected
    with fastns.Template(boxes.spec(network)) as template:
        assert {*template._plan.namespaces, *template._sandbox.namespaces} == expected


def test_the_program_is_bound_if_the_package_is_hidden(probe_rootfs: Path) -> None:
    """The package is hidden if it is below /tmp or the root lacks it. bwrap gets the bind too."""
    boxes = _bench.Sandboxes(None, _bench.PLACE, support.is_root())
    assert fastns.run([boxes.inside], spec=boxes.spec()).returncode == _bench.EXIT_CODE
    with fastns.Template(boxes.spec()) as template:
        assert template.run([boxes.inside]).returncode == _bench.EXIT_CODE
    if shutil.which("bwrap") is not None:
        assert _bench.tool("bwrap", boxes.bwrap())() == _bench.EXIT_CODE


def test_a_root_without_mount_points(tmp_path: Path) -> None:
    """fastns cannot start there. Contenders that do not use the root are still measured."""
    code, report = bench("--rootfs", str(tmp_path))
    assert code == 125
    for row in report["contenders"]:
        if row["by_fastns"]:
            assert row["error"]
            assert row["hint"]
    assert report["contenders"][0]["error"] is None


def test_ctrl_c_leaves_nothing() -> None:
    words = [sys.executable, "-m", "fastns", "bench", "--rounds", "100000"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            assert eventually(
                lambda: len(servers(process.pid)) == 4
            )  # of templates and the container
            before = servers(process.pid)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=TIMEOUT)
        finally:
            process.kill()
    assert (process.returncode, err) == (130, b"")
    assert eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in before))


def servers(pid: int) -> list[str]:
    """Children that stay alive, unlike those of a single start."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    found = set(path.read_text().split())
    for _ in range(20):
        found &= set(path.read_text().split())
    return sorted(found)
