"""Output of the command line: errors and hints in one form, and streams that nobody may read."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import IO


class UsageError(Exception):
    """A wrong word on the command line: what is wrong, and what would be right."""

    def __init__(self, message: str, hint: str | None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def whole(word: str) -> int | None:
    """The number that a word of digits stands for. None for any other word, and for one with more
    digits than any limit here: int() refuses thousands of them."""
    return int(word) if word.isascii() and word.isdigit() and len(word) <= 20 else None


def closest(word: str, known: Iterable[str]) -> str | None:
    """The known word that this one is a misspelling of, or None: a resemblance is not enough.

    Dashes do not count. The same letters in another order are a misspelling of any word.
    """
    import difflib  # only an error needs it

    bare = {each.lstrip("-"): each for each in known}
    wanted = word.lstrip("-")
    near = difflib.get_close_matches(wanted, [*bare], n=1, cutoff=0.8)
    near += [each for each in bare if sorted(each) == sorted(wanted)]
    return bare[near[0]] if near else None


def say(text: str, end: str = "\n") -> None:
    """Write to stdout at once; nothing if it is closed.

    Raises UsageError when it cannot be written, BrokenPipeError when nobody reads it.
    """
    try:
        print(text, end=end, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        write_no_more(sys.stdout)
        raise UsageError(f"stdout: {error.strerror}", None) from None


def complain(message: object, hint: str | None = None) -> None:
    """Write an error to stderr, if possible: one line, and the hint in a second one."""
    if sys.stderr is None:
        return
    try:
        print("fastns:", _one_line(message), file=sys.stderr)
        if hint:
            advise(hint)
    except OSError:
        write_no_more(sys.stderr)


def advise(hint: str) -> None:
    """Write a hint to stderr, if possible."""
    if sys.stderr is None:
        return
    try:
        print("hint:", _one_line(hint), file=sys.stderr)
    except OSError:
        write_no_more(sys.stderr)


def write_no_more(file: IO[str] | None) -> None:
    """Send what a stream still buffers to /dev/null: written at exit it would fail once more."""
    if file is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())


def _one_line(text: object) -> str:
    return str(text).replace("\n", "\\n")
