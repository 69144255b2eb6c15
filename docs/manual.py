"""Writes docs/fastns.1, the manual page, from the parsers of the command line (`make manual`).

A test compares the two, so the page always says what --help says.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from fastns.cli._outline import Option, Verb, verbs

PAGE = Path(__file__).with_name("fastns.1")

HEAD = r"""
.\" Written by docs/manual.py: make manual.
.TH FASTNS 1 "" "fastns" "User Commands"
.SH NAME
fastns \- run commands in isolated processes (Linux namespaces)
.SH SYNOPSIS
"""
ABOUT = r"""
.SH DESCRIPTION
Each sandbox is a process with its own namespaces. Without
.B \-\-rootfs
it sees the system directories of the host, read-only, and a /tmp of its own. It has no network but
lo, and does not inherit the caller's environment.
.PP
An error is one line on stderr. A second line, if there is one, is a hint on how to fix it.
"""
FOOT = r"""
.SH SEE ALSO
.BR unshare (1),
.BR namespaces (7),
.BR user_namespaces (7),
.BR cgroups (7),
.BR seccomp (2),
.BR landlock (7)
"""


def page() -> str:
    """Return the text of the page."""
    found = [*verbs()]
    parts = [HEAD.lstrip("\n")]
    parts += [_synopsis(verb) for verb in found]
    parts.append(ABOUT.lstrip("\n"))
    parts += [_section(verb, found[0]) for verb in found]
    parts.append(FOOT.lstrip("\n"))
    return "".join(parts)


def _synopsis(verb: Verb) -> str:
    return f".B {_text(' '.join(verb.usage.split()))}\n.br\n"


def _section(verb: Verb, first: Verb) -> str:
    """The section of a verb. Options that it shares with `run` are listed only under `run`."""
    name = " ".join(filter(None, ("fastns", verb.name, verb.action)))
    lines = [f".SH {_text(name.upper())}", _text(verb.about)]
    title = ""
    for option in verb.options:
        if verb is first or option not in first.options:
            if option.title != title:
                title = option.title
                lines.append(f".SS {_text(title)}")
            lines += _option(option)
    if verb is not first and len(set(verb.options) & set(first.options)) > 1:
        lines += [
            ".PP",
            "It also takes the options of",
            ".B fastns run",
            "that describe a sandbox.",
        ]
    if verb.epilog:
        lines += [".PP", *_epilog(verb.epilog)]
    return "\n".join([*lines, ""])


def _option(option: Option) -> list[str]:
    names = ", ".join(rf"\fB{_text(name)}\fR" for name in option.names)
    value = rf" \fI{_text(option.metavar)}\fR" if option.metavar else ""
    return [".TP", f"{names}{value}", _text(option.help)]


def _epilog(text: str) -> list[str]:
    """Format an epilog as one paragraph, or line by line if it has several lines."""
    if "\n" not in text:
        return [_text(text)]
    lines = [_text(line) or "" for line in text.rstrip("\n").split("\n")]
    return [".nf", *lines, ".fi"]


def _text(text: str) -> str:
    """Escape text for roff, which takes a leading dot for a request and a dash for a hyphen."""
    escaped = text.replace("\\", r"\e").replace("-", r"\-").replace("%%", "%")
    return re.sub(r"(?m)^([.'])", r"\&\1", escaped)


if __name__ == "__main__":
    PAGE.write_text(page())
    sys.stdout.write(f"{PAGE}\n")
