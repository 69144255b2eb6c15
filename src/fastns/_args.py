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


def check_whole(field: str, value: object, low: int, high: int, where: str = "") -> int:
    """A whole number within bounds. `where`: a prefix that names the part of the field."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        words = f"{where}{shown(value)}: a whole number from {low} to {high} expected"
        raise SpecError(field, words)
    return value


def check_one_of(field: str, value: object, words: Iterable[str], where: str = "") -> None:
    """One of some words. `where`: as in check_whole()."""
    if value not in (accepted := tuple(words)):
        raise SpecError(field, f"{where}{shown(value)}: one of {', '.join(accepted)} expected")


def check_list(field: str, value: Any, what: str) -> tuple[Any, ...]:
    """A sequence that is no text, as a tuple. `what` it holds."""
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise SpecError(field, f"{shown(value)}: a list {what} expected")
    return tuple(value)


def encode(field: str, value: Any, limit: int = MAX_STRING) -> bytes:
    """A str, bytes or path as bytes without NUL."""
    try:
        data = os.fsencode(value)
    except TypeError:
        raise SpecError(field, f"{shown(value)}: str, bytes or a path expected") from None
    except UnicodeEncodeError:
        words = f"{shown(value)}: text without surrogates, but those of os.fsdecode(), expected"
        raise SpecError(field, words) from None
    if b"\0" in data:
        words = f"{shown(value)}: NUL bytes cannot be passed on; text without them expected"
        raise SpecError(field, words)
    if len(data) > limit:
        raise SpecError(field, f"{shown(value)}: {len(data)} bytes, at most {limit} are possible")
    return data


def check_path(field: str, value: Any) -> str:
    """A path, of this process or inside."""
    if isinstance(value, bytes) or not isinstance(value, str | os.PathLike):
        raise SpecError(field, f"{shown(value)}: a path as str or PathLike expected")
    text = os.fspath(value)
    if not isinstance(text, str) or not text:
        raise SpecError(field, f"{shown(value)}: a path that is not empty expected")
    encode(field, text, MAX_PATH)
    return text


def check_inside(field: str, value: Any) -> str:
    """An absolute path below the root, normalized."""
    text = check_path(field, value)
    if not text.startswith("/"):
        raise SpecError(field, f"{shown(text)}: an absolute path inside the root expected")
    if ".." in text.split("/"):
        raise SpecError(field, f"{shown(text)}: a path without '..' expected")
    plain = posixpath.normpath("/" + text.lstrip("/"))
    if plain == "/":
        raise SpecError(field, "'/' is the root itself: use rootfs, read_only and overlay")
    if any(len(os.fsencode(name)) > MAX_FILE_NAME for name in plain.split("/")):
        raise SpecError(field, f"{shown(text)}: each name in a path has at most 255 bytes")
    return plain


def check_args(args: Any) -> tuple[bytes, ...]:
    """argv as bytes."""
    if isinstance(args, str | bytes | dict | set | frozenset | os.PathLike):
        raise SpecError("args", f"{shown(args)}: a list expected, such as ['sh', '-c', 'ls | wc']")
    try:
        argv = tuple([encode("args", item) for item in args])
    except TypeError:
        raise SpecError("args", f"{shown(args)}: a list of str, bytes or paths expected") from None
    if not argv:
        raise SpecError("args", "empty: a command is expected")
    if not argv[0]:
        raise SpecError("args", "the command is an empty string: a name or a path expected")
    return argv


def check_env(env: Any, field: str = "env") -> tuple[bytes, ...]:
    """An environment as NAME=value bytes."""
    if not isinstance(env, Mapping):
        raise SpecError(field, f"{shown(env)}: a mapping of names to values expected")
    entries = []
    for name, value in env.items():
        if not isinstance(name, str | bytes) or not isinstance(value, str | bytes):
            raise SpecError(field, f"{shown(name)}: {shown(value)}: str or bytes expected")
        key = encode(field, name)
        if not key or b"=" in key:
            raise SpecError(field, f"{shown(name)}: a name without '=' expected")
        entry = key + b"=" + encode(field, value)
        if len(entry) > MAX_STRING:
            raise SpecError(field, f"{shown(name)}: {len(entry)} bytes, at most {MAX_STRING}")
        entries.append(entry)
    return tuple(entries)


def check_cwd(cwd: Any) -> bytes:
    """A working directory inside the sandbox."""
    data = encode("cwd", cwd, MAX_PATH)
    if not data.startswith(b"/"):
        raise SpecError("cwd", f"{shown(cwd)}: an absolute path inside the sandbox expected")
    return data


def check_timeout(timeout: Any) -> int | None:
    """Seconds as nanoseconds; negative is 0, as in subprocess."""
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise SpecError("timeout", f"{shown(timeout)}: seconds as a number, or None, expected")
    if timeout != timeout or timeout > MAX_TIMEOUT:
        raise SpecError("timeout", f"{shown(timeout)}: at most {MAX_TIMEOUT} seconds, or None")
    return 0 if timeout <= 0 else int(timeout * 1e9)
