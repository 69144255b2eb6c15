"""Reads ELF files: what they need from the loader, and which machine they are for.

No program is run for it, as ldd(1) may do.
"""

from __future__ import annotations

import itertools
import struct

from fastns._record import record
from fastns.rootfs._model import Unusable
from fastns.rootfs._read import open_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, BinaryIO

HEADER = 20
"""Bytes up to and with e_machine (elf(5))."""

MAX_READ = 4 << 20
"""Bytes that are read of one file; each read counts as READ_COST at least."""
READ_COST = 64
MAX_TEXT = 4095
"""Bytes of a path or name (PATH_MAX without its NUL)."""

Machine = tuple[int, int, int]
"""Class, byte order and e_machine: the same for a program and its libraries."""


@record(frozen=True)
class Elf:
    """What an ELF file needs from the loader."""

    machine: Machine
    interpreter: str | None = None
    soname: str | None = None
    needed: tuple[str, ...] = ()
    rpath: tuple[str, ...] = ()
    runpath: tuple[str, ...] = ()


def read(path: str) -> Elf | None:
    """What an ELF file needs; None if it is no ELF file. Raises Unusable if it is broken."""
    with open_file(path) as file:
        machine = _machine(file.read(HEADER))
        if machine is None:
            return None
        from elftools.elf.elffile import ELFFile  # slow to import

        stream: Any = _Bounded(file)
        try:
            interpreter, tags = _dynamic(ELFFile(stream))
        except OSError:
            raise
        except Exception as error:  # a broken file may make the parser raise anything
            what = "too much to read" if stream.is_spent else type(error).__name__
            raise Unusable(f"is a broken ELF file ({what})") from error
    return Elf(
        machine,
        interpreter,
        next(iter(tags["soname"]), None),
        tuple(tags["needed"]),
        _directories(tags["rpath"]),
        _directories(tags["runpath"]),
    )


def is_for(path: str, machine: Machine) -> bool:
    """Whether the loader would use this file: it skips those for another machine."""
    try:
        with open_file(path) as file:
            return _machine(file.read(HEADER)) == machine
    except OSError:
        return False


class _Bounded:
    """A file of which at most MAX_READ is read. The parser trusts the sizes in a file, and would
    follow a million entries, or a name without an end."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = MAX_READ
        self.is_spent = False
        self.tell = file.tell

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return self._file.seek(offset, whence)
        except OSError as error:  # EINVAL: an offset that no file has
            raise ValueError(error.strerror) from None

    def read(self, size: int = -1) -> bytes:
        cost = max(size, READ_COST)
        self.is_spent = size < 0 or cost > self._left
        if self.is_spent:
            raise ValueError
        self._left -= cost
        return self._file.read(size)


def _machine(header: bytes) -> Machine | None:
    """Class, byte order and machine; None if it is not the header of an ELF file."""
    if len(header) < HEADER or header[:4] != b"\x7fELF":
        return None
    (number,) = struct.unpack_from(">H" if header[5] == 2 else "<H", header, 18)
    return header[4], header[5], number


def _dynamic(elf: Any) -> tuple[str | None, dict[str, list[str]]]:
    """The loader of a file, and the texts of its dynamic section."""
    interpreter = None
    tags: dict[str, list[str]] = {"soname": [], "needed": [], "rpath": [], "runpath": []}
    for segment in elf.iter_segments():
        if segment["p_type"] == "PT_INTERP":
            interpreter = segment.get_interp_name()
        elif segment["p_type"] == "PT_DYNAMIC":
            for tag in segment.iter_tags():
                name = str(tag.entry.d_tag).removeprefix("DT_").lower()
                if name in tags:
                    tags[name].append(getattr(tag, name))
    for text in (interpreter or "", *itertools.chain(*tags.values())):
        if len(text) > MAX_TEXT:
            raise ValueError(text[:MAX_TEXT])
    return interpreter, tags


def _directories(values: list[str]) -> tuple[str, ...]:
    return tuple(path for value in values for path in value.split(":") if path)
