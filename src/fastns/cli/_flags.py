"""The flags of `fastns run`, `batch` and `compile` that describe a sandbox, and the Spec they make.

_values.py reads the values of most flags, those in READ. It is imported only if one of them is set.
VERBATIM has those whose text a field takes as it is; spec_of() itself reads the others. The Spec
itself checks the types of mounts, absolute paths and contradictions. _errors.py finds the flag for
the field that a SpecError names.
"""

from __future__ import annotations

import os

from fastns.cli import UsageError
from fastns.cli._options import MANY, MOUNT, ONE, SWITCH
from fastns.spec import IDMapping, Spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Mapping
    from typing import Any

    from fastns.cli._options import Flag
    from fastns.cli._parser import Parser
    from fastns.spec import Mount


ROOT = (
    (ONE, "--rootfs", "DIR", "use DIR as the root (default: the host's system directories, "
     "read-only)"),
    (SWITCH, "--read-only", "", "make the root read-only"),
    (SWITCH, "--overlay", "", "put a throw-away writable layer over the root"),
    (SWITCH, "--chroot", "", "enter the root by chroot instead of pivot_root"),
)  # fmt: skip
CONTENT = (
    (MOUNT, "-v --volume", "SRC:DST[:OPTIONS]", "bind a host file or directory. OPTIONS: ro, dev "
     "(its device files work) and, for root, idmap (keep the owners of its files, or fail if the "
     "file system does not support it) or noidmap (root's files belong to nobody inside). Default "
     "for root: idmap if the file system supports it, else noidmap"),
    (MOUNT, "--mount", "type=T,src=S,dst=D[,ro]", "add a mount of type bind, tmpfs, proc, ..."),
    (MOUNT, "--tmpfs", "DST[:size=64m]", "mount an empty directory in memory"),
    (ONE, "--tmpfs-size", "BYTES", "size of each tmpfs that has no size= of its own"),
    (MANY, "--file", "DST=TEXT", "put a file with this text at DST (DST=@PATH: a copy of PATH)"),
    (SWITCH, "--no-default-mounts", "", "leave out /proc, /sys, /dev, /tmp and /run"),
)  # fmt: skip
IDENTITY = (
    (ONE, "--hostname", "NAME", "set the host name"),
    (ONE, "--domainname", "NAME", "set the NIS domain name"),
    (MANY, "--add-host", "NAME:IP", "add a line to /etc/hosts"),
    (MANY, "--dns", "IP", "write an /etc/resolv.conf with this name server"),
)
NAMESPACES = (
    (ONE, "--pid", "MODE", "process ids"),
    (ONE, "--uts", "MODE", "host name and NIS domain name"),
    (ONE, "--ipc", "MODE", "System V IPC and POSIX message queues"),
    (ONE, "--network --net", "MODE", "network: none (only lo; the default), host, or a path"),
    (ONE, "--userns", "MODE", "user ids: auto (default; for root: a range of ids), host, "
     "private, keep-id (the caller's own ids), or a path"),
    (ONE, "--cgroupns", "MODE", "the view of the cgroup tree"),
    (ONE, "--mountns", "MODE", "mounts"),
    (ONE, "--timens", "MODE", "monotonic and boot clocks (default: host)"),
)  # fmt: skip
IDS = (
    (MANY, "--uidmap", "C:H:N", "map N user ids, from C inside to H outside"),
    (MANY, "--gidmap", "C:H:N", "map N group ids, from C inside to H outside"),
    (ONE, "-u --user", "USER[:GROUP]", "run as these ids, or these names from the root's "
     "/etc/passwd and /etc/group (default: 0:0)"),
)  # fmt: skip
PROCESS = (
    (MANY, "-e --env", "K=V", "set a variable (K alone: copy the caller's)"),
    (MANY, "--env-file", "FILE", "read variables from FILE, one per line"),
    (ONE, "-w --workdir", "DIR", "set the working directory inside (default: /)"),
    (MANY, "--ulimit", "NAME=SOFT[:HARD]", "set a resource limit, such as nofile=64:64"),
    (SWITCH, "--init", "", "run the command as a child of a minimal init (pid 1), so signals act "
     "on it as usual"),
)  # fmt: skip
RIGHTS = (
    (MANY, "--cap-add", "CAP", "grant a capability, such as NET_RAW, or ALL (default: none)"),
    (MANY, "--cap-drop", "CAP", "remove a capability from those granted"),
    (MANY, "--security-opt", "OPT", "no-new-privileges=false, seccomp=unconfined, seccomp=FILE (a "
     "JSON profile in docker's format), systempaths=unconfined"),
    (SWITCH, "--allow-setid", "", "allow making set-user-ID and set-group-ID files even where "
     "the sandbox can write to host files"),
    (MANY, "--landlock-read", "PATH", "allow reading and executing only below PATH inside, and "
     "below the PATHs of other --landlock options"),
    (MANY, "--landlock-write", "PATH", "the same, and allow writing below PATH"),
)  # fmt: skip
LIMITS = (
    (ONE, "-m --memory", "BYTES", "memory, including files in each tmpfs, such as 64m"),
    (ONE, "--memory-swap", "BYTES", "memory and swap together (default: no swap; -1: no limit)"),
    (ONE, "--pids-limit", "N", "processes and threads"),
    (ONE, "--cpus", "N", "CPU time per second, in CPUs, such as 1.5"),
    (ONE, "--cpu-time", "TIME", "CPU time in all, such as 2s"),
    (ONE, "--cpu-weight", "N", "share of CPU time while the CPUs are busy, 1 to 10000"),
    (ONE, "--cpuset-cpus", "LIST", "which CPUs to run on, such as 0-1,3"),
    (MANY, "--io", "DEV:KEY=N", "I/O per second on a device; KEY: rbps, riops and, with cgroup "
     "version 2, wbps, wiops"),
    (ONE, "--cgroup-parent", "PATH", "create the cgroups below this one"),
    (SWITCH, "--no-require-limits", "", "skip a limit that cannot be enforced (default: fail)"),
)  # fmt: skip
GROUPS = {
    "root file system": ROOT,
    "files and mounts": CONTENT,
    "host names": IDENTITY,
    "namespaces (MODE: private, host or a path to join; mostly private by default)": NAMESPACES,
    "users and groups": IDS,
    "process": PROCESS,
    "permissions": RIGHTS,
    "limits on all processes of the sandbox together": LIMITS,
}

