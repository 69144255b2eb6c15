"""Spec → Plan: the only package that knows what each field of a spec is to the kernel.

decide() takes every decision; the emitters turn decisions into ops, in the order in which a child
has to carry them out. The caller's ids and capabilities are read, and nothing is touched.
"""

from __future__ import annotations

import os

from fastns import _core, _view
from fastns._args import shown
from fastns._cache import cached
from fastns._compile import identity, rights, root
from fastns._compile.caller import Caller
from fastns._compile.contents import shows_resolver
from fastns._compile.decide import Decisions, decide
from fastns._compile.ops import Op, clone_flags
from fastns.errors import SpecError
from fastns.spec import Spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastns._cgroups import CgroupPlan

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
    has_root = "mount" in d.new
    ops = [
        *identity.join(d),
        *identity.maps(d),
        *identity.own_namespaces(d),
        *rights.cgroup(d),
        *([*root.root(d), *root.enter_root(d)] if has_root else root.rootfs_alone(d)),
        *identity.names(d),
        *identity.loopback(d),
        rights.keyring(spec),
        *rights.limits(spec),
        *identity.join_range(d),
        *rights.bounding(d),
        *identity.ids(d),
        *rights.parent_death(spec),
        *rights.last(d),
    ]
    return made(
        d,
        ops,
        (*rights.first(d), *identity.join_first(d)),
        init=spec.init,
        cgroups=d.cgroups,
        # A child in the caller's memory may not enter a cgroup that may run out of it: the OOM
        # killer ends all who share the memory.
        own_memory=spec.memory is not None or spec.cgroup_parent is not None,
    )


def made(
    d: Decisions,
    ops: Sequence[Op],
    first: Sequence[Op] = (),
    *,
    init: bool = False,
    own_memory: bool = False,
    sandbox: _core.Plan | None = None,
    method: str | None = None,
    netns_pool: int = 0,
    cgroups: CgroupPlan | None = None,
) -> _core.Plan:
    """A plan of these ops for the spec's command; first: also before a hop."""
    spec, environment = d.spec, d.spec.environment()
    by_others = d.id_map in ("parent", "newuidmap")  # who writes the maps
    return _core.Plan(
        ops=(*first, *ops),
        environ=tuple(os.fsencode(f"{key}={value}") for key, value in environment.items()),
        search_path=search_path(environment.get("PATH")),
        cwd=os.fsencode(spec.cwd),
        clone_flags=clone_flags([kind for kind in d.new if kind not in d.by_op]),
        id_map=d.id_map,
        uid_map=identity.map_text(d.uids) if by_others else None,
        gid_map=identity.map_text(d.gids) if by_others else None,
        n_early=len(first) if d.hop else 0,
        hop=d.hop,
        init=init,
        maps_first=d.maps_first,
        own_memory=own_memory,
        namespaces=d.new,
        sandbox=sandbox,
        method=method,
        netns_pool=netns_pool,
        max_output=int(spec.max_output or 0),
        capped=spec.on_output_limit == "kill",
        cgroups=cgroups,
        ids=d.ids,
        pipe_owner=d.pipe_owner,
        binds=d.binds,
        view=_in_view(d),
    )


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
