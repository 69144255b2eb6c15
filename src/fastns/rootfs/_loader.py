"""Finds which libraries a program loads, and from where, by the rules of ld.so(8).

ELF files are only read, while ldd(1) may run them.
"""

from __future__ import annotations

import contextlib
import glob
import itertools
import os
import re
import struct
from collections import deque

from fastns._light import record
from fastns.rootfs._host import Unusable, open_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, BinaryIO

HEADER = 20  # bytes up to the end of e_machine (elf(5))

MAX_READ = 4 << 20  # bytes to read of one file at most; each read counts as at least READ_COST
READ_COST = 64
MAX_TEXT = 4095  # bytes of a path or name (PATH_MAX without its NUL)

Machine = tuple[int, int, int]
"""Class, byte order and e_machine: the same for a program and its libraries."""
ANY_LOADERS = ("/lib", "/usr/lib")  # directories that every loader searches
CACHED = ("/lib64", "/usr/lib64")  # built into ldconfig(8), so libraries here are in the cache


@record(frozen=True)
class Elf:
    """What an ELF file needs from the loader."""

    machine: Machine
    interpreter: str | None = None
    soname: str | None = None
    needed: tuple[str, ...] = ()
    rpath: tuple[str, ...] = ()
    runpath: tuple[str, ...] = ()


@record(frozen=True)
class Loaded:
    """An ELF file that the loader would load for a program."""

    path: str
    elf: Elf
    user: Loaded | None = None  # the file that needs it; None for the program itself


@record(frozen=True)
class Need:
    """A library that an ELF file needs, and where it was found. The file may be unusable."""

    name: str
    user: Loaded
    path: str | None = None  # on the host; None if it was not found


class Search:
    """The loaders found so far, and the directories that they search."""

    def __init__(self) -> None:
        self.uses_cache = False  # whether some library is found only through the loader's cache
        self._configured = configured_dirs("/etc/ld.so.conf")
        self._built_in: dict[str | Machine, list[str]] = {}
        """The built-in directories of each loader. For a machine: those of its first loader."""
        self._elfs: dict[str, Elf | None] = {}

    def read(self, path: str) -> Elf | None:
        """As the function read(), but reads each file once."""
        if path not in self._elfs:
            self._elfs[path] = read(path)
        return self._elfs[path]

    def elf(self, path: str) -> Elf:
        """As read(), but raises Unusable if it is not an ELF file."""
        found = self.read(path)
        if found is None:
            raise Unusable("is not an ELF file")
        return found

    def add_loader(self, interpreter: str, final: str, machine: Machine) -> None:
        """Add a loader, whose file is `final`. Its built-in directory is the one that contains it,
        with and without /usr."""
        bare = os.path.dirname(final).removeprefix("/usr")
        pair = [bare, f"/usr{bare}"] if bare.startswith("/lib") else [os.path.dirname(final)]
        self._built_in[interpreter] = pair
        self._built_in.setdefault(machine, pair)

    def needs(self, program: Loaded) -> Iterator[Need]:
        """What the loader would load for a program: breadth first, each name once.

        A library counts as loaded under the name by which it was needed and under its DT_SONAME. A
        later object that needs either name gets the same file.
        """
        interpreter = program.elf.interpreter
        own = self._built_in.get(interpreter or program.elf.machine, [])
        built_in = [*own, *ANY_LOADERS]
        loaded = {os.path.basename(interpreter)} if interpreter else set()
        queue = deque([program])
        while queue:
            user = queue.popleft()
            for name in user.elf.needed:
                if name in loaded:
                    continue
                loaded.add(name)
                path = self._find(name, user, built_in)
                yield Need(name, user, path)
                if path is not None:
                    with contextlib.suppress(Unusable):
                        elf = self.elf(path)
                        loaded.add(elf.soname or name)
                        queue.append(Loaded(path, elf, user))

    def _find(self, name: str, user: Loaded, built_in: list[str]) -> str | None:
        """The path at which the loader would find a library; None if it would not."""
        machine = user.elf.machine
        if "/" in name:
            path = _expanded(name, user, built_in)
            return path if os.path.isabs(path) and is_for(path, machine) else None
        for directory, owner in _run_paths(user):
            path = f"{_expanded(directory, owner, built_in)}/{name}"
            if os.path.isabs(path) and is_for(path, machine):
                return path
        for place in [*self._configured, *built_in, *CACHED]:
            path = f"{place}/{name}"
            if is_for(path, machine):
                if place not in built_in:
                    self.uses_cache = True
                return path
        return None


