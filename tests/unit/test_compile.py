"""The plan of a spec for each kind of caller: the way of starting, the order and the fields of ops.

Nothing is run. The callers are made up, so the plans do not depend on who runs the tests.
test_golden_plans.py compares whole lists of ops.
"""

from __future__ import annotations

import os
import stat
from typing import Any

import pytest
from plans import (
    ALL,
    CAP_SETUID,
    CAP_SYS_ADMIN,
    CAP_SYS_PTRACE,
    IDS,
    NESTED,
    ROOT,
    TREES,
    USER,
    Caller,
    Op,
    compiled,
    search_path,
)

import fastns
from fastns import _core
from fastns.errors import SpecError
from fastns.spec import DEFAULT_RLIMITS, IDMapping, Mount, Rlimit, Spec

pytestmark = pytest.mark.usefixtures("made_up_host")

HOSTED = dict.fromkeys(("pid", "mount", "uts", "ipc", "network", "cgroup"), "host")
RANGE = [IDMapping(0, 100000, 1000)]
NODEV = 4
PLACE = IDS[:2]  # the host's uid and gid of 0:0 inside, if root is the caller
JOINED = {**HOSTED, "mount": "/n/mnt", "pid": "/n/pid", "user": "/n/user", "network": "/n/net"}
HOSTS_IDS: dict[str, Any] = {"namespaces": {"user": "host"}}
BARE: dict[str, Any] = {"rootfs": "/srv/root", "default_mounts": False}

OWN_ROOT = "propagation rootfs rootfs pivot_root network"
MAPPED = "rlimit id_map id_map id_map"
BECOMES = "setgroups setgid setuid"
JOINS = f"id_map capabilities {BECOMES}"


@pytest.mark.parametrize(
    ("fields", "caller", "way", "before", "after"),
    [
        # `way` is method and id_map. `before` has the stages between the limit on core dumps and
        # the keyring, `after` those between the umask and the last three.
        ({**BARE, **HOSTS_IDS}, ROOT, "direct none", OWN_ROOT, "capabilities setgroups"),
        (BARE, ROOT, "direct range", OWN_ROOT, JOINS),
        (BARE, TREES, "direct range", "rootfs rootfs network", JOINS),
        (BARE, USER, "direct self", f"{MAPPED} {OWN_ROOT}", "capabilities"),
        (BARE, NESTED, "direct none", OWN_ROOT, "capabilities"),
        ({**BARE, "namespaces": {"user": "new"}}, ROOT, "direct self", f"{MAPPED} {OWN_ROOT}",
         "capabilities"),
        ({**BARE, "namespaces": {"user": "new"}}, NESTED, "direct self", f"{MAPPED} {OWN_ROOT}",
         "capabilities"),
        ({**BARE, "init": True}, ROOT, "direct range", OWN_ROOT, JOINS),
        ({**BARE, "files": {"/etc/hosts": "a"}}, USER, "direct self",
         f"{MAPPED} propagation rootfs file rootfs file pivot_root network", "capabilities"),
        ({**BARE, "root_mode": "chroot", "network": "host"}, ROOT, "direct range",
         "propagation rootfs rootfs chroot", JOINS),
        ({"rootfs": "/srv/root", "root_mode": "chroot", "namespaces": HOSTED}, ROOT,
         "direct range", "rootfs chroot", JOINS),
        ({"namespaces": HOSTED}, ROOT, "direct range", "", JOINS),
        ({"namespaces": {**HOSTED, "user": "host"}}, USER, "direct none", "", ""),
        ({"namespaces": HOSTED}, NESTED, "direct none", "", "capabilities"),
        ({**BARE, "user": "5:6"}, USER, "direct self", f"{MAPPED} {OWN_ROOT}", "capabilities"),
        ({**BARE, "user": "5:6"}, NESTED, "direct none", OWN_ROOT, "capabilities setgid setuid"),
        ({**BARE, "user": "5:6", "uid_mappings": RANGE, "gid_mappings": RANGE}, ROOT,
         "direct parent",
         "rlimit propagation rootfs setgid setuid rootfs pivot_root network",
         f"capabilities {BECOMES}"),
        ({"default_mounts": False, "uid_mappings": RANGE, "gid_mappings": RANGE}, USER,
         "direct newuidmap",
         f"rlimit propagation setgid setuid{' rootfs' * 6} read_only pivot_root network",
         f"capabilities {BECOMES}"),
        ({"namespaces": {**HOSTED, "ipc": "/n/ipc", "uts": "/n/uts"}}, ROOT, "direct range",
         "setns setns", JOINS),
        ({"namespaces": JOINED}, USER, "staged none", "setns setns setns setns",
         "capabilities setgid setuid"),
    ],
)  # fmt: skip
def test_the_way_and_the_stages(
    fields: dict[str, Any], caller: Caller, way: str, before: str, after: str
) -> None:
    """Covers cases for which test_golden_plans.py has no list."""
    plan = compiled(Spec(**fields), caller)
    assert f"{plan.method} {plan.id_map}" == way
    shares = ["keyring", *["rlimit"] * 4, "umask"]
    last = ["capabilities", "no_new_privileges", "seccomp"]
    assert [op.stage for op in plan.ops] == [
        "rlimit", *before.split(), *shares, *after.split(), *last
    ]  # fmt: skip


