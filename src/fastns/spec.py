"""What a sandbox is, in the words of the OCI runtime specification: frozen dataclasses, checked
when they are made.

No I/O, no kernel flags: what a spec means for this machine and this caller is _compile's.
"""

from __future__ import annotations

import itertools
import os
import posixpath
from _collections_abc import Iterator, Mapping, Sequence

from fastns import mount_options
from fastns._args import MAX_PATH, check_env, check_whole, encode, shown
from fastns._record import record
from fastns.errors import SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Literal, TypeAlias

    from fastns.limits import Limits

    RootMode: TypeAlias = Literal["pivot_root", "chroot"]
    OnOutputLimit: TypeAlias = Literal["truncate", "kill"]
    MountType: TypeAlias = Literal[
        "bind", "tmpfs", "proc", "sysfs", "devtmpfs", "devpts", "mqueue", "overlay", "cgroup2"
    ]
    _Items = Mapping[str, Any]
else:
    _Items = Mapping

CGROUP_LIMITS = ("memory", "memory_swap", "pids_limit", "cpus", "cpu_weight", "cpuset", "cpu_time")
KINDS = ("pid", "mount", "uts", "ipc", "network", "user", "cgroup", "time")
HOST_BY_DEFAULT = ("user", "time")
MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
DEFAULT_ENV = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "TERM": "xterm",
    "LANG": "C.UTF-8",
}
MAX_ID = 2**32 - 2  # 2**32 - 1 is "no id" (setresuid(2))
MAX_GROUPS = 64
MAX_NAME = 64  # bytes, __NEW_UTS_LEN (uname(2))
MAX_FILE = 16 << 20
MAX_MAPPINGS = 340  # user_namespaces(7)
RLIMITS = {  # numbers of setrlimit(2) on x86-64 and aarch64
    "RLIMIT_CPU": 0,
    "RLIMIT_FSIZE": 1,
    "RLIMIT_DATA": 2,
    "RLIMIT_STACK": 3,
    "RLIMIT_CORE": 4,
    "RLIMIT_RSS": 5,
    "RLIMIT_NPROC": 6,
    "RLIMIT_NOFILE": 7,
    "RLIMIT_MEMLOCK": 8,
    "RLIMIT_AS": 9,
    "RLIMIT_LOCKS": 10,
    "RLIMIT_SIGPENDING": 11,
    "RLIMIT_MSGQUEUE": 12,
    "RLIMIT_NICE": 13,
    "RLIMIT_RTPRIO": 14,
    "RLIMIT_RTTIME": 15,
}


class FrozenMap(_Items):
    """A mapping that cannot change: hashable, picklable, equal to any with the same items."""

    __slots__ = ("_hash", "_items")

    def __init__(self, items: Mapping[str, Any] | None = None) -> None:
        self._items = dict(items or {})
        self._hash: int | None = None

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        if self._hash is None:  # it may hold a great deal, and is asked for at each run()
            self._hash = hash(frozenset(self._items.items()))
        return self._hash

    def __repr__(self) -> str:
        return repr(self._items)

    def __reduce__(self) -> tuple[type[FrozenMap], tuple[dict[str, Any]]]:
        return (FrozenMap, (self._items,))


NOTHING = FrozenMap()


class _Default(str):
    """A default that can be told from the same value given by the caller."""


DEFAULT_NETWORK = _Default("none")


@record(frozen=True)
class Mount:
    """One thing mounted inside the root.

    Args:
        destination: absolute path inside.
        type: bind, tmpfs, proc, sysfs, devtmpfs, devpts, mqueue, overlay or cgroup2.
        source: for a bind, an absolute path outside; for other types a name that mount(8) shows.
        options: as in mount(8) and OCI: ro rw nosuid nodev noexec size= mode= rbind slave ...;
            X-mount.mkdir makes a missing destination. In root's sandboxes, which have ids of their
            own, a bind keeps its owners (an idmapped mount): root's files are uid 0's inside. A
            bind is plain, so that they are nobody's, with noidmap; if its file system, or one
            mounted below it, cannot be idmapped; or if X-mount.mkdir makes a target in it. With
            idmap that is an error. Device files in a bind can be opened only with dev.
    """

    destination: str
    type: MountType = "bind"
    source: str | os.PathLike[str] | None = None
    options: Sequence[str] = ()

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "destination", _inside("mounts.destination", self.destination))
        if self.type not in mount_options.TYPES:
            raise SpecError(
                "mounts.type",
                f"{shown(self.type)}: one of {', '.join(mount_options.TYPES)} expected",
            )
        if isinstance(self.options, str | bytes) or not isinstance(self.options, Sequence):
            raise SpecError(
                "mounts.options", f"{shown(self.options)}: a list such as ['ro', 'nosuid'] expected"
            )
        put(self, "options", tuple(self.options))
        mount_options.parse(self.type, self.options)
        if self.source is not None:
            put(self, "source", _path("mounts.source", self.source))
        if self.type == "bind" and not os.fspath(self.source or "").startswith("/"):
            raise SpecError(
                "mounts.source", f"{shown(self.source)}: a bind needs an absolute path outside"
            )


