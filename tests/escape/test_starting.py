"""A4 and A5: a program that already runs inside or beside a sandbox attacks a process that is about
to execute a command. The attacker has no filter and, in A4, all capabilities in its namespaces."""

import contextlib
import ctypes
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import support
from escape.looking import STARTS
from escape.results import RESULTS
from processes import server_pid

import fastns
from fastns import Spec, Template

CASES = ("A4 a process that joins", "A4 a start that joins", "A5 a child in the caller's memory")
SPAWNS = 10_000 if support.LONG else 150


@contextlib.contextmanager
def trying(root: Path, name: str, argument: str, output: list[str], **fields: Any) -> Iterator[Any]:
    """Run an attack during the block, and then append the lines of its output to `output`."""
    spec = Spec(rootfs=root, seccomp="unconfined", **fields)
    args = ["/attack", name, argument]
    with fastns.spawn(args, spec=spec, stdout=fastns.PIPE, text=True) as sandbox:
        assert sandbox.stdout is not None
        assert sandbox.stdout.readline() == "ready\n"
        try:
            yield sandbox
            sandbox.send_signal(signal.SIGTERM)
            output += sandbox.stdout.read().split("\n")
        finally:
            sandbox.kill()


# ---- A4: a process that joins (CVE-2016-9962) ----

OWN = {"user": "new"}


def test_a_process_that_joins(attack_root: Path) -> None:
    output: list[str] = []
    name, given = "break_into_joiners", {"namespaces": OWN, "capabilities": ["ALL"]}
    with trying(attack_root, name, "", output, **given) as sandbox:
        joined = {
            kind: f"/proc/{sandbox.pid}/ns/{file}"
            for kind, file in (("user", "user"), ("pid", "pid"), ("mount", "mnt"))
        }
        spec = Spec(namespaces=joined, seccomp="unconfined")
        plan = fastns.compile(spec)
        for _ in range(SPAWNS):
            assert fastns.run(["/attack", "idle"], spec=plan).returncode == 2
    case = CASES[0]
    RESULTS[case] = ("FAILED" if output[1] == "worked" else "blocked", " ".join(output))
    assert output[1] != "worked", output
    assert int(output[0].split()[0]) > 0  # it has found processes to attack


def test_nsenter_can_be_attacked(attack_root: Path) -> None:
    """The control of the test above: the same attack works on nsenter(1)."""
    nsenter = shutil.which("nsenter", path=support.HOST_PATH)
    if nsenter is None:
        support.skip_missing("nsenter (tests/setup.sh installs util-linux)")
    output: list[str] = []
    name, given = "break_into_joiners", {"namespaces": OWN, "capabilities": ["ALL"]}
    with trying(attack_root, name, "", output, **given) as sandbox:
        target = ["-t", str(sandbox.pid), "-U", "-p", "--preserve-credentials"]
        subprocess.run([nsenter, *target, "sleep", "0.2"], check=True)
    assert output[1] == "worked", output


def looking(root: Path, start: str, nested: bool) -> list[list[str]]:
    """Each system call of the start (looking.py), and what the attacker gets there. `nested`: the
    caller is root of a user namespace only."""
    prefix = ["unshare", "--user", "--map-root-user"] if nested else []
    done = subprocess.run(
        [*prefix, sys.executable, "-m", "escape.looking", str(root), start],
        env={**os.environ, "PYTHONPATH": str(support.TESTS)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    seen: list[list[str]] = json.loads(done.stdout)
    return seen


@pytest.mark.parametrize(
    ("start", "nested"),
    [*[pytest.param(start, False, marks=pytest.mark.as_root) for start in STARTS], ("user", True)],
)
def test_a_start_in_the_attackers_pid_namespace(
    attack_root: Path, start: str, nested: bool
) -> None:
    seen = looking(attack_root, start, nested)
    case = f"{CASES[1]}, {'nested ' * nested}{start}"
    blocked = {what for _, what in seen} == {"EACCES"}
    RESULTS[case] = ("blocked" if blocked else "FAILED", f"{len(seen)} steps")
    assert blocked, seen
    assert seen[-1][0] == "execve"  # the start has succeeded


def test_a_process_without_capabilities_can_be_looked_into(attack_root: Path) -> None:
    """The control."""
    assert looking(attack_root, "control", not support.is_root()) == [["read", "worked"]]


# ---- A5: a child that shares the caller's memory ----


# With root as the caller, sandboxes and attacker keep root's uid: otherwise the attacker would be
# another user.
HOSTS_IDS = {"user": "host"} if os.geteuid() == 0 else {}


@pytest.mark.parametrize("way", ["direct", "default", "capabilities", "user", "template"])
def test_a_child_that_shares_memory(attack_root: Path, way: str) -> None:
    """The attacker is in the host's pid namespace. A changed canary in the caller shows success."""
    canary = ctypes.create_string_buffer(b"canary")
    pid, address = os.getpid(), ctypes.addressof(canary)
    user = {"user": {"user": "new"}, "default": {}}.get(way, HOSTS_IDS)
    fields: dict[str, Any] = {"rootfs": attack_root, "namespaces": user}
    if way == "capabilities":
        fields["capabilities"] = ["NET_RAW"]
    output: list[str] = []
    with contextlib.ExitStack() as stack:
        plan: Any = fastns.compile(Spec(**fields))
        run = functools.partial(fastns.run, spec=plan)
        if way == "template":
            template = stack.enter_context(Template(Spec(**fields)))
            run = template.run
            pid, address = server_pid(template), 0
        theirs = {"namespaces": {"pid": "host", **user}}
        aim = f"{pid}:{address}"
        stack.enter_context(trying(attack_root, "break_into_children", aim, output, **theirs))
        for _ in range(SPAWNS):
            run(["/attack", "idle"])
    case = f"{CASES[2]}, {way}"
    broken = canary.value != b"canary" or output[1] == "worked"
    RESULTS[case] = ("FAILED" if broken else "blocked", " ".join(output))
    assert not broken, (canary.value, output)


@pytest.mark.as_root
def test_a_child_without_capabilities(attack_root: Path) -> None:
    """The control: a child that has no more rights than the attacker can be broken into."""
    output: list[str] = []
    theirs = {"namespaces": {"pid": "host", **HOSTS_IDS}}
    command = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "sleep", "0.3"]
    with trying(attack_root, "break_into_children", f"{os.getpid()}:0", output, **theirs):
        subprocess.run(command, check=True)
    assert output[1] == "worked", output
