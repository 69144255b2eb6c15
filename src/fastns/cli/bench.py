"""`fastns bench`: prints what a start costs here, beside a bare process and other programs."""

from __future__ import annotations

import argparse
import json
import os
import sys

from fastns.cli import EXIT_FAILED, Naming, UsageError, complain, say
from fastns.cli._flags import add_flags
from fastns.cli._options import ONE
from fastns.cli._values import whole_number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fastns._bench import Row, Sandboxes
    from fastns.cli._parser import Parser

MAX_ROUNDS = 100_000
COLUMNS = ("", "median", "p10", "p90", "p99", "starts/s", "ratio", "isolates")
WIDE = 100  # a terminal this wide has room for an error in the table's last column
BUSY = 3  # if p90 is more than this many medians, the machine was busy
PROGRAM = "fastns/_program, a small static program that ends at once (exit code 127)"

FLAGS = (
    (ONE, "--json", "FILE", "write the machine and all results as JSON to FILE (-: to stdout, "
     "without the table)"),
    (ONE, "--rounds", "N", "start each N times (default: as often as 3 seconds allow)"),
    (ONE, "--rootfs", "DIR", "use DIR as the root of the sandboxes (default: the host's system "
     "directories, read-only)"),
)  # fmt: skip
USAGE = "fastns bench [OPTIONS]"
ABOUT = (
    "Time what a start costs on this machine, in about 5 seconds: a bare process, each way "
    "to start with fastns, and bwrap and unshare if they are installed."
)
EPILOG = """\
All contenders start the same program and take turns, in many rounds; the first
rounds are a warm-up and do not count. Times are in ms, from the call to the end
of the process.
  starts/s   by this contender alone, one after the other; by a batch: as many
             at once as there are CPUs
  ratio      of its median to that of os.posix_spawn
  isolates   what the process has of its own. Container.run starts a command in
             a sandbox that is there already, so it shares them
A start costs the same whatever the program, so a program that runs longer has a
ratio nearer to 1. For a contender that cannot be started, the table has the
reason and the fix.

Exit code: 0; 125 if fastns could not start anything; 130 on Ctrl-C.
"""


def declare(parser: Parser) -> None:
    add_flags(parser, FLAGS)


def main(flags: argparse.Namespace) -> int:
    rounds = whole_number("--rounds", flags.rounds, MAX_ROUNDS, "for example: --rounds 500")
    if flags.rootfs is not None and not os.path.isdir(flags.rootfs):
        raise UsageError(
            f"--rootfs {flags.rootfs}: no such directory",
            "build one: fastns rootfs build DIR sh ls",
        )
    rootfs = None if flags.rootfs is None else os.path.abspath(flags.rootfs)
    from fastns import _bench

    boxes = _bench.Sandboxes.of(rootfs)
    machine = _bench.machine()
    prints = flags.json != "-"
    if prints:
        say(_title(machine))
    rows = [*_bench.measure(boxes, rounds), *_bench.measure_batches(boxes)]
    if prints:
        _print(rows, boxes)
    if flags.json is not None:
        _write_report(flags.json, machine, boxes, rows)
    if all(row.error is not None for row in rows if row.by_fastns):
        complain("bench: fastns could not start anything", _bench.DOCTOR)
        return EXIT_FAILED
    return 0


def _write_report(path: str, machine: dict[str, object], boxes: Sandboxes, rows: list[Row]) -> None:
    from dataclasses import asdict

    report = {
        "machine": machine,
        "program": PROGRAM,
        "rootfs": "host" if boxes.rootfs is None else "directory",
        "unit": "seconds",
        "contenders": [asdict(row) for row in rows],
    }
    text = json.dumps(report, indent=2)
    if path == "-":
        say(text)
        return
    with Naming(f"--json {path}", "a file to write to"), open(path, "w", encoding="utf-8") as file:
        print(text, file=file)


def _title(machine: dict[str, object]) -> str:
    who = "as root" if machine["privileged"] else "as an unprivileged user"
    return (
        f"fastns {machine['fastns']}, Python {machine['python']}, Linux {machine['kernel']}, "
        f"{machine['cores']} x {machine['cpu']}, {who}\n"
        f"Each start runs {PROGRAM}. Times in ms:\n"
    )


def _print(rows: list[Row], boxes: Sandboxes) -> None:
    terminal = sys.stdout is not None and sys.stdout.isatty()
    if not (terminal and _print_rich(rows, boxes)):
        say("\n".join(plain_lines(rows, boxes)))
    say(f"\nall: {legend(boxes)}.")
    uneven = [row.name for row in rows if (row.p90 or 0) > BUSY * (row.median or 0)]
    if uneven:
        say(
            f"The machine was busy: a start in ten took more than {BUSY} times the median "
            f"({', '.join(uneven)}). Measure again when it is idle."
        )
    say(summary(rows))


