"""A sandbox has its default mounts and those of the spec, with the right types, options and
propagation, and no others."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import inside
import pytest
import support

import fastns
from fastns import Mount, Spec, _view
from fastns.spec import MASKED_PATHS, READONLY_PATHS

Report = Callable[..., dict[str, Any]]

DEFAULTS = {
    "/": ("", ""),  # whatever file system the root is on
    "/proc": ("proc", "rw nosuid nodev noexec relatime"),
    "/sys": ("sysfs", "ro nosuid nodev noexec relatime"),
    "/tmp": ("tmpfs", "rw nosuid nodev relatime"),
    "/run": ("tmpfs", "rw nosuid nodev relatime"),
    "/dev": ("tmpfs", "rw nosuid noexec relatime"),
    "/dev/pts": ("devpts", "rw nosuid noexec relatime"),
    "/dev/shm": ("tmpfs", "rw nosuid nodev relatime"),
}
DEVICES = {"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9}


SYSTEM_PATHS = {*MASKED_PATHS, *READONLY_PATHS}  # see test_system_paths.py


def points(report: dict[str, Any]) -> list[str]:
    """The mount points in the order of mounting, without single devices and the masked and
    read-only paths of /proc and /sys."""
    found = [m["point"] for m in report["mounts"]]  # not by id, because ids are reused
    bound = {f"/dev/{name}" for name in (*DEVICES, "tty")}
    return [point for point in found if point not in bound | SYSTEM_PATHS]


# ---- the default mounts ----


def test_exactly_the_default_mounts(report: Report) -> None:
    """Each mount has its type and flags. An unprivileged caller cannot make devices, so it binds
    the host's."""
    seen = report()
    assert sorted(points(seen)) == sorted(DEFAULTS)
    for point, (kind, flags) in DEFAULTS.items():
        mount = support.mount_at(seen, point)
        if point != "/":
            assert (mount["type"], set(mount["options"])) == (kind, set(flags.split())), mount
    bound = {m["point"] for m in seen["mounts"]} - set(DEFAULTS) - SYSTEM_PATHS
    names = set() if support.is_root() else {f"/dev/{name}" for name in (*DEVICES, "tty")}
    assert bound == names


def test_nothing_of_the_old_root_is_left(report: Report) -> None:
    """Every mount is below the new root and each mount point occurs once, however the root was
    built."""
    cases: list[dict[str, Any]] = [
        {},
        {"overlay": True},
        {"files": {"/etc/hosts": "x"}},
        {"read_only": True, "overlay": True, "files": {"/etc/hosts": "x"}},
        {"mounts": [Mount("/mnt", source="/usr", options=["rslave"])]},
        {"root_mode": "chroot"},
        {"root_mode": "chroot", "overlay": True},
    ]
    for fields in cases:
        seen = report(**fields)
        extra = ["/etc/hosts"] * ("files" in fields) + ["/mnt"] * ("mounts" in fields)
        assert sorted(points(seen)) == sorted([*DEFAULTS, *extra]), fields
        ids = {mount["id"] for mount in seen["mounts"]}
        outside = [m["point"] for m in seen["mounts"] if m["parent"] not in ids]
        assert outside == ["/"], fields


def test_modes_of_what_is_made(report: Report) -> None:
    """/tmp and /dev/shm have mode 1777, /run and /dev 0755."""
    seen = report()
    modes = {name: entry["mode"] for name, entry in {**seen["root"], **seen["dev"]}.items()}
    assert (modes["tmp"], modes["run"], modes["dev"], modes["shm"]) == (
        0o1777,
        0o755,
        0o755,
        0o1777,
    )


def test_dev_is_minimal(report: Report) -> None:
    dev = report()["dev"]
    links = {"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1",
             "stderr": "/proc/self/fd/2", "ptmx": "pts/ptmx"}  # fmt: skip
    assert set(dev) == {*DEVICES, "tty", *links, "pts", "shm"}
    for name, minor in {**DEVICES, "tty": 0}.items():
        major = 5 if name == "tty" else 1
        assert (dev[name]["type"], dev[name]["mode"], dev[name]["rdev"]) == (
            "char", 0o666, [major, minor]), name  # fmt: skip
    assert {name: dev[name]["target"] for name in links} == links


