"""Masked and read-only paths of /proc and /sys, in every way of starting."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import support
from hostile import Swapping
from inside import runner
from processes import script

import fastns
from fastns import IDMapping, Mount, SpawnError, Spec
from fastns.spec import MASKED_PATHS, READONLY_PATHS

WAYS = ("direct", "init", "template", "ready", "overlay", "layers")
LOOK = r"""
for path in "$@"; do
    if [ -d "$path" ]; then echo "$path: $(ls -A "$path" | wc -l)"
    elif [ -e "$path" ]; then echo "$path: $( (wc -c <"$path") 2>/dev/null || echo refused)"
    else echo "$path: missing"; fi
done
"""


def started(way: str, **fields: Any) -> Any:
    """Like runner(), with two more ways: an overlay in a direct start, and one in a template."""
    if way in ("overlay", "layers"):
        return runner("direct" if way == "overlay" else "template", overlay=True, **fields)
    return runner(way, **fields)


def look(run: Any, paths: tuple[str, ...]) -> dict[str, str]:
    done = run(["sh", "-c", LOOK, "sh", *paths], capture_output=True, text=True)
    return dict(line.split(": ") for line in done.stdout.splitlines())


@pytest.mark.parametrize("way", WAYS)
def test_masked_paths_are_empty(way: str, bash_rootfs: Path) -> None:
    with started(way, rootfs=bash_rootfs) as run:
        found = look(run, MASKED_PATHS)
    assert set(found) == set(MASKED_PATHS)
    assert set(found.values()) <= {"0", "missing"}, found
    there = {path for path in MASKED_PATHS if os.path.exists(path)}
    assert {path for path, size in found.items() if size == "0"} == there
    # The control: without masks some of them have content.
    with started(way, rootfs=bash_rootfs, masked_paths=[]) as run:
        shown = look(run, MASKED_PATHS)
    assert any(size not in ("0", "missing", "refused") for size in shown.values()), shown


@pytest.mark.parametrize("way", WAYS)
def test_read_only_paths_cannot_be_written(way: str, bash_rootfs: Path) -> None:
    """Even uid 0 cannot write them. The test writes to a sysctl of the sandbox's own network
    namespace, which is harmless but needs a capability in a user namespace."""
    write = ["sh", "-c", "echo 99 >/proc/sys/net/ipv4/ip_default_ttl"]
    fields = {"rootfs": bash_rootfs, "capabilities": ["NET_ADMIN"]}
    with started(way, **fields) as run:
        done = run(write, capture_output=True, text=True)
        assert done.returncode != 0
        assert "Read-only file system" in done.stderr
        assert run(["sh", "-c", "echo 1 >/proc/self/oom_score_adj"]).returncode == 0
        mounts = run(["cat", "/proc/mounts"], capture_output=True, text=True).stdout
        points = {line.split()[1]: line.split()[3].split(",")[0] for line in mounts.splitlines()}
        for path in READONLY_PATHS:
            assert not os.path.exists(path) or points[path] == "ro"
        # Undoing the protection needs CAP_SYS_ADMIN.
        for command in ("umount /proc/sys", "mount -o remount,rw /proc/sys", "umount /proc"):
            assert run(["sh", "-c", command], capture_output=True).returncode != 0
    with started(way, **fields, readonly_paths=[]) as run:
        assert run(write, capture_output=True).returncode == 0


@pytest.mark.parametrize("way", WAYS)
def test_paths_of_the_spec(way: str, bash_rootfs: Path) -> None:
    """The spec's paths are masked or read-only. Missing paths are ignored."""
    fields = {
        "rootfs": bash_rootfs,
        "masked_paths": ["/etc", "/etc/nothing", "/nothing/at/all"],
        "readonly_paths": ["/tmp", "/dev/shm"],
    }
    script = "ls /etc | wc -l; for d in /tmp /dev/shm /run; do (: >$d/x) 2>&1 && echo $d; done"
    with started(way, **fields) as run:
        done = run(["/bin/sh", "-c", script], capture_output=True, text=True)
    assert [line for line in done.stdout.splitlines() if ":" not in line] == ["0", "/run"]


