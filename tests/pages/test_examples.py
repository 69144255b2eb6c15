"""Each program in examples/ does what its first lines promise, for root and for other users."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import support

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(
    *words: str | Path, input: str = "", cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, words)],
        input=input,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


# ---- the judge ----

SUM = '#include <stdio.h>\nint main(void) { int a, b; scanf("%d %d", &a, &b); BODY }\n'
RIGHT = SUM.replace("BODY", 'printf("%d\\n", a + b); return 0;')


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    directory = tmp_path / "cases"
    directory.mkdir()
    for name, given, expected in (("one", "1 2", "3"), ("two", "20 22", "42")):
        (directory / f"{name}.in").write_text(given)
        (directory / f"{name}.out").write_text(expected)
    return directory


@pytest.mark.parametrize(
    ("name", "source", "verdict", "status"),
    [
        ("right.c", RIGHT, "AC", 0),
        ("right.py", "print(sum(map(int, input().split())))\n", "AC", 0),
        ("wrong.c", SUM.replace("BODY", 'puts("0"); return 0;'), "WA", 1),
        ("aborts.c", "void abort(void); int main(void) { abort(); }", "RE (SIGABRT)", 1),
        ("fails.py", "raise SystemExit(3)", "RE (exit code 3)", 1),
        ("endless.py", "while True: pass", "TLE", 1),
        ("loud.py", "print('x' * 3_000_000)", "OLE", 1),
    ],
)
def test_judge(
    cases: Path, tmp_path: Path, name: str, source: str, verdict: str, status: int
) -> None:
    submission = tmp_path / name
    submission.write_text(source)
    done = run(EXAMPLES / "judge.py", submission, cases)
    right = 0 if status else 2
    assert done.stdout == f"one: {verdict}\ntwo: {verdict}\n{right} of 2\n", done.stderr
    assert done.returncode == status


def test_contestants_see_nothing_of_each_other(cases: Path, tmp_path: Path) -> None:
    """Each test has a sandbox of its own: what one leaves, the next one does not see."""
    submission = tmp_path / "spy.py"
    submission.write_text(
        "import os, sys; print(len(os.listdir('/tmp'))); open('/tmp/left', 'w').close()"
    )
    for name in ("one", "two"):
        (cases / f"{name}.out").write_text("1")  # the program itself
    assert run(EXAMPLES / "judge.py", submission, cases).stdout == "one: AC\ntwo: AC\n2 of 2\n"


def test_judge_of_44_tests(cases: Path, tmp_path: Path) -> None:
    for number in range(42):
        (cases / f"{number}.in").write_text(f"{number} 1")
        (cases / f"{number}.out").write_text(f"{number + 1}")
    submission = tmp_path / "right.c"
    submission.write_text(RIGHT)
    assert run(EXAMPLES / "judge.py", submission, cases).stdout.endswith("44 of 44\n")


@pytest.mark.with_cgroups
def test_judge_limits_memory(cases: Path, tmp_path: Path) -> None:
    submission = tmp_path / "large.py"
    submission.write_text("x = b'x' * (1 << 30)")
    done = run(EXAMPLES / "judge.py", submission, cases)
    assert done.stdout == "one: MLE\ntwo: MLE\n0 of 2\n", done.stderr
    assert not done.stderr


def test_judge_says_which_limits_are_missing(cases: Path, tmp_path: Path) -> None:
    submission = tmp_path / "right.c"
    submission.write_text(RIGHT)
    done = run(EXAMPLES / "judge.py", submission, cases)
    assert done.stderr.startswith("not enforced here: ") == (not support.has_cgroups()), done.stderr


def test_judge_shows_what_does_not_compile(cases: Path, tmp_path: Path) -> None:
    submission = tmp_path / "broken.c"
    submission.write_text("int main(void) { return nothing; }\n")
    done = run(EXAMPLES / "judge.py", submission, cases)
    assert done.returncode == 1
    assert "CE (exited)" in done.stderr
    assert "nothing" in done.stderr


# ---- the agent ----


def test_agent(tmp_path: Path) -> None:
    """Calls share one directory. Late calls and long outputs are cut off, and a note says so."""
    calls = [
        {"command": "echo kept >note; echo lost >/tmp/note"},
        {"command": "cat note /tmp/note"},
        {"command": "sleep 60", "timeout": 0.3},
        {"command": "yes | head -c 100000"},
        {"command": "exit 7"},
    ]
    lines = "".join(f"{json.dumps(call)}\n" for call in calls)
    done = run(EXAMPLES / "agent.py", tmp_path, input=lines)
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert answers[0] == {"exit_code": 0, "output": ""}
    assert answers[1]["output"].startswith("kept\ncat: /tmp/note: No such file")
    assert (answers[2]["exit_code"], "too long" in answers[2]["note"]) == (124, True)
    assert (len(answers[3]["output"]), "cut off" in answers[3]["note"]) == (16384, True)
    assert answers[4] == {"exit_code": 7, "output": ""}
    assert (tmp_path / "note").read_text() == "kept\n"


# ---- the build ----

STEPS = """
[[step]]
name = "build"
run = "echo built >product"

[[step]]
name = "test"
run = "cat product; ls /sys/class/net"

[[step]]
name = "fail"
run = "exit 5"

[[step]]
name = "never"
run = "echo never"
"""


def test_ci(tmp_path: Path) -> None:
    """Steps share one copy of the source, without a network. The first failure ends the build."""
    steps, source = tmp_path / "steps.toml", tmp_path / "source"
    steps.write_text(STEPS)
    source.mkdir()
    (source / "file").write_text("")
    done = run(EXAMPLES / "ci.py", steps, source)
    lines = [line.partition(",")[0] for line in done.stdout.splitlines()]
    assert lines == [
        *("--- build", "--- build: exited 0"),
        *("--- test", "built", "lo", "--- test: exited 0"),
        *("--- fail", "--- fail: exited 5"),
    ], done.stderr
    assert done.returncode == 5
    assert [path.name for path in source.iterdir()] == ["file"]


def test_ci_ends_a_step_that_takes_too_long(tmp_path: Path) -> None:
    steps = tmp_path / "steps.toml"
    steps.write_text('[[step]]\nname = "slow"\nrun = "sleep 60"\ntimeout = 0.3\n')
    (tmp_path / "source").mkdir()
    done = run(EXAMPLES / "ci.py", steps, tmp_path / "source")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (124, "--- slow: over 0.3 s")


# ---- pytest and asyncio ----


def test_pytest_example() -> None:
    done = run(
        "-m", "pytest", "-p", "no:cacheprovider", "-q", EXAMPLES / "test_untrusted.py", cwd=EXAMPLES
    )
    assert done.returncode == 0, done.stdout
    assert "4 passed" in done.stdout


def test_asyncio_example() -> None:
    done = run("-W", "error", EXAMPLES / "async_tasks.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        str([n * n for n in range(10)]),
        "too long",
        "cancelled: True",
    ]
    assert not done.stderr


def test_every_example_has_a_test() -> None:
    text = Path(__file__).read_text()
    for path in EXAMPLES.glob("*.py"):
        assert f'"{path.name}"' in text
