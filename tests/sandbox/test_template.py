"""Template: sandboxes started by a server. They share nothing writable."""

from __future__ import annotations

import errno
import gc
import itertools
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import support
from plans import Op
from processes import children, eventually, server_pid

from fastns import (
    ClosedError,
    CompletedSandbox,
    Job,
    Mount,
    Rlimit,
    Sandbox,
    SpawnError,
    Spec,
    SpecError,
    Template,
    TimeoutExpired,
    _core,
    run,
)

HOST_NET: dict[str, Any] = {"network": "host"}


# The tests run with each option that makes a template faster.
MODES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "usual": ({}, {}),
    "plain": (HOST_NET, {"ready": 0}),
    "overlay": ({"overlay": True, **HOST_NET}, {"ready": 0}),
    "ready": (HOST_NET, {"ready": 3}),
    "networks": ({"overlay": True}, {"ready": 0}),
    "all": ({"overlay": True}, {"ready": 3}),
}


@pytest.fixture(params=MODES)
def template(busybox_rootfs: Path, request: pytest.FixtureRequest) -> Iterator[Template]:
    fields, options = MODES[request.param]
    with Template(Spec(rootfs=busybox_rootfs, hostname="first", **fields), **options) as template:
        yield template


@pytest.fixture(params=MODES)
def admin(busybox_rootfs: Path, request: pytest.FixtureRequest) -> Iterator[Template]:
    """A template whose sandboxes may mount and unmount."""
    fields, options = MODES[request.param]
    spec = Spec(rootfs=busybox_rootfs, capabilities=["SYS_ADMIN"], **fields)
    with Template(spec, **options) as template:
        yield template


