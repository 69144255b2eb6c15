"""Measures what a start costs on this machine: contenders run the same program and take turns.

Absolute times drift on a shared machine, so each round starts every contender once, and the ratio
of the medians counts. The order is random, because a start may leave work in the background that
delays the next one. A contender that cannot be started gets a row with the reason.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import platform
import random
import re
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import fastns
from fastns import _view
from fastns._compile.decide import Caller
from fastns._light import record
from fastns._stdio import open_null
from fastns.spec import DEFAULT_ENV

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, TypeAlias

    from fastns.batch import Result

    Start: TypeAlias = Callable[[], int]  # runs the program once; returns the exit code

PROGRAM = Path(__file__).with_name("_program")
EXIT_CODE = 127  # PROGRAM exits with this at once if it has no arguments (csrc/program)
PLACE = "/dev/fastns-bench"  # where PROGRAM is mounted if its own path is not visible inside

BASE = "os.posix_spawn"
SPACES = ("pid", "mount", "uts", "ipc", "cgroup", "network")
PLACES = ("/proc", "/tmp", "/run", "/dev", "read-only root")
PERCENTILES = {"median": 50, "p10": 10, "p90": 90, "p99": 99}
PACKAGES = {"bwrap": "bubblewrap", "unshare": "util-linux"}

SECONDS = 2.4  # for all rounds together, unless their number is given
RATE_SECONDS = 0.12  # to measure per_second of one contender
MIN_ROUNDS, MAX_ROUNDS = 10, 1000
TRY_SECONDS = 10.0
BATCH_JOBS = 2000
BATCH_SECONDS = 0.6
BATCH_WARM_UP = 100
DOCTOR = "fastns doctor says what this machine allows"


class Failed(Exception):
    """A contender cannot be timed. Has the reason and a fix."""

    def __init__(self, message: str, hint: str | None = DOCTOR) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


@record(frozen=True)
class Row:
    """The measurements of one contender. Times are in seconds; after an error they are None.

    Attributes:
        isolates: its new namespaces, and entries of PLACES.
        samples: how many starts were timed, in the rounds or in the batch.
        per_second: how many sandboxes it completes per second, without pauses.
        ratio: its median divided by BASE's.
        concurrency: set only for a batch, which is measured by per_second alone.
    """

    name: str
    by_fastns: bool
    isolates: tuple[str, ...] = ()
    samples: int = 0
    median: float | None = None
    p10: float | None = None
    p90: float | None = None
    p99: float | None = None
    per_second: float | None = None
    ratio: float | None = None
    concurrency: int | None = None
    error: str | None = None
    hint: str | None = None


@record(frozen=True)
class Sandboxes:
    """What all sandboxes have in common: the root, and the program's path inside."""

    rootfs: str | None
    inside: str
    privileged: bool

    @classmethod
    def of(cls, rootfs: str | None) -> Sandboxes:
        """rootfs None: the host's system directories are visible, and may contain PROGRAM."""
        shown = rootfs is None and _view.lies_in(str(PROGRAM), _view.layout().shown)
        inside = str(PROGRAM) if shown else PLACE
        return cls(rootfs, inside, Caller.current().privileged)

    def spec(self, network: str = "none") -> fastns.Spec:
        """The spec that all fastns contenders use."""
        mounts = [fastns.Mount(PLACE, source=str(PROGRAM), options=["ro"])]
        return fastns.Spec(
            rootfs=self.rootfs,
            read_only=self.rootfs is not None,
            network=network,
            mounts=mounts if self.inside == PLACE else (),
        )

    def isolates(self) -> tuple[str, ...]:
        return (*self.spaces(), *PLACES)

    def spaces(self) -> tuple[str, ...]:
        return SPACES if self.privileged else (*SPACES, "user")

    def bwrap(self) -> list[str]:
        """Arguments of bwrap for an equivalent sandbox."""
        words = [f"--unshare-{space}" for space in ("pid", "uts", "ipc", "cgroup", "net")]
        words += [] if self.privileged else ["--unshare-user"]
        words += ["--as-pid-1", "--die-with-parent"]
        if self.rootfs is None:
            layout = _view.layout()
            words += [word for path in layout.shown for word in ("--ro-bind", path, path)]
            words += [word for path, to in layout.links for word in ("--symlink", to, path)]
        else:
            words += ["--ro-bind", self.rootfs, "/"]
        words += ["--proc", "/proc", "--tmpfs", "/tmp", "--tmpfs", "/run", "--dev", "/dev"]
        words += [] if self.rootfs is None else ["--ro-bind", "/sys", "/sys"]
        words += ["--ro-bind", str(PROGRAM), PLACE] if self.inside == PLACE else []
        return [*words, self.inside]

    def unshare(self) -> list[str]:
        """Arguments of unshare: the same namespaces and /proc, but always the host's root."""
        words = [] if self.privileged else ["--user", "--map-root-user"]
        words += [f"--{space.replace('network', 'net')}" for space in SPACES]
        return [*words, "--fork", "--kill-child", "--mount-proc", str(PROGRAM)]


