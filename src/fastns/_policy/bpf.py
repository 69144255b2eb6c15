"""What a seccomp filter decides, as a diagram, and the shortest program for it that we know.

The kernel compiles a filter at each start, which takes some tenths of a microsecond for each
instruction. So numbers of calls that are treated alike form ranges. Comparisons of single bits of
an argument with the same outcome become one. Comparisons of its upper bits, by which a profile says
"none of these", become ranges of values. All other comparisons are kept.
"""

from __future__ import annotations

import struct

LD, AND, RET, JA = 0x20, 0x54, 0x06, 0x05  # classic BPF: linux/bpf_common.h
JEQ, JGT, JGE, JSET = 0x15, 0x25, 0x35, 0x45
JUMPS = (JEQ, JGT, JGE, JSET)
NUMBER, ARCHITECTURE = 0, 4  # offsets in struct seccomp_data
WORD = 0xFFFFFFFF
FEW = 3  # so many exceptions of a range are compared one by one
FAR = 255  # the farthest jump of a test

# A node is an action, or a test: offset, mask, jump, value, the number of the next node if the test
# holds, and if not.
Node = tuple[int, ...]
# A range of system calls: its first number, its node, and the numbers in it with another node.
Segment = tuple[int, int, list[tuple[int, int]]]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


def written(diagram: Diagram) -> bytes:
    """The program of a diagram (struct sock_filter, 8 bytes each)."""
    return _Writer(_Ranges(diagram)).bytes()


class Diagram:
    """What a filter decides: for each architecture and number of a call, the first of the nodes
    that test its arguments. Nodes that decide the same are one."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []  # a test comes after the nodes it leads to
        self.architectures: dict[int, list[Segment]] = {}
        self.others: list[Segment] = []  # for any other architecture
        self._known: dict[Node, int] = {}

    def node(self, node: Node) -> int:
        """The number of a node, which is added if it is new."""
        if node not in self._known:
            self._known[node] = len(self.nodes)
            self.nodes.append(node)
        return self._known[node]

    def test(self, offset: int, mask: int, op: int, value: int, yes: int, no: int) -> int:
        """The number of a test, in its simplest form."""
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
    """The ranges of (first number, node), which are in order, no two neighbours alike. A few single
    numbers within a range become its exceptions."""
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


# ---- ranges of an argument's values ----


class _Ranges(Diagram):
    """A diagram in which successive tests of one argument are comparisons with the values at which
    the outcome changes, if these are fewer."""

    def __init__(self, read: Diagram) -> None:
        super().__init__()
        self._read = read.nodes
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
        """The new number of a node."""
        if number not in self._made:
            node = self._read[number]
            ranges = self._ranges(number) if _bounds(node) else []
            if ranges:
                self._made[number] = self._compare(node[0], ranges)
            elif len(node) == 1:
                self._made[number] = self.node(node)
            else:
                ways = self._node(node[4]), self._node(node[5])
                self._made[number] = self.node((*node[:4], *ways))
        return self._made[number]

    def _ranges(self, number: int) -> list[tuple[int, int]]:
        """(first value, old node) of each range, in order; none if that would not be shorter."""
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
        """Tests single values one by one, then finds the range of the others by binary search."""
        ends = [start for start, _ in ranges[1:]] + [WORD + 1]
        rest: list[tuple[int, int]] = []
        single: list[tuple[int, int]] = []
        for (start, leaf), end in zip(ranges, ends, strict=True):
            if end - start == 1 and rest:  # the range before it continues
                single.append((start, leaf))
            elif not rest or rest[-1][1] != leaf:
                rest.append((start, leaf))
        node = self._halves(offset, rest)
        for value, leaf in single:
            target = self._node(leaf)
            if target != node:
                node = self.node((offset, WORD, JEQ, value, target, node))
        return node

    def _halves(self, offset: int, ranges: list[tuple[int, int]]) -> int:
        if len(ranges) == 1:
            return self._node(ranges[0][1])
        half = len(ranges) // 2
        above, below = (self._halves(offset, part) for part in (ranges[half:], ranges[:half]))
        return self.node((offset, WORD, JGE, ranges[half][0], above, below))


def _bounds(node: Node) -> tuple[int, int] | None:
    """The first and the last value for which a test holds; None: these values are no range."""
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


class _Writer:
    """Instructions whose targets are labels: a node's number, or a negative number."""

    def __init__(self, read: Diagram) -> None:
        self._nodes = read.nodes
        self._lines: list[tuple[int, int, tuple[int, ...]]] = []  # code, k, targets
        self._places: dict[int, int] = {}  # label -> number of a line
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
        """A binary search for the node of the number that is loaded."""
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
        """The node, if there is but one; else a new label."""
        return segments[0][1] if len(segments) == 1 and not segments[0][2] else self._label()

    def _write_nodes(self) -> None:
        """Tests before the nodes they lead to, actions last. A word that is loaded already, however
        the node is reached, is not loaded again."""
        loaded: dict[int, set[tuple[int, int]]] = {}  # label -> the (offset, mask) it may find
        for _, _, targets in self._lines:
            for target in targets:
                loaded.setdefault(target, set()).add((NUMBER, WORD))
        actions = []
        for number in range(len(self._nodes) - 1, -1, -1):
            node = self._nodes[number]
            if number not in loaded:
                continue
            if len(node) == 1:
                actions.append(number)
                continue
            offset, mask, op, value = node[:4]
            targets = node[4:]
            self._place(number)
            if loaded[number] != {(offset, mask)}:
                if loaded[number] != {(offset, WORD)}:
                    self._line(LD, offset)
                if mask != WORD:
                    self._line(AND, mask)
            self._line(op, value, *targets)
            for target in targets:
                loaded.setdefault(target, set()).add((offset, mask))
        for number in actions:
            self._place(number)
            self._line(RET, self._nodes[number][0])

    def bytes(self) -> bytes:
        """The program. For a target farther than FAR, a test jumps to a plain jump right after it.
        That moves all that follows, so this repeats until every jump reaches its target."""
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
