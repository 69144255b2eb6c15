"""Fuzzes the parsers written in Python. They must raise only documented errors and take bounded
time and memory, and a round trip must return the same value.

Usage: python tests/fuzz/parsers.py [--seconds N] [TARGET...]

Hypothesis makes the inputs, most of them by changes to the files below corpus/. It shrinks and
prints a failing input, with the seed that reproduces it (--seed).
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from fastns import mount_options, seccomp
from fastns._args import MAX_TIMEOUT
from fastns._compile.userns import entries
from fastns.cli import UsageError, _flags, _jsonl, _values
from fastns.cli import batch as cli_batch
from fastns.cli._parser import Parser
from fastns.errors import SpecError
from fastns.limits import MAX_BYTES, Limits, parse_size
from fastns.rootfs import _loader
from fastns.rootfs._host import Unusable

CORPUS = Path(__file__).parent / "corpus"
SLOWEST = 5.0  # seconds per input, on a busy machine
MEMORY = 2 << 30
ROUND = 200  # inputs per seed

Mapping = dict[str, Any]


# ---- inputs ----


def corpus(name: str) -> list[bytes]:
    """The initial inputs of a target, ordered by file name."""
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]


@st.composite
def changed(draw: Any, name: str, words: list[bytes]) -> bytes:
    """A corpus input with a few changes: bytes, words, repetitions, pieces of other inputs."""
    inputs = corpus(name)
    data = bytearray(draw(st.sampled_from(inputs)))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(data)))
        how = draw(st.integers(0, 5))
        if how == 0:
            data[at : at + draw(st.integers(1, 40))] = b""
        elif how == 1:
            data[at : at + 1] = draw(st.binary(max_size=4))
        elif how == 2:
            data[at:at] = draw(st.sampled_from(words))
        elif how == 3:
            word = draw(st.sampled_from(words))
            data[at : at + len(word)] = word
        elif how == 4:
            other = draw(st.sampled_from(inputs))
            start = draw(st.integers(0, len(other)))
            data[at:at] = other[start : start + draw(st.integers(0, 60))]
        else:
            piece = data[at : at + draw(st.integers(1, 20))]
            data[at:at] = piece * draw(st.sampled_from((1, 2, 100, 2000)))
    return bytes(data)


LONG = ["9" * 5000, "0" * 5000 + "1", "000000001000000"]  # the first two are too long for int()
TEXTS = st.one_of(
    st.sampled_from(["", "a", "/", "..", "/x/y", "1", "-1", "0", "64m", "\udcff", "a\0b", *LONG]),
    st.text(max_size=12),
)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.sampled_from([2**63, 2**64, -1, 10**400]),
    st.floats(), TEXTS, st.binary(max_size=4),
)  # fmt: skip


def json_words() -> list[bytes]:
    return [
        *(b'"', b"{", b"}", b"[", b"]", b",", b":", b"null", b"true", b"1e999", b"-1", b"9" * 5000),
        *(b"\\u0000", b"\\ud800", b"\xff", b"[" * 2000, b'{"a":' * 2000, b"NaN", b"0.1", b'"id":'),
    ]


# ---- the targets ----


def refused(act: Callable[[], Any], *errors: type[Exception]) -> Any:
    """The result of `act`, or None if it raises one of these errors, which must have a message."""
    try:
        return act()
    except errors as error:
        assert str(error)
        return None


PROFILE_WORDS = [
    *json_words(),
    *(f'"{name}"'.encode() for name in (*seccomp.ACTIONS, *seccomp.OPERATORS, *seccomp.FLAGS)),
    *(f'"{name}":'.encode() for name in (*seccomp.PROFILE_KEYS, *seccomp.RULE_KEYS)),
    *(f'"{name}":'.encode() for name in (*seccomp.ARG_KEYS, *seccomp.CONDITION_KEYS)),
    *(b'"SCMP_ARCH_X86"', b'"SCMP_ARCH_AARCH64"', b'"SCMP_ARCH_\\u0000"', b'"read"', b'"clone"'),
]


@given(st.one_of(changed("seccomp", PROFILE_WORDS), st.binary(max_size=40)))
def profiles_as_files(data: bytes) -> None:
    """seccomp.load(), and build() of the profiles that it accepts."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        profile = refused(lambda: seccomp.load(file.name), SpecError)
    if profile is not None:
        build(profile)


