"""The subclasses of subprocess' own classes.

`subprocess` takes longer to import than all of fastns, so this module is imported only where one of
them is asked for, not for a run that ends well.
"""

from __future__ import annotations

import subprocess

from fastns._ended import Completed, Ended
from fastns._typing import S
from fastns.errors import FastnsError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from fastns._cause import Cause


class TimeoutExpired(Ended, subprocess.TimeoutExpired):
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


class CalledProcessError(FastnsError, subprocess.CalledProcessError):
    """check=True and a returncode other than 0."""


class CompletedSandbox(Completed[S], subprocess.CompletedProcess[S]):
    """A sandbox that has ended, with args, returncode, stdout and stderr as in subprocess.

    To type checkers it is CompletedSandbox[str] of what was asked for as text, else of bytes.

    Attributes:
        cause: why it has ended, from evidence: "exited", "signaled", "oom", "pids", "cpu_time",
            "output_limit" or "seccomp". The last is a call for which the filter ends a process, or,
            which looks the same, a SIGSYS from inside: with init or the host's pid namespace.
        wall_time: seconds, from before the clone to the end.
        limits: names of the spec's limits that were enforced.
        truncated: whether max_output has cut stdout or stderr off.
        method: how it was started: "direct", "staged" or "template".
        id_map: whose ids it had, as in Sandbox.
        mount_namespace: how it began: "copied" (the caller's whole table of mounts), "tree" (the
            root alone: Linux 7.0), "template", or "host" (it has none of its own).
    """
