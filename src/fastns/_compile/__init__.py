"""Spec → Plan: the only package that knows what each field of a spec means to the kernel.

decide() makes every decision. The emitters turn decisions into ops, in the order in which the
program runs them. Compiling happens in the caller: it reads the caller's ids and capabilities, and
changes nothing.
"""

from __future__ import annotations

import os

from fastns import _core, _view
from fastns._args import wrong
from fastns._compile import process, root
from fastns._compile.decide import Caller, Decisions, decide, shows_resolver
from fastns._compile.ops import Op, clone_flags
from fastns._light import cached
from fastns.spec import Spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

DEFAULT_SPEC = Spec()


def compile(spec: Spec | None = None) -> _core.Plan:
    """Turns a spec into a plan, from which any thread may spawn any number of times.

    Args: spec: a Spec; None is Spec(). A relative rootfs is resolved now, in the working directory.
    Raises: SpecError when the spec asks for what this caller cannot have.
    """
    spec = checked(spec)
    return _compiled(spec, *surroundings_of(spec))


def surroundings_of(spec: Spec) -> tuple[Caller, str, _view.Layout | None, str | None]:
    """What else a plan depends on: the caller, the working directory, the view of the host."""
    relative = spec.rootfs is not None and not os.path.isabs(spec.rootfs)
    cwd = os.getcwd() if relative else "/"
    layout = resolver = None
    if spec.rootfs is None and spec.namespace("mount") == "new":
        layout = _view.layout()
        if shows_resolver(spec):  # resolv.conf may be a link, whose target changes with the network
            resolver = _view.resolver()
    return Caller.current(), cwd, layout, resolver


def checked(spec: Spec | None) -> Spec:
    """The spec, None being the default one, with the seccomp profile read from its file."""
    if spec is None:
        return DEFAULT_SPEC
    if not isinstance(spec, Spec):
        raise wrong("spec", spec, "a Spec, or None")
    profile = spec.seccomp
    if not isinstance(profile, str) or profile in ("default", "unconfined"):
        return spec
    from fastns.seccomp import load

    return Spec(**{**vars(spec), "seccomp": load(profile)})


@cached(32)
def _compiled(
    spec: Spec, caller: Caller, _cwd: str, layout: _view.Layout | None, _resolver: str | None
) -> _core.Plan:
    """Returns the same plan for equal specs, as long as caller, directory and view of the host stay
    the same."""
    return compile_for(spec, caller, layout)


def compile_for(spec: Spec, caller: Caller, layout: _view.Layout | None = None) -> _core.Plan:
    """A new plan, for a given caller and a given view of the host.

    Args: layout: the host's directories, of which the root is made without a rootfs; None: those
        of this host.
    Raises: SpecError when the spec asks for what this caller cannot have.
    """
    d = decide(spec, caller, layout)
    # A child that shares the caller's memory must not enter a cgroup that limits memory: the OOM
    # killer kills all processes that share the memory.
    own_memory = spec.memory is not None or spec.cgroup_parent is not None
    return made(d, process.first(d), _ops(d), init=spec.init, own_memory=own_memory)


def _ops(d: Decisions) -> Iterator[Op]:
    yield from surroundings(d)
    yield from process.command(d)


def surroundings(d: Decisions) -> Iterator[Op]:
    """Everything around the command."""
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


def made(d: Decisions, first: Iterable[Op], ops: Iterable[Op], **more: Any) -> _core.Plan:
    """A plan of these ops for the spec's command.

    first: with a hop, the ops that run before its clone. more: other arguments of _core.Plan.
    """
    spec, environment, first = d.spec, d.spec.environment(), tuple(first)
    by_ops = {*d.by_range, "cgroup" if d.cgroups else "", "mount" if d.root_alone else ""}
    maps_from_outside = d.id_map in ("parent", "newuidmap")
    parts = {
        "init": False,
        "method": "staged" if d.join_first else "direct",
        "mount_namespace": "tree" if d.root_alone else "copied" if "mount" in d.new else "host",
        "cgroups": d.cgroups,
        **more,
    }
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
        namespaces=d.new,
        filtered=d.filter != "none",
        max_output=int(spec.max_output or 0),
        capped=spec.on_output_limit == "kill",
        ids=d.ids,
        inotify=b"" if d.ids is None else d.inotify or b"",
        pipe_owner=d.pipe_owner,
        binds=d.binds,
        view=_in_view(d),
        spec=_with_absolute_root(spec),
        **parts,
    )


def _with_absolute_root(spec: Spec) -> Spec:
    if spec.rootfs is None or os.path.isabs(spec.rootfs):
        return spec
    return Spec(**{**vars(spec), "rootfs": os.path.abspath(spec.rootfs)})


def _in_view(d: Decisions) -> tuple[str, ...] | None:
    """The paths that a sandbox without a rootfs can see; None if there is a rootfs."""
    if d.layout is None:
        return None
    # A tmpfs on /tmp is empty: it shows no files of the host.
    mounts = (m.destination for m in d.mounts if (m.type, m.destination) != ("tmpfs", "/tmp"))
    return (*d.layout.paths, *mounts, *d.spec.files)


def search_path(path: str | bytes | None) -> tuple[bytes, ...]:
    """The directories in which to look up a command. Without a path, the default of execvp(3)."""
    text = os.fsencode(path) if path is not None else b"/bin:/usr/bin"
    return tuple(directory or b"." for directory in text.split(b":"))