def build(profile: object) -> None:
    for machine in ("x86_64", "aarch64"):
        code = refused(
            lambda machine=machine: seccomp.build(
                profile, ["CAP_SYS_ADMIN"], machine=machine, kernel="6.1.0"
            ),
            SpecError,
        )
        assert code is None or (len(code) % 8 == 0 and 0 < len(code) <= 8 * 4096)


def values(keys: tuple[str, ...], of: Any = SCALARS) -> Any:
    return st.dictionaries(st.one_of(st.sampled_from(sorted(keys)), TEXTS), of, max_size=5)


NAMES = st.sampled_from([*seccomp.ACTIONS, *seccomp.OPERATORS, "SCMP_ARCH_X86", "read", "futex"])
ANY_ITEM = st.one_of(SCALARS, NAMES, st.lists(st.one_of(SCALARS, NAMES), max_size=3))
RULES = values(
    seccomp.RULE_KEYS,
    st.one_of(
        ANY_ITEM,
        st.lists(values(seccomp.ARG_KEYS, ANY_ITEM), max_size=3),
        values(seccomp.CONDITION_KEYS, ANY_ITEM),
    ),
)
PROFILES = st.one_of(
    ANY_ITEM,
    values(
        seccomp.PROFILE_KEYS,
        st.one_of(
            ANY_ITEM,
            st.lists(RULES, max_size=3),
            st.lists(values(seccomp.ARCH_KEYS), max_size=2),
        ),
    ),
)


@given(PROFILES)
def profiles_as_mappings(profile: object) -> None:
    """seccomp.check() and build() of any Python value."""
    if refused(lambda: seccomp.check(profile), SpecError) is not None:
        build(profile)


@given(changed("jobs", [*json_words(), *(f'"{key}":'.encode() for key in _jsonl.KEYS)]))
def jobs(data: bytes) -> None:
    """A line of `fastns batch`, and the line of its result, which has the same `id`."""
    reader = _jsonl.Jobs(0, "stdin", None, {"PATH": "/bin"})  # type: ignore[arg-type]
    entry = refused(lambda: reader._entry(data), UsageError)
    if entry is None:
        return
    assert all(isinstance(word, str) for word in entry.job.args)
    assert entry.job.timeout is None or 0 < entry.job.timeout <= MAX_TIMEOUT
    line = _jsonl.line_of(entry.head, 7, {"exit_code": 0})
    assert "\n" not in line
    back = json.loads(line)
    assert (back["index"], back["exit_code"]) == (7, 0)
    found = json.loads(data.decode("utf-8-sig"))
    has_id = isinstance(found, dict) and "id" in found
    assert ("id" in back) == has_id
    assert not has_id or back["id"] == found["id"]


OPTIONS = sorted({name for kind in mount_options.TYPES for name in mount_options.names(kind)})


@given(
    st.sampled_from((*mount_options.TYPES, "ext4", "")),
    st.lists(
        st.one_of(
            st.sampled_from(OPTIONS),
            st.tuples(st.sampled_from(OPTIONS), TEXTS).map("".join),
            st.tuples(TEXTS, st.just("="), TEXTS).map("".join),
            SCALARS,
        ),
        max_size=6,
    ),
)
def options(kind: str, given_options: list[Any]) -> None:
    """mount_options.parse(): the data is at most a page and has each option once."""
    found = refused(lambda: mount_options.parse(kind, given_options), SpecError)
    if found is not None:
        parts = found.data.split(",") if found.data else []
        assert len(found.data.encode(errors="surrogateescape")) <= mount_options.MAX_DATA
        assert len(parts) == len(set(parts))
        assert set(parts) <= set(given_options)
        assert mount_options.parse(kind, [*given_options, *given_options]) == found


def flag_parser() -> Parser:
    parser = Parser(prog="fastns")
    _flags.add_sandbox_flags(parser)
    return parser


PARSER = flag_parser()
PARSER.set_defaults(max_output=None, on_output_limit=None)  # flags that the verbs add
FLAGS = sorted(
    (name, action.nargs)
    for action in PARSER._actions
    for name in action.option_strings
    if action.dest != "help"
)
VALUES = corpus("flags")[0].decode().splitlines()
PIECES = ["", ":", ",", "=", "/", "@", "1", "-1", "\udcff", "\u00b2", "\u0663", *LONG]


