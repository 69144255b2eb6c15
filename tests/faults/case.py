"""One supervised start, in which one system call fails, or a signal arrives while the call waits.

The supervisor runs as pid 1 of a pid namespace, so it can find and kill all that a start leaves
behind.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import time
from pathlib import Path
from typing import Any, NamedTuple

from faults import notify
from faults.roles import CALLER, Point, Roles
from faults.ways import PROBE, Setting
from faults.worker import DONE, READY, STARTING, Board, Who, work

HANG = 10.0  # seconds
SETTLE = 2.0  # a killed sandbox's processes and cgroups disappear with a delay
STOPPED = 0.3  # seconds until the supervisor continues a stopped caller; no other process does
SIGNALS = ("SIGKILL", "SIGSTOP", "SIGCONT")


class Fault(NamedTuple):
    """An errno or signal, and the call in one way of starting that it hits."""

    way: str
    user: str  # "root" or "user"
    point: Point
    what: str  # the name of an errno or a signal

    def __str__(self) -> str:
        role, which, call, count = self.point
        return f"{self.way}:{self.user}:{role}:{which}:{call}:{count}:{self.what}"

    @classmethod
    def parse(cls, text: str) -> Fault:
        way, user, role, which, call, count, what = text.split(":")
        return cls(way, user, Point(role, int(which), call, int(count)), what)


class Seen(NamedTuple):
    """The result of a start."""

    outcome: Any  # the worker's report, or None
    hit: bool
    hung: list[str]  # if the start hung: each process and its current call
    left: list[str]
    killed: bool  # whether the fault killed the caller
    points: list[Point]  # all calls, if they were recorded


class Supervisor:
    """Runs one start after another."""

    def __init__(self, names: dict[int, str], setting: Setting, users: dict[str, Who]) -> None:
        self.names = names
        self.numbers = {name: number for number, name in names.items()}
        self.setting = setting
        self.users = users
        self.board = Board()

    def observe(self, way: str, user: str) -> Seen:
        """Run a start without faults and record all its calls."""
        return self._run(way, user, None, None)

    def undisturbed(self, way: str, user: str) -> Seen:
        return self._run(way, user, self.numbers["reboot"], None)

    def inject(self, fault: Fault) -> Seen:
        return self._run(fault.way, fault.user, self.numbers[fault.point.call], fault)

    def _run(self, way: str, user: str, number: int | None, fault: Fault | None) -> Seen:
        timeout = 2.0 if fault is not None and fault.what == "SIGSTOP" else 30.0
        setting = self.setting._replace(
            user=user == "user", timeout=timeout, cgroup=f"{self.setting.cgroup}/{user}"
        )
        self.board.clear()
        up, down = os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)
        pid = os.fork()
        if pid == 0:
            os.close(up[0])
            os.close(down[1])
            work(self.board, (up[1], down[0]), way, setting, self.users[user], number)
        os.close(up[1])
        os.close(down[0])
        try:
            start = _Start(self, pid, up[0], down[1], fault, setting.cgroup)
            try:
                return start.follow(number is None)
            finally:
                if start.listener >= 0:
                    os.close(start.listener)
        finally:
            end_all()
            os.close(up[0])
            os.close(down[1])
            for path in cgroups(setting.cgroup):
                remove_cgroup(path)


class _Start:
    def __init__(
        self, by: Supervisor, pid: int, up: int, down: int, fault: Fault | None, cgroup: str
    ) -> None:
        self.by, self.pid, self.up, self.down = by, pid, up, down
        self.fault, self.board, self.cgroup = fault, by.board, cgroup
        self.listener = -1
        self.roles = Roles(pid, os.path.basename(PROBE))
        self.points: list[Point] = []
        self.hit = self.killed = False
        self.to_continue: tuple[float, int] | None = None
        self.gone = False
        self.poll = select.poll()

    def follow(self, observing: bool) -> Seen:
        deadline = time.monotonic() + HANG
        while self.board.listener < 0 and time.monotonic() < deadline:
            time.sleep(0.0002)
        self.listener = notify.take_listener(self.pid, self.board.listener)
        self.poll.register(self.listener, select.POLLIN)
        self.poll.register(self.up, select.POLLIN)
        os.write(self.down, b"x")
        self._until(READY, deadline)
        before = self._state()
        os.write(self.down, b"x")
        hung: list[str] = []
        if not self._until(DONE, time.monotonic() + HANG):
            if self.gone:
                return self._caller_gone(before)
            hung = self._stuck()
            return Seen(None, self.hit, hung, [], self.killed, self.points)
        outcome = self.board.read()
        left = self._settled(before)
        return Seen(outcome, self.hit, hung, left, self.killed, self.points)

    def _until(self, state: int, deadline: float) -> bool:
        """Answer calls until the caller reports this state. False if it ends, or at `deadline`."""
        while self.board.state != state or not self._rung:
            if time.monotonic() > deadline or self.gone:
                return False
            self._answer_some(20)
        self._rung = False
        return True

    _rung = False

    def _answer_some(self, wait_ms: int) -> None:
        for fd, events in self.poll.poll(wait_ms):
            if fd == self.up:
                if os.read(self.up, 1):
                    self._rung = True
                else:
                    self.poll.unregister(self.up)
            elif events & select.POLLIN:
                self._answer_one()
            elif events & select.POLLHUP:
                self.poll.unregister(self.listener)
        # The caller's end does not show as EOF: processes that share its fds keep the pipe open.
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        if not self.gone and os.waitid(os.P_PID, self.pid, options) is not None:
            self.gone = True
        if self.to_continue is not None and time.monotonic() > self.to_continue[0]:
            os.kill(self.to_continue[1], signal.SIGCONT)
            self.to_continue = None

    def _answer_one(self) -> None:
        call = notify.receive(self.listener)
        if call is None:
            return
        error = 0
        if self.board.state == STARTING:
            point = self.roles.point(call.tid, self.by.names.get(call.number, str(call.number)))
            if point is not None:
                if self.fault is None:
                    self.points.append(point)
                elif point == self.fault.point and not self.hit:
                    error = self._harm(call)
        notify.answer(self.listener, call, error)

    def _harm(self, call: notify.Call) -> int:
        assert self.fault is not None
        self.hit = True
        what = self.fault.what
        if what not in SIGNALS:
            return int(getattr(errno, what))
        process = self.roles.process(call.tid)
        if what == "SIGCONT":
            os.kill(-1, signal.SIGCONT)  # like a shell's fg, which signals a process group
        else:
            os.kill(process, getattr(signal, what))
        if process == self.pid and what == "SIGSTOP":
            self.to_continue = (time.monotonic() + STOPPED, process)
        self.killed = process == self.pid and what == "SIGKILL"
        return 0

    # ---- leaks ----

    def _settled(self, before: dict[str, list[str]]) -> list[str]:
        end = time.monotonic() + SETTLE
        while True:
            after = self._state()
            if after == before or time.monotonic() > end:
                return changes(before, after)
            self._answer_some(5)

    def _caller_gone(self, before: dict[str, list[str]]) -> Seen:
        """The result after the caller's end, which must leave no process behind."""
        end = time.monotonic() + SETTLE
        while (left := others()) and time.monotonic() < end:
            reap()
            self._answer_some(5)
        lines = [f"+ process: {line}" for line in left]
        if not self.killed:
            status = "the caller has ended"
            return Seen({"broken": status}, self.hit, [], lines, False, self.points)
        return Seen(None, self.hit, [], lines, True, self.points)

    def _state(self) -> dict[str, list[str]]:
        reap()
        return {
            "fd": _fds(self.pid),
            "process": others(self.pid),
            "mount": Path(f"/proc/{self.pid}/mountinfo").read_text().splitlines(),
            "cgroup": cgroups(self.cgroup),
            "name": [*os.uname()[1:2], Path("/proc/sys/kernel/domainname").read_text()],
            "caller": _caller(self.pid),
        }

    def _stuck(self) -> list[str]:
        return [f"{self.roles_of(pid)} {line}" for pid, line in processes().items()]

    def roles_of(self, pid: int) -> str:
        return CALLER if pid == self.pid else "-"


