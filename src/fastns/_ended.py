"""What a sandbox that has ended has come to, as far as it needs nothing of subprocess."""

from __future__ import annotations

from fastns._typing import GenericBase, S
from fastns.errors import FastnsError
from fastns.sandbox import Usage, exit_code

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeAlias

    from fastns._cause import Cause, Counts

    Used: TypeAlias = tuple[float, float, int, bool, Counts | None]  # Usage.of()'s arguments


class Ended(FastnsError):
    """What an exception has of CompletedSandbox: set when the sandbox has ended."""

    returncode: int | None = None
    usage: Usage | None = None
    wall_time: float | None = None
    truncated = False
    cause: Cause = "exited"
    limits: tuple[str, ...] = ()


class DecodeError(Ended, UnicodeDecodeError):
    """The output is no text of the encoding asked for; stdout and stderr hold it, as bytes.

    The sandbox has ended: returncode, usage and the like are as in CompletedSandbox.
    """

    stdout: bytes | None = None
    stderr: bytes | None = None


class Completed(GenericBase[S]):
    """A sandbox that has ended: all of CompletedSandbox but its base class."""

    args: Any
    returncode: int
    stdout: S
    stderr: S

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
