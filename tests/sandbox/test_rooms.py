"""Rooms: sandboxes of a Template with reuse=True, which serve one command after another."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import children, eventually, marker, running, script, server_pid

from fastns import PIPE, Mount, SpawnError, Spec, Template, TimeoutExpired

TIMEOUT = 60


@pytest.fixture(params=["rootfs", "host"])
def spec(request: pytest.FixtureRequest, busybox_rootfs: Path) -> Spec:
    if request.param == "host":
        return Spec()
    return Spec(rootfs=busybox_rootfs, overlay=True)


@pytest.fixture
def rooms(spec: Spec) -> Iterator[Template]:
    with Template(spec, reuse=True, ready=1) as template:
        yield template


def commands(keeper: int) -> list[int]:
    """The processes of a room's command, which are in the keeper's pid namespace."""
    return children(keeper, of_its_own=False)


def zombie(pid: int) -> bool:
    return ") Z" in Path(f"/proc/{pid}/stat").read_text()


def sh(template: Template, script: str, **options: Any) -> tuple[int, str, bool]:
    done = template.run(
        ["sh", "-c", script], capture_output=True, text=True, timeout=TIMEOUT, **options
    )
    assert done.stderr == ""
    return done.returncode, done.stdout, done.reused


def test_a_room_serves_again(rooms: Template) -> None:
    inside = "for name in mnt net pid; do readlink /proc/self/ns/$name; done"
    served = [sh(rooms, inside) for _ in range(10)]
    assert [reused for _, _, reused in served] == [False] + [True] * 9
    assert len({out for _, out, _ in served}) == 1
    stats = rooms.stats()
    assert (stats.rooms_made, stats.rooms_reused, stats.why_fresh) == (1, 9, "")


def test_a_fresh_template_never_reuses(spec: Spec) -> None:
    """A control."""
    with Template(spec) as template:
        served = [sh(template, "readlink /proc/self/ns/mnt") for _ in range(4)]
        assert {reused for _, _, reused in served} == {False}
        assert len({out for _, out, _ in served}) == 4
        assert template.stats().rooms_made == 0


@pytest.mark.parametrize(
    ("script", "code"),
    [("exit 3", 3), ("kill -9 $$", -9), ("kill -ABRT $$", -6), ("kill -PIPE $$", -13)],
)
def test_how_a_command_ends(rooms: Template, script: str, code: int) -> None:
    """The command is not pid 1, which would ignore most signals."""
    assert sh(rooms, script)[0] == code
    assert sh(rooms, "echo $$")[0] == 0


def test_input_output_and_large_arguments(rooms: Template) -> None:
    data = os.urandom(1 << 20)
    done = rooms.run(["cat"], input=data, capture_output=True)
    assert done.stdout == data
    word = "x" * 100_000  # more than a request holds: it is passed in a memory file
    for _ in range(3):
        assert sh(rooms, f"echo {word}") == (0, word + "\n", True)
    assert sh(rooms, "echo $LEFT; pwd; umask", env={"LEFT": "a"}, cwd="/tmp")[1] == (
        "a\n/tmp\n0022\n"
    )
    assert sh(rooms, "echo $LEFT; pwd")[1] == "\n/\n"


def test_a_command_has_only_its_three_fds(rooms: Template) -> None:
    sh(rooms, "true")
    done = rooms.run(["ls", "/proc/self/fd"], capture_output=True, text=True)
    assert done.stdout.split() == ["0", "1", "2", "3"]  # 3: the directory that ls reads
    assert done.reused


def test_the_keeper_is_out_of_sight(rooms: Template) -> None:
    """It is pid 1, with the command's uid."""
    script = "ls -d /proc/1 /proc/1/* 2>/dev/null; cat /proc/1/status 2>/dev/null; ls -d /proc/$$"
    code, out, _ = sh(rooms, script)
    assert (code, out.count("\n")) == (0, 1)  # a control: its own directory


def test_what_runs_on_is_killed_and_does_not_disturb(rooms: Template) -> None:
    started = "sleep 1000 & sleep 1000 & (setsid sleep 1000 &) ; exit 0"
    assert sh(rooms, f"{{ {started}; }} >/dev/null 2>&1")[0] == 0
    code, out, reused = sh(rooms, "ls /proc | grep -c '^[0-9]'")
    assert (code, reused) == (0, True)
    assert int(out) <= 3  # sh, ls, grep


def test_orphans_are_reaped_while_the_command_runs(rooms: Template) -> None:
    script = "(sleep 0 & ) ; sleep 0.3; cat /proc/*/stat 2>/dev/null | grep -c ') Z' || true"
    assert sh(rooms, script)[1] == "0\n"


def test_a_file_that_was_left_ends_the_room(rooms: Template) -> None:
    sh(rooms, "true")
    assert sh(rooms, "echo left >/tmp/left")[2]
    assert sh(rooms, "ls /tmp") == (0, "", False)
    assert rooms.stats().rooms_touched == 1


