"""Directories and files of the host, files given as text, and missing mount points."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import inside
import pytest
import support

import fastns
from fastns import Mount, SpawnError, Spec

Report = Callable[..., dict[str, Any]]


@pytest.fixture
def volume(public_dir: Path) -> Iterator[Path]:
    path = public_dir / "volume"
    path.mkdir()
    (path / "file").write_text("of the host")
    path.chmod(0o777)
    yield path
    shutil.rmtree(path)


def volume_at(destination: str, source: Path, options: Sequence[str] = (), **more: Any) -> Mount:
    """A bind that belongs to uid 0 inside."""
    return Mount(destination, source=str(source), options=[*options, "idmap"], **more)


@pytest.fixture
def writable(probe_rootfs: Path, public_dir: Path) -> Iterator[Path]:
    """A copy of the root."""
    path = support.copy_tree(probe_rootfs, public_dir / "writable")
    yield path
    shutil.rmtree(path)


# ---- volumes ----


def test_a_directory(bash_rootfs: Path, volume: Path) -> None:
    """Files of a volume can be read and made inside."""
    mount = Mount("/mnt", source=str(volume))
    assert inside.shell(bash_rootfs, "echo new > /mnt/new; cat /mnt/file", mounts=[mount]) == (
        "of the host"
    )
    assert (volume / "new").read_text() == "new\n"


def test_changes_are_seen_both_ways(bash_rootfs: Path, volume: Path) -> None:
    with inside.dialogue(bash_rootfs, mounts=[volume_at("/mnt", volume)]) as ask:
        (volume / "late").write_text("from outside\n")
        assert ask("cat /mnt/late") == "from outside\n"
        assert ask("echo from inside > /mnt/late") == ""
        assert (volume / "late").read_text() == "from inside\n"


def test_read_only(bash_rootfs: Path, volume: Path) -> None:
    """Nothing in a read-only volume can be changed."""
    mount = volume_at("/mnt", volume, ["ro"])
    for script in ("echo x > /mnt/more", "rm /mnt/file", "mkdir /mnt/d", "touch /mnt/file"):
        with pytest.raises(ChildProcessError, match="Read-only"):
            inside.shell(bash_rootfs, script, mounts=[mount])
    assert os.listdir(volume) == ["file"]


def test_a_file(bash_rootfs: Path, volume: Path) -> None:
    """A file may be mounted over a file."""
    for options in (["ro"], ["rw"]):
        mount = volume_at("/etc/hosts", volume / "file", options)
        assert inside.shell(bash_rootfs, "cat /etc/hosts", mounts=[mount]) == "of the host"
    inside.shell(bash_rootfs, "echo changed > /etc/hosts", mounts=[mount])
    assert (volume / "file").read_text() == "changed\n"


@pytest.mark.parametrize("option", ["nosuid", "nodev", "noexec", "ro"])
def test_flags_of_a_bind(report: Report, volume: Path, option: str) -> None:
    """A flag applies to the bind only if the mount has it."""
    mount = Mount("/mnt", source=str(volume), options=[option])
    assert option in support.mount_at(report(mounts=[mount]), "/mnt")["options"]
    plain = Mount("/mnt", source=str(volume), options=["dev"])
    assert option not in support.mount_at(report(mounts=[plain]), "/mnt")["options"]


def test_noatime_in_a_user_namespace_is_an_error(report: Report, volume: Path) -> None:
    """A user namespace's mounts cannot change the host's setting (mount_namespaces(7))."""
    mount = Mount("/mnt", source=str(volume), options=["noatime"])
    if support.is_root():
        assert "noatime" in support.mount_at(report(mounts=[mount]), "/mnt")["options"]
    with pytest.raises(SpawnError) as caught:
        report(mounts=[mount], namespaces={"user": "new"})
    exc = caught.value
    assert (exc.stage, exc.errno, exc.path) == ("mount", errno.EPERM, "/mnt")


def test_noexec_applies(probe_rootfs: Path) -> None:
    for options in ([], ["noexec"]):
        mount = Mount("/mnt", source=str(probe_rootfs), options=options)
        spec = Spec(rootfs=probe_rootfs, mounts=[mount])
        if not options:
            assert fastns.run(["/mnt/true"], spec=spec).returncode == 0
            continue
        with pytest.raises(SpawnError) as caught:
            fastns.run(["/mnt/true"], spec=spec)
        assert (caught.value.stage, caught.value.errno) == ("exec", errno.EACCES)


def test_a_volume_that_contains_the_root(bash_rootfs: Path) -> None:
    """Mounts of the new root are not visible through it."""
    mount = Mount("/mnt", source=str(bash_rootfs.parent), options=["rbind"])
    out = inside.shell(bash_rootfs, "mount", mounts=[mount], files={"/etc/hosts": "x"})
    assert [line.split()[2] for line in out.splitlines() if "/mnt" in line] == ["/mnt"]


def test_a_volume_of_a_volume(bash_rootfs: Path, volume: Path) -> None:
    """A source is a path of the host, even below another volume."""
    mounts = [
        Mount("/mnt", type="tmpfs"),
        Mount("/mnt/a", source=str(volume)),
        Mount("/mnt/a/b", source="/usr", options=["X-mount.mkdir", "ro"]),
    ]
    out = inside.shell(bash_rootfs, "cat /mnt/a/file; ls -d /mnt/a/b/bin", mounts=mounts)
    assert out == "of the host/mnt/a/b/bin\n"
    assert (volume / "b").is_dir()  # X-mount.mkdir made it
    assert os.listdir(volume / "b") == []


def test_a_source_that_is_a_link(bash_rootfs: Path, volume: Path) -> None:
    """A source is the caller's path, so its links are followed outside."""
    (volume / "link").symlink_to(volume / "file")
    mount = Mount("/etc/hosts", source=str(volume / "link"))
    assert inside.shell(bash_rootfs, "cat /etc/hosts", mounts=[mount]) == "of the host"


