"""The marker: a file beside a root that says what builds have put into it. Nothing inside the root
decides what the next build copies."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fastns
from fastns.rootfs import MARKER, RootfsError, build

Snapshot = Callable[[Path], dict[str, tuple[object, ...]]]
OLD = '{"fastns_rootfs": 1, "commands": [], "extra": ["%s"], "files": []}'


@pytest.fixture
def place(public_dir: Path) -> Iterator[Path]:
    """A directory for roots and a secret. It is not below /tmp, which a sandbox would hide."""
    path = public_dir / "marker"
    path.mkdir()
    (path / "secret").write_text("of the host\n")
    (path / "secret").chmod(0o600)
    yield path
    shutil.rmtree(path)


def beside(root: Path) -> Path:
    return root.with_name(f".{root.name}{MARKER}")


def in_sandbox(way: str, root: Path, code: str) -> None:
    """Run code by sh in a sandbox with this root, which it may write to."""
    spec = fastns.Spec(rootfs=root, init=way == "init")
    words = ["sh", "-c", code]
    with contextlib.ExitStack() as stack:
        if way == "template":
            done = stack.enter_context(fastns.Template(spec)).run(words, capture_output=True)
        else:
            done = fastns.run(words, spec=spec, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


# ---- changes by a sandbox ----


@pytest.mark.parametrize("way", ["direct", "init", "template"])
def test_a_sandbox_cannot_forge_the_marker(place: Path, way: str) -> None:
    """The sandbox writes forged markers that name the secret, in every place that it can reach."""
    root, secret = place / "root", place / "secret"
    build(root, ["sh", "cat"])
    words = OLD % secret
    names = (MARKER, f".root{MARKER}", f"../.root{MARKER}")
    code = "; ".join(f"echo '{words}' >/{name}" for name in names)
    in_sandbox(way, root, code)
    build(root, ["sh"])
    assert not Path(f"{root}{secret}").exists()
    assert [path.name for path in place.glob(".*")] == [f".root{MARKER}"]
    # The control: the same marker in the right place.
    beside(root).write_text(words.replace('s": 1', 's": 2'))
    build(root, ["sh"])
    assert Path(f"{root}{secret}").read_text() == "of the host\n"


@pytest.mark.parametrize("way", ["direct", "template"])
def test_a_sandboxes_links_are_not_followed(place: Path, snapshot: Snapshot, way: str) -> None:
    """The sandbox replaces directories, among them the build's own, by links or a file."""
    root = place / "root"
    build(root, ["sh", "cat", "rm", "ln", "mv"])
    (place / "outside").mkdir()
    outside = place / "outside"
    for code, words in (
        (f"mv /etc /gone; ln -s {outside} /etc", "etc is in the way"),
        (f"ln -s {outside} /.fastns-rootfs.new", "new exists and is not a directory"),
        ("rm /.fastns-rootfs.new; echo >/.fastns-rootfs.new", "new exists and is not a directory"),
    ):
        in_sandbox(way, root, code)
        before = snapshot(place)
        with pytest.raises(RootfsError, match=words):
            build(root, ["env"])
        assert snapshot(place) == before


def test_a_sandboxes_lock_does_not_block_the_build(tmp_path: Path) -> None:
    build(tmp_path / "root", ["cat"])
    code = (
        "import fcntl, os, sys\n"
        "fcntl.flock(os.open(sys.argv[1], 0), fcntl.LOCK_EX); print(flush=True); input()"
    )
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code, tmp_path / "root"], **pipes) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"\n"
        thread = threading.Thread(target=build, args=(tmp_path / "root", ["env"]), daemon=True)
        thread.start()
        thread.join(60)
        waits = thread.is_alive()
        other.communicate(b"\n")
    assert not waits


def test_a_lock_on_the_parent_directory_times_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tmp_path / "root", ["cat"])
    monkeypatch.setattr("fastns.rootfs.PATIENCE", 0.1)
    other = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(RootfsError, match="is locked"):
            build(tmp_path / "root", ["env"])
    finally:
        os.close(other)
    build(tmp_path / "root", ["env"])


