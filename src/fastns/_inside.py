"""Reads files of an untrusted root from outside.

Symbolic links are resolved as they would be inside. Each name is looked up from the descriptor of
its directory, so no link, and no concurrent rename, leads out of the root. Only regular files are
opened, because a FIFO would block. No more is read than the caller allows.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque

MAX_LINKS = 40  # in one path, as in the kernel (path_resolution(7))


def read(root: str, path: str, most: int) -> bytes:
    """Reads the regular file at an absolute path inside `root`.

    Raises: OSError, EFBIG if it has more than `most` bytes, EINVAL if it is not a regular file,
    otherwise as open(2)."""
    fd = _open(root, path)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "is not a regular file")
        with open(f"/proc/self/fd/{fd}", "rb") as file:
            data = file.read(most + 1) or b""  # None if the file system fails with EAGAIN
    finally:
        os.close(fd)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"has more than {most} bytes")
    return data


def is_file(root: str, path: str) -> bool:
    return stat.S_ISREG(_mode(root, path))


def is_directory(root: str, path: str) -> bool:
    return stat.S_ISDIR(_mode(root, path))


def _mode(root: str, path: str) -> int:
    """The st_mode of what is at `path`; 0 if it does not exist or cannot be reached."""
    try:
        fd = _open(root, path)
    except OSError:
        return 0
    try:
        return os.fstat(fd).st_mode
    finally:
        os.close(fd)


def _open(root: str, path: str) -> int:
    """An O_PATH descriptor of what `path` leads to; the caller closes it."""
    links = 0
    ahead = deque(path.split("/"))
    way = [os.open(root, os.O_PATH | os.O_DIRECTORY)]  # the directories from the root to here
    try:
        while ahead:
            name = ahead.popleft()
            if name in ("", "."):
                continue
            if name == "..":
                if len(way) > 1:
                    os.close(way.pop())
                continue
            way.append(os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=way[-1]))
            if not stat.S_ISLNK(os.fstat(way[-1]).st_mode):
                continue
            link = way.pop()
            try:
                leads = os.readlink("", dir_fd=link)
            finally:
                os.close(link)
            links += 1
            if links > MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            while leads.startswith("/") and len(way) > 1:
                os.close(way.pop())
            ahead.extendleft(reversed(leads.split("/")))
        return os.dup(way[-1])
    finally:
        for fd in way:
            os.close(fd)
