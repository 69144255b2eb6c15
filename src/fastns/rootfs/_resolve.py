"""Finds which files a root needs: commands, their interpreters, loaders and libraries, and what
every root contains.

Files are read, never run. Nothing is written. Everything that is missing goes into one error.
"""

from __future__ import annotations

import contextlib
import itertools
import os

from fastns._light import record
from fastns._terminfo import paths_of
from fastns.errors import RootfsError
from fastns.rootfs._host import (
    Entries,
    Entry,
    Unusable,
    absolute,
    in_path,
    open_file,
    run_by_env,
    shebang,
    walk,
)
from fastns.rootfs._loader import Elf, Loaded, Need, Search, is_for

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import NoReturn

    Texts = dict[str, str]  # content by path inside

COMMAND_PLACES = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
"""Where to look for a command that is not in PATH, for the hint of the error."""

LAYOUT = (
    *("/bin", "/sbin", "/lib", "/lib64", "/usr/bin", "/usr/sbin", "/usr/lib", "/usr/lib64"),
    *("/usr/local/bin", "/usr/local/sbin", "/usr/libexec", "/usr/share", "/var/run"),
)
"""These are links or directories as on the host. If the host has none, the root has none."""
DIRECTORIES = {
    **dict.fromkeys(("/bin", "/dev", "/etc", "/home", "/lib", "/mnt", "/opt", "/proc"), 0o755),
    **dict.fromkeys(("/run", "/sbin", "/srv", "/sys", "/usr", "/var"), 0o755),
    **{"/root": 0o700, "/tmp": 0o1777, "/var/tmp": 0o1777},
}
"""Directories of every root, with their modes. Where LAYOUT has put a link, the link stays."""
TEXTS = {
    "/etc/passwd": "root:x:0:0:root:/root:/bin/sh\n"
    "nobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n",
    "/etc/group": "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
    "/etc/nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n",
    "/etc/hosts": "127.0.0.1\tlocalhost\n::1\tlocalhost\n",
    "/etc/hostname": "localhost\n",
    "/etc/resolv.conf": "",
}
"""Files of every root. They are not written where a file is copied, or exists: a user may have
changed it."""

LOCALE = "/usr/lib/locale/C.utf8"
"""glibc's locale for LANG=C.UTF-8, the default inside. Without it, programs read text as bytes."""
TERMINAL_LIBRARIES = ("libtinfo.so.", "libtinfow.so.", "libncurses.so.", "libncursesw.so.")
"""Libraries that read the terminal database. Shells, `less`, `top` and the like use them."""
TERMINALS = (
    *("dumb", "linux", "screen", "screen-256color", "tmux", "tmux-256color", "vt100", "vt220"),
    *("xterm", "xterm-256color"),
)
"""Entries of the terminal database to copy with such a library, if the host has them."""
NSS_LIBRARIES = ("libnss_files.so.2", "libnss_dns.so.2")
"""The libraries of the services that nsswitch.conf in TEXTS names."""
NSS_BUILT_IN = b"GLIBC_2.34\0"
"""A symbol version of every C library that has these services built in."""
MAX_LIBC = 64 << 20  # bytes of a C library to search, many times the usual size


@record(frozen=True)
class Plan:
    """Everything that a root needs, and the arguments of the build."""

    entries: Entries
    libraries: tuple[str, ...]
    commands: tuple[str, ...]
    extra: tuple[str, ...]


def resolve(target: str, commands: Sequence[str], extra: Sequence[str], texts: Texts) -> Plan:
    """The plan of a root. Raises RootfsError, which names everything that is missing."""
    resolver = _Resolver(target)
    resolver.command("/bin/sh")
    found = [resolver.command(name) for name in commands]
    for path in extra:
        resolver.extra(path)
    resolver.what_libraries_open()
    add_skeleton(resolver.entries, texts)
    missing = resolver.all_missing()
    if missing:
        raise RootfsError("; ".join(missing), missing=missing, hint=resolver.hint)
    return Plan(
        resolver.entries,
        tuple(sorted(resolver.libraries)),
        tuple(dict.fromkeys(path for path in found if path)),
        tuple(extra),
    )


