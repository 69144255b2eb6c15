"""Namespaces: new, the host's, joined, in combination; unshare() and setns()."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import support
from processes import script

import fastns
from fastns import IDMapping, Mount, SpawnError, Spec, SpecError

Report = Callable[..., dict[str, Any]]
NAMES = {
    "pid": "pid",
    "mount": "mnt",
    "uts": "uts",
    "ipc": "ipc",
    "network": "net",
    "user": "user",
    "cgroup": "cgroup",
    "time": "time",
}


def own(kind: str) -> str:
    return os.readlink(f"/proc/self/ns/{NAMES[kind]}")


@pytest.mark.as_root
def test_every_combination(probe: Path) -> None:
    """All 256 of new and host: just the new ones differ, seen from inside."""
    for values in itertools.product(["new", "host"], repeat=8):
        namespaces = dict(zip(NAMES, values, strict=True))
        done = fastns.run(
            [str(probe)], spec=Spec(namespaces=namespaces), capture_output=True, timeout=20
        )
        assert done.returncode == 0, (namespaces, done.stderr)
        seen = support.parse_report(done.stdout)["namespaces"]
        for kind, value in namespaces.items():
            assert (seen[NAMES[kind]] != own(kind)) == (value == "new"), (kind, namespaces)


@pytest.mark.as_user
def test_an_unprivileged_caller_gets_a_user_namespace(report: Report) -> None:
    seen = report()
    for kind in NAMES:
        assert (seen["namespaces"][NAMES[kind]] != own(kind)) == (kind != "time"), kind


@pytest.mark.as_user
def test_an_unprivileged_caller_cannot_do_without(probe_rootfs: Path) -> None:
    for spec in (
        Spec(namespaces={"user": "host"}),
        Spec(rootfs=probe_rootfs, root_mode="chroot",
             namespaces=dict.fromkeys(NAMES, "host")),
    ):  # fmt: skip
        with pytest.raises(SpecError, match="user='host'"):
            fastns.compile(spec)


def test_all_of_the_host(probe: Path) -> None:
    """Neither new nor joined: as the caller, root or not."""
    spec = Spec(namespaces=dict.fromkeys(NAMES, "host"))
    done = fastns.run([str(probe)], spec=spec, capture_output=True)
    seen = support.parse_report(done.stdout)
    assert all(seen["namespaces"][name] == own(kind) for kind, name in NAMES.items())
    assert (seen["uid"], seen["gid"]) == (os.getuid(), os.getgid())


@pytest.mark.as_root
@pytest.mark.parametrize("kind", NAMES)
def test_joining(probe_rootfs: Path, probe: Path, kind: str) -> None:
    """One namespace of a running sandbox is joined; user, pid and time through the helper."""
    asked = {"user": "new", "time": "new"}
    with fastns.spawn(
        ["/probe", "--listen", "1"],
        spec=Spec(rootfs=probe_rootfs, namespaces=asked),
        stdin=fastns.PIPE,
        stdout=fastns.PIPE,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"listening\n"
        path = f"/proc/{other.pid}/ns/{NAMES[kind]}"
        command = ["/probe"] if kind == "mount" else [str(probe)]
        namespaces = {kind: path}
        if kind == "mount":  # its /proc shows its own pid namespace only
            namespaces["pid"] = f"/proc/{other.pid}/ns/pid"
        spec = Spec(namespaces=namespaces)
        with fastns.spawn(command, spec=spec, stdout=fastns.PIPE) as sandbox:
            out, _ = sandbox.communicate(timeout=20)
        assert sandbox.returncode == 0
        assert sandbox.method == (
            "direct" if {kind} & {"uts", "ipc", "network", "cgroup"} else "staged"
        )
        seen = support.parse_report(out)["namespaces"]
        assert seen[NAMES[kind]] == os.readlink(path)
        other.kill()


@pytest.mark.as_root
def test_joining_all(probe_rootfs: Path) -> None:
    """What `exec` into a sandbox is made of."""
    with fastns.spawn(
        ["/probe", "--listen", "1"],
        spec=Spec(rootfs=probe_rootfs, namespaces={"user": "new"}, hostname="other"),
        stdin=fastns.PIPE,
        stdout=fastns.PIPE,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"listening\n"
        paths = {
            k: f"/proc/{other.pid}/ns/{n}" for k, n in NAMES.items() if k not in ("time", "cgroup")
        }
        done = fastns.run(["/probe"], spec=Spec(namespaces=paths), capture_output=True, timeout=20)
        assert done.returncode == 0, done.stderr
        seen = support.parse_report(done.stdout)
        assert seen["hostname"] == "other"
        assert seen["pid"] > 1
        other.kill()


@pytest.mark.parametrize("kind", NAMES)
def test_joining_what_is_not_there(kind: str) -> None:
    path = "/proc/self/ns/nothing"
    with pytest.raises(SpawnError) as caught:
        fastns.run(["true"], spec=Spec(namespaces={kind: path}))
    exc = caught.value
    assert (exc.stage, exc.errno, exc.path) == ("setns", errno.ENOENT, path)
    assert exc.op_index >= 0


@pytest.mark.as_root
def test_joining_the_wrong_kind() -> None:
    with pytest.raises(SpawnError) as caught:
        fastns.run(["true"], spec=Spec(namespaces={"uts": "/proc/self/ns/net"}))
    assert (caught.value.stage, caught.value.errno) == ("setns", errno.EINVAL)


def test_hostname_and_domainname(report: Report) -> None:
    name = os.uname().nodename
    seen = report(hostname="container", domainname="example")
    assert (seen["hostname"], seen["domainname"]) == ("container", "example")
    assert os.uname().nodename == name


def test_the_network_has_only_lo(report: Report) -> None:
    seen = report()["interfaces"]
    assert list(seen) == ["lo"]
    assert (seen["lo"]["up"], seen["lo"]["address"]) == (True, "127.0.0.1")


# ---- ids ----


@pytest.mark.as_root
def test_a_user(report: Report) -> None:
    seen = report(user="1234:2345", additional_gids=[7, 8])
    assert (seen["uid"], seen["euid"], seen["gid"], seen["egid"]) == (1234, 1234, 2345, 2345)
    assert sorted(seen["groups"]) == [7, 8]


def test_a_user_is_mapped_to_the_caller(report: Report) -> None:
    seen = report(user="1234:2345", namespaces={"user": "new"})
    assert (seen["uid"], seen["gid"]) == (1234, 2345)
    assert seen["uid_map"].split() == ["1234", str(os.geteuid()), "1"]
    assert seen["gid_map"].split() == ["2345", str(os.getegid()), "1"]


def ranges() -> list[IDMapping]:
    return [IDMapping(0, 100000, 1000)]


@pytest.mark.parametrize("user", ["0:0", "5:6"])
def test_a_range(report: Report, probe_rootfs: Path, user: str) -> None:
    spec = Spec(rootfs=probe_rootfs, user=user, uid_mappings=ranges(), gid_mappings=ranges(),
                additional_gids=[9])  # fmt: skip
    seen = report(spec=spec)
    assert f"{seen['uid']}:{seen['gid']}" == user
    assert seen["groups"] == [9]
    assert seen["uid_map"].split() == ["0", "100000", "1000"]
    with fastns.spawn(["/true"], spec=spec) as sandbox:
        way = "parent" if support.is_root() else "newuidmap"
        assert (sandbox.method, sandbox.id_map) == ("staged", way)


def test_a_range_that_is_not_the_callers(probe_rootfs: Path) -> None:
    if support.is_root():
        return  # root may map anything: nothing to refuse
    mappings = [IDMapping(0, 0, 1000)]
    with pytest.raises(SpawnError) as caught:
        fastns.run(
            ["/true"],
            spec=Spec(rootfs=probe_rootfs, uid_mappings=mappings, gid_mappings=mappings),
        )
    assert (caught.value.stage, caught.value.errno) == ("id_map", errno.EPERM)


@pytest.mark.as_user
def test_newuidmap_is_missing(probe_rootfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(SpawnError) as caught:
        fastns.run(
            ["/true"],
            spec=Spec(rootfs=probe_rootfs, uid_mappings=ranges(), gid_mappings=ranges()),
        )
    assert (caught.value.stage, caught.value.errno) == ("id_map", errno.ENOENT)
    assert "uidmap" in (caught.value.hint or "")


# ---- init ----


def test_init_reaps_and_ends_with_the_command(probe_rootfs: Path) -> None:
    spec = Spec(rootfs=probe_rootfs, init=True)
    assert fastns.run(["/probe", "--exit", "7"], spec=spec).returncode == 7
    assert fastns.run(["/probe", "--signal", "9"], spec=spec).returncode == -9
    zombies = []
    for each in (spec, Spec(rootfs=probe_rootfs)):
        done = fastns.run(
            ["/probe", "--zombies", "20"], spec=each, capture_output=True, text=True, timeout=20
        )
        zombies.append(int(done.stdout.split()[0]))
    # The control: without a reaper the orphans are pid 1's, which does not wait for them.
    assert zombies == [0, 20]


def test_init_passes_signals_on(probe_rootfs: Path) -> None:
    with fastns.spawn(
        ["/probe", "--sleep", "60"], spec=Spec(rootfs=probe_rootfs, init=True)
    ) as sandbox:
        sandbox.terminate()
        assert sandbox.wait(timeout=20) == -15


def test_init_is_no_file_of_the_host(bash_rootfs: Path) -> None:
    done = fastns.run(
        ["bash", "-c", "ls -l /proc/1/exe; : > /proc/1/exe"],
        spec=Spec(rootfs=bash_rootfs, init=True),
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "/_helper" not in done.stdout


# ---- unshare() and setns() ----


@pytest.mark.as_root
def test_unshare_and_setns_of_a_thread() -> None:
    out = script("""