def test_dev_works(bash_rootfs: Path) -> None:
    """The devices, /dev/shm and /dev/stdout can be used."""
    out = inside.shell(
        bash_rootfs,
        "echo x > /dev/null; dd if=/dev/zero bs=10 count=1 2>/dev/null | wc -c;"
        " (echo x > /dev/full) 2>&1 | cat; dd if=/dev/urandom bs=9 count=1 2>/dev/null | wc -c;"
        " dd if=/dev/random bs=9 count=1 2>/dev/null | wc -c; cat /dev/null | wc -c;"
        " echo shared > /dev/shm/f; cat /dev/shm/f; echo through > /dev/stdout",
    ).splitlines()
    assert [out[0], *out[2:]] == ["10", "9", "9", "0", "shared", "through"]
    assert "No space left on device" in out[1]


def test_terminals_are_its_own(debian_rootfs: Path) -> None:
    """Each sandbox gets the first terminal of a new devpts."""
    code = (
        "import os; m, s = os.openpty(); os.write(s, b'hi\\n'); print(os.ttyname(s), os.read(m, 9))"
    )
    for _ in range(2):
        done = fastns.run(
            ["python3", "-c", code], spec=Spec(rootfs=debian_rootfs), capture_output=True, text=True
        )
        assert (done.stdout, done.stderr) == ("/dev/pts/0 b'hi\\r\\n'\n", "")


def test_proc_and_sys_are_the_sandboxes(bash_rootfs: Path) -> None:
    """/proc shows only the sandbox's processes, and /sys is read-only."""
    assert inside.shell(bash_rootfs, "echo /proc/[0-9]*") == "/proc/1\n"
    with pytest.raises(ChildProcessError, match="Read-only file system"):
        inside.shell(bash_rootfs, "echo 1 > /sys/kernel/mm/ksm/run")


def test_without_default_mounts(report: Report) -> None:
    """The sandbox has only the root and the mounts of the spec."""
    mounts = [Mount("/proc", type="proc")]
    assert points(report(default_mounts=False, mounts=mounts)) == ["/", "/proc"]


def test_an_explicit_mount_replaces_a_default_one(report: Report) -> None:
    """Default mounts below it are left out too: a default /dev/pts would cover part of the spec's
    own /dev."""
    seen = report(mounts=[Mount("/tmp", type="tmpfs", options=["ro", "size=64k", "mode=0700"])])
    assert sorted(points(seen)) == sorted(DEFAULTS)
    mount = support.mount_at(seen, "/tmp")
    assert set(mount["options"]) == {"ro", "relatime"}
    assert {"size=64k", "mode=700"} <= set(mount["super_options"])
    seen = report(mounts=[Mount("/dev", type="tmpfs")])
    assert sorted(points(seen)) == sorted(set(DEFAULTS) - {"/dev/pts", "/dev/shm"})


def test_the_explicit_mounts_come_last_and_in_order(report: Report) -> None:
    targets = ["/tmp/b", "/mnt", "/tmp/a", "/tmp/a/below", "/run/x"]
    mounts = [Mount(target, type="tmpfs") for target in targets]
    assert points(report(mounts=mounts))[-5:] == targets


# ---- the other types ----


def test_tmpfs_options_apply(bash_rootfs: Path) -> None:
    mount = Mount("/mnt", type="tmpfs", options=["size=64k", "mode=0750", "nr_inodes=4"])
    out = inside.shell(
        bash_rootfs,
        "stat -c '%a %u' /mnt; : > /mnt/a; (dd if=/dev/zero of=/mnt/a bs=1k count=100) 2>&1 | cat;"
        " stat -c %s /mnt/a; : > /mnt/b; : > /mnt/c; (: > /mnt/d) 2>&1 | cat",
        mounts=[mount],
    )
    lines = out.splitlines()
    assert (lines[0], lines[-2]) == ("750 0", "65536")
    assert "No space left" in lines[1]
    assert "No space left" in lines[-1]  # the fifth inode


@pytest.mark.parametrize("type", ["mqueue", "devpts", "sysfs", "proc", "cgroup2"])
def test_types_for_every_user(report: Report, type: str) -> None:
    """Every caller may mount these types."""
    seen = report(mounts=[Mount("/tmp/here", type=type)])
    assert support.mount_at(seen, "/tmp/here")["type"] == type


