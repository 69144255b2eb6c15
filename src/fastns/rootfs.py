"""A root file system made from this machine's commands.

Theory of operation, three steps that know nothing of each other's inside:

1. `_Resolver` finds out what has to be there: the skeleton, the commands, their interpreters,
   loaders and libraries. It reads files and never runs one; it collects everything that is
   missing, and nothing is written before it is content.
2. `_Writer` copies what is new or changed into a staging directory inside the root.
3. `_Writer` renames it into place, and undoes that when a step fails.

Paths inside the root are written as on the host, absolute and without symbolic links in their
directories; one entry (directory, link, file, text) stands for each. Writing goes through
directory descriptors opened with O_NOFOLLOW, so no link found in a root leads out of it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import json
import os
import re
import shutil
import stat
import struct
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from fastns.errors import FastnsError

__all__ = ["Root", "RootfsError", "build"]

Progress = Callable[[int, int, str], None]
"""Called with (files done, files in all, path inside the root of the one at hand)."""

MARKER = ".fastns-rootfs.json"
"""At the top of every root: says that fastns made it, and of what."""
STAGE = ".fastns-rootfs.new"
"""At the top of a root while it is being written."""

MAX_LINKS = 40
"""Symbolic links followed in one path, as in the kernel (path_resolution(7))."""
MAX_SHEBANG = 256
"""Bytes of the `#!` line that the kernel reads (execve(2))."""

COPY_SIZE = 1 << 20
"""Bytes copied at once."""

KERNEL_PLACES = ("/dev", "/proc", "/sys")
"""What lies here is made by the kernel and is no file to copy."""
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

LAYOUT = (
    *("/bin", "/sbin", "/lib", "/lib64", "/usr/bin", "/usr/sbin", "/usr/lib", "/usr/lib64"),
    *("/usr/local/bin", "/usr/local/sbin", "/usr/libexec", "/usr/share", "/var/run"),
)
"""Links or directories as on the host, and absent where the host has none."""
DIRECTORIES = {
    **{f"/{name}": 0o755 for name in ("bin", "dev", "etc", "home", "lib", "mnt", "opt", "proc")},
    **{f"/{name}": 0o755 for name in ("run", "sbin", "srv", "sys", "usr", "var")},
    "/root": 0o700,
    "/tmp": 0o1777,
    "/var/tmp": 0o1777,
}
"""Directories of every root, with their modes; a link that LAYOUT put there stays."""
TEXTS = {
    "/etc/passwd": "root:x:0:0:root:/root:/bin/sh\n"
    "nobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n",
    "/etc/group": "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
    "/etc/nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files\n",
    "/etc/hosts": "127.0.0.1\tlocalhost\n::1\tlocalhost\n",
    "/etc/hostname": "localhost\n",
    "/etc/resolv.conf": "",
}
"""Files made here unless they are copied or there already: a user may change them."""

NSS_BUILT_IN = b"GLIBC_2.34\0"
"""A symbol version of every C library that has the `files` service of nsswitch.conf in itself."""


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


@dataclass(frozen=True)
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


def build(
    dest: str | os.PathLike[str],
    commands: Iterable[str | os.PathLike[str]],
    *,
    extra: Iterable[str | os.PathLike[str]] = (),
    progress: Progress | None = None,
) -> Root:
    """Make a root file system at dest with these commands and all they need to start.

    A command without a slash is looked up in the caller's PATH; its libraries, loader and `#!`
    interpreters come with it, and /bin/sh is always there. Each path of `extra`, a file or a
    directory with all in it, is copied to the same place, with the libraries of its ELF files;
    a link in such a directory stays, and brings the file it leads to but no further directory.
    What a program opens only once it runs (a standard library, data, plug-ins, files found
    through LD_LIBRARY_PATH) is not seen: name it in `extra`.

    dest must not exist (its parent must), be empty, or be a root built before. The latter is
    extended: what it was built from is looked up again, only changed files are written, and the
    user's own files stay. Modes and times are kept, without setuid and setgid bits and with
    write permission on directories for their owner, who is the caller.

    `progress` is called in this thread, before each file and once at the end; an exception it
    raises ends the build. Raises RootfsError, which names everything that is missing, and leaves
    dest as it was.
    """
    target = _checked_dest(os.fspath(dest))
    names = _strings("commands", commands)
    extras = [_absolute(path) for path in _strings("extra", extra)]
    try:
        if os.path.lexists(target):
            return _extend(target, names, extras, progress)
        return _create(target, names, extras, progress)
    except OSError as error:
        raise RootfsError(f"{_describe(error)}; {target} is as it was") from error


def _strings(name: str, values: Iterable[str | os.PathLike[str]]) -> list[str]:
    """Each path once, in order."""
    if isinstance(values, str | bytes):
        raise TypeError(f"{name}: expected several paths, not one string: {values!r}")
    return list(dict.fromkeys(os.fspath(value) for value in values))


def _absolute(path: str) -> str:
    """The path from the host's root. Links of an absolute path stay in it: they are copied."""
    if not path or os.path.isabs(path):
        return path
    directory, name = os.path.split(path.rstrip("/"))
    if name in (".", ".."):
        return os.path.realpath(path)
    return os.path.join(os.path.realpath(directory), name)


