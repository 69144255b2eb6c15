"""`fastns compile`, and what fastns-exec checks before it starts anything. Needs no privileges."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from native import PROGRAM, compiled, execute

import fastns
from fastns import _planfile
from fastns.cli import main
from fastns.cli.compile import LIMITS

IDENTITY = {
    "build": 8,
    "machine": 32,
    "uid": 236,
    "gid": 248,
    "capabilities": 256,
    "userns": 264,
    "oom_score_adj": 272,
}
"""The offsets of these fields in a plan file."""


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    return compiled(tmp_path / "a.plan")


def refused(*words: str | Path) -> tuple[str, str]:
    """Run a fastns-exec that must refuse to start. Return its error and its hint."""
    done = execute(*words)
    assert (done.returncode, done.stdout) == (125, "")
    first, *rest = done.stderr.splitlines()
    assert first.startswith("fastns: ")
    assert all(line.startswith("hint: ") for line in rest)
    assert len(rest) <= 1
    return first.removeprefix("fastns: "), "".join(rest).removeprefix("hint: ")


# ---- fastns compile ----


def test_only_the_owner_can_read_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.plan"
    path.write_text("before")
    path.chmod(0o666)
    compiled(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["a.plan"]


LIMIT_WORDS = {
    "memory": ["--memory", "64m"],
    "memory_swap": ["--memory", "64m", "--memory-swap", "-1"],
    "pids_limit": ["--pids-limit", "5"],
    "cpus": ["--cpus", "0.5"],
    "cpu_time": ["--cpu-time", "2s"],
    "cpu_weight": ["--cpu-weight", "50"],
    "cpuset": ["--cpuset-cpus", "0"],
    "io": ["--io", "/dev/null:rbps=1"],
    "cgroup_parent": ["--cgroup-parent", "/x", "--memory", "64m"],
}


@pytest.mark.parametrize("field", LIMITS)
def test_limits_by_cgroups_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], field: str
) -> None:
    assert main(["compile", *LIMIT_WORDS[field], "-o", f"{tmp_path}/a.plan"]) == 125
    error, hint = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"fastns: --[a-z-]+: a limit by cgroups cannot be in a plan file", error)
    assert error.split()[1].rstrip(":") in LIMIT_WORDS[field]
    assert "systemd-run" in hint
    assert os.listdir(tmp_path) == []


def test_all_fields_that_take_a_cgroup_are_refused() -> None:
    spec = fastns.Spec(memory="1m", memory_swap=-1, pids_limit=1, cpus=1, cpu_time=1, cpuset="0")
    assert set(vars(spec.limits())) - {"io"} <= {*LIMITS}


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ([], "no -o PLAN given"),
        (["-o", "x/a.plan"], "-o x/a.plan: x: No such file or directory"),
        (["-o", "."], "-o .: a directory"),
        (["-o", "a", "--timeout", "0"], "--timeout 0: expected a time above zero"),
        (["-o", "a", "--timeout", "9999999h"], "--timeout 9999999h: too long"),
        (["-o", "a", "--status-fd", "3"], "--status-fd: cannot be stored in a plan"),
        (
            ["-o", "a", "--max-output", "x"],
            'max_output: \'x\': expected bytes, or text such as "64m" or "1g"',
        ),
        (["-o", "a", "-t"], "-t: cannot be stored in a plan"),
        (["-o", "a", "--uts", "x"], "--uts x: not a namespace mode"),
        (["-o", "a", "true"], "unexpected argument: true"),
        (["-o", "a", "--", "true", "-x"], "unexpected argument: --"),
    ],
)
def test_wrong_arguments(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    error: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["compile", *words]) == 125
    assert capsys.readouterr().err.splitlines()[0] == f"fastns: {error}"
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("words", [["true"], ["--", "true"], ["true", "-x"]])
def test_a_command_in_a_plan_is_said_to_belong_to_the_program(
    capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert main(["compile", "-o", "a", *words]) == 125
    assert capsys.readouterr().err.splitlines()[1].endswith(": fastns-exec PLAN -- COMMAND")


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", "--dry-run", "-o", f"{tmp_path}/a.plan"]) == 0
    assert (
        capsys.readouterr().out.splitlines()
        == fastns.compile(fastns.Spec(die_with_parent=True)).describe()
    )
    assert os.listdir(tmp_path) == []


def test_a_directory_of_others_is_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tmp_path.chmod(0o777)
    assert main(["compile", "-o", f"{tmp_path}/a.plan"]) == 125
    assert "others may write to" in capsys.readouterr().err


def test_hints_name_options_of_the_command_line() -> None:
    plan = fastns.compile(fastns.Spec(rootfs="/"))
    texts = [hint[4] for hint in _planfile.hints(plan, lambda text: text.upper())]
    assert len(texts) > 50
    assert all(text == text.upper() for text in texts)
    found = {hint[1]: hint[4] for hint in _planfile.hints(plan, str) if hint[1]}
    assert set(found) == {detail for _, _, detail in _planfile.DETAILS}
    assert b"interpreter" in found["found"]


# ---- fastns-exec's arguments ----


def test_help_and_version() -> None:
    done = execute("--help")
    assert done.returncode == 0
    for word in ("usage: fastns-exec", "--timeout", "--status-fd", "fastns compile", "124"):
        assert word in done.stdout
    assert execute("-V").stdout == f"fastns-exec {fastns.__version__}\n"


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ([], "no plan given"),
        (["a"], "no command to run"),
        (["a", "--"], "no command to run"),
        (["a", ""], "the command is an empty string"),
        (["--memory", "1m", "a", "b"], "unknown option: --memory"),
        (["a", "--init=x", "b"], "unknown option: --init"),
        (["--timeout"], "--timeout: expected a value"),
        *(
            (
                ["--timeout", text, "a", "b"],
                f"--timeout {text}: expected a time above zero and at most 2^32 seconds",
            )
            for text in ("", "0", "-1", "1x", "s", ".", "1.2.3", "1 s", "1s ", "1m30", "99999999h")
        ),
        (["--status-fd", "x", "a", "b"], "--status-fd x: not a number"),
        (["--status-fd", "-1", "a", "b"], "--status-fd -1: not a number"),
        (["--status-fd", "77", "a", "b"], "--status-fd 77: not an open file descriptor"),
        (["--status-fd", "9" * 30, "a"], f"--status-fd {'9' * 30}: not an open file descriptor"),
        (
            ["--status-fd", "1", "a", "b"],
            "--status-fd 1: this is the command's stdout, so the command could forge or damage the "
            "status",
        ),
    ],
)
def test_wrong_arguments_of_fastns_exec(words: list[str], error: str) -> None:
    assert refused(*words)[0] == error


def test_wrong_arguments_are_in_the_status_too(tmp_path: Path) -> None:
    with open(tmp_path / "status", "wb") as file:
        fd = file.fileno()
        execute("--wrong", f"--status-fd={fd}", pass_fds=[fd])
    assert b'"cause": "failed"' in (tmp_path / "status").read_bytes()


# ---- which plans it accepts ----


def test_a_file_that_is_not_a_plan(tmp_path: Path) -> None:
    path = tmp_path / "a.plan"
    assert refused(path, "true")[0] == f"{path}: No such file or directory"
    for content in (b"", b"fnsplan\0", b"#!/bin/sh\n" + bytes(5000), bytes(5000)):
        path.write_bytes(content)
        assert refused(path, "true")[0] == f"{path}: not a plan file"
    assert refused(tmp_path, "true")[0] == f"{tmp_path}: Is a directory"
    os.mkfifo(tmp_path / "pipe")
    assert refused(tmp_path / "pipe", "true")[0] == f"{tmp_path}/pipe: not a regular file"
    assert refused("", "true")[0] == ": No such file or directory"
    assert refused(path / "x", "true")[0] == f"{path}/x: Not a directory"


@pytest.mark.parametrize(
    ("what", "error"),
    [
        ("build", "compiled by another build of fastns"),
        ("machine", "compiled for another machine or kernel"),
        ("uid", "compiled for another caller"),
        ("gid", "compiled for another caller"),
        ("capabilities", "compiled for another caller"),
        ("userns", "compiled for another caller"),
        ("oom_score_adj", "compiled for another caller"),
    ],
)
def test_a_plan_for_something_else(plan: Path, what: str, error: str) -> None:
    """A plan is refused if any part of its identity differs."""
    data = bytearray(plan.read_bytes())
    data[IDENTITY[what]] ^= 1
    plan.write_bytes(data)
    message, hint = refused(plan, "true")
    assert message.startswith(f"{plan}: {error} (")
    assert message.count("this is") == 1
    assert hint.startswith("compile it again")


def test_a_damaged_plan(plan: Path) -> None:
    whole = plan.read_bytes()
    for size in (288, 400, 900, len(whole) - 1):
        plan.write_bytes(whole[:size])
        assert refused(plan, "true")[0] == f"{plan}: the plan file is damaged"
    plan.write_bytes(whole + b"x")
    assert refused(plan, "true")[0] == f"{plan}: the plan file is damaged"


# ---- who may have written it ----


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_may_write(plan: Path, mode: int) -> None:
    plan.chmod(mode)
    error = f"{plan}: others may write to {plan} (mode {mode:04o})"
    assert refused(plan, "true")[0] == error


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
def test_a_directory_that_others_may_write(tmp_path: Path, mode: int) -> None:
    place = tmp_path / "place"
    place.mkdir()
    plan = compiled(place / "a.plan")
    place.chmod(mode)
    error = f"{plan}: others may write to {place} (mode {mode:04o})"
    assert refused(plan, "true")[0] == error
    done = subprocess.run([PROGRAM, "a.plan", "true"], cwd=place, capture_output=True, text=True)
    assert f"others may write to {place} " in done.stderr


def test_a_parent_directory_that_others_may_write(tmp_path: Path) -> None:
    (tmp_path / "open/own").mkdir(parents=True)
    plan = compiled(tmp_path / "open/own/a.plan")
    (tmp_path / "open").chmod(0o777)
    assert f"others may write to {tmp_path}/open (mode 0777)" in refused(plan, "true")[0]


def test_a_link_is_trusted_if_its_directory_is(tmp_path: Path) -> None:
    for name in ("own", "open", "other"):
        (tmp_path / name).mkdir()
    plan = compiled(tmp_path / "own/a.plan")
    (tmp_path / "open/link").symlink_to(plan)
    (tmp_path / "other/link").symlink_to("../own")
    (tmp_path / "open").chmod(0o1777)
    assert f"write to {tmp_path}/open " in refused(tmp_path / "open/link", "true")[0]
    (tmp_path / "own").chmod(0o777)
    assert f"write to {tmp_path}/own " in refused(tmp_path / "other/link/a.plan", "true")[0]


def test_links_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert "Too many levels of symbolic links" in refused(tmp_path / "a", "true")[0]
