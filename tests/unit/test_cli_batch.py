"""`fastns batch` without sandboxes: jobs, bad lines, options, results, the progress bar."""

from __future__ import annotations

import base64
import errno
import json
import os
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import fastns
from fastns import CompletedSandbox, Job, SpawnError, Spec, SpecError, TimeoutExpired, Usage
from fastns.cli import _jsonl, main
from fastns.cli import batch as cli_batch
from fastns.cli._jsonl import entry_of, fields_of, line_of
from fastns.cli.batch import Batch

USAGE = Usage(0.25, 0.5, 4096, True)
ENV = {"PATH": "/bin", "A": "below"}


def done(stdout: bytes = b"", returncode: int = 0, truncated: bool = False) -> CompletedSandbox:
    return CompletedSandbox(["x"], returncode, stdout, b"", USAGE, 0.75, "template", truncated)


class Layer:
    """A fake fastns.Template: records calls and returns prepared results."""

    def __init__(self) -> None:
        self.spec = Spec()
        self.origin: object = None
        self._prepared = lambda: self
        self.error: SpecError | None = None
        self.chunks: list[list[Job]] = []
        self.options: dict[str, Any] = {}
        self.closed = False
        self.answer: Callable[[Job], object] = lambda job: done(b"out\n")

    def template(self, spec: Spec, *, ready: int) -> Layer:
        assert ready == 0  # a batch uses no ready sandboxes
        self.spec = spec
        if self.error is not None:
            raise self.error
        return self

    def close(self) -> None:
        self.closed = True

    def _run_batch(
        self,
        origin: object,
        jobs: list[Job],
        *,
        progress: Callable[[int], object],
        each: Callable[[int, object], object],
        **options: Any,
    ) -> None:
        self.origin = origin
        self.chunks.append(jobs)
        self.options = options
        for i in reversed(range(len(jobs))):  # results may come in any order
            each(i, self.answer(jobs[i]))
            progress(len(jobs) - i)


@pytest.fixture
def layer(monkeypatch: pytest.MonkeyPatch) -> Layer:
    result = Layer()
    monkeypatch.setattr(fastns, "Template", result.template)
    monkeypatch.setattr(cli_batch, "run_batch_by", result._run_batch)
    return result


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def jobs_file(place: Path, *lines: str) -> Path:
    path = place / "jobs.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def results(capfd: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capfd.readouterr().out.splitlines()]


# ---- jobs ----


@pytest.mark.parametrize(
    ("line", "job", "head"),
    [
        ('["ls", "-l"]', Job(["ls", "-l"]), {}),
        ('{"args": ["ls"]}', Job(["ls"]), {}),
        ('\ufeff{"args": ["ls"]}\r', Job(["ls"]), {}),
        (
            '{"args": ["é", ""], "input": "ü\\u0000", "cwd": "/tmp", "timeout": 2.5}',
            Job(["é", ""], "ü\0".encode(), cwd="/tmp", timeout=2.5),
            {},
        ),
        ('{"args": ["ls"], "input": ""}', Job(["ls"], b""), {}),
        (
            '{"args": ["ls"], "input": null, "env": null, "cwd": null, "timeout": null}',
            Job(["ls"]),
            {},
        ),
        (
            '{"args": ["ls"], "env": {"A": "1", "B": ""}}',
            Job(["ls"], env={"PATH": "/bin", "A": "1", "B": ""}),
            {},
        ),
        ('{"args": ["ls"], "timeout": 3}', Job(["ls"], timeout=3), {}),
        ('{"args": ["ls"], "id": null}', Job(["ls"]), {"id": None}),
        (
            '{"args": ["ls"], "id": [1, {"a": "\\ud800"}]}',
            Job(["ls"]),
            {"id": [1, {"a": "\ud800"}]},
        ),
    ],
)
def test_a_line_becomes_a_job(line: str, job: Job, head: dict[str, object]) -> None:
    entry = entry_of(line.encode(), ENV)
    assert entry.job == job
    assert json.loads(line_of(entry.head, 3, {})) == {**head, "index": 3}


