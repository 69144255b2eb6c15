"""The contenders, one module each. All modules define the same names:

NAME        the name shown
NOTE        known differences from the others
find()      the program's path; "" if it is missing, or for a Python function
version()   the version of that program
Rival(root) prepares the contender. Its run(command) runs a command of the root and returns its
            exit code; output(command) returns its output; close() removes everything

As far as possible, all isolate the same: new pid, mount, uts, ipc and cgroup namespaces, `root` as
the root, their own /proc, their own empty /tmp, but the host's network.
"""

import importlib
import pkgutil
from types import ModuleType


def names() -> list[str]:
    """All contenders: those that isolate nothing first, then by name."""
    found = sorted(module.name for module in pkgutil.iter_modules(__path__))
    found = [name for name in found if not name.startswith("_")]
    return sorted(found, key=lambda name: (name not in ("posix_spawn", "subprocess_run"), name))


def load(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")
