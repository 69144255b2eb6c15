"""spawn() and the handle of a running sandbox, which behaves like subprocess.Popen."""

from __future__ import annotations

import errno
import io
import os
from _warnings import warn  # `warnings` itself takes longer to import

from fastns import _core
from fastns._args import check_timeout
from fastns._command import (
    Prepared,
    TextMode,
    Usage,
    cause_of,
    command,
    encode_input,
    exit_code,
    plan_of,
)
from fastns._light import GenericBase, S, overload
from fastns._stdio import DEVNULL, PIPE, STDOUT, StdioPlan, check_pass_fds
from fastns.errors import SpawnError, SpecError
from fastns.spec import Spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import IO, Any, Literal, Self, Unpack

    from fastns._command import Args, Cause
    from fastns._signatures import SpawnOfSpec, SpawnTextOfSpec
    from fastns._stdio import Stdio


__all__ = ["DEVNULL", "PIPE", "STDOUT", "Sandbox", "Usage", "spawn"]
SIGTERM = 15  # importing `signal` would import `enum`


@overload
def spawn(
    args: Args, *, text: Literal[True], **options: Unpack[SpawnTextOfSpec]
) -> Sandbox[str]: ...
@overload
def spawn(
    args: Args, *, text: Literal[False] | None = None, **options: Unpack[SpawnOfSpec]
) -> Sandbox[bytes]: ...
@overload
def spawn(
    args: Args, *, text: bool | None = None, **options: Unpack[SpawnTextOfSpec]
) -> Sandbox[Any]: ...
def spawn(
    args: Args,
    *,
    spec: Spec | _core.Plan | None = None,
    stdin: Stdio = None,
    stdout: Stdio = None,
    stderr: Stdio = None,
    text: bool | None = None,
    encoding: str | None = None,
    errors: str | None = None,
    pass_fds: Iterable[int] = (),
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
) -> Sandbox[Any]:
    """Starts `args` in a new sandbox and returns as soon as the command runs.

    Args:
        args: the command and its arguments. A command without a slash is looked up in the PATH of
            the sandbox, inside its root.
        spec: a Spec or a Plan; None: the host's system directories, read-only, in new namespaces.
        stdin, stdout, stderr: None (the caller's), PIPE, DEVNULL, an fd or a file; stderr also
            STDOUT.
        text, encoding, errors: text streams instead of binary ones, as in subprocess.
        pass_fds: fds that stay open under the same number; all others are closed.
        env: the whole environment, instead of the spec's.
        cwd: the working directory inside, instead of the spec's.
    Raises:
        SpecError: an argument is wrong; nothing was started.
        SpawnError: a step failed; `stage`, `op_index`, `errno`, `path` say which. Nothing is left.
    """
    plan = plan_of(spec)
    mode = TextMode.of(text, encoding, errors)
    argv, environ, directories, where = command(plan, args, env, cwd)
    keep = check_pass_fds(pass_fds)
    stdio = StdioPlan(stdin, stdout, stderr, owner=plan.pipe_owner)
    try:
        child = (stdio.fds[0], stdio.fds[1], stdio.fds[2])
        started = (argv, environ, directories, where, child, keep)
        if isinstance(spec, Prepared):
            process = spec.starter._start(*started, spec.extra)
        else:
            process = _core.spawn(plan, None, *started)
    except BaseException:
        stdio.close_all()
        raise
    stdio.close()
    return Sandbox(args, plan, process, stdio.parent, mode)


