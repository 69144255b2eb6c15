"""Makes and removes a plan's cgroups, and removes those that killed callers have left behind.

Runs in the caller. A plan has a cgroup `fastns/<pid>-<random>` in each hierarchy that it uses, made
at its first spawn. In this cgroup, csrc/caller/cgroup.c makes one for each sandbox. The caller
holds a lock on the directory while it lives. Any caller removes directories that are not locked.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import os
import re
import signal
import time
import weakref

from fastns import _core
from fastns._stdio import above_stdio
from fastns.errors import SpawnError, SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastns._policy.cgroup_plan import CgroupPlan, Place

GROUP = "fastns"  # the parent of all our cgroups
PROCS = "cgroup.procs"
# The errors for which lines() returns nothing. ENODEV: the cgroup was just removed. EOPNOTSUPP: a
# threaded cgroup does not list its processes.
NOT_THERE = errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ENODEV, errno.EOPNOTSUPP
PATIENCE_MS = 200  # the cgroup of an ended sandbox stays busy for a while
POLL = 0.001  # seconds between two attempts to remove a cgroup
CHECK = "check"  # a cgroup in which each setting is tried once
OWN = re.compile(r"[0-9]+-[0-9a-f]{8}")  # <pid>-<random>
ATTEMPTS = 100  # an attempt fails if another process sweeps between two of our system calls
# The errors with which the kernel refuses a value, or a limit that it does not have. Any other
# errno (ENOMEM, EBUSY, EAGAIN, ...) says nothing about the value.
REFUSED = (
    *(errno.EINVAL, errno.ERANGE, errno.ENODEV, errno.ENXIO, errno.EOPNOTSUPP, errno.ENOENT),
    errno.EACCES,  # version 1: a CPU that the parent cgroup does not have
)
ALLOWED = {"io": "whole disks of this machine"}

_live: weakref.WeakSet[Cgroups] = weakref.WeakSet()
_left: list[str] = []  # cgroups of closed plans in which a sandbox was still running


class Cgroups:
    """The cgroups of one plan in this process. They are removed at exit at the latest."""

    def __init__(self, plan: CgroupPlan) -> None:
        self.owner = os.getpid()
        self.directories: list[str] = []
        self.pool: _core.CgroupPool | None = None
        fds: list[int] = []
        name = f"{self.owner}-{os.urandom(4).hex()}"
        end = time.monotonic() + PATIENCE_MS / 1000
        try:
            for place in plan.places:
                group = f"{place.parent}/{GROUP}"
                with contextlib.suppress(FileExistsError), _failing(group):
                    os.mkdir(group, 0o755)
                _enable(place, place.parent)
                _enable(place, group)
                sweep(group, end)
                directory = f"{group}/{name}"
                with _failing(directory):
                    fds.append(_make_locked(directory))
                self.directories.append(directory)
                _enable(place, directory)
                fds[-1] = above_stdio(fds[-1])
            for number, *setting in plan.weights:
                _set(self.directories[number], *setting)
            self._check(plan)
        except BaseException:
            for fd in fds:
                os.close(fd)
            self.close()  # __del__ may be late: a traceback keeps this object alive
            raise
        unified = [place.hierarchy.unified for place in plan.places]
        hierarchies = tuple(zip(fds, unified, strict=True))
        settings = tuple([setting[:3] for setting in plan.settings])
        counted = plan.counters, plan.memory, plan.cpu_time
        self.pool = _core.CgroupPool(hierarchies, settings, *counted)
        _live.add(self)

    def _check(self, plan: CgroupPlan) -> None:
        """Tries each setting once, so that an error names the setting that the kernel refuses."""
        for index, directory in enumerate(self.directories):
            tried = f"{directory}/{CHECK}"
            with _failing(tried):
                os.mkdir(tried)
                try:
                    for number, *setting in plan.settings:
                        if number == index:
                            _set(tried, *setting)
                finally:
                    os.rmdir(tried)

    def close(self) -> None:
        """Removes the cgroups, unless this process is a fork of their owner."""
        if not self.directories:  # checked first: at interpreter exit, `os` may be gone
            return
        if self.owner == os.getpid():
            if self.pool is not None:
                self.pool.remove(PATIENCE_MS)
            end = time.monotonic() + PATIENCE_MS / 1000
            for directory in self.directories:
                _remove_empty(f"{directory}/{CHECK}", end)  # left by a _check() that failed
                if not _remove_empty(directory, end):
                    _left.append(directory)
        self.directories = []

    def __del__(self) -> None:
        self.close()


# ---- make ----


def _make_locked(directory: str) -> int:
    """Makes a directory. Returns an fd that holds its lock.

    Another caller's sweep may remove the directory before it is locked. Then it is made again."""
    for _ in range(ATTEMPTS):
        os.mkdir(directory, 0o700)  # others must not open it: they could lock it
        try:
            return _lock(directory)
        except FileNotFoundError:
            continue
        except BaseException:
            os.rmdir(directory)
            raise
    raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), directory)


def _lock(directory: str) -> int:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        os.stat(directory)  # FileNotFoundError: a sweep removed it before it was locked
        return fd
    except BaseException:
        os.close(fd)
        raise


