"""The exceptions: which step failed, on what, and how to mend it.

TimeoutExpired and CalledProcessError are in results.py, DecodeError in _ended.py.
"""

import errno as E
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fastns._core import Plan

ENOTSUPP = 524
# Errnos of the kernel's own, which reach programs now and then.
UNNAMED = {ENOTSUPP: ("ENOTSUPP", "The kernel could not compile it")}


class FastnsError(Exception):
    """The base of every exception of fastns."""


class SpecError(FastnsError, ValueError):
    """A wrong argument or Spec field, found before any process exists.

    Attributes: field, its name; reason, what is wrong and what would be accepted.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field = field
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.field}: {self.reason}"


class ClosedError(FastnsError, ValueError):
    """The object was closed before; a ValueError, as a closed file raises it."""


class SpawnError(FastnsError, OSError):
    """A step of starting a sandbox failed; nothing of it is left.

    Attributes: stage ("clone", "mount", "exec", ...), errno, strerror, op_index (the index in
    Plan.ops; -1: no op failed), path (None: the failure is not about a path), hint (how to mend it,
    or None), found (exec: the file exists, its interpreter or loader does not).
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
        errno = self.errno or 0
        name = UNNAMED[errno][0] if errno in UNNAMED else E.errorcode.get(errno, str(errno))
        target = "" if self.path is None else f" {self.path}"
        return f"{place}{target}: {self.strerror} ({name})"

    def __repr__(self) -> str:
        return f"SpawnError({str(self)!r})"

    def __reduce__(self) -> "tuple[object, ...]":
        arguments = (self.stage, self.errno, self.op_index, self.path, self.hint, self.found)
        return (_restore, arguments)


def _restore(
    stage: str, errno: int, op_index: int, path: str | None, hint: str | None, found: bool
) -> SpawnError:
    error = SpawnError(stage, errno, op_index=op_index, path=path, hint=hint)
    error.found = found
    return error


_NO_PROC = (
    "ids are mapped and namespaces joined through /proc, which is not mounted here: mount -t proc "
    "proc /proc"
)
_REFUSED = (
    "the kernel refuses namespaces to this process: a security module (AppArmor, SELinux) confines "
    "it, or it is in a chroot"
)
_NO_NAMESPACES = (
    "not a disk: a limit on namespaces is reached (/proc/sys/user/max_*_namespaces), or they are "
    "nested too deep"
)
_NO_FDS = "this process has as many fds open as its RLIMIT_NOFILE allows: raise it, or close some"
_CGROUP_CLOSED = "this process may not move a process from its own cgroup into that one"
_A_DIRECTORY = "there is a directory in the place of the file"

