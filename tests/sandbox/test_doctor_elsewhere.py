"""`fastns doctor` in limited environments: in a user namespace, under a container's filter, in a
sandbox, without libseccomp. It names the environment and a fix, and never ends in a traceback."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import support

import fastns
from fastns import Mount, Spec

Checks = dict[str, dict[str, Any]]
DOCTOR = [sys.executable, "-m", "fastns", "doctor"]
PLACES = ("bin", "sbin", "lib", "lib32", "lib64", "usr")

# Loads Docker's filter for processes without CAP_SYS_ADMIN, then executes its arguments.
DOCKER = """
import ctypes, os, sys
from fastns import seccomp
def refused(names, code, args=()):
    return {"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": code, "args": args}
calls = ("mount umount2 unshare setns pivot_root open_tree move_mount fsopen fsconfig fsmount "
    "fspick mount_setattr keyctl add_key request_key bpf perf_event_open").split()
bits = (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)
flag = lambda bit: [{"index": 0, "value": bit, "valueTwo": bit, "op": "SCMP_CMP_MASKED_EQ"}]
rules = [refused(["clone3"], 38), refused(calls, 1)]
rules += [refused(["clone"], 1, flag(bit)) for bit in bits]
profile = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}
code = seccomp.build(seccomp.profile_of(profile))
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
program = Program(len(code) // 8, code)
assert libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0  # PR_SET_SECCOMP
os.execvp(sys.argv[1], sys.argv[1:])
"""
IN_DOCKER = [sys.executable, "-c", DOCKER]
WITHOUT_LIBSECCOMP = [
    sys.executable,
    "-c",
    "import sys; from fastns._policy import libseccomp; libseccomp.LIBRARY = 'libnone.so'\n"
    "from fastns.cli import main; sys.exit(main(sys.argv[1:]))",
]


def examined(command: list[str]) -> tuple[int, Checks]:
    """Run the doctor in both formats; return the exit code and the checks."""
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=120)
    assert done.stderr == ""
    return done.returncode, judged(done.stdout)


def judged(output: str) -> Checks:
    checks = json.loads(output)
    for check in checks:
        assert "doctor" not in f"{check['detail']} {check['fix']}".replace("-doctor-", ""), check
        assert "Error(" not in check["detail"], check
    return {check["name"]: check for check in checks}


def failing(checks: Checks) -> set[str]:
    return {n for n, c in checks.items() if c["ok"] is False and c["level"] == "basic"}


@pytest.fixture
def with_userns() -> None:
    done = subprocess.run(["unshare", "-Ur", "true"], capture_output=True)
    if done.returncode:
        support.skip_missing("user namespaces for unshare(1)")


def test_on_the_host() -> None:
    """The control: no check fails."""
    code, checks = examined(DOCTOR)
    assert (code, failing(checks)) == (0, set())
    assert checks["environment"]["detail"] == "the host's ids, no filter of system calls"
    if support.is_root():
        assert checks["privilege"]["detail"].endswith("a range of ids for its sandboxes")
        assert "root maps any id" in checks["id ranges"]["detail"]
        assert "roots and binds keep their owners" in checks["idmapped mounts"]["detail"]


def test_in_a_user_namespace(with_userns: None) -> None:
    """The doctor names the user namespace, and no basic check fails."""
    code, checks = examined(["unshare", "-Ur", *DOCTOR])
    assert (code, failing(checks)) == (0, set())
    assert checks["environment"]["detail"] == "a user namespace with one id"
    assert "in this user namespace only" in checks["privilege"]["detail"]
    assert checks["id ranges"]["detail"].startswith("this user namespace has one id")
    assert "any id" not in str(checks)
    assert checks["idmapped mounts"]["ok"] is None


@pytest.mark.parametrize("drop", [False, True], ids=["all rights", "docker's rights"])
def test_under_dockers_filter(drop: bool) -> None:
    """The doctor names the filter, and the fixes name Docker's option."""
    setpriv = ["setpriv", "--bounding-set", "-sys_admin,-sys_ptrace,-net_admin", "--inh-caps=-all"]
    if drop and not support.is_root():
        return  # a user has no rights to drop
    code, checks = examined([*(setpriv if drop else []), *IN_DOCKER, *DOCTOR])
    assert code == 1
    assert "a container or a sandbox: a filter of system calls" in checks["environment"]["detail"]
    assert failing(checks) >= {"open_tree()", "mount namespace", "default sandbox"}
    for name in failing(checks):
        assert "docker run --security-opt seccomp=unconfined" in checks[name]["fix"], name
    assert checks["mount tables"]["detail"] == "unknown: open_tree() is refused"
    assert checks["system call filter"]["ok"]


def test_the_lines_do_not_repeat_a_fix() -> None:
    done = subprocess.run([*IN_DOCKER, *DOCTOR], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (1, "")
    fixes = [line for line in done.stdout.splitlines() if line.startswith("  fix: ")]
    assert sum("seccomp=unconfined" in line for line in fixes) == 1
    assert fixes.count("  fix: the same") > 5


def test_without_libseccomp() -> None:
    """Only custom profiles need libseccomp."""
    code, checks = examined([*WITHOUT_LIBSECCOMP, "doctor"])
    assert code == 0
    missing = checks["custom profiles"]
    assert not missing["ok"]
    assert missing["fix"] == "install libseccomp (Debian: libseccomp2)"
    assert checks["default sandbox"]["ok"]


# ---- in a sandbox ----


@contextlib.contextmanager
def sandbox_with_fastns(tmp_path: Path, **fields: Any) -> Iterator[Spec]:
    """A sandbox whose root has this interpreter and this package."""
    root = tmp_path / "root"
    root.mkdir()
    mounts = []
    for name in PLACES:
        host = Path("/", name)
        if host.is_symlink():
            (root / name).symlink_to(os.readlink(host))
        elif host.is_dir():
            mounts.append(Mount(f"/{name}", source=f"/{name}", options=["rbind", "ro"]))
    own = {sys.prefix, sys.base_prefix, str(Path(fastns.__file__).parent)}
    for path in sorted(own):
        if not path.startswith("/usr"):
            mounts.append(Mount(path, source=path, options=["rbind", "ro"]))
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(fastns.__file__).parents[1])}
    yield Spec(rootfs=root, overlay=True, mounts=mounts, env=env, **fields)


