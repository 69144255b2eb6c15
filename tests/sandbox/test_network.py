"""The network namespace has only lo, and is separate from the host's and other sandboxes'."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import inside
import pytest

import fastns
from fastns import SpawnError, Spec

Report = Callable[..., dict[str, Any]]


@pytest.fixture
def other(probe_rootfs: Path) -> Iterator[fastns.Sandbox]:
    """A running sandbox to join: see inside.joinable()."""
    with inside.joinable(probe_rootfs) as sandbox:
        yield sandbox


@pytest.fixture
def port() -> Iterator[str]:
    """A port of the host's loopback that accepts connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield str(server.getsockname()[1])


def test_the_hosts(report: Report, host_report: dict[str, Any], bash_rootfs: Path) -> None:
    """network="host" and namespaces={"network": "host"} are the same."""
    specs = ({"network": "host"}, {"namespaces": {"network": "host"}})
    for fields in specs:
        assert report(**fields)["interfaces"] == host_report["interfaces"]
        assert sorted(inside.shell(bash_rootfs, "ls /sys/class/net", **fields).split()) == sorted(
            os.listdir("/sys/class/net")
        )


def test_the_hosts_loopback_cannot_be_reached(probe_rootfs: Path, port: str) -> None:
    done = fastns.run(
        ["/probe", "--connect", port], spec=Spec(rootfs=probe_rootfs), capture_output=True
    )
    assert done.stderr.split()[-1] == b"ECONNREFUSED"
    # The control: in the host's network namespace it connects.
    spec = Spec(rootfs=probe_rootfs, network="host")
    done = fastns.run(["/probe", "--connect", port], spec=spec, capture_output=True)
    assert done.stdout == b"connected\n"


def test_abstract_sockets_belong_to_the_namespace(debian_rootfs: Path) -> None:
    name = f"fastns-test-{os.getpid()}"
    code = f"import socket; socket.socket(socket.AF_UNIX).connect('\\0{name}'); print('connected')"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("\0" + name)
        server.listen()
        outcomes = [
            fastns.run(
                ["python3", "-c", code],
                spec=Spec(rootfs=debian_rootfs, network=network),
                capture_output=True,
                text=True,
            )
            for network in ("none", "host")
        ]
    assert "ConnectionRefusedError" in outcomes[0].stderr
    assert outcomes[1].stdout == "connected\n"


def test_two_sandboxes_listen_on_the_same_port(probe_rootfs: Path) -> None:
    spec = Spec(rootfs=probe_rootfs, capabilities=["NET_BIND_SERVICE"])
    both = [
        fastns.spawn(["/probe", "--listen", "80"], spec=spec, stdin=fastns.PIPE, stdout=fastns.PIPE)
        for _ in range(2)
    ]
    for sandbox in both:
        assert sandbox.stdout is not None
        assert sandbox.stdout.readline() == b"listening\n"
        sandbox.communicate(timeout=20)
        assert sandbox.returncode == 0


@pytest.mark.as_root
def test_joined_through_the_network_field(other: fastns.Sandbox, probe_rootfs: Path) -> None:
    """A path as `network` joins that namespace. A missing path is an error."""
    path = f"/proc/{other.pid}/ns/net"
    spec = Spec(rootfs=probe_rootfs, network=path)
    done = fastns.run(["/probe", "--connect", "4242"], spec=spec, capture_output=True)
    assert done.stdout == b"connected\n"  # `other` listens there
    with pytest.raises(SpawnError) as caught:
        fastns.run(["/true"], spec=Spec(rootfs=probe_rootfs, network="/nonexistent"))
    assert (caught.value.stage, caught.value.errno) == ("setns", errno.ENOENT)


def test_no_rights_over_the_hosts_network(bash_rootfs: Path) -> None:
    """A user namespace gives no rights over a network namespace that it does not own."""
    spec = Spec(rootfs=bash_rootfs, network="host", namespaces={"user": "new"})
    done = fastns.run(
        ["ip", "link", "add", "fastns-dummy", "type", "dummy"],
        spec=spec, capture_output=True, text=True,
    )  # fmt: skip
    assert "not permitted" in done.stderr
    assert "fastns-dummy" not in os.listdir("/sys/class/net")
