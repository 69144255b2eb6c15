"""The seed's first programs, one after another: clone.c, uts.c, ipc.c, pid.c and fs.c.

Each program adds one namespace to those of the previous one. The tests read the namespaces from
outside, show their effect with real programs inside, and check the host before, during and after.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from seed.ways import CLI, Box, Outside, Way, flags, host_but, isolated, with_user

from fastns import Mount, Spec, _view


def host_queues() -> dict[str, str]:
    """The host's message queues, listed by `ipcs -q`: id -> key."""
    listed = subprocess.run(["ipcs", "-q"], capture_output=True, text=True, check=True).stdout
    return queues(listed)


def queues(listed: str) -> dict[str, str]:
    rows = (line.split() for line in listed.splitlines() if line.startswith("0x"))
    return {row[1]: row[0] for row in rows}


@pytest.fixture
def queue() -> Iterator[str]:
    """The key of a message queue of the host, made with ipcmk -Q."""
    made = subprocess.run(["ipcmk", "-Q"], capture_output=True, text=True, check=True).stdout
    number = made.split()[-1]
    yield host_queues()[number]
    subprocess.run(["ipcrm", "-q", number], check=True)


def points(mounts: list[str]) -> list[str]:
    """The mount points in the lines of mount(8)."""
    return [line.split()[2] for line in mounts]


# ---- clone.c ----


def test_clone(way: Way, probe: Path, host_report: dict[str, Any], outside: Outside) -> None:
    """A shell runs in a child process without isolation."""
    namespaces = {**host_but(), "user": "host"}
    box = Box(Spec(namespaces=namespaces), flags(namespaces))
    with way.shell(box) as shell:
        assert shell.ask("echo $$ $PPID").split() == [str(shell.pid), str(shell.parent)]
        assert shell.ask("hostname") == os.uname().nodename + "\n"
        assert shell.ask("cat /proc/self/mountinfo") == Path("/proc/self/mountinfo").read_text()
        assert shell.ask("cat /proc/1/comm") == Path("/proc/1/comm").read_text()
        assert isolated(shell.pid) == set()
        seen = shell.report(probe)
        for name in ("namespaces", "hostname", "interfaces", "uid", "uid_map"):
            assert seen[name] == host_report[name], name
        outside.is_the_same(alive=1)
        assert shell.leave(7) == 7
    outside.is_the_same()
    assert way.run(box, "bash", "-c", "echo done; exit 3", exit_code=3) == "done\n"


def test_the_end_is_reported_on_status_fd(tmp_path: Path) -> None:
    """The seed's parent prints a line when the container has stopped. fastns has --status-fd."""
    with open(tmp_path / "status", "wb") as file:
        fd = file.fileno()
        words = ["--status-fd", str(fd), *flags(host_but()), "--", "bash", "-c", "exit 9"]
        assert subprocess.run([*CLI, *words], pass_fds=[fd]).returncode == 9
    status = json.loads((tmp_path / "status").read_text())
    assert (status["exit_code"], status["cause"], status["signal"]) == (9, "exited", None)


# ---- uts.c ----


def test_uts(way: Way, outside: Outside) -> None:
    """A host name set inside does not change that of the host."""
    namespaces = host_but("uts")
    box = Box(
        Spec(namespaces=namespaces, hostname="container", capabilities=["SYS_ADMIN"]),
        ["--hostname", "container", "--cap-add", "SYS_ADMIN", *flags(namespaces)],
    )
    with way.shell(box) as shell:
        assert shell.ask("hostname") == "container\n"
        assert shell.ask("cat /proc/sys/kernel/hostname") == "container\n"
        assert shell.ask("hostname another; hostname") == "another\n"
        assert isolated(shell.pid) == with_user("uts")
        outside.is_the_same(alive=1)
        assert shell.leave() == 0
    outside.is_the_same()
    assert way.run(box, "hostname") == "container\n"


# ---- ipc.c ----


def test_uts_alone_shares_the_hosts_queues(way: Way, queue: str, outside: Outside) -> None:
    """The control of test_ipc: sandbox and host see each other's queues."""
    namespaces = host_but("uts")
    with way.shell(Box(Spec(namespaces=namespaces), flags(namespaces))) as shell:
        assert queue in queues(shell.ask("ipcs -q")).values()
        outside.is_the_same(alive=1)
        number = shell.ask("ipcmk -Q").split()[-1]
        try:
            assert number in host_queues()
        finally:
            subprocess.run(["ipcrm", "-q", number], check=True)
        assert shell.leave() == 0
    outside.is_the_same()


