"""Compiles the rules of a custom profile to a filter: in the caller, with libseccomp(3)."""

from __future__ import annotations

import ctypes
import errno
import functools
import os

from fastns._policy.syscalls import numbers
from fastns.errors import SpawnError, SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from fastns._policy.bpf import Argument

LIBRARY = "libseccomp.so.2"
ACT_KILL_PROCESS = 0x80000000
ATTR_ACT_BADARCH, ATTR_CTL_OPTIMIZE, ATTR_API_SYSRAWRC = 2, 8, 9  # enum scmp_filter_attr
BINARY_TREE = 2
UNKNOWN = -1  # __NR_SCMP_ERROR
OPERATORS = {"NE": 1, "LT": 2, "LE": 3, "EQ": 4, "GE": 5, "GT": 6, "MASKED_EQ": 7}
# Calls that the library may be too old to know. From 424 on, numbers are the same everywhere.
NEWER = {name: number for name, number in numbers("x86_64").items() if number >= 424}


class Comparison(ctypes.Structure):
    """struct scmp_arg_cmp. MASKED_EQ: argument & datum_a == datum_b."""

    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    )


@functools.cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as exc:
        raise SpecError(
            "seccomp",
            f"{exc}: install libseccomp (Debian: libseccomp2), or use seccomp='unconfined'",
        ) from None
    name, number, pointer = ctypes.c_char_p, ctypes.c_uint32, ctypes.c_void_p
    for function, result, *arguments in (
        ("init", pointer, number),
        ("release", None, pointer),
        ("attr_set", ctypes.c_int, pointer, ctypes.c_int, number),
        ("arch_native", number),
        ("arch_resolve_name", number, name),
        ("arch_add", ctypes.c_int, pointer, number),
        ("arch_remove", ctypes.c_int, pointer, number),
        ("syscall_resolve_name", ctypes.c_int, name),
        ("rule_add_array", ctypes.c_int, pointer, number, ctypes.c_int, ctypes.c_uint, pointer),
        ("export_bpf", ctypes.c_int, pointer, ctypes.c_int),
    ):
        declared = getattr(library, f"seccomp_{function}")
        declared.restype, declared.argtypes = result, arguments
    return library


def architecture(name: str) -> int:
    """The AUDIT_ARCH_* number of a name such as "x86_64"; 0 if the library does not know it."""
    return int(_library().seccomp_arch_resolve_name(name.encode()))


def _rank(action: int) -> int:
    """A number by which to compare actions; the strictest has the lowest. As the kernel does it:
    the upper half, signed."""
    return ctypes.c_int32(action & 0xFFFF0000).value


class Filter:
    """A filter in libseccomp's memory, which the context manager frees."""

    def __init__(self, default: int, architectures: Iterable[int]) -> None:
        """
        Args:
            default: the action (SECCOMP_RET_*) where no rule matches.
            architectures: AUDIT_ARCH_* numbers; a call of any other architecture ends the process.
        """
        self._default = default
        self._context = _library().seccomp_init(default)
        if not self._context:
            raise SpecError("seccomp", f"defaultAction: this libseccomp refuses {default:#x}")
        wanted = set(architectures)
        for token in wanted:
            if self._call("arch_add", token) not in (0, -errno.EEXIST):
                raise SpecError("seccomp", f"this libseccomp cannot filter for {token:#x}")
        native = _library().seccomp_arch_native()
        if native not in wanted:
            self._call("arch_remove", native)
        self._several = len(wanted) > 1
        self._call("attr_set", ATTR_ACT_BADARCH, ACT_KILL_PROCESS)
        self._call("attr_set", ATTR_API_SYSRAWRC, 1)  # otherwise every errno is ECANCELED

    def __enter__(self) -> Filter:
        return self

    def __exit__(self, *_exc: object) -> None:
        _library().seccomp_release(self._context)

    def _call(self, function: str, *args: object) -> int:
        return int(getattr(_library(), f"seccomp_{function}")(self._context, *args))

    def add(self, action: int, name: str, args: Sequence[Argument]) -> None:
        """Adds a rule for one system call, which applies if all comparisons hold.

        As in other runtimes, the default action applies to a call that neither the library nor
        syscalls.py knows. It also applies to a call that the library cannot add for all of the
        architectures. If the rule is stricter than the default, that is an error instead."""
        number = _library().seccomp_syscall_resolve_name(name.encode())
        unknown = number == UNKNOWN
        if unknown:
            if name not in NEWER:
                return
            number = NEWER[name]
        compared = [Comparison(at, OPERATORS[op], one, two) for at, op, one, two in args]
        array = (Comparison * len(args))(*compared)
        result = self._call("rule_add_array", action, number, len(args), array)
        if result and (_rank(action) < _rank(self._default) or not (number < 0 or unknown)):
            why = f"{os.strerror(-result)} (libseccomp)"
            if self._several and unknown:
                why = (
                    "unknown to this libseccomp for several architectures; list one, or install a "
                    "newer libseccomp"
                )
            raise SpecError("seccomp", f"{name}: {why}")

    def export(self, *, sort: bool = False) -> bytes:
        """The filter's instructions (struct sock_filter, 8 bytes each).

        `sort`: the filter finds a call's number by binary search. Making it takes three times as
        long, and requires libseccomp 2.5."""
        if sort:
            self._call("attr_set", ATTR_CTL_OPTIMIZE, BINARY_TREE)
        try:
            with open(os.memfd_create("fastns-seccomp", os.MFD_CLOEXEC), "rb") as file:
                if result := self._call("export_bpf", file.fileno()):
                    raise OSError(-result, os.strerror(-result))
                file.seek(0)
                return file.read()
        except OSError as exc:
            assert exc.errno is not None
            raise SpawnError("seccomp", exc.errno) from None
