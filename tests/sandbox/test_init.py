"""init=True: pid 1 is a reaper with memory of its own, and the command is its child."""

from __future__ import annotations

import errno
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
from processes import eventually, marked, marker

import fastns
from fastns import SpawnError, Spec

Report = Callable[..., dict[str, Any]]
F_GET_SEALS, EVERY_SEAL = 1034, 0xF  # seal, shrink, grow, write


def spec(root: Path, **fields: Any) -> Spec:
    return Spec(rootfs=root, init=True, **fields)


def vm_size(pid: int | str) -> int:
    """KiB of address space; /proc/PID/status may be read by everybody."""
    found = re.search(r"VmSize:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1])


def test_the_command_is_its_child(report: Report) -> None:
    seen = report(init=True)
    assert (seen["pid"], seen["ppid"], seen["proc_pids"]) == (2, 1, [1, 2])
    # Nothing of the reaper's is the command's.
    assert [entry["fd"] for entry in seen["fds"]] == [0, 1, 2]
    assert seen["signals"] == {"blocked": [], "ignored": [], "caught": []}
    assert seen["dumpable"] == 1


@pytest.mark.parametrize("code", [0, 1, 2, 126, 127, 128, 255])
def test_exit_codes(probe_rootfs: Path, code: int) -> None:
    done = fastns.run(["/probe", "--exit", str(code)], spec=spec(probe_rootfs))
    assert (done.returncode, done.exit_code) == (code, code)


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGTERM, signal.SIGABRT, signal.SIGHUP])
def test_signals_of_the_command(probe_rootfs: Path, sig: int) -> None:
    done = fastns.run(["/probe", "--signal", str(int(sig))], spec=spec(probe_rootfs))
    assert (done.returncode, done.exit_code) == (-sig, 128 + sig)


def test_a_crash(probe_rootfs: Path) -> None:
    assert fastns.run(["/probe", "--crash"], spec=spec(probe_rootfs)).returncode == -signal.SIGILL


def test_a_command_that_is_missing(probe_rootfs: Path) -> None:
    for command, code in (("/missing", errno.ENOENT), ("/etc/hosts", errno.EACCES)):
        with pytest.raises(SpawnError) as caught:
            fastns.run([command], spec=spec(probe_rootfs))
        assert (caught.value.stage, caught.value.errno) == ("exec", code)


def test_orphans_are_reaped(probe_rootfs: Path) -> None:
    zombies = []
    for each in (spec(probe_rootfs), Spec(rootfs=probe_rootfs)):
        done = fastns.run(
            ["/probe", "--zombies", "20"], spec=each, capture_output=True, text=True, timeout=20
        )
        zombies.append(int(done.stdout.split()[0]))
    # The control: without a reaper the orphans belong to pid 1, which does not wait for them.
    assert zombies == [0, 20]


def test_it_ends_with_the_command_and_takes_all_along(probe_rootfs: Path) -> None:
    mark = marker()
    done = fastns.run(
        ["/probe", "--fork-sleep", "3", mark],
        spec=spec(probe_rootfs), capture_output=True, text=True, timeout=20,
    )  # fmt: skip
    assert done.returncode == 0
    assert len(done.stdout.split()) == 3
    assert eventually(lambda: not marked(mark))


@pytest.mark.parametrize(
    "sig", ["HUP", "INT", "QUIT", "USR1", "USR2", "ALRM", "TERM", "IO", "PWR", "RTMIN"]
)
def test_signals_are_passed_on(probe_rootfs: Path, sig: str) -> None:
    number = getattr(signal, f"SIG{sig}")
    with fastns.spawn(["/probe", "--sleep", "60"], spec=spec(probe_rootfs)) as sandbox:
        sandbox.send_signal(number)
        assert sandbox.wait(timeout=20) == -number


def test_signals_are_lost_without_it(probe_rootfs: Path) -> None:
    """The control: as pid 1 the command gets only signals for which it has a handler."""
    with fastns.spawn(
        ["/probe", "--echo"], spec=Spec(rootfs=probe_rootfs), stdin=fastns.PIPE
    ) as sandbox:
        sandbox.terminate()
        sandbox.communicate(b"")
    assert sandbox.returncode == 0


