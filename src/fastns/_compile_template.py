"""Spec → the two plans of a template: what its server does once, and what each sandbox does.

The server builds the root and stays in it, in namespaces of its own. A sandbox is a clone of it
with fresh ones, so that only what must not be shared is left to do: its own /proc, an empty file
system on each writable mount, its network's lo, its ids and limits.
"""

from __future__ import annotations

import os

from fastns import _core, _view
from fastns._compile import (
    DEFAULT_SPEC,
    DEV,
    LAYERS,
    MOUNT_ATTR_RDONLY,
    MS_PRIVATE,
    MS_SLAVE,
    Caller,
    Op,
    _Compiler,
    _parse,
    layout_for,
    map_op,
    with_profile,
)
from fastns.errors import SpecError
from fastns.spec import Mount, Spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

DEV_READ_ONLY = Op("read_only", "read_only", _core.HOW_NO_SYMLINKS, target=b"/dev", note="/dev")


def compile_template(spec: Spec | None, netns_pool: int = 0) -> _core.Plan:
    """The plan of a template's server; its `sandbox` is the plan of each sandbox.

    Raises: SpecError when a template cannot have what the spec asks for.
    """
    whole = with_profile(spec or DEFAULT_SPEC)
    return compile_template_for(whole, Caller.current(), layout_for(whole), netns_pool)


def compile_template_for(
    spec: Spec, caller: Caller, layout: _view.Layout | None = None, netns_pool: int = 0
) -> _core.Plan:
    """The same for a given caller and a given view of the host; None is the host's own.

    Raises: SpecError when a template of this caller cannot have what the spec asks for.
    """
    return _TemplateCompiler(spec, caller, netns_pool, layout).template()


