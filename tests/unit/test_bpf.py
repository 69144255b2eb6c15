"""An optimised filter returns the same as the original: for real profiles and for random programs.
Both are run with all numbers and architectures that the filter compares with, and neighbours."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

import pytest
from bpf import ALLOW, ARCHES, ERRNO, KILL_PROCESS, interpret

from fastns import seccomp
from fastns._policy import bpf
from fastns._policy.bpf import AND, ARCHITECTURE, JA, JEQ, JGE, JGT, JSET, LD, NUMBER, RET, shorter
from fastns._policy.seccomp_default import all_but, parts

I386 = 0x40000003
DOCKER = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "archMap": [
        {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]}
    ],
    "syscalls": [
        {"names": ["read", "write", "close", "openat", "exit", "exit_group", "mmap", "clone3"],
         "action": "SCMP_ACT_ALLOW"},
        {"names": ["personality"], "action": "SCMP_ACT_ALLOW",
         "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]},
        {"names": ["socket"], "action": "SCMP_ACT_ALLOW",
         "args": [{"index": 0, "value": 40, "op": "SCMP_CMP_NE"}]},
        {"names": ["kill"], "action": "SCMP_ACT_ERRNO", "errnoRet": 3,
         "args": [{"index": 0, "value": 2**33 + 5, "op": "SCMP_CMP_GT"},
                  {"index": 1, "value": 9, "op": "SCMP_CMP_LE"}]},
        {"names": ["clone"], "action": "SCMP_ACT_ALLOW",
         "args": [{"index": 0, "value": 0x7E020000, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]},
    ],
}  # fmt: skip
PROFILES = {
    "default": seccomp.default_profile(),
    "no set-id": seccomp.default_profile(setid=False),
    "first": parts()[0],
    "rest": parts()[1],
    "docker": DOCKER,
}


def instructions(*lines: tuple[int, int, int, int]) -> bytes:
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


def as_made(profile: object, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The filter of a profile before it is optimised."""
    with monkeypatch.context() as patched:
        patched.setattr(bpf, "shorter", lambda program: program)
        seccomp._build.cache_clear()
        made = seccomp.build(profile, machine="x86_64")
    seccomp._build.cache_clear()
    return made


def calls(program: bytes, dice: random.Random) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    values = {0, 2**32 - 1, 0x40000000}
    for code, _, _, value in struct.iter_unpack("=HBBI", program):
        if code != RET:
            values |= {value, value - 1 & 0xFFFFFFFF, value + 1 & 0xFFFFFFFF}
    pool = sorted(values)
    for number in pool:
        for architecture in (*ARCHES.values(), I386, dice.choice(pool)):
            for _ in range(3):
                args = (
                    dice.choice((dice.choice(pool), dice.getrandbits(64), 1 << dice.randrange(64)))
                    for _ in range(6)
                )
                yield architecture, number, tuple(args)


def check_same(one: bytes, two: bytes, dice: random.Random) -> None:
    for call in calls(one, dice):
        assert interpret(one, *call) == interpret(two, *call), call


