"""The results of a sandbox that has ended, without importing `subprocess`."""

from __future__ import annotations

from fastns._command import Usage, exit_code
from fastns._typing import GenericBase, S
from fastns.errors import FastnsError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from fastns._cause import Cause
    from fastns._command import Used


class Ended(FastnsError):
    """An exception with the attributes of CompletedSandbox, set once the sandbox has ended."""

    returncode: int | None = None
    usage: Usage | None = None
    wall_time: float | None = None
    truncated = False
    cause: Cause = "exited"
    limits: tuple[str, ...] = ()


class DecodeError(Ended, UnicodeDecodeError):
    """The output is not valid in the given encoding; stdout and stderr hold it, as bytes.

    The sandbox has ended: returncode, usage and the rest are as in CompletedSandbox.
    """

    stdout: bytes | None = None
    stderr: bytes | None = None


class Completed(GenericBase[S]):
    """CompletedSandbox without its base class from `subprocess`."""

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
        self._used = usage  # from _core: numbers, as a Usage is made only when it is read
        self.wall_time = wall_time
        self.method = method
        self.truncated = truncated
        self.cause = cause
        self.id_map = id_map
        self.mount_namespace = mount_namespace
        self.limits = limits

    @property
    def usage(self) -> Usage:
        """What the sandbox used; a new object at each access."""
        used = self._used
        return used if isinstance(used, Usage) else Usage.of(used)

    @property
    def exit_code(self) -> int:
        """The code a shell would show, 128+n after signal n."""
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
