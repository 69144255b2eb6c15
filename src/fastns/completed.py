"""run(), and what becomes of it: the subclasses of subprocess' own classes.

Apart from sandbox.py so that `subprocess` is imported only where one of them is needed.
"""

from __future__ import annotations

import functools
import subprocess

from fastns._args import check_timeout
from fastns.errors import FastnsError, SpecError
from fastns.sandbox import PIPE, Usage, _TextMode, encode_input, exit_code, spawn

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping
    from typing import Any, TypedDict

    from fastns import _core
    from fastns._stdio import Stdio
    from fastns.sandbox import Args, Sandbox
    from fastns.spec import Spec

    Completed = subprocess.CompletedProcess[Any]

    class SpawnOptions(TypedDict, total=False):
        """What spawn() takes beside args and spec."""

        stdin: Stdio
        stdout: Stdio
        stderr: Stdio
        text: bool | None
        encoding: str | None
        errors: str | None
        env: Mapping[str, str] | None
        cwd: str | os.PathLike[str] | None

    class RunOptions(SpawnOptions, total=False):
        """What run() takes beside args and spec."""

        input: bytes | str | None
        capture_output: bool
        timeout: float | None
        check: bool
else:
    Completed = subprocess.CompletedProcess


class TimeoutExpired(FastnsError, subprocess.TimeoutExpired):
    """The time was over; stdout and stderr hold the output so far, as bytes."""


class CalledProcessError(FastnsError, subprocess.CalledProcessError):
    """check=True and a returncode other than 0."""


class CompletedSandbox(Completed):
    """A sandbox that has ended: args, returncode, stdout, stderr as in subprocess, and usage."""

    def __init__(
        self, args: Any, returncode: int, stdout: Any, stderr: Any, usage: Usage, wall_time: float
    ) -> None:
        super().__init__(args, returncode, stdout, stderr)
        self.usage = usage
        self.wall_time = wall_time  # seconds, from before the clone to the end

    @property
    def exit_code(self) -> int:
        """The code a shell would show: 128+n after signal n."""
        return exit_code(self.returncode)


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
) -> CompletedSandbox:
    """Runs `args` in a new sandbox to its end, as subprocess.run() does.

    Args: as spawn(), and
        input: what is written to its stdin; excludes stdin.
        capture_output: stdout=PIPE, stderr=PIPE; excludes both.
        timeout: seconds; then the whole sandbox is killed and reaped, and TimeoutExpired raised.
        check: a non-zero returncode raises CalledProcessError.
    Raises: as spawn(); TimeoutExpired and CalledProcessError carry the output so far.
    """
    return run_by(
        functools.partial(spawn, spec=spec),
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
    spawn: Callable[..., Sandbox],
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
    **others: Any,
) -> CompletedSandbox:
    """run() by a spawn() of some kind, which gets the streams, the text mode and `others`."""
    if input is not None:
        if stdin is not None:
            raise SpecError("stdin", "input is given: leave stdin out")
        stdin = PIPE
    if capture_output:
        if stdout is not None or stderr is not None:
            raise SpecError("capture_output", "leave stdout and stderr out, or leave it out")
        stdout = stderr = PIPE
    check_timeout(timeout)
    data = encode_input(input, _TextMode.of(text, encoding, errors))
    sandbox = spawn(
        args,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        text=text,
        encoding=encoding,
        errors=errors,
        **others,
    )
    with sandbox:
        try:
            sandbox._pipes = sandbox._take_pipes(data)
            out, err = sandbox.communicate(timeout=timeout)
        except TimeoutExpired as exc:
            sandbox.kill()
            exc.stdout, exc.stderr = sandbox._finish()
            raise
    returncode, usage, wall_time = sandbox.returncode, sandbox.usage, sandbox.wall_time
    assert returncode is not None
    assert usage is not None
    assert wall_time is not None
    if check and returncode:
        raise CalledProcessError(returncode, args, out, err)
    return CompletedSandbox(args, returncode, out, err, usage, wall_time)
