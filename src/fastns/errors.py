"""The exceptions: which step failed, on what, and how to fix it.

TimeoutExpired and CalledProcessError are in results.py, DecodeError in _command.py.
"""

import errno as E
import os

from fastns._light import cached

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fastns._core import Plan

ENOTSUPP = 524
# Errnos that are internal to the kernel, but sometimes reach user space.
UNNAMED = {ENOTSUPP: ("ENOTSUPP", "The kernel could not compile the filter")}


class FastnsError(Exception):
    """The base of every exception of fastns."""


class SpecError(FastnsError, ValueError):
    """An argument or a field of Spec is wrong. Raised before any process exists.

    Attributes: field (its name), reason (what is wrong, and what would be accepted).
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field = field
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.field}: {self.reason}"


class ClosedError(FastnsError, ValueError):
    """The object has been closed. A ValueError, as for a closed file."""


class RootfsError(FastnsError):
    """A root could not be built; the destination is unchanged.

    Attributes: missing (each command, interpreter, loader or library that was not found), hint (how
    to fix it, or None). If a system call failed, its OSError is the `__cause__`.
    """

    def __init__(
        self, message: str, *, missing: tuple[str, ...] = (), hint: str | None = None
    ) -> None:
        super().__init__(message)
        self.missing = missing
        self.hint = hint


class SpawnError(FastnsError, OSError):
    """A step of starting a sandbox failed; nothing of the sandbox is left.

    Attributes: stage ("clone", "mount", "exec", ...), errno, strerror, op_index (the index in
    Plan.ops; -1: no op failed), path (None: the failure is not about a path), hint (how to fix it,
    or None), found (exec: the file exists, but its interpreter or loader does not).
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
        return (SpawnError, (self.stage, self.errno), {**vars(self), "filename": self.path})


