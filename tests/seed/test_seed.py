"""The seed's programs, row by row: clone.c, uts.c, ipc.c, pid.c, fs.c, the rootfs steps, newns.c,
network and user; each through Python and through the command line.

Seen from inside by real programs, and from outside before, during and after: conftest's watch
compares the host's mounts, queues, names and children around every test.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import support

import fastns
from fastns import IDMapping, Mount, Sandbox, Spec

CLI = [sys.executable, "-m", "fastns", "run"]
KINDS = ("pid", "mount", "uts", "ipc", "network", "cgroup")
FLAGS = {"mount": "mountns", "cgroup": "cgroupns"}
Run = Callable[..., str]


def host_but(*new: str) -> dict[str, str]:
    """Namespaces that are all the host's, but those."""
    return {kind: "new" if kind in new else "host" for kind in KINDS}


def flags(namespaces: dict[str, str]) -> list[str]:
    return [
        f"--{FLAGS.get(kind, kind)}={'private' if value == 'new' else value}"
        for kind, value in namespaces.items()
    ]


@pytest.fixture(params=["python", "cli"])
def run(request: pytest.FixtureRequest) -> Run:
    """`run(script, spec, flags)`: what bash prints for the script, one of the two ways."""

    def through(script: str, spec: Spec, words: list[str], shell: str = "bash") -> str:
        if request.param == "python":
            done: Any = fastns.run(
                [shell, "-c", script], spec=spec, capture_output=True, text=True, timeout=20
            )
        else:
            done = subprocess.run(
                [*CLI, *words, "--", shell, "-c", script],
                capture_output=True,
                text=True,
                timeout=20,
            )
        assert (done.returncode, done.stderr) == (0, "")
        return str(done.stdout)

    return through


@pytest.fixture
def queue() -> Iterator[str]:
    """A message queue of the host, as the seed makes with ipcmk -Q: its key as ipcs shows it."""
    made = subprocess.run(["ipcmk", "-Q"], capture_output=True, text=True, check=True).stdout
    number = made.split()[-1]
    listed = subprocess.run(["ipcs", "-q"], capture_output=True, text=True, check=True).stdout
    key = next(line.split()[0] for line in listed.splitlines() if line.split()[1:2] == [number])
    yield key
    subprocess.run(["ipcrm", "-q", number], check=True)


def host_namespace(kind: str) -> str:
    return os.readlink(f"/proc/self/ns/{kind}")


# ---- clone.c ----


def test_clone(run: Run) -> None:
    namespaces = host_but()
    out = run(
        "readlink /proc/self/ns/{pid,mnt,uts,ipc,net,cgroup}; hostname; echo $$; echo $PPID",
        Spec(namespaces=namespaces),
        flags(namespaces),
    ).split()
    assert out[:6] == [host_namespace(k) for k in ("pid", "mnt", "uts", "ipc", "net", "cgroup")]
    assert out[6] == os.uname().nodename
    assert int(out[7]) > 1
    assert int(out[8]) > 1  # the parent is a process of the host, and visible


def test_clone_exit_returns_to_the_parent() -> None:
    namespaces = host_but()
    assert fastns.run(["bash", "-c", "exit 7"], spec=Spec(namespaces=namespaces)).returncode == 7
    assert subprocess.run([*CLI, *flags(namespaces), "bash", "-c", "exit 7"]).returncode == 7


# ---- uts.c ----


def test_uts(run: Run) -> None:
    name = os.uname().nodename
    namespaces = host_but("uts")
    out = run(
        "hostname; readlink /proc/self/ns/ipc",
        Spec(namespaces=namespaces, hostname="container"),
        ["--hostname", "container", *flags(namespaces)],
    )
    assert out.split() == ["container", host_namespace("ipc")]
    assert os.uname().nodename == name


# ---- ipc.c ----


def test_a_sandbox_with_uts_only_sees_the_hosts_queue(run: Run, queue: str) -> None:
    namespaces = host_but("uts")
    out = run("ipcs -q", Spec(namespaces=namespaces), flags(namespaces))
    assert queue in out


def test_ipc(run: Run, queue: str) -> None:
    namespaces = host_but("uts", "ipc")
    before = Path("/proc/sysvipc/msg").read_text()
    out = run(
        "ipcs -q; ipcmk -Q; ipcs -q; cat /proc/sysvipc/msg | wc -l",
        Spec(namespaces=namespaces),
        flags(namespaces),
    )
    empty, _, rest = out.partition("Message queue id: ")
    assert queue not in out
    assert "0x" not in empty
    assert "0x" in rest
    assert Path("/proc/sysvipc/msg").read_text() == before


# ---- pid.c ----


