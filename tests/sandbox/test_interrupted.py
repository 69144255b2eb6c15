"""An exception between any two Python instructions, as from Ctrl-C, leaves no fd and no process."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import support

import fastns
from fastns import PIPE, Spec, Template

PACKAGE = str(Path(fastns.__file__).parent)
STRIDE = 1 if support.LONG else 7


class Interrupt(BaseException):
    pass


def interrupted(call: Callable[[], object], step: int) -> bool:
    """Call it, and raise Interrupt before the step-th bytecode instruction of fastns, as a signal
    handler could. Return False if there were fewer instructions."""
    left = step

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            left -= 1
            if left == 0:
                raise Interrupt
        return trace

    before = sys.gettrace()
    sys._getframe().f_trace_opcodes = True  # Python 3.12 looks for one such frame in settrace()
    sys.settrace(trace)
    try:
        with suppress(Interrupt):
            call()
    finally:
        sys.settrace(before)
    return left <= 0


def fds() -> list[str]:
    """All open fds except the memfds that fastns keeps, of its program and of plans."""
    here = os.open("/proc/self/fd", os.O_RDONLY)
    try:
        found = []
        for fd in set(os.listdir(here)) - {str(here)}:
            with suppress(FileNotFoundError):  # the fd that reads the directory
                if not os.readlink(fd, dir_fd=here).startswith("/memfd:fastns-"):
                    found.append(fd)
        return sorted(found)
    finally:
        os.close(here)


def pipes() -> dict[str, Any]:
    return {"stdin": PIPE, "stdout": PIPE, "stderr": PIPE}


def waits(sandbox: fastns.Sandbox) -> None:
    with sandbox:
        assert sandbox.stdout is not None
        sandbox.stdout.read()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("text", [False, True], ids=["bytes", "text"])
@pytest.mark.parametrize("way", ["spawn", "communicate", "devnull", "run", "template"])
def test_nothing_is_left(probe_rootfs: Path, way: str, text: bool) -> None:
    spec = Spec(rootfs=probe_rootfs)
    plan = fastns.compile(spec)
    data: Any = "x" if text else b"x"
    with Template(spec, ready=0) as template:
        calls: dict[str, Callable[[], object]] = {
            "spawn": lambda: waits(fastns.spawn(["/true"], spec=plan, text=text, **pipes())),
            "communicate": lambda: fastns.spawn(
                ["/true"], spec=plan, text=text, **pipes()
            ).communicate(data),
            "devnull": lambda: fastns.spawn(
                ["/true"], spec=plan, stdin=fastns.DEVNULL, stderr=fastns.DEVNULL
            ).wait(),
            "run": lambda: fastns.run(
                ["/true"], spec=plan, capture_output=True, input=data, text=text
            ),
            "template": lambda: waits(template.spawn(["/true"], text=text, **pipes())),
        }
        call = calls[way]
        call()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            before, step, children = fds(), 1, support.host_state()["children"]
            while interrupted(call, step):
                assert fds() == before, step
                assert support.host_state()["children"] == children, step
                step += STRIDE
        assert step > 100
