"""Joining existing namespaces: by path in a spec, and with unshare() and setns()."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import inside
import pytest
import support
from processes import script
from support import NAMESPACES

import fastns
from fastns import Mount, SpawnError, Spec

BEFORE = ("user", "pid")  # joined before the sandbox is cloned


@pytest.fixture
def other(probe_rootfs: Path) -> Iterator[fastns.Sandbox]:
    """A running sandbox to join: see inside.joinable()."""
    with inside.joinable(probe_rootfs) as sandbox:
        yield sandbox


def paths(sandbox: fastns.Sandbox, *kinds: str) -> dict[str, str]:
    return {kind: f"/proc/{sandbox.pid}/ns/{NAMESPACES[kind]}" for kind in kinds}


def check_joined(namespaces: dict[str, str], probe: Path) -> fastns.Sandbox:
    """Run a sandbox in these namespaces; check from outside that it is in them."""
    # A joined mount namespace already has the other sandbox's root, with its probe.
    shown = [] if "mount" in namespaces else [Mount("/probe", source=probe)]
    # The other sandbox's user namespace has only the ids 7 and 8.
    user = "7:8" if "user" in namespaces else "0:0"
    spec = Spec(namespaces=namespaces, user=user, mounts=shown)
    with fastns.spawn(["/probe", "--echo"], spec=spec, stdin=fastns.PIPE) as sandbox:
        for kind, path in namespaces.items():
            seen = os.readlink(f"/proc/{sandbox.pid}/ns/{NAMESPACES[kind]}")
            assert seen == os.readlink(path), (kind, namespaces)
    assert sandbox.returncode == 0
    return sandbox


@pytest.mark.as_root
@pytest.mark.parametrize("kind", NAMESPACES)
def test_one(other: fastns.Sandbox, probe: Path, kind: str) -> None:
    """A sandbox can join one namespace of each kind."""
    sandbox = check_joined(paths(other, kind), probe)
    assert sandbox.method == ("staged" if kind in BEFORE else "direct")


@pytest.mark.as_root
def test_two(other: fastns.Sandbox, probe: Path) -> None:
    """Tests every pair, because the order of joining must be right for each."""
    for pair in itertools.combinations(NAMESPACES, 2):
        check_joined(paths(other, *pair), probe)


@pytest.mark.as_user
@pytest.mark.parametrize("kind", [kind for kind in NAMESPACES if kind != "user"])
def test_one_with_its_user_namespace(other: fastns.Sandbox, probe: Path, kind: str) -> None:
    """An unprivileged caller may join a namespace only after the user namespace that owns it."""
    sandbox = check_joined(paths(other, "user", kind), probe)
    assert sandbox.method == "staged"


@pytest.mark.as_user
def test_one_without_its_user_namespace(other: fastns.Sandbox, probe: Path) -> None:
    """Control for the test above."""
    with pytest.raises(SpawnError) as caught:
        check_joined(paths(other, "uts"), probe)
    exc = caught.value
    assert (exc.stage, exc.errno, exc.path) == ("setns", errno.EPERM, paths(other, "uts")["uts"])
    assert "user namespace" in (exc.hint or "")


def test_all(other: fastns.Sandbox) -> None:
    """Joins all of them, as an `exec` into a sandbox does."""
    spec = Spec(namespaces=paths(other, *NAMESPACES), user="7:8")
    with fastns.spawn(["/probe"], spec=spec, stdout=fastns.PIPE) as sandbox:
        out, _ = sandbox.communicate(timeout=20)
    assert sandbox.returncode == 0
    assert sandbox.method == "staged"
    seen = support.parse_report(out)
    assert seen["hostname"] == "other"
    assert (seen["uid"], seen["gid"]) == (7, 8)
    assert seen["pid"] > 1
    assert 1 in seen["proc_pids"]
    for kind, name in NAMESPACES.items():
        assert seen["namespaces"][name] == os.readlink(paths(other, kind)[kind]), kind


def test_an_id_the_joined_user_namespace_lacks(other: fastns.Sandbox) -> None:
    """The start fails at setgid."""
    with pytest.raises(SpawnError) as caught:
        fastns.run(["/probe"], spec=Spec(namespaces=paths(other, "user", "mount"), user="0:0"))
    assert (caught.value.stage, caught.value.errno) == ("setgid", errno.EINVAL)


def test_a_joiner_ends_with_the_joined_sandbox(other: fastns.Sandbox) -> None:
    """When pid 1 ends, the kernel kills every process of its pid namespace."""
    namespaces = paths(other, "user", "pid", "mount")
    spec = Spec(namespaces=namespaces, user="7:8")
    with fastns.spawn(["/probe", "--sleep", "60"], spec=spec) as sandbox:
        other.kill()
        assert sandbox.wait(timeout=20) == -9


# ---- unshare() and setns() ----


@pytest.mark.as_root
def test_unshare_each_kind() -> None:
    """The process has one thread. New pid and time namespaces apply to its children."""
    out = script("""
names = {"mount": "mnt", "uts": "uts", "ipc": "ipc", "network": "net", "user": "user",
         "cgroup": "cgroup", "pid": "pid_for_children", "time": "time_for_children"}
for kind, name in names.items():
    pid = os.fork()
    if pid == 0:
        before = {n: os.readlink(f"/proc/self/ns/{n}") for n in names.values()}
        fastns.unshare(kind)
        del before["pid_for_children"]
        changed = [n for n in before if os.readlink(f"/proc/self/ns/{n}") != before[n]]
        if kind == "pid":  # the link is empty until there is a first process
            child = os.fork()
            if child == 0:
                os._exit(0 if os.getpid() == 1 else 1)
            changed = ["pid_for_children"] * (os.waitpid(child, 0)[1] == 0)
        os._exit(0 if changed == [name] else 1)
    print(kind, os.waitpid(pid, 0)[1])
