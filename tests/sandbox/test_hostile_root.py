"""Roots full of symbolic links, and roots that change while they are mounted.

Whatever the root holds, nothing is mounted or created outside it. The canary is a directory beside
the root, and the negative control the same link followed by an ordinary lookup.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hidden import without

import fastns
from fastns import Mount, SpawnError, Spec

LINKS = {
    "absolute": "{outside}",
    "relative": "../../../../../../../../../..{outside}",
    "loop": "there",
    "self root": "/proc/self/root{outside}",
    "one root": "/proc/1/root{outside}",
    "cwd": "/proc/self/cwd",
    "fd": "/proc/self/fd/{fd}",
}


@pytest.fixture
def outside(public_dir: Path) -> Iterator[Path]:
    path = public_dir / "outside"
    path.mkdir()
    (path / "file").write_text("canary")
    yield path
    assert sorted(os.listdir(path)) == ["file"]
    assert (path / "file").read_text() == "canary"
    shutil.rmtree(path)


@pytest.fixture
def root(public_dir: Path, probe_rootfs: Path) -> Iterator[Path]:
    path = public_dir / "hostile"
    shutil.copytree(probe_rootfs, path, symlinks=True)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def held(outside: Path) -> Iterator[int]:
    """A directory of the host that the caller has open, inheritable."""
    fd = os.open(outside, os.O_RDONLY | os.O_DIRECTORY)
    os.set_inheritable(fd, True)
    yield fd
    os.close(fd)


def attempts(destination: str, outside: Path) -> list[Spec]:
    """Every way of putting something at a path of the root."""
    make = ["X-mount.mkdir"]
    fields: list[dict[str, Any]] = [
        {"mounts": [Mount(destination, type="tmpfs")]},
        {"mounts": [Mount(destination + "/new", type="tmpfs", options=make)]},
        {"mounts": [Mount(destination, source="/usr", options=make)]},
        {"files": {destination + "/file": "overwritten"}},
        {"files": {destination + "/file": "overwritten"}, "overlay": True},
        {"mounts": [Mount(destination, type="tmpfs")], "overlay": True},
    ]
    return [Spec(rootfs=outside.parent / "hostile", **more) for more in fields]


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("place", ["/there", "/a/there"])
def test_links_lead_nowhere(root: Path, outside: Path, held: int, link: str, place: str) -> None:
    (root / "a").mkdir()
    path = root / place[1:]
    path.symlink_to(LINKS[link].format(outside=outside, fd=held))
    refused = 0
    for spec in attempts(place, outside):
        try:
            done = fastns.run(["/probe", "--exit", "0"], spec=spec, stderr=fastns.DEVNULL)
            assert done.returncode == 0
        except SpawnError as exc:
            assert exc.stage in ("mount", "file"), exc
            assert exc.path is not None
            assert exc.path.startswith(place)
            refused += 1
    # Absolute and relative links lead to a place inside that does not exist: X-mount.mkdir and
    # overlays may make it there.
    assert refused > 0
    assert not (root / str(outside)[1:] / "file").exists() or "file" in os.listdir(outside)


def test_the_links_would_lead_outside(root: Path, outside: Path, held: int) -> None:
    """The negative control: an ordinary lookup of the same paths arrives at the canary."""
    for name in ("absolute", "relative", "self root", "fd"):
        path = root / name.replace(" ", "-")
        path.symlink_to(LINKS[name].format(outside=outside, fd=held))
        assert (path / "file").read_text() == "canary"


def test_links_lead_nowhere_without_openat2(root: Path, outside: Path) -> None:
    for name in ("absolute", "relative", "loop", "self root"):
        path = root / name.replace(" ", "-")
        path.symlink_to(LINKS[name].format(outside=outside, fd=0).replace("there", path.name))
    code = """
import sys
from fastns import Mount, Spec, SpawnError, run
root = sys.argv[1]
for name in ("absolute", "relative", "loop", "self-root"):
    for more in ({"mounts": [Mount("/" + name + "/new", type="tmpfs", options=["X-mount.mkdir"])]},
                 {"mounts": [Mount("/" + name, type="tmpfs")]},
                 {"files": {"/" + name + "/file": "overwritten"}}):
        try:
            run(["/probe", "--exit", "0"], spec=Spec(rootfs=root, **more))
            print("ran", name)
        except SpawnError as exc:
            print(exc.stage, exc.path)