def test_pid(run: Run) -> None:
    """pid 1 inside; the host's /proc, still mounted, shows the host's processes."""
    namespaces = host_but("uts", "ipc", "pid")
    out = run("echo $$; ps -e -o pid= -o args=", Spec(namespaces=namespaces), flags(namespaces))
    first, _, listed = out.partition("\n")
    assert first == "1"
    assert re.search(rf"^ *{os.getpid()} ", listed, re.MULTILINE)


def test_pid_from_outside() -> None:
    namespaces = host_but("pid")
    with fastns.spawn(["bash", "-c", "echo $$; read"], spec=Spec(namespaces=namespaces),
                      stdin=fastns.PIPE, stdout=fastns.PIPE, text=True) as sandbox:  # fmt: skip
        assert sandbox.stdout is not None
        assert sandbox.stdout.readline() == "1\n"
        assert sandbox.pid > 1
        status = Path(f"/proc/{sandbox.pid}/status").read_text()
        assert re.search(r"^NSpid:\s+\d+\s+1$", status, re.MULTILINE)
        sandbox.kill()


# ---- fs.c ----


def test_fs(run: Run) -> None:
    mounts = Path("/proc/self/mountinfo").read_text()
    namespaces = host_but("uts", "ipc", "pid", "mount")
    spec = Spec(namespaces=namespaces, default_mounts=False, mounts=[Mount("/proc", type="proc")])
    words = [*flags(namespaces), "--no-default-mounts", "--mount", "type=proc,dst=/proc"]
    out = run("ps aux; echo; ls /proc; true", spec, words)
    table, _, listed = out.partition("\n\n")
    processes = table.splitlines()[1:]
    assert len(processes) == 2
    assert processes[0].split()[1] == "1"
    assert processes[1].endswith("ps aux")
    pids = [name for name in listed.split() if name.isdigit()]
    assert pids[0] == "1"
    assert len(pids) == 2
    assert Path("/proc/self/mountinfo").read_text() == mounts


# ---- rootfs, steps 1 and 2 ----


def test_rootfs(run: Run, bash_rootfs: Path) -> None:
    out = run(
        "for c in bash ls ps mount hostname ipcs; do command -v $c; $c --version >/dev/null; done;"
        " echo; ls -A /; echo; ls -A /home /srv",
        Spec(rootfs=bash_rootfs),
        ["--rootfs", str(bash_rootfs)],
    )
    commands, top, _ = out.split("\n\n", 2)
    assert len(commands.split()) == 6
    assert set(top.split()) == set(os.listdir(bash_rootfs))
    assert (bash_rootfs / "bin" / "sh").exists()


# ---- rootfs, step 3, and newns.c ----

OWN = {
    "hosts": "1.1.1.1 egon_hostname\n",
    "hostname": "egon_hostname\n",
    "resolv.conf": "nameserver 202.110.110.213\n",
}
SEED_MOUNTS = [
    ("/proc", "proc"),
    ("/sys", "sysfs"),
    ("/tmp", "tmpfs"),
    ("/dev", "devtmpfs"),
    ("/dev/pts", "devpts"),
    ("/dev/shm", "tmpfs"),
    ("/run", "tmpfs"),
]


@pytest.fixture
def conf(public_dir: Path) -> Iterator[Path]:
    """The seed's conf/ and the folder t1 with egon_test.txt."""
    path = public_dir / "conf"
    (path / "t1").mkdir(parents=True)
    for name, content in OWN.items():
        (path / name).write_text(content)
    (path / "t1" / "egon_test.txt").write_text("from the host\n")
    for each in (path, *path.rglob("*")):
        each.chmod(0o755 if each.is_dir() else 0o644)
    yield path
    shutil.rmtree(path)


def binds(conf: Path) -> list[tuple[str, str]]:
    return [
        *((str(conf / name), f"/etc/{name}") for name in OWN),
        (str(conf / "t1"), "/mnt"),
    ]


LOOK = (
    "pwd; echo ==; mount; echo ==; ps aux; echo ==; hostname; ipcs -q | wc -l; echo $$; echo ==; "
    "cat /etc/hosts /etc/hostname /etc/resolv.conf; ls /mnt; cat /mnt/egon_test.txt"
)


def check_newns(out: str, expected: list[tuple[str, str]]) -> None:
    cwd, mounts, processes, names, files = out.split("==\n")
    assert cwd == "/\n"
    found = [(line.split()[2], line.split()[4]) for line in mounts.splitlines()]
    assert [point for point, _ in found] == [point for point, _ in expected]
    for (point, kind), (_, wanted) in zip(found, expected, strict=True):
        assert wanted in ("any", kind), point
    assert len(processes.splitlines()) == 3
    assert names.split() == ["container", "4", "1"]
    assert files == "".join(OWN.values()) + "egon_test.txt\nfrom the host\n"


