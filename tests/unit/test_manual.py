"""The manual page, docs/fastns.1, is up to date and has every option that --help has."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from types import ModuleType

import pytest
import support

from fastns.cli import VERBS, main
from fastns.cli._outline import verbs

DOCS = support.TESTS.parent / "docs"


@pytest.fixture(scope="module")
def manual() -> ModuleType:
    spec = importlib.util.spec_from_file_location("manual", DOCS / "manual.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(manual: ModuleType) -> None:
    assert (DOCS / "fastns.1").read_text() == manual.page(), "out of date: run make manual"


def test_it_has_every_option_of_help(
    manual: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    page = manual.page().replace("\\", "")
    for verb in verbs():
        assert main([*filter(None, (verb.name, verb.action)), "--help"]) == 0
        shown = re.findall(r"(?<![\w-])--[a-z][a-z-]+", capsys.readouterr().out)
        assert shown
        for option in shown:
            assert option in page, (verb.name, option)
    assert all(f"FASTNS {name.upper()}" in page for name in VERBS)


def test_hidden_options_are_left_out(manual: ModuleType) -> None:
    """`fastns compile` accepts some options of `fastns run` only to refuse them by name."""
    assert "SUPPRESS" not in manual.page()
    compile = next(verb for verb in verbs() if verb.name == "compile")
    assert "--memory" not in {name for option in compile.options for name in option.names}


def test_text_is_escaped(manual: ModuleType) -> None:
    """Otherwise groff takes a line that begins with a dot for a request."""
    assert manual._text(".x -y\n'z \\") == "\\&.x \\-y\n\\&'z \\e"
    if shutil.which("groff") is None:
        support.skip_missing("groff")
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", "-z", str(DOCS / "fastns.1")],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
