"""unshare() and setns(), which change the namespaces of the calling thread."""

import errno
import os

from fastns import _core
from fastns._args import MAX_PATH, check_one_of, encode, wrong
from fastns._compile.ops import CLONE_FLAGS, clone_flags
from fastns.errors import SpawnError, SpecError
from fastns.sandbox import Sandbox

_HINTS = {
    ("unshare", "user", errno.EINVAL): (
        "a process with more than one thread cannot enter a new user namespace: use spawn(), or "
        "call this before any thread is started"
    ),
    ("setns", "user", errno.EINVAL): (
        "a user namespace can be joined only by a process of one thread, and only if it is not "
        "the process's own already: use spawn(spec=Spec(namespaces={'user': path}))"
    ),
    ("setns", "mount", errno.EINVAL): (
        "threads share their working directory (CLONE_FS), and such a thread cannot change its "
        "mount namespace: call unshare('mount') first, or use spawn() with the path"
    ),
    ("setns", "time", errno.EUSERS): (
        "a time namespace can be joined only by a process of one thread: use spawn() with the path"
    ),
}


def unshare(*names: str) -> None:
    """Moves the calling thread into new namespaces (unshare(2)).

    Other threads keep theirs. pid and time take effect for children only. Releases the GIL.

    Args: names: one or more of "pid", "mount", "uts", "ipc", "network", "user", "cgroup", "time".
    Raises: SpecError for an unknown name; SpawnError, stage "unshare", with the kernel's errno.
    """
    flags = _flags(names)
    if not flags:
        raise SpecError("names", f"none given: at least one of {', '.join(CLONE_FLAGS)}")
    _raise("unshare", names, None, _core.unshare(flags))


def setns(target: "int | str | os.PathLike[str] | Sandbox", *names: str) -> None:
    """Moves the calling thread into existing namespaces (setns(2)). Releases the GIL.

    Args:
        target: a namespace's path such as /proc/42/ns/net, a Sandbox, a pidfd or a pid. A number
            counts as a pidfd if it is an open one, else as a pid.
        names: which namespaces to join. For a path they may be omitted: any kind is then accepted.
    Raises: SpecError; SpawnError, stage "setns", with the kernel's errno.
    """
    flags = _flags(names)
    path = None
    if isinstance(target, Sandbox):
        fd = os.dup(target.pidfd) if target.pidfd >= 0 else -1
        if fd < 0:
            raise SpawnError("setns", errno.ESRCH, hint="the sandbox has ended")
    elif isinstance(target, int) and not isinstance(target, bool):
        fd = _pidfd(target)
    elif isinstance(target, str | os.PathLike):
        path = os.fsdecode(encode("target", target, MAX_PATH))
        try:
            # Without O_NONBLOCK, a FIFO would block until somebody opens it for writing.
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as exc:
            raise SpawnError("setns", exc.errno or errno.EIO, path=path) from None
    else:
        raise wrong("target", target, "a path, a Sandbox, a pidfd or a pid")
    try:
        if path is None and not flags:
            raise SpecError(
                "names", f"a process has several: name at least one of {', '.join(CLONE_FLAGS)}"
            )
        _raise("setns", names, path, _core.setns(fd, flags))
    finally:
        os.close(fd)


def _flags(names: tuple[str, ...]) -> int:
    for name in names:
        check_one_of("names", name, CLONE_FLAGS)
    return clone_flags(set(names))


def _pidfd(number: int) -> int:
    if not 0 <= number < 2**31:
        raise wrong("target", number, "a pid or a pidfd, below 2**31")
    try:
        with open(f"/proc/self/fdinfo/{number}") as file:
            if any(line.startswith("Pid:") for line in file):
                return os.dup(number)
    except OSError:
        pass  # no fd has that number, so it is a pid
    try:
        return os.pidfd_open(number)
    except OSError as exc:
        code = exc.errno or errno.ESRCH
        raise SpawnError("setns", code, hint=f"{number}: neither a process nor a pidfd") from None


def _raise(stage: str, names: tuple[str, ...], path: str | None, code: int) -> None:
    if code == 0:
        return
    hint = next((_HINTS[stage, n, code] for n in names if (stage, n, code) in _HINTS), None)
    raise SpawnError(stage, code, path=path, hint=hint)
