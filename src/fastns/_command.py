"""What run(), spawn() and batches share: the command, text mode for its streams, its end.

CompletedSandbox itself is in results.py, because it needs `subprocess`.
"""

from __future__ import annotations

import codecs
import os

from fastns import _core
from fastns._args import check_args, check_cwd, check_env, shown, wrong
from fastns._compile import compile, search_path
from fastns._light import GenericBase, S, record
from fastns.errors import FastnsError, SpecError
from fastns.spec import Spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, Literal, TypeAlias

    from fastns._starter import Starter

    Cause: TypeAlias = Literal[
        "exited", "signaled", "timeout", "cpu_time", "oom", "pids", "output_limit", "seccomp",
        "killed",
    ]  # fmt: skip
    Counts: TypeAlias = Mapping[str, int | None]
    Args: TypeAlias = Sequence[str | bytes | os.PathLike[str] | os.PathLike[bytes]]
    Used: TypeAlias = tuple[float, float, int, bool, Counts | None]
    """What _used() of _core reports: the first fields of a Usage, and the counts of its cgroups."""

# Decode without a byte order mark, as bytes.decode() does. The incremental decoders require one.
WITHOUT_BOM = {"utf-16": codecs.utf_16_decode, "utf-32": codecs.utf_32_decode}

# signal(7), on x86_64 and aarch64. Importing `signal` would import `enum`.
SIGILL, SIGTRAP, SIGABRT, SIGKILL, SIGSEGV, SIGSYS = 4, 5, 6, 9, 11, 31
# Signals by which a process may end because of a limit. The limits on memory and CPU time kill with
# SIGKILL. A process that cannot fork, or whose child was killed, may call abort(), which ends pid 1
# of a namespace by SIGSEGV (x86-64) or SIGTRAP (aarch64), or run an invalid instruction (SIGILL).
OF_A_LIMIT = (-SIGKILL, -SIGABRT, -SIGSEGV, -SIGTRAP, -SIGILL)


NO_FILES: Mapping[str, bytes | None] = {}


def exit_code(returncode: int) -> int:
    """The code a shell would show: 128+n after signal n."""
    return returncode if returncode >= 0 else 128 - returncode


@record(frozen=True)
class Usage:
    """What a sandbox used.

    Attributes:
        user_time: seconds of CPU time of its first process and of all children that were waited
            for; not of children that were killed with the sandbox or left behind, except in a room.
        system_time: seconds of CPU time in the kernel, of the same processes.
        max_rss: bytes, of the largest process.
        max_rss_exact: False if the true value may be lower: a direct start begins with the peak of
            the caller, which survives exec; a killed room reports the peak of all its commands.
        memory_peak: bytes, of all processes together, with tmpfs and memory files.
        pids_peak: processes and threads at once.
        io_read: bytes.
        io_write: bytes.
        cpu_time: seconds of CPU time of all processes, including those that nobody waited for.

    Those that can be None come from cgroups. They are None if no limit of that kind was set, or if
    the kernel does not report the value for this sandbox alone.
    """

    user_time: float
    system_time: float
    max_rss: int
    max_rss_exact: bool
    memory_peak: int | None = None
    pids_peak: int | None = None
    io_read: int | None = None
    io_write: int | None = None
    cpu_time: float | None = None

    @classmethod
    def of(cls, used: Used) -> Usage:
        """Makes a Usage from what _core reports."""
        counts = used[-1]
        if counts is None:
            return cls(*used[:-1])
        cpu = counts["cpu_time"]
        return cls(
            *used[:-1],
            memory_peak=counts["memory_peak"],
            pids_peak=counts["pids_peak"],
            io_read=counts["io_read"],
            io_write=counts["io_write"],
            cpu_time=None if cpu is None else cpu / 1e9,
        )

    def as_dict(self) -> dict[str, float]:
        """The fields that are known, without max_rss_exact, for JSON."""
        known = {name: value for name, value in vars(self).items() if value is not None}
        del known["max_rss_exact"]
        return known


@record(frozen=True)
class Timings:
    """Where the time of a command went, in seconds.

    Attributes:
        queued: it waited in its template for its turn in a batch; not part of wall_time.
        start: from the start until the command was executed.
        run: until the command had ended. After a direct start, until its output was at its end.
        end: until it was reaped, or the end was reported.
    """

    queued: float
    start: float
    run: float
    end: float