def test_without_default_mounts_no_path_is_masked(bash_rootfs: Path) -> None:
    spec = Spec(rootfs=bash_rootfs, default_mounts=False, mounts=[Mount("/proc", type="proc")])
    done = fastns.run(["cat", "/proc/mounts"], spec=spec, capture_output=True, text=True)
    assert [line.split()[1] for line in done.stdout.splitlines()][1:] == ["/proc"]


def test_with_the_hosts_namespaces(bash_rootfs: Path) -> None:
    """The sandbox's /proc and /sys are binds of the host's."""
    spec = Spec(rootfs=bash_rootfs, namespaces={"pid": "host"}, network="host")
    with runner("direct", rootfs=bash_rootfs, namespaces={"pid": "host"}, network="host") as run:
        assert set(look(run, MASKED_PATHS).values()) <= {"0", "missing"}
    script = "echo 0 >/proc/sys/kernel/core_uses_pid"
    done = fastns.run(["sh", "-c", script], spec=spec, capture_output=True, text=True)
    assert "Read-only file system" in done.stderr


def test_a_directory_that_replaces_proc_is_refused(bash_rootfs: Path, tmp_path: Path) -> None:
    """If /proc is exchanged with another directory between the mount and the masks, the masks would
    cover the wrong one."""
    root = support.copy_tree(bash_rootfs, tmp_path / "root")
    (root / "other").mkdir()
    spec = Spec(rootfs=root, network="host")
    seen = {"ran": 0, "refused": 0}
    with Swapping(root / "proc", root / "other"):
        for _ in range(500):
            try:
                done = fastns.run(
                    ["sh", "-c", "cat /proc/keys /other/keys 2>/dev/null | wc -c"],
                    spec=spec,
                    capture_output=True,
                    text=True,
                )
            except SpawnError as exc:
                assert exc.stage in ("masked_paths", "readonly_paths"), exc
                seen["refused"] += 1
                continue
            assert done.stdout == "0\n"
            seen["ran"] += 1
    assert seen["ran"] > 0, seen


REDIRECTED = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x20000) == 0
assert libc.mount(b"none", b"/", None, 0x4000 | 1 << 18, None) == 0
if len(sys.argv) > 2:  # a tmpfs instead of /proc, with files of these names
    assert libc.mount(b"tmpfs", b"/proc", b"tmpfs", 0, b"") == 0
    os.mkdir("/proc/self")
    for name in ("setgroups", "uid_map", "gid_map"):
        pathlib.Path("/proc/self", name).touch()
from fastns import Spec
spec = Spec(rootfs=sys.argv[1], namespaces={"user": "new"})
try:
    print(fastns.run(["/true"], spec=spec).returncode)
except fastns.SpawnError as error:
    op = fastns.compile(spec).ops[error.op_index]
    print(error.stage, error.errno, error.path, op.code)
if len(sys.argv) > 2:
    print(*(os.stat(f"/proc/self/{name}").st_size for name in ("setgroups", "uid_map", "gid_map")))
