"""Moves files into a container and out of it. A process inside does what concerns the container.

csrc/shared/transfer.h describes the records that this process and that one exchange. Names and
links that come out of a container may be an attacker's: nothing is written outside the destination.
"""

from __future__ import annotations

import contextlib
import errno
import io
import mmap
import os
import shutil
import stat
import struct
import tempfile

from fastns import _core
from fastns._args import check_path, wrong
from fastns._stdio import DEVNULL, PIPE, StdioPlan, open_null
from fastns.errors import ClosedError, SpawnError, SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import IO, Any, TypeAlias

    from fastns._starter import Starter

    Content: TypeAlias = bytes | bytearray | memoryview | str | os.PathLike[str] | IO[bytes]

PUT, READ, GET, LIST = 1, 2, 3, 4  # enum fns_transfer
END_ALL, ERROR, FILE, BYTES, END, DIRECTORY, LEAVE, LINK, NAME = range(9)
HEADER = struct.Struct("=IIIiQQq")  # struct fns_record
CHUNK = 1 << 18
ANY_SIZE = 2**63 - 1
MAX_READ = 1 << 28  # bytes that read_file() returns, unless told otherwise


# ---- the process inside ----


def exchange(starter: Starter, kind: int, *args: bytes, stdin: int = -1) -> Reply:
    """Runs a transfer to its end. args: as csrc/shared/transfer.h says. stdin: an fd of records."""
    with open_null() as null, contextlib.ExitStack() as stack:
        source, target, pipes = null.fileno() if stdin < 0 else stdin, -1, _core.PIPE_STDOUT
        # Half the cost of a pipe. But its memory would count against the container's limits.
        memory = None if starter._sandbox.limits else stack.enter_context(memory_file())
        if memory is not None:
            target, pipes = memory.fileno(), 0
        command = (args or (b"",), (), (), b"/", (source, target, null.fileno()))
        outcome = starter._run((*command, pipes, b"", None, 0, (None, kind, 0)))
        if isinstance(outcome, SpawnError):
            raise outcome
        if memory is None:
            return Reply(_Cursor(outcome[1] or b"").read)
        try:
            size = os.fstat(target).st_size
            return Reply(_Cursor(mmap.mmap(target, size) if size else b"").read)
        except OSError as exc:
            raise SpawnError("file", exc.errno or 0) from None


def memory_file() -> io.FileIO:
    """Raises: SpawnError."""
    try:
        return open(os.memfd_create("fastns", os.MFD_CLOEXEC), "r+b", buffering=0)
    except OSError as exc:
        raise SpawnError("file", exc.errno or 0) from None


