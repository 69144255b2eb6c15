"""Root's sandboxes with capabilities where something is missing: the right to trace, by which their
namespaces are joined."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from processes import script

pytestmark = pytest.mark.as_root

DROP = """
import ctypes, struct
def drop(capability):
    libc = ctypes.CDLL(None)
    assert libc.prctl(24, capability, 0, 0, 0) == 0  # PR_CAPBSET_DROP, or an exec gives it again
    header, sets = struct.pack("Ii", 0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    for i in (0, 1, 2):
        sets[i] &= ~(1 << capability)
    assert libc.capset(header, sets) == 0
"""


def test_capabilities_without_the_right_to_trace(probe_rootfs: Path) -> None:
    """As root of some containers: an error that says so, where the kernel would say EPERM only."""
    code = """
from fastns import Spec, Template, _compile
given = {"rootfs": sys.argv[1], "capabilities": ["NET_ADMIN"]}
every = _compile.Caller.current()
def tell(what, run):
    try:
        print(what, run(["/true"]).returncode)
    except fastns.SpecError as error:
        print(what, error.field, "CAP_SYS_PTRACE" in str(error))
    except fastns.SpawnError as error:
        print(what, error.stage, error.errno)
def every_way():
    for init in (False, True):
        spec = Spec(**given, init=init)
        tell("direct", lambda args: fastns.run(args, spec=spec))
    tell("template", lambda args: Template(Spec(**given)).run(args))
drop(20)  # CAP_SYS_PACCT: any other
every_way()
drop(19)  # CAP_SYS_PTRACE
every_way()
spec = Spec(**given, namespaces={"user": "host"})
tell("hosts", lambda args: fastns.run(args, spec=spec))
del given["capabilities"]
every_way()
given["capabilities"] = ["NET_ADMIN"]
_compile.Caller.current = classmethod(lambda cls: every)
every_way()
"""
    ways = ("direct", "direct", "template")
    assert script(DROP + code, str(probe_rootfs)).splitlines() == [
        *(f"{way} 0" for way in ways),
        *(f"{way} capabilities True" for way in ways),
        "hosts 0",
        *(f"{way} 0" for way in ways),
        *(f"{way} unshare {errno.EPERM}" for way in ways),  # the control
    ]