@record(frozen=True)
class IDMapping:
    """`size` ids from `container_id` on inside are those from `host_id` on outside."""

    container_id: int
    host_id: int
    size: int

    def __post_init__(self) -> None:
        for name in ("container_id", "host_id"):
            check_whole(f"id mapping.{name}", getattr(self, name), 0, MAX_ID)
        check_whole("id mapping.size", self.size, 1, MAX_ID + 1)
        for name in ("container_id", "host_id"):
            if getattr(self, name) + self.size > MAX_ID + 1:
                raise SpecError(f"id mapping.{name}", f"with size {self.size} passes {MAX_ID}")


def _rlimit_name(value: Any) -> str:
    """ "nofile", "NOFILE" or "RLIMIT_NOFILE": the last."""
    if isinstance(value, str):
        name = "RLIMIT_" + value.upper().removeprefix("RLIMIT_")
        if name in RLIMITS:
            return name
    names = ", ".join(name.removeprefix("RLIMIT_").lower() for name in RLIMITS)
    raise SpecError("rlimits.type", f"{shown(value)}: one of {names} expected")


@record(frozen=True)
class Rlimit:
    """A resource limit by its name, "nofile" or RLIMIT_NOFILE; -1 is unlimited.

    `type` is the OCI name, RLIMIT_NOFILE, however it was given.
    """

    type: str
    soft: int
    hard: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "type", _rlimit_name(self.type))
        for name in ("soft", "hard"):
            check_whole(f"rlimits.{name}", getattr(self, name), -1, 2**64 - 1)
        if self._value(self.soft) > self._value(self.hard):
            raise SpecError(
                "rlimits.soft",
                f"{self.soft} is over the hard limit {self.hard}: no more than that expected",
            )

    @staticmethod
    def _value(limit: int) -> int:
        return 2**64 - 1 if limit == -1 else limit

    @property
    def number(self) -> int:
        """The kernel's number of the resource."""
        return RLIMITS[self.type]


# What every sandbox has unless `rlimits` says otherwise. All but RLIMIT_CORE limit what the kernel
# counts by user; each of these is at most half of the caller's soft limit.
DEFAULT_RLIMITS = (
    # With exactly 1 the kernel starts no core handler (core(5)); with 0 it does.
    Rlimit("RLIMIT_CORE", 1, 1),
    Rlimit("RLIMIT_NOFILE", 1024, 4096),
    Rlimit("RLIMIT_SIGPENDING", 4096, 4096),
    Rlimit("RLIMIT_MSGQUEUE", 409600, 409600),
    Rlimit("RLIMIT_MEMLOCK", 4 << 20, 4 << 20),
)


