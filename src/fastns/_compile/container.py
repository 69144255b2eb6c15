"""Spec → the two plans of a container: what its server does once, and what each command does.

The server does all that a direct start does, ids and rights included, and then serves. A command is
a clone of the server, so it has all this too. It only gets its limits, and what would hinder the
server: Landlock, and a filter other than the default one.

If the container has a range of ids, commands may have any of them but the last. The server has the
last, so that they cannot kill supervisors, which have it too. It keeps the capabilities to change
ids and to kill, and each command drops them.
"""

from __future__ import annotations

from fastns import _core, _view
from fastns._compile import checked, made, process, surroundings, surroundings_of
from fastns._compile.decide import CAP_SETGID, CAP_SETUID, Caller, Decisions, decide
from fastns._compile.ops import Op, id_op
from fastns._light import cached
from fastns.errors import SpecError
from fastns.spec import Spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any


CAP_KILL = 1 << 5
KEPT = CAP_KILL | CAP_SETGID | CAP_SETUID


def compile_container(spec: Spec | None, *, cached: bool = False) -> _core.Plan:
    """The plan of a container's server; its `sandbox` is the plan of each command. cached: the same
    for equal specs. Raises: SpecError when the spec asks for what this caller, or a container,
    cannot have."""
    spec = checked(spec)
    if cached:
        return _compiled(spec, *surroundings_of(spec))
    return compile_container_for(spec, Caller.current())


@cached(32)
def _compiled(
    spec: Spec, caller: Caller, _cwd: str, layout: _view.Layout | None, _resolver: str | None
) -> _core.Plan:
    return compile_container_for(spec, caller, layout)


def compile_container_for(
    spec: Spec, caller: Caller, layout: _view.Layout | None = None
) -> _core.Plan:
    """A new plan, for a given caller and a given view of the host. layout: see compile_for()."""
    _refuse_what_no_container_has(spec)
    d = decide(spec, caller, layout)
    if all(mount.destination != "/proc" for mount in d.mounts):
        _refuse("mounts", "it needs /proc, where it finds what a command has started")
    # The server stays in a user namespace that a command with capabilities may own (plan.c).
    server = d.but(maps_first=False, dies_with_parent=False)
    each = d.but(new=(), by_range=(), join_first=(), maps_first=False)
    how: dict[str, Any] = {
        "method": "container",
        "container": True,
        "cgroups": None,
        "limits": () if d.cgroups is None else d.cgroups.enforced,
        "last_ids": last_ids(d),
    }
    command = made(each, (), _command_ops(d), **how)
    own_memory = spec.memory is not None or spec.cgroup_parent is not None
    first, ops = process.first(server), _server_ops(server)
    return made(server, first, ops, sandbox=command, own_memory=own_memory)


def _server_ops(d: Decisions) -> Iterator[Op]:
    last = last_ids(d)
    yield from surroundings(d)
    yield from process.raised_limits(d.spec)
    if last is None:
        yield from process.identity(d)
    else:
        yield from process.join_range(d)
        yield from process.bounding(d, _core.HOW_KEEP)
        yield process.setgroups_op(())
        yield id_op("setgid", last[1])
        yield id_op("setuid", last[0])
    if d.spec.no_new_privileges:
        yield from process.given_up(d.spec, 0 if last is None else KEPT)
    if _is_usual(d):
        yield from process.restrictions(d)


def _command_ops(d: Decisions) -> Iterator[Op]:
    """The program moves files before the first limit (sandbox.c)."""
    if last_ids(d) is not None:
        yield process.setgroups_op(d.spec.additional_gids)
        yield id_op("setgid", d.spec.gid)
        yield id_op("setuid", d.spec.uid)
    yield from process.limits(d.spec)
    yield from process.umask(d.spec)
    if last_ids(d) is not None and d.spec.no_new_privileges:
        yield from process.given_up(d.spec)
    if _is_usual(d):
        return
    if d.spec.no_new_privileges:
        yield from process.restrictions(d)
    else:
        yield from process.rights(d)


def last_ids(d: Decisions) -> tuple[int, int] | None:
    """The last uid and gid of the container's range; None: it has no range."""
    if d.ids is not None:
        uid = gid = d.ids[2] - 1
    elif d.id_map in ("parent", "newuidmap"):
        uid, gid = [max(m.container_id + m.size for m in ids) - 1 for ids in (d.uids, d.gids)]
    else:
        return None
    if not uid or not gid:
        return None
    for field, wanted, last in (
        ("user", (d.spec.uid,), uid),
        ("user", (d.spec.gid,), gid),
        ("additional_gids", d.spec.additional_gids, gid),
    ):
        if last in wanted:
            _refuse(field, f"the last id of the range, {last}, is that of its server")
    return uid, gid


def _is_usual(d: Decisions) -> bool:
    """Whether the server can work under all that restricts its commands."""
    return d.filter in ("none", "whole") and not d.spec.landlock and d.spec.no_new_privileges


def _refuse_what_no_container_has(spec: Spec) -> None:
    if spec.namespace("pid") != "new":
        _refuse(
            "namespaces", f"pid={spec.namespace('pid')!r}: all its processes end with its pid 1"
        )
    if spec.init:
        _refuse("init", "its pid 1 reaps in any case")


def _refuse(field: str, why: str) -> None:
    raise SpecError(field, f"a Container does not support this: {why}")
