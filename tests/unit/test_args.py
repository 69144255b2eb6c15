"""The arguments of one spawn: argv, environment, working directory and timeout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastns._args import check_args, check_cwd, check_env, check_timeout
from fastns.errors import SpecError

INVALID: list[tuple[Callable[[Any], object], Any, str, str]] = [
    (check_args, "ls -l", "args", "expected a list such as ['sh', '-c'"),
    (check_args, b"ls", "args", "expected a list"),
    (check_args, Path("/bin/ls"), "args", "expected a list"),
    (check_args, {"ls": 1}, "args", "expected a list"),
    (check_args, {"ls"}, "args", "expected a list"),
    (check_args, None, "args", "a list of str, bytes or paths"),
    (check_args, 5, "args", "a list of str, bytes or paths"),
    (check_args, [], "args", "expected a command"),
    (check_args, [""], "args", "an empty string"),
    (check_args, ["ls", 5], "args", "5: expected str, bytes or a path"),
    (check_args, ["ls", None], "args", "None: expected str, bytes or a path"),
    (check_args, ["ls", "a\0b"], "args", "NUL"),
    (check_args, ["ls", b"a\0b"], "args", "NUL"),
    (check_args, ["ls", "\ud800"], "args", "surrogate"),
    (check_args, ["ls", "x" * 131072], "args", "131072 bytes, the limit is 131071"),
    (check_env, None, "env", "a mapping"),
    (check_env, ["A=b"], "env", "a mapping"),
    (check_env, {"": ""}, "env", "a name without '='"),
    (check_env, {"A=": ""}, "env", "a name without '='"),
    (check_env, {b"A=": ""}, "env", "a name without '='"),
    (check_env, {"A": "b\0"}, "env", "NUL"),
    (check_env, {"A": 1}, "env", "str or bytes"),
    (check_env, {"A": Path("/")}, "env", "str or bytes"),
    (check_env, {"A": "x" * 131070}, "env", "131072 bytes, the limit is 131071"),
    (check_cwd, "tmp", "cwd", "an absolute path"),
    (check_cwd, "", "cwd", "an absolute path"),
    (check_cwd, 5, "cwd", "str, bytes or a path"),
    (check_cwd, "/\0", "cwd", "NUL"),
    (check_cwd, "/" + "x" * 4095, "cwd", "the limit is 4095"),
    (check_timeout, "5", "timeout", "seconds as a number"),
    (check_timeout, True, "timeout", "seconds as a number"),
    (check_timeout, float("nan"), "timeout", "or None"),
    (check_timeout, float("inf"), "timeout", "or None"),
]


@pytest.mark.parametrize(("check", "value", "field", "words"), INVALID)
def test_refused(check: Callable[[Any], object], value: Any, field: str, words: str) -> None:
    """An invalid argument is a SpecError that names the field and the reason."""
    with pytest.raises(SpecError) as caught:
        check(value)
    assert caught.value.field == field
    assert words in caught.value.reason
    assert len(str(caught.value)) < 200


def test_args_become_bytes() -> None:
    assert check_args(["a", b"\xff", Path("/x"), "\udcfe", "é", ""]) == (
        b"a",
        b"\xff",
        b"/x",
        b"\xfe",
        "é".encode(),
        b"",
    )
    assert check_args(("x" * 131071,)) == (b"x" * 131071,)


def test_env_cwd_and_timeout() -> None:
    """Names and paths become bytes, a timeout becomes nanoseconds."""
    assert check_env({"A": "b", b"C": b"\xff", "E": ""}) == (b"A=b", b"C=\xff", b"E=")
    assert check_env({}) == ()
    assert check_env({"A": "x" * 131069}) == (b"A=" + b"x" * 131069,)
    assert check_cwd(Path("/x")) == b"/x"
    assert check_cwd("/a/../b") == b"/a/../b"
    assert check_timeout(None) is None
    assert check_timeout(1.5) == 1_500_000_000
    assert check_timeout(-1) == 0
