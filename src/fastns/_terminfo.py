"""The terminal database of a root: where an entry is, and which TERM fits a terminal.

Without an entry `clear`, `less` and `top` refuse to work, and a shell takes the terminal for one
without a cursor.
"""

from __future__ import annotations

from fastns import _inside

DATABASES = ("/etc/terminfo", "/lib/terminfo", "/usr/lib/terminfo", "/usr/share/terminfo")
ALIKE = ("xterm-256color", "xterm")
"""Entries that fit nearly every terminal of today, best first."""


def paths_of(term: str) -> list[str]:
    """Where the entry of a TERM may be. Empty if it cannot be a file name."""
    if not term or "/" in term or "\0" in term:
        return []
    letters = (term[0], f"{ord(term[0]):x}")  # of the directory: x, or 78 (term(5))
    return [f"{place}/{letter}/{term}" for place in DATABASES for letter in letters]


def term_of(root: str, term: str) -> str:
    """The caller's TERM if `root` has an entry for it, else the first of ALIKE that it has one for,
    else the caller's."""
    if term == "dumb":  # means the same without an entry
        return term
    return next((name for name in (term, *ALIKE) if _is_known(root, name)), term)


def _is_known(root: str, term: str) -> bool:
    return any(_inside.is_file(root, path) for path in paths_of(term))
