"""Errors of root's sandboxes with capabilities: the caller lacks the right to trace
(CAP_SYS_PTRACE), or no further namespace can be made."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import support
from hidden import without
from processes import script

pytestmark = pytest.mark.as_root

DROP = """
import ctypes, struct
def drop(capability):
    libc = ctypes.CDLL(None)
    assert libc.prctl(24, capability, 0, 0, 0) == 0  # PR_CAPBSET_DROP: an exec would restore it
    header, sets = struct.pack("Ii", 0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    for i in (0, 1, 2):
        sets[i] &= ~(1 << capability)
    assert libc.capset(header, sets) == 0
"""


def test_capabilities_without_the_right_to_trace(probe_rootfs: Path) -> None:
    """Root lacks the right in some containers. The error names the capability; the kernel's own
    would be a plain EPERM."""
    code = """
from fastns import Spec, Template
from plans import Caller
given = {"rootfs": sys.argv[1], "capabilities": ["NET_ADMIN"]}
every = Caller.current()
def tell(what, run):
    try:
        print(what, run(["/true"]).returncode)
    except fastns.SpecError as error:
        print(what, error.field, "CAP_SYS_PTRACE" in str(error))
    except fastns.SpawnError as error:
        print(what, error.stage, error.errno)
def by_template(args):
    with Template(Spec(**given)) as template:
        return template.run(args)
def every_way():
    for init in (False, True):
        spec = Spec(**given, init=init)
        tell("direct", lambda args: fastns.run(args, spec=spec))
    tell("template", by_template)
drop(20)  # CAP_SYS_PACCT, as an example of another capability
every_way()
drop(19)  # CAP_SYS_PTRACE
every_way()
spec = Spec(**given, namespaces={"user": "host"})
tell("hosts", lambda args: fastns.run(args, spec=spec))
del given["capabilities"]
every_way()
given["capabilities"] = ["NET_ADMIN"]
Caller.current = classmethod(lambda cls: every)
every_way()
"""
    ways = ("direct", "direct", "template")
    first = f"import sys; sys.path.append({str(support.TESTS)!r})\n"
    assert script(DROP + code, str(probe_rootfs), first=first).splitlines() == [
        *(f"{way} 0" for way in ways),
        *(f"{way} capabilities True" for way in ways),
        "hosts 0",
        *(f"{way} 0" for way in ways),
        *(f"{way} unshare {errno.EPERM}" for way in ways),  # the control
    ]


# ---- namespaces that cannot be made ----

START = """
import atexit, ctypes
root, way, code = sys.argv[1:]
spec = fastns.Spec(rootfs=root, capabilities=["SYS_ADMIN"], init=way == "init")
template = fastns.Template(spec, ready=0) if way == "template" else None
if template:
    atexit.register(template.close)
plan = template._plan.sandbox if template else fastns.compile(spec)
def start():
    return (template.run(["/true"]) if template else fastns.run(["/true"], spec=plan)).returncode
def state():
    return fds(), pathlib.Path("/proc/self/mountinfo").read_text(), children()
def fail():
    before = state()
    for _ in range(3):
        try:
            start()
        except fastns.SpawnError as error:
            assert plan.ops[error.op_index].code == code, error
            print(error.stage, error.errno, "max_*_namespaces" in (error.hint or ""))
    assert state() == before, (before, state())
"""
WAYS = pytest.mark.parametrize("way", ["direct", "init", "template"])


@WAYS
@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("net", "own_namespaces"),
        ("uts", "own_namespaces"),
        ("ipc", "own_namespaces"),
        ("mnt", "unshare"),
        ("cgroup", "unshare"),
    ],
)
def test_the_limit_on_namespaces_is_reached(
    probe_rootfs: Path, kind: str, code: str, way: str
) -> None:
    """Only the limit in the range's user namespace is lowered. After it is raised again, the
    sandbox starts."""
    test = f"""
space = fastns._core.user_namespace(fastns.compile(fastns.Spec()).ids, b"")
def limit(number):
    pid = os.fork()
    if pid == 0:
        assert ctypes.CDLL(None).setns(space, 0x10000000) == 0
        pathlib.Path("/proc/sys/user/max_{kind}_namespaces").write_text(str(number))
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
print(start())
limit(0)
fail()
limit(1000)
print(start())
"""
    out = script(START + test, str(probe_rootfs), way, code).splitlines()
    assert out == ["0", *[f"unshare {errno.ENOSPC} True"] * 3, "0"]


@pytest.mark.parametrize("call", ["clone", "unshare"])
@pytest.mark.parametrize("init", [False, True], ids=["direct", "init"])
def test_a_call_that_is_refused(probe_rootfs: Path, call: str, init: bool) -> None:
    """The error is the same whether the hop process or the caller makes the call."""
    way = "init" if init else "direct"
    out = without(call, errno.ENOANO, START + "fail()", str(probe_rootfs), way, "own_namespaces")
    assert out.splitlines() == [f"unshare {errno.ENOANO} False"] * 3
