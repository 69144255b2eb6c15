"""Compiles plans for made-up callers. With the fixture made_up_host they are the same on every
machine."""

from __future__ import annotations

import re

from fastns import _core, _view
from fastns._compile import Caller, compile_for
from fastns._compile_template import compile_template_for
from fastns.spec import Spec

ALL = 2**41 - 1  # every capability
ROOT = Caller(0, 0, True, ALL, True)
USER = Caller(1000, 1000, True, 0, True)
TREES = Caller(0, 0, True, ALL, True, tree_namespaces=True)  # root, on Linux 7
NESTED = Caller(0, 0, True, ALL, False, may_setgroups=False)  # root of a single mapped id

IDS = 200000, 300000, 65536  # root's range: the first uid, the first gid, how many
LAYOUT = _view.Layout(("/usr", "/etc", "/opt", "/nix/store"), (("/bin", "usr/bin"),))


def compiled(spec: Spec, caller: Caller) -> _core.Plan:
    return compile_for(spec, caller, LAYOUT)


def template(spec: Spec, caller: Caller) -> _core.Plan:
    """The plan of a template's server, which contains the plan of each sandbox."""
    return compile_template_for(spec, caller, LAYOUT)


def steps(plan: _core.Plan | None) -> list[str]:
    """The ops as Plan.describe() returns them, without their numbers: `stage note`."""
    assert plan is not None
    found = (re.fullmatch(r"(\w+)\[\d+\]( .*)?", line) for line in plan.describe())
    return [f"{line[1]}{line[2] or ''}" for line in found if line]