def test_files_of_the_root_are_not_copied_into_it(tmp_path: Path) -> None:
    """A sandbox may have replaced them by links to any file, or by ELF files that name any file."""
    root = Path(build(tmp_path / "root", ["cat"]).path)
    (tmp_path / "secret").write_text("mine")
    (root / "srv" / "link").symlink_to(tmp_path / "secret")
    for words in ({"extra": [root / "srv" / "link"]}, {"extra": [root / "etc" / "passwd"]}):
        with pytest.raises(RootfsError, match=f"is inside the destination, {root}"):
            build(root, [], **words)
    with pytest.raises(RootfsError, match="is inside the destination"):
        build(root, [root / os.path.realpath("/bin/sh").lstrip("/")])
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "through").symlink_to("../root/srv/link")
    build(root, [], extra=[tmp_path / "data"])
    assert (root / str(tmp_path / "data" / "through").lstrip("/")).is_symlink()
    assert not Path(f"{root}{tmp_path}/secret").exists()


def test_a_loader_that_is_no_elf_file(tmp_path: Path, cc: Callable[..., Path]) -> None:
    """A program may name any file of the host as its loader. The build must not copy that file."""
    (tmp_path / "secret").write_text("mine")
    flags = ["-pie", "-nostdlib", f"-Wl,--dynamic-linker={tmp_path}/secret"]
    program = cc(tmp_path / "program", "void _start(void) {}", *flags)
    with pytest.raises(RootfsError, match=f"loader {tmp_path}/secret: .* is not an ELF file"):
        build(tmp_path / "root", [program])
    assert not (tmp_path / "root").exists()


def test_a_fifo_instead_of_a_library(tmp_path: Path, cc: Callable[..., Path], library: Any) -> None:
    """The build must not block on the FIFO, and must find the library in the next directory."""
    (tmp_path / "first").mkdir()
    used = library(tmp_path / "second" / "libused.so", "used")
    os.mkfifo(tmp_path / "first" / "libused.so")
    paths = f"-Wl,-rpath,{tmp_path}/first:{tmp_path}/second"
    source = "int used(void); int main(void) { return used(); }"
    program = cc(tmp_path / "program", source, used, paths)
    assert str(used) in build(tmp_path / "root", [program]).libraries


def test_directories_too_deep_to_remove(tmp_path: Path) -> None:
    root = build(tmp_path / "root", ["cat"]).path
    deep = "import os\nfor _ in range(3000): os.mkdir('d'); os.chdir('d')"
    stage = f"{root}/.fastns-rootfs.new"
    os.mkdir(stage)
    subprocess.run([sys.executable, "-c", deep], cwd=stage, check=True)
    try:
        if sys.version_info < (3, 13):
            with pytest.raises(RootfsError, match=r"too deep|Too many open files"):
                build(root, ["env"])
    finally:
        subprocess.run(["rm", "-r", stage], check=True)
    build(root, ["env"])


# ---- the marker itself ----


def test_the_marker_lists_the_copied_files(tmp_path: Path) -> None:
    root = build(tmp_path / "root", ["cat"], extra=["/etc/passwd"])
    marker = json.loads(beside(tmp_path / "root").read_text())
    assert marker["commands"] == list(root.commands)
    assert marker["extra"] == ["/etc/passwd"]
    assert marker["files"] == list(root.files)
    assert beside(tmp_path / "root").stat().st_mode & 0o777 == 0o600
    assert sorted(os.listdir(tmp_path)) == [f".root{MARKER}", "root"]


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "no json", "[" * 100_000, "\0", '{"fastns_rootfs": 2, "extra": [1]}'],
    ids=["empty", "no version", "a list", "no json", "deep", "a zero", "a number"],
)
def test_an_invalid_marker(tmp_path: Path, text: str, snapshot: Snapshot) -> None:
    """The build is refused and changes nothing."""
    build(tmp_path / "root", ["cat"])
    beside(tmp_path / "root").write_text(text)
    before = snapshot(tmp_path)
    with pytest.raises(RootfsError, match="was not written by this version of fastns") as caught:
        build(tmp_path / "root", ["env"])
    assert caught.value.hint
    assert snapshot(tmp_path) == before