# ---- the fields of ops ----


def ops(spec: Spec, caller: Caller, code: str) -> list[Op]:
    return [op for op in compiled(spec, caller).ops if op.code == code]


def one(spec: Spec, caller: Caller, code: str) -> Op:
    (found,) = ops(spec, caller, code)
    return found


@pytest.mark.parametrize(
    ("fields", "tree"),
    [
        (BARE, True),
        ({**BARE, "mounts": [Mount(f"/{i}", source="/s") for i in range(16)]}, True),
        ({**BARE, "mounts": [Mount(f"/{i}", source="/s") for i in range(17)]}, False),
        ({**BARE, "mounts": [Mount("/b", source="/s", options=["rslave"])]}, False),
        ({**BARE, "overlay": True}, False),
        ({**BARE, "files": {"/f": "x"}}, False),
        ({**BARE, "root_mode": "chroot"}, False),
        ({**BARE, "init": True}, False),
        ({**BARE, "capabilities": ["NET_ADMIN"]}, False),  # its user namespace may own its mounts
        ({}, False),  # its root is made from the caller's view
    ],
)
def test_which_plans_make_a_tree_namespace(fields: dict[str, Any], tree: bool) -> None:
    plan = compiled(Spec(**fields), TREES)
    assert plan.mount_namespace == ("tree" if tree else "copied")
    assert ("tree_namespace" in [op.code for op in plan.ops]) == tree
    ahead = [bool(op.how & _core.HOW_AHEAD) for op in plan.ops if op.code == "bind"]
    assert ahead == [tree] * len(fields.get("mounts", ()))
    assert compiled(Spec(**fields), ROOT).mount_namespace == "copied"


@pytest.mark.parametrize(
    ("fields", "caller", "namespaces"),
    [
        ({}, ROOT, "pid mount uts ipc network cgroup"),
        ({}, USER, "pid mount uts ipc network user cgroup"),
        ({"network": "host"}, NESTED, "pid mount uts ipc cgroup"),
        ({"namespaces": {"time": "new"}}, ROOT, "pid mount uts ipc network cgroup time"),
        ({"namespaces": {"pid": "/n/pid"}}, ROOT, "mount uts ipc network cgroup"),
        ({"namespaces": HOSTED}, ROOT, ""),
    ],
)
def test_the_clones_namespaces(fields: dict[str, Any], caller: Caller, namespaces: str) -> None:
    plan = compiled(Spec(**fields), caller)
    assert " ".join(plan.namespaces) == namespaces


def test_the_single_id_is_the_callers() -> None:
    written = {op.target: op.data for op in ops(Spec(user="5:6"), USER, "write")}
    assert written == {
        b"/proc/sys/user/max_inotify_instances": b"64",
        b"/proc/self/setgroups": b"deny",
        b"/proc/self/gid_map": b"6 1000 1\n",
        b"/proc/self/uid_map": b"5 1000 1\n",
    }


