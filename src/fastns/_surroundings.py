"""What confines this process: a system call filter, a user namespace, missing rights, sysctls.

It is read from /proc, for the doctor and for hints: in a container the fix differs from the host's.
"""

from __future__ import annotations

import errno
import os
import re

from fastns._light import record

CAP_SYS_ADMIN, CAP_SETFCAP = 1 << 21, 1 << 31
ALL_IDS = 2**32 - 1
REFUSED = (errno.EPERM, errno.EACCES, errno.ENOSYS)
"""The errors that a filter or AppArmor returns."""
OUT_OF_A_FILTER = (
    "start this process without the filter around it: docker run --security-opt "
    "seccomp=unconfined --security-opt apparmor=unconfined, or --privileged; in a pod "
    "seccompProfile.type: Unconfined; in a sandbox of fastns --security-opt seccomp=unconfined"
)
TO_MAP_ROOT = (
    "uid 0 of this user namespace cannot be mapped into another without CAP_SETFCAP: start this "
    "process as another user (-u 1000:1000), or with that capability (--cap-add SETFCAP)"
)
# (path below /proc/sys, value that forbids new user namespaces, fix). The first applies to every
# process, the others to those without CAP_SYS_ADMIN.
FORBIDDING = (
    ("user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=15000"),
    ("kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"),
    (
        "kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "sysctl kernel.apparmor_restrict_unprivileged_userns=0, "
        "or an AppArmor profile for this program with the rule `userns,`",
    ),
)


@record(frozen=True)
class Surroundings:
    """What confines this process.

    `uids` and `gids`: how many ids its user namespace has; ALL_IDS in the initial one.
    """

    filtered: bool = False
    no_new_privileges: bool = False
    capabilities: int = 0
    uids: int = ALL_IDS
    gids: int = ALL_IDS
    profile: str | None = None
    """The AppArmor profile; None: unconfined."""
    unread: str | None = None
    """A file of /proc/thread-self that cannot be read, and why. Then all else has its default."""

    @classmethod
    def current(cls) -> Surroundings:
        try:
            status, uids, gids = (_read(name) for name in ("status", "uid_map", "gid_map"))
        except OSError as error:
            return cls(unread=f"{error.filename}: {error.strerror}")
        return cls(
            filtered=_field(status, "Seccomp") != "0",
            no_new_privileges=_field(status, "NoNewPrivs") == "1",
            capabilities=int(_field(status, "CapEff"), 16),
            uids=_count(uids),
            gids=_count(gids),
            profile=_profile(),
        )

    @property
    def privileged(self) -> bool:
        return bool(self.capabilities & CAP_SYS_ADMIN)

    @property
    def in_user_namespace(self) -> bool:
        return self.uids != ALL_IDS

    @property
    def cannot_map_root(self) -> bool:
        """Whether this is uid 0 of a user namespace without CAP_SETFCAP, which it needs to map
        itself into another one (Linux 5.12)."""
        nested = self.in_user_namespace and os.geteuid() == 0
        return nested and not self.capabilities & CAP_SETFCAP

    @property
    def confined(self) -> bool:
        return self.filtered or self.profile is not None

    def words(self) -> str:
        """Describes the surroundings in one line."""
        if self.unread:
            return f"unknown ({self.unread})"
        ids = "one id" if self.uids == 1 else f"{self.uids} ids"
        parts = (
            (self.in_user_namespace, f"a user namespace with {ids}"),
            (self.filtered, "a filter of system calls"),
            (self.profile, f"the AppArmor profile {self.profile}"),
            (self.no_new_privileges, "no_new_privileges"),
        )
        found = ", ".join(text for there, text in parts if there)
        if not found:
            return "the host's ids, no filter of system calls"
        return f"a container or a sandbox: {found}" if self.confined else found


def forbidding_sysctls(privileged: bool) -> tuple[str, str] | None:
    """The sysctls that forbid user namespaces to this process, and the fix; None: none does."""
    rules = FORBIDDING[: 1 if privileged else None]
    found = [(path, value, fix) for path, value, fix in rules if sysctl(path) == value]
    if not found:
        return None
    settings = ", ".join(f"{path.replace('/', '.')} = {value}" for path, value, _ in found)
    return settings, "; ".join(fix for _, _, fix in found)


def sysctl(path: str) -> str | None:
    """A value below /proc/sys; None: this kernel has no such setting."""
    try:
        with open(f"/proc/sys/{path}", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return None


def _read(name: str) -> str:
    """Reads a file of this thread, because each thread has its own capabilities and filters."""
    with open(f"/proc/thread-self/{name}", encoding="ascii", errors="replace") as file:
        return file.read()


def _field(status: str, name: str) -> str:
    match = re.search(rf"^{name}:\s*(\S+)", status, re.M)
    return match[1] if match else "0"


def _count(table: str) -> int:
    """How many ids a map has: the sum of the third numbers of its lines (user_namespaces(7))."""
    return sum(int(line.split()[2]) for line in table.splitlines())


def _profile() -> str | None:
    try:
        name, _, mode = _read("attr/current").strip("\0\n ").partition(" ")
    except OSError:
        return None
    return name if mode == "(enforce)" else None
