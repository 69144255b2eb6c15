"""What the steps of a build hand to each other, and what a build hands back."""

from __future__ import annotations

from fastns._record import record
from fastns.errors import FastnsError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Literal, TypeAlias

    Progress: TypeAlias = Callable[[int, int, str], None]
    """Called with (files done, files in all, path inside the root of the one at hand)."""


class RootfsError(FastnsError):
    """A root could not be built; what was at its place is as it was.

    `missing` names each command, interpreter, loader or library that was not found (empty when
    that was not the trouble); `hint` says what to do about it, or is None. A failed system call
    is the `__cause__`.
    """

    def __init__(
        self, message: str, *, missing: tuple[str, ...] = (), hint: str | None = None
    ) -> None:
        super().__init__(message)
        self.missing = missing
        self.hint = hint


class Unusable(Exception):
    """A path of the host that cannot be copied; the words say why. Ends up in a RootfsError."""


@record(frozen=True)
class Root:
    """What is in a root, after a build. All paths but the first are paths inside it."""

    path: str
    """The root, absolute, on the host."""
    commands: tuple[str, ...]
    """Where the commands are that were asked for, by this build and earlier ones."""
    libraries: tuple[str, ...]
    """The shared libraries and loaders, sorted."""
    files: tuple[str, ...]
    """Every file and symbolic link, sorted."""
    copied: int
    """Files and links that this build wrote."""
    unchanged: int
    """Files and links that were there already."""
    bytes: int
    """Size of all files."""
    hints: tuple[str, ...] = ()
    """What commands are known to lack before they can run, a sentence each."""


@record(frozen=True)
class Entry:
    """What stands at one path inside the root."""

    kind: Literal["directory", "link", "file", "text"]
    mode: int = 0o644
    source: str = ""
    """The host's file, the target of the link, or the text."""
    size: int = 0
    mtime_ns: int = 0


Texts = dict[str, str]
"""Content by path inside."""
Entries = dict[str, Entry]
"""By path: as on the host, absolute, without symbolic links in its directories."""


@record(frozen=True)
class Plan:
    """Everything that has to be there, and the words it came from."""

    entries: Entries
    libraries: tuple[str, ...]
    commands: tuple[str, ...]
    extra: tuple[str, ...]