"""
    out = without("openat2", errno.ENOSYS, code, str(root))
    assert len(out.splitlines()) == 12
    assert "mount /loop" in out


@pytest.mark.parametrize("name", ["proc", "sys", "dev"])
@pytest.mark.parametrize("kind", ["link", "file"])
def test_special_directories_are_not_links(root: Path, name: str, kind: str) -> None:
    (root / name).rmdir()
    if kind == "link":
        (root / name).symlink_to("tmp")
    else:
        (root / name).write_text("")
    with pytest.raises(SpawnError) as caught:
        fastns.run(["/true"], spec=Spec(rootfs=str(root)))
    exc = caught.value
    wanted = errno.ELOOP if kind == "link" else errno.ENOTDIR
    assert (exc.stage, exc.errno, exc.path) == ("mount", wanted, f"/{name}")
    assert exc.op_index >= 0


@pytest.mark.parametrize("kind", ["fifo", "socket"])
def test_a_target_that_would_block(root: Path, kind: str) -> None:
    import socket

    target = root / "odd"
    if kind == "fifo":
        os.mkfifo(target)
    else:
        with socket.socket(socket.AF_UNIX) as server:
            here = os.getcwd()
            os.chdir(root)
            server.bind("odd")
            os.chdir(here)
    with pytest.raises(SpawnError) as caught:
        fastns.run(["/true"], spec=Spec(rootfs=str(root), mounts=[Mount("/odd", type="tmpfs")]))
    assert (caught.value.stage, caught.value.errno) == ("mount", errno.ENOTDIR)


def test_a_root_that_changes_meanwhile(root: Path, outside: Path) -> None:
    """A directory and a link to the canary change places all the time (CVE-2021-30465)."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    real, link = root / "real", root / "link"
    real.mkdir()
    (real / "new").mkdir()
    link.symlink_to(outside)
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            libc.renameat2(-100, os.fsencode(real), -100, os.fsencode(link), 2)  # RENAME_EXCHANGE

    plan = fastns.compile(
        Spec(
            rootfs=str(root),
            default_mounts=False,
            mounts=[
                Mount("/real", type="tmpfs"),
                Mount("/real/new", source="/usr", options=["X-mount.mkdir"]),
                Mount("/link/new", type="tmpfs", options=["X-mount.mkdir"]),
            ],
        )
    )
    thread = threading.Thread(target=swap)
    thread.start()
    outcomes = {"ran": 0, "refused": 0}
    try:
        for _ in range(1000):
            try:
                fastns.run(["/true"], spec=plan)
                outcomes["ran"] += 1
            except SpawnError as exc:
                assert exc.stage == "mount", exc
                outcomes["refused"] += 1
    finally:
        stop.set()
        thread.join()
    assert sum(outcomes.values()) == 1000
    assert outcomes["refused"] > 0  # the race was really on


@pytest.mark.parametrize("cwd", ["/proc/self/fd/{fd}", "/proc/self/fd/{fd}/..", "/proc/1/fd/{fd}"])
def test_a_directory_held_by_the_caller_is_out_of_reach(
    probe_rootfs: Path, held: int, cwd: str
) -> None:
    with pytest.raises(SpawnError) as caught:
        fastns.run(["/true"], spec=Spec(rootfs=probe_rootfs), cwd=cwd.format(fd=held))
    assert (caught.value.stage, caught.value.errno) == ("chdir", errno.ENOENT)


def test_a_directory_that_is_passed_is_no_working_directory(probe_rootfs: Path, held: int) -> None:
    """pass_fds gives it away, but not as the place where the command starts (CVE-2024-21626)."""
    with pytest.raises(SpawnError) as caught:
        fastns.spawn(
            ["/true"],
            spec=Spec(rootfs=probe_rootfs),
            pass_fds=[held],
            cwd=f"/proc/self/fd/{held}",
        )
    assert (caught.value.stage, caught.value.errno) == ("chdir", errno.ENOENT)