@record(frozen=True)
class Contender:
    """Something to time. `prepare` sets it up, and registers the cleanup on the stack."""

    name: str
    by_fastns: bool
    isolates: tuple[str, ...]
    prepare: Callable[[contextlib.ExitStack], Start]


def contenders(boxes: Sandboxes) -> list[Contender]:
    """Contenders that start one process at a time, BASE first."""
    argv = [str(PROGRAM)]
    everything = boxes.isolates()
    but_network = tuple([item for item in everything if item != "network"])

    def template(
        network: str = "none", ready: int | None = None
    ) -> Callable[[contextlib.ExitStack], Start]:
        def prepare(stack: contextlib.ExitStack) -> Start:
            made = stack.enter_context(fastns.Template(boxes.spec(network), ready=ready))
            return lambda: made.run([boxes.inside]).returncode

        return prepare

    def container(stack: contextlib.ExitStack) -> Start:
        made = stack.enter_context(fastns.Container(boxes.spec()))
        return lambda: made.run([boxes.inside]).returncode

    def direct(_: contextlib.ExitStack) -> Start:
        plan = fastns.compile(boxes.spec())
        return lambda: fastns.run([boxes.inside], spec=plan).returncode

    def unshare(_: contextlib.ExitStack) -> Start:
        return tool("unshare", boxes.unshare())

    return [
        Contender(BASE, False, (), lambda _: bare(argv)),
        Contender("subprocess.run", False, (), lambda _: lambda: subprocess.run(argv).returncode),
        Contender("fastns.run", True, everything, direct),
        Contender("Template.run", True, everything, template()),
        Contender("Template(ready=0).run", True, everything, template(ready=0)),
        Contender("Template.run, host's network", True, but_network, template("host")),
        Contender("Container.run", True, everything, container),
        Contender("bwrap", False, everything, lambda _: tool("bwrap", boxes.bwrap())),
        Contender("unshare", False, (*boxes.spaces(), "/proc"), unshare),
    ]


def bare(argv: list[str]) -> Start:
    """Returns a Start that runs a program as a child of this process, by Python's cheapest call."""

    def start() -> int:
        pid = os.posix_spawn(argv[0], argv, DEFAULT_ENV)
        try:
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        except KeyboardInterrupt:
            with contextlib.suppress(ChildProcessError):  # it was already reaped
                os.waitpid(pid, 0)  # it ends soon, by itself or by the same Ctrl-C
            raise

    return start


def tool(name: str, words: list[str]) -> Start:
    """Returns a Start for another sandboxing tool. Runs it once first, to report why it fails."""
    path = shutil.which(name)
    if path is None:
        raise Failed("not in PATH", f"install the package {PACKAGES[name]}")
    argv = [path, *words]
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=DEFAULT_ENV,
            timeout=TRY_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"has not ended after {TRY_SECONDS:.0f} s") from None
    said = done.stderr.decode(errors="replace").strip().splitlines()
    if said or done.returncode != EXIT_CODE:
        raise Failed(said[0].removeprefix(f"{name}: ") if said else _unexpected(done.returncode))
    return bare(argv)


def _unexpected(code: int | None) -> str:
    return f"ended with {code} instead of {EXIT_CODE}"


@contextlib.contextmanager
def _as_failed() -> Iterator[None]:
    """Turns the errors of a start into Failed."""
    try:
        yield
    except (fastns.FastnsError, OSError) as error:
        raise Failed(str(error), getattr(error, "hint", None) or DOCTOR) from error


# One at a time