def test_a_lost_marker(tmp_path: Path) -> None:
    """Without its marker a root is a directory like any other, so the build refuses it."""
    build(tmp_path / "root", ["cat"])
    beside(tmp_path / "root").unlink()
    with pytest.raises(RootfsError, match=r"is neither empty nor a root that fastns built$"):
        build(tmp_path / "root", ["cat"])


def test_a_marker_of_an_earlier_version(tmp_path: Path, snapshot: Snapshot) -> None:
    (tmp_path / "root" / "etc").mkdir(parents=True)
    (tmp_path / "root" / MARKER).write_text(OLD % "/etc/passwd")
    before = snapshot(tmp_path)
    with pytest.raises(RootfsError, match="is not trusted, as a sandbox may have written it") as e:
        build(tmp_path / "root", ["cat"])
    assert "name all commands again" in (e.value.hint or "")
    assert snapshot(tmp_path) == before


def test_a_huge_marker_is_not_read(tmp_path: Path) -> None:
    build(tmp_path / "root", ["cat"])
    os.truncate(beside(tmp_path / "root"), 900 << 30)
    with pytest.raises(RootfsError, match="is larger than 64 MiB"):
        build(tmp_path / "root", ["cat"])


@pytest.mark.parametrize("kind", ["link", "second name", "fifo", "socket", "writable", "directory"])
def test_a_marker_that_others_may_have_written(tmp_path: Path, kind: str) -> None:
    build(tmp_path / "root", ["cat"])
    path = beside(tmp_path / "root")
    words = {"link": "ELOOP", "second name": "a second name", "socket": "ENXIO"}
    if kind == "link":
        path.rename(tmp_path / "marker")
        path.symlink_to("marker")
    elif kind == "second name":
        os.link(path, tmp_path / "marker")
    elif kind == "writable":
        path.chmod(0o620)
        words[kind] = "can be written by others"
    else:
        path.unlink()
        words.setdefault(kind, "is not a regular file")
        if kind == "fifo":
            os.mkfifo(path, 0o600)
        elif kind == "directory":
            path.mkdir(0o700)
        else:
            with socket.socket(socket.AF_UNIX) as unix:
                unix.bind(os.path.relpath(path))
    with pytest.raises(RootfsError, match=words[kind]):
        build(tmp_path / "root", ["cat"])


@pytest.mark.as_root
def test_a_marker_of_another_user(tmp_path: Path) -> None:
    build(tmp_path / "root", ["cat"])
    os.chown(beside(tmp_path / "root"), 65534, 65534)
    with pytest.raises(RootfsError, match=r"built by another user \(uid 65534\)"):
        build(tmp_path / "root", ["cat"])


def test_a_parent_that_cannot_be_written(open_dir: Path, as_nobody: Callable[..., Any]) -> None:
    closed = open_dir / "closed"
    (closed / "root").mkdir(parents=True)
    (closed / "root").chmod(0o777)
    with pytest.raises(RootfsError, match=f"{closed} cannot be written") as caught:
        as_nobody(lambda: build(closed / "root", ["cat"]))
    assert caught.value.hint == f"build into a directory below it: {closed}/root/root"
    assert list((closed / "root").iterdir()) == []


def test_a_marker_that_cannot_be_placed_undoes_the_build(
    tmp_path: Path, snapshot: Snapshot
) -> None:
    """Whether or not the directory existed before."""
    beside(tmp_path / "root").mkdir()
    before = snapshot(tmp_path)
    with pytest.raises(RootfsError, match="EISDIR"):
        build(tmp_path / "root", ["cat"])
    assert snapshot(tmp_path) == before
    (tmp_path / "root").mkdir()
    before = snapshot(tmp_path)
    with pytest.raises(RootfsError, match="EISDIR"):
        build(tmp_path / "root", ["cat"])
    assert snapshot(tmp_path) == before
