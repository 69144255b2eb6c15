"""Namespaces: new or the host's, alone and in every combination, and their effects."""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import support
from support import NAMESPACES

import fastns
from fastns import Mount, Spec, SpecError

Report = Callable[..., dict[str, Any]]


def links(pid: int | str) -> dict[str, str]:
    """The namespaces of a process."""
    return {kind: os.readlink(f"/proc/{pid}/ns/{name}") for kind, name in NAMESPACES.items()}


def same(seen: dict[str, Any], kind: str) -> bool:
    """Whether the probe was in the caller's namespace of this kind."""
    return bool(seen["namespaces"][NAMESPACES[kind]] == links("self")[kind])


def combinations() -> list[dict[str, str]]:
    """All 256 combinations of new and host. An unprivileged caller needs a new user namespace, so
    "user" is left out where it would be "host". Below, a test shows that "host" is refused."""
    every = []
    for values in itertools.product(["new", "host"], repeat=8):
        chosen = dict(zip(NAMESPACES, values, strict=True))
        if chosen["user"] == "host" and not support.is_root():
            del chosen["user"]
        every.append(chosen)
    return every


def test_every_combination(probe: Path) -> None:
    """Seen from inside, only the new namespaces differ from the caller's."""
    for namespaces in combinations():
        shown = [Mount(str(probe), source=probe)] if namespaces["mount"] == "new" else []
        spec = Spec(namespaces=namespaces, mounts=shown)
        done = fastns.run([str(probe)], spec=spec, capture_output=True, timeout=20)
        assert done.returncode == 0, (namespaces, done.stderr)
        seen = support.parse_report(done.stdout)
        for kind in NAMESPACES:
            new = namespaces.get(kind) == "new" or (kind == "user" and not support.is_root())
            assert same(seen, kind) == (not new), (kind, namespaces)


def test_every_combination_from_outside(probe: Path, probe_rootfs: Path) -> None:
    """The same, seen from the host: the sandbox is running, with a rootfs if possible."""
    for namespaces in combinations():
        has_rootfs = namespaces["mount"] == "new"
        spec = Spec(rootfs=probe_rootfs if has_rootfs else None, namespaces=namespaces)
        command = "/probe" if has_rootfs else str(probe)
        with fastns.spawn([command, "--echo"], spec=spec, stdin=fastns.PIPE) as sandbox:
            seen, own = links(sandbox.pid), links("self")
        for kind in NAMESPACES:
            new = namespaces.get(kind) == "new" or (kind == "user" and not support.is_root())
            assert (seen[kind] != own[kind]) == new, (kind, namespaces)
        assert sandbox.returncode == 0


def test_the_defaults(report: Report) -> None:
    """All are new except time."""
    seen = report()
    for kind in NAMESPACES:
        assert same(seen, kind) == (kind == "time"), kind


@pytest.mark.as_user
def test_an_unprivileged_caller_needs_a_user_namespace(probe_rootfs: Path) -> None:
    for spec in (
        Spec(namespaces={"user": "host"}),
        Spec(rootfs=probe_rootfs, root_mode="chroot", namespaces=dict.fromkeys(NAMESPACES, "host")),
        *(
            Spec(namespaces={**dict.fromkeys(NAMESPACES, "host"), kind: "new"})
            for kind in NAMESPACES
            if kind != "user"
        ),
    ):
        with pytest.raises(SpecError, match="user='host'") as caught:
            fastns.compile(spec)
        assert caught.value.field == "namespaces"


def test_all_namespaces_of_the_host(probe: Path) -> None:
    """Root and other users may start a command in all of the host's namespaces."""
    spec = Spec(namespaces=dict.fromkeys(NAMESPACES, "host"))
    done = fastns.run([str(probe)], spec=spec, capture_output=True)
    seen = support.parse_report(done.stdout)
    assert all(same(seen, kind) for kind in NAMESPACES)
    assert (seen["uid"], seen["gid"]) == (os.getuid(), os.getgid())
    own = support.parse_report(subprocess.run([probe], capture_output=True, check=True).stdout)
    assert seen["mounts"] == own["mounts"]
    assert seen["interfaces"] == own["interfaces"]
    assert seen["hostname"] == own["hostname"]


# ---- the effect of each namespace ----


def test_hostname_and_domainname(report: Report) -> None:
    """Both names are set inside, and the host's do not change."""
    names = os.uname()
    domain = Path("/proc/sys/kernel/domainname").read_text()
    seen = report(hostname="container", domainname="example")
    assert (seen["hostname"], seen["domainname"]) == ("container", "example")
    assert os.uname() == names
    assert Path("/proc/sys/kernel/domainname").read_text() == domain


@pytest.mark.parametrize("name", ["a", "x" * 64, "with-dash.and.dot", "ü" * 32])
def test_unusual_hostnames(report: Report, name: str) -> None:
    """Short, long and non-ASCII names are set as they are."""
    seen = report(hostname=name, domainname=name)
    assert (seen["hostname"], seen["domainname"]) == (name, name)


def test_a_name_changed_inside_stays_inside(probe_rootfs: Path) -> None:
    """The change works in a new uts namespace. A new user namespace alone does not permit it."""
    name = os.uname().nodename
    change = ["/probe", "--sethostname", "changed"]
    admin = Spec(rootfs=probe_rootfs, capabilities=["SYS_ADMIN"])
    assert fastns.run(change, spec=admin).returncode == 0
    assert os.uname().nodename == name
    hosts = Spec(rootfs=probe_rootfs, namespaces={"uts": "host", "user": "new"},
                 capabilities=["SYS_ADMIN"])  # fmt: skip
    assert b"EPERM" in fastns.run(change, spec=hosts, capture_output=True).stderr
    assert os.uname().nodename == name


def test_pids(report: Report) -> None:
    """A new pid namespace shows only the sandbox's processes; the host's shows all."""
    seen = report()
    assert (seen["pid"], seen["ppid"], seen["proc_pids"]) == (1, 0, [1])
    assert os.getpid() in report(namespaces={"pid": "host"})["proc_pids"]


def test_a_cgroup_namespace_hides_parent_cgroups(report: Report) -> None:
    for line in report()["cgroup"].splitlines():
        assert line.endswith(":/"), line


def test_a_time_namespace_has_the_hosts_clocks(report: Report) -> None:
    """fastns sets no offsets."""
    for kind in ("new", "host"):
        seen = report(namespaces={"time": kind})
        assert same(seen, "time") == (kind == "host")
        now = Path("/proc/uptime").read_text().split(".")[0]
        assert 0 <= int(now) - seen["boottime"] < 60
