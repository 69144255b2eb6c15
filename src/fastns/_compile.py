"""Spec → Plan: the only place that knows what each field of a spec is to the kernel.

Everything that can be decided before a child exists is decided here: the order of the ops, which
namespaces are made by the clone and which are joined, how ids are mapped, which process writes the
maps. Reads who the caller is (ids, capabilities); touches nothing.
"""

from __future__ import annotations

import os
import stat
from _collections_abc import Iterable, Sequence

from fastns import _core, _tmpfs, _view, mount_options
from fastns._args import shown
from fastns._cache import cached
from fastns._record import record
from fastns.errors import SpecError
from fastns.spec import (
    DEFAULT_RLIMITS,
    KINDS,
    MASKED_PATHS,
    READONLY_PATHS,
    IDMapping,
    Mount,
    Rlimit,
    Spec,
    directories_above,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fastns._policy.cgroup_plan import CgroupPlan

CLONE_FLAGS = {
    "time": 0x00000080,
    "mount": 0x00020000,
    "cgroup": 0x02000000,
    "uts": 0x04000000,
    "ipc": 0x08000000,
    "user": 0x10000000,
    "pid": 0x20000000,
    "network": 0x40000000,
}
MS_NOSUID, MS_NODEV, MS_NOEXEC = 2, 4, 8
MS_PRIVATE, MS_SLAVE, MS_UNBINDABLE = 1 << 18, 1 << 19, 1 << 17
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC = 1, 2, 4, 8
CAP_DAC_OVERRIDE = 1 << 1
CAP_SETUID, CAP_SETPCAP, CAP_SYS_ADMIN, CAP_MKNOD = 1 << 7, 1 << 8, 1 << 21, 1 << 27
CAP_SYS_PTRACE = 1 << 19
MAPS_A_RANGE = 1 << 0 | 1 << 6 | CAP_SETUID | CAP_SYS_ADMIN  # CAP_CHOWN, CAP_SETGID
RLIM_INFINITY = 2**64 - 1
FEW_FDS = 256  # half of the caller's limit is not applied below this
PROC_MAGIC, SYSFS_MAGIC = 0x9FA0, 0x62656572  # statfs(2)
TYPE_AT = {"/proc": "proc", "/sys": "sysfs"}
HOSTS_OWN = [("bind", place) for place in TYPE_AT]

DEVICES = {
    "null": (1, 3),
    "zero": (1, 5),
    "full": (1, 7),
    "random": (1, 8),
    "urandom": (1, 9),
    "tty": (5, 0),
}
DEV_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}
LAYERS = (b"root", b"upper", b"work")  # directories of an overlay's scratch
DEFAULT_MOUNTS = (
    Mount("/proc", type="proc", source="proc", options=["nosuid", "nodev", "noexec"]),
    Mount("/sys", type="sysfs", source="sysfs", options=["ro", "nosuid", "nodev", "noexec"]),
    Mount("/tmp", type="tmpfs", source="tmpfs", options=["nosuid", "nodev", "mode=1777"]),
    Mount("/run", type="tmpfs", source="tmpfs", options=["nosuid", "nodev", "mode=755"]),
    Mount("/dev", type="tmpfs", source="tmpfs", options=["nosuid", "noexec", "mode=755"]),
    Mount(
        "/dev/pts",
        type="devpts",
        source="devpts",
        options=["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "max=64"],
    ),
    Mount("/dev/shm", type="tmpfs", source="shm", options=["nosuid", "nodev", "mode=1777"]),
)
DEV = DEFAULT_MOUNTS[4]
FRESH_BELOW_DEV = ("/dev/pts", "/dev/shm")

DEFAULT_SPEC = Spec()
HOME = "/root"  # of uid 0, in DEFAULT_ENV


@record(frozen=True)
class Op:
    """One step of the child, as csrc/shared/plan.h describes it; `note` is for people."""

    code: str
    stage: str
    how: int = 0
    flags: int = 0
    arg: int = 0
    source: bytes | None = None
    target: bytes | None = None
    type: bytes | None = None
    data: bytes | None = None
    note: str = ""

    def __str__(self) -> str:
        return self.note


@record(frozen=True)
class Caller:
    """What decides how a spec is carried out: ids, effective capabilities, the user namespace."""

    uid: int
    gid: int
    uniform: bool  # real, effective and saved ids are the same
    capabilities: int
    initial_user_namespace: bool
    may_setgroups: bool = True
    tree_namespaces: bool = False  # the kernel has them (Linux 7.0), and this caller may
    owns_its_proc: bool = True  # it may write the files of its own process in /proc
    spared: bool = False  # by the OOM killer: its oom_score_adj is below 0

    @property
    def privileged(self) -> bool:
        return bool(self.capabilities & CAP_SYS_ADMIN)

    @classmethod
    def current(cls) -> Caller:
        uids, gids = os.getresuid(), os.getresgid()
        initial = _read("/proc/self/uid_map").split() in ([b"0", b"0", b"4294967295"], [])
        may_setgroups = initial or _read("/proc/self/setgroups").strip() != b"deny"
        uniform = len(set(uids)) == 1 and len(set(gids)) == 1
        capabilities = _core.capabilities()
        trees = bool(capabilities & CAP_SYS_ADMIN) and initial and _has_tree_namespaces()
        owner = bool(capabilities & CAP_DAC_OVERRIDE) or _core.is_dumpable()
        spared = is_spared()
        return cls(
            uids[1], gids[1], uniform, capabilities, initial, may_setgroups, trees, owner, spared
        )


@cached(1)
def is_spared(path: str = "/proc/self/oom_score_adj") -> bool:
    """Whether oom_score_adj is below 0. Read once, since reading it would cost each start."""
    return _read(path).startswith(b"-")


@cached(1)
def _has_tree_namespaces() -> bool:
    return _core.has_tree_namespaces()


def compile(spec: Spec | None = None) -> _core.Plan:
    """Turns a spec into the engine's op list, for spawning from any thread any number of times.

    Args: spec: a Spec; None is Spec(). A relative rootfs is taken from the working directory now.
    Raises: SpecError when the spec asks for what this caller cannot have.
    """
    if spec is None:
        spec = DEFAULT_SPEC
    elif not isinstance(spec, Spec):
        raise SpecError("spec", f"{shown(spec)}: a Spec, or None, expected")
    spec = with_profile(spec)
    relative = spec.rootfs is not None and not os.path.isabs(spec.rootfs)
    cwd = os.getcwd() if relative else "/"
    return _compiled(spec, Caller.current(), cwd, layout_for(spec), resolver_for(spec))


def layout_for(spec: Spec) -> _view.Layout | None:
    """The host's system directories, for a root that is made of them."""
    return _view.layout() if shows_the_host(spec) else None


def resolver_for(spec: Spec) -> str | None:
    """The host's list of name servers, for a sandbox that shows it: the link leads elsewhere when
    the host's network changes."""
    return _view.resolver() if shows_the_host(spec) and shows_resolver(spec) else None


def shows_resolver(spec: Spec) -> bool:
    return spec.namespace("network") != "new"


def shows_the_host(spec: Spec) -> bool:
    return spec.rootfs is None and spec.namespace("mount") == "new"


def with_profile(spec: Spec) -> Spec:
    """The spec with the profile itself in the place of the path of its file, which is read now."""
    profile = spec.seccomp
    if not isinstance(profile, str) or profile in ("default", "unconfined"):
        return spec
    from fastns.seccomp import load

    return Spec(**{**vars(spec), "seccomp": load(profile)})


@cached(32)
def _compiled(
    spec: Spec, caller: Caller, cwd: str, layout: _view.Layout | None, _resolver: str | None
) -> _core.Plan:
    """Equal specs of the same caller in the same place share one plan, while the host shows the
    same."""
    return compile_for(spec, caller, layout)


def compile_for(spec: Spec, caller: Caller, layout: _view.Layout | None = None) -> _core.Plan:
    """A plan of its own, for a given caller and a given view of the host.

    Args: layout: None is the host's own, for a root that is made of it.
    Raises: SpecError when the spec asks for what this caller cannot have.
    """
    return _Compiler(spec, caller, layout).plan()


class _Compiler:
    file_attributes = 0  # MOUNT_ATTR_* of injected files

    def __init__(self, spec: Spec, caller: Caller, layout: _view.Layout | None = None) -> None:
        self.spec = spec
        self.caller = caller
        # None: the root is a rootfs, or the mount namespace is not new.
        self.layout = (layout or _view.layout()) if shows_the_host(spec) else None
        self.kinds = {kind: spec.namespace(kind) for kind in KINDS}
        if not caller.privileged and not spec.asks_for("user"):
            self.kinds["user"] = "new"
        self.id_range = self.find_ids()
        if self.id_range is not None:
            self.kinds["user"] = "range"
        self.new = [kind for kind in KINDS if self.kinds[kind] == "new"]
        self.joined = [kind for kind in KINDS if self.kinds[kind].startswith("/")]
        self.new_user = self.kinds["user"] == "new"
        self.early: list[Op] = []
        self.ops: list[Op] = []
        self.layers: list[tuple[str, bool]] = []  # destination, throw-away?
        self.mount_points: frozenset[str] = frozenset()  # directories that root_tmpfs makes
        self.binds: list[tuple[str, str, bool, bool, str]] = []  # Plan.binds
        # Whether the sandbox is cloned by a process that has joined namespaces before.
        self.hop = False
        # A child that shares the caller's memory may not enter a cgroup that may run out of it: the
        # OOM killer ends all who share it.
        self.own_memory = spec.memory is not None or spec.cgroup_parent is not None
        self.id_map = "none"
        self.uid_map: bytes | None = None
        self.gid_map: bytes | None = None
        self.cgroups = self.find_cgroups()
        # Namespaces that no clone makes: an op of the sandbox does.
        self.made_later: set[str] = {"cgroup"} if self.cgroups else set()
        self.from_tree = False  # whether its mount namespace begins with the root alone
        self.check()

    def find_ids(self) -> tuple[int, int, int] | None:
        """The range of ids of the user namespace that root's sandboxes join; None: none."""
        spec, caller = self.spec, self.caller
        able = caller.capabilities & MAPS_A_RANGE == MAPS_A_RANGE
        if not caller.initial_user_namespace or not able or spec.asks_for("user"):
            return None
        from fastns._policy import userns as _userns  # not where nobody may have a range

        ids = _userns.range_of_root()
        for field, wanted in (
            ("user", [spec.uid, spec.gid]),
            ("additional_gids", spec.additional_gids),
        ):
            if max(wanted, default=0) >= ids[2]:
                raise SpecError(
                    field,
                    f"{max(wanted)}: below {ids[2]} expected, the ids of its user namespace; "
                    "namespaces={'user': 'host'} has all",
                )
        return ids

    def find_cgroups(self) -> CgroupPlan | None:
        """What enforces the limits; None: there are none, or it has to do without."""
        limits = self.spec.limits()
        if limits is None:
            return None
        from fastns._policy import cgroup_plan as _cgroups  # only a spec with limits needs it

        plan = _cgroups.plan(limits, self.spec.cgroup_parent, self.spec.require_limits)
        return plan if plan.places else None

    def check(self) -> None:
        """What a spec cannot know about itself: the caller's rights."""
        if self.caller.privileged or self.new_user or "user" in self.joined:
            return
        what = self.new or (["rootfs"] if self.spec.rootfs is not None else [])
        if what:
            raise SpecError(
                "namespaces",
                f"an unprivileged caller cannot have {', '.join(what)} with user='host': leave "
                "'user' out, or say 'new'",
            )

    def plan(self) -> _core.Plan:
        spec = self.spec
        self.join()
        self.map_ids()
        self.own_namespaces()
        self.enter_cgroups()
        if self.kinds["mount"] == "new":
            self.build_root()
        elif spec.rootfs is not None:
            root, note = os.path.abspath(spec.rootfs), os.fspath(spec.rootfs)
            self.add(Op("root_tree", "rootfs", source=os.fsencode(root), note=note))
            self.add(Op("chroot", "chroot", note=note))
        self.identity()
        self.keyring()
        self.limits_and_ids()
        self.begin()
        return self.made(
            (*self.early, *self.ops),
            self.new,
            id_map=self.id_map,
            uid_map=self.uid_map,
            gid_map=self.gid_map,
            n_early=len(self.early),
            hop=self.hop,
            init=spec.init,
            maps_first=self.maps_first(),
            own_memory=self.own_memory,
            cgroups=self.cgroups,
        )

    def maps_first(self) -> bool:
        """Whether its own maps are written before it executes the program: that leaves uid 0 its
        capabilities. But who executes in a mapped namespace has memory that belongs to it, and a
        pid 1 that stays has to keep its own from the command."""
        return (
            self.id_map == "self"
            and not self.hop
            and not self.spec.init
            and self.caller.owns_its_proc  # else nor does who shares its memory
        )

    def begin(self) -> None:
        """Puts first what is to be done before all else, also before a hop."""
        first = []
        if self.caller.spared:
            first.append(write_op("oom_score_adj", b"oom_score_adj", b"0"))
        first.append(self.core_limit())
        (self.early if self.hop else self.ops)[:0] = first

    def enter_cgroups(self) -> None:
        """A cgroup namespace is made once the sandbox is where its root is to be."""
        if self.cgroups is None:
            return
        flags = CLONE_FLAGS["cgroup"] if "cgroup" in self.new else 0
        note = " ".join(self.cgroups.enforced)
        self.add(Op("cgroup", "cgroup", flags=flags, note=note))

    def made(
        self,
        ops: Iterable[Op],
        new: Sequence[str],
        *,
        id_map: str = "none",
        uid_map: bytes | None = None,
        gid_map: bytes | None = None,
        n_early: int = 0,
        hop: bool = False,
        init: bool = False,
        maps_first: bool = False,
        own_memory: bool = False,
        sandbox: _core.Plan | None = None,
        method: str | None = None,
        netns_pool: int = 0,
        cgroups: CgroupPlan | None = None,
    ) -> _core.Plan:
        """A plan of these ops for the spec's command."""
        environment = self.spec.environment()
        return _core.Plan(
            ops=tuple(ops),
            environ=tuple(os.fsencode(f"{key}={value}") for key, value in environment.items()),
            search_path=search_path(environment.get("PATH")),
            cwd=os.fsencode(self.spec.cwd),
            clone_flags=sum(CLONE_FLAGS[kind] for kind in new if kind not in self.made_later),
            id_map=id_map,
            uid_map=uid_map,
            gid_map=gid_map,
            n_early=n_early,
            hop=hop,
            init=init,
            maps_first=maps_first,
            own_memory=own_memory,
            namespaces=tuple(new),
            sandbox=sandbox,
            method=method,
            netns_pool=netns_pool,
            max_output=int(self.spec.max_output or 0),
            capped=self.spec.on_output_limit == "kill",
            cgroups=cgroups,
            ids=self.id_range,
            inotify=self.inotify_limit(),
            pipe_owner=self.pipe_owner(),
            binds=tuple(self.binds),
            view=self.view(),
        )

    def inotify_limit(self) -> bytes:
        """Of the user namespace with a range of ids; b"": there is none."""
        if self.id_range is None:
            return b""
        from fastns._policy.userns import inotify_limit

        return inotify_limit() or b""

    def view(self) -> tuple[str, ...] | None:
        """What can be seen without a rootfs; None: there is one."""
        if self.layout is None:
            return None
        links = (path for path, _ in self.layout.links)
        # A fresh /tmp shows nothing of the host's.
        fresh = ("tmpfs", "/tmp")
        seen = (mount for mount in self.all_mounts() if (mount.type, mount.destination) != fresh)
        mounts = (mount.destination for mount in seen)
        return (*self.layout.shown, *links, *mounts, *self.spec.files)

    def pipe_owner(self) -> tuple[int, int] | None:
        """Who the command is to the caller, where that is another; None also where the caller has
        no right to give anything away."""
        spec = self.spec
        if self.id_range is not None:
            return self.id_range[0] + spec.uid, self.id_range[1] + spec.gid
        if self.id_map == "parent":
            return _outside(spec.uid_mappings, spec.uid), _outside(spec.gid_mappings, spec.gid)
        if self.kinds["user"] == "host" and self.caller.privileged and spec.user != "0:0":
            return spec.uid, spec.gid
        return None

    def add(self, op: Op) -> None:
        self.ops.append(op)

    # ---- namespaces and ids ----

    def join(self) -> None:
        """Joined namespaces. A pid namespace is that of who is cloned afterwards, a user namespace
        owns what is made afterwards, and in a new user namespace there is no right to join anything
        outside it: these are joined before the sandbox is cloned. The mount namespace comes last:
        the other paths are the caller's."""
        first = {"user": 0, "mount": 2}
        # Root has rights over all of them, which end where the user namespace begins.
        late = "user" in self.joined and self.caller.privileged
        if "user" in self.joined and self.caller.privileged:
            # Inside, groups may be out of reach (setgroups "deny"): the caller's stay behind now.
            self.early.append(Op("setgroups", "setgroups", note="none"))
        for kind in sorted(self.joined, key=lambda kind: first.get(kind, 1)):
            path = self.kinds[kind]
            flags = CLONE_FLAGS[kind]
            how = _core.HOW_OPEN if late and kind == "user" else 0
            op = Op("setns", "setns", how, flags, source=os.fsencode(path), note=f"{kind} {path}")
            if kind in ("user", "pid") or self.new_user or "user" in self.joined:
                self.early.append(op)
                self.hop = True
            else:
                self.add(op)
        if late:
            path = self.kinds["user"]
            self.early.append(Op("join_user", "setns", source=os.fsencode(path), note=path))

    def map_ids(self) -> None:
        if not self.new_user:
            return
        from fastns._policy import userns as _userns

        limit = _userns.inotify_limit()
        if limit is not None:
            path = _userns.INOTIFY_LIMIT.encode()
            self.add(
                Op(
                    "write",
                    "rlimit",
                    _core.HOW_OPTIONAL,
                    PROC_MAGIC,
                    target=path,
                    data=limit,
                    note="inotify instances: half of the caller's",
                )
            )
        spec, caller = self.spec, self.caller
        uids = spec.uid_mappings or (IDMapping(spec.uid, caller.uid, 1),)
        gids = spec.gid_mappings or (IDMapping(spec.gid, caller.gid, 1),)
        uid_map, gid_map = _map_text(uids), _map_text(gids)
        if _is_own_id(uids, caller.uid) and _is_own_id(gids, caller.gid):
            if spec.additional_gids:
                raise SpecError(
                    "additional_gids",
                    "a user namespace with a single mapped id cannot have supplementary groups: "
                    "give gid_mappings with a range",
                )
            self.id_map = "self"
            # setgroups has to be given up before an unprivileged gid_map (user_namespaces(7)).
            for name, text in (
                (b"setgroups", b"deny"),
                (b"gid_map", gid_map),
                (b"uid_map", uid_map),
            ):
                self.add(map_op(name, text))
            return
        self.id_map = "parent" if caller.capabilities & CAP_SETUID else "newuidmap"
        self.uid_map, self.gid_map = uid_map, gid_map

    def own_namespaces(self) -> None:
        """What capabilities are worth is decided by who owns a namespace: those of a range's user
        namespace count in what belongs to it."""
        if self.id_range is None or not self.spec.capabilities:
            return
        kinds = [kind for kind in ("network", "uts", "ipc") if kind in self.new]
        self.made_later = {*self.made_later, *kinds}
        if kinds:
            self.check_joins_by_pidfd()
            flags = sum(CLONE_FLAGS[kind] for kind in kinds)
            self.add(Op("own_namespaces", "unshare", flags=flags, note=" ".join(kinds)))

    def check_joins_by_pidfd(self) -> None:
        """To join what a process is in takes the right to trace it (setns(2)), and that process is
        undumpable: nobody without CAP_SYS_PTRACE outside has that right (CVE-2016-9962)."""
        if not self.caller.capabilities & CAP_SYS_PTRACE:
            raise SpecError(
                "capabilities",
                "to have namespaces in which they count, root needs CAP_SYS_PTRACE: give it to "
                "this process (of an outer container: --cap-add SYS_PTRACE), or say "
                "namespaces={'user': 'host'}, where they count on the host",
            )

    def own_the_rest(self) -> None:
        """What begins with a copy of what is there. Mounts that another user namespace has made are
        locked in it: nothing can be uncovered, or made writable, that was not to be."""
        capabilities = self.spec.capabilities
        kinds = ["mount"] if "CAP_SYS_ADMIN" in capabilities else []
        kinds = [kind for kind in (*kinds, "cgroup") if capabilities and kind in self.new]
        if self.id_range is not None and kinds:
            flags = sum(CLONE_FLAGS[kind] for kind in kinds)
            self.add(Op("unshare", "unshare", flags=flags, note=" ".join(kinds)))

    def join_range(self) -> None:
        """The namespace was made once, for all sandboxes of this process, and is joined when all is
        done that takes the caller's rights: the other namespaces and the mounts stay out of its
        reach. The ids that it has from then on are of that namespace."""
        if self.id_range is not None:
            self.id_map = "range"
            uid, gid, size = self.id_range
            note = f"uids {uid}-{uid + size - 1}, gids {gid}-{gid + size - 1}"
            self.add(Op("join_user", "id_map", note=note))

    def owned(self) -> int:
        """For what is made for a sandbox: its uid 0 has it."""
        return 0 if self.id_range is None else _core.HOW_OWNED

    def root_ids(self) -> int:
        """A rootfs' files keep their owners inside."""
        return 0 if self.id_range is None else _core.HOW_IDMAP

    def kept_owners(self, mount: Mount, wish: bool | None) -> int:
        """HOW_* of a bind. Binds of the spec keep their owners: where the kernel can, or with the
        option idmap else fail. Other binds show the host, where root's files stay out of reach."""
        given = any(mount is one for one in self.spec.mounts)
        if self.id_range is None or not given:
            return 0
        how, why = _core.HOW_IDMAP, ""
        if wish is False:
            why = "it has noidmap"
        elif wish is None:
            how |= _core.HOW_OPTIONAL
            made = self.made_in(mount)
            why = f"{made} is made in it" if made else ""
        how = 0 if why else how
        recursive, optional = _parse(mount).recursive, bool(how & _core.HOW_OPTIONAL)
        bind = mount.destination, os.fspath(mount.source or ""), recursive, optional, why
        self.binds.append(bind)
        return how

    def made_in(self, bind: Mount) -> str | None:
        """A missing target that a later mount makes in this bind; None: there is none. The caller
        makes it, and could make nothing in an idmapped tree."""
        later = list(self.spec.mounts)
        while later.pop(0) is not bind:
            pass
        below = [mount for mount in later if _is_below(mount, bind)]
        for i, mount in enumerate(below):
            if _parse(mount).mkdir and not any(_is_below(mount, one) for one in below[:i]):
                return mount.destination
        return None

    def owners(self, kind: str, data: str) -> str:
        """Options of a file system by the ids of who mounts it: the caller's."""
        if self.id_range is None or kind not in ("tmpfs", "devpts", "proc"):
            return data
        options = [option for option in data.split(",") if option]
        for i, name in enumerate(("uid", "gid")):
            given = [option for option in options if option.startswith(f"{name}=")]
            if given or kind == "tmpfs":
                inside = int(given[0].partition("=")[2]) if given else 0
                options = [option for option in options if option not in given]
                options.append(f"{name}={self.id_range[i] + inside}")
        return ",".join(options)

    def become_mapped(self) -> None:
        """In a namespace with a range, the process is nobody until it takes a mapped id, and nobody
        cannot create files. Done once the root's tree is open: the way to it is the caller's."""
        if self.id_map not in ("parent", "newuidmap"):
            return
        uid = 0 if _maps(self.spec.uid_mappings, 0) else self.spec.uid
        gid = 0 if _maps(self.spec.gid_mappings, 0) else self.spec.gid
        self.add(Op("setgid", "setgid", arg=gid, note=str(gid)))
        self.add(Op("setuid", "setuid", arg=uid, note=str(uid)))

    # ---- the root and what is in it ----

    def build_root(self) -> None:
        spec = self.spec
        mounts = self.all_mounts()
        files = dict(spec.files)
        slave = any(_parse(m).propagation == MS_SLAVE for m in mounts)
        self.from_tree = self.may_begin_with_the_root(mounts)
        if self.from_tree:
            self.open_sources(mounts)
        else:
            self.add(
                Op(
                    "propagation",
                    "propagation",
                    flags=MS_SLAVE if slave else MS_PRIVATE,
                    note="rslave" if slave else "rprivate",
                )
            )
        root = os.path.abspath(spec.rootfs) if spec.rootfs is not None else "/"
        if self.layout is None:
            self.add(self.root_tree_op(root))
        self.become_mapped()  # before it makes anything
        scratch = spec.overlay or bool(files)
        if scratch:
            names = [*LAYERS, b"lower"] if spec.overlay else [b"root"]
            if files:
                names.append(b"files")
            self.add(self.scratch_op("overlay" if spec.overlay else "file", names, None))
        place = (b"lower" if spec.overlay else b"root") if scratch else None
        if self.layout is not None:
            self.add(self.root_tmpfs_op(self.layout, mounts, place))
        elif self.from_tree:
            self.made_later = {*self.made_later, "mount"}
            self.add(Op("tree_namespace", "rootfs", source=os.fsencode(root)))
        else:
            self.add(
                Op("root_attach", "rootfs", source=os.fsencode(root), target=place, note="attached")
            )
        if spec.overlay:
            self.add(self.overlay_op(b"lower"))
        self.layers = [("/", spec.overlay or self.layout is not None)]
        if self.layout is not None:
            self.show_host(self.layout)
        for mount in mounts:
            self.add_mount(mount)
            if spec.default_mounts and mount is DEV:
                self.add_devices()
        if self.layout is not None:
            self.show_led_to(self.layout)
        for number, destination in enumerate(files):
            how = _core.HOW_CREATE if self.throw_away(destination) else 0
            self.add(self.file_op(number, destination, os.fsencode(destination), how))
        self.mask_paths()
        self.finish_root()
        if self.from_tree:
            pass  # it is "/" already
        elif spec.root_mode == "pivot_root":
            beneath = 2 if scratch else 1
            self.add(Op("pivot_root", "pivot_root", arg=beneath, source=os.fsencode(root)))
        else:
            self.add(Op("chroot", "chroot", source=os.fsencode(root)))

    def root_tree_op(self, root: str) -> Op:
        read_only = self.spec.read_only and not self.spec.overlay
        return Op(
            "root_tree",
            "rootfs",
            how=_core.HOW_RECURSIVE | self.root_ids(),
            flags=(MOUNT_ATTR_RDONLY if read_only else 0) | self.no_devices(),
            source=os.fsencode(root),
            note=f"{root} {'ro' if read_only else 'rw'}",
        )

    def root_tmpfs_op(
        self, layout: _view.Layout, mounts: Sequence[Mount], target: bytes | None
    ) -> Op:
        """A root of its own, with the directories that something is mounted on."""
        shown = (*layout.shown, *(path for path, _ in layout.links))
        fresh = [mount.destination for mount in mounts if mount.type != "bind"]
        places = [*layout.shown, HOME]
        for place in fresh:
            if not _view.lies_in(place, shown):
                places.append(place)
                shown = (*shown, place)
        names = dict.fromkeys(
            path.lstrip("/") for place in places for path in (*directories_above(place), place)
        )
        self.mount_points = frozenset(f"/{name}" for name in names)
        listed = b"".join(os.fsencode(name) + b"\0" for name in names)
        options = ",".join(["mode=755", *_tmpfs.limits(DEV.destination, self.tmpfs_size())])
        return Op(
            "root_tmpfs",
            "rootfs",
            flags=MS_NOSUID | MS_NODEV,
            arg=len(listed),
            target=target,
            type=options.encode(),
            data=listed,
            note="a tmpfs for " + " ".join(("/" + name) for name in names),
        )

    def show_host(self, layout: _view.Layout) -> None:
        """The host's system directories, with all that is mounted below them, read-only. They keep
        the host's owners: what is root's alone is closed to a sandbox with ids of its own."""
        flags = MOUNT_ATTR_RDONLY | self.no_devices()
        for path in layout.shown:
            source = os.fsencode(path)
            target, note = source.lstrip(b"/"), f"{path} ro"
            self.add(Op("show", "rootfs", flags=flags, source=source, target=target, note=note))
            self.layers.append((path, False))
        for path, leads_to in layout.links:
            source, target = os.fsencode(leads_to), os.fsencode(path)
            note = f"{path} -> {leads_to}"
            self.add(Op("symlink", "rootfs", source=source, target=target, note=note))
            self.layers.append((path, False))

    def show_led_to(self, layout: _view.Layout) -> None:
        """What links in these directories lead to; once /run is there."""
        given = [mount.destination for mount in self.spec.mounts]
        for path in _view.led_to(layout.shown, resolver=shows_resolver(self.spec)):
            if _view.lies_in(path, given) or not self.may_show(path):
                continue
            how = _core.HOW_RECURSIVE | _core.HOW_IF_THERE
            if self.throw_away(path):
                how |= _core.HOW_CREATE | self.owned()
            flags, place = MOUNT_ATTR_RDONLY | self.no_devices(), os.fsencode(path)
            note = f"{path} ro"
            self.add(Op("bind", "rootfs", how, flags, source=place, target=place, note=note))
            self.layers.append((path, False))

    def may_show(self, _path: str) -> bool:
        return True

    def may_begin_with_the_root(self, mounts: Sequence[Mount]) -> bool:
        """Whether the mount namespace can be made of the root's tree alone. A scratch beneath it
        needs the caller's view."""
        spec = self.spec
        binds = [mount for mount in mounts if mount.type == "bind"]
        return (
            self.caller.tree_namespaces
            and bool(self.caller.capabilities & CAP_MKNOD)  # devices need no source then
            and not self.hop
            and not spec.init
            and (self.id_range is None or not spec.capabilities)
            and spec.rootfs is not None
            and not spec.overlay
            and not spec.files
            and spec.root_mode == "pivot_root"
            and not self.new_user
            and len(binds) <= _core.MAX_SOURCES
            and all(_parse(mount).propagation != MS_SLAVE for mount in binds)
        )

    def open_sources(self, mounts: Sequence[Mount]) -> None:
        """Before the caller's view is left."""
        for mount in mounts:
            if mount.type == "bind":
                assert mount.source is not None
                source = os.fsencode(os.path.abspath(mount.source))
                how = _core.HOW_RECURSIVE if _parse(mount).recursive else 0
                note = os.fspath(mount.source)
                self.add(Op("bind_source", "mount", how, source=source, note=note))

    def scratch_op(
        self, stage: str, names: Sequence[bytes], target: bytes | None, note: str = "scratch tmpfs"
    ) -> Op:
        """With directories of these names. The files put there beforehand have their room beside
        what may be written."""
        files = [
            len(content.encode() if isinstance(content, str) else content)
            for content in self.spec.files.values()
        ]
        size = (self.tmpfs_size() or _tmpfs.DEFAULT_SIZE) + _tmpfs.room_for(files)
        inodes = _tmpfs.files_in(size) + len(files)
        listed = b"".join(name + b"\0" for name in names)
        return Op(
            "scratch",
            stage,
            self.owned(),
            arg=len(listed),
            target=target,
            type=b"mode=755,size=%d,nr_inodes=%d" % (size, inodes),
            data=listed,
            note=f"{note} size={size},nr_inodes={inodes}",
        )

    def tmpfs_size(self) -> int | None:
        return int(self.spec.tmpfs_size) if self.spec.tmpfs_size is not None else None

    def overlay_op(self, lower: bytes) -> Op:
        data = b"lowerdir=" + lower + b",upperdir=upper,workdir=work"
        if self.in_user_namespace():
            data += b",userxattr"  # trusted.* attributes need the initial namespace (overlayfs)
        flags = MS_NODEV if self.no_devices() else 0
        return Op(
            "overlay", "overlay", flags=flags, data=data, note="a throw-away layer over the root"
        )

    def no_devices(self) -> int:
        """Of the root's tree, where a /dev of the sandbox's own is mounted in it: who made the root
        may have put the host's disks there."""
        return MOUNT_ATTR_NODEV if self.spec.default_mounts else 0

    def file_op(self, number: int, destination: str, target: bytes, how: int) -> Op:
        content = self.spec.files[destination]
        data = content if isinstance(content, bytes) else content.encode()
        return Op(
            "file_bind",
            "file",
            how | self.owned(),
            flags=self.file_attributes,
            arg=len(data),
            source=b"%d" % number,
            target=target,
            data=data,
            note=f"{destination} ({len(data)} bytes)",
        )

    def mask_paths(self) -> None:
        """Names below /proc and /sys are looked up in those, wherever they are by then; each of the
        two is looked up once. The others are the caller's own."""
        spec = self.spec
        given: list[tuple[str, str, Sequence[str]]] = []
        for code, stage, asked, default in (
            ("mask", "masked_paths", spec.masked_paths, MASKED_PATHS),
            ("read_only_paths", "readonly_paths", spec.readonly_paths, READONLY_PATHS),
        ):
            standard = default if spec.default_mounts else ()
            given.append((code, stage, standard if asked is None else asked))
        for base in TYPE_AT:
            for code, stage, paths in given:
                below = [path for path in paths if path.startswith(base + "/")]
                if below:
                    self.mask_op(code, stage, base, below, self.type_at(base))
        for code, stage, paths in given:
            for path in paths:
                if path.split("/")[1] not in ("proc", "sys"):
                    self.mask_op(code, stage, "/", [path], 0)

    def type_at(self, place: str) -> int:
        """The type of file system to be found there, of statfs(2); 0: the caller's own affair."""
        magic = {"proc": PROC_MAGIC, "sysfs": SYSFS_MAGIC}
        for mount in self.all_mounts():
            if mount.destination == place:
                hosts = mount.type == "bind" and mount.source == place
                return magic.get(TYPE_AT[place] if hosts else mount.type, 0)
        return 0

    def mask_op(self, code: str, stage: str, base: str, paths: list[str], kind: int) -> None:
        names = b"".join(os.fsencode(path[len(base) :].lstrip("/")) + b"\0" for path in paths)
        how, note = _core.HOW_NO_SYMLINKS, " ".join(paths)
        target = base.encode()
        self.put_mask(
            paths[0], Op(code, stage, how, kind, len(names), target=target, data=names, note=note)
        )

    def put_mask(self, _path: str, op: Op) -> None:
        self.add(op)

    def finish_root(self) -> None:
        """What is done when all is mounted."""
        if self.layout is not None or (self.spec.overlay and self.spec.read_only):
            self.add(Op("read_only", "read_only", note="/"))

    def in_user_namespace(self) -> bool:
        return self.new_user or "user" in self.joined or not self.caller.initial_user_namespace

    def all_mounts(self) -> list[Mount]:
        """The default mounts that no explicit one replaces, then the explicit ones in order."""
        explicit = [self.closed(mount) for mount in self.spec.mounts]
        if not self.spec.default_mounts:
            return explicit
        replaced = [mount.destination for mount in self.spec.mounts]
        kept = []
        for mount in DEFAULT_MOUNTS:
            path = mount.destination
            if any(path == r or path.startswith(r + "/") for r in replaced):
                continue
            kept.append(self.closed(self.adapted(mount)))
        return [*kept, *explicit]

    def closed(self, mount: Mount) -> Mount:
        """Makes /proc and /sys read-only if a uid inside may own their files, whose modes are the
        same in every instance on the machine. "rw" in the spec overrides this."""
        given = mount.type in TYPE_AT.values() or (mount.type, mount.source) in HOSTS_OWN
        if not given or {"ro", "rw"} & {*mount.options} or not self.may_be_hosts_root():
            return mount
        options = [*mount.options, "ro"]
        return Mount(mount.destination, type=mount.type, source=mount.source, options=options)

    def may_be_hosts_root(self) -> bool:
        """Whether a uid inside may be the host's uid 0, in a sandbox without CAP_SYS_ADMIN."""
        if self.id_range is not None or "CAP_SYS_ADMIN" in self.spec.capabilities:
            return False
        if self.new_user:
            mappings = self.spec.uid_mappings or (IDMapping(self.spec.uid, self.caller.uid, 1),)
            return any(mapping.host_id == 0 for mapping in mappings)
        return self.caller.privileged

    def adapted(self, mount: Mount) -> Mount:
        """/proc and /sys show the pid and the network namespace of who mounts them. A fresh one of
        the host's is refused to a user namespace, and on top of itself: then it is bound."""
        owner = {"/proc": "pid", "/sys": "network"}.get(mount.destination)
        if owner is None or self.kinds[owner] != "host":
            return mount
        # What lies below a directory may not be uncovered in a user namespace: all or nothing.
        bind = "rbind" if self.in_user_namespace() else "bind"
        options = [bind, *mount.options]
        return Mount(mount.destination, source=mount.destination, options=options)

    def throw_away(self, destination: str) -> bool:
        """Whether the layer that holds a path is gone with the sandbox."""
        inside = [
            (len(path), gone)
            for path, gone in self.layers
            if path == "/" or destination.startswith(path + "/")
        ]
        return max(inside)[1]

    def add_mount(self, mount: Mount) -> None:
        own = mount is DEV and self.layout is not None
        self.add(self.dev_op() if own else self.mount_op(mount))
        self.layers.append((mount.destination, mount.type == "tmpfs"))

    def mount_op(self, mount: Mount, place: bytes | None = None) -> Op:
        """What mounts it at its destination, or at a `place` that is made for it."""
        parsed = _parse(mount)
        how = 0
        if place is not None or self.throw_away(mount.destination):
            how |= _core.HOW_CREATE | self.owned()
        elif parsed.mkdir:
            how |= _core.HOW_CREATE
        target = place or os.fsencode(mount.destination)
        if mount.type != "bind" and mount.destination in self.mount_points:
            target = target.lstrip(b"/")
        note = f"{mount.destination} {mount.type}"
        if mount.type == "bind":
            note += f" from {mount.source}"
        more = []
        if mount.type == "tmpfs":
            more = _tmpfs.limits(mount.destination, self.tmpfs_size(), parsed.data)
        if mount.options or more:
            note += " " + ",".join([*mount.options, *more])
        if mount.type in ("proc", "sysfs") or mount.destination in ("/proc", "/sys", "/dev"):
            how |= _core.HOW_NO_SYMLINKS  # CVE-2019-19921
        may_be_devices = bool(parsed.attr_clr & MOUNT_ATTR_NODEV)  # "dev" was given
        if mount.type != "bind":
            data = self.owners(mount.type, parsed.data)
            lower = mount.type == "overlay" and not may_be_devices
            return Op(
                "mount",
                "mount",
                how,
                parsed.ms_flags | (MS_NODEV if lower else 0),
                0,
                os.fsencode(mount.source or mount.type),
                target,
                mount.type.encode(),
                os.fsencode(",".join([option for option in (data, *more) if option])) or None,
                note,
            )
        assert mount.source is not None  # Mount's own check
        cleared = parsed.attr_clr
        if parsed.recursive and self.in_user_namespace():
            cleared &= ~MOUNT_ATTR_NODEV  # those below that have it are locked to it
        how |= self.kept_owners(mount, parsed.idmap)
        if self.from_tree:
            how |= _core.HOW_AHEAD
        if parsed.recursive:
            how |= _core.HOW_RECURSIVE
        if parsed.propagation == MS_SLAVE:
            how |= _core.HOW_SLAVE
        elif parsed.propagation == MS_UNBINDABLE:
            how |= _core.HOW_UNBINDABLE
        return Op(
            "bind",
            "mount",
            how,
            parsed.attr_set | (0 if may_be_devices else MOUNT_ATTR_NODEV),
            cleared,
            os.fsencode(mount.source),
            target,
            note=note,
        )

    def dev_op(self) -> Op:
        """/dev as a directory of the root's tmpfs: another tmpfs would take twice as long."""
        options = ",".join(DEV.options)
        return Op(
            "show",
            "mount",
            self.owned(),
            MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC,
            MOUNT_ATTR_NODEV,
            b"dev",
            b"dev",
            note=f"/dev tmpfs {options}, of the root",
        )

    def add_devices(self) -> None:
        """A minimal /dev: mknod in the initial user namespace. Elsewhere the devices are bound,
        read-only: they can be written to, but their modes, the host's, cannot be changed."""
        may_mknod = not self.in_user_namespace() and bool(self.caller.capabilities & CAP_MKNOD)
        for name, (major, minor) in DEVICES.items():
            path = f"/dev/{name}".encode()
            if may_mknod:
                op = Op(
                    "device",
                    "device",
                    flags=stat.S_IFCHR | 0o666,
                    arg=os.makedev(major, minor),
                    target=path,
                    note=f"/dev/{name} {major}:{minor}",
                )
            else:
                note = f"/dev/{name} bound"
                how = _core.HOW_CREATE
                flags = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC
                op = Op("bind", "device", how, flags, source=path, target=path, note=note)
            self.add(op)
        for fresh in FRESH_BELOW_DEV:
            place = fresh.encode()
            self.add(Op("directory", "directory", self.owned(), 0, 0o755, None, place, note=fresh))
        for name, link in DEV_LINKS.items():
            self.add(
                Op(
                    "symlink",
                    "symlink",
                    source=link.encode(),
                    target=f"/dev/{name}".encode(),
                    note=f"/dev/{name} -> {link}",
                )
            )

    # ---- what the process is ----

    def identity(self) -> None:
        spec = self.spec
        if spec.hostname is not None:
            self.add(
                Op("hostname", "hostname", data=os.fsencode(spec.hostname), note=spec.hostname)
            )
        if spec.domainname is not None:
            name = os.fsencode(spec.domainname)
            self.add(Op("domainname", "domainname", data=name, note=spec.domainname))
        if "network" in self.new:
            self.add(Op("loopback", "network", note="lo up"))

    def keyring(self, how: int = 0) -> None:
        """Each takes one of the user's quota, in which there is room for some 200. Where the filter
        refuses all calls about keys, the caller's may stay instead."""
        if self.spec.seccomp == "default":
            how |= _core.HOW_OPTIONAL
        self.add(Op("keyring", "keyring", how, note="of its own"))

    def limits_and_ids(self) -> None:
        spec = self.spec
        self.ops += self.other_limits()
        self.add(Op("umask", "umask", arg=spec.umask, note=f"{spec.umask:04o}"))
        self.join_range()
        self.own_the_rest()
        self.bounding()
        self.ids()
        self.parent_death()
        self.last()

    def core_limit(self) -> Op:
        """Comes before anything that could crash, and before the default filter, which keeps it as
        it is. Optional: only CAP_SYS_RESOURCE can raise a hard limit of 0."""
        for rlimit in self.spec.rlimits:
            if rlimit.type == "RLIMIT_CORE":
                return rlimit_op(rlimit)
        return rlimit_op(DEFAULT_RLIMITS[0], _core.HOW_OPTIONAL)

    def other_limits(self) -> list[Op]:
        given = [rlimit for rlimit in self.spec.rlimits if rlimit.type != "RLIMIT_CORE"]
        types = {rlimit.type for rlimit in given}
        shares = [
            rlimit_op(
                rlimit, _core.HOW_SHARE, least=FEW_FDS if rlimit.type == "RLIMIT_NOFILE" else 0
            )
            for rlimit in DEFAULT_RLIMITS[1:]
            if rlimit.type not in types
        ]
        return [*shares, *map(rlimit_op, given)]

    def parent_death(self) -> None:
        if self.spec.die_with_parent:
            self.add(Op("parent_death", "parent_death"))

    def bounding(self) -> None:
        """Before the ids, which take away the right to; who has not got it cannot gain by exec what
        is not there either, once no_new_privileges is set."""
        joins = self.id_range is not None or "user" in self.joined
        if self.caller.capabilities & CAP_SETPCAP or self.new_user or joins:
            names = " ".join(self.spec.capabilities) or "none"
            mask, how = self.capability_mask(), self.keep()
            self.add(Op("bounding", "capabilities", how, arg=mask, note=names))

    def keep(self) -> int:
        """Without no_new_privileges, to load a filter, or to be restricted by Landlock, takes what
        a change of ids takes away."""
        needed = self.spec.seccomp != "unconfined" or self.spec.landlock
        return _core.HOW_KEEP if needed and not self.spec.no_new_privileges else 0

    def capability_mask(self) -> int:
        if not self.spec.capabilities:
            return 0
        from fastns.capabilities import mask

        return mask(self.spec.capabilities)

    def last(self) -> None:
        """After the ids, in the one order that works: capabilities, then no_new_privileges, without
        which Landlock and a filter need CAP_SYS_ADMIN, then these. Without no_new_privileges they
        come while that is still there."""
        names = " ".join(self.spec.capabilities) or "none"
        capabilities = Op("capabilities", "capabilities", arg=self.capability_mask(), note=names)
        if self.spec.no_new_privileges:
            self.add(capabilities)
            self.add(Op("no_new_privileges", "no_new_privileges"))
            self.restrict()
            self.filter()
        else:
            self.restrict()
            self.filter()
            self.add(capabilities)

    def restrict(self) -> None:
        """Before the filter, which need not let these calls through."""
        if not self.spec.landlock:
            return
        has_admin = self.caller.privileged or self.new_user or "user" in self.joined
        if not self.spec.no_new_privileges and not has_admin:
            raise SpecError("landlock", "needs no_new_privileges=True, or CAP_SYS_ADMIN")
        from fastns._policy import landlock as _landlock  # few specs need it

        self.ops += _landlock.ops(self.spec.landlock, _landlock.abi(), self.keep())

    def filter(self) -> None:
        profile = self.spec.seccomp
        if profile == "unconfined":
            return
        held = self.spec.capabilities
        if profile == "default":
            from fastns._policy import filters as _filters  # not where nothing is filtered

            code = _filters.default(held, setid=self.may_make_setid())
            self.add_filter(code, self.default_note())
            return
        from fastns import seccomp

        checked = seccomp.profile_of(profile)
        self.add_filter(seccomp.build(checked, held), "profile", checked.flags)

    def may_make_setid(self) -> bool:
        """Whether the default filter allows set-id files."""
        return self.spec.allow_setid or not self.spec.writes_to_host()

    def default_note(self) -> str:
        return "default" if self.may_make_setid() else "default, no set-id files"

    def add_filter(self, code: bytes, note: str, flags: int = 0) -> None:
        count = len(code) // 8
        self.add(Op("seccomp", "seccomp", self.keep(), flags, count, data=code, note=note))

    def ids(self) -> None:
        spec, caller = self.spec, self.caller
        if self.id_map == "self":
            return  # the one mapped id is the process's own already
        in_range = self.new_user or "user" in self.joined or self.id_range is not None
        same = caller.uniform and (spec.uid, spec.gid) == (caller.uid, caller.gid)
        if not in_range and not caller.privileged and (spec.user == "0:0" or same):
            return  # nothing to change, and no right to change it
        if self.id_range is not None and spec.uid:
            # From uid 0 inside to another one the rights go that were given by joining.
            self.add(Op("setuid", "setuid", note="0"))
        groups = b"".join(gid.to_bytes(4, "little") for gid in spec.additional_gids)
        count = len(spec.additional_gids)
        note = " ".join(map(str, spec.additional_gids)) or "none"
        if count or (caller.may_setgroups and "user" not in self.joined):
            self.add(Op("setgroups", "setgroups", arg=count, data=groups or None, note=note))
        if not in_range and same:
            return
        self.add(Op("setgid", "setgid", arg=spec.gid, note=str(spec.gid)))
        self.add(Op("setuid", "setuid", arg=spec.uid, note=str(spec.uid)))


def rlimit_op(rlimit: Rlimit, how: int = 0, least: int = 0) -> Op:
    soft, hard = (RLIM_INFINITY if n == -1 else n for n in (rlimit.soft, rlimit.hard))
    return Op(
        "rlimit",
        "rlimit",
        how,
        flags=rlimit.number,
        arg=least,
        data=soft.to_bytes(8, "little") + hard.to_bytes(8, "little"),
        note=f"{rlimit.type} {rlimit.soft}:{rlimit.hard}"
        + (" at most" if how & _core.HOW_SHARE else ""),
    )


def map_op(name: bytes, text: bytes) -> Op:
    """Writes one of a process' own map files."""
    return write_op("id_map", name, text)


def write_op(stage: str, name: bytes, text: bytes) -> Op:
    """Writes a process' own file, which has to be one of a proc file system."""
    return Op(
        "write",
        stage,
        flags=PROC_MAGIC,
        target=b"/proc/self/" + name,
        data=text,
        note=f"{name.decode()}: {text.decode().strip()}",
    )


def search_path(path: str | bytes | None) -> tuple[bytes, ...]:
    """The directories a command is looked up in; the default is execvp's own."""
    text = os.fsencode(path) if path is not None else b"/bin:/usr/bin"
    return tuple(directory or b"." for directory in text.split(b":"))


def _read(path: str) -> bytes:
    """A file of /proc; empty without /proc, and what depends on it will fail with its own error."""
    try:
        with open(path, "rb") as file:
            return file.read() or b""  # None: EAGAIN
    except OSError:
        return b""


def _parse(mount: Mount) -> mount_options.ParsedOptions:
    return _parsed(mount.type, tuple(mount.options))


_parsed = cached(512)(mount_options.parse)


def _is_below(mount: Mount, other: Mount) -> bool:
    return mount.destination.startswith(other.destination + "/")


def _map_text(mappings: Iterable[IDMapping]) -> bytes:
    return b"".join(b"%d %d %d\n" % (m.container_id, m.host_id, m.size) for m in mappings)


def _outside(mappings: Iterable[IDMapping], inside: int) -> int:
    """The caller's id of a mapped one."""
    for m in mappings:
        if m.container_id <= inside < m.container_id + m.size:
            return m.host_id + inside - m.container_id
    return 0


def _is_own_id(mappings: Sequence[IDMapping], own: int) -> bool:
    return len(mappings) == 1 and mappings[0].size == 1 and mappings[0].host_id == own


def _maps(mappings: Iterable[IDMapping], container_id: int) -> bool:
    return any(m.container_id <= container_id < m.container_id + m.size for m in mappings)
