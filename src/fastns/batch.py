"""spawn_batch() and run_batch(): many sandboxes in one call. A loop in C runs the list of jobs."""

from __future__ import annotations

import os
from _collections_abc import Iterable, Mapping, Sequence

from fastns import _core
from fastns._args import check_timeout, check_whole, shown, wrong
from fastns._command import Prepared, TextMode, command, encode_input, plan_of
from fastns._light import S, overload, record
from fastns._run import completed
from fastns._stdio import RunStreams, is_open, open_null
from fastns.errors import SpawnError, SpecError
from fastns.sandbox import Sandbox

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import IO, Any, Literal, TypeAlias, Unpack

    from fastns._command import Args, DecodeError
    from fastns._files import Files, Transfers
    from fastns._signatures import BatchOfSpec, BatchTextOfSpec
    from fastns.results import CompletedSandbox, TimeoutExpired
    from fastns.spec import Spec

    Result: TypeAlias = CompletedSandbox[S] | SpawnError | TimeoutExpired | DecodeError


@record(frozen=True)
class Job:
    """One item of a batch. The fields are arguments of run().

    A job with files or outputs runs in a Container of its own. stdin is a file or an fd, which
    stays the caller's; without stdin and input, stdin is empty.
    """

    args: Args
    input: bytes | str | None = None
    stdin: int | IO[Any] | None = None
    env: Mapping[str, str] | None = None
    cwd: str | os.PathLike[str] | None = None
    timeout: float | None = None
    files: Files | None = None
    outputs: Sequence[str] = ()


NOT_SPAWNED = ("input", "timeout", "files", "outputs")

if TYPE_CHECKING:
    Jobs: TypeAlias = Iterable[Job | Args]


def spawn_batch(
    jobs: Jobs, *, spec: Spec | _core.Plan | None = None, concurrency: int | None = None
) -> list[Sandbox | SpawnError]:
    """Starts every job, with the caller's stdin, stdout and stderr.

    Args:
        jobs: argv lists or Jobs, with only args, env, cwd and stdin.
        concurrency: how many are started at a time (default: the CPUs this process may use).
    Returns: a Sandbox or a SpawnError for each job, in order; one failure never stops the others.
    Raises: SpecError, naming the job, before anything is started. SpawnError, stage "stdio", when
        there are no fds left for the batch itself.
    """
    plan, server, extra = _origin(spec)
    listed = _jobs(jobs)
    for i, job in enumerate(listed):
        given = [name for name in NOT_SPAWNED if getattr(job, name) != getattr(Job, name)]
        if given:
            value = getattr(job, given[0])
            raise wrong(f"jobs[{i}].{given[0]}", value, "none, which only run_batch() takes")
    with open_null() as null:
        stdio = [-1 if is_open(fd) else null.fileno() for fd in (0, 1, 2)]
        streams = (stdio[0], stdio[1], stdio[2])
        items = [_item(plan, i, job, None, streams, 0, extra=extra) for i, job in enumerate(listed)]
        outcomes = _core.spawn_batch(plan, server, items, _concurrency(concurrency))
    return [
        outcome if isinstance(outcome, SpawnError) else Sandbox(job.args, plan, outcome)
        for job, outcome in zip(listed, outcomes, strict=True)
    ]


@overload
def run_batch(
    jobs: Jobs, *, text: Literal[True], **options: Unpack[BatchTextOfSpec]
) -> list[Result[str]]: ...
@overload
def run_batch(
    jobs: Jobs, *, text: Literal[False] | None = None, **options: Unpack[BatchOfSpec]
) -> list[Result[bytes]]: ...
@overload
def run_batch(
    jobs: Jobs, *, text: bool | None = None, **options: Unpack[BatchTextOfSpec]
) -> list[Result[Any]]: ...
def run_batch(
    jobs: Jobs,
    *,
    spec: Spec | _core.Plan | None = None,
    concurrency: int | None = None,
    timeout: float | None = None,
    capture_output: bool = True,
    text: bool | None = None,
    encoding: str | None = None,
    errors: str | None = None,
    max_output: int | None = None,
) -> list[Result]:
    """Runs every job to its end, at most `concurrency` at once.

    Args:
        jobs: argv lists or Jobs. Without `input` a job's stdin is empty.
        concurrency: how many may be alive at once (default: the CPUs this process may use).
        timeout: seconds for each job that has none of its own.
        capture_output: keep stdout and stderr in the results; otherwise jobs share the caller's.
        text, encoding, errors: text instead of bytes, as in run().
        max_output: bytes kept of each job's stdout and of its stderr (None: the spec's). The rest
            is read and dropped, and `truncated` of the result is True.
    Returns: for each job, in order, a CompletedSandbox, SpawnError, TimeoutExpired (with the output
        so far) or DecodeError (with all of it). One failure never stops the others.
    Raises: SpecError, naming the job, before anything is started. SpawnError, stage "stdio", when
        there are no fds left for the batch itself. KeyboardInterrupt, after every running sandbox
        was killed and reaped.
    """
    mode = TextMode.of(text, encoding, errors)
    return run_batch_by(spec, jobs, concurrency, timeout, capture_output, mode, max_output)


