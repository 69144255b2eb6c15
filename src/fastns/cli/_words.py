"""Prints errors and hints in one form, and copes with streams that have no reader."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import IO


class UsageError(Exception):
    """The command line is wrong. Says why, and hints at what would be right."""

    def __init__(self, message: str, hint: str | None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class Naming:
    """Turns an OSError in its block, except a broken pipe, into a UsageError that names `what`."""

    def __init__(self, what: str, hint: str | None) -> None:
        self.what = what
        self.hint = hint

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
            raise UsageError(f"{self.what}: {error.strerror}", self.hint) from None


def whole(word: str) -> int | None:
    """The value of a word of digits, or None for any other word. Also None for more digits than any
    limit here has, because int() raises ValueError for thousands of them."""
    return int(word) if word.isascii() and word.isdigit() and len(word) <= 20 else None


def closest(word: str, known: Iterable[str]) -> str | None:
    """The known word that this one misspells, or None if none is close.

    Leading dashes are ignored. The same letters in another order always count as a misspelling.
    """
    import difflib  # only an error needs it

    bare = {each.lstrip("-"): each for each in known}
    wanted = word.lstrip("-")
    near = difflib.get_close_matches(wanted, [*bare], n=1, cutoff=0.8)
    near += [each for each in bare if sorted(each) == sorted(wanted)]
    return bare[near[0]] if near else None


def say(text: str, end: str = "\n") -> None:
    """Writes to stdout and flushes it. Does nothing if stdout is closed.

    Raises BrokenPipeError if stdout has no reader, and UsageError for any other failure.
    """
    try:
        print(text, end=end, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        write_no_more(sys.stdout)
        raise UsageError(f"stdout: {error.strerror}", None) from None


def complain(message: object, hint: str | None = None) -> None:
    """Writes an error to stderr, if possible: the message in one line, the hint in a second."""
    _write_line("fastns:", message)
    if hint:
        advise(hint)


def advise(hint: str) -> None:
    """Writes a hint to stderr, if possible."""
    _write_line("hint:", hint)


def _write_line(label: str, text: object) -> None:
    if sys.stderr is None:
        return
    try:
        print(label, str(text).replace("\n", "\\n"), file=sys.stderr)
    except OSError:
        write_no_more(sys.stderr)


def write_no_more(file: IO[str] | None) -> None:
    """Redirects a stream to /dev/null, because a write of its buffer at exit would fail again."""
    if file is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())
