"""A seccomp filter that suspends system calls, and its listener (seccomp_unotify(2)).

Root installs the filter without no_new_privs, so a setuid newuidmap still works under it. All
children inherit it. It does not suspend calls on the two pipes to the supervisor.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import re
import struct
import subprocess
from typing import NamedTuple

TO_SUPERVISOR, FROM_SUPERVISOR = 1017, 1019  # fds with fixed numbers, for the filter
ALL = None  # instead of a number: every call

_SECCOMP = {"x86_64": 317, "aarch64": 277}[platform.machine()]
_PIDFD_GETFD = 438
_ALLOW, _NOTIFY = 0x7FFF0000, 0x7FC00000
_NEW_LISTENER, _WAIT_KILLABLE = 1 << 3, 1 << 5
_RECV, _SEND = 0xC0502100, 0xC0182101
_NOTIFICATION = struct.Struct("QIIiIQ6Q")
_ANSWER = struct.Struct("QqiI")
_CONTINUE = 1
_GONE = (errno.ENOENT, errno.EINTR)

_libc = ctypes.CDLL(None, use_errno=True)


class Call(NamedTuple):
    """A suspended system call: the notification's id, the thread, the call's number."""

    id: int
    tid: int
    number: int


def numbers() -> dict[str, int]:
    """The system calls' names and numbers, from the compiler's headers."""
    done = subprocess.run(
        ["gcc", "-E", "-dM", "-include", "sys/syscall.h", "-x", "c", "/dev/null"],
        check=True,
        capture_output=True,
        text=True,
    )
    return {
        name: int(number)
        for name, number in re.findall(r"^#define __NR_(\w+) (\d+)$", done.stdout, re.M)
    }


def install(number: int | None) -> int:
    """Suspend each call with this number in this process and its descendants. Return the
    listener."""
    steps = [
        (0x20, 0, 0, 16),  # load the low half of the first argument
        (0x15, 4, 0, TO_SUPERVISOR),
        (0x15, 3, 0, FROM_SUPERVISOR),
        (0x20, 0, 0, 0),  # load the number of the call
        (0x15, 0, 1, number or 0) if number is not None else (0x05, 0, 0, 0),
        (0x06, 0, 0, _NOTIFY),
        (0x06, 0, 0, _ALLOW),
    ]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    fprog = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(program))
    fd = _libc.syscall(_SECCOMP, 1, _NEW_LISTENER | _WAIT_KILLABLE, fprog)
    if fd < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "seccomp")
    return int(fd)


def take_listener(pid: int, fd: int) -> int:
    """Copy the fd of a listener that another process has installed."""
    pidfd = os.pidfd_open(pid)
    try:
        taken = _libc.syscall(_PIDFD_GETFD, pidfd, fd, 0)
        if taken < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "pidfd_getfd")
        return int(taken)
    finally:
        os.close(pidfd)


def receive(listener: int) -> Call | None:
    """The next suspended call, or None if its process has ended."""
    buffer = bytearray(_NOTIFICATION.size)
    try:
        fcntl.ioctl(listener, _RECV, buffer)
    except OSError as exc:
        if exc.errno in _GONE:
            return None
        raise
    id_, tid, _flags, number, *_ = _NOTIFICATION.unpack(buffer)
    return Call(id_, tid, number)


def answer(listener: int, call: Call, error: int = 0) -> bool:
    """Let the call continue, or make it fail with `error`. False if its process has ended."""
    flags = 0 if error else _CONTINUE
    try:
        fcntl.ioctl(listener, _SEND, bytearray(_ANSWER.pack(call.id, 0, -error, flags)))
    except OSError as exc:
        if exc.errno in _GONE:
            return False
        raise
    return True