def _describe(error: OSError) -> str:
    code = errno.errorcode.get(error.errno or 0, str(error.errno))
    place = f"{os.fsdecode(error.filename)}: " if error.filename is not None else ""
    return f"{place}{error.strerror} ({code})"


# Where it goes


def _checked_dest(dest: str) -> str:
    """The absolute path without links of a place that may become a root."""
    if not dest or "\0" in dest:
        raise RootfsError(f"{dest!r} is not a path")
    target = os.path.realpath(dest)
    if target in SYSTEM_PLACES or any(_inside(target, tree) for tree in SYSTEM_TREES):
        raise RootfsError(
            f"{target} is a directory of this system",
            hint="choose a directory of its own, such as ./rootfs",
        )
    return target


def _inside(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def _create(target: str, commands: list[str], extra: list[str], progress: Progress | None) -> Root:
    """Build beside the target, then give it its name."""
    parent, name = os.path.split(target)
    if not os.path.isdir(parent):
        raise RootfsError(f"{parent} is not a directory", hint=f"mkdir -p {parent}")
    plan = _resolve(target, commands, extra)
    beside = tempfile.mkdtemp(prefix=f".{name}.", suffix=".fastns-rootfs", dir=parent)
    try:
        with _opened(beside) as root:
            result = _Writer(root, target, progress).install(plan)
            os.fchown(root, os.geteuid(), os.getegid())
            os.fchmod(root, 0o755)
        os.rename(beside, target)
    except BaseException:
        shutil.rmtree(beside)
        raise
    return result


def _extend(target: str, commands: list[str], extra: list[str], progress: Progress | None) -> Root:
    """Build in a directory that is empty, or that a build has made before."""
    with _opened(target) as root:
        fcntl.flock(root, fcntl.LOCK_EX)  # a second build of the same root waits here
        before = _read_marker(root, target) if {*os.listdir(root)} - {STAGE} else _Marker()
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(STAGE, dir_fd=root)  # of a build that was killed: the lock is ours
        plan = _resolve(
            target,
            list(dict.fromkeys([*before.commands, *commands])),
            list(dict.fromkeys([*before.extra, *extra])),
        )
        return _Writer(root, target, progress).install(plan)


@contextlib.contextmanager
def _opened(directory: str) -> Iterator[int]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@dataclass
class _Marker:
    """What the file MARKER says: the words of the builds, and what came of them."""

    commands: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)

    def as_text(self) -> str:
        return json.dumps({"fastns_rootfs": 1, **vars(self)}, indent=1) + "\n"


def _read_marker(root: int, target: str) -> _Marker:
    """The marker of a root. RootfsError when there is none, or one that is not to be trusted."""
    strange = RootfsError(
        f"{target} is neither empty nor a root that fastns built",
        hint="choose a directory that does not exist yet",
    )
    try:
        fd = os.open(
            MARKER, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=root
        )
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
    marker = _Marker(data.get("commands", []), data.get("extra", []))
    for value in (marker.commands, marker.extra):
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise strange
    return marker


# What has to be there