def test_a_deeply_nested_id() -> None:
    """An `id` that could be read can be written, though json.dumps() raises RecursionError here,
    deeper in the stack."""

    def deeper(steps: int, head: str) -> str:
        return deeper(steps - 1, head) if steps else line_of(head, 3, {})

    depth = 900
    line = '{"args": ["a"], "id": ' + "[" * depth + "]" * depth + "}"
    entry = entry_of(line.encode(), ENV)
    assert deeper(100, entry.head) == "{" + '"id": ' + "[" * depth + "]" * depth + ', "index": 3}'


BAD_LINES: list[tuple[bytes, str]] = [
    (b"7", "7: expected an object or a list"),
    (b'"ls -l"', "'ls -l': expected an object or a list"),
    (b"{}", "args: expected a list of strings"),
    (b'{"args": "ls -l"}', "args: expected a list of strings"),
    (b'{"args": ["sleep", 1]}', "args: expected a list of strings"),
    (b"[7]", "args: expected a list of strings"),
    (b"[]", "args: empty"),
    (b'[""]', "args: the command is an empty string"),
    (b'["a\\u0000b"]', "args: 'a\\x00b': expected text without NUL bytes"),
    (b'["\\ud800"]', "args: "),
    (b'{"args": ["ls"], "argv": []}', "'argv': no such key: expected one of args, input, env"),
    (b'{"args": ["ls"], "input": 7}', "input: 7: expected a string"),
    (b'{"args": ["ls"], "input": "\\ud800"}', "input: "),
    (b'{"args": ["ls"], "env": ["A=1"]}', "env: ['A=1']: expected an object of strings"),
    (b'{"args": ["ls"], "env": {"A": 1}}', "env: {'A': 1}: expected an object of strings"),
    (b'{"args": ["ls"], "env": {"A=": "1"}}', "env: 'A=': expected a name without '='"),
    (b'{"args": ["ls"], "cwd": 7}', "cwd: 7: expected a string"),
    (b'{"args": ["ls"], "cwd": "tmp"}', "cwd: 'tmp': expected an absolute path"),
    (b'{"args": ["ls"], "timeout": "2s"}', "timeout: '2s'"),
    (b'{"args": ["ls"], "timeout": true}', "timeout: True"),
    (b'{"args": ["ls"], "timeout": 0}', "timeout: 0: expected seconds above zero"),
    (b'{"args": ["ls"], "timeout": -1}', "timeout: -1: expected seconds above zero"),
    (b'{"args": ["ls"], "timeout": 1e999}', "timeout: inf"),
    (b'{"args": ["ls"], "timeout": NaN}', "NaN is not JSON"),
    (b'{"args": ["ls"], "id": [1e999]}', "not JSON"),
    (b'{"args": ["ls"]', "not JSON: Expecting ',' delimiter (column 16)"),
    (b'["ls"] ["ls"]', "not JSON: Extra data (column 8)"),
    (b'["\xff"]', "not UTF-8"),
    (b"[" * 100_000, "cannot read this JSON: "),
    (b'{"args": ["ls"], "id": ' + b"1" * 5000 + b"}", "cannot read this JSON: "),
]


@pytest.mark.parametrize(("line", "told"), BAD_LINES, ids=lambda case: str(case)[:40])
def test_a_bad_line_is_named_and_nothing_is_started(
    layer: Layer, place: Path, capfd: pytest.CaptureFixture[str], line: bytes, told: str
) -> None:
    path = place / "jobs.jsonl"
    path.write_bytes(b'["ls"]\n' * 15 + b"\n" + line + b'\n["ls"]\n')
    assert main(["batch", "jobs.jsonl"]) == 125
    out, err = capfd.readouterr()
    first, second = err.splitlines()
    assert first.startswith("fastns: jobs.jsonl:17: ")
    assert told in first
    assert second == "hint: see fastns batch --help"
    assert (out, layer.chunks) == ("", [])
    assert layer.closed


