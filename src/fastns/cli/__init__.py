"""The command line: finds the verb, imports only its module, and prints its errors.

One module per verb. Each has the texts of its help (USAGE, ABOUT, EPILOG), `declare(parser)`, which
adds its options, and `main(namespace)`, which returns the exit code.
"""

from __future__ import annotations

import os
import sys

from fastns.cli._words import (
    Naming,
    UsageError,
    advise,
    closest,
    complain,
    say,
    whole,
    write_no_more,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

__all__ = [
    "Naming", "UsageError", "advise", "closest", "complain", "main", "program", "say", "whole",
]  # fmt: skip
EXIT_TIMEOUT = 124
EXIT_FAILED = 125  # fastns itself failed; few commands use this code
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE, as if killed by the signal

VERBS = {
    "run": "run one command in a sandbox of its own",
    "compile": "write a plan file, to start sandboxes without Python (fastns-exec)",
    "batch": "run many commands, each in a sandbox of its own (JSON lines)",
    "bench": "time what a start costs on this machine",
    "rootfs": "build a root file system from this machine's commands",
    "doctor": "show what works on this machine, and how to fix the rest",
    "completion": "print a completion script for bash, zsh or fish",
}
HELP = """\
usage: fastns COMMAND [OPTIONS]
       fastns --version

Sandboxes from Linux namespaces.

{}

fastns COMMAND --help describes a command and its options."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line (default: that of this process) and returns its exit code."""
    _hold_closed_fds()
    try:
        return _dispatch(list(sys.argv[1:] if argv is None else argv))
    except UsageError as error:
        complain(error.message, error.hint)
        return EXIT_FAILED
    except SystemExit as stop:  # argparse has printed the --help of a verb
        return stop.code if isinstance(stop.code, int) else 0
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of the output is gone
        write_no_more(sys.stdout)
        return EXIT_BROKEN_PIPE


def program() -> NoReturn:
    """Runs main() and ends the process. It runs exit handlers and writes buffered output, but skips
    the rest of the interpreter's shutdown, which takes longer than the start of a sandbox."""
    import atexit
    import gc

    if sys.argv[1:2] == ["run"]:
        gc.disable()  # one sandbox makes too little garbage to be worth a collection
    code = main()
    atexit._run_exitfuncs()
    for file in (sys.stdout, sys.stderr):
        try:
            if file is not None:
                file.flush()
        except (OSError, ValueError):  # no reader, or closed
            code = code or EXIT_FAILED
    os._exit(code)


def _hold_closed_fds() -> None:
    """Opens /dev/null for each of fds 0, 1 and 2 that is closed. Otherwise a file of fastns could
    get that number, and the command would use it. /dev/null is opened for the opposite direction,
    so the command's reads and writes still fail with EBADF."""
    for fd, flags in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_RDONLY)):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, flags), True)  # gets the lowest free number: fd


def _dispatch(words: list[str]) -> int:
    if not words:
        raise UsageError("no command given", f"one of {', '.join(VERBS)}; see fastns --help")
    verb, *rest = words
    if verb in ("-h", "--help", "help"):
        say(_help_text())
        return 0
    if verb in ("-V", "--version"):
        from fastns import __version__

        say(f"fastns {__version__}")
        return 0
    if verb not in VERBS:
        raise _unknown_verb(verb)
    module = __import__(f"fastns.cli.{verb}", fromlist=[verb])  # cheaper than importing importlib
    namespace = None
    if verb == "run":  # must start fast
        from fastns.cli import _options

        namespace = _options.parse(module.FLAGS.values(), rest)
    if namespace is None:
        from fastns.cli._parser import parser_of

        namespace = parser_of(verb).parse(rest)
    code: int = module.main(namespace)
    return code


def _unknown_verb(verb: str) -> UsageError:
    from fastns.cli import _docker

    known = closest(verb, [*VERBS, "--help", "--version"])
    what = "option" if verb.startswith("-") else "command"
    if verb in _docker.VERBS:
        return UsageError(f"unknown command: {verb}", _docker.VERBS[verb])
    return UsageError(
        f"unknown {what}: {verb or repr(verb)}",
        f"did you mean {known}?" if known else f"one of {', '.join(VERBS)}; see fastns --help",
    )


def _help_text() -> str:
    width = max(len(verb) for verb in VERBS)
    return HELP.format("\n".join(f"  {verb:<{width}}  {what}" for verb, what in VERBS.items()))