""")
    assert out.split() == list(itertools.chain(*((kind, "0") for kind in (
        "mount", "uts", "ipc", "network", "user", "cgroup", "pid", "time"))))  # fmt: skip


@pytest.mark.as_root
def test_unshare_and_setns_of_a_thread() -> None:
    """unshare() and setns() affect only the thread that calls them."""
    out = script("""
def name(): return os.readlink("/proc/thread-self/ns/uts")
main = name()
def thread():
    fd = os.open("/proc/thread-self/ns/uts", os.O_RDONLY)
    fastns.unshare("uts", "ipc")
    assert name() != main
    fastns.setns(f"/proc/self/fd/{fd}", "uts")
    assert name() == main
    os.close(fd)
    fastns.unshare("uts")
    fastns.setns(os.getpid(), "uts")
    assert name() == main
    print("there and back")
worker = threading.Thread(target=thread)
worker.start(); worker.join()
assert name() == main
""")
    assert out == "there and back\n"


@pytest.mark.as_root
@pytest.mark.parametrize("target", ["sandbox", "sandbox.pid", "sandbox.pidfd",
                                    "f'/proc/{sandbox.pid}/ns/uts'"])  # fmt: skip
def test_setns_takes(probe_rootfs: Path, target: str) -> None:
    """setns() takes a Sandbox, a pid, a pidfd or a path, and leaves no fd open."""
    out = script(
        f"""
spec = fastns.Spec(rootfs=sys.argv[1], hostname="joined")
before = os.uname().nodename
with fastns.spawn(["/probe", "--echo"], spec=spec, stdin=fastns.PIPE) as sandbox:
    count = len(fds())
    worker = threading.Thread(target=lambda: (fastns.setns({target}, "uts"),
                                              print(os.uname().nodename)))
    worker.start(); worker.join()
    assert len(fds()) == count
assert os.uname().nodename == before
try:
    fastns.setns(sandbox, "uts")
except fastns.SpawnError as exc:
    print(exc.stage, exc.errno)
""",
        str(probe_rootfs),
    )
    assert out.split() == ["joined", "setns", str(errno.ESRCH)]


@pytest.mark.as_root
def test_setns_of_several(probe_rootfs: Path) -> None:
    """One call joins several namespaces of a sandbox."""
    out = script(
        """
kinds = {"uts": "uts", "ipc": "ipc", "network": "net", "cgroup": "cgroup"}
spec = fastns.Spec(rootfs=sys.argv[1])
with fastns.spawn(["/probe", "--echo"], spec=spec, stdin=fastns.PIPE) as sandbox:
    def thread():
        fastns.setns(sandbox, *kinds)
        for name in kinds.values():
            here = os.readlink(f"/proc/thread-self/ns/{name}")
            assert here == os.readlink(f"/proc/{sandbox.pid}/ns/{name}"), name
        print("joined")
    worker = threading.Thread(target=thread)
    worker.start(); worker.join()
""",
        str(probe_rootfs),
    )
    assert out == "joined\n"


def test_unshare_user_permits_the_other_kinds() -> None:
    out = script("""
own = os.readlink("/proc/self/ns/uts")
fastns.unshare("user", "uts")
assert os.readlink("/proc/self/ns/uts") != own
fastns.unshare("network", "ipc")
print("unshared")
""")
    assert out == "unshared\n"


def test_calls_refused_to_a_process_with_threads() -> None:
    """The calls fail, the hint names threads, and no namespace changes."""
    out = script("""
stop = threading.Event()
worker = threading.Thread(target=stop.wait)
worker.start()
calls = [lambda: fastns.unshare("user"), lambda: fastns.setns("/proc/self/ns/user", "user")]
if os.geteuid() == 0:
    calls += [lambda: fastns.setns(os.getpid(), "mount"), lambda: fastns.unshare("user", "uts")]
before = [os.readlink(f"/proc/thread-self/ns/{name}") for name in ("user", "uts", "mnt")]
for call in calls:
    try:
        call()
    except fastns.SpawnError as exc:
        print(exc.stage, exc.errno, "thread" in exc.hint)
    else:
        print("no error")
assert before == [os.readlink(f"/proc/thread-self/ns/{name}") for name in ("user", "uts", "mnt")]
stop.set()
""")
    expected = ["unshare 22 True", "setns 22 True"]
    if support.is_root():
        expected += ["setns 22 True", "unshare 22 True"]
    assert out.splitlines() == expected


@pytest.mark.as_user
@pytest.mark.parametrize("kind", [kind for kind in NAMESPACES if kind != "user"])
def test_unshare_without_the_right(kind: str) -> None:
    """unshare() fails with EPERM."""
    with pytest.raises(SpawnError) as caught:
        fastns.unshare(kind)
    assert (caught.value.stage, caught.value.errno) == ("unshare", errno.EPERM)


@pytest.mark.parametrize(
    ("target", "code"),
    [("/nonexistent", errno.ENOENT), (2**22 + 1, errno.ESRCH), (2**31 - 1, errno.ESRCH)],
)
def test_setns_of_a_missing_target(target: str | int, code: int) -> None:
    """setns() fails with the errno for a missing file or process."""
    with pytest.raises(SpawnError) as caught:
        fastns.setns(target, "uts")
    assert (caught.value.stage, caught.value.errno) == ("setns", code)
