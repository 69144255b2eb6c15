"""run(), and what becomes of it: the subclasses of subprocess' own classes.

Apart from sandbox.py so that `subprocess` is imported only where one of them is needed.
"""

from __future__ import annotations

import subprocess

from fastns import _core
from fastns._args import check_timeout
from fastns._cause import cause_of
from fastns._stdio import PIPE, RunStreams
from fastns._typing import S, overload
from fastns.errors import FastnsError, SpawnError, SpecError
from fastns.sandbox import (
    CLD_EXITED,
    Usage,
    _TextMode,
    command,
    encode_input,
    exit_code,
    plan_of,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    from collections.abc import Mapping
    from typing import Any, Literal, TypedDict, Unpack

    from fastns._cause import Cause, Counts
    from fastns._stdio import Stdio
    from fastns.batch import Result
    from fastns.sandbox import Args
    from fastns.spec import Spec
    from fastns.template import Template

    Used = tuple[float, float, int, bool, Counts | None]  # Usage.of()'s arguments

    class SpawnStreams(TypedDict, total=False):
        """What spawn() of a Template takes beside args and the kind of text."""

        stdin: Stdio
        stdout: Stdio
        stderr: Stdio
        env: Mapping[str, str] | None
        cwd: str | os.PathLike[str] | None

    class SpawnOptions(SpawnStreams, total=False):
        """What spawn() takes beside args and spec."""

        text: bool | None
        encoding: str | None
        errors: str | None

    class RunStreamOptions(SpawnStreams, total=False):
        """What run() of a Template takes beside args and the kind of text."""

        input: bytes | str | None
        capture_output: bool
        timeout: float | None
        check: bool

    class RunKind(RunStreamOptions, total=False):
        """What run() takes beside args and the kind of text."""

        spec: Spec | _core.Plan | None

    class RunOptions(SpawnOptions, RunStreamOptions, total=False):
        """What run() takes beside args and spec."""


PIPED = _core.PIPE_STDOUT | _core.PIPE_STDERR


class _Ended(FastnsError):
    """What CompletedSandbox has too: set when the sandbox has ended."""

    returncode: int | None = None
    usage: Usage | None = None
    wall_time: float | None = None
    truncated = False
    cause: Cause = "exited"
    limits: tuple[str, ...] = ()


class TimeoutExpired(_Ended, subprocess.TimeoutExpired):
    """The time was over; stdout and stderr hold the output so far (None: not captured).

    They are text if text was asked for: a character that was cut at the end is left out, and what
    is no such text is replaced by U+FFFD, so that no DecodeError hides the timeout.
    When the sandbox was ended for it (by run() and run_batch()), returncode, usage, wall_time,
    truncated and limits are as in CompletedSandbox; after Sandbox.wait() and communicate() it goes
    on. cause is "timeout".
    """

    cause: Cause = "timeout"
    if TYPE_CHECKING:
        stdout: Any
        stderr: Any


class DecodeError(_Ended, UnicodeDecodeError):
    """The output is no text of the encoding asked for; stdout and stderr hold it, as bytes.

    The sandbox has ended: returncode, usage and the like are as in CompletedSandbox.
    """

    stdout: bytes | None = None
    stderr: bytes | None = None


class CalledProcessError(FastnsError, subprocess.CalledProcessError):
    """check=True and a returncode other than 0."""


class CompletedSandbox(subprocess.CompletedProcess[S]):
    """A sandbox that has ended: args, returncode, stdout, stderr as in subprocess, and usage.

    To type checkers it is CompletedSandbox[str] of what was asked for as text, else of bytes.
    """

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
        super().__init__(args, returncode, stdout, stderr)
        self._used = usage
        self.wall_time = wall_time  # seconds, from before the clone to the end
        self.method = method  # how it was started: "direct", "staged" or "template"
        self.truncated = truncated  # whether max_output has cut stdout or stderr off
        self.cause = cause  # why it has ended, from evidence: "exited", "signaled", "oom", "pids",
        # "cpu_time", "output_limit" or "seccomp" (a call that the filter ends a process for, or,
        # which looks the same, a SIGSYS from inside: with init or the host's pid namespace)
        self.id_map = id_map  # whose ids it had, as in Sandbox
        self.mount_namespace = (
            mount_namespace  # how it began: "copied" (the caller's whole table of
        )
        # mounts), "tree" (the root alone: Linux 7.0), "template"; "host": it has none of its own
        self.limits = limits  # names of the spec's limits that were enforced

    @property
    def usage(self) -> Usage:
        """What it used; made when it is asked for."""
        used = self._used
        return used if isinstance(used, Usage) else Usage.of(*used)

    @property
    def exit_code(self) -> int:
        """The code a shell would show: 128+n after signal n."""
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


@overload
def run(
    args: Args,
    *,
    text: Literal[True],
    encoding: str | None = None,
    errors: str | None = None,
    **options: Unpack[RunKind],
) -> CompletedSandbox[str]: ...
@overload
def run(
    args: Args,
    *,
    text: Literal[False] | None = None,
    encoding: None = None,
    errors: None = None,
    **options: Unpack[RunKind],
) -> CompletedSandbox[bytes]: ...
@overload
def run(
    args: Args,
    *,
    text: bool | None = None,
    encoding: str | None = None,
    errors: str | None = None,
    **options: Unpack[RunKind],
) -> CompletedSandbox: ...
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
) -> CompletedSandbox[Any]:
    """Runs `args` in a new sandbox to its end, as subprocess.run() does.

    Args: as spawn(), and
        input: what is written to its stdin; excludes stdin.
        capture_output: stdout=PIPE, stderr=PIPE; excludes both.
        timeout: seconds; then the whole sandbox is killed and reaped, and TimeoutExpired raised.
        check: a non-zero returncode raises CalledProcessError.
    Raises: as spawn(); TimeoutExpired and CalledProcessError carry the output so far. DecodeError,
        a UnicodeDecodeError, when the output is no such text (errors="replace" takes any).
    """
    plan = plan_of(spec)
    return run_by(
        None,
        plan,
        args,
        input=input,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        capture_output=capture_output,
        text=text,
        encoding=encoding,
        errors=errors,
        timeout=timeout,
        check=check,
        env=env,
        cwd=cwd,
    )


