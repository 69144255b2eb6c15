"""The exceptions: which step failed, on what, and how to mend it.

TimeoutExpired, DecodeError and CalledProcessError, of results, are in results.py and _ended.py.
"""

import errno as _errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fastns._core import Plan

# Errnos that are the kernel's own, but reach programs here and there.
UNNAMED = {524: ("ENOTSUPP", "The kernel could not compile it")}


class FastnsError(Exception):
    """What every exception of fastns is."""


class SpecError(FastnsError, ValueError):
    """Something asked for that cannot be; found before any process exists.

    Attributes: field, the argument or Spec field; reason, what is wrong and what would be accepted.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field = field
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.field}: {self.reason}"


class ClosedError(FastnsError, ValueError):
    """What was asked had been closed before; a ValueError, as a closed file raises it."""


class SpawnError(FastnsError, OSError):
    """A step of starting a sandbox failed; nothing of it is left.

    Attributes: stage ("clone", "mount", "exec", ...), errno, strerror, op_index (-1: no op of the
    plan), path (None: no path is to blame), hint (None, or how to mend it), found (exec: the file
    is there, its interpreter or loader is not).
    """

    def __init__(
        self,
        stage: str,
        errno: int,
        *,
        op_index: int = -1,
        path: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(errno, UNNAMED[errno][1] if errno in UNNAMED else os.strerror(errno))
        self.stage = stage
        self.op_index = op_index
        self.path = path
        self.filename = path
        self.hint = hint if hint is not None else hint_for(stage, errno, path)
        self.found = False

    def __str__(self) -> str:
        place = self.stage if self.op_index < 0 else f"{self.stage}[{self.op_index}]"
        name = _name_of(self.errno or 0)
        target = "" if self.path is None else f" {self.path}"
        return f"{place}{target}: {self.strerror} ({name})"

    def __repr__(self) -> str:
        return f"SpawnError({str(self)!r})"

    def __reduce__(self) -> "tuple[object, ...]":
        arguments = (self.stage, self.errno, self.op_index, self.path, self.hint, self.found)
        return (_restore, arguments)


def _name_of(errno: int) -> str:
    return UNNAMED[errno][0] if errno in UNNAMED else _errno.errorcode.get(errno, str(errno))


def _restore(
    stage: str, errno: int, op_index: int, path: str | None, hint: str | None, found: bool
) -> SpawnError:
    error = SpawnError(stage, errno, op_index=op_index, path=path, hint=hint)
    error.found = found
    return error


# What the kernel's errno means at a stage, where it misleads, and what helps. An entry with a path
# goes before the same without.
_NO_PROC = (
    "ids are mapped and namespaces joined through /proc, which is not mounted here: mount -t proc "
    "proc /proc"
)
_REFUSED = (
    "the kernel refuses namespaces to this process: a security module (AppArmor, SELinux) confines "
    "it, or it is in a chroot"
)
_NO_NAMESPACES = (
    "not a disk: a limit on namespaces is reached, see /proc/sys/user/max_*_namespaces, "
    "or they are nested too deep"
)
_HINTS: dict[tuple[str, int, str | None], str] = {
    ("clone", _errno.EACCES, None): "the cgroup may not be entered from the caller's own",
    ("clone", _errno.ENOSPC, None): _NO_NAMESPACES,
    ("unshare", _errno.ENOSPC, None): _NO_NAMESPACES,
    (
        "clone",
        _errno.EUSERS,
        None,
    ): "user namespaces are nested too deep, or their limit is reached",
    ("clone", _errno.EAGAIN, None): (
        "a limit on processes is reached: RLIMIT_NPROC, or pids.max of the cgroup"
    ),
    ("clone", _errno.EMFILE, None): "RLIMIT_NOFILE of this process is reached",
    ("clone", _errno.ENOMEM, None): (
        "memory is short, or the joined pid namespace's first process has ended"
    ),
    ("clone", _errno.ENOSYS, None): (
        "a time namespace needs clone3, which this kernel, or a filter around this process, refuses"
    ),
    ("clone", _errno.EINVAL, None): "this kernel lacks one of the namespaces asked for",
    ("id_map", _errno.EPERM, None): (
        "the mapping is not allowed: only the caller's own id, or ranges listed for it in "
        "/etc/subuid and /etc/subgid (by newuidmap and newgidmap)"
    ),
    ("id_map", _errno.ENOENT, None): (
        "newuidmap and newgidmap are needed for a range of ids: install the uidmap package"
    ),
    ("id_map", _errno.EINVAL, None): "the kernel takes at most 340 ranges that do not overlap",
    ("id_map", _errno.EACCES, None): "/proc shows another pid namespace than this process' own",
    ("setns", _errno.ENOENT, None): "no such namespace file: has its process ended?",
    ("setns", _errno.EPERM, None): (
        "joining a namespace needs CAP_SYS_ADMIN over it: join its user namespace too, or be root"
    ),
    (
        "setns",
        _errno.EINVAL,
        None,
    ): "the file is a namespace of another kind, or is the caller's own",
    ("rootfs", _errno.ENOENT, None): (
        "no such directory: build one with `fastns rootfs build DIR sh ls`"
    ),
    ("rootfs", _errno.ENOTDIR, None): "rootfs has to be a directory",
    ("rootfs", _errno.EACCES, None): "a directory on the way to it cannot be entered by this user",
    ("overlay", _errno.EINVAL, None): (
        "overlayfs refuses this root: is it an overlay itself, or is the kernel older than 5.11?"
    ),
    ("overlay", _errno.EPERM, None): (
        "overlayfs in a user namespace needs Linux 5.11; before, only root has it"
    ),
    ("overlay", _errno.ENODEV, None): "this kernel has no overlayfs: modprobe overlay, as root",
    ("mount", _errno.ENOENT, None): (
        "the target, or the source of the bind, does not exist: make it, give the mount "
        "X-mount.mkdir, or use overlay=True"
    ),
    ("mount", _errno.ENOTDIR, None): (
        "a file and a directory cannot be mounted on one another: make the target of the same kind"
    ),
    (
        "mount",
        _errno.ELOOP,
        None,
    ): "a symbolic link is refused here: the target has to be a real directory",
    ("mount", _errno.EPERM, "/proc"): (
        "this process is in a container or sandbox that masks parts of /proc, where the kernel "
        "refuses a fresh one: start the container (docker, fastns run) with --security-opt "
        "systempaths=unconfined, or show its /proc with namespaces={'pid': 'host'}"
    ),
    ("mount", _errno.EPERM, "/sys"): (
        "a fresh /sys needs a network namespace of its own, or a fully visible /sys outside"
    ),
    ("mount", _errno.EPERM, None): (
        "the kernel does not allow this mount to a user namespace (devtmpfs, say, or clearing "
        "nosuid), or in an outer container"
    ),
    ("mount", _errno.EINVAL, None): (
        "an option the file system does not know, or, in a user namespace, a bind of a directory "
        "with mounts below it: use rbind"
    ),
    ("mount", _errno.EOVERFLOW, None): (
        "the target is missing in an idmapped tree, where this process can make nothing: make it "
        "beforehand; if it lies in a bind, give that bind noidmap"
    ),
    ("mount", _errno.EROFS, None): (
        "the target cannot be made in a read-only root: make it there beforehand, or use "
        "overlay=True"
    ),
    ("mount", _errno.EACCES, None): (
        "this user cannot reach the source of the bind, or cannot make the target"
    ),
    ("mount", _errno.ENODEV, None): "this kernel does not know the file system type",
    ("file", _errno.ENOENT, None): (
        "the file has to exist in the root to be replaced: create it there, or use overlay=True"
    ),
    ("file", _errno.ENOTDIR, None): "a directory is in the place of the file",
    ("file", _errno.EISDIR, None): "a directory is in the place of the file",
    ("device", _errno.EPERM, None): (
        "device nodes cannot be made here (a device cgroup?): default_mounts=False leaves them out"
    ),
    ("pivot_root", _errno.EINVAL, None): (
        "the caller's root is an initramfs or not a mount point: use root_mode='chroot'"
    ),
    ("chroot", _errno.EPERM, None): "chroot needs CAP_SYS_CHROOT: root, or a new user namespace",
    ("rlimit", _errno.EPERM, None): (
        "a hard limit can only be raised with CAP_SYS_RESOURCE, RLIMIT_NOFILE at most to "
        "/proc/sys/fs/nr_open"
    ),
    ("landlock", _errno.ENOENT, None): (
        "the path does not exist inside the sandbox: make it, or leave it out of landlock"
    ),
    ("landlock", _errno.EACCES, None): "the sandbox's user cannot get to the path",
    ("landlock", _errno.ELOOP, None): (
        "links that lead to themselves, or a link of /proc/<pid>: give the path it stands for"
    ),
    ("landlock", _errno.EMFILE, None): (
        "the spec's RLIMIT_NOFILE leaves no room for the fds of the rules: 8 will do"
    ),
    ("landlock", _errno.E2BIG, None): "the caller is restricted by Landlock 16 times already",
    ("landlock", _errno.EPERM, None): (
        "without no_new_privileges Landlock takes CAP_SYS_ADMIN: leave no_new_privileges on"
    ),
    ("seccomp", _errno.EACCES, None): (
        "without no_new_privileges a filter takes CAP_SYS_ADMIN: leave no_new_privileges on, or "
        "give seccomp='unconfined'"
    ),
    ("seccomp", 524, None): (
        "the host's memory for compiled filters is used up, by programs with filters of their own. "
        "Its size in bytes is sysctl net.core.bpf_jit_limit, which root can raise; grep bpf "
        "/proc/vmallocinfo, as root, shows what is used"
    ),
    ("capabilities", _errno.EPERM, None): (
        "a capability can only be given by who has it: be root, or ask for a new user namespace"
    ),
    ("keyring", _errno.EDQUOT, None): (
        "the user's quota of keys is used up, each sandbox takes one: sysctl kernel.keys.maxkeys"
    ),
    ("cgroup", _errno.EACCES, None): "the cgroup may not be entered from the caller's own",
    ("cgroup", _errno.EMFILE, None): "RLIMIT_NOFILE of this process is reached",
    ("cgroup", _errno.ENOSPC, None): "no more cgroups here: cgroup.max.descendants of one above",
    ("setgroups", _errno.EPERM, None): "supplementary groups need CAP_SETGID or a mapped range",
    ("setgid", _errno.EINVAL, None): "the group is not in gid_mappings",
    ("setuid", _errno.EINVAL, None): "the user is not in uid_mappings",
    ("setgid", _errno.EPERM, None): "another group needs root or a new user namespace",
    ("setuid", _errno.EPERM, None): "another user needs root or a new user namespace",
    ("stdio", _errno.EMFILE, None): "RLIMIT_NOFILE of this process is reached",
    ("stdio", _errno.EBADF, None): "stdin, stdout or stderr is an fd that is closed",
    ("fds", _errno.EBADF, None): "one of pass_fds is closed",
    ("chdir", _errno.ENOENT, None): "the working directory does not exist inside the root",
    ("chdir", _errno.ENOTDIR, None): "the working directory is a file inside the root",
    ("chdir", _errno.EACCES, None): "the sandbox's user cannot enter the working directory",
    ("exec", _errno.ENOENT, None): "no such command inside the root (PATH is the sandbox's own)",
    ("exec", _errno.EACCES, None): (
        "the file is not executable or lies on a noexec mount; or a directory on the way, or what "
        "a link leads to, is closed to the sandbox's user (as /root is); or it is, as its ELF "
        "loader may be, not among the paths of landlock"
    ),
    ("exec", _errno.ENOEXEC, None): (
        "not a program for this machine: another architecture, or a script without #!"
    ),
    ("exec", _errno.E2BIG, None): "arguments and environment together are too long",
    ("exec", _errno.ENOMEM, None): (
        "RLIMIT_AS, RLIMIT_DATA or the memory of the cgroup is too small for the program"
    ),
    ("exec", _errno.EAGAIN, None): "RLIMIT_NPROC of the sandbox's user is reached",
    ("init", _errno.EAGAIN, None): (
        "a limit on processes is reached: RLIMIT_NPROC of the sandbox's user, or pids.max of the "
        "cgroup"
    ),
    (
        "helper",
        _errno.EACCES,
        None,
    ): "memory files may not be executed here: sysctl vm.memfd_noexec=1",
    ("helper", _errno.EFBIG, None): (
        "RLIMIT_FSIZE of this process holds for the memory files of a start as well: raise it"
    ),
    ("helper", _errno.EMFILE, None): "RLIMIT_NOFILE of this process is reached",
    ("helper", _errno.ETOOMANYREFS, None): (
        "this user's processes and sandboxes have more fds in flight over unix sockets "
        "(SCM_RIGHTS) than RLIMIT_NOFILE of this process: raise it, or end the processes that do "
        "not receive them"
    ),
    ("oom_score_adj", _errno.EACCES, None): (
        "/proc/self/oom_score_adj belongs to root: this process is not dumpable (prctl(2))"
    ),
    ("personality", _errno.EPERM, None): (
        "a filter around this process refuses personality(0): start this process with the default "
        "personality (setarch(8))"
    ),
    ("wait", _errno.ECHILD, None): (
        "another part of this process reaped the sandbox, or SIGCHLD is ignored: its status is lost"
    ),
}

# The same without a rootfs: nothing is made in the host's directories, and there is no overlay.
_ELSEWHERE = "choose a place outside of them, where it is made for you, or give a rootfs"
_HOST_ROOT_HINTS: dict[tuple[str, int], str] = {
    ("mount", _errno.ENOENT): (
        "the target does not exist in the host's system directories, which are read-only (or the "
        f"source of the bind does not exist): {_ELSEWHERE}"
    ),
    ("mount", _errno.EROFS): (
        "the target cannot be made in the host's system directories, which are read-only: "
        f"{_ELSEWHERE}"
    ),
    ("file", _errno.ENOENT): (
        "the file does not exist in the host's system directories, which are read-only; only one "
        f"that exists can be replaced there: {_ELSEWHERE}"
    ),
}


def hint_for(
    stage: str, errno: int, path: str | None = None, *, host_root: bool = False
) -> str | None:
    """How to mend a failure, in a line; None when the error says it all."""
    if errno == _errno.ENOENT and stage in ("id_map", "setns") and not _has_proc():
        return _NO_PROC
    if errno == _errno.EPERM and stage in ("clone", "id_map", "propagation", "rootfs"):
        known = _why_refused(stage)
        if known is not None:
            return known
    if host_root and (stage, errno) in _HOST_ROOT_HINTS:
        return _HOST_ROOT_HINTS[stage, errno]
    return _HINTS.get((stage, errno, path)) or _HINTS.get((stage, errno, None))


def _has_proc() -> bool:
    return os.path.exists("/proc/self/uid_map")


def _why_refused(stage: str) -> str | None:
    """Why this process may make no namespaces, or mount nothing in its own; None: not known."""
    from fastns import _surroundings, doctor  # only an error needs them

    if not _has_proc():
        return _NO_PROC
    around = _surroundings.Surroundings.current()
    if stage == "id_map":
        return _surroundings.TO_MAP_ROOT if around.cannot_map_root else None
    found = doctor.user_namespace_settings()
    if found.ok is False:
        return f"{found.detail}: {found.fix}"
    return _surroundings.OUT_OF_A_FILTER if around.confined else _REFUSED


def known_hints(*, host_root: bool) -> "list[tuple[str, int, str | None, str]]":
    """(stage, errno, path or None for any, hint) of every failure that hint_for() knows without
    looking at the machine; those of one path first."""
    listed = dict(_HINTS)
    if host_root:
        listed |= {(stage, err, None): text for (stage, err), text in _HOST_ROOT_HINTS.items()}
    ordered = sorted(listed.items(), key=lambda item: item[0][2] is None)
    return [(stage, err, path, text) for (stage, err, path), text in ordered]


# ---- a start that failed, by the numbers that the engine reports ----

# What helps where the engine knows more than the errno: by one of _core.DETAILS.
_DETAIL_HINTS = {
    "found": (
        "the file is there, but the interpreter of its #! line, or the ELF loader it names, is "
        "missing inside the root"
    ),
    "killed": "the process was killed while it was being set up (out of memory, or a signal)",
    "id_map": (
        "this file system cannot be idmapped, so owners cannot be kept: for a bind, leave out the "
        "option idmap; for a root, use ext4, xfs or btrfs, or give namespaces={'user': 'host'}"
    ),
    "memory": (
        "arguments and environment leave too little of the memory limit for a start: raise memory, "
        "or pass them in a file or by stdin"
    ),
}
_SERVER_GONE = "the template's server was killed, or has no fds left (RLIMIT_NOFILE)"
_SERVER_ERRNOS = (_errno.ECANCELED, _errno.EMFILE, _errno.EBADF)


def spawn_error(
    plan: "Plan",
    stage: str,
    errno: int,
    op_index: int,
    detail: str | None,
    command: str | bytes | None,
    cwd: bytes | None,
) -> SpawnError:
    """The exception for a start of `plan` that failed.

    Args:
        op_index: -1 for no op. detail: one of _core.DETAILS, or None.
        command: argv[0]. cwd: the working directory. Both are None for a template's server.
    """
    path = {"exec": command, "chdir": cwd}.get(stage)
    if op_index >= 0:
        op = plan.ops[op_index]
        path = op.source if detail == "source" else op.target or op.source
        if op.code in ("mount", "show") and path is not None and path is op.target:
            path = b"/" + path.lstrip(b"/")
    place = None if path is None else os.fsdecode(path)
    hint = hint_of_start(plan, stage, errno, place, detail)
    error = SpawnError(stage, errno, op_index=op_index, path=place, hint=hint)
    error.found = detail == "found"
    return error


def hint_of_start(
    plan: "Plan", stage: str, errno: int, path: str | None, detail: str | None
) -> str | None:
    """The most specific hint for a failed start; None: the error says it all."""
    hint = None
    if plan.view is not None:
        from fastns import _view

        hint = _view.hint_of(stage, errno, path, plan.view, detail == "found")
    if hint is None and detail == "broken" and errno in _SERVER_ERRNOS:
        hint = _SERVER_GONE
    hint = hint or _DETAIL_HINTS.get(detail or "")
    hint = hint or hint_for(stage, errno, path, host_root=plan.view is not None)
    refused = errno == _errno.EACCES and stage in ("exec", "chdir", "landlock")
    if refused and plan.binds and path is not None:
        from fastns import _owners

        hint = _owners.hint(plan, path, hint)
    return hint
