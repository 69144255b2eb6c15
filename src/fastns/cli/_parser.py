"""argparse, with errors in the form that fastns uses."""

from __future__ import annotations

import argparse
import importlib

from fastns.cli._words import UsageError, closest, say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, NoReturn


class Formatter(argparse.HelpFormatter):
    """Shows the metavar once for all names of an option, and does not wrap text with newlines."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        text = ", ".join(action.option_strings)
        if not text or action.nargs == 0:
            return text or super()._format_action_invocation(action)
        return f"{text} {action.metavar}"

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises UsageError and accepts no shortened flags.

    Attributes:
        options_first: the first word that is not an option ends the options. It and all words
            after it become `namespace.command`.
        keeps_error: an error is stored as `namespace.wrong` (None if there is none) instead of
            being raised. The flags before it are kept.
        like_docker: the error for an option that only docker has says what to use instead.
        about_words: the hint in the error for a word that is not an option; "": refer to --help.
    """

    options_first = False
    keeps_error = False
    like_docker = False
    about_words = ""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=Formatter, **options)
        self._words: Sequence[str] = ()

    def error(self, message: str) -> NoReturn:
        import re

        rest = message.partition("ignored explicit argument '")[2].removesuffix("'")
        for word in self._words:  # for `-td`, with -t known, Python 3.11 names only 'd'
            if rest and re.fullmatch(rf"-\w+{re.escape(rest)}", word):
                raise self._unknown(word)
        raise UsageError(message, f"see {self.prog} --help")

    def print_help(self, file: object = None) -> None:
        """Prints to stdout. Unlike argparse, reports a failure to write."""
        say(self.format_help(), end="")

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """Raises UsageError, and SystemExit after `--help`."""
        namespace = argparse.Namespace(wrong=None)
        if self.options_first:
            words, namespace.command = self.split(words)
        self._words = words
        try:
            _, unknown = self.parse_known_args(words, namespace)
            if unknown:
                raise self._unknown(unknown[0])
        except UsageError as error:
            if not self.keeps_error:
                raise
            namespace.wrong = error
        return namespace

    def split(self, words: Sequence[str]) -> tuple[list[str], list[str]]:
        """Splits words into the options with their values, and the command with its arguments."""
        index = 0
        while index < len(words):
            word = words[index]
            if word == "--":
                return list(words[:index]), list(words[index + 1 :])
            if word == "-" or not word.startswith("-"):
                break
            index += 2 if self._wants_next(word) else 1
        return list(words[:index]), list(words[index:])

    def _wants_next(self, word: str) -> bool:
        """Whether the value of this option is the next word."""
        long = word.startswith("--")
        for place, option in enumerate([word] if long else [f"-{letter}" for letter in word[1:]]):
            action = self._option_string_actions.get(option)
            if action is not None and action.nargs != 0:
                return long or place == len(word) - 2
        return False

    def _unknown(self, word: str) -> UsageError:
        if word in ("-", "--") or not word.startswith("-"):
            hint = self.about_words or f"see {self.prog} --help"
            return UsageError(f"unexpected argument: {word}", hint)
        option = word.split("=", 1)[0] if word.startswith("--") else self._unknown_letter(word)
        if self.like_docker:
            from fastns.cli._docker import OPTIONS

            if option in OPTIONS:
                return UsageError(f"unknown option: {option}", OPTIONS[option])
        known = self._begun_by(option) or closest(option, self._option_string_actions)
        return UsageError(
            f"unknown option: {option}",
            f"did you mean {known}?" if known else f"see {self.prog} --help",
        )

    def _begun_by(self, option: str) -> str:
        """The options that this one is the beginning of, as in `--mem`, as words of a question."""
        if not option.startswith("--") or len(option) < len("--ab"):
            return ""
        shown = (action for action in self._actions if action.help != argparse.SUPPRESS)
        names = (name for action in shown for name in action.option_strings)
        return " or ".join(name for name in names if name.startswith(option))

    def _unknown_letter(self, word: str) -> str:
        """The unknown letter, such as `-d` in `-itd`; the whole word if it is a long option with
        only one dash."""
        if f"-{word}" in self._option_string_actions:
            return word
        letters = (f"-{letter}" for letter in word[1:])
        return next((each for each in letters if each not in self._option_string_actions), word)


def parser_of(verb: str) -> Parser:
    """The parser that the module of a verb declares."""
    module = importlib.import_module(f"fastns.cli.{verb}")
    parser = Parser(
        prog=f"fastns {verb}", usage=module.USAGE, description=module.ABOUT, epilog=module.EPILOG
    )
    module.declare(parser)
    return parser
