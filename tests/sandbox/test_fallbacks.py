"""What happens if the kernel lacks a system call, or a filter around the caller refuses it.

Each test hides a call with a seccomp filter around a separate interpreter.
"""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest
import support
from hidden import without
from hostile import LINKS

RUN = """
import sys
from fastns import Mount, Spec, SpawnError, run, spawn
"""
HIDDEN = [errno.ENOSYS, errno.EPERM]  # an old kernel; an outer container's filter


def test_the_call_is_really_hidden() -> None:
    """Control for this file: the hidden call fails with the chosen errno, and other calls work."""
    for call, number in (("clone3", 435), ("openat2", 437)):
        code = f"""
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall({number}, 0, 0, 0, 0)
print(ctypes.get_errno(), os.getpid() > 0)
"""
        for error in HIDDEN:
            assert without(call, error, code).split() == [str(error), "True"]


# ---- clone3 ----


@pytest.mark.parametrize(
    "extra", ["", "init=True", "overlay=True", "namespaces={'user': 'new'}", "root_mode='chroot'",
              "files={'/etc/hosts': 'x'}"]
)  # fmt: skip
def test_clone_replaces_clone3(probe_rootfs: Path, extra: str) -> None:
    code = f"""{RUN}
for code in (0, 5, 5):
    done = run(["/probe", "--exit", str(code)], spec=Spec(rootfs=sys.argv[1], {extra}))
    assert done.returncode == code, done
print("ran")
"""
    assert without("clone3", errno.ENOSYS, code, str(probe_rootfs)) == "ran\n"


def test_clone_makes_the_same_namespaces(probe_rootfs: Path) -> None:
    code = f"""{RUN}
import json
kinds = ["pid", "mnt", "uts", "ipc", "net", "cgroup", "user"]
for init in (False, True):
    spec = Spec(rootfs=sys.argv[1], init=init, namespaces={{"user": "new"}})
    with spawn(["/probe"], spec=spec, stdout=-1) as sandbox:
        assert sandbox.pidfd >= 0
        seen = json.loads(sandbox.communicate()[0])["namespaces"]
    shared = [kind for kind in kinds if seen[kind] == os.readlink("/proc/self/ns/" + kind)]
    print(sandbox.method, *shared)
"""
    out = without("clone3", errno.ENOSYS, code, str(probe_rootfs))
    assert out.splitlines() == ["direct", "direct"]


@pytest.mark.parametrize("init", [False, True])
def test_a_time_namespace_needs_clone3(probe_rootfs: Path, init: bool) -> None:
    """The start fails; the namespace is not silently left out."""
    code = f"""{RUN}
try:
    run(["/true"], spec=Spec(rootfs=sys.argv[1], namespaces={{"time": "new"}}, init={init}))
except SpawnError as exc:
    print(exc.stage, exc.errno, exc.op_index, "clone3" in exc.hint)
print(run(["/true"], spec=Spec(rootfs=sys.argv[1], init={init})).returncode)
"""
    out = without("clone3", errno.ENOSYS, code, str(probe_rootfs))
    assert out.split() == ["clone", str(errno.ENOSYS), "-1", "True", "0"]


def test_other_errors_of_clone3_are_reported(probe_rootfs: Path) -> None:
    """EPERM may come from the kernel (namespaces(7)), so it is not a reason for a fallback."""
    code = f"""{RUN}
try:
    run(["/true"], spec=Spec(rootfs=sys.argv[1]))
except SpawnError as exc:
    print(exc.stage, exc.errno)
"""
    out = without("clone3", errno.EPERM, code, str(probe_rootfs))
    assert out.split() == ["clone", str(errno.EPERM)]


# ---- openat2 ----


