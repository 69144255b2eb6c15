"""Makes short seccomp filters, in the caller or at build time. Rules, or an existing BPF program,
become a decision diagram, which is then written as a BPF program.

program() compiles the default profile for the machines in syscalls.py. libseccomp.py compiles a
custom profile, which may be for several architectures, and shorter() rewrites the result.

The kernel compiles a filter at each start, which takes some tenths of a microsecond for each
instruction. So call numbers that are treated alike form ranges, while libseccomp compares with each
number. Tests of single bits of an argument that have the same outcome are merged into one. Tests of
its upper bits, by which a profile says "none of these", become ranges of values. All other
comparisons are kept.
"""

from __future__ import annotations

import itertools
import struct

from fastns._policy.syscalls import AUDIT_ARCH, numbers

LD, AND, RET, JA = 0x20, 0x54, 0x06, 0x05  # classic BPF: linux/bpf_common.h
JEQ, JGT, JGE, JSET = 0x15, 0x25, 0x35, 0x45
JUMPS = (JEQ, JGT, JGE, JSET)
NUMBER, ARCHITECTURE, ARGS, ARG_SIZE = 0, 4, 16, 8  # offsets in struct seccomp_data (seccomp(2))
WORD = 0xFFFFFFFF
KILL_PROCESS = 0x80000000
LOW, HIGH = 0, 4  # halves of an argument on these machines, which are little-endian
X32 = 0x40000000  # the calls of x86_64's x32 ABI have this number or a higher one (syscall(2))
NO_CALL = WORD  # -1: a tracer has cancelled the call
FEW = 3  # a segment has at most this many exceptions, which are compared one by one
FAR = 255  # instructions that a test can skip at most
NEXT = None  # a jump's target: the next instruction

# A node is an action (action,), or a test (offset, mask, jump, value, yes, no): the last two are
# the numbers of the nodes that follow if the test holds, and if it does not.
Node = tuple[int, ...]
# A range of system calls: its first number, its node, and its exceptions, (number, node) each.
Segment = tuple[int, int, list[tuple[int, int]]]
Instruction = tuple[int, int, int, int]  # code, jt, jf, k

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    Argument = tuple[int, str, int, int]  # index, operator, value, second value
    RuleOf = tuple[int, Iterable[str], list[list[Argument]]]
    Test = tuple[int, int, int, int]  # offset, mask, jump, value
    Condition = tuple[Test, bool]
    Case = tuple[tuple[Condition, ...], int]  # if all conditions hold, this node decides


def written(diagram: Diagram) -> bytes:
    """The program of a diagram (struct sock_filter, 8 bytes each)."""
    return _Writer(_Ranges(diagram)).bytes()


class Diagram:
    """What a filter decides. For each architecture and call number it has a node: an action, or
    the first test of the call's arguments. Equal nodes are stored once."""

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
        """The number of a node that decides as this test does, in its simplest form."""
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


