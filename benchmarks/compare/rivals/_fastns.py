"""Shared by the contenders of fastns: a spec that isolates what the rivals isolate."""

import os
from pathlib import Path
from typing import Any

import fastns
from fastns import Mount, Spec, Template

AS_IT_COMES: dict[str, Any] = {
    "default_mounts": True,
    "mounts": (),
    "network": "none",
    "namespaces": {},
    "seccomp": "default",
}
"""Fields of spec() that have the defaults again."""
MOUNTS = [Mount("/proc", type="proc"), Mount("/tmp", type="tmpfs")]


def version() -> str:
    return f"fastns {fastns.__version__}"


def find() -> str:
    return ""


def spec(root: Path, **fields: Any) -> Spec:
    """A spec as isolated as most rivals: it has no filter and, if the caller is root, no user
    namespace."""
    equal: dict[str, Any] = {
        "network": "host",
        "namespaces": {"user": "new" if os.geteuid() else "host"},
        "seccomp": "unconfined",
    }
    fields = {"default_mounts": False, "mounts": MOUNTS, **equal, **fields}
    return Spec(rootfs=str(root), **fields)


class FromTemplate:
    """Starts from a Template. What its server does before a start is not timed."""

    def __init__(
        self, root: Path, ready: int | None = None, reuse: bool = False, **fields: Any
    ) -> None:
        self.template = Template(spec(root, **fields), ready=ready, reuse=reuse)
        self.template.run(["/true"])

    def run(self, command: str) -> int:
        return self.template.run([command]).returncode

    def output(self, command: str) -> str:
        return self.template.run([command], capture_output=True, text=True, check=True).stdout

    def batch(self, command: str, n: int, concurrency: int) -> None:
        jobs = [[command]] * n
        self.template.run_batch(jobs, concurrency=concurrency, capture_output=False)

    def close(self) -> None:
        self.template.close()
