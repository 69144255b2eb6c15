"""The terminal database of a root: where entries are, and which TERM to set.

Without an entry, `clear`, `less` and `top` refuse to work, and shells cannot move the cursor.
"""

from __future__ import annotations

from fastns import _inside

DATABASES = ("/etc/terminfo", "/lib/terminfo", "/usr/lib/terminfo", "/usr/share/terminfo")
ALIKE = ("xterm-256color", "xterm")  # entries that fit nearly every terminal, best first


def paths_of(term: str) -> list[str]:
    """Where the entry of a TERM may be; empty if TERM is no file name."""
    if not term or "/" in term or "\0" in term:
        return []
    letters = (term[0], f"{ord(term[0]):x}")  # names of its directory: x, or 78 (term(5))
    return [f"{place}/{letter}/{term}" for place in DATABASES for letter in letters]


def term_of(root: str, term: str) -> str:
    """The caller's TERM; if it has no entry in `root`, the first of ALIKE that has one, if any."""
    if term == "dumb":  # programs know it without an entry
        return term
    for name in (term, *ALIKE):
        if any(_inside.is_file(root, path) for path in paths_of(name)):
            return name
    return term
