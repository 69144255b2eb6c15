"""`fastns doctor`: what works here, a line each, with the fix below what does not."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable

from fastns.cli import say
from fastns.doctor import Check, examine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fastns.cli._parser import Parser

EXIT_BASICS_FAIL = 1

MARKS = {True: "\N{CHECK MARK}", False: "\N{BALLOT X}", None: "\N{EN DASH}"}
ASCII_MARKS = {True: "+", False: "x", None: "-"}
NAME_WIDTH = 24


def add_parser(subparsers: argparse._SubParsersAction[Parser]) -> None:
    """Add the `doctor` verb."""
    parser = subparsers.add_parser(
        "doctor",
        usage="fastns doctor [--json]",
        description="Show what works on this machine, one line each, and how to fix the rest.",
        epilog="Exit code: 1 if something basic does not work, otherwise 0.",
    )
    parser.add_argument("--json", action="store_true", help="print the checks as a JSON list")


def main(flags: argparse.Namespace) -> int:
    """Print every check. Returns 1 when one of level "basic" fails."""
    checks = _print_json(examine()) if flags.json else _print_lines(examine())
    failed = any(check.ok is False and check.level == "basic" for check in checks)
    return EXIT_BASICS_FAIL if failed else 0


def _print_json(found: Iterable[Check]) -> list[Check]:
    import json
    from dataclasses import asdict

    checks = list(found)
    say(json.dumps([asdict(check) for check in checks], indent=2))
    return checks


def _print_lines(found: Iterable[Check]) -> list[Check]:
    marks = MARKS if _prints_unicode() else ASCII_MARKS
    checks: list[Check] = []
    last = None
    for check in found:
        checks.append(check)
        extra = " (extra)" if check.ok is False and check.level == "extra" else ""
        say(f"{marks[check.ok]} {check.name:<{NAME_WIDTH}} {check.detail}{extra}")
        if check.ok is False and check.fix:
            say("  fix: the same" if check.fix == last else f"  fix: {check.fix}")
            last = check.fix
    return checks


def _prints_unicode() -> bool:
    try:
        "".join(MARKS.values()).encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
