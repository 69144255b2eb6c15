"""fastns-exec starts the same sandbox from a plan file as `fastns run` does, and it ends in the
same ways."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import support
from native import PROGRAM, compiled, execute
from processes import eventually, marker, running

POSTURES: dict[str, list[str]] = {
    "as it comes": [],
    "init": ["--init"],
    "one id": ["--userns", "private"],
    "own id": ["--userns", "keep-id"],
    "host's pids": ["--pid", "host"],
    "host's network": ["--network", "host"],
    "files": ["--file", "/tmp/x=text", "--tmpfs", "/scratch:size=1m", "-v", "/usr:/mnt:ro"],
    "process": ["-e", "A=b c", "-w", "/usr", "--ulimit", "nofile=99:99"],
    "programs of other users": ["--security-opt", "no-new-privileges=false"],
    "no filter": ["--security-opt", "seccomp=unconfined"],
    "names": ["--hostname", "box", "--domainname", "place"],
}
ROOTS_POSTURES: dict[str, list[str]] = {
    "host's ids": ["--userns", "host"],
    "another user": ["-u", "7:8"],
    "another of the host's users": ["--userns", "host", "-u", "7:8"],
    "capabilities": ["--cap-add", "NET_RAW"],
    "all capabilities": ["--cap-add", "ALL"],
    "a map": ["--uidmap", "0:300000:9", "--gidmap", "0:300000:9"],
}
LOOK = """
pwd; hostname; env | sort; id
grep -E '^(Uid|Gid|Groups|Cap...|NoNewPrivs|Seccomp.*|Sig[PBIC]..|NSpid)' /proc/self/status
cat /proc/self/limits /proc/self/uid_map /proc/self/gid_map
cut -d' ' -f1-4 /proc/self/mounts
ls -l /proc/self/fd | wc -l; ls -a / /dev /tmp; cat /sys/class/net/lo/operstate
for kind in mnt pid net user uts ipc cgroup; do
    [ "$(readlink /proc/self/ns/$kind)" = "$(eval echo \\$HOST_$kind)" ] && echo "host's $kind"
done
umask; ulimit -c; cat /proc/self/oom_score_adj; exit 3
"""


def namespaces() -> list[str]:
    """-e flags that tell LOOK the namespaces of this process."""
    kinds = ("mnt", "pid", "net", "user", "uts", "ipc", "cgroup")
    links = ((kind, os.readlink(f"/proc/self/ns/{kind}")) for kind in kinds)
    return [word for kind, link in links for word in ("-e", f"HOST_{kind}={link}")]


def seen(done: subprocess.CompletedProcess[str]) -> str:
    """The output of LOOK without the host's pids, which differ each time."""
    assert (done.returncode, done.stderr) == (3, "")
    return re.sub(r"^NSpid:.*", lambda found: str(len(found[0].split())), done.stdout, flags=re.M)


@pytest.mark.parametrize("name", [*POSTURES, *ROOTS_POSTURES])
def test_it_is_the_sandbox_of_fastns_run(tmp_path: Path, name: str) -> None:
    if name in ROOTS_POSTURES and not support.is_root():
        support.skip_missing("root")
    options = [*(POSTURES | ROOTS_POSTURES)[name], *namespaces()]
    plan = compiled(tmp_path / "a.plan", *options)
    run = [sys.executable, "-m", "fastns", "run", *options, "--", "sh", "-c", LOOK]
    stdin = subprocess.DEVNULL
    other = subprocess.run(run, capture_output=True, text=True, timeout=60, stdin=stdin)
    assert seen(execute(plan, "--", "sh", "-c", LOOK, stdin=stdin)) == seen(other)


@pytest.mark.as_user
def test_a_range_by_newuidmap(tmp_path: Path) -> None:
    """fastns-exec has newuidmap map a user's range."""
    from fastns._compile import userns

    user = Path("~").expanduser().owner()
    first = next(entry[1] for entry in userns.entries("/etc/subuid") if entry[0] == user)
    maps = ["--uidmap", f"0:{first}:9", "--gidmap", f"0:{first}:9"]
    done = execute(compiled(tmp_path / "a.plan", *maps), "cat", "/proc/self/uid_map")
    assert done.stdout.split() == ["0", str(first), "9"]


