"""The benchmark against other programs writes a complete report, which names missing ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
OURS = {
    *("fastns_direct", "fastns_template", "fastns_none_ready", "fastns_overlay"),
    *("fastns_fresh", "fastns_rooms"),
}


@pytest.mark.as_root
def test_a_quick_race(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="missing: matplotlib (extra bench)")
    done = subprocess.run(
        [sys.executable, "-m", "compare", "--quick", "--to", str(tmp_path)],
        cwd=BENCHMARKS,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    data = json.loads((tmp_path / "compare.json").read_text())
    names = {found["name"] for found in data["contenders"].values()} | set(data["missing"])
    rivals = {"bubblewrap", "crun", "runc", "firejail", "nsjail", "minijail0", "isolate", "kern"}
    assert rivals | {"os.posix_spawn", "subprocess.run", "unshare + sh"} <= names
    assert OURS <= set(data["latency_us"]) == set(data["contenders"])
    assert all(data["contenders"][name]["equal"] for name in OURS)
    assert not data["contenders"]["posix_spawn"]["equal"]  # the control
    page = (tmp_path / "compare.md").read_text()
    for name in ("latency", "rate", "memory_mib", "mounts", "live", "layers"):
        assert f"({name}.svg)" in page
        assert (tmp_path / f"{name}.svg").read_text().rstrip().endswith("</svg>")
    for reason in data["missing"].values():
        assert reason in page
