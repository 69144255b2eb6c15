"""Spec → Plan: the only package that knows what each field of a spec is to the kernel.

decide() takes every decision; the emitters turn decisions into ops, in the order in which a child
has to carry them out. The caller's ids and capabilities are read, and nothing is touched.
"""

from __future__ import annotations

import os

from fastns import _core, _view
from fastns._args import shown
from fastns._cache import cached
from fastns._compile import process, root
from fastns._compile.decide import Caller, Decisions, decide, shows_resolver
from fastns._compile.ops import Op, clone_flags
from fastns.errors import SpecError
from fastns.spec import Spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

DEFAULT_SPEC = Spec()


def compile(spec: Spec | None = None) -> _core.Plan:
    """Turns a spec into the engine's op list, for spawning from any thread any number of times.

    Args: spec: a Spec; None is Spec(). A relative rootfs is taken from the working directory now.
    Raises: SpecError when the spec asks for what this caller cannot have.
    """
    if spec is None:
        spec = DEFAULT_SPEC
    elif not isinstance(spec, Spec):
        raise SpecError("spec", f"{shown(spec)}: a Spec, or None, expected")
    spec = with_profile(spec)
    relative = spec.rootfs is not None and not os.path.isabs(spec.rootfs)
    cwd = os.getcwd() if relative else "/"
    layout = resolver = None
    if spec.rootfs is None and spec.namespace("mount") == "new":
        layout = _view.layout()
        if shows_resolver(spec):  # the link leads elsewhere when the host's network changes
            resolver = _view.resolver()
    return _compiled(spec, Caller.current(), cwd, layout, resolver)


def with_profile(spec: Spec) -> Spec:
    """The spec with the seccomp profile itself in place of the path of its file, read now."""
    profile = spec.seccomp
    if not isinstance(profile, str) or profile in ("default", "unconfined"):
        return spec
    from fastns.seccomp import load

    return Spec(**{**vars(spec), "seccomp": load(profile)})


@cached(32)
def _compiled(
    spec: Spec, caller: Caller, _cwd: str, layout: _view.Layout | None, _resolver: str | None
) -> _core.Plan:
    """Equal specs of the same caller in the same place share one plan, as long as the host shows
    the same."""
    return compile_for(spec, caller, layout)


def compile_for(spec: Spec, caller: Caller, layout: _view.Layout | None = None) -> _core.Plan:
    """A plan of its own, for a given caller and a given view of the host.

    Args: layout: None is the host's own, for a root that is made of it.
    Raises: SpecError when the spec asks for what this caller cannot have.
    """
    d = decide(spec, caller, layout)
    # A child in the caller's memory may not enter a cgroup that may run out of it: the OOM killer
    # ends all who share the memory.
    own_memory = spec.memory is not None or spec.cgroup_parent is not None
    return made(d, process.first(d), _ops(d), init=spec.init, own_memory=own_memory)


def _ops(d: Decisions) -> Iterator[Op]:
    yield from process.namespaces(d)
    yield from process.cgroup(d)
    if "mount" in d.new:
        yield from root.root(d)
        yield from root.enter_root(d)
    else:
        yield from root.other_root(d)
    yield from process.names(d.spec)
    yield from process.loopback(d)
    yield process.keyring(d.spec)
    yield from process.command(d)


def made(d: Decisions, first: Iterable[Op], ops: Iterable[Op], **more: Any) -> _core.Plan:
    """A plan of these ops for the spec's command. first: those that come before a hop, if there is
    one; more: what else _core.Plan takes."""
    spec, environment, first = d.spec, d.spec.environment(), tuple(first)
    by_ops = {*d.by_range, "cgroup" if d.cgroups else "", "mount" if d.root_alone else ""}
    maps_from_outside = d.id_map in ("parent", "newuidmap")
    is_server = "sandbox" in more
    method = more.pop("method", "staged" if d.join_first else "direct")
    return _core.Plan(
        ops=(*first, *ops),
        environ=tuple([os.fsencode(f"{key}={value}") for key, value in environment.items()]),
        search_path=search_path(environment.get("PATH")),
        cwd=os.fsencode(spec.cwd),
        clone_flags=clone_flags(kind for kind in d.new if kind not in by_ops),
        id_map=d.id_map,
        uid_map=process.map_text(d.uids) if maps_from_outside else None,
        gid_map=process.map_text(d.gids) if maps_from_outside else None,
        n_early=len(first) if d.join_first else 0,
        maps_first=d.maps_first,
        method=method,
        namespaces=d.new,
        mount_namespace="template" if method == "template" else _first_mounts(d),
        filtered=d.filter != "none",
        max_output=int(spec.max_output or 0),
        capped=spec.on_output_limit == "kill",
        cgroups=None if is_server else d.cgroups,
        ids=d.ids,
        inotify=_limit_of_range(d),
        pipe_owner=d.pipe_owner,
        binds=tuple([_told(*bind) for bind in d.binds]),
        view=_in_view(d),
        **{"init": False, **more},
    )


def _first_mounts(d: Decisions) -> str:
    """What its mount namespace begins with."""
    if "mount" not in d.new:
        return "host"
    return "tree" if d.root_alone else "copied"


def _limit_of_range(d: Decisions) -> bytes:
    """The limit on inotify instances of the user namespace with its range of ids; b"": none."""
    if d.ids is None:
        return b""
    from fastns._policy import userns

    return userns.inotify_limit() or b""


def _told(at: str, source: str, how: int, why: str) -> tuple[str, str, bool, bool, str]:
    """A bind as Plan.binds has it."""
    return at, source, bool(how & _core.HOW_RECURSIVE), bool(how & _core.HOW_OPTIONAL), why


def _in_view(d: Decisions) -> tuple[str, ...] | None:
    """What can be seen without a rootfs; None: there is one."""
    if d.layout is None:
        return None
    links = (path for path, _ in d.layout.links)
    # A fresh /tmp shows nothing of the host's.
    mounts = (m.destination for m in d.mounts if (m.type, m.destination) != ("tmpfs", "/tmp"))
    return (*d.layout.shown, *links, *mounts, *d.spec.files)


def search_path(path: str | bytes | None) -> tuple[bytes, ...]:
    """The directories a command is looked up in; the default is execvp's own."""
    text = os.fsencode(path) if path is not None else b"/bin:/usr/bin"
    return tuple(directory or b"." for directory in text.split(b":"))