@dataclass(frozen=True)
class _Entry:
    """What stands at one path inside the root."""

    kind: Literal["directory", "link", "file", "text"]
    mode: int = 0o644
    source: str = ""
    """The host's file, the target of the link, or the text."""
    size: int = 0
    mtime_ns: int = 0

    @classmethod
    def of(cls, path: str, status: os.stat_result) -> _Entry:
        """The entry of a host's file or directory."""
        mode = stat.S_IMODE(status.st_mode) & ~(stat.S_ISUID | stat.S_ISGID)
        if stat.S_ISDIR(status.st_mode):
            return cls("directory", mode | 0o700)  # its owner has to put the rest in
        return cls("file", mode, path, status.st_size, status.st_mtime_ns)


_Entries = dict[str, _Entry]


@dataclass(frozen=True)
class _Plan:
    """Everything that has to be there, and the words it came from."""

    entries: _Entries
    libraries: tuple[str, ...]
    commands: tuple[str, ...]
    extra: tuple[str, ...]


class _Unusable(Exception):
    """A path that cannot be copied; the words say why."""


def _resolve(target: str, commands: list[str], extra: list[str]) -> _Plan:
    """The plan of a root. RootfsError names everything that is missing at once."""
    resolver = _Resolver(target)
    resolver.command("/bin/sh")
    found = [resolver.command(name) for name in commands]
    for path in extra:
        resolver.extra(path)
    resolver.name_service()
    resolver.skeleton()
    missing = resolver.all_missing()
    if missing:
        raise RootfsError("; ".join(missing), missing=missing, hint=resolver.hint)
    return _Plan(
        resolver.entries,
        tuple(sorted(resolver.libraries)),
        tuple(dict.fromkeys(path for path in found if path)),
        tuple(extra),
    )


_Machine = tuple[int, int, int]
"""What has to agree between a program and its libraries: class, byte order, e_machine."""


@dataclass(frozen=True)
class _Elf:
    """What an ELF file asks of the loader."""

    machine: _Machine
    interpreter: str | None = None
    soname: str | None = None
    needed: tuple[str, ...] = ()
    rpath: tuple[str, ...] = ()
    runpath: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Loaded:
    """An ELF file in the process that the loader would make of a program."""

    path: str
    elf: _Elf
    origin: str
    loader: _Loaded | None = None
    """Whose need brought it here; None for the program itself."""


@dataclass(frozen=True)
class _Lack:
    """A library that was not found."""

    name: str
    user: str
    machine: _Machine
    in_extra: bool
    """Whether another copied file of that name will do: the program may have loaded it before."""


