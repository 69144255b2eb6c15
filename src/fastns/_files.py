"""Commands with files: put into a container before the command, and read after its end.

Without a container of its own, such a command gets one, which ends with it.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import threading
from _collections_abc import Mapping, Sequence

from fastns import _core, _transfer
from fastns._args import shown, wrong
from fastns._command import Completed, Ended, Prepared, plan_of
from fastns._kept import Kept
from fastns._light import record
from fastns._transfer import MAX_READ, check_inside, check_mode
from fastns.errors import ClosedError, SpawnError, SpecError
from fastns.spec import Spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from typing import Any, TypeAlias

    from fastns._transfer import Content
    from fastns.batch import Result

    Files: TypeAlias = Mapping[str, "Content | File"]
    Run: TypeAlias = Callable[[Prepared], Result]

FILE_MODE = 0o644
# An output with one of these errors is no file that the command has made to be read.
NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENOTSUP, errno.ELOOP, errno.EACCES)
LOOK_SECONDS = 0.1


@record(frozen=True)
class File:
    """The content of a file with its permissions, for `files` of run() and Job.

    Attributes:
        content: bytes; text, encoded as UTF-8; a Path of the host; or a file that is open for
            reading in binary mode, which is read from where it stands.
        mode: permissions, such as 0o755; None: those of a Path, else 0o644.
    """

    content: Content
    mode: int | None = None


class Transfers:
    """The checked `files` and `outputs` of a command."""

    def __init__(self, files: Files | None, outputs: Sequence[str]) -> None:
        if files is not None and not isinstance(files, Mapping):
            raise wrong("files", files, "a mapping of paths inside to their content")
        if isinstance(outputs, str | bytes | os.PathLike) or not isinstance(outputs, Sequence):
            raise wrong("outputs", outputs, "a list of paths inside")
        self._files = [
            (check_inside("files", path), content) for path, content in (files or {}).items()
        ]
        for _, content in self._files:
            _check_content(content)
        self._outputs = {path: check_inside("outputs", path) for path in outputs}

    def records(self) -> io.FileIO | None:
        """A file with the records of the files; None: there are none. Raises: SpecError if a Path
        cannot be read."""
        opened: list[Any] = []
        try:
            ready = [(path, *_open_content(path, given, opened)) for path, given in self._files]
            return _transfer.file_of_records(ready) if ready else None
        finally:
            for file in opened:
                file.close()

    def read(self, container: Kept, limit: int, cause: str) -> tuple[dict[str, bytes | None], bool]:
        """The content of each output, None without such a file, and whether one was cut off.

        cause: of the command's end. Raises: SpawnError if outputs cannot be read for other reasons.
        """
        if not self._outputs:
            return {}, False
        try:
            starts = list(_transfer.read_starts(container, [*self._outputs.values()], limit))
        except (ClosedError, SpawnError) as exc:
            if cause == "cpu_time":  # the container has ended with the command
                return dict.fromkeys(self._outputs), False
            if isinstance(exc, SpawnError):
                raise
            raise SpawnError("file", errno.ECANCELED) from None  # the reader was killed
        for found in starts:
            if isinstance(found, OSError) and found.errno not in NO_FILE:
                raise SpawnError("file", found.errno or 0, path=found.filename)
        pairs = [(None, False) if isinstance(found, OSError) else found for found in starts]
        contents = [content for content, _ in pairs]
        return dict(zip(self._outputs, contents, strict=True)), any(cut for _, cut in pairs)


def _check_content(content: Any) -> None:
    if isinstance(content, File):
        if content.mode is not None:
            check_mode(content.mode)
        content = content.content
    if isinstance(content, str | bytes | bytearray | memoryview | os.PathLike):
        return
    read = getattr(content, "read", None)
    if read is None or isinstance(read(0), str):
        raise wrong("files", content, "bytes, text, a Path, a binary file or a File")


def _open_content(path: bytes, given: Any, opened: list[Any]) -> tuple[Any, int]:
    """The bytes or the open file, and its mode."""
    content, mode = (given.content, given.mode) if isinstance(given, File) else (given, None)
    if isinstance(content, os.PathLike):
        try:
            file = open(content, "rb")  # noqa: SIM115 - closed with all others
        except OSError as exc:
            where = shown(os.fsdecode(path))
            raise SpecError("files", f"{where}: {os.fspath(content)}: {exc.strerror}") from None
        opened.append(file)
        about = os.fstat(file.fileno())
        return file, stat.S_IMODE(about.st_mode) & 0o777 if mode is None else mode
    if isinstance(content, str):
        content = content.encode()
    return content, FILE_MODE if mode is None else mode


def run_with(transfers: Transfers, spec: Spec | _core.Plan | Prepared | None, run: Run) -> Result:
    """Calls run(what to pass as `spec`) for a command that gets its files first, and adds the
    outputs to the result or the error that it returns."""
    plan = plan_of(spec)
    ids = spec.extra[0] if isinstance(spec, Prepared) and spec.extra else None
    with _container_of(spec, plan) as container, contextlib.ExitStack() as stack:
        records = transfers.records()
        fd = stack.enter_context(records).fileno() if records else 0
        done = run(container._prepared((ids, 0, fd)))
        if isinstance(done, Completed | Ended):
            limit = plan.max_output or MAX_READ
            done.files, cut = transfers.read(container, limit, done.cause)
            done.truncated |= cut
        elif records and done.stage == "file":
            reason = _transfer.error_in(records)
            return done if reason is None else _not_put(reason)
        return done


def _not_put(reason: OSError) -> SpawnError:
    hint = None
    if reason.errno == errno.EROFS:
        hint = "name a place that can be written to: /tmp, overlay=True, or a mount of type tmpfs"
    return SpawnError("file", reason.errno or 0, path=reason.filename, hint=hint)


def _container_of(
    spec: Spec | _core.Plan | Prepared | None, plan: _core.Plan
) -> AbstractContextManager[Kept]:
    if isinstance(spec, Prepared) and isinstance(spec.starter, Kept):
        return _NotClosed(spec.starter)
    assert plan.spec is not None
    # Its pid 1 reaps in any case.
    spec = Spec(**{**vars(plan.spec), "init": False}) if plan.spec.init else plan.spec
    return Kept(spec, shares_plan=True)


class _NotClosed:
    """A context manager that does not close its container."""

    def __init__(self, container: Kept) -> None:
        self._container = container

    def __enter__(self) -> Kept:
        return self._container

    def __exit__(self, *_: object) -> None:
        pass


# ---- batches ----


class Stopped(Exception):
    """A batch was interrupted. Ends the jobs of its threads."""


def run_all(
    n: int, concurrency: int, run_one: Callable[[int, Callable[[int], None]], Result]
) -> Iterator[list[tuple[int, Result]]]:
    """Calls run_one(index, check) for each index, in threads. Yields what has come, several times a
    second. check() raises Stopped when the caller stops to iterate."""
    from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait

    stop = threading.Event()

    def check(_: int) -> None:
        if stop.is_set():
            raise Stopped

    def guarded(index: int) -> tuple[int, Result]:
        check(0)
        return index, run_one(index, check)

    with ThreadPoolExecutor(concurrency) as pool:
        left = {pool.submit(guarded, index) for index in range(n)}
        try:
            while left:
                done, left = wait(left, LOOK_SECONDS, FIRST_COMPLETED)
                yield [future.result() for future in done]
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