@pytest.mark.parametrize("name", PROFILES)
def test_profiles(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Optimising shortens the filter of a profile and keeps its results."""
    made = as_made(PROFILES[name], monkeypatch)
    short = shorter(made)
    assert seccomp.build(PROFILES[name], machine="x86_64") == short
    check_same(made, short, random.Random(name))
    assert len(short) < len(made) * (1 if name == "docker" else 0.6)


def program(dice: random.Random, size: int) -> bytes:
    """A random program. Jumps lead forward, and values are few, so that some comparisons hold."""
    lines = [(LD, 0, 0, dice.choice((NUMBER, ARCHITECTURE)))]
    values = [*range(8), 40, 0x80, 0x180, *ARCHES.values()]
    for at in range(1, size):
        rest = min(size - at - 1, 255)
        kind = dice.choice((LD, LD, AND, JA, JEQ, JEQ, JEQ, JGT, JGE, JSET, RET))
        if kind == LD:
            where = dice.choice((NUMBER, NUMBER, ARCHITECTURE, 16, 20, 24))
            lines.append((LD, 0, 0, where))
        elif kind == AND:
            lines.append((LD, 0, 0, dice.choice((16, 20, 24))))
            masks = (0, 1, 2, 0x80, 0x180, 0x80000000, 0xFFFFFFF8, 0xFFFFFF80, 0xFFFFFFFF)
            lines.append((AND, 0, 0, dice.choice(masks)))
        elif kind == JA:
            lines.append((JA, 0, 0, dice.randrange(min(rest, 3) + 1)))
        elif kind == RET:
            lines.append((RET, 0, 0, dice.choice((ALLOW, ERRNO | 1, KILL_PROCESS))))
        else:
            ways = (dice.randrange(min(rest, 6) + 1), dice.randrange(min(rest, 6) + 1))
            lines.append((kind, *ways, dice.choice(values)))
    lines += [(RET, 0, 0, ERRNO | 38)] * 8  # the target of jumps past the end
    return instructions(*lines)


def test_random_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The optimised program is compared even if it is not shorter, and would not be used."""
    dice = random.Random(7)
    written = 0
    for _ in range(300):
        made = program(dice, dice.randrange(4, 40))
        code = list(struct.iter_unpack("=HBBI", made))
        try:
            again = bpf._Writer(bpf._Ranges(bpf.Reader(code))).bytes()
        except bpf._Unusual:
            continue
        written += 1
        check_same(made, again, dice)
        check_same(made, shorter(made), dice)
    assert written > 50


@pytest.mark.parametrize("seed", range(8))
def test_none_of_several_values(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The profile compares each bit, so that ranges make a filter of less than half the length."""
    dice = random.Random(seed)
    near = dice.randrange(2**32)
    pool = [0, 1, 2, 2**31 - 1, 2**31, 2**32 - 1, near, near ^ 1, near ^ 2, dice.randrange(2**32)]
    values = dice.sample(pool, dice.randrange(1, 6))
    refused = {value: dice.choice((1, 1, 22)) for value in values}
    rules = list(all_but("getpid", 0, refused))
    profile = {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "syscalls": rules}
    made = as_made(profile, monkeypatch)
    short = shorter(made)
    assert len(short) < len(made) / 2
    for value in {near + 1 & 0xFFFFFFFF, *pool, *(v - 1 & 0xFFFFFFFF for v in pool)}:
        for high in (0, 1 << 32):
            call = (ARCHES["x86_64"], 39, (value | high, 0, 0, 0, 0, 0))
            expected = ERRNO | refused[value] if value in refused else ALLOW
            assert interpret(short, *call) == interpret(made, *call) == expected


def test_jumps_longer_than_an_instruction_allows() -> None:
    """Of 300 numbers each has its own comparison, so jumps exceed the 255 of one instruction."""
    lines = [(LD, 0, 0, NUMBER)]
    for number in range(0, 900, 3):
        lines += [(JEQ, 0, 4, number), (LD, 0, 0, 16), (JEQ, 0, 1, number + 7),
                  (RET, 0, 0, ERRNO | number), (RET, 0, 0, ALLOW)]  # fmt: skip
    lines.append((RET, 0, 0, ALLOW))
    made = instructions(*lines)
    code = list(struct.iter_unpack("=HBBI", made))
    again = bpf._Writer(bpf._Ranges(bpf.Reader(code))).bytes()
    assert any(op == JA for op, *_ in struct.iter_unpack("=HBBI", again))
    for number in range(901):
        for value in (number + 7, number):
            call = (ARCHES["x86_64"], number, (value, 0, 0, 0, 0, 0))
            assert interpret(made, *call) == interpret(again, *call), call


@pytest.mark.parametrize(
    "lines",
    [
        [(LD, 0, 0, NUMBER), (AND, 0, 0, 1), (JEQ, 0, 1, 1), (RET, 0, 0, 0), (RET, 0, 0, ALLOW)],
        [(LD, 0, 0, NUMBER), (JSET, 0, 1, 1), (RET, 0, 0, 0), (RET, 0, 0, ALLOW)],
        [(LD, 0, 0, ARCHITECTURE), (JGT, 0, 1, 1), (RET, 0, 0, 0), (RET, 0, 0, ALLOW)],
        [(0x04, 0, 0, 1), (RET, 0, 0, ALLOW)],  # an addition
        [(LD, 0, 0, NUMBER), (JEQ, 0, 9, 1), (RET, 0, 0, ALLOW)],  # the kernel would refuse it
    ],
)
def test_unusual_programs_are_not_changed(lines: list[tuple[int, int, int, int]]) -> None:
    made = instructions(*lines)
    assert shorter(made) == made