def _enable(place: Place, directory: str) -> None:
    """Makes the plan's controllers available to the children of a directory."""
    if place.hierarchy.unified:
        control = f"{directory}/cgroup.subtree_control"
        on = words(control)
        text = " ".join(f"+{name}" for name in place.controllers if name not in on)
        if text:
            with _failing(control, text):
                _write(control, text)
    elif "cpuset" in place.controllers and directory != place.parent:
        for file in ("cpuset.cpus", "cpuset.mems"):
            if not words(f"{directory}/{file}"):
                with _failing(f"{directory}/{file}"):
                    above = "".join(lines(f"{os.path.dirname(directory)}/{file}"))
                    _write(f"{directory}/{file}", above)


def _set(directory: str, file: str, text: str, limit: str) -> None:
    """Writes a setting. Raises: SpecError, naming the limit, if the kernel does not accept it."""
    try:
        with _failing(f"{directory}/{file}"):
            _write(f"{directory}/{file}", text)
    except SpawnError as exc:
        if exc.errno not in REFUSED:
            raise
        allowed = ALLOWED.get(limit, "what this kernel has and the parent cgroups allow")
        reason = f"the kernel rejects {text!r} for {file} ({exc.strerror}): expected {allowed}"
        raise SpecError(limit, reason) from None


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


@contextlib.contextmanager
def _failing(path: str, text: str | None = None) -> Iterator[None]:
    """Turns an OSError, except FileExistsError, into a SpawnError, stage "cgroup". `text`: what was
    being written."""
    try:
        yield
    except FileExistsError:
        raise
    except OSError as exc:
        known = text is None or exc.errno not in REFUSED
        hint = None if known else f"the kernel rejects {text!r}"
        raise SpawnError("cgroup", exc.errno or errno.EIO, path=path, hint=hint) from None


# ---- remove ----


def sweep(group: str, end: float) -> None:
    """Removes the cgroups of callers that have died.

    Kills what runs in them, and waits until `end` (time.monotonic()) for these processes to end.
    The next sweep removes the cgroups that are still busy then."""
    try:
        left = [f"{group}/{name}" for name in os.listdir(group) if OWN.fullmatch(name)]
    except OSError:
        return
    for until in (0.0, end):
        left = [directory for directory in left if not _clear(directory, until)]


def _clear(directory: str, end: float) -> bool:
    """Kills what runs in a cgroup and removes it, unless its owner lives. False: it is still busy
    at `end`."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        while not _remove(directory):
            if time.monotonic() > end:
                return False
            time.sleep(POLL)
    except OSError:
        pass  # its owner lives, or this process may not remove it
    finally:
        os.close(fd)
    return True


def _remove(directory: str) -> bool:
    """Kills what runs in a cgroup and removes it. False: a process has not ended yet."""
    found = _tree(directory)
    for path in found:
        _kill(path)
    try:
        for path in reversed(found):
            os.rmdir(path)
    except OSError as exc:
        if exc.errno != errno.EBUSY:
            raise
        return False
    return True


def _tree(directory: str) -> list[str]:
    """A cgroup and all below it, parents first. os.walk() leaves out a directory that it cannot
    list, even the first."""
    return [directory, *(path for path, _, _ in os.walk(directory) if path != directory)]


def _kill(directory: str) -> None:
    with contextlib.suppress(OSError):
        # Version 2 since Linux 5.14: also kills what is forked meanwhile.
        return _write(f"{directory}/cgroup.kill", "1")
    with contextlib.suppress(OSError):
        for pid in lines(f"{directory}/{PROCS}"):
            if pid != "0":  # in another pid namespace; kill(0) would kill our own process group
                with contextlib.suppress(OSError):
                    os.kill(int(pid), signal.SIGKILL)


def _remove_empty(directory: str, end: float) -> bool:
    """Removes a cgroup; while it is busy, tries again until `end`. False: it is still there."""
    failed = False
    while True:
        try:
            os.rmdir(directory)
            return True
        except OSError as exc:
            gone = exc.errno == errno.ENOENT
            if gone or time.monotonic() > end or (exc.errno != errno.EBUSY and failed):
                return gone
            failed = exc.errno != errno.EBUSY
        time.sleep(POLL)


# ---- read ----


def lines(path: str) -> list[str]:
    """A file's lines; none if it does not exist, or this process may not read it.

    Raises: SpawnError, stage "cgroup"."""
    try:
        with open(path, "rb") as file:
            data: bytes | None = file.read()
        if data is None:  # EAGAIN, for which read() raises nothing
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        text = os.fsdecode(data)
        # Not splitlines(): the name of another mount may contain \r and the like.
        return text.removesuffix("\n").split("\n") if text else []
    except OSError as exc:
        if exc.errno in NOT_THERE:
            return []
        raise SpawnError("cgroup", exc.errno or errno.EIO, path=path) from None


def words(path: str) -> list[str]:
    """A file's words. Missing files and errors: as in lines()."""
    return " ".join(lines(path)).split()


# ---- at exit, and in a forked process ----


def _close_all() -> None:
    for cgroups in list(_live):
        cgroups.close()
    for directory in _left:
        with contextlib.suppress(OSError):
            for path in reversed(_tree(directory)):
                os.rmdir(path)


atexit.register(_close_all)
os.register_at_fork(after_in_child=_left.clear)