def test_the_order_of_joined_namespaces() -> None:
    joined = {kind: f"/n/{kind}" for kind in ("mount", "uts", "pid", "user", "network")}
    plan = compiled(Spec(namespaces=joined), ROOT)
    setns = [op for op in plan.ops if op.code == "setns"]
    assert [op.source for op in setns] == [
        b"/n/user",
        b"/n/pid",
        b"/n/uts",
        b"/n/network",
        b"/n/mount",
    ]
    # In the joined user namespace, root has no rights over the others. Therefore it is opened
    # first, while its path is visible, and joined last.
    assert setns[0].how == _core.HOW_OPEN
    assert plan.ops[plan.ops.index(setns[-1]) + 1].code == "join_user"
    assert [op.flags for op in setns] == [1 << 28, 1 << 29, 1 << 26, 1 << 30, 1 << 17]


@pytest.mark.parametrize(
    ("fields", "read_only"),
    [
        ({"rootfs": "/r"}, 0),
        ({"rootfs": "/r", "read_only": True}, 1),
        ({"rootfs": "/r", "overlay": True}, 0),
        ({"rootfs": "/r", "overlay": True, "read_only": True}, 0),  # the layer becomes read-only
    ],
)
def test_the_tree_of_the_root(fields: dict[str, Any], read_only: int) -> None:
    tree = one(Spec(**fields), ROOT, "root_tree")
    assert (tree.flags, tree.how) == (read_only | NODEV, _core.HOW_RECURSIVE | _core.HOW_IDMAP)
    for caller, namespaces in ((ROOT, {"user": "host"}), (USER, {})):
        tree = one(Spec(**fields, namespaces=namespaces), caller, "root_tree")
        assert tree.how == _core.HOW_RECURSIVE
    assert tree.source == os.fsencode(fields["rootfs"])
    own = one(Spec(**fields, default_mounts=False), ROOT, "root_tree")
    assert own.flags == read_only  # without default mounts, devices of the root work


def test_devices_in_a_bind_need_the_option_dev() -> None:
    for options, flags, cleared in (([], NODEV, 0), (["dev"], 0, NODEV), (["nodev"], NODEV, 0)):
        mount = Mount("/b", source="/s", options=options)
        bind = one(Spec(**BARE, mounts=[mount]), ROOT, "bind")
        assert (bind.flags, bind.arg) == (flags, cleared)
    for caller, cleared in ((ROOT, NODEV), (USER, 0)):
        mount = Mount("/b", source="/s", options=["rbind", "dev"])
        bind = one(Spec(**BARE, mounts=[mount]), caller, "bind")
        assert (bind.flags, bind.arg) == (0, cleared)  # a user cannot clear nodev, which is locked
    for options, flags in (([], NODEV), (["dev"], 0)):
        mount = Mount("/o", type="overlay", options=["lowerdir=/a:/b", *options])
        assert one(Spec(**BARE, mounts=[mount]), ROOT, "mount").flags == flags
    for default_mounts in (True, False):
        spec = Spec(rootfs="/r", overlay=True, default_mounts=default_mounts)
        assert one(spec, ROOT, "overlay").flags == (NODEV if default_mounts else 0)


def test_a_relative_rootfs() -> None:
    tree = one(Spec(rootfs="some/../root"), ROOT, "root_tree")
    assert tree.source == os.fsencode(os.path.join(os.getcwd(), "root"))


def test_missing_targets_are_made_only_in_temporary_layers() -> None:
    mounts = [
        Mount("/a", source="/s"),
        Mount("/t", "tmpfs"),
        Mount("/t/b", source="/s"),
        Mount("/t/b/c", source="/s"),
        Mount("/x", source="/s", options=["X-mount.mkdir"]),
    ]
    plan = compiled(Spec(**BARE, mounts=mounts), ROOT)
    creating = {
        os.fsdecode(op.target or b""): bool(op.how & _core.HOW_CREATE)
        for op in plan.ops
        if op.stage == "mount"
    }
    assert creating == {"/a": False, "/t": False, "/t/b": True, "/t/b/c": False, "/x": True}
    over = compiled(Spec(**BARE, overlay=True, mounts=mounts[:1]), ROOT)
    assert [bool(op.how & _core.HOW_CREATE) for op in over.ops if op.code == "bind"] == [True]