BELOW = """
import pathlib, subprocess, sys
sys.path.insert(0, sys.argv[1])
import inside
from fastns import Mount
root, volume = pathlib.Path(sys.argv[2]), sys.argv[3]
subprocess.run(["mount", "-t", "tmpfs", "none", volume + "/below"], check=True)
pathlib.Path(volume, "below", "deep").touch()
script = "ls /mnt/below; (: > /mnt/below/new) 2>&1 | cat"
for options in sys.argv[4:]:
    mounts = [Mount("/mnt", source=volume, options=[*options.split(), "idmap"])]
    print(inside.shell(root, script, mounts=mounts).split("\\n")[:-1])
    pathlib.Path(volume, "below", "new").unlink(missing_ok=True)
"""


def test_mounts_below_the_source(bash_rootfs: Path, volume: Path) -> None:
    """rbind includes them, with the bind's flags; bind does not."""
    (volume / "below").mkdir()
    extra = [] if support.is_root() else ["-U", "-r"]
    done = subprocess.run(
        ["unshare", "-m", *extra, sys.executable, "-c", BELOW, str(support.TESTS),
         str(bash_rootfs), str(volume), "rbind", "bind", "rbind ro"],
        capture_output=True, text=True, env={**os.environ, "PATH": support.HOST_PATH},
    )  # fmt: skip
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[:2] == ["['deep']", "[]"]
    assert "'deep'" in lines[2]
    assert "Read-only file system" in lines[2]


# ---- missing targets ----


def test_a_missing_target_in_the_root(probe_rootfs: Path, volume: Path) -> None:
    """A missing target is an error with a hint. fastns does not make it."""
    for mount in (
        Mount("/missing/deeper", source=str(volume)),
        Mount("/missing", type="tmpfs"),
        Mount("/etc/missing", source=str(volume / "file")),
    ):
        plan = fastns.compile(Spec(rootfs=probe_rootfs, mounts=[mount]))
        with pytest.raises(SpawnError) as caught:
            fastns.run(["/true"], spec=plan)
        exc = caught.value
        assert (exc.stage, exc.errno, exc.path) == ("mount", errno.ENOENT, mount.destination)
        assert plan.ops[exc.op_index].target == mount.destination.encode()
        assert "X-mount.mkdir" in (exc.hint or "")
    assert not (probe_rootfs / "missing").exists()


def test_a_missing_target_in_the_hosts_directories(volume: Path) -> None:
    """A target missing there is an error with a hint. Elsewhere fastns makes it."""
    for fields in (
        {"mounts": [Mount("/usr/missing", source=str(volume))]},
        {"mounts": [Mount("/usr/missing", source=str(volume), options=["X-mount.mkdir"])]},
        {"mounts": [Mount("/bin/missing", source=str(volume))]},
        {"files": {"/etc/missing": "x"}},
    ):
        with pytest.raises(SpawnError) as caught:
            fastns.run(["/bin/true"], spec=Spec(**fields))
        assert "the host's system directories" in (caught.value.hint or "")
    mounts = [Mount(f"{place}/new/deep", source=str(volume)) for place in ("", "/tmp", "/var")]
    assert fastns.run(["/bin/true"], spec=Spec(mounts=mounts)).returncode == 0


def test_a_missing_target_in_a_volume(probe_rootfs: Path, volume: Path) -> None:
    """A mount point made there would stay on the host."""
    mounts = [Mount("/mnt", source=str(volume)), Mount("/mnt/new", type="tmpfs")]
    with pytest.raises(SpawnError) as caught:
        fastns.run(["/true"], spec=Spec(rootfs=probe_rootfs, mounts=mounts))
    assert (caught.value.stage, caught.value.path) == ("mount", "/mnt/new")
    assert os.listdir(volume) == ["file"]


