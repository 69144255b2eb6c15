"""A slot runs one start after another. It is pid 1 of its own pid namespace, with its own /proc."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import signal
import socket
import sys
import traceback
from collections import Counter
from typing import TYPE_CHECKING, Any

from faults.case import Fault, Supervisor, cgroups, remove_cgroup
from faults.judge import MISSED, RIGHT, TYPED, verdict
from faults.posture import difference, seen_by
from faults.roles import Point

if TYPE_CHECKING:
    from faults.__main__ import Campaign

_libc = ctypes.CDLL(None, use_errno=True)
_NEWNS, _NEWPID, _NEWUTS, _NEWIPC = 0x20000, 0x20000000, 0x4000000, 0x8000000
_PDEATHSIG = 1
FIRST = 3


class Slot:
    """The campaign's side of a slot: sends requests and receives replies."""

    def __init__(self, campaign: Campaign, number: int) -> None:
        self.number = number
        self.campaign = campaign
        self.cgroup = f"/fastns/faults-{os.getpid()}-{number}"
        for hierarchy in os.scandir("/sys/fs/cgroup"):
            if hierarchy.is_dir() and not hierarchy.is_symlink():
                for name, who in campaign.users.items():
                    path = f"{hierarchy.path}{self.cgroup}/{name}"
                    os.makedirs(path, exist_ok=True)
                    for file in ("", "/cgroup.procs", "/tasks"):
                        if os.path.exists(path + file):
                            os.chown(path + file, who.uid, who.gid)
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for one in (self.socket, theirs):
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                one.setsockopt(socket.SOL_SOCKET, option, 4 << 20)
        self.pid = os.fork()
        if self.pid == 0:
            self._live(theirs)
        theirs.close()

    def tell(self, what: Any) -> None:
        self.socket.send(json.dumps(what).encode())

    def hear(self) -> Any:
        try:
            data = self.socket.recv(4 << 20)
        except ConnectionResetError:
            data = b""
        if not data:
            raise EOFError
        return json.loads(data)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.tell({"end": True})
        self.socket.close()
        os.waitpid(self.pid, 0)
        for path in cgroups(self.cgroup, all_of_them=True):
            remove_cgroup(path)

    # ---- the slot's process ----

    def _live(self, theirs: socket.socket) -> None:
        code = 70
        try:
            self.socket.close()
            gc.freeze()  # otherwise a collection here might close the campaign's fds
            os.setsid()
            _libc.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if _libc.unshare(_NEWNS | _NEWPID | _NEWUTS | _NEWIPC) != 0:
                raise OSError(ctypes.get_errno(), "unshare")
            first = os.fork()
            if first:
                theirs.close()
                code = os.waitstatus_to_exitcode(os.waitpid(first, 0)[1])
            else:
                _libc.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
                if _libc.mount(b"proc", b"/proc", b"proc", 0, None) != 0:
                    raise OSError(ctypes.get_errno(), "mount")
                self._serve(theirs)
                code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code & 0xFF)

    def _serve(self, theirs: socket.socket) -> None:
        campaign = self.campaign
        setting = campaign.setting._replace(cgroup=self.cgroup)
        supervisor = Supervisor(campaign.names, setting, campaign.users)
        while data := theirs.recv(4 << 20):
            ask = json.loads(data)
            if "end" in ask:
                break
            if "observe" in ask:
                answer = observe(supervisor, *ask["observe"])
            else:
                answer = inject(supervisor, Fault.parse(ask["inject"]), campaign.want)
            theirs.send(json.dumps(answer).encode())


def warm(root: str) -> None:
    """Import all modules and fill all caches that a start uses; forked processes inherit both."""
    import grp  # noqa: F401 - the user may be unable to read the interpreter's directory

    import fastns
    import fastns._policy.cgroup_plan
    import fastns._run
    import fastns.batch
    import fastns.limits
    import fastns.results
    import fastns.template
    from fastns import _core, errors
    from fastns._compile import userns

    for stage, number, path, _ in errors.known_hints(host_root=False):
        errors.SpawnError(stage, number, path=path)
    "".encode("ascii")
    _core.user_namespace(userns.range_of_root(), userns.inotify_limit() or b"")
    fastns.compile(fastns.Spec(rootfs=root, capabilities=["ALL"], memory="64m")).close()
    fastns.compile(fastns.Spec(rootfs=root)).close()
    gc.collect()


def host_namespaces() -> dict[str, str]:
    kinds = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
    return {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in kinds}


def postures(outcome: Any) -> Any:
    if outcome is None or "results" not in outcome:
        return outcome
    host = host_namespaces()
    results = [one if "error" in one else seen_by(one, host) for one in outcome["results"]]
    return {**outcome, "results": results}


def observe(supervisor: Supervisor, way: str, user: str) -> Any:
    """Return the result of an undisturbed start, and the points at which faults can be injected."""
    wants = []
    for see in (supervisor.undisturbed, supervisor.undisturbed, supervisor.observe):
        seen = see(way, user)
        outcome = postures(seen.outcome)
        if seen.hung or seen.left or not outcome or "results" not in outcome:
            return {"failed": f"{seen.hung} {seen.left} {outcome}"}
        wants.append(outcome["results"])
    for other in wants[1:]:
        if lines := difference(wants[0], other):
            return {"failed": f"differs from start to start: {lines}"}
    if bad := [one for one in wants[0] if "error" in one or one["code"] or one["err"]]:
        return {"failed": f"fails without a fault: {bad}"}
    return {"want": wants[0], "points": chosen(seen.points)}


def chosen(points: list[Point]) -> list[Point]:
    """The first and the last occurrences of each call of each process."""
    most = Counter(point[:3] for point in points)
    return [
        point
        for point in dict.fromkeys(points)
        if point.count <= FIRST or point.count == most[point[:3]]
    ]


def inject(supervisor: Supervisor, fault: Fault, want: Any) -> Any:
    for _ in range(3):  # the order of calls varies, so a fault may be missed
        seen = supervisor.inject(fault)
        if seen.hit or seen.hung:
            break
    seen = seen._replace(outcome=postures(seen.outcome))
    kind, lines = verdict(fault, seen, want[fault.way, fault.user])
    # A wrong result may have damaged the slot.
    return {"kind": kind, "lines": lines, "renew": kind not in (RIGHT, TYPED, MISSED)}
