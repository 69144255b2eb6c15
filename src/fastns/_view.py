"""What a sandbox without a rootfs sees of the host: its system directories, and nothing else.

_compile builds the root from the layout. When something is missing inside, hint_of() names the
mount that would show it.
"""

from __future__ import annotations

import errno
import os
import posixpath

from fastns._light import cached, record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

DIRECTORIES = (
    *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/opt"),
    *("/nix/store", "/gnu/store"),  # where /bin/sh leads on NixOS and Guix
)
LINKS_OUT = ("/etc/ssl/certs", "/etc/resolv.conf")
"""Links that TLS and name resolution need. Some distributions keep their targets elsewhere."""
RESOLVER = "/etc/resolv.conf"
RELATIVE = ", because a relative path starts at the working directory inside"


@record(frozen=True)
class Layout:
    """The system directories of this host."""

    shown: tuple[str, ...]  # directories to bind
    links: tuple[tuple[str, str], ...]  # (path, target) of links to directories that are bound

    @property
    def paths(self) -> tuple[str, ...]:
        return (*self.shown, *(path for path, _ in self.links))


def layout() -> Layout:
    """The host's layout, read again when "/" has changed."""
    top = os.stat("/")
    return _layout(top.st_dev, top.st_ino, top.st_mtime_ns)


@cached(4)
def _layout(*_version: int) -> Layout:
    there = [path for path in DIRECTORIES if os.path.isdir(path)]
    plain = [path for path in there if not os.path.islink(path)]
    links = {
        path: os.readlink(path)
        for path in there
        if path not in plain and lies_in(os.path.realpath(path), plain)
    }
    return Layout(tuple(path for path in there if path not in links), tuple(links.items()))


def led_to(shown: Sequence[str], resolver: bool) -> list[str]:
    """The targets of LINKS_OUT outside of `shown`; that of RESOLVER only if `resolver` is True."""
    links = [path for path in LINKS_OUT if path != RESOLVER or resolver]
    targets = [os.path.realpath(path) for path in links if os.path.exists(path)]
    return [path for path in targets if not lies_in(path, shown)]


def resolver() -> str:
    """The target of RESOLVER now."""
    return os.path.realpath(RESOLVER)


def has_mounts_below(directories: Iterable[str]) -> bool:
    """Whether something is mounted below one of these directories of the host."""
    below = tuple([f"{directory.rstrip('/')}/" for directory in directories])
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return any(line.split()[4].startswith(below) for line in file)


def lies_in(path: str, directories: Iterable[str]) -> bool:
    """Whether a plain absolute path is one of these directories or below one."""
    return f"{path}/".startswith(tuple([f"{directory.rstrip('/')}/" for directory in directories]))


# ---- what is missing ----


def hint_of(
    stage: str, error: int, path: str | None, view: Sequence[str], found: bool
) -> str | None:
    """The fix for a step that failed because a path is missing; None: another cause, or no fix.

    path: inside. view: the destinations of what is mounted inside. found: the command exists, but
    its interpreter does not.
    """
    if path is None or error != errno.ENOENT or stage not in ("exec", "chdir", "landlock"):
        return None
    try:
        if stage != "exec":
            return hint(path, view)
        place = on_host(path)
        if place is not None and found:
            from fastns.rootfs._host import shebang  # only an error needs it

            place = next(iter(shebang(place)), None)
        if place is None:
            return None
        said = hint(place, view)
        if "/" in path and not os.path.isabs(path) and not found:
            return f"{said}, and run {place}{RELATIVE}" if said else f"run {place}{RELATIVE}"
        if said is None and "/" not in path and lies_in(place, view):
            return f"it is {place}, which is not on the sandbox's PATH: give that path, or set PATH"
        return said
    except OSError:
        return None


def hint(path: str, view: Sequence[str]) -> str | None:
    """How to bring a path of the host into view; None if it is in view, or does not exist."""
    missing = list(_missing(path, view))
    if not missing:
        return None
    listed = ", ".join(directory for directory in DIRECTORIES if directory in view)
    mounts = ", ".join(f"Mount({place!r}, source={place!r}, options=['ro'])" for place in missing)
    return (
        f"the sandbox does not see {path}: without a rootfs it sees only {listed} of the host. Add "
        f"mounts=[{mounts}]"
    )


def hint_of_arguments(args: Iterable[str], view: Sequence[str]) -> str | None:
    """For a command that failed: a hint about its first argument that is a file of the host but not
    visible inside. Relative paths are resolved from the caller's directory, unlike inside."""
    for word in args:
        if not word.startswith("-") and os.path.lexists(word):
            place = os.path.abspath(word)
            said = hint(place, view)
            if said is not None:
                return said if os.path.isabs(word) else f"{said}; pass {place} instead{RELATIVE}"
    return None


def on_host(command: str) -> str | None:
    """The host's path of a command missing inside. A name without a slash is looked up in PATH."""
    if "/" in command:
        return os.path.abspath(command) if os.path.lexists(command) else None
    import shutil
    import sys

    found = shutil.which(command)
    if found is None and command == os.path.basename(sys.executable or ""):
        found = sys.executable
    return None if found is None else os.path.abspath(found)


def _missing(path: str, view: Sequence[str]) -> Iterator[str]:
    """What to bind so that `path`, each link on the way and its target are in view."""
    found: list[str] = []
    for step in _steps(path):
        if not lies_in(step, view) and not lies_in(step, found) and os.path.lexists(step):
            found.append(_bindable(step))
            yield found[-1]


def _steps(path: str) -> Iterator[str]:
    """`path`, the target of each link on the way, and its real path; nothing if it is missing."""
    step = posixpath.normpath(path)
    if not os.path.isabs(step) or not os.path.lexists(step):
        return
    for _ in range(40):  # the kernel follows no more
        yield step
        try:
            target = os.readlink(step)
        except OSError:
            break
        step = posixpath.normpath(posixpath.join(posixpath.dirname(step), target))
    yield os.path.realpath(path)


def _bindable(path: str) -> str:
    """What to bind for a file: the whole installation if it is part of a Python or a program."""
    import sys

    for prefix in (sys.prefix, sys.base_prefix):
        if prefix and lies_in(path, [prefix]):
            return prefix
    if os.path.isdir(path):
        return path
    directory, name = posixpath.split(posixpath.dirname(path))
    wide = ("/", "/home", posixpath.dirname(os.path.expanduser("~")), os.path.expanduser("~"))
    if name in ("bin", "sbin", "libexec", "shims") and directory not in wide:
        return directory
    return path
