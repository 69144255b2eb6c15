"""However a start ends, it leaks no fd, process, mount or memory."""

from __future__ import annotations

import gc
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import support
from processes import script

import fastns

SPAWNS = 50_000 if support.LONG else 2_500
PAGE = os.sysconf("SC_PAGE_SIZE")

Scenario = Callable[[], None]


def scenarios(root: Path) -> dict[str, Scenario]:
    """Every outcome of a start that is cheap to provoke. Failures are named after their stage."""

    def spec(**fields: Any) -> fastns.Plan:
        fields = {"rootfs": root, "default_mounts": False, "network": "host", **fields}
        return fastns.compile(fastns.Spec(**fields))

    direct, with_init = spec(), spec(init=True)

    def runs(plan: fastns.Plan, *args: str, **arguments: Any) -> Scenario:
        def scenario() -> None:
            assert fastns.run(args or ["/true"], spec=plan, **arguments).returncode == 0

        return scenario

    def fails(stage: str, plan: fastns.Plan, command: str = "/true", **arguments: Any) -> Scenario:
        def scenario() -> None:
            with pytest.raises(fastns.SpawnError) as caught:
                fastns.spawn([command], spec=plan, stdin=-1, stdout=-1, **arguments)
            assert caught.value.stage == stage

        return scenario

    def killed(plan: fastns.Plan) -> Scenario:
        def scenario() -> None:
            with pytest.raises(fastns.TimeoutExpired):
                fastns.run(["/probe", "--sleep", "9"], spec=plan, capture_output=True, timeout=0)

        return scenario

    def dropped() -> None:
        with pytest.warns(ResourceWarning, match="was still running"):
            fastns.spawn(["/probe", "--sleep", "9"], spec=direct)

    tmpfs = fastns.Mount("/missing", type="tmpfs")
    bind = fastns.Mount("/tmp", source="/missing/source")
    echo = {"input": b"x" * 100_000, "capture_output": True}
    found = {
        "direct": runs(direct),
        "init": runs(with_init),
        "default mounts": runs(spec(default_mounts=True)),
        "overlay": runs(spec(overlay=True)),
        "files": runs(spec(files={"/etc/hosts": "x"})),
        "user namespace": runs(spec(namespaces={"user": "new"})),
        "pipes": runs(direct, "/probe", "--echo", **echo),
        "pipes, init": runs(with_init, "/probe", "--echo", **echo),
        "killed": killed(direct),
        "killed, init": killed(with_init),
        "dropped": dropped,
    }
    for name, plan in {"direct": direct, "init": with_init}.items():
        init = plan is with_init
        found |= {
            f"exec, {name}": fails("exec", plan, "/missing"),
            f"exec of a directory, {name}": fails("exec", plan, "/etc"),
            f"chdir, {name}": fails("chdir", plan, cwd="/missing"),
            f"stdio, {name}": fails("stdio", plan, stderr=1_000_000),
            f"fds, {name}": fails("fds", plan, pass_fds=[1_000_000]),
            f"target, {name}": fails("mount", spec(mounts=[tmpfs], init=init)),
            f"source, {name}": fails("mount", spec(mounts=[bind], init=init)),
            f"file, {name}": fails("file", spec(files={"/etc/missing": "x"}, init=init)),
            f"rootfs, {name}": fails("rootfs", spec(rootfs=f"{root}/missing", init=init)),
            f"setns, {name}": fails("setns", spec(namespaces={"uts": "/missing"}, init=init)),
        }
    if support.is_root():
        ids = fastns.IDMapping(0, 100_000, 1000)
        mapped = spec(uid_mappings=[ids], gid_mappings=[ids])
        found["other ids"] = runs(spec(user="1:1"))
        found["mapped ids"] = runs(mapped)
        found["mapped ids, exec"] = fails("exec", mapped, "/missing")
    return found