class _Resolver:
    """Collects the entries of a root, and what is missing for them."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.entries: _Entries = {}
        self.libraries: set[str] = set()
        self.missing: dict[str, None] = {}
        """In the order they were found; a dict, as a set has none."""
        self.hint: str | None = None
        self._lacks: list[_Lack] = []
        self._elfs: dict[str, _Elf | None] = {}
        self._done: set[tuple[str, bool]] = set()
        self._loader_dirs: dict[_Machine | str, list[str]] = {}
        """The built-in directories of each loader; under a machine, those of its first loader."""
        self._configured: list[str] = _configured_dirs("/etc/ld.so.conf")

    # Words of the user

    def command(self, name: str) -> str | None:
        """Plan a command and what it needs. Returns where it is, or None when it is missing."""
        try:
            path = self._find_command(name)
            self._program(path)
        except _Unusable as reason:
            self.missing[f"command {name}: {reason}"] = None
            return None
        return path

    def extra(self, path: str) -> None:
        """Plan a file, or a directory with all that is in it."""
        try:
            final = self._add(path)
        except _Unusable as reason:
            self.missing[f"extra {path}: {reason}"] = None
            return
        if self.entries[final].kind == "file":
            self._libraries_of_extra(final)
        elif _inside(self.target, final):
            self.missing[f"extra {path}: contains the destination, {self.target}"] = None
        else:
            self._tree(final)

    def _tree(self, top: str) -> None:
        """Plan what is in a directory: everything but what its links to directories lead to."""
        for directory, _, names in _walk_errors_raised(top):
            for name in names:
                path = os.path.join(directory, name)
                try:
                    final, entries = _walk(path)
                except _Unusable as reason:
                    if not os.path.islink(path):
                        self.missing[f"extra {path}: {reason}"] = None
                        continue
                    final, entries = path, {}  # leads nowhere, as on the host
                if os.path.islink(path):
                    self.entries[path] = _Entry("link", source=os.readlink(path))
                if path != final and entries[final].kind == "directory":
                    continue
                self.entries |= entries
                if entries and entries[final].kind == "file":
                    self._libraries_of_extra(final)

    # Programs

    def _find_command(self, name: str) -> str:
        """The absolute path of a command."""
        if not name or "\0" in name:
            raise _Unusable("not a name")
        if "/" in name:
            return _absolute(name)
        found = _in_path(name, os.environ.get("PATH", os.defpath))
        if found:
            return found
        elsewhere = _in_path(name, "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin")
        if elsewhere:
            self.hint = f"{elsewhere} exists: give it as a path"
        raise _Unusable("not found in PATH")

    def _program(self, path: str) -> None:
        """Plan something that is executed: its file, then its libraries or its interpreter."""
        final = self._add(path)
        if self.entries[final].kind == "directory":
            raise _Unusable("is a directory")
        if not os.access(final, os.X_OK):
            raise _Unusable("is not executable")
        if (final, False) in self._done:
            return
        self._done.add((final, False))
        elf = self._read(final)
        if elf:
            self._load(_Loaded(final, elf, os.path.dirname(final)))
            return
        interpreter, *words = _shebang(final)
        if interpreter:
            self._interpreter(interpreter, words, final)

    def _interpreter(self, interpreter: str, words: list[str], script: str) -> None:
        """Plan what runs a script, and with `env` also what env runs."""
        names = [interpreter]
        if os.path.basename(interpreter) == "env":
            names += _run_by_env(words)
        for name in names:
            try:
                if name == interpreter and not os.path.isabs(name):
                    raise _Unusable("not an absolute path")
                self._program(self._find_command(name))
            except _Unusable as reason:
                self.missing[f"interpreter {name}: needed by {script}, {reason}"] = None

    def _add(self, path: str) -> str:
        """Plan a path with the links and directories on its way. Returns the final path."""
        final, entries = _walk(path)
        self.entries |= entries
        return final

    # Libraries

    def _read(self, path: str) -> _Elf | None:
        """What an ELF file asks for; None when it is no ELF file."""
        if path not in self._elfs:
            self._elfs[path] = _read_elf(path)
        return self._elfs[path]

    def _libraries_of_extra(self, path: str) -> None:
        if (path, True) in self._done:
            return
        self._done.add((path, True))
        try:
            elf = self._read(path)
        except _Unusable:
            return  # no loader would take it either: a file like any other
        if elf:
            self._load(_Loaded(path, elf, os.path.dirname(path)), in_extra=True)

    def _load(self, program: _Loaded, *, in_extra: bool = False) -> None:
        """Plan what the loader would load for a program: breadth first, each name once.

        A name counts as loaded under the words that asked for it and under its DT_SONAME, so a
        library found for one object serves all later ones, as in ld.so(8).
        """
        machine, interpreter = program.elf.machine, program.elf.interpreter
        loaded: set[str] = set()
        if interpreter:
            loaded.add(os.path.basename(interpreter))
            self._loader(interpreter, program)
        built_in = [*self._loader_dirs.get(interpreter or machine, []), "/lib", "/usr/lib"]
        queue = deque([program])
        while queue:
            user = queue.popleft()
            for name in user.elf.needed:
                if name in loaded:
                    continue
                loaded.add(name)
                path = self._find_library(name, user, built_in)
                if path is None:
                    self._lacks.append(_Lack(name, user.path, machine, in_extra))
                    continue
                try:
                    elf = self._library(path)
                except _Unusable as reason:
                    self.missing[f"{name}: needed by {user.path}, {path} {reason}"] = None
                    continue
                loaded.add(elf.soname or name)
                queue.append(_Loaded(path, elf, os.path.dirname(path), user))

    def _loader(self, path: str, program: _Loaded) -> None:
        try:
            final = self._add(path)
        except _Unusable as reason:
            self.missing[f"loader {path}: needed by {program.path}, {reason}"] = None
            return
        self.libraries.add(final)
        # A loader's built-in directories are those of its C library: where it is itself.
        directories = _with_twin(os.path.dirname(final))
        self._loader_dirs[path] = directories
        self._loader_dirs.setdefault(program.elf.machine, directories)

    def _library(self, path: str) -> _Elf:
        final = self._add(path)
        elf = self._read(final)
        if elf is None:
            raise _Unusable("is no ELF file any more")
        self.libraries.add(final)
        return elf

    def _find_library(self, name: str, user: _Loaded, built_in: list[str]) -> str | None:
        """Where the loader would find a library, in the order of ld.so(8)."""
        machine = user.elf.machine
        if "/" in name:
            path = _expanded(name, user, built_in)
            return path if os.path.isabs(path) and _is_library(path, machine) else None
        for directory in _run_paths(user):
            path = f"{_expanded(*directory, built_in)}/{name}"
            if os.path.isabs(path) and _is_library(path, machine):
                return path
        for place in [*self._configured, *built_in, "/lib64", "/usr/lib64"]:
            path = f"{place}/{name}"
            if _is_library(path, machine):
                if place not in built_in:
                    self._loader_cache()
                return path
        return None

    def _loader_cache(self) -> None:
        """A library stands where only the loader's cache leads: that has to come along."""
        with contextlib.suppress(_Unusable):  # a loader without a cache has another way
            self._add("/etc/ld.so.cache")

    # The rest

    def name_service(self) -> None:
        """Plan the libraries of nsswitch.conf's `files`, for a C library that lacks it."""
        for path in sorted(self.libraries):
            if os.path.basename(path).startswith(("libc.so.6", "libc-2.")) and not _has_nss(path):
                elf = self._read(path)
                if elf:
                    nss = _Elf(elf.machine, needed=("libnss_files.so.2",))
                    self._load(_Loaded("/etc/nsswitch.conf", nss, "/etc"))

    def skeleton(self) -> None:
        """Plan what is in every root. Comes last: what is planned already may be a link."""
        for path in LAYOUT:
            with contextlib.suppress(_Unusable):  # not on this host, so nothing needs it
                self._add(path)
        for path, mode in DIRECTORIES.items():
            if self.entries.get(path, _Entry("directory")).kind == "directory":
                self.entries[path] = _Entry("directory", mode)
        for path, text in TEXTS.items():
            self.entries.setdefault(path, _Entry("text", source=text, size=len(text)))

    def all_missing(self) -> tuple[str, ...]:
        """Everything that was not found, one text each."""
        for lack in self._lacks:
            if not (lack.in_extra and self._given(lack)):
                self.missing[f"{lack.name}: needed by {lack.user}, not found"] = None
        return tuple(self.missing)

    def _given(self, lack: _Lack) -> bool:
        """Whether a file of that name is copied anyway."""
        return any(
            os.path.basename(path) == lack.name and _is_library(path, lack.machine)
            for path, entry in self.entries.items()
            if entry.kind in ("file", "link")
        )


