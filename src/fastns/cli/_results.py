"""The results of `fastns batch`: JSON lines in the order of the jobs, and the progress bar."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import stat
import time

from fastns.cli import UsageError
from fastns.cli._signals import look_for, ready, signal_name
from fastns.errors import SpawnError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from fastns.batch import Result
    from fastns.cli._signals import Signals

EXIT_TIMEOUT = 124


class Output:
    """Writes results in the order of their jobs, each as soon as all before it are written."""

    def __init__(self, fd: int, name: str, signals: Signals) -> None:
        self._fd = fd
        self._name = name
        self._signals = signals
        self._waiting: dict[int, tuple[str, Result]] = {}
        self._next = 0
        self._rest = memoryview(b"")  # of a line that is partly written
        # A pipe that poll(2) calls ready takes so much at once; more could wait for its reader.
        regular = stat.S_ISREG(os.fstat(fd).st_mode)
        self._piece = 1 << 20 if regular else select.PIPE_BUF

    def add(self, index: int, head: str, result: Result) -> None:
        """Take the result of job `index`, which may come before those of earlier ones."""
        self._waiting[index] = head, result

    def offer(self) -> None:
        """Write what is due, as far as that needs no waiting."""
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        while self._rest or self._next in self._waiting:
            if not self._rest:
                self._take(self._next)
            if not poll.poll(0):
                return
            self._write()

    def finish(self) -> None:
        """Write all there is. Jobs without a result, if the batch was stopped, are left out."""
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
        try:
            written = os.write(self._fd, self._rest[: self._piece])
        except BlockingIOError:
            return
        except BrokenPipeError:
            raise
        except OSError as error:
            raise UsageError(
                f"{self._name}: {error.strerror}", "the results up to there are written"
            ) from None
        self._rest = self._rest[written:]


def line_of(head: str, index: int, fields: dict[str, object]) -> str:
    """A result as it is written: `head` is an Entry's."""
    return "{" + head + json.dumps({"index": index, **fields})[1:]


def fields_of(result: Result) -> dict[str, object]:
    """A result as it is written, without id and index."""
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
    fields: dict[str, object] = {
        "exit_code": EXIT_TIMEOUT if timed_out else code if code >= 0 else 128 - code,
        "returncode": code,
        "signal": signal_name(-code) if code < 0 else None,
    }
    for name, data in (("stdout", result.stdout), ("stderr", result.stderr)):
        fields |= _texts(name, data or b"")
    fields |= {
        "wall_time": result.wall_time,
        "usage": usage.as_dict(),
        "cause": result.cause,
        "timed_out": timed_out,
        "limits": result.limits,
    }
    return fields | ({"truncated": True} if result.truncated else {})


def _texts(name: str, data: bytes) -> dict[str, str]:
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        import base64

        return {
            name: data.decode(errors="replace"),
            f"{name}_base64": base64.b64encode(data).decode("ascii"),
        }


class Bar:
    """A line of `rich` on stderr."""

    def __init__(self, progress: Any, total: int | None) -> None:
        self._progress = progress
        self._start = time.monotonic()
        self._task = progress.add_task("", total=total, rate="", failed=0)

    def show(self, done: int, failed: int) -> None:
        """Show it as it is now."""
        rate = done / max(time.monotonic() - self._start, 1e-3)
        self._progress.update(self._task, completed=done, rate=f"{rate:.0f}/s", failed=failed)
        self._progress.refresh()


@contextlib.contextmanager
def progress_bar(source: int, output: int, signals: Signals) -> Iterator[Bar | None]:
    """A bar on the terminal that stderr is. None without a terminal or without rich, and where the
    results themselves go to a terminal."""
    if not os.isatty(2) or os.isatty(output):
        yield None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    except ImportError:
        yield None
        return
    with Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[failed]} failed"),
        console=Console(stderr=True),
        auto_refresh=False,
        redirect_stdout=False,
        redirect_stderr=False,
    ) as progress:
        yield Bar(progress, _count(source, signals))


def _count(source: int, signals: Signals) -> int | None:
    """How many lines there are to read; None for what is no regular file."""
    if not stat.S_ISREG(os.fstat(source).st_mode):
        return None
    place, lines, data = os.lseek(source, 0, os.SEEK_CUR), 0, b"\n"
    while more := os.read(source, 1 << 20):
        look_for(signals)
        data = more
        lines += data.count(b"\n")
    os.lseek(source, place, os.SEEK_SET)
    return lines if data.endswith(b"\n") else lines + 1
