"""`fastns batch`: many commands, each in a sandbox of its own; jobs and results are JSON lines.

Theory of operation. A chunk of jobs is read and checked as a whole, then run by one call into the C
core, which hands each result out soon after its sandbox has ended. What is due in the order of the
jobs is written at once, but only as far as its reader keeps up: nothing done here while sandboxes
run may wait, or the C loop would miss their deadlines. Signals are not acted on but looked for,
by every poll of this process, so that it never waits where a signal is not heard.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import functools
import json
import os
import select
import stat
import time

from fastns._record import record
from fastns.cli import EXIT_FAILED, UsageError, complain, whole
from fastns.cli._flags import add_sandbox_flags, complain_of, duration, spec_of
from fastns.cli._signals import Signals, signal_name
from fastns.errors import FastnsError, SpawnError, SpecError
from fastns.limits import parse_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any, NoReturn, TypeAlias

    from fastns import Spec
    from fastns.batch import Job, Result
    from fastns.cli._parser import Parser

    Runner: TypeAlias = Callable[..., object]

EXIT_SOME_FAILED = 1
EXIT_TIMEOUT = 124

CHUNK = 1000
"""Jobs that are read, checked and run together; more when more than half of it run at once."""
CHUNK_BYTES = 64 << 20
"""No more of their text, nor a longer line."""
CHUNK_OUTPUT = 256 << 20
"""What the next chunk may come to, if its jobs write as much as those of the last one."""
MAX_CONCURRENCY = 4096
MAX_OUTPUT = "16m"
PATIENCE = 1.0
"""Seconds without news of the input after which the jobs that are there are run."""

KEYS = ("args", "input", "env", "cwd", "timeout", "id")

EPILOG = """\
FILE has one job a line: a JSON object, or just the list that would be its args.
  args     the command and its arguments, a list of texts (the only key a job must have)
  input    text for its stdin (default: its stdin is empty)
  env      an object of variables, over those of the options
  cwd      its working directory inside (default: --workdir)
  timeout  seconds, a number (default: --timeout)
  id       anything: comes back in the result

Each result is one JSON object, in the order of the jobs:
  id (if the job has one), index (from 0), exit_code (128+n on signal n, 124 on a timeout),
  returncode (-n on signal n), signal (its name or null), stdout, stderr, wall_time (seconds),
  usage (user_time, system_time: seconds; max_rss: bytes; with limits memory_peak: bytes, pids_peak,
  io_read, io_write: bytes, cpu_time: seconds), cause (exited, signaled, timeout, cpu_time: over
  --cpu-time, oom: over --memory, pids: over --pids-limit, output_limit: over --max-output with
  --on-output-limit kill, seccomp: ended by the filter), timed_out, limits (the names of those that
  were enforced: ["memory"]);
  "truncated": true when --max-output has cut something off; stdout_base64, stderr_base64: the
  bytes, where they are not UTF-8 (stdout and stderr then have U+FFFD for what is not).
For a command that could not be started, beside id and index:
  error (in words), stage (the step that failed), errno (its name), path (or null).

example:
  $ printf '%s\\n' '["echo", "one"]' '{"id": "b", "args": ["sh", "-c", "cat"], "input": "two"}' |
      fastns batch --timeout 10s - | jq -r .stdout

A chunk of jobs (1,000, or what came before a pause of the input) is checked before any of it is
started. All sandboxes are of one kind, which the options describe; a job sees nothing of another
one, but what they write to a volume or to a root of theirs (without --read-only or --overlay).

