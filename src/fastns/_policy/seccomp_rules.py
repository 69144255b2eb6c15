"""Rules of a profile in the OCI/Docker format, as the default one is written with."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    Rules = Iterator[dict[str, Any]]

INT = 0xFFFFFFFF  # the kernel looks at these bits of an int, whatever the others are


def allow(names: list[str], **more: Any) -> dict[str, Any]:
    return {"names": names, "action": "SCMP_ACT_ALLOW", **more}


def refuse(names: list[str], errno: int, **more: Any) -> dict[str, Any]:
    """With errno 0 the call reports success and does nothing."""
    return {"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": errno, **more}


def compare(index: int, op: str, value: int, second: int = 0) -> dict[str, Any]:
    return {"index": index, "value": value, "valueTwo": second, "op": f"SCMP_CMP_{op}"}


def masked(index: int, mask: int, value: int) -> dict[str, Any]:
    return compare(index, "MASKED_EQ", mask, value)


def same(index: int, value: int) -> dict[str, Any]:
    return masked(index, INT, value)


def others(index: int, values: Iterable[int], below: int = INT + 1) -> list[dict[str, Any]]:
    """An int that is none of these but less than `below`, a power of two: one comparison of the
    list holds. The fewer bits there are to look at, the fewer comparisons."""
    upper = INT & -below
    return [masked(index, upper | mask, value) for mask, value in anything_but(values, below - 1)]


def all_but(name: str, index: int, refused: dict[int, int], **when: Any) -> Rules:
    """A call is refused where its argument, an int, is a key of `refused`, whose value is the
    errno; otherwise it is allowed."""
    yield allow([name], args=others(index, refused), **when)
    for value, errno in refused.items():
        yield refuse([name], errno, args=[same(index, value)], **when)


def anything_but(values: Iterable[int], mask: int) -> list[tuple[int, int]]:
    """(mask, value) pairs of which every number but these matches one, bits outside `mask` apart.

    The format can say that bits are so, not that a number is none of several: this walks the
    values' bits from the highest, and where all values go one way the other is free."""
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
