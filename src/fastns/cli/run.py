"""`fastns run`: one command in one sandbox, and an exit code that says how it ended.

Theory of operation. The flags become a Spec (_flags.py). fastns.spawn() starts the command with
this process's stdin, stdout and stderr, and this process waits. SIGTERM and SIGHUP end the sandbox.
Ctrl-C reaches the command through the terminal, so it ends the sandbox only if the command neither
catches nor ignores it. With --max-output, two threads pass the output on (Relay), and this process
waits for them at the end. After a timeout or a signal, it waits only as long as the reader of the
output keeps reading.
"""

from __future__ import annotations

import errno
import os
import select
import time

from fastns._light import record
from fastns.cli import EXIT_FAILED, EXIT_TIMEOUT, UsageError, advise, complain, say, whole
from fastns.cli._flags import GROUPS, PROCESS, add_sandbox_flags, spec_of
from fastns.cli._options import ONE, SWITCH
from fastns.cli._signals import SIGINT, SIGKILL, Signals, signal_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import IO, Any

    from fastns import Sandbox, Spec
    from fastns.cli._parser import Parser

EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127

LONGEST_POLL = 86_400_000.0  # milliseconds; poll(2) takes an int
CHUNK = 1 << 16
PATIENCE = 0.2  # seconds to wait, after a kill, for a reader that does not read

ACCEPTED = (
    (SWITCH, "-i --interactive", "", "does nothing: stdin is always connected"),
    (SWITCH, "-t --tty", "", "not available yet: a terminal of its own"),
    (SWITCH, "--rm", "", "does nothing: nothing is ever left behind"),
)
"""Flags that users of docker are used to."""
CONTROL = (
    (ONE, "--timeout", "TIME", "end the sandbox after 2s, 500ms, 1m30s, ..."),
    (ONE, "--max-output", "BYTES", "pass on at most this much of stdout and of stderr: 64k, 1m"),
    (ONE, "--on-output-limit", "truncate|kill", "what to do with output beyond --max-output: drop "
     "it and let the command continue (truncate, the default), or end the sandbox (kill)"),
    (ONE, "--status-fd", "N", "write one JSON object to this open fd at the end. It must not lead "
     "to a file that the command has open, such as its stdout"),
    (SWITCH, "--dry-run", "", "print the steps in order, one per line, and start nothing"),
)  # fmt: skip


FLAGS = {**GROUPS, "process": (*PROCESS, *ACCEPTED), "execution and output": CONTROL}
USAGE = "fastns run [OPTIONS] [--] COMMAND [ARG...]"
ABOUT = (
    "Run one command in a sandbox of its own. Without options the command sees the host's system "
    "directories, read-only, an empty /tmp, no network but lo, and none of the caller's "
    "environment. Options that add something, such as -v and -e, may be repeated."
)
EPILOG = """\
examples:
  fastns run -- ls /
  fastns run -v "$PWD":/src:ro -w /src --timeout 10s -- make check
  fastns run --memory 512m --pids-limit 100 --cpus 1 -- python3 -c 'print(1)'
  fastns run --rootfs ./rootfs --overlay -- bash

Exit code: the command's own; 128+n if signal n ended it; 124 on --timeout; 125
if fastns itself fails; 126 if the command is not executable; 127 if it is not
found. 137 may be a limit: `cause` of --status-fd says which one, if any.
"""


def declare(parser: Parser) -> None:
    parser.options_first = True
    parser.keeps_error = True  # --status-fd reports a wrong flag, too
    add_sandbox_flags(parser, FLAGS)


@record(frozen=True)
class Outcome:
    """How a run ended, as `--status-fd` reports it.

    Attributes:
        cause: "exited", "signaled", "timeout", "oom", "pids" or "cpu_time" (over such a limit),
            "output_limit" (over --max-output, with --on-output-limit kill), "seccomp", "killed"
            (by a signal to fastns) or "failed" (exit codes 125 to 127).
        signal: the name of the signal that exit_code stands for: the one that ended the command
            or, when cause is "killed", the one sent to fastns.
        wall_time: seconds.
        limits: the names of the limits that were enforced; None if nothing ran.
        truncated: whether --max-output cut off stdout or stderr.
        error: a failure's stage, errno and path (each may be None), and its message.
    """

    exit_code: int
    cause: str
    signal: str | None = None
    usage: dict[str, float] | None = None
    wall_time: float | None = None
    limits: tuple[str, ...] | None = None
    truncated: bool = False
    error: dict[str, Any] | None = None


def main(flags: argparse.Namespace) -> int:
    status_fd = _status_fd(flags.status_fd)
    try:
        outcome = _perform(flags)
    except UsageError as error:
        complain(error.message, error.hint)
        outcome = _failed(EXIT_FAILED, error)
    if outcome is None:
        return 0
    if status_fd is not None:
        _write_status(status_fd, outcome)
    return outcome.exit_code


