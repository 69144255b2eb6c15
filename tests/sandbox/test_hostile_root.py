"""Hostile roots: full of symbolic links, with odd files as targets, or changing during a start.

Whatever the root contains, nothing is mounted, made or changed outside it. The canaries are a
directory that the links lead to and a tree beside the root; their content and times must not
change. The negative control is an ordinary lookup of the same paths, which reaches the canary.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import hostile
import pytest
import support
from hostile import Swapping

import fastns
from fastns import Mount, SpawnError, Spec

SPAWNS = 100_000 if support.LONG else 2_000
EVERYWHERE = [({}, True), ({}, False), ({"init": True}, True), ({"root_mode": "chroot"}, True),
              ({"namespaces": {"pid": "host"}}, False)]  # fmt: skip


class Place(NamedTuple):
    root: Path
    outside: Path  # the directory that the links lead to
    fd: int  # of `outside`, inheritable
    file: int  # of a file in it


@pytest.fixture
def place(public_dir: Path, probe_rootfs: Path) -> Iterator[Place]:
    """A hostile root with its canaries, which must not change."""
    base = public_dir / "between"
    outside, beside, root = base / "outside", base / "beside" / "deep", base / "root"
    for path in (outside, beside):
        path.mkdir(parents=True)
        (path / "file").write_text("canary")
    support.copy_tree(probe_rootfs, root)
    with ExitStack() as stack:
        fds = []
        for path in (outside, outside / "file"):
            fds.append(os.open(path, os.O_RDONLY))
            stack.callback(os.close, fds[-1])
            os.set_inheritable(fds[-1], True)
        names = sorted(os.listdir(base))
        before = hostile.snapshot(outside, base / "beside")
        yield Place(root, outside, *fds)
        assert hostile.snapshot(outside, base / "beside") == before
        assert sorted(os.listdir(base)) == names
    shutil.rmtree(base)


def counterpart(place: Place) -> Path:
    """Make the canary's path inside the root too, so that absolute links lead there."""
    inner = place.root / str(place.outside)[1:]
    inner.mkdir(parents=True)
    (inner / "file").write_text("inside")
    return inner


# ---- links ----


@pytest.mark.parametrize(("fields", "inner"), EVERYWHERE, ids=str)
def test_links_lead_nowhere(place: Place, fields: dict[str, Any], inner: bool) -> None:
    """No link leads outside. Links are followed if their target exists inside."""
    if inner:
        counterpart(place)
    places = hostile.plant(place.root, place.outside, place.fd, place.file)
    outcomes = hostile.attack(place.root, places, place.outside, **fields)
    assert outcomes["refused"] > len(places)
    assert (outcomes["ran"] > 0) == inner  # links are followed inside the root
    assert sum(outcomes.values()) == len(places) * len(list(hostile.attempts("/x", Path("/"))))


