"""Runs Python code under a seccomp filter that hides one system call, to test fallbacks."""

from __future__ import annotations

import platform

from processes import script

NUMBERS = {
    "x86_64": {
        "clone": 56,
        "epoll_create1": 291,
        "fcntl": 72,
        "keyctl": 250,
        "mprotect": 10,
        "openat": 257,
        "rt_sigprocmask": 14,
        "seccomp": 317,
        "sendto": 44,
        "setsid": 112,
        "signalfd4": 289,
        "unshare": 272,
    },
    "aarch64": {
        "clone": 220,
        "epoll_create1": 20,
        "fcntl": 25,
        "keyctl": 219,
        "mprotect": 226,
        "openat": 56,
        "rt_sigprocmask": 135,
        "seccomp": 277,
        "sendto": 206,
        "setsid": 157,
        "signalfd4": 74,
        "unshare": 97,
    },
}
for _numbers in NUMBERS.values():
    _numbers |= {"clone3": 435, "openat2": 437, "epoll_pwait2": 441, "landlock_create_ruleset": 444}

KILL = 0
"""In place of an errno: the call kills the process."""

_FILTER = """
import ctypes, struct
def hide(number, error, argument=0, least=0, most=0xffffffff):
    answer = 0x00050000 | error if error else 0x80000000  # SECCOMP_RET_ERRNO, _KILL_PROCESS
    program = b"".join(struct.pack("HBBI", *step) for step in (
        (0x20, 0, 0, 0),                      # load the call's number
        (0x15, 0, 4, number),                 # is it the hidden call?
        (0x20, 0, 0, 16 + 8 * argument),      # load an argument
        (0x35, 0, 2, least),                  # is it in the range?
        (0x25, 1, 0, most),
        (0x06, 0, 0, answer),
        (0x06, 0, 0, 0x7fff0000),             # SECCOMP_RET_ALLOW
    ))
    buffer = ctypes.create_string_buffer(program)
    fprog = struct.pack("HxxxxxxP", 7, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0    # PR_SET_NO_NEW_PRIVS
    assert libc.prctl(22, 2, fprog, 0, 0) == 0, ctypes.get_errno()  # PR_SET_SECCOMP
"""


def hider(call: str, error: int, argument: int = 0, least: int = 0, most: int = 0xFFFFFFFF) -> str:
    """Code that defines hide_it(). After hide_it(), `call` fails with `error` if its argument
    number `argument` is from `least` to `most`."""
    arguments = (NUMBERS[platform.machine()][call], error, argument, least, most)
    return f"{_FILTER}\ndef hide_it():\n    hide{arguments}\n"


def without(call: str, error: int, code: str, *args: str) -> str:
    """The stdout of `code`, run in a process in which `call` fails with `error`."""
    number = NUMBERS[platform.machine()][call]
    return script(f"{_FILTER}\nhide({number}, {error})\n{code}", *args)