Exit code: 0 when all jobs have exited with 0; 1 when one has failed in any way; 125 for a wrong
option or a line that is no job, or when fastns itself fails; 128+n on signal n (130 on Ctrl-C):
everything is ended, and the results so far are written.
"""


def add_parser(subparsers: argparse._SubParsersAction[Parser]) -> None:
    """Add the `batch` verb."""
    parser = subparsers.add_parser(
        "batch",
        usage="fastns batch [OPTIONS] FILE",
        description="Run many commands, each in a sandbox of its own: JSON lines in and out.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("jobs", metavar="FILE", help="the jobs, a JSON line each; -: stdin")
    group = parser.add_argument_group("how it runs")
    for names, metavar, help in (
        (("-j", "--concurrency"), "N", "how many run at once (default: the number of CPUs)"),
        (("--timeout",), "TIME", "end a job's sandbox after 2s, 500ms, 1m30s, ..."),
        (("--max-output",), "BYTES", "kept of each stdout and stderr: 64k, 1m (default: 16m)"),
        (("--on-output-limit",), "WHAT", "over --max-output: truncate (the default) or kill"),
        (("-o", "--output"), "FILE", "write the results there (default: to stdout)"),
    ):
        group.add_argument(*names, metavar=metavar, help=help)
    group.add_argument(
        "--verbose", action="store_true", help="say on stderr how the sandboxes are started"
    )
    add_sandbox_flags(parser)


class Stopped(Exception):
    """A signal asks this process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def main(flags: argparse.Namespace) -> int:
    """Run the jobs that the flags name. Returns the exit code."""
    try:
        return _perform(flags)
    except BrokenPipeError:
        raise
    except (FastnsError, OSError) as error:
        complain_of(error, "batch")
    return EXIT_FAILED


def _perform(flags: argparse.Namespace) -> int:
    concurrency = _concurrency(flags.concurrency)
    options = {
        "concurrency": concurrency,
        "timeout": None if flags.timeout is None else duration("--timeout", flags.timeout),
        "capture_output": True,
        "mode": None,
        "max_output": parse_size("max_output", flags.max_output or MAX_OUTPUT),
    }
    spec = spec_of(flags, os.environ, extra_env={})
    with contextlib.ExitStack() as stack:
        run = stack.enter_context(_runner(spec, flags.verbose))
        source, name = _open_jobs(flags.jobs, stack)
        target, target_name = _open_output(flags.output, source, stack)
        signals = stack.enter_context(Signals())  # not before: to open a FIFO may take for ever
        output = Output(target, target_name, signals)
        try:
            bar = stack.enter_context(_progress_bar(source, target, signals))
            batch = Batch(functools.partial(run, **options), signals, output, bar)
            jobs = Jobs(source, name, signals, spec.environment())
            while chunk := jobs.read(batch.limit(concurrency)):
                batch.run(chunk)
        except Stopped as stop:
            with contextlib.suppress(Stopped):  # a second signal: its reader may be stuck
                output.finish()
            return 128 + stop.number
    return EXIT_SOME_FAILED if batch.failed else 0


# The options


def _concurrency(text: str | None) -> int:
    if text is None:
        return len(os.sched_getaffinity(0))
    number = whole(text)
    if number is None or not 1 <= number <= MAX_CONCURRENCY:
        raise UsageError(
            f"--concurrency {text}: not a number from 1 to {MAX_CONCURRENCY}", "for example: -j 8"
        )
    return number


@contextlib.contextmanager
def _runner(spec: Spec, verbose: bool) -> Iterator[Runner]:
    """run_batch() without its spec: by a template, or, where it cannot be one, by a plan."""
    import fastns
    from fastns.batch import run_batch_by

    try:
        template = fastns.Template(spec, parked=0)
    except SpecError as error:
        plan = fastns.compile(spec)
        if verbose:
            complain(f"batch: from the compiled plan, as a template is not possible: {error}")
        yield functools.partial(run_batch_by, None, plan)
        return
    if verbose:
        complain("batch: from a template")
    with contextlib.closing(template):
        yield template._run_batch


def _open_jobs(path: str, stack: contextlib.ExitStack) -> tuple[int, str]:
    """The fd to read from and its name in messages."""
    if path == "-":
        return 0, "stdin"
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise UsageError(
            f"{path or repr(path)}: {error.strerror}", "a file of jobs, or - for stdin"
        ) from None
    stack.callback(os.close, fd)
    return fd, path


