"""The seed's use: a person at a terminal, with a shell in the container."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from processes import eventually, marked, marker, running
from seed.ways import SIGINT_CODE, Box, Outside, Terminal, Way, shell_code

from fastns import Spec

PROMPT = r"bash-[\d.]+# $"


def test_a_shell_on_a_terminal(way: Way, bash_rootfs: Path, outside: Outside) -> None:
    """The shell prompts and runs commands. Ctrl-C ends a command but not the shell."""
    box = Box(
        Spec(rootfs=bash_rootfs, hostname="container", env={"TERM": "dumb"}),
        ["--rootfs", str(bash_rootfs), "--hostname", "container", "-e", "TERM=dumb"],
    )
    word = marker()
    with Terminal(way.argv(box, "bash")) as terminal:
        first = terminal.read_to(PROMPT)
        assert "job control" not in first
        terminal.type("echo $$\n")
        assert "\r\n1\r\n" in terminal.read_to(PROMPT)
        terminal.type("hostname; pwd\n")
        assert "\r\ncontainer\r\n/\r\n" in terminal.read_to(PROMPT)
        outside.is_the_same(alive=1)

        terminal.type(f"sleep {word}\n")
        assert eventually(lambda: len(marked(word)) == 1)
        terminal.interrupt()
        assert "^C" in terminal.read_to(PROMPT)
        assert marked(word) == []
        terminal.type("echo $?\n")
        assert f"\r\n{SIGINT_CODE}\r\n" in terminal.read_to(PROMPT)

        terminal.type("exit 3\n")
        assert terminal.wait() == 3
    outside.is_the_same()


def test_ctrl_c_ends_a_command_that_does_not_handle_it(way: Way, outside: Outside) -> None:
    """The kernel drops SIGINT for the command, which is pid 1 of a namespace. Its caller receives
    SIGINT and kills it."""
    word = marker()
    with Terminal(way.argv(Box(), "sleep", word)) as terminal:
        assert eventually(lambda: len(running("sleep", word)) == 1)
        (pid,) = running("sleep", word)
        outside.is_the_same(alive=1)
        terminal.interrupt()
        returncode = terminal.wait()
    # After KeyboardInterrupt Python kills itself with SIGINT. A shell shows 130 for both.
    assert returncode == (SIGINT_CODE if way.name == "cli" else -signal.SIGINT)
    assert shell_code(returncode) == 130
    assert eventually(lambda: not marked(word))
    assert not os.path.exists(f"/proc/{pid}")
    outside.is_the_same()
