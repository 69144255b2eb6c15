"""What the seccomp filter does to the calls of a program, in every way of starting."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import support
from hidden import without
from inside import runner
from processes import children

import fastns
from fastns import SpawnError, Spec, Template, TimeoutExpired, seccomp

if os.uname().machine != "x86_64":
    support.skip_missing("an x86-64 machine, whose numbers of calls these are")
WAYS = ("direct", "init", "template", "ready")
ALL = (*WAYS, "rooms", "container")  # a room has the default filter, and a layer over its root
WALL = 0x40000000  # __WALL of wait(2): includes children that send no SIGCHLD
CALLS = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* argv: numbers of system calls, each followed by two arguments. Prints the errno of each. */
int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IONBF, 0);
    for (int i = 1; i + 2 < argc; i += 3) {
        long arg[3];
        for (int n = 0; n < 3; n++)
            arg[n] = (long)strtoull(argv[i + n], NULL, 0);
        errno = 0;
        long ret = syscall(arg[0], arg[1], arg[2], 0L, 0L, 0L, 0L);
        int err = errno;
        if (ret == 0 && (arg[0] == SYS_clone || arg[0] == SYS_fork))
            _exit(0);
        printf("%d\n", ret < 0 ? err : 0);
    }
    printf("%d %d\n", prctl(PR_GET_SECCOMP), prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
    return 0;
}
"""
INT80 = r"""
int main(void)
{
    int pid;
    __asm__ volatile("int $0x80" : "=a"(pid) : "a"(20) : "memory"); /* getpid of i386 */
    return pid > 0 ? 0 : 1;
}
"""
SEVEN = r"""
/* A program whose only system call is exit. */
__attribute__((used)) void begin(void) { __asm__ volatile("syscall" : : "a"(60), "D"(7)); }
"""
# Columns: the call, its number, two arguments, the errno with the filter, and the errno without it
# (None: not tried).
TRIED: list[tuple[str, int, int, int, int, int | None]] = [
    ("clone3", 435, 0, 0, 38, 22),
    ("clone NEWUSER", 56, 0x10000011, 0, 1, None),
    ("unshare 0", 272, 0, 0, 0, 0),
    ("unshare NEWUSER", 272, 0x10000000, 0, 1, 0),
    ("ptrace", 101, 99, 0, 1, None),
    ("clone PARENT", 56, 0x8011, 0, 1, None),
    ("keyctl", 250, 0, -3, 1, None),
    ("bpf", 321, 99, 0, 1, None),
    ("userfaultfd", 323, 0xFFFFFF, 0, 1, 22),
    ("io_uring_setup", 425, 0, 0, 1, 14),
    ("move_mount", 429, 0, 0, 1, None),
    ("socket AF_VSOCK", 41, 40, 1, 97, None),
    ("socket AF_ALG", 41, 38, 5, 97, None),
    ("socket AF_PACKET", 41, 17, 3, 97, 1),
    ("socket AF_UNIX", 41, 1, 1, 0, 0),
    ("socket AF_INET", 41, 2, 1, 0, 0),
    ("TIOCSTI", 16, 0, 0x5412, 1, 25),
    ("TIOCSTI with high bits", 16, 0, 0x100005412, 1, 25),
    ("TIOCLINUX", 16, 0, 0x541C, 1, 25),
    ("TCGETS", 16, 0, 0x5401, 25, 25),
    ("seccomp, a filter", 317, 1, 0, 22, 14),
    ("prctl, a filter", 157, 22, 2, 22, 14),
    ("seccomp, what there is", 317, 2, 0, 14, 14),
    ("TIOCSETD", 16, 0, 0x5423, 1, 25),
    ("SIOCGIFVLAN", 16, 0, 0x8982, 1, 25),
    ("sync", 162, 0, 0, 0, None),
    ("syncfs", 306, -1, 0, 38, 9),
    ("memfd_secret", 447, -1, 0, 38, None),
    ("chmod set-id", 90, 0, 0o4755, 1, 14),
    ("chmod", 90, 0, 0o755, 14, 14),
    ("openat2", 437, 0, 0, 38, 22),
    ("a number of no kernel", 1000, 0, 0, 38, 38),
]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("calls")
    for name in ("proc", "sys", "dev", "tmp", "run"):
        (root / name).mkdir()
    root.chmod(0o755)
    for name, source in (("calls", CALLS), ("int80", INT80)):
        (root / f"{name}.c").write_text(source)
        support.compile_static(root / f"{name}.c", root / name)
    (root / "seven.c").write_text(SEVEN)
    alone = ["-nostdlib", "-Wl,-e,begin"]
    support.compile_static(root / "seven.c", root / "seven", *alone)
    return root