def merged(parts: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Joins adjacent ranges with the same node. A range is (first number, node)."""
    found: list[tuple[int, int]] = []
    for start, node in parts:
        if not found or found[-1][1] != node:
            found.append((start, node))
    return found


def segments(ranges: Iterable[tuple[int, int]]) -> list[Segment]:
    """The segments of these (first number, node) ranges, which are in order. A few single numbers
    within a range become its exceptions."""
    parts = merged(ranges)
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
    """A copy of a diagram. Successive tests of one argument become comparisons with the values at
    which the outcome changes, where that is shorter."""

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
        """The number in this diagram of a node of the other one."""
        if number not in self._made:
            node = self._read[number]
            ranges = self._ranges(number) if _bounds(node) else []
            if ranges:
                self._made[number] = self._compare(node[0], ranges)
            else:
                self._made[number] = self.node((*node[:4], *map(self._node, node[4:])))
        return self._made[number]

    def _ranges(self, number: int) -> list[tuple[int, int]]:
        """(first value, old node) of each range, in order; empty if that would not be shorter."""
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

        ranges = merged(split(number, 0, WORD))
        return ranges if len(ranges) <= len(tests) else []

    def _compare(self, offset: int, ranges: list[tuple[int, int]]) -> int:
        """Tests single values one by one, then finds the range of the others by binary search."""
        ends = [start for start, _ in ranges[1:]] + [WORD + 1]
        rest: list[tuple[int, int]] = []
        single: list[tuple[int, int]] = []
        for (start, old), end in zip(ranges, ends, strict=True):
            (single if end - start == 1 and rest else rest).append((start, old))
        node = self._halves(offset, merged(rest))  # a range continues past a single value
        for value, old in single:
            target = self._node(old)
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
    """The first and the last value for which a test holds; None if these are not one range."""
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
    """Writes a diagram as instructions. A jump's target is NEXT, the number of a node, or a label,
    which is a negative number."""

    def __init__(self, read: Diagram) -> None:
        self._nodes = read.nodes
        self._lines: list[tuple[int, int, tuple[int | None, ...]]] = []  # code, k, targets
        self._places: dict[int | None, int] = {}  # label -> number of a line
        self._n_labels = 0
        blocks = [(self._label(), segments) for segments in read.architectures.values()]
        self._line(LD, ARCHITECTURE)
        for value, (label, _) in zip(read.architectures, blocks, strict=True):
            self._line(JEQ, value, label, NEXT)
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

    def _line(self, code: int, value: int, *targets: int | None) -> None:
        self._lines.append((code, value, targets))

    def _tree(self, segments: list[Segment]) -> None:
        """Writes a binary search for the node of the call number, which is loaded."""
        if len(segments) > 1:
            half = len(segments) // 2
            parts = [(self._target(part), part) for part in (segments[half:], segments[:half])]
            self._line(JGE, segments[half][0], *(target for target, _ in parts))
            for target, part in reversed(parts):
                if target < 0:
                    self._place(target)
                    self._tree(part)
            return
        _, node, exceptions = segments[0]
        for number, other in exceptions:
            self._line(JEQ, number, other, node if number == exceptions[-1][0] else NEXT)
        if not exceptions:
            self._line(JA, 0, node)

    def _target(self, segments: list[Segment]) -> int:
        """Where to jump for these segments: their node if they have only one, or a new label."""
        return segments[0][1] if len(segments) == 1 and not segments[0][2] else self._label()

    def _write_nodes(self) -> None:
        """Writes each test before the nodes it leads to, and actions last. Omits a load if every
        path to the node has already loaded the word."""
        loaded: dict[int | None, set[tuple[int, int]]] = {}  # target -> (offset, mask) on each path
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
            offset, mask, op, value, *ways = node
            self._place(number)
            if loaded[number] != {(offset, mask)}:
                if loaded[number] != {(offset, WORD)}:
                    self._line(LD, offset)
                if mask != WORD:
                    self._line(AND, mask)
            self._line(op, value, *ways)
            for target in ways:
                loaded.setdefault(target, set()).add((offset, mask))
        for number in actions:
            self._place(number)
            self._line(RET, self._nodes[number][0])

    def bytes(self) -> bytes:
        """The program. It is built from its end: jumps lead forward, so the positions of their
        targets are known. If a test's target is farther than FAR, an unconditional jump right after
        the test leads there."""
        made: list[bytes] = []  # in reverse order
        left: dict[int, int] = {}  # line -> number of instructions from this line to the end
        for line in range(len(self._lines) - 1, -1, -1):
            code, value, targets = self._lines[line]
            ways = [0 if to is NEXT else len(made) - left[self._places[to]] for to in targets]
            short = [0, 0]
            if code == JA:
                value = ways[0]
            elif ways:
                n_far = sum(way > FAR for way in ways)
                far = [which for which in (0, 1) if ways[which] + n_far > FAR]
                for after, which in enumerate(reversed(far)):
                    made.append(struct.pack("=HBBI", JA, 0, 0, ways[which] + after))
                for which in (0, 1):
                    short[which] = far.index(which) if which in far else ways[which] + len(far)
            made.append(struct.pack("=HBBI", code, *short, value))
            left[line] = len(made)
        return b"".join(reversed(made))


# ---- from rules ----


def program(default: int, rules: Iterable[RuleOf], machine: str) -> bytes:
    """The filter's instructions (struct sock_filter, 8 bytes each).

    Args:
        default: the action (SECCOMP_RET_*) where no rule matches.
        rules: (action, names of calls, groups of comparisons). A rule matches if all comparisons of
            one group hold; the first rule that matches decides. Calls that the machine lacks are
            skipped.
        machine: a key of AUDIT_ARCH. A call of any other architecture ends the process.
    """
    return written(_Compiled(default, rules, machine))


class _Compiled(Diagram):
    def __init__(self, default: int, rules: Iterable[RuleOf], machine: str) -> None:
        super().__init__()
        self._otherwise, killed = self.node((default,)), self.node((KILL_PROCESS,))
        self._decided: dict[tuple[Case, ...], int] = {}
        known = numbers(machine)
        cases: dict[int, list[Case]] = {}
        for action, names, groups in rules:
            made = [(case, self.node((action,))) for group in groups for case in _cases(group)]
            for number in [known[name] for name in names if name in known]:
                cases.setdefault(number, []).extend(made)
        points = {0: self._otherwise}
        for number in sorted(cases):
            points[number] = self._decide(tuple(cases[number]))
            points[number + 1] = self._otherwise
        if machine == "x86_64":
            points |= {X32: killed, NO_CALL: self._otherwise}
        self.architectures = {AUDIT_ARCH[machine]: segments(sorted(points.items()))}
        self.others = segments([(0, killed)])

    def _decide(self, cases: tuple[Case, ...]) -> int:
        """The node that finds the first case whose conditions hold."""
        if not cases:
            return self._otherwise
        conditions, then = cases[0]
        if not conditions:
            return then
        if cases not in self._decided:
            test = conditions[0][0]
            yes, no = (self._decide(_knowing(cases, test, holds)) for holds in (True, False))
            self._decided[cases] = self.test(*test, yes, no)
        return self._decided[cases]


def _cases(group: list[Argument]) -> list[tuple[Condition, ...]]:
    """Alternative lists of conditions. The comparisons of the group all hold if and only if the
    conditions of at least one list all hold.

    Conditions are in the order of the arguments, so that different rules begin with the same tests.
    """
    ways = [_words(*argument) for argument in sorted(group)]
    return [tuple(itertools.chain(*way)) for way in itertools.product(*ways)]


def _words(index: int, op: str, value: int, second: int) -> list[list[Condition]]:
    """A 64-bit comparison as alternative lists of conditions on the halves of the argument. It
    holds if the conditions of one list all hold.

    `op`: one of seccomp.OPERATORS, without its prefix."""
    low, high = (ARGS + ARG_SIZE * index + half for half in (LOW, HIGH))
    if op == "MASKED_EQ":
        halves = ((high, value >> 32, second >> 32), (low, value & WORD, second & WORD))
        if second & ~value:
            return []  # never holds: it wants bits that the mask clears
        return [[((at, mask, JEQ, want), True) for at, mask, want in halves if mask]]
    equal = ((high, WORD, JEQ, value >> 32), True)
    unequal = (equal[0], False)
    above = ((high, WORD, JGT, value >> 32), True)
    not_above = (above[0], False)
    jump = {"EQ": JEQ, "NE": JEQ, "GE": JGE, "LT": JGE, "GT": JGT, "LE": JGT}[op]
    by_low = [equal, ((low, WORD, jump, value & WORD), op in ("EQ", "GE", "GT"))]
    by_high = {"NE": [unequal], "GE": [above], "GT": [above]}.get(op, [not_above, unequal])
    return [by_low] if op == "EQ" else [by_high, by_low]


def _knowing(cases: tuple[Case, ...], test: Test, holds: bool) -> tuple[Case, ...]:
    """The cases that remain once a test's outcome is known, without conditions that it decides."""
    left: list[Case] = []
    for conditions, then in cases:
        rest = []
        for other, wanted in conditions:
            outcome = _follows(test, holds, other)
            if outcome is None:
                rest.append((other, wanted))
            elif outcome is not wanted:
                break
        else:
            left.append((tuple(rest), then))
            if not rest:
                break  # no later case is reached
    return tuple(left)


def _follows(test: Test, holds: bool, other: Test) -> bool | None:
    """The outcome of `other` if the outcome of `test` decides it, otherwise None."""
    if test == other:
        return holds
    offset, mask, jump, value = test
    if other[0] != offset or not jump == other[2] == JEQ:
        return None
    common = mask & other[1]
    if holds:
        if (value ^ other[3]) & common:
            return False
        return True if common == other[1] else None
    # If `other` wants the same values of these bits, and perhaps of more, it fails too.
    return False if common == mask and not (value ^ other[3]) & common else None


# ---- from a program of libseccomp ----


class _Unusual(Exception):
    """The program has instructions that libseccomp does not use."""


def shorter(program: bytes) -> bytes:
    """A shorter program that decides every call as this one does; this one if none is found. Both
    are arrays of struct sock_filter, 8 bytes each."""
    code: list[Instruction] = list(struct.iter_unpack("=HBBI", program))
    try:
        made = written(Reader(code))
    except (_Unusual, IndexError, RecursionError):
        return program
    return made if len(made) < len(program) else program


class Reader(Diagram):
    """The diagram of a program. To make it, the program is simulated for each call number at which
    its decision may change, up to the first load of an argument."""

    def __init__(self, code: list[Instruction]) -> None:
        super().__init__()
        if not {line[0] for line in code} <= {LD, AND, RET, JA, *JUMPS}:
            raise _Unusual
        self._code = code
        self._followed: dict[tuple[int, tuple[int, int]], int] = {}
        self._compared: set[int] = set()  # architectures that the program has compared with
        values = {line[3] for line in code if line[0] in JUMPS}
        points = sorted({0, *values, *(value + 1 for value in values if value < WORD)})
        other = next(value for value in range(WORD) if value not in values)
        for point in points:  # an unknown architecture is compared with all known ones
            self._reach(other, point)
        known = sorted(self._compared)
        self.architectures = {value: self._segments(value, points) for value in known}
        self.others = self._segments(other, points)
        if len(self._compared) > len(known):
            raise _Unusual

    def _segments(self, architecture: int, points: list[int]) -> list[Segment]:
        parts: list[tuple[int, int]] = []
        for point in points:
            at, by_number = self._reach(architecture, point)
            node = self._follow(at, (-1, WORD))
            if not by_number:
                return [(0, node, [])]
            parts.append((point, node))
        return segments(parts)

    def _reach(self, architecture: int, number: int) -> tuple[int, bool]:
        """The first instruction that returns an action or needs an argument, and whether the call
        number was loaded before it."""
        at, loaded, is_architecture, by_number = 0, 0, False, False
        while True:
            code, true, false, value = self._code[at]
            if code == LD and value in (NUMBER, ARCHITECTURE):
                is_architecture = value == ARCHITECTURE
                by_number |= not is_architecture
                loaded = architecture if is_architecture else number
                at += 1
            elif code == JA:
                at += 1 + value
            elif code in (JEQ, JGT, JGE):
                if is_architecture and code != JEQ:
                    raise _Unusual
                if is_architecture:
                    self._compared.add(value)
                holds = {JEQ: loaded == value, JGT: loaded > value, JGE: loaded >= value}[code]
                at += 1 + (true if holds else false)
            else:
                return at, by_number

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