class Sandbox(GenericBase[S]):
    """A handle of a started sandbox, like subprocess.Popen.

    To type checkers it is Sandbox[str] if its streams are text, else Sandbox[bytes]; communicate()
    takes and returns the same type.

    Attributes: args, pid, pidfd (-1 once reaped), stdin, stdout, stderr (files for what was PIPE),
    returncode (None while it runs, -n after signal n), usage and wall_time (after its end), cause
    (as in CompletedSandbox, also "killed"; None while it runs), limits (the names of those that are
    enforced), method ("direct", "staged" or "template"), mount_namespace (as in CompletedSandbox)
    and id_map (how ids are mapped: "none", "self", "parent", "newuidmap", "range").

    As a context manager it waits at the end of the block. If the block raised, it kills the sandbox
    first. Dropping a handle while its sandbox runs ends the sandbox, with a ResourceWarning.
    """

    def __init__(
        self,
        args: Args,
        plan: _core.Plan,
        process: _core.Process,
        pipes: Sequence[_core.Fd | None] = (None, None, None),
        mode: TextMode | None = None,
    ) -> None:
        self.args = args
        self.pid = process.pid
        self.method = plan.method
        self.mount_namespace = plan.mount_namespace
        self.id_map = plan.id_map
        self.returncode: int | None = None
        self.usage: Usage | None = None
        self.wall_time: float | None = None
        self.cause: Cause | None = None
        self.limits = plan.limits
        self._plan = plan
        self._killed = False
        self._sent: frozenset[int] = frozenset()
        self._owner = os.getpid()
        self._lost = False  # its status: somebody else reaped it, or its server or reaper failed
        self._process = process
        self._mode = mode
        self._pipes: _core.Pipes | None = None
        self.stdin = _open_end(pipes[0], "wb", mode)
        self.stdout = _open_end(pipes[1], "rb", mode)
        self.stderr = _open_end(pipes[2], "rb", mode)

    @property
    def pidfd(self) -> int:
        """A pidfd of the sandbox's first process, for poll() and the like; -1 once reaped.

        If this process is short of fds, that of a template's sandbox is opened on first access.
        Raises: SpawnError, EMFILE when no fd is left."""
        return self._process.pidfd

    @property
    def exit_code(self) -> int | None:
        """The code a shell would show, 128+n after signal n; None while it runs."""
        return None if self.returncode is None else exit_code(self.returncode)

    @property
    def truncated(self) -> bool:
        """Whether communicate() has dropped output over the spec's max_output."""
        return self._pipes is not None and any(self._pipes.dropped)

    def poll(self) -> int | None:
        """The returncode if the sandbox has ended, else None.

        Raises: SpawnError, stage "wait" if another part of the process reaped it, "helper" if it
            was killed with its template's server, "init" if its reaper failed. The status is then
            lost: later calls raise stage "wait"."""
        if self.returncode is None:
            if self._lost:
                raise SpawnError("wait", errno.ECHILD)
            try:
                result = self._process.reap()
            except SpawnError as exc:
                self._lost = exc.stage == "init" or exc.errno in (errno.ECHILD, errno.ECANCELED)
                raise
            if result is not None:
                returncode, used, self.wall_time = result
                self.usage = Usage.of(used)
                self.cause = cause_of(
                    returncode,
                    used[-1],
                    killed=self._killed,
                    over=self._pipes is not None and self._pipes.over,
                    plan=self._plan,
                    signals=self._sent,
                )
                self.returncode = returncode  # last: other threads then see the rest, too
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Waits for the end. After `timeout` seconds it raises TimeoutExpired and kills nothing."""
        if self.returncode is None:
            timeout_ns = check_timeout(timeout)
            if not self._process.wait(timeout_ns):
                raise self._expired(timeout)
        code = self.poll()
        while code is None:  # another thread is reaping it
            self._process.wait()
            code = self.poll()
        return code

    def communicate(self, input: S | None = None, timeout: float | None = None) -> tuple[S, S]:
        """Writes `input`, reads stdout and stderr to their ends, and waits, without deadlock.

        A timeout raises TimeoutExpired, with the output so far, and kills nothing; a further call
        loses no output. As in subprocess, data that a read from `stdout` or `stderr` has buffered
        is missing: use either these files or communicate(). If max_output cuts text inside a
        character, that character is left out. With on_output_limit="kill" the sandbox is killed as
        soon as it has written more than max_output.
        """
        timeout_ns = check_timeout(timeout)
        if self._pipes is None:
            self._pipes = self._take_pipes(encode_input(input, self._mode))
        elif input is not None:
            raise ValueError("input was given to an earlier communicate()")
        self._close_files()
        if not self._pipes.run(timeout_ns):
            raise self._expired(timeout, *(self._pipes.output(which) or None for which in (1, 2)))
        if self._pipes.over and self._runs():
            self._check_kill(self._process.kill_all())
            self._pipes.finish()
        self.wait()
        return self._output(1), self._output(2)

    def send_signal(self, sig: int) -> None:
        """Sends a signal to the sandbox's first process. As pid 1 of a pid namespace it receives
        only SIGKILL, SIGSTOP and signals that it has a handler for. With init=True, init passes
        signals on to the command, which is not pid 1."""
        if self._runs():
            self._sent |= {sig}
            self._check_kill(self._process.kill(sig))

    def terminate(self) -> None:
        """Sends SIGTERM, as send_signal(). Without init=True it has no effect on a command that
        does not handle it; kill() always ends the sandbox."""
        self.send_signal(SIGTERM)

    def kill(self) -> None:
        """Kills every process of the sandbox at once: those of its pid namespace or, if it has none
        of its own, its first process and all descendants.
        A daemon that another process has adopted is no longer a descendant."""
        if self._runs():
            self._killed = True
            self._check_kill(self._process.kill_all())

    def _expired(self, timeout: float | None, *output: bytes | None) -> Exception:
        from fastns.results import TimeoutExpired  # imports subprocess

        assert timeout is not None
        decode = None if self._mode is None else self._mode.decode_partial
        partial = output if decode is None else [decode(data) for data in output]
        return TimeoutExpired(self.args, timeout, *partial)

    def _runs(self) -> bool:
        return not self._lost and self.poll() is None

    @staticmethod
    def _check_kill(error: int) -> None:
        # EBADF: another thread has reaped it; ESRCH: it has ended, and was not reaped here.
        if error not in (0, errno.ESRCH, errno.EBADF):
            raise OSError(error, os.strerror(error))

    # ---- pipes ----

    def _take_pipes(self, input: bytes) -> _core.Pipes:
        """Passes copies of the pipe ends to the C loop. The caller closes the files."""
        if input and self.stdin is None:
            raise SpecError("input", "stdin is not a pipe: spawn with stdin=PIPE")
        if input and self.stdin is not None and self.stdin.closed:
            raise ValueError("input was given, but stdin is closed")
        fds = [-1, -1, -1]
        self._kept = [self.stdout is not None, self.stderr is not None]
        for index, file in enumerate((self.stdin, self.stdout, self.stderr)):
            if file is not None and not file.closed:
                if index == 0:
                    _unless_broken(file.flush)
                fds[index] = file.fileno()
        limit = self._plan.max_output
        return _core.Pipes(self._process, fds[0], fds[1], fds[2], input, limit)

    def _close_files(self) -> None:
        for file in (self.stdout, self.stderr, self.stdin):
            if file is not None:
                _unless_broken(file.close)

    def _output(self, which: int) -> Any:
        if self._pipes is None or not self._kept[which - 1]:
            return None
        data = self._pipes.output(which)
        cut = self._pipes.dropped[which - 1] > 0
        return data if self._mode is None else self._mode.decode(data, cut)

    # ---- the end ----

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        if exc_type is not None:
            self.kill()
        self._close_files()
        if self._lost and exc_type is not None:
            return  # do not replace the exception
        try:
            self.wait()
        except BaseException:
            self._end()
            raise

    def __del__(self) -> None:
        if getattr(self, "_process", None) is None or self._owner != os.getpid():
            return
        try:
            if self.returncode is None and self._runs():
                warn(
                    f"sandbox {self.pid} was still running and was killed", ResourceWarning, 2, self
                )
                self._end()
        except SpawnError:  # its status is lost, but not needed
            pass

    def _end(self) -> None:
        self.kill()
        self._process.wait()
        if not self._lost:
            self.poll()

    def __repr__(self) -> str:
        state = "running" if self.returncode is None else f"returncode {self.returncode}"
        return f"<fastns.Sandbox pid {self.pid}, {state}: {self.args!r}>"


def _open_end(fd: _core.Fd | None, how: str, mode: TextMode | None) -> IO[Any] | None:
    if fd is None:
        return None
    try:
        file = fd.file(how)
    except OSError as exc:
        raise SpawnError("stdio", exc.errno or errno.EIO) from None
    if mode is None:
        return file
    return io.TextIOWrapper(
        file, encoding=mode.encoding, errors=mode.errors, write_through=how == "wb"
    )


def _unless_broken(call: Callable[[], object]) -> None:
    """Flushes or closes a file. A pipe without a reader is not an error, as in subprocess."""
    try:
        call()
    except BrokenPipeError:
        pass
