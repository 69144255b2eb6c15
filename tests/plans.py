"""Compiles plans for any caller, not only this process. With the fixture made_up_host the plans are
the same on every machine.

Tests import the compiler's internals only from here.
"""

from __future__ import annotations

import re

from fastns import _core, _view
from fastns._compile import compile_for, search_path
from fastns._compile.container import compile_container_for
from fastns._compile.decide import Caller, Decisions, decide, is_spared
from fastns._compile.ops import Op
from fastns._compile.template import _as_a_templates, _why_fresh, compile_template_for
from fastns.capabilities import mask
from fastns.spec import Spec

__all__ = [
    "ALL",
    "CAP_SETUID",
    "CAP_SYS_ADMIN",
    "CAP_SYS_PTRACE",
    "IDS",
    "NESTED",
    "ROOT",
    "TREES",
    "USER",
    "Caller",
    "Op",
    "compiled",
    "decided",
    "is_spared",
    "of_this_caller",
    "search_path",
    "steps",
    "template",
    "why_fresh",
]

CAP_SETUID, CAP_SYS_ADMIN, CAP_SYS_PTRACE = (
    mask([f"CAP_{name}"]) for name in ("SETUID", "SYS_ADMIN", "SYS_PTRACE")
)
ALL = 2**41 - 1  # every capability
ROOT = Caller(0, 0, True, ALL, True)
USER = Caller(1000, 1000, True, 0, True)
TREES = Caller(0, 0, True, ALL, True, tree_namespaces=True)  # root, on Linux 7
NESTED = Caller(0, 0, True, ALL, False, may_setgroups=False)  # root of a single mapped id

IDS = 200000, 300000, 65536  # root's range: the first uid, the first gid, how many
LAYOUT = _view.Layout(("/usr", "/etc", "/opt", "/nix/store"), (("/bin", "usr/bin"),))


def compiled(spec: Spec, caller: Caller) -> _core.Plan:
    return compile_for(spec, caller, LAYOUT)


def decided(spec: Spec, caller: Caller) -> Decisions:
    return decide(spec, caller, LAYOUT)


def of_this_caller(spec: Spec, layout: _view.Layout | None = None) -> _core.Plan:
    """A new plan, as fastns.compile() makes it."""
    return compile_for(spec, Caller.current(), layout)


def template(spec: Spec, caller: Caller, *, reuse: bool = False) -> _core.Plan:
    """The plan of a template's server, which contains the plan of each sandbox."""
    return compile_template_for(spec, caller, LAYOUT, reuse=reuse)


def container(spec: Spec, caller: Caller) -> _core.Plan:
    """The plan of a container's server, which contains the plan of each command."""
    return compile_container_for(spec, caller, LAYOUT)


def why_fresh(spec: Spec, caller: Caller) -> str:
    """Why no sandbox of a template can serve again; "": it can."""
    return _why_fresh(decide(spec, _as_a_templates(caller), LAYOUT))


def steps(plan: _core.Plan | None) -> list[str]:
    """The ops as Plan.describe() returns them, without their numbers: `stage note`."""
    assert plan is not None
    found = (re.fullmatch(r"(\w+)\[\d+\]( .*)?", line) for line in plan.describe())
    return [f"{line[1]}{line[2] or ''}" for line in found if line]