class Reply:
    """The records that a process inside sends. read: returns as many bytes as it is asked for, or
    fewer at the end."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read

    def records(self) -> Iterator[tuple[int, int, str, int, int, int]]:
        """(kind, mode, name, size, offset, time) of each record up to END_ALL. The caller reads the
        bytes that follow. Raises: OSError for ERROR; ClosedError if the container has ended."""
        while True:
            kind, mode, length, error, size, offset, time = HEADER.unpack(self.read(HEADER.size))
            name = os.fsdecode(self.read(length))
            if kind == ERROR:
                raise OSError(error, _reason(error), name)
            if kind == END_ALL:
                return
            yield kind, mode, name, size, offset, time

    def read(self, size: int) -> bytes:
        data = self._read(size)
        if len(data) < size:
            raise ClosedError("the process that moves files was killed, or the Container has ended")
        return data

    def end(self) -> None:
        """Reads what comes after the last record was sent."""
        for _ in self.records():
            pass


class _Cursor:
    """Reads from bytes, and copies them once."""

    def __init__(self, data: bytes | mmap.mmap) -> None:
        self._data = memoryview(data)
        self._at = 0

    def read(self, size: int) -> bytes:
        at = self._at
        self._at += size
        return bytes(self._data[at : at + size])


class Transfer(Reply):
    """A process inside that moves files while this process reads from it, or writes to it."""

    def __init__(self, starter: Starter, kind: int, *args: bytes, sends: bool = False) -> None:
        self.input: IO[bytes] | None = None
        stdio = StdioPlan(PIPE if sends else DEVNULL, PIPE, DEVNULL)
        fds = (stdio.fds[0], stdio.fds[1], stdio.fds[2])
        try:
            self.process = starter._start(args or (b"",), (), (), b"/", fds, (), (None, kind, 0))
        except BaseException:
            stdio.close_all()
            raise
        stdio.close()
        given, taken, _ = stdio.parent
        assert taken is not None
        self.output = taken.file("rb")
        super().__init__(self.output.read)
        if given is not None:
            self.input = given.file("wb")

    def send(self, pieces: Iterator[bytes]) -> None:
        """Sends all, and waits for the end. Raises: OSError if something could not be made."""
        assert self.input is not None
        with contextlib.suppress(BrokenPipeError):
            for piece in pieces:
                self.input.write(piece)
            self.input.write(record(END_ALL))
        with contextlib.suppress(BrokenPipeError):
            self.input.close()
        self.end()

    def __enter__(self) -> Transfer:
        return self

    def __exit__(self, exc_type: object, *_: object) -> None:
        if exc_type is not None:
            self.process.kill_all()
        for file in (self.input, self.output):
            if file is not None:
                with contextlib.suppress(BrokenPipeError):
                    file.close()
        self.process.wait()
        with contextlib.suppress(OSError):  # its status does not matter: the last record tells
            self.process.reap()


def _reason(error: int) -> str:
    if error == errno.ENOTSUP:
        return "neither a file, a directory nor a link"
    return os.strerror(error)


def record(
    kind: int, name: bytes = b"", *, mode: int = 0, size: int = 0, offset: int = 0, time: int = 0
) -> bytes:
    return HEADER.pack(kind, mode, len(name), 0, size, offset, time) + name


def check_inside(field: str, path: Any) -> bytes:
    """An absolute path inside the container, as bytes."""
    text = check_path(field, path)
    if not text.startswith("/"):
        raise wrong(field, path, "an absolute path inside the container")
    return os.fsencode(text)


def check_mode(mode: Any) -> int:
    if isinstance(mode, bool) or not isinstance(mode, int) or not 0 <= mode <= 0o777:
        raise wrong("mode", mode, "permissions from 0o000 to 0o777")
    return mode


def file_content(field: str, data: Any) -> bytes | bytearray | memoryview:
    if isinstance(data, str):
        return data.encode()
    if not isinstance(data, bytes | bytearray | memoryview):
        raise wrong(field, data, "bytes or text")
    return data


# ---- single files ----


def read_file(starter: Starter, path: bytes, most: int) -> bytes:
    found = next(_files_of(exchange(starter, READ, b"%d" % most, b"", path)))
    if isinstance(found, OSError):
        raise found
    return found[0]


def read_starts(
    starter: Starter, paths: list[bytes], most: int
) -> Iterator[tuple[bytes, bool] | OSError]:
    """For each file, its first `most` bytes and whether there are more; or why it is unreadable."""
    for found in _files_of(exchange(starter, READ, b"%d" % most, b"cut", *paths)):
        yield found if isinstance(found, OSError) else (found[0], found[1] > most)


def _files_of(reply: Reply) -> Iterator[tuple[bytes, int] | OSError]:
    """What was sent of each file, and its true size; or why it was not."""
    while True:
        try:
            for kind, _, _, whole, _, _ in reply.records():
                if kind == FILE:
                    yield _content_of(reply), whole
            return
        except OSError as exc:
            yield exc


def _content_of(reply: Reply) -> bytes:
    parts: list[bytes] = []
    at = 0
    for kind, _, _, size, offset, _ in reply.records():
        if offset > at:  # a hole
            parts.append(bytes(offset - at))
            at = offset
        if kind == END:
            break
        parts.append(reply.read(size))
        at += size
    return parts[0] if len(parts) == 1 else b"".join(parts)


def put_files(starter: Starter, files: list[tuple[bytes, Any, int]]) -> None:
    """Writes (path, content, mode) each. content: bytes, or an open binary file."""
    with file_of_records(files) as fd:
        exchange(starter, PUT, stdin=fd.fileno()).end()


def file_of_records(files: list[tuple[bytes, Any, int]]) -> io.FileIO:
    """A memory file of what put_files() writes. Raises: SpawnError, stage "file"."""
    file = memory_file()
    try:
        for path, content, mode in files:
            write_all(file, record(FILE, path, mode=mode))
            for piece in _file_records(content):
                write_all(file, piece)
        write_all(file, record(END_ALL))
        file.seek(0)
    except OSError as exc:
        file.close()
        raise SpawnError("file", exc.errno or 0, path=exc.filename) from None
    except BaseException:
        file.close()
        raise
    return file


def write_all(file: io.FileIO, data: bytes) -> None:
    with memoryview(data) as view:
        done = 0
        while done < len(view):
            done += file.write(view[done:]) or _try_again()


def _try_again() -> int:
    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def error_in(file: io.FileIO) -> OSError | None:
    """Why what is in a file of records could not be put."""
    try:
        file.seek(0)
        Reply(file.read).end()
    except OSError as exc:
        return exc
    except ClosedError:
        pass
    return None


def _file_records(content: Any) -> Iterator[bytes]:
    """BYTES and END of bytes, or of an open binary file, from where it stands."""
    offset = 0
    if isinstance(content, bytes | bytearray | memoryview):
        with memoryview(content).cast("B") as view:
            yield record(BYTES, size=len(view))
            yield view  # type: ignore[misc]
            offset = len(view)
    else:
        while data := content.read(CHUNK):
            yield record(BYTES, size=len(data), offset=offset)
            yield data
            offset += len(data)
    yield record(END, offset=offset)


def list_directory(starter: Starter, path: bytes) -> list[str]:
    reply = exchange(starter, LIST, b"0", b"", path)
    return sorted(name for kind, _, name, *_ in reply.records() if kind == NAME)


# ---- trees ----


def upload(starter: Starter, source: str, destination: bytes) -> None:
    with Transfer(starter, PUT, sends=True) as transfer:
        transfer.send(_tree_records(source, destination, None))


def _tree_records(source: str, name: bytes, parent: int | None) -> Iterator[bytes]:
    """The records of a file or a directory of this host. parent: an fd; None: follow a link."""
    follow = parent is None
    about = os.stat(source, dir_fd=parent, follow_symlinks=follow)
    kind, mode = stat.S_IFMT(about.st_mode), about.st_mode & 0o777
    if kind == stat.S_IFLNK:
        target = os.fsencode(os.readlink(source, dir_fd=parent))
        yield record(LINK, name, size=len(target)) + target
        return
    if kind not in (stat.S_IFREG, stat.S_IFDIR):
        raise OSError(errno.ENOTSUP, _reason(errno.ENOTSUP), source)
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    fd = os.open(source, flags, dir_fd=parent)
    if kind == stat.S_IFREG:
        with open(fd, "rb", buffering=0) as file:
            yield record(FILE, name, mode=mode, time=about.st_mtime_ns)
            yield from _without_holes(file, os.fstat(fd).st_size)
        return
    try:
        yield record(DIRECTORY, name, mode=mode)
        for entry in sorted(os.listdir(fd)):
            yield from _tree_records(entry, os.fsencode(entry), fd)
        yield record(LEAVE)
    finally:
        os.close(fd)


def _without_holes(file: io.FileIO, size: int) -> Iterator[bytes]:
    offset = 0
    while offset < size:
        try:
            offset = os.lseek(file.fileno(), offset, os.SEEK_DATA)
            hole = os.lseek(file.fileno(), offset, os.SEEK_HOLE)
        except OSError as exc:
            if exc.errno == errno.ENXIO:  # only a hole is left
                break
            hole = size
        file.seek(offset)
        while offset < hole and (data := file.read(min(CHUNK, hole - offset))):
            yield record(BYTES, size=len(data), offset=offset)
            yield data
            offset += len(data)
        if offset < hole:  # it has shrunk
            break
    yield record(END, offset=size)


def download(starter: Starter, source: bytes, destination: str, most: int) -> None:
    """Makes `destination`, which must not exist as a directory, from a file or directory inside."""
    parent = os.path.dirname(os.path.abspath(destination))
    os.stat(parent)  # the error then names it
    place = tempfile.mkdtemp(prefix=".fastns-", dir=parent)
    try:
        with Transfer(starter, GET, b"%d" % most, b"", source) as transfer:
            fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                _receive(transfer, fd)
            finally:
                os.close(fd)
        os.replace(f"{place}/{ROOT}", destination)
    finally:
        _remove(place)


def _remove(place: str) -> None:
    """Removes what has come so far, even from directories that may not be searched."""
    for top, directories, _ in os.walk(place):
        for name in directories:
            path = os.path.join(top, name)
            if not os.path.islink(path):
                os.chmod(path, 0o700)
    shutil.rmtree(place, ignore_errors=True)


ROOT = "root"  # what is downloaded, in the temporary directory


def _receive(transfer: Transfer, place: int) -> None:
    directories = [place]  # fds
    modes: list[int] = []
    try:
        for kind, mode, name, size, _, time in transfer.records():
            name = name if len(directories) > 1 else ROOT
            if "/" in name or (name in ("", ".", "..") and kind != LEAVE):
                raise OSError(errno.EPROTO, os.strerror(errno.EPROTO), name)
            here = directories[-1]
            if kind == FILE:
                _receive_file(transfer, name, here, mode, time)
            elif kind == DIRECTORY:
                os.mkdir(name, 0o700, dir_fd=here)
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                directories.append(os.open(name, flags, dir_fd=here))
                modes.append(mode)
            elif kind == LEAVE:
                os.fchmod(directories[-1], modes.pop())
                os.close(directories.pop())
            elif kind == LINK:
                target = os.fsdecode(transfer.read(size))
                _check_link(target, len(directories) - 2, name)
                os.symlink(target, name, dir_fd=here)
    finally:
        for fd in directories[1:]:
            os.close(fd)


def _receive_file(transfer: Transfer, name: str, here: int, mode: int, time: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(name, flags, 0o600, dir_fd=here)
    with open(fd, "wb", buffering=0) as file:
        for kind, _, _, size, offset, _ in transfer.records():
            if kind == END:
                file.truncate(offset)
                break
            file.seek(offset)
            while size:
                data = transfer.read(min(size, CHUNK))
                file.write(data)
                size -= len(data)
        os.fchmod(fd, mode)
        os.utime(fd, ns=(time, time))


def _check_link(target: str, depth: int, name: str) -> None:
    """Refuses a link that could lead out of the tree, also by way of other links in it."""
    parts = target.split("/")
    up = 0
    while up < len(parts) and parts[up] == "..":
        up += 1
    if target.startswith("/") or up > depth or ".." in parts[up:]:
        raise OSError(
            errno.EXDEV, f"a link that may lead out of what is downloaded (to {target!r})", name
        )


def check_size(field: str, value: Any) -> int:
    if value is None:
        return ANY_SIZE
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise SpecError(field, f"{value!r}: expected a number of bytes, or None")
    return min(value, ANY_SIZE)