def _run_paths(user: Loaded) -> Iterator[tuple[str, Loaded]]:
    """The directories that RPATH and RUNPATH name, each with the object that names it."""
    if not user.elf.runpath:  # a RUNPATH disables every RPATH
        one: Loaded | None = user
        while one:
            if not one.elf.runpath:
                yield from ((path, one) for path in one.elf.rpath)
            one = one.user
    yield from ((path, user) for path in user.elf.runpath)


def _expanded(path: str, owner: Loaded, built_in: list[str]) -> str:
    """The path with $ORIGIN and $LIB replaced."""
    lib = built_in[0].removeprefix("/usr").lstrip("/")
    path = re.sub(r"\$(ORIGIN\b|\{ORIGIN\})", lambda _: os.path.dirname(owner.path), path)
    return re.sub(r"\$(LIB\b|\{LIB\})", lambda _: lib, path)


def configured_dirs(path: str, seen: frozenset[str] = frozenset()) -> list[str]:
    """The directories of an ld.so.conf, and of the files it includes (ldconfig(8))."""
    if path in seen or not os.path.isfile(path):
        return []
    result = []
    with open(path, encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            words = re.split(r"[\s:,]+", line.split("#", 1)[0].strip())
            if words[0] == "include":
                for pattern in words[1:]:
                    full = os.path.join(os.path.dirname(path), pattern)
                    for found in sorted(glob.glob(full)):
                        result += configured_dirs(found, seen | {path})
            elif words[0] != "hwcap":
                result += [word.split("=", 1)[0].rstrip("/") for word in words if word[:1] == "/"]
    return list(dict.fromkeys(result))


# ---- ELF files ----


def read(path: str) -> Elf | None:
    """What an ELF file needs; None if it is no ELF file. Raises Unusable if it is broken."""
    with open_file(path) as file:
        machine = _machine(file.read(HEADER))
        if machine is None:
            return None
        from elftools.elf.elffile import ELFFile  # slow to import

        stream: Any = _Bounded(file)
        try:
            return _needs(machine, ELFFile(stream))
        except OSError:
            raise
        except Exception as error:  # a broken file may make the parser raise anything
            what = "too much to read" if stream.is_spent else type(error).__name__
            raise Unusable(f"is a broken ELF file ({what})") from error


def is_for(path: str, machine: Machine) -> bool:
    """Whether the loader would use this file: it skips files for another machine."""
    try:
        with open_file(path) as file:
            return _machine(file.read(HEADER)) == machine
    except OSError:
        return False


class _Bounded:
    """A file of which at most MAX_READ is read. The parser trusts the sizes in a file: it would
    read a million entries, or a name that never ends."""

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


def _needs(machine: Machine, file: Any) -> Elf:
    """What a file needs, from its program headers and its dynamic section."""
    interpreter = None
    tags: dict[str, list[str]] = {"soname": [], "needed": [], "rpath": [], "runpath": []}
    for segment in file.iter_segments():
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
    soname = tags["soname"][0] if tags["soname"] else None
    paths = _directories(tags["rpath"]), _directories(tags["runpath"])
    return Elf(machine, interpreter, soname, tuple(tags["needed"]), *paths)


def _directories(values: list[str]) -> tuple[str, ...]:
    return tuple(path for value in values for path in value.split(":") if path)