HOST = "host"
_NO_PROC = (
    "ids are mapped and namespaces joined through /proc, which is not mounted here: mount -t proc "
    "proc /proc"
)
_REFUSED = (
    "the kernel refuses namespaces to this process: a security module (AppArmor, SELinux) confines "
    "it, or it is in a chroot"
)
# For errnos whose usual text misleads: what they mean at a stage, and what helps. Each entry has
# stages, errnos, a place if the hint is for only one, and the hint. The place is a path, or "host"
# for a sandbox without a rootfs, which cannot create files in the host's directories, and cannot
# have an overlay.
HINTS = """\
clone,cgroup EACCES: this process may not move a process from its own cgroup into that one
clone,unshare,network ENOSPC: not about disk space: a limit on namespaces is reached
    (/proc/sys/user/max_*_namespaces), or they are nested too deep
clone EUSERS: user namespaces are nested too deep, or their limit is reached
clone,network EAGAIN: a limit on processes is reached: RLIMIT_NPROC, or pids.max of the cgroup
clone,cgroup,stdio,helper EMFILE: this process has as many fds open as its RLIMIT_NOFILE allows:
    raise it, or close some
clone ENOMEM: memory is short, or the first process of the joined pid namespace has ended
clone ENOSYS: a time namespace needs clone3, which this kernel, or a filter around this process,
    refuses
clone EINVAL: this kernel lacks one of the namespaces
id_map EPERM: only the caller's own id may be mapped, or ranges that /etc/subuid and /etc/subgid
    list for it (by newuidmap and newgidmap)
id_map ENOENT: a range of ids needs newuidmap and newgidmap: install the uidmap package
id_map EINVAL: the kernel takes at most 340 ranges, which must not overlap
id_map EACCES: /proc shows another pid namespace than this process's own
setns ENOENT: no such namespace file: has its process ended?
setns EPERM: joining a namespace needs CAP_SYS_ADMIN in its user namespace: join that as well, or be
    root
setns EINVAL: the file is a namespace of another kind, or the caller's own
rootfs ENOENT: no such directory: build one with `fastns rootfs build DIR sh ls`
rootfs ENOTDIR: rootfs has to be a directory
rootfs EACCES: this user cannot enter a directory on the way to it
overlay EINVAL: overlayfs refuses this root: is it an overlay itself, or is the kernel older than
    5.11?
overlay EPERM: overlayfs in a user namespace needs Linux 5.11; before, only root can use it
overlay ENODEV: this kernel has no overlayfs: modprobe overlay, as root
mount ENOENT: the target, or the source of the bind, does not exist: create it, give the mount
    X-mount.mkdir, or use overlay=True
mount ENOTDIR: a file and a directory cannot be mounted on one another: make the target of the same
    kind
mount ELOOP: the target is a symbolic link, which is refused: use a real directory
mount EPERM: the kernel does not allow this mount in a user namespace (devtmpfs, say, or clearing
    nosuid), or in an outer container
mount EINVAL: an option the file system does not know, or, in a user namespace, a bind of a
    directory with mounts below it: use rbind
mount EOVERFLOW: the target is missing in an idmapped tree, where this process cannot create it:
    create it beforehand; if it lies in a bind, give that bind noidmap
mount EROFS: the target cannot be created in a read-only root: create it there beforehand, or use
    overlay=True
mount EACCES: this user cannot reach the source of the bind, or cannot create the target
mount ENODEV: this kernel does not know the file system type
mount ENOENT /proc: this is no root file system, which has at least /proc, /sys, /dev, /tmp and
    /run: build one with `fastns rootfs build DIR sh ls`, or make these directories
mount EPERM /proc: this process is in a container or sandbox that masks parts of /proc, where the
    kernel refuses a fresh one: start the container (docker, fastns run) with --security-opt
    systempaths=unconfined, or show its /proc with namespaces={'pid': 'host'}
mount EPERM /sys: a fresh /sys needs a network namespace of its own, or a fully visible /sys outside
mount ENOENT host: the target does not exist in the host's system directories, which are read-only
    (or the source of the bind does not exist): choose a place outside of them, where it is created
    for you, or give a rootfs
mount EROFS host: the target cannot be created in the host's system directories, which are
    read-only: choose a place outside of them, where it is created for you, or give a rootfs
file ENOENT: only a file that exists in the root can be replaced: create it there, or use
    overlay=True
file ENOTDIR,EISDIR: the target is a directory
rootfs EINVAL,ENODEV host: reuse=True puts a layer over each of the host's system directories, which
    the kernel or their file system does not allow here: leave reuse out, or give a rootfs
file ENOENT host: the file does not exist in the host's system directories, which are read-only;
    only one that exists can be replaced there: choose a place outside of them, where it is created
    for you, or give a rootfs
device EPERM: device nodes cannot be created here (a device cgroup?): default_mounts=False leaves
    them out
pivot_root EINVAL: the caller's root is an initramfs or not a mount point: use root_mode='chroot'
chroot EPERM: chroot needs CAP_SYS_CHROOT: be root, or use a new user namespace
rlimit EPERM: raising a hard limit needs CAP_SYS_RESOURCE; RLIMIT_NOFILE goes no higher than
    /proc/sys/fs/nr_open
landlock ENOENT: the path does not exist inside the sandbox: create it, or leave it out of landlock
landlock EACCES: the sandbox's user cannot reach the path
landlock ELOOP: a chain of symbolic links that has no end, or a link of /proc/<pid>: give the path
    it stands for
landlock EMFILE: the RLIMIT_NOFILE of the spec is too low for the fds of the rules: 8 is enough
landlock E2BIG: the caller is already under 16 Landlock rulesets, the most the kernel allows
landlock EPERM: without no_new_privileges Landlock needs CAP_SYS_ADMIN: leave no_new_privileges on
seccomp EACCES: without no_new_privileges a filter needs CAP_SYS_ADMIN: leave no_new_privileges on,
    or give seccomp='unconfined'
seccomp ENOTSUPP: the host's memory for compiled filters is used up, by programs with filters of
    their own. Its size in bytes is sysctl net.core.bpf_jit_limit, which root can raise; grep bpf
    /proc/vmallocinfo, as root, shows what is used
capabilities EPERM: only a process that has a capability can give it: be root, or use a new user
    namespace
keyring EDQUOT: the user's quota of keys is used up (each sandbox takes one): raise sysctl
    kernel.keys.maxkeys
cgroup ENOSPC: the limit on cgroups is reached: see cgroup.max.descendants of the parent cgroups
setgroups EPERM: supplementary groups need CAP_SETGID or a mapped range
setgid EINVAL: the group is not in gid_mappings
setgid EPERM: another group needs root or a new user namespace
setuid EINVAL: the user is not in uid_mappings
setuid EPERM: another user needs root or a new user namespace
stdio EBADF: stdin, stdout or stderr is a closed fd
fds EBADF: one of pass_fds is closed
chdir ENOENT: the working directory does not exist inside the root
chdir ENOTDIR: the working directory is a file inside the root
chdir EACCES: the sandbox's user cannot enter the working directory
exec ENOENT: no such command inside the root (PATH is the sandbox's own)
exec EACCES: the file is not executable, or lies on a noexec mount; or a directory on the way to it,
    or to what a link leads to, is closed to the sandbox's user (as /root is); or it, or its ELF
    loader, is not among the paths of landlock
exec ENOEXEC: not a program for this machine: another architecture, or a script without #!
exec E2BIG: arguments and environment together are too long
exec ENOMEM: RLIMIT_AS, RLIMIT_DATA or the memory of the cgroup is too small for the program
exec EAGAIN: RLIMIT_NPROC of the sandbox's user is reached
init EAGAIN: a limit on processes is reached: RLIMIT_NPROC of the sandbox's user, or pids.max of the
    cgroup
helper EACCES: memory files may not be executed here: sysctl vm.memfd_noexec=1
helper EFBIG: RLIMIT_FSIZE of this process limits the memory files of a start too: raise it
helper ETOOMANYREFS: this user's processes and sandboxes have more fds in flight over unix sockets
    (SCM_RIGHTS) than RLIMIT_NOFILE of this process: raise it, or end the processes that do not
    receive them
oom_score_adj EACCES: /proc/self/oom_score_adj belongs to root, as this process is not dumpable
    (prctl(2))
personality EPERM: a filter around this process refuses personality(0): start this process with the
    default personality (setarch(8))
wait ECHILD: another part of this process reaped the sandbox, or SIGCHLD is ignored: its status is
    lost
"""


