"""run(), and how it turns a command that has ended into a result or an error."""

from __future__ import annotations

import sys

from fastns import _core
from fastns._args import check_timeout
from fastns._command import (
    Completed,
    DecodeError,
    Prepared,
    TextMode,
    Usage,
    cause_of,
    command,
    encode_input,
    plan_of,
)
from fastns._light import overload
from fastns.errors import SpawnError, SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence
    from typing import Any, Literal, Unpack

    from fastns._command import Args
    from fastns._files import Files
    from fastns._signatures import RunOfSpec, RunTextOfSpec
    from fastns._stdio import Stdio
    from fastns.batch import Result
    from fastns.results import CompletedSandbox, TimeoutExpired
    from fastns.spec import Spec


class _Unlinked(Completed):
    """Stands in for CompletedSandbox until `subprocess`, the module of its base class, is imported,
    which takes longer than to import all of fastns. For isinstance(), pickle and copy it is a
    CompletedSandbox; only type() shows the difference."""

    @property  # type: ignore[misc]  # object's can be set
    def __class__(self) -> Any:
        return _linked()

    def check_returncode(self) -> None:
        _linked().check_returncode(self)

    def __reduce__(self) -> tuple[Any, ...]:
        import copyreg

        return copyreg.__newobj__, (_linked(),), vars(self)  # type: ignore[attr-defined]


_Unlinked.__name__ = _Unlinked.__qualname__ = "CompletedSandbox"
_class: type[Completed] = _Unlinked


def _linked() -> Any:
    """Imports CompletedSandbox and makes it the class of all further results."""
    global _class
    if _class is _Unlinked:
        from fastns.results import CompletedSandbox

        _class = CompletedSandbox
        _core.set_completed_class(_class)
    return _class


@overload
def run(
    args: Args, *, text: Literal[True], **options: Unpack[RunTextOfSpec]
) -> CompletedSandbox[str]: ...
@overload
def run(
    args: Args, *, text: Literal[False] | None = None, **options: Unpack[RunOfSpec]
) -> CompletedSandbox[bytes]: ...
@overload
def run(
    args: Args, *, text: bool | None = None, **options: Unpack[RunTextOfSpec]
) -> CompletedSandbox[Any]: ...
def run(
    args: Args,
    *,
    spec: Spec | _core.Plan | None = None,
    input: bytes | str | None = None,
    stdin: Stdio = None,
    stdout: Stdio = None,
    stderr: Stdio = None,
    capture_output: bool = False,
    text: bool | None = None,
    encoding: str | None = None,
    errors: str | None = None,
    timeout: float | None = None,
    check: bool = False,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    files: Files | None = None,
    outputs: Sequence[str] = (),
) -> CompletedSandbox[Any]:
    """Runs `args` in a new sandbox to its end, as subprocess.run() does.

    Args: as spawn(), and
        input: written to its stdin; excludes stdin.
        capture_output: the same as stdout=PIPE and stderr=PIPE; excludes both.
        timeout: seconds, after which the whole sandbox is killed and TimeoutExpired is raised.
        check: a non-zero returncode raises CalledProcessError.
        files: put into the sandbox before the command starts, owned by its user: a mapping of
            absolute paths inside to bytes, text, a Path, a binary file or a File. Missing
            directories above them are made.
        outputs: absolute paths inside. `files` of the result, and of TimeoutExpired, holds the
            content of each, up to max_output (or 256 MiB), or None if there is no such file.
    With files or outputs the command runs in a Container of its own: it is not pid 1.
    Raises: as spawn(); TimeoutExpired, with the output so far; CalledProcessError, with the output;
        DecodeError, a UnicodeDecodeError, when the output is not valid in the encoding
        (errors="replace" accepts any).
    """
    if _class is _Unlinked and "subprocess" in sys.modules:
        _linked()
    streams = (input, stdin, stdout, stderr, capture_output)
    mode = TextMode.of(text, encoding, errors)
    if files is None and not outputs:
        return checked(_ended(args, spec, streams, mode, timeout, env, cwd), check)
    from fastns._files import Transfers, run_with

    def run_in(container: Prepared) -> Result:
        return _ended(args, container, streams, mode, timeout, env, cwd)

    return checked(run_with(Transfers(files, outputs), spec, run_in), check)


