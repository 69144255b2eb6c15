"""A template's network namespace serves again only if no command can have changed it.

In these tests, a sandbox runs tests/networks.c, which uses its network in a given way.
"""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import eventually, marker, script, server_pid

import fastns
from fastns import DEVNULL, PIPE, CompletedSandbox, Mount, Spec, Template, TimeoutExpired

HOST_WIDE = re.compile(r" (alloc|mem|orphan) \d+")  # counters in sockstat

# Each leaves something in the network namespace. The control beside it does not.
TRACES = {
    "tcp": "tcp_listen",
    "tcp6": "tcp6_listen",
    "tcp_refused": "tcp_listen",
    "udp": "udp_bind",
    "udp6": "udp6_bind",
    "join": "udp_bind",
    "join6": "udp6_bind",
    "label": "udp6_bind",
    "ping": "udp_bind",
}
REFUSED = {  # by the filter or the kernel: they may leave nothing instead
    "join": ("ENODEV",),
    "join6": ("ENODEV",),
    "label": ("ENOPROTOOPT",),
    "ping": ("EACCES",),
}
CYCLES = ("cycle", "cycle_listener", "cycle_namespace")
HARMLESS = sorted({"nothing", "look", "local", "pair", "links", "udp_connect", *TRACES.values()})
# These send no packet, and only counters change. SECURITY.md says which remain visible.
COUNTED = (
    "tcp_without_route",
    "udp_without_route",
    "udp6_without_route",
    "udp_without_memory",
    "udp6_connect",
)
VISIBLE = {"snmp", "snmp6", "netstat", "ipv6_route", "rt6_stats"}  # files of /proc/net


class Networks:
    """Runs tests/networks.c in a template. Keeps the namespaces that it sees open until the end of
    the test, because the kernel gives the number of one that is gone to another."""

    def __init__(self, template: Template, opened: contextlib.ExitStack) -> None:
        self.template = template
        self.opened = opened

    @contextlib.contextmanager
    def running(self, *words: str) -> Iterator[tuple[fastns.Sandbox, int]]:
        """A sandbox that runs until the end of the block, and the number of its network."""
        with self.template.spawn(["/networks", *words], stdin=PIPE, stdout=PIPE) as sandbox:
            fd = os.open(f"/proc/{sandbox.pid}/ns/net", os.O_RDONLY)
            self.opened.callback(os.close, fd)
            yield sandbox, os.fstat(fd).st_ino

    def use(self, *words: str) -> tuple[int, str]:
        """The number of the network in which it ran, and what it printed."""
        with self.running(*words) as (sandbox, number):
            out, _ = sandbox.communicate(timeout=60)
            assert sandbox.returncode == 0
        named, _, text = out.decode().partition("\n")
        assert named == f"net:[{number}]"
        return number, HOST_WIDE.sub("", text)

    def look(self) -> tuple[int, str]:
        number, text = self.use("look")
        assert "\ndev:     lo:" in text  # the control: something is seen
        return number, text

    @property
    def made(self) -> int:
        return self.template.stats().networks_made

    @property
    def reused(self) -> int:
        return self.template.stats().networks_reused

    @property
    def touched(self) -> int:
        return self.template.stats().networks_touched

    @property
    def exposed(self) -> int:
        return self.template.stats().networks_exposed


Open = Callable[..., Networks]


@pytest.fixture
def networks(networks_root: Path) -> Iterator[Open]:
    """`networks(**fields)`: of a template of a Spec with these fields, and no ready sandbox."""
    with contextlib.ExitStack() as stack:

        def made(ready: int = 0, **fields: Any) -> Networks:
            spec = Spec(**{"rootfs": networks_root, **fields})
            return Networks(stack.enter_context(Template(spec, ready=ready)), stack)

        yield made


@pytest.fixture
def kept(networks: Open) -> Networks:
    return networks(overlay=True)


# ---- which serve again ----

ELIGIBLE: dict[str, dict[str, Any]] = {
    "overlay": {"overlay": True},
    "read-only": {"read_only": True},
    "no rootfs": {"rootfs": None},
    "tmpfs": {"overlay": True, "mounts": [Mount("/mnt", type="tmpfs")]},
    "limits": {"overlay": True, "rlimits": [fastns.Rlimit("nofile", 64, 64)], "hostname": "box"},
}