def test_the_error_of_a_bad_line(
    layer: Layer, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    jobs_file(place, *['["ls"]'] * 16, '{"args": "ls"}')
    assert main(["batch", "jobs.jsonl"]) == 125
    first = capfd.readouterr().err.splitlines()[0]
    assert first == "fastns: jobs.jsonl:17: args: expected a list of strings"


def test_the_chunks_before_a_bad_line_have_run(
    layer: Layer, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    jobs_file(place, *['["ls"]'] * 2500, "{}")
    assert main(["batch", "-j", "4", "jobs.jsonl"]) == 125
    out, err = capfd.readouterr()
    assert [len(chunk) for chunk in layer.chunks] == [1000, 1000]
    assert [json.loads(line)["index"] for line in out.splitlines()] == list(range(2000))
    assert err.startswith("fastns: jobs.jsonl:2501: args: ")


def test_an_endless_line(
    layer: Layer,
    place: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_jsonl, "CHUNK_BYTES", 1 << 20)
    assert main(["batch", "/dev/zero"]) == 125
    assert capfd.readouterr().err.startswith("fastns: /dev/zero:1: longer than 1 MiB\n")


def test_blank_lines_and_no_newline_at_the_end(
    layer: Layer, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (place / "jobs.jsonl").write_text('\n["a"]\n \r\n\n["b"]')
    assert main(["batch", "jobs.jsonl"]) == 0
    assert layer.chunks == [[Job(["a"]), Job(["b"])]]
    assert [result["index"] for result in results(capfd)] == [0, 1]


def test_no_jobs(layer: Layer, place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["batch", "/dev/null"]) == 0
    assert layer.chunks == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("width", [10, 1 << 17])
def test_lines_longer_and_shorter_than_a_read(
    layer: Layer, place: Path, width: int, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [str(i) * width for i in range(1, 6)]
    jobs_file(place, *(json.dumps({"args": ["x"], "input": word}) for word in words))
    assert main(["batch", "jobs.jsonl"]) == 0
    assert [job.input for job in layer.chunks[0]] == [word.encode() for word in words]


def test_a_chunk_is_bounded_by_its_bytes(
    layer: Layer, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_jsonl, "CHUNK_BYTES", 1000)
    jobs_file(place, *[json.dumps(["x" * 300])] * 10)
    assert main(["batch", "-o", "out", "jobs.jsonl"]) == 0
    assert [len(chunk) for chunk in layer.chunks] == [4, 4, 2]


def test_a_chunk_after_much_output_is_smaller(
    layer: Layer, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_batch, "CHUNK", 10)
    monkeypatch.setattr(cli_batch, "CHUNK_OUTPUT", 500)
    layer.answer = lambda job: done(b"x" * 100)
    jobs_file(place, *['["ls"]'] * 30)
    assert main(["batch", "-j", "3", "-o", "out", "jobs.jsonl"]) == 0
    assert [len(chunk) for chunk in layer.chunks] == [10, 5, 5, 5, 5]


def test_a_chunk_has_more_jobs_than_run_at_once() -> None:
    batch = Batch(lambda *_args, **_more: None, None, None, lambda *_: None)  # type: ignore[arg-type]
    assert [batch.limit(n) for n in (1, 500, 4096)] == [1000, 1000, 8192]


# ---- options ----


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (
            [],
            {
                "concurrency": len(os.sched_getaffinity(0)),
                "timeout": None,
                "max_output": 16 << 20,
            },
        ),
        (["-j", "7"], {"concurrency": 7}),
        (["-j4096"], {"concurrency": 4096}),
        (["--concurrency=1"], {"concurrency": 1}),
        (["--timeout", "2.5"], {"timeout": 2.5}),
        (["--timeout", "1m30s"], {"timeout": 90.0}),
        (["--max-output", "65536"], {"max_output": 65536}),
        (["--max-output", "64k"], {"max_output": 65536}),
        (["--max-output", "1M"], {"max_output": 1 << 20}),
        (["--max-output", "2MiB"], {"max_output": 2 << 20}),
        (["--max-output", "1gb"], {"max_output": 1 << 30}),
        (["--max-output", "1t"], {"max_output": 1 << 40}),
    ],
)
def test_options_of_the_batch(
    layer: Layer, place: Path, words: list[str], options: dict[str, Any]
) -> None:
    jobs_file(place, '["ls"]')
    assert main(["batch", *words, "-o", "out", "jobs.jsonl"]) == 0
    assert {name: layer.options[name] for name in options} == options


def test_the_sandbox_is_described_as_for_run(layer: Layer, place: Path) -> None:
    (place / "data").mkdir()
    jobs_file(place, '{"args": ["ls"], "env": {"B": "2"}}')
    words = ["--hostname", "h", "-v", "data:/x:ro", "--ulimit", "nofile=64", "-e", "A=1"]
    more = ["-w", "/tmp", "--network", "host", "--userns", "auto", "--no-default-mounts"]
    assert main(["batch", "jobs.jsonl", *words, *more, "-o", "out"]) == 0
    spec = layer.spec
    assert (spec.hostname, spec.cwd, spec.network) == ("h", "/tmp", "host")
    assert (spec.env, spec.default_mounts) == ({"A": "1"}, False)
    assert [mount.destination for mount in spec.mounts] == ["/x"]
    assert layer.chunks[0][0].env == {**spec.environment(), "B": "2"}


BAD_OPTIONS: list[tuple[list[str], str]] = [
    ([], "FILE"),
    (["missing.jsonl"], "missing.jsonl: No such file"),
    (["."], ".: Is a directory"),
    (["jobs.jsonl", "more"], "unexpected argument: more"),
    (["jobs.jsonl", "-"], "unexpected argument: -"),
    (["jobs.jsonl", "--dry-run"], "unknown option: --dry-run"),
    (["jobs.jsonl", "-j"], "-j"),
    (["jobs.jsonl", "-j", "0"], "--concurrency 0"),
    (["jobs.jsonl", "-j", "4097"], "--concurrency 4097"),
    (["jobs.jsonl", "-j", "9" * 5000], "--concurrency 999"),
    (["jobs.jsonl", "-j", "two"], "--concurrency two"),
    (["jobs.jsonl", "--timeout", "soon"], "--timeout soon"),
    (["jobs.jsonl", "--timeout", "0"], "--timeout 0"),
    (["jobs.jsonl", "--max-output", "0"], "max_output: '0': expected bytes, or text"),
    (["jobs.jsonl", "--max-output", "-1"], "max_output: '-1': expected bytes, or text"),
    (["jobs.jsonl", "--max-output", "1.5m"], "max_output: '1.5m': expected bytes, or text"),
    (["jobs.jsonl", "--max-output", "much"], "max_output: 'much': expected bytes, or text"),
    (["jobs.jsonl", "-o", "no/where"], "--output no/where: No such file"),
    (["jobs.jsonl", "-o", "jobs.jsonl"], "--output jobs.jsonl: the jobs are read from it"),
    (["jobs.jsonl", "-w", "relative"], "relative"),
    (["jobs.jsonl", "-v", "nowhere"], "--volume nowhere"),
]


@pytest.mark.parametrize(("words", "told"), BAD_OPTIONS, ids=lambda case: str(case)[:60])
def test_a_wrong_option_is_125_and_two_lines(
    layer: Layer, place: Path, words: list[str], told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = jobs_file(place, '["ls"]')
    assert main(["batch", *words]) == 125
    out, err = capfd.readouterr()
    first, second = err.splitlines()
    assert told in first
    assert second.startswith("hint: ")
    assert (out, layer.chunks) == ("", [])
    assert path.read_text() == '["ls"]\n'


def test_a_wrong_field_leads_to_its_flag_and_this_help(
    layer: Layer, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["batch", "-w", "relative", "/dev/null"]) == 125
    hint = capfd.readouterr().err.splitlines()[1]
    assert hint == "hint: set by --workdir; see fastns batch --help"


def test_help_describes_jobs_and_results(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["batch", "--help"]) == 0
    text = capsys.readouterr().out
    words = (*_jsonl.KEYS, "truncated", "stdout_base64", "--max-output", "--rootfs", "example:")
    words += tuple({field.name for field in fields(Usage)} - {"max_rss_exact"})
    assert [word for word in words if word not in text] == []
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("verbose", [False, True])
def test_a_spec_that_no_template_accepts_runs_from_a_plan(
    layer: Layer,
    place: Path,
    verbose: bool,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer.error = SpecError("init", "not here")
    plan = object()
    monkeypatch.setattr(fastns, "compile", lambda spec: plan)
    jobs_file(place, '["ls"]')
    assert main(["batch", "jobs.jsonl", *(["--verbose"] if verbose else [])]) == 0
    assert layer.origin is plan
    told = "fastns: batch: using the compiled plan, not a template: init: not here\n"
    assert capfd.readouterr().err == (told if verbose else "")


def test_verbose_names_the_template(
    layer: Layer, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["batch", "--verbose", "/dev/null"]) == 0
    assert capfd.readouterr().err == "fastns: batch: using a template\n"


# ---- results ----


def test_results_are_in_the_order_of_the_jobs(
    layer: Layer, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    layer.answer = lambda job: done(str(job.args[0]).encode())
    jobs_file(place, *(f'{{"args": ["a{i}"], "id": "job {i}"}}' for i in range(2345)))
    assert main(["batch", "jobs.jsonl"]) == 0
    found = [(r["index"], r["id"], r["stdout"]) for r in results(capfd)]
    assert found == [(i, f"job {i}", f"a{i}") for i in range(2345)]


def test_a_result(layer: Layer, place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    jobs_file(place, '["ls"]')
    assert main(["batch", "jobs.jsonl"]) == 0
    assert results(capfd) == [
        {
            "index": 0,
            "exit_code": 0,
            "returncode": 0,
            "signal": None,
            "stdout": "out\n",
            "stderr": "",
            "wall_time": 0.75,
            "usage": {"user_time": 0.25, "system_time": 0.5, "max_rss": 4096},
            "cause": "exited",
            "timed_out": False,
            "limits": [],
        }
    ]


def test_fields_of_each_kind_of_end() -> None:
    late = TimeoutExpired(["x"], 2.5, b"so far", b"")
    late.returncode, late.usage, late.wall_time = -9, USAGE, 2.5
    late.limits = ("memory",)
    keys = ("exit_code", "returncode", "signal", "timed_out")
    found = [
        tuple(fields_of(result)[key] for key in keys)
        for result in (done(), done(returncode=3), done(returncode=-11), late)
    ]
    assert found == [
        (0, 0, None, False),
        (3, 3, None, False),
        (139, -11, "SIGSEGV", False),
        (124, -9, "SIGKILL", True),
    ]
    assert fields_of(late)["stdout"] == "so far"
    assert (fields_of(late)["cause"], fields_of(late)["limits"]) == ("timeout", ("memory",))


def test_fields_of_a_failed_start() -> None:
    error = SpawnError("exec", errno.ENOENT, path="a\nb")
    assert fields_of(error) == {
        "error": "exec a\\nb: No such file or directory (ENOENT)",
        "stage": "exec",
        "errno": "ENOENT",
        "path": "a\nb",
    }


def test_bytes_that_are_not_text_come_as_base64_too() -> None:
    fields = fields_of(done(b"\xffa\r\n", truncated=True))
    assert fields["stdout"] == "\ufffda\r\n"
    assert base64.b64decode(str(fields["stdout_base64"])) == b"\xffa\r\n"
    assert fields["truncated"] is True
    assert "stderr_base64" not in fields
    assert "truncated" not in fields_of(done(b"a"))


@pytest.mark.parametrize(
    "bad", [done(returncode=1), done(returncode=-9), SpawnError("exec", errno.ENOENT)]
)
def test_one_failure_is_exit_code_1(layer: Layer, place: Path, bad: object) -> None:
    layer.answer = lambda job: bad if job.args == ["bad"] else done()
    jobs_file(place, '["ls"]', '["bad"]', '["ls"]')
    assert main(["batch", "-o", "out", "jobs.jsonl"]) == 1
    assert len((place / "out").read_text().splitlines()) == 3


def test_an_output_file_is_emptied_first(layer: Layer, place: Path) -> None:
    jobs_file(place, '["ls"]')
    (place / "out").write_text("before\n" * 1000)
    assert main(["batch", "-o", "out", "jobs.jsonl"]) == 0
    assert json.loads((place / "out").read_text())["index"] == 0
    assert stat.S_IMODE((place / "out").stat().st_mode) & 0o111 == 0


def test_an_output_that_cannot_be_written(
    layer: Layer, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    jobs_file(place, '["ls"]')
    assert main(["batch", "-o", "/dev/full", "jobs.jsonl"]) == 125
    assert "--output /dev/full: No space left" in capfd.readouterr().err
    assert layer.closed


# ---- the progress bar ----


class FakeProgress:
    """The part of rich.progress.Progress that is used."""

    def __init__(self, *columns: object, **options: object) -> None:
        self.options = options
        self.shown: list[dict[str, Any]] = []
        made.append(self)

    def __enter__(self) -> FakeProgress:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def add_task(self, _text: str, **fields: Any) -> int:
        self.total = fields["total"]
        return 0

    def update(self, _task: int, **fields: Any) -> None:
        self.shown.append(fields)

    def refresh(self) -> None:
        pass


made: list[FakeProgress] = []


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """stderr is a terminal, and rich is installed."""
    modules = {name: ModuleType(name) for name in ("rich", "rich.console", "rich.progress")}
    kind: Any = lambda *_args, **_options: SimpleNamespace()  # noqa: E731
    vars(modules["rich.console"]).update(Console=kind)
    vars(modules["rich.progress"]).update(
        Progress=FakeProgress, BarColumn=kind, MofNCompleteColumn=kind, TextColumn=kind
    )
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(os, "isatty", lambda fd: fd == 2)
    yield
    made.clear()


def test_a_bar_shows_done_total_and_failures(layer: Layer, place: Path, terminal: None) -> None:
    layer.answer = lambda job: done(returncode=int(job.args == ["bad"]))
    jobs_file(place, *['["bad"]'] * 3, *['["ls"]'] * 1200)
    assert main(["batch", "-o", "out", "jobs.jsonl"]) == 1
    (bar,) = made
    assert bar.total == 1203
    assert (bar.shown[-1]["completed"], bar.shown[-1]["failed"]) == (1203, 3)
    assert bar.shown[-1]["rate"].endswith("/s")
    assert len((place / "out").read_text().splitlines()) == 1203


def test_the_total_of_a_pipe_is_not_known(layer: Layer, place: Path, terminal: None) -> None:
    os.mkfifo(place / "pipe")
    fd = os.open(place / "pipe", os.O_RDWR)
    try:
        os.write(fd, b'["ls"]\n{}\n')
        assert main(["batch", "-o", "out", "pipe"]) == 125
    finally:
        os.close(fd)
    assert made[0].total is None


def test_without_rich_nothing_is_shown(
    layer: Layer,
    place: Path,
    terminal: None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    jobs_file(place, '["ls"]')
    assert main(["batch", "-o", "out", "jobs.jsonl"]) == 0
    assert (made, capfd.readouterr().err) == ([], "")


@pytest.mark.parametrize("terminals", [(), (1, 2)])
def test_no_bar_without_a_terminal_or_among_the_results(
    layer: Layer,
    place: Path,
    terminal: None,
    terminals: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(os, "isatty", lambda fd: fd in terminals)
    jobs_file(place, '["ls"]')
    assert main(["batch", "jobs.jsonl"]) == 0
    assert made == []
