"""Makes a seccomp filter shorter. The kernel compiles one at each start, which takes a good part of
a microsecond for an instruction, and libseccomp compares with every single number of a call.

What a filter does with a call is found out by running it up to where it looks at an argument.
Numbers next to each other that are treated alike become a range. Comparisons of single bits of an
argument with the same outcome become one, and those of its upper bits, by which a profile says
"none of these", become ranges of values; all others are kept. A program with instructions that
libseccomp does not use is left as it is.
"""

from __future__ import annotations

import struct

LD, AND, RET, JA = 0x20, 0x54, 0x06, 0x05  # classic BPF: linux/bpf_common.h
JEQ, JGT, JGE, JSET = 0x15, 0x25, 0x35, 0x45
JUMPS = (JEQ, JGT, JGE, JSET)
NUMBER, ARCHITECTURE = 0, 4  # offsets in struct seccomp_data
WORD = 0xFFFFFFFF
FEW = 3  # numbers compared with one after the other
FAR = 255

# An Instruction is code, jt, jf, k. A Node is an action, or a test: offset, mask, jump, value, the
# number of the node if it holds and of the one if not. A Segment: its first number, its node, and
# the numbers within that have another one.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    Instruction = tuple[int, int, int, int]
    Node = tuple[int, ...]
    Segment = tuple[int, int, list[tuple[int, int]]]


class _Unusual(Exception):
    """Not a program that can be made shorter."""


def shorter(program: bytes) -> bytes:
    """A program that answers every call as this one does (struct sock_filter, 8 bytes each)."""
    code: list[Instruction] = list(struct.iter_unpack("=HBBI", program))
    try:
        made = written(_Reader(code))
    except (_Unusual, RecursionError):
        return program
    return made if len(made) < len(program) else program


def written(diagram: Diagram) -> bytes:
    """The program of a diagram (struct sock_filter, 8 bytes each)."""
    return _Writer(_Ranges(diagram)).bytes()


