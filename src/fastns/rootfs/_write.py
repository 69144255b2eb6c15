"""Writes a plan into a root, completely or not at all, and the marker beside the root.

What is new or changed is copied into a staging directory inside the root, then renamed into place.
If a step fails, the steps before it are undone. All paths are opened directory by directory with
O_NOFOLLOW, so no link in a root leads out of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import stat

from fastns._light import record
from fastns.errors import RootfsError
from fastns.rootfs._bundles import hints_of
from fastns.rootfs._host import Entries, Entry
from fastns.rootfs._resolve import TEXTS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fastns.rootfs._resolve import Plan

    Progress = Callable[[int, int, str], None]
    """Called with (files done, number of all files, path of the current file inside the root)."""

STAGE = ".fastns-rootfs.new"  # at the top of a root while it is being written
COPY_SIZE = 1 << 20  # bytes copied at once
MARKER = ".fastns-rootfs.json"
"""The end of a marker's name. Earlier versions kept a file of this name inside the root."""
MAX_SIZE = 64 << 20  # bytes of a marker, a hundred times what a large root needs


@record(frozen=True)
class Root:
    """What is in a root after a build. All paths except `path` are paths inside it.

    Attributes:
        path: the absolute path of the root on the host.
        commands: paths of the commands of this build and earlier ones.
        libraries: the shared libraries and loaders, sorted.
        files: every file and symbolic link, sorted.
        copied: how many files and links this build wrote.
        unchanged: how many were already there.
        bytes: the total size of all files.
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


@contextlib.contextmanager
def opened(directory: str, dir_fd: int | None = None) -> Iterator[int]:
    """Yields a descriptor of a directory. Raises OSError if it is a link."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=dir_fd)
    try:
        yield fd
    finally:
        os.close(fd)