# What an errno means at a stage, where the kernel's text misleads, and what helps.
_HINTS: dict[str, dict[int, str]] = {
    "clone": {
        E.EACCES: _CGROUP_CLOSED,
        E.ENOSPC: _NO_NAMESPACES,
        E.EUSERS: "user namespaces are nested too deep, or their limit is reached",
        E.EAGAIN: "a limit on processes is reached: RLIMIT_NPROC, or pids.max of the cgroup",
        E.EMFILE: _NO_FDS,
        E.ENOMEM: "memory is short, or the first process of the joined pid namespace has ended",
        E.ENOSYS: "a time namespace needs clone3, which this kernel, or a filter around this "
        "process, refuses",
        E.EINVAL: "this kernel lacks one of the namespaces",
    },
    "unshare": {E.ENOSPC: _NO_NAMESPACES},
    "id_map": {
        E.EPERM: "only the caller's own id may be mapped, or ranges that /etc/subuid and "
        "/etc/subgid list for it (by newuidmap and newgidmap)",
        E.ENOENT: "a range of ids needs newuidmap and newgidmap: install the uidmap package",
        E.EINVAL: "the kernel takes at most 340 ranges, which may not overlap",
        E.EACCES: "/proc shows another pid namespace than this process's own",
    },
    "setns": {
        E.ENOENT: "no such namespace file: has its process ended?",
        E.EPERM: "joining a namespace needs CAP_SYS_ADMIN in its user namespace: join that as "
        "well, or be root",
        E.EINVAL: "the file is a namespace of another kind, or the caller's own",
    },
    "rootfs": {
        E.ENOENT: "no such directory: build one with `fastns rootfs build DIR sh ls`",
        E.ENOTDIR: "rootfs has to be a directory",
        E.EACCES: "this user cannot enter a directory on the way to it",
    },
    "overlay": {
        E.EINVAL: "overlayfs refuses this root: is it an overlay itself, or is the kernel older "
        "than 5.11?",
        E.EPERM: "overlayfs in a user namespace needs Linux 5.11; before, only root can use it",
        E.ENODEV: "this kernel has no overlayfs: modprobe overlay, as root",
    },
    "mount": {
        E.ENOENT: "the target, or the source of the bind, does not exist: create it, give the "
        "mount X-mount.mkdir, or use overlay=True",
        E.ENOTDIR: "a file and a directory cannot be mounted on one another: make the target of "
        "the same kind",
        E.ELOOP: "the target is a symbolic link, which is refused: use a real directory",
        E.EPERM: "the kernel does not allow this mount in a user namespace (devtmpfs, say, or "
        "clearing nosuid), or in an outer container",
        E.EINVAL: "an option the file system does not know, or, in a user namespace, a bind of a "
        "directory with mounts below it: use rbind",
        E.EOVERFLOW: "the target is missing in an idmapped tree, where this process cannot create "
        "it: create it beforehand; if it lies in a bind, give that bind noidmap",
        E.EROFS: "the target cannot be created in a read-only root: create it there beforehand, or "
        "use overlay=True",
        E.EACCES: "this user cannot reach the source of the bind, or cannot create the target",
        E.ENODEV: "this kernel does not know the file system type",
    },
    "file": {
        E.ENOENT: "only a file that exists in the root can be replaced: create it there, or use "
        "overlay=True",
        E.ENOTDIR: _A_DIRECTORY,
        E.EISDIR: _A_DIRECTORY,
    },
    "device": {
        E.EPERM: "device nodes cannot be created here (a device cgroup?): default_mounts=False "
        "leaves them out",
    },
    "pivot_root": {
        E.EINVAL: "the caller's root is an initramfs or not a mount point: use root_mode='chroot'",
    },
    "chroot": {E.EPERM: "chroot needs CAP_SYS_CHROOT: be root, or use a new user namespace"},
    "rlimit": {
        E.EPERM: "raising a hard limit needs CAP_SYS_RESOURCE; RLIMIT_NOFILE goes no higher than "
        "/proc/sys/fs/nr_open",
    },
    "landlock": {
        E.ENOENT: "the path does not exist inside the sandbox: create it, or leave it out of "
        "landlock",
        E.EACCES: "the sandbox's user cannot reach the path",
        E.ELOOP: "a chain of symbolic links that has no end, or a link of /proc/<pid>: give the "
        "path it stands for",
        E.EMFILE: "the RLIMIT_NOFILE of the spec is too low for the fds of the rules: 8 is enough",
        E.E2BIG: "the caller has 16 Landlock rulesets on it already, the most the kernel allows",
        E.EPERM: "without no_new_privileges Landlock needs CAP_SYS_ADMIN: leave no_new_privileges "
        "on",
    },
    "seccomp": {
        E.EACCES: "without no_new_privileges a filter needs CAP_SYS_ADMIN: leave no_new_privileges "
        "on, or give seccomp='unconfined'",
        ENOTSUPP: "the host's memory for compiled filters is used up, by programs with filters of "
        "their own. Its size in bytes is sysctl net.core.bpf_jit_limit, which root can raise; "
        "grep bpf /proc/vmallocinfo, as root, shows what is used",
    },
    "capabilities": {
        E.EPERM: "only a process that has a capability can give it: be root, or use a new user "
        "namespace",
    },
    "keyring": {
        E.EDQUOT: "the user's quota of keys is used up, each sandbox takes one: sysctl "
        "kernel.keys.maxkeys",
    },
    "cgroup": {
        E.EACCES: _CGROUP_CLOSED,
        E.EMFILE: _NO_FDS,
        E.ENOSPC: "no more cgroups can be made here: see cgroup.max.descendants of those above",
    },
    "setgroups": {E.EPERM: "supplementary groups need CAP_SETGID or a mapped range"},
    "setgid": {
        E.EINVAL: "the group is not in gid_mappings",
        E.EPERM: "another group needs root or a new user namespace",
    },
    "setuid": {
        E.EINVAL: "the user is not in uid_mappings",
        E.EPERM: "another user needs root or a new user namespace",
    },
    "stdio": {E.EMFILE: _NO_FDS, E.EBADF: "stdin, stdout or stderr is a closed fd"},
    "fds": {E.EBADF: "one of pass_fds is closed"},
    "chdir": {
        E.ENOENT: "the working directory does not exist inside the root",
        E.ENOTDIR: "the working directory is a file inside the root",
        E.EACCES: "the sandbox's user cannot enter the working directory",
    },
    "exec": {
        E.ENOENT: "no such command inside the root (PATH is the sandbox's own)",
        E.EACCES: "the file is not executable, or lies on a noexec mount; or a directory on the "
        "way to it, or to what a link leads to, is closed to the sandbox's user (as /root is); or "
        "it, or its ELF loader, is not among the paths of landlock",
        E.ENOEXEC: "not a program for this machine: another architecture, or a script without #!",
        E.E2BIG: "arguments and environment together are too long",
        E.ENOMEM: "RLIMIT_AS, RLIMIT_DATA or the memory of the cgroup is too small for the program",
        E.EAGAIN: "RLIMIT_NPROC of the sandbox's user is reached",
    },
    "init": {
        E.EAGAIN: "a limit on processes is reached: RLIMIT_NPROC of the sandbox's user, or "
        "pids.max of the cgroup",
    },
    "helper": {
        E.EACCES: "memory files may not be executed here: sysctl vm.memfd_noexec=1",
        E.EFBIG: "RLIMIT_FSIZE of this process limits the memory files of a start too: raise it",
        E.EMFILE: _NO_FDS,
        E.ETOOMANYREFS: "this user's processes and sandboxes have more fds in flight over unix "
        "sockets (SCM_RIGHTS) than RLIMIT_NOFILE of this process: raise it, or end the processes "
        "that do not receive them",
    },
    "oom_score_adj": {
        E.EACCES: "/proc/self/oom_score_adj belongs to root, as this process is not dumpable "
        "(prctl(2))",
    },
    "personality": {
        E.EPERM: "a filter around this process refuses personality(0): start this process with the "
        "default personality (setarch(8))",
    },
    "wait": {
        E.ECHILD: "another part of this process reaped the sandbox, or SIGCHLD is ignored: its "
        "status is lost",
    },
}
# The same for one path.
_PATH_HINTS: dict[tuple[str, int, str], str] = {
    ("mount", E.EPERM, "/proc"): (
        "this process is in a container or sandbox that masks parts of /proc, where the kernel "
        "refuses a fresh one: start the container (docker, fastns run) with --security-opt "
        "systempaths=unconfined, or show its /proc with namespaces={'pid': 'host'}"
    ),
    ("mount", E.EPERM, "/sys"): (
        "a fresh /sys needs a network namespace of its own, or a fully visible /sys outside"
    ),
}