def test_devpts_is_an_instance_of_its_own(bash_rootfs: Path) -> None:
    mount = Mount("/tmp/pts", type="devpts", options=["newinstance", "ptmxmode=0666", "max=3"])
    out = inside.shell(bash_rootfs, "ls /tmp/pts; stat -c %a /tmp/pts/ptmx", mounts=[mount])
    assert out == "ptmx\n666\n"


@pytest.mark.as_root
def test_devtmpfs(report: Report) -> None:
    """The mount is the host's devtmpfs. The default mounts below /dev are left out."""
    seen = report(mounts=[Mount("/dev", type="devtmpfs")])
    assert support.mount_at(seen, "/dev")["type"] == "devtmpfs"
    assert seen["dev"]["null"]["rdev"] == [1, 3]
    assert set(DEVICES) <= set(seen["dev"])
    assert set(os.listdir("/dev")) <= set(seen["dev"])


# ---- propagation ----


def test_no_mount_is_shared_with_anything(report: Report) -> None:
    for rootfs in ({}, {"rootfs": None}, {"overlay": True}, {"root_mode": "chroot"}):
        for mount in report(**rootfs)["mounts"]:
            assert mount["propagation"] == [], mount


PROPAGATION = """
import pathlib, subprocess, sys
sys.path.insert(0, sys.argv[1])
import inside
from fastns import Mount
root, volume, options = pathlib.Path(sys.argv[2]), sys.argv[3], sys.argv[4].split()

def mount(*args):
    subprocess.run(["mount", *args], check=True)

mount("-t", "tmpfs", "none", volume)
mount("--make-shared", volume)
for name in ("outside", "inside"):
    pathlib.Path(volume, name).mkdir()
mounts = [Mount("/mnt", source=volume, options=options)]
with inside.dialogue(root, mounts=mounts, capabilities=["SYS_ADMIN"]) as ask:
    assert ask("ls /mnt") == "inside\\noutside\\n"
    mount("-t", "tmpfs", "none", volume + "/outside")
    pathlib.Path(volume, "outside", "late").touch()
    print("seen inside:", ask("ls /mnt/outside").split())
    print("mounted inside:", repr(ask("mount -t tmpfs none /mnt/inside && : > /mnt/inside/x")))
    print("seen outside:", [p.name for p in pathlib.Path(volume, "inside").iterdir()])
"""


@pytest.mark.parametrize(
    ("options", "seen"),
    [("rbind", []), ("rbind rprivate", []), ("rbind rslave", ["late"]), ("rbind slave", ["late"])],
)
def test_mounts_made_meanwhile(
    bash_rootfs: Path, volume: Path, options: str, seen: list[str]
) -> None:
    """The source is a shared mount of the host. Mounts that the host makes below it later appear
    inside only if the bind is a slave. Mounts made inside never appear outside."""
    out = in_a_mount_namespace(PROPAGATION, bash_rootfs, volume, options)
    assert out.splitlines() == [f"seen inside: {seen}", "mounted inside: ''", "seen outside: []"]


