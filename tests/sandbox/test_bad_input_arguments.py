"""Invalid arguments of every public function raise a SpecError before any process exists.

The matrix passes to each argument every value of ALIENS that it does not accept. The error names
the argument and says what is accepted, in one short line, however long or odd the value is. The
kernel's accounting of this process's children shows that no process was made.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import resource
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fastns
from fastns import IDMapping, Job, Mount, Rlimit, Spec, SpecError

# The ways in which an error may say what is accepted.
ACCEPTED = re.compile(
    r"expected|at most|(limit|maximum) is|hard limit|accepted|one of|leave .* out|(is|are) for"
    r"|needs|use|PIPE|or None|give bytes"
)


class BytesPath:
    """A path-like object that returns bytes."""

    def __fspath__(self) -> bytes:
        return b"/x"


class Unshowable:
    """A value whose repr raises."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


ALIENS: dict[str, Callable[[], Any]] = {
    "object": object,
    "unshowable": Unshowable,
    "class": lambda: int,
    "float": lambda: 3.5,
    "nan": lambda: float("nan"),
    "minus-infinity": lambda: float("-inf"),
    "true": lambda: True,
    "huge": lambda: 2**63,
    "minus-huge": lambda: -(2**63),
    "5001-digits": lambda: 10**5000,
    "bytes": lambda: b"\xff",
    "text": lambda: "x",
    "NUL": lambda: "/x\0",
    "surrogate": lambda: "/\ud800",
    "megabyte": lambda: "x" * (1 << 20),
    "megabyte-path": lambda: "/" + "x" * (1 << 20),
    "list": lambda: [object()],
    "list-of-lists": lambda: [[]],
    "dict": lambda: {1: 2},
    "dict-of-lists": lambda: {"x": []},
    "set": lambda: {1},
    "path-of-bytes": BytesPath,
    "None": lambda: None,
}

TRUE = ["/bin/true"]


def run(**arguments: Any) -> object:
    return fastns.run(TRUE, **arguments)


def spawn(**arguments: Any) -> object:
    return fastns.spawn(TRUE, **arguments)


def run_job(**fields: Any) -> object:
    return fastns.run_batch([TRUE, Job(**{"args": TRUE, **fields})])


def spawn_job(**fields: Any) -> object:
    return fastns.spawn_batch([TRUE, Job(**{"args": TRUE, **fields})])


