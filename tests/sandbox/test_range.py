"""Root's sandboxes run in a user namespace with a range of ids. The tests check their ids outside,
the owners of files, and that the caller is unharmed."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import support
from inside import runner
from processes import script

import fastns
from fastns import IDMapping, Mount, SpawnError, Spec, Template, _core
from fastns._compile import userns

pytestmark = pytest.mark.as_root
HOSTS = {"namespaces": {"user": "host"}}
WAYS = ("direct", "init", "template", "ready")
PR_GET_DUMPABLE = 3


@pytest.fixture
def root(busybox_rootfs: Path, public_dir: Path) -> Iterator[Path]:
    """A copy of the root, with a file that only its owner may read."""
    path = support.copy_tree(busybox_rootfs, public_dir / "range-root")
    (path / "secret").write_text("of root\n")
    (path / "secret").chmod(0o600)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def volume(public_dir: Path) -> Iterator[Path]:
    """A directory of the host with a file that only root may read, and a user's file."""
    path = public_dir / "range-volume"
    path.mkdir()
    (path / "secret").write_text("of the host\n")
    (path / "secret").chmod(0o600)
    (path / "users").write_text("")
    os.chown(path / "users", 70000, 70000)
    yield path
    shutil.rmtree(path)


def sh(run: Any, code: str) -> tuple[int, str]:
    done = run(["sh", "-c", code], capture_output=True, text=True, stdin=fastns.DEVNULL)
    return done.returncode, done.stdout + done.stderr


def first() -> tuple[int, int]:
    """The host's uid and gid for 0:0 inside."""
    return userns.range_of_root()[:2]


# ---- ids and owners ----


@pytest.mark.parametrize("way", ["direct", "init", "template"])
@pytest.mark.parametrize("user", ["0:0", "7:8"])
def test_ids_outside(root: Path, way: str, user: str) -> None:
    """The ids outside are in the range. The process has no groups and no capabilities."""
    spec = Spec(rootfs=root, user=user, init=way == "init")
    with contextlib.ExitStack() as stack:
        spawn: Any = functools.partial(fastns.spawn, spec=spec)
        if way == "template":
            spawn = stack.enter_context(Template(spec)).spawn
        with spawn(["sh", "-c", "echo; exec sleep 60"], stdout=fastns.PIPE) as sandbox:
            assert sandbox.stdout is not None
            sandbox.stdout.readline()
            status = Path(f"/proc/{sandbox.pid}/status").read_text()
            found = dict(line.split(":\t", 1) for line in status.splitlines())
            maps = [
                Path(f"/proc/{sandbox.pid}/{n}_map").read_text().split() for n in ("uid", "gid")
            ]
            sandbox.kill()
    inside = map(int, user.split(":"))
    ids = [str(start + number) for start, number in zip(first(), inside, strict=True)]
    assert [found["Uid"].split(), found["Gid"].split()] == [[ids[0]] * 4, [ids[1]] * 4]
    assert found["Groups"].strip() == ""
    assert int(found["CapBnd"], 16) == int(found["CapPrm"], 16) == 0
    assert maps == [["0", str(start), str(userns.SIZE)] for start in first()]
    assert sandbox.id_map == "range"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("overlay", [False, True], ids=["plain", "overlay"])
def test_files_of_the_root_keep_their_owners(root: Path, way: str, overlay: bool) -> None:
    with runner(way, rootfs=root, overlay=overlay) as run:
        seen = sh(run, "cat /secret; stat -c '%u %g' /secret /bin; id -u")
        assert seen == (0, "of root\n0 0\n0 0\n0\n")
        assert sh(run, "echo changed >/secret; echo >/made; mkdir /dir; stat -c %u /made /dir") == (
            0,
            "0\n0\n",
        )
    changed = (root / "secret").read_text() == "changed\n"
    assert changed == (root / "made").exists() == (root / "dir").exists() == (not overlay)
    if not overlay:
        assert {(root / name).stat().st_uid for name in ("made", "dir", "secret")} == {0}


