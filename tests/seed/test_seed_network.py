"""Network, section 2.5 of the seed: a sandbox has its own interfaces, ports, routes and rules, can
run in a given network, and can receive a virtual interface. The host's network must not change.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import support
from seed.ways import SECONDS, Box, Outside, Way

from fastns import Mount, Spec

PROBE = "/tmp/probe"
RULES = (
    "nft add table inet seed"
    " && nft 'add chain inet seed in { type filter hook input priority 0; }'"
    " && nft add rule inet seed in tcp dport 4712 drop"
)


@pytest.fixture
def box(bash_rootfs: Path, probe: Path) -> Box:
    """A box with bash, ip and nft, the probe at PROBE, and its own network."""
    return connected(bash_rootfs, probe)


def connected(root: Path, probe: Path, **namespaces: str) -> Box:
    """Such a box, but with given namespaces: paths, or "host"."""
    names = {"network": "--network", "user": "--userns", "pid": "--pid"}
    return Box(
        Spec(
            rootfs=root,
            mounts=[Mount(PROBE, source=probe)],
            namespaces=namespaces,
            capabilities=["NET_ADMIN"],
        ),
        [
            *("--cap-add", "NET_ADMIN"),
            *("--rootfs", str(root), "-v", f"{probe}:{PROBE}"),
            *(word for kind, value in namespaces.items() for word in (names[kind], value)),
        ],
    )


def network_of(pid: int) -> dict[str, str]:
    """The fields that join a sandbox's network. An unprivileged caller must also join the user
    namespace that owns the network."""
    kinds = {"network": "net"} if support.is_root() else {"network": "net", "user": "user"}
    return {kind: f"/proc/{pid}/ns/{name}" for kind, name in kinds.items()}


def host_network() -> str:
    """The host's interfaces, addresses and routes. For root, also its nftables rules."""
    commands = ["ip -o link", "ip -o addr", "ip route show table all", "ip -6 route"]
    commands += ["nft list ruleset"] if support.is_root() else []
    text = "".join(
        subprocess.run(
            command.split(),
            capture_output=True,
            text=True,
            check=True,
            env={"PATH": support.HOST_PATH},
        ).stdout
        for command in commands
    )
    return re.sub(r"(expires|valid_lft|preferred_lft) \d+sec", "", text)  # they change


def test_only_lo_is_inside(way: Way, box: Box, outside: Outside) -> None:
    before = host_network()
    with way.shell(box) as shell:
        interfaces = shell.report(PROBE)["interfaces"]
        assert interfaces == {"lo": {"index": 1, "up": True, "address": "127.0.0.1"}}
        (link,) = shell.ask("ip -o link").splitlines()
        assert re.match(r"1: lo: <LOOPBACK,UP,LOWER_UP>", link)
        assert shell.ask("ls /sys/class/net") == "lo\n"  # /sys belongs to the new network
        assert shell.ask("ip route") == ""
        assert shell.ask("wc -l </proc/net/dev") == "3\n"  # two lines of headings, and lo
        assert "unreachable" in shell.ask("(: </dev/tcp/192.0.2.1/9)", status=1)
        assert host_network() == before
        outside.is_the_same(alive=1)
        assert shell.leave() == 0
    outside.is_the_same()
    assert len(way.run(box, "ip", "-o", "link").splitlines()) == 1


def test_one_port_twice(
    way: Way, box: Box, bash_rootfs: Path, probe: Path, outside: Outside
) -> None:
    """Two sandboxes can listen on the same port. The control is a third one in the network of the
    first, which cannot."""
    listen = (PROBE, "--listen", "4711")
    with way.shell(box, *listen) as one, way.shell(box, *listen) as two:
        one.read_to("listening\n")
        two.read_to("listening\n")
        third = connected(bash_rootfs, probe, **network_of(one.pid))
        with way.shell(third, *listen) as refused:
            refused.read_to("probe: listen 4711: EADDRINUSE\n")
            assert refused.end_of_input() == 1
        outside.is_the_same(alive=2)
        assert one.end_of_input() == 0
        assert two.end_of_input() == 0
    outside.is_the_same()