_FIELDS = ("Uid", "Gid", "Groups", "Umask", "SigBlk", "CapEff", "CapInh")
# libc's two internal signals. It installs their handlers when the first thread starts.
_OF_LIBC = 0x180000000
_KINDS = ("cgroup", "ipc", "mnt", "net", "pid", "pid_for_children", "time", "user", "uts")


def _caller(pid: int) -> list[str]:
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    return [
        f"cwd {os.readlink(f'/proc/{pid}/cwd')}",
        *(f"{field} {status[field].strip()}" for field in _FIELDS),
        *(f"{field} {int(status[field], 16) & ~_OF_LIBC:x}" for field in ("SigIgn", "SigCgt")),
        *(os.readlink(f"/proc/{pid}/ns/{kind}") for kind in _KINDS),
        f"uid of /proc {os.stat(f'/proc/{pid}').st_uid}",  # root's if the process is not dumpable
    ]


def _fds(pid: int) -> list[str]:
    found = []
    for fd in sorted(os.listdir(f"/proc/{pid}/fd"), key=int):
        link = os.readlink(f"/proc/{pid}/fd/{fd}")
        if not link.startswith(("user:", "/memfd:fastns-")):  # fastns keeps them
            found.append(f"{fd} -> {link}")
    return found


def _text(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError as exc:
        return exc.strerror or ""


def processes() -> dict[int, str]:
    """Each process of this pid namespace except pid 1, with its state and current call."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and name != "1":
            status = _text(f"/proc/{name}/stat").rpartition(")")[2].split()
            if status:
                comm, call = _text(f"/proc/{name}/comm"), _text(f"/proc/{name}/syscall")
                found[int(name)] = f"{comm} state {status[0]} call {call.split(' ')[0]}"
    return found


def others(but: int = 0) -> list[str]:
    return [f"{pid} {line.split(' state')[0]}" for pid, line in processes().items() if pid != but]


def reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG | 0x40000000)[0]:  # __WALL
            pass


def end_all() -> None:
    """Kill all processes that are left."""
    deadline = time.monotonic() + 5
    while processes():
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
        reap()
        if time.monotonic() > deadline:
            raise TimeoutError(f"cannot be killed: {processes()}")
        time.sleep(0.0005)
    reap()


def changes(before: dict[str, list[str]], after: dict[str, list[str]]) -> list[str]:
    return [
        f"{sign} {kind}: {item}"
        for kind in before
        for sign, items, rest in (
            ("-", before[kind], after[kind]),
            ("+", after[kind], before[kind]),
        )
        for item in items
        if item not in rest
    ]


# ---- cgroups ----


def cgroup_roots(name: str) -> list[Path]:
    """The directory of this name in each hierarchy."""
    return [path for path in Path("/sys/fs/cgroup").glob(f"*{name}") if path.is_dir()]


def cgroups(name: str, all_of_them: bool = False) -> list[str]:
    """The cgroups that starts have made below cgroup `name`, the deepest first. `all_of_them` adds
    `name` itself and its `fastns`."""
    return [
        path
        for root in cgroup_roots(name)
        for path, _, _ in os.walk(root, topdown=False)
        if all_of_them or path not in (str(root), f"{root}/fastns")
    ]


def remove_cgroup(path: str) -> None:
    for _ in range(200):
        try:
            os.rmdir(path)
        except FileNotFoundError:
            return
        except OSError as exc:
            if exc.errno != errno.EBUSY:
                raise
            time.sleep(0.01)
        else:
            return
