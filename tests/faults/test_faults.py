"""A short fault campaign, and the control that it finds broken starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import support

from faults.judge import MISSED, RIGHT, TYPED
from faults.ways import BAD

SECONDS = 75  # no start begins later
SEED = 1  # always the same faults, so a new failure comes from a change; `make faults` picks others
FEWEST = 50
CONTROL = "fastns:1:mount:2:EPERM"

pytestmark = pytest.mark.as_root  # the filter needs root; the campaign also starts as a user


ONCE_WRONG = Path(__file__).with_name("once_wrong.txt")


def campaign(tmp_path: Path, *args: str) -> list[tuple[str, str, list[str]]]:
    """Run a campaign; return each fault with the kind of its result and details."""
    file = tmp_path / "results.json"
    done = subprocess.run(
        [sys.executable, "-m", "faults", "--json", str(file), *args],
        env={**os.environ, "PYTHONPATH": str(support.TESTS)},
        capture_output=True,
        text=True,
        timeout=280,
    )
    print(done.stdout)
    assert file.exists(), done.stdout + done.stderr
    results: list[tuple[str, str, list[str]]] = json.loads(file.read_text())
    return results


def test_it_finds_broken_starts(tmp_path: Path) -> None:
    users = ("root", "user")
    cases = [f"{way}:{user}:{CONTROL}" for way in BAD for user in users]
    controls = [f"plain:{user}:{CONTROL}" for user in users]
    found = {case: kind for case, kind, _ in campaign(tmp_path, *cases, *controls)}
    expected: dict[str, Any] = {case: BAD[case.split(":")[0]].kind for case in cases}
    assert found == expected | dict.fromkeys(controls, TYPED)


def test_faults_that_once_had_a_wrong_result(tmp_path: Path) -> None:
    lines = ONCE_WRONG.read_text().splitlines()
    cases = [line for line in lines if not line.startswith("#")]
    results = campaign(tmp_path, *cases)
    assert [result for result in results if result[1] not in (RIGHT, TYPED, MISSED)] == []
    assert sum(kind != MISSED for _, kind, _ in results) > len(cases) * 3 // 4


def test_a_sample_of_faults(tmp_path: Path) -> None:
    results = campaign(tmp_path, "--seconds", str(SECONDS), "--seed", str(SEED))
    wrong = [result for result in results if result[1] not in (RIGHT, TYPED, MISSED)]
    assert wrong == []
    assert sum(kind != MISSED for _, kind, _ in results) >= FEWEST
