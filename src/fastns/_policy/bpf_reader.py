"""Reads a filter that libseccomp has made, and writes it shorter.

The kernel compiles a filter at each start, which takes some tenths of a microsecond for each
instruction, and libseccomp compares with every single number of a call. The reader runs the program
for each number, up to where it looks at an argument: numbers next to each other that lead to the
same place become a range. A program with instructions that libseccomp does not use is not changed.
"""

from __future__ import annotations

import struct

from fastns._policy.bpf import (
    AND,
    ARCHITECTURE,
    JA,
    JEQ,
    JGE,
    JGT,
    JSET,
    JUMPS,
    LD,
    NUMBER,
    RET,
    WORD,
    Diagram,
    Segment,
    segments,
    written,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    Instruction = tuple[int, int, int, int]  # code, jt, jf, k


class _Unusual(Exception):
    """The program has instructions that libseccomp does not use."""


def shorter(program: bytes) -> bytes:
    """A program that decides every call as this one does, or this one (struct sock_filter, 8 bytes
    each)."""
    code: list[Instruction] = list(struct.iter_unpack("=HBBI", program))
    try:
        made = written(Reader(code))
    except (_Unusual, RecursionError):
        return program
    return made if len(made) < len(program) else program


class Reader(Diagram):
    """The diagram of a program."""

    def __init__(self, code: list[Instruction]) -> None:
        super().__init__()
        self._code = code
        self._followed: dict[tuple[int, tuple[int, int]], int] = {}
        architectures, points = self._compared()
        self.architectures = {
            value: self._segments(value, points) for value in sorted(architectures)
        }
        other = next(value for value in range(WORD) if value not in architectures)
        self.others = self._segments(other, points)

    def _compared(self) -> tuple[set[int], list[int]]:
        """The architectures that it knows, and the numbers at which its decisions may change."""
        architectures: set[int] = set()
        points = {0}
        held = [0] * len(self._code)  # what may be loaded at an instruction, a bit each
        number, architecture, argument = 1, 2, 4
        for at, (code, true, false, value) in enumerate(self._code):
            loaded = held[at]
            if code == LD:
                loaded = {NUMBER: number, ARCHITECTURE: architecture}.get(value, argument)
            steps: tuple[int, ...] = (0,)
            if code in JUMPS:
                steps = (true, false)
                if loaded & number:
                    points.add(value if code == JGE else value + 1)
                    if code == JEQ:
                        points.add(value)
                if loaded & architecture:
                    architectures.add(value)
            elif code == JA:
                steps = (value,)
            elif code == RET:
                continue
            elif code not in (LD, AND):
                raise _Unusual
            if (loaded & (number | architecture) and code in (AND, JSET)) or (
                loaded & architecture and code in (JGT, JGE)
            ):
                raise _Unusual
            for step in steps:
                if at + 1 + step >= len(self._code):
                    raise _Unusual
                held[at + 1 + step] |= loaded
        return architectures, sorted(point for point in points if point <= WORD)

    def _segments(self, architecture: int, points: list[int]) -> list[Segment]:
        parts: list[tuple[int, int]] = []
        for point in points:
            node, by_number = self._first(architecture, point)
            if not by_number:
                return [(0, node, [])]
            if not parts or parts[-1][1] != node:
                parts.append((point, node))
        return segments(parts)

    def _first(self, architecture: int, number: int) -> tuple[int, bool]:
        """The first node for a call with that number, and whether the number was looked at."""
        program = self._code
        at, loaded, by_number = 0, 0, False
        while True:
            code, true, false, value = program[at]
            if code == JEQ:
                at += 1 + (true if loaded == value else false)
            elif code == JGT:
                at += 1 + (true if loaded > value else false)
            elif code == JGE:
                at += 1 + (true if loaded >= value else false)
            elif code == JA:
                at += 1 + value
            elif code == LD and value in (NUMBER, ARCHITECTURE):
                loaded = number if value == NUMBER else architecture
                by_number |= value == NUMBER
                at += 1
            else:  # an action, or an argument is looked at
                return self._follow(at, (-1, WORD)), by_number

    def _follow(self, at: int, loaded: tuple[int, int]) -> int:
        """The node for the program from `at` on, with (offset, mask) loaded."""
        while self._code[at][0] not in (RET, *JUMPS):
            code, _, _, value = self._code[at]
            if code == LD:
                loaded = (value, WORD)
            elif code == AND:
                loaded = (loaded[0], loaded[1] & value)
            at += 1 + (value if code == JA else 0)
        key = (at, loaded)
        if key not in self._followed:
            code, true, false, value = self._code[at]
            if code == RET:
                node = self.node((value,))
            elif loaded[0] < 0:
                raise _Unusual
            else:
                yes, no = (self._follow(at + 1 + step, loaded) for step in (true, false))
                node = self.test(*loaded, code, value, yes, no)
            self._followed[key] = node
        return self._followed[key]