# Columns: the argument, the field that the error names, the call, the ALIENS that it accepts.
NUMBERS = "float minus-infinity minus-huge None"  # a negative timeout is 0, as in subprocess
ARGUMENTS: list[tuple[str, str, Callable[[Any], object], str]] = [
    ("run.args", "args", lambda v: fastns.run(v), ""),
    ("run.args[1]", "args", lambda v: fastns.run(["/bin/true", v]), "bytes text path-of-bytes"),
    ("run.spec", "spec", lambda v: run(spec=v), "None"),
    ("run.input", "input", lambda v: run(input=v), "bytes None"),
    ("run.input-text", "input", lambda v: run(input=v, text=True),
     "text NUL megabyte megabyte-path None"),
    ("run.stdin", "stdin", lambda v: run(stdin=v), "None"),
    ("run.stdout", "stdout", lambda v: run(stdout=v), "None"),
    ("run.stderr", "stderr", lambda v: run(stderr=v), "None"),
    ("run.encoding", "encoding", lambda v: run(encoding=v), "None"),
    ("run.errors", "errors", lambda v: run(errors=v), "None"),
    ("run.timeout", "timeout", lambda v: run(timeout=v), NUMBERS),
    ("run.env", "env", lambda v: run(env=v), "None"),
    ("run.env-value", "env", lambda v: run(env={"A": v}), "bytes text"),
    ("run.env-name", "env", lambda v: run(env={v: ""}),
     "bytes text list list-of-lists dict dict-of-lists set"),  # the last five cannot be keys
    ("run.cwd", "cwd", lambda v: run(cwd=v), "path-of-bytes None"),
    ("spawn.args", "args", lambda v: fastns.spawn(v), ""),
    ("spawn.spec", "spec", lambda v: spawn(spec=v), "None"),
    ("spawn.stdin", "stdin", lambda v: spawn(stdin=v), "None"),
    ("spawn.stdout", "stdout", lambda v: spawn(stdout=v), "None"),
    ("spawn.stderr", "stderr", lambda v: spawn(stderr=v), "None"),
    ("spawn.pass_fds", "pass_fds", lambda v: spawn(pass_fds=v), "bytes dict set"),
    ("spawn.pass_fds[0]", "pass_fds", lambda v: spawn(pass_fds=[v]), ""),
    ("compile.spec", "spec", fastns.compile, "None"),
    ("run_batch.jobs", "jobs", lambda v: fastns.run_batch(v),
     "list list-of-lists set"),  # their items are refused: see run_batch.job
    ("run_batch.job", "jobs[1]", lambda v: fastns.run_batch([TRUE, v]), "list list-of-lists"),
    ("run_batch.spec", "spec", lambda v: fastns.run_batch([TRUE], spec=v), "None"),
    ("run_batch.concurrency", "concurrency",
     lambda v: fastns.run_batch([TRUE], concurrency=v), "None"),
    ("run_batch.timeout", "jobs[0].timeout", lambda v: fastns.run_batch([TRUE], timeout=v),
     NUMBERS),
    ("spawn_batch.jobs", "jobs", lambda v: fastns.spawn_batch(v), "list list-of-lists set"),
    ("spawn_batch.job", "jobs[1]", lambda v: fastns.spawn_batch([TRUE, v]), "list list-of-lists"),
    ("spawn_batch.spec", "spec", lambda v: fastns.spawn_batch([TRUE], spec=v), "None"),
    ("spawn_batch.concurrency", "concurrency",
     lambda v: fastns.spawn_batch([TRUE], concurrency=v), "None"),
    ("Job.args", "jobs[1].args", lambda v: run_job(args=v), ""),
    ("Job.input", "jobs[1].input", lambda v: run_job(input=v), "bytes None"),
    ("Job.env", "jobs[1].env", lambda v: run_job(env=v), "None"),
    ("Job.cwd", "jobs[1].cwd", lambda v: run_job(cwd=v), "path-of-bytes None"),
    ("Job.timeout", "jobs[1].timeout", lambda v: run_job(timeout=v), NUMBERS),
    ("spawn_batch.Job.args", "jobs[1].args", lambda v: spawn_job(args=v), ""),
    ("spawn_batch.Job.input", "jobs[1].input", lambda v: spawn_job(input=v), "None"),
    ("spawn_batch.Job.timeout", "jobs[1].timeout", lambda v: spawn_job(timeout=v), "None"),
    ("unshare.names", "names", lambda v: fastns.unshare(v), ""),
    ("setns.target", "target", lambda v: fastns.setns(v, "uts"), "text path-of-bytes"),
    ("setns.names", "names", lambda v: fastns.setns("/proc/self/ns/uts", v), ""),
]  # fmt: skip