def test_ipc(way: Way, queue: str, probe: Path, outside: Outside) -> None:
    """Sandbox and host do not see each other's message queues."""
    namespaces = host_but("uts", "ipc")
    box = Box(Spec(namespaces=namespaces), flags(namespaces))
    with way.shell(box) as shell:
        assert queues(shell.ask("ipcs -q")) == {}
        assert shell.report(probe)["queue_count"] == 0
        number = shell.ask("ipcmk -Q").split()[-1]
        inside = queues(shell.ask("ipcs -q"))
        assert list(inside) == [number]
        assert inside[number] not in host_queues().values()
        assert queue in host_queues().values()
        assert isolated(shell.pid) == with_user("uts", "ipc")
        outside.is_the_same(alive=1)
        shell.ask(f"ipcrm -q {number}")
        assert queues(shell.ask("ipcs -q")) == {}
        assert shell.leave() == 0
    outside.is_the_same()
    assert queues(way.run(box, "ipcs", "-q")) == {}


# ---- pid.c ----


def test_pid(way: Way, probe: Path, outside: Outside) -> None:
    """The shell is pid 1 inside and has another pid outside. The host's /proc, which is still
    mounted, shows all processes."""
    namespaces = host_but("uts", "ipc", "pid")
    box = Box(
        Spec(namespaces=namespaces, hostname="container"),
        ["--hostname", "container", *flags(namespaces)],
    )
    with way.shell(box) as shell:
        assert shell.ask("echo $$ $PPID") == "1 0\n"
        assert shell.pid > 1
        status = Path(f"/proc/{shell.pid}/status").read_text()
        assert re.search(rf"^NSpid:.*\b{shell.pid}\s+1$", status, re.MULTILINE)
        seen = shell.report(probe)
        assert seen["pid"] > 1
        assert seen["ppid"] == 1
        assert shell.ask("hostname") == "container\n"
        assert queues(shell.ask("ipcs -q")) == {}
        listed = {int(pid) for pid in shell.ask("ps -e -o pid=").split()}
        assert {os.getpid(), shell.parent, shell.pid} <= listed
        assert shell.ask("cat /proc/1/comm") == Path("/proc/1/comm").read_text()
        assert isolated(shell.pid) == with_user("uts", "ipc", "pid")
        outside.is_the_same(alive=1)
        assert shell.leave() == 0
    outside.is_the_same()
    assert way.run(box, "bash", "-c", "echo $$") == "1\n"


# ---- fs.c ----


def test_fs(way: Way, probe: Path, outside: Outside) -> None:
    """A new /proc shows only the shell and ps. Unlike the seed's, it does not leak to the host."""
    namespaces = host_but("uts", "ipc", "pid", "mount")
    box = Box(
        Spec(
            namespaces=namespaces,
            default_mounts=False,
            mounts=[Mount("/proc", type="proc"), Mount("/probe", source=probe)],
        ),
        [*flags(namespaces), "--no-default-mounts", "--mount", "type=proc,dst=/proc",
         "-v", f"{probe}:/probe"],
    )  # fmt: skip
    host = set(filter(str.isdigit, os.listdir("/proc")))
    with way.shell(box) as shell:
        processes = shell.ask("ps aux").splitlines()[1:]
        assert [row.split(maxsplit=10)[10] for row in processes] == ["bash", "ps aux"]
        assert processes[0].split()[1] == "1"
        pids = [name for name in shell.ask("ls /proc").split() if name.isdigit()]
        assert len(pids) == 2
        assert pids[0] == "1"
        seen = shell.report("/probe")
        assert seen["proc_pids"] == [1, seen["pid"]]
        mounts = points(shell.ask("mount").splitlines())
        assert mounts[-2:] == ["/proc", "/probe"]
        assert {path.split("/")[1] for path in mounts[:-2]} == {
            path.split("/")[1] for path in ("/", *_view.layout().shown)
        }
        assert isolated(shell.pid) == with_user("uts", "ipc", "pid", "mount")
        outside.is_the_same(alive=1)
        assert {str(os.getpid()), str(shell.pid)} <= set(os.listdir("/proc"))
        assert str(shell.pid) not in host
        assert shell.leave() == 0
    outside.is_the_same()
    table = way.run(box, "bash", "-c", "ps aux; true").splitlines()[1:]
    assert [row.split()[1] for row in table][:1] == ["1"]
    assert len(table) == 2