def _ended(
    args: Args,
    spec: Spec | _core.Plan | Prepared | None,
    streams: tuple[bytes | str | None, Stdio, Stdio, Stdio, bool],
    mode: TextMode | None,
    timeout: float | None,
    env: Mapping[str, str] | None,
    cwd: str | os.PathLike[str] | None,
) -> Result:
    """The result, or the error that run() raises. streams: its arguments from input on."""
    input, stdin, stdout, stderr, capture_output = streams
    plan = plan_of(spec)
    starter = spec.starter if isinstance(spec, Prepared) else None
    timeout_ns = None if timeout is None else check_timeout(timeout)
    streams_given = input is not None or stdin is not None or stdout is not None
    extra = spec.extra if isinstance(spec, Prepared) else None
    plain = extra is None and not streams_given and stderr is None and env is None and cwd is None
    if plain and not plan.max_output:
        pipes = _core.PIPE_STDOUT | _core.PIPE_STDERR if capture_output else 0
        if starter is None:
            outcome = _core.run_plain(plan, None, args, pipes, timeout_ns)
        else:
            outcome = starter._run_plain(args, pipes, timeout_ns)
        if isinstance(outcome, Completed):
            return outcome
        if outcome is not None:
            return completed(args, plan, outcome, mode, timeout)
    from fastns._stdio import PIPE, RunStreams  # not needed by the fast path above

    if input is not None:
        if stdin is not None:
            raise SpecError("stdin", "input is given: leave stdin out")
        stdin = PIPE
    if capture_output:
        if stdout is not None or stderr is not None:
            raise SpecError("capture_output", "leave stdout and stderr out, or leave it out")
        stdout = stderr = PIPE
    data = encode_input(input, mode)
    argv, environ, directories, where = command(plan, args, env, cwd)
    opened = RunStreams(stdin, stdout, stderr)
    try:
        fds = (opened.fds[0], opened.fds[1], opened.fds[2])
        limit = plan.max_output
        item = (
            argv,
            environ,
            directories,
            where,
            fds,
            opened.pipes,
            data,
            timeout_ns,
            limit,
            extra,
        )
        outcome = _core.run(plan, None, item) if starter is None else starter._run(item)
    finally:
        opened.close()
    return completed(args, plan, outcome, mode, timeout)


def checked(done: Result, check: bool) -> CompletedSandbox:
    """Returns a result, or raises it if it is an error. check: raises CalledProcessError too."""
    if isinstance(done, Completed):
        if check and done.returncode:
            from fastns.results import CalledProcessError

            raise CalledProcessError(done.returncode, done.args, done.stdout, done.stderr)
        return done
    try:
        raise done
    finally:
        del done  # the error and this frame would keep each other alive


def completed(
    args: Args,
    plan: _core.Plan,
    outcome: _core._Outcome | SpawnError,
    mode: TextMode | None,
    timeout: float | None,
) -> Result:
    """Makes the result, or the error, of a command that has ended from what _core reports."""
    if isinstance(outcome, SpawnError):
        return outcome
    result, out, err, dropped, timed_out, over, reused, times = outcome
    returncode, used, wall = result
    truncated = any(dropped)
    cause = cause_of(returncode, used[-1], timed_out=timed_out, over=over, plan=plan)
    stdout: Any = out
    stderr: Any = err
    error: TimeoutExpired | DecodeError | None = None
    if timed_out:
        assert timeout is not None
        from fastns.results import TimeoutExpired

        partial = [data if mode is None else mode.decode_partial(data) for data in (out, err)]
        error = TimeoutExpired(args, timeout, *partial)
    elif mode is not None:
        try:
            stdout = None if out is None else mode.decode(out, dropped[0] > 0)
            stderr = None if err is None else mode.decode(err, dropped[1] > 0)
        except UnicodeDecodeError as exc:
            error = DecodeError(*exc.args)
            error.stdout, error.stderr = out, err
    if error is not None:
        error.returncode, error.cause = returncode, cause
        error.usage, error.wall_time = Usage.of(used), wall
        error.truncated, error.limits = truncated, plan.limits
        return error
    of_plan = (plan.limits, plan.id_map, plan.mount_namespace)
    done: Any = _class(
        args, returncode, stdout, stderr, used, wall, plan.method, truncated, cause, *of_plan
    )
    done._times = times
    if reused:
        done.reused = True
    ended: CompletedSandbox = done
    return ended


_core.set_completed_class(_class)
