"""Spec describes a sandbox in the words of the OCI runtime specification. It is a frozen dataclass,
checked when it is made.

It does no I/O and has no kernel flags: the compiler decides what it means for this machine and this
caller.
"""

from __future__ import annotations

import os
from _collections_abc import Mapping, Sequence

from fastns import _spec_values
from fastns._args import check_one_of
from fastns._light import record
from fastns._spec_values import (
    KINDS,
    NOTHING,
    RLIMITS,
    Default,
    FrozenMap,
    IDMapping,
    Mount,
    Rlimit,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Literal, TypeAlias

    from fastns.limits import Limits

    RootMode: TypeAlias = Literal["pivot_root", "chroot"]
    OnOutputLimit: TypeAlias = Literal["truncate", "kill"]

__all__ = ["KINDS", "RLIMITS", "FrozenMap", "IDMapping", "Mount", "Rlimit", "Spec"]
__all__ += ["CGROUP_LIMITS", "DEFAULT_ENV", "DEFAULT_RLIMITS", "MASKED_PATHS", "READONLY_PATHS"]

CGROUP_LIMITS = (
    *("memory", "memory_swap", "pids_limit", "cpus"),
    *("cpu_weight", "cpuset", "io", "cpu_time"),
)
HOST_BY_DEFAULT = ("user", "time")  # for "user", the compiler picks a range of ids or a new one

MASKED_PATHS = (
    *("/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys"),
    *("/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list"),
    *("/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware"),
)
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
DEFAULT_ENV = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "TERM": "xterm",
    "LANG": "C.UTF-8",
}
# All but RLIMIT_CORE limit what the kernel counts per user (for NOFILE: fds in flight, unix(7)).
# The program lowers those that exceed half of the caller's soft limit to that half.
DEFAULT_RLIMITS = (
    # Must come first, because it is set before all other ops. With 0 the kernel still starts a core
    # handler (core(5)); with 1 it does not.
    Rlimit("RLIMIT_CORE", 1, 1),
    Rlimit("RLIMIT_NOFILE", 1024, 4096),
    Rlimit("RLIMIT_SIGPENDING", 4096, 4096),
    Rlimit("RLIMIT_MSGQUEUE", 409600, 409600),
    Rlimit("RLIMIT_MEMLOCK", 4 << 20, 4 << 20),
)
DEFAULT_NETWORK = Default("none")