class Writer:
    """Writes a plan into a directory, given as an fd. No other process may write there."""

    def __init__(self, root: int, target: str, progress: Progress | None) -> None:
        self.root = root
        self.target = target  # its path, for errors
        self.progress = progress

    def install(
        self, plan: Plan, before: Marker | None = None, beside: Beside | None = None
    ) -> Root:
        """Writes what differs, and with `beside` the marker. Writes nothing if nothing changed."""
        self._clear_stage()
        marker = Marker.of(plan)
        changed = [path for path in sorted(plan.entries) if self._differs(path, plan.entries[path])]
        written = [path for path in changed if plan.entries[path].kind != "directory"]
        if changed or marker != before:
            jobs = {path: plan.entries[path] for path in changed}
            staged = beside.staged(marker) if beside else contextlib.nullcontext(lambda: None)
            with staged as put:
                self._write(jobs, len(written), put)
        return Root(
            path=self.target,
            commands=plan.commands,
            libraries=plan.libraries,
            files=marker.files,
            copied=len(written),
            unchanged=len(marker.files) - len(written),
            bytes=sum(plan.entries[path].size for path in marker.files),
            hints=hints_of(plan.commands, marker.files),
        )

    def _clear_stage(self) -> None:
        """Remove the staging directory that a killed build, or a sandbox, has left behind."""
        path = f"{self.target}/{STAGE}"
        try:
            if not stat.S_ISDIR(os.lstat(STAGE, dir_fd=self.root).st_mode):
                raise RootfsError(f"{path} exists and is not a directory", hint=f"rm {path}")
            shutil.rmtree(STAGE, dir_fd=self.root)
        except FileNotFoundError:
            pass
        except RecursionError:
            raise RootfsError(
                f"{path} cannot be removed: its directories are too deep", hint=f"rm -r {path}"
            ) from None

    def _differs(self, path: str, entry: Entry) -> bool:
        """Whether an entry must be written. Raises RootfsError if something is in its way."""
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
            have = (status.st_mode, status.st_size, status.st_mtime_ns)
            return have != (stat.S_IFREG | entry.mode, entry.size, entry.mtime_ns)
        if entry.kind == "text" and status.st_size == 0 and TEXTS.get(path) == "":
            return entry.size > 0  # an earlier build wrote it empty, for lack of a text
        return False  # a directory, or a text, which the user may have changed

    def _write(self, jobs: Entries, total: int, put: Callable[[], None]) -> None:
        """Stage the files and links, then move everything into place, parents first and the marker
        last. If a step fails, undo the steps before it."""
        os.mkdir(STAGE, 0o700, dir_fd=self.root)
        try:
            with opened(STAGE, self.root) as stage, contextlib.ExitStack() as undo:
                self._stage(stage, jobs, total)
                for number, (path, entry) in enumerate(jobs.items()):
                    if entry.kind == "directory":
                        self._place_directory(path, entry.mode, undo)
                    else:
                        self._place(stage, str(number), path, undo)
                put()
                undo.pop_all()
        finally:
            shutil.rmtree(STAGE, dir_fd=self.root)

    def _stage(self, stage: int, jobs: Entries, total: int) -> None:
        done = 0
        for number, (path, entry) in enumerate(jobs.items()):
            if entry.kind == "directory":
                continue
            if self.progress:
                self.progress(done, total, path)
            done += 1
            try:
                _make(stage, str(number), entry)
            except OSError as error:
                error.filename = f"{self.target}{path}"
                raise
        if self.progress:
            self.progress(done, total, "")

    def _place_directory(self, path: str, mode: int, undo: contextlib.ExitStack) -> None:
        with self._parent(path) as (parent, name):
            os.mkdir(name, 0o700, dir_fd=parent)
            undo.callback(self._remove, path, os.rmdir)
            with opened(name, parent) as fd:
                os.fchown(fd, os.geteuid(), os.getegid())
                os.fchmod(fd, mode)

    def _place(self, stage: int, staged: str, path: str, undo: contextlib.ExitStack) -> None:
        """Move one staged file over what is there. The old file is kept until the build is done."""
        old = f"{staged}.old"
        with self._parent(path) as (parent, name):
            try:
                os.link(name, old, src_dir_fd=parent, dst_dir_fd=stage, follow_symlinks=False)
                is_new = False
            except FileNotFoundError:
                is_new = True
            os.rename(staged, name, src_dir_fd=stage, dst_dir_fd=parent)
            if is_new:
                undo.callback(self._remove, path, os.unlink)
            else:
                undo.callback(self._restore, stage, old, path)

    def _restore(self, stage: int, old: str, path: str) -> None:
        with self._parent(path) as (parent, name):
            os.rename(old, name, src_dir_fd=stage, dst_dir_fd=parent)

    def _remove(self, path: str, call: Callable[..., None]) -> None:
        with self._parent(path) as (parent, name):
            call(name, dir_fd=parent)

    @contextlib.contextmanager
    def _parent(self, path: str) -> Iterator[tuple[int, str]]:
        """Yields (fd of its directory, name) for a path inside. A link on the way is an error."""
        *directories, name = path.strip("/").split("/")
        fd = os.dup(self.root)
        try:
            for directory in directories:
                flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
                try:
                    below = os.open(directory, flags, dir_fd=fd)
                except NotADirectoryError:
                    raise RootfsError(
                        f"{self.target}{path}: {directory} exists and is not a directory",
                        hint="remove it, or build into a new directory",
                    ) from None
                os.close(fd)
                fd = below
            yield fd, name
        finally:
            os.close(fd)


def _make(directory: int, name: str, entry: Entry) -> None:
    """Make a file or link that the caller owns, without extended attributes (capabilities)."""
    owner = os.geteuid(), os.getegid()  # a setgid directory would give the file its own group
    if entry.kind == "link":
        os.symlink(entry.source, name, dir_fd=directory)
        os.chown(name, *owner, dir_fd=directory, follow_symlinks=False)
        return
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    fd = os.open(name, flags, 0o600, dir_fd=directory)
    with open(fd, "wb") as copy:
        if entry.kind == "file":
            with open(entry.source, "rb") as original:
                shutil.copyfileobj(original, copy, COPY_SIZE)
        else:
            copy.write(entry.source.encode())
        copy.flush()  # now: a later write would change the times that are set below
        os.fchown(fd, *owner)
        os.fchmod(fd, entry.mode)
        if entry.kind == "file":
            os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))


