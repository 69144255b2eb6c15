"""Helpers that write rules in the format of OCI and Docker, for the default profile."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    Rules = Iterator[dict[str, Any]]

DONE = 0  # the call reports success, and does nothing
INT = 0xFFFFFFFF  # the bits of an int that the kernel reads; a register's others may be anything


def allow(names: list[str], **more: Any) -> dict[str, Any]:
    return {"names": names, "action": "SCMP_ACT_ALLOW", **more}


def refuse(names: list[str], errno: int, **more: Any) -> dict[str, Any]:
    """`errno`: DONE, or an error."""
    return {"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": errno, **more}


def compare(index: int, op: str, value: int, second: int = 0) -> dict[str, Any]:
    return {"index": index, "value": value, "valueTwo": second, "op": f"SCMP_CMP_{op}"}


def masked(index: int, mask: int, value: int) -> dict[str, Any]:
    return compare(index, "MASKED_EQ", mask, value)


def same(index: int, value: int) -> dict[str, Any]:
    return masked(index, INT, value)


def others(index: int, values: Iterable[int], below: int = INT + 1) -> list[dict[str, Any]]:
    """Comparisons of which one holds if an int is below `below`, a power of two, and none of the
    values. The fewer bits there are below it, the fewer comparisons."""
    upper = INT & -below
    return [masked(index, upper | mask, value) for mask, value in anything_but(values, below - 1)]


def all_but(name: str, index: int, refused: dict[int, int], **when: Any) -> Rules:
    """Refuses a call if its argument, an int, is a key of `refused`, whose value is the errno;
    else allows it."""
    yield allow([name], args=others(index, refused), **when)
    for value, errno in refused.items():
        yield refuse([name], errno, args=[same(index, value)], **when)


def anything_but(values: Iterable[int], mask: int) -> list[tuple[int, int]]:
    """(mask, value) pairs. A number matches one exactly if its bits in `mask` equal no value's.

    The format can compare bits, but cannot say "none of these". So this walks the values' bits from
    the highest: where all values agree on a bit, one pair covers all numbers that do not."""
    bits = [1 << n for n in reversed(range(mask.bit_length())) if mask >> n & 1]
    found = []

    def walk(left: list[int], depth: int, known: int, value: int) -> None:
        if depth == len(bits):
            return
        bit = bits[depth]
        for way in (0, bit):
            there = [number for number in left if number & bit == way]
            if there:
                walk(there, depth + 1, known | bit, value | way)
            else:
                found.append((known | bit, value | way))

    walk([number & mask for number in values], 0, 0, 0)
    return found
