"""What is around this process: a filter of system calls, a user namespace, rights that are missing.

Read from /proc/self, for the doctor and for hints: what helps in a container or a sandbox is not
what helps on the host.
"""

from __future__ import annotations

import errno
import os
import re

from fastns import _core
from fastns._record import record

CAP_SETGID, CAP_SETUID, CAP_SYS_ADMIN = 1 << 6, 1 << 7, 1 << 21
CAP_SETFCAP = 1 << 31
ALL_IDS = 2**32 - 1
REFUSED = (errno.EPERM, errno.EACCES, errno.ENOSYS)
"""What a filter, or AppArmor, answers."""
OUT_OF_A_FILTER = (
    "start this process without the filter around it: docker run --security-opt "
    "seccomp=unconfined --security-opt apparmor=unconfined, or --privileged; in a pod "
    "seccompProfile.type: Unconfined; in a sandbox of fastns --security-opt seccomp=unconfined"
)

TO_MAP_ROOT = (
    "uid 0 of this user namespace cannot be mapped into another without CAP_SETFCAP: start this "
    "process as another user (-u 1000:1000), or with that capability (--cap-add SETFCAP)"
)


@record(frozen=True)
class Surroundings:
    """`uids` and `gids`: how many its user namespace has; ALL_IDS in the initial one."""

    filtered: bool = False
    no_new_privileges: bool = False
    capabilities: int = 0
    uids: int = ALL_IDS
    gids: int = ALL_IDS
    profile: str | None = None
    """Of AppArmor; None: unconfined."""
    unread: str | None = None
    """What of /proc/self could not be read."""

    @classmethod
    def current(cls) -> Surroundings:
        try:
            status, uids, gids = (_read(name) for name in ("status", "uid_map", "gid_map"))
        except OSError as error:
            unread = f"{error.filename}: {error.strerror}"
            return cls(capabilities=_core.capabilities(), unread=unread)
        return cls(
            _field(status, "Seccomp") != "0",
            _field(status, "NoNewPrivs") == "1",
            int(_field(status, "CapEff"), 16),
            _count(uids),
            _count(gids),
            _profile(),
        )

    @property
    def in_user_namespace(self) -> bool:
        return self.uids != ALL_IDS

    @property
    def cannot_map_root(self) -> bool:
        """uid 0 of a user namespace maps itself into another only with CAP_SETFCAP (Linux 5.12)."""
        nested = self.in_user_namespace and os.geteuid() == 0
        return nested and not self.capabilities & CAP_SETFCAP

    @property
    def confined(self) -> bool:
        return self.filtered or self.profile is not None

    def words(self) -> str:
        """Which situation this is."""
        if self.unread:
            return f"not known ({self.unread})"
        found = []
        if self.in_user_namespace:
            ids = "one id" if self.uids == 1 else f"{self.uids} ids"
            found.append(f"a user namespace with {ids}")
        if self.filtered:
            found.append("a filter of system calls")
        if self.profile:
            found.append(f"the AppArmor profile {self.profile}")
        if self.no_new_privileges:
            found.append("no_new_privileges")
        if not found:
            return "the host's ids, no filter of system calls"
        kind = "a container or a sandbox: " if self.confined else ""
        return kind + ", ".join(found)


def _read(name: str) -> str:
    with open(f"/proc/self/{name}", encoding="ascii", errors="replace") as file:
        return file.read()


def _field(status: str, name: str) -> str:
    match = re.search(rf"^{name}:\s*(\S+)", status, re.M)
    return match[1] if match else "0"


def _count(table: str) -> int:
    """The ids of a map (user_namespaces(7)): none is written yet, or lines of three numbers."""
    return sum(int(line.split()[2]) for line in table.splitlines())


def _profile() -> str | None:
    try:
        name, _, mode = _read("attr/current").strip("\0\n ").partition(" ")
    except OSError:
        return None
    return name if mode == "(enforce)" else None
