"""System call filters: from profiles in the format of the OCI runtime specification and of Docker
to the bytes that the kernel takes.

A start with the default filter needs none of this: the build has made its bytes
(_policy/filters.py).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping, Sequence

from fastns._args import shown
from fastns._policy.seccomp_default import default_profile, parts
from fastns._policy.seccomp_profile import FIELD, Profile, Rule, check, version
from fastns.errors import SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from fastns._policy.bpf import Argument

__all__ = ["DEFAULT", "build", "build_parts", "check", "default_profile", "load", "profile_of"]

DEFAULT = "default"
MAX_PROFILE = 4 << 20  # bytes of a file
MAX_INSTRUCTIONS = 4096  # BPF_MAXINSNS
# Docker's names of machines, for the `arches` of a rule, where they differ from the kernel's.
MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a profile from a JSON file, and checks it.

    Raises: SpecError, field "seccomp", if the file cannot be read or is not a profile."""
    name = os.fspath(path)
    try:
        with open(name, "rb") as file:
            text = file.read(MAX_PROFILE + 1)
    except OSError as exc:
        raise SpecError(
            FIELD, f"{shown(name)}: {exc.strerror}: 'default', 'unconfined' or a JSON file expected"
        ) from None
    if len(text) > MAX_PROFILE:
        raise SpecError(FIELD, f"{shown(name)}: more than {MAX_PROFILE} bytes")
    import json  # build() is called without it as well

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
    """The filter's instructions (struct sock_filter, 8 bytes each).

    Args:
        profile: "default", which needs no libseccomp; a mapping; or a profile_of() one.
        capabilities: full names of the sandbox's capabilities; some rules depend on them.
        setid: as of default_profile(); for "default" alone.
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
    """The default profile as two filters. A template's server loads the first, under which it can
    still work, and its sandboxes inherit it. Each sandbox adds the second before the command."""
    machine, held = machine or os.uname().machine, frozenset(capabilities)
    first, rest = (_from_default(part, held, machine) for part in parts(setid=setid))
    return first, rest


def profile_of(given: object) -> Profile:
    """A custom profile, checked once for many calls of build(). Raises: SpecError."""
    return given if isinstance(given, Profile) else check(given)


def _from_default(profile: Mapping[str, Any], held: frozenset[str], machine: str) -> bytes:
    """Compiles the default profile, or a part of it, without libseccomp."""
    from fastns._policy.bpf import program
    from fastns._policy.syscalls import AUDIT_ARCH

    if machine not in AUDIT_ARCH:
        raise SpecError(
            FIELD,
            f"the default filter is for {' and '.join(AUDIT_ARCH)}, not {machine!r}: a profile of "
            "one's own, or 'unconfined', expected",
        )
    checked = check(profile)
    rules = [
        (rule.action, rule.names, _groups(rule.args))
        for rule in _effective(checked, held, machine, ())
    ]
    return _bounded(program(checked.default, rules, machine))


@functools.lru_cache(maxsize=16)
def _build(profile: Profile, held: frozenset[str], machine: str, kernel: tuple[int, ...]) -> bytes:
    """Compiles a custom profile by libseccomp."""
    from fastns._policy import libseccomp  # loads ctypes
    from fastns._policy.bpf import shorter

    names = profile.wanted(machine)
    tokens = [libseccomp.architecture(name) for name in names]
    if not tokens[0]:
        raise SpecError(FIELD, f"this libseccomp does not know the machine {machine!r}")
    with libseccomp.Filter(profile.default, [token for token in tokens if token]) as made:
        for rule in _effective(profile, held, machine, kernel):
            for group in _groups(rule.args):
                for name in rule.names:
                    made.add(rule.action, name, group)
        exported = made.export()
        instructions = shorter(exported)
        if instructions is exported:  # not rewritten as a binary search
            made.sort()
            instructions = shorter(made.export())
    return _bounded(instructions)


def _effective(
    profile: Profile, held: frozenset[str], machine: str, kernel: tuple[int, ...]
) -> Iterator[Rule]:
    """The rules that apply there and differ from the default action."""
    called = MACHINES.get(machine, machine)
    for rule in profile.rules:
        if rule.action != profile.default and rule.applies(held, called, kernel):
            yield rule


def _bounded(instructions: bytes) -> bytes:
    n = len(instructions) // 8
    if n > MAX_INSTRUCTIONS:
        raise SpecError(
            FIELD, f"{n} instructions, the kernel takes {MAX_INSTRUCTIONS}: fewer rules expected"
        )
    return instructions


def _groups(args: tuple[Argument, ...]) -> list[list[Argument]]:
    """Groups of comparisons: a rule applies if all of one group hold.

    Comparisons of different arguments are one group. If an argument is compared twice, each
    comparison is a group, as in every runtime that takes the format."""
    if len({arg[0] for arg in args}) == len(args):
        return [list(args)]
    return [[one] for one in args]