@record(frozen=True, kw_only=True)
class Spec:
    """What a sandbox is. Checked when made: SpecError names the field and what would be accepted.

    Args:
        rootfs: directory that becomes "/". None: the host's system directories (/usr /bin /sbin
            /lib* /etc /opt), read-only, with a private /tmp, /dev, /proc and /run. Homes, /srv,
            /var and /mnt are not in view: name them with mounts, whose mount points are made. A
            relative path is taken from the working directory at compile().
        root_mode: "pivot_root" or "chroot".
        read_only: the root cannot be written.
        overlay: the root can be written, and what is written is thrown away.
        hostname: at most 64 bytes; needs a new uts namespace.
        domainname: the NIS domain, with the same rules.
        namespaces: pid, mount, uts, ipc, network, user, cgroup, time -> "new", "host" or the path
            of one to join. All are new by default but time, which is the host's. user: started by
            root, a sandbox has a range of 65536 ids by default, in a namespace made once; "new" is
            one of its own with the caller's id, or with uid_mappings. An unprivileged caller always
            gets a new one.
        mounts: Mount objects, in order, over the default ones.
        default_mounts: /proc, /sys (ro), /tmp, /run, a minimal /dev with /dev/pts and /dev/shm. A
            mount with the same destination replaces one. Without a new mount namespace: none.
            If uid 0 of the host may be a uid inside, as with user: host, /proc is read-only too,
            as is any proc or sysfs of `mounts` without "rw", unless CAP_SYS_ADMIN is given.
        tmpfs_size: bytes, or text such as "64m", that each tmpfs may hold (and one file for 4 KiB
            of that): the default mounts, an overlay's layer, and mounts that give no size=. None:
            512m; /run, /dev and /dev/shm 64m.
        masked_paths: paths inside that are seen as empty. None: with default_mounts, those that
            other runtimes mask in /proc and /sys (MASKED_PATHS). What is not there is left out.
        readonly_paths: paths inside that cannot be written. None: likewise (READONLY_PATHS).
        files: destination -> text or bytes put there without touching the root.
        env: laid over PATH, HOME, TERM and LANG; the caller's environment is not inherited. HOME is
            /tmp without a rootfs, where nothing else can be written (but /root if that is mounted);
            with one, /root for uid 0 and / for others.
        cwd: the command's working directory, an absolute path inside.
        umask: the command's, from 0 to 0o777.
        user: "uid[:gid]" inside.
        additional_gids: supplementary groups, inside.
        uid_mappings: IDMapping objects for a new user namespace; needs gid_mappings.
        gid_mappings: the same for groups.
        network: "none" (a namespace of its own with lo up), "host", or a namespace's path.
        rlimits: Rlimit objects, in place of the defaults (DEFAULT_RLIMITS): RLIMIT_CORE 1:1,
            RLIMIT_NOFILE 1024:4096, RLIMIT_SIGPENDING 4096, RLIMIT_MSGQUEUE 409600, RLIMIT_MEMLOCK
            4 MiB. All but RLIMIT_CORE are at most half of the caller's soft limit, but 256 fds if
            the caller has that many. Limits without a default are the caller's.
        init: a reaper is pid 1 and the command its child. Without it the command is pid 1, to which
            the kernel hands no signal that it has no handler for: abort() ends as -11, and
            raise(SIGABRT), alarm() and SIGPIPE do not end it.
        die_with_parent: killed when the thread that starts it ends, so with the caller however that
            ends (PR_SET_PDEATHSIG, prctl(2)). The command may turn this off by that call, or by
            executing a setuid program; with init=True it cannot. Where threads come and go, use a
            Template: its sandboxes always end with the caller, and with no thread of it.
        memory: bytes, or text such as "64m", that all its processes and its tmpfs may take
            together.
        memory_swap: memory and swap together. None: no swap; -1: as much as there is.
        pids_limit: processes and threads.
        cpus: how many CPUs' time, such as 1.5.
        cpu_weight: the share where CPUs are short, 1 to 10000, of all sandboxes of this plan or
            template together; other plans with cpus but no weight have 100.
        cpuset: which CPUs, such as "0-1,3".
        io: block device (path, or "major:minor") -> {"rbps", "wbps", "riops", "wiops": a second}.
            wbps and wiops need cgroup version 2, and a file system on which the kernel knows whose
            a buffered write is: ext2, ext4, xfs, btrfs, f2fs.
        cpu_time: seconds of CPU time, user and system, of all its processes together, after which
            it is killed, at most some 10 ms of each CPU later: cause "cpu_time".
        cgroup_parent: the cgroup to make its cgroups below, in each hierarchy. None: found.
        max_output: bytes, or text such as "1m", kept of each of stdout and stderr where they are
            captured. None: all.
        on_output_limit: "truncate", the rest is read and thrown away, and `truncated` set; or
            "kill", the sandbox is ended at once: cause "output_limit".
        require_limits: a limit that cannot be enforced here is a SpecError. False: it is left out.
        capabilities: what it may do beyond any user's rights, by name ("CAP_NET_RAW", "net_raw",
            "ALL"); none by default, in no set. They reach no further than the sandbox's user
            namespace and what belongs to it.
        no_new_privileges: no program it executes gets more (setuid programs, file capabilities).
        seccomp: which system calls it may make: "default", "unconfined", a profile in the format of
            OCI and Docker as a mapping (seccomp.default_profile() is one), or a JSON file's path,
            read at compile(). A profile has to allow rt_sigprocmask and execve, by which the
            command is executed; without no_new_privileges also execveat, fcntl and sched_yield.
        allow_setid: whether set-user-ID and set-group-ID files may be made even if files of the
            host can be written (a writable rootfs or bind). False: the default filter then refuses
            it, EPERM. If no such file can be written, it is allowed anyway.
        landlock: {"read": [paths], "write": [paths]}, inside: files elsewhere cannot be opened,
            made or removed, by the kernel's Landlock; "write" is to read and execute as well. What
            is open already stays so. Abstract sockets and processes outside are out of reach too.
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

    def __post_init__(self) -> None:
        self._check_types()
        self._check_namespaces()
        self._check_root()
        self._check_mounts()
        self._check_paths()
        self._check_process()
        self._check_ids()
        self._check_limits()
        if self.capabilities:
            from fastns.capabilities import names  # a list that most have no use for

            self._put("capabilities", names(self.capabilities))
        self._check_seccomp()
        if self.landlock is not None:
            self._put("landlock", _paths_of_landlock(self.landlock))

    # ---- what is effective ----

    def namespace(self, kind: str) -> str:
        """ "new", "host" or a path, as far as the spec itself decides it."""
        if kind not in KINDS:
            raise SpecError("namespaces", f"{shown(kind)}: one of {', '.join(KINDS)} expected")
        if kind in self.namespaces:
            return self.namespaces[kind]
        if kind == "network" and not isinstance(self.network, _Default):
            return "new" if self.network == "none" else self.network
        if kind == "user" and self.uid_mappings:
            return "new"
        return "host" if kind in HOST_BY_DEFAULT else "new"

    def asks_for(self, kind: str) -> bool:
        """Whether the spec says something of this namespace at all."""
        return kind in self.namespaces or (kind == "user" and bool(self.uid_mappings))

    def environment(self) -> dict[str, str]:
        """The command's environment: `env` over the clean defaults."""
        return {**DEFAULT_ENV, "HOME": self._home(), **self.env}

    def _home(self) -> str:
        """Without a rootfs /tmp, the one directory there that can be written; else of the uid."""
        shown = self.rootfs is None and self.namespace("mount") == "new" and self.default_mounts
        if shown and all(mount.destination != DEFAULT_ENV["HOME"] for mount in self.mounts):
            return "/tmp"
        return DEFAULT_ENV["HOME"] if self.uid == 0 else "/"

    def writes_to_host(self) -> bool:
        """Whether files of the host can be written inside: they stay when the sandbox ends."""
        if self.namespace("mount") != "new":
            return True
        if self.rootfs is not None and not (self.read_only or self.overlay):
            return True
        return any(_writes_to_host(mount) for mount in self.mounts)

    def limits(self) -> Limits | None:
        """Those that cgroups are to enforce; None: there are none."""
        values = {name: getattr(self, name) for name in CGROUP_LIMITS}
        if all(value is None for value in values.values()) and not self.io:
            return None
        from fastns.limits import check_limits  # not where a start is to be quick and has none

        return check_limits(**values, io=self.io)

    @property
    def uid(self) -> int:
        return int(self.user.partition(":")[0])

    @property
    def gid(self) -> int:
        return int(self.user.partition(":")[2])

    # ---- checks ----

    def _put(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _check_types(self) -> None:
        for name in (
            "read_only",
            "overlay",
            "default_mounts",
            "init",
            "die_with_parent",
            "require_limits",
            "no_new_privileges",
            "allow_setid",
        ):
            if not isinstance(getattr(self, name), bool):
                raise SpecError(name, f"{shown(getattr(self, name))}: True or False expected")
        items = {
            "mounts": Mount,
            "uid_mappings": IDMapping,
            "gid_mappings": IDMapping,
            "rlimits": Rlimit,
            "additional_gids": int,
            "capabilities": str,
        }
        for name, kind in items.items():
            value = getattr(self, name)
            if isinstance(value, str | bytes) or not isinstance(value, Sequence):
                raise SpecError(name, f"{shown(value)}: a list of {kind.__name__} expected")
            for item in value:
                if not isinstance(item, kind) or isinstance(item, bool):
                    raise SpecError(name, f"{shown(item)}: {kind.__name__} expected")
            self._put(name, tuple(value))
        for name in ("namespaces", "files", "env", "io"):
            value = getattr(self, name)
            if not isinstance(value, Mapping):
                raise SpecError(name, f"{shown(value)}: a mapping expected")
            self._put(name, FrozenMap(value))
        plain = {kind: _fspath(value) for kind, value in self.namespaces.items()}
        self._put("namespaces", FrozenMap(plain))
        self._put("network", _fspath(self.network))

    def _check_namespaces(self) -> None:
        for kind, value in self.namespaces.items():
            if kind not in KINDS:
                raise SpecError("namespaces", f"{shown(kind)}: one of {', '.join(KINDS)} expected")
            if value not in ("new", "host"):
                _namespace_path(f"namespaces.{kind}", value)
        if not isinstance(self.network, _Default):
            if self.network in ("bridge", "pasta"):
                raise SpecError("network", f"{self.network!r} is not available yet: none or host")
            if self.network not in ("none", "host"):
                _namespace_path("network", self.network)
            wanted = "new" if self.network == "none" else self.network
            if self.namespaces.get("network", wanted) != wanted:
                raise SpecError(
                    "network",
                    f"{self.network!r} contradicts namespaces['network'] = "
                    f"{self.namespaces['network']!r}: give one of them",
                )
        if self.namespace("pid") != "new" and self.init:
            raise SpecError("init", "the reaper is pid 1: it needs namespaces['pid'] = 'new'")

    def _check_root(self) -> None:
        if self.rootfs is not None:
            self._put("rootfs", _path("rootfs", self.rootfs))
        if self.root_mode not in ("pivot_root", "chroot"):
            raise SpecError("root_mode", f"{shown(self.root_mode)}: pivot_root or chroot expected")
        if self.overlay and self.rootfs is None:
            raise SpecError(
                "overlay",
                "needs a rootfs: the host's directories have no layer over them",
            )
        mount = self.namespace("mount")
        if mount == "new":
            return
        why = (
            "would change the host's mounts"
            if mount == "host"
            else "would change the mounts of the sandbox that is joined"
        )
        for name in (
            "mounts",
            "files",
            "overlay",
            "read_only",
            "tmpfs_size",
            "masked_paths",
            "readonly_paths",
        ):
            if getattr(self, name):
                raise SpecError(name, f"{why}: namespaces['mount'] = 'new' is needed")
        if mount != "host":
            for name, default in (("rootfs", None), ("root_mode", "pivot_root")):
                if getattr(self, name) != default:
                    raise SpecError(
                        name, "a joined mount namespace has a root of its own: leave it out"
                    )
        if self.rootfs is not None and self.root_mode == "pivot_root":
            raise SpecError(
                "root_mode", "pivot_root needs namespaces['mount'] = 'new'; use 'chroot'"
            )

    def _check_paths(self) -> None:
        for name in ("masked_paths", "readonly_paths"):
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, str | bytes) or not isinstance(value, Sequence):
                raise SpecError(name, f"{shown(value)}: a list of paths, or None, expected")
            self._put(name, tuple(_inside(name, path) for path in value))

    def _check_mounts(self) -> None:
        places: set[str] = set()
        below: dict[str, str] = {}  # a directory -> what is given somewhere below it
        for mount in self.mounts:
            place = mount.destination
            if place in places:
                raise SpecError("mounts", f"{place} is given twice")
            if place in below:
                raise SpecError("mounts", f"{place} would hide {below[place]}: put {place} first")
            places.add(place)
            below.update(dict.fromkeys(directories_above(place), place))
        files: dict[str, str | bytes] = {}
        for destination, content in self.files.items():
            place = _inside("files", destination)
            if isinstance(destination, str) and destination.endswith("/"):
                raise SpecError("files", f"{shown(destination)}: a file's path ends with its name")
            if place in places or place in files:
                raise SpecError("files", f"{place} is given twice, in mounts or files")
            if not isinstance(content, str | bytes):
                raise SpecError("files", f"{place}: {shown(content)}: str or bytes expected")
            try:
                size = len(content if isinstance(content, bytes) else content.encode())
            except UnicodeEncodeError:
                raise SpecError("files", f"{place}: text with surrogates; give bytes") from None
            if size > MAX_FILE:
                raise SpecError("files", f"{place}: {size} bytes, at most {MAX_FILE}: bind a file")
            parents = directories_above(place)
            other = below.get(place) or next((p for p in parents if p in files), None)
            if other is not None:
                raise SpecError("files", f"{place} and {other}: one is a file, so not a directory")
            files[place] = content
            below.update(dict.fromkeys(parents, place))
        self._put("files", FrozenMap(files))

    def _check_process(self) -> None:
        for name in ("hostname", "domainname"):
            value = getattr(self, name)
            if value is None:
                continue
            # isprintable() is false for control characters, lone surrogates and all space but " ".
            if (
                not isinstance(value, str)
                or not value.isprintable()
                or not 1 <= len(value.encode()) <= MAX_NAME
                or " " in value
                or "/" in value
            ):
                raise SpecError(
                    name,
                    f"{shown(value)}: 1 to {MAX_NAME} bytes of UTF-8 without spaces and '/' "
                    "expected",
                )
            if self.namespace("uts") != "new":
                raise SpecError(
                    name,
                    "would rename the host or the joined sandbox: needs namespaces['uts'] = 'new'",
                )
        check_env(self.env)
        for key, value in self.env.items():
            if not isinstance(key, str) or not isinstance(value, str):
                raise SpecError("env", f"{shown(key)}: str expected, not bytes")
        self._put("cwd", _path("cwd", self.cwd))
        if not self.cwd.startswith("/"):
            raise SpecError(
                "cwd", f"{shown(self.cwd)}: an absolute path inside the sandbox expected"
            )
        check_whole("umask", self.umask, 0, 0o777)
        types = [rlimit.type for rlimit in self.rlimits]
        twice = next((name for name in types if types.count(name) > 1), None)
        if twice is not None:
            raise SpecError("rlimits", f"{twice} is given twice")

    def _check_ids(self) -> None:
        self._put("user", _user(self.user))
        if len(self.additional_gids) > MAX_GROUPS:
            raise SpecError("additional_gids", f"{len(self.additional_gids)}: at most {MAX_GROUPS}")
        for gid in self.additional_gids:
            check_whole("additional_gids", gid, 0, MAX_ID)
        if bool(self.uid_mappings) != bool(self.gid_mappings):
            missing = "gid_mappings" if self.uid_mappings else "uid_mappings"
            raise SpecError(missing, "uid_mappings and gid_mappings are needed together")
        if not self.uid_mappings:
            return
        if self.namespace("user") != "new":
            raise SpecError(
                "uid_mappings",
                "mappings are made for a new user namespace: namespaces['user'] = 'new'",
            )
        _mappings("uid_mappings", self.uid_mappings, [self.uid], "user")
        _mappings("gid_mappings", self.gid_mappings, [self.gid], "user")
        _mappings("gid_mappings", self.gid_mappings, self.additional_gids, "additional_gids")

    def _check_seccomp(self) -> None:
        if not isinstance(self.seccomp, Mapping):
            self._put("seccomp", _path("seccomp", self.seccomp))
            return
        from fastns.seccomp import check  # most have the default

        check(self.seccomp)
        self._put("seccomp", _frozen(self.seccomp))

    def _check_limits(self) -> None:
        if self.io:
            plain = {
                device: FrozenMap(rates) if isinstance(rates, Mapping) else rates
                for device, rates in self.io.items()
            }
            self._put("io", FrozenMap(plain))
        self.limits()
        for name in ("max_output", "tmpfs_size"):
            if getattr(self, name) is not None:
                from fastns.limits import parse_size

                self._put(name, parse_size(name, getattr(self, name)))
        if self.on_output_limit not in ("truncate", "kill"):
            raise SpecError(
                "on_output_limit", f"{shown(self.on_output_limit)}: truncate or kill expected"
            )
        if self.cgroup_parent is not None:
            self._put("cgroup_parent", _path("cgroup_parent", self.cgroup_parent))
            if ".." in self.cgroup_parent.split("/"):
                raise SpecError("cgroup_parent", "a path without '..' expected")


