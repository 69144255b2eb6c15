"""Reads the options of `run` without argparse, whose import takes longer than a sandbox's start.

This module reads a command line if all its options are known and spelled out. Every other one, and
`--help`, goes to argparse, to which _flags.py adds the options of the same tables.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterable, Sequence
    from typing import Any, TypeAlias

    Flag: TypeAlias = tuple[str, str, str, str]  # kind, names, metavar, help
else:

    class Namespace:
        """Like argparse's: an attribute for each option, and `command`."""

        wrong = None  # set only by a Parser, which reads every line with an error


# Kinds of flags. A SWITCH has no value, a ONE keeps its last value, and MANY and MOUNT keep all.
# Mounts of every kind go into one list, in order, because a later mount may cover an earlier one.
SWITCH, ONE, MANY, MOUNT = "switch", "one", "many", "mount"


def parse(tables: Iterable[Iterable[Flag]], words: Sequence[str]) -> Namespace | None:
    """The options and the command, or None if argparse is needed."""
    found = Namespace()
    values: dict[str, Any] = vars(found)
    known = {}
    for table in tables:
        for kind, names, _, _ in table:
            options = names.split()
            long = next((name for name in options if name.startswith("--")), options[0])
            place = "mounts" if kind == MOUNT else long.lstrip("-").replace("-", "_")
            values[place] = False if kind == SWITCH else None if kind == ONE else []
            for name in options:
                known[name] = kind, place, options[-1]
    at, n_words = 0, len(words)
    while at < n_words:
        word = words[at]
        if word == "-" or not word.startswith("-"):
            break
        at += 1
        if word == "--":
            break
        name, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
        if name not in known:
            return None
        kind, place, last = known[name]
        if kind == SWITCH:
            if equals:
                return None
            values[place] = True
            continue
        if not equals:
            if at == n_words or words[at].startswith("-"):
                return None
            value = words[at]
            at += 1
        if kind == ONE:
            values[place] = value
        else:
            values[place].append((last, value) if kind == MOUNT else value)
    values["command"] = list(words[at:])
    return found
