"""`fastns doctor`: shows what works here, one line each, with a fix below each failure."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict

from fastns.cli import say
from fastns.doctor import Check, examine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fastns.cli._parser import Parser

USAGE = "fastns doctor [--json]"
ABOUT = "Show what works on this machine, one line each, and how to fix the rest."
EPILOG = """\
A check mark: it works. A cross: it does not. A dash: the line states a fact.
"(extra)": a default sandbox does not need it.

Exit code: 1 if something basic does not work, otherwise 0.
"""
EXIT_BASICS_FAIL = 1

MARKS = {True: "\N{CHECK MARK}", False: "\N{BALLOT X}", None: "\N{EN DASH}"}
ASCII_MARKS = {True: "+", False: "x", None: "-"}
NAME_WIDTH = 24


def declare(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="print the checks as a JSON list")


def main(flags: argparse.Namespace) -> int:
    checks = [*examine()] if flags.json else [*_printed(examine())]
    if flags.json:
        say(json.dumps([asdict(check) for check in checks], indent=2))
    failed = any(check.ok is False and check.level == "basic" for check in checks)
    return EXIT_BASICS_FAIL if failed else 0


def _printed(found: Iterable[Check]) -> Iterator[Check]:
    """Prints each check as soon as it is made, and yields it."""
    marks = MARKS if _prints_unicode() else ASCII_MARKS
    last = None
    for check in found:
        extra = " (extra)" if check.ok is False and check.level == "extra" else ""
        say(f"{marks[check.ok]} {check.name:<{NAME_WIDTH}} {check.detail}{extra}")
        if check.ok is False and check.fix:
            say("  fix: the same" if check.fix == last else f"  fix: {check.fix}")
            last = check.fix
        yield check


def _prints_unicode() -> bool:
    try:
        "".join(MARKS.values()).encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