def test_an_ordinary_lookup_leads_outside(tmp_path: Path) -> None:
    """The negative control: an ordinary lookup of the root joined with the target reaches the
    canary."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (outside / "file").touch()
    fd = os.open(outside, os.O_RDONLY)
    file = os.open(outside / "file", os.O_RDONLY)
    try:
        hostile.plant(root, outside, fd, file)
        led = set()
        for name in hostile.LINKS:
            try:
                os.mkdir(f"{root}/hostile/{name}/{name}")
            except OSError:
                continue
            if (outside / name).is_dir():
                led.add(name)
    finally:
        os.close(fd)
        os.close(file)
    assert {"absolute", "relative", "chain", "self-root", "thread-root", "fd"} <= led


@pytest.mark.parametrize("init", [False, True])
def test_a_target_through_proc_itself(place: Place, init: bool) -> None:
    """The spec's target goes through magic links of the sandbox's own /proc."""
    for base in (f"/proc/self/fd/{place.fd}", f"/proc/1/fd/{place.fd}", "/proc/self/root",
                 f"/proc/self/root{place.outside}", "/proc/self/cwd", "/proc/1/cwd"):  # fmt: skip
        for name in ("", "/file", "/new"):
            target = base + name
            mount = Mount(target, type="tmpfs", options=hostile.MAKE)
            with pytest.raises(SpawnError) as caught:
                fastns.run(["/true"], spec=Spec(rootfs=place.root, mounts=[mount], init=init))
            assert (caught.value.stage, caught.value.path) == ("mount", target)
            assert caught.value.errno in (errno.ELOOP, errno.ENOENT), target


def test_a_link_on_the_way_through_a_volume(place: Place, bash_rootfs: Path) -> None:
    """A volume's content is as untrusted as the root's."""
    volume = place.root / "volume"
    volume.mkdir()
    (volume / "link").symlink_to(place.outside)
    mounts = [
        Mount("/mnt", source=str(volume)),
        Mount("/mnt/link/new", type="tmpfs", options=hostile.MAKE),
    ]
    with pytest.raises(SpawnError) as caught:
        fastns.run(["/true"], spec=Spec(rootfs=place.root, mounts=mounts))
    assert (caught.value.stage, caught.value.path) == ("mount", "/mnt/link/new")


# ---- /proc, /sys, /dev (CVE-2019-19921) ----

OWN = {"proc": "pid", "sys": "network"}  # the namespace that a new mount of it shows
SPECIAL = ("proc", "sys", "dev")


def ways(name: str) -> dict[str, dict[str, Any]]:
    """What can be mounted there: a new file system by default, a bind if the namespace is the
    host's, or a mount of the spec."""
    found: dict[str, dict[str, Any]] = {
        "default": {},
        "rbind": {"mounts": [Mount(f"/{name}", source=f"/{name}", options=["rbind"])]},
        "tmpfs": {"mounts": [Mount(f"/{name}", type="tmpfs")]},
    }
    if name in OWN:
        found["host"] = {"namespaces": {OWN[name]: "host"}}
    return found


WAYS = [(name, way) for name in SPECIAL for way in ways(name)]


@pytest.mark.parametrize(("name", "way"), WAYS)
@pytest.mark.parametrize(
    "link", ["tmp", "/tmp", "{outside}", "../outside", "{name}", "/proc/self/root"]
)
def test_a_special_directory_that_is_a_link(place: Place, name: str, way: str, link: str) -> None:
    """The link is refused, with the path. A /proc mounted elsewhere would escape the checks of
    /proc."""
    (place.root / name).rmdir()
    (place.root / name).symlink_to(link.format(outside=place.outside, name=name))
    plan = fastns.compile(Spec(rootfs=place.root, **ways(name)[way]))
    with pytest.raises(SpawnError) as caught:
        fastns.run(["/true"], spec=plan)
    exc = caught.value
    assert (exc.stage, exc.errno, exc.path) == ("mount", errno.ELOOP, f"/{name}")
    assert plan.ops[exc.op_index].target == f"/{name}".encode()


@pytest.mark.parametrize(("name", "way"), WAYS)
@pytest.mark.parametrize("kind", ["file", "fifo", "socket", "missing"])
def test_a_special_directory_that_is_no_directory(
    place: Place, name: str, way: str, kind: str
) -> None:
    """A file of another kind, or none, is refused, with the path."""
    (place.root / name).rmdir()
    make(place.root / name, kind)
    with pytest.raises(SpawnError) as caught:
        fastns.run(["/true"], spec=Spec(rootfs=place.root, **ways(name)[way]))
    exc = caught.value
    wanted = errno.ENOENT if kind == "missing" else errno.ENOTDIR
    assert (exc.stage, exc.errno, exc.path) == ("mount", wanted, f"/{name}")


@pytest.mark.parametrize("name", ["tmp", "run"])
def test_the_other_directories_may_be_links(place: Place, name: str) -> None:
    """Like Debian's /var/run. The links are followed inside the root."""
    (place.root / name).rmdir()
    (place.root / "elsewhere").mkdir()
    (place.root / name).symlink_to("/elsewhere")
    spec = Spec(rootfs=place.root)
    assert fastns.run(["/probe", "--write", "/elsewhere/x", "x"], spec=spec).returncode == 0
    assert os.listdir(place.root / "elsewhere") == []  # the file is in the tmpfs
    (place.root / name).unlink()
    (place.root / name).symlink_to(place.outside)
    with pytest.raises(SpawnError) as caught:
        fastns.run(["/true"], spec=spec)
    assert (caught.value.stage, caught.value.path) == ("mount", f"/{name}")


