"""Op, one step of a plan. Also what several emitters share: kernel constants and small ops."""

from __future__ import annotations

from fastns._light import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

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
    """One step of the program, as csrc/shared/plan.h describes it. `flags` and `arg` are unsigned,
    so a value that may be negative needs an offset. `note` is shown by a dry run."""

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
    """Writes /proc/self/`name`, which must be on a proc file system."""
    target, note = f"/proc/self/{name}".encode(), f"{name}: {text.decode().strip()}"
    return Op("write", stage, flags=PROC_MAGIC, target=target, data=text, note=note)


def id_op(code: str, number: int) -> Op:
    """setuid or setgid."""
    return Op(code, code, arg=number, note=str(number))


def clone_flags(kinds: Iterable[str]) -> int:
    """The CLONE_NEW* bits of these kinds of namespace."""
    return sum(CLONE_FLAGS[kind] for kind in kinds)
