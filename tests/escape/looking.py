"""A sandbox looks into the processes of another start, at each of their system calls.

The attacker has the caller's uid, no capabilities and the default filter. The start joins its pid
namespace. Prints, as JSON, what the attacker got at each call.

Arguments: the root, and what starts: a key of STARTS, or "control", a process of the caller's that
joins the pid namespace with the attacker's own rights.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from faults import notify, steps

import fastns
from fastns import IDMapping, Spec

RANGE = (IDMapping(0, 0, 10),)
STARTS: dict[str, dict[str, Any]] = {
    "user": {"namespaces": {"user": "new"}},
    "mappings": {"uid_mappings": RANGE, "gid_mappings": RANGE},
    "range": {},
    "host": {"namespaces": {"user": "host"}},
}


def pid_in(pid: int) -> str:
    """The process's pid in its innermost pid namespace."""
    status = Path(f"/proc/{pid}/status").read_text()
    return status.partition("\nNSpid:")[2].splitlines()[0].split()[-1]


def look_at_each_step(
    look: Callable[[int], str], plan: fastns.Plan, namespace: str
) -> list[tuple[str, str]]:
    """Until the sandbox executes its command. Other processes of the start are out of sight."""
    seen: list[tuple[str, str]] = []
    with steps.suspended(lambda: fastns.run(["/attack", "idle"], spec=plan)) as (listener, caller):
        for call in steps.calls(listener):
            name = steps.CALLS[call.number]
            if call.tid != caller and os.path.samefile(f"/proc/{call.tid}/ns/pid", namespace):
                seen.append((name, look(call.tid)))
                if name == "execve":
                    break
            notify.answer(listener, call)
    return seen


def main(root: str, start: str) -> None:
    attacker = fastns.spawn(
        ["/attack", "look_into"],
        spec=Spec(rootfs=root, namespaces={"user": "host"}),
        stdin=fastns.PIPE,
        stdout=fastns.PIPE,
        text=True,
    )
    stdin, stdout = attacker.stdin, attacker.stdout
    assert stdin is not None
    assert stdout is not None

    def look(pid: int) -> str:
        stdin.write(pid_in(pid) + "\n")
        stdin.flush()
        return stdout.readline().strip()

    namespaces = f"/proc/{attacker.pid}/ns"
    try:
        if start == "control":
            nsenter = ["nsenter", f"--pid={namespaces}/pid"]
            rights = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
            command = [*nsenter, *rights, "sh", "-c", "echo; read end"]
            pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            with subprocess.Popen(command, **pipes) as process:
                process.stdout.readline()
                children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
                seen = [("read", look(int(children.split()[0])))]
                process.communicate()
        else:
            fields = STARTS[start]
            joined = {"pid": f"{namespaces}/pid", **fields.get("namespaces", {})}
            # A user namespace cannot have a /proc of a pid namespace that it does not own.
            spec = Spec(rootfs=root, **{**fields, "namespaces": joined}, default_mounts=False)
            plan = fastns.compile(spec)
            seen = look_at_each_step(look, plan, f"{namespaces}/pid")
    finally:
        attacker.kill()
        attacker.wait()
    print(json.dumps(seen))


if __name__ == "__main__":
    main(*sys.argv[1:])
