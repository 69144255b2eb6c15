"""The contenders, one module each. All modules define the same names:

NAME        the name shown
NOTE        what it does more or less than the others, where that is known beforehand
find()      the program's path, or "" if it is a Python function
version()   the version of what was found
Rival(root) prepares; run(command) starts a command of the root and returns its code once it is
            reaped; output(command) returns what it printed; close() removes everything

Each contender that can is told to make equal isolation: new pid, mount, uts, ipc and cgroup
namespaces, `root` as its root, its own /proc, an empty /tmp of its own, and the host's network.
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
