"""Fixtures for the tests of root file systems: a compiler, a snapshot of a tree, another user."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import support

NOBODY = 65534


@pytest.fixture
def cc() -> Callable[..., Path]:
    """`cc(output, "int main..", *flags)` compiles a program and returns `output`."""
    compiler = shutil.which("gcc")
    if not compiler:
        support.skip_missing("gcc")

    def compile_(output: Path, source: str, *flags: str | Path) -> Path:
        output.parent.mkdir(parents=True, exist_ok=True)
        command = [compiler, "-x", "c", "-", "-x", "none", "-o", output, *flags]
        subprocess.run(command, input=source.encode(), check=True)
        return output

    return compile_


@pytest.fixture
def library(cc: Callable[..., Path]) -> Callable[..., Path]:
    """`library(path, "name", *flags)` makes a shared library with one function."""

    def make(path: Path, name: str, *flags: str | Path) -> Path:
        call = "" if not flags else "extern int used(void); "
        source = f"int {name}(void) {{ return 7; }} {call}"
        return cc(path, source, "-shared", "-fPIC", f"-Wl,-soname,{path.name}", *flags)

    return make


@pytest.fixture
def inside() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command in a root with chroot(8), and with /proc because $ORIGIN needs it."""
    if not support.is_root():
        support.skip_missing("root")
    script = 'mount -t proc proc "$0/proc" && exec chroot "$0" "$@"'

    def run(root: str, *args: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["unshare", "--mount", "--pid", "--fork", "sh", "-c", script, root, *args],
            capture_output=True,
            text=True,
            check=True,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        )

    return run


@pytest.fixture
def snapshot() -> Callable[[Path], dict[str, tuple[object, ...]]]:
    """Return everything below a directory, in a form that shows any change."""

    def take(top: Path) -> dict[str, tuple[object, ...]]:
        result: dict[str, tuple[object, ...]] = {}
        for path in sorted(top.rglob("*")):
            status = path.lstat()
            content: object = None
            if path.is_symlink():
                content = os.readlink(path)
            elif path.is_file():
                content = path.read_bytes()
            inode = None if path.is_dir() else (status.st_ino, status.st_mtime_ns)
            result[str(path)] = (status.st_mode, status.st_uid, status.st_gid, inode, content)
        return result

    return take


@pytest.fixture
def open_dir() -> Iterator[Path]:
    """A directory that other users may enter and write, unlike tmp_path."""
    path = Path(tempfile.mkdtemp(prefix="fastns-test-"))
    path.chmod(0o1777)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def as_nobody() -> Callable[[Callable[[], Any]], Any]:
    """Run a function in an unprivileged child; return what it returns, or raise what it raises."""
    if not support.is_root():
        support.skip_missing("root")

    def run(function: Callable[[], Any]) -> Any:
        import elftools.elf.elffile  # noqa: F401  (the child may be unable to read it)

        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.setgroups([])
                os.setresgid(NOBODY, NOBODY, NOBODY)
                os.setresuid(NOBODY, NOBODY, NOBODY)
                outcome = (True, function())
            except BaseException as error:
                outcome = (False, error)
            with open(writing, "wb") as pipe:
                pickle.dump(outcome, pipe)
            os._exit(0)
        os.close(writing)
        with open(reading, "rb") as pipe:
            fine, value = pickle.load(pipe)
        os.waitpid(child, 0)
        if not fine:
            raise value
        return value

    return run