def rss() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def test_memory_stays_flat(probe_rootfs: Path) -> None:
    todo = list(scenarios(probe_rootfs).values())
    for scenario in todo * 10:  # warm up: some memory is allocated only once
        scenario()
    tracemalloc.start(1)
    for scenario in todo:
        scenario()
    gc.collect()  # exceptions form cycles with their tracebacks
    before, python_before = rss(), tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    for _ in range(SPAWNS // len(todo)):
        for scenario in todo:
            scenario()
    after = rss()
    tracemalloc.start(1)
    for scenario in todo:
        scenario()
    gc.collect()
    python_after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    # Detects a leak of 500 bytes per start, and tolerates an arena that grows or moves.
    assert after - before < 1 << 20
    assert python_after - python_before < 1 << 16


def test_python_objects_are_freed(probe_rootfs: Path) -> None:
    todo = scenarios(probe_rootfs)
    for scenario in list(todo.values()) * 3:
        scenario()
    tracemalloc.start(8)
    try:
        for name, scenario in todo.items():
            scenario()
            gc.collect()
            before = tracemalloc.take_snapshot()
            for _ in range(20):
                scenario()
            gc.collect()
            after = tracemalloc.take_snapshot()
            grown = sum(
                entry.size_diff
                for entry in after.compare_to(before, "filename")
                if "fastns" in entry.traceback[0].filename
                and "tests" not in entry.traceback[0].filename
            )
            assert grown < 20 * 64, name
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("inheritable", [False, True])
def test_the_callers_fds_are_left_alone(probe_rootfs: Path, inheritable: bool) -> None:
    """Numbers, files, close-on-exec flags, offsets and status flags stay the same."""
    held = [os.open("/dev/zero", os.O_RDONLY) for _ in range(20)]
    pipe = os.pipe()
    try:
        for fd in held:
            os.set_inheritable(fd, inheritable)
        before = descriptions()
        for scenario in scenarios(probe_rootfs).values():
            scenario()
        plan = fastns.compile(fastns.Spec(rootfs=probe_rootfs))
        fastns.run(["/true"], spec=plan, stdin=held[0], stdout=pipe[1], stderr=pipe[1])
        with fastns.spawn(["/true"], spec=plan, pass_fds=held):
            pass
        assert descriptions() == before
    finally:
        for fd in (*held, *pipe):
            os.close(fd)


def descriptions() -> dict[str, str]:
    """What each fd refers to, except the memfds that fastns keeps."""
    found = every_description()
    return {fd: text for fd, text in found.items() if not text.startswith("/memfd:fastns-")}


def every_description() -> dict[str, str]:
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            info = Path(f"/proc/self/fdinfo/{fd}").read_text()
            found[fd] = os.readlink(f"/proc/self/fd/{fd}") + " " + info
        except FileNotFoundError:  # the fd that listed the directory
            continue
    return found


@pytest.mark.parametrize("init", [False, True], ids=["direct", "init"])
def test_running_out_of_fds_leaves_nothing(probe_rootfs: Path, init: bool) -> None:
    """However few fds are free, a start works or fails with a clean SpawnError."""
    code = """
import resource
plan = fastns.compile(fastns.Spec(rootfs=sys.argv[1], init=sys.argv[2] == "True"))
assert fastns.run(["/true"], spec=plan).returncode == 0
five = ["/probe", "--exit", "5"]

def plain():
    return [fastns.spawn(five, spec=plan).wait()]

def piped():
    with fastns.spawn(five, spec=plan, stdin=-1, stdout=-1, stderr=-1, text=True) as sandbox:
        pass
    return [sandbox.returncode]

def quiet():
    return [fastns.run(five, spec=plan, stdin=-3, stdout=-3).returncode]

def batch():
    done = fastns.run_batch([five] * 2, spec=plan)
    for one in done:
        if isinstance(one, fastns.SpawnError):
            raise one
    return [one.returncode for one in done]

def spawned():
    return [one.wait() for one in fastns.spawn_batch([five], spec=plan) if one_started(one)]

def one_started(one):
    if isinstance(one, fastns.SpawnError):
        raise one
    return True

batch(), piped()  # imports need fds: do them now
before, hard = fds(), resource.getrlimit(resource.RLIMIT_NOFILE)[1]
for start in (plain, piped, quiet, batch, spawned):
    failed = worked = 0
    for limit in range(3, 28):
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        try:
            found = start()
        except fastns.SpawnError as exc:
            assert exc.strerror == "Too many open files", exc
            assert exc.hint or exc.stage not in ("clone", "stdio")
            failed += 1
        else:
            assert set(found) == {5}
            worked += 1
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        assert children() == [], (limit, children())
        assert fds() == before
    assert failed and worked, start
"""
    script(code, str(probe_rootfs), str(init))


def test_a_pidfd_that_cannot_be_received(probe_rootfs: Path) -> None:
    """Another thread takes every free fd during a start. A sandbox whose pidfd the caller cannot
    receive is killed."""
    code = """
import resource
plan = fastns.compile(fastns.Spec(rootfs=sys.argv[1], init=True, default_mounts=False))
assert fastns.spawn(["/true"], spec=plan).wait() == 0  # imports need fds: do them now
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
go, done = threading.Event(), threading.Event()
delay, rounds = 0, 200

def take_all():
    for _ in range(rounds):
        go.wait()
        go.clear()
        held, start = [], time.perf_counter()
        while time.perf_counter() < start + delay:
            pass
        while time.perf_counter() < start + delay + 0.002:
            with contextlib.suppress(OSError):
                held.append(os.dup(0))
        for fd in held:
            os.close(fd)
        done.set()

thread = threading.Thread(target=take_all)
thread.start()
sys.setswitchinterval(1e-5)
resource.setrlimit(resource.RLIMIT_NOFILE, (14, hard))
failed = 0
for i in range(rounds):
    delay = (i % 50) * 0.00003
    done.clear()
    go.set()
    try:
        fastns.spawn(["/probe", "--sleep", "0"], spec=plan).wait()
    except fastns.SpawnError as exc:
        assert exc.strerror == "Too many open files", exc
        failed += 1
    done.wait()
thread.join()
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
assert failed
assert children() == [], children()
"""
    script(code, str(probe_rootfs))


def test_number_of_memory_files(probe_rootfs: Path) -> None:
    """fastns keeps one memfd for the program and one per plan, however often a plan is started."""

    def kept() -> list[str]:
        links = (fd.partition(" pos:")[0] for fd in every_description().values())
        return [link for link in links if link.startswith("/memfd:fastns-")]

    plans = [fastns.compile(fastns.Spec(rootfs=probe_rootfs, umask=n)) for n in range(3)]
    before = kept()
    for _ in range(10):
        for plan in plans:
            assert fastns.run(["/true"], spec=plan).returncode == 0
    after = kept()
    # A user's sandboxes each have a program file of their own, so the caller keeps one only if
    # another test needed it.
    programs = sum("-program" in link for link in after)
    assert programs == 1 if support.is_root() else programs <= 1
    assert len(after) <= len(before) + len(plans) + 1
