"""SIGCONT during a start. A shell's `fg`, coreutils' `timeout` and `systemctl stop` send it to
whole groups of processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import support

WAYS = pytest.mark.parametrize("way", ["direct", "init", "template", "ready", "spawn", "batch"])
CAPABILITIES = pytest.mark.parametrize("capabilities", [[], ["SYS_ADMIN"]], ids=["none", "some"])

# Compares each sandbox's namespaces with the caller's.
STARTS = """
import json, os, sys
import fastns
root, way, fields, starts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4])
spec = fastns.Spec(rootfs=root, init=way == "init", hostname="renamed", **fields)
plan = fastns.compile(spec)
KINDS = {"cgroup": "cgroup", "ipc": "ipc", "mount": "mnt", "network": "net", "pid": "pid",
         "user": "user", "uts": "uts", "time": "time"}
new = {*plan.namespaces, *(["user"] if plan.ids else [])}

def link(kind):
    return os.readlink(f"/proc/self/ns/{KINDS[kind]}")

def spawned(template):
    sandbox = template.spawn(["/probe"], stdout=fastns.PIPE)
    out = sandbox.stdout.read()
    return out if sandbox.wait() == 0 else b""

def ran(template):
    return template.run(["/probe"], capture_output=True).stdout

def reports():
    if way in ("direct", "init"):
        for _ in range(starts):
            yield fastns.run(["/probe"], spec=plan, capture_output=True).stdout
    elif way == "batch":
        jobs = [["/probe"]] * starts
        yield from (job.stdout for job in fastns.run_batch(jobs, spec=spec, concurrency=2))
    else:
        with fastns.Template(spec, ready=2 if way == "ready" else 0) as template:
            for _ in range(starts):
                yield spawned(template) if way == "spawn" else ran(template)

host = {kind: link(kind) for kind in KINDS}
name, seen, wrong = os.uname().nodename, 0, []
for out in reports():
    inside = json.loads(out)["namespaces"]
    wrong += [f"{kind} is the host's" for kind in new if inside[KINDS[kind]] == host[kind]]
    seen += 1
wrong += ["the host has another name"] * (os.uname().nodename != name)
print(json.dumps([sorted(new), seen, sorted(set(wrong))]))
"""


def run(wrapper: list[str], root: Path, way: str, fields: dict[str, object], starts: int) -> None:
    arguments = [str(root), way, json.dumps(fields), str(starts)]
    done = subprocess.run(
        [*wrapper, sys.executable, "-W", "error", "-c", STARTS, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    new, seen, wrong = json.loads(done.stdout)
    assert {"network", "ipc", "uts"} <= set(new)
    assert (seen, wrong) == (starts, [])


STORM = """
import os, signal, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
done = 0
while not done:
    os.kill(-1, signal.SIGCONT)
    done, status = os.waitpid(child, os.WNOHANG)
sys.exit(os.waitstatus_to_exitcode(status))
"""


# A uts namespace protects the host's name.
APART = ["unshare", "--uts", "--pid", "--fork", "--mount-proc"]
if not support.is_root():
    APART += ["--user", "--map-root-user"]


@WAYS
@CAPABILITIES
def test_a_start_during_a_storm_of_sigcont(
    probe_rootfs: Path, way: str, capabilities: list[str]
) -> None:
    """All processes of a pid namespace get the signal all the time. They share one CPU, where races
    last longer.

    The control is a start without capabilities, which needs no hop process."""
    run(
        [*APART, sys.executable, "-c", STORM],
        probe_rootfs,
        way,
        {"capabilities": capabilities},
        100,
    )
