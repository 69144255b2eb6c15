"""The default filter as bytes. The build writes it to files, and the caller reads them when the
first sandbox needs them.

For a sandbox with capabilities, seccomp.py makes another filter on demand.
"""

from __future__ import annotations

import errno
import os

from fastns._light import cached
from fastns.errors import SpawnError, SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

DIRECTORY = os.path.join(os.path.dirname(__file__), "filters")
WHOLE, FIRST, REST, NETWORK = "whole", "first", "rest", "network"
MAX_SIZE = 4096 * 8  # bytes: the kernel takes at most 4096 instructions


def default(capabilities: Sequence[str] = (), *, setid: bool) -> bytes:
    """The default profile's filter for this machine (struct sock_filter, 8 bytes each).

    Args: see seccomp.build().
    Raises: SpecError, field "seccomp", if this machine has no default filter; SpawnError if it
        cannot be read.
    """
    if capabilities:
        from fastns import seccomp

        return seccomp.build(seccomp.DEFAULT, capabilities, setid=setid)
    return _read(os.uname().machine, WHOLE, setid)


def default_parts(capabilities: Sequence[str] = (), *, setid: bool) -> tuple[bytes, bytes]:
    """The default filter in two parts: see seccomp.build_parts()."""
    if capabilities:
        from fastns import seccomp

        return seccomp.build_parts(capabilities, setid=setid)
    machine = os.uname().machine
    return _read(machine, FIRST, setid), _read(machine, REST, setid)


def network() -> bytes:
    """What is also refused in a network namespace that serves again: see
    seccomp.build_network()."""
    return _read(os.uname().machine, NETWORK, True)


def path(machine: str, part: str, setid: bool) -> str:
    """The file that contains this part of the filter for this machine."""
    return os.path.join(DIRECTORY, f"{machine}-{part}{'' if setid else '-nosetid'}.bpf")


def make_all() -> dict[str, bytes]:
    """The name and content of each file. The build calls this before the extension exists."""
    from fastns import seccomp
    from fastns._policy.syscalls import AUDIT_ARCH

    found = {}
    for machine in AUDIT_ARCH:
        name = os.path.basename(path(machine, NETWORK, True))
        found[name] = seccomp.build_network(machine)
        for setid in (True, False):
            whole = seccomp.build(seccomp.DEFAULT, setid=setid, machine=machine)
            first, rest = seccomp.build_parts(setid=setid, machine=machine)
            for part, code in ((WHOLE, whole), (FIRST, first), (REST, rest)):
                found[os.path.basename(path(machine, part, setid))] = code
    return found


@cached(7)
def _read(machine: str, part: str, setid: bool) -> bytes:
    name = path(machine, part, setid)
    try:
        with open(name, "rb", buffering=0) as file:
            return os.read(file.fileno(), MAX_SIZE)  # file.read() hides EAGAIN
    except FileNotFoundError:
        raise SpecError(
            "seccomp",
            f"no default filter for {machine}: {name} is missing: expected a custom profile, or "
            "'unconfined'",
        ) from None
    except OSError as exc:
        raise SpawnError("seccomp", exc.errno or errno.EIO, path=name) from None
