"""Inputs found by tests/fuzz that once caused a traceback or an endless loop."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import support

from fastns._compile import userns
from fastns.cli import UsageError, _values, batch, bench, run, whole
from fastns.rootfs import _loader
from fastns.rootfs._host import Unusable

LONG = "9" * 5000  # int() accepts at most 4300 digits
SHARED = support.TESTS / "fuzz" / "corpus" / "elf" / "shared"


# ---- numbers ----


@pytest.mark.parametrize(
    ("word", "number"),
    [
        ("0", 0), ("007", 7), ("9" * 20, 10**20 - 1), ("9" * 21, None), (LONG, None),
        ("", None), ("-1", None), ("+1", None), ("1_0", None), (" 1", None), ("\u0663", None),
        ("\u00b2", None),
    ],
)  # fmt: skip
def test_whole(word: str, number: int | None) -> None:
    """Only ASCII digits make a number, at most 20 of them."""
    assert whole(word) == number


@pytest.mark.parametrize("word", [LONG, "000000001000000", "000000001" + LONG])
def test_numbers_of_flags(word: str) -> None:
    """Numbers too long for int() or beyond a limit are refused. A parser once compared only the
    first digits."""
    for read in (
        lambda: _values.whole_number("--concurrency", word, batch.MAX_CONCURRENCY, ""),
        lambda: _values.whole_number("--rounds", word, bench.MAX_ROUNDS, ""),
    ):
        with pytest.raises(UsageError, match="not a number from 1 to"):
            read()


def test_numbers_inside_of_flags() -> None:
    for read in (
        lambda: _values.rlimit(f"nofile={LONG}"),
        lambda: _values.rlimit(f"nofile=1:{LONG}"),
        lambda: _values.io_rates([f"8:0:rbps={LONG}"]),
        lambda: _values.id_mapping("--uidmap", f"0:{LONG}:1"),
        lambda: run._status_fd(LONG),
    ):
        with pytest.raises(UsageError):
            read()


def test_ranges_of_ids(tmp_path: Path) -> None:
    """Lines with a number too long for int() are skipped."""
    path = tmp_path / "subuid"
    path.write_text(f"ann:{LONG}:1\nann:1:{LONG}\nann:5:6\n")
    assert userns.entries(str(path)) == [("ann", 5, 6)]


# ---- ELF ----


def shared(change: dict[int, bytes], more: bytes = b"") -> bytes:
    """The corpus's shared library with some bytes changed."""
    data = bytearray(SHARED.read_bytes())
    for at, piece in change.items():
        data[at : at + len(piece)] = piece
    return bytes(data) + more


def read(path: Path, data: bytes) -> _loader.Elf | None:
    path.write_bytes(data)
    return _loader.read(str(path))


PROGRAM_HEADERS = 64
INTERP, DYNAMIC = PROGRAM_HEADERS + 56, PROGRAM_HEADERS + 2 * 56
OFFSET = 8  # of p_offset in a program header


def test_the_unchanged_file(tmp_path: Path) -> None:
    found = read(tmp_path / "lib", shared({}))
    assert found is not None
    assert (found.soname, found.needed) == ("libx.so.1", ("libc.so.6",))


def test_an_offset_that_no_file_has(tmp_path: Path) -> None:
    """The file can be read, but lseek(2) to this offset fails (EINVAL)."""
    with pytest.raises(Unusable, match="broken ELF file"):
        read(tmp_path / "lib", shared({DYNAMIC + OFFSET: struct.pack("<Q", 2**63 - 8)}))


def test_endless_entries(tmp_path: Path) -> None:
    """A table with 300,000 entries is refused. Reading all of them would take minutes."""
    data = shared({DYNAMIC + OFFSET: struct.pack("<Q", 4096)}).ljust(4096, b"\0")
    with pytest.raises(Unusable, match="too much to read"):
        read(tmp_path / "lib", data + struct.pack("<QQ", 1, 1) * 300_000)


@pytest.mark.parametrize(("size", "why"), [(5000, "ValueError"), (1 << 20, "too much to read")])
def test_a_name_without_an_end(tmp_path: Path, size: int, why: str) -> None:
    """An overlong interpreter path is an error. A huge one is not even read."""
    data = shared({INTERP + OFFSET: struct.pack("<Q", 4096)}).ljust(4096, b"\0")
    with pytest.raises(Unusable, match=why):
        read(tmp_path / "lib", data + b"A" * size + b"\0")