@pytest.mark.parametrize(
    ("destination", "options", "tmpfs_size", "data"),
    [
        ("/t", [], None, "size=536870912,nr_inodes=131072"),
        ("/t", [], "1m", "size=1048576,nr_inodes=1024"),
        ("/dev/shm", [], None, "size=67108864,nr_inodes=16384"),
        ("/dev/shm", [], "1g", "size=1073741824,nr_inodes=262144"),
        ("/t", ["size=1g"], "1m", "size=1g,nr_inodes=262144"),
        ("/t", ["size=64M", "nr_inodes=7"], None, "size=64M,nr_inodes=7"),
        ("/t", ["nr_blocks=64k"], None, "nr_blocks=64k,nr_inodes=65536"),
        ("/t", ["size=0"], None, "size=0"),
        ("/t", ["size=9999999t"], None, "size=9999999t,nr_inodes=1099511627776"),
        ("/t", ["nr_inodes=9"], None, "nr_inodes=9,size=536870912"),
    ],
)
def test_the_size_of_a_tmpfs(
    destination: str, options: list[str], tmpfs_size: Any, data: str
) -> None:
    mounts = [Mount(destination, "tmpfs", options=options)]
    mount = one(Spec(**BARE, mounts=mounts, tmpfs_size=tmpfs_size), USER, "mount")
    assert (mount.data or b"").decode() == data


def test_a_tmpfs_of_half_the_memory() -> None:
    mount = one(Spec(**BARE, mounts=[Mount("/t", "tmpfs", options=["size=50%"])]), USER, "mount")
    size, inodes = (mount.data or b"").decode().split(",")
    assert size == "size=50%"
    assert int(inodes.partition("=")[2]) == os.sysconf("SC_PHYS_PAGES") // 2