def _run_paths(user: _Loaded) -> Iterator[tuple[str, _Loaded]]:
    """The directories that the objects themselves name, and which of them does."""
    if not user.elf.runpath:  # RUNPATH switches every RPATH off
        one: _Loaded | None = user
        while one:
            if not one.elf.runpath:
                yield from ((path, one) for path in one.elf.rpath)
            one = one.loader
    yield from ((path, user) for path in user.elf.runpath)


def _expanded(path: str, user: _Loaded, built_in: list[str]) -> str:
    """The path with the loader's variables replaced."""
    lib = built_in[0].removeprefix("/usr").lstrip("/")
    path = re.sub(r"\$(ORIGIN\b|\{ORIGIN\})", lambda _: user.origin, path)
    return re.sub(r"\$(LIB\b|\{LIB\})", lambda _: lib, path)


def _walk(path: str) -> tuple[str, _Entries]:
    """Follow a host's path. Returns where it ends, and the entries on the way and at the end.

    Raises _Unusable when it ends nowhere, or at something that is no file and no directory.
    """
    entries: _Entries = {}
    ahead = deque(path.split("/"))
    here = ""
    links = 0
    while ahead:
        part = ahead.popleft()
        if part in ("", "."):
            continue
        if part == "..":
            here = os.path.dirname(here).rstrip("/")
            continue
        there = f"{here}/{part}"
        if there in KERNEL_PLACES:
            raise _Unusable(f"lies in {there}, which holds no ordinary files")
        status = _lstat(there)
        if stat.S_ISLNK(status.st_mode):
            links += 1
            if links > MAX_LINKS:
                raise _Unusable("too many levels of symbolic links")
            leads = os.readlink(there)
            entries[there] = _Entry("link", source=leads)
            here = "" if leads.startswith("/") else here
            ahead.extendleft(reversed(leads.split("/")))
            continue
        if stat.S_ISREG(status.st_mode):
            if ahead:
                raise _Unusable(f"{there} is not a directory")
            if not os.access(there, os.R_OK):
                raise _Unusable("cannot be read")
        elif not stat.S_ISDIR(status.st_mode):
            raise _Unusable("is neither a file nor a directory")
        entries[there] = _Entry.of(there, status)
        here = there
    if not here:
        raise _Unusable("is the host's root")
    return here, entries


