"""Errors and hints about a Spec, in the words of the command line. Imported only for an error."""

from __future__ import annotations

import re

from fastns.cli import complain
from fastns.cli._flags import NAMESPACE_FLAGS
from fastns.errors import SpecError

_SAME = (
    *("rootfs", "read_only", "overlay", "hostname", "domainname", "tmpfs_size", "user", "network"),
    *("init", "allow_setid", "memory", "memory_swap", "max_output", "on_output_limit"),
    *("pids_limit", "cpus", "cpu_weight", "cpu_time", "io", "cgroup_parent"),
)
FLAG_OF_FIELD = {
    **{field: f"--{field.replace('_', '-')}" for field in _SAME},
    **{f"namespaces.{space}": f"--{flag}" for flag, space in NAMESPACE_FLAGS.items()},
    "root_mode": "--chroot",
    "mounts": "-v, --mount or --tmpfs",
    "files": "--file, --add-host or --dns",
    "env": "-e or --env-file",
    "cwd": "--workdir",
    "uid_mappings": "--uidmap or --userns keep-id",
    "gid_mappings": "--gidmap or --userns keep-id",
    "rlimits": "--ulimit",
    "capabilities": "--cap-add",
    "no_new_privileges": "--security-opt",
    "seccomp": "--security-opt",
    "landlock": "--landlock-read or --landlock-write",
    "cpuset": "--cpuset-cpus",
}
"""Field of a Spec -> the flags that set it."""

FLAG_OF_WORDS = {
    "; names are not looked up": "",
    " with user='host': leave 'user' out, or say 'new'": " with --userns host: leave it out",
    "cgroup_parent": "--cgroup-parent",
    "default_mounts=False": "--no-default-mounts",
    "gid_mappings": "--gidmap",
    "give a rootfs": "give --rootfs",
    "needs a rootfs": "needs --rootfs",
    "overlay=True": "--overlay",
    "require_limits=False": "--no-require-limits",
    "root_mode='chroot'": "--chroot",
    "seccomp='unconfined'": "--security-opt seccomp=unconfined",
    "uid_mappings": "--uidmap",
    **{
        words: f"--{flag} {mode}"
        for flag, space in NAMESPACE_FLAGS.items()
        for words, mode in (
            (f"namespaces={{'{space}': 'host'}}", "host"),
            (f"namespaces['{space}'] = 'new'", "private"),
        )
    },
}
"""Words in an error or hint about a Spec -> their equivalent on the command line."""
_MOUNT = r"Mount\('([^']*)', source='([^']*)', options=\['([^']*)'\]\)"
_MOUNTS = rf"mounts=\[({_MOUNT}(?:, {_MOUNT})*)\]"


def complain_of(error: Exception, verb: str, hint: str | None = None) -> None:
    """Writes an error of a Spec or a start to stderr. The hint for a SpecError names its flag;
    for any other error, `hint` replaces the error's own."""
    if isinstance(error, SpecError):
        flag = FLAG_OF_FIELD.get(error.field) or FLAG_OF_FIELD.get(error.field.split(".")[0])
        hint = f"set by {flag}; see fastns {verb} --help" if flag else None
        complain(f"{error.field}: {in_flags(error.reason)}", hint)
    elif isinstance(error, FileNotFoundError) and error.filename is None:  # from getcwd(2)
        complain("the working directory does not exist any more", "give absolute paths, or cd /")
    else:
        complain(error, hint or in_flags(getattr(error, "hint", None) or ""))


def in_flags(text: str) -> str:
    """Replaces the words for a Spec in a text with those of the command line."""
    for words, flag in FLAG_OF_WORDS.items():
        text = text.replace(words, flag)
    return re.sub(_MOUNTS, lambda found: _volumes(found[1]), text)


def _volumes(mounts: str) -> str:
    import shlex

    found = re.findall(_MOUNT, mounts)
    return " ".join(f"-v {shlex.quote(f'{src}:{dst}:{opt}')}" for dst, src, opt in found)