def test_a_root_directory(tmp_path: Path, probe_rootfs: Path) -> None:
    """A relative path refers to the directory where the plan was compiled."""
    plan = compiled(tmp_path / "a.plan", "--rootfs", os.fspath(probe_rootfs), "--overlay")
    assert execute(plan, "/true", cwd="/").returncode == 0
    relative = os.path.relpath(probe_rootfs)
    plan = compiled(tmp_path / "b.plan", "--rootfs", relative)
    assert execute(plan, "/true", cwd="/").returncode == 0  # relative to where it was compiled


# ---- how it ends ----


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    return compiled(tmp_path / "a.plan")


@pytest.fixture
def with_init(tmp_path: Path) -> Path:
    return compiled(tmp_path / "init.plan", "--init")


def status_of(*words: str | Path) -> tuple[subprocess.CompletedProcess[bytes], Any]:
    return support.run_with_status(
        [os.fspath(PROGRAM), "--status-fd", "{}", *map(os.fspath, words)]
    )


def test_the_exit_code_is_the_commands(plan: Path, with_init: Path) -> None:
    for path in (plan, with_init):
        for code in (0, 1, 7, 255):
            done, status = status_of(path, "--", "sh", "-c", f"exit {code}")
            assert (done.returncode, done.stderr) == (code, b"")
            assert (status["exit_code"], status["cause"], status["signal"]) == (
                code,
                "exited",
                None,
            )
            assert status["limits"] == []
            assert status["truncated"] is False
            assert status["wall_time"] > 0


def test_the_status_has_the_keys_of_fastns_run(plan: Path) -> None:
    run = [sys.executable, "-m", "fastns", "run", "--status-fd", "{}", "--"]
    for command in ("true", "missing"):
        _, other = support.run_with_status([*run, command])
        _, status = status_of(plan, command)
        assert {**status, "usage": 0, "wall_time": 0} == {**other, "usage": 0, "wall_time": 0}
        assert list(status) == list(other)
        assert list(status["usage"] or ()) == list(other["usage"] or ())


def test_the_exit_code_of_a_signal(with_init: Path) -> None:
    """The exit code is 128 plus the signal's number, and the status has its name."""
    for name in ("TERM", "ABRT", "KILL", "RTMIN", "40"):
        number = int(name) if name.isdigit() else int(signal.Signals[f"SIG{name}"])
        done, status = status_of(with_init, "--", "bash", "-c", f"kill -{name} $$")
        assert (done.returncode, status["cause"]) == (128 + number, "signaled")
        assert status["signal"] == f"SIG{name}"


def test_a_call_that_the_filter_kills_for(tmp_path: Path) -> None:
    """The cause is "seccomp"."""
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["chroot"], "action": "SCMP_ACT_KILL_PROCESS"}],
    }
    (tmp_path / "profile.json").write_text(json.dumps(profile))
    options = ["--security-opt", f"seccomp={tmp_path}/profile.json"]
    path = compiled(tmp_path / "a.plan", *options)
    done, status = status_of(path, "--", sys.executable, "-c", "import os; os.chroot('/')")
    if done.returncode == 127:  # the sandbox does not see the interpreter
        done, status = status_of(path, "--", "chroot", "/")
    assert (done.returncode, status["cause"]) == (128 + signal.SIGSYS, "seccomp")


