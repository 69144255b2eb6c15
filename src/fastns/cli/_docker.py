"""Hints for options and commands that only docker has. Imported only for an error."""

from __future__ import annotations

import re

_NO_IMAGES = (
    "there are no images: --rootfs DIR takes a directory, such as `fastns rootfs build` makes; "
    "without it the sandbox sees the host's system directories"
)
_INSTEAD = {
    "stdin, stdout and stderr are always connected: leave it out": "-a --attach --detach-keys",
    "fastns run waits for the command: add & in a shell, or use fastns.spawn() in Python":
        "-d --detach",
    "--cpu-weight N, 1 to 10000; 100 is what docker's 1024 shares are": "-c --cpu-shares",
    "-w DIR or --workdir DIR": "--cwd",
    "--cpus N, such as 1.5": "--cpu-period --cpu-quota",
    "bind the device file with the option dev, such as -v /dev/kvm:/dev/kvm:dev; its owner and "
    "mode on the host decide whether it can be opened": "--device --device-cgroup-rule",
    "--io DEVICE:KEY=N, where KEY is rbps, wbps, riops or wiops": "--device-read-bps "
        "--device-read-iops --device-write-bps --device-write-iops --blkio-weight",
    "give the whole file: --file /etc/resolv.conf=@PATH": "--dns-opt --dns-option --dns-search",
    "there are no health checks: --timeout ends a sandbox, the exit code says how it ended":
        "--health-cmd --health-interval --health-retries --health-timeout --no-healthcheck",
    "a sandbox has no network but lo (--network none), or the host's (--network host)":
        "--ip --ip6 --link --mac-address --network-alias",
    "a sandbox has no name: it is gone when its command ends; in Python, fastns.spawn() returns a "
    "handle": "-l --label --label-file --name --cidfile",
    "output goes to stdout and stderr as it comes: redirect it": "--log-driver --log-opt",
    "a sandbox over --memory is always ended; --status-fd reports the cause, oom":
        "--oom-kill-disable --oom-score-adj",
    "no ports are published: with --network host the command listens on the host's own addresses":
        "-p -P --publish --publish-all --expose",
    "fastns itself prints only errors: leave it out": "-q --quiet",
    "there is no entrypoint: the command follows the options": "--entrypoint",
    "bind the driver's device files with the option dev, such as "
    "-v /dev/nvidia0:/dev/nvidia0:dev, and its libraries where they are not in /usr": "--gpus",
    "additional_gids of a Spec, in Python": "--group-add",
    "--memory BYTES, a hard limit; there is no soft one": "--memory-reservation",
    "there is no emulation: programs are those of this machine, or of --rootfs DIR": "--platform",
    "give what is needed by name: --cap-add NAME, --security-opt seccomp=unconfined, "
    "--security-opt systempaths=unconfined, --userns host": "--privileged",
    _NO_IMAGES: "--pull",
    "fastns does not restart commands: use a loop of the shell, or Restart= of a systemd unit":
        "--restart",
    "fastns is the runtime: leave it out": "--runtime",
    "--tmpfs /dev/shm:size=64m": "--shm-size",
    "SIGTERM and SIGHUP end the sandbox, Ctrl-C reaches the command: leave it out": "--sig-proxy",
    "SIGTERM to fastns ends the sandbox at once, by SIGKILL": "--stop-signal",
    "--timeout TIME ends the whole sandbox": "--stop-timeout",
    "--tmpfs-size BYTES, which limits the layer of --overlay too": "--storage-opt",
    "sysctls are the kernel's defaults in a new namespace, and cannot be set": "--sysctl",
    "name each with -v SRC:DST": "--volumes-from",
}  # fmt: skip
OPTIONS = {name: hint for hint, names in _INSTEAD.items() for name in names.split()}
"""An option of docker run -> the hint."""

_STAYS = "a sandbox ends with its command: `fastns run` starts one and waits for it"
VERBS = {
    **dict.fromkeys(("attach", "exec", "kill", "logs", "ps", "rm", "start", "stop"), _STAYS),
    **dict.fromkeys(("create", "inspect", "wait"), _STAYS),
    **dict.fromkeys(("build", "image", "images", "pull", "push"), _NO_IMAGES),
}
"""A command of docker -> the hint."""

_TAGGED = re.compile(
    r"[a-z0-9][a-z0-9.-]*(:\d+/)?[a-z0-9._/-]*(:[A-Za-z0-9_][A-Za-z0-9_.-]*|@sha256:[0-9a-f]{64})"
)
_REGISTRY = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)+(:\d+)?/[a-z0-9._/-]+")
_SYSTEMS = (
    *("almalinux", "alpine", "amazonlinux", "archlinux", "centos", "debian", "fedora"),
    *("hello-world", "rockylinux", "ubuntu"),
)
"""Images that are often named without a tag. No commands have these names."""


def hint_of_image(name: str) -> str | None:
    """A hint for a command that was not found, if its name looks like an image's."""
    if not (_TAGGED.fullmatch(name) or _REGISTRY.fullmatch(name) or name in _SYSTEMS):
        return None
    return (
        f"{name} looks like an image; fastns takes a directory: "
        f"docker export $(docker create {name}) | tar -x -C DIR, then --rootfs DIR; or "
        "`fastns rootfs build` makes one from this machine's commands"
    )
