"""The results and errors that are subclasses of subprocess's classes.

`subprocess` takes longer to import than all of fastns, so this module is imported only when one of
them is needed. A run that succeeds does not need it.
"""

from __future__ import annotations

import subprocess

from fastns._command import Completed, Ended
from fastns._light import S
from fastns.errors import FastnsError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from fastns._command import Cause


class TimeoutExpired(Ended, subprocess.TimeoutExpired):
    """The timeout expired; stdout and stderr hold the output so far (None: not captured).

    They are text if text was requested: an incomplete last character is left out, and invalid bytes
    become U+FFFD, so that no DecodeError hides the timeout.

    run() and run_batch() have ended the sandbox: returncode, usage, wall_time, truncated and limits
    are as in CompletedSandbox. After Sandbox.wait() and communicate() it still runs.
    """

    cause: Cause = "timeout"
    if TYPE_CHECKING:
        stdout: Any
        stderr: Any


class CalledProcessError(FastnsError, subprocess.CalledProcessError):
    """With check=True, the returncode was not 0."""


class CompletedSandbox(Completed[S], subprocess.CompletedProcess[S]):
    """The result of a sandbox, with args, returncode, stdout and stderr as in subprocess.

    To type checkers it is CompletedSandbox[str] if text was requested, else of bytes.

    Attributes:
        cause: why it ended: "exited", "signaled", "oom", "pids", "cpu_time", "output_limit" or
            "seccomp" (a system call for which the filter ends a process; with init or the host's
            pid namespace a SIGSYS sent from inside looks the same).
        wall_time: seconds, from before the clone to the end.
        timings: where this time went, a Timings.
        limits: names of the spec's limits that were enforced.
        truncated: whether max_output cut off stdout or stderr.
        method: how it was started: "direct", "staged" or "template".
        files: the content of each path in `outputs`; None if there was no such file.
        reused: whether its room had served another command before (a Template with reuse=True).
        id_map: how its ids were mapped, as in Sandbox.
        mount_namespace: what it started from: "copied" (the caller's whole table of mounts), "tree"
            (the root alone: Linux 7.0), "template", or "host" (it has none of its own).
    """
