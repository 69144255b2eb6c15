"""With Spec.landlock only the listed files can be used, in every way of starting. Also: missing
paths, and kernels without Landlock. The control is the same sandbox without landlock."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import support
from hidden import without
from inside import runner

import fastns
from fastns import Rlimit, SpawnError, SpecError, Template, _core
from fastns import Spec as PlainSpec

WAYS = ["direct", "init", "user", "template", "ready", "user-template"]
ABI = _core.landlock_abi()
ONLY = {"read": ["/bin", "/etc/passwd"], "write": ["/tmp", "/run/open"]}


@pytest.fixture(autouse=True)
def there() -> None:
    if ABI <= 0:
        support.skip_missing("Landlock in the kernel")


# Each line is an attempt, after whether it must work under ONLY.
STEPS = """
yes cat /etc/passwd
no  cat /etc/group
no  ls /
yes ls /bin
no  ls /proc
yes echo x >/tmp/x
yes cat /tmp/x
yes cp /bin/busybox /tmp/busybox && /tmp/busybox true
yes mkdir /tmp/d && mv /tmp/x /tmp/d/y && rm /tmp/d/y && rmdir /tmp/d
yes ln -s /etc/group /tmp/link
no  cat /tmp/link
yes echo x >/tmp/x && mv /tmp/x /run/open/x && mv /run/open/x /tmp/x
no  echo x >/run/x
no  mkdir /run/d
no  mv /tmp/x /run/x
yes echo x >/run/open/z && mv /run/open/z /run/open/y
no  ln /run/open/y /run/y
no  mv /run/open/y /run/z
no  mkfifo /run/f
no  rm /run/there
no  echo x >/run/there
no  echo x >/etc/passwd
no  echo x >/dev/null
no  cat /proc/self/status
no  /mnt/busybox true
"""


def tried(go: Any) -> list[tuple[str, bool]]:
    """Each step and whether it worked."""
    steps = [line.split(None, 1) for line in STEPS.strip().splitlines()]
    lines = [f"( {step} ) >/tmp/out 2>&1 && echo yes || echo no" for _, step in steps]
    done = go(["sh", "-c", "\n".join(lines)], capture_output=True, text=True)
    assert done.stderr == ""
    answers = done.stdout.split()
    return [(step, answer == "yes") for (_, step), answer in zip(steps, answers, strict=True)]


def expected() -> list[tuple[str, bool]]:
    steps = [line.split(None, 1) for line in STEPS.strip().splitlines()]
    return [(step, word == "yes") for word, step in steps]


@pytest.fixture
def run_tree(busybox_rootfs: Path, public_dir: Path) -> Iterator[Path]:
    """A copy of the root with a program in /mnt, and with /run/open and /run/there."""
    root = support.copy_tree(busybox_rootfs, public_dir / "landlocked")
    (root / "run/open").mkdir(exist_ok=True)
    (root / "run/there").touch()
    (root / "mnt/busybox").write_bytes((root / "bin/busybox").read_bytes())
    (root / "mnt/busybox").chmod(0o755)
    yield root
    subprocess.run(["rm", "-rf", str(root)], check=True)


def fields(root: Path) -> dict[str, Any]:
    # idmap: the user inside owns it, even in root's sandboxes, which have a range of ids.
    mounts = [fastns.Mount("/run", source=str(root / "run"), options=["idmap"])]
    return {"rootfs": root, "overlay": True, "mounts": mounts}


@pytest.mark.parametrize("way", WAYS)
def test_other_files_are_out_of_reach(run_tree: Path, way: str) -> None:
    with runner(way, landlock=ONLY, **fields(run_tree)) as go:
        assert tried(go) == expected()


@pytest.mark.parametrize("way", ["direct", "template"])
def test_without_landlock_all_files_are_in_reach(run_tree: Path, way: str) -> None:
    """Control for the test above."""
    with runner(way, **fields(run_tree)) as go:
        assert [step for step, worked in tried(go) if not worked] == []


def test_in_a_batch_and_without_a_rootfs(busybox_rootfs: Path) -> None:
    """The rules also apply in a batch, and without a rootfs."""
    spec = PlainSpec(rootfs=busybox_rootfs, landlock={"read": ["/bin"]})
    jobs = [["cat", "/etc/passwd"], ["ls", "/bin"]] * 4
    with Template(spec) as template:
        for done in (fastns.run_batch(jobs, spec=spec), template.run_batch(jobs)):
            assert [one.returncode for one in done] == [1, 0] * 4  # type: ignore[union-attr]
    spec = PlainSpec(landlock={"read": ["/"], "write": ["/tmp"]})
    script = "echo x >/tmp/x && ! echo x >/dev/shm/x"
    assert fastns.run(["sh", "-c", script], spec=spec, capture_output=True).returncode == 0


@pytest.mark.parametrize("way", ["direct", "init", "template"])
def test_the_command_must_be_readable(busybox_rootfs: Path, way: str) -> None:
    rules = {"read": ["/etc"]}
    with (
        runner(way, rootfs=busybox_rootfs, landlock=rules) as go,
        pytest.raises(SpawnError) as caught,
    ):
        go(["true"])
    assert (caught.value.stage, caught.value.errno) == ("exec", errno.EACCES)
    assert "landlock" in (caught.value.hint or "")


@pytest.mark.parametrize("way", ["direct", "init", "user", "template", "ready"])
@pytest.mark.parametrize(
    ("path", "error"),
    [("/no/such", errno.ENOENT), ("/etc/passwd/x", errno.ENOTDIR),
     ("/proc/self/exe", errno.ELOOP), ("/" + "n" * 255, errno.ENOENT)],
)  # fmt: skip
def test_a_path_that_cannot_be_opened(
    busybox_rootfs: Path, way: str, path: str, error: int
) -> None:
    """The start fails at the op for that path."""
    given = {"rootfs": busybox_rootfs, "landlock": {"read": ["/bin"], "write": [path]}}
    with runner(way, **given) as go, pytest.raises(SpawnError) as caught:
        go(["true"])
    found = caught.value
    assert (found.stage, found.errno, found.path) == ("landlock", error, path)
    plan = _plan(way, given)
    assert (plan.ops[found.op_index].code, plan.ops[found.op_index].target) == (
        "landlock_path",
        path.encode(),
    )


def _plan(way: str, given: dict[str, Any]) -> _core.Plan:
    if way in ("template", "ready"):
        with Template(PlainSpec(**given)) as template:
            plan = template._plan.sandbox
        assert plan is not None
        return plan
    more = {"user": {"namespaces": {"user": "new"}}, "init": {"init": True}}.get(way, {})
    return fastns.compile(PlainSpec(**given, **more))  # type: ignore[arg-type]


def test_links_are_followed_inside(run_tree: Path) -> None:
    """A link in the root is resolved inside it, even if its text leads outside."""
    (run_tree / "alias").symlink_to("/etc/passwd")
    (run_tree / "up").symlink_to("../../../../../../etc/passwd")
    for link in ("/alias", "/up"):
        spec = PlainSpec(rootfs=run_tree, landlock={"read": ["/bin", link]})
        done = fastns.run(["cat", "/etc/passwd"], spec=spec, capture_output=True)
        assert done.stdout == (run_tree / "etc/passwd").read_bytes()


@pytest.mark.parametrize("init", [False, True])
def test_too_few_fds_for_the_rules(busybox_rootfs: Path, init: bool) -> None:
    """The start fails with EMFILE, and the hint names the limit."""
    for most, works in ((3, False), (4, False), (8, True)):
        spec = PlainSpec(
            rootfs=busybox_rootfs, init=init, landlock={"read": ["/"]},
            rlimits=[Rlimit("RLIMIT_NOFILE", most, most)],
        )  # fmt: skip
        if works:
            assert fastns.run(["true"], spec=spec).returncode == 0
            continue
        with pytest.raises(SpawnError) as caught:
            fastns.run(["true"], spec=spec)
        assert (caught.value.stage, caught.value.errno) == ("landlock", errno.EMFILE)
        assert "RLIMIT_NOFILE" in (caught.value.hint or "")


@pytest.mark.as_root
@pytest.mark.parametrize("more", [{}, {"user": "5:6"}, {"seccomp": "unconfined", "user": "5:6"}])
def test_without_no_new_privileges(busybox_rootfs: Path, more: dict[str, Any]) -> None:
    """The rules also apply in root's sandboxes without no_new_privileges."""
    given = {"rootfs": busybox_rootfs, "landlock": {"read": ["/bin"]}, "no_new_privileges": False}
    spec = PlainSpec(**given, **more)
    done = fastns.run(["cat", "/etc/passwd"], spec=spec, capture_output=True)
    assert (done.returncode, b"Permission denied" in done.stderr) == (1, True)