def plain_lines(rows: Sequence[Row], boxes: Sandboxes) -> Iterator[str]:
    """Yields the table, one line per row. Each fix follows the first error that needs it."""
    fixes = set()
    width = max(len(row.name) for row in rows)
    widths = (width, 7, 7, 7, 7, 9, 6)

    def line(cells: Sequence[str]) -> str:
        numbers = (f"{cell:>{size}}" for cell, size in zip(cells[1:-1], widths[1:], strict=True))
        return f"{cells[0]:<{width}}{' '.join(numbers)}  {cells[-1]}"

    yield line(COLUMNS)
    for row in rows:
        if row.error is None:
            yield line(cells_of(row, boxes))
            continue
        yield f"{row.name:<{width}}  {row.error}"
        if row.hint and row.hint not in fixes:
            yield f"  fix: {row.hint}"
        fixes.add(row.hint)


def _print_rich(rows: Sequence[Row], boxes: Sandboxes) -> bool:
    """Prints the table with rich. False if rich is missing, or the terminal is too narrow."""
    try:
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return False
    console = Console(highlight=False)
    if console.width < WIDE:
        return False
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in COLUMNS:
        right = name not in ("", "isolates")
        table.add_column(name, justify="right" if right else "left", no_wrap=name != "isolates")
    fixes: dict[str, str] = {}  # -> the first row that needs it
    for row in rows:
        if row.error is None:
            table.add_row(*cells_of(row, boxes), style="bold" if row.by_fastns else "")
            continue
        table.add_row(row.name, *[""] * (len(COLUMNS) - 2), Text(row.error, style="red"))
        if row.hint:
            fixes.setdefault(row.hint, row.name)
    console.print(table)
    for fix, name in fixes.items():
        console.print(Text(f"{name}: fix: {fix}"))
    return True


def cells_of(row: Row, boxes: Sandboxes) -> list[str]:
    """The cells of a row, one for each of COLUMNS."""
    times = (row.median, row.p10, row.p90, row.p99)
    return [
        row.name,
        *("" if seconds is None else f"{seconds * 1000:.2f}" for seconds in times),
        "" if row.per_second is None else f"{row.per_second:,.0f}",
        "" if row.ratio is None else f"{row.ratio:.2f}",
        isolation(row, boxes),
    ]


def isolation(row: Row, boxes: Sandboxes) -> str:
    """What a row isolates; legend() explains `all`."""
    if not row.isolates:
        return "nothing"
    missing = [item for item in boxes.isolates() if item not in row.isolates]
    if len(missing) == 1:
        return f"all but {missing[0]}"
    for name, group in (("all", boxes.isolates()), ("namespaces", boxes.spaces())):
        if set(group) <= set(row.isolates):
            return ", ".join([name, *(item for item in row.isolates if item not in group)])
    return ", ".join(row.isolates)


def legend(boxes: Sandboxes) -> str:
    places = [item for item in boxes.isolates() if item.startswith("/")]
    root = "the host's directories" if boxes.rootfs is None else "the given root"
    return f"{', '.join(boxes.spaces())} namespaces; its own {', '.join(places)}; {root}, read-only"


def summary(rows: Sequence[Row]) -> str:
    """The fastest starts of fastns with everything of their own, in words."""
    most = max((len(row.isolates) for row in rows if row.by_fastns), default=0)
    own = [row for row in rows if row.by_fastns and row.per_second is not None]
    own = [row for row in own if len(row.isolates) == most and row.name != "Container.run"]
    single = min((row for row in own if row.median), key=lambda row: row.median or 0, default=None)
    batch = max(
        (row for row in own if row.concurrency), key=lambda row: row.per_second or 0, default=None
    )
    words = []
    if single is not None:
        words.append(f"{(single.median or 0) * 1000:.2f} ms")
        words.append(f"{_rounded(single)} a second one at a time ({single.name})")
    if batch is not None:
        words.append(f"{_rounded(batch)} a second in a batch ({batch.name})")
    if not words:
        return "No isolated process could be started here."
    ratio = None if single is None else single.ratio
    bare = "" if ratio is None else f" {ratio:.2f} times a bare one here:"
    return f"An isolated process costs{bare} {', '.join(words)}."


def _rounded(row: Row) -> str:
    """1,050 for 1053.4: a measured rate is not exact to more than three digits."""
    return f"{int(float(f'{row.per_second:.3g}')):,}"