def test_the_size_of_the_scratch_tmpfs() -> None:
    """The size is enlarged for the files that fastns itself writes there."""
    given: dict[str, Any] = {"files": {"/a": "x", "/b": b"y" * 4097, "/c": ""}}
    for more, size in (({}, 512 << 20), ({"tmpfs_size": "8m", "overlay": True}, 8 << 20)):
        op = one(Spec(**BARE, **given, **more), ROOT, "scratch")  # type: ignore[arg-type]
        size += 3 * 4096
        assert op.type == b"mode=755,size=%d,nr_inodes=%d" % (size, size // 4096 + 3)


def test_a_mount_carries_its_options() -> None:
    options = ["ro", "nosuid", "size=1m", "mode=700"]
    mount = one(Spec(**BARE, mounts=[Mount("/t", "tmpfs", options=options)]), ROOT, "mount")
    assert (mount.flags, mount.type, mount.source, mount.data) == (
        1 | 2,
        b"tmpfs",
        b"tmpfs",
        b"size=1m,mode=700,uid=%d,gid=%d,nr_inodes=1024" % PLACE,
    )
    bind = one(
        Spec(**BARE, mounts=[Mount("/b", source="/s", options=["rbind", "rslave", "ro", "exec"])]),
        ROOT,
        "bind",
    )
    kept = _core.HOW_IDMAP | _core.HOW_OPTIONAL
    assert bind.how == _core.HOW_RECURSIVE | _core.HOW_SLAVE | kept
    assert (bind.flags, bind.arg) == (1 | 4, 8)  # set read-only and nodev, clear noexec


@pytest.mark.parametrize(("option", "flag"), [("rprivate", 1 << 18), ("rslave", 1 << 19)])
def test_propagation_is_private_unless_a_mount_is_a_slave(option: str, flag: int) -> None:
    spec = Spec(**BARE, mounts=[Mount("/b", source="/s", options=[option])])
    assert one(spec, ROOT, "propagation").flags == flag


def test_nodes_of_dev() -> None:
    node = ops(Spec(), ROOT, "device")[0]
    assert (node.flags, node.arg) == (stat.S_IFCHR | 0o666, os.makedev(1, 3))


@pytest.mark.parametrize(("caller", "extra"), [(ROOT, b""), (USER, b",userxattr")])
def test_the_attributes_of_an_overlay(caller: Caller, extra: bytes) -> None:
    overlay = one(Spec(**BARE, overlay=True), caller, "overlay")
    assert overlay.data == b"lowerdir=lower,upperdir=upper,workdir=work" + extra


def test_limits_groups_and_files_are_bytes() -> None:
    spec = Spec(
        **BARE,
        user="5:6",
        additional_gids=[7, 258],
        umask=0o77,
        files={"/f": "é"},
        rlimits=[Rlimit("RLIMIT_NOFILE", 64, -1)],
    )
    rlimit = ops(spec, ROOT, "rlimit")[-1]
    assert (rlimit.flags, rlimit.data) == (7, bytes([64]) + bytes(7) + b"\xff" * 8)
    groups = one(spec, ROOT, "setgroups")
    assert (groups.arg, groups.data) == (2, bytes([7, 0, 0, 0, 2, 1, 0, 0]))
    assert [one(spec, ROOT, code).arg for code in ("setgid", "umask")] == [6, 0o77]
    assert [op.arg for op in ops(spec, ROOT, "setuid")] == [
        0,
        5,
    ]  # first 0, which keeps rights
    file = one(spec, ROOT, "file_bind")
    assert (file.arg, file.data) == (2, "é".encode())


def rlimits(caller: Caller, **fields: Any) -> list[tuple[str, int, int]]:
    """The note, `how` and least value of each resource limit of the plan."""
    return [(op.note, op.how, op.arg) for op in ops(Spec(**BARE, **fields), caller, "rlimit")]


def test_the_specs_limits_replace_the_defaults() -> None:
    half = _core.HOW_HALF
    core, *others = rlimits(ROOT)
    assert core == ("RLIMIT_CORE 1:1", _core.HOW_OPTIONAL, 0)
    assert others == [
        ("RLIMIT_NOFILE 1024:4096 at most", half, 256),
        ("RLIMIT_SIGPENDING 4096:4096 at most", half, 0),
        ("RLIMIT_MSGQUEUE 409600:409600 at most", half, 0),
        ("RLIMIT_MEMLOCK 4194304:4194304 at most", half, 0),
    ]
    for rlimit in DEFAULT_RLIMITS:
        own = rlimits(ROOT, rlimits=[Rlimit("RLIMIT_AS", 5, 5), Rlimit(rlimit.type, 0, -1)])
        assert (f"{rlimit.type} 0:-1", 0, 0) in own
        assert len([note for note, *_ in own if note.startswith(rlimit.type)]) == 1
        assert ("RLIMIT_AS 5:5", 0, 0) in own


def test_the_limit_on_core_dumps_is_the_first_op() -> None:
    for fields in ({}, {"init": True}, {"namespaces": JOINED}):
        plan = compiled(Spec(**fields), ROOT)
        assert plan.ops[0].note == "RLIMIT_CORE 1:1"
    own = compiled(Spec(rlimits=[Rlimit("RLIMIT_AS", 5, 5), Rlimit("RLIMIT_CORE", 0, 0)]), USER)
    assert own.ops[0].note == "RLIMIT_CORE 0:0"


@pytest.mark.parametrize("fields", [{}, {"init": True}])
def test_a_negative_oom_score_adj_is_reset(fields: dict[str, Any]) -> None:
    for capabilities in (ALL, 0):
        plan = compiled(Spec(**fields), Caller(1, 1, True, capabilities, True, spared=True))
        first = plan.ops[0]
        assert (first.code, first.stage, first.data) == ("write", "oom_score_adj", b"0")
        assert first.target == b"/proc/self/oom_score_adj"
    assert "oom_score_adj" not in [op.stage for op in compiled(Spec(**fields), ROOT).ops]


def test_a_range_without_0_inside_uses_the_user() -> None:
    ids = [IDMapping(5, 100000, 10)]
    spec = Spec(**BARE, user="5:6", uid_mappings=ids, gid_mappings=ids)
    assert [op.arg for op in ops(spec, ROOT, "setuid")] == [5, 5]
    assert [op.arg for op in ops(spec, ROOT, "setgid")] == [6, 6]


@pytest.mark.parametrize(
    ("capabilities", "way"),
    [(0, "newuidmap"), (CAP_SYS_ADMIN, "newuidmap"), (CAP_SYS_ADMIN | CAP_SETUID, "parent")],
)
def test_who_writes_a_range(capabilities: int, way: str) -> None:
    caller = Caller(1000, 1000, True, capabilities, True)
    spec = Spec(**BARE, uid_mappings=RANGE, gid_mappings=RANGE)
    assert compiled(spec, caller).id_map == way


def test_ids_in_mount_options_are_ids_inside() -> None:
    options = ["uid=5", "gid=6", "size=0"]
    spec = Spec(**BARE, mounts=[Mount("/t", "tmpfs", options=options)])
    owners = b"uid=%d,gid=%d" % (PLACE[0] + 5, PLACE[1] + 6)
    assert one(spec, ROOT, "mount").data == b"size=0," + owners
    assert one(spec, USER, "mount").data == b"uid=5,gid=6,size=0"
    pts = Spec(**BARE, mounts=[Mount("/p", "devpts", options=["newinstance", "gid=5"])])
    assert one(pts, ROOT, "mount").data == b"newinstance,gid=%d" % (PLACE[1] + 5)


def test_which_binds_are_idmapped() -> None:
    """Each bind of the spec, by default and if the kernel can. Other mounts keep the host's ids."""
    may = _core.HOW_IDMAP | _core.HOW_OPTIONAL
    for options, how in (([], may), (["idmap"], _core.HOW_IDMAP), (["noidmap"], 0)):
        spec = Spec(**BARE, mounts=[Mount("/b", source="/s", options=options)])
        assert one(spec, ROOT, "bind").how == how
        hosts = Spec(**{**vars(spec), **HOSTS_IDS})
        for same, caller in ((spec, USER), (hosts, ROOT)):
            assert one(same, caller, "bind").how == 0  # the caller's files have the right owner
    for fields in ({"namespaces": {"pid": "host"}}, {"network": "host"}, {"files": {"/a": "x"}}):
        for op in compiled(Spec(rootfs="/r", **fields), ROOT).ops:  # type: ignore[arg-type]
            assert not op.how & _core.HOW_IDMAP or op.code == "root_tree", op


def test_a_bind_in_which_a_target_is_made_is_plain() -> None:
    made = {"options": ["X-mount.mkdir"]}
    a, b = Mount("/a", source="/s"), Mount("/a/b", source="/s")
    below = Mount("/a/b/c", "tmpfs", **made)  # type: ignore[arg-type]
    for mounts, plain in (
        ([a, b], []),
        ([a, below], ["/a"]),
        ([a, b, below], ["/a/b"]),
        ([a, Mount("/ab/c", source="/s", **made)], []),  # type: ignore[arg-type]
    ):
        binds = compiled(Spec(rootfs="/r", mounts=mounts), ROOT).binds
        assert [at for at, *_, why in binds if why] == plain


@pytest.mark.parametrize(
    ("fields", "field"),
    [({"user": "65536"}, "user"), ({"user": "0:70000"}, "user"),
     ({"additional_gids": [5, 65536]}, "additional_gids")],
)  # fmt: skip
def test_an_id_beyond_the_range(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(SpecError, match="below 65536") as caught:
        compiled(Spec(**BARE, **fields), ROOT)
    assert caught.value.field == field
    compiled(Spec(**BARE, **fields, namespaces={"user": "host"}), ROOT)


@pytest.mark.parametrize(
    ("caller", "has"),
    [(ROOT, True), (NESTED, False), (Caller(0, 0, True, ALL & ~CAP_SETUID, True), False),
     (Caller(1000, 1000, True, ALL, True), True)],
)  # fmt: skip
def test_who_has_a_range(caller: Caller, has: bool) -> None:
    plan = compiled(Spec(**BARE), caller)
    assert (plan.ids is not None) == (plan.id_map == "range") == has


@pytest.mark.parametrize(
    ("fields", "fails"),
    [
        ({"capabilities": ["NET_RAW"]}, True),
        ({"capabilities": ["NET_RAW"], "init": True}, True),
        ({"capabilities": ["NET_RAW"], **HOSTS_IDS}, False),
        ({"capabilities": ["NET_RAW"], "namespaces": {"user": "new"}}, False),
        # no new namespace has to belong to the range's user namespace
        ({"capabilities": ["NET_RAW"], "network": "host",
          "namespaces": {"uts": "host", "ipc": "host"}}, False),
        ({}, False),
    ],
)  # fmt: skip
def test_capabilities_take_the_right_to_trace(fields: dict[str, Any], fails: bool) -> None:
    spec = Spec(**BARE, **fields)
    compiled(spec, ROOT)
    bare = Caller(0, 0, True, ALL & ~CAP_SYS_PTRACE, True)
    if not fails:
        compiled(spec, bare)
        return
    with pytest.raises(SpecError, match="CAP_SYS_PTRACE") as caught:
        compiled(spec, bare)
    assert caught.value.field == "capabilities"


def test_the_owner_of_pipes() -> None:
    for fields, caller, owner in (
        ({}, ROOT, PLACE),
        ({"user": "5:6"}, ROOT, (PLACE[0] + 5, PLACE[1] + 6)),
        ({"namespaces": {"user": "host"}}, ROOT, None),
        ({"namespaces": {"user": "host"}, "user": "5:6"}, ROOT, (5, 6)),
        ({"uid_mappings": RANGE, "gid_mappings": RANGE, "user": "5:6"}, ROOT, (100005, 100006)),
        ({}, USER, None),
    ):
        assert compiled(Spec(**BARE, **fields), caller).pipe_owner == owner, fields


def test_a_caller_with_several_ids() -> None:
    """The sandbox must not keep a saved id that differs, for example of a set-user-ID program."""
    spec = Spec(**BARE, namespaces={"user": "host"})
    plan = compiled(spec, Caller(0, 0, False, ALL, True))
    assert [op.code for op in plan.ops[-6:-3]] == ["setgroups", "setgid", "setuid"]


# ---- refused specs ----


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"namespaces": {"user": "host"}}, "namespaces", "pid, mount, uts, ipc, network, cgroup"),
        ({"namespaces": {**HOSTED, "user": "host", "ipc": "new"}}, "namespaces", "have ipc with"),
        (
            {"namespaces": {**HOSTED, "user": "host"}, "rootfs": "/r", "root_mode": "chroot"},
            "namespaces",
            "have rootfs with",
        ),
        ({"additional_gids": [5]}, "additional_gids", "give gid_mappings with a range"),
    ],
)
def test_refused_to_a_user(fields: dict[str, Any], field: str, words: str) -> None:
    compiled(Spec(**fields), ROOT)  # root may use it
    with pytest.raises(SpecError) as caught:
        compiled(Spec(**fields), USER)
    assert caught.value.field == field
    assert words in caught.value.reason


