"""The names of Linux capabilities, as in capabilities(7) and the OCI runtime specification."""

from __future__ import annotations

from fastns._args import shown
from fastns.errors import SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

CAPABILITIES = {
    name: number
    for number, name in enumerate(
        (
            "CAP_CHOWN",
            "CAP_DAC_OVERRIDE",
            "CAP_DAC_READ_SEARCH",
            "CAP_FOWNER",
            "CAP_FSETID",
            "CAP_KILL",
            "CAP_SETGID",
            "CAP_SETUID",
            "CAP_SETPCAP",
            "CAP_LINUX_IMMUTABLE",
            "CAP_NET_BIND_SERVICE",
            "CAP_NET_BROADCAST",
            "CAP_NET_ADMIN",
            "CAP_NET_RAW",
            "CAP_IPC_LOCK",
            "CAP_IPC_OWNER",
            "CAP_SYS_MODULE",
            "CAP_SYS_RAWIO",
            "CAP_SYS_CHROOT",
            "CAP_SYS_PTRACE",
            "CAP_SYS_PACCT",
            "CAP_SYS_ADMIN",
            "CAP_SYS_BOOT",
            "CAP_SYS_NICE",
            "CAP_SYS_RESOURCE",
            "CAP_SYS_TIME",
            "CAP_SYS_TTY_CONFIG",
            "CAP_MKNOD",
            "CAP_LEASE",
            "CAP_AUDIT_WRITE",
            "CAP_AUDIT_CONTROL",
            "CAP_SETFCAP",
            "CAP_MAC_OVERRIDE",
            "CAP_MAC_ADMIN",
            "CAP_SYSLOG",
            "CAP_WAKE_ALARM",
            "CAP_BLOCK_SUSPEND",
            "CAP_AUDIT_READ",
            "CAP_PERFMON",
            "CAP_BPF",
            "CAP_CHECKPOINT_RESTORE",
        )
    )
}
ALL = "ALL"


def names(given: Iterable[object]) -> tuple[str, ...]:
    """The full names, each once, in the kernel's order. "ALL" is all; CAP_ may be left out.

    Raises: SpecError, field "capabilities"."""
    found = set()
    for name in given:
        full = "CAP_" + name.upper().removeprefix("CAP_") if isinstance(name, str) else ""
        if full == f"CAP_{ALL}":
            return tuple(CAPABILITIES)
        if full not in CAPABILITIES:
            raise SpecError("capabilities", f"{shown(name)}: a name such as CAP_NET_RAW expected")
        found.add(full)
    return tuple(name for name in CAPABILITIES if name in found)


def mask(full_names: Iterable[str]) -> int:
    """A bit for each."""
    return sum(1 << CAPABILITIES[name] for name in full_names)