def measure(boxes: Sandboxes, rounds: int | None) -> list[Row]:
    """A row for each of contenders(), from `rounds` rounds (None: as many as SECONDS allow).

    per_second is measured separately, with one contender at a time. In the rounds, a
    template has time to make sandboxes ahead while the other contenders run."""
    listed = contenders(boxes)
    rows = {one.name: Row(one.name, one.by_fastns, one.isolates) for one in listed}
    starts: dict[str, Start] = {}
    times: dict[str, list[float]] = {name: [] for name in rows}
    rates: dict[str, float] = {}

    @contextlib.contextmanager
    def dropped_if_it_fails(name: str) -> Iterator[None]:
        try:
            with _as_failed():
                yield
        except Failed as failure:
            rows[name] = replace(rows[name], error=failure.message, hint=failure.hint)
            starts.pop(name, None)

    with _null_streams(), contextlib.ExitStack() as stack:
        for one in listed:
            with dropped_if_it_fails(one.name):
                starts[one.name] = one.prepare(stack)
        for kept in _rounds(rounds):
            for name in random.sample(list(starts), len(starts)):
                with dropped_if_it_fails(name):
                    seconds = _timed(starts[name])
                    if kept:
                        times[name].append(seconds)
        for name in list(starts):
            with dropped_if_it_fails(name):
                rates[name] = _alone(starts[name])
    base = percentile(times[BASE], 50) if BASE in starts else None
    for name in starts:
        found: Any = {field: percentile(times[name], at) for field, at in PERCENTILES.items()}
        ratio = None if base is None else found["median"] / base
        row = replace(rows[name], samples=len(times[name]), per_second=rates[name], ratio=ratio)
        rows[name] = replace(row, **found)
    return list(rows.values())


@contextlib.contextmanager
def _null_streams() -> Iterator[None]:
    """Makes stdin, stdout and stderr /dev/null. Over a terminal an fd could be passed, so with one
    a Template would give no network namespace to a further sandbox."""
    saved: dict[int, int] = {}
    try:
        with open_null() as null:
            for fd in range(3):
                with contextlib.suppress(OSError):  # it is closed
                    saved[fd] = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
                os.dup2(null.fileno(), fd)
        yield
    finally:
        for fd, copy in saved.items():
            os.dup2(copy, fd)
            os.close(copy)


def _rounds(count: int | None) -> Iterator[bool]:
    """Yields for each round whether its times count. The first rounds are a warm-up and do not."""
    for _ in range(MIN_ROUNDS if count is None else 1 + count // 10):
        yield False
    end = time.monotonic() + SECONDS
    for done in range(MAX_ROUNDS if count is None else count):
        if count is None and done >= MIN_ROUNDS and time.monotonic() > end:
            return
        yield True


def _timed(start: Start) -> float:
    begin = time.perf_counter()
    code = start()
    seconds = time.perf_counter() - begin
    if code != EXIT_CODE:
        raise Failed(_unexpected(code))
    return seconds


def _alone(start: Start) -> float:
    """How many starts end in a second when they run one after the other."""
    count, begin = 0, time.perf_counter()
    while (seconds := time.perf_counter() - begin) < RATE_SECONDS:
        _timed(start)
        count += 1
    return count / seconds


def percentile(values: list[float], percent: float) -> float:
    """Interpolated between the two nearest values, as numpy does by default."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


# Many at once


def measure_batches(boxes: Sandboxes) -> Iterator[Row]:
    """A row for run_batch() without a Template, and one for a Template's."""
    concurrency = len(os.sched_getaffinity(0))
    for name in ("fastns.run_batch", "Template.run_batch"):
        row = Row(name, True, boxes.isolates(), concurrency=concurrency)
        try:
            with _as_failed(), contextlib.ExitStack() as stack:
                run_batch: Any
                spec = boxes.spec()
                if name == "Template.run_batch":
                    run_batch = stack.enter_context(fastns.Template(spec)).run_batch
                else:
                    run_batch = functools.partial(fastns.run_batch, spec=fastns.compile(spec))
                run = functools.partial(run_batch, concurrency=concurrency, capture_output=False)
                expected = _rate(run, boxes, BATCH_WARM_UP)
                jobs = max(BATCH_WARM_UP, min(BATCH_JOBS, int(expected * BATCH_SECONDS)))
                rate = _rate(run, boxes, jobs)
        except Failed as failure:
            yield replace(row, error=failure.message, hint=failure.hint)
        else:
            yield replace(row, samples=jobs, per_second=rate)


def _rate(run: Callable[..., list[Result]], boxes: Sandboxes, jobs: int) -> float:
    """How many sandboxes end in a second, measured over a batch of `jobs`."""
    begin = time.perf_counter()
    results = run([[boxes.inside]] * jobs)
    seconds = time.perf_counter() - begin
    for result in results:
        if isinstance(result, fastns.SpawnError):
            raise result
        if result.returncode != EXIT_CODE:
            raise Failed(_unexpected(result.returncode))
    return jobs / seconds


# The machine


def machine() -> dict[str, object]:
    """What the times depend on. Nothing in it identifies the machine or its owner."""
    found = None
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*:(.*)", Path("/proc/cpuinfo").read_text(), re.M)
    return {
        "cpu": found[1].strip() if found else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "fastns": fastns.__version__,
        "privileged": Caller.current().privileged,
    }