@pytest.mark.parametrize("fields", ELIGIBLE.values(), ids=ELIGIBLE)
def test_an_unused_network_serves_again(
    networks: Open, networks_root: Path, fields: dict[str, Any]
) -> None:
    if fields.get("rootfs", "") is None:
        program = Mount("/networks", source=networks_root / "networks", options=["ro"])
        fields = {**fields, "mounts": [program]}
    kept = networks(**fields)
    number, text = kept.look()
    assert [kept.look() for _ in range(5)] == [(number, text)] * 5
    args = ["/networks", "nothing"]
    done = kept.template.run(args, stdin=DEVNULL, capture_output=True)
    (other,) = kept.template.run_batch([args])
    for result in (done, other):
        assert isinstance(result, CompletedSandbox), result
        assert result.stdout.decode() == f"net:[{number}]\ndone\n"
    assert (kept.made, kept.reused, kept.touched, kept.exposed) == (1, 7, 0, 0)
    assert number != os.stat("/proc/self/ns/net").st_ino


INELIGIBLE: dict[str, dict[str, Any]] = {
    "capabilities": {"overlay": True, "capabilities": ["NET_RAW"]},
    "no filter": {"overlay": True, "seccomp": "unconfined"},
    "another filter": {"overlay": True, "seccomp": {"defaultAction": "SCMP_ACT_ALLOW"}},
    "writable rootfs": {},
    "writable bind": {"overlay": True, "mounts": [Mount("/mnt", source="/var/tmp")]},
}


@pytest.mark.parametrize("fields", INELIGIBLE.values(), ids=INELIGIBLE)
def test_each_sandbox_has_a_network_of_its_own(networks: Open, fields: dict[str, Any]) -> None:
    """A command could change the network unseen, or hand it to a later one."""
    fresh = networks(**fields)
    numbers = {fresh.look()[0] for _ in range(3)}
    assert len(numbers | {os.stat("/proc/self/ns/net").st_ino}) == 4
    assert (fresh.made, fresh.reused, fresh.touched, fresh.exposed) == (0, 0, 0, 0)


@pytest.mark.as_root
def test_the_hosts_ids_get_no_network_that_was_kept(networks: Open) -> None:
    fresh = networks(overlay=True, namespaces={"user": "host"})
    assert len({fresh.look()[0] for _ in range(3)}) == 3
    assert fresh.made == 0


def test_the_hosts_network_is_the_hosts(networks: Open) -> None:
    hosts = networks(overlay=True, network="host")
    assert {hosts.use("nothing")[0] for _ in range(3)} == {os.stat("/proc/self/ns/net").st_ino}
    assert (hosts.made, hosts.reused, hosts.touched, hosts.exposed) == (0, 0, 0, 0)


def test_statistics_begin_again_with_the_server(kept: Networks) -> None:
    kept.look()
    kept.look()
    assert (kept.made, kept.reused) == (1, 1)
    template = kept.template
    with contextlib.closing(os.fdopen(os.pidfd_open(server_pid(template)))) as pidfd:
        signal.pidfd_send_signal(pidfd.fileno(), signal.SIGKILL)
        select.select([pidfd], [], [])
    kept.look()
    assert (kept.made, kept.reused) == (1, 0)


def test_a_network_that_no_command_was_given_serves_again(kept: Networks) -> None:
    """The start fails after the clone."""
    number, text = kept.look()
    for _ in range(3):
        with pytest.raises(fastns.SpawnError) as caught:
            kept.template.run(["/missing"])
        assert caught.value.stage == "exec"
    assert kept.look() == (number, text)
    assert (kept.made, kept.reused, kept.touched) == (1, 4, 0)


# ---- which are dropped ----


def given_again(kept: Networks) -> set[int]:
    """The networks of as many concurrent sandboxes as networks were made: all that are kept."""
    with contextlib.ExitStack() as stack:
        live = [stack.enter_context(kept.running("nothing")) for _ in range(kept.made)]
        for sandbox, _ in live:
            sandbox.communicate()
    return {number for _, number in live}


def serves_again(kept: Networks, number: int) -> bool:
    """Whether this network is given to a further sandbox, maybe after the kernel has freed its
    sockets."""
    return eventually(lambda: number in given_again(kept))


