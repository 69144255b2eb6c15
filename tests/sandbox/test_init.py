"""With init=True, pid 1 is a reaper with its own memory, and the command is its child."""

from __future__ import annotations

import fcntl
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import inside
import pytest
import support

import fastns
from fastns import Spec

Report = Callable[..., dict[str, Any]]
F_GET_SEALS, EVERY_SEAL = 1034, 0xF  # seal, shrink, grow, write


def spec(root: Path, **fields: Any) -> Spec:
    return Spec(rootfs=root, init=True, **fields)


def vm_size(pid: int | str) -> int:
    """The address space in KiB. Any user may read /proc/PID/status."""
    found = re.search(r"VmSize:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1])


def test_the_command_is_its_child(report: Report) -> None:
    """The command is pid 2, the child of the reaper."""
    seen = report(init=True)
    assert (seen["pid"], seen["ppid"], seen["proc_pids"]) == (2, 1, [1, 2])
    # The command inherits nothing of the reaper.
    assert [entry["fd"] for entry in seen["fds"]] == [0, 1, 2]
    assert seen["signals"] == {"blocked": [], "ignored": [], "caught": []}
    assert seen["dumpable"] == 1


def test_orphans_are_reaped(probe_rootfs: Path) -> None:
    zombies = []
    for each in (spec(probe_rootfs), Spec(rootfs=probe_rootfs)):
        done = fastns.run(
            ["/probe", "--zombies", "20"], spec=each, capture_output=True, text=True, timeout=20
        )
        zombies.append(int(done.stdout.split()[0]))
    # The control: without a reaper the command is pid 1, and it does not reap orphans.
    assert zombies == [0, 20]


@pytest.mark.parametrize(
    "sig", ["HUP", "INT", "QUIT", "USR1", "USR2", "ALRM", "TERM", "IO", "PWR", "RTMIN"]
)
def test_signals_are_forwarded(probe_rootfs: Path, sig: str) -> None:
    number = getattr(signal, f"SIG{sig}")
    with fastns.spawn(["/probe", "--sleep", "60"], spec=spec(probe_rootfs)) as sandbox:
        sandbox.send_signal(number)
        assert sandbox.wait(timeout=20) == -number


def test_signals_are_lost_without_a_reaper(probe_rootfs: Path) -> None:
    """The control: as pid 1 the command gets only signals for which it has a handler."""
    with fastns.spawn(
        ["/probe", "--echo"], spec=Spec(rootfs=probe_rootfs), stdin=fastns.PIPE
    ) as sandbox:
        sandbox.terminate()
        sandbox.communicate(b"")
    assert sandbox.returncode == 0


def test_a_pid_1s_signals_to_itself_are_lost() -> None:
    """The example of docs/guide/signals.md: a shell as pid 1 cannot kill itself with a signal."""
    raises = "kill -ABRT $$; exit 42"
    assert fastns.run(["sh", "-c", raises]).returncode == 42
    assert fastns.run(["sh", "-c", raises], spec=Spec(init=True)).returncode == -signal.SIGABRT
    host = Spec(namespaces={"pid": "host"})
    assert fastns.run(["sh", "-c", raises], spec=host).returncode == -signal.SIGABRT
    with fastns.Template() as template:
        assert template.run(["sh", "-c", raises]).returncode == 42
        assert template.run(["sh", "-c", f"sh -c '{raises}'; exit $?"]).exit_code == 134


def test_forwarded_signals_arrive_in_order(debian_rootfs: Path) -> None:
    """Each signal arrives once, and the command continues after it."""
    code = """
import signal, sys
wanted = {signal.SIGUSR1, signal.SIGTERM}
signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
print("up", flush=True)
while (number := signal.sigwait(wanted)) != signal.SIGTERM:
    print(number.name, flush=True)
sys.exit(9)
"""
    with fastns.spawn(
        ["python3", "-ISc", code], spec=spec(debian_rootfs), stdout=fastns.PIPE
    ) as sandbox:
        assert sandbox.stdout is not None
        assert sandbox.stdout.readline() == b"up\n"
        for _ in range(50):
            sandbox.send_signal(signal.SIGUSR1)
            assert sandbox.stdout.readline() == b"SIGUSR1\n"
        sandbox.terminate()
        assert sandbox.wait(timeout=20) == 9
        assert sandbox.stdout.read() == b""


# ---- the reaper has nothing of the caller ----


def test_the_reapers_memory_is_its_own(probe_rootfs: Path) -> None:
    """After the exec it does not share the caller's memory, which is many times larger."""
    with fastns.spawn(["/probe", "--sleep", "60"], spec=spec(probe_rootfs)) as sandbox:
        assert vm_size(sandbox.pid) < 1024 < vm_size("self")
        if support.is_root():
            maps = Path(f"/proc/{sandbox.pid}/maps").read_text()
            files = {line.split(maxsplit=5)[5] for line in maps.splitlines() if "/" in line}
            assert files == {"/memfd:fastns (deleted)"}
        else:  # not dumpable: a user may not read its memory
            with pytest.raises(PermissionError):
                Path(f"/proc/{sandbox.pid}/maps").read_text()
        sandbox.kill()


@pytest.mark.as_root
def test_the_reapers_program_is_sealed(probe_rootfs: Path) -> None:
    with fastns.spawn(["/probe", "--sleep", "60"], spec=spec(probe_rootfs)) as sandbox:
        exe = f"/proc/{sandbox.pid}/exe"
        assert os.readlink(exe) == "/memfd:fastns (deleted)"
        with open(exe, "rb") as file:
            assert fcntl.fcntl(file, F_GET_SEALS) & EVERY_SEAL == EVERY_SEAL
        with pytest.raises(OSError, match=r"Text file busy|Operation not permitted"):
            os.open(exe, os.O_RDWR)
        held = os.listdir(f"/proc/{sandbox.pid}/fd")
        assert len(held) == 1  # the control socket; stdio is closed
        sandbox.kill()


def test_the_reapers_program_cannot_be_changed_from_inside(bash_rootfs: Path) -> None:
    """The command cannot open it for writing, nor reach a file of the host through it
    (CVE-2019-5736)."""
    for how in (": > /proc/1/exe", ": >> /proc/1/exe", "exec 3<>/proc/1/exe"):
        with pytest.raises(ChildProcessError, match=r"Permission denied|Text file busy"):
            inside.shell(bash_rootfs, how, init=True)


def test_the_reapers_memory_and_fds_are_out_of_reach(bash_rootfs: Path) -> None:
    """Only root of the initial user namespace may read them."""
    ranges = {} if support.is_root() else inside.ranges()
    for path in ("/proc/1/mem", "/proc/1/environ", "/proc/1/maps"):
        with pytest.raises(ChildProcessError, match="Permission denied"):
            inside.shell(bash_rootfs, f"cat {path}", init=True, user="5:6", **ranges)
    with pytest.raises(ChildProcessError, match="Permission denied"):
        inside.shell(bash_rootfs, "ls /proc/1/fd", init=True, user="5:6", **ranges)


def test_init_with_other_fields(report: Report) -> None:
    """A reaper does not change what other fields do."""
    seen = report(init=True, overlay=True, read_only=True, hostname="inside", umask=0o077,
                  files={"/etc/hosts": "x"}, namespaces={"user": "new"}, user="5:6")  # fmt: skip
    assert (seen["uid"], seen["gid"], seen["hostname"]) == (5, 6, "inside")
    assert seen["pid"] == 2
