"""Writes a plan into a root, completely or not at all.

What is new or changed is copied into a staging directory inside the root, then renamed into place.
If a step fails, those before it are undone. All paths are opened directory by directory with
O_NOFOLLOW, so no link in a root leads out of it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat

from fastns.rootfs._bundles import hints_of
from fastns.rootfs._marker import Beside, Marker
from fastns.rootfs._model import Entries, Entry, Plan, Root, RootfsError
from fastns.rootfs._skeleton import TEXTS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fastns.rootfs._model import Progress

STAGE = ".fastns-rootfs.new"
"""At the top of a root while it is being written."""
COPY_SIZE = 1 << 20
"""Bytes copied at once."""


@contextlib.contextmanager
def opened(directory: str, dir_fd: int | None = None) -> Iterator[int]:
    """A descriptor of a directory; OSError when it is a link."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=dir_fd)
    try:
        yield fd
    finally:
        os.close(fd)


class Writer:
    """Writes a plan into a directory, given by its fd, that nobody else writes to."""

    def __init__(self, root: int, target: str, progress: Progress | None) -> None:
        self.root = root
        self.target = target
        """Its path, for errors."""
        self.progress = progress
        self._undo: list[Callable[[], None]] = []

    def install(
        self, plan: Plan, before: Marker | None = None, beside: Beside | None = None
    ) -> Root:
        """Write what differs, and the marker `beside` if it is no longer as `before`."""
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
        """Remove what a killed build, or a sandbox, has left there."""
        path = f"{self.target}/{STAGE}"
        try:
            if not stat.S_ISDIR(os.lstat(STAGE, dir_fd=self.root).st_mode):
                raise RootfsError(f"{path} is in the way, not a directory", hint=f"rm {path}")
            shutil.rmtree(STAGE, dir_fd=self.root)
        except FileNotFoundError:
            pass
        except RecursionError:
            raise RootfsError(
                f"{path} cannot be removed: its directories are too deep", hint=f"rm -r {path}"
            ) from None

    def _differs(self, path: str, entry: Entry) -> bool:
        """Whether an entry has to be written. Raises RootfsError if something is in its way."""
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
            return entry.size > 0  # an earlier build had no text for it
        return False  # a directory; or a text, which the user may have changed

    def _write(self, jobs: Entries, total: int, put: Callable[[], None]) -> None:
        """Stage the files and links, then move everything into place, the marker last."""
        os.mkdir(STAGE, 0o700, dir_fd=self.root)
        try:
            with opened(STAGE, self.root) as stage:
                self._stage(stage, jobs, total)
                self._commit(stage, jobs, put)
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

    def _commit(self, stage: int, jobs: Entries, put: Callable[[], None]) -> None:
        """Move everything into place, parents first."""
        try:
            for number, (path, entry) in enumerate(jobs.items()):
                if entry.kind == "directory":
                    self._place_directory(path, entry.mode)
                else:
                    self._place(stage, str(number), path)
            put()
        except BaseException:
            for step in reversed(self._undo):
                step()
            raise

    def _place_directory(self, path: str, mode: int) -> None:
        with self._parent(path) as (parent, name):
            os.mkdir(name, 0o700, dir_fd=parent)
            self._undo.append(lambda: self._remove(path, os.rmdir))
            with opened(name, parent) as fd:
                os.fchown(fd, os.geteuid(), os.getegid())
                os.fchmod(fd, mode)

    def _place(self, stage: int, staged: str, path: str) -> None:
        """Move one staged file over what is there. The old file is kept until all is done."""
        old = f"{staged}.old"
        with self._parent(path) as (parent, name):
            try:
                os.link(name, old, src_dir_fd=parent, dst_dir_fd=stage, follow_symlinks=False)
            except FileNotFoundError:
                os.rename(staged, name, src_dir_fd=stage, dst_dir_fd=parent)
                self._undo.append(lambda: self._remove(path, os.unlink))
            else:
                os.rename(staged, name, src_dir_fd=stage, dst_dir_fd=parent)
                self._undo.append(lambda: self._restore(stage, old, path))

    def _restore(self, stage: int, old: str, path: str) -> None:
        with self._parent(path) as (parent, name):
            os.rename(old, name, src_dir_fd=stage, dst_dir_fd=parent)

    def _remove(self, path: str, call: Callable[..., None]) -> None:
        with self._parent(path) as (parent, name):
            call(name, dir_fd=parent)

    @contextlib.contextmanager
    def _parent(self, path: str) -> Iterator[tuple[int, str]]:
        """(fd of the directory, name) of a path inside. A link on the way is an error."""
        *directories, name = path.strip("/").split("/")
        fd = os.dup(self.root)
        try:
            for directory in directories:
                flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
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


def _make(directory: int, name: str, entry: Entry) -> None:
    """Make a file or link that the caller owns, without extended attributes (capabilities)."""
    owner = os.geteuid(), os.getegid()  # set each time: in a setgid directory the group differs
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
        copy.flush()  # a later write would change the times set below
        os.fchown(fd, *owner)
        os.fchmod(fd, entry.mode)
        if entry.kind == "file":
            os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
