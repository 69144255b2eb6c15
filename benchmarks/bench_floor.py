"""Measures the kernel's share of a start (floor.c). No start can take less time.

Stores the figures and the machine in results/floor.json.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from compare.__main__ import machine

SOURCE = Path(__file__).with_name("floor.c")
RESULTS = Path(__file__).with_name("results") / "floor.json"
ROUNDS = 500
EXEC = """
static long call(long number, const void *one, const void *two, const void *three)
{
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(one), "S"(two), "d"(three)
                     : "rcx", "r11", "memory");
    return result;
}
void _start(void)
{
    const char *arguments[] = {"/true", 0}, *environment[] = {0};
    call(59, arguments[0], arguments, environment);
    call(60, (void *)127, 0, 0);
    __builtin_unreachable();
}
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="missing: root")
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="missing: x86-64")
def test_floor(rootfs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compiler = os.environ.get("CC") or shutil.which("cc") or "cc"
    floor, program = tmp_path / "floor", tmp_path / "exec"
    flags = ["-O2", "-static", "-nostdlib", "-fno-stack-protector", "-Wl,-z,noseparate-code", "-s"]
    subprocess.run([compiler, "-O2", "-o", str(floor), str(SOURCE)], check=True)
    subprocess.run(
        [compiler, *flags, "-o", str(program), "-x", "c", "-"], input=EXEC, text=True, check=True
    )
    command = [str(floor), str(ROUNDS), str(rootfs), str(program)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    steps = json.loads(done.stdout)
    RESULTS.parent.mkdir(exist_ok=True)
    figures = {"machine": machine(), "steps": steps}
    RESULTS.write_text(json.dumps(figures, indent=2) + "\n")
    with capsys.disabled():
        print("\nin C, start to reaped, µs, static true; each beside a posix_spawn")
        for name, found in steps.items():
            print(f"  {name:20} {found['median_us']:7.1f}  {found['ratio']:.2f}")
