"""The source files of the Cython binding: each is short, and each declaration is used."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import support

SOURCES = support.TESTS.parent / "src" / "fastns"
MOST_LINES = 400


@pytest.fixture(scope="module")
def files() -> list[Path]:
    found = sorted(SOURCES.glob("_core*.p[yx][xi]"))
    if not found:
        support.skip_missing("the source of the binding")
    return found


def test_no_file_is_long(files: list[Path]) -> None:
    lines = {file.name: len(file.read_text().splitlines()) for file in files}
    assert "_core.pyx" in lines
    assert {name: n for name, n in lines.items() if n > MOST_LINES} == {}


def test_each_part_is_included_once(files: list[Path]) -> None:
    core = (SOURCES / "_core.pyx").read_text()
    parts = [file.name for file in files if file.suffix == ".pxi"]
    assert sorted(re.findall(r'^include "(.+)"', core, re.M)) == parts


def test_every_declared_function_and_constant_is_used(files: list[Path]) -> None:
    """Otherwise a declared constant could be missing in C without an error."""
    declared = (SOURCES / "_fastns.pxd").read_text()
    names = set(re.findall(r"\b(fns_\w+)\(", declared)) | set(re.findall(r"\bFNS_\w+", declared))
    used = set(re.findall(r"\bc\.(\w+)", "".join(file.read_text() for file in files)))
    assert names - used == set()
    assert len(names) > 50