@pytest.mark.as_user
def test_a_user_needs_no_new_privileges() -> None:
    kinds = ("pid", "mount", "uts", "ipc", "network", "user", "cgroup")
    given: dict[str, Any] = {"namespaces": dict.fromkeys(kinds, "host"), "seccomp": "unconfined"}
    spec = PlainSpec(**given, landlock={"read": ["/"]}, no_new_privileges=False)
    with pytest.raises(SpecError) as caught:
        fastns.compile(spec)
    assert caught.value.field == "landlock"
    assert fastns.run(["true"], spec=PlainSpec(**given, landlock={"read": ["/"]})).returncode == 0


# ---- access without a path ----

CONNECT = """
import socket, sys
s = socket.socket(socket.AF_UNIX)
try: s.connect("\\0" + sys.argv[1]); print("connected")
except OSError as e: print(e.errno)
"""
KILL = """
import os, sys
try: os.kill(int(sys.argv[1]), 0); print("reached")
except OSError as e: print(e.errno)
"""
IOCTL = """
import fcntl
try: fcntl.ioctl(open("/dev/null"), 0x5401, b" " * 64)
except OSError as e: print(e.errno)
"""


def said(code: str, *args: str, spec: PlainSpec) -> str:
    done = fastns.run(
        ["python3", "-S", "-c", code, *args], spec=spec, capture_output=True, text=True, timeout=20
    )
    assert done.stderr == ""
    return done.stdout.strip()


