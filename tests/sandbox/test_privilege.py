"""A sandbox has no capabilities, gains no privileges, and has a session of its own."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import support
from inside import runner

import fastns
from fastns import SpawnError, Spec

WAYS = [
    "direct",
    "init",
    "user",
    "template",
    "ready",
    "user-template",
    "rooms",
    "container",
    "user-container",
]
SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")


def status(go: Any, pid: str = "self") -> dict[str, str]:
    out = go(["cat", f"/proc/{pid}/status"], capture_output=True, text=True).stdout
    return {
        key: value.strip() for key, _, value in (line.partition(":") for line in out.split("\n"))
    }


@pytest.mark.parametrize("way", WAYS)
def test_there_are_no_capabilities(busybox_rootfs: Path, way: str) -> None:
    admin = ["SYS_ADMIN", "NET_ADMIN", "SYS_CHROOT"]
    with runner(way, rootfs=busybox_rootfs) as go:
        found = status(go)
        assert {name: int(found[name], 16) for name in SETS} == dict.fromkeys(SETS, 0)
        assert found["NoNewPrivs"] == "1"
        for attempt in (
            "mount -t tmpfs x /mnt",
            "hostname x",
            "ip link set lo down",
            "chroot / ls",
        ):
            assert go(["sh", "-c", attempt], capture_output=True).returncode != 0, attempt
    with runner(way, rootfs=busybox_rootfs, capabilities=admin) as go:  # the control
        assert go(["sh", "-c", "mount -t tmpfs x /mnt && hostname x"]).returncode == 0
        assert go(["sh", "-c", "ip link set lo down && chroot / ls"], stdout=-3).returncode == 0


@pytest.mark.parametrize("way", WAYS)
def test_only_the_specs_capabilities(busybox_rootfs: Path, way: str) -> None:
    with runner(way, rootfs=busybox_rootfs, capabilities=["net_raw", "CAP_SYS_TIME"]) as go:
        found = status(go)
    assert {int(found[name], 16) for name in SETS} == {1 << 13 | 1 << 25}


@pytest.mark.parametrize(("way", "root_is_locked"), [("user", False), ("user-template", True)])
def test_a_user_namespace_that_owns_its_mounts_can_change_them(
    busybox_rootfs: Path, way: str, root_is_locked: bool
) -> None:
    """See SECURITY.md. With root's range of ids the mounts are locked (test_range.py)."""
    given: dict[str, Any] = {"read_only": True, "capabilities": ["SYS_ADMIN"]}
    with runner(way, rootfs=busybox_rootfs, **given) as go:
        mask = go(["umount", "/proc/sys"], capture_output=True)
        root = go(["mount", "-o", "remount,bind,rw", "/"], capture_output=True)
    assert mask.returncode == 0, mask.stderr
    assert (root.returncode != 0) == root_is_locked, root.stderr


@pytest.mark.as_root
@pytest.mark.parametrize("init", [False, True])
def test_another_user_keeps_capabilities_through_the_exec(busybox_rootfs: Path, init: bool) -> None:
    given = {"capabilities": ["NET_RAW"], "user": "5:6", "init": init}
    with runner("direct" if not init else "init", rootfs=busybox_rootfs) as go:
        assert int(status(go)["CapEff"], 16) == 0
    spec = Spec(rootfs=busybox_rootfs, **given)  # type: ignore[arg-type]
    done = fastns.run(["grep", "Cap", "/proc/self/status"], spec=spec, capture_output=True)
    assert done.stdout.count(b"0000000000002000") == 5


@pytest.mark.parametrize("way", ["init", "user-init"])
def test_the_reaper_has_no_capabilities_when_the_command_starts(
    probe_rootfs: Path, way: str
) -> None:
    """The reaper drops its capabilities, and another process executes the command. The drop must
    come first, so each of many commands checks it as soon as it starts."""
    own = {"namespaces": {"user": "new"}} if way == "user-init" else {}
    plan = fastns.compile(Spec(rootfs=probe_rootfs, init=True, capabilities=["NET_RAW"], **own))
    for _ in range(200):
        done = fastns.run(["/probe", "--read", "/proc/1/status"], spec=plan, capture_output=True)
        sets = [line.split() for line in done.stdout.splitlines() if line.startswith(b"Cap")]
        found = {name.decode().rstrip(":"): int(value, 16) for name, value in sets}
        assert found == {name: 1 << 13 if name == "CapBnd" else 0 for name in SETS}


SETUID = r"""
#include <stdio.h>
#include <unistd.h>
int main(void) { printf("%d\n", geteuid()); return 0; }
"""