class Prepared:
    """What a Template or a Container passes as `spec` to run(), spawn() and the batch functions:
    its plan for each command, and itself to start them."""

    def __init__(
        self, plan: _core.Plan, starter: Starter, extra: _core._Extra | None = None
    ) -> None:
        self.plan = plan
        self.starter = starter
        self.extra = extra  # for a command of a container: ids that are not the plan's, files


def plan_of(spec: Spec | _core.Plan | Prepared | None) -> _core.Plan:
    if isinstance(spec, _core.Plan):
        return spec
    if isinstance(spec, Prepared):
        return spec.plan
    if spec is not None and not isinstance(spec, Spec):
        raise SpecError(
            "spec",
            f"{shown(spec)}: expected a Spec, a Plan made by fastns.compile(), or None"
            " (a Template has spawn(), run() and batches of its own)",
        )
    return compile(spec)


def command(
    plan: _core.Plan, args: Args, env: Mapping[str, str] | None, cwd: Any
) -> tuple[tuple[bytes, ...], tuple[bytes, ...], tuple[bytes, ...], bytes]:
    """Returns argv, environment, directories to look for argv[0] in, and working directory."""
    argv = check_args(args)
    directories = plan.search_path
    environ = plan.environ
    if env is not None:
        environ = check_env(env)
        found = (entry[5:] for entry in environ if entry.startswith(b"PATH="))
        directories = search_path(next(found, None))
    return argv, environ, directories, plan.cwd if cwd is None else check_cwd(cwd)


@record(frozen=True)
class TextMode:
    """How bytes are decoded to text. None instead of a TextMode: they stay bytes."""

    encoding: str
    errors: str

    @classmethod
    def of(cls, text: bool | None, encoding: str | None, errors: str | None) -> TextMode | None:
        if not (text or encoding or errors):
            return None
        encoding = "utf-8" if encoding is None else encoding
        errors = "strict" if errors is None else errors
        try:
            "".encode(encoding)  # rot13 and the like are codecs, but not text encodings
        except (LookupError, TypeError, ValueError):
            raise wrong("encoding", encoding, "a text encoding such as 'utf-8'") from None
        try:
            codecs.lookup_error(errors)
        except (LookupError, TypeError, ValueError):
            raise wrong("errors", errors, "an error handler such as 'replace'") from None
        return cls(encoding, errors)

    def decode(self, data: bytes, cut: bool = False) -> str:
        """cut: the end of the output is missing, so an incomplete last character is left out."""
        codec = codecs.lookup(self.encoding) if cut else None
        try:
            if codec and codec.name in WITHOUT_BOM:
                text = WITHOUT_BOM[codec.name](data, self.errors, False)[0]
            elif codec and codec.incrementaldecoder is not None:
                text = codec.incrementaldecoder(self.errors).decode(data)
            else:
                text = data.decode(self.encoding, self.errors)
        except UnicodeDecodeError:
            raise
        except UnicodeError as exc:  # of idna, for example
            raise UnicodeDecodeError(self.encoding, data, 0, len(data), str(exc)) from None
        return text.replace("\r\n", "\n").replace("\r", "\n")

    def decode_partial(self, data: bytes | None) -> str | None:
        """Decodes the output so far after a timeout. Never raises, because the error would replace
        TimeoutExpired. If `errors` fails, replaces invalid bytes; if that fails, all but ASCII."""
        if data is None:
            return None
        for errors in (self.errors, "replace"):
            try:
                return TextMode(self.encoding, errors).decode(data, cut=True)
            except Exception:  # codecs and error handlers may be the caller's own
                continue
        return TextMode("ascii", "replace").decode(data)


def encode_input(input: Any, mode: TextMode | None) -> bytes:
    """The input of run() or communicate() as bytes. Raises SpecError, field "input"."""
    if input is None:
        return b""
    kind = type(input).__name__
    if mode is None:
        if isinstance(input, bytes):
            return input
        if isinstance(input, str):
            raise SpecError("input", "str given: expected bytes, or text=True")
        try:
            return memoryview(input).tobytes()
        except TypeError:
            raise SpecError("input", f"{kind} given: expected bytes") from None
    if not isinstance(input, str):
        raise SpecError("input", f"{kind} given: expected str, as text, encoding or errors is set")
    try:
        return input.encode(mode.encoding, mode.errors)
    except UnicodeError:
        raise wrong("input", input, f"text that {mode.encoding} can encode") from None


