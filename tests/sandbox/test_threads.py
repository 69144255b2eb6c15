"""Spawning from many threads at once, and from forked children."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path

import pytest
import support
from processes import script

import fastns

SPAWNERS, EACH = 8, 500 if support.LONG else 200


def test_spawners_among_busy_threads(probe_rootfs: Path, tmp_path: Path) -> None:
    """Each thread gets its own commands' results, while others allocate, open files and fork."""
    plans = [
        fastns.compile(
            fastns.Spec(rootfs=probe_rootfs, default_mounts=False, network="host", init=init)
        )
        for init in (False, False, False, True)
    ]
    wrong: list[object] = []
    stop = threading.Event()

    def spawn(number: int) -> None:
        try:
            for i in range(EACH):
                plan, code = plans[i % 4], (number * 31 + i) % 100
                if i % 10:
                    done = fastns.run(["/probe", "--exit", str(code)], spec=plan)
                    if done.returncode != code:
                        wrong.append((number, i, done))
                else:
                    text = f"{number} {i}".encode()
                    out = fastns.run(["/probe", "--echo"], spec=plan, input=text, stdout=-1).stdout
                    if out != text:
                        wrong.append((number, i, out))
        except BaseException as exc:
            wrong.append(exc)

    def allocate() -> None:
        while not stop.is_set():
            blocks = [bytearray(size) for size in range(1000, 200_000, 7919)]
            del blocks

    def open_files() -> None:
        while not stop.is_set():
            with open(tmp_path / "file", "w") as file:
                file.write("x")

    def fork() -> None:
        while not stop.is_set():
            if subprocess.run(["true"]).returncode != 0:
                wrong.append("subprocess")

    busy = [threading.Thread(target=target) for target in (allocate, open_files, fork)]
    spawners = [threading.Thread(target=spawn, args=(n,)) for n in range(SPAWNERS)]
    for thread in busy + spawners:
        thread.start()
    for thread in spawners:
        thread.join()
    stop.set()
    for thread in busy:
        thread.join()
    assert wrong == []


def test_one_plan_for_many_threads(probe_rootfs: Path) -> None:
    """Any of the threads may be the first to compile a plan, which loads the program."""
    code = """
spec = fastns.Spec(rootfs=sys.argv[1], init=True, default_mounts=False)
barrier = threading.Barrier(8)
codes = []
def work(n):
    barrier.wait()
    codes.append(fastns.run(["/probe", "--exit", str(n)], spec=fastns.compile(spec)).returncode)
threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(sorted(codes))
"""
    for _ in range(5):
        assert script(code, str(probe_rootfs)) == f"{list(range(8))}\n"


@pytest.mark.parametrize("init", [False, True], ids=["direct", "init"])
def test_a_forked_child_can_spawn(probe_rootfs: Path, init: bool) -> None:
    code = """
spec = fastns.Spec(rootfs=sys.argv[1], init=sys.argv[2] == "True", default_mounts=False)
plan = fastns.compile(spec)
assert fastns.run(["/probe", "--exit", "3"], spec=plan).returncode == 3
for number in range(20):
    pid = os.fork()
    if pid == 0:
        code = fastns.run(["/probe", "--exit", "7"], spec=plan).returncode
        os._exit(code if code == 7 else 99)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
assert children() == []
"""
    script(code, str(probe_rootfs), str(init))


def test_multiprocessing_workers_can_spawn(probe_rootfs: Path) -> None:
    code = """
import multiprocessing
plan = fastns.compile(fastns.Spec(rootfs=sys.argv[1], default_mounts=False))
def work(number):
    return fastns.run(["/probe", "--exit", str(number)], spec=plan).returncode
with multiprocessing.get_context("fork").Pool(4) as pool:
    assert pool.map(work, range(64)) == list(range(64))
    pool.close()
    pool.join()
"""
    script(code, str(probe_rootfs))


@pytest.mark.parametrize("end", ["os._exit(0)", "sys.exit(0)", "sandbox.kill(); os._exit(0)"])
def test_an_inherited_handle_ends_nothing(probe_rootfs: Path, end: str) -> None:
    """The copy of a handle in a forked child cannot end the sandbox, however the child ends."""
    code = f"""
import gc, warnings
sandbox = fastns.spawn(["/probe", "--sleep", "60"], spec=fastns.Spec(rootfs=sys.argv[1]))
pid = os.fork()
if pid == 0:
    {"del sandbox; gc.collect()" if "kill" not in end else "pass"}
    try:
        {end}
    except fastns.SpawnError as exc:
        os._exit(0 if exc.stage == "wait" else 99)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
time.sleep(0.05)
assert sandbox.poll() is None
sandbox.kill()
assert sandbox.wait() == -9
"""
    script(code, str(probe_rootfs))


def test_a_thread_that_ends_leaves_its_sandbox(probe_rootfs: Path) -> None:
    """The kernel would send a parent-death signal as soon as the starting thread ends."""
    held: list[fastns.Sandbox] = []
    spec = fastns.Spec(rootfs=probe_rootfs)

    def spawn() -> None:
        held.append(fastns.spawn(["/probe", "--sleep", "60"], spec=spec))

    thread = threading.Thread(target=spawn)
    thread.start()
    thread.join()
    with pytest.raises(fastns.TimeoutExpired):
        held[0].wait(0.05)
    os.kill(held[0].pid, 9)
    assert held[0].wait() == -9


def test_threads_capture_only_their_own_output(probe_rootfs: Path) -> None:
    plan = fastns.compile(fastns.Spec(rootfs=probe_rootfs, default_mounts=False))
    outputs: dict[int, set[bytes]] = {}

    def work(number: int) -> None:
        seen = set()
        for _ in range(50):
            argv = ["/probe", "--flood", "both", str(1000 + number)]
            done = fastns.run(argv, spec=plan, capture_output=True)
            seen |= {done.stdout, done.stderr}
        outputs[number] = seen

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outputs == {n: {b"x" * (1000 + n)} for n in range(6)}
