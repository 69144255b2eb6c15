"""What is mounted in the root, with which flags, and what a missing target comes to."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import support

import fastns
from fastns import Mount, SpawnError, Spec

Report = Callable[..., dict[str, Any]]
Shell = Callable[..., str]


@pytest.fixture
def shell(bash_rootfs: Path) -> Shell:
    """`shell(script, **fields)`: what bash prints inside; it has to succeed."""

    def run(script: str, **fields: Any) -> str:
        fields.setdefault("rootfs", bash_rootfs)
        done = fastns.run(
            ["bash", "-ec", script], spec=Spec(**fields), capture_output=True, text=True, timeout=20
        )
        if done.returncode != 0:
            raise ChildProcessError(done.stderr)
        assert done.stderr == ""
        return str(done.stdout)

    return run


@pytest.fixture
def volume(public_dir: Path) -> Iterator[Path]:
    path = public_dir / "volume"
    path.mkdir()
    (path / "file").write_text("of the host")
    path.chmod(0o777)
    yield path
    shutil.rmtree(path)


def points(report: dict[str, Any]) -> dict[str, set[str]]:
    return {m["point"]: set(m["options"]) for m in report["mounts"]}


def test_default_mounts(report: Report) -> None:
    seen = points(report())
    devices = set() if support.is_root() else {f"/dev/{n}" for n in
               ("null", "zero", "full", "random", "urandom", "tty")}  # fmt: skip
    expected = {"/", "/proc", "/sys", "/tmp", "/run", "/dev", "/dev/pts", "/dev/shm"}
    assert set(seen) == expected | devices
    assert {"nosuid", "nodev", "noexec"} <= seen["/proc"]
    assert {"ro", "nosuid", "nodev", "noexec"} <= seen["/sys"]
    for path in ("/tmp", "/run", "/dev/shm"):
        assert {"rw", "nosuid", "nodev"} <= seen[path]
    assert {"nosuid", "noexec"} <= seen["/dev"]


def test_no_mount_is_shared_with_anything(report: Report) -> None:
    for mount in report()["mounts"]:
        assert mount["propagation"] == [], mount


def test_without_default_mounts(report: Report) -> None:
    mounts = [Mount("/proc", type="proc")]
    assert set(points(report(default_mounts=False, mounts=mounts))) == {"/", "/proc"}


def test_an_explicit_mount_replaces_a_default_one(report: Report) -> None:
    seen = report(mounts=[Mount("/tmp", type="tmpfs", options=["ro", "size=64k", "mode=0700"])])
    assert [m["point"] for m in seen["mounts"]].count("/tmp") == 1
    mount = support.mount_at(seen, "/tmp")
    assert "ro" in mount["options"]
    assert "size=64k" in mount["super_options"]
    assert "mode=700" in mount["super_options"]


def test_dev_is_minimal_and_works(shell: Shell) -> None:
    out = shell(
        "ls /dev; echo x > /dev/null; dd if=/dev/zero bs=10 count=1 2>/dev/null | wc -c;"
        " (echo x > /dev/full) 2>&1 | wc -l; dd if=/dev/urandom bs=9 count=1 2>/dev/null | wc -c;"
        " echo shared > /dev/shm/f; cat /dev/shm/f; ls -l /dev/ptmx; ls /dev/pts;"
        " echo through > /dev/stdout"
    ).split()
    names = [
        "fd",
        "full",
        "null",
        "ptmx",
        "pts",
        "random",
        "shm",
        "stderr",
        "stdin",
        "stdout",
        "tty",
        "urandom",
        "zero",
    ]
    assert out[:13] == names
    assert out[13:17] == ["10", "1", "9", "shared"]
    assert out[-3:] == ["pts/ptmx", "ptmx", "through"]


def test_a_terminal_can_be_opened(debian_rootfs: Path) -> None:
    script = "import os; m, s = os.openpty(); os.write(s, b'hi\\n'); print(os.ttyname(s))"
    done = fastns.run(
        ["python3", "-c", script], spec=Spec(rootfs=debian_rootfs), capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("/dev/pts/0\n", "")


def test_volumes(shell: Shell, volume: Path) -> None:
    shell("echo written > /mnt/new; cat /mnt/file", mounts=[Mount("/mnt", source=volume)])
    assert (volume / "new").read_text() == "written\n"
    with pytest.raises(ChildProcessError, match="Read-only"):
        shell("echo x > /mnt/more", mounts=[Mount("/mnt", source=volume, options=["ro"])])
    assert not (volume / "more").exists()


def test_a_file_as_volume(shell: Shell, volume: Path) -> None:
    mount = Mount("/etc/hosts", source=volume / "file", options=["ro"])
    assert shell("cat /etc/hosts", mounts=[mount]) == "of the host"


def test_a_volume_that_holds_the_root(shell: Shell, bash_rootfs: Path) -> None:
    """The new root is not visible through a volume of the directory it came from."""
    mount = Mount("/mnt", source=bash_rootfs.parent, options=["rbind"])
    out = shell("mount", mounts=[mount], files={"/etc/hosts": "x"})
    assert [line.split()[2] for line in out.splitlines() if "/mnt" in line] == ["/mnt"]


def test_binds_with_mounts_below(bash_rootfs: Path, volume: Path) -> None:
    """rbind brings them, bind does not; in a mount namespace of the test's own."""
    (volume / "below").mkdir()
    code = """
import subprocess, sys
import fastns
from fastns import Mount, Spec
root, volume = sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "none", volume + "/below"], check=True)
open(volume + "/below/deep", "w").close()
for options in (["rbind"], ["bind"], ["rbind", "ro"]):
    done = fastns.run(["bash", "-c", "ls /mnt/below; : > /mnt/below/new"], capture_output=True,
        text=True, spec=Spec(rootfs=root, mounts=[Mount("/mnt", source=volume, options=options)]))
    print(options, done.stdout.split(), "Read-only" in done.stderr)
"""
    extra = [] if support.is_root() else ["-U", "-r"]
    done = subprocess.run(
        ["unshare", "-m", *extra, sys.executable, "-c", code, str(bash_rootfs), str(volume)],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": support.HOST_PATH},
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "['rbind'] ['deep'] False",
        "['bind'] [] False",
        "['rbind', 'ro'] ['deep', 'new'] True",
    ]


