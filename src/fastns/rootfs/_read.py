"""Reads the host's files: only regular ones, and the words of a script's `#!` line."""

from __future__ import annotations

import errno
import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import BinaryIO

MAX_SHEBANG = 256
"""Bytes of the `#!` line that the kernel reads (execve(2))."""


def open_file(path: str) -> BinaryIO:
    """Open a regular file for reading. OSError for all else: a FIFO would wait for a writer."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "is no regular file", path)
    return open(fd, "rb")


def shebang(path: str) -> list[str]:
    """The words of a script's first line, the interpreter first; empty if there is no `#!`."""
    with open_file(path) as file:
        line = file.read(MAX_SHEBANG).split(b"\n", 1)[0]
    return os.fsdecode(line[2:]).split() if line.startswith(b"#!") else []


def run_by_env(words: list[str]) -> list[str]:
    """The command among the words after env(1): a list of one, or empty."""
    rest = iter(words)
    for word in rest:
        if word in ("-u", "-C", "--unset", "--chdir"):
            next(rest, None)
        elif word.startswith("-S") and len(word) > 2:
            return [word[2:]]
        elif not word.startswith("-") and "=" not in word:
            return [word]
    return []
