"""Fixtures of the escape tests: the attacker and its targets on the host. Prints the table at the
end of `make escape`."""

import contextlib
import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import support
from escape.results import RESULTS
from processes import eventually


@pytest.fixture(scope="session")
def attack_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root that any user may enter, with only /attack, a setuid copy of it, and a device."""
    root = tmp_path_factory.mktemp("escape") / "root"
    for name in ("proc", "sys", "dev", "tmp", "run", "mnt"):
        (root / name).mkdir(parents=True)
    support.compile_static(Path(__file__).parent / "attack.c", root / "attack")
    shutil.copy(root / "attack", root / "attack-setuid").chmod(0o4755)
    if support.is_root():
        os.mknod(root / "device", stat.S_IFCHR, os.stat("/dev/full").st_rdev)
        (root / "device").chmod(0o666)
    return root


@pytest.fixture(scope="session")
def aims(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Targets on the host, as arguments of attacks: a file, a process, sockets."""
    canary = tmp_path_factory.mktemp("host") / "canary"
    canary.write_text("of the host")
    name = f"fastns-escape-{os.getpid()}"
    with contextlib.ExitStack() as stack:
        unix = stack.enter_context(socket.socket(socket.AF_UNIX))
        unix.bind(f"\0{name}")
        unix.listen(64)
        tcp = stack.enter_context(socket.socket())
        tcp.bind(("127.0.0.1", 0))
        tcp.listen(64)
        process = subprocess.Popen(["sleep", "1000"])
        stack.callback(process.wait)
        stack.callback(process.kill)
        comm = Path(f"/proc/{process.pid}/comm")  # the check for leaks compares names
        assert eventually(lambda: comm.read_text() == "sleep\n")
        yield {
            "file": str(canary),
            "socket": name,
            "port": str(tcp.getsockname()[1]),
            "pid": str(process.pid),
        }


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not RESULTS:
        return
    terminalreporter.section("what was tried")
    width = max(map(len, RESULTS))
    for case, (outcome, seen) in sorted(RESULTS.items(), key=place):
        terminalreporter.write_line(f"{case:{width}}  {outcome:22}  {seen}")


def place(row: tuple[str, object]) -> tuple[str, int, str]:
    """The sort key of a case: its family and number."""
    number = row[0].split()[0]
    return (number[0], int(number[1:]), row[0]) if number[1:].isdigit() else ("~", 0, row[0])
