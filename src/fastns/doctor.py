"""Finds out what works on this machine: asks the kernel, and tries sandboxes.

`examine()` makes every check, each after those that it depends on, and leaves nothing behind.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from functools import partial
from pathlib import Path

import fastns
from fastns import _machine, seccomp
from fastns._filters import default
from fastns._light import record
from fastns._machine import Finding, has_range, has_sys_admin
from fastns._policy import owners
from fastns._surroundings import OUT_OF_A_FILTER, REFUSED, TO_MAP_ROOT, Surroundings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

NAMESPACES = ("user", "mount", "pid", "uts", "ipc", "network", "cgroup", "time")
TRY_OPTIONS: Any = {"capture_output": True, "timeout": 10.0}
# Where programs and their libraries are, below /.
TOP_DIRECTORIES = ("bin", "sbin", "lib", "lib32", "lib64", "usr", "nix", "gnu")


@record(frozen=True)
class Check:
    """The result of one check.

    `ok`: None if it is neither good nor bad. `level`: "basic" (without it a sandbox with default
    settings does not start) or "extra" (a feature is missing). `fix`: what to do; None if nothing
    needs to be done, or no fix is known.
    """

    name: str
    ok: bool | None
    level: str
    detail: str
    fix: str | None = None


def examine() -> Iterator[Check]:
    """Makes one check each time the iterator is advanced."""
    for name, level, probe in _probes():
        try:
            found = probe()
        except Exception as error:  # a check that cannot be made has failed
            found = failed(error)
        yield Check(name, found.ok, level, found.detail, found.fix)


def _probes() -> Iterator[tuple[str, str, Callable[[], Finding]]]:
    """(name, level, probe) of each check."""
    user_level = "extra" if has_sys_admin() else "basic"
    yield "kernel", "basic", _machine.kernel
    yield "environment", "extra", _machine.surroundings
    yield "privilege", "extra", _machine.privilege
    yield "user namespace settings", user_level, _machine.user_namespace_settings
    for call in _machine.SYSTEM_CALLS:
        level = "extra" if call in _machine.REPLACEABLE_CALLS else "basic"
        yield f"{call}()", level, partial(_machine.system_call, call)
    yield "pidfd", "basic", _machine.pidfd
    yield "executable memfd", "basic", _machine.executable_memfd
    yield "program", "basic", _machine.program
    yield "devices", "basic", _machine.devices
    for space in NAMESPACES:
        level = {"user": user_level, "time": "extra"}.get(space, "basic")
        yield f"{space} namespace", level, partial(namespace, space)
    proc = [fastns.Mount("/proc", type="proc")]
    yield "/proc inside", "basic", partial(namespace, "mount", "pid", mounts=proc)
    yield "system call filter", "basic", filters
    yield "custom profiles", "extra", profiles
    yield "landlock", "extra", _machine.landlock
    yield "default sandbox", "basic", attempt
    yield "overlay on tmpfs", "extra", overlay
    yield "idmapped mounts", "extra", idmapped_mounts
    yield "template", "extra", template
    yield "mount tables", "extra", _machine.mount_tables
    yield "id ranges", "extra", _machine.id_ranges
    yield "supplementary groups", "extra", _machine.supplementary_groups
    yield "cgroup", "extra", _machine.cgroup
    yield "limits", "extra", _machine.limits


def filters() -> Finding:
    """Whether there is a default filter for this machine."""
    return Finding(True, f"{len(default(setid=True)) // 8} instructions")


def profiles() -> Finding:
    """Whether a filter can be made from a custom profile."""
    try:
        seccomp.build({"defaultAction": "SCMP_ACT_ALLOW"})
    except fastns.SpecError as error:
        return Finding(False, str(error), "install libseccomp (Debian: libseccomp2)")
    return Finding(True, "by libseccomp")


def attempt(**fields: Any) -> Finding:
    """Runs `true` in a sandbox with these fields of a Spec."""
    return tried(lambda args: fastns.run(args, spec=fastns.Spec(**fields), **TRY_OPTIONS))


def template() -> Finding:
    """Runs `true` in a ready sandbox of a Template."""

    def run(args: list[str]) -> fastns.CompletedSandbox:
        with fastns.Template(ready=1) as template:
            return template.run(args, **TRY_OPTIONS)

    return tried(run)


def tried(run: Callable[[list[str]], fastns.CompletedSandbox]) -> Finding:
    """Runs `true` with `run`, and judges how it ended."""
    program = shutil.which("true")
    if program is None:
        return Finding(False, "no program `true` to try it with", "put coreutils on PATH")
    try:
        done = run([program])
    except fastns.FastnsError as error:
        return failed(error)
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip()
        return Finding(False, f"`true` ended with {done.returncode} {said}".rstrip())
    return Finding(True, f"works ({done.wall_time * 1000:.1f} ms)")


def failed(error: Exception) -> Finding:
    """The finding for an exception: its text, and what helps on this machine."""
    detail = str(error) if isinstance(error, fastns.FastnsError | OSError) else repr(error)
    fix = getattr(error, "hint", None)
    if isinstance(error, fastns.SpawnError) and error.errno in REFUSED:
        around = Surroundings.current()
        if error.stage == "id_map" and around.cannot_map_root:
            fix = TO_MAP_ROOT
        elif error.stage not in ("exec", "chdir") and around.confined:
            fix = OUT_OF_A_FILTER
    if fix is not None:  # do not suggest `fastns doctor`, which is running
        fix = "; ".join(part for part in fix.split("; ") if "fastns doctor" not in part) or None
    return Finding(False, detail, fix)


def namespace(*spaces: str, **fields: Any) -> Finding:
    """Tries a sandbox in which only these namespaces are new (and user, if the caller needs it)."""
    if not has_sys_admin():
        spaces = (*spaces, "user")
    modes = {name: "new" if name in spaces else "host" for name in NAMESPACES}
    del modes["network"]
    fields["network"] = "none" if "network" in spaces else "host"
    return attempt(namespaces=modes, seccomp="unconfined", default_mounts=False, **fields)


def idmapped_mounts() -> Finding:
    """Whether files on the file system of / keep their owners in root's sandboxes."""
    if not has_range():
        return Finding(None, "only for root: other users have their own id in their sandboxes")
    why = owners.plain("/", False, fastns.compile().can_idmap)
    if why is None:
        return Finding(True, "on the file system of /: roots and binds keep their owners")
    return Finding(
        False,
        f"{why}, so binds of / are plain: root's files there are nobody's inside",
        "put roots and volumes on ext4, xfs, btrfs or tmpfs (Linux 6.3), or give "
        "namespaces={'user': 'host'}",
    )


def overlay() -> Finding:
    """Whether a root can have an overlay on a tmpfs: tries one with this machine's programs."""
    with tempfile.TemporaryDirectory(prefix="fastns-doctor-") as root:
        mounts = []
        for name in TOP_DIRECTORIES:
            host = Path("/", name)
            if host.is_symlink():
                Path(root, name).symlink_to(os.readlink(host))
            elif host.is_dir():
                Path(root, name).mkdir()
                mounts.append(fastns.Mount(str(host), source=str(host), options=["rbind", "ro"]))
        return attempt(rootfs=root, overlay=True, mounts=mounts, seccomp="unconfined")
