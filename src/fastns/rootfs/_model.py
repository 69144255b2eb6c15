"""What the steps of a build pass to each other, its result, and its error."""

from __future__ import annotations

from fastns._record import record
from fastns.errors import FastnsError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from fastns.rootfs._host import Entries

    Progress: TypeAlias = Callable[[int, int, str], None]
    """Called with (files done, files in all, path inside the root of the current one)."""


class RootfsError(FastnsError):
    """A root could not be built; the destination is as it was.

    Attributes: missing, each command, interpreter, loader or library that was not found; hint, how
    to mend it, or None. A failed system call is the `__cause__`.
    """

    def __init__(
        self, message: str, *, missing: tuple[str, ...] = (), hint: str | None = None
    ) -> None:
        super().__init__(message)
        self.missing = missing
        self.hint = hint


@record(frozen=True)
class Root:
    """What is in a root after a build. All paths but `path` are inside it.

    Attributes:
        path: the root, absolute, on the host.
        commands: paths of the commands of this build and earlier ones.
        libraries: the shared libraries and loaders, sorted.
        files: every file and symbolic link, sorted.
        copied: how many files and links this build wrote.
        unchanged: how many were there already.
        bytes: size of all files.
        hints: what commands are known to lack, a sentence each.
    """

    path: str
    commands: tuple[str, ...]
    libraries: tuple[str, ...]
    files: tuple[str, ...]
    copied: int
    unchanged: int
    bytes: int
    hints: tuple[str, ...] = ()


Texts = dict[str, str]  # content by path inside


@record(frozen=True)
class Plan:
    """Everything that a root needs, and the arguments it follows from."""

    entries: Entries
    libraries: tuple[str, ...]
    commands: tuple[str, ...]
    extra: tuple[str, ...]
