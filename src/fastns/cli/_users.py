"""Looks up the names of --user in the passwd and group files that the sandbox will have.

Imported only for a name. These files may choose ids inside, but never ids of the host. So _flags.py
refuses a name with --userns host and a --rootfs.
"""

from __future__ import annotations

import os
import posixpath

from fastns import _inside
from fastns._args import MAX_ID
from fastns.cli import UsageError, whole

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from fastns.spec import Mount

FILES = {"user": ("/etc/passwd", 7), "group": ("/etc/group", 4)}
"""The file for each, and how many fields its lines have."""
MAX_SIZE = 4 << 20  # bytes of such a file


def account_of(
    flags: argparse.Namespace, mounts: Sequence[Mount], files: Mapping[str, str | bytes]
) -> tuple[str, str | None]:
    """`uid:gid` for a --user that contains a name, and the user's home if it is a directory of
    --rootfs. Raises UsageError."""
    accounts = Accounts(flags, mounts, files)
    user, colon, group = flags.user.partition(":")
    uid, gid, home = user, group, None
    if _is_name(user):
        fields = accounts.line("user", user)
        uid, own = accounts.number("user", fields[2]), accounts.number("user", fields[3])
        gid = gid if colon else own
        path = os.fsdecode(fields[5])
        # Without a rootfs, the sandbox does not see the host's home directories.
        if flags.rootfs not in (None, "/") and path.startswith("/"):
            home = path if _inside.is_directory(flags.rootfs, path) else None
    if _is_name(group):
        gid = accounts.number("group", accounts.line("group", group)[2])
    return f"{uid}:{gid}" if gid or colon else uid, home


def _is_name(text: str) -> bool:
    """Anything but a number. A number that is too large is not a name either."""
    return bool(text) and not text.lstrip("+-").isdigit()


class Accounts:
    """Both files as the sandbox will see them, given --rootfs, -v, --mount, --tmpfs and --file."""

    def __init__(
        self, flags: argparse.Namespace, mounts: Sequence[Mount], files: Mapping[str, str | bytes]
    ) -> None:
        self._text = flags.user
        self._root: str = flags.rootfs or "/"
        self._joined = flags.mountns is not None and "/" in flags.mountns
        self._mounts = mounts
        self._files = files

    def line(self, what: str, name: str) -> list[bytes]:
        """The fields of the first line for this name."""
        path, fields = FILES[what]
        for line in self._read(path).splitlines():
            found = line.split(b":")
            if found[0] == os.fsencode(name) and len(found) >= fields:
                return found
        raise self._error(f"there is no {what} {name} in {path} of the root")

    def _read(self, path: str) -> bytes:
        if self._joined:
            raise self._error(f"{path} of a joined mount namespace is not read")
        if path in self._files:
            content = self._files[path]
            return content if isinstance(content, bytes) else content.encode()
        root, place = self._root, path
        for mount in self._mounts:  # a later one covers earlier ones
            at = mount.destination
            if not f"{path}/".startswith(f"{at}/"):
                continue
            if mount.type != "bind" or mount.source is None:
                raise self._error(f"{path} is covered by the {mount.type} at {at}")
            root, place = os.fspath(mount.source), path[len(at) :]
        if not place:  # the file itself is bound
            root, place = posixpath.split(os.path.realpath(root))
        try:
            return _inside.read(root, place, MAX_SIZE)
        except OSError as error:
            raise self._error(f"{path} of the root: {error.strerror}") from None

    def number(self, what: str, field: bytes) -> str:
        number = whole(field.decode("ascii", "replace"))
        if number is None or number > MAX_ID:
            raise self._error(f"{FILES[what][0]} of the root has no number for it")
        return str(number)

    def _error(self, reason: str) -> UsageError:
        hint = "names are looked up in /etc/passwd and /etc/group inside; or give numbers"
        return UsageError(f"--user {self._text}: {reason}", hint)
