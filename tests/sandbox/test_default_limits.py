"""Default limits on resources that the kernel counts per user or per host: core dumps, fds, timers,
terminals. A program takes as much as it can get, with each limit and, as a control, without it."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import support
from inside import WAYS, runner

import fastns
from fastns import Mount, Rlimit, Spec, Template
from fastns._compile import userns

SHARED = ("NOFILE", "SIGPENDING", "MSGQUEUE", "MEMLOCK")
CORE_CALLS = ("setrlimit", "setrlimit-high", "prlimit", "prlimit-pid", "prlimit-high", "libc")


def said(done: Any) -> dict[str, tuple[int, int, int]]:
    """The output of `exhaust core`: call -> its errno, and the soft and hard limit after it."""
    assert done.returncode == 0, done.stderr
    lines = [line.rsplit(" ", 3) for line in done.stdout.decode().splitlines()]
    return {name: (int(err), int(soft), int(hard)) for name, err, soft, hard in lines}


# ---- core dumps ----


@pytest.mark.parametrize("way", WAYS)
def test_no_call_changes_the_limit_on_core_dumps(exhaust_root: Path, way: str) -> None:
    with runner(way, rootfs=exhaust_root) as run:
        found = said(run(["/exhaust", "core"], capture_output=True))
    assert {name: found[name] for name in CORE_CALLS} == dict.fromkeys(CORE_CALLS, (0, 1, 1))
    assert found["as it is"] == found["read"] == found["old"] == found["other"] == (0, 1, 1)
    # A filter cannot return the old limit, so a call that asks for it fails.
    assert found["prlimit-both"] == (errno.EPERM, 1, 1)


@pytest.mark.parametrize("way", WAYS)
def test_without_the_filter_calls_change_the_limit_on_core_dumps(
    exhaust_root: Path, way: str
) -> None:
    with runner(way, rootfs=exhaust_root, seccomp="unconfined") as run:
        found = said(run(["/exhaust", "core"], capture_output=True))
    assert found["as it is"] == (0, 1, 1)
    assert found["setrlimit"] == found["prlimit-high"] == (0, 0, 1)


@pytest.mark.parametrize("way", WAYS)
def test_no_call_changes_the_specs_own_limit(exhaust_root: Path, way: str) -> None:
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    for soft, top in ((0, 0), (0, hard)):
        rlimits = [Rlimit("RLIMIT_NOFILE", 64, 64), Rlimit("RLIMIT_CORE", soft, top)]
        with runner(way, rootfs=exhaust_root, rlimits=rlimits) as run:
            found = said(run(["/exhaust", "core"], capture_output=True))
        assert {found[name] for name in CORE_CALLS} == {(0, soft, top)}


@pytest.mark.parametrize("way", WAYS)
def test_a_crash_dumps_no_core(exhaust_root: Path, way: str) -> None:
    with runner(way, rootfs=exhaust_root, cwd="/tmp") as run:
        done = run(["/exhaust", "crash"], capture_output=True)
    assert done.stdout == b"11 0\n"


def test_with_a_higher_limit_a_crash_dumps_core(exhaust_root: Path) -> None:
    if Path("/proc/sys/kernel/core_pattern").read_text().strip() != "core":
        support.skip_missing("kernel.core_pattern=core")
    if resource.getrlimit(resource.RLIMIT_CORE)[1] != resource.RLIM_INFINITY:
        support.skip_missing("an unlimited hard RLIMIT_CORE")
    spec = Spec(rootfs=exhaust_root, cwd="/tmp", rlimits=[Rlimit("RLIMIT_CORE", -1, -1)])
    done = fastns.run(["/exhaust", "crash"], spec=spec, capture_output=True)
    assert done.stdout == b"11 1\n"


# ---- half of the caller's limits ----


def limits_of(report: dict[str, Any]) -> dict[str, tuple[int, int]]:
    return {
        name: tuple(resource.RLIM_INFINITY if n == -1 else n for n in report[f"RLIMIT_{name}"])
        for name in SHARED
    }  # type: ignore[misc]


SHARES = """
import resource, sys
for name, soft in zip({names!r}, {soft!r}):
    number = getattr(resource, "RLIMIT_" + name)
    resource.setrlimit(number, (soft, resource.getrlimit(number)[1]))
import fastns
from inside import runner
with runner({way!r}, rootfs={root!r}) as run:
    done = run(["/probe"], capture_output=True, timeout=20)