def _path(name: str, value: Any) -> str:
    if isinstance(value, bytes) or not isinstance(value, str | os.PathLike):
        raise SpecError(name, f"{shown(value)}: a path as str or PathLike expected")
    text = os.fspath(value)
    if not isinstance(text, str) or not text:
        raise SpecError(name, f"{shown(value)}: a path that is not empty expected")
    encode(name, text, MAX_PATH)
    return text


def _inside(name: str, value: Any) -> str:
    """A path inside the root, made plain."""
    text = _path(name, value)
    if not text.startswith("/"):
        raise SpecError(name, f"{shown(text)}: an absolute path inside the root expected")
    if ".." in text.split("/"):
        raise SpecError(name, f"{shown(text)}: a path without '..' expected")
    plain = posixpath.normpath("/" + text.lstrip("/"))
    if plain == "/":
        raise SpecError(name, "'/' is the root itself: use rootfs, read_only and overlay")
    if any(len(os.fsencode(part)) > 255 for part in plain.split("/")):
        raise SpecError(name, f"{shown(text)}: each name in a path has at most 255 bytes")
    return plain


def _paths_of_landlock(value: Any) -> FrozenMap:
    """Its two lists, of plain paths."""
    form = "{'read': [paths], 'write': [paths]}, with at least one path, expected"
    if not isinstance(value, Mapping) or not set(value) <= {"read", "write"}:
        raise SpecError("landlock", f"{shown(value)}: {form}")
    found = {}
    for kind, paths in value.items():
        name = f"landlock.{kind}"
        if isinstance(paths, str | bytes) or not isinstance(paths, Sequence):
            raise SpecError(name, f"{shown(paths)}: a list of paths expected")
        found[kind] = tuple(path if path == "/" else _inside(name, path) for path in paths)
    if not any(found.values()):  # not even the command could be executed
        raise SpecError("landlock", f"{shown(value)}: {form}")
    return FrozenMap(found)


