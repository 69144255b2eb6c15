"""What cannot be started: each case is a SpawnError with its stage, errno, op and path, or a
SpecError before any process exists. The watch of conftest sees that nothing is left after each.

The values a Spec refuses are in tests/unit/test_spec*.py; here is what only the kernel can tell.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import inside
import pytest
import support
from processes import script

import fastns
from fastns import Job, Mount, Rlimit, SpawnError, Spec, SpecError


@pytest.fixture(scope="module")
def root(public_dir: Path, probe_rootfs: Path) -> Iterator[Path]:
    """A root with one of everything that cannot be executed."""
    path = support.copy_tree(probe_rootfs, public_dir / "bad-root")
    bin = path / "bin"
    bin.mkdir()
    (bin / "text").write_text("just text, without #!\n")
    (bin / "empty").write_text("")
    (bin / "script").write_text("#!/no/such/interpreter\n")
    (bin / "loop").write_text("#!/bin/loop\n")
    header = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHI", 2, 8, 1)  # EM_MIPS
    (bin / "alien").write_bytes(header + bytes(64))
    shutil.copy("/bin/ls", bin / "dynamic")  # its loader is not in this root
    (bin / "plain").write_text("#!/true\n")
    (bin / "directory").mkdir()
    os.mkfifo(bin / "fifo")
    (bin / "link").symlink_to("link")
    (path / "closed").mkdir()
    for each in bin.iterdir():
        if not each.is_symlink():
            each.chmod(0o644 if each.name == "plain" else 0o755)
    (path / "closed").chmod(0)
    yield path
    (path / "closed").chmod(0o755)
    shutil.rmtree(path)


def refused(args: Any, **fields: Any) -> SpawnError:
    run = fields.pop("run", {})
    with pytest.raises(SpawnError) as caught:
        fastns.run(args, spec=Spec(**fields), **run)
    assert caught.value.hint, caught.value
    return caught.value


EXEC = {
    "missing": ("/no/such", errno.ENOENT),
    "not in PATH": ("nosuch", errno.ENOENT),
    "missing directory": ("/true/x", errno.ENOTDIR),
    "not executable": ("/bin/plain", errno.EACCES),
    "directory": ("/bin/directory", errno.EACCES),
    "fifo": ("/bin/fifo", errno.EACCES),
    "text": ("/bin/text", errno.ENOEXEC),
    "empty": ("/bin/empty", errno.ENOEXEC),
    "another architecture": ("/bin/alien", errno.ENOEXEC),
    "link to itself": ("/bin/link", errno.ELOOP),
    "script of itself": ("/bin/loop", errno.ELOOP),
    "no interpreter": ("/bin/script", errno.ENOENT),
    "no loader": ("/bin/dynamic", errno.ENOENT),
}


@pytest.mark.parametrize("extra", [{}, {"init": True}], ids=["direct", "init"])
@pytest.mark.parametrize("case", EXEC)
def test_exec(root: Path, case: str, extra: dict[str, Any]) -> None:
    command, error = EXEC[case]
    with pytest.raises(SpawnError) as caught:
        fastns.run([command], spec=Spec(rootfs=root, **extra))
    exc = caught.value
    assert (exc.stage, exc.errno, exc.op_index, exc.path) == ("exec", error, -1, command)
    assert exc.found == (case in ("no interpreter", "no loader"))
    assert not exc.found or "interpreter" in (exc.hint or "")


def test_noexec(root: Path) -> None:
    exc = refused(["/mnt/true"], rootfs=root,
                  mounts=[Mount("/mnt", source=root, options=["noexec"])])  # fmt: skip
    assert (exc.stage, exc.errno) == ("exec", errno.EACCES)


def test_too_many_arguments(root: Path) -> None:
    exc = refused(["/true", *["x" * 100_000] * 60], rootfs=root)
    assert (exc.stage, exc.errno, exc.path) == ("exec", errno.E2BIG, "/true")


@pytest.mark.parametrize(
    ("cwd", "error"),
    [("/nothing", errno.ENOENT), ("/true", errno.ENOTDIR), ("/closed", errno.EACCES)],
)
def test_cwd(root: Path, cwd: str, error: int) -> None:
    if cwd == "/closed" and support.is_root():
        exc = refused(["/true"], rootfs=root, cwd=cwd, user="7:7")
    elif cwd == "/closed":
        exc = refused(["/true"], rootfs=root, cwd=cwd, user="7:7", **inside.ranges())
    else:
        exc = refused(["/true"], rootfs=root, cwd=cwd)
        assert refused(["/true"], rootfs=root, run={"cwd": cwd}).errno == error
    assert (exc.stage, exc.errno, exc.op_index, exc.path) == ("chdir", error, -1, cwd)


@pytest.mark.parametrize(
    ("rootfs", "error"),
    [("/no/such", errno.ENOENT), ("/etc/passwd", errno.ENOTDIR), ("/proc/1/fdinfo/x", None)],
)
def test_rootfs(rootfs: str, error: int | None) -> None:
    exc = refused(["/true"], rootfs=rootfs) if error else None
    if exc is None:
        with pytest.raises(SpawnError) as caught:
            fastns.run(["/true"], spec=Spec(rootfs=rootfs))
        exc = caught.value
    assert (exc.stage, exc.path) == ("rootfs", rootfs)
    assert error is None or exc.errno == error
    assert exc.op_index >= 0


def test_a_rootfs_without_the_default_targets(public_dir: Path) -> None:
    bare = public_dir / "bare"
    bare.mkdir()
    exc = refused(["/true"], rootfs=bare)
    assert (exc.stage, exc.errno, exc.path) == ("mount", errno.ENOENT, "/proc")
    bare.rmdir()


def test_a_missing_source(root: Path) -> None:
    spec = Spec(rootfs=root, mounts=[Mount("/mnt", source="/no/such")])
    plan = fastns.compile(spec)
    with pytest.raises(SpawnError) as caught:
        fastns.run(["/true"], spec=plan)
    exc = caught.value
    assert (exc.stage, exc.errno, exc.path) == ("mount", errno.ENOENT, "/no/such")
    assert plan.ops[exc.op_index].source == b"/no/such"


MOUNTS = {
    "file over directory": (Mount("/mnt", source="/etc/passwd"), errno.ENOTDIR, "/mnt"),
    "directory over file": (Mount("/etc/hosts", source="/usr"), errno.ENOTDIR, "/etc/hosts"),
    "tmpfs over file": (Mount("/etc/hosts", type="tmpfs"), errno.ENOTDIR, "/etc/hosts"),
    "missing target": (Mount("/no/such", type="tmpfs"), errno.ENOENT, "/no/such"),
    "target below a file": (Mount("/true/x", type="tmpfs"), errno.ENOTDIR, "/true/x"),
    "target in the root below a file": (
        Mount("/true/x", type="tmpfs", options=["X-mount.mkdir"]),
        errno.ENOTDIR,
        "/true/x",
    ),
    "lower directory": (
        Mount("/mnt", type="overlay", options=["lowerdir=/no/such"]),
        errno.ENOENT,
        "/mnt",
    ),
}


@pytest.mark.parametrize("case", MOUNTS)
def test_mounts(root: Path, case: str) -> None:
    mount, error, path = MOUNTS[case]
    plan = fastns.compile(Spec(rootfs=root, mounts=[mount]))
    with pytest.raises(SpawnError) as caught:
        fastns.run(["/true"], spec=plan)
    exc = caught.value
    assert (exc.stage, exc.errno, exc.path) == ("mount", error, path)
    assert plan.ops[exc.op_index].target == path.encode()


FILES = {"/etc/none": errno.ENOENT, "/tmp": errno.ENOTDIR, "/true/x": errno.ENOTDIR}


@pytest.mark.parametrize("path", FILES)
def test_files(root: Path, path: str) -> None:
    exc = refused(["/true"], rootfs=root, files={path: "x"})
    assert (exc.stage, exc.errno, exc.path) == ("file", FILES[path], path)


@pytest.mark.parametrize("name", ["stdin", "stdout", "stderr"])
def test_a_closed_fd_as_stdio(root: Path, name: str) -> None:
    fd = os.dup(0)
    os.close(fd)
    with pytest.raises(SpawnError) as caught:
        fastns.spawn(["/true"], spec=Spec(rootfs=root), **{name: fd})
    assert (caught.value.stage, caught.value.errno) == ("stdio", errno.EBADF)


@pytest.mark.parametrize("extra", [{}, {"init": True}], ids=["direct", "staged"])
def test_a_closed_fd_to_pass(root: Path, extra: dict[str, Any]) -> None:
    with pytest.raises(SpawnError) as caught:
        fastns.spawn(["/true"], spec=Spec(rootfs=root, **extra), pass_fds=[900])
    assert (caught.value.stage, caught.value.errno) == ("fds", errno.EBADF)


@pytest.mark.parametrize("name", ["stdin", "stdout", "stderr"])
@pytest.mark.parametrize("value", [-7, True, "text", object(), 1.5])
def test_stdio_of_no_kind(root: Path, name: str, value: Any) -> None:
    with pytest.raises(SpecError) as caught:
        fastns.spawn(["/true"], spec=Spec(rootfs=root), **{name: value})
    assert caught.value.field == name


@pytest.mark.parametrize("value", [5, [-1], ["3"], [True], [2**31], [None], [1.0]])
def test_pass_fds_of_no_kind(root: Path, value: Any) -> None:
    with pytest.raises(SpecError) as caught:
        fastns.spawn(["/true"], spec=Spec(rootfs=root), pass_fds=value)
    assert caught.value.field == "pass_fds"


@pytest.mark.parametrize("value", ["x", 5, {}, object()])
def test_a_spec_of_no_kind(value: Any) -> None:
    for call in (fastns.run, fastns.spawn):
        with pytest.raises(SpecError) as caught:
            call(["true"], spec=value)
        assert caught.value.field == "spec"


RUN = {
    "stdin": {"input": b"", "stdin": -1},
    "capture_output": {"capture_output": True, "stdout": -1},
    "timeout": {"timeout": "5"},
    "env": {"env": {"A=B": "x"}},
    "cwd": {"cwd": "relative"},
    "input": {"input": "text"},
    "encoding": {"encoding": "no-such-encoding"},
}


@pytest.mark.parametrize("field", RUN)
def test_arguments_of_run(root: Path, field: str) -> None:
    with pytest.raises(SpecError) as caught:
        fastns.run(["/true"], spec=Spec(rootfs=root), **RUN[field])  # type: ignore[call-overload]
    assert caught.value.field == field


JOBS: list[Any] = [
    [["/true"], []],
    [["/true"], "text"],
    [["/true"], 5],
    [["/true"], Job(["/true"], cwd="relative")],
    [["/true"], Job(["/true"], timeout="x")],  # type: ignore[arg-type]
    [["/true"], Job(["/true"], env={"": "x"})],
    [["/true"], Job(["/true"], input="text")],
]


@pytest.mark.parametrize("jobs", JOBS, ids=repr)
def test_jobs(root: Path, jobs: Any) -> None:
    with pytest.raises(SpecError) as caught:
        fastns.run_batch(jobs, spec=Spec(rootfs=root))
    assert caught.value.field.startswith("jobs[1]")


@pytest.mark.parametrize("value", [0, -1, 5000, "2", True, 1.0])
def test_concurrency(root: Path, value: Any) -> None:
    for call in (fastns.run_batch, fastns.spawn_batch):
        with pytest.raises(SpecError) as caught:
            call([["/true"]], spec=Spec(rootfs=root), concurrency=value)
        assert caught.value.field == "concurrency"


def test_rlimits(root: Path) -> None:
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    if hard == resource.RLIM_INFINITY:
        nr_open = int(Path("/proc/sys/fs/nr_open").read_text())
        limit = Rlimit("RLIMIT_NOFILE", nr_open + 1, nr_open + 1)
    else:
        limit = Rlimit("RLIMIT_CORE", 0, -1)
    exc = refused(["/true"], rootfs=root, rlimits=[limit])
    assert (exc.stage, exc.errno) == ("rlimit", errno.EPERM)


@pytest.mark.as_user
def test_what_needs_root(root: Path) -> None:
    exc = refused(["/true"], rootfs=root, mounts=[Mount("/mnt", type="devtmpfs")])
    assert (exc.stage, exc.errno, exc.path) == ("mount", errno.EPERM, "/mnt")
    with pytest.raises(SpecError):
        fastns.compile(Spec(namespaces={"user": "host"}))
    exc = refused(["true"], user="7:7", namespaces=dict.fromkeys(
        ["pid", "mount", "uts", "ipc", "network", "user", "cgroup", "time"], "host"))  # fmt: skip
    assert (exc.stage, exc.errno) in (("setgroups", errno.EPERM), ("setgid", errno.EPERM))


def test_a_namespace_limit() -> None:
    """In a user namespace of the test's own, whose limits are nobody else's."""
    code = """