@pytest.mark.parametrize(
    ("command", "code", "error"),
    [
        ("missing", 127, "exec missing: No such file or directory (ENOENT)"),
        ("/etc/passwd/x", 127, "exec /etc/passwd/x: Not a directory (ENOTDIR)"),
        ("/etc/passwd", 126, "exec /etc/passwd: Permission denied (EACCES)"),
    ],
)
def test_a_command_that_cannot_be_executed(plan: Path, command: str, code: int, error: str) -> None:
    """fastns-exec exits with 127 or 126, and the status has the error."""
    done, status = status_of(plan, command)
    message, *hints = done.stderr.decode().splitlines()
    assert (done.returncode, message) == (code, f"fastns: {error}")
    assert [hint[:6] for hint in hints] == ([] if "ENOTDIR" in error else ["hint: "])
    assert status == {
        "exit_code": code,
        "cause": "failed",
        "signal": None,
        "usage": None,
        "wall_time": None,
        "limits": None,
        "truncated": False,
        "stage": "exec",
        "errno": status["errno"],
        "path": command,
        "message": error,
    }


def test_a_step_that_fails_is_named(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    path = compiled(tmp_path / "a.plan", "-v", f"{source}:/x", "-w", "/no\nwhere")
    done, status = status_of(path, "true")
    lines = done.stderr.decode().splitlines()
    assert lines[0] == "fastns: chdir /no\\nwhere: No such file or directory (ENOENT)"
    assert (done.returncode, status["stage"], status["path"]) == (125, "chdir", "/no\nwhere")
    source.rmdir()
    done, status = status_of(path, "true")
    message = done.stderr.decode().splitlines()[0]
    assert re.fullmatch(rf"fastns: mount\[\d+\] {source}: No such file.* \(ENOENT\)", message)
    assert (done.returncode, status["stage"], status["path"]) == (125, "mount", str(source))


def test_a_name_that_is_no_text(plan: Path) -> None:
    """The status has a path that is not UTF-8 unchanged."""
    done, status = status_of(plan, os.fsdecode(b'/\xff\xe4"\\\x01'))
    assert status["path"] == os.fsdecode(b'/\xff\xe4"\\\x01')
    assert done.returncode == 127


def test_timeouts_of_the_plan_and_of_the_command_line(tmp_path: Path) -> None:
    """The command line's timeout overrides the plan's."""
    mark = marker()
    short = compiled(tmp_path / "short.plan", "--timeout", "200ms")
    done, status = status_of(short, "sleep", mark)
    assert (done.returncode, done.stderr) == (124, b"")
    assert (status["cause"], status["signal"]) == ("timeout", "SIGKILL")
    assert status["usage"]["max_rss"] > 0
    assert not running("sleep", mark)
    none = compiled(tmp_path / "none.plan")
    assert execute("--timeout=0.2s", none, "sleep", mark).returncode == 124
    assert execute(none, "--timeout", "200000us", "--", "sleep", mark).returncode == 124
    assert execute("--timeout", "1h30m", short, "sleep", "0.5").returncode == 0


def test_a_timeout_that_passes_at_once(plan: Path, with_init: Path) -> None:
    """The cause is "timeout", even if the command ends quickly."""
    for path in (plan, with_init):
        done, status = status_of("--timeout", "1us", path, "true")
        assert (done.returncode, status["cause"], done.stderr) == (124, "timeout", b"")


# ---- a limit on output ----


@pytest.fixture
def limited(tmp_path: Path) -> Path:
    return compiled(tmp_path / "limited.plan", "--max-output", "100000")


def test_output_within_the_limit(limited: Path) -> None:
    """Output up to the limit is passed on."""
    write = "head -c 100000 /dev/zero; head -c 100000 /dev/zero >&2; exit 4"
    done, status = status_of(limited, "sh", "-c", write)
    assert (done.returncode, len(done.stdout), len(done.stderr)) == (4, 100000, 100000)
    assert (status["cause"], status["truncated"]) == ("exited", False)
    done, _ = status_of(limited, "sh", "-c", "echo a >/dev/stdout; echo b >/dev/stderr")
    assert (done.stdout, done.stderr) == (b"a\n", b"b\n")  # it may reopen its pipes


def test_output_beyond_the_limit(limited: Path) -> None:
    """Output beyond the limit is dropped, and the command still runs to its end."""
    write = "head -c 100001 /dev/zero; head -c 9000000 /dev/zero >&2; exit 4"
    done, status = status_of(limited, "sh", "-c", write)
    assert (done.returncode, len(done.stdout), len(done.stderr)) == (4, 100000, 100000)
    assert (status["cause"], status["truncated"]) == ("exited", True)


def test_a_reader_that_does_not_read(limited: Path) -> None:
    """The reader blocks the command, but a timeout or a signal still ends the sandbox."""
    words = [PROGRAM, "--timeout", "300ms", limited, "cat", "/dev/zero"]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        assert process.wait(10) == 124
    with subprocess.Popen([PROGRAM, limited, "cat", "/dev/zero"], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.read(1)
        other.terminate()
        assert other.wait(10) == 128 + signal.SIGTERM


def test_a_slow_reader_gets_all_output(limited: Path) -> None:
    line = f"{PROGRAM} {limited} head -c 100000 /dev/zero | (sleep 0.5; wc -c)"
    assert subprocess.check_output(["sh", "-c", line], timeout=60).split() == [b"100000"]


def test_a_reader_that_has_ended(limited: Path) -> None:
    """The command continues after EPIPE, and its exit code is kept."""
    line = f"{PROGRAM} {limited} sh -c 'cat /dev/zero; exit 9' | head -c 1 >/dev/null"
    done = subprocess.run(["bash", "-c", line + "; exit ${PIPESTATUS[0]}"], timeout=60)
    assert done.returncode == 9


# ---- signals to fastns-exec ----

CATCHES = "trap 'exit 9' INT; echo ready; while :; do sleep 0.05; done"


def started(*words: str | Path, **options: Any) -> subprocess.Popen[str]:
    """A fastns-exec whose command, CATCHES or a cat, has printed a line."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, **options}
    process = subprocess.Popen([PROGRAM, *words], text=True, **pipes)
    if process.stdin is not None:
        process.stdin.write("ready\n")
        process.stdin.flush()
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
@pytest.mark.parametrize("init", [False, True])
def test_a_signal_ends_the_sandbox(
    plan: Path, with_init: Path, tmp_path: Path, name: str, init: bool
) -> None:
    number = signal.Signals[name]
    with open(tmp_path / "status", "wb") as file:
        words = ["--status-fd", str(file.fileno()), with_init if init else plan]
        fds = [file.fileno()]
        with started(*words, "cat", pass_fds=fds) as process:
            process.send_signal(number)
            assert process.wait(10) == 128 + number
    status = json.loads((tmp_path / "status").read_bytes())
    assert (status["cause"], status["signal"]) == ("killed", name)


def test_an_interrupt_that_the_command_handles(plan: Path) -> None:
    """fastns-exec exits with the command's code."""
    with started(plan, "sh", "-c", CATCHES, stdin=subprocess.DEVNULL) as process:
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 9


def test_a_signal_that_is_ignored_stays_ignored(plan: Path) -> None:
    line = f'trap "" HUP; exec {PROGRAM} {plan} sh -c "echo ready; exec sleep 300"'
    with subprocess.Popen(["sh", "-c", line], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 128 + signal.SIGTERM


def test_an_ignored_sigchld_loses_no_status(plan: Path) -> None:
    line = f'trap "" CHLD; exec {PROGRAM} {plan} sh -c "exit 7"'
    assert subprocess.run(["sh", "-c", line], timeout=60).returncode == 7


@pytest.mark.parametrize("options", [[], ["--init"], ["--pid", "host"]])
def test_the_sandbox_ends_with_fastns_exec(tmp_path: Path, options: list[str]) -> None:
    mark = marker()
    path = compiled(tmp_path / "a.plan", *options)
    with subprocess.Popen([PROGRAM, path, "sleep", mark]) as process:
        assert eventually(lambda: running("sleep", mark))
        process.kill()
    assert eventually(lambda: not running("sleep", mark))


# ---- the caller's fds and environment ----


def test_stdin_stdout_and_stderr_are_the_callers(plan: Path) -> None:
    done = execute(plan, "sh", "-c", "cat; echo err >&2", input="in\n")
    assert (done.stdout, done.stderr) == ("in\n", "err\n")


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_streams(plan: Path, closed: str) -> None:
    """Closed streams do not change the exit code."""
    line = f"{PROGRAM} {plan} sh -c 'exit 7' {closed}"
    done = subprocess.run(["sh", "-c", line], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (7, b"", b"")


def test_no_other_fd_or_variable_is_inherited(plan: Path) -> None:
    with open("/etc/passwd") as file:
        fds = {"pass_fds": [file.fileno()], "env": {"SECRET": "1"}}
        done = execute(plan, "sh", "-c", "ls /proc/self/fd | wc -l; env", **fds)
    assert done.stdout.startswith("4\n")  # 0, 1, 2 and the fd that ls uses
    assert "SECRET" not in done.stdout


def test_a_status_that_nobody_reads(plan: Path) -> None:
    """fastns-exec reports EPIPE, and the exit code is still the command's."""
    near, far = os.pipe()
    os.close(near)
    try:
        done = execute("--status-fd", str(far), plan, "sh", "-c", "exit 7", pass_fds=[far])
    finally:
        os.close(far)
    assert (done.returncode, done.stderr) == (7, f"fastns: --status-fd {far}: Broken pipe\n")


# ---- who may use a plan ----


@pytest.mark.as_root
def test_another_user_may_not_use_roots_plan(public_dir: Path) -> None:
    path = compiled(public_dir / "root.plan")
    path.chmod(0o644)
    done = execute(path, "true", user=65534, group=65534, extra_groups=[])
    assert done.returncode == 125
    assert "compiled for another caller (uid 0, gid 0," in done.stderr
    path.unlink()


@pytest.mark.as_root
def test_a_caller_with_fewer_rights_may_not_use_the_plan(plan: Path) -> None:
    less = ["setpriv", "--bounding-set", "-net_raw", os.fspath(PROGRAM), os.fspath(plan), "true"]
    done = subprocess.run(less, capture_output=True, text=True, timeout=60)
    assert done.returncode == 125
    assert "compiled for another caller" in done.stderr


@pytest.mark.as_root
@pytest.mark.parametrize("what", ["file", "directory"])
def test_a_plan_file_of_another_user(tmp_path: Path, what: str) -> None:
    """A plan file of another user, or in another user's directory, is refused."""
    place = tmp_path / "place"
    place.mkdir()
    path = compiled(place / "a.plan")
    os.chown(path if what == "file" else place, 65534, 65534)
    done = execute(path, "true")
    assert done.returncode == 125
    assert "is owned by uid 65534, not by you or root" in done.stderr


@pytest.mark.as_root
def test_a_set_user_id_fastns_exec_refuses_to_run(
    public_dir: Path, setuid_works: Callable[[], None]
) -> None:
    """With the set-user-ID bit it would run any user's plans as root."""
    copy = public_dir / "fastns-exec"
    copy.write_bytes(PROGRAM.read_bytes())
    copy.chmod(0o4755)
    command = [copy, "/dev/null", "true"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, user=65534)
    copy.unlink()
    assert done.returncode == 125
    assert "fastns-exec must not be set-user-ID" in done.stderr


@pytest.fixture
def setuid_works() -> None:
    """Skip if /var/tmp is mounted nosuid."""
    if os.statvfs("/var/tmp").f_flag & os.ST_NOSUID:
        support.skip_missing("set-user-ID programs in /var/tmp")


def test_plan_files_that_only_their_owner_can_replace(tmp_path: Path) -> None:
    """Control for the refusals in tests/unit/test_planfile.py."""
    (tmp_path / "sticky/own").mkdir(parents=True)
    plan = compiled(tmp_path / "sticky/own/a.plan")
    plan.chmod(0o644)
    (tmp_path / "sticky").chmod(0o1777)  # sticky: others cannot replace own/
    (tmp_path / "link").symlink_to("sticky/own/../own")
    (tmp_path / "file").symlink_to(plan)
    for path in (plan, tmp_path / "link/a.plan", tmp_path / "file"):
        assert execute(path, "true").returncode == 0
    assert execute("link/../own/a.plan", "true", cwd=tmp_path).returncode == 0
