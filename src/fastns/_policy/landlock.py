"""The ops for Spec.landlock: with them the kernel refuses every kind of access that it can, except
below the spec's paths. The numbers are from <linux/landlock.h>.
"""

from __future__ import annotations

import errno
import os

from fastns import _core
from fastns._compile.ops import Op
from fastns.errors import SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
REMOVE_AND_MAKE = sum(1 << bit for bit in range(4, 13))
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
SCOPE_ABSTRACT_UNIX_SOCKET, SCOPE_SIGNAL = 1 << 0, 1 << 1

READ = EXECUTE | READ_FILE | READ_DIR
OF_A_FILE = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
"""The accesses that a rule may allow if its path is not a directory."""

SINCE = {  # version of the interface (ABI) -> (accesses to files, scopes) that it adds
    1: (READ | WRITE_FILE | REMOVE_AND_MAKE, 0),
    2: (REFER, 0),  # in version 1, rename and link into another directory always fail
    3: (TRUNCATE, 0),  # in earlier versions, truncation is always allowed
    5: (IOCTL_DEV, 0),
    6: (0, SCOPE_ABSTRACT_UNIX_SOCKET | SCOPE_SIGNAL),
}

MISSING = {
    errno.ENOSYS: "this kernel has no Landlock (CONFIG_SECURITY_LANDLOCK), or a filter hides it",
    errno.EOPNOTSUPP: "Landlock is switched off in this kernel: add landlock to lsm= at boot",
}


def abi() -> int:
    """This kernel's version of the interface. Raises: SpecError if Landlock cannot be used."""
    found = _core.landlock_abi()
    if found > 0:
        return found
    why = MISSING.get(-found, f"Landlock cannot be used here: {os.strerror(-found)}")
    raise SpecError("landlock", f"{why}; leave it out")


def handled(version: int) -> tuple[int, int]:
    """The kinds of access and the scopes that this version can refuse, as bits."""
    known = [more for since, more in SINCE.items() if since <= version]
    return sum(files for files, _ in known), sum(scopes for _, scopes in known)


def ops(paths: Mapping[str, Sequence[str]], version: int, how: int = 0) -> Iterator[Op]:
    """The ops that restrict a process to the paths. `how`: HOW_* flags of the last op."""
    files, scopes = handled(version)
    yield Op("landlock", "landlock", flags=files, arg=scopes, note=f"ABI {version}")
    for kind, wanted in (("read", READ), ("write", files)):
        for path in paths.get(kind, ()):
            flags, note = wanted & files, f"{path} {kind}"
            arg, target = flags & OF_A_FILE, os.fsencode(path)
            yield Op("landlock_path", "landlock", flags=flags, arg=arg, target=target, note=note)
    yield Op("landlock_restrict", "landlock", how, note="to these")
