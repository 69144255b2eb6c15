"""Containers: sandboxes that stay, in which one command after another runs."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import support
from inside import runner
from processes import eventually, marked, marker, running

import fastns
from fastns import (
    DEVNULL,
    PIPE,
    ClosedError,
    CompletedSandbox,
    Container,
    Job,
    Mount,
    Rlimit,
    SpawnError,
    Spec,
    SpecError,
    TimeoutExpired,
)

TIMEOUT = 60


@pytest.fixture(params=["rootfs", "host"])
def spec(request: pytest.FixtureRequest, busybox_rootfs: Path) -> Spec:
    if request.param == "host":
        return Spec()
    return Spec(rootfs=busybox_rootfs, overlay=True)


@pytest.fixture
def box(spec: Spec) -> Iterator[Container]:
    with Container(spec) as container:
        yield container


@pytest.fixture
def host() -> Iterator[Container]:
    with Container() as container:
        yield container


def sh(container: Container, text: str, **options: Any) -> tuple[int, str]:
    done = container.run(
        ["sh", "-c", text], capture_output=True, text=True, timeout=TIMEOUT, **options
    )
    return done.returncode, done.stdout


# ---- what stays ----


def test_a_command_sees_what_the_last_one_has_left(box: Container) -> None:
    assert sh(box, "echo left >/tmp/note; cd /tmp; export A=1; umask 077") == (0, "")
    assert sh(box, "cat /tmp/note; pwd; echo $A; umask") == (0, "left\n/\n\n0022\n")


def test_all_share_their_namespaces(box: Container) -> None:
    inside = "for name in mnt net pid ipc uts; do readlink /proc/self/ns/$name; done"
    first, second = sh(box, inside), sh(box, inside)
    assert first == second
    here = "".join(f"{os.readlink(f'/proc/self/ns/{n}')}\n" for n in ("mnt", "net", "pid"))
    assert not {*here.split()} & {*first[1].split()}


def test_two_containers_share_nothing(spec: Spec) -> None:
    with Container(spec) as one, Container(spec) as other:
        sh(one, "touch /tmp/note")
        assert sh(other, "ls /tmp") == (0, "")
        inside = "readlink /proc/self/ns/pid"
        assert sh(one, inside) != sh(other, inside)


def test_what_runs_on_is_reached_over_lo(host: Container) -> None:
    server = (
        "import socket; s = socket.create_server(('127.0.0.1', 0)); "
        "open('/tmp/port.new', 'w').write(str(s.getsockname()[1])); "
        "import os; os.rename('/tmp/port.new', '/tmp/port'); "
        "c = s.accept()[0]; c.sendall(b'hello'); c.close()"
    )
    client = (
        "import socket; port = int(open('/tmp/port').read()); "
        "print(socket.create_connection(('127.0.0.1', port)).recv(9).decode())"
    )
    python = sys.executable if sys.executable.startswith("/usr/") else "/usr/bin/python3"
    assert sh(host, f'{python} -c "{server}" >/dev/null 2>&1 &') == (0, "")
    assert eventually(lambda: "port" in host.listdir("/tmp"))
    assert sh(host, f'{python} -c "{client}"') == (0, "hello\n")


# ---- results ----


@pytest.mark.parametrize(
    ("text", "returncode"),
    [("exit 3", 3), ("kill -9 $$", -9), ("kill -TERM $$", -15), ("kill -ABRT $$", -6)],
)
def test_how_a_command_ended(box: Container, text: str, returncode: int) -> None:
    """A command is never pid 1, so signals act as they do outside."""
    done = box.run(["sh", "-c", text])
    assert (done.returncode, done.method) == (returncode, "container")
    assert done.cause == ("exited" if returncode > 0 else "signaled")
    assert sh(box, "test $$ -ne 1") == (0, "")


def test_streams(box: Container) -> None:
    data = os.urandom(1 << 20)
    done = box.run(["cat"], input=data, capture_output=True)
    assert done.stdout == data
    done = box.run(["sh", "-c", "echo out; echo err >&2"], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("out\n", "err\n")


def test_arguments(box: Container) -> None:
    words = ["word" * 1000] * 20  # more than fits into a message
    done = box.run(["echo", *words], capture_output=True, text=True)
    assert done.stdout.split() == words
    done = box.run(["env"], env={"PATH": "/bin:/usr/bin", "A": "b"}, capture_output=True, text=True)
    assert "A=b" in done.stdout.splitlines()
    assert sh(box, "pwd", cwd="/tmp") == (0, "/tmp\n")


@pytest.mark.parametrize(
    ("arguments", "stage", "number"),
    [
        ((["missing"], {}), "exec", errno.ENOENT),
        ((["/tmp"], {}), "exec", errno.EACCES),
        ((["true"], {"cwd": "/missing"}), "chdir", errno.ENOENT),
    ],
)
def test_a_command_that_cannot_start(
    box: Container, arguments: tuple[list[str], dict[str, str]], stage: str, number: int
) -> None:
    args, options = arguments
    for call in (box.run, box.spawn):
        with pytest.raises(SpawnError) as caught:
            call(args, **options)  # type: ignore[operator]
        assert (caught.value.stage, caught.value.errno) == (stage, number)
    assert sh(box, "echo works") == (0, "works\n")


@pytest.mark.parametrize("way", ["direct", "template", "rooms", "container"])
def test_timings(way: str) -> None:
    with runner(way) as run:
        for _ in range(2):
            done = run(["sleep", "0.2"], stdin=DEVNULL)
        times = done.timings
        assert 0.2 <= times.run < done.wall_time
        assert 0 < times.start < done.wall_time - 0.2
        assert (times.queued, times.end >= 0) == (0, True)
        assert times.start + times.run + times.end == pytest.approx(done.wall_time, abs=1e-6)


def test_timings_of_a_batch() -> None:
    with fastns.Template() as template:
        batch = template.run_batch([["sleep", "0.2"]] * 3, concurrency=1)
        assert sum(getattr(done, "timings").queued > 0.1 for done in batch) >= 1  # noqa: B009


def test_usage_is_of_the_command(host: Container) -> None:
    busy = host.run(["sh", "-c", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"]).usage
    idle = host.run(["true"]).usage
    assert busy.user_time > 5 * idle.user_time
    assert busy.max_rss_exact
    assert 100_000 < idle.max_rss < 100_000_000


# ---- many at once ----


def test_from_many_threads(box: Container) -> None:
    failures: list[object] = []

    def work(number: int) -> None:
        for i in range(30):
            word = f"{number}-{i}"
            done = box.run(["echo", word], capture_output=True, text=True)
            if (done.returncode, done.stdout) != (0, f"{word}\n"):
                failures.append((word, done))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_many_alive(box: Container) -> None:
    with_stdin = [box.spawn(["cat"], stdin=PIPE, stdout=PIPE) for _ in range(100)]
    for number, sandbox in enumerate(with_stdin):
        output, _ = sandbox.communicate(str(number).encode())
        assert output == str(number).encode()
        assert sandbox.returncode == 0


def test_batches(box: Container) -> None:
    jobs = [["sh", "-c", f"exit {i}"] for i in range(20)]
    codes = [getattr(done, "returncode", None) for done in box.run_batch(jobs, concurrency=4)]
    assert codes == [*range(20)]
    slow = Job(["sleep", marker()], timeout=0.2)
    outcomes = box.run_batch([["true"], slow, ["missing"], ["true"]])
    kinds = [CompletedSandbox, TimeoutExpired, SpawnError, CompletedSandbox]
    assert [type(done) for done in outcomes] == kinds
    spawned = box.spawn_batch([["true"], ["missing"]])
    assert isinstance(spawned[1], SpawnError)
    assert isinstance(spawned[0], fastns.Sandbox)
    assert spawned[0].wait() == 0


# ---- handles ----


def test_a_handle(box: Container) -> None:
    with box.spawn(["sh", "-c", "read line; exit 7"], stdin=PIPE) as sandbox:
        assert sandbox.poll() is None
        assert Path(f"/proc/{sandbox.pid}").exists()
        assert sandbox.stdin is not None
        sandbox.stdin.write(b"go\n")
        sandbox.stdin.close()
        assert (sandbox.wait(), sandbox.cause) == (7, "exited")


def test_signals_of_a_handle(box: Container) -> None:
    sandbox = box.spawn(["sleep", marker()])
    sandbox.terminate()
    assert (sandbox.wait(), sandbox.cause) == (-15, "signaled")


def test_a_killed_handle_takes_all_it_started_along(host: Container) -> None:
    mark = marker()
    sandbox = host.spawn(["sh", "-c", f"setsid sleep {mark} & sleep {mark}; true"])
    assert eventually(lambda: len(running("sleep", mark)) == 2)
    sandbox.kill()
    assert (sandbox.wait(), sandbox.cause) == (-9, "killed")
    assert not running("sleep", mark)
    assert sh(host, "echo works") == (0, "works\n")


def test_a_dropped_handle_ends_its_command(host: Container) -> None:
    mark = marker()
    sandbox = host.spawn(["sh", "-c", f"setsid sleep {mark} & sleep {mark}; true"])
    assert eventually(lambda: len(running("sleep", mark)) == 2)
    with pytest.warns(ResourceWarning, match="still running"):
        del sandbox
    assert not running("sleep", mark)


def test_a_handle_that_ended_leaves_its_daemon(host: Container) -> None:
    mark = marker()
    sandbox = host.spawn(["sh", "-c", f"setsid sleep {mark} & exit 3"])
    assert sandbox.wait() == 3
    assert eventually(lambda: running("sleep", mark))


# ---- timeouts ----

LEFTOVERS = {
    "in the background": "sleep MARK & sleep MARK; true",
    "in a session": "setsid sleep MARK & sleep MARK; true",
    "a daemon": "(setsid sh -c 'sleep MARK & exit' &); sleep MARK; true",
    "deaf": "trap '' TERM INT HUP; sleep MARK & sleep MARK; true",
    "stopped": "sleep MARK & kill -STOP $!; sleep MARK; true",
    "a chain": "sh -c 'sh -c \"sleep MARK; true\"; true' & sleep MARK; true",
    "stops itself": "sleep MARK & kill -STOP $$",
}


@pytest.mark.parametrize("text", LEFTOVERS.values(), ids=LEFTOVERS)
def test_a_timeout_ends_all_that_the_command_started(host: Container, text: str) -> None:
    mark, earlier = marker(), marker()
    assert sh(host, f"sleep {earlier} >/dev/null 2>&1 &") == (0, "")
    with pytest.raises(TimeoutExpired) as caught:
        host.run(["sh", "-c", text.replace("MARK", mark)], timeout=0.4)
    assert (caught.value.cause, caught.value.returncode) == ("timeout", -9)
    assert not marked(mark)
    assert len(running("sleep", earlier)) == 1  # a control: only those of this command end
    assert sh(host, "echo works") == (0, "works\n")


def test_without_a_timeout_these_are_left(host: Container) -> None:
    """A control."""
    mark = marker()
    sh(host, f"setsid sleep {mark} >/dev/null 2>&1 & (sleep {mark} >/dev/null 2>&1 &)")
    assert eventually(lambda: len(running("sleep", mark)) == 2)
    host.close()
    assert eventually(lambda: not marked(mark))


def test_processes_that_fork_are_ended(host: Container) -> None:
    """As many as the limit allows, each of which starts another whenever one ends."""
    fork = "f() { while :; do sh -c : ; done; }; for i in 1 2 3 4 5 6 7 8; do f & done; wait"
    for _ in range(3):
        with pytest.raises(TimeoutExpired):
            host.run(["sh", "-c", fork], timeout=0.3, stderr=DEVNULL)
        _, listed = sh(host, "ps axo args=")
        assert not [line for line in listed.splitlines() if "while :" in line]


def test_many_that_are_ended_at_once(host: Container) -> None:
    """So many that all processes are stopped at once; the others continue."""
    mark, other = marker(), marker()
    bystander = host.spawn(
        ["sh", "-c", f"trap 'exit 5' USR1; while :; do sleep 0.05; done # {other}"]
    )
    many = f"i=0; while [ $i -lt 150 ]; do sleep {mark} & i=$((i+1)); done; wait"
    with pytest.raises(TimeoutExpired):
        host.run(["sh", "-c", many], timeout=1)
    assert not marked(mark)
    bystander.send_signal(signal.SIGUSR1)
    assert bystander.wait(TIMEOUT) == 5


# ---- the supervisor ----


@pytest.mark.as_root  # who has a range of ids
def test_no_command_can_signal_a_supervisor(host: Container) -> None:
    returncode, output = sh(host, "kill -9 $PPID 2>&1; kill -STOP $PPID 2>&1; echo on")
    assert (returncode, output.splitlines()[-1]) == (0, "on")
    assert output.lower().count("not permitted") == 2


@pytest.mark.as_user  # who has one id
def test_a_command_that_kills_its_supervisor_is_killed(host: Container) -> None:
    """The control of the test above. The container works on."""
    mark = marker()
    for _ in range(20):
        done = host.run(["sh", "-c", f"kill -9 $PPID; sleep {mark} >/dev/null; true"])
        assert done.returncode == -9
    assert sh(host, "echo works") == (0, "works\n")


def test_a_command_cannot_look_into_the_server(host: Container) -> None:
    inside = (
        "for pid in 1 $PPID; do for name in mem maps environ fd root; do "
        "ls /proc/$pid/$name/ >/dev/null 2>&1 && echo $name; "
        "head -c1 /proc/$pid/$name >/dev/null 2>&1 && echo $name; done; done; true"
    )
    assert sh(host, inside) == (0, "")
    assert sh(host, "head -c1 /proc/self/maps >/dev/null && echo readable") == (0, "readable\n")


# ---- ids ----


@pytest.mark.as_root  # who has a range of ids
def test_users(host: Container) -> None:
    for user, ids in (("1000", "1000 0"), ("7:8", "7 8"), (5, "5 0"), (None, "0 0")):
        assert sh(host, "echo $(id -u) $(id -g) $(id -G)", user=user)[1].split()[:2] == ids.split()
    _, status = sh(host, "grep -h -e ^Cap -e ^Groups -e ^NoNewPrivs /proc/self/status", user="9:9")
    words = dict(line.split(":") for line in status.splitlines())
    assert {name: words[name].strip() for name in words if name.startswith("Cap")} == dict.fromkeys(
        ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"), "0" * 16
    )
    assert (words["Groups"].strip(), words["NoNewPrivs"].strip()) == ("", "1")


@pytest.mark.as_root  # who has a range of ids
def test_users_are_separated(host: Container) -> None:
    mark = marker()
    sh(host, "umask 077; echo secret >/tmp/a; sleep " + mark + " >/dev/null 2>&1 &", user="1000")
    assert eventually(lambda: running("sleep", mark))
    pid = sh(host, "pgrep -x sleep")[1].strip()
    assert sh(host, f"cat /tmp/a || kill -9 {pid}", user="1001") != (0, "")
    assert running("sleep", mark)
    assert sh(host, f"cat /tmp/a && kill -9 {pid}", user="1000") == (0, "secret\n")  # a control
    assert eventually(lambda: not running("sleep", mark))


@pytest.mark.as_root  # who has a range of ids
@pytest.mark.parametrize("user", ["65535", "1:65535", "70000", "nobody", "", "-1", 1.5])
def test_a_user_that_there_is_not(host: Container, user: Any) -> None:
    with pytest.raises(SpecError) as caught:
        host.run(["true"], user=user)
    assert caught.value.field == "user"


@pytest.mark.parametrize("namespaces", [{}, {"user": "new"}])
def test_a_user_without_a_range(namespaces: dict[str, str]) -> None:
    if support.is_root() and not namespaces:
        namespaces = {"user": "host"}
    with Container(Spec(namespaces=namespaces)) as container:
        with pytest.raises(SpecError, match="range of ids"):
            container.run(["true"], user="1000")
        assert container.run(["true"]).returncode == 0


def test_a_template_has_one_user() -> None:
    with fastns.Template() as template, pytest.raises(SpecError) as caught:
        template.run(["true"], user="1")
    assert caught.value.field == "user"


# ---- what a spec may ask for ----


def test_specs(busybox_rootfs: Path) -> None:
    with Container(
        Spec(
            rootfs=busybox_rootfs,
            overlay=True,
            hostname="box",
            mounts=[Mount("/data", type="tmpfs", options=["X-mount.mkdir"])],
            files={"/run/note": "text"},
            env={"A": "b"},
            cwd="/tmp",
            umask=0o027,
            user="3:4" if support.is_root() else "0:0",
            rlimits=[Rlimit("nofile", 64, 64), Rlimit("fsize", 4096, 4096)],
        )
    ) as container:
        inside = "hostname; cat /run/note; echo $A; pwd; umask; id -u; ulimit -n; ls -d /data"
        user = "3" if support.is_root() else "0"
        assert sh(container, inside)[1].split() == [
            "box", "textb", "/tmp", "0027", user, "64", "/data"
        ]  # fmt: skip
        # Its own files are not what the limit is for.
        container.write_file("/tmp/large", b"x" * 100_000)
        assert len(container.read_file("/tmp/large")) == 100_000
        assert sh(container, "head -c 10000 /dev/zero >/tmp/more")[0] != 0


def test_a_limit_above_the_callers() -> None:
    """Where the caller may raise a limit, a command has it, though its server has no rights."""
    spec = Spec(rlimits=[Rlimit("rtprio", 6, 7)])
    command = ["grep", "realtime.priority", "/proc/self/limits"]

    def in_container() -> bytes:
        with Container(spec) as container:
            return bytes(container.run(command, capture_output=True).stdout)

    def directly() -> bytes:
        return bytes(fastns.run(command, spec=spec, capture_output=True).stdout)

    outcomes: list[object] = []
    for start in (directly, in_container):
        try:
            outcomes.append(start())
        except SpawnError as error:
            outcomes.append((error.stage, error.errno))
    assert outcomes[0] == outcomes[1]


def test_a_profile_of_ones_own(busybox_rootfs: Path) -> None:
    """The command loads it, because it could hinder the server."""
    rule = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.EXDEV}
    more = {"names": ["getdents64", "signalfd4", "epoll_pwait"], "action": "SCMP_ACT_ERRNO"}
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule, more]}
    with Container(Spec(rootfs=busybox_rootfs, overlay=True, seccomp=profile)) as container:
        assert sh(container, "mkdir /tmp/d 2>/dev/null")[0] == 1
        mark = marker()
        with pytest.raises(TimeoutExpired):
            container.run(["sh", "-c", f"setsid sleep {mark} & sleep {mark}; true"], timeout=0.3)
        assert not marked(mark)


def test_landlock(busybox_rootfs: Path) -> None:
    if fastns._core.landlock_abi() < 0:  # type: ignore[attr-defined]
        support.skip_missing("Landlock")
    paths = {"read": ["/"], "write": ["/tmp"]}
    with Container(Spec(rootfs=busybox_rootfs, overlay=True, landlock=paths)) as container:
        assert sh(container, "echo a >/tmp/a; echo b >/run/b 2>/dev/null || echo no") == (0, "no\n")


def test_new_privileges() -> None:
    with Container(Spec(no_new_privileges=False)) as container:
        _, status = sh(container, "grep -h -e NoNewPrivs -e CapEff /proc/self/status")
        assert status.split() == ["CapEff:", "0" * 16, "NoNewPrivs:", "0"]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"init": True}, "init"),
        ({"namespaces": {"pid": "host"}}, "namespaces"),
        ({"default_mounts": False}, "mounts"),
    ],
)
def test_what_a_container_does_not_support(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(SpecError) as caught:
        Container(Spec(**fields))
    assert caught.value.field == field


def test_a_name() -> None:
    with Container(name="web-1.a_b") as container:
        assert container.name == "web-1.a_b"
        assert "web-1.a_b" in repr(container)
    assert Container.__init__.__kwdefaults__ == {"name": None}  # type: ignore[attr-defined]
    for name in ("", "-a", "a b", "ä", "a/b", "a" * 129, 5, b"a"):
        with pytest.raises(SpecError) as caught:
            Container(name=name)  # type: ignore[arg-type]
        assert caught.value.field == "name"


def test_a_start_that_fails(tmp_path: Path) -> None:
    with pytest.raises(SpawnError) as caught:
        Container(Spec(rootfs=tmp_path / "missing"))
    assert (caught.value.stage, caught.value.errno) == ("rootfs", errno.ENOENT)


# ---- limits ----


@pytest.mark.with_cgroups
def test_limits_hold_for_all_commands_together() -> None:
    eat = "import time; x = b'x' * 20_000_000; print('up', flush=True); time.sleep(60)"
    with Container(Spec(memory="40m", memory_swap="40m", pids_limit=20)) as container:
        first = container.spawn(["python3", "-c", eat], stdout=PIPE)
        assert first.stdout is not None
        assert first.stdout.readline() == b"up\n"
        large = ["python3", "-c", "x = b'x' * 30_000_000"]
        more = container.run(large, capture_output=True)
        causes = {more.cause}
        if first.poll() is not None:
            causes.add(first.cause or "signaled")
        assert "oom" in causes
        first.kill()
        first.stdout.close()
        forks = "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do sleep 9 & done"
        done = container.run(["sh", "-c", forks], stderr=DEVNULL, timeout=TIMEOUT)
        assert done.cause == "pids"
        container.run(["pkill", "sleep"])
        ended = container.run(["false"])
        assert (ended.cause, ended.limits) == ("exited", ("memory", "memory_swap", "pids_limit"))


@pytest.mark.with_cgroups
def test_containers_of_one_spec_come_and_go() -> None:
    """They share their plan and its cgroups, from which each takes one."""
    spec = Spec(memory="100m", pids_limit=20)
    failures: list[object] = []

    def work() -> None:
        for _ in range(15):
            try:
                with Container(spec) as container:
                    assert sh(container, "echo works") == (0, "works\n")
            except (SpawnError, AssertionError) as error:
                failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.with_cgroups
@pytest.mark.parametrize("spawns", [False, True])
def test_cpu_time_ends_the_container(spawns: bool) -> None:
    with Container(Spec(cpu_time=0.3)) as container:
        endless = ["sh", "-c", "while :; do :; done"]
        if spawns:
            sandbox = container.spawn(endless)
            assert (sandbox.wait(TIMEOUT), sandbox.cause) == (-9, "cpu_time")
        else:
            done = container.run(endless, timeout=TIMEOUT)
            assert (done.returncode, done.cause) == (-9, "cpu_time")
        with pytest.raises(ClosedError):
            container.run(["true"])


# ---- the end ----


def test_close_ends_all() -> None:
    mark = marker()
    container = Container()
    sh(container, f"setsid sleep {mark} >/dev/null 2>&1 &")
    sandbox = container.spawn(["sleep", mark])
    assert eventually(lambda: len(running("sleep", mark)) == 2)
    container.close()
    container.close()
    assert eventually(lambda: not marked(mark))
    with pytest.raises(SpawnError):
        sandbox.wait(TIMEOUT)
    calls = [
        lambda: container.run(["true"]),
        lambda: container.spawn(["true"]),
        lambda: container.run_batch([["true"]]),
        lambda: container.read_file("/etc/passwd"),
        lambda: container.write_file("/tmp/a", b""),
        lambda: container.listdir("/"),
    ]
    for call in calls:
        with pytest.raises(ClosedError, match="closed"):
            call()


def test_a_dropped_container_ends() -> None:
    mark = marker()
    container = Container()
    sh(container, f"sleep {mark} >/dev/null 2>&1 &")
    with pytest.warns(ResourceWarning, match="not closed"):
        del container
    assert eventually(lambda: not marked(mark))


def test_its_first_process_is_killed(host: Container) -> None:
    def is_closed() -> bool:
        try:
            host.run(["true"])
        except SpawnError as error:  # its sockets may be open for a moment
            assert error.stage == "helper"
            return False
        except ClosedError as error:
            assert "ended" in str(error)
            return True
        raise AssertionError("it runs on")

    mark = marker()
    sh(host, f"sleep {mark} >/dev/null 2>&1 &")
    os.kill(host.pid, signal.SIGKILL)
    assert eventually(lambda: not marked(mark))
    assert eventually(is_closed)
    with pytest.raises(ClosedError, match="ended"):
        host.read_file("/etc/passwd")


def test_its_first_process_is_killed_while_a_command_runs(host: Container) -> None:
    outcome: list[object] = []

    def work() -> None:
        try:
            outcome.append(host.run(["sleep", mark]))
        except (SpawnError, ClosedError) as error:
            outcome.append(error)

    mark = marker()
    thread = threading.Thread(target=work)
    thread.start()
    assert eventually(lambda: running("sleep", mark))
    os.kill(host.pid, signal.SIGKILL)
    thread.join()
    assert isinstance(outcome[0], SpawnError | ClosedError)


def test_the_caller_is_killed() -> None:
    mark = marker()
    caller = subprocess.run(
        [
            sys.executable,
            "-c",
            f"""if True:
            import fastns, os, signal
            box = fastns.Container()
            box.run(["sh", "-c", "sleep {mark} >/dev/null 2>&1 &"])
            box.spawn(["sleep", "{mark}"])
            os.kill(os.getpid(), signal.SIGKILL)""",
        ],
        timeout=TIMEOUT,
        check=False,
    )
    assert caller.returncode == -signal.SIGKILL
    assert eventually(lambda: not marked(mark))


def test_in_a_forked_process(host: Container) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            host.run(["true"])
        except ClosedError:
            os._exit(7)
        finally:
            os._exit(8)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert sh(host, "echo works") == (0, "works\n")


def test_ctrl_c_ends_the_command_and_not_the_container(host: Container) -> None:
    mark = marker()
    main = threading.get_ident()
    timer = threading.Thread(
        target=lambda: (
            eventually(lambda: running("sleep", mark)) and signal.pthread_kill(main, signal.SIGINT)
        )
    )
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        host.run(["sh", "-c", f"setsid sleep {mark} & sleep {mark}; true"])
    timer.join()
    assert eventually(lambda: not marked(mark))
    assert sh(host, "echo works") == (0, "works\n")


def test_nothing_accumulates(host: Container) -> None:
    def look() -> tuple[int, int]:
        here = len(os.listdir("/proc/self/fd"))
        processes = sh(host, "ls -d /proc/[0-9]* | wc -l")[1]
        return here, int(processes)

    def work() -> None:
        for _ in range(100):
            host.run(["true"])
            host.write_file("/tmp/a", b"x")
            host.read_file("/tmp/a")
        with pytest.raises(TimeoutExpired):
            host.run(["sleep", "60"], timeout=0.05)
        host.spawn(["true"]).wait()

    work()
    before = look()
    for _ in range(3):
        work()
    assert eventually(lambda: look() == before)