# ---- the marker: what fastns built the root from ----
#
# The marker decides what the next build copies. So it is beside the root, in the parent directory,
# where no sandbox of that root can write.


@record(frozen=True)
class Marker:
    """The arguments of all builds of a root, and the files in it."""

    commands: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    @classmethod
    def of(cls, plan: Plan) -> Marker:
        files = (path for path, entry in plan.entries.items() if entry.kind != "directory")
        return cls(plan.commands, plan.extra, tuple(sorted(files)))


class Beside:
    """Where a root's marker is: a descriptor of the parent directory, and a name in it."""

    def __init__(self, parent: int, target: str) -> None:
        self.parent = parent
        self.target = target
        self.name = f".{os.path.basename(target)}{MARKER}"
        self.path = os.path.join(os.path.dirname(target), self.name)

    def read(self) -> Marker | None:
        """The marker, or None if there is none. Raises RootfsError if it cannot be trusted."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            fd = os.open(self.name, flags, dir_fd=self.parent)
        except FileNotFoundError:
            return None
        except OSError as error:
            error.filename = self.path
            raise
        try:
            self._check(os.fstat(fd))
            with open(fd, "rb", closefd=False) as file:
                content = file.read(MAX_SIZE + 1)
        finally:
            os.close(fd)
        marker = _parsed(content) if len(content) <= MAX_SIZE else None
        if marker is None:
            raise self._untrusted("was not written by this version of fastns")
        return marker

    def _check(self, status: os.stat_result) -> None:
        """Raises RootfsError if others may have written the marker, or if it is too large."""
        if status.st_uid != os.geteuid():
            raise RootfsError(f"{self.target} was built by another user (uid {status.st_uid})")
        for is_wrong, why in (
            (not stat.S_ISREG(status.st_mode), "is not a regular file"),
            (status.st_mode & 0o022, "can be written by others"),
            (status.st_nlink != 1, "has a second name (a hard link)"),
            (status.st_size > MAX_SIZE, f"is larger than {MAX_SIZE >> 20} MiB"),
        ):
            if is_wrong:
                raise self._untrusted(why)

    def _untrusted(self, why: str) -> RootfsError:
        return RootfsError(
            f"{self.path} {why}; it says what {self.target} is made of",
            hint="build into a new directory and name all commands again",
        )

    @contextlib.contextmanager
    def staged(self, marker: Marker) -> Iterator[Callable[[], None]]:
        """Write a marker under a temporary name. Yields a function that renames it into place. If
        this function is not called, the marker is removed."""
        fresh = f"{self.name}.{secrets.token_hex(4)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        try:
            fd = os.open(fresh, flags, 0o600, dir_fd=self.parent)
        except PermissionError as error:
            raise RootfsError(
                f"{os.path.dirname(self.path)} cannot be written: what {self.target} is made of is "
                "recorded there, out of reach of its sandboxes",
                hint=f"build into a directory below it: {self.target}/root",
            ) from error
        try:
            with open(fd, "wb") as file:
                text = json.dumps({"fastns_rootfs": 2, **vars(marker)}, indent=1) + "\n"
                file.write(text.encode("utf-8", "surrogateescape"))

            def place() -> None:
                try:
                    os.rename(fresh, self.name, src_dir_fd=self.parent, dst_dir_fd=self.parent)
                except OSError as error:
                    error.filename = self.path
                    raise

            yield place
        finally:
            with contextlib.suppress(FileNotFoundError):  # already renamed
                os.unlink(fresh, dir_fd=self.parent)


def _parsed(content: bytes) -> Marker | None:
    """The marker in this text, or None if it is not a marker."""
    try:
        data = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if not isinstance(data, dict) or data.get("fastns_rootfs") != 2:
        return None
    lists = [data.get(name, []) for name in ("commands", "extra", "files")]
    for value in lists:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            return None
    return Marker(*map(tuple, lists))
