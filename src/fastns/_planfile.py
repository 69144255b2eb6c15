"""Plan files: `fastns compile` writes them, and fastns-exec starts sandboxes from them.

csrc/cli/planfile.h defines the format. This module adds the hints to the plan, because no Python
runs when a start fails.
"""

from __future__ import annotations

import errno
import os

from fastns import _core, _view
from fastns.errors import hint_of_start, known_hints

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Hint = tuple[str, str, int, bytes, bytes]

# A (stage, errno, detail) for which to look up the hint of each detail. The hint does not depend on
# the errno.
DETAILS = (
    ("exec", errno.ENOENT, "found"),
    ("clone", errno.ECANCELED, "killed"),
    ("mount", errno.EINVAL, "id_map"),
)


def pack(plan: _core.Plan, timeout_ns: int | None, reword: Callable[[str], str]) -> bytes:
    """Returns the bytes of a plan file.

    Args:
        plan: must not have cgroups.
        timeout_ns: a sandbox is killed after this time; None: never.
        reword: turns a hint about a Spec into one about flags.
    """
    return _core.pack_plan(plan, timeout_ns, hints(plan, reword))


def hints(plan: _core.Plan, reword: Callable[[str], str]) -> list[Hint]:
    """(stage or "" for any, detail or "", errno or 0 for any, path or b"" for any, text) each.

    fastns-exec shows the first one that fits a failure.
    """
    found: list[Hint] = []
    for stage, err, detail in DETAILS:
        text = hint_of_start(plan, stage, err, None, detail)
        if text is not None:
            found.append(("", detail, 0, b"", os.fsencode(reword(text))))
    if plan.view is not None:
        text = out_of_view(plan.view)
        for stage in ("exec", "chdir", "landlock"):
            found.append((stage, "", errno.ENOENT, b"", os.fsencode(text)))
    for stage, err, path, text in known_hints(host_root=plan.view is not None):
        found.append((stage, "", err, os.fsencode(path or ""), os.fsencode(reword(text))))
    return found


def out_of_view(view: tuple[str, ...]) -> str:
    """The hint for a path that does not exist inside."""
    listed = ", ".join(directory for directory in _view.DIRECTORIES if directory in view)
    return (
        f"no such file inside: without a --rootfs the sandbox sees only {listed} of the host. If "
        "it is elsewhere, compile the plan with -v DIR:DIR:ro"
    )


def write(path: str, data: bytes) -> None:
    """Replaces the file at `path` atomically; only its owner may access it. Raises: OSError."""
    fresh = f"{path}.{os.getpid()}"
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:
            file.write(data)
        os.rename(fresh, path)
    except BaseException:
        os.unlink(fresh)
        raise