"""


@pytest.mark.as_root
def test_writes_to_proc_check_that_it_is_proc(probe_rootfs: Path) -> None:
    """CVE-2025-52881: a write that goes elsewhere would look successful."""
    assert script(REDIRECTED, str(probe_rootfs)) == "0\n"
    found, sizes = script(REDIRECTED, str(probe_rootfs), "elsewhere").splitlines()
    assert found == f"id_map {errno.EXDEV} /proc/self/setgroups write"
    assert sizes == "0 0 0"


# ---- if an id inside is the host's uid 0 ----

MODE = "/proc/execdomains"  # no other program reads it


@pytest.mark.as_root
@pytest.mark.parametrize("user", ["host", "new"])
@pytest.mark.parametrize("way", ["direct", "init", "template", "ready"])
def test_the_modes_of_the_hosts_proc_stay(way: str, user: str) -> None:
    """All /proc mounts share the mode of a file in /proc, so a change would affect other sandboxes.
    The control is a /proc that the spec makes writable."""
    namespaces = {"user": user}
    code = f"chmod 440 {MODE}; mount -o remount,rw /proc; stat -c %a {MODE}"
    look = ["stat", "-c", "%a", MODE]
    own = Mount("/proc", type="proc", options=["rw", "nosuid", "nodev", "noexec"])
    for mounts, seen in (([], "444\n"), ([own], "440\n")):
        with runner(way, namespaces=namespaces, mounts=mounts, seccomp="unconfined") as run:
            try:
                done = run(["sh", "-c", code], capture_output=True, text=True)
                other = fastns.run(look, capture_output=True, text=True)
            finally:
                os.chmod(MODE, 0o444)
        assert (done.stdout, other.stdout) == (seen, seen), done.stderr
        assert ("Read-only file system" in done.stderr) == (not mounts)
        assert "permission denied" in done.stderr  # the remount fails in both cases


@pytest.mark.as_root
@pytest.mark.parametrize("way", ["direct", "init", "template", "ready"])
def test_the_modes_of_the_hosts_devices_stay(way: str) -> None:
    """With a new user namespace the devices are the host's, and uid 0 inside may be the host's."""
    code = "echo x >/dev/null; chmod 666 /dev/null; touch /dev/zero; head -c 2 /dev/zero | wc -c"
    with runner(way, namespaces={"user": "new"}) as run:
        done = run(["sh", "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "2"
    assert done.stderr.count("Read-only file system") == 2


@pytest.mark.as_root
def test_when_proc_is_read_only() -> None:
    """/proc is read-only if an id inside is the host's uid 0, which could change modes. It is
    writable even then if a capability needs that."""
    maps = (IDMapping(0, 0, 10),)
    strangers = (IDMapping(0, 100000, 10),)
    cases: list[tuple[dict[str, Any], bool]] = [
        ({}, False),
        ({"namespaces": {"user": "host"}}, True),
        ({"namespaces": {"user": "host"}, "user": "5:5"}, True),
        ({"namespaces": {"user": "host", "pid": "host"}, "network": "host"}, True),
        ({"namespaces": {"user": "host"}, "capabilities": ["SYS_ADMIN"]}, False),
        ({"namespaces": {"user": "new"}}, True),
        ({"uid_mappings": maps, "gid_mappings": maps}, True),
        ({"uid_mappings": strangers, "gid_mappings": strangers}, False),
    ]
    for fields, closed in cases:
        command = ["sh", "-c", "printf name >/proc/$$/comm && cat /proc/$$/comm"]
        done = fastns.run(command, spec=Spec(**fields), capture_output=True, text=True)
        assert done.stdout == ("" if closed else "name\n"), (fields, done.stderr)
        assert ("Read-only" in done.stderr) == closed


def test_masking_needs_a_mount_namespace() -> None:
    for field in ("masked_paths", "readonly_paths"):
        with pytest.raises(fastns.SpecError, match=field):
            Spec(namespaces={"mount": "host"}, **{field: ["/usr"]})  # type: ignore[arg-type]


def test_the_flag(bash_rootfs: Path) -> None:
    """--security-opt systempaths=unconfined leaves the paths writable."""
    command = [sys.executable, "-m", "fastns", "run", "--cap-add", "NET_ADMIN"]
    command += ["--rootfs", str(bash_rootfs)]
    write = ["sh", "-c", "echo 99 >/proc/sys/net/ipv4/ip_default_ttl"]
    assert subprocess.run([*command, *write], capture_output=True).returncode != 0
    opened = [*command, "--security-opt", "systempaths=unconfined", *write]
    assert subprocess.run(opened, capture_output=True).returncode == 0
