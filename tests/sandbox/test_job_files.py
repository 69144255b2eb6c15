"""files= and outputs= of run() and of jobs, and stdin= of jobs."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import eventually, marked, marker, running

import fastns
from fastns import (
    CalledProcessError,
    Container,
    File,
    Job,
    Mount,
    SpawnError,
    Spec,
    SpecError,
    Template,
    TimeoutExpired,
)


@pytest.fixture(params=["run", "plan", "template", "container"])
def run(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Each way to run a command with files."""
    if request.param == "run":
        yield fastns.run
    elif request.param == "plan":
        yield lambda *args, **options: fastns.run(*args, spec=fastns.compile(), **options)
    else:
        kind = Template if request.param == "template" else Container
        with kind() as starter:
            yield starter.run


def test_in_and_out(run: Callable[..., Any]) -> None:
    done = run(
        ["sh", "-c", "cat /tmp/in >/tmp/out; cat /tmp/sub/b >>/tmp/out; id -u; exit 3"],
        files={"/tmp/in": "text ", "/tmp/sub/b": b"bytes"},
        outputs=["/tmp/out", "/tmp/missing", "/tmp"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.method) == (3, "0\n", "container")
    assert done.files == {"/tmp/out": b"text bytes", "/tmp/missing": None, "/tmp": None}
    assert not done.truncated


def test_without_outputs_there_are_none(run: Callable[..., Any]) -> None:
    assert run(["true"], files={"/tmp/a": "x"}).files == {}
    assert run(["true"]).files == {}


def test_what_a_file_may_be(tmp_path: Path) -> None:
    (tmp_path / "script").write_text("#!/bin/sh\necho $0\n")
    (tmp_path / "script").chmod(0o751)
    opened = (tmp_path / "script").open("rb")
    opened.seek(10)
    done = fastns.run(
        ["sh", "-c", "cd /tmp; stat -c '%n %a' ?; ./p; cat o s; cat b m"],
        files={
            "/tmp/p": tmp_path / "script",  # with its mode
            "/tmp/o": opened,  # from where it stands
            "/tmp/s": io.BytesIO(b"io\n"),
            "/tmp/b": bytearray(b"array\n"),
            "/tmp/m": File(memoryview(b"view\n"), mode=0o400),
            "/tmp/x": File(tmp_path / "script", mode=0o600),
        },
        capture_output=True,
        text=True,
    )
    assert done.stdout.split("\n")[:6] == ["b 644", "m 400", "o 644", "p 751", "s 644", "x 600"]
    assert done.stdout.endswith("./p\necho $0\nio\narray\nview\n")
    opened.close()


def test_a_megabyte() -> None:
    data = os.urandom(1 << 20)
    done = fastns.run(["cp", "/tmp/a", "/tmp/b"], files={"/tmp/a": data}, outputs=["/tmp/b"])
    assert done.files["/tmp/b"] == data


def test_a_spec_with_init() -> None:
    """A container's pid 1 is a reaper in any case."""
    done = fastns.run(
        ["sh", "-c", "cat /tmp/a; kill -ABRT $$"],
        spec=Spec(init=True),
        files={"/tmp/a": "x"},
        capture_output=True,
    )
    assert (done.stdout, done.returncode) == (b"x", -signal.SIGABRT)


def test_files_are_not_shared() -> None:
    with Template() as template:
        template.run(["true"], files={"/tmp/a": "x"})
        assert (
            template.run(["ls", "/tmp"], files={"/tmp/b": ""}, capture_output=True).stdout == b"b\n"
        )
    with Container() as container:  # a control: here they are
        container.run(["true"], files={"/tmp/a": "x"})
        done = container.run(["ls", "/tmp"], files={"/tmp/b": ""}, capture_output=True)
        assert done.stdout == b"a\nb\n"


def test_limits_on_what_is_read() -> None:
    spec = Spec(max_output=10)
    done = fastns.run(["sh", "-c", "seq 100 >/tmp/out"], spec=spec, outputs=["/tmp/out"])
    assert (done.files, done.truncated) == ({"/tmp/out": b"1\n2\n3\n4\n5\n"}, True)
    done = fastns.run(["sh", "-c", "echo 1 >/tmp/out"], spec=spec, outputs=["/tmp/out"])
    assert (done.files, done.truncated) == ({"/tmp/out": b"1\n"}, False)


@pytest.mark.parametrize(
    "make",
    [
        "mkfifo /tmp/out",
        "mkdir /tmp/out",
        "ln -s out /tmp/out",
        "ln -s /dev/zero /tmp/out",
        ": >/tmp/out; chmod 0 /tmp/out",
    ],
)
def test_an_output_that_is_no_readable_file(make: str) -> None:
    assert fastns.run(["sh", "-c", make], outputs=["/tmp/out"]).files == {"/tmp/out": None}


def test_after_a_timeout() -> None:
    with pytest.raises(TimeoutExpired) as caught:
        fastns.run(
            ["sh", "-c", "echo so far >/tmp/out; sleep 60"], outputs=["/tmp/out"], timeout=0.4
        )
    assert caught.value.files == {"/tmp/out": b"so far\n"}
    with pytest.raises(CalledProcessError):
        fastns.run(["false"], outputs=["/tmp/out"], check=True)


@pytest.mark.parametrize(
    ("path", "number"), [("/etc/x", errno.EROFS), ("/new/x", errno.EROFS), ("/tmp", errno.EISDIR)]
)
def test_a_file_that_cannot_be_put(path: str, number: int) -> None:
    for call in (fastns.run, lambda *a, **k: fastns.run_batch([Job(*a, **k)])[0]):
        try:
            outcome = call(["true"], files={"/tmp/ok": "", path: "x"})
        except SpawnError as error:
            outcome = error
        assert isinstance(outcome, SpawnError)
        assert (outcome.stage, outcome.errno) == ("file", number)
        assert path.startswith(str(outcome.path))
        assert number != errno.EROFS or "tmpfs" in str(outcome.hint)


def test_a_spec_with_limits_and_mounts() -> None:
    """Limits on files are for the command, and a mount may be the place."""
    spec = Spec(
        mounts=[Mount("/box", type="tmpfs", options=["X-mount.mkdir"])],
        rlimits=[fastns.Rlimit("fsize", 1000, 1000)],
    )
    big = b"x" * 100_000
    done = fastns.run(
        ["sh", "-c", "wc -c </box/in; head -c 2000 /dev/zero >/box/out"],
        spec=spec,
        files={"/box/in": big},
        outputs=["/box/in", "/box/out"],
        capture_output=True,
    )
    assert done.stdout == b"100000\n"
    assert done.files["/box/in"] == big
    assert len(done.files["/box/out"] or b"") == 1000


BAD: list[tuple[dict[str, Any], str]] = [
    ({"files": {"relative": ""}}, "files"),
    ({"files": {"/tmp/a": 5}}, "files"),
    ({"files": {"/tmp/a": None}}, "files"),
    ({"files": {"/tmp/a": io.StringIO("text")}}, "files"),
    ({"files": {"/tmp/a": Path("/missing")}}, "files"),
    ({"files": {"/tmp/a": File("", mode=0o10000)}}, "mode"),
    ({"files": ["/tmp/a"]}, "files"),
    ({"files": {5: ""}}, "files"),
    ({"outputs": "/tmp/a"}, "outputs"),
    ({"outputs": ["relative"]}, "outputs"),
    ({"outputs": [5]}, "outputs"),
    ({"outputs": 5}, "outputs"),
]


@pytest.mark.parametrize(("options", "field"), BAD)
def test_bad_input(options: dict[str, Any], field: str) -> None:
    with pytest.raises(SpecError) as caught:
        fastns.run(["true"], **options)
    assert caught.value.field == field
    with pytest.raises(SpecError) as caught:
        fastns.run_batch([["true"], Job(["true"], **options)])
    assert caught.value.field == f"jobs[1].{field}"


# ---- batches ----


def test_a_batch() -> None:
    jobs: list[Any] = [
        Job(
            ["sh", "-c", "cat /tmp/in; cp /tmp/in /tmp/out"],
            files={"/tmp/in": f"{i}\n"},
            outputs=["/tmp/out"],
        )
        for i in range(12)
    ]
    jobs[3] = ["echo", "plain"]
    jobs[4] = Job(["missing"], files={"/tmp/a": ""})
    jobs[5] = Job(["sleep", "60"], files={"/tmp/a": "kept"}, outputs=["/tmp/a"], timeout=0.3)
    results = fastns.run_batch(jobs, concurrency=3, text=True)
    for i, done in enumerate(results):
        if i == 3:
            assert getattr(done, "stdout", None) == "plain\n"
        elif i == 4:
            assert isinstance(done, SpawnError)
            assert done.stage == "exec"
        elif i == 5:
            assert isinstance(done, TimeoutExpired)
            assert done.files == {"/tmp/a": b"kept"}
        else:
            assert getattr(done, "stdout", None) == f"{i}\n"
            assert getattr(done, "files", None) == {"/tmp/out": f"{i}\n".encode()}


def test_stdin_of_a_job(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("first second")
    with (tmp_path / "in").open("rb") as file:
        file.seek(6)
        done = fastns.run_batch([Job(["cat"], stdin=file)])[0]
        assert getattr(done, "stdout", None) == b"second"
        file.seek(0)
        with Template() as template:
            (again,) = template.run_batch([Job(["cat"], stdin=file.fileno())])
            assert getattr(again, "stdout", None) == b"first second"
        for wrong in ({"input": b"x"}, {"input": ""}):
            with pytest.raises(SpecError, match="input is given"):
                fastns.run_batch([Job(["cat"], stdin=file, **wrong)], text=wrong["input"] == "")
    for bad in (fastns.PIPE, fastns.STDOUT, "text", -7, 1.5):
        with pytest.raises(SpecError) as caught:
            fastns.run_batch([Job(["cat"], stdin=bad)])  # type: ignore[arg-type]
        assert caught.value.field == "jobs[0].stdin"


def test_ctrl_c_ends_a_batch_with_files() -> None:
    mark = marker()
    main = threading.get_ident()
    timer = threading.Thread(
        target=lambda: (
            eventually(lambda: len(running("sleep", mark)) == 2)
            and signal.pthread_kill(main, signal.SIGINT)
        )
    )
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        fastns.run_batch([Job(["sleep", mark], files={"/tmp/a": ""})] * 9, concurrency=2)
    timer.join()
    assert eventually(lambda: not marked(mark))


def test_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("input")
    (tmp_path / "go").write_text("#!/bin/sh\ncat; cat /tmp/t >/tmp/o; printf '\\377' >/tmp/b")
    job = {
        "args": ["/tmp/go"],
        "stdin": "in",
        "files": {"/tmp/go": {"path": "go", "mode": "755"}, "/tmp/t": {"base64": "dGV4dA=="}},
        "outputs": ["/tmp/o", "/tmp/b", "/tmp/missing"],
    }
    (tmp_path / "jobs.jsonl").write_text(json.dumps(job) + "\n" + json.dumps(["true"]) + "\n")
    done = subprocess.run(
        [sys.executable, "-m", "fastns", "batch", str(tmp_path / "jobs.jsonl")],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    first, second = map(json.loads, done.stdout.splitlines())
    assert first["stdout"] == "input"
    assert first["files"] == {"/tmp/o": "text", "/tmp/b": {"base64": "/w=="}, "/tmp/missing": None}
    assert "files" not in second


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"stdin": 5}, "stdin"),
        ({"stdin": "missing"}, "stdin"),
        ({"files": ["a"]}, "files"),
        ({"files": {"/tmp/a": 5}}, "files"),
        ({"files": {"/tmp/a": {"text": "x", "path": "y"}}}, "files"),
        ({"files": {"/tmp/a": {"text": "x", "mode": 755}}}, "files"),
        ({"files": {"/tmp/a": {"base64": "?"}}}, "files"),
        ({"files": {"/tmp/a": "missing"}}, "files"),
        ({"outputs": "/tmp/a"}, "outputs"),
        ({"outputs": [5]}, "outputs"),
    ],
)
def test_a_wrong_line(tmp_path: Path, fields: dict[str, Any], field: str) -> None:
    (tmp_path / "jobs.jsonl").write_text(json.dumps({"args": ["true"], **fields}) + "\n")
    done = subprocess.run(
        [sys.executable, "-m", "fastns", "batch", "jobs.jsonl"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 125
    assert len(done.stderr.splitlines()) == 2 or "missing" in done.stderr
    assert field in done.stderr