def in_a_mount_namespace(code: str, *args: object) -> str:
    """Run Python code in a mount namespace of its own. Works for any user."""
    extra = [] if support.is_root() else ["-U", "-r"]
    done = subprocess.run(
        ["unshare", "-m", *extra, sys.executable, "-c", code, str(support.TESTS), *map(str, args)],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": support.HOST_PATH},
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


@pytest.fixture
def volume(public_dir: Path) -> Path:
    path = public_dir / "propagation"
    path.mkdir(exist_ok=True)
    return path


# ---- without a rootfs, and chroot ----


def test_the_hosts_root(report: Report, host_report: dict[str, Any]) -> None:
    """The sandbox has the host's system directories, read-only, and a /proc, /sys, /tmp, /run and
    /dev of its own."""
    seen = report(rootfs=None)
    layout = _view.layout()
    for point, (kind, flags) in DEFAULTS.items():
        mount = support.mount_at(seen, point)
        if point != "/":
            assert (mount["type"], set(mount["options"])) == (kind, set(flags.split()))
    for point in ("/", *layout.shown):
        assert {"ro", "nodev"} <= set(support.mount_at(seen, point)["options"])
    for mount in seen["mounts"]:
        fresh = f"{mount['point']}/".startswith(tuple(f"{p}/" for p in DEFAULTS if p != "/"))
        assert fresh or {"ro", "nodev"} <= set(mount["options"]), mount
    own = {path.split("/")[1] for path in (*layout.shown, *dict(layout.links), *DEFAULTS)}
    assert set(seen["root"]) == own - {""} | {"root", "probe"}
    assert {"usr", "etc"} <= set(seen["root"]) < {*host_report["root"], "probe"}


SUBMOUNT = """
import sys
sys.path.insert(0, sys.argv[1])
import pathlib, subprocess
import inside
volume = sys.argv[2]
subprocess.run(["mount", "-t", "tmpfs", "none", volume], check=True)
pathlib.Path(volume, "writable").touch()
print(inside.shell(None, f"ls {volume}; (echo x > {volume}/new) 2>&1 | cat"))
"""


def test_the_hosts_submounts_are_read_only() -> None:
    """A submount is read-only inside even if it is writable on the host."""
    out = in_a_mount_namespace(SUBMOUNT, "/usr/local")
    assert out.startswith("writable\n")
    assert "Read-only file system" in out


def test_writable_directories_without_a_rootfs() -> None:
    """Files in them are visible neither to the host nor to the next sandbox."""
    script = (
        "for d in /tmp /run /dev/shm; do ls -A $d; echo x > $d/fastns-mark; cat $d/*-mark; done"
    )
    for _ in range(2):
        assert inside.shell(None, script) == "x\nx\nx\n"
    for place in ("/tmp", "/run", "/dev/shm"):
        assert not os.path.exists(f"{place}/fastns-mark")
    for place in ("/new", "/usr/new", "/etc/new", "/root/new"):
        with pytest.raises(ChildProcessError, match="Read-only"):
            inside.shell(None, f"echo x > {place}")


def test_read_only_roots(bash_rootfs: Path) -> None:
    """Nothing in the root can be written, but /tmp, /run and /dev/shm can."""
    for fields in ({"read_only": True}, {"read_only": True, "overlay": True},
                   {"read_only": True, "root_mode": "chroot"}):  # fmt: skip
        with pytest.raises(ChildProcessError, match="Read-only"):
            inside.shell(bash_rootfs, "echo x > /new", **fields)
        for place in ("/tmp", "/run", "/dev/shm"):
            out = inside.shell(bash_rootfs, f"echo x > {place}/new; cat {place}/new", **fields)
            assert out == "x\n"
    assert not (bash_rootfs / "new").exists()


def test_chroot_without_a_mount_namespace(probe_rootfs: Path) -> None:
    """Nothing is mounted: the sandbox has the host's mounts."""
    namespaces = {"mount": "host"}
    spec = Spec(rootfs=probe_rootfs, root_mode="chroot", namespaces=namespaces)
    done = fastns.run(["/probe"], spec=spec, capture_output=True)
    seen = support.parse_report(done.stdout)
    assert (seen["mounts"], seen["proc_pids"], seen["dev"]) == (None, None, {})
    assert set(seen["root"]) == set(os.listdir(probe_rootfs))


ESCAPE = """
import os
fd = os.open("/", os.O_RDONLY)
os.chroot("/etc")
os.fchdir(fd)
for _ in range(64):
    os.chdir("..")
os.chroot(".")
print(os.path.exists({marker!r}))
"""


def test_a_second_chroot_leads_nowhere(debian_rootfs: Path, public_dir: Path) -> None:
    """Leaving a chroot through an open fd leads to the sandbox's own root.

    The control is a chroot without a mount namespace, where it leads to the host's root.
    """
    cases: list[tuple[dict[str, Any], bool]] = [
        ({}, False),
        ({"root_mode": "chroot"}, False),
        ({"overlay": True}, False),
        ({"root_mode": "chroot", "namespaces": {"mount": "host"}}, True),
    ]
    for fields, escapes in cases:
        code = ESCAPE.format(marker=str(public_dir))
        done = fastns.run(
            ["python3", "-c", code],
            spec=Spec(rootfs=debian_rootfs, capabilities=["SYS_CHROOT"], **fields),
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.stderr == ""
        assert done.stdout.strip() == str(escapes), fields
