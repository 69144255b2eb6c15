"""Lists every verb with its options, for completion and the manual page, by reading the parsers."""

from __future__ import annotations

import argparse

from fastns._light import record
from fastns.cli import VERBS
from fastns.cli._parser import Parser, parser_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

CHOICES = {
    "--network": "none host",
    "--userns": "auto host private keep-id",
    "--on-output-limit": "truncate kill",
    "--security-opt": "no-new-privileges=false seccomp=unconfined systempaths=unconfined",
    "--with": "python perl gcc network",
    "MODE": "private host",
}
"""Option or metavar -> the words that completion offers as its value."""


@record(frozen=True)
class Option:
    """An option of a verb."""

    title: str  # of its group; "" for options in no titled group
    names: tuple[str, ...]
    metavar: str  # of its value; "" if it takes none
    help: str
    choices: tuple[str, ...]
    is_directory: bool


@record(frozen=True)
class Verb:
    """A command of fastns; `action` is the word after it, such as "build", or ""."""

    name: str
    action: str
    usage: str
    about: str
    options: tuple[Option, ...]
    epilog: str
    runs_command: bool  # a command with arguments of its own follows the options


def verbs() -> Iterator[Verb]:
    """Yields all verbs, in the order of the help."""
    for name in VERBS:
        parser = parser_of(name)
        actions = [each for each in parser._actions if each.nargs == argparse.PARSER]
        if not actions:
            yield _verb(name, "", parser)
        for action in actions:
            assert isinstance(action.choices, dict)
            for word, below in action.choices.items():
                yield _verb(name, word, below)


def _verb(name: str, action: str, parser: Parser) -> Verb:
    usage = parser.format_usage().removeprefix("usage: ").strip()
    options: list[Option] = []
    for group in parser._action_groups:
        title = "" if group.title == "options" else group.title or ""
        shown = [each for each in group._group_actions if each.help != argparse.SUPPRESS]
        options += [_option(title, each) for each in shown if each.option_strings]
    about, epilog = parser.description or "", parser.epilog or ""
    return Verb(name, action, usage, about, tuple(options), epilog, parser.options_first)


def _option(title: str, action: argparse.Action) -> Option:
    names = tuple(action.option_strings)
    metavar = "" if action.nargs == 0 else str(action.metavar or action.dest.upper())
    words = CHOICES.get(names[-1]) or CHOICES.get(names[0]) or CHOICES.get(metavar, "")
    help = action.help or ""
    return Option(title, names, metavar, help, tuple(words.split()), metavar == "DIR")