def specs(root: Path, **given: Any) -> tuple[PlainSpec, PlainSpec]:
    """A spec with the rules, and the control without them."""
    return PlainSpec(rootfs=root, landlock={"read": ["/"]}, **given), PlainSpec(
        rootfs=root, **given
    )


def test_abstract_sockets_outside(debian_rootfs: Path) -> None:
    """A sandbox with rules cannot connect to abstract sockets outside."""
    if ABI < 6:
        support.skip_missing("Landlock's scopes (ABI 6)")
    ruled, control = specs(debian_rootfs, network="host")
    name = f"fastns-landlock-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("\0" + name)
        server.listen(4)
        assert said(CONNECT, name, spec=control) == "connected"
        assert said(CONNECT, name, spec=ruled) == str(errno.EPERM)


def test_processes_outside(debian_rootfs: Path) -> None:
    """A sandbox with rules cannot signal processes outside."""
    if ABI < 6:
        support.skip_missing("Landlock's scopes (ABI 6)")
    # The sandbox needs the caller's uid, or Unix permissions would refuse the signal. Root's
    # sandboxes have other uids by default.
    alike = {"pid": "host", "user": "host"} if os.geteuid() == 0 else {"pid": "host"}
    ruled, control = specs(debian_rootfs, namespaces=alike)
    pid = str(os.getpid())
    assert said(KILL, pid, spec=control) == "reached"
    assert said(KILL, pid, spec=ruled) == str(errno.EPERM)


def test_ioctls_work_on_writable_devices(debian_rootfs: Path) -> None:
    if ABI < 5:
        support.skip_missing("Landlock of ioctl on devices (ABI 5)")
    ruled, control = specs(debian_rootfs)
    assert said(IOCTL, spec=control) == str(errno.ENOTTY)
    assert said(IOCTL, spec=ruled) == str(errno.EACCES)
    written = PlainSpec(rootfs=debian_rootfs, landlock={"read": ["/"], "write": ["/dev"]})
    assert said(IOCTL, spec=written) == str(errno.ENOTTY)


@pytest.mark.parametrize("given", [None, {"read": ["/"]}])
def test_a_program_may_restrict_itself_further(probe_rootfs: Path, given: Any) -> None:
    """The default filter allows Landlock's calls."""
    spec = PlainSpec(rootfs=probe_rootfs, landlock=given)
    done = fastns.run(["/probe", "--restrict", "/etc/hosts"], spec=spec, capture_output=True)
    assert done.stderr == b"probe: read /etc/hosts: EACCES\n"
    done = fastns.run(["/probe", "--read", "/etc/hosts"], spec=spec, capture_output=True)
    assert done.returncode == 0


# ---- kernels without Landlock ----

TRY = """
import fastns
try: fastns.compile(fastns.Spec(landlock={"read": ["/"]}))
except fastns.SpecError as error: print(error)
print(fastns.run(["true"]).returncode)
"""


@pytest.mark.parametrize(
    ("error", "words"), [(errno.ENOSYS, "no Landlock"), (errno.EOPNOTSUPP, "lsm=")]
)
def test_a_kernel_without_landlock(error: int, words: str) -> None:
    first, second = without("landlock_create_ruleset", error, TRY).splitlines()
    assert first.startswith("landlock: ")
    assert words in first
    assert second == "0"
