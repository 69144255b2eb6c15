"""`fastns completion`: bash and fish offer the right words, and zsh can read its script."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import support

from fastns.cli import VERBS, main
from fastns.cli._outline import verbs


@pytest.fixture
def script(capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest) -> str:
    shell: str = request.node.callspec.params.get("shell", "bash")
    if shutil.which(shell) is None:
        support.skip_missing(shell)
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


def by_bash(script: str, words: list[str]) -> set[str]:
    code = """
    eval "$1"; shift
    COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
    _fastns 2>/dev/null # compopt fails outside a completion
    printf '%s\\n' "${COMPREPLY[@]}"
    """
    command = ["bash", "--norc", "-c", code, "-", script, *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stderr == ""
    return set(done.stdout.split())


def by_fish(script: str, words: list[str], home: str) -> set[str]:
    code = "source (echo $argv[1] | psub); complete -C $argv[2]"
    command = ["fish", "--no-config", "-c", code, script, " ".join(words)]
    done = subprocess.run(command, capture_output=True, text=True, env={"HOME": home})
    return {line.partition("\t")[0] for line in done.stdout.splitlines()}


CASES: list[tuple[str, set[str], set[str]]] = [
    ("fastns ", {"run", "rootfs", "completion"}, {"--rootfs"}),
    ("fastns ru", {"run"}, {"batch"}),
    ("fastns run --over", {"--overlay"}, {"--rootfs"}),
    ("fastns batch --concur", {"--concurrency"}, {"--rm"}),
    ("fastns run --network ", {"none", "host"}, {"private"}),
    ("fastns run --net ho", {"host"}, {"none"}),
    ("fastns run --pid ", {"private", "host"}, {"none"}),
    ("fastns run --max-output 5 --on-output-limit k", {"kill"}, {"truncate"}),
    ("fastns rootfs b", {"build"}, {"run"}),
    ("fastns rootfs build x --with p", {"python", "perl"}, {"gcc"}),
    ("fastns completion ", {"bash", "zsh", "fish"}, {"run"}),
    ("fastns doctor --j", {"--json"}, {"--rootfs"}),
]


@pytest.mark.parametrize("shell", ["bash", "fish"])
@pytest.mark.parametrize(("line", "offered", "not_offered"), CASES, ids=[case[0] for case in CASES])
def test_what_is_offered(
    script: str,
    shell: str,
    line: str,
    offered: set[str],
    not_offered: set[str],
    tmp_path: Path,
) -> None:
    """The shell offers the words that fit the line, and no others of the case."""
    words = line.split(" ")
    found = by_bash(script, words) if shell == "bash" else by_fish(script, words, str(tmp_path))
    assert offered <= found
    assert not found & not_offered


@pytest.mark.parametrize("shell", ["bash"])
def test_the_command_of_a_run_is_not_completed_as_options(script: str, shell: str) -> None:
    """Wherever the options end, the words after them belong to the command, not to fastns."""
    for options in (["--rootfs", "x"], ["-v", "a", ":", "b"], ["--hostname", "=", "x"], ["--rm"]):
        assert "--overlay" in by_bash(script, ["fastns", "run", *options, "--ov"])
        for end in ([], ["--"]):
            words = ["fastns", "run", *options, *end, "ls", "--ov"]
            assert "--overlay" not in by_bash(script, words)
            assert "ls" in by_bash(script, ["fastns", "run", *options, *end, "l"])


@pytest.mark.parametrize("shell", ["zsh"])
def test_zsh_reads_it(script: str, shell: str) -> None:
    """_arguments is replaced by a function that prints its arguments."""
    code = """
    _arguments() { print -rl -- "$@" } ; _describe() { print -rl -- $verbs }
    words=(fastns run "") CURRENT=3
    """
    done = subprocess.run(
        ["zsh", "-f", "-c", f"{code}\n{script}"], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert any(line.startswith("*--overlay[") for line in done.stdout.splitlines())
    assert "(-):command: _command_names -e" in done.stdout


def test_every_verb_and_option_is_known() -> None:
    outline = {verb.name: verb for verb in verbs()}
    assert list(outline) == list(VERBS)
    assert outline["rootfs"].action == "build"
    assert outline["run"].runs_command
    options = {name for verb in outline.values() for each in verb.options for name in each.names}
    assert {"--rootfs", "-v", "--net", "--with", "--json", "--concurrency"} <= options


@pytest.mark.parametrize("words", [["ksh"], [""], ["BASH"]])
def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert main(["completion", *words]) == 125
    assert "hint: one of bash, zsh, fish" in capsys.readouterr().err
