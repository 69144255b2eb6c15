"""Looks at the host's files: where a path leads, where a command is, what a `#!` line says."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections import deque

from fastns._light import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import BinaryIO, Literal

MAX_SHEBANG = 256  # bytes of the `#!` line that the kernel reads (execve(2))
MAX_LINKS = 40  # symbolic links followed in one path, as in the kernel (path_resolution(7))
KERNEL_PLACES = ("/dev", "/proc", "/sys")  # files here are the kernel's and cannot be copied


class Unusable(Exception):
    """A path of the host cannot be copied. The text says why, and becomes part of a RootfsError."""


@record(frozen=True)
class Entry:
    """What is at one path inside the root."""

    kind: Literal["directory", "link", "file", "text"]
    mode: int = 0o644
    source: str = ""  # the host's file, the target of the link, or the text
    size: int = 0
    mtime_ns: int = 0


Entries = dict[str, Entry]
"""By path. Paths are as on the host, absolute, without symbolic links in their directories."""


def absolute(path: str) -> str:
    """The absolute path. Symbolic links in an absolute path are not resolved: they are copied."""
    if not path or os.path.isabs(path):
        return path
    directory, name = os.path.split(path.rstrip("/"))
    if name in (".", ".."):
        return os.path.realpath(path)
    return os.path.join(os.path.realpath(directory), name)


def walk(path: str) -> tuple[str, Entries]:
    """Follow an absolute path. Returns the path where it ends, and the entries on the way and at
    the end.

    Raises Unusable if it leads nowhere, or to something that is neither a file nor a directory.
    """
    entries: Entries = {}
    ahead = deque(path.split("/"))
    here = ""
    links = 0
    while ahead:
        part = ahead.popleft()
        if part in ("", "."):
            continue
        if part == "..":
            here = os.path.dirname(here).rstrip("/")
            continue
        there = f"{here}/{part}"
        if there in KERNEL_PLACES:
            raise Unusable(f"lies in {there}, which holds no ordinary files")
        try:
            status = os.lstat(there)
        except FileNotFoundError:
            raise Unusable("does not exist") from None
        except OSError as error:
            raise Unusable(f"cannot be read: {error.strerror}") from None
        if stat.S_ISLNK(status.st_mode):
            links += 1
            if links > MAX_LINKS:
                raise Unusable("too many levels of symbolic links")
            leads = os.readlink(there)
            entries[there] = Entry("link", source=leads)
            here = "" if leads.startswith("/") else here
            ahead.extendleft(reversed(leads.split("/")))
            continue
        mode = stat.S_IMODE(status.st_mode) & ~(stat.S_ISUID | stat.S_ISGID)
        if stat.S_ISDIR(status.st_mode):
            entries[there] = Entry("directory", mode | 0o700)  # a build must be able to write there
        elif not stat.S_ISREG(status.st_mode):
            raise Unusable("is neither a file nor a directory")
        elif ahead:
            raise Unusable(f"{there} is not a directory")
        elif not os.access(there, os.R_OK):
            raise Unusable("cannot be read")
        else:
            entries[there] = Entry("file", mode, there, status.st_size, status.st_mtime_ns)
        here = there
    if not here:
        raise Unusable("is the host's root")
    return here, entries


def in_path(name: str, path: str | None = None) -> str | None:
    """The first executable file of that name in `path`; None: in PATH. Relative directories in a
    path are skipped."""
    directories = (path or os.environ.get("PATH", os.defpath)).split(os.pathsep)
    return shutil.which(name, path=os.pathsep.join(filter(os.path.isabs, directories)))


def open_file(path: str) -> BinaryIO:
    """Open a regular file for reading. Raises OSError for anything else, and does not block on a
    FIFO."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "is not a regular file", path)
    return open(fd, "rb")


def shebang(path: str) -> list[str]:
    """The words of a script's `#!` line, the interpreter first; empty if there is no such line."""
    with open_file(path) as file:
        line = file.read(MAX_SHEBANG).split(b"\n", 1)[0]
    return os.fsdecode(line[2:]).split() if line.startswith(b"#!") else []


def run_by_env(words: list[str]) -> list[str]:
    """The command that env(1) runs with these arguments: a list of one, or empty."""
    rest = iter(words)
    for word in rest:
        if word in ("-u", "-C", "--unset", "--chdir"):
            next(rest, None)
        elif word.startswith("-S") and len(word) > 2:
            return [word[2:]]
        elif not word.startswith("-") and "=" not in word:
            return [word]
    return []
