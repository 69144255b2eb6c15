"""The probe works when run on the host. Other tests rely on it."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest


def probe_run(probe: Path, *args: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([probe, *args], capture_output=True, timeout=20, **options)


def test_report_agrees_with_python(host_report: dict[str, Any]) -> None:
    assert host_report["ppid"] == os.getpid()
    assert host_report["uid"] == os.getuid()
    assert host_report["groups"] == os.getgroups()
    assert host_report["hostname"] == socket.gethostname()
    assert host_report["cwd"] == os.getcwd()
    assert set(host_report["root"]) == set(os.listdir("/"))
    assert host_report["dev"]["null"]["rdev"] == [1, 3]
    assert host_report["dev"]["null"]["type"] == "char"
    assert set(host_report["interfaces"]) == {name for _, name in socket.if_nameindex()}
    assert host_report["interfaces"]["lo"]["address"] == "127.0.0.1"
    for name, target in host_report["namespaces"].items():
        assert target == os.readlink(f"/proc/self/ns/{name}")
    for name, limits in host_report["rlimits"].items():
        assert tuple(limits) == resource.getrlimit(getattr(resource, name, 10)), name
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    assert [mount["id"] for mount in host_report["mounts"]] == [int(x.split()[0]) for x in lines]
    assert host_report["queue_count"] == len(host_report["queues"])
    assert os.getpid() in host_report["proc_pids"]


def test_report_sees_fds_signals_and_bytes(probe: Path) -> None:
    from support import parse_report

    read_end, write_end = os.pipe()
    try:
        done = probe_run(
            probe,
            "--",
            b'\xff\xc3\xa9\n"',
            pass_fds=(read_end,),
            env={b"K": b"\xfe"},
            preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1}),
            restore_signals=False,
        )
    finally:
        os.close(read_end)
        os.close(write_end)
    report = parse_report(done.stdout)
    assert [entry["fd"] for entry in report["fds"]] == [0, 1, 2, read_end]
    assert report["fd_count"] == 4
    assert report["signals"]["blocked"] == [signal.SIGUSR1]
    assert signal.SIGPIPE in report["signals"]["ignored"]
    assert report["argv"][2] == os.fsdecode(b'\xff\xc3\xa9\n"')
    assert report["environ"] == ["K=" + os.fsdecode(b"\xfe")]


@pytest.mark.parametrize(
    ("args", "status"),
    [
        (["--exit", "7"], 7),
        (["--signal", "15"], -signal.SIGTERM),
        (["--crash"], -signal.SIGILL),
        (["--sleep", "0.01"], 0),
        (["--unknown"], 2),
        (["--exit"], 2),
    ],
)
def test_status(probe: Path, args: list[str], status: int) -> None:
    """The probe ends with the exit code or the signal that its arguments request."""
    assert probe_run(probe, *args).returncode == status


def test_files(probe: Path, tmp_path: Path) -> None:
    """--write, --read, --mkdir and --stat work, and errors name the call and the path."""
    assert probe_run(probe, "--write", str(tmp_path / "f"), "text").returncode == 0
    assert probe_run(probe, "--read", str(tmp_path / "f")).stdout == b"text"
    assert probe_run(probe, "--mkdir", str(tmp_path / "d")).returncode == 0
    assert b'"type":"directory"' in probe_run(probe, "--stat", str(tmp_path / "d")).stdout
    done = probe_run(probe, "--mkdir", str(tmp_path / "d"))
    assert (done.returncode, done.stderr) == (1, f"probe: mkdir {tmp_path}/d: EEXIST\n".encode())


def test_streams(probe: Path) -> None:
    """--flood and --echo write to the right streams."""
    done = probe_run(probe, "--flood", "both", "100000")
    assert done.stdout == done.stderr == b"x" * 100_000
    assert probe_run(probe, "--flood", "stderr", "3").stderr == b"xxx"
    assert probe_run(probe, "--echo", input=b"a\0b").stdout == b"a\0b"


def test_daemons_outlive_the_probe(probe: Path) -> None:
    done = probe_run(probe, "--fork-sleep", "2", "60")
    pids = [int(line) for line in done.stdout.split()]
    assert len(pids) == 2
    for pid in pids:
        assert Path(f"/proc/{pid}/comm").read_text() == "probe\n"
        os.kill(pid, signal.SIGKILL)


def test_listen_and_connect(probe: Path) -> None:
    with socket.socket() as probing:
        probing.bind(("127.0.0.1", 0))
        port = str(probing.getsockname()[1])
    assert b"ECONNREFUSED" in probe_run(probe, "--connect", port).stderr
    with subprocess.Popen(
        [probe, "--listen", port], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"listening\n"
        assert probe_run(probe, "--connect", port).stdout == b"connected\n"


def test_queue(probe: Path) -> None:
    """--msgget makes a message queue and prints its id."""
    made = probe_run(probe, "--msgget").stdout.decode().strip()
    try:
        assert made in Path("/proc/sysvipc/msg").read_text().split()
    finally:
        subprocess.run(["ipcrm", "-q", made], check=True)