sys.stdout.buffer.write(done.stdout)
assert done.returncode == 0, done.stderr
"""


def shares(way: str, root: Path, soft: tuple[int, ...]) -> dict[str, tuple[int, int]]:
    """The limits inside a sandbox whose caller has these soft limits."""
    script = SHARES.format(names=SHARED, soft=soft, way=way, root=str(root))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    return limits_of(support.parse_report(done.stdout)["rlimits"])


@pytest.mark.parametrize("way", WAYS)
def test_a_sandbox_has_half_of_its_callers_limits(probe_rootfs: Path, way: str) -> None:
    assert shares(way, probe_rootfs, (1024, 1000, 819200, 65536)) == {
        "NOFILE": (512, 512),
        "SIGPENDING": (500, 500),
        "MSGQUEUE": (409600, 409600),
        "MEMLOCK": (32768, 32768),
    }
    assert shares(way, probe_rootfs, (300, 0, 1, 3)) == {
        "NOFILE": (256, 256),
        "SIGPENDING": (0, 0),
        "MSGQUEUE": (0, 0),
        "MEMLOCK": (1, 1),
    }


def test_half_is_capped_by_the_default(probe_rootfs: Path) -> None:
    most = (16384, 20000, 819200, 8 << 20)
    for number, name in zip(most, SHARED, strict=True):
        if resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))[1] < number:
            support.skip_missing("Linux's default limits")
    assert shares("direct", probe_rootfs, most) == {
        "NOFILE": (1024, 4096),
        "SIGPENDING": (4096, 4096),
        "MSGQUEUE": (409600, 409600),
        "MEMLOCK": (4 << 20, 4 << 20),
    }


@contextlib.contextmanager
def exhausted(root: Path, what: str, spec: dict[str, Any], most: int) -> Iterator[tuple[int, int]]:
    """Yield how much a sandbox got, and the errno that stopped it. The sandbox keeps everything
    during the block."""
    with fastns.spawn(
        ["/exhaust", what, str(most)],
        spec=Spec(rootfs=root, **spec),
        stdin=fastns.PIPE,
        stdout=fastns.PIPE,
    ) as sandbox:
        assert sandbox.stdout is not None
        got, err = sandbox.stdout.readline().split()
        yield int(got), int(err)
        sandbox.kill()


def test_fds(exhaust_root: Path) -> None:
    """A sandbox can open half as many fds as its caller, and at most 4096."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    share = min(4096, soft // 2)
    with exhausted(exhaust_root, "fds", {}, soft) as got:
        assert got == (share - 3, errno.EMFILE)


@pytest.mark.as_user  # root is exempt, and its sandboxes run as other users
@pytest.mark.parametrize("init", [False, True], ids=["direct", "init"])
def test_one_sandbox_leaves_its_user_fds_to_pass(exhaust_root: Path, init: bool) -> None:
    """The kernel counts fds in flight per user and compares them with the sender's limit."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft < 1024:
        support.skip_missing("1024 fds")
    with exhausted(exhaust_root, "fds-in-flight", {"init": init}, 4 * soft) as (got, err):
        assert err == errno.ETOOMANYREFS
        assert got <= min(4096, soft // 2) + 253
        near, far = socket.socketpair()
        with near, far:
            socket.send_fds(near, [b"x"], [0])
        assert fastns.run(["/exhaust"], spec=Spec(rootfs=exhaust_root, init=True)).returncode == 2
        with Template(Spec(rootfs=exhaust_root)) as template:
            assert template.run(["/exhaust"]).returncode == 2
            with template.spawn(["/exhaust"]) as sandbox:
                assert sandbox.wait() == 2


@pytest.mark.parametrize("init", [False, True], ids=["direct", "init"])
@pytest.mark.parametrize("users", ["default", "new"])
def test_one_sandbox_leaves_its_user_inotify_instances(
    exhaust_root: Path, users: str, init: bool
) -> None:
    """The kernel also counts them for the creator of the user namespace. That may be root, although
    its sandboxes run as other users."""
    most = int(Path("/proc/sys/fs/inotify/max_user_instances").read_text())
    most = min(most, int(Path(userns.INOTIFY_LIMIT).read_text()))
    if not 4 <= most <= 2000:
        support.skip_missing("a limit on inotify instances below the number of fds")
    spec = {"init": init, "namespaces": {"user": "new"} if users == "new" else {}}
    with exhausted(exhaust_root, "inotify", spec, 4 * most) as (got, err):
        assert (got <= most // 2, err) == (True, errno.EMFILE)


@pytest.mark.parametrize("ready", [0, 2])
def test_the_sandboxes_of_a_template_have_half_of_the_inotify_instances(
    exhaust_root: Path, ready: int
) -> None:
    most = int(Path(userns.INOTIFY_LIMIT).read_text())
    most = min(most, int(Path("/proc/sys/fs/inotify/max_user_instances").read_text()))
    if not 4 <= most <= 2000:
        support.skip_missing("a limit on inotify instances below the number of fds")
    with Template(Spec(rootfs=exhaust_root), ready=ready) as template:
        done = template.run(["/exhaust", "inotify"], capture_output=True)
    got, err = map(int, done.stdout.split())
    assert (got <= most // 2, err) == (True, errno.EMFILE)


NO_FDS_TO_PASS = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
import fastns
from fastns import Rlimit, Spec, Template
root, way = sys.argv[1:]
more = Spec(rootfs=root, rlimits=[Rlimit("RLIMIT_NOFILE", 900, 900)])
template = Template(Spec(rootfs=root), ready=0) if way in ("run", "spawn") else None
if template:
    template.run(["/exhaust"])
words = ["/exhaust", "fds-in-flight", "600"]
with fastns.spawn(words, spec=more, stdin=fastns.PIPE, stdout=fastns.PIPE) as sandbox:
    print(sandbox.stdout.readline())
    try:
        assert fastns.run(["/exhaust"], spec=Spec(rootfs=root)).returncode == 2  # passes no fd
        if way == "template":
            Template(Spec(rootfs=root)).run(["/exhaust"])
        elif way == "run":
            template.run(["/exhaust"])
        elif way == "spawn":
            template.spawn(["/exhaust"])
    except fastns.SpawnError as error:
        print(error.stage, error.errno, error.hint)
    sandbox.kill()
assert fastns.run(["/exhaust"], spec=Spec(rootfs=root, init=True)).returncode == 2
if template:
    assert template.run(["/exhaust"]).returncode == 2
"""


