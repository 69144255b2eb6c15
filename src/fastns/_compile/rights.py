"""Ops for what a process may use and do: limits, cgroups, capabilities, Landlock, filter."""

from __future__ import annotations

from fastns import _core
from fastns._compile.ops import CLONE_FLAGS, Op, write_op
from fastns.spec import DEFAULT_RLIMITS, Rlimit, Spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fastns._compile.decide import Decisions

RLIM_INFINITY = 2**64 - 1
LEAST_FDS = 256  # half of the caller's limit is not applied below this
NO_NEW_PRIVILEGES = Op("no_new_privileges", "no_new_privileges")


# ---- limits ----


def first(d: Decisions) -> list[Op]:
    """Before all else, also before a hop.

    The limit on core dumps comes before anything that could crash, and before the default filter,
    which keeps it as it is. Only CAP_SYS_RESOURCE can raise a hard limit of 0, hence OPTIONAL.
    """
    ops = [write_op("oom_score_adj", "oom_score_adj", b"0")] if d.spared else []
    given = [rlimit for rlimit in d.spec.rlimits if rlimit.type == "RLIMIT_CORE"]
    if given:
        return [*ops, _rlimit_op(given[0])]
    return [*ops, _rlimit_op(DEFAULT_RLIMITS[0], _core.HOW_OPTIONAL)]


def limits(spec: Spec) -> list[Op]:
    """All limits but that on core dumps, and the umask."""
    given = {rlimit.type: rlimit for rlimit in spec.rlimits if rlimit.type != "RLIMIT_CORE"}
    ops = []
    for rlimit in DEFAULT_RLIMITS[1:]:
        if rlimit.type not in given:
            least = LEAST_FDS if rlimit.type == "RLIMIT_NOFILE" else 0
            ops.append(_rlimit_op(rlimit, _core.HOW_SHARE, least))
    umask = Op("umask", "umask", arg=spec.umask, note=f"{spec.umask:04o}")
    return [*ops, *map(_rlimit_op, given.values()), umask]


def _rlimit_op(rlimit: Rlimit, how: int = 0, least: int = 0) -> Op:
    soft, hard = (RLIM_INFINITY if n == -1 else n for n in (rlimit.soft, rlimit.hard))
    at_most = " at most" if how & _core.HOW_SHARE else ""
    return Op(
        "rlimit",
        "rlimit",
        how,
        rlimit.number,
        least,
        data=soft.to_bytes(8, "little") + hard.to_bytes(8, "little"),
        note=f"{rlimit.type} {rlimit.soft}:{rlimit.hard}{at_most}",
    )


def cgroup(d: Decisions) -> list[Op]:
    """A cgroup namespace is made once the process is in the cgroup that is to be its root."""
    if d.cgroups is None:
        return []
    flags = CLONE_FLAGS["cgroup"] if "cgroup" in d.new else 0
    return [Op("cgroup", "cgroup", flags=flags, note=" ".join(d.cgroups.enforced))]


def keyring(spec: Spec, how: int = 0) -> Op:
    """A new keyring counts against the user's quota of some 200. Where the filter refuses all calls
    about keys, the caller's may stay instead."""
    how |= _core.HOW_OPTIONAL if spec.seccomp == "default" else 0
    return Op("keyring", "keyring", how, note="of its own")


def parent_death(spec: Spec) -> list[Op]:
    return [Op("parent_death", "parent_death")] if spec.die_with_parent else []


# ---- rights ----


def bounding(d: Decisions) -> list[Op]:
    """Before the ids, whose change takes the right to reduce the set. Without that right, what a
    process lacks it cannot gain by exec either, once no_new_privileges is set."""
    if not d.bounding:
        return []
    mask = _mask(d.spec)
    return [Op("bounding", "capabilities", d.keep, arg=mask, note=_listed(d.spec))]


def last(d: Decisions) -> list[Op]:
    """After the ids, in the one order that works. Landlock and a filter need no_new_privileges or
    CAP_SYS_ADMIN: without the first they come before the capabilities are dropped. Landlock comes
    before the filter, which need not allow its calls."""
    spec = d.spec
    drop = Op("capabilities", "capabilities", arg=_mask(spec), note=_listed(spec))
    restrict = [*_landlock_rules(d), *filter(d)]
    return [drop, NO_NEW_PRIVILEGES, *restrict] if spec.no_new_privileges else [*restrict, drop]


def _landlock_rules(d: Decisions) -> list[Op]:
    if not d.spec.landlock:
        return []
    from fastns import _landlock  # most specs have none

    return list(_landlock.ops(d.spec.landlock, d.landlock, d.keep))


def filter(d: Decisions) -> list[Op]:
    """The filter of system calls, or its part that this process loads."""
    spec, flags = d.spec, 0
    if d.filter == "none":
        return []
    if d.filter == "profile":
        from fastns import seccomp

        profile = seccomp.profile_of(spec.seccomp)
        code, note, flags = seccomp.build(profile, spec.capabilities), "profile", profile.flags
    else:
        from fastns import _filters  # not where nothing is filtered

        setid = spec.allow_setid or not spec.writes_to_host()
        name = "default" if setid else "default, no set-id files"
        if d.filter == "whole":
            code, note = _filters.default(spec.capabilities, setid=setid), name
        else:
            parts = _filters.default_parts(spec.capabilities, setid=setid)
            is_first = d.filter == "first"
            code, note = (
                (parts[0], f"{name}, for all") if is_first else (parts[1], "default, the rest")
            )
    return [Op("seccomp", "seccomp", d.keep, flags, len(code) // 8, data=code, note=note)]


def _mask(spec: Spec) -> int:
    if not spec.capabilities:
        return 0
    from fastns.capabilities import mask

    return mask(spec.capabilities)


def _listed(spec: Spec) -> str:
    return " ".join(spec.capabilities) or "none"
