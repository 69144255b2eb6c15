"""A root file system made from this machine's commands: build().

Theory of operation:

1. _resolve.py finds out which files a root needs. _host.py follows paths, _loader.py finds
   libraries, _bundles.py lists what some programs open at run time. Files are read, never run. One
   error names everything that is missing, before anything is written.
2. _write.py copies what is new or changed into a staging directory inside the root, renames it into
   place, and undoes that if a step fails. It records the arguments of the build in a marker beside
   the root, so that a later build can extend the root.

All of this runs in the caller. A sandbox may have written anything in a root. So the content of a
root is not trusted: it decides neither what is copied nor where to.

Paths inside the root are written as on the host, absolute and without symbolic links in their
directories. There is one Entry (directory, link, file or text) for each path.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
import time

from fastns.errors import RootfsError
from fastns.rootfs._bundles import BUNDLES, bundle_of
from fastns.rootfs._host import absolute
from fastns.rootfs._resolve import inside, resolve
from fastns.rootfs._write import MARKER, STAGE, Beside, Marker, Root, Writer, opened

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from fastns.rootfs._resolve import Texts
    from fastns.rootfs._write import Progress

__all__ = ["BUNDLES", "MARKER", "Root", "RootfsError", "build"]

PATIENCE = 60.0  # seconds to wait for another build in the same directory
SYSTEM_PLACES = (
    *("/", "/dev", "/dev/pts", "/dev/shm", "/home", "/media", "/mnt", "/opt", "/root", "/run"),
    *("/srv", "/tmp", "/usr", "/usr/local", "/usr/share", "/var", "/var/lib", "/var/tmp"),
)
"""No root is built in these directories, even if they are empty."""
SYSTEM_TREES = (
    *("/bin", "/boot", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/sbin", "/sys"),
    *("/usr/bin", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/libexec", "/usr/libx32"),
    "/usr/sbin",
)
"""No root is built in these directories or below them."""


def build(
    dest: str | os.PathLike[str],
    commands: Iterable[str | os.PathLike[str]],
    *,
    extra: Iterable[str | os.PathLike[str]] = (),
    bundles: Iterable[str] = (),
    progress: Progress | None = None,
) -> Root:
    """Make a root file system with these commands and all they need to start.

    Args:
        dest: a directory that does not exist (its parent must), is empty, or is a root built
            before. Such a root is extended: what it was built from is looked up again, only changed
            files are written, and the user's own files stay. The record of what it was built from
            is `.NAME.fastns-rootfs.json` in the parent directory, which must be writable.
        commands: paths, or names that are looked up in the caller's PATH. Their libraries, loader
            and `#!` interpreters are copied with them; /bin/sh is always there.
        extra: files, or directories with all in them, copied to the same place with the libraries
            of their ELF files. A symbolic link in such a directory is kept. If it leads to a file,
            the file is copied too; a directory is not. Needed for what a program opens only while
            it runs: data, plug-ins, files found through LD_LIBRARY_PATH.
        bundles: "python", "perl" and "gcc" add what programs of that kind open while they run. They
            apply to such programs among `commands`. If there are none, they add this machine's own.
            "network" adds CA certificates and the host's current name servers.
        progress: called in this thread, before each file and once at the end, with the number of
            files done, the number of all files, and the path inside the root. An exception that it
            raises ends the build.
    Returns: a Root; its `hints` say what a command is known to lack.
    Raises: RootfsError, which names everything that is missing; dest is then unchanged.

    Modes and times are kept, without setuid and setgid bits. All files belong to the caller, who
    may write to all directories.
    """
    target = _checked_dest(os.fspath(dest))
    names = _strings("commands", commands)
    extras = [absolute(path) for path in _strings("extra", extra)]
    texts: Texts = {}
    for name in _strings("bundles", bundles):
        bundle = bundle_of(name, names)
        names = list(dict.fromkeys([*names, *bundle.commands]))
        extras = list(dict.fromkeys([*extras, *bundle.extra]))
        texts.update(bundle.texts)
    try:
        make = _extend if os.path.lexists(target) else _create
        return make(target, names, extras, texts, progress)
    except OSError as error:
        raise RootfsError(f"{_describe(error)}; {target} is as it was") from error


def _strings(name: str, values: Iterable[str | os.PathLike[str]]) -> list[str]:
    """Each path once, in order."""
    if isinstance(values, str | bytes):
        raise TypeError(f"{name}: expected several paths, not one string: {values!r}")
    return list(dict.fromkeys(os.fspath(value) for value in values))


def _describe(error: OSError) -> str:
    code = errno.errorcode.get(error.errno or 0, str(error.errno))
    place = f"{os.fsdecode(error.filename)}: " if error.filename is not None else ""
    return f"{place}{error.strerror} ({code})"


def _checked_dest(dest: str) -> str:
    """The absolute path of dest, without symbolic links. Raises RootfsError if no root may be built
    there."""
    if not dest or "\0" in dest:
        raise RootfsError(f"{dest!r} is not a path")
    try:
        target = os.path.realpath(dest)
    except FileNotFoundError:  # from getcwd(2)
        raise RootfsError(
            "the working directory does not exist any more", hint="give an absolute path, or cd /"
        ) from None
    if target in SYSTEM_PLACES or any(inside(target, tree) for tree in SYSTEM_TREES):
        raise RootfsError(
            f"{target} is a directory of this system",
            hint="choose a new directory, such as ./rootfs",
        )
    return target


def _create(
    target: str, commands: list[str], extra: list[str], texts: Texts, progress: Progress | None
) -> Root:
    """Build beside the target, then rename."""
    parent, name = os.path.split(target)
    if not os.path.isdir(parent):
        raise RootfsError(f"{parent} is not a directory", hint=f"mkdir -p {parent}")
    plan = resolve(target, commands, extra, texts)
    beside = tempfile.mkdtemp(prefix=f".{name}.", suffix=".fastns-rootfs", dir=parent)
    try:
        with opened(parent) as fd, Beside(fd, target).staged(Marker.of(plan)) as put:
            with opened(beside) as root:
                result = Writer(root, target, progress).install(plan)
                os.fchown(root, os.geteuid(), os.getegid())
                os.fchmod(root, 0o755)
            os.rename(beside, target)
            try:
                put()
            except BaseException:
                os.rename(target, beside)
                raise
    except BaseException:
        with contextlib.suppress(FileNotFoundError):  # already renamed: the root is complete
            shutil.rmtree(beside)
        raise
    return result


def _extend(
    target: str, commands: list[str], extra: list[str], texts: Texts, progress: Progress | None
) -> Root:
    """Build in an empty directory, or in a root that was built before."""
    with opened(os.path.dirname(target)) as parent, opened(target) as root:
        # A second build of the same root waits here. The lock is on the parent, because a sandbox
        # could keep the root itself locked.
        _lock(parent, os.path.dirname(target))
        beside = Beside(parent, target)
        before = Marker() if _is_empty(root) else beside.read()
        if before is None:
            raise _unknown(root, target)
        commands = list(dict.fromkeys([*before.commands, *commands]))
        extra = list(dict.fromkeys([*before.extra, *extra]))
        plan = resolve(target, commands, extra, texts)
        return Writer(root, target, progress).install(plan, before, beside)


def _lock(directory: int, path: str) -> None:
    """Lock the directory until its fd is closed. Any process that can open it can lock it too."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise RootfsError(
                    f"{path} is locked: by another build, or by another program that may open it",
                    hint="wait for it to end (`lsof` names it), or build elsewhere",
                ) from None
        time.sleep(0.05)


def _is_empty(root: int) -> bool:
    with os.scandir(root) as entries:
        return all(entry.name == STAGE for entry in entries)


def _unknown(root: int, target: str) -> RootfsError:
    """The error for a directory that has no marker beside it."""
    words = f"{target} is neither empty nor a root that fastns built"
    try:
        os.lstat(MARKER, dir_fd=root)
    except OSError:
        return RootfsError(words, hint="choose a directory that does not exist yet")
    return RootfsError(
        f"{words}: the {MARKER} in it, of an earlier version, is not trusted, as a sandbox may "
        "have written it",
        hint=f"choose a new directory, or remove {target}, and name all commands again",
    )