@pytest.mark.parametrize("action", TRACES)
def test_a_trace(kept: Networks, action: str) -> None:
    """The network is dropped, and the next command sees nothing of it."""
    number, text = kept.look()
    where, said = kept.use(action)
    assert where == number
    if said.startswith("refused "):
        assert said.split()[1] in (*REFUSED.get(action, ()), "EAFNOSUPPORT", "EADDRNOTAVAIL"), said
        assert serves_again(kept, number)
        assert kept.look()[1] == text
        return
    other, found = kept.look()
    assert found == text
    assert other != number
    assert eventually(lambda: kept.touched == 1)
    assert kept.made == 2


@pytest.mark.parametrize("action", HARMLESS)
def test_no_trace(kept: Networks, action: str) -> None:
    """The control: a command that leaves nothing."""
    number, text = kept.look()
    where, said = kept.use(action, marker())
    assert where == number
    assert said.endswith("done\n") or said.split()[1] in ("EAFNOSUPPORT", "EADDRNOTAVAIL"), said
    assert serves_again(kept, number)
    assert kept.look()[1] == text
    assert kept.touched == 0


@pytest.mark.parametrize("action", COUNTED)
def test_what_remains_visible(kept: Networks, action: str) -> None:
    """The next command sees no more of such a command than these files."""
    number, text = kept.look()
    where, said = kept.use(action)
    assert where == number
    assert said.split()[-1] in ("done", "EAFNOSUPPORT", "EADDRNOTAVAIL"), said
    before, after = text.splitlines(), kept.look()[1].splitlines()
    changed = set(before) ^ set(after)
    assert {line.split(":")[0] for line in changed} <= VISIBLE


@pytest.mark.parametrize("action", CYCLES)
def test_a_cycle_of_sockets(kept: Networks, action: str) -> None:
    """The kernel frees them at some time. Only then the network may serve again."""
    number, text = kept.look()
    assert kept.use(action) == (number, "done\n")
    assert kept.look()[1] == text
    assert eventually(lambda: kept.touched == 1 or number in given_again(kept))
    assert kept.look()[1] == text


def test_what_appears_later(kept: Networks) -> None:
    """A group that a command has joined is reported seconds later, also after its end."""
    for action in ("join", "join6"):
        kept.use(action)
    with kept.running("nothing") as (sandbox, _):
        before = Path(f"/proc/{sandbox.pid}/net/dev").read_text()
        assert not eventually(
            lambda: Path(f"/proc/{sandbox.pid}/net/dev").read_text() != before, seconds=3
        )
        sandbox.communicate()


@pytest.mark.parametrize("action", ["tcp", "udp", "tcp_listen", "cycle"])
def test_after_a_kill(kept: Networks, action: str) -> None:
    number, text = kept.look()
    with kept.running(action) as (sandbox, where):
        assert where == number
        assert sandbox.stdout is not None
        assert sandbox.stdout.readline() == f"net:[{number}]\n".encode()
        assert sandbox.stdout.readline() == b"done\n"
        sandbox.kill()
        assert sandbox.wait() == -signal.SIGKILL
    other, found = kept.look()
    assert found == text
    if action in ("tcp", "udp"):
        assert other != number
    elif action == "tcp_listen":
        assert serves_again(kept, number)


@pytest.mark.parametrize("action", ["tcp", "udp"])
def test_after_a_time_limit(kept: Networks, action: str) -> None:
    """The command has used its network, and waits for more of its stdin."""
    number, text = kept.look()
    near, far = os.pipe()
    seconds, said = 0.2, b""
    try:
        while b"done" not in said:
            with pytest.raises(TimeoutExpired) as caught:
                kept.template.run(
                    ["/networks", action], stdin=near, capture_output=True, timeout=seconds
                )
            said, seconds = caught.value.stdout or b"", seconds * 2
    finally:
        os.close(near)
        os.close(far)
    other, found = kept.look()
    assert found == text
    assert other != number