class Diagram:
    """What a filter does: tests of arguments, as nodes that are the same where they do the same,
    and to which of these a call comes first, by its architecture and its number."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []  # the ones a test leads to before it
        self.architectures: dict[int, list[Segment]] = {}
        self.others: list[Segment] = []  # of any other architecture
        self._known: dict[Node, int] = {}

    def node(self, node: Node) -> int:
        """The number of a node: an action, or a test."""
        if node not in self._known:
            self._known[node] = len(self.nodes)
            self.nodes.append(node)
        return self._known[node]

    def test(self, offset: int, mask: int, op: int, value: int, yes: int, no: int) -> int:
        """The number of a test, made as plain as it can be."""
        if op == JEQ and mask != WORD:
            if value & ~mask:
                return no
            if value == 0 or (value == mask and mask & (mask - 1) == 0):
                op, value, yes, no = JSET, mask, *((yes, no) if value else (no, yes))
        if op == JSET:
            mask, value = WORD, value & mask
            other = self.nodes[no]
            if len(other) > 1 and other[:3] == (offset, WORD, JSET) and other[4] == yes:
                value, no = value | other[3], other[5]
            if value == 0:
                return no
        return yes if yes == no else self.node((offset, mask, op, value, yes, no))


def segments(parts: list[tuple[int, int]]) -> list[Segment]:
    """Of (first number, node), in order, no two neighbours alike: a few numbers within a range go
    with that range."""
    found: list[Segment] = []
    at = 0
    while at < len(parts):
        start, node = parts[at]
        single = at + 1 < len(parts) and parts[at + 1][0] == start + 1
        if found and single and parts[at + 1][1] == found[-1][1]:
            if len(found[-1][2]) == FEW:
                found.append((start, found[-1][1], []))
            found[-1][2].append((start, node))
            at += 2
        else:
            found.append((start, node, []))
            at += 1
    return found


# ---- what it does ----


class _Reader(Diagram):
    """Of a program."""

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
        """Architectures that it knows, and numbers from which on calls may be treated otherwise."""
        architectures: set[int] = set()
        points = {0}
        held = [0] * len(self._code)  # what may be loaded there: these bits
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
        """The node a call with that number comes to, and whether the number was looked at."""
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
        """The node for what is done from there on, with (offset, mask) loaded."""
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


# ---- ranges of an argument's values ----


class _Ranges:
    """A diagram with tests of one argument after the other as comparisons with the
    values at which the outcome changes, where these are fewer."""

    def __init__(self, read: Diagram) -> None:
        self._read = read.nodes
        self.nodes: list[Node] = []
        self._numbers: dict[Node, int] = {}
        self._made: dict[int, int] = {}
        self.architectures = {
            value: self._segments(segments) for value, segments in read.architectures.items()
        }
        self.others = self._segments(read.others)

    def _segments(self, segments: list[Segment]) -> list[Segment]:
        return [
            (start, self._node(node), [(at, self._node(its)) for at, its in within])
            for start, node, within in segments
        ]

    def _node(self, number: int) -> int:
        """The new number of a node, which comes after those it leads to."""
        if number not in self._made:
            node = self._read[number]
            ranges = self._ranges(number) if _bounds(node) else []
            if ranges:
                self._made[number] = self._compare(node[0], ranges)
            elif len(node) == 1:
                self._made[number] = self._add(node)
            else:
                ways = self._node(node[4]), self._node(node[5])
                self._made[number] = self._add((*node[:4], *ways))
        return self._made[number]

    def _add(self, node: Node) -> int:
        if node not in self._numbers:
            self._numbers[node] = len(self.nodes)
            self.nodes.append(node)
        return self._numbers[node]

    def _ranges(self, number: int) -> list[tuple[int, int]]:
        """(first value, old node) of each range, in order; none where that would not be shorter."""
        offset = self._read[number][0]
        tests: set[int] = set()

        def split(number: int, low: int, high: int) -> Iterator[tuple[int, int]]:
            node = self._read[number]
            bounds = _bounds(node)
            if bounds is None or node[0] != offset:
                yield low, number
                return
            tests.add(number)
            first, last = bounds
            for start, end, way in (
                (low, min(high, first - 1), 5),
                (max(low, first), min(high, last), 4),
                (max(low, last + 1), high, 5),
            ):
                if start <= end:
                    yield from split(node[way], start, end)

        ranges: list[tuple[int, int]] = []
        for start, leaf in split(number, 0, WORD):
            if not ranges or ranges[-1][1] != leaf:
                ranges.append((start, leaf))
        return ranges if len(ranges) <= len(tests) else []

    def _compare(self, offset: int, ranges: list[tuple[int, int]]) -> int:
        """Tests single values one by one, then finds the range of the others by halves."""
        ends = [start for start, _ in ranges[1:]] + [WORD + 1]
        rest: list[tuple[int, int]] = []
        single: list[tuple[int, int]] = []
        for (start, leaf), end in zip(ranges, ends, strict=True):
            if end - start == 1 and rest:  # the one before is as good as any for it
                single.append((start, leaf))
            elif not rest or rest[-1][1] != leaf:
                rest.append((start, leaf))
        node = self._halves(offset, rest)
        for value, leaf in single:
            target = self._node(leaf)
            if target != node:
                node = self._add((offset, WORD, JEQ, value, target, node))
        return node

    def _halves(self, offset: int, ranges: list[tuple[int, int]]) -> int:
        if len(ranges) == 1:
            return self._node(ranges[0][1])
        half = len(ranges) // 2
        above, below = (self._halves(offset, part) for part in (ranges[half:], ranges[:half]))
        return self._add((offset, WORD, JGE, ranges[half][0], above, below))


def _bounds(node: Node) -> tuple[int, int] | None:
    """The first and the last value for which a test holds; None: they are not a range."""
    if len(node) == 1:
        return None
    _, mask, op, value = node[:4]
    free = ~mask & WORD
    if op == JEQ and free & (free + 1) == 0 and value & free == 0:
        return value, value | free
    if mask != WORD:
        return None
    if op == JSET and value and -value & WORD == value & -value:
        return value & -value, WORD  # any of the upper bits
    if op == JGE:
        return value, WORD
    return (value + 1, WORD) if op == JGT and value < WORD else None


# ---- how it is written ----


class _Writer:
    """Lines with labels for targets: a node's number, or a negative one."""

    def __init__(self, read: _Ranges) -> None:
        self._nodes = read.nodes
        self._lines: list[tuple[int, int, tuple[int, ...]]] = []  # code, k, targets
        self._places: dict[int, int] = {}  # of labels: numbers of lines
        self._n_labels = 0
        blocks = [(self._label(), segments) for segments in read.architectures.values()]
        self._line(LD, ARCHITECTURE)
        for value, (label, _) in zip(read.architectures, blocks, strict=True):
            after = self._label()
            self._line(JEQ, value, label, after)
            self._place(after)
        for label, segments in ((self._label(), read.others), *blocks):
            self._place(label)
            self._line(LD, NUMBER)
            self._tree(segments)
        self._write_nodes()

    def _label(self) -> int:
        self._n_labels += 1
        return -self._n_labels

    def _place(self, label: int) -> None:
        self._places[label] = len(self._lines)

    def _line(self, code: int, value: int, *targets: int) -> None:
        self._lines.append((code, value, targets))

    def _tree(self, segments: list[Segment]) -> None:
        """To the node for the number that is loaded: half by half."""
        _, node, within = segments[0]
        if len(segments) > 1:
            half = len(segments) // 2
            parts = [(self._target(part), part) for part in (segments[half:], segments[:half])]
            self._line(JGE, segments[half][0], *(target for target, _ in parts))
            for target, part in reversed(parts):
                if target < 0:
                    self._place(target)
                    self._tree(part)
        for number, its in within if len(segments) == 1 else ():
            last = number == within[-1][0]
            after = node if last else self._label()
            self._line(JEQ, number, its, after)
            if not last:
                self._place(after)
        if len(segments) == 1 and not within:
            self._line(JA, 0, node)

    def _target(self, segments: list[Segment]) -> int:
        """The node, where there is no choice."""
        return segments[0][1] if len(segments) == 1 and not segments[0][2] else self._label()

    def _write_nodes(self) -> None:
        """Tests before what they lead to, actions last. What is loaded is not loaded again."""
        held: dict[int, set[tuple[int, int]]] = {}
        for _, _, targets in self._lines:
            for target in targets:
                held.setdefault(target, set()).add((NUMBER, WORD))
        actions = []
        for number in range(len(self._nodes) - 1, -1, -1):
            node = self._nodes[number]
            if number not in held:
                continue
            if len(node) == 1:
                actions.append(number)
                continue
            offset, mask, op, value = node[:4]
            targets = node[4:]
            self._place(number)
            if held[number] != {(offset, mask)}:
                if held[number] != {(offset, WORD)}:
                    self._line(LD, offset)
                if mask != WORD:
                    self._line(AND, mask)
            self._line(op, value, *targets)
            for target in targets:
                held.setdefault(target, set()).add((offset, mask))
        for number in actions:
            self._place(number)
            self._line(RET, self._nodes[number][0])

    def bytes(self) -> bytes:
        """A test's jump reaches FAR instructions; to what is farther a plain jump follows it."""
        far: set[tuple[int, int]] = set()  # number of the line, which target
        while True:
            starts = [0]
            for line in range(len(self._lines)):
                starts.append(starts[-1] + 1 + ((line, 0) in far) + ((line, 1) in far))
            made = bytearray()
            missed = set()
            for line, (code, value, targets) in enumerate(self._lines):
                ways = [starts[self._places[target]] - starts[line] - 1 for target in targets]
                if code == JA:
                    made += struct.pack("=HBBI", JA, 0, 0, ways[0])
                    continue
                short = [0, 0]
                long: list[int] = []
                for which, way in enumerate(ways):
                    if (line, which) in far:
                        short[which] = len(long)
                        long.append(way - 1 - len(long))
                    elif way > FAR:
                        missed.add((line, which))
                    else:
                        short[which] = way
                if not missed:
                    made += struct.pack("=HBBI", code, *short, value)
                    for way in long:
                        made += struct.pack("=HBBI", JA, 0, 0, way)
            if not missed:
                return bytes(made)
            far |= missed
