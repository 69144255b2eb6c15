"""fastns: isolated processes from Python, started in about the time of a bare exec.

    import fastns
    done = fastns.run(["sh", "-c", "echo $$"], capture_output=True, text=True, timeout=5)

spec.py says what a sandbox is, _compile.py turns that into a plan, the C core carries it out,
sandbox.py and batch.py hold what runs. docs/architecture.md tells the whole way.
"""

from typing import TYPE_CHECKING

from fastns._compile import compile
from fastns._core import Plan
from fastns.batch import Job, run_batch, spawn_batch
from fastns.errors import CalledProcessError, FastnsError, SpawnError, SpecError, TimeoutExpired
from fastns.namespaces import setns, unshare
from fastns.sandbox import DEVNULL, PIPE, STDOUT, CompletedSandbox, Sandbox, Usage, run, spawn
from fastns.spec import IDMapping, Mount, Rlimit, Spec

if TYPE_CHECKING:
    from fastns import doctor, rootfs

__version__ = "0.1.0"

__all__ = [
    "DEVNULL",
    "PIPE",
    "STDOUT",
    "CalledProcessError",
    "CompletedSandbox",
    "FastnsError",
    "IDMapping",
    "Job",
    "Mount",
    "Plan",
    "Rlimit",
    "Sandbox",
    "SpawnError",
    "Spec",
    "SpecError",
    "TimeoutExpired",
    "Usage",
    "compile",
    "doctor",
    "rootfs",
    "run",
    "run_batch",
    "setns",
    "spawn",
    "spawn_batch",
    "unshare",
]


def __getattr__(name: str) -> object:
    """rootfs and doctor are imported when they are used: most programs need neither."""
    if name in ("rootfs", "doctor"):
        import importlib

        return importlib.import_module(f"fastns.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