@pytest.mark.as_root
@pytest.mark.parametrize("kind", ["setuid", "file capability"])
def test_no_program_gains_anything(busybox_rootfs: Path, tmp_path: Path, kind: str) -> None:
    root = support.copy_tree(busybox_rootfs, tmp_path / "root")
    tmp_path.chmod(0o755)
    program = root / "bin/who"
    (tmp_path / "who.c").write_text(SETUID)
    support.compile_static(tmp_path / "who.c", program)
    if kind == "setuid":
        program.chmod(0o4755)
        args, gained, kept = ["who"], b"0\n", b"5\n"
    else:
        setcap = shutil.which("setcap", path=support.HOST_PATH)
        if setcap is None:
            support.skip_missing("setcap (tests/setup.sh installs libcap2-bin)")
        shutil.copy(root / "bin/busybox", root / "bin/busybox-reader")
        subprocess.run([setcap, "cap_net_raw+p", str(root / "bin/busybox-reader")], check=True)
        args = ["/bin/busybox-reader", "grep", "-c", "CapPrm.*2000", "/proc/self/status"]
        gained, kept = b"1\n", b"0\n"
    spec: dict[str, Any] = {"rootfs": root, "user": "5:5"}
    assert fastns.run(args, spec=Spec(**spec), capture_output=True).stdout == kept
    # The control.
    spec |= {"no_new_privileges": False}
    if kind == "setuid":
        assert fastns.run(args, spec=Spec(**spec), capture_output=True).stdout == gained
    else:  # the empty bounding set prevents it too, so the control runs outside
        inside = ["chroot", "--userspec=5:5", str(root), *args]
        mounted = f"mount -t proc proc {root}/proc && exec {' '.join(inside)}"
        command = ["unshare", "-m", "sh", "-c", mounted]
        assert subprocess.run(command, capture_output=True, check=True).stdout == gained


GIVE = """
import sys, fastns
spec = fastns.Spec(
    rootfs=sys.argv[1], capabilities=["SYS_TIME"], namespaces={"user": "host"}
)
try:
    fastns.run(["true"], spec=spec)
except fastns.SpawnError as error:
    op = fastns.compile(spec).ops[error.op_index]
    print(error.stage, error.errno, op.code, error.hint is not None)
print(fastns.run(["true"], spec=fastns.Spec(rootfs=sys.argv[1])).returncode)
"""


@pytest.mark.as_root
def test_a_caller_cannot_give_a_capability_that_it_lacks(busybox_rootfs: Path) -> None:
    command = ["setpriv", "--bounding-set=-sys_time", sys.executable, "-c", GIVE]
    done = subprocess.run([*command, str(busybox_rootfs)], capture_output=True, text=True)
    assert done.stdout == f"capabilities {errno.EPERM} capabilities True\n0\n", done.stderr


@pytest.mark.parametrize("way", WAYS)
def test_a_signal_to_its_group_does_not_reach_the_caller(busybox_rootfs: Path, way: str) -> None:
    """kill(0, sig) signals the sender's process group, so a sandbox must not be in the caller's."""
    with runner(way, rootfs=busybox_rootfs) as go:
        before = signal.signal(signal.SIGUSR1, lambda *_: reached.append(1))
        reached: list[int] = []
        try:
            go(["sh", "-c", "trap : USR1; kill -USR1 0"], stdin=fastns.DEVNULL)
        finally:
            signal.signal(signal.SIGUSR1, before)
    assert not reached


def test_a_sandbox_has_its_own_session(busybox_rootfs: Path) -> None:
    for init in (False, True):
        spec = Spec(rootfs=busybox_rootfs, init=init)
        with fastns.spawn(["sleep", "60"], spec=spec, stdin=fastns.DEVNULL) as sandbox:
            assert os.getsid(sandbox.pid) == sandbox.pid
            sandbox.kill()


def test_an_unknown_capability() -> None:
    """An unknown name is a SpecError. Known names may omit CAP_ and be in lower case."""
    for wrong in (["NET_RAVE"], ["CAP_"], [""]):
        with pytest.raises(fastns.SpecError) as caught:
            Spec(capabilities=wrong)
        assert caught.value.field == "capabilities"
    assert Spec(capabilities=["sys_admin", "CAP_CHOWN"]).capabilities == (
        "CAP_CHOWN",
        "CAP_SYS_ADMIN",
    )


def test_a_failing_step_leaves_nothing(busybox_rootfs: Path) -> None:
    before = support.host_state()
    with pytest.raises(SpawnError):
        fastns.run(["/missing"], spec=Spec(rootfs=busybox_rootfs, capabilities=["NET_RAW"]))
    assert support.host_change(before) == []