# ---- odd files ----


def make(path: Path, kind: str) -> None:
    if kind == "file":
        path.write_text("")
    elif kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 7))
    elif kind == "socket":
        here = os.open(path.parent, os.O_RDONLY)
        try:  # the path of a socket has at most 107 bytes
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(f"/proc/self/fd/{here}/{path.name}")
        finally:
            os.close(here)


KINDS = ["file", "fifo", "socket", *(["device"] if support.is_root() else [])]


@pytest.mark.parametrize("kind", KINDS)
def test_an_odd_file_instead_of_a_directory(place: Place, kind: str) -> None:
    """An odd file is never opened: a FIFO would block."""
    make(place.root / "odd", kind)
    for mount in (
        Mount("/odd", type="tmpfs"),
        Mount("/odd", source=str(place.outside)),
        Mount("/odd/below", type="tmpfs", options=hostile.MAKE),
    ):
        with pytest.raises(SpawnError) as caught:
            fastns.run(["/true"], spec=Spec(rootfs=place.root, mounts=[mount]), timeout=20)
        exc = caught.value
        assert (exc.stage, exc.errno, exc.path) == ("mount", errno.ENOTDIR, mount.destination)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_covers_an_odd_file(place: Place, kind: str) -> None:
    """The odd file is covered, not opened, written or replaced."""
    make(place.root / "odd", kind)
    before = (place.root / "odd").lstat()
    bind = Mount("/odd", source=str(place.outside / "file"), options=["ro"])
    for fields, text in (({"files": {"/odd": "own"}}, b"own"), ({"mounts": [bind]}, b"canary")):
        spec = Spec(rootfs=place.root, **fields)
        done = fastns.run(["/probe", "--read", "/odd"], spec=spec, capture_output=True, timeout=20)
        assert done.stdout == text
    after = (place.root / "odd").lstat()
    assert (after.st_mode, after.st_ctime_ns) == (before.st_mode, before.st_ctime_ns)


def test_very_deep_targets(place: Place) -> None:
    """Very deep targets are made and mounted inside the root."""
    deep = "/mnt" + "/d" * 60
    for target in (deep, "/mnt" + "/d" * 500, "/mnt/" + "n" * 255):
        mount = Mount(target, type="tmpfs", options=hostile.MAKE)
        assert fastns.run(["/true"], spec=Spec(rootfs=place.root, mounts=[mount])).returncode == 0
        assert (place.root / target[1:]).is_dir()


# ---- a root that changes during a start (CVE-2021-30465) ----


def swapped(root: Path, outside: Path) -> tuple[Path, Path]:
    (root / "real" / "new").mkdir(parents=True)
    (root / "link").symlink_to(outside)
    return root / "real", root / "link"