# The same columns for the fields of a spec's classes.
FIELDS: list[tuple[str, str, Callable[[Any], object], str]] = [
    *((f"Spec.{name}", name, lambda v, name=name: run(spec=Spec(**{name: v})), taken)
      for name, taken in {
          "rootfs": "text None", "root_mode": "", "read_only": "true", "overlay": "",
          "hostname": "text None", "domainname": "text None", "namespaces": "", "mounts": "",
          "default_mounts": "true", "files": "", "env": "", "cwd": "", "umask": "", "user": "",
          "additional_gids": "", "uid_mappings": "", "gid_mappings": "", "network": "",
          "rlimits": "", "init": "true", "memory": "None", "memory_swap": "None",
          "pids_limit": "None", "cpus": "float None", "cpu_weight": "None", "cpuset": "None",
          "cpu_time": "float None",
          "io": "", "cgroup_parent": "text None", "require_limits": "true",
          "masked_paths": "None", "max_output": "None", "on_output_limit": "",
          "readonly_paths": "None",
          "capabilities": "", "no_new_privileges": "true", "seccomp": "",
          "allow_setid": "true",
          "landlock": "None", "tmpfs_size": "None", "die_with_parent": "true",
      }.items()),
    ("Spec.overlay-of-nothing", "overlay", lambda v: run(spec=Spec(overlay=v)), ""),
    ("Spec.namespaces.uts", "namespaces.uts",
     lambda v: run(spec=Spec(namespaces={"uts": v})), ""),
    ("Spec.namespaces.user", "namespaces.user",
     lambda v: run(spec=Spec(namespaces={"user": v})), ""),
    ("Spec.files-content", "files", lambda v: run(spec=Spec(files={"/f": v})),
     "bytes text NUL megabyte megabyte-path"),
    ("Spec.env-value", "env", lambda v: run(spec=Spec(env={"A": v})), "text"),
    ("Mount.destination", "mounts.destination", lambda v: Mount(v, "tmpfs"), ""),
    ("Mount.type", "mounts.type", lambda v: Mount("/a", v), ""),
    ("Mount.source", "mounts.source", lambda v: Mount("/a", source=v), ""),
    ("Mount.options", "mounts.options", lambda v: Mount("/a", source="/s", options=v), ""),
    ("Mount.option", "mounts.options", lambda v: Mount("/a", source="/s", options=[v]), ""),
    ("Mount.size", "mounts.options",
     lambda v: Mount("/a", "tmpfs", options=[f"size={v!s:.5000}"]), "unshowable huge 5001-digits"),
    ("IDMapping.container_id", "id mapping.container_id", lambda v: IDMapping(v, 0, 1), ""),
    ("IDMapping.host_id", "id mapping.host_id", lambda v: IDMapping(0, v, 1), ""),
    ("IDMapping.size", "id mapping.size", lambda v: IDMapping(0, 0, v), ""),
    ("Rlimit.type", "rlimits.type", lambda v: Rlimit(v, 1, 1), ""),
    ("Rlimit.soft", "rlimits.soft", lambda v: Rlimit("RLIMIT_CPU", v, 1), ""),
    ("Rlimit.hard", "rlimits.hard", lambda v: Rlimit("RLIMIT_CPU", 1, v), "huge"),
]  # fmt: skip


@contextlib.contextmanager
def no_process() -> Iterator[None]:
    """Fail if the block made a process and waited for it."""
    before = tuple(resource.getrusage(resource.RUSAGE_CHILDREN))
    yield
    assert tuple(resource.getrusage(resource.RUSAGE_CHILDREN)) == before, "a process was made"


def refused(call: Callable[[], object], field: str) -> str:
    """The reason of the SpecError that the call raises before any process exists."""
    with no_process(), pytest.raises(SpecError) as caught:
        call()
    error = caught.value
    assert error.field == field
    assert str(error).startswith(f"{field}: ")
    assert len(str(error)) < 400
    assert "\n" not in str(error)
    assert ACCEPTED.search(error.reason), error.reason
    return error.reason


@pytest.mark.parametrize(
    ("field", "call", "taken"), [pytest.param(*row[1:], id=row[0]) for row in ARGUMENTS + FIELDS]
)
def test_an_argument(field: str, call: Callable[[Any], object], taken: str) -> None:
    """One row of the matrix. Reports all failures of the row."""
    wrong = []
    kinds = [kind for kind in ALIENS if kind not in taken.split()]
    for kind in kinds:
        value, fds = ALIENS[kind](), os.listdir("/proc/self/fd")
        try:
            refused(lambda: call(value), field)  # noqa: B023 - called at once
            assert os.listdir("/proc/self/fd") == fds
        except (Exception, pytest.fail.Exception) as exc:
            wrong.append(f"{kind}: {type(exc).__name__}: {str(exc)[:200]}")
    assert not wrong, "\n".join(wrong)
    assert len(kinds) > len(ALIENS) / 2


