"""If an id is unavailable or a limit is reached, the error names it. Other starts are not affected.

The tests never lower a limit of this process or of the host. A separate process does it for itself:
in a user namespace, with a resource limit, or in a cgroup that is removed afterwards.
"""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import support
from processes import script

import fastns
from fastns import IDMapping, Rlimit, SpawnError, Spec

WAYS = pytest.mark.parametrize("way", [{}, {"init": True}], ids=["direct", "init"])
HOST = dict.fromkeys(("pid", "mount", "uts", "ipc", "network", "cgroup"), "host")


@pytest.fixture
def root(probe_rootfs: Path) -> Path:
    return probe_rootfs


def failed(spec: Spec) -> SpawnError:
    """Return the error, after checking that the op it names has the same stage."""
    plan = fastns.compile(spec)
    with pytest.raises(SpawnError) as caught:
        fastns.run(["/true"], spec=plan)
    error = caught.value
    assert error.op_index == -1 or plan.ops[error.op_index].stage == error.stage
    return error


@WAYS
def test_a_limit_above_the_maximum(root: Path, way: dict[str, Any]) -> None:
    """RLIMIT_NOFILE above nr_open fails at its own op, with a hint."""
    top = int(Path("/proc/sys/fs/nr_open").read_text()) + 1
    limits = [Rlimit("RLIMIT_CORE", 0, 0), Rlimit("RLIMIT_NOFILE", 64, top)]
    plan = fastns.compile(Spec(rootfs=root, rlimits=limits, **way))
    with pytest.raises(SpawnError) as caught:
        fastns.run(["/true"], spec=plan)
    error = caught.value
    assert (error.stage, error.errno, error.path) == ("rlimit", errno.EPERM, None)
    assert plan.ops[error.op_index].note.startswith("RLIMIT_NOFILE")
    assert "nr_open" in (error.hint or "")


def nested(code: str, *args: str) -> str:
    """The stdout of Python code run as root of a user namespace that maps only this user."""
    prelude = (
        "import errno, sys, fastns\n"
        "from fastns import IDMapping, Rlimit, Spec\n"
        "def tell(spec, command='/true'):\n"
        "    plan = fastns.compile(spec)\n"
        "    try:\n"
        "        fastns.run([command], spec=plan)\n"
        "    except fastns.SpawnError as e:\n"
        "        code = plan.ops[e.op_index].code if e.op_index >= 0 else '-'\n"
        "        print(e.stage, errno.errorcode[e.errno], code, 'hint' if e.hint else 'nothing')\n"
        "    else:\n"
        "        print('it ran')\n"
    )
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", sys.executable, "-c", prelude + code, *args],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


@pytest.mark.parametrize("way", ["", "init=True"], ids=["direct", "init"])
@pytest.mark.parametrize("kind", support.NAMESPACES)
def test_a_limit_on_namespaces(root: Path, kind: str, way: str) -> None:
    """The test lowers the limit of its own user namespace. The host's limit does not change."""
    namespaces = {"user": "new", kind: "new"} if kind in ("user", "time") else {}
    spec = f"Spec(rootfs=sys.argv[1], namespaces={namespaces}, {way})"
    limit = f"/proc/sys/user/max_{support.NAMESPACES[kind]}_namespaces"
    out = nested(f"tell({spec})\nopen({limit!r}, 'w').write('0')\ntell({spec})", str(root))
    assert out.splitlines() == ["it ran", "clone ENOSPC - hint"]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ("user='5:6'", "setgid EINVAL setgid hint"),
        ("user='0:6'", "setgid EINVAL setgid hint"),
        ("user='5:0'", "setuid EINVAL setuid hint"),
        ("additional_gids=[5]", "setgroups EPERM setgroups hint"),
        (
            "uid_mappings=[IDMapping(0, 5, 9)], gid_mappings=[IDMapping(0, 5, 9)]",
            "id_map EPERM - hint",
        ),
    ],
)
def test_ids_that_a_nested_root_lacks(root: Path, fields: str, told: str) -> None:
    """The error names the op that needs the id, with a hint."""
    assert nested(f"tell(Spec(rootfs=sys.argv[1], {fields}))", str(root)) == told


