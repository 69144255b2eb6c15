"""Runs each code block of the README and the guide, as a reader would.

The blocks of a page run in order in one directory, so later blocks find the files of earlier ones.
"""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import support

import fastns
from pages.blocks import Block, blocks_of, matches, pages_of

ROOT = Path(__file__).parents[2]
PAGES = {str(path.relative_to(ROOT)): path.read_text() for path in pages_of(ROOT)}
BLOCKS = [block for page, text in PAGES.items() for block in blocks_of(text, page)]
RUN = [block for block in BLOCKS if block.language in ("python", "sh", "console")]
TIME_LIMIT = 60


@pytest.fixture(scope="module")
def directory_of(public_dir: Path) -> Callable[[Block], Path]:
    """The directory in which a block runs, one for each page."""
    made: dict[str, Path] = {}

    def directory(block: Block) -> Path:
        if block.page not in made:
            path = public_dir / "pages" / block.page.replace("/", "-")
            path.mkdir(parents=True)
            for place in (path.parent, path):
                place.chmod(0o755)
            made[block.page] = path
        return made[block.page]

    return directory


def run(words: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{support.HOST_PATH}"
    return subprocess.run(
        words,
        cwd=cwd,
        env={**os.environ, "PATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        umask=0o022,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIME_LIMIT,
        check=False,
    )


@pytest.mark.parametrize("block", [b for b in RUN if not b.why_not_run], ids=lambda b: b.name)
def test_a_block(block: Block, directory_of: Callable[[Block], Path]) -> None:
    if block.needs == "root" and not support.is_root():
        support.skip_missing("root")
    if block.needs == "user" and support.is_root():
        support.skip_missing("an unprivileged user")
    if block.needs == "cgroups" and not support.has_cgroups():
        support.skip_missing("root or a delegated cgroup")
    cwd = directory_of(block)
    if block.language == "python":
        done = run([sys.executable, "-c", block.body], cwd)
        assert done.returncode == 0, done.stdout
        promised = "".join(f"{line}\n" for line in block.promised())
        assert not promised or matches(promised, done.stdout), done.stdout
    elif block.language == "sh":
        done = run(["bash", "-eu", "-c", block.body], cwd)
        assert done.returncode == 0, done.stdout
    else:
        for command, output in block.commands():
            done = run(["bash", "-c", command], cwd)
            assert matches(output, done.stdout), f"$ {command}\n{done.stdout}"


def test_most_blocks_are_run() -> None:
    """At most one block in five is left out."""
    left_out = [block.name for block in RUN if block.why_not_run]
    assert len(left_out) * 5 <= len(RUN), left_out


def test_readme_is_short() -> None:
    assert len(PAGES["README.md"].split()) <= 900


def test_the_reference_has_all_names() -> None:
    pages = "".join(path.read_text() for path in (ROOT / "docs" / "site").glob("*.rst"))
    named = set(re.findall(r"fastns\.(\w+)", pages))
    assert set(fastns.__all__) <= named


def test_the_guide_has_each_field_of_usage() -> None:
    page = PAGES["docs/guide/limits.md"]
    _, table = page.split("## What it used")
    assert [f.name for f in fields(fastns.Usage) if f"`{f.name}`" not in table] == []


def test_every_page_of_the_guide_can_be_found() -> None:
    """The guide's index and the site's contents list each page."""
    index = PAGES["docs/guide/index.md"]
    contents = (ROOT / "docs" / "site" / "contents.txt").read_text()
    for page in (ROOT / "docs" / "guide").glob("*.md"):
        assert page.stem == "index" or f"({page.name})" in index, page
        assert f"docs/guide/{page.stem}\n" in contents, page


def test_every_field_of_spec_is_documented() -> None:
    """The docstring, which the reference shows, has an entry for each field."""
    documented = re.findall(r"^ {8}(\w+):", fastns.Spec.__doc__ or "", re.MULTILINE)
    assert sorted(documented) == sorted(inspect.signature(fastns.Spec).parameters)


def test_links_are_valid() -> None:
    """Links to files of the repository, and to headings in these files, have targets."""
    pages = [*pages_of(ROOT), *sorted((ROOT / "docs").rglob("*.md"))]
    for page in [*pages, *ROOT.glob("*.md"), *(ROOT / "examples").glob("*.md")]:
        if not page.exists():  # the tests of an installed package lack some files
            continue
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            if "://" in target:
                continue
            name, _, heading = target.partition("#")
            file = page.parent / name if name else page
            assert file.exists(), f"{page}: {target}"
            if heading and file.suffix == ".md":
                assert heading in headings(file.read_text()), f"{page}: {target}"


def headings(text: str) -> set[str]:
    """The anchors that the headings of a page become when it is rendered."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


# ---- how blocks are extracted ----


def test_blocks_are_found() -> None:
    text = (
        "a\n\n```python\nprint(1)  # -> 1\n```\n"
        "\n<!-- not run: needs a moon -->\n```sh\ntrue\n```\n"
        "<!-- needs: root -->\n```console\n$ id -u\n0\n$ true\n```\n"
    )
    first, second, third = blocks_of(text, "page.md")
    assert (first.name, first.language, first.promised()) == ("page.md:4", "python", ["1"])
    assert second.why_not_run == "needs a moon"
    assert third.needs == "root"
    assert third.commands() == [("id -u", "0\n"), ("true", "")]


@pytest.mark.parametrize(
    "text", ["\n```ruby\nputs 1\n```\n", "\n```sh\ntrue\n", "\n<!-- needs: luck -->\n```sh\n```\n"]
)
def test_a_malformed_block_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"page\.md"):
        blocks_of(text, "page.md")


@pytest.mark.parametrize(
    ("expected", "output", "same"),
    [
        ("a\n", "a\n", True),
        ("a\n", "a\nb\n", False),
        ("a…c\n", "abc\n", True),
        ("a…c\n", "a\nc\n", False),
        ("a\n…\nd\n", "a\nb\nc\nd\n", True),
        ("a\n…\n", "a\n", True),
        ("a\n…\n", "b\n", False),
    ],
)
def test_output_is_compared(expected: str, output: str, same: bool) -> None:
    assert matches(expected, output) == same