def words(number: int, first: int, second: int) -> list[str]:
    return [str(n % 2**64) for n in (number, first, second)]


def errnos(run: Any, tried: list[tuple[str, int, int, int, int, int | None]]) -> dict[str, int]:
    args = [word for _, number, one, two, _, _ in tried for word in words(number, one, two)]
    done = run(["/calls", *args], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *found, state = done.stdout.splitlines()
    assert len(found) == len(tried)
    return {"state": state} | {
        name: int(errno) for (name, *_), errno in zip(tried, found, strict=True)
    }


@pytest.mark.parametrize("way", ALL)
def test_calls_in_every_way_of_starting(way: str, programs: Path) -> None:
    """Each call in TRIED fails or works as its row says."""
    with runner(way, rootfs=programs) as run:
        found = errnos(run, TRIED)
    expected = {name: errno for name, _, _, _, errno, _ in TRIED}
    if way == "rooms":  # a set-id file is thrown away with the layer
        expected |= {"chmod set-id": errno.EFAULT, "openat2": errno.EINVAL}
    assert found == {"state": "2 1"} | expected


def test_unconfined_calls_reach_the_kernel(programs: Path) -> None:
    """Control for TRIED."""
    tried = [row for row in TRIED if row[5] is not None]
    with runner("direct", rootfs=programs, seccomp="unconfined") as run:
        found = errnos(run, tried)
    assert found == {"state": "0 1"} | {name: errno for name, _, _, _, _, errno in tried}


@pytest.mark.parametrize("way", ALL)
def test_a_call_of_another_architecture_ends_the_process(way: str, programs: Path) -> None:
    with runner(way, rootfs=programs) as run:
        done = run(["/int80"])
    assert (done.returncode, done.cause) == (-signal.SIGSYS, "seccomp")
    with runner(way, rootfs=programs, seccomp="unconfined") as run:
        done = run(["/int80"])
    assert done.cause in ("exited", "signaled")  # SIGSEGV if the kernel does not support i386


@pytest.mark.parametrize("way", WAYS)
def test_a_custom_profile(way: str, programs: Path, tmp_path: Path) -> None:
    """A profile may be a dict or a file."""
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [
            {"names": ["unshare"], "action": "SCMP_ACT_ERRNO", "errnoRet": 77},
            {"names": ["getppid"], "action": "SCMP_ACT_KILL_PROCESS"},
        ],
    }
    file = tmp_path / "profile.json"
    file.write_text(json.dumps(profile))
    for given in (profile, file):
        with runner(way, rootfs=programs, seccomp=given) as run:
            assert errnos(run, [("unshare", 272, 0, 0, 0, None)])["unshare"] == 77
            done = run(["/calls", *words(110, 0, 0)])
        assert (done.returncode, done.cause) == (-signal.SIGSYS, "seccomp")


@pytest.mark.parametrize("way", WAYS)
def test_a_filter_without_no_new_privileges(way: str, programs: Path) -> None:
    """The filter is loaded while the process still has the right to do so, even if its ids
    change."""
    for user in ("0:0", "5:5") if support.is_root() and way in ("direct", "init") else ("0:0",):
        fields: dict[str, Any] = {"rootfs": programs, "no_new_privileges": False, "user": user}
        with runner(way, **fields) as run:
            found = errnos(run, TRIED[:4])
        assert found == {"state": "2 0"} | {row[0]: row[4] for row in TRIED[:4]}


