"""fastns: isolated processes from Python, started in about the time of a bare exec.

    import fastns
    done = fastns.run(["sh", "-c", "echo $$"], capture_output=True, text=True, timeout=5)

spec.py describes a sandbox, _compile turns the description into a plan, and the C core carries the
plan out. The functions that users call are in _run.py, sandbox.py, batch.py, template.py and
container.py. See docs/architecture.md.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fastns import doctor, rootfs
    from fastns._command import DecodeError, Timings, Usage
    from fastns._compile import compile
    from fastns._core import Plan
    from fastns._files import File
    from fastns._run import run
    from fastns.batch import Job, run_batch, spawn_batch
    from fastns.container import Container
    from fastns.errors import ClosedError, FastnsError, SpawnError, SpecError
    from fastns.namespaces import setns, unshare
    from fastns.results import CalledProcessError, CompletedSandbox, TimeoutExpired
    from fastns.sandbox import DEVNULL, PIPE, STDOUT, Sandbox, spawn
    from fastns.spec import IDMapping, Mount, Rlimit, Spec
    from fastns.template import Template

__version__ = "0.1.0"

__all__ = [
    "DEVNULL", "PIPE", "STDOUT", "CalledProcessError", "ClosedError", "CompletedSandbox",
    "Container", "DecodeError", "FastnsError", "File", "IDMapping", "Job", "Mount", "Plan",
    "Rlimit", "Sandbox", "SpawnError", "Spec", "SpecError", "Template", "TimeoutExpired", "Timings",
    "Usage", "compile", "doctor", "rootfs", "run", "run_batch", "setns", "spawn", "spawn_batch",
    "unshare",
]  # fmt: skip

_HOMES = {
    "_compile": ("compile",),
    "_core": ("Plan",),
    "_files": ("File",),
    "container": ("Container",),
    "batch": ("Job", "run_batch", "spawn_batch"),
    "_run": ("run",),
    "errors": ("ClosedError", "FastnsError", "SpawnError", "SpecError"),
    "namespaces": ("setns", "unshare"),
    "results": ("CalledProcessError", "CompletedSandbox", "TimeoutExpired"),
    "_command": ("DecodeError", "Timings", "Usage"),
    "sandbox": ("DEVNULL", "PIPE", "STDOUT", "Sandbox", "spawn"),
    "spec": ("IDMapping", "Mount", "Rlimit", "Spec"),
    "template": ("Template",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    """Imports a name when it is first used: a start needs only a few of them."""
    if name in _HOME:
        # Cheaper than importing importlib.
        value = getattr(__import__(f"fastns.{_HOME[name]}", fromlist=[name]), name)
    elif name in ("rootfs", "doctor"):
        value = __import__(f"fastns.{name}", fromlist=[name])
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