@pytest.mark.as_user
def test_ids_of_other_users(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Ids of other users cannot be mapped, and the hint names /etc/subuid."""
    mappings = [IDMapping(0, 5, 9)]
    error = failed(Spec(rootfs=root, uid_mappings=mappings, gid_mappings=mappings))
    assert (error.stage, error.errno, error.op_index) == ("id_map", errno.EPERM, -1)
    assert "/etc/subuid" in (error.hint or "")
    assert "not allowed" in capfd.readouterr().err  # printed by newgidmap


@pytest.mark.as_user
@pytest.mark.parametrize(("user", "stage"), [("5:6", "setgid"), ("5:0", "setgid")])
def test_another_user_in_the_hosts_namespace(user: str, stage: str) -> None:
    """An unprivileged caller cannot become another user."""
    plan = fastns.compile(Spec(namespaces={**HOST, "user": "host"}, user=user))
    with pytest.raises(SpawnError) as caught:
        fastns.run(["/bin/true"], spec=plan)
    assert caught.value.errno == errno.EPERM
    assert caught.value.stage in ("setgroups", stage)
    assert plan.ops[caught.value.op_index].code == caught.value.stage


@pytest.mark.as_user
@pytest.mark.parametrize("init", [False, True])
def test_a_limit_on_processes_of_the_user(root: Path, init: bool) -> None:
    """The clone fails, and the hint names RLIMIT_NPROC."""
    out = script(
        """
import resource
plan = fastns.compile(fastns.Spec(rootfs=sys.argv[1], init=bool(sys.argv[2])))
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
before = fds()
try:
    fastns.run(["/true"], spec=plan)
except fastns.SpawnError as error:
    print(error.stage, error.errno, error.op_index, "RLIMIT_NPROC" in error.hint)
assert fds() == before and not children()
""",
        str(root),
        "1" if init else "",
    )
    assert out.split() == ["clone", str(errno.EAGAIN), "-1", "True"]


@pytest.mark.as_root
def test_a_limit_on_processes_inside(root: Path) -> None:
    """The limit admits the reaper but not its child."""
    spec = Spec(rootfs=root, user="7:7", rlimits=[Rlimit("RLIMIT_NPROC", 0, 0)], init=True)
    error = failed(spec)
    assert (error.stage, error.errno, error.op_index) == ("init", errno.EAGAIN, -1)
    assert "RLIMIT_NPROC" in (error.hint or "")


@pytest.fixture
def pids_group() -> Iterator[Path]:
    """A pids cgroup for the test, below one named fastns."""
    top = Path("/sys/fs/cgroup/pids")
    if not (top / "cgroup.procs").exists():
        support.skip_missing("a pids cgroup, version 1")
    group = top / "fastns" / f"steps-{os.getpid()}"
    group.mkdir(parents=True)
    yield group
    group.rmdir()
    with contextlib.suppress(OSError):  # another test still uses it
        group.parent.rmdir()


@pytest.mark.as_root
@pytest.mark.parametrize(
    ("room", "init", "stage"), [(1, "", "clone"), (1, "1", "clone"), (2, "1", "init")]
)
def test_a_full_pids_group(root: Path, pids_group: Path, room: int, init: str, stage: str) -> None:
    """The cgroup contains Python, the sandbox and, with init, the command as a third process."""
    (pids_group / "pids.max").write_text(str(room))
    code = """
plan = fastns.compile(fastns.Spec(rootfs=sys.argv[1], init=bool(sys.argv[3])))
pathlib.Path(sys.argv[2], "cgroup.procs").write_text("0")
before = fds()
try:
    fastns.run(["/true"], spec=plan)
except fastns.SpawnError as error:
    print(error.stage, error.errno, error.op_index, "pids.max" in (error.hint or ""))
assert fds() == before and not children()
pathlib.Path(sys.argv[2], "pids.max").write_text("5")
assert fastns.run(["/true"], spec=plan).returncode == 0
"""
    out = script(code, str(root), str(pids_group), init)
    assert out.split() == [stage, str(errno.EAGAIN), "-1", "True"]


# ---- other starts are not affected ----


@WAYS
def test_a_batch_goes_on_after_each_failure(root: Path, way: dict[str, Any]) -> None:
    commands = [["/true"], ["/no/such"], ["/true"], ["/mnt"], ["/true"]]
    results = fastns.run_batch(commands, spec=Spec(rootfs=root, **way), concurrency=2)
    told = [r.errno if isinstance(r, SpawnError) else r.returncode for r in results]  # type: ignore[union-attr]
    assert told == [0, errno.ENOENT, 0, errno.EACCES, 0]
    boxes = fastns.spawn_batch(commands, spec=Spec(rootfs=root, **way))
    told = [b.errno if isinstance(b, SpawnError) else b.wait(timeout=20) for b in boxes]
    assert told == [0, errno.ENOENT, 0, errno.EACCES, 0]


def test_host_change_finds_leaks(tmp_path: Path) -> None:
    """Control for conftest.py: it notices an fd, a child and a mount that are left behind."""
    before = support.host_state()
    fd = os.open("/dev/null", os.O_RDONLY)
    child = subprocess.Popen(["true"])
    try:
        change = support.host_change(before)
    finally:
        os.close(fd)
        child.wait()
    assert [line[:7] for line in change] == ["+ fds: ", "+ child"]
    out = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-c",
         "import os, sys\nsys.path.insert(0, sys.argv[1])\nimport support\n"
         "before = support.host_state()\n"
         "assert os.system(f'mount -t tmpfs left {sys.argv[2]}') == 0\n"
         "print(*support.host_change(before), sep='\\n')",
         str(support.TESTS), str(tmp_path)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert out.startswith("+ mounts: ")
    assert str(tmp_path) in out
