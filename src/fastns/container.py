"""Container: a sandbox that stays, and in which one command after another runs."""

from __future__ import annotations

import os

from fastns import _core, _transfer
from fastns._args import check_path, wrong
from fastns._commands import Commands
from fastns._kept import Kept
from fastns._spec_checks import check_user
from fastns._transfer import MAX_READ, check_inside, check_mode, check_size, file_content
from fastns.errors import SpecError
from fastns.spec import Spec


class Container(Kept, Commands):
    """A sandbox that stays until it is closed. A context manager, which any number of threads may
    use.

    Each command sees what earlier ones have left: files, and processes that still run. All commands
    share the namespaces, the network and the cgroups, so the limits hold for the container as a
    whole. Any number of commands may run at once. A command is never pid 1, and its stdin is not
    the caller's terminal.

    A timeout ends the command and all it has started, daemons included, but not the container. What
    a command has left running when it ended by itself runs on. A command that kills its supervisor,
    its parent process, is killed too, but what it has started runs on.

    The container ends with close(), with this process, or when it is dropped (with a
    ResourceWarning). If its first process is killed, by the host or for lack of memory, all in it
    is killed too. After that, and after a fork in the forked process, each method raises
    ClosedError.

    Args:
        spec: a Spec; None is Spec(). A relative rootfs is resolved now. init, and a pid namespace
            that is not new, are not supported. /proc is required.
        name: what repr() shows, and the attribute `name`; letters, digits, "_", "." and "-".
    Raises: SpecError when a container, or this caller, does not support what is in the spec;
        SpawnError when a step of the start failed.
    """

    def __init__(self, spec: Spec | None = None, *, name: str | None = None) -> None:
        self.name = name if name is None else _check_name(name)
        super().__init__(spec)

    @property
    def pid(self) -> int:
        """The pid of its first process."""
        return self._running().pid

    def _extra_of(self, user: str | int | None) -> _core._Extra | None:
        if user is None:
            return None
        uid, _, gid = check_user(user).partition(":")
        last = self._sandbox.last_ids
        if last is None:
            raise SpecError(
                "user",
                "other ids than the spec's need a range of ids: be root and leave "
                "namespaces['user'] out, or give uid_mappings and gid_mappings",
            )
        if int(uid) >= last[0] or int(gid) >= last[1]:
            raise SpecError(
                "user", f"{user!r}: expected a uid below {last[0]}, a gid below {last[1]}"
            )
        return (int(uid), int(gid)), 0, 0

    # ---- files ----

    def read_file(self, path: str | os.PathLike[str], *, max_size: int | None = MAX_READ) -> bytes:
        """The content of a file inside.

        Args:
            path: absolute. Links are followed, inside.
            max_size: bytes; a larger file is not read, and raises OSError, EFBIG. None: no limit.
        Raises: OSError as open() would, with the path inside as its filename; ENOTSUP for what is
            neither a file nor a directory, such as a FIFO or a device.
        """
        where = check_inside("path", path)
        return _transfer.read_file(self, where, check_size("max_size", max_size))

    def write_file(
        self, path: str | os.PathLike[str], data: bytes | str, mode: int = 0o644
    ) -> None:
        """Writes a file inside. An existing one is overwritten; missing directories above it are
        made.

        Args:
            path: absolute. Links are followed, inside.
            data: text is encoded as UTF-8.
            mode: its permissions, which the umask does not change.
        Raises: OSError as open() would, with the path inside as its filename.
        """
        content = file_content("data", data)
        _transfer.put_files(self, [(check_inside("path", path), content, check_mode(mode))])

    def upload(self, src: str | os.PathLike[str], dst: str | os.PathLike[str]) -> None:
        """Copies a file or a directory of the host, with all below it, into the container.

        Args:
            src: a path of the host. If it is a link, its target is copied; links below it are
                copied as links.
            dst: absolute. In a directory that exists, the copy gets the name of `src`. Files that
                exist are overwritten, directories are merged.
        Raises: OSError, with the path on the side where it failed. What was copied before stays.
        """
        source, where = check_path("src", src), check_inside("dst", dst)
        _transfer.upload(self, source, self._place(where, os.path.basename(source.rstrip("/"))))

    def download(
        self,
        src: str | os.PathLike[str],
        dst: str | os.PathLike[str],
        *,
        max_size: int | None = None,
    ) -> None:
        """Copies a file or a directory out of the container, with all below it.

        Args:
            src: absolute. If it is a link, its target inside is copied; links below it are copied
                as links, and must not lead out of `src`.
            dst: a path of the host. In a directory that exists, the copy gets the name of `src`.
                A file that exists is replaced; a directory of that name is an error.
            max_size: bytes of all files together; more raises OSError, EFBIG. None: no limit.
        Raises: OSError, with the path on the side where it failed: ENOTSUP for a FIFO, a socket or
            a device, EXDEV for a link that may lead out. Nothing of the copy is left then.
        """
        source, target = check_inside("src", src), check_path("dst", dst)
        if os.path.isdir(target):
            target = os.path.join(target, os.path.basename(os.fsdecode(source).rstrip("/")))
        _transfer.download(self, source, target, check_size("max_size", max_size))

    def listdir(self, path: str | os.PathLike[str]) -> list[str]:
        """The names in a directory inside, sorted. Raises: OSError as os.listdir() would."""
        return _transfer.list_directory(self, check_inside("path", path))

    def _place(self, where: bytes, name: str) -> bytes:
        """Where a copy with this name goes: below `where` if that is a directory."""
        try:
            self.listdir(os.fsdecode(where))
        except (FileNotFoundError, NotADirectoryError):
            return where
        return where.rstrip(b"/") + b"/" + os.fsencode(name)


def _check_name(name: object) -> str:
    usual = isinstance(name, str) and name.isascii() and name[:1].isalnum() and len(name) <= 128
    if not usual or not all(c.isalnum() or c in "_.-" for c in str(name)):
        raise wrong("name", name, "letters, digits, '_', '.' and '-', the first a letter or digit")
    return str(name)