@st.composite
def flags(draw: Any) -> list[str]:
    """The words of a command line, without NUL."""
    words = []
    for _ in range(draw(st.integers(1, 3))):
        name, nargs = draw(st.sampled_from(FLAGS))
        value = draw(st.sampled_from(VALUES))
        for _ in range(draw(st.integers(0, 3))):
            at = draw(st.integers(0, len(value)))
            piece = draw(st.one_of(st.sampled_from(PIECES), st.text(max_size=3)))
            value = value[:at] + piece + value[at + draw(st.integers(0, 3)) :]
        value = value.replace("\0", "0")
        if nargs != 0:
            name += f"={value}" if name.startswith("--") else value
        words.append(name)
    return words


@given(flags())
def command_lines(words: list[str]) -> None:
    """Flags of `fastns run`, parsed and made into a Spec."""

    def read() -> object:
        namespace = PARSER.parse(words)
        return _flags.spec_of(namespace, {"HOME": "/"}, {})

    refused(read, UsageError, SpecError)


@given(TEXTS, SCALARS)
def numbers(text: str, value: Any) -> None:
    """Sizes, times and other numbers, as text and as Python values."""
    for given_value in (text, value):
        size = refused(lambda given_value=given_value: parse_size("memory", given_value), SpecError)
        assert size is None or 0 < size <= MAX_BYTES
        for field in ("pids_limit", "cpus", "cpu_weight", "cpuset", "cpu_time", "memory"):
            refused(
                lambda field=field, given_value=given_value: Limits(**{field: given_value}),
                SpecError,
            )
    seconds = refused(lambda: _values.duration("--timeout", text), UsageError)
    assert seconds is None or seconds > 0
    most = cli_batch.MAX_CONCURRENCY
    count = refused(lambda: _values.whole_number("--concurrency", text, most, ""), UsageError)
    assert count is None or 1 <= count <= cli_batch.MAX_CONCURRENCY


@given(st.lists(st.tuples(TEXTS, TEXTS, TEXTS), max_size=4), st.binary(max_size=20))
def ranges(lines: list[tuple[str, str, str]], more: bytes) -> None:
    """/etc/subuid and /etc/subgid."""
    with tempfile.NamedTemporaryFile() as file:
        for line in lines:
            file.write(":".join(line).encode(errors="surrogatepass") + b"\n")
        file.write(more)
        file.flush()
        for _, first, size in entries(file.name):
            assert first >= 0
            assert size >= 0


ELF_WORDS = [
    *(n.to_bytes(8, "little") for n in (0, 1, 2, 3, 5, 15, 29, 2**16, 2**32 - 1, 2**63, 2**64 - 1)),
    *(n.to_bytes(4, "little") for n in (0, 1, 2, 3, 6, 0x6474E551)),
    *(n.to_bytes(2, "little") for n in (0, 1, 0xFFFF, 56, 64)),
    *(b"\x7fELF", b"\0", b"$ORIGIN", b":", b"A" * 5000),
]


@given(st.one_of(changed("elf", ELF_WORDS), st.binary(max_size=80)))
def elf_files(data: bytes) -> None:
    """The parser with which `rootfs build` reads programs and libraries."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        found = refused(lambda: _loader.read(file.name), Unusable)
        if found is not None:
            assert _loader.is_for(file.name, found.machine)
            texts = (found.interpreter or "", found.soname or "", *found.needed)
            assert all(len(text) <= _loader.MAX_TEXT for text in texts)


TARGETS = {
    target.__name__: target
    for target in (
        profiles_as_files,
        profiles_as_mappings,
        jobs,
        options,
        command_lines,
        numbers,
        ranges,
        elf_files,
    )
}


# ---- running the targets ----


def fuzz(name: str, seconds: float, first_seed: int | None) -> None:
    """Run rounds with new seeds until the time is over."""
    end, number, count = time.monotonic() + seconds, first_seed, 0
    target = settings(
        max_examples=ROUND,
        deadline=SLOWEST * 1000,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )(TARGETS[name])
    while count == 0 or (time.monotonic() < end and first_seed is None):
        if first_seed is None:
            number = random.getrandbits(32)
        try:
            seed(number)(target)()
        except BaseException:
            print(f"fuzz {name}: repeat with --seed {number} {name}", file=sys.stderr, flush=True)
            raise
        count += ROUND
    print(f"fuzz {name}: {count} inputs in {seconds:g} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int)
    words = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for name in words.targets or TARGETS:
        fuzz(name, words.seconds, words.seed)


if __name__ == "__main__":
    main()
