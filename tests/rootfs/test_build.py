"""fastns.rootfs.build: the contents of a root, the programs in it, and a second build."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile
from support import skip_missing

from fastns import Spec, run
from fastns.rootfs import MARKER, Root, RootfsError, build

SEED = ["bash", "ls", "ps", "mount", "hostname", "ipcs", "cat"]
Inside = Callable[..., "subprocess.CompletedProcess[str]"]
Snapshot = Callable[[Path], dict[str, tuple[object, ...]]]


def script(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def needed_names(file: Path) -> list[str]:
    with file.open("rb") as stream:
        if stream.read(4) != b"\x7fELF":
            return []
        segments = [s for s in ELFFile(stream).iter_segments() if s["p_type"] == "PT_DYNAMIC"]
        return [t.needed for s in segments for t in s.iter_tags() if t.entry.d_tag == "DT_NEEDED"]


@pytest.fixture(scope="module")
def seed(tmp_path_factory: pytest.TempPathFactory) -> Root:
    return build(tmp_path_factory.mktemp("seed") / "root", SEED)


def test_seed_commands_run(seed: Root, inside: Inside) -> None:
    listing = inside(
        seed.path, "/bin/bash", "-c", "ls / && ps --version && cat /etc/hostname"
    ).stdout
    assert {"bin", "dev", "etc", "proc", "tmp", "usr"} < set(listing.split())
    assert "ps from procps" in listing
    assert listing.endswith("localhost\n")
    assert "proc on /proc type proc" in inside(seed.path, "mount").stdout
    assert inside(seed.path, "hostname").stdout == os.uname().nodename + "\n"
    assert "Message Queues" in inside(seed.path, "ipcs", "-q").stdout


def test_the_default_locale_knows_utf8(seed: Root) -> None:
    """The default inside is LANG=C.UTF-8. The control is LANG=C, where each byte is a character."""
    if not os.path.isdir("/usr/lib/locale/C.utf8"):
        skip_missing("the C.UTF-8 locale (Debian's libc-bin)")
    spec = Spec(rootfs=seed.path, default_mounts=False)
    length = ["bash", "-c", "word=\u00e9t\u00e9; echo ${#word}"]
    assert run(length, spec=spec, capture_output=True, text=True).stdout == "3\n"
    plain = Spec(rootfs=seed.path, default_mounts=False, env={"LANG": "C"})
    assert run(length, spec=plain, capture_output=True, text=True).stdout == "5\n"


def test_a_terminal_is_known_inside(tmp_path: Path) -> None:
    """clear(1) fails for an unknown terminal. The control is a terminal that does not exist."""
    if shutil.which("clear") is None or not os.path.exists("/lib/terminfo/x/xterm"):
        skip_missing("clear and the terminal database (Debian's ncurses-bin and ncurses-base)")
    root = build(tmp_path / "root", ["clear"])
    for term, code in (("xterm", 0), ("xterm-256color", 0), ("vt52", 1)):
        spec = Spec(rootfs=root.path, env={"TERM": term})
        assert run(["clear"], spec=spec, capture_output=True).returncode == code
    assert not any("terminfo" in path for path in build(tmp_path / "bare", ["cat"]).files)


def test_loader_finds_every_library(seed: Root, inside: Inside) -> None:
    loader = next(path for path in seed.libraries if "/ld-" in path)
    for command in seed.commands:
        output = inside(seed.path, loader, "--list", command).stdout
        assert "libc.so.6 => /" in output
        assert "not found" not in output


def test_every_needed_library_is_inside(seed: Root) -> None:
    names = {os.path.basename(path) for path in seed.files}
    needed = {
        name
        for path in Path(seed.path).rglob("*")
        if path.is_file() and not path.is_symlink()
        for name in needed_names(path)
    }
    assert "libc.so.6" in needed
    assert needed <= names


def test_the_result_lists_what_was_copied(seed: Root) -> None:
    assert [os.path.basename(path) for path in seed.commands] == SEED
    assert all(os.path.exists(seed.path + path) for path in seed.commands)
    found = {
        f"/{path.relative_to(seed.path)}"
        for path in Path(seed.path).rglob("*")
        if path.is_symlink() or not path.is_dir()
    }
    assert set(seed.files) == found
    assert list(seed.files) == sorted(seed.files)
    assert set(seed.libraries) < set(seed.files)
    assert (seed.copied, seed.unchanged) == (len(seed.files), 0)
    regular = (os.lstat(seed.path + path) for path in seed.files)
    assert seed.bytes == sum(s.st_size for s in regular if stat.S_ISREG(s.st_mode))


@pytest.mark.parametrize(
    ("path", "mode"),
    [("tmp", 0o1777), ("var/tmp", 0o1777), ("root", 0o700), ("proc", 0o755), ("", 0o755)],
)
def test_modes(seed: Root, path: str, mode: int) -> None:
    assert stat.S_IMODE(os.lstat(f"{seed.path}/{path}").st_mode) == mode


def test_everything_belongs_to_the_caller(seed: Root) -> None:
    for path in [Path(seed.path), *Path(seed.path).rglob("*")]:
        assert (path.lstat().st_uid, path.lstat().st_gid) == (os.geteuid(), os.getegid())


@pytest.mark.parametrize("name", ["bin", "sbin", "lib", "lib64", "usr/bin", "usr/sbin"])
def test_layout_is_the_hosts(seed: Root, name: str) -> None:
    host, copy = f"/{name}", f"{seed.path}/{name}"
    assert os.path.lexists(copy) == os.path.lexists(host)
    assert os.path.islink(copy) == os.path.islink(host)
    if os.path.islink(host):
        assert os.readlink(copy) == os.readlink(host)


def test_minimal_etc(seed: Root) -> None:
    """/etc has what a C library needs to look up users and hosts."""
    etc = Path(seed.path, "etc")
    users = (etc / "passwd").read_text().splitlines()
    assert [line.split(":")[0] for line in users] == ["root", "nobody"]
    assert "hosts: files dns\n" in (etc / "nsswitch.conf").read_text()
    assert all((etc / name).is_file() for name in ("group", "hosts", "hostname", "resolv.conf"))
    assert not (etc / "mtab").exists()


def test_sh_is_always_there(tmp_path: Path) -> None:
    root = build(tmp_path / "root", [])
    assert os.path.exists(root.path + os.path.realpath("/bin/sh"))
    assert root.commands == ()


def test_links_are_kept(tmp_path: Path) -> None:
    real = script(tmp_path / "real", "#!/bin/sh\n")
    (tmp_path / "relative").symlink_to("real")
    (tmp_path / "absolute").symlink_to(tmp_path / "relative")
    (tmp_path / "dir").symlink_to(".")
    asked = f"{tmp_path}/dir/absolute"
    root = build(tmp_path / "root", [asked])
    copy = f"{root.path}{tmp_path}"
    assert os.readlink(f"{copy}/absolute") == f"{tmp_path}/relative"
    assert os.readlink(f"{copy}/relative") == "real"
    assert os.readlink(f"{copy}/dir") == "."
    assert Path(copy, "real").read_bytes() == real.read_bytes()
    assert root.commands == (asked,)


def test_applets_of_one_program(tmp_path: Path, cc: Callable[..., Path], inside: Inside) -> None:
    source = "#include <stdio.h>\nint main(int c, char **v) { puts(v[0]); return c - 1; }"
    box = cc(tmp_path / "box", source, "-static")
    for name in ("one", "two"):
        (tmp_path / name).symlink_to("box")
    root = build(tmp_path / "root", [tmp_path / "one", tmp_path / "two"])
    assert inside(root.path, f"{tmp_path}/two").stdout == f"{tmp_path}/two\n"
    assert f"{tmp_path}/box" in root.files
    assert box.stat().st_size == os.stat(f"{root.path}{box}").st_size


def test_static_program_brings_no_library(tmp_path: Path, cc: Callable[..., Path]) -> None:
    program = cc(tmp_path / "static", "int main(void) { return 0; }", "-static")
    bare = build(tmp_path / "bare", [])
    assert build(tmp_path / "root", [program]).libraries == bare.libraries


def test_command_given_twice(tmp_path: Path) -> None:
    root = build(tmp_path / "root", ["cat", "cat", "/bin/sh", "/bin/sh"])
    assert len(root.commands) == 2


def test_relative_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tmp_path / "tool", "#!/bin/sh\n")
    monkeypatch.chdir(tmp_path)
    assert build("root", ["./tool"]).commands == (f"{os.path.realpath(tmp_path)}/tool",)
    assert (tmp_path / f".root{MARKER}").is_file()


def test_setuid_and_setgid_are_dropped(tmp_path: Path) -> None:
    tool = script(tmp_path / "tool", "#!/bin/sh\n")
    tool.chmod(0o6755)
    root = build(tmp_path / "root", [tool])
    assert stat.S_IMODE(os.stat(f"{root.path}{tool}").st_mode) == 0o755


@pytest.mark.as_root
def test_capabilities_are_dropped(tmp_path: Path) -> None:
    tool = script(tmp_path / "tool", "#!/bin/sh\n")
    value = bytes.fromhex("0100000200200000000000000000000000000000")
    os.setxattr(tool, "security.capability", value)
    root = build(tmp_path / "root", [tool])
    assert os.listxattr(f"{root.path}{tool}") == []


@pytest.mark.as_root
def test_setgid_parent_does_not_give_its_group(tmp_path: Path) -> None:
    os.chown(tmp_path, 0, 12345)
    tmp_path.chmod(0o2755)
    root = build(tmp_path / "root", [])
    for path in [Path(root.path), *Path(root.path).rglob("*")]:
        assert path.lstat().st_gid == os.getegid()
        assert path.is_symlink() or not path.lstat().st_mode & stat.S_ISGID


# ---- scripts ----


def test_script_brings_its_interpreter(tmp_path: Path, inside: Inside) -> None:
    first = script(tmp_path / "first", f"#!{tmp_path}/second  with an argument\n")
    script(tmp_path / "second", "#!/usr/bin/env -S bash -u\necho through $0 $1\n")
    root = build(tmp_path / "root", [first])
    assert root.commands == (str(first),)
    assert inside(root.path, str(first)).stdout.startswith(f"through {tmp_path}/second")


@pytest.mark.parametrize(
    "words", ["tool", "-S tool -x", "-Stool", "A=b tool", "-i tool", "-u HOME tool"]
)
def test_env_names_the_program(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tmp_path / "tool", "#!/bin/sh\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    first = script(tmp_path / "first", f"#!/usr/bin/env {words}\n")
    root = build(tmp_path / "root", [first])
    assert f"{tmp_path}/tool" in root.files
    assert os.path.exists(f"{root.path}/usr/bin/env")


def test_program_without_shebang(tmp_path: Path) -> None:
    tool = script(tmp_path / "tool", "echo hello\n")
    assert str(tool) in build(tmp_path / "root", [tool]).files


# ---- extra ----


def test_extra(tmp_path: Path) -> None:
    """An extra is copied with modes. Links out of it lead to copied files, or stay dangling."""
    data = tmp_path / "data"
    (data / "deep" / "empty").mkdir(parents=True)
    (data / "deep" / "text").write_text("hello")
    (data / "deep" / "text").chmod(0o640)
    (data / "deep" / "broken").write_bytes(b"\x7fELF" + bytes(60))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_text("far")
    (data / "to_file").symlink_to("../elsewhere/file")
    (data / "to_directory").symlink_to("../elsewhere")
    (data / "to_inside").symlink_to("deep")
    (data / "to_nothing").symlink_to("/nonexistent")
    (data / "mtab").symlink_to("/proc/self/mounts")
    root = build(tmp_path / "root", [], extra=[data, "/etc/passwd"])
    copy = Path(f"{root.path}{data}")
    assert (copy / "deep" / "text").read_text() == "hello"
    assert stat.S_IMODE((copy / "deep" / "text").stat().st_mode) == 0o640
    assert (copy / "deep" / "empty").is_dir()
    assert (copy / "to_file").read_text() == "far"
    assert os.readlink(copy / "to_directory") == "../elsewhere"
    assert (copy / "to_inside" / "text").read_text() == "hello"
    assert os.readlink(copy / "to_nothing") == "/nonexistent"
    assert os.readlink(copy / "mtab") == "/proc/self/mounts"
    assert Path(root.path, "etc/passwd").read_bytes() == Path("/etc/passwd").read_bytes()


def test_extra_through_a_link_copies_its_directory(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "file").write_text("x")
    (tmp_path / "link").symlink_to("data")
    root = build(tmp_path / "root", [], extra=[tmp_path / "link"])
    assert Path(f"{root.path}{tmp_path}/link/file").read_text() == "x"


# ---- a second build ----


def test_second_build_changes_nothing(tmp_path: Path, snapshot: Snapshot) -> None:
    first = build(tmp_path / "root", SEED, extra=["/etc/passwd"])
    before = snapshot(tmp_path)
    second = build(tmp_path / "root", SEED, extra=["/etc/passwd"])
    assert snapshot(tmp_path) == before
    assert (second.copied, second.unchanged) == (0, len(first.files))
    assert second.files == first.files


def test_more_commands_extend(tmp_path: Path, snapshot: Snapshot) -> None:
    first = build(tmp_path / "root", ["cat"])
    before = snapshot(tmp_path / "root")
    second = build(tmp_path / "root", ["bash"])
    after = snapshot(tmp_path / "root")
    assert {path: after[path] for path in before} == before
    assert [os.path.basename(path) for path in second.commands] == ["cat", "bash"]
    assert set(first.files) < set(second.files)
    assert second.unchanged == len(first.files)
    marker = json.loads((tmp_path / f".root{MARKER}").read_text())
    assert marker["files"] == list(second.files)


def test_a_changed_file_is_copied_again_and_the_users_files_stay(tmp_path: Path) -> None:
    tool = script(tmp_path / "tool", "#!/bin/sh\nold\n")
    root = build(tmp_path / "root", [tool])
    script(tool, "#!/bin/sh\nnew\n")
    os.utime(tool, ns=(1, 1))
    Path(root.path, "etc/hosts").write_text("mine")
    Path(root.path, "srv/mine").write_text("mine")
    again = build(tmp_path / "root", [])
    assert again.copied == 1
    assert Path(f"{root.path}{tool}").read_text() == "#!/bin/sh\nnew\n"
    assert Path(root.path, "etc/hosts").read_text() == "mine"
    assert Path(root.path, "srv/mine").read_text() == "mine"


def test_a_missing_file_is_copied_again(tmp_path: Path) -> None:
    root = build(tmp_path / "root", ["cat"])
    lost = Path(root.path, "etc/group")
    lost.unlink()
    assert build(tmp_path / "root", []).copied == 1
    assert lost.is_file()


def test_leftover_of_a_killed_build_is_removed(tmp_path: Path) -> None:
    (tmp_path / "root" / ".fastns-rootfs.new" / "half").mkdir(parents=True)
    root = build(tmp_path / "root", ["cat"])
    assert not os.path.exists(f"{root.path}/.fastns-rootfs.new")


def test_empty_directory_and_links_on_the_way(tmp_path: Path) -> None:
    (tmp_path / "real" / "root").mkdir(parents=True)
    inode = (tmp_path / "real" / "root").stat().st_ino
    (tmp_path / "link").symlink_to("real")
    root = build(tmp_path / "link" / "root", ["cat"])
    assert root.path == os.path.realpath(tmp_path / "real" / "root")
    assert os.stat(root.path).st_ino == inode


def test_progress(tmp_path: Path) -> None:
    """The function is called before each file, and at the end."""
    seen: list[tuple[int, int, str]] = []
    root = build(tmp_path / "root", ["cat"], progress=lambda *now: seen.append(now))
    total = len(root.files)
    assert [now[0] for now in seen] == list(range(total + 1))
    assert {now[1] for now in seen} == {total}
    assert [now[2] for now in seen] == [*root.files, ""]


def test_unprivileged(open_dir: Path, as_nobody: Callable[..., Any]) -> None:
    """Any user can build a root and extend it."""
    root = as_nobody(lambda: build(open_dir / "root", ["cat"]))
    assert {path.lstat().st_uid for path in Path(root.path).rglob("*")} == {65534}
    again = as_nobody(lambda: build(open_dir / "root", ["bash"]))
    assert len(again.commands) == 2


def test_unreadable_command(open_dir: Path, as_nobody: Callable[..., Any]) -> None:
    tool = script(open_dir / "tool", "#!/bin/sh\n")
    tool.chmod(0o711)
    with pytest.raises(RootfsError, match=r"tool: cannot be read"):
        as_nobody(lambda: build(open_dir / "root", [tool]))
