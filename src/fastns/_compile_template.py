"""Spec → the two plans of a template: what its server does once, and what each sandbox does.

The server builds the root and stays in it, in namespaces of its own. A sandbox is a clone of it
with fresh ones, so that only what must not be shared is left to do: its own /proc, an empty file
system on each writable mount, its network's lo, its ids and limits.
"""

from __future__ import annotations

from fastns import _core
from fastns._compile import (
    DEFAULT_MOUNTS,
    DEFAULT_SPEC,
    MOUNT_ATTR_RDONLY,
    Caller,
    Op,
    _Compiler,
)
from fastns.errors import SpecError
from fastns.spec import Mount, Spec

DEV = DEFAULT_MOUNTS[4]
FRESH_BELOW_DEV = ("/dev/pts", "/dev/shm")


def compile_template(spec: Spec | None) -> _core.Plan:
    """The plan of a template's server; its `sandbox` is the plan of each sandbox.

    Raises: SpecError when a template cannot have what the spec asks for.
    """
    return _TemplateCompiler(spec or DEFAULT_SPEC, Caller.current()).template()


class _TemplateCompiler(_Compiler):
    file_attributes = MOUNT_ATTR_RDONLY  # all sandboxes have the same ones

    def __init__(self, spec: Spec, caller: Caller) -> None:
        super().__init__(spec, caller)
        self.each: list[Op] = []
        self.fresh: list[str] = []  # destinations of what each sandbox mounts for itself

    def check(self) -> None:
        super().check()
        spec = self.spec
        for kind in ("pid", "mount"):
            if self.kinds[kind] != "new":
                _refuse("namespaces", f"{kind}={self.kinds[kind]!r}: each sandbox has its own")
        for kind in ("user", "time"):
            if kind in self.joined:
                _refuse("namespaces", f"it cannot join a {kind} namespace")
        if spec.init:
            _refuse("init", "there is no reaper in its sandboxes yet")
        if spec.overlay:
            _refuse("overlay", "there is no layer for each sandbox yet")
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
        base = (*self.early, *self.ops)
        return self.made(
            base,
            self.new,
            id_map=self.id_map,
            n_early=len(self.early),
            staged=True,
            sandbox=self.sandbox(),
        )

    def sandbox(self) -> _core.Plan:
        """After the server's: the same compiler, its ops collected anew."""
        new = [kind for kind in self.new if kind not in ("user", "time")]
        self.ops = []
        if self.id_map == "self":
            # A user namespace of its own, in which the server's mounts are locked.
            new.append("user")
            self.map_same()
        self.add(Op("root_tree", "rootfs", source=b"/", note="/"))
        self.ops += self.each
        if "network" in self.new:
            self.add(Op("loopback", "network", note="lo up"))
        self.limits_and_ids()
        return self.made(self.ops, new, id_map=self.id_map, method="template")

    def map_same(self) -> None:
        uid, gid = f"{self.spec.uid} {self.spec.uid} 1\n", f"{self.spec.gid} {self.spec.gid} 1\n"
        for name, text in ((b"setgroups", "deny"), (b"gid_map", gid), (b"uid_map", uid)):
            note = f"{name.decode()}: {text.strip()}"
            target = b"/proc/self/" + name
            self.add(Op("write", "id_map", target=target, data=text.encode(), note=note))

    def names(self) -> None:
        """A new uts namespace begins with the names of the server's."""
        network, self.new = self.new, [kind for kind in self.new if kind != "network"]
        self.identity()
        self.new = network

    # ---- mounts ----

    def add_mount(self, mount: Mount) -> None:
        if mount is DEV:
            super().add_mount(mount)
            for path in FRESH_BELOW_DEV:
                self.add(Op("directory", "directory", arg=0o755, target=path.encode(), note=path))
        elif mount.type in ("bind", "devtmpfs"):
            self.not_below_fresh(mount.destination)
            super().add_mount(mount)
        else:
            if self.id_map == "self" and mount.type in ("proc", "sysfs"):
                # One must be there already where a user namespace mounts another.
                super().add_mount(_beneath(mount))
            base, self.ops = self.ops, self.each
            super().add_mount(mount)
            self.ops = base
            self.fresh.append(mount.destination)

    def finish_root(self) -> None:
        super().finish_root()
        for destination in self.spec.files:
            self.not_below_fresh(destination)
        if self.spec.default_mounts and DEV.destination in (path for path, _ in self.layers):
            op = Op("read_only", "read_only", _core.HOW_NO_SYMLINKS, target=b"/dev", note="/dev")
            self.add(op)

    def not_below_fresh(self, destination: str) -> None:
        for path in self.fresh:
            if destination.startswith(path.rstrip("/") + "/"):
                _refuse("mounts", f"{destination}: {path} is empty in each sandbox")


def _beneath(mount: Mount) -> Mount:
    """What a sandbox that takes its own away may see: no process but those it may trace."""
    options = list(mount.options)
    if mount.type == "proc":
        options.append("hidepid=2")
    return Mount(mount.destination, type=mount.type, source=mount.source, options=options)


def _refuse(field: str, why: str) -> None:
    raise SpecError(field, f"a Template cannot have this: {why}")