import os, threading
import fastns
def names(): return os.readlink("/proc/thread-self/ns/uts")
main = names()
def thread():
    fd = os.open("/proc/thread-self/ns/uts", os.O_RDONLY)
    fastns.unshare("uts", "ipc")
    assert names() != main
    fastns.setns(f"/proc/self/fd/{fd}", "uts")
    assert names() == main
    os.close(fd)
    fastns.unshare("uts")
    fastns.setns(os.getpid(), "uts")
    assert names() == main
    print("there and back")
worker = threading.Thread(target=thread)
worker.start(); worker.join()
assert names() == main
""")
    assert out == "there and back\n"


def test_what_a_threaded_process_is_refused() -> None:
    out = script("""
import threading
import fastns
stop = threading.Event()
worker = threading.Thread(target=stop.wait)
worker.start()
for call in (lambda: fastns.unshare("user"), lambda: fastns.setns("/proc/self/ns/user", "user")):
    try:
        call()
    except fastns.SpawnError as exc:
        print(exc.stage, exc.errno, "thread" in exc.hint)
stop.set()
""")
    assert out.split() == ["unshare", "22", "True", "setns", "22", "True"]


@pytest.mark.parametrize("call", [fastns.unshare, lambda *names: fastns.setns(os.getpid(), *names)])
@pytest.mark.parametrize("names", [[], ["nothing"], [1]])
def test_names_that_are_none(call: Callable[..., None], names: list[Any]) -> None:
    with pytest.raises(SpecError):
        call(*names)


def test_setns_of_what_is_not_there() -> None:
    for target in ("/nonexistent", 2**22 + 1):
        with pytest.raises(SpawnError) as caught:
            fastns.setns(target, "uts")
        assert caught.value.stage == "setns"
        assert caught.value.errno in (errno.ENOENT, errno.ESRCH, errno.EINVAL)
    with pytest.raises(SpecError):
        fastns.setns([], "uts")  # type: ignore[arg-type]


def test_mounts_need_a_mount_namespace_of_their_own() -> None:
    for value in ("host", "/proc/1/ns/mnt"):
        with pytest.raises(SpecError, match="mount"):
            Spec(namespaces={"mount": value}, mounts=[Mount("/x", type="tmpfs")])
