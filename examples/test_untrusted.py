"""pytest fixtures for code that you do not trust: generated programs, plug-ins, students' work.

    pytest test_untrusted.py

Each call of `execute` uses a new sandbox, from a template that the whole session shares.
"""

from collections.abc import Callable, Iterator

import pytest

import fastns
from fastns import Spec, Template

Execute = Callable[[str], fastns.CompletedSandbox]

GENERATED = """
def median(values):
    values = sorted(values)
    middle = len(values) // 2
    return values[middle] if len(values) % 2 else sum(values[middle - 1 : middle + 1]) / 2
"""


@pytest.fixture(scope="session")
def template() -> Iterator[Template]:
    with Template(Spec(max_output="1m")) as template:
        yield template


@pytest.fixture
def execute(template: Template) -> Execute:
    """Returns a function that runs Python source for at most 10 seconds. Output is text."""

    def run(source: str) -> fastns.CompletedSandbox:
        return template.run(
            ["python3", "-I", "-c", source], capture_output=True, text=True, timeout=10
        )

    return run


@pytest.mark.parametrize(("values", "expected"), [("[3, 1, 2]", "2"), ("[4, 1]", "2.5")])
def test_generated_code(execute: Execute, values: str, expected: str) -> None:
    done = execute(f"{GENERATED}\nprint(median({values}))")
    assert (done.returncode, done.stdout.strip()) == (0, expected), done.stderr


def test_network_is_unreachable(execute: Execute) -> None:
    """A sandbox has no network but lo, so every other address is unreachable."""
    done = execute("import socket; socket.create_connection(('192.0.2.1', 80), timeout=5)")
    assert "Network is unreachable" in done.stderr


def test_no_file_survives_a_call(execute: Execute) -> None:
    """A file in /tmp is gone in the next call, because each call has a new sandbox."""
    assert execute("open('/tmp/x', 'w').close()").returncode == 0
    assert "No such file" in execute("open('/tmp/x')").stderr