import errno
import fastns
for kind in ("uts", "ipc", "pid", "network", "cgroup", "mount"):
    name = {"mount": "mnt", "network": "net"}.get(kind, kind)
    path = f"/proc/sys/user/max_{name}_namespaces"
    with open(path) as file:
        before = file.read()
    with open(path, "w") as file:
        file.write("0")
    try:
        fastns.run(["true"], spec=fastns.Spec(namespaces={"user": "new"}))
    except fastns.SpawnError as exc:
        assert (exc.stage, exc.errno) == ("clone", errno.ENOSPC), exc
        assert "max_*_namespaces" in exc.hint
    else:
        raise AssertionError(kind)
    with open(path, "w") as file:
        file.write(before)
print("limited")
"""
    done = subprocess.run(
        ["unshare", "-U", "-r", sys.executable, "-c", code], capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("limited\n", "")


@pytest.mark.as_user
def test_a_limit_of_processes(root: Path) -> None:
    out = script(
        """
import resource, sys
import fastns
fastns.compile()
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
try:
    fastns.run(["/true"], spec=fastns.Spec(rootfs=sys.argv[1]))
except fastns.SpawnError as exc:
    print(exc.stage, exc.errno, "RLIMIT_NPROC" in exc.hint)
""",
        str(root),
    )
    assert out.split() == ["clone", str(errno.EAGAIN), "True"]


@pytest.mark.as_root
def test_a_full_pids_cgroup(root: Path) -> None:
    top = Path("/sys/fs/cgroup/pids")
    if not (top / "cgroup.procs").exists():
        support.skip_missing("a pids cgroup, version 1")
    group = top / "fastns" / f"test-{os.getpid()}"
    group.mkdir(parents=True)
    (group / "pids.max").write_text("1")
    code = """