def test_a_timeout_ends_the_room_and_counts_only_its_command(rooms: Template) -> None:
    sh(rooms, "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done")
    with pytest.raises(TimeoutExpired) as caught:
        rooms.run(["sleep", "1000"], timeout=0.2)
    assert caught.value.usage is not None
    before = sh(rooms, "true")
    assert before[2] is False
    whole = rooms.run(["sh", "-c", "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done"])
    assert whole.usage.user_time > caught.value.usage.user_time


def test_the_usage_is_that_of_the_command_and_all_that_it_left(rooms: Template) -> None:
    spin = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done"
    # The pipe keeps the shell waiting for the orphan.
    orphan = rooms.run(["sh", "-c", f"x=$( ( ( {spin} ) & ) )"], timeout=TIMEOUT).usage
    assert rooms.run(["true"]).usage.user_time < orphan.user_time / 2
    large = rooms.run(["sh", "-c", "x=$(head -c 20000000 /dev/zero | tr '\\0' a)"])
    assert large.usage.max_rss > 20_000_000
    assert rooms.run(["true"]).usage.max_rss < 20_000_000
    with pytest.raises(TimeoutExpired) as caught:
        rooms.run(["sleep", "1000"], timeout=0.1)
    assert caught.value.usage is not None
    assert not caught.value.usage.max_rss_exact


def test_a_room_that_cannot_start_a_process(rooms: Template, tmp_path: Path) -> None:
    """The command runs once, elsewhere, and no error is reported."""
    sh(rooms, "true")
    (keeper,) = children(server_pid(rooms))
    resource.prlimit(keeper, resource.RLIMIT_NPROC, (0, 0))
    with open(tmp_path / "out", "wb") as out:
        done = rooms.run(["echo", "once"], stdout=out, timeout=TIMEOUT)
    assert (done.returncode, done.reused) == (0, False)
    assert sh(rooms, "echo next")[:2] == (0, "next\n")
    assert (tmp_path / "out").read_text() == "once\n"


@pytest.mark.parametrize("busy", [False, True])
def test_a_keeper_that_is_killed(rooms: Template, busy: bool) -> None:
    sh(rooms, "true")
    server = server_pid(rooms)
    found: list[object] = []
    seconds = marker()

    def run() -> None:
        found.append(rooms.run(["sleep", seconds], timeout=TIMEOUT).returncode)

    thread = threading.Thread(target=run)
    if busy:
        thread.start()
        # Earlier, the request may still be in the socket, and another room would run the command.
        assert eventually(lambda: running("sleep", seconds))
    for pid in children(server):
        if busy is bool(commands(pid)):
            os.kill(pid, signal.SIGKILL)
    if busy:
        thread.join()
        assert found == [-9]
    assert sh(rooms, "echo ok")[:2] == (0, "ok\n")


def test_statistics_after_the_server_was_killed(rooms: Template) -> None:
    """They are those of the next server."""
    sh(rooms, "true")
    assert rooms.stats().rooms_made == 1
    server = server_pid(rooms)
    os.kill(server, signal.SIGKILL)
    assert eventually(lambda: not Path(f"/proc/{server}").exists() or zombie(server))
    assert rooms.stats().rooms_reused == 0
    assert sh(rooms, "echo ok")[1] == "ok\n"


def test_nothing_is_left_when_the_caller_is_killed(busybox_rootfs: Path) -> None:
    script = """
import sys
from fastns import Spec, Template
template = Template(Spec(rootfs=sys.argv[1], overlay=True), reuse=True)
template.run(["true"])
print(template._running().pid, flush=True)
template.run(["sleep", "1000"])
"""
    with subprocess.Popen(
        [sys.executable, "-c", script, str(busybox_rootfs)], stdout=subprocess.PIPE, text=True
    ) as caller:
        assert caller.stdout is not None
        server = int(caller.stdout.readline())
        assert eventually(lambda: any(map(commands, children(server))))
        rooms = children(server)
        caller.kill()
    assert eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in (server, *rooms)))


def test_threads_get_their_own_results(rooms: Template) -> None:
    wrong: list[tuple[int, str]] = []

    def run(number: int) -> None:
        for i in range(25):
            word = f"{number}-{i}"
            out = sh(rooms, f"echo {word}")[1]
            if out != word + "\n":
                wrong.append((number, out))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("concurrency", [1, 2, 8])
def test_a_batch(rooms: Template, concurrency: int) -> None:
    jobs = [["sh", "-c", f"echo {i}; exit {i % 7}"] for i in range(60)]
    results = rooms.run_batch(jobs, concurrency=concurrency, capture_output=True, text=True)
    assert [(done.returncode, done.stdout) for done in results] == [  # type: ignore[union-attr]
        (i % 7, f"{i}\n") for i in range(60)
    ]
    reused = [done.reused for done in results]  # type: ignore[union-attr]
    assert reused.count(False) <= concurrency
    again = rooms.run_batch([["true"]] * concurrency, concurrency=concurrency)
    assert all(done.reused for done in again)  # type: ignore[union-attr]


def test_a_batch_with_timeouts_and_errors(rooms: Template) -> None:
    jobs = [["sleep", "1000"], ["/missing"], ["true"], ["sh", "-c", "echo >/tmp/left"]] * 3
    results = rooms.run_batch(jobs, concurrency=3, timeout=0.5)
    kinds = [type(done).__name__ for done in results]
    assert kinds == ["TimeoutExpired", "SpawnError", *["CompletedSandbox"] * 2] * 3


