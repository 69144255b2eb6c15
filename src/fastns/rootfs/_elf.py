"""Reading ELF files: what they ask of the loader, and which machine they are for.

A program is never run to find out (as ldd(1) may do): the file alone is read.
"""

from __future__ import annotations

import struct

from fastns._record import record
from fastns.rootfs._host import open_file
from fastns.rootfs._model import Unusable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

HEADER = 20
"""Bytes up to and with e_machine (elf(5))."""

Machine = tuple[int, int, int]
"""What has to agree between a program and its libraries: class, byte order, e_machine."""


@record(frozen=True)
class Elf:
    """What an ELF file asks of the loader."""

    machine: Machine
    interpreter: str | None = None
    soname: str | None = None
    needed: tuple[str, ...] = ()
    rpath: tuple[str, ...] = ()
    runpath: tuple[str, ...] = ()


def read(path: str) -> Elf | None:
    """What an ELF file asks for; None when it is no ELF file. Unusable when it is broken."""
    with open_file(path) as file:
        machine = _machine(file.read(HEADER))
        if machine is None:
            return None
        from elftools.elf.elffile import ELFFile  # slow to import

        try:
            interpreter, tags = _dynamic(ELFFile(file))
        except OSError:
            raise
        except Exception as error:  # the parser raises whatever a broken file leads it to
            raise Unusable(f"is a broken ELF file ({type(error).__name__})") from error
    return Elf(
        machine,
        interpreter,
        next(iter(tags["soname"]), None),
        tuple(tags["needed"]),
        _directories(tags["rpath"]),
        _directories(tags["runpath"]),
    )


def is_for(path: str, machine: Machine) -> bool:
    """Whether the loader would take this file: one that is meant for another machine it skips."""
    try:
        with open_file(path) as file:
            return _machine(file.read(HEADER)) == machine
    except OSError:
        return False


def _machine(header: bytes) -> Machine | None:
    """Class, byte order and machine; None when it is not the header of an ELF file."""
    if len(header) < HEADER or header[:4] != b"\x7fELF":
        return None
    (number,) = struct.unpack_from(">H" if header[5] == 2 else "<H", header, 18)
    return header[4], header[5], number


def _dynamic(elf: Any) -> tuple[str | None, dict[str, list[str]]]:
    """The loader that a file asks for, and the texts of its dynamic section."""
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
    return interpreter, tags


def _directories(values: list[str]) -> tuple[str, ...]:
    return tuple(path for value in values for path in value.split(":") if path)