def sh(template: Template, script: str, **options: Any) -> str:
    done = template.run(["sh", "-c", script], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    out: str = done.stdout
    return out


# ---- nothing is shared ----


@pytest.mark.parametrize("ready", [0, 2])
def test_no_mount_namespace_stays_with_the_closer(busybox_rootfs: Path, ready: int) -> None:
    """The closer frees the mounts of ended sandboxes, however it and the server interleave."""
    with Template(Spec(rootfs=busybox_rootfs), ready=ready) as template:
        for _ in range(300):
            template.run(["true"])
        (closer,) = children(server_pid(template), of_its_own=False)
        fds = Path(f"/proc/{closer}/fd")
        assert eventually(lambda: len(list(fds.iterdir())) == 1 + ready)  # 1: its socket


@pytest.mark.parametrize("place", ["/tmp", "/run", "/dev/shm"])
def test_no_sandbox_sees_what_another_wrote(template: Template, place: str) -> None:
    assert sh(template, f"echo mine >{place}/file; ls {place}") == "file\n"
    assert sh(template, f"ls -A {place}") == ""


def test_no_sandbox_sees_what_a_running_one_wrote(template: Template) -> None:
    with template.spawn(["sh", "-c", "echo 1 >/tmp/a; echo; read x"], stdin=-1, stdout=-1) as first:
        assert first.stdout is not None
        first.stdout.readline()
        assert sh(template, "ls -A /tmp; set -- /proc/[0-9]*; echo $#") == "1\n"
        first.communicate(b"\n")


def test_a_plain_bind_is_shared(busybox_rootfs: Path, tmp_path: Path) -> None:
    """The control: all sandboxes see a directory that the caller mounts."""
    tmp_path.chmod(0o777)
    spec = Spec(rootfs=busybox_rootfs, mounts=[Mount("/mnt", source=str(tmp_path))], **HOST_NET)
    with Template(spec) as template:
        sh(template, "echo mine >/mnt/file")
        assert sh(template, "cat /mnt/file") == "mine\n"


def test_names_mounts_and_the_network_are_fresh(busybox_rootfs: Path) -> None:
    admin = ["SYS_ADMIN", "NET_ADMIN"]
    with Template(Spec(rootfs=busybox_rootfs, hostname="first", capabilities=admin)) as template:
        changed = "hostname other; mount -t tmpfs x /mnt; touch /mnt/x; ip link set lo down"
        before = sh(template, "hostname; ls -A /mnt; ip -o link | grep -c LOOPBACK,UP")
        assert before == "first\n1\n"
        sh(template, f"{changed}; hostname; ls /mnt")
        assert sh(template, "hostname; ls -A /mnt; ip -o link | grep -c LOOPBACK,UP") == before


def test_queues_and_shared_memory_are_fresh(bash_rootfs: Path) -> None:
    with Template(Spec(rootfs=bash_rootfs, **HOST_NET)) as template:
        made = sh(template, "ipcmk -Q >/dev/null; ipcmk -M 4096 >/dev/null; ipcs -q -m")
        assert made.count("\n0x") == 2
        assert sh(template, "ipcs -q -m").count("\n0x") == 0


def test_the_servers_fds_and_processes_are_out_of_reach(template: Template) -> None:
    """With the server's fds a command could start and end sandboxes."""
    listed = sh(template, "ls -l /proc/1/fd; kill -9 -1; ls -d /proc/[0-9]*")
    assert "socket:" not in listed
    assert "anon_inode" not in listed
    assert listed.endswith("\n/proc/1\n")
    assert server_pid(template) > 0
    assert sh(template, "echo fine") == "fine\n"


def test_devices_and_files_are_read_only(busybox_rootfs: Path) -> None:
    spec = Spec(rootfs=busybox_rootfs, files={"/etc/hosts": "127.0.0.1 me\n"}, **HOST_NET)
    with Template(spec) as template:
        assert sh(template, "cat /etc/hosts; echo x >/dev/null") == "127.0.0.1 me\n"
        for target in ("/dev/new", "/etc/hosts"):
            done = template.run(["sh", "-c", f"echo x >{target}"], capture_output=True, text=True)
            assert done.returncode != 0
            assert "Read-only file system" in done.stderr


BENEATH = "umount -l /proc && cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '"


def test_the_mounts_beneath_show_no_other_sandbox(admin: Template) -> None:
    """A sandbox with CAP_SYS_ADMIN may unmount its own /proc. The mount underneath shows no other
    sandbox's processes."""
    with admin.spawn(["sleep", "60"]) as other:
        assert "sleep" not in sh(admin, BENEATH + "; true")
        script = "umount /dev/shm /tmp && echo uncovered; touch /dev/shm/x 2>/dev/null && echo made"
        # Root's sandboxes cannot unmount the server's mounts, which are locked. A user's can.
        assert sh(admin, script + "; true") == ("made\n" if support.is_root() else "uncovered\n")
        other.kill()


def test_nothing_can_be_unmounted_without_sys_admin(template: Template) -> None:
    script = "for place in /proc /tmp /dev/shm; do umount $place 2>/dev/null && echo $place; done"
    assert sh(template, script + "; true") == ""


@pytest.mark.as_user
def test_without_hidepid_the_servers_proc_shows_other_sandboxes(
    busybox_rootfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: hidepid is left out of the server's /proc, which a user namespace needs."""
    plan = _core.Plan

    def shown(*, ops: Sequence[Op], **given: Any) -> _core.Plan:
        """Like _core.Plan, but without hidepid."""
        kept = [Op(**{**vars(op), "data": None}) if op.data == b"hidepid=2" else op for op in ops]
        assert len({*ops} - {*kept}) == (given.get("sandbox") is not None)
        return plan(ops=tuple(kept), **given)

    with monkeypatch.context() as patch:
        patch.setattr(_core, "Plan", shown)
        made = Template(Spec(rootfs=busybox_rootfs, capabilities=["SYS_ADMIN"], **HOST_NET))
    with made as template, template.spawn(["sleep", "60"]) as other:
        assert "sleep" in sh(template, BENEATH)
        other.kill()


@pytest.mark.parametrize("command", ["/proc/self/exe", "/script"])
def test_the_servers_program_is_out_of_reach(
    busybox_rootfs: Path, tmp_path: Path, command: str
) -> None:
    """/proc/self/exe leads to the program until the command is executed. All sandboxes share that
    file, and could leave data for each other in its attributes."""
    root = support.copy_tree(busybox_rootfs, tmp_path / "root")
    script = root / "script"
    script.write_text("#!/proc/self/exe\n")
    script.chmod(0o755)
    spec = Spec(rootfs=root, **HOST_NET)
    with Template(spec) as template:
        for _ in range(2):
            with pytest.raises(SpawnError) as caught:
                template.spawn([command])
            assert (caught.value.stage, caught.value.errno) == ("exec", errno.EACCES)
        assert sh(template, "echo fine") == "fine\n"
    # The control: in a direct start the program can be executed.
    assert run([command], spec=spec).returncode == 127


def test_every_sandbox_is_pid_1_and_sees_only_itself(template: Template) -> None:
    assert sh(template, "echo $$; set -- /proc/[0-9]*; echo $#") == "1\n1\n"


# ---- arguments of a start ----


def test_arguments_environment_directory_and_streams(template: Template) -> None:
    """A template's run() passes them on, as fastns.run() does."""
    script = 'read line; echo "$line $A $(pwd)"; echo wrong >&2; exit 3'
    done = template.run(
        ["sh", "-c", script],
        input="in\n",
        capture_output=True,
        text=True,
        env={"A": "b", "PATH": "/bin"},
        cwd="/tmp",
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, "in b /tmp\n", "wrong\n")
    assert done.usage.max_rss_exact
    assert 0 < done.usage.max_rss < 64 << 20
    assert 0 < done.wall_time < 60


def test_a_long_argument(template: Template) -> None:
    """Long arguments and variables arrive whole."""
    word = "x" * 120_000
    assert sh(template, 'echo "${#A} ${#B}"', env={"A": word, "B": word, "PATH": "/bin"}) == (
        "120000 120000\n"
    )


def test_passed_fds_keep_their_numbers(template: Template) -> None:
    """Even the lowest numbers are kept, which the server uses for its own fds."""
    pipes = [os.pipe() for _ in range(4)]
    try:
        fds = sorted(end[1] for end in pipes)
        script = "; ".join(f"echo {fd} >&{fd}" for fd in fds) + "; ls /proc/self/fd"
        assert len(sh(template, script).split()) == 4  # the control: without pass_fds sh fails
    except AssertionError as error:
        assert "ad file descriptor" in str(error)
    finally:
        ends = {write: read for read, write in pipes}
        with template.spawn(["sh", "-c", script], stdout=-1, pass_fds=fds) as sandbox:
            assert sandbox.stdout is not None
            listed = set(sandbox.stdout.read().decode().split())
        assert set(map(str, [0, 1, 2, *fds])) <= listed
        assert len(listed) == 3 + len(fds) + 1  # 1: the fd that ls uses
        for write, read in ends.items():
            os.close(write)
            assert os.read(read, 100).decode() == f"{write}\n"
            os.close(read)


def test_signals_and_timeouts(template: Template) -> None:
    """A timeout and kill() end the sandbox. A timeout returns the output so far."""
    with pytest.raises(TimeoutExpired) as caught:
        template.run(["sh", "-c", "echo early; sleep 60"], capture_output=True, timeout=0.3)
    assert caught.value.stdout == b"early\n"
    sandbox = template.spawn(["sleep", "60"])
    assert sandbox.method == "template"
    assert sandbox.poll() is None
    assert os.readlink(f"/proc/{sandbox.pid}/ns/pid") != os.readlink("/proc/self/ns/pid")
    sandbox.kill()
    assert sandbox.wait() == -signal.SIGKILL


def test_limits_are_half_of_the_callers_or_the_specs(busybox_rootfs: Path) -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    share = min(1024, max(soft // 2, min(soft, 256)))
    with Template(Spec(rootfs=busybox_rootfs, **HOST_NET)) as template:
        assert sh(template, "ulimit -n; umask") == f"{share}\n0022\n"
    limits = [Rlimit("RLIMIT_NOFILE", 77, 88)]
    with Template(Spec(rootfs=busybox_rootfs, rlimits=limits, **HOST_NET)) as template:
        assert sh(template, "ulimit -n; ulimit -Hn") == "77\n88\n"


# ---- failures ----


@pytest.mark.parametrize(
    ("args", "options", "stage", "code"),
    [
        (["/missing"], {}, "exec", errno.ENOENT),
        (["/etc"], {}, "exec", errno.EACCES),
        (["true"], {"cwd": "/missing"}, "chdir", errno.ENOENT),
        (["true", *["x" * 100_000] * 40], {}, "exec", errno.E2BIG),
    ],
)
def test_a_failure_says_which_step(
    template: Template, args: list[str], options: dict[str, Any], stage: str, code: int
) -> None:
    for _ in range(3):
        with pytest.raises(SpawnError) as caught:
            template.spawn(args, **options)
        assert (caught.value.stage, caught.value.errno) == (stage, code)
    assert sh(template, "echo fine") == "fine\n"


def test_a_failing_op_has_its_index(busybox_rootfs: Path) -> None:
    spec = Spec(rootfs=busybox_rootfs, mounts=[Mount("/missing", type="tmpfs")], **HOST_NET)
    with Template(spec) as template, pytest.raises(SpawnError) as caught:
        template.spawn(["true"])
    assert (caught.value.stage, caught.value.errno) == ("mount", errno.ENOENT)
    assert caught.value.path == "/missing"
    op = template._sandbox.ops[caught.value.op_index]
    assert op.target == b"/missing"


def test_a_missing_root(tmp_path: Path) -> None:
    """The first start fails at the stage "rootfs"."""
    with pytest.raises(SpawnError) as caught:
        Template(Spec(rootfs=tmp_path / "missing")).spawn(["true"])
    assert (caught.value.stage, caught.value.errno) == ("rootfs", errno.ENOENT)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"init": True}, "init"),
        ({"namespaces": {"pid": "host"}}, "namespaces"),
        ({"namespaces": {"pid": "/proc/1/ns/pid"}}, "namespaces"),
        ({"files": {"/tmp/x": "y"}}, "mounts"),
        ({"mounts": [Mount("/run/x", source="/srv")]}, "mounts"),
    ],
)
def test_specs_that_a_template_refuses(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(SpecError) as caught:
        Template(Spec(**fields))
    assert caught.value.field == field


@pytest.mark.parametrize("number", [-1, 1025, True, "3", 1.5])
def test_how_many_sandboxes_are_ready(number: Any) -> None:
    """An invalid number is a SpecError."""
    with pytest.raises(SpecError) as caught:
        Template(None, ready=number)
    assert caught.value.field == "ready"


# ---- many at once, and the end ----


def test_many_threads(template: Template) -> None:
    """Each thread gets the output of its own sandboxes."""
    found: list[str] = []

    def work(name: int) -> None:
        for i in range(40):
            found.append(sh(template, f"echo {name} {i} >/tmp/x; cat /tmp/x; ls /tmp | wc -l"))

    threads = [threading.Thread(target=work, args=(name,)) for name in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted(f"{name} {i}\n1\n" for name in range(6) for i in range(40))


def test_a_batch_in_which_some_fail(template: Template) -> None:
    """Each job has its own outcome."""
    jobs: list[Job] = []
    for i in range(300):
        jobs.append(Job(["sh", "-c", f"cat; echo {i} >/tmp/x; ls /tmp | wc -l"], input=f"{i}\n"))
    for i in range(0, 300, 10):
        jobs[i] = Job(["/missing"]) if i % 20 else Job(["sleep", "60"], timeout=0.05)
    results = template.run_batch(jobs, concurrency=8, text=True)
    for i, result in enumerate(results):
        if i % 20 == 10:
            assert isinstance(result, SpawnError)
            assert (result.stage, result.errno) == ("exec", errno.ENOENT)
        elif i % 20 == 0:
            assert isinstance(result, TimeoutExpired)
        else:
            assert isinstance(result, CompletedSandbox)
            assert (result.returncode, result.stdout) == (0, f"{i}\n1\n")


def test_a_batch_of_handles(template: Template) -> None:
    """Each job has a handle or an error."""
    jobs = [["sleep", "60"], ["/missing"], ["sh", "-c", "exit 3"]] * 5
    results = template.spawn_batch(jobs)
    for i, result in enumerate(results):
        if i % 3 == 1:
            assert isinstance(result, SpawnError)
            continue
        assert isinstance(result, Sandbox)
        assert result.method == "template"
        if i % 3 == 0:
            assert result.poll() is None
            result.kill()
        assert result.wait() == (3 if i % 3 == 2 else -signal.SIGKILL)


def test_a_batch_whose_server_is_killed(template: Template) -> None:
    """All jobs of the batch fail."""
    timer = threading.Timer(0.3, lambda: os.kill(server_pid(template), signal.SIGKILL))
    timer.start()
    results = template.run_batch([["sleep", "60"]] * 20, concurrency=4)
    timer.join()
    for result in results:
        assert isinstance(result, SpawnError)
        assert (result.stage, result.errno) == ("helper", errno.ECANCELED)


def gone(pid: int, seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
        time.sleep(0.01)
    return not os.path.exists(f"/proc/{pid}")


def test_a_server_that_is_killed(template: Template) -> None:
    """The server's sandboxes end with it, and the next start gets another server."""
    sandbox = template.spawn(["sleep", "60"])
    before = server_pid(template)
    os.kill(before, signal.SIGKILL)
    with pytest.raises(SpawnError) as caught:
        sandbox.wait()
    assert (caught.value.stage, caught.value.errno) == ("helper", errno.ECANCELED)
    assert gone(sandbox.pid)
    while template._server is not None and template._server.alive():
        time.sleep(0.001)  # a killed server ends after its sandboxes
    assert sh(template, "echo again") == "again\n"
    assert server_pid(template) != before
    assert gone(before)


def test_servers_killed_at_any_instant(template: Template) -> None:
    """Each run works or fails with ECANCELED."""
    over = threading.Event()
    killed = []
    pauses = itertools.cycle((0.001, 0.003, 0.01, 0.03))  # 1 ms may be too short for a run

    def kill() -> None:
        while not over.is_set():
            time.sleep(next(pauses))
            server = template._server
            if server is not None and server.alive():
                os.kill(server.pid, signal.SIGKILL)
                killed.append(server.pid)

    killer = threading.Thread(target=kill)
    killer.start()
    outcomes: dict[object, int] = {}
    for _ in range(150):
        try:
            outcome: object = template.run(["true"]).returncode
        except SpawnError as error:
            outcome = (error.stage, error.errno)
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    over.set()
    killer.join()
    assert set(outcomes) <= {0, ("helper", errno.ECANCELED)}
    assert len(outcomes) == 2, outcomes
    last = template._server
    while last is not None and last.pid == killed[-1] and last.alive():
        time.sleep(0.001)
    assert sh(template, "echo fine") == "fine\n"


CALLER = """
import os, sys, time
from fastns import Spec, Template
template = Template(Spec(rootfs=sys.argv[1], network="host"))
sandbox = template.spawn(["sleep", "60"])
if {forks} and os.fork() == 0:
    time.sleep(60)
print(template._server.pid, sandbox.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("forks", [False, True])
def test_a_template_ends_with_its_caller(busybox_rootfs: Path, forks: bool) -> None:
    """The template ends even if a process forked by the caller has copies of its sockets."""
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        CALLER.format(forks=forks),
        str(busybox_rootfs),
    ]
    caller = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert caller.stdout is not None
    server, sandbox = map(int, caller.stdout.readline().split())
    try:
        caller.kill()
        caller.wait()
        assert gone(server)
        assert gone(sandbox)
    finally:
        caller.stdout.close()
        try:
            os.killpg(caller.pid, signal.SIGKILL)
        except ProcessLookupError:
            assert not forks


FORKED = """
import os, sys
from fastns import Spec, Template
template = Template(Spec(rootfs=sys.argv[1], network="host"))
def shown():
    return template.run(["sh", "-c", "echo $$"], capture_output=True, text=True).stdout.strip()
first, server = shown(), template._server.pid
pid = os.fork()
if pid == 0:
    ok = shown() == "1" and template._server.pid != server
    template.close()
    os._exit(0 if ok else 1)
status = os.waitpid(pid, 0)[1]
print(first, shown(), template._server.pid == server, status)
"""


def test_a_forked_caller_has_a_server_of_its_own(busybox_rootfs: Path) -> None:
    command = [sys.executable, "-c", FORKED, str(busybox_rootfs)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout == "1 1 True 0\n"


@pytest.mark.parametrize("how", ["close", "drop"])
def test_nothing_is_left(busybox_rootfs: Path, how: str) -> None:
    """A closed or dropped template ends its server and sandboxes."""
    before = support.host_state()
    template = Template(Spec(rootfs=busybox_rootfs, **HOST_NET))
    running = template.spawn(["sleep", "60"])
    pids = [server_pid(template), running.pid]
    for _ in range(20):
        template.run(["true"])
    if how == "close":
        template.close()
        template.close()
        with pytest.raises(SpawnError):
            running.wait()
        for use in (template.run, template.spawn, lambda args: template.run_batch([args])):
            with pytest.raises(ClosedError, match="the Template is closed") as caught:
                use(["true"])
            assert isinstance(caught.value, ValueError)
        del template
    else:
        running.kill()
        running.wait()
        kept = [template]
        del template
        with pytest.warns(ResourceWarning, match=r"Template.*not closed: use a `with`") as noted:
            kept.clear()
        noted.clear()  # each warning keeps a reference to its Template
    del running
    gc.collect()
    assert all(gone(pid) for pid in pids)
    assert support.host_change(before) == []


def test_an_unknown_argument_is_refused() -> None:
    """A Template already has a spec, and a spawn has no time limit."""
    template: Any = Template()
    calls = (template.run, template.spawn, template.run_batch, template.spawn_batch)
    for call in calls:
        with pytest.raises(TypeError, match="spec"):
            call(["true"], spec=Spec())
    with pytest.raises(TypeError, match="timeout"):
        template.spawn(["true"], timeout=1)