def run_batch_by(
    spec: Spec | _core.Plan | Prepared | None,
    jobs: Jobs,
    concurrency: int | None = None,
    timeout: float | None = None,
    capture_output: bool = True,
    mode: TextMode | None = None,
    max_output: int | None = None,
    progress: Callable[[int], object] | None = None,
    each: Callable[[int, Result], object] | None = None,
) -> list[Result]:
    """run_batch() with callbacks, which are called in this thread.

    `progress` is called from time to time with the number of finished jobs. With `each`, every job
    that has finished since is passed to each(i, result) first, and the returned list is empty.
    """
    plan, server, extra = _origin(spec)
    limit = plan.max_output
    if max_output is not None:
        limit = check_whole("max_output", max_output, 1, 2**63 - 1)
    listed = _jobs(jobs)
    pipes = _core.PIPE_STDOUT | _core.PIPE_STDERR if capture_output else 0

    def result(index: int, outcome: _core._Outcome | SpawnError) -> Result:
        job = listed[index]
        own = timeout if job.timeout is None else job.timeout
        return completed(job.args, plan, outcome, mode, own)

    def pass_on(index: int, outcome: _core._Outcome | SpawnError) -> None:
        assert each is not None
        each(index, result(index, outcome))

    with open_null() as file:
        null = file.fileno()
        stdio = (null, -1 if is_open(1) else null, -1 if is_open(2) else null)
        items = [
            _item(plan, i, job, mode, stdio, pipes, timeout, limit, extra)
            for i, job in enumerate(listed)
        ]
        if any(job.files is not None or job.outputs for job in listed):
            return _run_with_files(
                spec, listed, items, _concurrency(concurrency), result, progress, each
            )
        outcomes = _core.run_batch(
            plan,
            server,
            items,
            _concurrency(concurrency),
            progress,
            None if each is None else pass_on,
        )
    return [result(i, outcome) for i, outcome in enumerate(outcomes)]


def _run_with_files(
    spec: Spec | _core.Plan | Prepared | None,
    jobs: list[Job],
    items: list[_core._Item],
    concurrency: int,
    result: Callable[[int, _core._Outcome | SpawnError], Result],
    progress: Callable[[int], object] | None,
    each: Callable[[int, Result], object] | None,
) -> list[Result]:
    """As run_batch_by(), in threads. Jobs without files run as ever."""
    from fastns._files import Transfers, run_all, run_with

    transfers = [_transfers_of(i, job, Transfers) for i, job in enumerate(jobs)]
    results: list[Any] = [None] * len(jobs)

    def run_one(index: int, check: Callable[[int], None]) -> Result:
        def run_in(inside: Spec | _core.Plan | Prepared | None) -> Result:
            plan, server, extra = _origin(inside)
            item = (*items[index][:-1], extra)
            return result(index, _core.run_batch(plan, server, [item], 1, check)[0])

        of_job = transfers[index]
        try:
            return run_in(spec) if of_job is None else run_with(of_job, spec, run_in)
        except SpawnError as exc:
            return exc
        except SpecError as exc:
            raise SpecError(f"jobs[{index}].{exc.field}", exc.reason) from None

    done = 0
    for ended in run_all(len(jobs), concurrency, run_one):
        for index, one in ended:
            if each is None:
                results[index] = one
            else:
                each(index, one)
        done += len(ended)
        if progress is not None:
            progress(done)
    return results if each is None else []


def _transfers_of(index: int, job: Job, kind: type[Transfers]) -> Transfers | None:
    if job.files is None and not job.outputs:
        return None
    try:
        return kind(job.files, job.outputs)
    except SpecError as exc:
        raise SpecError(f"jobs[{index}].{exc.field}", exc.reason) from None


def _origin(
    spec: Spec | _core.Plan | Prepared | None,
) -> tuple[_core.Plan, _core.Server | None, _core._Extra | None]:
    """The plan of the sandboxes, the server that starts them, if there is one, and what is
    special about a command of a container."""
    if isinstance(spec, Prepared):
        return spec.plan, spec.starter._running(), spec.extra
    return plan_of(spec), None, None


def _jobs(jobs: object) -> list[Job]:
    if isinstance(jobs, str | bytes | Mapping) or not isinstance(jobs, Iterable):
        raise SpecError("jobs", f"{shown(jobs)}: expected a list of argv lists or Jobs")
    return [_job(i, item) for i, item in enumerate(jobs)]


def _job(index: int, item: object) -> Job:
    if isinstance(item, Job):
        return item
    if isinstance(item, Sequence) and not isinstance(item, str | bytes):
        return Job(item)
    raise SpecError(f"jobs[{index}]", f"{shown(item)}: expected an argv list or a Job")


def _item(
    plan: _core.Plan,
    index: int,
    job: Job,
    mode: TextMode | None,
    stdio: tuple[int, int, int],
    pipes: int,
    timeout: float | None = None,
    limit: int = 0,
    extra: _core._Extra | None = None,
) -> _core._Item:
    try:
        argv, environ, directories, cwd = command(plan, job.args, job.env, job.cwd)
        timeout_ns = check_timeout(job.timeout if job.timeout is not None else timeout)
        if job.input is not None:
            pipes |= _core.PIPE_STDIN
        if job.stdin is not None:
            stdio = (_stdin_of(job), *stdio[1:])
        data = encode_input(job.input, mode)
        return argv, environ, directories, cwd, stdio, pipes, data, timeout_ns, limit, extra
    except SpecError as exc:
        raise SpecError(f"jobs[{index}].{exc.field}", exc.reason) from None


def _stdin_of(job: Job) -> int:
    if job.input is not None:
        raise SpecError("stdin", "input is given: leave stdin out")
    streams = RunStreams(job.stdin, None, None)
    if streams.pipes or streams.fds[0] < 0 or (isinstance(job.stdin, int) and job.stdin < 0):
        streams.close()
        raise wrong("stdin", job.stdin, "an open fd or a file")
    return streams.fds[0]


def _concurrency(value: int | None) -> int:
    if value is None:
        return len(os.sched_getaffinity(0))
    return check_whole("concurrency", value, 1, 4096)
