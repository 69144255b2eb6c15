"""JSON lines of `fastns batch`: reads jobs in chunks, and writes results in the jobs' order."""

from __future__ import annotations

import base64
import contextlib
import errno
import json
import os
import select
import stat
from pathlib import Path

from fastns._args import check_args, check_cwd, check_env, check_timeout, shown
from fastns._command import exit_code
from fastns._files import File
from fastns._light import record
from fastns.batch import Job
from fastns.cli import EXIT_TIMEOUT, Naming, UsageError
from fastns.cli._signals import ready, signal_name
from fastns.errors import SpawnError, SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import IO, Any, NoReturn

    from fastns.batch import Result
    from fastns.cli._signals import Signals

KEYS = ("args", "input", "env", "cwd", "timeout", "stdin", "files", "outputs", "id")
MAX_OPEN = 200  # jobs of a chunk with a stdin, which is open while the chunk runs
CHUNK_BYTES = 64 << 20  # maximum of a chunk, and of a line
PATIENCE = 1.0  # seconds to wait for another job before running those already read


@record(frozen=True)
class Entry:
    """A job, and `head`: the text `"id": …, ` if the job has an id. The text is made early, because
    json.dumps() of a deeply nested value could fail later, on a deeper stack."""

    head: str
    job: Job


class Jobs:
    """Reads jobs from an fd, chunk by chunk."""

    def __init__(
        self, fd: int, name: str, signals: Signals, env: Mapping[str, str], folder: str = ""
    ) -> None:
        self._fd = fd
        self._name = name
        self._signals = signals
        self._env = env
        self._folder = folder  # of files that are relative
        self._lines: list[bytes] = []  # in reverse
        self._rest = bytearray()  # an incomplete line
        self._number = 0
        self._ended = False

    def read(self, limit: int) -> list[Entry]:
        """Reads at most `limit` jobs; an empty list means the end. Raises UsageError for a line
        that is neither blank nor a job."""
        entries: list[Entry] = []
        size = opened = 0
        while len(entries) < limit and size < CHUNK_BYTES and opened < MAX_OPEN:
            if not self._lines and not self._more(PATIENCE if entries else None):
                break
            line = self._lines.pop()
            self._number += 1
            size += len(line)
            if line and not line.isspace():
                entries.append(self._entry(line))
                opened += entries[-1].job.stdin is not None
        return entries

    def _entry(self, line: bytes) -> Entry:
        try:
            return entry_of(line, self._env, self._folder)
        except SpecError as error:
            raise self._wrong(str(error)) from None
        except UnicodeDecodeError:
            raise self._wrong("not UTF-8") from None
        except json.JSONDecodeError as error:
            raise self._wrong(f"not JSON: {error.msg} (column {error.colno})") from None
        except (ValueError, RecursionError) as error:
            raise self._wrong(f"cannot read this JSON: {error}") from None

    def _wrong(self, what: str) -> UsageError:
        return UsageError(f"{self._name}:{self._number}: {what}", "see fastns batch --help")

    def _more(self, patience: float | None) -> bool:
        """Reads until a line is complete. Returns False at the end, or if there was no input for
        `patience` seconds."""
        while not self._lines and not self._ended:
            if not ready(self._fd, select.POLLIN, self._signals, patience):
                return False
            with Naming(self._name, "a file of jobs, or - for stdin"):
                data = os.read(self._fd, 1 << 16)
            self._rest += data
            self._ended = not data
            if self._ended or b"\n" in data:
                *lines, last = bytes(self._rest).split(b"\n")
                self._rest = bytearray(last)
                self._lines = lines[::-1] if not self._ended else [last]
            elif len(self._rest) > CHUNK_BYTES:
                self._number += 1
                raise self._wrong(f"longer than {CHUNK_BYTES >> 20} MiB")
        return bool(self._lines)


def entry_of(line: bytes, env: Mapping[str, str], folder: str = "") -> Entry:
    """The job of a line. Its variables override `env`; its files are relative to `folder`. Raises
    SpecError, or json's ValueErrors."""
    found = json.loads(line.decode("utf-8-sig"), parse_constant=_no_constant)
    fields = {"args": found} if isinstance(found, list) else found
    if not isinstance(fields, dict):
        raise SpecError("the line", f"{shown(found)}: expected an object or a list")
    for key in fields:
        if key not in KEYS:
            raise SpecError(shown(key), f"no such key: expected one of {', '.join(KEYS)}")
    args, text, own_env, cwd, timeout = (fields.get(key) for key in KEYS[:5])
    if not isinstance(args, list) or not all(isinstance(item, str) for item in args):
        raise SpecError("args", "expected a list of strings")
    check_args(args)
    data = None if text is None else _input(text)
    if own_env is not None:
        if not isinstance(own_env, dict) or not all(isinstance(v, str) for v in own_env.values()):
            raise SpecError("env", f"{shown(own_env)}: expected an object of strings")
        own_env = {**env, **own_env}
        check_env(own_env)
    if cwd is not None:
        if not isinstance(cwd, str):
            raise SpecError("cwd", f"{shown(cwd)}: expected a string")
        check_cwd(cwd)
    if timeout is not None:
        check_timeout(timeout)
        if timeout <= 0:
            raise SpecError("timeout", f"{shown(timeout)}: expected seconds above zero")
    # json reads 1e999 as infinity, which is not JSON.
    head = f'"id": {json.dumps(fields["id"], allow_nan=False)}, ' if "id" in fields else ""
    files, outputs = fields.get("files"), fields.get("outputs", ())
    if files is not None:
        files = _files(files, folder)
    if not isinstance(outputs, list | tuple) or not all(isinstance(path, str) for path in outputs):
        raise SpecError("outputs", f"{shown(outputs)}: expected a list of paths inside")
    stdin = _stdin(fields["stdin"], folder) if fields.get("stdin") is not None else None
    job = Job(
        args,
        data,
        stdin=stdin,
        env=own_env,
        cwd=cwd,
        timeout=timeout,
        files=files,
        outputs=tuple(outputs),
    )
    return Entry(head, job)


