"""Compiles profiles, in the format of the OCI runtime specification and of Docker, into system call
filters, the bytes that the kernel takes.

A start with the default filter does not need this module, because the build compiles that filter
(_filters.py).
"""

from __future__ import annotations

import errno
import functools
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence

from fastns._args import check_whole, shown
from fastns._light import record
from fastns._policy import bpf
from fastns._policy.seccomp_default import default_profile, network_profile, parts
from fastns._policy.syscalls import AUDIT_ARCH
from fastns.errors import SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    T = TypeVar("T")

__all__ = ["DEFAULT", "build", "build_parts", "check", "default_profile", "load", "profile_of"]

DEFAULT = "default"
FIELD = "seccomp"
MAX_PROFILE = 4 << 20  # bytes of a file
MAX_INSTRUCTIONS = 4096  # BPF_MAXINSNS
# Docker's names of machines, for the `arches` of a rule, where they differ from the kernel's.
MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
ACTIONS = {  # SECCOMP_RET_*
    "SCMP_ACT_KILL": 0x00000000,
    "SCMP_ACT_KILL_THREAD": 0x00000000,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": 0x00050000,
    "SCMP_ACT_TRACE": 0x7FF00000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": 0x7FFF0000,
}
WITH_ERRNO = ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE")
FLAGS = {  # TSYNC is accepted, but has no effect: there is one thread
    "SECCOMP_FILTER_FLAG_TSYNC": 0,
    "SECCOMP_FILTER_FLAG_LOG": 2,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 4,
}
OPERATORS = {f"SCMP_CMP_{op}": op for op in ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ")}
PROFILE_KEYS = (
    *("defaultAction", "defaultErrnoRet", "defaultErrno", "architectures", "archMap", "flags"),
    *("syscalls", "listenerPath", "listenerMetadata"),
)
RULE_KEYS = (
    *("names", "name", "action", "errnoRet", "errno", "args", "comment", "includes", "excludes"),
)
ARG_KEYS = ("index", "value", "valueTwo", "op")
CONDITION_KEYS = ("caps", "arches", "minKernel")
ARCH_KEYS = ("architecture", "subArchitectures")
MAX_ERRNO = 4095


@record(frozen=True)
class Condition:
    """When a rule applies (includes), or does not (excludes). An empty tuple is no condition."""

    caps: tuple[str, ...] = ()
    arches: tuple[str, ...] = ()
    min_kernel: tuple[int, ...] = ()


@record(frozen=True)
class Rule:
    names: tuple[str, ...]
    action: int
    args: tuple[bpf.Argument, ...]
    includes: Condition
    excludes: Condition

    def applies(self, held: frozenset[str], machine: str, kernel: tuple[int, ...]) -> bool:
        inc, exc = self.includes, self.excludes
        return (
            held.issuperset(inc.caps)
            and (not inc.arches or machine in inc.arches)
            and kernel >= inc.min_kernel
            and held.isdisjoint(exc.caps)
            and machine not in exc.arches
            and not (exc.min_kernel and kernel >= exc.min_kernel)
        )


@record(frozen=True)
class Profile:
    """A checked profile."""

    default: int
    rules: tuple[Rule, ...]
    architectures: tuple[str, ...] = ()
    arch_map: tuple[tuple[str, tuple[str, ...]], ...] = ()
    flags: int = 0

    def wanted(self, machine: str) -> tuple[str, ...]:
        """The architectures to filter for on a machine, its own first."""
        more = dict(self.arch_map).get(machine, ()) if self.arch_map else self.architectures
        return (machine, *(name for name in more if name != machine))


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a profile from a JSON file, and checks it.

    Raises: SpecError, field "seccomp", if the file cannot be read or is not a profile."""
    name = os.fspath(path)
    try:
        with open(name, "rb") as file:
            text = file.read(MAX_PROFILE + 1)
    except OSError as exc:
        raise SpecError(
            FIELD, f"{shown(name)}: {exc.strerror}: expected 'default', 'unconfined' or a JSON file"
        ) from None
    if len(text) > MAX_PROFILE:
        raise SpecError(FIELD, f"{shown(name)}: more than {MAX_PROFILE} bytes")
    import json  # build() does not need it

    try:
        profile = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise SpecError(FIELD, f"{shown(name)}: not JSON: {exc}") from None
    check(profile, f"{name}: ")
    return dict(profile)


def build(
    profile: object,
    capabilities: Sequence[str] = (),
    *,
    setid: bool = True,
    machine: str | None = None,
    kernel: str | None = None,
) -> bytes:
    """Compiles a profile into the filter's instructions (struct sock_filter, 8 bytes each).

    Args:
        profile: "default", which needs no libseccomp; a mapping; or a result of profile_of().
        capabilities: full names of the sandbox's capabilities; some rules depend on them.
        setid: as in default_profile(); has an effect only with "default".
        machine: "x86_64", "aarch64", ...; None: this one.
        kernel: a release such as "6.1.0"; None: this one.
    Raises: SpecError, field "seccomp".
    """
    system = os.uname()
    machine, held = machine or system.machine, frozenset(capabilities)
    if isinstance(profile, str) and profile == DEFAULT:
        return _from_default(default_profile(setid=setid), held, machine)
    release = version(system.release if kernel is None else kernel)
    return _build(profile_of(profile), held, machine, release)


def build_parts(
    capabilities: Sequence[str] = (), *, setid: bool = True, machine: str | None = None
) -> tuple[bytes, bytes]:
    """The default profile as two filters. A template's server loads the first, which allows what
    the server needs, and its sandboxes inherit it. Each sandbox adds the second before its command
    is executed."""
    machine, held = machine or os.uname().machine, frozenset(capabilities)
    first, rest = (_from_default(part, held, machine) for part in parts(setid=setid))
    return first, rest


def build_network(machine: str) -> bytes:
    """The filter for sandboxes whose network namespace serves again, beside the default filter."""
    return _from_default(network_profile(), frozenset(), machine)


def profile_of(given: object) -> Profile:
    """A custom profile, checked once for many calls of build(). Raises: SpecError."""
    return given if isinstance(given, Profile) else check(given)


def _from_default(profile: Mapping[str, Any], held: frozenset[str], machine: str) -> bytes:
    """Compiles the default profile, or a part of it, without libseccomp."""
    if machine not in AUDIT_ARCH:
        raise SpecError(
            FIELD,
            f"the default filter is for {' and '.join(AUDIT_ARCH)}, not {machine!r}: expected "
            "a custom profile, or 'unconfined'",
        )
    checked = check(profile)
    rules = _effective(checked, held, machine, ())
    return _bounded(bpf.program(checked.default, rules, machine))


@functools.lru_cache(maxsize=16)
def _build(profile: Profile, held: frozenset[str], machine: str, kernel: tuple[int, ...]) -> bytes:
    """Compiles a custom profile with libseccomp."""
    from fastns._policy import libseccomp  # loads ctypes

    tokens = [libseccomp.architecture(name) for name in profile.wanted(machine)]
    if not tokens[0]:
        raise SpecError(FIELD, f"this libseccomp does not know the machine {machine!r}")
    with libseccomp.Filter(profile.default, [token for token in tokens if token]) as made:
        for action, names, groups in _effective(profile, held, machine, kernel):
            for group, name in itertools.product(groups, names):
                made.add(action, name, group)
        exported = made.export()
        instructions = bpf.shorter(exported)
        if instructions is exported:  # not made shorter: try a binary search by libseccomp
            instructions = bpf.shorter(made.export(sort=True))
    return _bounded(instructions)


def _effective(
    profile: Profile, held: frozenset[str], machine: str, kernel: tuple[int, ...]
) -> Iterator[tuple[int, tuple[str, ...], list[list[bpf.Argument]]]]:
    """Yields (action, names of calls, groups of comparisons) for each rule that applies with these
    capabilities, machine and kernel, and whose action is not the default one."""
    called = MACHINES.get(machine, machine)
    for rule in profile.rules:
        if rule.action != profile.default and rule.applies(held, called, kernel):
            yield rule.action, rule.names, _groups(rule.args)


def _bounded(instructions: bytes) -> bytes:
    n = len(instructions) // 8
    if n > MAX_INSTRUCTIONS:
        raise SpecError(
            FIELD, f"{n} instructions, the kernel takes {MAX_INSTRUCTIONS}: expected fewer rules"
        )
    return instructions


def _groups(args: tuple[bpf.Argument, ...]) -> list[list[bpf.Argument]]:
    """The comparisons of a rule, in groups: it applies if every comparison of any group holds.

    Comparisons of different arguments are one group. If an argument is compared twice, each
    comparison is a group, as in every runtime that takes the format."""
    if len({arg[0] for arg in args}) == len(args):
        return [list(args)]
    return [[one] for one in args]


# ---- check ----


def check(profile: object, where: str = "") -> Profile:
    """Checks a profile given as a mapping.

    Raises: SpecError, field "seccomp", naming the part that is wrong and what would be accepted.
    """
    given = _mapping(profile, f"{where}profile", PROFILE_KEYS)
    if "defaultAction" not in given:
        raise SpecError(FIELD, f"{where}defaultAction is missing: such as SCMP_ACT_ERRNO")
    for key in ("listenerPath", "listenerMetadata"):
        if given.get(key):
            raise SpecError(
                FIELD, f"{where}{key}: not supported: fastns has no listener; leave it out"
            )
    if given.get("architectures") and given.get("archMap"):
        raise SpecError(FIELD, f"{where}architectures and archMap: give one of them")
    flags = 0
    for flag in _list(given, "flags", where):
        flags |= _one_of(flag, FLAGS, f"{where}flags")
    return Profile(
        default=_action(given, "defaultAction", ("defaultErrnoRet", "defaultErrno"), where),
        rules=_each(given, "syscalls", where, _rule),
        architectures=tuple(
            _architecture(name, f"{where}architectures")
            for name in _list(given, "architectures", where)
        ),
        arch_map=_each(given, "archMap", where, _arch_map),
        flags=flags,
    )


def _rule(value: object, where: str) -> Rule:
    given = _mapping(value, where, RULE_KEYS)
    names = [*_list(given, "names", f"{where}."), *([given["name"]] if given.get("name") else [])]
    if not names:
        raise SpecError(FIELD, f"{where}.names: expected names of system calls")
    for name in names:
        if not isinstance(name, str) or not name.isascii() or not name.isidentifier():
            raise SpecError(FIELD, f"{where}.names: {shown(name)}: expected a system call's name")
    if "action" not in given:
        raise SpecError(FIELD, f"{where}.action is missing: such as SCMP_ACT_ALLOW")
    return Rule(
        names=tuple(names),
        action=_action(given, "action", ("errnoRet", "errno"), f"{where}."),
        args=_each(given, "args", f"{where}.", _arg),
        includes=_condition(given.get("includes"), f"{where}.includes"),
        excludes=_condition(given.get("excludes"), f"{where}.excludes"),
    )


def _action(given: Mapping[str, Any], key: str, errnos: tuple[str, str], where: str) -> int:
    name = given[key]
    if name == "SCMP_ACT_NOTIFY":
        raise SpecError(
            FIELD, f"{where}{key}: not supported: fastns has no listener; use another action"
        )
    action = _one_of(name, ACTIONS, f"{where}{key}")
    return action | _errno(given, errnos, where) if name in WITH_ERRNO else action


def _errno(given: Mapping[str, Any], keys: tuple[str, str], where: str) -> int:
    """The errno: a number, or a name as in podman's profiles; EPERM if neither is given."""
    number, name = (given.get(key) for key in keys)
    if number is not None:
        return check_whole(FIELD, number, 0, MAX_ERRNO, f"{where}{keys[0]}: ")
    if not name:
        return errno.EPERM
    found = getattr(errno, name, None) if isinstance(name, str) and name[0] == "E" else None
    if not isinstance(found, int):
        raise SpecError(FIELD, f"{where}{keys[1]}: {shown(name)}: expected a name such as EPERM")
    return found


def _arg(value: object, where: str) -> tuple[int, str, int, int]:
    given = _mapping(value, where, ARG_KEYS)
    index, number, second = (
        check_whole(FIELD, given.get(key, default), 0, high, f"{where}.{key}: ")
        for key, default, high in (
            ("index", None, 5),
            ("value", None, 2**64 - 1),
            ("valueTwo", 0, 2**64 - 1),
        )
    )
    return index, _one_of(given.get("op"), OPERATORS, f"{where}.op"), number, second


def _condition(value: object, where: str) -> Condition:
    if not value:
        return Condition()
    given = _mapping(value, where, CONDITION_KEYS)
    found = []
    for key in ("caps", "arches"):
        names = tuple(_list(given, key, f"{where}."))
        if not all(isinstance(name, str) for name in names):
            raise SpecError(FIELD, f"{where}.{key}: expected a list of names")
        found.append(names)
    kernel = given.get("minKernel") or ""
    if not isinstance(kernel, str) or (kernel and not version(kernel)):
        raise SpecError(
            FIELD, f"{where}.minKernel: {shown(kernel)}: expected a version such as '4.8'"
        )
    return Condition(found[0], found[1], version(kernel))


def _arch_map(value: object, where: str) -> tuple[str, tuple[str, ...]]:
    given = _mapping(value, where, ARCH_KEYS)
    name = _architecture(given.get("architecture"), f"{where}.architecture")
    more = _list(given, "subArchitectures", f"{where}.")
    return name, tuple(_architecture(sub, f"{where}.subArchitectures") for sub in more)


def _architecture(value: object, where: str) -> str:
    """An architecture's name in the form of libseccomp, which may not know it."""
    if not isinstance(value, str) or not (value.isascii() and value.startswith("SCMP_ARCH_")):
        raise SpecError(FIELD, f"{where}: {shown(value)}: expected a name such as SCMP_ARCH_X86_64")
    return value.removeprefix("SCMP_ARCH_").lower()


def version(text: str) -> tuple[int, ...]:
    """The first two numbers of a kernel release; () if it does not begin with numbers."""
    parts = text.split("-")[0].split(".")[:2]
    known = all(part.isdecimal() and len(part) < 10 for part in parts)
    return tuple(map(int, parts)) if known else ()


def _mapping(value: object, where: str, keys: Sequence[str]) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise SpecError(FIELD, f"{where}: {shown(value)}: expected a mapping")
    for key in value:
        if key not in keys:
            raise SpecError(
                FIELD, f"{where}: {shown(key)}: expected one of {', '.join(sorted(keys))}"
            )
    return value


def _list(given: Mapping[str, Any], key: str, where: str) -> Sequence[Any]:
    value = given.get(key)
    if value is None:
        return ()
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise SpecError(FIELD, f"{where}{key}: {shown(value)}: expected a list")
    return value


def _each(
    given: Mapping[str, Any], key: str, where: str, check_one: Callable[[object, str], T]
) -> tuple[T, ...]:
    """The items of a list, checked."""
    items = enumerate(_list(given, key, where))
    return tuple(check_one(item, f"{where}{key}[{number}]") for number, item in items)


def _one_of(value: object, known: Mapping[str, T], where: str) -> T:
    if not isinstance(value, str) or value not in known:
        raise SpecError(FIELD, f"{where}: {shown(value)}: expected one of {', '.join(known)}")
    return known[value]