# ---- the plan ----


def test_the_environment_and_the_search_path() -> None:
    plan = compiled(Spec(env={"PATH": "/a::b", "X": "1"}, cwd="/w"), ROOT)
    assert plan.search_path == (b"/a", b".", b"b")
    assert b"X=1" in plan.environ
    assert b"PATH=/a::b" in plan.environ
    assert plan.cwd == b"/w"
    assert search_path(None) == (b"/bin", b"/usr/bin")
    assert b"HOME=/tmp" in compiled(Spec(user="5"), ROOT).environ
    assert b"HOME=/tmp" in compiled(Spec(), USER).environ


def test_describe_numbers_the_ops_as_errors_do() -> None:
    plan = fastns.compile(Spec(rootfs="/r", hostname="box"))
    described = plan.describe()
    for index, op in enumerate(plan.ops):
        assert [line for line in described if line.startswith(f"{op.stage}[{index}]")]
    assert f"hostname[{[op.code for op in plan.ops].index('hostname')}] box" in described
    assert not [line for line in described if "\n" in line]


def test_equal_specs_share_a_plan() -> None:
    assert fastns.compile(Spec(hostname="a")) is fastns.compile(Spec(hostname="a"))
    assert fastns.compile(Spec(hostname="a")) is not fastns.compile(Spec(hostname="b"))
    assert fastns.compile() is fastns.compile(Spec())
