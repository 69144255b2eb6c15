"""The file at the top of every root that says: fastns made this, and of what."""

from __future__ import annotations

import json
import os
import stat

from fastns._record import record
from fastns.rootfs._model import RootfsError

MARKER = ".fastns-rootfs.json"


@record(frozen=True)
class Marker:
    """The words of the builds, and the files that came of them."""

    commands: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    def as_text(self) -> str:
        return json.dumps({"fastns_rootfs": 1, **vars(self)}, indent=1) + "\n"


def read_marker(root: int, target: str) -> Marker:
    """The marker of a root. RootfsError when there is none, or one that is not to be trusted."""
    strange = RootfsError(
        f"{target} is neither empty nor a root that fastns built",
        hint="choose a directory that does not exist yet",
    )
    try:
        fd = os.open(MARKER, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=root)
    except FileNotFoundError:
        raise strange from None
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise strange
        if status.st_uid != os.geteuid():
            # It decides what is copied: not a decision to leave to somebody else.
            raise RootfsError(f"{target} was built by another user (uid {status.st_uid})")
        content = file.read()
    try:
        data = json.loads(content)
    except ValueError:
        raise strange from None
    if not isinstance(data, dict) or data.get("fastns_rootfs") != 1:
        raise strange
    lists = [data.get(name, []) for name in ("commands", "extra", "files")]
    for value in lists:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise strange
    return Marker(*map(tuple, lists))
