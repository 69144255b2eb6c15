"""`fastns rootfs build`: makes a root file system from this machine's commands."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import time
from contextlib import contextmanager

from fastns.cli import EXIT_FAILED, UsageError, advise, complain, say
from fastns.cli._flags import add_flags
from fastns.cli._options import MANY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType
    from typing import NoReturn

    from fastns.cli._parser import Parser

PATIENCE = 1.0  # seconds before a build shows its progress

USAGE = EPILOG = None
ABOUT = "Root file systems for sandboxes; see fastns rootfs build --help."
BUILD_EPILOG = """\
examples:
  fastns rootfs build ./rootfs bash ls ps mount hostname ipcs
  fastns run --rootfs ./rootfs -- bash -c 'ls /'

  an interpreter with its standard library; a compiler with its headers:
    fastns rootfs build ./py --with python
    fastns rootfs build ./dev bash make --with gcc --with perl

  for a network: CA certificates, and the name servers this host has now:
    fastns rootfs build ./web curl --with network
    fastns run --rootfs ./web --network host -- curl https://example.org

Each command is copied with its libraries, its loader and, for a script, its
interpreter (#!); /bin/sh is always added. The build finds these by reading
files and executes nothing, so it cannot find what a program opens only while it
runs: a standard library, data, plug-ins. --with adds this for python, perl or
gcc: for the program among the COMMANDs, or else this machine's. Use --extra for
everything else.

DIR must not exist, or be empty, or be a root that was built before. Such a root
is extended: changed files are updated, all others are left alone. If something
is missing or fails, DIR stays as it was. The build records what it copied in
.NAME.fastns-rootfs.json beside DIR, because a sandbox can write to anything in
DIR.

A sandbox does not see files of the root below /tmp, /run, /dev, /proc and /sys:
its default mounts cover them.

Exit code: 0, or 125 if the root could not be built.
"""
FLAGS = (
    (MANY, "--with", "BUNDLE", "python, perl or gcc: add all it needs to run; network: add CA "
     "certificates and name servers"),
    (MANY, "--extra", "PATH", "copy this file or whole directory to the same path, with the "
     "libraries of its ELF files"),
)  # fmt: skip


def declare(parser: Parser) -> None:
    """`rootfs` has one action, `build`."""
    actions = parser.add_subparsers(metavar="ACTION", dest="action", required=True)
    action = actions.add_parser(
        "build",
        usage="fastns rootfs build DIR COMMAND... [--with BUNDLE]... [--extra PATH]...",
        help="make a root from this machine's commands",
        description="Make a root file system in DIR from commands of this machine.",
        epilog=BUILD_EPILOG,
    )
    action.add_argument("directory", metavar="DIR", help="where the root goes")
    action.add_argument(
        "commands", metavar="COMMAND", nargs="*", help="a name to look up in PATH, or a path"
    )
    add_flags(action, FLAGS)


def main(flags: argparse.Namespace) -> int:
    from fastns.rootfs import RootfsError, build

    bundles = getattr(flags, "with")
    if not flags.commands and not bundles:
        raise UsageError(
            "the following arguments are required: COMMAND, or --with BUNDLE",
            "see fastns rootfs build --help",
        )
    try:
        with _progress_line() as progress, _undone_by_signals():
            root = build(
                flags.directory,
                flags.commands,
                extra=flags.extra,
                bundles=bundles,
                progress=progress,
            )
    except RootfsError as error:
        complain(f"rootfs: {error}", error.hint)
        return EXIT_FAILED
    say(
        f"built {flags.directory}: {_count(len(root.commands), 'command', 'commands')}, "
        f"{_count(len(root.libraries), 'library', 'libraries')}, {_size(root.bytes)}"
    )
    for hint in root.hints:
        advise(hint)
    return 0


@contextmanager
def _progress_line() -> Iterator[Callable[[int, int, str], None] | None]:
    """Yields a function that shows the progress in the last line of the terminal, or None without a
    terminal. Clears that line at the end."""
    if not sys.stderr.isatty():
        yield None
        return
    start = time.monotonic()
    shown = False

    def show(done: int, total: int, name: str) -> None:
        nonlocal shown
        if time.monotonic() - start > PATIENCE:
            shown = True
            line = f"{done}/{total} {name}"
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\x1b[K{line[:width]}", end="", file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        if shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


@contextmanager
def _undone_by_signals() -> Iterator[None]:
    """Turns SIGTERM and SIGHUP into an exception, so that an interrupted build is undone."""

    def leave(number: int, _frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, action)


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.1f} {unit}" if unit != "B" else f"{count} B"
        size /= 1024
    return f"{size:.1f} GiB"