@pytest.mark.parametrize("way", WAYS)
def test_a_capability_permits_its_calls(way: str, programs: Path) -> None:
    tried = [("unshare NEWUSER", 272, 0x08000000, 0, 0, None), TRIED[4]]
    with runner(way, rootfs=programs, capabilities=["SYS_ADMIN"]) as run:
        found = errnos(run, tried)
    assert (found["unshare NEWUSER"], found["ptrace"]) == (0, 1)


def test_a_profile_that_refuses_to_execute(programs: Path) -> None:
    """The start fails at exec. If the filter kills instead, "seccomp" is the cause."""
    for action, refused in (("SCMP_ACT_ERRNO", 1), ("SCMP_ACT_KILL_PROCESS", None)):
        rule = {"names": ["execve"], "action": action}
        profile = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}
        for way in ("direct", "init", "template"):
            with runner(way, rootfs=programs, seccomp=profile) as run:
                if refused is None:
                    assert run(["/calls"]).cause == "seccomp"
                    continue
                with pytest.raises(SpawnError) as caught:
                    run(["/calls"])
                assert (caught.value.stage, caught.value.errno) == ("exec", refused)


OF_THE_HOST = {"namespaces": {"user": "host"}}


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({}, id="own ids"),
        pytest.param(OF_THE_HOST, id="host's ids", marks=pytest.mark.as_root),
    ],
)
@pytest.mark.parametrize("way", WAYS)
def test_the_calls_that_a_profile_must_allow(
    way: str, fields: dict[str, Any], programs: Path
) -> None:
    """Besides those of the command, it must allow execve, and rt_sigprocmask to restore the signal
    mask."""
    needed = ["execve", "rt_sigprocmask", "exit"]
    for names, code in ((needed, 7), (needed[1:], -signal.SIGSYS)):
        allowed = {"names": names, "action": "SCMP_ACT_ALLOW"}
        profile = {"defaultAction": "SCMP_ACT_KILL_PROCESS", "syscalls": [allowed]}
        with runner(way, rootfs=programs, seccomp=profile, **fields) as run:
            assert run(["/seven"]).returncode == code, names


@pytest.mark.parametrize("number", [0, errno.EPERM])
def test_a_profile_that_refuses_fcntl_does_not_hang_the_caller(number: int) -> None:
    """The program closes its fds before it loads the filter. An fd that stays open would keep the
    caller waiting."""
    rule = {"names": ["fcntl"], "action": "SCMP_ACT_ERRNO", "errnoRet": number}
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}
    fields = OF_THE_HOST if support.is_root() else {}
    for no_new_privileges in (True, False):
        spec = Spec(seccomp=profile, no_new_privileges=no_new_privileges, **fields)
        with pytest.raises(TimeoutExpired) as late:
            fastns.run(["sleep", "60"], spec=spec, timeout=0.5)
        assert late.value.wall_time < 30


def test_sigsys_from_the_caller_is_not_the_filters(programs: Path) -> None:
    """If the caller sends a sandbox SIGSYS, the cause is "signaled", not "seccomp"."""
    host = {"pid": "host"}  # the kernel drops the signal for pid 1 of a namespace
    spec = Spec(namespaces=host)
    with fastns.spawn(["sleep", "60"], spec=spec) as sandbox:
        sandbox.send_signal(signal.SIGSYS)
        assert sandbox.wait() == -signal.SIGSYS
        assert sandbox.cause == "signaled"


def test_no_filter_can_be_loaded() -> None:
    """A filter around the caller refuses seccomp(2)."""
    code = """
import fastns
for make in (lambda: fastns.Template().run(["true"]), lambda: fastns.run(["true"])):
    try:
        make()
    except fastns.SpawnError as error:
        print(error.stage, error.errno)
"""
    assert without("seccomp", 38, code).splitlines() == ["seccomp 38"] * 2