def _perform(flags: argparse.Namespace) -> Outcome | None:
    """Runs the command, or prints the steps of a dry run and returns None. An expected failure is
    an Outcome, too."""
    import fastns

    if flags.wrong is not None:
        raise flags.wrong
    if flags.tty:
        raise UsageError("-t is not available yet", "leave it out: stdin is always connected")
    if not flags.command:
        raise UsageError("no command to run", "for example: fastns run -- sh -c 'echo hello'")
    timeout = None
    if flags.timeout is not None:
        from fastns.cli._values import duration

        timeout = duration("--timeout", flags.timeout)
    try:
        spec = spec_of(flags, os.environ, extra_env=_terminal(flags))
        if not flags.dry_run:
            return _run(flags.command, spec, timeout)
        steps = fastns.compile(spec).describe()
    except (fastns.FastnsError, OSError) as error:
        from fastns.cli._docker import hint_of_image
        from fastns.cli._errors import complain_of

        code = _failure_code(error)
        hint = hint_of_image(flags.command[0]) if code == EXIT_NOT_FOUND else None
        complain_of(error, "run", hint)
        return _failed(code, error)
    say("\n".join(steps))
    return None


def _terminal(flags: argparse.Namespace) -> dict[str, str]:
    """TERM, if stdin is a terminal and the flags do not set it: the caller's value, or a similar
    one that the root has an entry for."""
    term = os.environ.get("TERM")
    if term is None or not os.isatty(0):
        return {}
    from fastns._terminfo import term_of
    from fastns.cli._values import environment_has

    if environment_has(flags, "TERM"):
        return {}
    return {"TERM": term_of(flags.rootfs or "/", term)}


def _failure_code(error: Exception) -> int:
    if getattr(error, "stage", None) != "exec":
        return EXIT_FAILED
    missing = getattr(error, "errno", None) in (errno.ENOENT, errno.ENOTDIR)
    return EXIT_NOT_FOUND if missing else EXIT_NOT_EXECUTABLE


def _failed(code: int, error: Exception) -> Outcome:
    details = {name: getattr(error, name, None) for name in ("stage", "errno", "path")}
    if isinstance(details["path"], bytes):
        details["path"] = os.fsdecode(details["path"])
    return Outcome(code, "failed", error=details | {"message": str(error)})


def _run(command: list[str], spec: Spec, timeout: float | None) -> Outcome:
    """Start the command and wait for its end, the time limit, or a signal to fastns."""
    import fastns

    with Signals() as signals:
        pipes: Any = {"stdout": fastns.PIPE, "stderr": fastns.PIPE} if spec.max_output else {}
        sandbox = fastns.spawn(command, spec=spec, **pipes)
        over = os.eventfd(0) if spec.max_output and spec.on_output_limit == "kill" else None
        outputs = ((sandbox.stdout, 1), (sandbox.stderr, 2)) if spec.max_output else ()
        limit = int(spec.max_output or 0)
        relays = [Relay(file, sink, limit, over) for file, sink in outputs if file is not None]
        cause, number = _wait(sandbox, signals, timeout, over, spec.init)
        if cause != "ended":
            sandbox.kill()
        returncode = sandbox.wait()
        # The command got an earlier Ctrl-C, too, so that is no reason to stop.
        before = [number for number in signals.take() if number != SIGINT]
        patience = None if cause == "ended" else PATIENCE
        stop = before[0] if before else _finish(relays, signals, patience)
        if stop and cause == "ended":
            cause, number = "killed", stop
    truncated = any(relay.dropped or relay.thread.is_alive() for relay in relays)
    if cause == "ended":
        is_over = over is not None and any(relay.dropped for relay in relays)
        cause = "output_limit" if is_over else sandbox.cause or "ended"
    if cause == "killed":
        exit_code = 128 + number
    elif cause == "timeout":
        exit_code, number = EXIT_TIMEOUT, SIGKILL
    elif returncode < 0:
        exit_code, number = 128 - returncode, -returncode
    else:
        exit_code = returncode
    if cause == "exited" and exit_code:
        _say_what_is_missing(command, spec)
    return Outcome(
        exit_code,
        cause,
        signal=signal_name(number) if number else None,
        usage=None if sandbox.usage is None else sandbox.usage.as_dict(),
        wall_time=sandbox.wall_time,
        limits=sandbox.limits,
        truncated=truncated,
    )


def _say_what_is_missing(command: list[str], spec: Spec) -> None:
    """Prints a hint if an argument names a file of the host that the sandbox does not see."""
    import fastns
    from fastns import _view

    view = fastns.compile(spec).view
    hint = None if view is None else _view.hint_of_arguments(command[1:], view)
    if hint is not None:
        from fastns.cli._errors import in_flags

        advise(in_flags(hint))