@pytest.mark.parametrize("way", WAYS)
def test_files_made_for_the_sandbox_belong_to_its_root(root: Path, way: str) -> None:
    fields: dict[str, Any] = {
        "rootfs": root,
        "overlay": True,
        "files": {"/etc/deep/x": "text"},
        "mounts": [
            Mount("/scratch/here", type="tmpfs", options=["uid=5", "gid=6", "mode=700"]),
            Mount("/new/place", source="/bin", options=["rbind"]),
        ],
    }
    paths = "/ /tmp /run /dev /dev/shm /etc/deep /etc/deep/x /scratch /new"
    with runner(way, **fields) as run:
        code, seen = sh(run, f"stat -c '%u %g' {paths}")
        assert (code, set(seen.splitlines())) == (0, {"0 0"})
        assert sh(run, "stat -c '%u %g' /scratch/here") == (0, "5 6\n")
        assert sh(run, "echo out >/dev/stdout; echo err >/dev/stderr") == (0, "out\nerr\n")
        assert sh(run, "touch /tmp/x /run/x /dev/shm/x && echo made") == (0, "made\n")


@pytest.mark.parametrize("fields", [{}, HOSTS, {"init": True}, {**HOSTS, "init": True}], ids=str)
def test_pipes_belong_to_the_sandboxes_user(root: Path, fields: dict[str, Any]) -> None:
    """Opening /dev/stderr opens the pipe again, which needs permission on the pipe."""
    words = ["sh", "-c", "read -r line </dev/stdin; echo $line >/dev/stdout; echo x >/dev/stderr"]
    spec = Spec(rootfs=root, user="7:8", **fields)
    done = fastns.run(words, spec=spec, input=b"in\n", capture_output=True)
    assert (done.stdout, done.stderr) == (b"in\n", b"x\n")
    pipes: dict[str, Any] = {"stdin": fastns.PIPE, "stdout": fastns.PIPE, "stderr": fastns.PIPE}
    with fastns.spawn(words, spec=spec, **pipes) as sandbox:
        assert sandbox.communicate(b"in\n", timeout=20) == (b"in\n", b"x\n")


# ---- which range ----

FREE = userns.FIRST
LISTED = {  # subuid entries, subgid entries -> the first uid and gid of the range
    "root's own": ("other:100:65536\nroot:300000:65536\n", "root:500000:70000\n", 300000, 500000),
    "by number": ("0:300000:65536\n", "0:300000:65536\n", 300000, 300000),
    "second of two": ("root:9000:10\nroot:300000:65536\n", "root:500000:65536\n", 300000, 500000),
    "too small": ("root:300000:65535\n", "root:500000:65536\n", FREE, FREE),
    "for uids only": ("root:300000:65536\n", "", FREE, FREE),
    "others'": (f"other:{FREE}:65536\n", f"other:{FREE + 65536}:1\n", FREE + 131072, FREE + 131072),
}
WHERE = """
import contextlib, pathlib, sys, fastns
for way in ("direct", "init", "template"):
    spec = fastns.Spec(rootfs=sys.argv[1], user="7:8", init=way == "init")
    with contextlib.ExitStack() as stack:
        spawn = stack.enter_context(fastns.Template(spec)).spawn if way == "template" else (
            lambda args: fastns.spawn(args, spec=spec))
        with spawn(["sleep", "60"]) as sandbox:
            proc = pathlib.Path(f"/proc/{sandbox.pid}")
            maps = [(proc / f"{name}_map").read_text().split() for name in ("uid", "gid")]
            print(way, *maps[0], *maps[1], sandbox.id_map)
            sandbox.kill()
"""