def test_spawn_makes_a_new_sandbox(rooms: Template) -> None:
    sh(rooms, "true")
    with rooms.spawn(["sh", "-c", "echo $$"], stdout=PIPE, text=True) as sandbox:
        out, _ = sandbox.communicate(timeout=TIMEOUT)
    assert out == "1\n"
    assert sh(rooms, "true")[2]


def test_an_fd_that_can_carry_others_ends_the_room(rooms: Template) -> None:
    sh(rooms, "true")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert rooms.run(["true"], stdin=theirs).reused
    assert not rooms.run(["true"]).reused
    assert rooms.stats().rooms_exposed == 1
    with open("/dev/null", "rb") as null:  # a control
        rooms.run(["true"], stdin=null)
    assert rooms.run(["true"]).reused


@pytest.mark.parametrize("command", [["/missing"], ["/etc"]])
def test_a_command_that_cannot_start(rooms: Template, command: list[str]) -> None:
    for _ in range(3):
        with pytest.raises(SpawnError) as caught:
            rooms.run(command)
        assert caught.value.stage == "exec"
    assert sh(rooms, "echo ok")[:2] == (0, "ok\n")


def test_a_room_that_cannot_be_made(public_dir: Path) -> None:
    """Each command gets the error of its room."""
    root = public_dir / "blocked-root"
    for name in ("dev", "proc", "run", "sys", "tmp"):
        (root / name).mkdir(parents=True)
    (root / "blocked").touch()
    spec = Spec(rootfs=root, overlay=True, mounts=[Mount("/blocked", type="tmpfs")])
    with Template(spec, reuse=True, ready=1) as template:
        for _ in range(4):
            with pytest.raises(SpawnError) as caught:
                template.run(["true"], timeout=TIMEOUT)
            assert caught.value.stage == "mount"


def test_a_room_serves_a_thousand_commands(rooms: Template) -> None:
    results = rooms.run_batch([["true"]] * 1010, concurrency=1)
    reused = [done.reused for done in results]  # type: ignore[union-attr]
    assert reused.count(False) == 2
    assert reused.index(False, 1) == 1000


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"overlay": False}, "a rootfs without overlay"),
        ({"overlay": False, "read_only": True}, "a rootfs without overlay"),
        ({"network": "host"}, "the host's network"),
        ({"memory": "64m", "require_limits": False}, "limits that cgroups enforce"),
        ({"seccomp": "unconfined"}, "a seccomp profile"),
        ({"capabilities": ["CAP_CHOWN"]}, "capabilities"),
        ({"files": {"/tmp/file": "text"}}, "files"),
        ({"no_new_privileges": False}, "no_new_privileges=False"),
        ({"readonly_paths": ()}, "a writable /proc/sys"),
        (
            {"mounts": [Mount("/dev/shm/a/b", type="tmpfs")]},
            "a mount below a directory of the root",
        ),
    ],
)
def test_what_makes_sandboxes_fresh(busybox_rootfs: Path, fields: dict[str, Any], why: str) -> None:
    spec = Spec(**{"rootfs": busybox_rootfs, "overlay": True, **fields})
    with Template(spec, reuse=True) as template:
        assert not any(template.run(["true"]).reused for _ in range(4))
        assert template.stats().why_fresh == why


def test_mounts_that_a_link_leads_to(busybox_rootfs: Path, public_dir: Path) -> None:
    """The proof looks at the tmpfs itself, not at the link."""
    root = public_dir / "linked-root"
    shutil.copytree(busybox_rootfs, root, symlinks=True)
    (root / "tmp").rmdir()
    (root / "var" / "tmp").mkdir(parents=True, exist_ok=True)
    (root / "tmp").symlink_to("var/tmp")
    with Template(Spec(rootfs=root, overlay=True), reuse=True, ready=1) as template:
        assert sh(template, "ls /tmp") == (0, "", False)
        assert sh(template, "echo left >/tmp/note; ls /tmp") == (0, "note\n", True)
        assert sh(template, "ls /tmp") == (0, "", False)


@pytest.mark.parametrize(
    "fields",
    [
        {"mounts": [Mount("/dev/pts", type="tmpfs")]},
        {"masked_paths": ["/dev/pts", "/tmp"]},
    ],
)
def test_a_room_without_terminals(busybox_rootfs: Path, fields: dict[str, Any]) -> None:
    spec = Spec(**{"rootfs": busybox_rootfs, "overlay": True, **fields})
    with Template(spec, reuse=True, ready=1) as template:
        assert [sh(template, "ls /dev/pts")[1:] for _ in range(2)] == [("", False), ("", True)]


NESTED = """
from fastns import Template
with Template(reuse=True, ready=1) as template:
    print([template.run(["true"]).reused for _ in range(3)], template.stats().why_fresh)
"""


def test_rooms_in_a_user_namespace() -> None:
    out = script(NESTED, prefix=["unshare", "--user", "--map-root-user"])
    assert out == "[False, True, True] \n"
