"""Every result of a system call is checked, as the compiler enforces. A failing call makes the
start fail with its errno and stage, and leaves nothing behind."""

from __future__ import annotations

import errno
import platform
import shutil
import subprocess
from pathlib import Path

import pytest
import support
from hidden import NUMBERS, without
from processes import script

from fastns import SpawnError, SpecError
from fastns._policy import cgroups

CSRC = support.TESTS.parent / "csrc"

# ---- the compiler ----

SNIPPETS = {
    "fns_sys0(__NR_getpid);": False,
    "fns_sys_clone_call(__NR_clone, 0, 0, 0, 0, 0, 0, 0);": False,
    "fns_write(1, 0, 0);": False,
    "fns_lock(1, 0, 0);": False,
    'FNS_IGNORE(fns_sys0(__NR_getpid), "a reason");': True,
    "if (fns_sys0(__NR_getpid) < 0) return;": True,
}


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("snippet", SNIPPETS)
def test_the_compiler_refuses_an_ignored_result(
    tmp_path: Path, compiler: str, snippet: str
) -> None:
    if shutil.which(compiler) is None:
        support.skip_missing(f"{compiler} (tests/setup.sh installs it)")
    source = tmp_path / "snippet.c"
    source.write_text(f'#include "shared/sys.h"\nvoid f(void);\nvoid f(void) {{ {snippet} }}\n')
    command = [compiler, "-std=gnu11", "-Wall", "-Wextra", "-Werror", f"-I{CSRC}", "-c"]
    done = subprocess.run(
        [*command, str(source), "-o", str(tmp_path / "snippet.o")], capture_output=True, text=True
    )
    assert (done.returncode == 0) is SNIPPETS[snippet], done.stderr
    assert SNIPPETS[snippet] or "unused-result" in done.stderr


def test_no_result_is_cast_away() -> None:
    """clang would accept such a cast."""
    for source in CSRC.rglob("*.[ch]"):
        assert "(void)fns_" not in source.read_text(), source


# ---- calls that fail ----

START = """
root, way = sys.argv[1:3]
spec = fastns.Spec(rootfs=root, default_mounts=False, init=way == "init")
plan = fastns.compile(spec)
template = fastns.Template(spec, ready=0) if way == "template" else None
if template:
    import atexit
    atexit.register(template.close)
def start():
    if way == "template":
        return template.run(["/true"])
    if way == "batch":
        return fastns.run_batch([["/true"]] * 3, spec=plan)[0]
    return fastns.run(["/true"], spec=plan)
def fail():
    states = [] if template else [(fds(), children())]  # a template's connection is kept
    for _ in range(2):
        try:
            print(start().returncode)
        except fastns.SpawnError as error:
            print(error.stage, error.errno)
        states.append((fds(), children()))
    assert states[0] == states[-1], states
"""
WAYS = pytest.mark.parametrize("way", ["direct", "init", "template"])


@WAYS
@pytest.mark.parametrize(("call", "stage"), [("setsid", "session"), ("rt_sigprocmask", "clone")])
def test_a_call_that_is_refused(probe_rootfs: Path, way: str, call: str, stage: str) -> None:
    """The start fails with the errno and stage of the call, and leaves nothing behind."""
    out = without(call, errno.ENOANO, START + "fail()", str(probe_rootfs), way)
    assert out.splitlines() == [f"{stage} {errno.ENOANO}"] * 2


@pytest.mark.parametrize("call", ["epoll_create1", "signalfd4"])
def test_a_server_that_cannot_start_says_why(probe_rootfs: Path, call: str) -> None:
    out = without(call, errno.ENOANO, START + "fail()", str(probe_rootfs), "template")
    assert out.splitlines() == [f"helper {errno.ENOANO}"] * 2


def test_a_server_survives_a_failed_mprotect(probe_rootfs: Path) -> None:
    """A stack whose guard page cannot be protected is an error."""
    code = f"""
fastns.run(["/true"], spec=plan)  # the caller has its own stacks now
hide(MPROTECT, {errno.ENOANO})
template.__enter__()
server = template._server.pid
fail()
print(template._server.pid == server)
"""
    code = code.replace("MPROTECT", str(NUMBERS[platform.machine()]["mprotect"]))
    out = without(
        "landlock_create_ruleset", errno.ENOSYS, START + code, str(probe_rootfs), "template"
    )
    assert out.splitlines() == [f"helper {errno.ENOANO}"] * 2 + ["True"]


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.EPERM])
def test_a_batch_without_epoll_pwait2(probe_rootfs: Path, error: int) -> None:
    """Linux lacks the call before 5.11, and some containers' filters refuse it."""
    out = without("epoll_pwait2", error, START + "fail()", str(probe_rootfs), "batch")
    assert out.splitlines() == ["0", "0"]


def strace(inject: str, code: str, *args: str) -> str:
    """The stdout of `code` while strace(1) injects failures."""
    if shutil.which("strace") is None:
        support.skip_missing("strace (tests/setup.sh installs it)")
    trace = ["-e", f"trace={inject.partition(':')[0]}", "-e", f"inject={inject}"]
    prefix = ["strace", "-f", "-qqq", *trace, "-o", "/dev/null"]
    return script(code, *args, prefix=prefix)


def test_an_fd_that_cannot_be_closed_is_not_left_open(probe_rootfs: Path) -> None:
    """The fd is below the passed one, so it needs a close_range() of its own."""
    code = """
low, high = os.open("/etc/passwd", os.O_RDONLY), 50
os.set_inheritable(low, True)
os.dup2(low, high)
try:
    fastns.spawn(["/true"], spec=plan, pass_fds=[high]).wait()
    print("started")
except fastns.SpawnError as error:
    print(error.stage, error.errno)
"""
    args = (str(probe_rootfs), "direct")
    assert strace("close_range:error=ENOANO:when=1", START + code, *args) == f"fds {errno.ENOANO}\n"
    assert strace("close_range:error=ENOANO:when=9", START + code, *args) == "started\n"


@pytest.mark.as_root
@WAYS
def test_the_process_that_makes_namespaces_is_killed(probe_rootfs: Path, way: str) -> None:
    """The start fails with ECANCELED."""
    code = START.replace("init=way", 'capabilities=["NET_ADMIN"], init=way')
    code += "if template: template.__enter__()\nfail()"
    out = strace("unshare:signal=KILL:when=1", code, str(probe_rootfs), way)
    assert out.splitlines() == [f"unshare {errno.ECANCELED}"] * 2


# ---- limits ----


@pytest.mark.parametrize(
    "error", [errno.EAGAIN, errno.EINTR, errno.ENOMEM, errno.EBUSY, errno.ENOSPC, errno.EMFILE]
)
def test_a_transient_failure_to_set_a_limit_is_a_spawn_error(
    monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    def fail(path: str, text: str) -> None:
        raise OSError(error, "said the kernel", path)

    monkeypatch.setattr(cgroups, "_write", fail)
    with pytest.raises(SpawnError) as caught:
        cgroups._set("/nowhere", "memory.max", "1", "memory")
    assert (caught.value.stage, caught.value.errno) == ("cgroup", error)


@pytest.mark.parametrize("error", [errno.EINVAL, errno.ERANGE, errno.ENODEV])
def test_a_value_that_the_kernel_refuses_is_a_spec_error(
    monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    def fail(path: str, text: str) -> None:
        raise OSError(error, "said the kernel", path)

    monkeypatch.setattr(cgroups, "_write", fail)
    with pytest.raises(SpecError) as caught:
        cgroups._set("/nowhere", "memory.max", "1", "memory")
    assert caught.value.field == "memory"
