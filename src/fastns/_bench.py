"""What a start costs on this machine: contenders that run the same program, timed in turn.

Absolute times drift on a shared machine, so each round starts every contender once, and what counts
is the ratio of the medians. The order changes from round to round: the work that one leaves in the
background does not always delay the same next one. A contender that cannot be started is a row with
its reason.
"""

from __future__ import annotations

import contextlib
import os
import platform
import random
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import fastns
from fastns import _view
from fastns._compile.caller import Caller
from fastns._record import record
from fastns.spec import DEFAULT_ENV

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, TypeAlias

    from fastns.batch import Result

    Start: TypeAlias = Callable[[], int]  # one start, to its end; returns the exit code
    Batch: TypeAlias = Callable[[int], list[Result]]  # so many starts, to the end of all

PROGRAM = Path(__file__).with_name("_program")
EXIT_CODE = 127  # PROGRAM without arguments ends with it at once (csrc/program)
PLACE = "/dev/fastns-bench"  # where a sandbox has PROGRAM if its own path is not in view

BASE = "os.posix_spawn"
SPACES = ("pid", "mount", "uts", "ipc", "cgroup")
PLACES = ("/proc", "/tmp", "/run", "/dev", "read-only root")
PACKAGES = {"bwrap": "bubblewrap", "unshare": "util-linux"}

SECONDS = 2.4  # length of all rounds, when their number is not given
RATE_SECONDS = 0.12  # length of the starts of one contender alone
MIN_ROUNDS, MAX_ROUNDS = 10, 1000
TRY_SECONDS = 10.0
BATCH_JOBS = 2000
BATCH_SECONDS = 0.6
BATCH_WARM_UP = 100
DOCTOR = "fastns doctor says what this machine allows"


class Failed(Exception):
    """A contender that cannot be timed: why, and how to mend it."""

    def __init__(self, message: str, hint: str | None = DOCTOR) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


@record(frozen=True)
class Row:
    """What was measured of one contender. Times in seconds; all of them None after an error.

    Attributes:
        isolates: namespaces, and words of PLACES.
        samples: how many starts were timed: in the rounds, or in the batch.
        per_second: starts that follow each other without a pause.
        ratio: of the median to BASE's.
        concurrency: of a batch, which has no times but per_second: how many were alive at once.
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
    """How the program is started in a sandbox: the root, and the program's path inside."""

    rootfs: str | None
    inside: str
    privileged: bool

    @classmethod
    def of(cls, rootfs: str | None) -> Sandboxes:
        """With a rootfs, or (None) with the host's system directories, where PROGRAM may lie."""
        shown = rootfs is None and _view.lies_in(str(PROGRAM), _view.layout().shown)
        inside = str(PROGRAM) if shown else PLACE
        return cls(rootfs, inside, Caller.current().privileged)

    def spec(self, network: str = "host") -> fastns.Spec:
        """The sandbox of all contenders of fastns."""
        mounts = [fastns.Mount(PLACE, source=str(PROGRAM), options=["ro"])]
        return fastns.Spec(
            rootfs=self.rootfs,
            read_only=self.rootfs is not None,
            network=network,
            mounts=mounts if self.inside == PLACE else (),
        )

    def isolates(self) -> tuple[str, ...]:
        """What most of the contenders isolate."""
        return (*self.spaces(), *PLACES)

    def spaces(self) -> tuple[str, ...]:
        return SPACES if self.privileged else (*SPACES, "user")

    def bwrap(self) -> list[str]:
        """Arguments of bwrap for the same sandbox."""
        words = [f"--unshare-{space}" for space in ("pid", "uts", "ipc", "cgroup")]
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
        words += [f"--{space}" for space in SPACES]
        return [*words, "--fork", "--kill-child", "--mount-proc", str(PROGRAM)]


@record(frozen=True)
class Contender:
    """What is timed. `prepare` sets up what it needs, which the stack takes down."""

    name: str
    by_fastns: bool
    isolates: tuple[str, ...]
    prepare: Callable[[contextlib.ExitStack], Start]

    def row(self) -> Row:
        """Its row, not measured yet."""
        return Row(self.name, self.by_fastns, self.isolates)


def contenders(boxes: Sandboxes) -> list[Contender]:
    """Those that start one process at a time, BASE first."""
    argv = [str(PROGRAM)]
    all_of_it = boxes.isolates()

    def template(network: str = "host", **pools: int) -> Callable[[contextlib.ExitStack], Start]:
        def prepare(stack: contextlib.ExitStack) -> Start:
            made = stack.enter_context(fastns.Template(boxes.spec(network), **pools))
            return lambda: made.run([boxes.inside]).returncode

        return prepare

    def direct(_: contextlib.ExitStack) -> Start:
        plan = fastns.compile(boxes.spec())
        return lambda: fastns.run([boxes.inside], spec=plan).returncode

    return [
        Contender(BASE, False, (), lambda _: bare(argv)),
        Contender("subprocess.run", False, (), lambda _: lambda: subprocess.run(argv).returncode),
        Contender("fastns.run", True, all_of_it, direct),
        Contender("Template.run", True, all_of_it, template()),
        Contender("Template(parked=0).run", True, all_of_it, template(parked=0)),
        Contender(
            "Template(netns_pool=8).run",
            True,
            (*all_of_it, "network"),
            template("none", netns_pool=8),
        ),
        Contender("bwrap", False, all_of_it, lambda _: tool("bwrap", boxes.bwrap())),
        Contender(
            "unshare",
            False,
            (*boxes.spaces(), "/proc"),
            lambda _: tool("unshare", boxes.unshare()),
        ),
    ]


