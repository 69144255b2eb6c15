"""Compiles the rules of a checked profile to a filter, for the machines in syscalls.py.

The build makes the default profile's filters with it, and needs no libseccomp. A custom profile,
which may be for several architectures, goes through libseccomp.py.
"""

from __future__ import annotations

import itertools

from fastns._policy.bpf import JEQ, JGE, JGT, WORD, Diagram, segments, written
from fastns._policy.syscalls import AUDIT_ARCH, numbers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    Argument = tuple[int, str, int, int]  # index, operator, value, second value
    RuleOf = tuple[int, Iterable[str], list[list[Argument]]]
    Test = tuple[int, int, int, int]  # offset, mask, jump, value
    Condition = tuple[Test, bool]
    Case = tuple[tuple[Condition, ...], int]  # if all hold, this node decides

KILL_PROCESS = 0x80000000
ARGS, ARG_SIZE = 16, 8  # offsets in struct seccomp_data (seccomp(2))
LOW, HIGH = 0, 4  # halves of an argument on these machines, which are little-endian
X32 = 0x40000000  # the calls of x86_64's x32 ABI have this number or a higher one (syscall(2))
NO_CALL = WORD  # -1: a tracer has cancelled the call


def program(default: int, rules: Iterable[RuleOf], machine: str) -> bytes:
    """The filter's instructions (struct sock_filter, 8 bytes each).

    Args:
        default: the action (SECCOMP_RET_*) where no rule matches.
        rules: (action, names of calls, groups of comparisons). A rule matches if all comparisons of
            one group hold; the first rule that matches decides. Names of calls that the machine
            lacks are skipped.
        machine: one of AUDIT_ARCH. Calls of any other architecture end the process.
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
    """Lists of conditions: all of one list hold if and only if all comparisons of the group do.

    They are in the order of the arguments, so that different rules begin with the same tests."""
    ways = [_words(*argument) for argument in sorted(group)]
    return [tuple(itertools.chain(*way)) for way in itertools.product(*ways)]


def _words(index: int, op: str, value: int, second: int) -> list[list[Condition]]:
    """A 64-bit comparison as lists of conditions on its halves; it holds if all of one list do.

    `op`: one of seccomp_profile.OPERATORS, without its prefix."""
    low, high = (ARGS + ARG_SIZE * index + half for half in (LOW, HIGH))
    if op == "MASKED_EQ":
        halves = ((high, value >> 32, second >> 32), (low, value & WORD, second & WORD))
        if second & ~value:
            return []  # it wants bits that the mask removes, and never holds
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
    """The cases that remain once a test's outcome is known, without the conditions it decides."""
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
    """The other test's outcome, if this one's decides it; else None."""
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
    # If the other test wants the same of all bits of this one, and of more, it fails too.
    return False if common == mask and not (value ^ other[3]) & common else None