class Relay:
    """A thread that reads `source` to its end and writes the first `limit` bytes to `sink`.

    `over`, if not None, is an eventfd that the thread signals when there are more bytes.
    """

    def __init__(self, source: IO[bytes], sink: int, limit: int, over: int | None) -> None:
        import threading  # slow to import, and only needed with --max-output

        self.dropped = 0  # bytes
        self.done = 0  # bytes read plus bytes written
        self._source = source
        self._sink = sink
        self._left = limit
        self._over = over
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while chunk := os.read(self._source.fileno(), CHUNK):
            self.done += len(chunk)
            kept, self._left = chunk[: self._left], max(0, self._left - len(chunk))
            self.dropped += len(chunk) - len(kept)
            if self.dropped and self._over is not None:
                os.eventfd_write(self._over, 1)
                self._over = None
            if kept and not self._write(memoryview(kept)):
                break
        self._source.close()

    def _write(self, data: memoryview) -> bool:
        """False if the reader is gone. Closing the source then gives the command SIGPIPE."""
        try:
            while data:
                written = os.write(self._sink, data[: select.PIPE_BUF])  # small: `done` is current
                self.done += written
                data = data[written:]
        except OSError:
            return False
        return True


def _finish(relays: list[Relay], signals: Signals, patience: float | None) -> int:
    """Waits until all output is passed on, or no byte has moved for `patience` seconds, or a signal
    arrives. Returns the signal, or 0."""
    before, since = -1, 0.0
    for relay in relays:
        while relay.thread.is_alive():
            for number in signals.take():
                return number
            done = sum(each.done for each in relays)
            if done != before:
                before, since = done, time.monotonic()
            elif patience is not None and time.monotonic() - since > patience:
                return 0
            relay.thread.join(0.05)
    return 0


def _wait(
    sandbox: Sandbox, signals: Signals, timeout: float | None, over: int | None, has_init: bool
) -> tuple[str, int]:
    """Waits until the sandbox ends, `timeout` seconds pass, `over` is readable, or a signal ends
    the run.

    Returns ("ended", 0), ("timeout", 0), ("output_limit", 0) or ("killed", the signal)."""
    deadline = None if timeout is None else time.monotonic() + timeout
    poll = select.poll()
    for fd in (sandbox.pidfd, signals.pipe, over):
        if fd is not None:
            poll.register(fd, select.POLLIN)
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        ready = dict(poll.poll(None if left is None else min(left, LONGEST_POLL)))
        if sandbox.pidfd in ready:
            return "ended", 0
        if over in ready:
            return "output_limit", 0
        if left == 0:
            return "timeout", 0
        for number in signals.take():
            # SIGINT is left to a command that handles it; a terminal sends it only to commands in
            # this session. Other sandboxes are ended: pid 1 of a namespace gets only signals that
            # it handles, and whether the child of an init handles SIGINT is unknown.
            if number != SIGINT or has_init or not handles_sigint(sandbox.pid):
                return "killed", number
            if not _in_this_session(sandbox.pid):
                sandbox.send_signal(number)


def _in_this_session(pid: int) -> bool:
    try:
        return os.getsid(pid) == os.getsid(0)
    except ProcessLookupError:
        return False


def handles_sigint(pid: int) -> bool:
    """Whether process `pid` catches or ignores SIGINT. False when it is gone."""
    bit = 1 << (SIGINT - 1)
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:
            masks = [line.split()[1] for line in status if line.startswith(("SigCgt:", "SigIgn:"))]
    except OSError:
        return False
    return any(int(mask, 16) & bit for mask in masks)


def _status_fd(text: str | None) -> int | None:
    """The fd of --status-fd. Raises UsageError if it is not open for writing, or if it is the same
    file as the command's stdin, stdout or stderr: the command could forge lines, truncate the file,
    or make it non-blocking."""
    if text is None:
        return None
    import fcntl

    hint = "for example: fastns run --status-fd 3 true 3>status.json"
    number = whole(text)
    if number is None:
        raise UsageError(f"--status-fd {text}: not a number", hint)
    try:
        mode = fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE
    except (OSError, OverflowError):
        raise UsageError(f"--status-fd {text}: not an open file descriptor", hint) from None
    if mode == os.O_RDONLY:
        raise UsageError(f"--status-fd {text}: not open for writing", hint)
    # On a terminal all three are one file. Check `number` first, so that the error names it.
    for stdio in sorted(range(3), key=lambda fd: fd != number):
        try:
            is_same = os.path.samestat(os.fstat(number), os.fstat(stdio))
        except OSError:  # stdio is closed
            continue
        if is_same:
            name = ("stdin", "stdout", "stderr")[stdio]
            reason = (
                f"this is the command's {name}, so the command could forge or damage the status"
            )
            raise UsageError(f"--status-fd {text}: {reason}", hint)
    return number


def _write_status(fd: int, outcome: Outcome) -> None:
    import json

    fields = {name: value for name, value in vars(outcome).items() if name != "error"}
    line = json.dumps(fields | (outcome.error or {})).encode() + b"\n"
    try:
        while line:
            line = line[os.write(fd, line) :]
    except OSError as error:
        complain(f"--status-fd {fd}: {error.strerror}")