def test_its_own_signals_are_lost_without_it() -> None:
    """The example of docs/guide/signals.md: a shell as pid 1 reports the signal of which a program
    died."""
    raises = "kill -ABRT $$; exit 42"
    assert fastns.run(["sh", "-c", raises]).returncode == 42
    assert fastns.run(["sh", "-c", raises], spec=Spec(init=True)).returncode == -signal.SIGABRT
    host = Spec(namespaces={"pid": "host"})
    assert fastns.run(["sh", "-c", raises], spec=host).returncode == -signal.SIGABRT
    with fastns.Template() as template:
        assert template.run(["sh", "-c", raises]).returncode == 42
        assert template.run(["sh", "-c", f"sh -c '{raises}'; exit $?"]).exit_code == 134


def test_the_command_decides(debian_rootfs: Path) -> None:
    """Signals that are passed on arrive once each, in the order sent, and the command may go on."""
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


def test_kill_ends_all(probe_rootfs: Path) -> None:
    mark = marker()
    with fastns.spawn(["/probe", "--sleep", mark], spec=spec(probe_rootfs)) as sandbox:
        assert eventually(lambda: len(marked(mark)) == 1)  # its argv is set late in execve(2)
        sandbox.kill()
        assert sandbox.wait(timeout=20) == -signal.SIGKILL
    assert eventually(lambda: not marked(mark))


# ---- it is nothing of the caller's ----


def test_its_memory_is_its_own(probe_rootfs: Path) -> None:
    """Not the caller's memory, which is many times larger and is not shared after the exec."""
    with fastns.spawn(["/probe", "--sleep", "60"], spec=spec(probe_rootfs)) as sandbox:
        assert vm_size(sandbox.pid) < 1024 < vm_size("self")
        if support.is_root():
            maps = Path(f"/proc/{sandbox.pid}/maps").read_text()
            files = {line.split(maxsplit=5)[5] for line in maps.splitlines() if "/" in line}
            assert files == {"/memfd:fastns (deleted)"}
        else:  # not dumpable: nobody may read its memory
            with pytest.raises(PermissionError):
                Path(f"/proc/{sandbox.pid}/maps").read_text()
        sandbox.kill()


@pytest.mark.as_root
def test_its_file_is_sealed(probe_rootfs: Path) -> None:
    with fastns.spawn(["/probe", "--sleep", "60"], spec=spec(probe_rootfs)) as sandbox:
        exe = f"/proc/{sandbox.pid}/exe"
        assert os.readlink(exe) == "/memfd:fastns (deleted)"
        with open(exe, "rb") as file:
            assert fcntl.fcntl(file, F_GET_SEALS) & EVERY_SEAL == EVERY_SEAL
        with pytest.raises(OSError, match=r"Text file busy|Operation not permitted"):
            os.open(exe, os.O_RDWR)
        held = os.listdir(f"/proc/{sandbox.pid}/fd")
        assert len(held) == 1  # the socket that tells the end; none of stdio
        sandbox.kill()


def test_its_file_cannot_be_changed_from_inside(bash_rootfs: Path) -> None:
    """The command can open neither the program of pid 1 nor, through it, a file of the host
    (CVE-2019-5736)."""
    for how in (": > /proc/1/exe", ": >> /proc/1/exe", "exec 3<>/proc/1/exe"):
        with pytest.raises(ChildProcessError, match=r"Permission denied|Text file busy"):
            inside.shell(bash_rootfs, how, init=True)


def test_nobody_inside_may_look_into_it(bash_rootfs: Path) -> None:
    """Root of the initial user namespace may read its memory and fds; a process with fewer rights
    may not."""
    ranges = {} if support.is_root() else inside.ranges()
    for path in ("/proc/1/mem", "/proc/1/environ", "/proc/1/maps"):
        with pytest.raises(ChildProcessError, match="Permission denied"):
            inside.shell(bash_rootfs, f"cat {path}", init=True, user="5:6", **ranges)
    with pytest.raises(ChildProcessError, match="Permission denied"):
        inside.shell(bash_rootfs, "ls /proc/1/fd", init=True, user="5:6", **ranges)


def test_it_works_with_everything_else(report: Report) -> None:
    seen = report(init=True, overlay=True, read_only=True, hostname="inside", umask=0o077,
                  files={"/etc/hosts": "x"}, namespaces={"user": "new"}, user="5:6")  # fmt: skip
    assert (seen["uid"], seen["gid"], seen["hostname"]) == (5, 6, "inside")
    assert seen["pid"] == 2
