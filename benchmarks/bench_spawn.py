"""Compares sandboxes with bare processes: os.posix_spawn and subprocess.run of a static binary.

test_ratios prints ratios beside the project's goals, each from one interleaved run.
"""

import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from contenders import Contender, interleaved, posix_spawn, sandbox, template
from report import ratio, table

import fastns
from fastns import Spec

# pid, mount, uts, ipc and cgroup are new; the network and the ids are the caller's.
FIVE = {"network": "host", "user": "host"}
FIVE_NAME = "fastns, 5 namespaces"


def contenders(rootfs: Path) -> dict[str, Contender]:
    true = str(rootfs / "true")
    five = Spec(rootfs=str(rootfs), namespaces=FIVE)
    plan = fastns.compile(five)
    return {
        "os.posix_spawn": posix_spawn(true),
        FIVE_NAME: sandbox(five),
        "fastns, default spec": sandbox(Spec(rootfs=str(rootfs))),
        "fastns, init": sandbox(Spec(rootfs=str(rootfs), namespaces=FIVE, init=True)),
        "fastns.Template": template(five),
        "fastns.run, plan": lambda: fastns.run(["/true"], spec=plan) and None,
        "fastns.run, spec": lambda: fastns.run(["/true"], spec=five) and None,
        "subprocess.run": lambda: subprocess.run([true], check=True) and None,
    }


@pytest.mark.parametrize(
    "name", ["os.posix_spawn", FIVE_NAME, "fastns, default spec", "subprocess.run"]
)
def test_spawn(name: str, rootfs: Path, benchmark) -> None:  # type: ignore[no-untyped-def]
    benchmark.pedantic(contenders(rootfs)[name], rounds=200, warmup_rounds=20)


def test_ratios(rootfs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Time all contenders in turn, then only the pair that has a goal."""
    all_of_them = contenders(rootfs)
    times = interleaved(all_of_them)
    pair = interleaved({name: all_of_them[name] for name in ("os.posix_spawn", FIVE_NAME)})
    with capsys.disabled():
        print("\n" + table("spawn to reaped, µs, static true", times, "os.posix_spawn"))
        print("\n" + table("the pair alone, µs", pair, "os.posix_spawn"))
        five = ratio(pair, FIVE_NAME, "os.posix_spawn")
        print(f"to reach: fastns, 5 namespaces / os.posix_spawn <= 1.60: {five:.2f}")


# Two callers take turns, one with much memory and one without. Each starts a sandbox for each line
# that it reads.
CALLER = """
import sys, time
import fastns
from fastns import Spec
rootfs, gib = sys.argv[1], int(sys.argv[2])
memory = bytearray(gib << 30)
memory[::4096] = b"x" * len(memory[::4096])
plan = fastns.compile(Spec(rootfs=rootfs, namespaces={"network": "host", "user": "host"}))
print("ready", flush=True)
for line in sys.stdin:
    start = time.perf_counter()
    fastns.spawn(["/true"], spec=plan).wait()
    print(time.perf_counter() - start, flush=True)
"""


def test_caller_memory(rootfs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if available < 6 << 30:
        pytest.skip(f"missing: 6 GiB of free memory ({available >> 20} MiB)")
    callers = {
        f"caller with {gib} GiB": subprocess.Popen(
            [sys.executable, "-c", CALLER, str(rootfs), str(gib)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for gib in (0, 4)
    }
    times: dict[str, list[float]] = {name: [] for name in callers}
    for caller in callers.values():
        assert caller.stdout is not None
        assert caller.stdout.readline() == "ready\n"
    for number in range(-20, 300):
        for name, caller in callers.items():
            assert caller.stdin is not None
            assert caller.stdout is not None
            caller.stdin.write("\n")
            caller.stdin.flush()
            seconds = float(caller.stdout.readline())
            if number >= 0:
                times[name].append(seconds)
    for caller in callers.values():
        caller.communicate()
    with capsys.disabled():
        print("\n" + table("the caller's memory, µs", times, "caller with 0 GiB"))
        grown = ratio(times, "caller with 4 GiB", "caller with 0 GiB")
        print(f"to reach: 4 GiB touched / none <= 1.10: {grown:.2f}")


PEAK = """
import sys
import fastns
from fastns import Spec
plan = fastns.compile(Spec(rootfs=sys.argv[1], namespaces={"network": "host", "user": "host"}))
def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key))
for _ in range(3):
    fastns.spawn(["/true"], spec=plan).wait()
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # resets the peak (proc(5))
before = status("VmHWM")
fastns.spawn(["/true"], spec=plan).wait()
print(status("VmHWM") - before)
"""


def test_peak_memory(rootfs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    peak = subprocess.run(
        [sys.executable, "-c", PEAK, str(rootfs)], capture_output=True, text=True, check=True
    )
    with capsys.disabled():
        print(f"\nto reach: peak memory of a spawn in the caller < 256 KiB: {int(peak.stdout)} KiB")


def test_import(capsys: pytest.CaptureFixture[str]) -> None:
    # With bytecode, as in an installation. The warm-up writes it if it is missing.
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}

    def python(code: str) -> Contender:
        return lambda: subprocess.run([sys.executable, "-c", code], check=True, env=env) and None  # type: ignore[return-value]

    times = interleaved(
        {
            "python -c pass": python("pass"),
            "import fastns.cli.run": python("import fastns.cli.run"),
        },
        30,
    )
    with capsys.disabled():
        print("\n" + table("start of the command, µs", times, "python -c pass"))
        over = statistics.median(times["import fastns.cli.run"]) - statistics.median(
            times["python -c pass"]
        )
        print(f"to reach: importing < 25 ms over python -c pass: {over * 1e3:.1f} ms")
