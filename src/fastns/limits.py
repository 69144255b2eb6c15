"""The limits that cgroups enforce, checked and converted to plain units. Does no I/O.

Rlimits are not here, but in _spec_values.py.
"""

from __future__ import annotations

import re

from fastns._args import MAX_PATH, check_one_of, check_whole, encode, wrong
from fastns._light import record
from fastns.errors import SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
SIZE = re.compile(r"([0-9]{1,20})(?:([kmgt])i?)?b?", re.IGNORECASE)
CPUSET = re.compile(r"[0-9]{1,5}(-[0-9]{1,5})?(,[0-9]{1,5}(-[0-9]{1,5})?)*")
DEVICE = re.compile(r"[0-9]{1,4}:[0-9]{1,7}")
MAX_BYTES = 2**62
MIN_MEMORY = 1 << 20
IO_KEYS = ("rbps", "wbps", "riops", "wiops")
MAX_PIDS = 2**22  # PID_MAX_LIMIT
MIN_CPUS, MAX_CPUS = 0.01, 8192
MIN_CPU_TIME, MAX_CPU_TIME = 0.01, 1e9  # seconds


@record(frozen=True)
class Limits:
    """The limits of one spec, made from its fields of the same names; None: no such limit.

    Raises: SpecError, naming the field.
    """

    memory: int | None = None  # bytes
    memory_swap: int | None = None  # bytes of memory and swap together; -1: all the swap there is
    pids_limit: int | None = None
    cpus: float | None = None
    cpu_weight: int | None = None
    cpuset: str | None = None
    io: tuple[tuple[str, tuple[tuple[str, int], ...]], ...] = ()
    cpu_time: float | None = None  # seconds of user and system time of all processes together

    def __post_init__(self) -> None:
        put = object.__setattr__
        if self.memory is not None:
            put(self, "memory", parse_size("memory", self.memory))
            if self.memory < MIN_MEMORY:
                words = f"{self.memory} bytes: expected at least {MIN_MEMORY} (1m)"
                raise SpecError("memory", words)
        if self.memory_swap is not None:
            self._check_swap()
        if self.pids_limit is not None:
            check_whole("pids_limit", self.pids_limit, 1, MAX_PIDS)
        if self.cpu_weight is not None:
            check_whole("cpu_weight", self.cpu_weight, 1, 10000)
        _check_number("cpus", self.cpus, MIN_CPUS, MAX_CPUS, "a number of CPUs")
        if self.cpuset is not None:
            _check_cpuset(self.cpuset)
        _check_number("cpu_time", self.cpu_time, MIN_CPU_TIME, MAX_CPU_TIME, "seconds of CPU time,")
        put(self, "io", _io(self.io) if self.io else ())

    def _check_swap(self) -> None:
        rule = "is memory and swap together: "
        if self.memory is None:
            raise SpecError("memory_swap", rule + "needs memory as well")
        if self.memory_swap != -1:
            size = parse_size("memory_swap", self.memory_swap)
            if size < self.memory:
                raise SpecError("memory_swap", rule + "expected at least memory")
            object.__setattr__(self, "memory_swap", size)

    def given(self) -> tuple[str, ...]:
        """The names of the limits that are set."""
        return tuple(name for name, value in vars(self).items() if value not in (None, ()))


def parse_size(field: str, value: Any) -> int:
    """Bytes: a number, or text such as "64m" (powers of 1024, as in docker). Raises: SpecError."""
    size = value
    if isinstance(value, str) and (match := SIZE.fullmatch(value)) is not None:
        size = int(match[1]) * UNITS[(match[2] or "").lower()]
    if isinstance(size, bool) or not isinstance(size, int) or not 0 < size <= MAX_BYTES:
        raise wrong(field, value, 'bytes, or text such as "64m" or "1g"')
    return size


def ranges_of(cpus: str) -> list[tuple[int, int]]:
    """The first and last of each range in a list of CPUs such as "0-1,3" (cpuset(7))."""
    pairs = [text.partition("-") for text in cpus.split(",") if text]
    return [(int(first), int(last or first)) for first, _, last in pairs]


def _check_number(field: str, value: Any, low: float, high: float, what: str) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise wrong(field, value, f"{what} from {low} to {high}, such as 1.5")


def _check_cpuset(cpuset: Any) -> None:
    if not isinstance(cpuset, str) or not CPUSET.fullmatch(cpuset):
        raise wrong("cpuset", cpuset, 'numbers of CPUs such as "0-1,3"')
    if any(first > last for first, last in ranges_of(cpuset)):
        raise wrong("cpuset", cpuset, 'ascending ranges such as "1-3"')


def _io(io: Any) -> tuple[tuple[str, tuple[tuple[str, int], ...]], ...]:
    if isinstance(io, tuple):  # the stored form, which dataclasses.replace() passes
        io = {device: dict(rates) for device, rates in io}
    for device, rates in io.items():
        if not isinstance(device, str) or not (device.startswith("/") or DEVICE.fullmatch(device)):
            raise wrong("io", device, "a block device's path or 'major:minor'")
        encode("io", device, MAX_PATH)
        if not hasattr(rates, "items") or not rates:
            raise SpecError("io", f"{device}: expected a mapping with some of {', '.join(IO_KEYS)}")
        for key, rate in rates.items():
            check_one_of("io", key, IO_KEYS, f"{device}: ")
            check_whole("io", rate, 1, MAX_BYTES, f"{device}: {key}: ")
    return tuple((device, tuple(rates.items())) for device, rates in io.items())