@pytest.mark.parametrize("error", HIDDEN)
@pytest.mark.parametrize("init", [False, True])
def test_targets_are_found_without_openat2(probe_rootfs: Path, error: int, init: bool) -> None:
    """Covers default mounts, volumes, files, and directories made on the way to a target."""
    code = f"""{RUN}
spec = Spec(rootfs=sys.argv[1], init={init}, files={{"/tmp/a/b": "made", "/etc/hosts": "own"}},
            mounts=[Mount("/tmp/c/d", source="/usr"), Mount("/mnt", type="tmpfs")])
for path in ("/tmp/a/b", "/etc/hosts"):
    print(run(["/probe", "--read", path], spec=spec, capture_output=True, text=True).stdout)
for path in ("/tmp/c/d/bin", "/mnt", "/dev/null", "/dev/pts/ptmx", "/proc/self"):
    print(run(["/probe", "--stat", path], spec=spec, capture_output=True).returncode)
"""
    out = without("openat2", error, code, str(probe_rootfs))
    assert out.split() == ["made", "own", *["0"] * 5]


@pytest.mark.parametrize("error", HIDDEN)
def test_missing_targets_without_openat2(probe_rootfs: Path, error: int) -> None:
    """A missing target fails with the right errno and path."""
    code = f"""{RUN}
for target in ("/missing", "/etc/hosts/below", "/mnt/a/b"):
    try:
        run(["/true"], spec=Spec(rootfs=sys.argv[1], mounts=[Mount(target, type="tmpfs")]))
    except SpawnError as exc:
        print(exc.stage, exc.errno, exc.path)
"""
    out = without("openat2", error, code, str(probe_rootfs)).splitlines()
    assert out == [
        f"mount {errno.ENOENT} /missing",
        f"mount {errno.ENOTDIR} /etc/hosts/below",
        f"mount {errno.ENOENT} /mnt/a/b",
    ]


@pytest.mark.parametrize(("error", "inner"), [*zip(HIDDEN, [False, True], strict=True)])
def test_the_hostile_root_without_openat2(
    probe_rootfs: Path, public_dir: Path, error: int, inner: bool
) -> None:
    """The same links, attempts and checks as in test_hostile_root.py."""
    code = """
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import hostile, support
source, base, inner = Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4] == "True"
outside, beside = base / "outside", base / "beside"
for path in (outside, beside):
    path.mkdir(parents=True)
    (path / "file").write_text("canary")
root = support.copy_tree(source, base / "root")
if inner:
    (root / str(outside)[1:]).mkdir(parents=True)
    (root / str(outside)[1:] / "file").write_text("inside")
fds = [os.open(path, os.O_RDONLY) for path in (outside, outside / "file")]
for fd in fds:
    os.set_inheritable(fd, True)
places = hostile.plant(root, outside, *fds)
before = hostile.snapshot(outside, beside)
outcomes = hostile.attack(root, places, outside)
assert hostile.snapshot(outside, beside) == before
assert sorted(os.listdir(base)) == ["beside", "outside", "root"]
print(sum(outcomes.values()), outcomes["ran"])
"""
    base = public_dir / "without"
    try:
        out = without(
            "openat2", error, code, str(support.TESTS), str(probe_rootfs), str(base), str(inner)
        )
    finally:
        shutil.rmtree(base)
    tried, ran = map(int, out.split())
    assert tried > 20 * len(LINKS)
    assert (ran > 0) or not inner


@pytest.mark.parametrize("error", HIDDEN)
@pytest.mark.parametrize("name", ["proc", "sys", "dev"])
def test_special_directories_without_openat2(
    probe_rootfs: Path, public_dir: Path, error: int, name: str
) -> None:
    """A link in its place is refused, and the error has the path (CVE-2019-19921)."""
    code = f"""{RUN}
try:
    run(["/true"], spec=Spec(rootfs=sys.argv[1]))
except SpawnError as exc:
    print(exc.stage, exc.errno, exc.path)
"""
    root = support.copy_tree(probe_rootfs, public_dir / "linked")
    try:
        (root / name).rmdir()
        (root / name).symlink_to("tmp")
        out = without("openat2", error, code, str(root))
    finally:
        shutil.rmtree(root)
    assert out.split() == ["mount", str(errno.ELOOP), f"/{name}"]