def run_by(
    template: Template | None,
    plan: _core.Plan,
    args: Args,
    *,
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
) -> CompletedSandbox:
    """run() by a template, whose sandbox the plan is, or without one."""
    timeout_ns = None if timeout is None else check_timeout(timeout)
    mode = _TextMode.of(text, encoding, errors)
    streams_given = input is not None or stdin is not None or stdout is not None
    plain = not streams_given and stderr is None and env is None and cwd is None
    if plain and not plan.max_output:
        pipes = PIPED if capture_output else 0
        if template is None:
            outcome = _core.run_plain(plan, None, args, pipes, timeout_ns)
        else:
            outcome = template._run_plain(args, pipes, timeout_ns)
        if isinstance(outcome, CompletedSandbox):
            return outcome
        if outcome is not None:
            return checked(completed(args, plan, outcome, mode, timeout), check)
    if input is not None:
        if stdin is not None:
            raise SpecError("stdin", "input is given: leave stdin out")
        stdin = PIPE
    if capture_output:
        if stdout is not None or stderr is not None:
            raise SpecError("capture_output", "leave stdout and stderr out, or leave it out")
        stdout = stderr = PIPE
    data = encode_input(input, mode)
    argv, environ, paths, directory = command(plan, args, env, cwd)
    streams = RunStreams(stdin, stdout, stderr)
    try:
        fds = (streams.fds[0], streams.fds[1], streams.fds[2])
        limit = plan.max_output
        item = (argv, environ, paths, directory, fds, streams.pipes, data, timeout_ns, limit)
        outcome = _core.run(plan, None, item) if template is None else template._run(item)
    finally:
        streams.close()
    return checked(completed(args, plan, outcome, mode, timeout), check)


def checked(done: Result, check: bool) -> CompletedSandbox:
    if isinstance(done, CompletedSandbox):
        if check and done.returncode:
            raise CalledProcessError(done.returncode, done.args, done.stdout, done.stderr)
        return done
    try:
        raise done
    finally:
        del done  # or the error and this frame would keep each other


def completed(
    args: Args,
    plan: _core.Plan,
    outcome: _core._Outcome | SpawnError,
    mode: _TextMode | None,
    timeout: float | None,
) -> Result:
    """What a command that was run to its end has come to."""
    if isinstance(outcome, SpawnError):
        return outcome
    result, out, err, dropped, timed_out, over = outcome
    code, status, user, system, max_rss, exact, wall, counts = result
    returncode = status if code == CLD_EXITED else -status
    used = (user, system, max_rss, exact, counts)
    truncated = any(dropped)
    cause = cause_of(returncode, counts, timed_out=timed_out, over=over, plan=plan)
    stdout: Any = out
    stderr: Any = err
    error: TimeoutExpired | DecodeError | None = None
    if timed_out:
        assert timeout is not None
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
        error.returncode = returncode
        error.usage = Usage.of(*used)
        error.wall_time = wall
        error.truncated = truncated
        error.cause = cause
        error.limits = plan.limits
        return error
    return CompletedSandbox(
        args,
        returncode,
        stdout,
        stderr,
        used,
        wall,
        plan.method,
        truncated=truncated,
        cause=cause,
        limits=plan.limits,
        id_map=plan.id_map,
        mount_namespace=plan.mount_namespace,
    )


_core.set_completed_class(CompletedSandbox)
