"""Finds the code blocks of a Markdown page and the output that each must print.

A block is fenced and has a language. Blocks in these languages are run:

    python    as a program. If it has comments `# -> TEXT`, these are the lines of its output.
    sh        by `bash -eu`; its status must be 0.
    console   a line that starts with `$ ` is a command, and the lines below it are its output.

In expected output `…` stands for any text or, alone on a line, for any number of lines. A comment
before a block, invisible to readers, may be:

    <!-- not run: REASON -->             it changes the machine, or needs something that no test has
    <!-- needs: root|user|cgroups -->    it is skipped for other users
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

RUN = ("python", "sh", "console")
SHOWN = ("text", "json")
"""Languages of blocks that are only shown."""
NEEDS = ("root", "user", "cgroups")

_FENCE = re.compile(
    r"(?:^<!-- (?P<mark>not run|needs): (?P<value>[^\n]+?) -->\n)?"
    r"^```(?P<language>[^\n]*)\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_PROMISE = re.compile(r"# -> (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block. `line` is the number of its first line of code."""

    page: str
    line: int
    language: str
    body: str
    why_not_run: str | None = None
    needs: str | None = None

    @property
    def name(self) -> str:
        return f"{self.page}:{self.line}"

    def promised(self) -> list[str]:
        """The lines of output that the comments of a python block promise."""
        return _PROMISE.findall(self.body)

    def commands(self) -> list[tuple[str, str]]:
        """The commands of a console block, each with its output."""
        found: list[tuple[str, str]] = []
        for line in self.body.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], ""))
            elif found:
                command, output = found[-1]
                found[-1] = (command, f"{output}{line}\n")
            else:
                raise ValueError(f"{self.name}: a console block begins with a command, '$ '")
        return found


def blocks_of(text: str, page: str) -> list[Block]:
    """The blocks of a page, in order. Raises ValueError if a language or mark is unknown."""
    found = []
    for match in _FENCE.finditer(text):
        line = text.count("\n", 0, match.start("body")) + 1
        language, mark, value = match["language"], match["mark"], match["value"]
        if language not in RUN + SHOWN:
            raise ValueError(f"{page}:{line}: {language!r}: one of {', '.join(RUN + SHOWN)}")
        if mark == "needs" and value not in NEEDS:
            raise ValueError(f"{page}:{line}: needs {value!r}: one of {', '.join(NEEDS)}")
        found.append(
            Block(
                page,
                line,
                language,
                match["body"],
                why_not_run=value if mark == "not run" else None,
                needs=value if mark == "needs" else None,
            )
        )
    if text.count("\n```") != 2 * len(found):
        raise ValueError(f"{page}: a block that is not closed, or is indented")
    return found


def pages_of(root: Path) -> list[Path]:
    """README.md and the pages of the guide."""
    return [root / "README.md", *sorted((root / "docs" / "guide").glob("*.md"))]


def matches(expected: str, output: str) -> bool:
    """Whether the output matches; `…` stands for any text."""
    pattern = ""
    for line in expected.splitlines(keepends=True):
        if line.strip() == "…":
            pattern += r"(?:.*\n)*?"
        else:
            pattern += ".*".join(re.escape(part) for part in line.split("…"))
    return re.fullmatch(pattern, output) is not None