def _namespace_path(name: str, value: Any) -> None:
    if not isinstance(value, str) or not value.startswith("/"):
        raise SpecError(
            name, f"{shown(value)}: 'new', 'host' or a path such as /proc/42/ns/net expected"
        )
    encode(name, value, MAX_PATH)


def _user(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**64:
        value = str(value)
    if not isinstance(value, str):
        raise SpecError("user", f"{shown(value)}: 'uid' or 'uid:gid' expected")
    uid, colon, gid = value.partition(":")
    for part in (uid, gid) if colon else (uid,):
        if not (part.isascii() and part.isdigit() and len(part) <= 10 and int(part) <= MAX_ID):
            raise SpecError(
                "user",
                f"{shown(value)}: 'uid' or 'uid:gid', numbers from 0 to {MAX_ID}, expected; "
                "names are not looked up",
            )
    return f"{int(uid)}:{int(gid) if colon else 0}"


def _writes_to_host(mount: Mount) -> bool:
    options = mount_options.parse(mount.type, mount.options)
    listens = options.propagation == mount_options.MS_SLAVE  # what is mounted later is as it is
    if options.attr_set & mount_options.ATTR_RDONLY and not listens:
        return False
    layer = mount.type == "overlay" and "upperdir=" in options.data
    return layer or mount.type in ("bind", "devtmpfs")


def directories_above(path: str) -> list[str]:
    """The directories above a plain absolute path, without "/"."""
    return list(itertools.accumulate(path.split("/")[:-1], lambda a, b: f"{a}/{b}"))[1:]


def _frozen(value: Any) -> Any:
    """Mappings and sequences, however deep, as what cannot change."""
    if isinstance(value, Mapping):
        return FrozenMap({key: _frozen(item) for key, item in value.items()})
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return tuple(_frozen(item) for item in value)
    return value


def _fspath(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _mappings(name: str, mappings: Sequence[IDMapping], ids: Sequence[int], what: str) -> None:
    if len(mappings) > MAX_MAPPINGS:
        raise SpecError(name, f"{len(mappings)} ranges: the kernel takes at most {MAX_MAPPINGS}")
    for side in ("container_id", "host_id"):
        ranges = sorted((getattr(m, side), m.size) for m in mappings)
        for (start, size), (following, _size) in itertools.pairwise(ranges):
            if start + size > following:
                raise SpecError(name, f"ranges overlap at {side} {following}")
    for number in ids:
        if not any(m.container_id <= number < m.container_id + m.size for m in mappings):
            raise SpecError(what, f"{number} is not in {name}")
