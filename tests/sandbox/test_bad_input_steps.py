"""The error of a failing op has the right stage, errno, op index and path, with and without init.

Each row names the op that fails, and the error must point at it. conftest.py checks that a failure
leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import script

import fastns
from fastns import Mount, SpawnError, Spec

WAYS = pytest.mark.parametrize("way", [{}, {"init": True}], ids=["direct", "init"])
HOST = dict.fromkeys(("pid", "mount", "uts", "ipc", "network", "cgroup"), "host")


@pytest.fixture(scope="module")
def root(public_dir: Path, probe_rootfs: Path) -> Iterator[Path]:
    """A root owned by the tests' user, with broken links."""
    path = public_dir / "steps-root"
    shutil.copytree(probe_rootfs, path)
    (path / "loop").symlink_to("loop")
    (path / "dangling").symlink_to("nowhere")
    (path / "linked").symlink_to("mnt")
    yield path
    shutil.rmtree(path)


def failed(spec: Spec, command: str = "/true") -> tuple[SpawnError, str]:
    """Return the error, and which path of which op it blames, as `CODE target` or `CODE source`."""
    plan = fastns.compile(spec)
    with pytest.raises(SpawnError) as caught:
        fastns.run([command], spec=plan)
    error = caught.value
    assert error.filename == error.path
    assert error.strerror == os.strerror(error.errno or 0)
    if error.op_index < 0:
        assert error.op_index == -1
        return error, "-"
    op = plan.ops[error.op_index]
    assert op.stage == error.stage
    assert error.path is not None
    assert str(error).startswith(f"{error.stage}[{error.op_index}] {error.path}: ")
    # A dry run prints the step with the same number.
    described = [line for line in plan.describe() if line.startswith(f"{error.stage}[")]
    assert any(line.startswith(f"{error.stage}[{error.op_index}]") for line in described)
    side = "source" if os.fsencode(error.path) == op.source else "target"
    assert os.fsencode(error.path) == getattr(op, side)
    return error, f"{op.code} {side}"


# ---- mounts and files: what, spec fields, stage, errno, op and side, path ----

