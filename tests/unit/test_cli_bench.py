"""`fastns bench` without sandboxes: rounds, failures, the table, the last line, JSON, options."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from fastns import SpawnError, _bench
from fastns._bench import BASE, EXIT_CODE, Contender, Failed, Row, Sandboxes
from fastns.cli import main
from fastns.cli.bench import COLUMNS, isolation, legend, plain_lines, summary

BOXES = Sandboxes(None, str(_bench.PROGRAM), True)
BARE = Row(BASE, False, (), 9, 0.001, 0.0009, 0.002, 0.003, 1000.0, 1.0)
OWN = Row("Template.run", True, BOXES.isolates(), 9, 0.00112, 0.001, 0.002, 0.004, 893.4, 1.12)
BATCH = Row("run_batch", True, BOXES.isolates(), 2000, per_second=2401.7, concurrency=2)
BROKEN = Row("bwrap", False, BOXES.isolates(), error="no right", hint="get it")
BROKEN_OWN = Row("fastns.run", True, BOXES.isolates(), error="clone: EPERM", hint="sysctl a=1")


# ---- measuring ----


class Machine:
    """Makes contenders whose starts are functions that the test chooses."""

    def __init__(self) -> None:
        self.starts: dict[str, Callable[[], int]] = {BASE: lambda: EXIT_CODE}
        self.prepared: list[str] = []
        self.taken_down: list[str] = []

    def contenders(self, _: Sandboxes) -> list[Contender]:
        return [Contender(name, name != BASE, (), self.preparer(name)) for name in self.starts]

    def preparer(self, name: str) -> Callable[[contextlib.ExitStack], Callable[[], int]]:
        def prepare(stack: contextlib.ExitStack) -> Callable[[], int]:
            stack.callback(self.taken_down.append, name)
            self.prepared.append(name)
            return self.starts[name]

        return prepare


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    monkeypatch.setattr(_bench, "contenders", made.contenders)
    monkeypatch.setattr(_bench, "RATE_SECONDS", 0.001)
    return made


def test_each_round_starts_each_once_after_a_warm_up(machine: Machine) -> None:
    calls: list[str] = []

    def counted(name: str) -> Callable[[], int]:
        return lambda: calls.append(name) or EXIT_CODE  # type: ignore[func-returns-value]

    names = [BASE, "a", "b"]
    machine.starts = {name: counted(name) for name in names}
    rows = _bench.measure(BOXES, 20)
    assert [row.name for row in rows] == names
    assert [row.samples for row in rows] == [20] * 3
    warm_up = 3
    in_rounds = calls[: 3 * (20 + warm_up)]
    for i in range(0, len(in_rounds), 3):
        assert sorted(in_rounds[i : i + 3]) == sorted(names)
    assert machine.taken_down == names[::-1]
    base = rows[0].median
    assert base is not None
    for row in rows:
        assert row.p10 is not None
        assert row.median is not None
        assert row.p90 is not None
        assert row.p99 is not None
        assert row.p10 <= row.median <= row.p90 <= row.p99
        assert row.ratio == row.median / base
        assert row.per_second is not None
        assert row.per_second > 0


def test_without_a_number_the_time_limits_the_rounds(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_bench, "SECONDS", 0.0)
    assert _bench.measure(BOXES, None)[0].samples == _bench.MIN_ROUNDS
    monkeypatch.setattr(_bench, "SECONDS", 60.0)
    assert _bench.measure(BOXES, None)[0].samples == _bench.MAX_ROUNDS


def raises(error: Exception) -> Callable[[], int]:
    def start() -> int:
        raise error

    return start


@pytest.mark.parametrize(
    ("start", "error", "hint"),
    [
        (raises(SpawnError("mount", errno.ENOENT, path="/x")), "mount", "X-mount.mkdir"),
        (raises(OSError(errno.EPERM, "not permitted")), "not permitted", "fastns doctor"),
        (raises(Failed("why", "how")), "why", "how"),
        (lambda: 1, "ended with 1 instead of 127", "fastns doctor"),
        (lambda: -9, "ended with -9 instead of 127", "fastns doctor"),
    ],
)
def test_a_failed_contender_is_reported_and_the_others_go_on(
    machine: Machine, start: Callable[[], int], error: str, hint: str
) -> None:
    machine.starts["bad"] = start
    machine.starts["good"] = lambda: EXIT_CODE
    base, bad, good = _bench.measure(BOXES, 3)
    assert (base.error, good.error, good.samples) == (None, None, 3)
    assert error in (bad.error or "")
    assert hint in (bad.hint or "")
    assert (bad.median, bad.per_second, bad.samples) == (None, None, 0)


@pytest.mark.parametrize("after", [1, 3, 6])
def test_a_contender_that_fails_later(machine: Machine, after: int) -> None:
    """The contender fails in the rounds, or when its rate is measured alone."""
    codes = iter([EXIT_CODE] * after)
    machine.starts["bad"] = lambda: next(codes, 1)
    _, bad = _bench.measure(BOXES, 4)
    assert (bad.error, bad.median) == ("ended with 1 instead of 127", None)


def test_without_a_base_there_is_no_ratio(machine: Machine) -> None:
    machine.starts = {BASE: lambda: 1, "good": lambda: EXIT_CODE}
    base, good = _bench.measure(BOXES, 3)
    assert (base.ratio, good.ratio) == (None, None)
    assert good.median is not None


def test_ctrl_c_ends_all(machine: Machine) -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    machine.starts["bad"] = interrupted
    with pytest.raises(KeyboardInterrupt):
        _bench.measure(BOXES, 3)
    assert machine.taken_down == ["bad", BASE]


@pytest.mark.parametrize(
    ("values", "percent", "found"),
    [
        ([3.0], 99, 3.0),
        ([1.0, 2.0], 50, 1.5),
        ([5.0, 1.0, 3.0], 50, 3.0),
        ([1.0, 2.0, 3.0, 4.0, 5.0], 90, 4.6),
        ([1.0, 2.0], 0, 1.0),
        ([1.0, 2.0], 100, 2.0),
    ],
)
def test_percentile(values: list[float], percent: float, found: float) -> None:
    assert _bench.percentile(values, percent) == pytest.approx(found)


def test_the_bare_program_ends_at_once() -> None:
    """All contenders start this program. Without arguments it does nothing."""
    assert _bench.bare([str(_bench.PROGRAM)])() == EXIT_CODE


def test_a_missing_tool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The error names the package that has the tool."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Failed) as caught:
        _bench.tool("bwrap", [])
    assert (caught.value.message, caught.value.hint) == (
        "not in PATH",
        "install the package bubblewrap",
    )


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("echo 'bwrap: not allowed' >&2; echo more >&2; exit 1", "not allowed"),
        ("echo warning >&2; exit 127", "warning"),
        ("exit 3", "ended with 3 instead of 127"),
    ],
)
def test_a_tool_that_fails_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str, told: str
) -> None:
    script = tmp_path / "bwrap"
    script.write_text(f"#!/bin/sh\n{code}\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Failed) as caught:
        _bench.tool("bwrap", [])
    assert caught.value.message == told


@pytest.mark.parametrize("privileged", [True, False])
@pytest.mark.parametrize("rootfs", [None, "/root"])
def test_the_same_for_all(privileged: bool, rootfs: str | None) -> None:
    """bwrap, unshare and fastns are told to isolate the same things."""
    boxes = Sandboxes(rootfs, _bench.PLACE, privileged)
    bwrap, unshare, spec = boxes.bwrap(), boxes.unshare(), boxes.spec()
    assert ("--unshare-user" in bwrap, "--user" in unshare) == (not privileged, not privileged)
    assert ("user" in boxes.isolates()) == (not privileged)
    assert ["--ro-bind", rootfs or "/usr", "/" if rootfs else "/usr"] == bwrap[
        bwrap.index("--ro-bind") :
    ][:3]
    assert (spec.rootfs, spec.read_only) == (rootfs, rootfs is not None)
    assert (bwrap[-1], spec.mounts[0].destination) == (_bench.PLACE, _bench.PLACE)


@pytest.mark.parametrize(
    ("program", "rootfs", "bound"),
    [
        ("/usr/lib/python3/fastns/_program", None, False),
        ("/tmp/venv/fastns/_program", None, True),
        ("/run/user/1/fastns/_program", None, True),
        ("/usrs/fastns/_program", None, True),
        ("/home/me/venv/fastns/_program", None, True),
        ("/usr/lib/python3/fastns/_program", "/srv/root", True),
    ],
)
def test_the_program_is_bound_if_the_root_lacks_it(
    monkeypatch: pytest.MonkeyPatch, program: str, rootfs: str | None, bound: bool
) -> None:
    monkeypatch.setattr(_bench, "PROGRAM", Path(program))
    boxes = Sandboxes.of(rootfs)
    assert boxes.inside == (_bench.PLACE if bound else program)
    assert [mount.source for mount in boxes.spec().mounts] == ([program] if bound else [])
    assert (_bench.PLACE in boxes.bwrap()) == bound


# ---- what is printed ----


def test_the_table_is_aligned_and_a_fix_is_printed_once() -> None:
    rows = [BARE, BROKEN_OWN, OWN, BROKEN_OWN, BATCH, BROKEN]
    found = list(plain_lines(rows, BOXES))
    assert found[0].split() == list(COLUMNS[1:])
    assert found[1].split() == f"{BASE} 1.00 0.90 2.00 3.00 1,000 1.00 nothing".split()
    assert found[2:4] == ["fastns.run      clone: EPERM", "  fix: sysctl a=1"]
    times = ["1.12", "1.00", "2.00", "4.00", "893", "1.12"]
    assert found[4].split() == ["Template.run", *times, "all"]
    assert found[5] == found[2]
    assert found[6].split() == ["run_batch", "2,402", "all"]
    assert found[7:] == ["bwrap           no right", "  fix: get it"]
    starts = {found[i].rindex("  ") for i in (0, 1, 4, 6)}
    assert len(starts) == 1


@pytest.mark.parametrize(
    ("isolates", "told"),
    [
        ((), "nothing"),
        (BOXES.isolates(), "all"),
        ((*BOXES.isolates(), "time"), "all, time"),
        (tuple(item for item in BOXES.isolates() if item != "network"), "all but network"),
        ((*BOXES.spaces(), "/proc"), "namespaces, /proc"),
        (("pid", "/proc"), "pid, /proc"),
    ],
)
def test_what_is_isolated(isolates: tuple[str, ...], told: str) -> None:
    assert isolation(Row("x", True, isolates), BOXES) == told


def test_the_legend_names_every_contender() -> None:
    assert legend(BOXES) == (
        "pid, mount, uts, ipc, cgroup, network namespaces; its own /proc, /tmp, /run, /dev; "
        "the host's directories, read-only"
    )
    assert legend(Sandboxes("/x", "/y", False)) == (
        "pid, mount, uts, ipc, cgroup, network, user namespaces; its own /proc, /tmp, /run, /dev; "
        "the given root, read-only"
    )


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (
            [BARE, OWN, BATCH, BROKEN],
            "An isolated process costs 1.12 times a bare one here: 1.12 ms, 893 a second one at a "
            "time (Template.run), 2,400 a second in a batch (run_batch).",
        ),
        (
            [BARE, BROKEN_OWN, BATCH],
            "An isolated process costs 2,400 a second in a batch (run_batch).",
        ),
        ([BARE, BROKEN_OWN, BROKEN], "No isolated process could be started here."),
    ],
)
def test_the_last_line(rows: list[Row], told: str) -> None:
    assert summary(rows) == told


# ---- the command ----


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[Row]:
    """The rows of a replaced measurement: one bare process and one sandbox at a time."""
    found = [BARE, OWN]
    monkeypatch.setattr(_bench, "measure", lambda boxes, rounds: found)
    monkeypatch.setattr(_bench, "measure_batches", lambda boxes: iter(()))
    return found


def test_it_says_what_was_started(rows: list[Row], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench"]) == 0
    out = capsys.readouterr().out
    assert "Each start runs fastns/_program, " in out
    assert out.splitlines()[-1] == summary(rows)


def test_a_busy_machine_is_reported(rows: list[Row], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench"]) == 0
    assert "busy" not in capsys.readouterr().out
    rows.append(replace(OWN, name="late", p90=3.1 * 0.00112))
    assert main(["bench"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "busy" in line]
    assert line.startswith("The machine was busy: ")
    assert "(late)" in line


def test_the_json_report(
    rows: list[Row], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows.append(BROKEN)
    path = tmp_path / "bench.json"
    assert main(["bench", "--json", str(path)]) == 0
    text = path.read_text()
    report = json.loads(text)
    assert list(report["machine"]) == ["cpu", "cores", "kernel", "python", "fastns", "privileged"]
    assert report["machine"]["python"] == platform.python_version()
    assert report["unit"] == "seconds"
    bare, own, broken = report["contenders"]
    assert (bare["name"], bare["median"], bare["isolates"]) == (BASE, 0.001, [])
    assert (own["ratio"], own["per_second"], own["isolates"][:2]) == (1.12, 893.4, ["pid", "mount"])
    assert (broken["error"], broken["hint"], broken["median"]) == ("no right", "get it", None)
    assert not re.search(rf"\b{re.escape(os.uname().nodename)}\b", text)
    assert capsys.readouterr().out


def test_json_alone_on_stdout(rows: list[Row], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--json", "-"]) == 0
    assert len(json.loads(capsys.readouterr().out)["contenders"]) == 2


@pytest.mark.parametrize(
    ("found", "code"),
    [([BARE, BROKEN_OWN, OWN], 0), ([BARE, BROKEN_OWN], 125), ([BROKEN, OWN], 0)],
)
def test_it_fails_only_if_fastns_can_start_nothing(
    rows: list[Row], found: list[Row], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    rows[:] = found
    assert main(["bench"]) == code
    said = capsys.readouterr().err.splitlines()
    told = ["fastns: bench: fastns could not start anything", f"hint: {_bench.DOCTOR}"]
    assert said == (told if code else [])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--rounds", "0"], "--rounds 0: not a number from 1 to 100000"),
        (["--rounds", "many"], "--rounds many: not a number"),
        (["--rounds", "9" * 5000], "not a number from 1 to 100000"),
        (["--rootfs", "/missing"], "--rootfs /missing: no such directory"),
        (["--json", "/missing/x"], "--json /missing/x: No such file or directory"),
        (["--round", "3"], "unknown option: --round"),
        (["ls"], "unexpected argument: ls"),
    ],
)
def test_wrong_arguments(
    rows: list[Row], words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *words]) == 125
    first, second = capsys.readouterr().err.splitlines()
    assert told in first
    assert second.startswith("hint: ")


# ---- on a terminal ----


class FakeTable:
    """The part of rich.table.Table that is used."""

    def __init__(self, **_: object) -> None:
        self.columns: list[str] = []
        self.rows: list[tuple[str, ...]] = []
        tables.append(self)

    def add_column(self, name: str, **_: object) -> None:
        self.columns.append(name)

    def add_row(self, *cells: str, **_: object) -> None:
        self.rows.append(cells)


tables: list[FakeTable] = []
printed: list[object] = []


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """stdout is a terminal, and rich is installed."""
    console = SimpleNamespace(width=120, print=printed.append)
    names = ("rich", "rich.box", "rich.console", "rich.table", "rich.text")
    modules = {name: ModuleType(name) for name in names}
    attributes: dict[str, dict[str, Any]] = {
        "rich.box": {"SIMPLE_HEAD": None},
        "rich.console": {"Console": lambda **_: console},
        "rich.table": {"Table": FakeTable},
        "rich.text": {"Text": lambda text, **_: text},
    }
    for name, module in modules.items():
        vars(module).update(attributes.get(name, {}))
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    yield console
    tables.clear()
    printed.clear()


def test_rich_draws_the_table_on_a_terminal(rows: list[Row], terminal: SimpleNamespace) -> None:
    rows += [BROKEN, BROKEN]
    assert main(["bench"]) == 0
    (table,) = tables
    assert table.columns == list(COLUMNS)
    assert {len(row) for row in table.rows} == {len(COLUMNS)}
    assert table.rows[2] == ("bwrap", *[""] * 6, "no right")
    assert printed == [table, "bwrap: fix: get it"]


@pytest.mark.parametrize("why", ["no rich", "narrow", "no terminal"])
def test_the_table_is_plain_elsewhere(
    rows: list[Row],
    terminal: SimpleNamespace,
    why: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if why == "no rich":
        monkeypatch.setitem(sys.modules, "rich.console", None)
    elif why == "narrow":
        terminal.width = 80
    else:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: False)
    assert main(["bench"]) == 0
    assert (tables, printed) == ([], [])
    assert BASE in capsys.readouterr().out