# The same without a rootfs: nothing is created in the host's directories, and no overlay exists.
_ELSEWHERE = "choose a place outside of them, where it is created for you, or give a rootfs"
_HOST_ROOT_HINTS: dict[tuple[str, int], str] = {
    ("mount", E.ENOENT): (
        "the target does not exist in the host's system directories, which are read-only (or the "
        f"source of the bind does not exist): {_ELSEWHERE}"
    ),
    ("mount", E.EROFS): (
        "the target cannot be created in the host's system directories, which are read-only: "
        f"{_ELSEWHERE}"
    ),
    ("file", E.ENOENT): (
        "the file does not exist in the host's system directories, which are read-only; only one "
        f"that exists can be replaced there: {_ELSEWHERE}"
    ),
}


def hint_for(
    stage: str, errno: int, path: str | None = None, *, host_root: bool = False
) -> str | None:
    """How to mend a failure, in a line; None when the error says it all."""
    if errno == E.ENOENT and stage in ("id_map", "setns") and not _has_proc():
        return _NO_PROC
    if errno == E.EPERM and stage in ("clone", "id_map", "propagation", "rootfs"):
        known = _why_refused(stage)
        if known is not None:
            return known
    if host_root and (stage, errno) in _HOST_ROOT_HINTS:
        return _HOST_ROOT_HINTS[stage, errno]
    if path is not None and (stage, errno, path) in _PATH_HINTS:
        return _PATH_HINTS[stage, errno, path]
    return _HINTS.get(stage, {}).get(errno)


def _has_proc() -> bool:
    return os.path.exists("/proc/self/uid_map")


def _why_refused(stage: str) -> str | None:
    """Why this process may create no namespaces, or mount nothing in its own; None: not known."""
    from fastns import _surroundings  # only an error needs it

    if not _has_proc():
        return _NO_PROC
    around = _surroundings.Surroundings.current()
    if stage == "id_map":
        return _surroundings.TO_MAP_ROOT if around.cannot_map_root else None
    forbidden = _surroundings.forbidding_sysctls(around.privileged)
    if forbidden is not None:
        return ": ".join(forbidden)
    return _surroundings.OUT_OF_A_FILTER if around.confined else _REFUSED


def known_hints(*, host_root: bool) -> "list[tuple[str, int, str | None, str]]":
    """(stage, errno, path or None for any, hint) of every failure that hint_for() knows without
    looking at the machine. A row whose path fits comes before one for any path."""
    found: list[tuple[str, int, str | None, str]] = [
        (stage, err, path, text) for (stage, err, path), text in _PATH_HINTS.items()
    ]
    for stage, texts in _HINTS.items():
        for err, text in texts.items():
            here = _HOST_ROOT_HINTS.get((stage, err)) if host_root else None
            found.append((stage, err, None, here or text))
    return found


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
_SERVER_ERRNOS = (E.ECANCELED, E.EMFILE, E.EBADF)


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
    refused = errno == E.EACCES and stage in ("exec", "chdir", "landlock")
    if refused and plan.binds and path is not None:
        from fastns._policy import owners

        hint = owners.hint(plan, path, hint)
    return hint