@pytest.mark.parametrize("options", [[], ["X-mount.mkdir"]])
def test_a_missing_target(
    shell: Shell, volume: Path, bash_rootfs: Path, options: list[str]
) -> None:
    """On the root itself it is an error, on a throw-away layer it is made."""
    mount = Mount("/missing/deeper", source=volume, options=options)
    if not options:
        plan = fastns.compile(Spec(rootfs=bash_rootfs, mounts=[mount]))
        with pytest.raises(SpawnError) as caught:
            fastns.run(["true"], spec=plan)
        exc = caught.value
        assert (exc.stage, exc.errno, exc.path) == ("mount", errno.ENOENT, "/missing/deeper")
        assert plan.ops[exc.op_index].target == b"/missing/deeper"
        assert "X-mount.mkdir" in (exc.hint or "")
    assert shell("cat /missing/deeper/file", mounts=[mount], overlay=True) == "of the host"
    in_tmp = Mount("/tmp/missing/deeper", source=volume, options=options)
    assert shell("cat /tmp/missing/deeper/file", mounts=[in_tmp]) == "of the host"
    assert not (bash_rootfs / "missing").exists()


def test_mkdir_where_the_mount_allows_it(probe_rootfs: Path, public_dir: Path) -> None:
    root = support.copy_tree(probe_rootfs, public_dir / "writable")
    mount = Mount("/made/here", type="tmpfs", options=["X-mount.mkdir"])
    assert fastns.run(["/true"], spec=Spec(rootfs=root, mounts=[mount])).returncode == 0
    assert (root / "made" / "here").is_dir()
    shutil.rmtree(root)


def test_kinds_do_not_mix(bash_rootfs: Path, volume: Path) -> None:
    for source, target in ((volume / "file", "/mnt"), (volume, "/etc/hosts")):
        with pytest.raises(SpawnError) as caught:
            fastns.run(
                ["true"], spec=Spec(rootfs=bash_rootfs, mounts=[Mount(target, source=source)])
            )
        exc = caught.value
        assert (exc.stage, exc.errno, exc.path) == ("mount", errno.ENOTDIR, target)