@pytest.mark.parametrize("case", LISTED)
def test_a_range_that_is_listed(root: Path, tmp_path: Path, case: str) -> None:
    """Runs in a mount namespace, with other files mounted over /etc/subuid and /etc/subgid."""
    uids, gids, first_uid, first_gid = LISTED[case]
    (tmp_path / "subuid").write_text(uids)
    (tmp_path / "subgid").write_text(gids)
    before = [Path(path).read_bytes() for path in userns.FILES]
    binds = "mount --bind $1/subuid /etc/subuid && mount --bind $1/subgid /etc/subgid"
    words = ["sh", "-c", f'{binds} && exec "$2" -c "$3" "$4"', "sh", str(tmp_path)]
    command = ["unshare", "-m", *words, sys.executable, WHERE, str(root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    maps = f"0 {first_uid} 65536 0 {first_gid} 65536 range"
    assert done.stdout.splitlines() == [f"{way} {maps}" for way in ("direct", "init", "template")]
    assert [Path(path).read_bytes() for path in userns.FILES] == before


# ---- no rights outside ----


@pytest.mark.parametrize("way", WAYS)
def test_files_of_the_host_are_out_of_reach(volume: Path, root: Path, way: str) -> None:
    """Files in the host's own directories and in a plain bind. Each case has a control."""
    plain = Mount("/mnt", source=volume, options=["noidmap"])
    attempts = {
        "hosts directories": ({}, "cat /etc/shadow"),
        "bind": ({"rootfs": root, "mounts": [plain]}, "cat /mnt/secret"),
        "bind, writing": ({"rootfs": root, "mounts": [plain]}, "echo >/mnt/new && rm /mnt/new"),
    }
    for what, (fields, code) in attempts.items():
        with runner(way, **fields) as run:
            status, seen = sh(run, code)
        assert (status != 0, "Permission denied" in seen) == (True, True), (what, seen)
        with runner(way, **fields, **HOSTS) as run:  # the control
            status, seen = sh(run, code)
        assert status == 0, (what, seen)


def test_a_bind_that_keeps_owners(root: Path, volume: Path) -> None:
    """Root's files are root's inside. Ids beyond the range are nobody."""
    mount = Mount("/mnt", source=volume, options=["idmap"])
    for way in WAYS:
        with runner(way, rootfs=root, mounts=[mount]) as run:
            code = "cat /mnt/secret; stat -c %u /mnt/users; echo >/mnt/made; stat -c %u /mnt/made"
            assert sh(run, code) == (0, "of the host\n65534\n0\n")
        assert (volume / "made").stat().st_uid == 0
        (volume / "made").unlink()


@pytest.mark.parametrize("way", ["direct", "init"])
def test_no_rights_over_the_hosts_processes(root: Path, way: str) -> None:
    """The control: with the host's ids the signal kills the process."""
    with subprocess.Popen(["sleep", "60"]) as victim:
        code = f"kill -9 {victim.pid} 2>&1; cat /proc/{victim.pid}/environ 2>&1"
        namespaces = {"pid": "host"}
        if way == "direct":
            with runner(way, rootfs=root, namespaces=namespaces) as run:
                assert "not permitted" in sh(run, code)[1]
        assert victim.poll() is None
        with runner("direct", rootfs=root, namespaces={**namespaces, "user": "host"}) as run:
            sh(run, code)  # the control
        assert victim.wait(timeout=10) == -9


# ---- targets that are missing ----


@pytest.mark.parametrize("way", WAYS)
def test_a_target_is_made_in_the_root(root: Path, volume: Path, way: str) -> None:
    """The caller makes the target before the tree is idmapped: in an idmapped tree, the caller is
    nobody."""
    mounts = [
        Mount("/a/b", source=volume, options=["X-mount.mkdir"]),
        Mount("/c/file", source=volume / "secret", options=["X-mount.mkdir"]),
        Mount("/d/e", type="tmpfs", options=["X-mount.mkdir"]),
    ]
    with runner(way, rootfs=root, mounts=mounts) as run:
        assert sh(run, "ls /a/b; stat -c '%u %g' /a /c /d /d/e") == (
            0,
            "secret\nusers\n" + "0 0\n" * 4,
        )
    assert {(root / path).stat().st_uid for path in ("a", "a/b", "c/file", "d/e")} == {0}


def test_no_target_is_made_below_an_idmapped_mount(root: Path, volume: Path) -> None:
    """The caller does not make a target there: it would make it in the directory underneath."""
    (root / "mnt" / "sub").mkdir()
    mounts = [
        Mount("/mnt", source=volume, options=["idmap"]),
        Mount("/mnt/sub/new", source=volume, options=["X-mount.mkdir"]),
    ]
    (volume / "sub").mkdir()
    plan = fastns.compile(Spec(rootfs=root, mounts=mounts))
    with pytest.raises(SpawnError) as caught:
        fastns.run(["true"], spec=plan)
    error = caught.value
    assert (error.stage, error.errno, error.path) == ("mount", errno.EOVERFLOW, "/mnt/sub/new")
    assert plan.ops[error.op_index].target == b"/mnt/sub/new"
    assert error.hint
    assert not list((root / "mnt" / "sub").iterdir())
    assert not list((volume / "sub").iterdir())


# ---- with other features ----


@pytest.mark.parametrize(
    "fields",
    [
        {"root_mode": "chroot"},
        {"namespaces": {"time": "new"}},
        {"namespaces": {"pid": "host", "network": "host"}},
        {"default_mounts": False},
        {"no_new_privileges": False},
        {"seccomp": "unconfined"},
        {"additional_gids": [5, 6]},
        {"hostname": "box", "files": {"/etc/hosts": "x"}, "read_only": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("init", [False, True], ids=["direct", "init"])
def test_a_range_with_other_fields(root: Path, fields: dict[str, Any], init: bool) -> None:
    """The range does not change what other fields do."""
    if init and "pid" in fields.get("namespaces", {}):
        return  # init needs a pid namespace of its own
    spec = Spec(rootfs=root, init=init, **fields)
    done = fastns.run(["sh", "-c", "id -u; cat /secret"], spec=spec, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.id_map) == (0, "0\nof root\n", "range"), done.stderr


@pytest.mark.parametrize("options", [{}, {"ready": 0}], ids=str)
@pytest.mark.parametrize("overlay", [False, True], ids=["plain", "overlay"])
def test_in_a_batch(root: Path, options: dict[str, int], overlay: bool) -> None:
    """Sandboxes of a batch have the range too, with and without a template."""
    spec = Spec(rootfs=root, overlay=overlay)
    jobs = [["sh", "-c", f"cat /secret; echo {i} >/dev/stderr; stat -c %u /tmp"] for i in range(40)]
    expected = [("of root\n0\n", f"{i}\n") for i in range(40)]
    found = [(d.stdout, d.stderr) for d in fastns.run_batch(jobs, spec=spec, text=True)]  # type: ignore[union-attr]
    assert found == expected
    with Template(spec, **options) as template:
        found = [(d.stdout, d.stderr) for d in template.run_batch(jobs, text=True)]  # type: ignore[union-attr]
        assert found == expected
        with template.spawn(["sh", "-c", "cat /secret"], stdout=fastns.PIPE) as sandbox:
            assert sandbox.communicate(timeout=20)[0] == b"of root\n"


def test_joined_by_path(root: Path) -> None:
    """Joins as an `exec` into a sandbox does, with its user namespace and without."""
    with fastns.spawn(["sleep", "60"], spec=Spec(rootfs=root, hostname="other")) as other:
        kinds = {"pid": "pid", "mount": "mnt", "uts": "uts", "ipc": "ipc", "network": "net"}
        for names in (kinds, {**kinds, "user": "user"}):
            joined = {kind: f"/proc/{other.pid}/ns/{name}" for kind, name in names.items()}
            done = fastns.run(
                ["sh", "-c", "hostname; id -u; cat /secret; ps -o args | grep -c ^sleep"],
                spec=Spec(namespaces=joined), capture_output=True, text=True,
            )  # fmt: skip
            assert done.stdout == "other\n0\nof root\n1\n", done.stderr
        other.kill()


@pytest.mark.parametrize("way", ["direct", "init", "template", "ready"])
def test_capabilities_count_in_its_own_namespaces(root: Path, way: str) -> None:
    """Capabilities give no rights over anything else: the host's mounts are locked."""
    given = {"capabilities": ["SYS_ADMIN", "NET_ADMIN"], "read_only": True, "hostname": "before"}
    host = os.uname().nodename
    with runner(way, rootfs=root, **given) as run:
        assert sh(run, "hostname; hostname after && hostname") == (0, "before\nafter\n")
        assert sh(run, "ip addr add 127.0.0.9/8 dev lo && ip addr | grep -c 127.0.0.9") == (
            0,
            "1\n",
        )
        assert sh(run, "mount -t tmpfs none /mnt && echo mounted") == (0, "mounted\n")
        for refused in (
            "umount /tmp",
            "umount /proc/sys",
            "mount -o remount,rw /",
            "mount -o remount,rw /proc/sys",
            "mknod /tmp/disk b 8 0",
        ):
            assert sh(run, refused)[0] != 0, refused
    assert os.uname().nodename == host


def test_capabilities_with_the_hosts_ids_do_more(root: Path) -> None:
    """Control for the test above."""
    given = {"capabilities": ["SYS_ADMIN"], "read_only": True, **HOSTS}
    with runner("direct", rootfs=root, **given) as run:
        assert sh(run, "mount -o remount,rw / && umount /tmp && echo done")[1] == "done\n"


def test_explicit_mappings_replace_the_range(root: Path) -> None:
    ids = [IDMapping(0, 100000, 1000)]
    spec = Spec(rootfs=root, uid_mappings=ids, gid_mappings=ids)
    done = fastns.run(["sh", "-c", "id -u; stat -c %u /bin"], spec=spec, capture_output=True)
    assert (done.stdout, done.id_map) == (b"0\n65534\n", "parent")


# ---- failures ----


def test_a_file_system_that_cannot_show_other_owners(public_dir: Path, root: Path) -> None:
    """A start with a ramfs as root or as volume fails, and the hint says what to do instead."""
    base = public_dir / "ramfs"
    (base / "merged").mkdir(parents=True)
    code = """
import subprocess
root, base = sys.argv[1:]
way = "namespaces={'user': 'host'}"
subprocess.run(["mount", "-t", "ramfs", "ramfs", f"{base}/merged"], check=True)
subprocess.run(["cp", "-a", f"{root}/.", f"{base}/merged"], check=True)
for fields in (
    {"rootfs": f"{base}/merged"},
    {"rootfs": root, "mounts": [fastns.Mount("/mnt", source=f"{base}/merged", options=["idmap"])]},
):
    plan = fastns.compile(fastns.Spec(**fields))
    try:
        fastns.run(["true"], spec=plan)
    except fastns.SpawnError as error:
        path = plan.ops[error.op_index].source.decode()
        print(error.stage, error.errno, path == f"{base}/merged", way in error.hint)
    try:
        fastns.Template(fastns.Spec(**fields)).run(["true"])
    except fastns.SpawnError as error:
        print(error.stage, error.errno, way in error.hint)
spec = fastns.Spec(rootfs=f"{base}/merged", namespaces={"user": "host"})
print(fastns.run(["true"], spec=spec).returncode)
"""
    wrapped = "import ctypes; assert ctypes.CDLL(None).unshare(0x20000) == 0\n"
    wrapped += "subprocess = __import__('subprocess')\n"
    wrapped += "subprocess.run(['mount', '--make-rprivate', '/'], check=True)\n"
    out = script(wrapped + code, str(root), str(base)).splitlines()
    assert out == [
        f"rootfs {errno.EINVAL} True True",
        f"rootfs {errno.EINVAL} True",
        f"mount {errno.EINVAL} True True",
        f"mount {errno.EINVAL} True",
        "0",
    ]
    shutil.rmtree(base)


@pytest.mark.parametrize(
    ("fields", "args", "stage", "code"),
    [
        ({"cwd": "/closed", "user": "7:7"}, ["true"], "chdir", errno.EACCES),
        ({"cwd": "/nowhere"}, ["true"], "chdir", errno.ENOENT),
        ({}, ["/nothing"], "exec", errno.ENOENT),
        ({"user": "7:7"}, ["/closed/true"], "exec", errno.EACCES),
    ],
    ids=str,
)
def test_a_failure_in_the_exec_program(
    root: Path, fields: dict[str, Any], args: list[str], stage: str, code: int
) -> None:
    """The error has its stage and no op index, and the failure leaves nothing behind."""
    (root / "closed").mkdir(mode=0o700)
    before = support.host_state()
    with pytest.raises(SpawnError) as caught:
        fastns.run(args, spec=Spec(rootfs=root, **fields))
    assert (caught.value.stage, caught.value.errno, caught.value.op_index) == (stage, code, -1)
    assert support.host_change(before) == []


@pytest.mark.parametrize("init", [False, True], ids=["direct", "init"])
def test_the_op_index_of_a_late_op(root: Path, init: bool) -> None:
    """The op index counts the plan's ops, whichever process ran them."""
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["capset"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENOANO}],
    }
    plan = fastns.compile(Spec(rootfs=root, init=init, no_new_privileges=False, seccomp=profile))
    with pytest.raises(SpawnError) as caught:
        fastns.run(["true"], spec=plan)
    error = caught.value
    assert (error.stage, error.errno) == ("capabilities", errno.ENOANO)
    assert error.op_index == len(plan.ops) - 1
    assert plan.ops[error.op_index].code == "capabilities"


def test_no_namespace_can_be_made(root: Path) -> None:
    """A map that the kernel refuses provokes the failure. The host's limits do not change."""
    plan = fastns.compile(Spec(rootfs=root))
    assert plan.ids is not None
    uid, gid, _size = plan.ids
    before = support.host_state()
    with pytest.raises(SpawnError) as caught:
        _core.user_namespace((uid, gid, 2**32), b"")
    error = caught.value
    assert (error.stage, error.errno, error.op_index) == ("id_map", errno.EINVAL, -1)
    assert support.host_change(before) == []
    assert fastns.run(["true"], spec=plan).returncode == 0


def test_limits_apply_with_a_range(root: Path) -> None:
    """The sandbox enters its cgroups before the user namespace."""
    spec = Spec(rootfs=root, memory="64m", pids_limit=20, cpu_time=10)
    for fields in ({}, {"init": True}):
        plan = fastns.compile(Spec(**{**vars(spec), **fields}))
        done = fastns.run(["sh", "-c", "cat /secret; id -u"], spec=plan, capture_output=True)
        assert (done.stdout, done.limits) == (b"of root\n0\n", ("memory", "pids_limit", "cpu_time"))
        plan.close()
    with Template(spec) as template:
        assert template.run(["cat", "/secret"], capture_output=True).stdout == b"of root\n"


# ---- the caller ----


def test_the_caller_is_unharmed(root: Path) -> None:
    """Thousands of starts by several threads do not change the caller."""
    libc = ctypes.CDLL(None)
    plans = [fastns.compile(Spec(rootfs=root, network="host", user=user)) for user in ("0", "7:8")]
    fastns.run(["true"], spec=plans[0])
    before = support.host_state()
    failures: list[Any] = []

    def work(plan: fastns.Plan) -> None:
        for _ in range(500):
            done = fastns.run(["true"], spec=plan)
            if done.returncode or libc.prctl(PR_GET_DUMPABLE) != 1:
                failures.append(done)

    threads = [threading.Thread(target=work, args=(plans[i % 2],)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert support.host_change(before) == []


def test_one_user_namespace_per_process(root: Path) -> None:
    """The namespace is made once, whatever the spec. A forked caller uses the same one."""
    code = """
def space(**fields):
    spec = fastns.Spec(rootfs=sys.argv[1], **fields)
    done = fastns.run(["readlink", "/proc/self/ns/user"], spec=spec, capture_output=True)
    return done.stdout.decode()
before = fds()
found = {space(), space(init=True), space(user="5:5"), space(overlay=True)}
with fastns.Template(fastns.Spec(rootfs=sys.argv[1])) as template:
    found.add(template.run(["readlink", "/proc/self/ns/user"], capture_output=True).stdout.decode())
read, write = os.pipe()
pid = os.fork()
if pid == 0:
    os.write(write, space().encode())
    os._exit(0)
os.waitpid(pid, 0)
found.add(os.read(read, 100).decode())
os.close(read); os.close(write)
print(len(found), fds() == before)
os.closerange(3, 100)
print(space() in found, space() == space())  # its fd was closed, so a new one is made
"""
    assert script(code, str(root)).splitlines() == ["1 True", "False True"]


def test_a_range_in_the_plan(root: Path) -> None:
    """The plan and its description have the range."""
    plan = fastns.compile(Spec(rootfs=root))
    uid, gid = first()
    assert f"id_map: range uids 0 {uid} 65536, gids 0 {gid} 65536" in plan.describe()
    assert (plan.id_map, plan.method) == ("range", "direct")
    assert plan.ids == (uid, gid, 65536)
    assert _core.user_namespace(plan.ids, plan.inotify) > 2
