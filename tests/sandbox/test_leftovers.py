"""What one command leaves never reaches the next, in rooms that serve again and in fresh sandboxes.

tests/leftovers.c plants each case and seeks it. As a control it does both in one process: a seeker
that could find nothing fails there.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import support

from fastns import CompletedSandbox, Spec, Template

SOURCE = support.TESTS / "leftovers.c"
CASES = re.findall(r"X\((\w+), \w+\)", SOURCE.read_text().partition("#define CASES(X)")[2])
CASES.remove("name")  # of the macro that makes the table
FOUND, NOT_FOUND, REFUSED = 10, 11, 12
TIMEOUT = 60
# What only processes have that are killed, or what ends with them: the room may serve again.
ENDS_WITH_ITS_PROCESS = {
    *("nameless", "raw_terminal", "terminal", "shm_removed", "cycle", "group", "netlink"),
    *("abstract", "signal", "daemon", "stopped", "storm", "without_signal"),
}


@pytest.fixture(scope="module")
def root(public_dir: Path, probe_rootfs: Path) -> Path:
    place = public_dir / "leftovers-root"
    shutil.copytree(probe_rootfs, place)
    built = support.compile_static(SOURCE, support.BUILD / "tests" / "leftovers")
    shutil.copy(built, place / "leftovers")
    return place


@pytest.fixture(scope="module")
def rooms(root: Path) -> Iterator[Template]:
    with Template(Spec(rootfs=root, overlay=True), reuse=True, ready=1) as template:
        yield template


@pytest.fixture(scope="module")
def fresh(root: Path) -> Iterator[Template]:
    with Template(Spec(rootfs=root, overlay=True), ready=1) as template:
        yield template


def leftovers(template: Template, what: str, case: str) -> CompletedSandbox[bytes]:
    return template.run(["/leftovers", what, case], timeout=TIMEOUT)


def test_the_program_has_these_cases(fresh: Template) -> None:
    done = fresh.run(["/leftovers", "list"], capture_output=True, text=True)
    assert done.stdout.split() == CASES


@pytest.mark.parametrize("case", CASES)
def test_a_leftover(rooms: Template, fresh: Template, case: str) -> None:
    control = leftovers(fresh, "both", case).returncode
    assert control in (FOUND, REFUSED)
    for template in (rooms, fresh):
        planted = leftovers(template, "plant", case).returncode
        assert planted in (0, REFUSED)
        assert planted == REFUSED or control == FOUND
        after = leftovers(template, "seek", case)
        assert after.returncode == NOT_FOUND
        if template is rooms and planted == 0 and case not in ENDS_WITH_ITS_PROCESS:
            assert not after.reused  # a new room
        assert leftovers(template, "seek", case).returncode == NOT_FOUND


def test_a_command_that_leaves_nothing_is_no_false_alarm(rooms: Template) -> None:
    """A control: otherwise no room serves again, and the other tests prove nothing."""
    reused = [leftovers(rooms, "seek", case).reused for case in ("file", "mode", "nice") * 10]
    assert reused.count(False) <= 1  # the first, after another test
