"""The names of Linux capabilities, as in capabilities(7) and the OCI runtime specification."""

from __future__ import annotations

from fastns._args import wrong

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

NAMES = """
    CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP
    LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER
    SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE
    SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP
    MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF
    CHECKPOINT_RESTORE
"""  # in numerical order
CAPABILITIES = {f"CAP_{name}": number for number, name in enumerate(NAMES.split())}
ALL = "ALL"


def names(given: Iterable[object]) -> tuple[str, ...]:
    """The full names, each once, in the kernel's order. "ALL" means all; CAP_ may be omitted.

    Raises: SpecError, field "capabilities"."""
    found = set()
    for name in given:
        text = name.upper() if isinstance(name, str) else ""
        if text == ALL:
            return tuple(CAPABILITIES)
        full = "CAP_" + text.removeprefix("CAP_")
        if full not in CAPABILITIES:
            raise wrong("capabilities", name, "a name such as CAP_NET_RAW")
        found.add(full)
    return tuple(name for name in CAPABILITIES if name in found)


def mask(full_names: Iterable[str]) -> int:
    """The names as a bit mask."""
    return sum(1 << CAPABILITIES[name] for name in full_names)