@pytest.mark.as_root  # devtmpfs is for the initial user namespace
@pytest.mark.parametrize("mode", ["chroot", "pivot_root"])
def test_newns_as_the_seed_has_it(run: Run, bash_rootfs: Path, conf: Path, mode: str) -> None:
    spec = Spec(
        rootfs=bash_rootfs,
        root_mode=mode,
        hostname="container",
        default_mounts=False,
        mounts=[
            *(Mount(point, type=kind) for point, kind in SEED_MOUNTS),
            *(Mount(target, source=source) for source, target in binds(conf)),
        ],
    )
    words = ["--rootfs", str(bash_rootfs), "--hostname", "container", "--no-default-mounts"]
    words += ["--chroot"] if mode == "chroot" else []
    for point, kind in SEED_MOUNTS:
        words += ["--mount", f"type={kind},dst={point}"]
    for source, target in binds(conf):
        words += ["-v", f"{source}:{target}"]
    out = run(LOOK, spec, words)
    check_newns(out, [("/", "any"), *SEED_MOUNTS, *((target, "any") for _, target in binds(conf))])


def test_newns_by_default(run: Run, bash_rootfs: Path, conf: Path) -> None:
    spec = Spec(
        rootfs=bash_rootfs,
        hostname="container",
        mounts=[Mount(target, source=source, options=["ro"]) for source, target in binds(conf)],
    )
    words = ["--rootfs", str(bash_rootfs), "--hostname", "container"]
    for source, target in binds(conf):
        words += ["-v", f"{source}:{target}:ro"]
    devices = [] if support.is_root() else ["null", "zero", "full", "random", "urandom", "tty"]
    expected = [
        ("/", "any"),
        ("/proc", "proc"),
        ("/sys", "sysfs"),
        ("/tmp", "tmpfs"),
        ("/run", "tmpfs"),
        ("/dev", "tmpfs"),
        *((f"/dev/{name}", "any") for name in devices),
        ("/dev/pts", "devpts"),
        ("/dev/shm", "tmpfs"),
        *((target, "any") for _, target in binds(conf)),
    ]
    check_newns(run(LOOK, spec, words), expected)


def test_the_host_is_the_same_meanwhile(bash_rootfs: Path, conf: Path) -> None:
    """The seed leaks its mounts; here the host's table is compared while the container lives."""
    mounts = Path("/proc/self/mountinfo").read_text()
    name = os.uname().nodename
    spec = Spec(rootfs=bash_rootfs, hostname="container", mounts=[Mount("/mnt", source=str(conf))])
    with fastns.spawn(
        ["bash", "-c", "mount -t tmpfs none /tmp; hostname changed; echo up; read"],
        spec=spec,
        stdin=fastns.PIPE,
        stdout=fastns.PIPE,
        text=True,
    ) as sandbox:
        assert sandbox.stdout is not None
        assert sandbox.stdout.readline() == "up\n"
        assert Path("/proc/self/mountinfo").read_text() == mounts
        assert os.uname().nodename == name
        assert not (bash_rootfs / "proc" / "self").exists()
        sandbox.kill()
    assert Path("/proc/self/mountinfo").read_text() == mounts


# ---- 2.5 network ----


def listening(spec: Spec) -> Sandbox:
    sandbox = fastns.spawn(
        ["/probe", "--listen", "4711"], spec=spec, stdin=fastns.PIPE, stdout=fastns.PIPE, text=True
    )
    assert sandbox.stdout is not None
    assert sandbox.stdout.readline() == "listening\n"
    return sandbox


def test_two_sandboxes_listen_on_one_port(probe_rootfs: Path) -> None:
    spec = Spec(rootfs=probe_rootfs)
    with listening(spec) as one, listening(spec) as two:
        for sandbox in (one, two):
            assert sandbox.poll() is None
            sandbox.communicate()
            assert sandbox.returncode == 0


def test_only_lo_is_inside(run: Run, bash_rootfs: Path) -> None:
    out = run(
        "ip -o link; ip -o addr; ip route",
        Spec(rootfs=bash_rootfs),
        ["--rootfs", str(bash_rootfs)],
    )
    links = [line for line in out.splitlines() if "link/" in line]
    assert len(links) == 1
    assert " lo: " in links[0]
    assert "UP" in links[0]
    assert "127.0.0.1/8" in out


def test_routes_and_rules_stay_inside(run: Run, bash_rootfs: Path) -> None:
    def rules() -> str:
        commands = ("ip route show table all", "nft list ruleset" if support.is_root() else "true")
        return "".join(
            subprocess.run(c.split(), capture_output=True, text=True, check=True,
                           env={"PATH": support.HOST_PATH}).stdout
            for c in commands
        )  # fmt: skip

    before = rules()
    out = run(
        "ip route add 198.51.100.0/24 dev lo && ip route show 198.51.100.0/24 &&"
        " nft add table inet fastns_test && nft list tables",
        Spec(rootfs=bash_rootfs),
        ["--rootfs", str(bash_rootfs)],
    )
    assert "198.51.100.0/24" in out
    assert "fastns_test" in out
    assert rules() == before
    assert "198.51.100" not in before


