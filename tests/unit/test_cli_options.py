"""The options of `run`: if they are simple, they are parsed without argparse."""

from __future__ import annotations

from typing import Any

import pytest

from fastns.cli import UsageError, _options, run
from fastns.cli._parser import parser_of

PLAIN = [
    [],
    ["true"],
    ["--", "true", "--init"],
    ["true", "--init", "-v"],
    ["--init", "--read-only", "sh", "-c", "x"],
    ["--hostname", "a", "--hostname=b", "true"],
    ["--hostname=", "true"],
    ["--env=A=b=c", "-e", "D", "-e", "", "--", "--init"],
    ["-v", "/a:/b", "--tmpfs", "/c", "--mount", "type=tmpfs,dst=/d", "-v", "/e:/f:ro", "-"],
    ["-m", "64m", "--cpus", "1.5", "-u", "1:2", "-w", "/tmp", "--timeout", "2s", "x"],
    ["--rm", "-i", "-t", "--dry-run", "--status-fd", "3", "x"],
    ["--", "--"],
]
NEEDS_ARGPARSE = [
    ["--help"],
    ["--memory-swap", "-1", "true"],
    ["-it", "true"],
    ["-v/a:/b", "true"],
    ["-e=A", "true"],
    ["--hostnam", "a", "true"],
    ["--init=1", "true"],
    ["--hostname"],
    ["--hostname", "--init", "true"],
    ["--hostname", "--", "true"],
    ["---", "true"],
]


def by_argparse(words: list[str]) -> dict[str, Any]:
    found = vars(parser_of("run").parse(words))
    assert found.pop("wrong") is None
    return found


def without(words: list[str]) -> dict[str, Any] | None:
    found = _options.parse(run.FLAGS.values(), words)
    return None if found is None else vars(found)


@pytest.mark.parametrize("words", PLAIN, ids=" ".join)
def test_both_give_the_same_result(words: list[str]) -> None:
    assert without(words) == by_argparse(words)


@pytest.mark.parametrize("words", NEEDS_ARGPARSE, ids=" ".join)
def test_options_left_to_argparse(words: list[str]) -> None:
    assert without(words) is None


def test_every_option_is_known_to_both() -> None:
    actions = parser_of("run")._actions[1:]  # not --help
    assert len(actions) > 50
    for action in actions:
        for name in action.option_strings:
            words = [name, "x", "y"] if action.nargs is None else [name, "y"]
            assert without(words) == by_argparse(words), name


def test_lists_are_not_shared() -> None:
    flags = run.FLAGS.values()
    one, two = _options.parse(flags, ["-e", "A", "x"]), _options.parse(flags, ["x"])
    assert one is not None
    assert two is not None
    assert (one.env, two.env) == (["A"], [])


def test_argparse_words_the_errors() -> None:
    with pytest.raises(UsageError, match="expected one argument"):
        raise vars(parsed_with_error(["--hostname"]))["wrong"]


def parsed_with_error(words: list[str]) -> Any:
    return parser_of("run").parse(words)