def _stdin(path: Any, folder: str) -> IO[bytes]:
    if not isinstance(path, str):
        raise SpecError("stdin", f"{shown(path)}: expected the path of a file")
    try:
        return open(os.path.join(folder, path), "rb", buffering=0)
    except (OSError, ValueError) as exc:
        raise SpecError("stdin", f"{shown(path)}: {_why(exc)}") from None


def _why(exc: OSError | ValueError) -> str:
    return str(exc.strerror) if isinstance(exc, OSError) else str(exc)


def _files(files: Any, folder: str) -> dict[str, File]:
    if not isinstance(files, dict):
        raise SpecError("files", f"{shown(files)}: expected an object")
    return {path: _file(path, given, folder) for path, given in files.items()}


def _file(inside: str, given: Any, folder: str) -> File:
    where = f"{shown(inside)}: {shown(given)}: "
    fields = {"path": given} if isinstance(given, str) else given
    content = [
        key for key in ("path", "text", "base64") if isinstance(fields, dict) and key in fields
    ]
    if (
        len(content) != 1
        or {*fields} - {*content, "mode"}
        or not isinstance(fields[content[0]], str)
    ):
        raise SpecError("files", where + "expected a path, or an object with path, text or base64")
    mode = fields.get("mode")
    try:
        permissions = None if mode is None else int(mode, 8)
    except (TypeError, ValueError):
        raise SpecError("files", where + 'expected a mode such as "755"') from None
    value: Any = fields[content[0]]
    if content[0] == "path":
        value = Path(folder, value)
    elif content[0] == "base64":
        try:
            value = base64.b64decode(value, validate=True)
        except ValueError:
            raise SpecError("files", where + "not base64") from None
    return File(value, permissions)


def _input(text: Any) -> bytes:
    if not isinstance(text, str):
        raise SpecError("input", f"{shown(text)}: expected a string")
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise SpecError("input", f"{shown(text)}: expected text without surrogates") from None


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")


class Output:
    """Writes results in the order of their jobs."""

    def __init__(self, fd: int, name: str, signals: Signals) -> None:
        self._fd = fd
        self._name = name
        self._signals = signals
        self._waiting: dict[int, tuple[str, Result]] = {}
        self._next = 0
        self._rest = memoryview(b"")  # the unwritten part of a line
        # A pipe that poll(2) reports ready takes PIPE_BUF bytes at once; more may block.
        regular = stat.S_ISREG(os.fstat(fd).st_mode)
        self._piece = 1 << 20 if regular else select.PIPE_BUF

    def add(self, index: int, head: str, result: Result) -> None:
        """Accepts the result of job `index`, in any order."""
        self._waiting[index] = head, result

    def offer(self) -> None:
        """Writes what can be written without waiting."""
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        while self._rest or self._next in self._waiting:
            if not self._rest:
                self._take(self._next)
            if not poll.poll(0):
                return
            self._write()

    def finish(self) -> None:
        """Writes all results. Skips jobs of a stopped batch that have none."""
        while self._rest or self._waiting:
            if not self._rest:
                self._take(self._next if self._next in self._waiting else min(self._waiting))
            if ready(self._fd, select.POLLOUT, self._signals):
                self._write()

    def _take(self, index: int) -> None:
        head, result = self._waiting.pop(index)
        line = line_of(head, index, fields_of(result))
        self._rest = memoryview(f"{line}\n".encode("ascii"))
        self._next = index + 1

    def _write(self) -> None:
        named = Naming(self._name, "earlier results were written")
        with named, contextlib.suppress(BlockingIOError):
            self._rest = self._rest[os.write(self._fd, self._rest[: self._piece]) :]


def line_of(head: str, index: int, fields: dict[str, object]) -> str:
    """The line of a result; `head` is that of its Entry."""
    return "{" + head + json.dumps({"index": index, **fields})[1:]


def fields_of(result: Result) -> dict[str, object]:
    """The fields of a result's line, except id and index."""
    if isinstance(result, SpawnError):
        return {
            "error": str(result).replace("\n", "\\n"),
            "stage": result.stage,
            "errno": errno.errorcode.get(result.errno or 0, str(result.errno)),
            "path": result.path,
        }
    timed_out = isinstance(result, Exception)
    code, usage = result.returncode, result.usage
    assert code is not None
    assert usage is not None
    return {
        "exit_code": EXIT_TIMEOUT if timed_out else exit_code(code),
        "returncode": code,
        "signal": signal_name(-code) if code < 0 else None,
        **_texts("stdout", result.stdout or b""),
        **_texts("stderr", result.stderr or b""),
        "wall_time": result.wall_time,
        "usage": usage.as_dict(),
        "cause": result.cause,
        "timed_out": timed_out,
        "limits": result.limits,
        **(
            {"files": {path: _text(data) for path, data in result.files.items()}}
            if result.files
            else {}
        ),
        **({"truncated": True} if result.truncated else {}),
    }


def _text(data: bytes | None) -> str | dict[str, str] | None:
    try:
        return None if data is None else data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data or b"").decode("ascii")}


def _texts(name: str, data: bytes) -> dict[str, str]:
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        return {
            name: data.decode(errors="replace"),
            f"{name}_base64": base64.b64encode(data).decode("ascii"),
        }
