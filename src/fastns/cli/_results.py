"""The output of `fastns batch`: results as JSON lines in the order of the jobs, and progress."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import stat
import time

from fastns.cli import EXIT_TIMEOUT, UsageError
from fastns.cli._signals import look_for, ready, signal_name
from fastns.errors import SpawnError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeAlias

    from fastns.batch import Result
    from fastns.cli._signals import Signals

    Show: TypeAlias = Callable[[int, int], object]
    """Shows how many jobs have ended, and how many of them have failed."""


class Output:
    """Writes results in the order of their jobs, each as soon as all before it are written."""

    def __init__(self, fd: int, name: str, signals: Signals) -> None:
        self._fd = fd
        self._name = name
        self._signals = signals
        self._waiting: dict[int, tuple[str, Result]] = {}
        self._next = 0
        self._rest = memoryview(b"")  # of a line that is partly written
        # A pipe that poll(2) reports ready takes PIPE_BUF bytes at once; more may block.
        regular = stat.S_ISREG(os.fstat(fd).st_mode)
        self._piece = 1 << 20 if regular else select.PIPE_BUF

    def add(self, index: int, head: str, result: Result) -> None:
        """Accepts the result of job `index`, in any order."""
        self._waiting[index] = head, result

    def offer(self) -> None:
        """Write what can be written without waiting."""
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        while self._rest or self._next in self._waiting:
            if not self._rest:
                self._take(self._next)
            if not poll.poll(0):
                return
            self._write()

    def finish(self) -> None:
        """Write all results. A stopped batch has jobs without one: they are left out."""
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
    """The line of a result; `head` is that of its Entry."""
    return "{" + head + json.dumps({"index": index, **fields})[1:]


def fields_of(result: Result) -> dict[str, object]:
    """What the line of a result says, but for id and index."""
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


@contextlib.contextmanager
def progress_bar(source: int, output: int, signals: Signals) -> Iterator[Show]:
    """A bar by `rich`, if that is installed, stderr is a terminal, and the results go elsewhere."""
    if not os.isatty(2) or os.isatty(output):
        yield _show_nothing
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    except ImportError:
        yield _show_nothing
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
        task = progress.add_task("", total=_count(source, signals), rate="", failed=0)
        start = time.monotonic()

        def show(done: int, failed: int) -> None:
            rate = done / max(time.monotonic() - start, 1e-3)
            progress.update(task, completed=done, rate=f"{rate:.0f}/s", failed=failed)
            progress.refresh()

        yield show


def _show_nothing(done: int, failed: int) -> None:
    pass


def _count(source: int, signals: Signals) -> int | None:
    """The number of lines of a regular file; None for any other."""
    if not stat.S_ISREG(os.fstat(source).st_mode):
        return None
    place, lines, data = os.lseek(source, 0, os.SEEK_CUR), 0, b"\n"
    while more := os.read(source, 1 << 20):
        look_for(signals)
        data = more
        lines += data.count(b"\n")
    os.lseek(source, place, os.SEEK_SET)
    return lines if data.endswith(b"\n") else lines + 1