@record(frozen=True, kw_only=True)
class Spec:
    """Describes a sandbox. Checked at construction: SpecError names the field and what it accepts.

    Args:
        rootfs: directory that becomes "/". None: the host's system directories (/usr /bin /sbin
            /lib* /etc /opt), read-only, with a private /tmp, /dev, /proc and /run. Homes, /srv,
            /var and /mnt are not in view; mounts add them, and create missing mount points. A
            relative path is resolved at compile().
        root_mode: "pivot_root" or "chroot".
        read_only: the root cannot be written.
        overlay: the root can be written, and the changes are thrown away.
        hostname: at most 64 bytes; needs a new uts namespace.
        domainname: the NIS domain, with the same rules.
        namespaces: pid, mount, uts, ipc, network, user, cgroup, time -> "new", "host" or the path
            of one to join. Default: "new", but "host" for time. user: by default, the sandboxes of
            root share a namespace with a range of 65536 ids. "new" gives each its own, with the
            caller's id or uid_mappings; an unprivileged caller always gets that.
        mounts: Mount objects, mounted in order, on top of the default mounts.
        default_mounts: /proc, /sys (ro), /tmp, /run, a minimal /dev with /dev/pts and /dev/shm. A
            mount with the same destination replaces one. Without a new mount namespace: none.
            If a uid inside may be the host's uid 0 (as with user: host), /proc is read-only too,
            and so is each proc or sysfs in `mounts` without "rw", unless `capabilities` has
            CAP_SYS_ADMIN.
        tmpfs_size: the size of each tmpfs (default mounts, an overlay's layer, mounts without
            size=) in bytes, or as text such as "64m". It also allows one file per 4 KiB. None:
            512m, but 64m for /run, /dev and /dev/shm.
        masked_paths: paths inside that appear empty. None: with default_mounts, those that other
            runtimes mask in /proc and /sys (MASKED_PATHS). A path that does not exist is skipped.
        readonly_paths: paths inside that cannot be written. None: as above (READONLY_PATHS).
        files: destination -> its content, text or bytes. The root itself is not changed.
        env: added to PATH, HOME, TERM and LANG, or replaces them; the caller's environment is not
            inherited. HOME: /tmp without a rootfs, where no home is visible. With a rootfs, or if
            /root is mounted: /root for uid 0 and / for others.
        cwd: the command's working directory, an absolute path inside.
        umask: the command's, from 0 to 0o777.
        user: "uid[:gid]" inside.
        additional_gids: supplementary groups, inside.
        uid_mappings: IDMapping objects for a new user namespace; needs gid_mappings.
        gid_mappings: the same for groups.
        network: "none" (a namespace of its own with lo up), "host", or a namespace's path.
        rlimits: Rlimit objects. Each replaces the default of its type (DEFAULT_RLIMITS):
            RLIMIT_CORE 1:1, RLIMIT_NOFILE 1024:4096, RLIMIT_SIGPENDING 4096, RLIMIT_MSGQUEUE
            409600, RLIMIT_MEMLOCK 4 MiB. A default other than RLIMIT_CORE is lowered to half of the
            caller's soft limit if that is less (but RLIMIT_NOFILE not below 256, if the caller has
            that many). All other limits are the caller's.
        init: a reaper is pid 1 and the command its child. Without it the command is pid 1, and the
            kernel drops signals for which it has no handler: raise(SIGABRT), alarm() and SIGPIPE do
            not end it, and abort() ends it with SIGSEGV (x86-64) or SIGTRAP (aarch64).
        die_with_parent: killed when the thread that started it ends, and so also when the caller
            ends (PR_SET_PDEATHSIG, prctl(2)). Without init=True, the command can turn this off with
            that call, or by executing a setuid program. If short-lived threads start sandboxes, use
            a Template: its sandboxes end with the caller, never with one of its threads.
        memory: bytes, or text such as "64m", for all its processes and its tmpfs together.
        memory_swap: memory and swap together. None: no swap; -1: all the swap there is.
        pids_limit: how many processes and threads at once.
        cpus: how many CPUs it may use, such as 1.5 (seconds of CPU time per second).
        cpu_weight: 1 to 10000. When CPUs are busy, all sandboxes of this plan or template together
            get CPU time in proportion to it; plans with cpus but no weight have 100.
        cpuset: which CPUs, such as "0-1,3".
        io: block device (path, or "major:minor") -> {"rbps", "wbps", "riops", "wiops": limit}, in
            bytes and operations per second.
            wbps and wiops need cgroup version 2, and a file system that attributes buffered writes
            to cgroups: ext2, ext4, xfs, btrfs, f2fs.
        cpu_time: seconds of CPU time, user and system, of all its processes together. After that
            it is killed within about 10 ms of CPU time on each CPU, with cause "cpu_time".
        cgroup_parent: the parent of its cgroups, in each hierarchy. None: found automatically.
        max_output: how much to keep of stdout and of stderr where they are captured: bytes, or
            text such as "1m". None: all.
        on_output_limit: "truncate": the rest is read and dropped, and `truncated` is set. "kill":
            the sandbox is killed at once, with cause "output_limit".
        require_limits: a limit that cannot be enforced here is a SpecError. False: it is left out.
        capabilities: the command's capabilities, by name ("CAP_NET_RAW", "net_raw", "ALL"); by
            default all sets are empty. They apply only to the sandbox's user namespace and what
            belongs to it.
        no_new_privileges: executing a file adds no privileges (setuid, file capabilities).
        seccomp: which system calls it may make: "default", "unconfined", a profile in the format of
            OCI and Docker as a mapping (seccomp.default_profile() is one), or a JSON file's path,
            read at compile(). A profile must allow rt_sigprocmask and execve, which execute the
            command; without no_new_privileges also prctl and capset.
        allow_setid: allows the sandbox to create set-user-ID and set-group-ID files even if it can
            write files of the host (a writable rootfs or bind). Without it the default filter
            refuses that with EPERM.
        landlock: {"read": [paths], "write": [paths]}, inside. Landlock refuses to open, create or
            remove files elsewhere; "write" includes reading and execution. Files that are open
            already stay usable. Abstract sockets and processes outside are out of reach too.
    """

    rootfs: str | os.PathLike[str] | None = None
    root_mode: RootMode = "pivot_root"
    read_only: bool = False
    overlay: bool = False
    hostname: str | None = None
    domainname: str | None = None
    namespaces: Mapping[str, str] = NOTHING
    mounts: Sequence[Mount] = ()
    default_mounts: bool = True
    tmpfs_size: int | str | None = None
    masked_paths: Sequence[str] | None = None
    readonly_paths: Sequence[str] | None = None
    files: Mapping[str, str | bytes] = NOTHING
    env: Mapping[str, str] = NOTHING
    cwd: str = "/"
    umask: int = 0o022
    user: str = "0:0"
    additional_gids: Sequence[int] = ()
    uid_mappings: Sequence[IDMapping] = ()
    gid_mappings: Sequence[IDMapping] = ()
    network: str = DEFAULT_NETWORK
    rlimits: Sequence[Rlimit] = ()
    init: bool = False
    die_with_parent: bool = False
    memory: int | str | None = None
    memory_swap: int | str | None = None
    pids_limit: int | None = None
    cpus: float | None = None
    cpu_weight: int | None = None
    cpuset: str | None = None
    io: Mapping[str, Mapping[str, int]] = NOTHING
    cpu_time: float | None = None
    cgroup_parent: str | None = None
    max_output: int | str | None = None
    on_output_limit: OnOutputLimit = "truncate"
    require_limits: bool = True
    capabilities: Sequence[str] = ()
    no_new_privileges: bool = True
    seccomp: str | os.PathLike[str] | Mapping[str, Any] = "default"
    allow_setid: bool = False
    landlock: Mapping[str, Sequence[str]] | None = None

    _no_timeout = "It is an argument of run(), run_batch() and Job()"

    def __post_init__(self) -> None:
        given = [name for name, value in vars(self).items() if value is not getattr(Spec, name)]
        # Defaults need no check, nor does what `fastns run` adds to them.
        if given and not (given == ["die_with_parent"] and self.die_with_parent is True):
            from fastns._spec_checks import check

            check(self)

    def namespace(self, kind: str) -> str:
        """ "new", "host" or a path, before the compiler adapts it to the caller."""
        check_one_of("namespaces", kind, KINDS)
        if kind in self.namespaces:
            return self.namespaces[kind]
        if kind == "network" and not isinstance(self.network, Default):
            return "new" if self.network == "none" else self.network
        if kind == "user" and self.uid_mappings:
            return "new"
        return "host" if kind in HOST_BY_DEFAULT else "new"

    def asks_for(self, kind: str) -> bool:
        """Whether the spec names this namespace explicitly."""
        return kind in self.namespaces or (kind == "user" and bool(self.uid_mappings))

    def environment(self) -> dict[str, str]:
        """The command's environment: the clean defaults, then `env`."""
        return {**DEFAULT_ENV, "HOME": self._home(), **self.env}

    def _home(self) -> str:
        """/tmp without a rootfs, where no home is visible; otherwise it depends on the uid."""
        bare = self.rootfs is None and self.namespace("mount") == "new" and self.default_mounts
        if bare and all(mount.destination != DEFAULT_ENV["HOME"] for mount in self.mounts):
            return "/tmp"
        return DEFAULT_ENV["HOME"] if self.uid == 0 else "/"

    def writes_to_host(self) -> bool:
        """Whether the sandbox can write files that outlive it."""
        if self.namespace("mount") != "new":
            return True
        if self.rootfs is not None and not (self.read_only or self.overlay):
            return True
        return any(map(_spec_values.writes_to_host, self.mounts))

    def limits(self) -> Limits | None:
        """The limits that cgroups have to enforce; None: there are none."""
        values = {name: getattr(self, name) for name in CGROUP_LIMITS}
        given = {name: value for name, value in values.items() if value is not None}
        if not self.io:
            del given["io"]
        if not given:
            return None
        from fastns.limits import Limits  # a spec without limits does not need it

        return Limits(**given)

    @property
    def uid(self) -> int:
        return int(self.user.partition(":")[0])

    @property
    def gid(self) -> int:
        return int(self.user.partition(":")[2])