def _open_output(path: str | None, source: int, stack: contextlib.ExitStack) -> tuple[int, str]:
    """The fd to write to and its name in messages. A file is emptied, unless it is the source."""
    if path in (None, "-"):
        return 1, "stdout"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
        stack.callback(os.close, fd)
        found = os.fstat(fd)
        if stat.S_ISREG(found.st_mode):
            if os.path.samestat(found, os.fstat(source)):
                raise UsageError(f"--output {path}: the jobs are read from it", "name another")
            os.ftruncate(fd, 0)
    except OSError as error:
        raise UsageError(f"--output {path}: {error.strerror}", "a file to write to") from None
    return fd, f"--output {path}"


# Jobs


@record(frozen=True)
class Entry:
    """A job, and `"id": …, ` if it has one. As text: json.dumps() of a value that is deeply nested
    may fail later, where the stack is deeper."""

    head: str
    job: Job


class Jobs:
    """Reads jobs from an fd, chunk by chunk."""

    def __init__(self, fd: int, name: str, signals: Signals, env: Mapping[str, str]) -> None:
        self._fd = fd
        self._name = name
        self._signals = signals
        self._env = env
        self._lines: list[bytes] = []  # in reverse
        self._rest = bytearray()  # of a line whose end is not there yet
        self._number = 0
        self._ended = False

    def read(self, limit: int) -> list[Entry]:
        """At most `limit` jobs; none at the end. Raises UsageError for a line that is no job."""
        entries: list[Entry] = []
        size = 0
        while len(entries) < limit and size < CHUNK_BYTES:
            if not self._lines and not self._more(bool(entries)):
                break
            line = self._lines.pop()
            self._number += 1
            size += len(line)
            if line and not line.isspace():
                entries.append(self._entry(line))
        return entries

    def _entry(self, line: bytes) -> Entry:
        try:
            return entry_of(line, self._env)
        except SpecError as error:
            raise self._wrong(str(error)) from None
        except UnicodeDecodeError:
            raise self._wrong("not UTF-8") from None
        except json.JSONDecodeError as error:
            raise self._wrong(f"not JSON: {error.msg} (column {error.colno})") from None
        except (ValueError, RecursionError) as error:
            raise self._wrong(f"not JSON that can be read: {error}") from None

    def _wrong(self, what: str) -> UsageError:
        return UsageError(f"{self._name}:{self._number}: {what}", "see fastns batch --help")

    def _more(self, impatient: bool) -> bool:
        """Reads at least one line. False: there is none, or, if impatient, not soon."""
        while not self._lines and not self._ended:
            if not ready(self._fd, select.POLLIN, self._signals, PATIENCE if impatient else None):
                return False
            try:
                data = os.read(self._fd, 1 << 16)
            except OSError as error:
                raise UsageError(
                    f"{self._name}: {error.strerror}", "a file of jobs, or - for stdin"
                ) from None
            self._rest += data
            self._ended = not data
            if self._ended or b"\n" in data:
                *lines, last = bytes(self._rest).split(b"\n")
                self._rest = bytearray(last)
                self._lines = lines[::-1] if not self._ended else [last]
            elif len(self._rest) > CHUNK_BYTES:
                self._number += 1
                raise self._wrong(f"longer than {CHUNK_BYTES >> 20} MiB")
        return bool(self._lines)


def entry_of(line: bytes, env: Mapping[str, str]) -> Entry:
    """The job of a line; `env` lies under its own. Raises SpecError, and json's ValueErrors."""
    from fastns._args import check_args, check_cwd, check_env, check_timeout, shown
    from fastns.batch import Job

    found = json.loads(line.decode("utf-8-sig"), parse_constant=_no_constant)
    fields = {"args": found} if isinstance(found, list) else found
    if not isinstance(fields, dict):
        raise SpecError("the line", f"{shown(found)}: an object or a list expected")
    for key in fields:
        if key not in KEYS:
            raise SpecError(shown(key), f"no such key: one of {', '.join(KEYS)} expected")
    args, text, own_env, cwd, timeout = (fields.get(key) for key in KEYS[:5])
    if not isinstance(args, list) or not all(isinstance(item, str) for item in args):
        raise SpecError("args", "a list of texts expected")
    check_args(args)
    data = None
    if text is not None:
        if not isinstance(text, str):
            raise SpecError("input", f"{shown(text)}: a text expected")
        try:
            data = text.encode()
        except UnicodeEncodeError:
            raise SpecError("input", f"{shown(text)}: text without surrogates expected") from None
    if own_env is not None:
        if not isinstance(own_env, dict) or not all(isinstance(v, str) for v in own_env.values()):
            raise SpecError("env", f"{shown(own_env)}: an object of texts expected")
        own_env = {**env, **own_env}
        check_env(own_env)
    if cwd is not None:
        if not isinstance(cwd, str):
            raise SpecError("cwd", f"{shown(cwd)}: a text expected")
        check_cwd(cwd)
    if timeout is not None:
        check_timeout(timeout)
        if timeout <= 0:
            raise SpecError("timeout", f"{shown(timeout)}: seconds above zero expected")
    # 1e999 is read as infinity, which cannot be written.
    head = f'"id": {json.dumps(fields["id"], allow_nan=False)}, ' if "id" in fields else ""
    return Entry(head, Job(args, data, own_env, cwd, timeout))


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")