@pytest.mark.parametrize("layer", ["overlay", "tmpfs", "default tmpfs"])
def test_a_missing_target_in_a_temporary_layer_is_made(
    bash_rootfs: Path, volume: Path, layer: str
) -> None:
    base = {"overlay": "/missing", "tmpfs": "/mnt", "default tmpfs": "/tmp"}[layer]
    first = [Mount("/mnt", type="tmpfs")] if layer == "tmpfs" else []
    mounts = [
        *first,
        Mount(f"{base}/a/b", source=str(volume)),
        Mount(f"{base}/c", source=str(volume / "file")),
        Mount(f"{base}/d/e", type="tmpfs"),
    ]
    script = f"cat {base}/a/b/file {base}/c; echo x > {base}/d/e/f"
    out = inside.shell(bash_rootfs, script, mounts=mounts, overlay=layer == "overlay")
    assert out == "of the host" * 2
    assert not (bash_rootfs / "missing").exists()
    assert os.listdir(bash_rootfs / "mnt") == os.listdir(bash_rootfs / "tmp") == []


def test_a_missing_target_is_made_with_x_mount_mkdir(writable: Path, volume: Path) -> None:
    make = ["X-mount.mkdir"]
    mounts = [
        Mount("/made/here", type="tmpfs", options=make),
        Mount("/made/too", source=str(volume), options=make),
        Mount("/made/file", source=str(volume / "file"), options=make),
    ]
    assert fastns.run(["/true"], spec=Spec(rootfs=writable, mounts=mounts)).returncode == 0
    assert {p.name: p.is_dir() for p in (writable / "made").iterdir()} == {
        "here": True, "too": True, "file": False}  # fmt: skip
    assert (writable / "made").stat().st_mode & 0o777 == 0o755


# ---- files ----


@pytest.mark.parametrize(
    "content", ["", "short\n", "ü\n", b"bytes\xff\0\n", "long " * 50_000, b"\0" * (1 << 20)]
)
def test_a_files_content(bash_rootfs: Path, content: str | bytes) -> None:
    """The content is exactly as given, at any size."""
    wanted = content if isinstance(content, bytes) else content.encode()
    spec = Spec(rootfs=bash_rootfs, files={"/etc/hosts": content, "/tmp/made/new": content})
    for path in spec.files:
        done = fastns.run(["cat", path], spec=spec, capture_output=True)
        assert (done.stdout, done.stderr) == (wanted, b"")


def test_files_leave_the_root_alone(bash_rootfs: Path) -> None:
    """A file that covers another is writable, and disappears with the sandbox."""
    before = (bash_rootfs / "etc" / "hosts").read_bytes()
    script = "echo more >> /etc/hosts; cat /etc/hosts"
    for fields in ({}, {"overlay": True}, {"root_mode": "chroot"}):
        for _ in range(2):
            out = inside.shell(bash_rootfs, script, files={"/etc/hosts": "a\n"}, **fields)
            assert out == "a\nmore\n"
    assert (bash_rootfs / "etc" / "hosts").read_bytes() == before


def test_files_over_links(writable: Path) -> None:
    """Links are followed inside the root."""
    etc = writable / "etc"
    (etc / "near").symlink_to("hosts")
    (etc / "absolute").symlink_to("/etc/hostname")
    (etc / "up").symlink_to("../../../../../../etc/resolv.conf")
    for link, real in (("near", "hosts"), ("absolute", "hostname"), ("up", "resolv.conf")):
        before = (etc / real).read_text()
        spec = Spec(rootfs=writable, files={f"/etc/{link}": "own"})
        for path in (link, real):
            done = fastns.run(["/probe", "--read", f"/etc/{path}"], spec=spec, capture_output=True)
            assert done.stdout == b"own", (link, path)
        assert (etc / real).read_text() == before
        assert (etc / link).is_symlink()


def test_files_in_layers(bash_rootfs: Path) -> None:
    """Files can be put into an overlay and into each tmpfs."""
    files = {"/a/b/c": "1", "/a/b/d": "2", "/tmp/x/y": "3", "/etc/hosts": "4", "/dev/shm/z": "5"}
    out = inside.shell(bash_rootfs, f"cat {' '.join(files)}", files=files, overlay=True)
    assert out == "12345"


@pytest.mark.parametrize("path", ["/etc/hosts", "/tmp/new"])
def test_files_with_a_range_of_ids(probe_rootfs: Path, path: str) -> None:
    """With a range of ids, files can still be read inside."""
    spec = Spec(rootfs=probe_rootfs, files={path: "own"}, **inside.ranges())
    done = fastns.run(["/probe", "--read", path], spec=spec, capture_output=True)
    assert done.stdout == b"own"


def test_files_without_a_rootfs() -> None:
    """The host's file is covered only for this sandbox."""
    before = Path("/etc/hosts").read_bytes()
    out = inside.shell(None, "cat /etc/hosts", files={"/etc/hosts": "own"})
    assert out == "own"
    assert Path("/etc/hosts").read_bytes() == before
