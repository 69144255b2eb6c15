"""Helpers of the sandbox tests: run a shell inside, keep a sandbox alive, find its cgroups."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import pwd
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import support

import fastns
from fastns import Container, IDMapping, Spec, Template
from fastns._policy import cgroup_plan

WAYS = ["direct", "init", "template", "ready", "rooms", "container"]


def shell(root: Path | None, script: str, **fields: Any) -> str:
    """Run `script` by bash inside `root` and return its stdout. `fields` are fields of the Spec.

    If bash fails, raises ChildProcessError with its stderr. If not, stderr must be empty.
    """
    done = fastns.run(
        ["bash", "-ec", script],
        spec=Spec(rootfs=root, **fields),
        capture_output=True,
        text=True,
        timeout=20,
    )
    if done.returncode != 0:
        raise ChildProcessError(done.stderr)
    assert done.stderr == ""
    return str(done.stdout)


@contextlib.contextmanager
def runner(way: str, **fields: Any) -> Iterator[Any]:
    """Yields a run() for sandboxes of a Spec with these fields. `way` is direct, init, template,
    ready, rooms or container; the prefix "user" adds a new user namespace. Rooms need an overlay,
    so they have one; fields that no room can have make them fresh sandboxes."""
    if way.startswith("user"):
        fields["namespaces"] = {"user": "new"}
    if way == "rooms":
        if fields.get("rootfs") is not None:
            fields["overlay"] = True
        with Template(Spec(**fields), ready=1, reuse=True) as template:
            yield template.run
    elif way.endswith("container"):
        with Container(Spec(**fields)) as container:
            yield container.run
    elif way.endswith(("template", "ready")):
        with Template(Spec(**fields), ready=2 if way == "ready" else 0) as template:
            yield template.run
    else:
        plan = fastns.compile(Spec(init=way == "init", **fields))
        try:
            yield functools.partial(fastns.run, spec=plan)
        finally:
            plan.close()


@contextlib.contextmanager
def dialogue(root: Path | None, **fields: Any) -> Iterator[Any]:
    """A bash that stays alive. Yields `ask(line)`, which runs a line and returns its output."""
    with fastns.spawn(
        ["bash"],
        spec=Spec(rootfs=root, **fields),
        stdin=fastns.PIPE,
        stdout=fastns.PIPE,
        stderr=fastns.STDOUT,
        text=True,
    ) as sandbox:
        assert sandbox.stdin is not None
        assert sandbox.stdout is not None
        stdin, stdout = sandbox.stdin, sandbox.stdout
        numbers = itertools.count()

        def ask(line: str) -> str:
            end = f"--{next(numbers)}--"
            stdin.write(f"{{ {line}\n}} </dev/null; echo {end}\n")
            stdin.flush()
            answer = []
            while (got := stdout.readline()) != end + "\n":
                assert got, f"bash has ended: {answer}"
                answer.append(got)
            return "".join(answer)

        yield ask
        sandbox.kill()


@contextlib.contextmanager
def joinable(root: Path) -> Iterator[fastns.Sandbox]:
    """A running sandbox with hostname "other" and new namespaces of all kinds. It listens on port
    4242.

    Its user namespace has only the ids 7 and 8.
    """
    spec = Spec(
        rootfs=root, namespaces={"user": "new", "time": "new"}, hostname="other", user="7:8"
    )
    with fastns.spawn(
        ["/probe", "--listen", "4242"], spec=spec, stdin=fastns.PIPE, stdout=fastns.PIPE
    ) as sandbox:
        assert sandbox.stdout is not None
        assert sandbox.stdout.readline() == b"listening\n"
        yield sandbox
        sandbox.kill()


def ranges() -> dict[str, tuple[IDMapping]]:
    """Fields of a Spec that map the ids 0 to 999 inside to ids that this user may use."""
    return {
        "uid_mappings": (IDMapping(0, _first_id("/etc/subuid"), 1000),),
        "gid_mappings": (IDMapping(0, _first_id("/etc/subgid"), 1000),),
    }


def _first_id(path: str) -> int:
    """The first id of the user's range in subuid(5). Root may use any id."""
    if support.is_root():
        return 100000
    names = (pwd.getpwuid(os.geteuid()).pw_name, str(os.geteuid()))
    for line in Path(path).read_text().splitlines():
        name, first, size = line.split(":")
        if name in names and int(size) >= 1000:
            return int(first)
    support.skip_missing(f"a range of ids in {path}")


def homes() -> list[Path]:
    """The directories in which fastns makes cgroups, in all hierarchies."""
    return [
        Path(place, cgroup_plan.GROUP)
        for hierarchy in cgroup_plan.hierarchies()
        for place in cgroup_plan.places_of(hierarchy)
    ]


def groups(pid: int | None = None) -> list[str]:
    """The cgroups that a process has made for its sandboxes. The default is this process."""
    return [str(path) for home in homes() for path in home.glob(f"{pid or os.getpid()}-*")]