def bare(argv: list[str]) -> Start:
    """A program as a child of this process, by the cheapest call of Python."""

    def start() -> int:
        pid = os.posix_spawn(argv[0], argv, DEFAULT_ENV)
        try:
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        except KeyboardInterrupt:
            with contextlib.suppress(ChildProcessError):  # reaped just before
                os.waitpid(pid, 0)  # it ends soon, by itself or by the same Ctrl-C
            raise

    return start


def tool(name: str, words: list[str]) -> Start:
    """Another program that makes sandboxes. It is tried once, to learn why it fails."""
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

    per_second is measured apart, by starts of one contender alone: a pool that has time to refill
    between its turns is slower when it is used without a pause."""
    listed = contenders(boxes)
    starts: dict[str, Start] = {}
    times: dict[str, list[float]] = {one.name: [] for one in listed}
    rates: dict[str, float] = {}
    failures: dict[str, Failed] = {}

    @contextlib.contextmanager
    def dropped_if_it_fails(name: str) -> Iterator[None]:
        try:
            with _as_failed():
                yield
        except Failed as failure:
            failures[name] = failure
            starts.pop(name, None)

    with contextlib.ExitStack() as stack:
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
    base = None if BASE in failures else percentile(times[BASE], 50)
    return [
        replace(one.row(), error=failures[one.name].message, hint=failures[one.name].hint)
        if one.name in failures
        else _row(one.row(), times[one.name], rates[one.name], base)
        for one in listed
    ]


def _rounds(count: int | None) -> Iterator[bool]:
    """Whether the times of each round are kept: not those of the first tenth, the warm-up."""
    for _ in range(MIN_ROUNDS if count is None else 1 + count // 10):
        yield False
    if count is not None:
        for _ in range(count):
            yield True
        return
    end = time.monotonic() + SECONDS
    for done in range(MAX_ROUNDS):
        if done >= MIN_ROUNDS and time.monotonic() > end:
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
    """How many starts end in a second, one after the other."""
    count, begin = 0, time.perf_counter()
    while (seconds := time.perf_counter() - begin) < RATE_SECONDS:
        _timed(start)
        count += 1
    return count / seconds


def _row(row: Row, times: list[float], rate: float, base: float | None) -> Row:
    median, p10, p90, p99 = (percentile(times, percent) for percent in (50, 10, 90, 99))
    return replace(
        row,
        samples=len(times),
        median=median,
        p10=p10,
        p90=p90,
        p99=p99,
        per_second=rate,
        ratio=None if base is None else median / base,
    )


def percentile(values: list[float], percent: float) -> float:
    """Interpolated between the two nearest values, as numpy does by default."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


# Many at once


def measure_batches(boxes: Sandboxes) -> Iterator[Row]:
    """Rows of run_batch(), without a Template and with one."""
    concurrency = len(os.sched_getaffinity(0))
    options: Any = {"concurrency": concurrency, "capture_output": False}
    command = [boxes.inside]

    def direct(_: contextlib.ExitStack) -> Batch:
        plan = fastns.compile(boxes.spec())
        return lambda jobs: fastns.run_batch([command] * jobs, spec=plan, **options)

    def template(stack: contextlib.ExitStack) -> Batch:
        made = stack.enter_context(fastns.Template(boxes.spec()))
        return lambda jobs: made.run_batch([command] * jobs, **options)

    for name, prepare in (("fastns.run_batch", direct), ("Template.run_batch", template)):
        row = Row(name, True, boxes.isolates(), concurrency=concurrency)
        try:
            with _as_failed(), contextlib.ExitStack() as stack:
                run = prepare(stack)
                expected = _rate(run, BATCH_WARM_UP)
                jobs = max(BATCH_WARM_UP, min(BATCH_JOBS, int(expected * BATCH_SECONDS)))
                rate = _rate(run, jobs)
        except Failed as failure:
            yield replace(row, error=failure.message, hint=failure.hint)
        else:
            yield replace(row, samples=jobs, per_second=rate)


def _rate(run: Batch, jobs: int) -> float:
    """How many starts end in a second, over `jobs` of them."""
    begin = time.perf_counter()
    results = run(jobs)
    seconds = time.perf_counter() - begin
    for result in results:
        if isinstance(result, fastns.SpawnError):
            raise result
        if result.returncode != EXIT_CODE:
            raise Failed(_unexpected(result.returncode))
    return jobs / seconds


# The machine


def machine() -> dict[str, object]:
    """What the times depend on; nothing that identifies the machine or its owner."""
    return {
        "cpu": _cpu_model() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "fastns": fastns.__version__,
        "privileged": Caller.current().privileged,
    }


def _cpu_model() -> str | None:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return None
