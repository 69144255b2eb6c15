"""`fastns batch`: many commands, each in a sandbox of its own; jobs and results are JSON lines.

Theory of operation. A chunk of jobs is read and checked as a whole (_jobs.py), then run by one call
into the C core, which hands each result out soon after its sandbox has ended. Results are written
in the order of the jobs (_results.py), while sandboxes run only as far as the reader keeps up:
nothing may wait then, or the C loop would miss its deadlines. Signals do not interrupt: every poll
of this process looks for them.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import stat

from fastns.cli import EXIT_FAILED, UsageError, complain
from fastns.cli._errors import complain_of
from fastns.cli._flags import ONE, SWITCH, add_flags, add_sandbox_flags, spec_of
from fastns.cli._jobs import Jobs
from fastns.cli._results import Output, progress_bar
from fastns.cli._signals import Signals, Stopped, look_for
from fastns.cli._values import duration, whole_number
from fastns.errors import FastnsError, SpawnError, SpecError
from fastns.limits import parse_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeAlias

    from fastns import Spec
    from fastns.batch import Result
    from fastns.cli._jobs import Entry
    from fastns.cli._parser import Parser
    from fastns.cli._results import Bar

    Runner: TypeAlias = Callable[..., object]

EXIT_SOME_FAILED = 1
CHUNK = 1000
"""Jobs that are read, checked and run together; more when more than half of it run at once."""
CHUNK_OUTPUT = 256 << 20
"""Bytes that the next chunk may come to, if its jobs write as much as those of the last one."""
MAX_CONCURRENCY = 4096
MAX_OUTPUT = "16m"

CONTROL = (
    (ONE, "-j --concurrency", "N", "run this many at once (default: the number of CPUs)"),
    (ONE, "--timeout", "TIME", "end a job's sandbox after 2s, 500ms, 1m30s, ..."),
    (ONE, "--max-output", "BYTES", "keep at most this much of each stdout and stderr: 64k, 1m "
     "(default: 16m)"),
    (ONE, "--on-output-limit", "truncate|kill", "what to do with output beyond --max-output: drop "
     "it and go on (truncate, the default), or end the sandbox (kill)"),
    (ONE, "-o --output", "FILE", "write the results to FILE (default: stdout)"),
    (SWITCH, "--verbose", "", "say on stderr how the sandboxes are started"),
)  # fmt: skip
EPILOG = """\
FILE has one job per line: a JSON object with these keys, or just the list that
would be its args.
  args     required: the command and its arguments, a list of strings
  input    text for its stdin (default: empty)
  env      an object of variables, which override those of the options
  cwd      its working directory inside (default: --workdir)
  timeout  seconds, a number (default: --timeout)
  id       any value; it is copied to the result

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


def add_parser(subparsers: argparse._SubParsersAction[Parser]) -> None:
    """Add the `batch` verb."""
    parser = subparsers.add_parser(
        "batch",
        usage="fastns batch [OPTIONS] FILE",
        description="Run many commands, each in a sandbox of its own. Jobs and results are JSON "
        "lines.",
        epilog=EPILOG,
    )
    parser.add_argument("jobs", metavar="FILE", help="the jobs, one per line; -: stdin")
    add_flags(parser.add_argument_group("the batch itself"), CONTROL)
    add_sandbox_flags(parser)


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
        "timeout": duration("--timeout", flags.timeout),
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
            bar = stack.enter_context(progress_bar(source, target, signals))
            batch = Batch(functools.partial(run, **options), signals, output, bar)
            jobs = Jobs(source, name, signals, spec.environment())
            while chunk := jobs.read(batch.limit(concurrency)):
                batch.run(chunk)
        except Stopped as stop:
            with contextlib.suppress(Stopped):  # a second signal: its reader may be stuck
                output.finish()
            return 128 + stop.number
    return EXIT_SOME_FAILED if batch.failed else 0


def _concurrency(text: str | None) -> int:
    if text is None:
        return len(os.sched_getaffinity(0))
    return whole_number("--concurrency", text, MAX_CONCURRENCY, "for example: -j 8")


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
        """Run these jobs to their end and write all of their results."""
        self._before += len(self._chunk)
        self._chunk = chunk
        self._size = 0
        jobs = [entry.job for entry in chunk]
        self._run(jobs, progress=self._progress, each=self._each)
        self._output.finish()

    def _each(self, index: int, result: Result) -> None:
        """The `each` of run_batch_by()."""
        self.failed += isinstance(result, Exception) or result.returncode != 0
        if not isinstance(result, SpawnError):
            self._size += len(result.stdout or b"") + len(result.stderr or b"")
        self._output.add(self._before + index, self._chunk[index].head, result)

    def _progress(self, done: int) -> None:
        """The `progress` of run_batch_by(). What it raises ends the sandboxes that run."""
        look_for(self._signals)
        self._output.offer()
        if self._bar is not None:
            self._bar.show(self._before + done, self.failed)