def _lstat(path: str) -> os.stat_result:
    try:
        return os.lstat(path)
    except FileNotFoundError:
        raise _Unusable("does not exist") from None
    except OSError as error:
        raise _Unusable(f"cannot be read: {error.strerror}") from None


def _walk_errors_raised(top: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """`os.walk`, with the names of directories among the others, and no error passed over."""

    def stop(error: OSError) -> None:
        raise error

    for directory, subdirectories, files in os.walk(top, onerror=stop):
        yield directory, subdirectories, sorted([*subdirectories, *files])


def _in_path(name: str, path: str) -> str | None:
    """The first executable file of that name in a PATH; relative directories do not count."""
    for directory in path.split(os.pathsep):
        found = os.path.join(directory, name)
        if os.path.isabs(directory) and os.path.isfile(found) and os.access(found, os.X_OK):
            return found
    return None


def _shebang(path: str) -> list[str]:
    """The words of a script's first line, the interpreter first; [""] when it has none."""
    with open(path, "rb") as file:
        line = file.read(MAX_SHEBANG).split(b"\n", 1)[0]
    if not line.startswith(b"#!"):
        return [""]
    return os.fsdecode(line[2:]).split() or [""]


def _run_by_env(words: list[str]) -> list[str]:
    """The command among the words after env(1): none or one."""
    rest = iter(words)
    for word in rest:
        if word in ("-u", "-C", "--unset", "--chdir"):
            next(rest, None)
        elif word.startswith("-S") and len(word) > 2:
            return [word[2:]]
        elif not word.startswith("-") and "=" not in word:
            return [word]
    return []


# ELF files


def _read_elf(path: str) -> _Elf | None:
    """What an ELF file asks for; None when it is no ELF file. _Unusable when it is broken."""
    try:
        from elftools.elf.elffile import ELFFile  # slow to import
    except ImportError:
        raise RootfsError(
            "pyelftools is not installed", hint="python -m pip install pyelftools"
        ) from None

    with open(path, "rb") as file:
        machine = _machine(file.read(20))
        if machine is None:
            return None
        try:
            interpreter, tags = _dynamic(ELFFile(file))
        except OSError:
            raise
        except Exception as error:  # the parser raises whatever a broken file leads it to
            raise _Unusable(f"is a broken ELF file ({type(error).__name__})") from error
    return _Elf(
        machine,
        interpreter,
        next(iter(tags["soname"]), None),
        tuple(tags["needed"]),
        _directories(tags["rpath"]),
        _directories(tags["runpath"]),
    )


def _dynamic(elf: Any) -> tuple[str | None, dict[str, list[str]]]:
    """The loader that a file asks for, and the texts of its dynamic section."""
    interpreter = None
    tags: dict[str, list[str]] = {"soname": [], "needed": [], "rpath": [], "runpath": []}
    for segment in elf.iter_segments():
        if segment["p_type"] == "PT_INTERP":
            interpreter = segment.get_interp_name()
        elif segment["p_type"] == "PT_DYNAMIC":
            for tag in segment.iter_tags():
                name = str(tag.entry.d_tag).removeprefix("DT_").lower()
                if name in tags:
                    tags[name].append(getattr(tag, name))
    return interpreter, tags


def _directories(values: list[str]) -> tuple[str, ...]:
    return tuple(path for value in values for path in value.split(":") if path)


def _machine(header: bytes) -> _Machine | None:
    """Class, byte order and machine of the first 20 bytes of an ELF file."""
    if len(header) < 20 or header[:4] != b"\x7fELF":
        return None
    (number,) = struct.unpack_from(">H" if header[5] == 2 else "<H", header, 18)
    return header[4], header[5], number


def _is_library(path: str, machine: _Machine) -> bool:
    """Whether the loader would take this file: one that is meant for another machine it skips."""
    try:
        with open(path, "rb") as file:
            return _machine(file.read(20)) == machine
    except OSError:
        return False


def _has_nss(libc: str) -> bool:
    with open(libc, "rb") as file:
        return NSS_BUILT_IN in file.read()


def _with_twin(directory: str) -> list[str]:
    """/lib/x and /usr/lib/x: built-in directories come in pairs."""
    bare = directory.removeprefix("/usr")
    return [bare, f"/usr{bare}"] if bare.startswith("/lib") else [directory]


def _configured_dirs(path: str, seen: frozenset[str] = frozenset()) -> list[str]:
    """The directories of an ld.so.conf, and of the files it includes (ldconfig(8))."""
    if path in seen or not os.path.isfile(path):
        return []
    result = []
    with open(path, encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            words = re.split(r"[\s:,]+", line.split("#", 1)[0].strip())
            if words[0] == "include":
                for pattern in words[1:]:
                    full = os.path.join(os.path.dirname(path), pattern)
                    for found in sorted(glob.glob(full)):
                        result += _configured_dirs(found, seen | {path})
            elif words[0] != "hwcap":
                result += [word.split("=", 1)[0].rstrip("/") for word in words if word[:1] == "/"]
    return list(dict.fromkeys(result))


# Writing


class _Writer:
    """Brings a plan into the directory behind a descriptor, wholly or not at all."""

    def __init__(self, root: int, target: str, progress: Progress | None) -> None:
        self.root = root
        self.target = target
        self.progress = progress
        self._undo: list[Callable[[], None]] = []

    def install(self, plan: _Plan) -> Root:
        """Write what differs. Returns what is there then."""
        files = sorted(path for path, entry in plan.entries.items() if entry.kind != "directory")
        marker = _Marker(list(plan.commands), list(plan.extra), files).as_text()
        changed = [path for path in sorted(plan.entries) if self._differs(path, plan)]
        written = [path for path in changed if plan.entries[path].kind != "directory"]
        jobs = {path: plan.entries[path] for path in changed}
        if jobs or not self._has_text(MARKER, marker):
            jobs[f"/{MARKER}"] = _Entry("text", source=marker)
            self._write(jobs, len(written))
        return Root(
            path=self.target,
            commands=plan.commands,
            libraries=plan.libraries,
            files=tuple(files),
            copied=len(written),
            unchanged=len(files) - len(written),
            bytes=sum(plan.entries[path].size for path in files),
        )

    def _differs(self, path: str, plan: _Plan) -> bool:
        """Whether an entry has to be written. RootfsError when something else is in its way."""
        entry = plan.entries[path]
        try:
            with self._parent(path) as (parent, name):
                status = os.lstat(name, dir_fd=parent)
                is_link = stat.S_ISLNK(status.st_mode)
                leads = os.readlink(name, dir_fd=parent) if is_link else None
        except FileNotFoundError:
            return True
        if (entry.kind == "directory") != stat.S_ISDIR(status.st_mode):
            raise RootfsError(
                f"{self.target}{path} is in the way: a {entry.kind} belongs there",
                hint="remove it, or build into a new directory",
            )
        if entry.kind == "link":
            return leads != entry.source
        if entry.kind == "file":
            have = (stat.S_IFMT(status.st_mode), stat.S_IMODE(status.st_mode))
            same = have == (stat.S_IFREG, entry.mode) and status.st_size == entry.size
            return not (same and status.st_mtime_ns == entry.mtime_ns)
        return False  # a directory; or a text, which the user may have changed

    def _has_text(self, name: str, text: str) -> bool:
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.root)
        except FileNotFoundError:
            return False
        with open(fd, "rb") as file:
            return file.read() == text.encode()

    def _write(self, jobs: _Entries, total: int) -> None:
        """Stage the files and links, then move all into place."""
        os.mkdir(STAGE, 0o700, dir_fd=self.root)
        try:
            stage = os.open(STAGE, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=self.root)
            try:
                self._stage(stage, jobs, total)
                self._commit(stage, jobs)
            finally:
                os.close(stage)
        finally:
            shutil.rmtree(STAGE, dir_fd=self.root)

    def _stage(self, stage: int, jobs: _Entries, total: int) -> None:
        done = 0
        for number, (path, entry) in enumerate(jobs.items()):
            if entry.kind == "directory":
                continue
            if self.progress:
                self.progress(done, total, "" if path == f"/{MARKER}" else path)
            done += 1
            try:
                _make(stage, str(number), entry)
            except OSError as error:
                error.filename = f"{self.target}{path}"
                raise

    def _commit(self, stage: int, jobs: _Entries) -> None:
        """Rename everything to where it belongs, parents first, the marker last."""
        try:
            for number, (path, entry) in enumerate(jobs.items()):
                if entry.kind == "directory":
                    self._place_directory(path, entry.mode)
                else:
                    self._place(stage, str(number), path)
        except BaseException:
            for step in reversed(self._undo):
                step()
            raise

    def _place_directory(self, path: str, mode: int) -> None:
        with self._parent(path) as (parent, name):
            os.mkdir(name, 0o700, dir_fd=parent)
            self._undo.append(lambda: self._at(path, os.rmdir))
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
            try:
                os.fchown(fd, os.geteuid(), os.getegid())
                os.fchmod(fd, mode)
            finally:
                os.close(fd)

    def _place(self, stage: int, staged: str, path: str) -> None:
        """Move one staged file over what is there; the old one is kept until all is done."""
        old = f"{staged}.old"
        with self._parent(path) as (parent, name):
            try:
                os.link(name, old, src_dir_fd=parent, dst_dir_fd=stage, follow_symlinks=False)
            except FileNotFoundError:
                os.rename(staged, name, src_dir_fd=stage, dst_dir_fd=parent)
                self._undo.append(lambda: self._at(path, os.unlink))
            else:
                os.rename(staged, name, src_dir_fd=stage, dst_dir_fd=parent)
                self._undo.append(lambda: self._restore(stage, old, path))

    def _restore(self, stage: int, old: str, path: str) -> None:
        with self._parent(path) as (parent, name):
            os.rename(old, name, src_dir_fd=stage, dst_dir_fd=parent)

    def _at(self, path: str, call: Callable[..., None]) -> None:
        with self._parent(path) as (parent, name):
            call(name, dir_fd=parent)

    @contextlib.contextmanager
    def _parent(self, path: str) -> Iterator[tuple[int, str]]:
        """(descriptor of the directory, name) of a path inside; a link on the way is an error."""
        *directories, name = path.strip("/").split("/")
        fd = os.dup(self.root)
        try:
            for directory in directories:
                flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                try:
                    below = os.open(directory, flags, dir_fd=fd)
                except NotADirectoryError:
                    raise RootfsError(
                        f"{self.target}{path}: {directory} is in the way, not a directory",
                        hint="remove it, or build into a new directory",
                    ) from None
                os.close(fd)
                fd = below
            yield fd, name
        finally:
            os.close(fd)


def _make(directory: int, name: str, entry: _Entry) -> None:
    """Make a file or link of the caller's own. Extended attributes (capabilities) stay behind."""
    owner = os.geteuid(), os.getegid()  # said each time: a setgid directory gives its own group
    if entry.kind == "link":
        os.symlink(entry.source, name, dir_fd=directory)
        os.chown(name, *owner, dir_fd=directory, follow_symlinks=False)
        return
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(name, flags, 0o600, dir_fd=directory)
    with open(fd, "wb") as copy:
        if entry.kind == "file":
            with open(entry.source, "rb") as original:
                shutil.copyfileobj(original, copy, COPY_SIZE)
        else:
            copy.write(entry.source.encode())
        copy.flush()  # before the times are set, which a write would change
        os.fchown(fd, *owner)
        os.fchmod(fd, entry.mode)
        if entry.kind == "file":
            os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
