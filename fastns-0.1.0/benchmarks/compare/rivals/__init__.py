"""The contenders, one module each, with the same names in all of them.

NAME        as it is shown
NOTE        what it does more or less than the others, where that is known beforehand
find()      the program's path, or "" where it is a function of Python's
version()   of what was found
Rival(root) prepares; run(command) starts the command of the root, and returns its code once it is
            reaped; output(command) returns what it printed; close() leaves nothing

Equal isolation is what all that can are told to make: new pid, mount, uts, ipc and cgroup
namespaces, `root` as their root, a /proc and an empty /tmp of their own, the network of the host.
"""

import importlib
import pkgutil
from types import ModuleType


def names() -> list[str]:
    """Those that isolate nothing first, then by name."""
    found = sorted(module.name for module in pkgutil.iter_modules(__path__))
    found = [name for name in found if not name.startswith("_")]
    return sorted(found, key=lambda name: (name not in ("posix_spawn", "subprocess_run"), name))


def load(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")