def ready(fd: int, events: int, signals: Signals, seconds: float | None = None) -> bool:
    """Waits until the fd can be read or written. Raises Stopped when a signal comes first."""
    poll = select.poll()
    poll.register(fd, events)
    poll.register(signals.pipe, select.POLLIN)
    found = dict(poll.poll(None if seconds is None else seconds * 1000))
    if signals.pipe in found:
        look_for(signals)
    return fd in found


def look_for(signals: Signals) -> None:
    """Raises Stopped if a signal has come."""
    for number in signals.take():
        raise Stopped(number)


# Running, and results


class Batch:
    """Runs one chunk after the other, and counts."""

    def __init__(self, run: Runner, signals: Signals, output: Output, bar: Bar | None) -> None:
        self._run = run
        self._signals = signals
        self._output = output
        self._bar = bar
        self._chunk: list[Entry] = []
        self._before = 0  # jobs of the chunks before this one
        self._size = 0  # bytes of this one's results
        self.failed = 0

    def limit(self, concurrency: int) -> int:
        """How many jobs the next chunk may have."""
        limit = max(CHUNK, 2 * concurrency)
        if self._size:
            limit = min(limit, CHUNK_OUTPUT * len(self._chunk) // self._size)
        return max(limit, concurrency)

    def run(self, chunk: list[Entry]) -> None:
        """Runs these jobs to their end and writes all of their results."""
        self._before += len(self._chunk)
        self._chunk = chunk
        self._size = 0
        jobs = [entry.job for entry in chunk]
        self._run(jobs, progress=self._progress, each=self._each)
        self._output.finish()

    def _each(self, index: int, result: Result) -> None:
        """Private `each` of run_batch_by()."""
        self.failed += isinstance(result, Exception) or result.returncode != 0
        if not isinstance(result, SpawnError):
            self._size += len(result.stdout or b"") + len(result.stderr or b"")
        self._output.add(self._before + index, self._chunk[index].head, result)

    def _progress(self, done: int) -> None:
        """Private `progress` of run_batch_by(); what it raises ends the sandboxes that run."""
        look_for(self._signals)
        self._output.offer()
        if self._bar is not None:
            self._bar.show(self._before + done, self.failed)


class Output:
    """Writes results in the order of their jobs, each as soon as all before it are written."""

    def __init__(self, fd: int, name: str, signals: Signals) -> None:
        self._fd = fd
        self._name = name
        self._signals = signals
        self._held: dict[int, tuple[str, Result]] = {}
        self._next = 0
        self._rest = memoryview(b"")  # of a line that is partly written
        # A pipe that poll(2) calls ready takes so much at once; more could wait for its reader.
        regular = stat.S_ISREG(os.fstat(fd).st_mode)
        self._piece = 1 << 20 if regular else select.PIPE_BUF

    def add(self, index: int, head: str, result: Result) -> None:
        """Takes the result of job `index`, which may come before those of earlier ones."""
        self._held[index] = head, result

    def offer(self) -> None:
        """Writes what is due and can be written without waiting."""
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        while self._rest or self._next in self._held:
            if not self._rest:
                self._take(self._next)
            if not poll.poll(0):
                return
            self._write()

    def finish(self) -> None:
        """Writes all there is. Jobs without a result, if it was stopped, are left out."""
        while self._rest or self._held:
            if not self._rest:
                self._take(self._next if self._next in self._held else min(self._held))
            if ready(self._fd, select.POLLOUT, self._signals):
                self._write()

    def _take(self, index: int) -> None:
        head, result = self._held.pop(index)
        line = line_of(head, index, fields_of(result))
        self._rest = memoryview(f"{line}\n".encode("ascii"))
        self._next = index + 1

    def _write(self) -> None:
        try:
            written = os.write(self._fd, self._rest[: self._piece])
        except BlockingIOError:
            return
        except BrokenPipeError:
            raise
        except OSError as error:
            raise UsageError(
                f"{self._name}: {error.strerror}", "the results up to there are written"
            ) from None
        self._rest = self._rest[written:]


def line_of(head: str, index: int, fields: dict[str, object]) -> str:
    """A result as it is written: `head` is an Entry's."""
    return "{" + head + json.dumps({"index": index, **fields})[1:]


def fields_of(result: Result) -> dict[str, object]:
    """A result as it is written, without id and index."""
    if isinstance(result, SpawnError):
        return {
            "error": str(result).replace("\n", "\\n"),
            "stage": result.stage,
            "errno": errno.errorcode.get(result.errno or 0, str(result.errno)),
            "path": result.path,
        }
    late = isinstance(result, Exception)
    code, usage = result.returncode, result.usage
    assert code is not None
    assert usage is not None
    fields: dict[str, object] = {
        "exit_code": EXIT_TIMEOUT if late else code if code >= 0 else 128 - code,
        "returncode": code,
        "signal": signal_name(-code) if code < 0 else None,
    }
    for name, data in (("stdout", result.stdout), ("stderr", result.stderr)):
        fields |= _texts(name, data or b"")
    fields["wall_time"] = result.wall_time
    fields["usage"] = usage.as_dict()
    fields["cause"] = result.cause
    fields["timed_out"] = late
    fields["limits"] = result.limits
    if result.truncated:
        fields["truncated"] = True
    return fields


def _texts(name: str, data: bytes) -> dict[str, str]:
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        import base64

        return {
            name: data.decode(errors="replace"),
            f"{name}_base64": base64.b64encode(data).decode("ascii"),
        }


# The progress bar


class Bar:
    """A line of `rich` on stderr."""

    def __init__(self, progress: Any, total: int | None) -> None:
        self._progress = progress
        self._start = time.monotonic()
        self._task = progress.add_task("", total=total, rate="", failed=0)

    def show(self, done: int, failed: int) -> None:
        """Show it as it is now."""
        rate = done / max(time.monotonic() - self._start, 1e-3)
        self._progress.update(self._task, completed=done, rate=f"{rate:.0f}/s", failed=failed)
        self._progress.refresh()


@contextlib.contextmanager
def _progress_bar(source: int, output: int, signals: Signals) -> Iterator[Bar | None]:
    """A bar on the terminal that stderr is; None without one, without rich, and where the results
    themselves go to a terminal."""
    if not os.isatty(2) or os.isatty(output):
        yield None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    except ImportError:
        yield None
        return
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[failed]} failed"),
    )
    console = Console(stderr=True)
    with Progress(
        *columns,
        console=console,
        auto_refresh=False,
        redirect_stdout=False,
        redirect_stderr=False,
    ) as progress:
        yield Bar(progress, _count(source, signals))


def _count(source: int, signals: Signals) -> int | None:
    """How many lines there are to read; None where that can be known only by reading them."""
    if not stat.S_ISREG(os.fstat(source).st_mode):
        return None
    place, lines, data = os.lseek(source, 0, os.SEEK_CUR), 0, b"\n"
    while more := os.read(source, 1 << 20):
        look_for(signals)
        data = more
        lines += data.count(b"\n")
    os.lseek(source, place, os.SEEK_SET)
    return lines if data.endswith(b"\n") else lines + 1
