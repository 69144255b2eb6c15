"""Caller: what the compiler knows of the process that starts sandboxes."""

from __future__ import annotations

import os

from fastns import _core
from fastns._cache import cached
from fastns._record import record

CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_SETGID, CAP_SETUID = 1 << 0, 1 << 1, 1 << 6, 1 << 7
CAP_SETPCAP, CAP_SYS_PTRACE, CAP_SYS_ADMIN, CAP_MKNOD = 1 << 8, 1 << 19, 1 << 21, 1 << 27
MAPS_A_RANGE = CAP_CHOWN | CAP_SETGID | CAP_SETUID | CAP_SYS_ADMIN


@record(frozen=True)
class Caller:
    """Everything about the caller that a plan depends on."""

    uid: int
    gid: int
    uniform: bool  # real, effective and saved ids are the same
    capabilities: int  # effective ones, a bit each
    initial_user_namespace: bool
    may_setgroups: bool = True
    tree_namespaces: bool = False  # the kernel has them (Linux 7.0), and this caller may
    owns_its_proc: bool = True  # it may write the files of its own process in /proc
    spared: bool = False  # its oom_score_adj is below 0

    @property
    def privileged(self) -> bool:
        return bool(self.capabilities & CAP_SYS_ADMIN)

    @property
    def maps_a_range(self) -> bool:
        """Whether its sandboxes can have a range of ids without a process that writes the maps."""
        able = self.capabilities & MAPS_A_RANGE == MAPS_A_RANGE
        return self.initial_user_namespace and able

    @classmethod
    def current(cls) -> Caller:
        uids, gids = os.getresuid(), os.getresgid()
        initial = _read("/proc/self/uid_map").split() in ([b"0", b"0", b"4294967295"], [])
        may_setgroups = initial or _read("/proc/self/setgroups").strip() != b"deny"
        uniform = len(set(uids)) == 1 and len(set(gids)) == 1
        capabilities = _core.capabilities()
        trees = bool(capabilities & CAP_SYS_ADMIN) and initial and _has_tree_namespaces()
        owner = bool(capabilities & CAP_DAC_OVERRIDE) or _core.is_dumpable()
        spared = is_spared()
        return cls(
            uids[1], gids[1], uniform, capabilities, initial, may_setgroups, trees, owner, spared
        )


@cached(1)
def is_spared(path: str = "/proc/self/oom_score_adj") -> bool:
    """Whether oom_score_adj is below 0. Read once: each start would pay for it."""
    return _read(path).startswith(b"-")


@cached(1)
def _has_tree_namespaces() -> bool:
    return _core.has_tree_namespaces()


def _read(path: str) -> bytes:
    """A file of /proc. Without /proc it is empty, and the step that needs /proc fails later."""
    try:
        with open(path, "rb") as file:
            return file.read() or b""  # None: EAGAIN
    except OSError:
        return b""
