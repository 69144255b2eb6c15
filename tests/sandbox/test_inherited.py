"""A child inherits the personality and oom_score_adj, whatever its namespaces. A sandbox must not
inherit a personality or a negative oom_score_adj. Also: callers whose files in /proc are root's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from inside import WAYS
from plans import is_spared

ADDR_NO_RANDOMIZE = 0x0040000
SCRIPT = """
import ctypes, json, os, sys
from inside import runner
import fastns
from plans import Caller
way, root = sys.argv[1:]

def inside():
    with runner(way, rootfs=root) as run:
        done = run(["/probe"], capture_output=True, timeout=20)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) | {"method": done.method}
"""


def script(text: str, *words: str) -> Any:
    """Run the script and parse the JSON that it prints at the end."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", SCRIPT + text, *words]
    done = subprocess.run(command, capture_output=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


@pytest.mark.parametrize("way", WAYS)
def test_the_personality_is_not_inherited(probe_rootfs: Path, way: str) -> None:
    text = f"""
ctypes.CDLL(None).personality({ADDR_NO_RANDOMIZE})
found = inside()["personality"]
with open("/proc/self/personality") as own:
    print(json.dumps([found, own.read()]))
"""
    found, own = script(text, way, str(probe_rootfs))
    assert int(found, 16) == 0
    assert int(own, 16) == ADDR_NO_RANDOMIZE  # an ordinary child would inherit it


@pytest.mark.parametrize("way", WAYS)
def test_a_negative_oom_score_adj_is_not_inherited(probe_rootfs: Path, way: str) -> None:
    """Setting a negative value needs a capability that even root may lack, so the test pretends
    that 300 is negative."""
    text = """
def adjust(text):
    with open("/proc/self/oom_score_adj", "r+") as own:
        if text:
            own.write(text)
            own.seek(0)
        return int(own.read())

before = adjust("300")
plain = int(inside()["oom_score_adj"])
caller = Caller(**{**vars(Caller.current()), "spared": True})
Caller.current = classmethod(lambda cls: caller)
found = int(inside()["oom_score_adj"])
print(json.dumps([plain, found, adjust("")]))
"""
    assert script(text, way, str(probe_rootfs)) == [300, 0, 300]


def test_negative_values_are_recognized(tmp_path: Path) -> None:
    for number, spared in (("-1", True), ("-1000", True), ("0", False), ("300", False)):
        file = tmp_path / number
        file.write_text(f"{number}\n")
        assert is_spared(str(file)) is spared


@pytest.mark.as_root
@pytest.mark.parametrize("way", WAYS)
def test_a_caller_that_became_a_user(probe_rootfs: Path, way: str) -> None:
    """setuid(2) made it undumpable, so its files in /proc, such as the id maps, belong to root."""
    text = """
inside()  # import everything now: another user may not enter this directory
os.setgroups([])
os.setgid(54321)
os.setuid(54321)
found = inside()
libc = ctypes.CDLL(None)
print(json.dumps([found["uid"], found["uid_map"], found["method"], libc.prctl(3)]))
"""
    uid, uid_map, method, dumpable = script(text, way, str(probe_rootfs))
    assert (uid, uid_map.split()[::2], dumpable) == (0, ["0", "1"], 0)
    named = {"direct": "direct", "init": "direct", "container": "container"}
    assert method == named.get(way, "template")
