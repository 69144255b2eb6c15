"""A failing fastns.rootfs.build raises the right error and leaves nothing behind."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fastns
from fastns.rootfs import MARKER, RootfsError, build

Snapshot = Callable[[Path], dict[str, tuple[object, ...]]]


def script(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_every_missing_command_is_named(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "text").write_text("#!/bin/sh\n")
    names = ["none-a", "cat", "none-b", "", f"{tmp_path}/nothing", str(tmp_path)]
    names += [f"{tmp_path}/loop", f"{tmp_path}/text", f"{tmp_path}/text/x", "/dev/null", "/proc/1"]
    with pytest.raises(RootfsError) as caught:
        build(tmp_path / "root", names)
    assert caught.value.missing == (
        "command none-a: not found in PATH",
        "command none-b: not found in PATH",
        "command : not a name",
        f"command {tmp_path}/nothing: does not exist",
        f"command {tmp_path}: is a directory",
        f"command {tmp_path}/loop: too many levels of symbolic links",
        f"command {tmp_path}/text: is not executable",
        f"command {tmp_path}/text/x: {tmp_path}/text is not a directory",
        "command /dev/null: lies in /dev, which holds no ordinary files",
        "command /proc/1: lies in /proc, which holds no ordinary files",
    )
    assert str(caught.value) == "; ".join(caught.value.missing)
    assert sorted(os.listdir(tmp_path)) == ["loop", "text"]


def test_the_error_is_a_fastns_error_and_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(RootfsError("words", missing=("x",), hint="do")))
    assert isinstance(error, fastns.FastnsError)
    assert (str(error), error.missing, error.hint) == ("words", ("x",), "do")


def test_a_hint_for_a_command_outside_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RootfsError) as caught:
        build(tmp_path / "root", ["cat"])
    assert caught.value.hint is not None
    assert "/bin/cat exists" in caught.value.hint


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("#!/nonexistent/interpreter -x", "interpreter /nonexistent/interpreter: needed by {}, "),
        ("#!relative", "interpreter relative: needed by {}, not an absolute path"),
        ("#!/usr/bin/env no-such-thing", "interpreter no-such-thing: needed by {}, not found in"),
    ],
)
def test_missing_interpreter(line: str, expected: str, tmp_path: Path) -> None:
    tool = script(tmp_path / "tool", line + "\n")
    with pytest.raises(RootfsError) as caught:
        build(tmp_path / "root", [tool])
    assert caught.value.missing[0].startswith(expected.format(tool))


def test_interpreters_in_a_circle(tmp_path: Path) -> None:
    script(tmp_path / "a", f"#!{tmp_path}/b\n")
    script(tmp_path / "b", f"#!{tmp_path}/a\n")
    assert f"{tmp_path}/b" in build(tmp_path / "root", [tmp_path / "a"]).files


def test_invalid_extra(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "data" / "socket"))
        os.mkfifo(tmp_path / "data" / "fifo")
        with pytest.raises(RootfsError) as caught:
            build(tmp_path / "root", [], extra=["/nonexistent", tmp_path / "data", "/proc", "/"])
    assert caught.value.missing == (
        "extra /nonexistent: does not exist",
        f"extra {tmp_path}/data/fifo: is neither a file nor a directory",
        f"extra {tmp_path}/data/socket: is neither a file nor a directory",
        "extra /proc: lies in /proc, which holds no ordinary files",
        "extra /: is the host's root",
    )


def test_extra_around_the_destination(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(".")
    with pytest.raises(RootfsError, match="contains the destination"):
        build(tmp_path / "root", [], extra=[tmp_path / "link"])


def test_one_string_is_not_a_list_of_commands(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="commands: expected several paths"):
        build(tmp_path / "root", "bash")


# ---- destinations ----


@pytest.mark.parametrize(
    "dest", ["/", "//", "/usr", "/usr/bin/x", "/bin", "/etc/root", "/proc/x", "/tmp/..", "/tmp"]
)
def test_system_directories_are_refused(dest: str) -> None:
    with pytest.raises(RootfsError, match="is a directory of this system"):
        build(dest, ["cat"])


@pytest.mark.parametrize("dest", ["", "a\0b"])
def test_destination_is_not_a_path(dest: str) -> None:
    with pytest.raises(RootfsError, match="is not a path"):
        build(dest, ["cat"])


def test_destination_leads_to_a_system_directory(tmp_path: Path) -> None:
    (tmp_path / "root").symlink_to("/usr")
    with pytest.raises(RootfsError, match="/usr is a directory of this system"):
        build(tmp_path / "root", ["cat"])


def test_parent_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(RootfsError) as caught:
        build(tmp_path / "a" / "root", ["cat"])
    assert caught.value.hint == f"mkdir -p {tmp_path}/a"


def test_destination_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "root").write_text("mine")
    with pytest.raises(RootfsError, match="ENOTDIR"):
        build(tmp_path / "root", ["cat"])
    assert (tmp_path / "root").read_text() == "mine"


@pytest.mark.parametrize(
    "marker", [None, "", "{}", "[]", "no json", '{"fastns_rootfs": 1, "commands": [1]}']
)
def test_a_directory_of_others(marker: str | None, tmp_path: Path, snapshot: Snapshot) -> None:
    dest = tmp_path / "root"
    (dest / ".fastns-rootfs.new").mkdir(parents=True)
    (dest / "precious").write_text("mine")
    if marker is not None:
        (dest / MARKER).write_text(marker)
    before = snapshot(tmp_path)
    with pytest.raises(RootfsError, match="is neither empty nor a root that fastns built"):
        build(dest, ["cat"])
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("planted", ["etc", "usr", "tmp"])
def test_links_in_a_root_are_not_followed(planted: str, tmp_path: Path, snapshot: Snapshot) -> None:
    root = Path(build(tmp_path / "root", ["cat"]).path)
    outside = tmp_path / "outside"
    outside.mkdir()
    shutil.rmtree(root / planted)
    (root / planted).symlink_to(outside)
    before = snapshot(tmp_path)
    with pytest.raises(RootfsError, match="in the way"):
        build(root, ["bash"])
    assert snapshot(tmp_path) == before


def test_link_in_place_of_a_file_is_replaced(tmp_path: Path) -> None:
    root = Path(build(tmp_path / "root", ["cat"]).path)
    cat = root / os.path.realpath(shutil.which("cat") or "").lstrip("/")
    (tmp_path / "victim").write_text("mine")
    cat.unlink()
    cat.symlink_to(tmp_path / "victim")
    build(root, [])
    assert not cat.is_symlink()
    assert (tmp_path / "victim").read_text() == "mine"


def test_directory_in_place_of_a_file(tmp_path: Path, snapshot: Snapshot) -> None:
    root = Path(build(tmp_path / "root", ["cat"]).path)
    (root / "etc/hosts").unlink()
    (root / "etc/hosts").mkdir()
    before = snapshot(tmp_path)
    with pytest.raises(RootfsError, match="/etc/hosts is in the way: a text belongs there"):
        build(root, ["bash"])
    assert snapshot(tmp_path) == before


def test_command_that_vanished_is_named(tmp_path: Path) -> None:
    tool = script(tmp_path / "tool", "#!/bin/sh\n")
    build(tmp_path / "root", [tool])
    tool.unlink()
    with pytest.raises(RootfsError, match=f"command {tool}: does not exist"):
        build(tmp_path / "root", ["cat"])


# ---- failures during a build ----


class FailsAt:
    """A function whose nth call fails. All other calls work."""

    def __init__(self, function: Callable[..., Any], number: int, error: BaseException) -> None:
        self.function = function
        self.left = number
        self.error = error

    def __call__(self, *args: Any, **named: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            raise self.error
        return self.function(*args, **named)


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
STEPS = [("shutil.copyfileobj", 2), ("os.symlink", 1), ("os.rename", 1), ("os.rename", 9)]


@pytest.mark.parametrize(("name", "number"), [*STEPS, ("os.mkdir", 6)])
def test_new_root_leaves_nothing(
    name: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, function = name.split(".")
    failing = FailsAt(getattr(sys.modules[module], function), number, FULL)
    monkeypatch.setattr(name, failing)
    with pytest.raises(RootfsError, match=r"No space left on device \(ENOSPC\)") as caught:
        build(tmp_path / "root", ["cat", "bash"])
    assert isinstance(caught.value.__cause__, OSError)
    assert failing.left <= 0
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("name", "number"), [*STEPS, ("os.mkdir", 3)])
@pytest.mark.parametrize("error", [FULL, KeyboardInterrupt()])
def test_old_root_stays_as_it_was(
    error: BaseException,
    name: str,
    number: int,
    tmp_path: Path,
    snapshot: Snapshot,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tools = [script(tmp_path / f"tool{i}", "#!/bin/sh\n") for i in range(9)]
    (tmp_path / "link").symlink_to("tool0")
    root = Path(build(tmp_path / "root", tools).path)
    for tool in tools:
        script(tool, "#!/bin/sh\nchanged\n")
    new = tmp_path / "new/deep"
    new.mkdir(parents=True)
    script(new / "tool", "#!/bin/sh\n")
    before = snapshot(root)
    module, function = name.split(".")
    failing = FailsAt(getattr(sys.modules[module], function), number, error)
    monkeypatch.setattr(name, failing)
    with pytest.raises((RootfsError, KeyboardInterrupt)):
        build(root, [new / "tool", tmp_path / "link"])
    assert failing.left <= 0
    assert snapshot(root) == before
    monkeypatch.undo()
    assert build(root, [new / "tool", tmp_path / "link"]).copied == 11


def test_progress_may_end_a_build(tmp_path: Path) -> None:
    def stop(done: int, total: int, name: str) -> None:
        if done == 5:
            raise InterruptedError("enough")

    with pytest.raises(RootfsError):
        build(tmp_path / "root", ["cat"], progress=stop)
    assert os.listdir(tmp_path) == []


@pytest.mark.as_root
def test_full_file_system(tmp_path: Path) -> None:
    """The file system is a tmpfs of one megabyte, in a new mount namespace."""
    mount = 'mount -t tmpfs -o size=1m none "$1" && shift && exec "$@"'
    program = (
        "import os, sys; from fastns.rootfs import build, RootfsError\n"
        "try: build(sys.argv[1] + '/root', ['bash'])\n"
        "except RootfsError as error: print(error); print(os.listdir(sys.argv[1]))\n"
    )
    python = [sys.executable, "-c", program, tmp_path]
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", mount, "sh", tmp_path, *python],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "No space left on device (ENOSPC)" in done.stdout
    assert done.stdout.endswith("[]\n")


def test_read_only_destination(open_dir: Path, as_nobody: Callable[..., Any]) -> None:
    (open_dir / "closed").mkdir(mode=0o755)
    with pytest.raises(RootfsError, match="EACCES"):
        as_nobody(lambda: build(open_dir / "closed" / "root", ["cat"]))
    assert list((open_dir / "closed").iterdir()) == []


def test_a_working_directory_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(RootfsError, match="the working directory does not exist any more"):
        build("root", ["true"])