def test_a_batch_of_both_kinds(kept: Networks) -> None:
    """Every second job uses its network. The others see nothing of it."""
    _, text = kept.look()
    jobs = [["/networks", "look" if i % 2 else "udp"] for i in range(60)]
    results = kept.template.run_batch(jobs, concurrency=4)
    for i, result in enumerate(results):
        assert isinstance(result, CompletedSandbox), result
        named, _, said = HOST_WIDE.sub("", result.stdout.decode()).partition("\n")
        assert named.startswith("net:[")
        assert said == (text if i % 2 else "done\n")
    assert eventually(lambda: kept.touched == 30)
    assert kept.exposed == 0


# ---- which are exposed ----


@contextlib.contextmanager
def opened(kind: str, place: Path) -> Iterator[int]:
    """An fd of this kind. The end of what is written there has been reached."""
    with contextlib.ExitStack() as stack:
        fds: tuple[int, ...]
        if kind == "pipe":
            fds = os.pipe()
        elif kind == "socket":
            pair = socket.socketpair()
            for end in pair:
                stack.callback(end.close)
            pair[1].shutdown(socket.SHUT_WR)
            yield pair[0].fileno()
            return
        elif kind == "terminal":
            fds = pty.openpty()[::-1]
        elif kind == "memory file":
            fds = (os.memfd_create("test"),)
        elif kind == "eventfd":
            fds = (os.eventfd(0, os.EFD_NONBLOCK),)
        else:
            path = {"null": "/dev/null", "zero": "/dev/zero", "directory": place}.get(kind, place)
            flags = os.O_RDONLY if kind == "directory" else os.O_RDWR | os.O_CREAT
            fds = (os.open(place / "file" if kind == "file" else path, flags),)
        for fd in fds:
            stack.callback(os.close, fd)
        yield fds[0]


KINDS = {
    "pipe": False,
    "file": False,
    "memory file": False,
    "null": False,
    "socket": True,
    "terminal": False,
    "directory": True,
    "eventfd": True,
    "zero": True,
}
PLACES = ("stdin", "stdout", "stderr", "pass_fds")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", KINDS)
def test_an_fd_that_could_carry_another(
    kept: Networks, tmp_path: Path, kind: str, place: str
) -> None:
    """Over a socket, a command can send an fd to a process outside. That it can do this over
    another kind of file is at least not excluded, except for pipes, regular files and
    terminals."""
    number, _ = kept.look()
    with opened(kind, tmp_path) as fd:
        given: dict[str, Any] = {"stdin": DEVNULL, "stdout": PIPE, "stderr": PIPE}
        given |= {"pass_fds": [fd]} if place == "pass_fds" else {place: fd}
        with kept.template.spawn(["/networks", "nothing", "leave"], **given) as sandbox:
            sandbox.communicate()
            assert sandbox.returncode == 0
    assert (kept.look()[0] == number) is not KINDS[kind]
    assert (kept.made, kept.touched) == (1 + KINDS[kind], 0)
    assert kept.exposed == KINDS[kind]


@pytest.mark.parametrize("ready", [0, 2])
def test_a_socket_exposes_only_its_own_network(networks: Open, ready: int) -> None:
    """Also if the network was made before the fd was known."""
    kept = networks(ready=ready, overlay=True)
    a, b = socket.socketpair()
    with a, b:
        for n in range(1, 4):
            for stdin in (a.fileno(), DEVNULL):
                kept.template.run(["/networks", "nothing", "leave"], stdin=stdin)
            assert eventually(lambda n=n: kept.exposed == n)
    assert kept.touched == 0


# ---- one at a time ----


def test_concurrent_sandboxes_have_different_networks(kept: Networks) -> None:
    seen = []
    for _ in range(2):
        with contextlib.ExitStack() as stack:
            live = [stack.enter_context(kept.running("nothing")) for _ in range(8)]
            seen.append({number for _, number in live})
            for sandbox, _ in live:
                sandbox.communicate()
    assert len(seen[0] | {os.stat("/proc/self/ns/net").st_ino}) == 9
    assert seen[1] == seen[0]


@pytest.mark.parametrize("ready", [0, 3])
def test_no_two_jobs_share_a_network(networks: Open, ready: int) -> None:
    """Each takes the same abstract name, which is free once in each network."""
    name = marker()
    kept = networks(ready=ready, overlay=True)
    with kept.running("local", name):
        jobs = [["/networks", "local", name]] * 100
        results = kept.template.run_batch(jobs, concurrency=5)
        said = [getattr(result, "stdout", result).split(b"\n", 1)[1] for result in results]
        assert said == [b"done\n"] * 100
    assert kept.reused > 50
    assert kept.touched == 0


