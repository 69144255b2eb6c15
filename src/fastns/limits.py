"""The limits that cgroups enforce, checked and in plain units. No I/O."""

from __future__ import annotations

import re

from fastns._args import MAX_PATH, check_whole, encode, shown
from fastns._record import record
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
NOTHING: Any = {}
MAX_PIDS = 2**22  # PID_MAX_LIMIT
MIN_CPUS, MAX_CPUS = 0.01, 8192
MIN_CPU_TIME, MAX_CPU_TIME = 0.01, 1e9  # seconds


@record(frozen=True)
class Limits:
    """The limits of one spec; None: no such limit."""

    memory: int | None = None  # bytes
    memory_swap: int | None = None  # bytes of memory and swap together; -1: as much as there is
    pids_limit: int | None = None
    cpus: float | None = None
    cpu_weight: int | None = None
    cpuset: str | None = None
    io: tuple[tuple[str, tuple[tuple[str, int], ...]], ...] = ()
    cpu_time: float | None = None  # seconds of user and system time of all processes together

    def given(self) -> tuple[str, ...]:
        """The names of the limits that are set."""
        return tuple(name for name, value in vars(self).items() if value not in (None, ()))


def parse_size(field: str, value: Any) -> int:
    """Bytes: a number, or text such as "64m" (powers of 1024, as in docker). Raises: SpecError."""
    size = value
    if isinstance(value, str) and (match := SIZE.fullmatch(value)) is not None:
        size = int(match[1]) * UNITS[(match[2] or "").lower()]
    if isinstance(size, bool) or not isinstance(size, int) or not 0 < size <= MAX_BYTES:
        raise SpecError(field, f'{shown(value)}: bytes, or text such as "64m" or "1g" expected')
    return size


def ranges_of(cpus: str) -> list[tuple[int, int]]:
    """The first and last of each range in a list of CPUs such as "0-1,3" (cpuset(7))."""
    pairs = [text.partition("-") for text in cpus.split(",") if text]
    return [(int(first), int(last or first)) for first, _, last in pairs]


def check_limits(
    *,
    memory: Any = None,
    memory_swap: Any = None,
    pids_limit: Any = None,
    cpus: Any = None,
    cpu_weight: Any = None,
    cpuset: Any = None,
    io: Any = NOTHING,
    cpu_time: Any = None,
) -> Limits:
    """The fields of a Spec with these names. Raises: SpecError, naming the field."""
    if memory is not None:
        memory = parse_size("memory", memory)
        if memory < MIN_MEMORY:
            raise SpecError("memory", f"{memory} bytes: at least {MIN_MEMORY} (1m) expected")
    if memory_swap is not None:
        if memory is None:
            raise SpecError("memory_swap", "is memory and swap together: needs memory as well")
        if memory_swap != -1:
            memory_swap = parse_size("memory_swap", memory_swap)
            if memory_swap < memory:
                raise SpecError(
                    "memory_swap", "is memory and swap together: at least memory expected"
                )
    if pids_limit is not None:
        check_whole("pids_limit", pids_limit, 1, MAX_PIDS)
    if cpu_weight is not None:
        check_whole("cpu_weight", cpu_weight, 1, 10000)
    _check_number("cpus", cpus, MIN_CPUS, MAX_CPUS, "a number of CPUs")
    if cpuset is not None and (not isinstance(cpuset, str) or not CPUSET.fullmatch(cpuset)):
        raise SpecError("cpuset", f'{shown(cpuset)}: numbers of CPUs such as "0-1,3" expected')
    if cpuset is not None and any(first > last for first, last in ranges_of(cpuset)):
        raise SpecError("cpuset", f'{shown(cpuset)}: ranges that go upwards, "1-3", expected')
    _check_number("cpu_time", cpu_time, MIN_CPU_TIME, MAX_CPU_TIME, "seconds of CPU time,")
    return Limits(memory, memory_swap, pids_limit, cpus, cpu_weight, cpuset, _io(io), cpu_time)


def _check_number(field: str, value: Any, low: float, high: float, what: str) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise SpecError(
            field, f"{shown(value)}: {what} from {low} to {high}, such as 1.5, expected"
        )


def _io(io: Any) -> tuple[tuple[str, tuple[tuple[str, int], ...]], ...]:
    found = []
    for device, rates in io.items():
        if not isinstance(device, str) or not (device.startswith("/") or DEVICE.fullmatch(device)):
            raise SpecError(
                "io", f"{shown(device)}: a block device's path or 'major:minor' expected"
            )
        encode("io", device, MAX_PATH)
        if not hasattr(rates, "items") or not rates:
            raise SpecError("io", f"{device}: a mapping with some of {', '.join(IO_KEYS)} expected")
        for key, rate in rates.items():
            if key not in IO_KEYS:
                keys = ", ".join(IO_KEYS)
                raise SpecError("io", f"{device}: {shown(key)}: one of {keys} expected")
            check_whole("io", rate, 1, MAX_BYTES, f"{device}: {key}: ")
        found.append((device, tuple(rates.items())))
    return tuple(found)