def test_the_memory_for_filters_is_used_up() -> None:
    """ENOTSUPP has no name outside the kernel. Here an outer filter returns it."""
    code = """
import fastns
try:
    fastns.run(["true"])
except fastns.SpawnError as error:
    print(error.errno, error)
    print(error.hint)
"""
    told, hint = without("seccomp", 524, code).splitlines()
    assert told.startswith("524 seccomp[")
    assert told.endswith("(ENOTSUPP)")
    assert "net.core.bpf_jit_limit" in hint


def test_the_filter_on_the_command_line(programs: Path, tmp_path: Path) -> None:
    """The filter applies by default, and --security-opt can remove it."""
    command = [sys.executable, "-m", "fastns", "run", "--rootfs", str(programs)]
    unshare = words(272, 0x10000000, 0)
    for flags, expected in (([], "1"), (["--security-opt", "seccomp=unconfined"], "0")):
        done = subprocess.run(
            [*command, *flags, "/calls", *unshare], capture_output=True, text=True
        )
        assert done.stdout.splitlines()[0] == expected
    done, status = support.run_with_status([*command, "--status-fd", "{}", "/int80"])
    assert (done.returncode, status["cause"]) == (128 + signal.SIGSYS, "seccomp")


def test_a_template_loads_the_filter_in_two_parts(programs: Path) -> None:
    """The server loads most of the default filter, and each sandbox loads the rest."""
    with Template(Spec(rootfs=programs)) as template:
        plan = template._plan
    first, rest = seccomp.build_parts(setid=False)
    assert [op.data for op in plan.ops if op.code == "seccomp"] == [first]
    assert [op.data for op in plan.sandbox.ops if op.code == "seccomp"] == [rest]


@pytest.mark.parametrize("way", WAYS)
def test_set_id_files_if_the_host_is_out_of_reach(way: str, programs: Path) -> None:
    """Package managers make such files. They are harmless if no file of the host can be written."""
    chmod = words(90, 0, 0o4755)
    for fields, expected in (
        ({}, errno.EPERM),
        ({"allow_setid": True}, errno.EFAULT),
        ({"overlay": True}, errno.EFAULT),
        ({"read_only": True}, errno.EFAULT),
    ):
        with runner(way, rootfs=programs, **fields) as run:
            done = run(["/calls", *chmod], capture_output=True, text=True)
        assert done.stdout.splitlines()[0] == str(expected), fields


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("more", [{}, {"landlock": {"write": ["/"]}}])
def test_a_filter_of_its_own_with_sys_admin(way: str, more: Any, programs: Path) -> None:
    """With CAP_SYS_ADMIN the call fails only at the filter's address, which is invalid."""
    given: dict[str, Any] = {"rootfs": programs, "capabilities": ["SYS_ADMIN"], **more}
    with runner(way, **given) as run:
        found = errnos(run, [("seccomp", 317, 1, 0, 0, None), ("prctl", 157, 22, 2, 0, None)])
    assert (found["seccomp"], found["prctl"]) == (errno.EFAULT, errno.EFAULT)


def test_clone_parent_is_refused(programs: Path) -> None:
    """CLONE_PARENT (0x8000) would make the new process a child of the caller. In a new pid
    namespace the kernel refuses it anyway."""
    spec: dict[str, Any] = {"rootfs": programs, "namespaces": {"pid": "host"}}
    args = ["/calls", *words(56, 0x8000, 0)]
    before = children(os.getpid(), False)
    done = fastns.run(args, spec=Spec(**spec), capture_output=True, text=True)
    assert done.stdout.splitlines()[0] == str(errno.EPERM)
    assert children(os.getpid(), False) == before
    fastns.run(args, spec=Spec(**spec, seccomp="unconfined"), capture_output=True)  # the control
    (left,) = set(children(os.getpid(), False)) - set(before)
    assert os.waitpid(left, WALL)[1] == 0
