"""A sandbox cannot reach the caller's keys. It has its own session keyring, even without a filter
that refuses the keyring calls. The control is an ordinary child of the caller, which inherits the
caller's keyring."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import support
from hidden import without
from processes import script

# Makes a session keyring with a key in it, then looks at it from each kind of sandbox.
LOOK = """
import ctypes, json, platform, subprocess
from fastns import Spec, Template
root, probe = sys.argv[1:3]
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
keyctl, add_key = {"x86_64": (250, 248), "aarch64": (219, 217)}[platform.machine()]
session = libc.syscall(keyctl, 1, None)
key = libc.syscall(add_key, b"user", b"fastns-secret", b"secret", 6, -3)
assert session > 0 and key > 0, ctypes.get_errno()
told = {"caller": [session, key]}
args = ["--keys", str(key), "fastns-secret"]
told["a child"] = [json.loads(subprocess.check_output([probe, *args]))]
for more in ("", "init", "user", "template", "ready", "user-template"):
    fields = dict(json.loads(sys.argv[3]), rootfs=root, init=more == "init")
    if more.startswith("user"):
        fields["namespaces"] = {"user": "new"}
    if more.endswith(("template", "ready")):
        with Template(Spec(**fields), ready=2 if more == "ready" else 0) as template:
            found = [template.run(["/probe", *args], capture_output=True) for _ in range(3)]
    else:
        spec = Spec(**fields)
        found = [fastns.run(["/probe", *args], spec=spec, capture_output=True) for _ in range(3)]
    told[more or "direct"] = [json.loads(done.stdout) for done in found]
print(json.dumps(told))
"""
WAYS = ("direct", "init", "user", "template", "ready", "user-template")
CALLS = ("read", "link", "search", "request")


@pytest.fixture(scope="module", autouse=True)
def keys() -> None:
    if not Path("/proc/keys").exists():
        support.skip_missing("keyrings in the kernel")


def told(root: Path, probe: Path, **fields: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(script(LOOK, str(root), str(probe), json.dumps(fields)))
    return found


def test_the_callers_keys_are_out_of_reach(probe_rootfs: Path, probe: Path) -> None:
    found = told(probe_rootfs, probe, seccomp="unconfined")
    session, _key = found["caller"]
    (child,) = found["a child"]
    assert child["session"] == session  # the control
    assert {name: child[name] for name in CALLS} == dict.fromkeys(CALLS, "worked")
    for way in WAYS:
        for seen in found[way]:
            assert seen["session"] != session, way
            assert {seen["read"], seen["link"]} == {"EACCES"}, way
            assert {seen["search"], seen["request"]} <= {"ENOKEY", "EACCES"}, way
    for way in ("direct", "init", "user"):  # each has its own, new keyring
        assert len({seen["session"] for seen in found[way]}) == 3
        assert {seen["add"] for seen in found[way]} == {"worked"}
    for way in ("template", "ready", "user-template"):  # shared, so none may add to it
        assert {seen["add"] for seen in found[way]} == {"EACCES"}


def test_the_default_filter_refuses_keys(probe_rootfs: Path, probe: Path) -> None:
    found = told(probe_rootfs, probe)
    for way in WAYS:
        for seen in found[way]:
            assert {seen[name] for name in (*CALLS, "add")} == {"EPERM"}
            assert {seen["session"], seen["user"]} == {-1}


QUOTA = """
import ctypes, platform
from fastns import Spec
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
keyctl, add_key = {"x86_64": (250, 248), "aarch64": (219, 217)}[platform.machine()]
assert libc.syscall(keyctl, 1, None) > 0
made = 0

def fill():
    global made
    while libc.syscall(add_key, b"keyring", b"%d" % made, None, 0, -3) > 0:
        made += 1
    assert ctypes.get_errno() == 122, ctypes.get_errno()

def outcome(spec):
    try:
        return str(fastns.run(["/true"], spec=spec).returncode)
    except fastns.SpawnError as error:
        op = fastns.compile(spec).ops[error.op_index]
        return f"{error.stage} {error.errno} {op.code} {'maxkeys' in error.hint}"

for fields in ({}, {"init": True}, {"seccomp": "unconfined"}):
    for _ in range(100):  # the kernel frees keys of earlier sandboxes with a delay
        fill()
        found = outcome(Spec(rootfs=sys.argv[1], **fields))
        if found != "0" or "seccomp" not in fields:
            break
    print(found)
"""


@pytest.mark.as_user
def test_a_quota_that_is_used_up(probe_rootfs: Path) -> None:
    """Without a filter the start fails. With the default filter, which refuses keys anyway, the
    start needs no keyring."""
    lines = script(QUOTA, str(probe_rootfs)).splitlines()
    assert lines == ["0", "0", f"keyring {errno.EDQUOT} keyring True"]


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.EPERM])
def test_a_machine_without_keys(probe_rootfs: Path, error: int) -> None:
    """Sandboxes start if the kernel lacks keyctl(2) or a filter refuses it."""
    code = "print(fastns.run([sys.argv[1]], spec=fastns.Spec(seccomp='unconfined')).returncode)"
    assert without("keyctl", error, code, "/bin/true") == "0\n"