@pytest.mark.as_user
@pytest.mark.parametrize("way", ["template", "run", "spawn"])
def test_the_error_of_a_start_that_may_pass_no_fd(exhaust_root: Path, way: str) -> None:
    """A single sandbox with higher limits can put so many fds in flight."""
    done = subprocess.run(
        [sys.executable, "-c", NO_FDS_TO_PASS, str(exhaust_root), way],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    _got, found = done.stdout.splitlines()
    assert found.startswith(f"helper {errno.ETOOMANYREFS} ")
    assert "in flight" in found


GIVEN_UP = """
import resource, signal, sys, time
def limit(fds):
    resource.setrlimit(resource.RLIMIT_NOFILE, (fds, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
limit(256)
import fastns
from fastns import Rlimit, Spec, Template
root, how, ready = sys.argv[1:]
class Enough(Exception):
    pass
def enough(*args):
    raise Enough
signal.signal(signal.SIGALRM, enough)
template = Template(Spec(rootfs=root), ready=int(ready))
template.__enter__()
words = ["/exhaust", "fds-in-flight", "600"]
more = Spec(rootfs=root, rlimits=[Rlimit("RLIMIT_NOFILE", 900, 900)])
with fastns.spawn(words, spec=more, stdin=fastns.PIPE, stdout=fastns.PIPE) as sandbox:
    sandbox.stdout.readline()
    begin = time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        getattr(template, how)([["/exhaust"]] if how == "run_batch" else ["/exhaust"])
    except Enough:
        print("given up", time.monotonic() - begin < 3)
    sandbox.kill()
assert template.run(["/exhaust"]).returncode == 2
"""


@pytest.mark.as_user
@pytest.mark.parametrize("ready", [0, 2])
@pytest.mark.parametrize("how", ["run", "spawn", "run_batch"])
def test_an_exception_ends_the_wait_to_pass_an_fd(exhaust_root: Path, how: str, ready: int) -> None:
    """An exception from a signal handler ends the wait at once."""
    done = subprocess.run(
        [sys.executable, "-c", GIVEN_UP, str(exhaust_root), how, str(ready)],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "given up True\n"), done.stderr


@pytest.mark.parametrize("init", [False, True], ids=["direct", "init"])
def test_one_sandbox_leaves_its_user_timers(exhaust_root: Path, init: bool) -> None:
    """The kernel counts timers in the sandbox's user namespace and in its caller's."""
    soft = resource.getrlimit(resource.RLIMIT_SIGPENDING)[0]
    if soft < 1000:
        support.skip_missing("1000 pending signals")
    with exhausted(exhaust_root, "timers", {"init": init}, 2 * soft) as (got, err):
        assert (got, err) == (min(4096, soft // 2), errno.EAGAIN)


def test_a_higher_limit_permits_more_timers(exhaust_root: Path) -> None:
    soft = resource.getrlimit(resource.RLIMIT_SIGPENDING)[0]
    most = min(4096, soft // 2) + 50  # more than the default, but not all
    own = {"rlimits": [Rlimit("RLIMIT_SIGPENDING", soft, soft)]}
    with exhausted(exhaust_root, "timers", own, most) as got:
        assert got == (most, 0)


# ---- terminals ----


@pytest.mark.parametrize("way", WAYS)
def test_one_sandbox_has_64_terminals(exhaust_root: Path, way: str) -> None:
    with runner(way, rootfs=exhaust_root) as run:
        done = run(["/exhaust", "ptys"], stdin=fastns.DEVNULL, capture_output=True)
    assert done.stdout == b"64 %d\n" % errno.ENOSPC


def test_a_devpts_mount_sets_the_number_of_terminals(exhaust_root: Path) -> None:
    for options, got in ((["newinstance", "ptmxmode=0666"], 100), (["ptmxmode=666", "max=5"], 5)):
        mount = Mount("/dev/pts", type="devpts", options=options)
        with exhausted(exhaust_root, "ptys", {"mounts": [mount]}, 100) as (have, _errno):
            assert have == got