X = "X-mount.mkdir"
TMPFS: Callable[..., Mount] = lambda where, *options: Mount(where, "tmpfs", options=options)  # noqa: E731
STEPS: dict[str, tuple[dict[str, Any], str, int, str, str]] = {
    "missing source": (
        {"mounts": [Mount("/mnt", source="/no/such")]},
        "mount", errno.ENOENT, "bind source", "/no/such"),
    "source below a file": (
        {"mounts": [Mount("/mnt", source="/etc/passwd/x")]},
        "mount", errno.ENOTDIR, "bind source", "/etc/passwd/x"),
    "source name too long": (
        {"mounts": [Mount("/mnt", source="/" + "x" * 256)]},
        "mount", errno.ENAMETOOLONG, "bind source", "/" + "x" * 256),
    "missing target": (
        {"mounts": [Mount("/no/such", source="/usr")]},
        "mount", errno.ENOENT, "bind target", "/no/such"),
    "missing target of a file": (
        {"mounts": [Mount("/no", source="/etc/passwd")]},
        "mount", errno.ENOENT, "bind target", "/no"),
    "target that links to itself": (
        {"mounts": [TMPFS("/loop")]}, "mount", errno.ELOOP, "mount target", "/loop"),
    "target that links nowhere": (
        {"mounts": [TMPFS("/dangling")]}, "mount", errno.ENOENT, "mount target", "/dangling"),
    "made target that links nowhere": (
        {"mounts": [TMPFS("/dangling", X)]}, "mount", errno.EEXIST, "mount target", "/dangling"),
    "proc behind a link": (
        {"mounts": [Mount("/linked", "proc")]}, "mount", errno.ELOOP, "mount target", "/linked"),
    "target in a read-only root": (
        {"read_only": True, "mounts": [TMPFS("/new", X)]},
        "mount", errno.EROFS, "mount target", "/new"),
    "target in a read-only mount": (
        {"mounts": [TMPFS("/mnt", "ro"), TMPFS("/mnt/x", X)]},
        "mount", errno.EROFS, "mount target", "/mnt/x"),
    "missing target in a bind": (
        {"mounts": [Mount("/mnt", source="/usr"), TMPFS("/mnt/no/such")]},
        "mount", errno.ENOENT, "mount target", "/mnt/no/such"),
    "directory over a file": (
        {"mounts": [Mount("/etc/hosts", source="/usr")]},
        "mount", errno.ENOTDIR, "bind target", "/etc/hosts"),
    "file over a directory": (
        {"mounts": [Mount("/mnt", source="/etc/passwd")]},
        "mount", errno.ENOTDIR, "bind target", "/mnt"),
    "file over a directory made by a mount": (
        {"overlay": True, "mounts": [TMPFS("/a/b"), Mount("/a/b/c", "tmpfs")],
         "files": {"/a/b/c/d": "", "/mnt": ""}},
        "file", errno.ENOTDIR, "file_bind target", "/mnt"),
    "tmpfs over a file": (
        {"mounts": [TMPFS("/etc/hosts")]}, "mount", errno.ENOTDIR, "mount target", "/etc/hosts"),
    "mount below a file of the root": (
        {"mounts": [TMPFS("/true/x")]}, "mount", errno.ENOTDIR, "mount target", "/true/x"),
    "made mount below a file of the root": (
        {"mounts": [TMPFS("/true/x", X)]}, "mount", errno.ENOTDIR, "mount target", "/true/x"),
    "mount below a file": (
        {"overlay": True, "mounts": [TMPFS("/etc/hosts/x")]},
        "mount", errno.ENOTDIR, "mount target", "/etc/hosts/x"),
    "overlay of a missing layer": (
        {"mounts": [Mount("/mnt", "overlay", options=["lowerdir=/no/such"])]},
        "mount", errno.ENOENT, "mount target", "/mnt"),
    "overlay of one layer": (
        {"mounts": [Mount("/mnt", "overlay", options=["lowerdir=/usr"])]},
        "mount", errno.EINVAL, "mount target", "/mnt"),
    "missing file": (
        {"files": {"/etc/none": "x"}}, "file", errno.ENOENT, "file_bind target", "/etc/none"),
    "missing file in a missing directory": (
        {"files": {"/no/such": "x"}}, "file", errno.ENOENT, "file_bind target", "/no/such"),
    "file below a file of the root": (
        {"files": {"/true/x": "x"}}, "file", errno.ENOTDIR, "file_bind target", "/true/x"),
    "text over a default mount": (
        {"default_mounts": True, "files": {"/tmp": "x"}},
        "file", errno.ENOTDIR, "file_bind target", "/tmp"),
    "text over a directory": (
        {"files": {"/mnt": "x"}}, "file", errno.ENOTDIR, "file_bind target", "/mnt"),
    "file below a file": (
        {"overlay": True, "files": {"/etc/hosts/x": "x"}},
        "file", errno.ENOTDIR, "file_bind target", "/etc/hosts/x"),
    "second of two files": (
        {"files": {"/etc/hosts": "x", "/etc/none": "y"}},
        "file", errno.ENOENT, "file_bind target", "/etc/none"),
    "missing default target": (
        {"rootfs": "/usr/include", "default_mounts": True},
        "mount", errno.ENOENT, "mount target", "/proc"),
    "missing rootfs": (
        {"rootfs": "/no/such"}, "rootfs", errno.ENOENT, "root_tree source", "/no/such"),
    "rootfs that is a file": (
        {"rootfs": "/etc/passwd"}, "rootfs", errno.ENOTDIR, "root_tree source", "/etc/passwd"),
    "rootfs below a file": (
        {"rootfs": "/etc/passwd/x"}, "rootfs", errno.ENOTDIR, "root_tree source", "/etc/passwd/x"),
    "rootfs that is a device": (
        {"rootfs": "/dev/null"}, "rootfs", errno.ENOTDIR, "root_tree source", "/dev/null"),
    "missing rootfs of a chroot": (
        {"rootfs": "/no/such", "root_mode": "chroot"},
        "rootfs", errno.ENOENT, "root_tree source", "/no/such"),
}  # fmt: skip


@WAYS
@pytest.mark.parametrize("case", STEPS)
def test_a_step(root: Path, case: str, way: dict[str, Any]) -> None:
    """The error points at the op and the path of the row."""
    fields, stage, code, op, path = STEPS[case]
    spec = Spec(**{"rootfs": root, "default_mounts": False, **fields, **way})
    error, blamed = failed(spec)
    assert (error.stage, error.errno, blamed, error.path) == (stage, code, op, path)
    hintless = (errno.ENAMETOOLONG, errno.EEXIST)
    assert (error.hint is None) == (code in hintless or (stage, code) == ("file", errno.ELOOP))


@WAYS
@pytest.mark.as_user
@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"mounts": [Mount("/mnt", "devtmpfs")]}, "/mnt"),
        ({"mounts": [Mount("/sys", "sysfs")], "network": "host"}, "/sys"),
        ({"mounts": [Mount("/mnt", "mqueue")], "namespaces": {"ipc": "host"}}, "/mnt"),
    ],
    ids=["devtmpfs", "sysfs", "mqueue"],
)
def test_a_mount_that_needs_root(
    root: Path, fields: dict[str, Any], path: str, way: dict[str, Any]
) -> None:
    """Such a mount fails with EPERM for other callers, with a hint."""
    error, blamed = failed(Spec(rootfs=root, default_mounts=False, **fields, **way))
    assert (error.stage, error.errno, error.path) == ("mount", errno.EPERM, path)
    assert blamed == "mount target"
    assert error.hint is not None
    assert "devtmpfs" in error.hint or path == "/sys"


# ---- namespaces that cannot be joined ----

JOINED = {
    "missing": ("/no/such", errno.ENOENT),
    "below a file": ("/etc/passwd/x", errno.ENOTDIR),
    "a file": ("/etc/passwd", errno.EINVAL),
    "a directory": ("/etc", errno.EINVAL),
    "another kind": ("/proc/self/ns/cgroup", errno.EINVAL),
}