def test_the_matrix_is_large() -> None:
    cases = sum(len(ALIENS) - len(row[3].split()) for row in ARGUMENTS + FIELDS)
    assert cases > 1000


def test_the_accounting_sees_a_start_that_fails_at_once() -> None:
    """Control for no_process()."""
    spec = Spec(rootfs="/no/such/root", default_mounts=False, network="host")
    with pytest.raises(AssertionError, match="a process was made"), no_process():  # noqa: SIM117
        with pytest.raises(fastns.SpawnError):
            fastns.run(TRUE, spec=spec)


def test_every_field_of_a_spec_is_in_the_matrix() -> None:
    assert {row[1] for row in FIELDS} >= set(Spec.__match_args__ or Spec.__annotations__)


# ---- combinations, and invalid values of the right type ----

MORE: list[tuple[str, Callable[[], object], str]] = [
    ("args", lambda: fastns.run([]), "expected a command"),
    ("args", lambda: fastns.run(()), "expected a command"),
    ("args", lambda: fastns.run([""]), "expected a name or a path"),
    ("args", lambda: fastns.run("ls -l"), "expected a list"),
    ("args", lambda: fastns.run(["ls", None]), "None: expected str, bytes"),  # type: ignore[list-item]
    ("args", lambda: fastns.run([b"a\0b"]), "NUL"),
    ("stdin", lambda: run(input=b"", stdin=fastns.PIPE), "leave stdin out"),
    ("capture_output", lambda: run(capture_output=True, stderr=fastns.STDOUT), "leave"),
    ("stdin", lambda: run(stdin=fastns.STDOUT), "is for stderr"),
    ("stdout", lambda: run(stdout=fastns.STDOUT), "is for stderr"),
    ("stdin", lambda: run(stdin=-1.0), "an open fd or a file"),
    ("stdout", lambda: run(stdout=io.BytesIO()), "an open fd or a file"),
    ("encoding", lambda: spawn(stdin=fastns.PIPE, encoding="rot13"), "a text encoding"),
    ("encoding", lambda: run(encoding="no-such"), "a text encoding"),
    ("input", lambda: run(input="\u20ac", encoding="latin-1"), "latin-1 can encode"),
    ("env", lambda: run(env={"A=B": ""}), "without '='"),
    ("env", lambda: run(env={"": ""}), "without '='"),
    ("cwd", lambda: run(cwd="tmp"), "an absolute path"),
    ("cwd", lambda: run(cwd=Path("tmp")), "an absolute path"),
    ("jobs[0].args", lambda: fastns.run_batch([[]]), "expected a command"),
    ("jobs[2].cwd", lambda: fastns.run_batch([TRUE, TRUE, Job(TRUE, cwd="x")]), "absolute"),
    ("jobs", lambda: fastns.run_batch(Job(TRUE)), "a list of"),  # type: ignore[arg-type]
    ("jobs[0]", lambda: fastns.run_batch(TRUE), "an argv list"),
    ("jobs[1].input", lambda: fastns.spawn_batch([TRUE, Job(TRUE, input=b"")]), "run_batch"),
    ("concurrency", lambda: fastns.run_batch([TRUE], concurrency=0), "from 1 to 4096"),
    ("concurrency", lambda: fastns.run_batch([TRUE], concurrency=4097), "from 1 to 4096"),
    ("concurrency", lambda: fastns.spawn_batch([TRUE], concurrency=0), "from 1 to 4096"),
    ("concurrency", lambda: fastns.spawn_batch([TRUE], concurrency=-1), "from 1 to 4096"),
    ("concurrency", lambda: fastns.spawn_batch([TRUE], concurrency=4097), "from 1 to 4096"),
    ("names", lambda: fastns.unshare(), "at least one of "),
    ("names", lambda: fastns.unshare("uts", "net"), "pid, network"),
    ("names", lambda: fastns.setns(os.getpid()), "name at least one of "),
    ("target", lambda: fastns.setns(-1, "uts"), "a pid or a pidfd"),
    ("names", lambda: fastns.setns(os.getpid(), "uts", "nothing"), "expected"),
    ("target", lambda: fastns.setns(2**31, "uts"), "a pid or a pidfd"),
    ("stdin", lambda: run(stdin=-7), "an open fd or a file"),
    ("pass_fds", lambda: spawn(pass_fds=[-1]), "an open fd"),
    ("pass_fds", lambda: spawn(pass_fds=[2**31]), "an open fd"),
    ("pass_fds", lambda: spawn(pass_fds=["3"]), "an open fd"),
    ("spec", lambda: run(spec={}), "a Spec"),
    ("spec", lambda: spawn(spec={}), "a Spec"),
    ("capture_output", lambda: run(capture_output=True, stdout=fastns.PIPE), "leave"),
    ("jobs[1]", lambda: fastns.run_batch([TRUE, 5]), "an argv list"),  # type: ignore[list-item]
    ("jobs[1].env", lambda: run_job(env={"": "x"}), "without '='"),
    ("concurrency", lambda: fastns.run_batch([TRUE], concurrency=-1), "from 1 to 4096"),
    ("timeout", lambda: run(timeout=2**32 + 1), "at most 4294967296 seconds"),
]  # fmt: skip


