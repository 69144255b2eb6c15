"""E1 and E2: no sandbox can push input into the caller's terminal, which the caller's shell would
execute. The tests use a real controlling terminal in a new session."""

import json
from pathlib import Path
from typing import Any

import pytest
from escape.results import RESULTS
from processes import script

SESSION = """
import fcntl, json, termios, tty
from fastns import Spec, Template
root, fields = sys.argv[1], json.loads(sys.argv[2])
os.setsid()
master, slave = os.openpty()
fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
tty.setraw(slave)
assert os.tcgetpgrp(slave) == os.getpid()
os.set_blocking(slave, False)

def typed():
    # Input that a shell of this session would read.
    try:
        return os.read(slave, 4096).decode()
    except BlockingIOError:
        return ""

def tried(run):
    found = {}
    for attack in ("type_into_terminal", "paste_into_terminal"):
        done = run(["/attack", attack, "id"], stdin=slave, capture_output=True, text=True)
        found[attack] = [done.returncode == 0, done.stdout.strip(), typed()]
    return found

told = {}
for way in ("direct", "init", "user", "template", "ready", "user-template"):
    given = dict(fields, rootfs=root, init=way == "init")
    if way.startswith("user"):
        given["namespaces"] = {"user": "new"}
    if way.endswith(("template", "ready")):
        with Template(Spec(**given), ready=2 if way == "ready" else 0) as template:
            told[way] = tried(template.run)
    else:
        told[way] = tried(lambda args, **more: fastns.run(args, spec=Spec(**given), **more))
os.write(master, b"ls")
assert typed() == "ls"  # the control: input that is typed arrives
print(json.dumps(told))
"""
CASES = {"E1 TIOCSTI": "type_into_terminal", "E2 TIOCLINUX": "paste_into_terminal"}


def from_a_terminal(root: Path, **fields: Any) -> dict[str, dict[str, tuple[bool, str, str]]]:
    """Try each attack in each way. The values are whether it worked, its output, and the input that
    arrived."""
    found: dict[str, dict[str, tuple[bool, str, str]]] = json.loads(
        script(SESSION, str(root), json.dumps(fields))
    )
    return found


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_typed(case: str, attack_root: Path) -> None:
    attack = CASES[case]
    for way, found in from_a_terminal(attack_root).items():
        worked, said, typed = found[attack]
        if worked or typed or said != "EPERM":
            RESULTS[case] = ("FAILED", f"{way}: {said} {typed!r}")
        assert (worked, said, typed) == (False, "EPERM", ""), way
    control = from_a_terminal(attack_root, seccomp="unconfined")
    direct = control["direct"][attack]
    told = f"EPERM; control: {direct[1]} {direct[2]!r}"
    RESULTS[case] = ("blocked" if direct[0] else "kernel refuses anyway", told)
    if attack == "type_into_terminal" and may_type():
        assert direct == [True, "worked", "ididid"]
        assert control["init"][attack] == direct
    else:  # no console, or a kernel that permits this to no process
        assert direct[1] in ("ENOTTY", "EIO", "EPERM")
    # A template's sandboxes are in another session, with or without the filter.
    assert [control[way][attack][2] for way in ("template", "ready")] == ["", ""]


def may_type() -> bool:
    """Whether the kernel permits TIOCSTI, as all kernels without this setting do."""
    setting = Path("/proc/sys/dev/tty/legacy_tiocsti")
    return not setting.exists() or setting.read_text().strip() == "1"