def test_a_process_in_a_given_network(
    way: Way, box: Box, bash_rootfs: Path, probe: Path, outside: Outside
) -> None:
    """Only a sandbox that joins the network of another by its path reaches the server there."""
    with way.shell(box, PROBE, "--listen", "4711") as server:
        server.read_to("listening\n")
        given = connected(bash_rootfs, probe, **network_of(server.pid))
        assert way.run(given, PROBE, "--connect", "4711") == "connected\n"
        with way.shell(given) as guest:
            assert guest.ask("ip -o link | wc -l") == "1\n"
            inside = os.readlink(f"/proc/{guest.pid}/ns/net")
            assert inside == os.readlink(f"/proc/{server.pid}/ns/net")
            assert inside != os.readlink("/proc/self/ns/net")
            assert guest.leave() == 0
        with way.shell(box) as stranger:
            answer = stranger.ask(f"{PROBE} --connect 4711", status=1)
            assert answer == "probe: connect 4711: ECONNREFUSED\n"
            assert stranger.leave() == 0
        assert server.end_of_input() == 0
    outside.is_the_same()


@pytest.mark.as_root  # `ip netns add` mounts
def test_a_named_network(way: Way, bash_rootfs: Path, outside: Outside) -> None:
    """A sandbox joins a network made by `ip netns add`, which mounts in a new mount namespace."""
    before = host_network()
    box = Box(
        Spec(rootfs=bash_rootfs, network="/run/netns/given"),
        ["--rootfs", str(bash_rootfs), "--network", "/run/netns/given"],
    )
    script = (
        "mount -t tmpfs none /run && ip netns add given"
        " && ip -n given addr add 192.0.2.1/32 dev lo"
        f" && exec {shlex.join(way.argv(box, 'ip', '-o', '-4', 'addr'))}"
    )
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env={**os.environ, "PATH": support.HOST_PATH},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^1: lo +inet 192\.0\.2\.1/32 ", done.stdout, re.MULTILINE)
    assert host_network() == before
    outside.is_the_same()


def test_routes_and_rules_stay_inside(way: Way, box: Box, outside: Outside) -> None:
    """Neither the host nor another sandbox gets the routes and rules of a sandbox."""
    before = host_network()
    assert "198.51.100.0/24" not in before
    with way.shell(box) as shell, way.shell(box) as other:
        shell.ask("ip route add 198.51.100.0/24 dev lo")
        assert shell.ask("ip route") == "198.51.100.0/24 dev lo scope link \n"
        shell.ask(RULES)
        ruleset = shell.ask("nft list ruleset")
        assert "table inet seed {" in ruleset
        assert "tcp dport 4712 drop" in ruleset
        assert host_network() == before
        assert other.ask("ip route; nft list ruleset") == ""
        outside.is_the_same(alive=2)
        assert shell.leave() == 0
        assert other.leave() == 0
    outside.is_the_same()
    assert host_network() == before


@pytest.mark.as_root  # moving an interface takes rights over both networks
def test_a_virtual_interface_moved_in(
    way: Way, box: Box, bash_rootfs: Path, probe: Path, outside: Outside
) -> None:
    """A sandbox that sees the host's pids moves it into another. The host never has it."""
    before = host_network()
    reach = "(: </dev/tcp/192.0.2.1/9)"
    far_box = connected(bash_rootfs, probe, pid="host", user="host")  # has root's rights
    with way.shell(far_box) as far, way.shell(box) as shell:
        assert "unreachable" in shell.ask(reach, status=1)
        far.ask("ip link add seed0 type veth peer name seed1")
        far.ask(f"ip link set seed1 netns {shell.pid}")
        assert "seed1:" not in far.ask("ip -o link")
        assert re.search(r"^\d+: seed1@", shell.ask("ip -o link"), re.MULTILINE)
        assert set(shell.report(PROBE)["interfaces"]) == {"lo", "seed1"}

        far.ask("ip addr add 192.0.2.1/24 dev seed0 && ip link set seed0 up")
        shell.ask("ip addr add 192.0.2.2/24 dev seed1 && ip link set seed1 up")
        # No process listens there. The refusal shows that the packet has reached the other end.
        assert "Connection refused" in shell.ask(reach, status=1)
        assert host_network() == before
        outside.is_the_same(alive=2)
        assert shell.leave() == 0
        assert far.leave() == 0
    outside.is_the_same()
    assert host_network() == before
