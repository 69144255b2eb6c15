"""`fastns batch`: many commands, each in a sandbox of its own; jobs and results are JSON lines.

Theory of operation. A chunk of jobs is read and checked as a whole, then run by one call into the C
core. The core reports each result soon after its sandbox has ended. Results are written in the
order of the jobs (_jsonl.py). While sandboxes run, a write must not block, or the C loop would miss
deadlines. So results are kept until the reader can take them. Signals do not raise exceptions where
they arrive; this process checks for them whenever it polls.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import stat
import time

import fastns
from fastns.batch import run_batch_by
from fastns.cli import EXIT_FAILED, Naming, UsageError, complain
from fastns.cli._errors import complain_of
from fastns.cli._flags import add_flags, add_sandbox_flags, spec_of
from fastns.cli._jsonl import Jobs, Output
from fastns.cli._options import ONE, SWITCH
from fastns.cli._signals import Signals, Stopped, look_for
from fastns.cli._values import duration, whole_number
from fastns.errors import FastnsError, SpawnError, SpecError
from fastns.limits import parse_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, TypeAlias

    from fastns import Spec
    from fastns.batch import Result
    from fastns.cli._jsonl import Entry
    from fastns.cli._parser import Parser

    Show: TypeAlias = Callable[[int, int], object]
    """Shows how many jobs have ended, and how many of them have failed."""

EXIT_SOME_FAILED = 1
CHUNK = 1000
"""Jobs that are read, checked and run together; twice the concurrency if that is more."""
CHUNK_OUTPUT = 256 << 20
"""Bytes. The next chunk has fewer jobs if, judging by the last one, it would write more."""
MAX_CONCURRENCY = 4096
MAX_OUTPUT = "16m"

CONTROL = (
    (ONE, "-j --concurrency", "N", "run this many at once (default: the number of CPUs)"),
    (ONE, "--timeout", "TIME", "end a job's sandbox after 2s, 500ms, 1m30s, ..."),
    (ONE, "--max-output", "BYTES", "keep at most this much of each stdout and stderr: 64k, 1m "
     "(default: 16m)"),
    (ONE, "--on-output-limit", "truncate|kill", "what to do with output beyond --max-output: drop "
     "it and let the command continue (truncate, the default), or end the sandbox (kill)"),
    (ONE, "-o --output", "FILE", "write the results to FILE (default: stdout)"),
    (SWITCH, "--verbose", "", "say on stderr how the sandboxes are started"),
)  # fmt: skip
USAGE = "fastns batch [OPTIONS] FILE"
ABOUT = "Run many commands, each in a sandbox of its own. Jobs and results are JSON lines."
EPILOG = """\
FILE has one job per line: a JSON object with these keys, or just the list that
would be its args.
  args     required: the command and its arguments, a list of strings
  input    text for its stdin (default: empty)
  env      an object of variables, which override those of the options
  cwd      its working directory inside (default: --workdir)
  timeout  seconds, a number (default: --timeout)
  stdin    a file of this machine, in place of input
  files    an object: path inside -> a file of this machine that is put there
           first, or an object with path, text or base64, and perhaps mode:
           {"/tmp/a": "a.txt", "/tmp/go": {"path": "go", "mode": "755"}}
  outputs  a list of paths inside, whose content the result will have
  id       any value; it is copied to the result
Files of this machine are relative to the directory of FILE.

Each result is one JSON object, in the order of the jobs:
  id           if the job has one
  index        from 0
  exit_code    128+n on signal n, 124 on a timeout
  returncode   -n on signal n
  signal       its name, or null
  stdout, stderr
  stdout_base64, stderr_base64
               the bytes, only if they are not UTF-8; stdout or stderr then has
               U+FFFD in place of invalid bytes
  files        of outputs: path -> text, {"base64": ...}, or null if there is
               no such file
  truncated    true if --max-output has cut something off, else absent
  wall_time    seconds
  usage        user_time, system_time: seconds; max_rss: bytes; with limits also
               memory_peak, io_read, io_write: bytes; pids_peak; cpu_time:
               seconds
  cause        exited, signaled, timeout, cpu_time (over --cpu-time), oom (over
               --memory), pids (over --pids-limit), output_limit (over
               --max-output with --on-output-limit kill), seccomp (ended by the
               filter)
  timed_out    true or false
  limits       the names of those that were enforced: ["memory"]
For a command that could not be started, id and index are followed by:
  error        a message
  stage        the step that failed
  errno        its name, such as ENOENT
  path         the path concerned, or null

example:
  $ printf '%s\\n' '["echo", "one"]' \\
        '{"id": "b", "args": ["sh", "-c", "cat"], "input": "two"}' |
      fastns batch --timeout 10s - | jq -r .stdout

The options describe all sandboxes. Jobs share only volumes, and a --rootfs
without --read-only or --overlay. Jobs are checked and started in chunks: 1,000,
or as many as came before the input paused.