# ---- the result ----


def cause_of(
    returncode: int,
    counts: Counts | None = None,
    *,
    timed_out: bool = False,
    killed: bool = False,
    over: bool = False,
    plan: _core.Plan | None = None,
    signals: frozenset[int] = frozenset(),
) -> Cause:
    """Returns the cause. One that is certain (timeout, output limit, kill, seccomp) outranks one
    inferred from counters.

    Args:
        counts: from its cgroups, if it had any. They cover all its processes, so a limit that was
            reached is the cause only if the first process ended in a way that a limit can explain.
        timed_out: it was killed at its time limit.
        killed: it was killed by Sandbox.kill().
        over: it was killed because it wrote more than max_output.
        plan: says whether there is a filter. Without one, SIGSYS is a signal like any other.
        signals: the signals that this process has sent to it.
    """
    if timed_out:
        return "timeout"
    if over:
        return "output_limit"
    if returncode == 0:
        return "exited"
    sent = -returncode in signals
    if killed and returncode == -SIGKILL:
        return "killed"
    if returncode == -SIGSYS and not sent and plan and plan.filtered:
        return "seccomp"
    counts = counts or {}
    if not sent and (returncode > 0 or returncode in OF_A_LIMIT):
        if counts.get("cpu_time_over"):
            return "cpu_time"
        if counts.get("oom_kills"):
            return "oom"
        if counts.get("pids_refused"):
            return "pids"
    return "exited" if returncode > 0 else "signaled"


class Ended(FastnsError):
    """An exception with the attributes of CompletedSandbox, set once the sandbox has ended."""

    returncode: int | None = None
    usage: Usage | None = None
    wall_time: float | None = None
    truncated = False
    cause: Cause = "exited"
    limits: tuple[str, ...] = ()
    files: Mapping[str, bytes | None] = NO_FILES


class DecodeError(Ended, UnicodeDecodeError):
    """The output is not valid in the given encoding; stdout and stderr hold it, as bytes.

    The sandbox has ended: returncode, usage and the rest are as in CompletedSandbox.
    """

    stdout: bytes | None = None
    stderr: bytes | None = None


class Completed(GenericBase[S]):
    """CompletedSandbox without its base class from `subprocess`."""

    args: Any
    returncode: int
    stdout: S
    stderr: S
    reused = False
    files: Mapping[str, bytes | None] = NO_FILES
    _times = (0.0, 0.0, 0.0, 0.0)

    def __init__(
        self,
        args: Any,
        returncode: int,
        stdout: Any,
        stderr: Any,
        usage: Usage | Used,
        wall_time: float,
        method: str,
        truncated: bool = False,
        cause: Cause = "exited",
        limits: tuple[str, ...] = (),
        id_map: str = "none",
        mount_namespace: str = "copied",
    ) -> None:
        self.args = args
        self.returncode = returncode
        self.stdout = stdout
        self.stderr = stderr
        self._used = usage  # from _core: numbers, as a Usage is made only when it is read
        self.wall_time = wall_time
        self.method = method
        self.truncated = truncated
        self.cause = cause
        self.id_map = id_map
        self.mount_namespace = mount_namespace
        self.limits = limits

    @property
    def usage(self) -> Usage:
        """What the sandbox used; a new object at each access."""
        used = self._used
        return used if isinstance(used, Usage) else Usage.of(used)

    @property
    def timings(self) -> Timings:
        """Where its time went."""
        return Timings(*self._times)

    @property
    def exit_code(self) -> int:
        """The code a shell would show, 128+n after signal n."""
        return exit_code(self.returncode)

    def __repr__(self) -> str:
        names = ["args", "returncode", "cause"]
        names += [name for name in ("stdout", "stderr") if getattr(self, name) is not None]
        names += ["truncated"] if self.truncated else []
        shown = [f"{name}={getattr(self, name)!r}" for name in names]
        numbers = {"wall_time": self.wall_time, **self.usage.as_dict()}
        shown += [f"{name}={_short(value)}" for name, value in numbers.items()]
        return f"CompletedSandbox({', '.join(shown)})"


def _short(value: float) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
