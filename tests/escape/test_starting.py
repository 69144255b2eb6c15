"""A4 and A5: a process that is about to execute a sandbox's command is attacked by a program that
already runs inside, or beside it. The attacker has no filter, and in A4 all capabilities over its
namespaces."""

import contextlib
import ctypes
import functools
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import support
from escape.results import RESULTS
from processes import server_pid

import fastns
from fastns import Spec, Template

CASES = ("A4 a process that joins", "A5 a child in the caller's memory")
SPAWNS = 10_000 if support.LONG else 150


@contextlib.contextmanager
def trying(root: Path, name: str, argument: str, told: list[str], **fields: Any) -> Iterator[Any]:
    """Run an attack during the block; afterwards `told` is what it printed."""
    spec = Spec(rootfs=root, seccomp="unconfined", **fields)
    args = ["/attack", name, argument]
    with fastns.spawn(args, spec=spec, stdout=fastns.PIPE, text=True) as sandbox:
        assert sandbox.stdout is not None
        assert sandbox.stdout.readline() == "ready\n"
        try:
            yield sandbox
            sandbox.send_signal(signal.SIGTERM)
            told += sandbox.stdout.read().split("\n")
        finally:
            sandbox.kill()


# ---- A4: one that joins (CVE-2016-9962) ----

OWN = {"user": "new"}


def test_a_process_that_joins(attack_root: Path) -> None:
    told: list[str] = []
    name, given = "break_into_joiners", {"namespaces": OWN, "capabilities": ["ALL"]}
    with trying(attack_root, name, "", told, **given) as sandbox:
        joined = {
            kind: f"/proc/{sandbox.pid}/ns/{file}"
            for kind, file in (("user", "user"), ("pid", "pid"), ("mount", "mnt"))
        }
        spec = Spec(namespaces=joined, seccomp="unconfined")
        plan = fastns.compile(spec)
        for _ in range(SPAWNS):
            assert fastns.run(["/attack", "idle"], spec=plan).returncode == 2
    case = CASES[0]
    RESULTS[case] = ("FAILED" if told[1] == "worked" else "held", " ".join(told))
    assert told[1] != "worked", told
    assert int(told[0].split()[0]) > 0  # it did see some


def test_another_that_joins(attack_root: Path) -> None:
    """The control: nsenter(1) can be attacked."""
    nsenter = shutil.which("nsenter", path=support.HOST_PATH)
    if nsenter is None:
        support.skip_missing("nsenter (tests/setup.sh installs util-linux)")
    told: list[str] = []
    name, given = "break_into_joiners", {"namespaces": OWN, "capabilities": ["ALL"]}
    with trying(attack_root, name, "", told, **given) as sandbox:
        target = ["-t", str(sandbox.pid), "-U", "-p", "--preserve-credentials"]
        subprocess.run([nsenter, *target, "sleep", "0.2"], check=True)
    assert told[1] == "worked", told


# ---- A5: one that shares the caller's memory ----


# Root's sandboxes, with root's uid. The attacker has it too, or it would be another user from the
# start.
HOSTS_IDS = {"user": "host"} if os.geteuid() == 0 else {}


@pytest.mark.parametrize("way", ["direct", "default", "capabilities", "user", "template"])
def test_a_child_that_shares_memory(attack_root: Path, way: str) -> None:
    """Attacked from a sandbox with the host's pid namespace. The caller's canary shows the
    result."""
    canary = ctypes.create_string_buffer(b"canary")
    pid, address = os.getpid(), ctypes.addressof(canary)
    user = {"user": {"user": "new"}, "default": {}}.get(way, HOSTS_IDS)
    fields: dict[str, Any] = {"rootfs": attack_root, "namespaces": user}
    if way == "capabilities":
        fields["capabilities"] = ["NET_RAW"]
    told: list[str] = []
    with contextlib.ExitStack() as stack:
        plan: Any = fastns.compile(Spec(**fields))
        run = functools.partial(fastns.run, spec=plan)
        if way == "template":
            template = stack.enter_context(Template(Spec(**fields)))
            run = template.run
            pid, address = server_pid(template), 0
        theirs = {"namespaces": {"pid": "host", **user}}
        aim = f"{pid}:{address}"
        stack.enter_context(trying(attack_root, "break_into_children", aim, told, **theirs))
        for _ in range(SPAWNS):
            run(["/attack", "idle"])
    case = f"{CASES[1]}, {way}"
    broken = canary.value != b"canary" or told[1] == "worked"
    RESULTS[case] = ("FAILED" if broken else "held", " ".join(told))
    assert not broken, (canary.value, told)


@pytest.mark.as_root
def test_a_child_without_capabilities(attack_root: Path) -> None:
    """The control: a process that forks and waits has no more rights than the attacker."""
    told: list[str] = []
    theirs = {"namespaces": {"pid": "host", **HOSTS_IDS}}
    command = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "sleep", "0.3"]
    with trying(attack_root, "break_into_children", f"{os.getpid()}:0", told, **theirs):
        subprocess.run(command, check=True)
    assert told[1] == "worked", told