@pytest.mark.as_root  # joining needs rights over the user namespace that owns the network
def test_a_process_in_a_given_network(probe_rootfs: Path) -> None:
    with listening(Spec(rootfs=probe_rootfs)) as server:
        path = f"/proc/{server.pid}/ns/net"
        done = fastns.run(
            ["/probe", "--connect", "4711"],
            spec=Spec(rootfs=probe_rootfs, network=path),
            capture_output=True,
        )
        assert done.returncode == 0, done.stderr
        words = ["--rootfs", str(probe_rootfs), "--network", path, "--", "/probe", "--connect"]
        assert subprocess.run([*CLI, *words, "4711"], capture_output=True).returncode == 0
        alone = fastns.run(
            ["/probe", "--connect", "4711"], spec=Spec(rootfs=probe_rootfs), capture_output=True
        )
        assert alone.returncode != 0
        server.kill()


@pytest.mark.as_root
def test_a_virtual_interface_can_be_moved_in(bash_rootfs: Path) -> None:
    """Within an outer network namespace of the test's own, so that the host gets no interface."""
    script = """
import subprocess, sys
import fastns
from fastns import Spec
subprocess.run(["ip", "link", "add", "fns0", "type", "veth", "peer", "name", "fns1"], check=True)
with fastns.spawn(["bash", "-c", "read; ip -o link show fns1"], spec=Spec(rootfs=sys.argv[1]),
                  stdin=fastns.PIPE, stdout=fastns.PIPE, text=True) as sandbox:
    subprocess.run(["ip", "link", "set", "fns1", "netns", str(sandbox.pid)], check=True)
    out, _ = sandbox.communicate("go\\n")
assert "fns1@" in out, out
left = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True).stdout
assert "fns1:" not in left, left
print("moved")
"""
    done = subprocess.run(
        ["unshare", "-n", sys.executable, "-c", script, str(bash_rootfs)],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": support.HOST_PATH},
    )
    assert (done.stdout, done.stderr) == ("moved\n", "")


# ---- 2.6 user ----


def test_uid_0_inside_is_an_ordinary_uid_outside(bash_rootfs: Path) -> None:
    """Root maps 0 to 100000; an unprivileged user, without any helper, to itself."""
    spec = Spec(rootfs=bash_rootfs)
    outside = os.geteuid()
    if support.is_root():
        outside = 100000
        whole = [IDMapping(0, 100000, 65536)]
        spec = Spec(rootfs=bash_rootfs, uid_mappings=whole, gid_mappings=whole)
    pair = []
    for _ in range(2):  # the same uid in two namespaces at once
        sandbox = fastns.spawn(
            ["bash", "-c", "id -u; read"],
            spec=spec,
            stdin=fastns.PIPE,
            stdout=fastns.PIPE,
            text=True,
        )
        assert sandbox.stdout is not None
        assert sandbox.stdout.readline() == "0\n"
        pair.append((sandbox, os.readlink(f"/proc/{sandbox.pid}/ns/user")))
    assert len({name for _, name in pair} | {host_namespace("user")}) == 3
    for sandbox, _ in pair:
        assert os.stat(f"/proc/{sandbox.pid}").st_uid == outside
        with sandbox:
            sandbox.kill()


@pytest.mark.as_user
def test_no_helper_is_needed_for_one_id(run: Run, bash_rootfs: Path) -> None:
    out = run(
        "id -u; cat /proc/self/uid_map", Spec(rootfs=bash_rootfs), ["--rootfs", str(bash_rootfs)]
    )
    assert out.split() == ["0", "0", str(os.geteuid()), "1"]
    with fastns.spawn(["true"], spec=Spec(rootfs=bash_rootfs)) as sandbox:
        assert (sandbox.id_map, sandbox.method) == ("self", "direct")


def test_status_of_a_run(tmp_path: Path, bash_rootfs: Path) -> None:
    """What the seed's parent prints when the container has stopped, for programs."""
    with open(tmp_path / "status", "wb") as file:
        done = subprocess.run(
            [*CLI, "--rootfs", str(bash_rootfs), "--status-fd", str(file.fileno()), "--",
             "bash", "-c", "exit 9"],
            pass_fds=[file.fileno()],
        )  # fmt: skip
    assert done.returncode == 9
    status = json.loads((tmp_path / "status").read_text())
    assert (status["exit_code"], status["cause"], status["signal"]) == (9, "exited", None)