def test_files(shell: Shell, bash_rootfs: Path) -> None:
    before = (bash_rootfs / "etc" / "hosts").read_bytes()
    for content in ("", "short\n", b"bytes\xff\n", "long " * 50_000):
        files = {"/etc/hosts": content, "/tmp/made/new": content}
        wanted = len(content if isinstance(content, bytes) else content.encode())
        out = shell("cat /etc/hosts /tmp/made/new | wc -c", files=files)
        assert int(out) == 2 * wanted
    assert (bash_rootfs / "etc" / "hosts").read_bytes() == before
    assert (
        shell("echo more >> /etc/hosts; cat /etc/hosts", files={"/etc/hosts": "a\n"}) == "a\nmore\n"
    )
    with pytest.raises(SpawnError) as caught:
        shell("true", files={"/etc/nothing": "x"})
    exc = caught.value
    assert (exc.stage, exc.errno, exc.path) == ("file", errno.ENOENT, "/etc/nothing")


def test_overlay_is_thrown_away(shell: Shell, bash_rootfs: Path) -> None:
    before = sorted(os.listdir(bash_rootfs))
    out = shell("ls /; echo new > /new; mkdir -p /home/deep; cat /new", overlay=True)
    assert out.endswith("new\n")
    assert "new" not in shell("ls /", overlay=True).split()
    assert sorted(os.listdir(bash_rootfs)) == before


def test_read_only_roots(shell: Shell) -> None:
    for fields in ({"read_only": True}, {"read_only": True, "overlay": True}, {"rootfs": None}):
        with pytest.raises(ChildProcessError, match="Read-only"):
            shell("echo x > /new", **fields)
        assert shell("echo x > /tmp/new; cat /tmp/new", **fields) == "x\n"


def test_the_hosts_root_is_read_only_all_the_way_down(report: Report) -> None:
    fresh = ("/proc", "/tmp", "/run", "/dev")
    for mount in report(rootfs=None)["mounts"]:
        if not mount["point"].startswith(fresh):
            assert "ro" in mount["options"], mount


def test_the_old_root_is_gone(shell: Shell) -> None:
    for fields in ({}, {"overlay": True}, {"files": {"/etc/hosts": "x"}}):
        out = shell("mount", **fields)
        assert out.splitlines()[0].split()[2] == "/"
        assert [line.split()[2] for line in out.splitlines()].count("/") == 1


def test_chroot_on_request(shell: Shell) -> None:
    out = shell("pwd; ls /; mount", root_mode="chroot")
    assert out.startswith("/\n")


def test_the_other_types(report: Report) -> None:
    mounts = [
        Mount("/tmp/q", type="mqueue"),
        Mount("/tmp/p", type="devpts"),
    ]
    seen = report(mounts=mounts)
    assert support.mount_at(seen, "/tmp/q")["type"] == "mqueue"
    assert support.mount_at(seen, "/tmp/p")["type"] == "devpts"


@pytest.mark.as_root
def test_an_overlay_of_the_callers_own(shell: Shell, public_dir: Path) -> None:
    base = public_dir / "own-overlay"
    for name in ("lower", "upper", "work"):
        (base / name).mkdir(parents=True)
    (base / "lower" / "file").write_text("below")
    options = [f"lowerdir={base}/lower", f"upperdir={base}/upper", f"workdir={base}/work"]
    out = shell(
        "cat /mnt/file; echo above > /mnt/new", mounts=[Mount("/mnt", "overlay", None, options)]
    )
    assert out == "below"
    assert (base / "upper" / "new").read_text() == "above\n"
    shutil.rmtree(base)


def test_mounts_of_the_sandbox_stay_inside(bash_rootfs: Path) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    with fastns.spawn(
        ["bash", "-c", "mount -t tmpfs none /mnt && echo up; read"],
        spec=Spec(rootfs=bash_rootfs),
        stdin=fastns.PIPE,
        stdout=fastns.PIPE,
    ) as sandbox:
        assert sandbox.stdout is not None
        assert sandbox.stdout.readline() == b"up\n"
        assert Path("/proc/self/mountinfo").read_text() == before
        sandbox.kill()


def test_what_the_process_is(report: Report) -> None:
    limit = fastns.Rlimit("RLIMIT_NOFILE", 64, 128)
    seen = report(umask=0o027, cwd="/tmp", rlimits=[limit], env={"MORE": "1"})
    assert seen["umask"] == 0o027
    assert seen["rlimits"]["RLIMIT_NOFILE"] == [64, 128]
    assert seen["cwd"] == "/tmp"
    assert set(seen["environ"]) == {
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME=/root",
        "TERM=xterm",
        "LANG=C.UTF-8",
        "MORE=1",
    }