@pytest.mark.parametrize(("field", "call", "words"), MORE)
def test_an_invalid_value(field: str, call: Callable[[], object], words: str) -> None:
    """The SpecError names the field, and its reason contains the words of the row."""
    assert words in refused(call, field)


def test_a_closed_file() -> None:
    """A closed file or socket is refused as a stream."""
    with open("/dev/null") as file:
        pass
    assert "an open fd or a file" in refused(lambda: run(stdin=file), "stdin")
    with socket.socket() as closed:
        pass
    assert "an open fd or a file" in refused(lambda: run(stdout=closed), "stdout")


# ---- the methods of a handle: a refused argument does not end the sandbox ----


@pytest.mark.parametrize(
    "kind",
    [kind for kind in ALIENS if kind not in ("float", "minus-infinity", "minus-huge", "None")],
)
def test_timeouts_of_a_handle(kind: str) -> None:
    """An invalid timeout is refused, and the sandbox keeps running."""
    value = ALIENS[kind]()
    with fastns.spawn(["/bin/cat"], stdin=fastns.PIPE, stdout=fastns.PIPE) as sandbox:
        refused(lambda: sandbox.wait(value), "timeout")
        refused(lambda: sandbox.communicate(b"x", timeout=value), "timeout")
        assert sandbox.communicate(b"still here", timeout=20) == (b"still here", None)


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("kind", ALIENS)
def test_input_of_a_handle(kind: str, text: bool) -> None:
    """Invalid input is refused, and the sandbox keeps running."""
    value, good = ALIENS[kind](), "still here" if text else b"still here"
    with fastns.spawn(["/bin/cat"], stdin=fastns.PIPE, stdout=fastns.PIPE, text=text) as sandbox:
        takes = "text NUL megabyte megabyte-path None" if text else "bytes None"
        if kind not in takes.split():
            refused(lambda: sandbox.communicate(value), "input")
        assert sandbox.communicate(good, timeout=20) == (good, None)


def test_input_without_a_pipe() -> None:
    """Input is refused if stdin is not a pipe."""
    with fastns.spawn(["/bin/true"]) as sandbox:
        refused(lambda: sandbox.communicate(b"x"), "input")
