"""A start imports few modules, because a program that runs one command waits for all of them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

# Modules whose import takes a large part of the time of a start, or that import such a module.
HEAVY = {
    *("argparse", "asyncio", "collections", "contextlib", "ctypes", "dataclasses", "enum"),
    *("fastns._policy", "fastns.doctor", "fastns.seccomp", "fcntl", "functools"),
    *("gettext", "importlib.metadata", "inspect", "json", "locale", "pathlib", "pickle", "re"),
    *("selectors", "shutil", "signal", "struct", "subprocess", "tempfile", "threading", "typing"),
    "warnings",
}
IMPORTED = """
import sys
before = set(sys.modules)
{body}
new = sorted(set(sys.modules) - before)
import json
print(json.dumps(new))
"""
RUNS = {
    "run": "import fastns; assert fastns.run(['/bin/true']).returncode == 0",
    "run, captured": "import fastns; fastns.run(['/bin/true'], capture_output=True)",
    "spawn": "import fastns; fastns.spawn(['/bin/true']).wait()",
    "command": "from fastns.cli import main; assert main(['run', '--', '/bin/true']) == 0",
    "command with options": "from fastns.cli import main\n"
    "assert main(['run', '-e', 'A=b', '--hostname', 'box', '--timeout', '9s', '/bin/true']) == 0",
}


@pytest.mark.parametrize("body", RUNS.values(), ids=RUNS)
def test_nothing_heavy_is_imported(body: str) -> None:
    # -S: modules that site imports are loaded before the body, so the check would miss them.
    command = [sys.executable, "-S", "-c", f"import sys; sys.path[:] = {sys.path!r}\n{IMPORTED}"]
    command[-1] = command[-1].replace("{body}", body)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    imported = set(json.loads(done.stdout))
    assert "fastns._core" in imported
    assert imported & HEAVY == set()
