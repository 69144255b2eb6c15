"""Op, one step of the plan, and the constants and constructors that several emitters share."""

from __future__ import annotations

from fastns._record import record

CLONE_FLAGS = {  # clone(2), unshare(2)
    "time": 0x00000080,
    "mount": 0x00020000,
    "cgroup": 0x02000000,
    "uts": 0x04000000,
    "ipc": 0x08000000,
    "user": 0x10000000,
    "pid": 0x20000000,
    "network": 0x40000000,
}
PROC_MAGIC, SYSFS_MAGIC = 0x9FA0, 0x62656572  # statfs(2)


@record(frozen=True)
class Op:
    """One step of the program, as csrc/shared/plan.h describes it; `note` is for people."""

    code: str
    stage: str
    how: int = 0
    flags: int = 0
    arg: int = 0
    source: bytes | None = None
    target: bytes | None = None
    type: bytes | None = None
    data: bytes | None = None
    note: str = ""

    def __str__(self) -> str:
        return self.note


def write_op(stage: str, name: str, text: bytes) -> Op:
    """Writes a file of the process itself, which must be on a proc file system."""
    note = f"{name}: {text.decode().strip()}"
    target = f"/proc/self/{name}".encode()
    return Op("write", stage, flags=PROC_MAGIC, target=target, data=text, note=note)


def setgid_op(gid: int) -> Op:
    return Op("setgid", "setgid", arg=gid, note=str(gid))


def setuid_op(uid: int) -> Op:
    return Op("setuid", "setuid", arg=uid, note=str(uid))


def clone_flags(kinds: list[str] | tuple[str, ...]) -> int:
    """The CLONE_NEW* bits of these kinds of namespace."""
    return sum(CLONE_FLAGS[kind] for kind in kinds)
