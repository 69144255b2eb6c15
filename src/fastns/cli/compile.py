"""`fastns compile`: writes what `fastns run` would do with these options to a file for fastns-exec.

The flags become a Spec and then a Plan, as in `fastns run`. Flags that a file cannot express are
refused by name: limits by cgroups, because only a Python process creates and counts cgroups, and
flags that concern a single run.
"""

from __future__ import annotations

import argparse
import os
import stat

from fastns import _planfile
from fastns._args import MAX_TIMEOUT
from fastns.cli import EXIT_FAILED, Naming, UsageError, say
from fastns.cli._errors import FLAG_OF_FIELD, complain_of, in_flags
from fastns.cli._flags import GROUPS, add_flags, add_sandbox_flags, spec_of
from fastns.cli._flags import LIMITS as LIMIT_FLAGS
from fastns.cli._options import ONE, SWITCH
from fastns.cli._values import duration
from fastns.limits import Limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from fastns.cli._parser import Parser

LIMITS = (*Limits.__match_args__, "cgroup_parent")  # fields of a Spec that need a cgroup
LIMITS_ELSEWHERE = (
    "use fastns run, or start fastns-exec in a cgroup that has the limit: "
    "systemd-run --scope -p MemoryMax=64M fastns-exec ..."
)
PER_RUN = {
    "--status-fd": "give it to fastns-exec",
    "--on-output-limit": "fastns-exec truncates output, and the command continues: use fastns run",
    "-t": "leave it out: stdin is always connected",
    "--tty": "leave it out: stdin is always connected",
}
"""Flags of `fastns run` that cannot be in a plan -> what to do instead."""
PLAN = (
    (ONE, "-o --output", "PLAN", "write the plan to this file"),
    (ONE, "--timeout", "TIME", "end each sandbox after 2s, 500ms, 1m30s, ..."),
    (ONE, "--max-output", "BYTES", "pass on at most this much of stdout and of stderr of each "
     "sandbox: 64k, 1m"),
    (SWITCH, "--dry-run", "", "print the steps in order, one per line, and write nothing"),
)  # fmt: skip


USAGE = "fastns compile [RUN OPTIONS] -o PLAN"
ABOUT = (
    "Write a plan file, from which fastns-exec starts sandboxes without Python: "
    "fastns-exec PLAN -- COMMAND [ARG...]."
)
EPILOG = """\
example:
  fastns compile --rootfs ./rootfs --timeout 2s -o judge.plan
  fastns-exec judge.plan -- ls /

A plan works only on this machine and kernel, with this build of fastns, and for
a caller with the same ids and rights. It stores paths, the list of the host's
directories, ranges of ids and variables copied with -e as they are now: compile
again when they change. It cannot contain limits by cgroups, such as --memory.
"""


def declare(parser: Parser) -> None:
    add_sandbox_flags(parser, {name: rows for name, rows in GROUPS.items() if rows != LIMIT_FLAGS})
    # Limits are accepted here, so that main() can name them in its error.
    hidden = (*LIMIT_FLAGS, (SWITCH, "-i --interactive", "", ""), (SWITCH, "--rm", "", ""))
    add_flags(
        parser, [(kind, names, metavar, argparse.SUPPRESS) for kind, names, metavar, _ in hidden]
    )
    for name in PER_RUN:
        refused: Any = {"nargs": "?", "const": name, "type": lambda _, name=name: name}
        parser.add_argument(
            name, dest="per_run", action="append", help=argparse.SUPPRESS, **refused
        )
    parser.set_defaults(on_output_limit=None)
    parser.about_words = "a plan has no command; fastns-exec takes one: fastns-exec PLAN -- COMMAND"
    add_flags(parser.add_argument_group("the plan"), PLAN)


def main(flags: argparse.Namespace) -> int:
    import fastns

    if flags.per_run:
        name = flags.per_run[0]
        raise UsageError(f"{name}: cannot be stored in a plan", PER_RUN[name])
    if flags.output is None and not flags.dry_run:
        raise UsageError("no -o PLAN given", "for example: fastns compile -o judge.plan")
    timeout = duration("--timeout", flags.timeout)
    if timeout is not None and timeout > MAX_TIMEOUT:
        raise UsageError(
            f"--timeout {flags.timeout}: too long", f"the maximum is {MAX_TIMEOUT} seconds"
        )
    timeout_ns = None if timeout is None else max(1, int(timeout * 1e9))
    if flags.output is not None:
        check_directory(flags.output)
    try:
        spec = spec_of(flags, os.environ, extra_env={})
        for field in LIMITS:
            if getattr(spec, field):
                raise UsageError(
                    f"{FLAG_OF_FIELD[field]}: a limit by cgroups cannot be in a plan file",
                    LIMITS_ELSEWHERE,
                )
        plan = fastns.compile(spec)
        if flags.dry_run:
            say("\n".join(plan.describe()))
            return 0
        data = _planfile.pack(plan, timeout_ns, in_flags)
    except (fastns.FastnsError, OSError) as error:
        complain_of(error, "compile")
        return EXIT_FAILED
    with Naming(f"-o {flags.output}", None):
        _planfile.write(flags.output, data)
    return 0


def check_directory(path: str) -> None:
    """Raises UsageError if fastns-exec would not trust a plan at this path."""
    if os.path.isdir(path):
        raise UsageError(f"-o {path}: a directory", "for example: -o judge.plan")
    directory = os.path.dirname(path) or "."
    with Naming(f"-o {path}: {directory}", None):
        mode = os.stat(directory).st_mode
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UsageError(
            f"-o {path}: others may write to {os.path.abspath(directory)}",
            "fastns-exec refuses a plan in such a directory: choose one that only you may write "
            "to, or chmod go-w",
        )
