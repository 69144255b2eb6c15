"""Helpers for all tests: compiling the probe and reading its report, skips, the host's state."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import pwd
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest

TESTS = Path(__file__).resolve().parent
BUILD = Path(os.environ.get("FASTNS_BUILD", TESTS.parent / "build"))
"""The directory of setup.sh's root file systems and of compiled test programs."""

ALLOWED_SKIPS = TESTS / "allowed_skips.txt"
HOST_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin:/sbin:/bin"

LONG = os.environ.get("FASTNS_LONG") == "1"
"""Whether tests that repeat a step, or provoke a race, do so as often as possible."""

NAMESPACES = {
    "pid": "pid",
    "mount": "mnt",
    "uts": "uts",
    "ipc": "ipc",
    "network": "net",
    "cgroup": "cgroup",
    "user": "user",
    "time": "time",
}
"""A namespace's name in a Spec -> its file below /proc/PID/ns."""

_SETTLE = 1.0  # seconds: the kernel ends the processes of a killed sandbox with a delay
_PR_GET_DUMPABLE = 3


def is_root() -> bool:
    """Whether the tests run as uid 0."""
    return os.geteuid() == 0


def has_cgroups() -> bool:
    """Whether limits can be enforced: for root, or for a user with a delegated cgroup.

    An environment variable tells whether a cgroup is delegated. If this function detected it as
    fastns does, a fault in the detection would skip tests instead of failing them.
    """
    return is_root() or os.environ.get("FASTNS_DELEGATED") == "1"


def skip_missing(what: str) -> NoReturn:
    """Skip the test, naming what this machine lacks. In CI, a reason that is not in
    allowed_skips.txt fails the run."""
    pytest.skip(f"missing: {what}")


def strict_skips() -> bool:
    """Whether a skip whose reason is not in allowed_skips.txt fails the run."""
    return os.environ.get("CI") == "true" or os.environ.get("FASTNS_NO_SKIP") == "1"


def allowed_skips() -> set[str]:
    """The reasons in allowed_skips.txt for this kind of user. A line is `root|user|any: reason`."""
    who = "root" if is_root() else "user"
    allowed = set()
    for line in ALLOWED_SKIPS.read_text().splitlines():
        if line and not line.startswith("#"):
            scope, _, reason = line.partition(": ")
            if scope not in ("root", "user", "any"):
                raise ValueError(f"{ALLOWED_SKIPS}: unknown scope in {line!r}")
            if scope in (who, "any"):
                allowed.add(reason)
    return allowed


def compile_static(source: Path, dest: Path, *more: str) -> Path:
    """Compile one C file into a static program, unless `dest` is newer."""
    if not dest.exists() or dest.stat().st_mtime < source.stat().st_mtime:
        dest.parent.mkdir(parents=True, exist_ok=True)
        fresh = dest.with_name(f"{dest.name}.{os.getpid()}")
        flags = ["-static", "-O2", "-Wall", "-Wextra", "-Werror", *more]
        subprocess.run(["gcc", *flags, "-o", str(fresh), str(source)], check=True)
        fresh.replace(dest)
    return dest


def parse_report(output: bytes | str) -> dict[str, Any]:
    """The probe's JSON object. Bytes that are not UTF-8 become surrogates, as in os.fsdecode."""
    text = output if isinstance(output, str) else output.decode("utf-8", "surrogateescape")
    report = json.loads(text)
    assert isinstance(report, dict)
    return report


def mount_at(report: dict[str, Any], point: str) -> dict[str, Any]:
    """The topmost mount of a probe report at this mount point."""
    found = [mount for mount in report["mounts"] if mount["point"] == point]
    assert found, f"nothing is mounted at {point}: {[m['point'] for m in report['mounts']]}"
    top: dict[str, Any] = found[-1]
    return top


def reachable_by_all(path: Path) -> bool:
    """Whether any user may enter `path` and every directory above it."""
    return all(step.stat().st_mode & 0o001 for step in (path, *path.parents))


