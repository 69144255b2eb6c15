"""The command line: finds the verb, imports that verb's module alone, and words every error.

One module per verb. Each gives `add_parser(subparsers)` and `main(namespace) -> int`; one that is
to start at once also gives `declare(options)` (_options.py). Nothing else is imported here, so that
`fastns run` costs the start of one verb and not of all of them.
"""

from __future__ import annotations

import os
import sys

from fastns.cli._words import UsageError, advise, closest, complain, say, whole, write_no_more

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

__all__ = ["UsageError", "advise", "closest", "complain", "main", "program", "say", "whole"]
EXIT_FAILED = 125
"""Exit code of fastns's own failures, so that they differ from the command's."""
EXIT_BROKEN_PIPE = 141
"""128 + SIGPIPE, as a program that the signal ends."""

VERBS = {
    "run": "run one command in a sandbox of its own",
    "compile": "write a plan file, from which fastns-exec starts sandboxes without Python",
    "batch": "run many commands, each in a sandbox of its own: JSON lines in, JSON lines out",
    "bench": "time what a start costs on this machine, beside what else is installed",
    "rootfs": "build a root file system from this machine's commands",
    "doctor": "show what works on this machine, and the fix for what does not",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: this process's) and return its exit code."""
    _hold_closed_fds()
    try:
        return _dispatch(list(sys.argv[1:] if argv is None else argv))
    except UsageError as error:
        complain(error.message, error.hint)
        return EXIT_FAILED
    except SystemExit as stop:  # argparse leaves this way after printing a verb's --help
        return stop.code if isinstance(stop.code, int) else 0
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read the output has seen enough
        write_no_more(sys.stdout)
        return EXIT_BROKEN_PIPE


def program() -> NoReturn:
    """main() as a process of its own. It does not take the interpreter down, module by module,
    which takes longer than a sandbox to start: what that would do for others is done here."""
    import atexit
    import gc

    if sys.argv[1:2] == ["run"]:
        gc.disable()  # one sandbox makes no garbage that is worth a look at all that was imported
    code = main()
    atexit._run_exitfuncs()
    for file in (sys.stdout, sys.stderr):
        try:
            if file is not None:
                file.flush()
        except (OSError, ValueError):  # nobody reads it, or it is closed
            code = code or EXIT_FAILED
    os._exit(code)


def _hold_closed_fds() -> None:
    """Keep 0, 1 and 2 from files of fastns's own where they are closed: a command would write to
    them. Opened for the other direction, each still fails with EBADF as it did."""
    for fd, flags in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_RDONLY)):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, flags), True)  # the lowest number is free: fd


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
    module = __import__(f"fastns.cli.{verb}", fromlist=[verb])  # importlib takes longer to import
    namespace = None
    if hasattr(module, "declare"):
        from fastns.cli._options import Options

        options = Options()
        module.declare(options)
        namespace = options.parse(rest)
    if namespace is None:
        from fastns.cli._parser import Parser

        subparsers = Parser(prog="fastns").add_subparsers()
        module.add_parser(subparsers)
        namespace = subparsers.choices[verb].parse(rest)
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
    lines = [f"  {verb:<{width}}  {what}" for verb, what in VERBS.items()]
    return "\n".join(
        [
            "usage: fastns COMMAND [OPTIONS]",
            "       fastns --version",
            "",
            "Sandboxes from Linux namespaces.",
            "",
            *lines,
            "",
            "fastns COMMAND --help says more.",
        ]
    )