import sys
import fastns
plan = fastns.compile(fastns.Spec(rootfs=sys.argv[1]))
with open(sys.argv[2] + "/cgroup.procs", "w") as file:
    file.write("0")
try:
    fastns.run(["/true"], spec=plan)
except fastns.SpawnError as exc:
    print(exc.stage, exc.errno, "pids" in exc.hint)
"""
    try:
        assert script(code, str(root), str(group)).split() == ["clone", str(errno.EAGAIN), "True"]
    finally:
        group.rmdir()
        with contextlib.suppress(OSError):  # EBUSY: another caller has cgroups there
            group.parent.rmdir()


def test_a_full_table_of_fds(root: Path) -> None:
    """Staged spawns need fds of their own: running out is an error, and leaves none behind."""
    out = script(
        """
import os, resource, sys
import fastns
resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24))
plan = fastns.compile(fastns.Spec(rootfs=sys.argv[1], init=True))
fastns.run(["/true"], spec=plan)
held, seen = [], set()
while True:
    try:
        held.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        break
for _ in range(8):
    try:
        fastns.run(["/true"], spec=plan)
        seen.add("ran")
    except (fastns.SpawnError, OSError) as exc:
        seen.add(exc.errno)
    before = len(os.listdir("/proc/self/fd")) if len(held) < 20 else 0
    os.close(held.pop())
print(sorted(map(str, seen)), len(held))
""",
        str(root),
    )
    assert "ran" in out
    assert str(errno.EMFILE) in out


def test_modes_of_the_cases(root: Path) -> None:
    """The cases are what they say: a file system that ignored modes would test nothing."""
    assert stat.S_ISFIFO((root / "bin" / "fifo").stat().st_mode)
    assert not os.stat(root / "bin" / "plain").st_mode & 0o111