@cached(1)
def _hints() -> "dict[tuple[str, int, str | None], str]":
    """(stage, errno, place or None) -> hint."""
    numbers = {**vars(E), "ENOTSUPP": ENOTSUPP}
    found: dict[tuple[str, int, str | None], str] = {}
    for line in HINTS.replace("\n    ", " ").splitlines():
        key, _, hint = line.partition(": ")
        stages, errnos, *place = key.split(" ")
        for stage in stages.split(","):
            for name in errnos.split(","):
                found[stage, numbers[name], place[0] if place else None] = hint
    return found


def hint_for(
    stage: str, errno: int, path: str | None = None, *, host_root: bool = False
) -> str | None:
    """How to fix a failure, in one line; None if there is nothing to add to the error."""
    if errno == E.ENOENT and stage in ("id_map", "setns") and not _has_proc():
        return _NO_PROC
    if errno == E.EPERM and stage in ("clone", "id_map", "propagation", "rootfs"):
        known = _why_refused(stage)
        if known is not None:
            return known
    hints = _hints()
    found = hints.get((stage, errno, HOST)) if host_root else None
    return found or hints.get((stage, errno, path)) or hints.get((stage, errno, None))


def _has_proc() -> bool:
    return os.path.exists("/proc/self/uid_map")


def _why_refused(stage: str) -> str | None:
    """Why this process cannot create namespaces, or mount in them; None: unknown."""
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
    """(stage, errno, path or None for any, hint) of each failure that hint_for() knows without
    looking at the machine. Rows for one path come before those for any path."""
    hints = _hints()
    found: list[tuple[str, int, str | None, str]] = []
    for (stage, errno, place), hint in hints.items():
        if place is None:
            here = hints.get((stage, errno, HOST)) if host_root else None
            found.append((stage, errno, None, here or hint))
        elif place != HOST:
            found.insert(0, (stage, errno, place, hint))
    return found


# ---- a failed start, from the numbers that C reports ----

# Hints for failures about which C reports a detail (one of _core.DETAILS) besides the errno.
_DETAIL_HINTS = {
    "found": "the file is there, but the interpreter of its #! line, or the ELF loader it names, "
    "is missing inside the root",
    "killed": "the process was killed while it was being set up (out of memory, or a signal)",
    "id_map": "this file system cannot be idmapped, so owners cannot be kept: for a bind, leave "
    "out the option idmap; for a root, use ext4, xfs or btrfs, or give namespaces={'user': 'host'}",
    "memory": "arguments and environment leave too little of the memory limit for a start: raise "
    "memory, or pass them in a file or by stdin",
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
    """The most specific hint for a failed start; None: there is nothing to add to the error."""
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