class _TemplateCompiler(_Compiler):
    file_attributes = MOUNT_ATTR_RDONLY  # all sandboxes have the same ones

    def __init__(
        self,
        spec: Spec,
        caller: Caller,
        netns_pool: int = 0,
        layout: _view.Layout | None = None,
    ) -> None:
        self.netns_pool = netns_pool
        if not caller.initial_user_namespace:
            # Its privileges end where a sandbox may take mounts away: a user namespace for each.
            caller = Caller(caller.uid, caller.gid, caller.uniform, 0, False)
        super().__init__(spec, caller, layout)
        self.each: list[Op] = []
        self.rest: bytes | None = None  # of a filter, beyond what the server has
        self.bounded = False  # by the server, for all
        self.fresh: list[str] = []  # destinations of what each sandbox mounts for itself

    def check(self) -> None:
        super().check()
        spec = self.spec
        for kind in ("pid", "mount"):
            if self.kinds[kind] != "new":
                _refuse("namespaces", f"{kind}={self.kinds[kind]!r}: each sandbox has its own")
        if self.netns_pool and self.kinds["network"] != "new":
            raise SpecError("netns_pool", "its sandboxes have no network namespaces of their own")
        for kind in ("user", "time"):
            if kind in self.joined:
                _refuse("namespaces", f"it cannot join a {kind} namespace")
        if spec.init:
            _refuse("init", "there is no reaper in its sandboxes yet")
        if spec.root_mode != "pivot_root":
            _refuse("root_mode", "'pivot_root' expected")
        if spec.uid_mappings or spec.gid_mappings:
            _refuse("uid_mappings", "ranges of ids are not there yet")

    def template(self) -> _core.Plan:
        self.join()
        self.map_ids()
        if self.id_map not in ("none", "self"):
            _refuse("user", "ids other than the caller's need a range, which is not there yet")
        self.build_root()
        if self.spec.hostname is not None or self.spec.domainname is not None:
            self.names()
        if self.id_map == "none" and self.id_range is None:  # with a full set a new one begins
            self.bounding()
            self.bounded = True
        self.keyring(_core.HOW_SEALED)  # all sandboxes have the same
        self.filter_for_all()
        self.begin()
        base = (*self.early, *self.ops)
        mine = (self.new, self.id_map, self.made_later)
        sandbox = self.sandbox()
        self.new, self.id_map, self.made_later = mine
        return self.made(
            base,
            self.new,
            id_map=self.id_map,
            n_early=len(self.early),
            hop=self.hop,
            sandbox=sandbox,
        )

    def sandbox(self) -> _core.Plan:
        """After the server's: the same compiler, its ops collected anew."""
        new = [kind for kind in self.new if kind not in ("user", "time")]
        self.ops = []
        if self.id_map == "self":
            # A user namespace of its own, in which the server's mounts are locked.
            new.append("user")
            self.map_same()
        self.new = [kind for kind in new if not self.netns_pool or kind != "network"]
        self.own_namespaces()
        if not self.spec.overlay:
            self.add(Op("root_tree", "rootfs", source=b"/", note="/"))
        self.ops += self.each
        if "network" in self.new:
            self.add(Op("loopback", "network", note="lo up"))
        self.enter_cgroups()
        self.limits_and_ids()
        return self.made(
            self.ops,
            self.new,
            id_map=self.id_map,
            method="template",
            netns_pool=self.netns_pool,
            cgroups=self.cgroups,
        )

    def map_same(self) -> None:
        uid, gid = f"{self.spec.uid} {self.spec.uid} 1\n", f"{self.spec.gid} {self.spec.gid} 1\n"
        for name, text in ((b"setgroups", "deny"), (b"gid_map", gid), (b"uid_map", uid)):
            self.add(map_op(name, text.encode()))

    def bounding(self) -> None:
        if not self.bounded:
            super().bounding()

    def filter_for_all(self) -> None:
        """Most of the default filter is the server's own: to load it takes a fifth of a start."""
        if self.spec.seccomp != "default":
            return
        from fastns._policy import filters as _filters

        setid = self.may_make_setid()
        first, self.rest = _filters.default_parts(self.spec.capabilities, setid=setid)
        if self.spec.no_new_privileges:
            self.add(Op("no_new_privileges", "no_new_privileges"))
        self.add_filter(first, f"{self.default_note()}, for all")

    def filter(self) -> None:
        if self.rest is None:
            super().filter()
        else:
            self.add_filter(self.rest, "default, the rest")

    def parent_death(self) -> None:
        """Its sandboxes end with the server, and that with the caller."""

    def names(self) -> None:
        """A new uts namespace begins with the names of the server's."""
        network, self.new = self.new, [kind for kind in self.new if kind != "network"]
        self.identity()
        self.new = network

    # ---- mounts ----

    def may_begin_with_the_root(self, mounts: Sequence[Mount]) -> bool:
        return False  # once is not often: the server's is made in the classic way

    def build_root(self) -> None:
        if self.spec.overlay:
            self.build_layers()
        else:
            super().build_root()

    def add_mount(self, mount: Mount) -> None:
        if mount is DEV:
            super().add_mount(mount)
        elif mount.type in ("bind", "devtmpfs"):
            self.not_below_fresh(mount.destination)
            super().add_mount(mount)
        else:
            if self.id_range is not None and self.layout is None and _parse(mount).mkdir:
                # A sandbox cannot make what is missing: its root shows other owners.
                super().add_mount(mount)
                self.layers.pop()
            if self.id_map == "self" and mount.type in ("proc", "sysfs"):
                # One must be there already where a user namespace mounts another.
                super().add_mount(_beneath(mount))
                if self.netns_pool and mount.type == "sysfs":
                    return  # that of a network namespace which is not its own is not its to mount
            base, self.ops = self.ops, self.each
            super().add_mount(mount)
            self.ops = base
            self.fresh.append(mount.destination)

    def may_show(self, path: str) -> bool:
        return not _view.lies_in(path, self.fresh)

    def put_mask(self, path: str, op: Op) -> None:
        """Over what each sandbox mounts for itself, each has to."""
        own = self.spec.overlay or any(f"{path}/".startswith(f"{at}/") for at in self.fresh)
        (self.each if own else self.ops).append(op)

    def finish_root(self) -> None:
        super().finish_root()
        for destination in self.spec.files:
            self.not_below_fresh(destination)
        if self.spec.default_mounts and DEV.destination in (path for path, _ in self.layers):
            self.add(DEV_READ_ONLY)

    def not_below_fresh(self, destination: str) -> None:
        for path in self.fresh:
            if destination.startswith(path.rstrip("/") + "/"):
                _refuse("mounts", f"{destination}: {path} is empty in each sandbox")

    # ---- a layer for each sandbox ----

    def build_layers(self) -> None:
        """The server's root holds the parts: /lower, /dev, and what is bound, in /parts. Each
        sandbox puts them together over a layer of its own."""
        spec = self.spec
        assert spec.rootfs is not None or spec.overlay
        root = os.path.abspath(spec.rootfs) if spec.rootfs is not None else "/"
        source = os.fsencode(root)
        mounts = self.all_mounts()
        slave = any(_parse(mount).propagation == MS_SLAVE for mount in mounts)
        self.ops += [
            Op("propagation", "propagation", flags=MS_SLAVE if slave else MS_PRIVATE),
            Op(
                "root_tree",
                "rootfs",
                _core.HOW_RECURSIVE | self.root_ids(),
                MOUNT_ATTR_RDONLY | self.no_devices(),
                source=source,
                note=f"{root} ro",
            ),
            self.scratch_op("rootfs", [b"lower", b"layers", b"files"], None, "tmpfs for the parts"),
            Op("root_attach", "rootfs", source=source, target=b"lower", note="attached"),
            Op("root_scratch", "rootfs"),
        ]
        self.layers = [("/", True)]
        self.each += [
            self.scratch_op("overlay", LAYERS, b"/layers"),
            self.overlay_op(b"/lower"),
        ]
        for number, mount in enumerate(mounts):
            self.add_part(b"/parts/%d" % number, mount)
        for number, destination in enumerate(spec.files):
            part = b"/parts/file%d" % number
            self.add(self.file_op(number, destination, part, _core.HOW_CREATE))
            self.put(part, destination, stage="file")
        if spec.default_mounts and DEV in mounts:
            self.add(DEV_READ_ONLY)
        self.mask_paths()
        if spec.read_only:
            self.each.append(Op("read_only", "read_only", note="/"))
        self.add(Op("pivot_root", "pivot_root", arg=1, source=source))
        self.each.append(Op("pivot_root", "pivot_root", arg=1, source=b"/"))

    def add_part(self, part: bytes, mount: Mount) -> None:
        if mount is DEV:
            super().add_mount(mount)
            self.add_devices()
            self.put(b"/dev", mount.destination, how=_core.HOW_NO_SYMLINKS)
        elif mount.type in ("bind", "devtmpfs"):
            op = self.mount_op(mount, part)
            self.add(op)
            kept = _core.HOW_NO_SYMLINKS | _core.HOW_SLAVE | _core.HOW_UNBINDABLE
            self.put(part, mount.destination, how=op.how & kept)
        else:
            if self.id_map == "self" and mount.type in ("proc", "sysfs"):
                super().add_mount(_beneath(mount))
                if self.netns_pool and mount.type == "sysfs":
                    self.put(os.fsencode(mount.destination), mount.destination)
                    return
            base, self.ops = self.ops, self.each
            super().add_mount(mount)
            self.ops = base

    def put(self, part: bytes, destination: str, *, how: int = 0, stage: str = "mount") -> None:
        """A part of the server's root, with all that is mounted below it, into each sandbox's."""
        how |= _core.HOW_RECURSIVE
        if self.throw_away(destination):
            how |= _core.HOW_CREATE | self.owned()
        target = os.fsencode(destination)
        self.each.append(Op("bind", stage, how, source=part, target=target, note=destination))
        self.layers.append((destination, False))


def _beneath(mount: Mount) -> Mount:
    """The server's mount beneath a sandbox's own one, seen if the sandbox unmounts that. Its /proc
    shows only processes that may be traced; it is writable, as the server writes id maps there."""
    options = list(mount.options)
    if mount.type == "proc":
        options = [*(option for option in options if option != "ro"), "hidepid=2"]
    return Mount(mount.destination, type=mount.type, source=mount.source, options=options)


def _refuse(field: str, why: str) -> None:
    raise SpecError(field, f"a Template cannot have this: {why}")
