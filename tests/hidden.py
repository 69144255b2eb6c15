"""Running Python code with one system call hidden by a seccomp filter, for the fallbacks."""

from __future__ import annotations

import platform

from processes import script

NUMBERS = {
    "x86_64": {"seccomp": 317, "keyctl": 250, "clone": 56, "unshare": 272},
    "aarch64": {"seccomp": 277, "keyctl": 219, "clone": 220, "unshare": 97},
}
for _numbers in NUMBERS.values():
    _numbers |= {"clone3": 435, "openat2": 437, "landlock_create_ruleset": 444}

_FILTER = """
import ctypes, struct
def hide(number, error):
    program = b"".join(struct.pack("HBBI", *step) for step in (
        (0x20, 0, 0, 0),                      # load the number
        (0x15, 0, 1, number),                 # is it this one?
        (0x06, 0, 0, 0x00050000 | error),     # SECCOMP_RET_ERRNO
        (0x06, 0, 0, 0x7fff0000),             # SECCOMP_RET_ALLOW
    ))
    buffer = ctypes.create_string_buffer(program)
    fprog = struct.pack("HxxxxxxP", 4, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0    # PR_SET_NO_NEW_PRIVS
    assert libc.prctl(22, 2, fprog, 0, 0) == 0, ctypes.get_errno()  # PR_SET_SECCOMP
"""


def without(call: str, error: int, code: str, *args: str) -> str:
    """`code`'s stdout, run by a process to which `call` answers `error`."""
    number = NUMBERS[platform.machine()][call]
    return script(f"{_FILTER}\nhide({number}, {error})\n{code}", *args)