Exit code: 0 if all jobs have exited with 0; 1 if any job has failed; 125 for a
wrong option, for a line that is not a job, or if fastns itself fails; 128+n if
signal n ended fastns (130 on Ctrl-C): it then ends all sandboxes and writes the
results so far.
"""


def declare(parser: Parser) -> None:
    parser.add_argument("jobs", metavar="FILE", help="the jobs, one per line; -: stdin")
    add_flags(parser.add_argument_group("jobs and results"), CONTROL)
    add_sandbox_flags(parser)


def main(flags: argparse.Namespace) -> int:
    try:
        return _perform(flags)
    except BrokenPipeError:
        raise
    except (FastnsError, OSError) as error:
        complain_of(error, "batch")
    return EXIT_FAILED


def _perform(flags: argparse.Namespace) -> int:
    wanted = whole_number("--concurrency", flags.concurrency, MAX_CONCURRENCY, "for example: -j 8")
    concurrency = wanted or len(os.sched_getaffinity(0))
    timeout = duration("--timeout", flags.timeout)
    limit = parse_size("max_output", flags.max_output or MAX_OUTPUT)
    spec = spec_of(flags, os.environ, extra_env={})
    with contextlib.ExitStack() as stack:
        origin = stack.enter_context(_origin(spec, flags.verbose))
        run = functools.partial(
            run_batch_by, origin, concurrency=concurrency, timeout=timeout, max_output=limit
        )
        source, name = _open_jobs(flags.jobs, stack)
        target, target_name = _open_output(flags.output, source, stack)
        signals = stack.enter_context(Signals())  # not earlier: Ctrl-C must end the open of a FIFO
        output = Output(target, target_name, signals)
        try:
            show = stack.enter_context(progress_bar(source, target, signals))
            batch = Batch(run, signals, output, show)
            folder = "" if flags.jobs == "-" else os.path.dirname(flags.jobs)
            jobs = Jobs(source, name, signals, spec.environment(), folder)
            while chunk := jobs.read(batch.limit(concurrency)):
                batch.run(chunk)
        except Stopped as stop:
            with contextlib.suppress(Stopped):  # a second signal: the reader may be stuck
                output.finish()
            return 128 + stop.number
    return EXIT_SOME_FAILED if batch.failed else 0


@contextlib.contextmanager
def _origin(spec: Spec, verbose: bool) -> Iterator[Any]:
    """What sandboxes start from: a template or, if a template does not support the spec, a plan."""
    try:
        template = fastns.Template(spec, ready=0)
    except SpecError as error:
        plan = fastns.compile(spec)
        if verbose:
            complain(f"batch: using the compiled plan, not a template: {error}")
        yield plan
        return
    if verbose:
        complain("batch: using a template")
    with contextlib.closing(template):
        yield template._prepared()


def _open_jobs(path: str, stack: contextlib.ExitStack) -> tuple[int, str]:
    """The fd to read from and its name in messages."""
    if path == "-":
        return 0, "stdin"
    with Naming(path or repr(path), "a file of jobs, or - for stdin"):
        fd = os.open(path, os.O_RDONLY)
    stack.callback(os.close, fd)
    return fd, path


def _open_output(path: str | None, source: int, stack: contextlib.ExitStack) -> tuple[int, str]:
    """The fd to write to and its name in messages. Truncates a file. Refuses the file of jobs."""
    if path in (None, "-"):
        return 1, "stdout"
    with Naming(f"--output {path}", "a file to write to"):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
        stack.callback(os.close, fd)
        found = os.fstat(fd)
        if stat.S_ISREG(found.st_mode):
            if os.path.samestat(found, os.fstat(source)):
                raise UsageError(f"--output {path}: the jobs are read from it", "name another")
            os.ftruncate(fd, 0)
    return fd, f"--output {path}"


class Batch:
    """Runs chunks of jobs one after the other, and counts failures."""

    def __init__(
        self, run: Callable[..., object], signals: Signals, output: Output, show: Show
    ) -> None:
        self._run = run
        self._signals = signals
        self._output = output
        self._show = show
        self._chunk: list[Entry] = []
        self._before = 0  # jobs of the chunks before this one
        self._size = 0  # bytes of output of this chunk
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
        try:
            self._run(jobs, progress=self._progress, each=self._each)
        finally:
            for job in jobs:
                if job.stdin is not None:
                    job.stdin.close()  # type: ignore[union-attr]  # Jobs opens files
        self._output.finish()

    def _each(self, index: int, result: Result) -> None:
        """The `each` callback of run_batch_by()."""
        self.failed += isinstance(result, Exception) or result.returncode != 0
        if not isinstance(result, SpawnError):
            self._size += len(result.stdout or b"") + len(result.stderr or b"")
        self._output.add(self._before + index, self._chunk[index].head, result)

    def _progress(self, done: int) -> None:
        """The `progress` callback of run_batch_by(). Raising here ends the running sandboxes."""
        look_for(self._signals)
        self._output.offer()
        self._show(self._before + done, self.failed)


@contextlib.contextmanager
def progress_bar(source: int, output: int, signals: Signals) -> Iterator[Show]:
    """A bar by `rich`, if that is installed, stderr is a terminal, and the output is not."""
    if not os.isatty(2) or os.isatty(output):
        yield _show_nothing
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    except ImportError:
        yield _show_nothing
        return
    with Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[failed]} failed"),
        console=Console(stderr=True),
        auto_refresh=False,
        redirect_stdout=False,
        redirect_stderr=False,
    ) as progress:
        task = progress.add_task("", total=_count(source, signals), rate="", failed=0)
        start = time.monotonic()

        def show(done: int, failed: int) -> None:
            rate = done / max(time.monotonic() - start, 1e-3)
            progress.update(task, completed=done, rate=f"{rate:.0f}/s", failed=failed)
            progress.refresh()

        yield show


def _show_nothing(done: int, failed: int) -> None:
    pass


def _count(source: int, signals: Signals) -> int | None:
    """The number of lines of a regular file; None for any other."""
    if not stat.S_ISREG(os.fstat(source).st_mode):
        return None
    place, lines, data = os.lseek(source, 0, os.SEEK_CUR), 0, b"\n"
    while more := os.read(source, 1 << 20):
        look_for(signals)
        data = more
        lines += data.count(b"\n")
    os.lseek(source, place, os.SEEK_SET)
    return lines if data.endswith(b"\n") else lines + 1