@pytest.mark.parametrize("way", ["direct", "init", "template"])
def test_in_a_sandbox(tmp_path: Path, way: str) -> None:
    """The doctor names the sandbox, and the fixes name fastns' option."""
    if way == "template" and not support.is_root():
        return  # a user's template cannot have this overlay
    with sandbox_with_fastns(tmp_path, init=way == "init") as spec, contextlib.ExitStack() as stack:
        options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 120}
        if way == "template":
            done = stack.enter_context(fastns.Template(spec)).run([*DOCTOR, "--json"], **options)
        else:
            done = fastns.run([*DOCTOR, "--json"], spec=spec, **options)
    assert (done.returncode, done.stderr) == (1, "")
    checks = judged(done.stdout)
    words = checks["environment"]["detail"]
    assert words.startswith("a container or a sandbox: a user namespace with ")
    assert "a filter of system calls, no_new_privileges" in words
    assert "default sandbox" in failing(checks)
    for name in failing(checks):
        assert "in a sandbox of fastns --security-opt seccomp=unconfined" in checks[name]["fix"]


@pytest.mark.parametrize("user", ["0:0", "7:7"])
def test_in_a_sandbox_without_a_filter(tmp_path: Path, user: str) -> None:
    """Namespaces can be made, as the fixes in the test above promise. For uid 0 they cannot, and
    the fix names another user."""
    with sandbox_with_fastns(tmp_path, seccomp="unconfined", user=user) as spec:
        done = fastns.run([*DOCTOR, "--json"], spec=spec, capture_output=True, text=True)
    assert done.stderr == ""
    checks = judged(done.stdout)
    assert "filter" not in checks["environment"]["detail"]
    for name in ("user", "mount", "pid", "network"):
        check = checks[f"{name} namespace"]
        assert check["ok"] == (user != "0:0"), check
        assert user != "0:0" or "-u 1000:1000" in check["fix"]
    assert not any("seccomp" in (check["fix"] or "") for check in checks.values())


def test_without_proc(tmp_path: Path) -> None:
    """A check that cannot run is reported as failed."""
    mounts = [Mount("/proc", type="tmpfs")]
    with sandbox_with_fastns(tmp_path) as spec:
        spec = Spec(**{**vars(spec), "mounts": [*spec.mounts, *mounts]})
        done = fastns.run([*DOCTOR, "--json"], spec=spec, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "")
    checks = judged(done.stdout)
    assert checks["environment"]["detail"].startswith("unknown (/proc/thread-self/status")
    assert checks["environment"]["fix"] == "mount -t proc proc /proc"