@pytest.mark.parametrize("init", [False, True])
def test_a_root_that_changes_during_a_start(place: Place, init: bool) -> None:
    """Every way of finding and making a target, while the target changes."""
    make_it = hostile.MAKE
    plans = [
        fastns.compile(Spec(rootfs=place.root, default_mounts=False, init=init, **fields))
        for fields in (
            {"mounts": [Mount("/real/new", type="tmpfs", options=make_it)]},
            {"mounts": [Mount("/link/made/deeper", type="tmpfs", options=make_it)]},
            {"mounts": [Mount("/real/new/x", source=str(place.outside), options=make_it)]},
            {"mounts": [Mount("/real/file", source=str(place.outside / "file"),
                              options=make_it)]},
            {"mounts": [Mount("/link", type="tmpfs"), Mount("/real/y", type="tmpfs")]},
            {"files": {"/link/file": "overwritten"}},
        )
    ]  # fmt: skip
    outcomes = {"ran": 0, "refused": 0}
    with Swapping(*swapped(place.root, place.outside)):
        for turn in range(SPAWNS // 2):
            try:
                done = fastns.run(["/true"], spec=plans[turn % len(plans)])
            except SpawnError as exc:
                assert exc.stage in ("mount", "file"), exc
                outcomes["refused"] += 1
            else:
                assert done.returncode == 0
                outcomes["ran"] += 1
    assert min(outcomes.values()) > 0, outcomes  # both states have occurred


def test_a_template_of_a_root_that_changes(place: Place) -> None:
    """The server mounts once. Each sandbox mounts again over its own layer."""
    outcomes = {"ran": 0, "refused": 0}
    mounts = [
        Mount("/real/new/x", source=str(place.outside), options=hostile.MAKE),
        Mount("/link/made", type="tmpfs", options=hostile.MAKE),
    ]
    turn, fewest, most = 0, SPAWNS // 50, SPAWNS // 4
    with Swapping(*swapped(place.root, place.outside)):
        while turn < fewest or (min(outcomes.values()) == 0 and turn < most):
            spec = Spec(rootfs=place.root, overlay=bool(turn % 2), mounts=mounts)
            turn += 1
            try:
                with fastns.Template(spec) as template:
                    assert template.run(["/true"]).returncode == 0
            except SpawnError as exc:
                assert exc.stage in ("mount", "file"), exc
                outcomes["refused"] += 1
            else:
                outcomes["ran"] += 1
    assert min(outcomes.values()) > 0, outcomes


@pytest.mark.parametrize("init", [False, True])
def test_a_source_that_changes_during_a_start(place: Place, init: bool) -> None:
    """fastns binds the same file that it inspected: never a file over a directory."""
    sources = place.root / "sources"
    place.root.joinpath("target").mkdir()
    sources.mkdir()
    try:
        (sources / "directory").mkdir()
        (sources / "directory" / "file").write_text("of the directory")
        (sources / "other").write_text("a file")
        mounts = [Mount("/target", source=str(sources / "directory"))]
        plan = fastns.compile(Spec(rootfs=place.root, mounts=mounts, init=init))
        outcomes = {"ran": 0, "refused": 0}
        with Swapping(sources / "directory", sources / "other"):
            for _ in range(SPAWNS // 4):
                try:
                    done = fastns.run(["/probe", "--read", "/target/file"], spec=plan,
                                      capture_output=True)  # fmt: skip
                except SpawnError as exc:
                    assert (exc.stage, exc.errno, exc.path) == ("mount", errno.ENOTDIR, "/target")
                    outcomes["refused"] += 1
                else:
                    assert done.stdout == b"of the directory"
                    outcomes["ran"] += 1
        assert min(outcomes.values()) > 0, outcomes
    finally:
        shutil.rmtree(sources)


def test_a_check_before_use_leads_outside(tmp_path: Path) -> None:
    """The negative control: a check followed by a mkdir() of the same name loses the race."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    outside.mkdir()
    real, link = swapped(root, outside)
    with Swapping(real, link):
        for turn in range(200_000):
            if not real.is_symlink():
                try:
                    os.mkdir(real / f"made{turn}")
                except FileExistsError:  # pragma: no cover - names are new each time
                    raise AssertionError from None
            if turn % 64 == 0 and os.listdir(outside):
                break
    assert os.listdir(outside)


def test_special_directories_that_change_during_a_start(place: Place) -> None:
    """While /proc changes places with a link, proc is mounted on the directory or refused."""
    (place.root / "other").symlink_to("tmp")
    spec = Spec(rootfs=place.root, network="host")
    outcomes = {"ran": 0, "refused": 0}
    with Swapping(place.root / "proc", place.root / "other"):
        for _ in range(SPAWNS // 10):
            try:
                done = fastns.run(["/probe"], spec=spec, capture_output=True)
            except SpawnError as exc:
                assert exc.stage in ("mount", "masked_paths", "readonly_paths"), exc
                assert exc.path == "/proc", exc
                outcomes["refused"] += 1
                continue
            assert done.returncode == 0
            outcomes["ran"] += 1
    assert min(outcomes.values()) > 0, outcomes
