"""The marker: the file beside a root that records what fastns built it from.

It decides what the next build copies. So it lies in the parent directory, where no sandbox of that
root can write.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import stat

from fastns._record import record
from fastns.rootfs._model import RootfsError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fastns.rootfs._model import Plan

MARKER = ".fastns-rootfs.json"
"""The end of a marker's name. Earlier versions kept a file of this name inside the root."""
MAX_SIZE = 64 << 20
"""Bytes of a marker, a hundred times what a large root needs."""


@record(frozen=True)
class Marker:
    """The arguments of the builds, and the files in the root."""

    commands: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    @classmethod
    def of(cls, plan: Plan) -> Marker:
        files = (path for path, entry in plan.entries.items() if entry.kind != "directory")
        return cls(plan.commands, plan.extra, tuple(sorted(files)))

    def as_text(self) -> str:
        return json.dumps({"fastns_rootfs": 2, **vars(self)}, indent=1) + "\n"


class Beside:
    """Where the marker of one root lies: a descriptor of the parent directory, and a name."""

    def __init__(self, parent: int, target: str) -> None:
        self.parent = parent
        self.target = target
        self.name = f".{os.path.basename(target)}{MARKER}"
        self.path = os.path.join(os.path.dirname(target), self.name)

    def read(self) -> Marker | None:
        """The marker; None if there is none. Raises RootfsError if it cannot be trusted."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            fd = os.open(self.name, flags, dir_fd=self.parent)
        except FileNotFoundError:
            return None
        except OSError as error:
            error.filename = self.path
            raise
        try:
            self._check(os.fstat(fd))
            with open(fd, "rb", closefd=False) as file:
                content = file.read(MAX_SIZE + 1)
        finally:
            os.close(fd)
        marker = _parsed(content) if len(content) <= MAX_SIZE else None
        if marker is None:
            raise self._untrusted("is not what fastns writes")
        return marker

    def _check(self, status: os.stat_result) -> None:
        """Raises RootfsError unless only the caller can have written it, and its size is sane."""
        if status.st_uid != os.geteuid():
            raise RootfsError(f"{self.target} was built by another user (uid {status.st_uid})")
        if not stat.S_ISREG(status.st_mode):
            raise self._untrusted("is no regular file")
        if status.st_mode & 0o022:
            raise self._untrusted("can be written by others")
        if status.st_nlink != 1:
            raise self._untrusted("has a second name (a hard link)")
        if status.st_size > MAX_SIZE:
            raise self._untrusted(f"is larger than {MAX_SIZE >> 20} MiB")

    def _untrusted(self, why: str) -> RootfsError:
        return RootfsError(
            f"{self.path} {why}; it says what {self.target} is made of",
            hint="build into a new directory and name all commands again",
        )

    @contextlib.contextmanager
    def staged(self, marker: Marker) -> Iterator[Callable[[], None]]:
        """Write a marker under a temporary name. Yields what renames it; else it is removed."""
        fresh = f"{self.name}.{secrets.token_hex(4)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        try:
            fd = os.open(fresh, flags, 0o600, dir_fd=self.parent)
        except PermissionError as error:
            raise RootfsError(
                f"{os.path.dirname(self.path)} cannot be written: what {self.target} is made of is "
                "recorded there, out of reach of its sandboxes",
                hint=f"build into a directory below it: {self.target}/root",
            ) from error
        try:
            with open(fd, "wb") as file:
                file.write(marker.as_text().encode("utf-8", "surrogateescape"))
            yield lambda: self._place(fresh)
        finally:
            with contextlib.suppress(FileNotFoundError):  # renamed
                os.unlink(fresh, dir_fd=self.parent)

    def _place(self, fresh: str) -> None:
        try:
            os.rename(fresh, self.name, src_dir_fd=self.parent, dst_dir_fd=self.parent)
        except OSError as error:
            error.filename = self.path
            raise


def _parsed(content: bytes) -> Marker | None:
    """The marker in this text; None if it is none."""
    try:
        data = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if not isinstance(data, dict) or data.get("fastns_rootfs") != 2:
        return None
    lists = [data.get(name, []) for name in ("commands", "extra", "files")]
    for value in lists:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            return None
    return Marker(*map(tuple, lists))
