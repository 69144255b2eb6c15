"""A root file system made from this machine's commands: build().

Theory of operation, three steps that know nothing of each other's inside:

1. _resolve.py finds out what has to be there (with _host.py, which follows paths, _elf.py and
   _loader.py, which find libraries, and _skeleton.py, which knows what is in every root). It
   reads files and never runs one; it collects everything that is missing, and nothing is written
   before it is content.
2. _write.py copies what is new or changed into a staging directory inside the root,
3. and renames it into place, and undoes that when a step fails. _marker.py keeps the words of the
   build beside the root, so that a later build extends it.

A sandbox may have written all that is in a root. Nothing there is believed: it decides neither what
is copied nor where to.

Paths inside the root are written as on the host, absolute and without symbolic links in their
directories; one Entry of _model.py (directory, link, file, text) stands for each.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
import time

from fastns.rootfs._bundles import BUNDLES, bundle_of
from fastns.rootfs._host import absolute
from fastns.rootfs._marker import MARKER, Beside, Marker
from fastns.rootfs._model import Root, RootfsError
from fastns.rootfs._resolve import inside, resolve
from fastns.rootfs._write import STAGE, Writer, opened

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from fastns.rootfs._model import Progress, Texts

__all__ = ["BUNDLES", "MARKER", "Root", "RootfsError", "build"]

PATIENCE = 60.0
"""Seconds that a build waits for another one in the same directory."""
SYSTEM_PLACES = (
    *("/", "/dev", "/dev/pts", "/dev/shm", "/home", "/media", "/mnt", "/opt", "/root", "/run"),
    *("/srv", "/tmp", "/usr", "/usr/local", "/usr/share", "/var", "/var/lib", "/var/tmp"),
)
"""Directories that are never built into, empty or not."""
SYSTEM_TREES = (
    *("/bin", "/boot", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/sbin", "/sys"),
    *("/usr/bin", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/libexec", "/usr/libx32"),
    "/usr/sbin",
)
"""Directories below which nothing is built, nor in themselves."""


def build(
    dest: str | os.PathLike[str],
    commands: Iterable[str | os.PathLike[str]],
    *,
    extra: Iterable[str | os.PathLike[str]] = (),
    bundles: Iterable[str] = (),
    progress: Progress | None = None,
) -> Root:
    """Make a root file system at dest with these commands and all they need to start.

    A command without a slash is looked up in the caller's PATH; its libraries, loader and `#!`
    interpreters come with it, and /bin/sh is always there. Each path of `extra`, a file or a
    directory with all in it, is copied to the same place, with the libraries of its ELF files;
    a link in such a directory stays, and brings the file it leads to but no further directory.
    What a program opens only once it runs (a standard library, data, plug-ins, files found
    through LD_LIBRARY_PATH) is not seen: name it in `extra`, or in `bundles`: "python", "perl" and
    "gcc" add what those of `commands` that are one need, or this machine's own one; "network" CA
    certificates and the name servers of now. `hints` of the result says what is known to lack.

    dest must not exist (its parent must), be empty, or be a root built before. The latter is
    extended: what it was built from is looked up again, only changed files are written, and the
    user's own files stay. What that was is kept beside it, in `.NAME.fastns-rootfs.json` of its
    parent directory, which must be writable. Modes and times are kept, without setuid and setgid
    bits and with write permission on directories for their owner, who is the caller.

    `progress` is called in this thread, before each file and once at the end, with the number of
    files done, that of all, and the path inside the root; an exception it raises ends the build.
    Raises RootfsError, which names everything that is missing, and leaves dest as it was.
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
        if os.path.lexists(target):
            return _extend(target, names, extras, texts, progress)
        return _create(target, names, extras, texts, progress)
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
    """The absolute path without links of a place that may become a root."""
    if not dest or "\0" in dest:
        raise RootfsError(f"{dest!r} is not a path")
    try:
        target = os.path.realpath(dest)
    except FileNotFoundError:  # of getcwd(2)
        raise RootfsError(
            "the working directory does not exist any more", hint="give an absolute path, or cd /"
        ) from None
    if target in SYSTEM_PLACES or any(inside(target, tree) for tree in SYSTEM_TREES):
        raise RootfsError(
            f"{target} is a directory of this system",
            hint="choose a directory of its own, such as ./rootfs",
        )
    return target


def _create(
    target: str, commands: list[str], extra: list[str], texts: Texts, progress: Progress | None
) -> Root:
    """Build beside the target, then give it its name."""
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
        with contextlib.suppress(FileNotFoundError):  # it has its name: the root is whole
            shutil.rmtree(beside)
        raise
    return result


def _extend(
    target: str, commands: list[str], extra: list[str], texts: Texts, progress: Progress | None
) -> Root:
    """Build in a directory that is empty, or that a build has made before."""
    with opened(os.path.dirname(target)) as parent, opened(target) as root:
        # A second build of the same root waits here. Not by the root: a sandbox could lock that.
        _lock(parent, os.path.dirname(target))
        beside = Beside(parent, target)
        before = Marker() if _is_empty(root) else beside.read()
        if before is None:
            raise _strange(root, target)
        plan = resolve(
            target,
            list(dict.fromkeys([*before.commands, *commands])),
            list(dict.fromkeys([*before.extra, *extra])),
            texts,
        )
        return Writer(root, target, progress).install(plan, before, beside)


def _lock(directory: int, path: str) -> None:
    """Until the descriptor is closed. Whoever may open the directory can hold its lock."""
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


def _strange(root: int, target: str) -> RootfsError:
    """The error for a directory of which nothing is known."""
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
