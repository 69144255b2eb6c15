"""How much a tmpfs of a sandbox may hold: bytes, and files, of which each takes some memory too.

The kernel's own default is half of the machine's memory, for each of them.
"""

from __future__ import annotations

import os

DEFAULT_SIZE = 512 << 20
SIZES = dict.fromkeys(("/run", "/dev", "/dev/shm"), 64 << 20)
"""Where it is less, as with other runtimes."""

BLOCK = 4096  # what nr_blocks counts (tmpfs(5)), and the bytes for which there is one inode
FEWEST_FILES = 1024  # a /dev has some of its own
MOST_FILES = 1 << 40  # the kernel takes no more than 2**54


def limits(destination: str, wanted: int | None, given: str = "") -> list[str]:
    """The options of a tmpfs there, beside those given: `size` and `nr_inodes`, as far as these do
    not say. wanted: bytes, as the spec has it for all of them."""
    options = dict(option.partition("=")[::2] for option in given.split(",") if option)
    more = []
    if "size" in options:
        size = _bytes(options["size"])
    elif "nr_blocks" in options:
        size = _bytes(options["nr_blocks"]) * BLOCK
    else:
        size = wanted or SIZES.get(destination, DEFAULT_SIZE)
        more.append(f"size={size}")
    if size and "nr_inodes" not in options:  # size=0: as much as there is, by who asked for that
        more.append(f"nr_inodes={files_in(size)}")
    return more


def files_in(size: int) -> int:
    """How many files go with so many bytes."""
    return min(max(size // BLOCK, FEWEST_FILES), MOST_FILES)


def room_for(contents: list[int]) -> int:
    """The bytes that files of these sizes take."""
    return sum(-(-size // BLOCK) * BLOCK for size in contents)


def _bytes(text: str) -> int:
    """A number as the kernel reads it."""
    from fastns.limits import UNITS  # not where a start is to be quick and no size is given

    if text.endswith("%"):
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return memory * int(text[:-1]) // 100
    unit = text[-1].lower()
    return int(text[:-1]) * UNITS[unit] if unit.isalpha() else int(text)
