"""A root full of links that lead outside, every way of mounting at those links, and a check that
nothing outside changes.

Used by the tests of hostile roots, and by those of the fallbacks in a separate process.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import support

import fastns
from fastns import DEVNULL, Mount, SpawnError, Spec

# {outside}: the canary directory's path; {fd}, {file}: the caller's inheritable fds of that
# directory and of its file; {name}: the link's name.
LINKS = {
    "absolute": "{outside}",
    "relative": "../../../../../../../../../../../..{outside}",
    "chain": "absolute",
    "loop": "{name}",
    "long-loop": "long-loop-back",
    "dangling": "nowhere",
    "self-root": "/proc/self/root{outside}",
    "thread-root": "/proc/thread-self/root{outside}",
    "one-root": "/proc/1/root{outside}",
    "up-from-root": "/proc/self/root/../../../..{outside}",
    "cwd": "/proc/self/cwd",
    "up-from-cwd": "/proc/self/cwd/../../../../../..{outside}",
    "fd": "/proc/self/fd/{fd}",
    "up-from-fd": "/proc/self/fd/{fd}/../outside",
    "fd-through-dev": "/dev/fd/{fd}",
    "fd-of-file": "/proc/self/fd/{file}",
    "one-fd": "/proc/1/fd/{fd}",
    "exe": "/proc/self/exe",
    "namespace": "/proc/self/ns/mnt",
}
MAKE = ["X-mount.mkdir"]


def plant(root: Path, outside: Path, fd: int, file: int) -> list[str]:
    """Create each link as /hostile/NAME in `root`; return these paths."""
    place = root / "hostile"
    place.mkdir()
    places = []
    for name, target in LINKS.items():
        text = target.format(outside=outside, fd=fd, file=file, name=name)
        (place / name).symlink_to(text)
        places.append(f"/hostile/{name}")
    (place / "long-loop-back").symlink_to("long-loop")
    return places


def attempts(place: str, source: Path) -> Iterator[dict[str, Any]]:
    """Fields of specs that mount or write at a link, or below it."""
    directory, file = str(source), str(source / "file")
    ways: list[dict[str, Any]] = []
    for target in (
        place,
        f"{place}/new",
        f"{place}/new/deeper",
    ):  # the link is the last component, or an earlier one
        for options in ([], MAKE):
            ways += [
                {"mounts": [Mount(target, type="tmpfs", options=options)]},
                {"mounts": [Mount(target, source=directory, options=options)]},
                {"mounts": [Mount(target, source=file, options=options)]},
            ]
        ways.append({"files": {target: "overwritten"}})
    ways.append({"files": {f"{place}/file": "overwritten"}})
    yield from ways
    yield from ({**way, "overlay": True} for way in ways)


def attack(root: Path, places: list[str], source: Path, **fields: Any) -> dict[str, int]:
    """Try every attempt at every place; return how many ran and how many were refused.

    Checks that an attempt that ran has added one mount inside, and that the error of a refused one
    names the place. `source` is a directory to bind; it contains a file named "file".
    """
    outcomes = {"ran": 0, "refused": 0}
    usual = _mounts(Spec(rootfs=root, **fields))
    for place in places:
        for more in attempts(place, source):
            try:
                seen = _mounts(Spec(rootfs=root, **more, **fields))
            except SpawnError as exc:
                assert exc.stage in ("mount", "file"), exc
                assert exc.path is not None, exc
                assert exc.path.startswith(place), (exc, place)
                assert exc.op_index >= 0
                outcomes["refused"] += 1
            else:
                assert seen == usual + 1, (place, more)
                outcomes["ran"] += 1
    return outcomes


def _mounts(spec: Spec) -> int:
    """The number of mounts inside a sandbox of this spec."""
    done = fastns.run(["/probe"], spec=spec, capture_output=True, stdin=DEVNULL, timeout=20)
    assert done.returncode == 0, (spec, done.stderr)
    return len(support.parse_report(done.stdout)["mounts"])


def snapshot(*paths: Path) -> dict[str, tuple[Any, ...]]:
    """Mode, owner, size, times and content of these paths and of everything below them. The times
    of a directory reveal a file that was created and removed again."""
    found: dict[str, tuple[Any, ...]] = {}
    for top in paths:
        for path in (top, *top.rglob("*")):
            st = path.lstat()
            content = ""
            if path.is_file() and not path.is_symlink():
                content = hashlib.sha256(path.read_bytes()).hexdigest()
            times = (st.st_mtime_ns, st.st_ctime_ns)
            found[str(path)] = (st.st_mode, st.st_uid, st.st_gid, st.st_size, *times, content)
    return found


SWAP = """
import ctypes, os, sys, time
rename = ctypes.CDLL(None).renameat2
one, two = map(os.fsencode, sys.argv[1:])
print(flush=True)
while os.getppid() == {parent}:
    for _ in range(100):
        rename(-100, one, -100, two, 2)
        time.sleep(1e-6)  # takes about 60 us. Renames block lookups, and a start makes a thousand
"""


class Swapping:
    """Keep exchanging two directory entries while the block runs. A separate process does this,
    because a thread of this process would not run during a start."""

    def __init__(self, one: Path, two: Path) -> None:
        self.args = [sys.executable, "-c", SWAP.format(parent=os.getpid()), one, two]

    def __enter__(self) -> None:
        self.process = subprocess.Popen(self.args, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"\n"

    def __exit__(self, *exc: object) -> None:
        assert self.process.poll() is None
        self.process.kill()
        self.process.communicate()