NAMESPACE_FLAGS = {
    **{name: name for name in ("pid", "uts", "ipc", "network")},
    **{f"{name}ns": name for name in ("user", "cgroup", "mount", "time")},
}
"""Flag without its dashes -> the namespace it sets."""
VERBATIM = {
    **{name: name for name in ("rootfs", "hostname", "domainname", "memory", "cgroup_parent")},
    **{name: name for name in ("tmpfs_size", "max_output", "on_output_limit")},  # declared by verbs
    "workdir": "cwd",
    "cpuset_cpus": "cpuset",
}
"""Flag -> the field of a Spec that takes its text unchanged."""
READ = (
    *NAMESPACE_FLAGS,
    *("uidmap", "gidmap", "env", "env_file", "ulimit", "cap_add", "cap_drop", "security_opt"),
    *("landlock_read", "landlock_write", "memory_swap", "pids_limit", "cpus", "cpu_time"),
    *("cpu_weight", "io", "hostname", "mounts", "file", "add_host", "dns"),
)
"""Flags that _values.fields() reads. If none of these is given, it is not called."""


def add_sandbox_flags(parser: Parser, groups: Mapping[str, Iterable[Flag]] = GROUPS) -> None:
    """Adds the flags of all groups above, or only those of `groups`."""
    parser.like_docker = True
    for title, flags in groups.items():
        add_flags(parser.add_argument_group(title), flags)


def add_flags(group: Any, flags: Iterable[Flag]) -> None:
    """Adds the flags of a table to an argument group."""
    for kind, names, metavar, help in flags:
        words = names.split()
        options: dict[str, Any] = (
            {"action": "store_true"} if kind == SWITCH else {"metavar": metavar}
        )
        if kind in (MANY, MOUNT):
            options |= {"action": "append", "default": []}
        if kind == MOUNT:
            options |= {"dest": "mounts", "type": lambda text, name=words[-1]: (name, text)}
        group.add_argument(*words, help=help, **options)


def spec_of(
    flags: argparse.Namespace, caller: Mapping[str, str], extra_env: Mapping[str, str]
) -> Spec:
    """The Spec that the flags of add_sandbox_flags() describe.

    `caller` is the environment that `-e NAME` copies from; `extra_env` is overridden by the flags.
    Raises UsageError for a flag's value, SpecError for what the Spec itself refuses.
    """
    given = {field: getattr(flags, name) for name, field in VERBATIM.items()}
    fields = {field: value for field, value in given.items() if value is not None}
    if any(getattr(flags, name) not in (None, []) for name in READ):
        from fastns.cli import _values

        fields |= _values.fields(flags, NAMESPACE_FLAGS, caller)
    ids, home = _identity(flags, fields.get("mounts", []), fields.get("files", {}))
    env = {**extra_env, **home, **fields.pop("env", {})}
    fields |= {"env": env, **ids} if env else ids  # an empty env is the default: no check
    if flags.chroot:
        fields["root_mode"] = "chroot"
    return Spec(
        **fields,
        read_only=flags.read_only,
        overlay=flags.overlay,
        allow_setid=flags.allow_setid,
        init=flags.init,
        die_with_parent=True,
        default_mounts=not flags.no_default_mounts,
        require_limits=not flags.no_require_limits,
    )


def _identity(
    flags: argparse.Namespace, mounts: list[Mount], files: dict[str, str | bytes]
) -> tuple[dict[str, Any], dict[str, str]]:
    """The Spec fields for ids, and the variable HOME if the user of --user has a home."""
    user: str | None = flags.user
    home = None
    if user and not user.replace(":", "").isdigit():
        from fastns.cli._users import account_of

        if flags.userns == "host" and flags.rootfs:
            raise UsageError(
                f"--user {user} with --userns host: the passwd and group files of {flags.rootfs} "
                "would choose a user of the host",
                "give numbers",
            )
        user, home = account_of(flags, mounts, files)
    fields: dict[str, Any] = {}
    if flags.userns == "keep-id":
        if flags.uidmap or flags.gidmap:
            raise UsageError(
                "--userns keep-id and --uidmap or --gidmap: each sets the whole map",
                "use one of them",
            )
        uid, gid = os.getuid(), os.getgid()
        fields = {
            "uid_mappings": [IDMapping(uid, uid, 1)],
            "gid_mappings": [IDMapping(gid, gid, 1)],
        }
        if user is None or ":" not in user:
            user = f"{uid if user is None else user}:{gid}"
    if user is not None:
        fields["user"] = user
    return fields, {"HOME": home} if home else {}