def test_two_commands_in_one_network_cannot_have_one_name(networks: Open) -> None:
    """The control."""
    name = marker()
    hosts = networks(overlay=True, network="host")
    with hosts.running("local", name) as (sandbox, _):
        assert sandbox.stdout is not None
        sandbox.stdout.readline()
        assert sandbox.stdout.readline() == b"done\n"
        assert hosts.use("local", name)[1] == "refused EADDRINUSE\n"


LIMITED = """
from fastns import Spec, Template
with open("/proc/sys/user/max_net_namespaces", "w") as file:
    file.write("9")
with Template(Spec(rootfs=sys.argv[1], overlay=True), ready=0) as template:
    results = template.run_batch([["/networks", "nothing"]] * 150, concurrency=4)
    print(sum(getattr(done, "returncode", None) == 0 for done in results))
    print(template.stats().networks_made < 9)
"""


def test_few_networks_are_enough_for_many_sandboxes(networks_root: Path) -> None:
    """The test sets the kernel's limit for a user namespace of its own."""
    out = script(
        LIMITED, str(networks_root), prefix=["unshare", "--user", "--map-root-user"], timeout=120
    )
    assert out == "150\nTrue\n"


SCARCE = """
import resource
from fastns import DEVNULL, Spec, Template
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
ours, theirs = os.pipe()
with Template(Spec(rootfs=sys.argv[1], overlay=True), ready=0) as template:
    live = []
    for _ in range(200):
        live.append(template.spawn(["/networks", "nothing"], stdin=ours, stdout=DEVNULL))
    os.close(theirs)
    print({sandbox.wait() for sandbox in live})
    used = template.stats().networks_reused
    template.run(["/networks", "nothing"], stdin=DEVNULL, stdout=DEVNULL)
    print(template.stats().networks_reused - used)
"""


def test_networks_do_not_limit_live_sandboxes(networks_root: Path) -> None:
    """The server has an fd for each network that may serve again, until fds are scarce."""
    assert script(SCARCE, str(networks_root)) == "{0}\n1\n"


# ---- a sandbox cannot change its network ----


def test_a_kept_network_cannot_be_changed(networks: Open) -> None:
    """Not even without read-only paths: it belongs to no id that the sandbox has."""
    kept = networks(overlay=True, readonly_paths=[])
    number, text = kept.look()
    assert kept.use("change") == (number, "done\n")
    assert kept.look() == (number, text)


def test_a_network_whose_files_the_host_owns_is_not_kept(networks: Open) -> None:
    """Root inside may be root of the host. Where /proc is writable, it can change modes there."""
    proc = Mount("/proc", type="proc", options=["rw"])
    fresh = networks(overlay=True, namespaces={"user": "new"}, mounts=[proc])
    numbers = {fresh.use("nothing")[0] for _ in range(3)}
    assert (len(numbers), fresh.made) == (3, 0)


def test_a_network_of_its_own_can_be_changed(networks: Open) -> None:
    """The control: a network that was made in the sandbox's user namespace."""
    rights = ["NET_ADMIN", "SYS_ADMIN"]
    fresh = networks(overlay=True, readonly_paths=[], capabilities=rights)
    done = fresh.template.run(["/networks", "change_new"], stdin=DEVNULL, capture_output=True)
    said = done.stdout.decode()
    assert "\nset lo down\n" in said
    assert "chmod /proc/self/net/dev\n" in said
    assert re.search(r"open /proc/sys/net/\S+\n", said)


def test_only_lo_is_visible(networks: Open, bash_rootfs: Path) -> None:
    """/sys shows the template's network, in which there is only lo, too."""
    kept = networks(overlay=True, rootfs=bash_rootfs)
    script = "ls /sys/class/net; ip -o link | wc -l; (echo x >/sys/class/net/lo/mtu) 2>&1"
    done = kept.template.run(["bash", "-c", script], capture_output=True, text=True)
    assert done.stdout.splitlines()[:2] == ["lo", "1"]
    assert "Read-only file system" in done.stdout
    assert kept.made == 1
