"""Templates that run out of memory or pids: only the sandbox that takes too much is affected."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import eventually, script

import fastns
from fastns import SpawnError, Spec, Template
from fastns._policy import cgroup_plan

# ---- arguments that do not fit into the memory limit ----

MEMORY = 1500 << 10
WORD = 100_000


def arguments(size: int) -> list[str]:
    """A command line of this many bytes, including the NUL of each word."""
    words, size = ["/true"], size - len("/true") - 1
    while size > 0:
        words.append("x" * (min(size, WORD) - 1))
        size -= len(words[-1]) + 1
    return words


@pytest.fixture(params=[0, 2], ids=["none", "ahead"])
def ready(request: pytest.FixtureRequest) -> int:
    number: int = request.param
    return number


@pytest.mark.with_cgroups
def test_arguments_that_do_not_fit_are_refused(probe_rootfs: Path, ready: int) -> None:
    spec = Spec(rootfs=probe_rootfs, memory=MEMORY, env={})
    with Template(spec, ready=ready) as template:
        neighbour = template.spawn(["/probe", "--sleep", "300"])
        server = template._server
        environment = sum(len(text) + 1 for text in template._sandbox.environ)
        most = MEMORY - cgroup_plan.START_MEMORY - environment
        for size in (most + 1, 1_700_000):
            args = arguments(size)
            for start in (template.run, template.spawn):
                with pytest.raises(SpawnError) as caught:
                    start(args)
                check(caught.value)
            for result in (template.run_batch([args])[0], template.spawn_batch([args])[0]):
                check(result)
        # At the limit the command itself may run out of memory. Only that sandbox is killed.
        assert template.run(arguments(most)).returncode in (0, -9)
        assert template.run_batch([arguments(most)])[0].returncode in (0, -9)  # type: ignore[union-attr]
        assert template.run(["/true"]).returncode == 0
        assert template._server is server
        assert neighbour.poll() is None
        neighbour.kill()
        neighbour.wait()


def check(error: object) -> None:
    assert isinstance(error, SpawnError)
    assert (error.stage, error.errno, error.path) == ("exec", errno.E2BIG, "/true")
    assert error.hint is not None
    assert "memory" in error.hint


@pytest.mark.as_root
def test_without_the_check_the_server_is_killed(
    probe_rootfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the server shares the new sandbox's memory, so the OOM killer kills it too."""
    monkeypatch.setattr(cgroup_plan, "START_MEMORY", -(8 << 20))
    with Template(Spec(rootfs=probe_rootfs, memory=MEMORY), ready=0) as template:
        neighbour = template.spawn(["/probe", "--sleep", "300"])
        with pytest.raises(SpawnError) as caught:
            template.run(arguments(1_700_000))
        assert (caught.value.stage, caught.value.errno) == ("helper", errno.ECANCELED)
        with pytest.raises(SpawnError):
            neighbour.wait()


@pytest.mark.with_cgroups
def test_long_arguments_with_a_higher_limit(probe_rootfs: Path) -> None:
    with Template(Spec(rootfs=probe_rootfs, memory="64m")) as template:
        assert template.run(arguments(1_700_000)).returncode == 0
    assert fastns.compile(Spec(rootfs=probe_rootfs)).cgroups is None


DIRECT = """
spec = fastns.Spec(rootfs=sys.argv[1], memory=1500 << 10, **eval(sys.argv[2]))
args = ["/true", *["x" * 99_999] * 17]
for call in (lambda: fastns.run(args, spec=spec).returncode,
             lambda: fastns.spawn(args, spec=spec).wait(),
             lambda: fastns.run_batch([args], spec=spec)[0]):
    try:
        result = call()
    except fastns.SpawnError as error:
        result = error
    print(getattr(result, "returncode", result))
print("alive")
"""


@pytest.mark.with_cgroups
@pytest.mark.parametrize("fields", ["{}", "{'init': True}"], ids=["direct", "init"])
def test_a_caller_outlives_a_start_without_memory(probe_rootfs: Path, fields: str) -> None:
    """A direct child shares the caller's memory, so an OOM kill of it would end the caller too."""
    out = script(DIRECT, str(probe_rootfs), fields).splitlines()
    assert out.pop() == "alive"
    refused, killed = "exec /true: Argument list too long (E2BIG)", "clone: Operation canceled"
    assert all(line in ("-9", refused, f"{killed} (ECANCELED)") for line in out), out


# ---- pids in use by ready sandboxes ----

SHORT = """
import time
from pathlib import Path
import fastns
from processes import children, eventually
group = Path(sys.argv[2])
(group / "cgroup.procs").write_text(str(os.getpid()))
true = ["/true"]
with fastns.Template(fastns.Spec(rootfs=sys.argv[1]), ready=2) as template:
    server = template._server.pid
    assert eventually(lambda: len(children(server)) == 2)
    (group / "pids.max").write_text((group / "pids.current").read_text())  # allows no more
    def outcome(result):
        return getattr(result, "returncode", result)
    print([outcome(result) for result in template.run_batch([true] * 5, concurrency=1)])
    for sandbox in template.spawn_batch([true] * 2, concurrency=1):
        print(outcome(sandbox) if isinstance(sandbox, Exception) else sandbox.wait())
    print(outcome(template.run(true)), template._server.pid == server)
    results = template.run_batch([["/probe", "--sleep", "300"]] * 4, concurrency=4, timeout=1)
    print(sorted(str(outcome(result)) for result in results))
    (group / "pids.max").write_text("max")
    print([outcome(result) for result in template.run_batch([true] * 5)])
"""


@pytest.fixture
def pids_group() -> Iterator[Path]:
    """A cgroup with the pids controller, for the test to enter."""
    place = next(place for place in cgroup_plan.hierarchies() if "pids" in place.controllers)
    above = Path(place.mount) / "fastns"
    above.mkdir(exist_ok=True)
    if place.unified:
        for directory in (above.parent, above):
            (directory / "cgroup.subtree_control").write_text("+pids")
    group = above / f"pids-{os.getpid()}"
    group.mkdir()
    yield group
    eventually(lambda: not (group / "cgroup.procs").read_text())
    group.rmdir()


@pytest.mark.as_root
def test_pids_in_use_by_ready_sandboxes(probe_rootfs: Path, pids_group: Path) -> None:
    """Ready sandboxes are ended before a job of a batch fails for lack of pids."""
    tests = str(Path(__file__).parent.parent)
    code = f"import os, sys\nsys.path.insert(0, {tests!r})\n{SHORT}"
    done = subprocess.run(
        [sys.executable, "-c", code, str(probe_rootfs), str(pids_group)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    failed = "clone: Resource temporarily unavailable (EAGAIN)"
    assert done.stdout.splitlines() == [
        "[0, 0, 0, 0, 0]",
        "0",
        "0",
        "0 True",
        str(["-9", "-9", failed, failed]),
        "[0, 0, 0, 0, 0]",
    ]