def inside(path: str, directory: str) -> bool:
    """Whether a path is this directory or lies in it."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")


class _Resolver:
    """Collects the entries of a root, and everything that is missing."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.entries: Entries = {}
        self.libraries: set[str] = set()
        self.missing: dict[str, None] = {}  # not a set: it keeps the order
        self.hint: str | None = None
        self._search = Search()
        self._programs: set[str] = set()
        self._not_found: list[tuple[Need, bool]] = []
        """(need, whether any copied file of that name satisfies it)."""

    @contextlib.contextmanager
    def _needing(self, what: str) -> Iterator[None]:
        """If the block raises Unusable, records `what` as missing, with the reason."""
        try:
            yield
        except Unusable as reason:
            self.missing[f"{what} {reason}"] = None

    # Arguments of the build

    def command(self, name: str) -> str | None:
        """Plan a command and what it needs. Returns its path, or None if it is missing."""
        with self._needing(f"command {name}:"):
            path = self._find_command(name)
            self._program(path)
            return path
        return None

    def extra(self, path: str) -> None:
        """Plan a file, or a directory with everything in it."""
        with self._needing(f"extra {path}:"):
            final = self._add(path)
            if self.entries[final].kind == "file":
                self._libraries_of_extra(final)
            elif inside(self.target, final):
                raise Unusable(f"contains the destination, {self.target}")
            else:
                self._tree(final)

    def _tree(self, top: str) -> None:
        """Plan everything in a directory, but do not follow links to other directories."""

        def stop(error: OSError) -> NoReturn:
            raise error

        for directory, subdirectories, files in os.walk(top, onerror=stop):
            for name in sorted([*subdirectories, *files]):
                self._member(os.path.join(directory, name))

    def _member(self, path: str) -> None:
        is_link = os.path.islink(path)
        if is_link:
            self.entries[path] = Entry("link", source=os.readlink(path))
        try:
            final, entries = self._walk(path)
        except Unusable as reason:
            if not is_link:  # a link may dangle in the root as it does on the host
                self.missing[f"extra {path}: {reason}"] = None
            return
        if is_link and entries[final].kind == "directory":
            return
        self.entries |= entries
        if entries[final].kind == "file":
            self._libraries_of_extra(final)

    # Programs

    def _find_command(self, name: str) -> str:
        """The absolute path of a command."""
        if not name or "\0" in name:
            raise Unusable("not a name")
        if "/" in name:
            return absolute(name)
        found = in_path(name)
        if found:
            return found
        elsewhere = in_path(name, COMMAND_PLACES)
        if elsewhere:
            self.hint = f"{elsewhere} exists: give it as a path"
        raise Unusable("not found in PATH")

    def _program(self, path: str) -> None:
        """Plan a program: its file, then its libraries or its interpreter."""
        final = self._add(path)
        if self.entries[final].kind == "directory":
            raise Unusable("is a directory")
        if not os.access(final, os.X_OK):
            raise Unusable("is not executable")
        if final in self._programs:
            return
        self._programs.add(final)
        elf = self._search.read(final)
        if elf:
            self._load(Loaded(final, elf))
        else:
            self._interpreter(final)

    def _interpreter(self, script: str) -> None:
        """Plan the interpreter of a script, and if that is env(1), the command that env runs."""
        words = shebang(script)
        names = words[:1]
        if words and os.path.basename(words[0]) == "env":
            names += run_by_env(words[1:])
        for number, name in enumerate(names):
            with self._needing(f"interpreter {name}: needed by {script},"):
                if number == 0 and not os.path.isabs(name):
                    raise Unusable("not an absolute path")
                self._program(self._find_command(name))

    def _add(self, path: str) -> str:
        """Plan a path, with the links and directories on the way. Returns the final path."""
        final, entries = self._walk(path)
        self.entries |= entries
        return final

    def _walk(self, path: str) -> tuple[str, Entries]:
        """walk(), but never through the destination: a sandbox may have written there."""
        final, entries = walk(path)
        if any(inside(step, self.target) for step in entries):
            raise Unusable(f"is inside the destination, {self.target}")
        return final, entries

    # Libraries

    def _libraries_of_extra(self, path: str) -> None:
        try:
            elf = self._search.read(path)
        except Unusable:
            return  # copied as data: the loader could not use it either
        if elf:
            self._load(Loaded(path, elf), in_extra=True)

    def _load(self, program: Loaded, *, in_extra: bool = False) -> None:
        """Plan a program's loader, and what that would load for the program."""
        if program.elf.interpreter:
            self._loader(program.elf.interpreter, program)
        for need in self._search.needs(program):
            if need.path is None:
                # Not missing yet: a program with plug-ins may have loaded a file of that name.
                self._not_found.append((need, in_extra))
                continue
            with self._needing(f"{need.name}: needed by {need.user.path}, {need.path}"):
                self._search.elf(need.path)
                self.libraries.add(self._add(need.path))

    def _loader(self, path: str, program: Loaded) -> None:
        with self._needing(f"loader {path}: needed by {program.path},"):
            final, entries = self._walk(path)
            self._search.elf(final)  # raises for anything else: a program may name any file
            self.entries |= entries
            self.libraries.add(final)
            self._search.add_loader(path, final, program.elf.machine)

    def what_libraries_open(self) -> None:
        """Plan what libc, ncurses and the loader open at run time: a locale, services, terminals,
        the cache. Files that the host lacks are left out."""
        for library in sorted(self.libraries):
            name = os.path.basename(library)
            if name.startswith(TERMINAL_LIBRARIES):
                for path in itertools.chain(*map(paths_of, TERMINALS)):
                    self._add_if_there(path)
            if not name.startswith(("libc.so.6", "libc-2.")):
                continue
            if self._add_if_there(LOCALE):
                self._tree(LOCALE)
            elf = self._search.read(library) if lacks_services(library) else None
            if elf:
                services = Elf(elf.machine, needed=NSS_LIBRARIES)
                self._load(Loaded("/etc/nsswitch.conf", services))
        if self._search.uses_cache:
            self._add_if_there("/etc/ld.so.cache")

    def _add_if_there(self, path: str) -> bool:
        with contextlib.suppress(Unusable):
            self._add(path)
            return True
        return False

    def all_missing(self) -> tuple[str, ...]:
        """A text for each thing that is missing."""
        for need, in_extra in self._not_found:
            if not (in_extra and self._is_copied(need)):
                self.missing[f"{need.name}: needed by {need.user.path}, not found"] = None
        return tuple(self.missing)

    def _is_copied(self, need: Need) -> bool:
        """Whether a file of that name, for the same machine, is copied anyway."""
        names = [path for path, entry in self.entries.items() if entry.kind in ("file", "link")]
        machine = need.user.elf.machine
        return any(os.path.basename(path) == need.name and is_for(path, machine) for path in names)


# ---- what every root has ----


def add_skeleton(entries: Entries, texts: Texts) -> None:
    """Add what every root has, where it is not planned yet. `texts` override TEXTS."""
    for path in LAYOUT:
        with contextlib.suppress(Unusable):  # the host lacks it, so nothing needs it
            entries |= walk(path)[1]
    for path, mode in DIRECTORIES.items():
        if path not in entries or entries[path].kind == "directory":
            entries[path] = Entry("directory", mode)
    for path, text in {**TEXTS, **texts}.items():
        entries.setdefault(path, Entry("text", source=text, size=len(text.encode())))


def lacks_services(libc: str) -> bool:
    """Whether this C library loads NSS_LIBRARIES at run time, as glibc before 2.34 does."""
    with open_file(libc) as file:
        return NSS_BUILT_IN not in file.read(MAX_LIBC)