def copy_tree(source: Path, dest: Path) -> Path:
    """Copy with owners, modes and device nodes."""
    subprocess.run(["cp", "-a", str(source), str(dest)], check=True)
    return dest


def read_through(root: Path, *names: str) -> None:
    """Read files of a root into the page cache. Otherwise the kernel charges their pages to the
    first sandbox with a memory limit, which then keeps rereading its own program from disk."""
    for name in names:
        (root / name).read_bytes()


def run_with_status(words: Sequence[str]) -> tuple[subprocess.CompletedProcess[bytes], Any]:
    """Run a command, with each word "{}" replaced by the number of an fd for its status. Return
    the completed process and the status."""
    near, far = os.pipe()
    with open(near, "rb") as status:
        try:
            command = [str(far) if word == "{}" else word for word in words]
            done = subprocess.run(command, capture_output=True, pass_fds=[far])
        finally:
            os.close(far)
        return done, json.loads(status.read())


# ---- the state of the host, which a test must not change ----

HostState = dict[str, list[str]]


def host_state() -> HostState:
    """What a sandbox could leave behind in this process or on the host, by kind."""
    status = dict(line.split(":", 1) for line in _lines("/proc/self/status"))
    dumpable = ctypes.CDLL(None).prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0)
    return {
        "fds": _fds(),
        "children": _children(),
        "mounts": sorted(_lines("/proc/self/mountinfo")),
        "queues": _queues(),
        "names": [*os.uname()[1:2], _lines("/proc/sys/kernel/domainname")[0]],
        "namespaces": [os.readlink(f"/proc/self/ns/{name}") for name in _namespaces()],
        "process": [
            f"dumpable {dumpable}",
            f"cwd {os.getcwd()}",
            *(f"{field} {status[field].strip()}" for field in _STATUS_FIELDS),
        ],
    }


def host_change(before: HostState) -> list[str]:
    """The differences from `before`, one line each. Waits up to _SETTLE for them to disappear."""
    gc.collect()
    deadline = time.monotonic() + _SETTLE
    while True:
        after = host_state()
        if after == before or time.monotonic() > deadline:
            return [
                f"{sign} {kind}: {item}"
                for kind in before
                for sign, items, others in (
                    ("-", before[kind], after[kind]),
                    ("+", after[kind], before[kind]),
                )
                for item in items
                if item not in others
            ]
        time.sleep(0.01)


_STATUS_FIELDS = ("Uid", "Gid", "Groups", "Umask", "SigBlk", "SigIgn", "SigCgt", "CapEff")


def _namespaces() -> Sequence[str]:
    return ("cgroup", "ipc", "mnt", "net", "pid", "pid_for_children", "time", "user", "uts")


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def _queues() -> list[str]:
    """Key and id of each message queue, except those of other users of the machine."""
    queues = [line.split() for line in _lines("/proc/sysvipc/msg")[1:]]
    if not queues:
        return []
    others = {user.pw_uid for user in pwd.getpwall()} - {os.geteuid()}
    return [" ".join(queue[:2]) for queue in queues if int(queue[9]) not in others]


def _fds() -> list[str]:
    """All fds except the memory files that the engine keeps: the program and plans."""
    found = []
    for fd in sorted(map(int, os.listdir("/proc/self/fd"))):
        try:
            leads_to = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:  # the fd that listed the directory
            continue
        if not leads_to.startswith("/memfd:fastns-"):
            found.append(f"{fd} -> {leads_to}")
    return found


def _children() -> list[str]:
    found = []
    for task in os.listdir("/proc/self/task"):
        try:
            pids = Path(f"/proc/self/task/{task}/children").read_text().split()
        except (FileNotFoundError, ProcessLookupError):  # the thread has ended
            continue
        for pid in pids:
            try:
                name = Path(f"/proc/{pid}/comm").read_text().strip()
            except (FileNotFoundError, ProcessLookupError):
                continue
            found.append(f"{pid} {name}")
    return sorted(found)