@pytest.mark.parametrize(
    "kind", ["uts", "ipc", "network", "pid", "mount", "time", "user", "cgroup"]
)
@pytest.mark.parametrize("case", JOINED)
def test_a_namespace(case: str, kind: str) -> None:
    """A path that is not a namespace of its kind fails at setns."""
    path, code = JOINED[case]
    if (case, kind) == ("another kind", "cgroup"):
        path = "/proc/self/ns/uts"
    plan = fastns.compile(Spec(namespaces={kind: path}, default_mounts=False))
    with pytest.raises(SpawnError) as caught:
        fastns.run(["/bin/true"], spec=plan)
    error = caught.value
    assert (error.stage, error.errno, error.path) == ("setns", code, path)
    assert plan.ops[error.op_index].code == "setns"
    assert plan.ops[error.op_index].source == path.encode()


@pytest.mark.as_user
def test_a_namespace_of_another_user() -> None:
    """The caller may not join its own uts namespace, because that belongs to the host's root."""
    own = f"/proc/{os.getpid()}/ns/uts"
    error, blamed = failed(Spec(namespaces={"uts": own}), "/bin/true")
    assert (error.stage, error.errno, error.path) == ("setns", errno.EPERM, own)
    assert blamed == "setns source"
    assert error.hint is not None
    assert "CAP_SYS_ADMIN" in error.hint


@pytest.mark.parametrize(
    "call",
    [
        "fastns.run(['/bin/true'], spec=fastns.Spec(namespaces={'uts': sys.argv[1]}))",
        "fastns.run(['/bin/true'], spec=fastns.Spec(namespaces={'pid': sys.argv[1]}))",
        "fastns.setns(sys.argv[1], 'uts')",
    ],
    ids=["direct", "staged", "setns"],
)
def test_a_fifo_as_namespace_does_not_block(tmp_path: Path, call: str) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    code = (
        f"import sys, fastns\ntry: {call}\nexcept fastns.SpawnError as e: print(e.stage, e.errno)"
    )
    python = subprocess.Popen(
        [sys.executable, "-c", code, str(fifo)], stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        out, _ = python.communicate(timeout=10)
    finally:
        with contextlib.suppress(ProcessLookupError):  # a hung child blocks other signals
            os.killpg(python.pid, signal.SIGKILL)
        python.communicate()
    assert out.split() == [b"setns", str(errno.EINVAL).encode()]


# ---- fds ----


@WAYS
@pytest.mark.parametrize("name", ["stdin", "stdout", "stderr", "pass_fds"])
@pytest.mark.parametrize("ahead", range(10))
def test_a_closed_fds_number_is_not_reused(
    root: Path, name: str, ahead: int, way: dict[str, Any]
) -> None:
    """A pipe or socket of this start could get the closed number and leak into the sandbox."""
    opened = [os.open("/dev/null", os.O_RDONLY) for _ in range(ahead + 1)]
    for fd in opened:
        os.close(fd)
    closed = opened[-1]
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), fastns.PIPE)
    pipes[name] = [closed] if name == "pass_fds" else closed
    plan = fastns.compile(Spec(rootfs=root, **way))
    with pytest.raises(SpawnError) as caught, fastns.spawn(["/true"], spec=plan, **pipes):
        pass
    error = caught.value
    stage = "fds" if name == "pass_fds" else "stdio"
    assert (error.stage, error.errno, error.op_index, error.path) == (stage, errno.EBADF, -1, None)
    assert "closed" in (error.hint or "")


def test_a_caller_without_stdio(root: Path) -> None:
    """If the caller's fds 0, 1 and 2 are closed, the sandbox gets /dev/null there, not a pipe of
    fastns."""
    out = script(
        """
report = os.dup(1)
for fd in (0, 1, 2):
    os.close(fd)
null = os.stat("/dev/null").st_rdev
seen = []
for pipes in ({}, {"stdin": -1}, {"stdout": -1}, {"stdin": -1, "stdout": -1}):
    spec = fastns.Spec(rootfs=sys.argv[1], init=bool(sys.argv[2]))
    with fastns.spawn(["/probe", "--sleep", "60"], spec=spec, **pipes) as box:
        pid = box.pid
        for task in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            pid = task
        for name, fd in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
            if name not in pipes:
                assert os.stat(f"/proc/{pid}/fd/{fd}").st_rdev == null, (pipes, name)
                seen.append(name)
        box.kill()
for name, fd in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
    try:
        fastns.spawn(["/true"], spec=spec, **{name: fd})
    except fastns.SpawnError as error:
        seen.append(f"{error.stage} {error.errno}")
os.write(report, ",".join(seen).encode())
""",
        str(root),
        "",
    )
    names = ["stdin", "stdout", "stderr"]
    expected = [*names, "stdout", "stderr", "stdin", "stderr", "stderr"]
    assert out.split(",") == expected + [f"stdio {errno.EBADF}"] * 3
