"""The tests' own checks: a leak fails its test, and an unexpected skip fails the run in CI."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import support


def run_suite(directory: Path, text: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run pytest in a separate process, on one file with the real conftest.py."""
    for name in ("conftest.py", "support.py", "allowed_skips.txt"):
        shutil.copy(support.TESTS / name, directory / name)
    (directory / "pytest.ini").write_text("[pytest]\n")
    (directory / "test_it.py").write_text(text)
    clean = {k: v for k, v in os.environ.items() if k not in ("CI", "FASTNS_NO_SKIP")}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v", str(directory)],
        env={**clean, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **env},  # plugins are slow to load
        cwd=directory,
        umask=0o022,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_leak_fails_its_test(tmp_path: Path) -> None:
    done = run_suite(
        tmp_path,
        "import os, pytest, subprocess\n"
        "def test_clean(): subprocess.run(['true'], check=True)\n"
        "def test_fd(): os.open('/dev/null', os.O_RDONLY)\n"
        "def test_child():\n"
        "    if os.fork() == 0: os._exit(0)\n"
        "def test_umask(): os.umask(0o077)\n"
        "@pytest.mark.leaves_traces('on purpose')\n"
        "def test_marked(): os.umask(0o022)\n",
    )
    assert done.returncode == 1, done.stdout
    for name in ("test_fd", "test_child", "test_umask"):
        assert f"ERROR test_it.py::{name} - " in done.stdout
    for kind in ("+ fds: ", "+ children: ", "- process: Umask 0022"):
        assert kind in done.stdout
    assert "5 passed, 3 errors" in done.stdout


SKIPS = "import support\ndef test_it(): support.skip_missing('a unicorn')\ndef test_other(): pass\n"


@pytest.mark.parametrize(
    ("env", "status"), [({}, 0), ({"CI": "true"}, 1), ({"FASTNS_NO_SKIP": "1"}, 1)]
)
def test_an_unexpected_skip_fails_in_ci(tmp_path: Path, env: dict[str, str], status: int) -> None:
    done = run_suite(tmp_path, SKIPS, **env)
    assert done.returncode == status, done.stdout
    assert ("test_it.py::test_it: missing: a unicorn" in done.stdout) == bool(status)


def test_a_skipped_module_is_a_skip(tmp_path: Path) -> None:
    text = "import pytest\npytest.importorskip('no_such_module')\ndef test_it(): pass\n"
    done = run_suite(tmp_path, text, CI="true")
    assert done.returncode != 0, done.stdout
    assert "skips that tests/allowed_skips.txt does not list" in done.stdout


def test_marks_restrict_a_test_to_root_or_a_user(tmp_path: Path) -> None:
    """CI accepts the skips of the other kind of user."""
    text = (
        "import os, pytest\n"
        "@pytest.mark.as_root\ndef test_root(): assert os.geteuid() == 0\n"
        "@pytest.mark.as_user\ndef test_user(): assert os.geteuid() != 0\n"
    )
    done = run_suite(tmp_path, text, CI="true")
    assert done.returncode == 0, done.stdout
    assert "1 passed, 1 skipped" in done.stdout
