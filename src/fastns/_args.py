"""Checks of single values: numbers, text, paths, and the arguments of each spawn.

All raise SpecError, which names the field.
"""

from __future__ import annotations

import os
import posixpath
from _collections_abc import Iterable, Mapping, Sequence

from fastns.errors import SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAX_STRING = 131071  # bytes of one argument or environment entry (MAX_ARG_STRLEN, execve(2))
MAX_PATH = 4095  # bytes of a path, without its NUL (PATH_MAX)
MAX_FILE_NAME = 255  # bytes of one name in a path (NAME_MAX)
MAX_TIMEOUT = 2**32  # seconds
MAX_ID = 2**32 - 2  # 2**32 - 1 is "no id" (setresuid(2))


def shown(value: object) -> str:
    """A value as error messages show it: at most 60 characters of its repr."""
    try:
        text = repr(value)
    except Exception as exc:  # an int of more than 4300 digits, or a class with a bad __repr__
        text = f"{type(value).__name__} ({exc})"
    return text if len(text) <= 60 else text[:57] + "..."


def wrong(field: str, value: object, expected: str, where: str = "") -> SpecError:
    """The error for a bad value. where: a prefix that says which part of the field is bad."""
    return SpecError(field, f"{where}{shown(value)}: expected {expected}")


def check_whole(field: str, value: object, low: int, high: int, where: str = "") -> int:
    """Checks that a value is a whole number from `low` to `high`. where: as in wrong()."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise wrong(field, value, f"a whole number from {low} to {high}", where)
    return value


def check_one_of(field: str, value: object, words: Iterable[str], where: str = "") -> None:
    """Checks that a value is one of `words`. where: as in wrong()."""
    if value not in (accepted := tuple(words)):
        raise wrong(field, value, f"one of {', '.join(accepted)}", where)


def check_list(field: str, value: Any, what: str) -> tuple[Any, ...]:
    """Returns a sequence other than str or bytes as a tuple. what: describes its items."""
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise wrong(field, value, f"a list {what}")
    return tuple(value)


def encode(field: str, value: Any, limit: int = MAX_STRING) -> bytes:
    """Returns a str, bytes or path as at most `limit` bytes without NUL."""
    try:
        data = os.fsencode(value)
    except TypeError:
        raise wrong(field, value, "str, bytes or a path") from None
    except UnicodeEncodeError:
        raise wrong(
            field, value, "text without surrogates other than those of os.fsdecode()"
        ) from None
    if b"\0" in data:
        raise wrong(field, value, "text without NUL bytes")
    if len(data) > limit:
        raise SpecError(field, f"{shown(value)}: {len(data)} bytes, the limit is {limit}")
    return data


def check_path(field: str, value: Any) -> str:
    """Returns a path, of this process or inside the sandbox, as str."""
    if isinstance(value, bytes) or not isinstance(value, str | os.PathLike):
        raise wrong(field, value, "a path as str or PathLike")
    text = os.fspath(value)
    if not isinstance(text, str) or not text:
        raise wrong(field, value, "a path that is not empty")
    encode(field, text, MAX_PATH)
    return text


def check_inside(field: str, value: Any) -> str:
    """Returns an absolute path inside the sandbox, other than "/", normalized."""
    text = check_path(field, value)
    if not text.startswith("/"):
        raise wrong(field, text, "an absolute path inside the root")
    if ".." in text.split("/"):
        raise wrong(field, text, "a path without '..'")
    plain = posixpath.normpath("/" + text.lstrip("/"))
    if plain == "/":
        raise SpecError(field, "'/' is the root itself: use rootfs, read_only and overlay")
    if any(len(os.fsencode(name)) > MAX_FILE_NAME for name in plain.split("/")):
        raise SpecError(field, f"{shown(text)}: each name in a path has at most 255 bytes")
    return plain


def check_args(args: Any) -> tuple[bytes, ...]:
    """Returns argv as bytes."""
    if isinstance(args, str | bytes | dict | set | frozenset | os.PathLike):
        raise SpecError("args", f"{shown(args)}: expected a list such as ['sh', '-c', 'ls | wc']")
    try:
        argv = tuple([encode("args", item) for item in args])
    except TypeError:
        raise wrong("args", args, "a list of str, bytes or paths") from None
    if not argv:
        raise SpecError("args", "empty: expected a command")
    if not argv[0]:
        raise SpecError("args", "the command is an empty string: expected a name or a path")
    return argv


def check_env(env: Any, field: str = "env") -> tuple[bytes, ...]:
    """Returns an environment as NAME=value bytes."""
    if not isinstance(env, Mapping):
        raise wrong(field, env, "a mapping of names to values")
    entries = []
    for name, value in env.items():
        if not isinstance(name, str | bytes) or not isinstance(value, str | bytes):
            raise wrong(field, value, "str or bytes", f"{shown(name)}: ")
        key = encode(field, name)
        if not key or b"=" in key:
            raise wrong(field, name, "a name without '='")
        entry = key + b"=" + encode(field, value)
        if len(entry) > MAX_STRING:
            raise SpecError(field, f"{shown(name)}: {len(entry)} bytes, the limit is {MAX_STRING}")
        entries.append(entry)
    return tuple(entries)


def check_cwd(cwd: Any) -> bytes:
    """Returns a working directory inside the sandbox, as bytes."""
    data = encode("cwd", cwd, MAX_PATH)
    if not data.startswith(b"/"):
        raise wrong("cwd", cwd, "an absolute path inside the sandbox")
    return data


def check_timeout(timeout: Any) -> int | None:
    """Converts seconds to nanoseconds. A negative timeout counts as 0, as in subprocess."""
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise wrong("timeout", timeout, "seconds as a number, or None")
    if timeout != timeout or timeout > MAX_TIMEOUT:
        raise SpecError("timeout", f"{shown(timeout)}: at most {MAX_TIMEOUT} seconds, or None")
    return 0 if timeout <= 0 else int(timeout * 1e9)
