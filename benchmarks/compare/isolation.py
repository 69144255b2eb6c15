"""Finds what a contender isolates, by comparing a probe's reports from inside and outside."""

import json
import subprocess
from pathlib import Path
from typing import Any

SPACES = {"pid": "pid", "mount": "mnt", "uts": "uts", "ipc": "ipc", "cgroup": "cgroup"}


def seen_outside(root: Path) -> Any:
    probe = subprocess.run([root / "probe"], capture_output=True, text=True, check=True)
    return json.loads(probe.stdout)


def compare(inside: Any, outside: Any) -> dict[str, Any]:
    """Return what the contender isolates, and which defences it has, from both reports."""
    spaces = [
        name
        for name, file in SPACES.items()
        if inside["namespaces"] is not None
        and inside["namespaces"][file] != outside["namespaces"][file]
    ]
    mounts = {mount["point"]: mount for mount in inside["mounts"] or []}
    return {
        "namespaces": spaces,
        "network": inside["namespaces"]["net"] != outside["namespaces"]["net"],
        "root": sorted(inside["root"]) != sorted(outside["root"]),
        "proc": len(inside["proc_pids"]) < 5,
        "tmp": "/tmp" in mounts,
        "capabilities": inside["capabilities"]["effective"] != 0,
        "no_new_privs": bool(inside["no_new_privs"]),
        "seccomp": bool(inside["seccomp"]),
    }


def is_equal(found: dict[str, Any]) -> bool:
    """Whether a contender isolates everything that equal isolation requires."""
    return found["namespaces"] == list(SPACES) and all(found[x] for x in ("root", "proc", "tmp"))
