"""Reads the options of `run` without argparse, whose import takes longer than a sandbox to start.

The declarations are those for argparse. A command line whose options are all known and spelled out
is read here. Any other, and `--help`, is left to argparse.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Sequence
    from typing import Any
else:

    class Namespace:
        """An attribute for each option, and `command`, as in argparse's."""

        wrong = None  # only a Parser sets it: a line with an error is not read here


class Options:
    """Accepts the declarations of ArgumentParser that `run` makes."""

    like_docker = keeps_error = options_first = False  # only argparse reads these

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, str | None, Callable[[str], Any] | None]] = {}
        self._defaults: dict[str, Any] = {}

    def add_argument_group(self, title: str) -> Options:
        return self

    def add_argument(
        self,
        *names: str,
        help: str,
        metavar: str | None = None,
        action: str | None = None,
        dest: str | None = None,
        type: Callable[[str], Any] | None = None,
        default: Any = None,
    ) -> None:
        if action not in (None, "append", "store_true"):
            raise ValueError(f"{names}: action {action!r} is not supported here")
        long = next((name for name in names if name.startswith("--")), names[0])
        place = dest or long.lstrip("-").replace("-", "_")
        for name in names:
            self._known[name] = (place, action, type)
        self._defaults[place] = False if action == "store_true" else default

    def parse(self, words: Sequence[str]) -> Namespace | None:
        """The options and the command, or None if argparse is needed."""
        found = Namespace()
        values = vars(found)
        for place, default in self._defaults.items():
            values[place] = list(default) if isinstance(default, list) else default
        at, n_words = 0, len(words)
        while at < n_words:
            word = words[at]
            if word == "-" or not word.startswith("-"):
                break
            at += 1
            if word == "--":
                break
            name, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
            if name not in self._known:
                return None
            place, action, kind = self._known[name]
            if action == "store_true":
                if equals:
                    return None
                values[place] = True
                continue
            if not equals:
                if at == n_words or words[at].startswith("-"):
                    return None
                value = words[at]
                at += 1
            given = kind(value) if kind is not None else value
            if action == "append":
                values[place].append(given)
            else:
                values[place] = given
        values["command"] = list(words[at:])
        return found
