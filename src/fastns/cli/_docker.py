"""Options and commands of docker that do not exist here, and what there is instead.

Imported only to word an error.
"""

from __future__ import annotations

import re

_NO_IMAGES = (
    "there are no images: --rootfs DIR takes a directory, such as `fastns rootfs build` makes; "
    "without it the host's system directories are in view"
)
_NO_PORTS = (
    "no ports are published: with --network host the command listens on the host's own addresses"
)
_NO_NAME = (
    "a sandbox has no name: it is gone when its command ends; in Python, fastns.spawn() returns a "
    "handle"
)
_NO_NETWORKS = "a sandbox has no network but lo (--network none), or the host's (--network host)"
_DETACH = "fastns run waits for the command: add & in a shell, or use fastns.spawn() in Python"
_OUTPUT = "output goes to stdout and stderr as it comes: redirect it"
_STREAMS = "stdin, stdout and stderr are always connected: leave it out"
_HEALTH = "there are no health checks: --timeout ends a sandbox, the exit code says how it ended"
_DEVICE = (
    "bind the device file with the option dev, such as -v /dev/kvm:/dev/kvm:dev; its owner and "
    "mode on the host decide whether it can be opened"
)
_OOM = "a sandbox over --memory is always ended; --status-fd reports the cause, oom"
_RATES = "--io DEVICE:KEY=N, where KEY is rbps, wbps, riops or wiops"
_RESOLV = "give the whole file: --file /etc/resolv.conf=@PATH"

_SHARES = "--cpu-weight N, 1 to 10000; 100 is what docker's 1024 shares are"
_QUIET = "fastns prints nothing of its own but errors: leave it out"
_HEALTH_OPTIONS = ("--health-cmd", "--health-interval", "--health-retries", "--health-timeout")

OPTIONS = {
    **dict.fromkeys(("-a", "--attach", "--detach-keys"), _STREAMS),
    **dict.fromkeys(("-d", "--detach"), _DETACH),
    **dict.fromkeys(("-c", "--cpu-shares"), _SHARES),
    **dict.fromkeys(("--cpu-period", "--cpu-quota"), "--cpus N, such as 1.5"),
    **dict.fromkeys(("--device", "--device-cgroup-rule"), _DEVICE),
    **dict.fromkeys(("--device-read-bps", "--device-read-iops", "--blkio-weight"), _RATES),
    **dict.fromkeys(("--device-write-bps", "--device-write-iops"), _RATES),
    **dict.fromkeys(("--dns-opt", "--dns-option", "--dns-search"), _RESOLV),
    **dict.fromkeys((*_HEALTH_OPTIONS, "--no-healthcheck"), _HEALTH),
    **dict.fromkeys(("--ip", "--ip6", "--link", "--mac-address", "--network-alias"), _NO_NETWORKS),
    **dict.fromkeys(("-l", "--label", "--label-file", "--name", "--cidfile"), _NO_NAME),
    **dict.fromkeys(("--log-driver", "--log-opt"), _OUTPUT),
    **dict.fromkeys(("--oom-kill-disable", "--oom-score-adj"), _OOM),
    **dict.fromkeys(("-p", "-P", "--publish", "--publish-all", "--expose"), _NO_PORTS),
    **dict.fromkeys(("-q", "--quiet"), _QUIET),
    "--entrypoint": "there is no entrypoint: the command follows the options",
    "--gpus": "bind the driver's device files with the option dev, such as "
    "-v /dev/nvidia0:/dev/nvidia0:dev, and its libraries where they are not in /usr",
    "--group-add": "additional_gids of a Spec, in Python",
    "--memory-reservation": "--memory BYTES, a hard limit; there is no soft one",
    "--platform": "there is no emulation: programs are those of this machine, or of --rootfs DIR",
    "--privileged": "give what is needed by name: --cap-add NAME, --security-opt "
    "seccomp=unconfined, --security-opt systempaths=unconfined, --userns host",
    "--pull": _NO_IMAGES,
    "--restart": "nothing is started again: use a loop of the shell, or Restart= of a systemd unit",
    "--runtime": "fastns is the runtime: leave it out",
    "--shm-size": "--tmpfs /dev/shm:size=64m",
    "--sig-proxy": "SIGTERM and SIGHUP end the sandbox, Ctrl-C reaches the command: leave it out",
    "--stop-signal": "SIGTERM to fastns ends the sandbox at once, by SIGKILL",
    "--stop-timeout": "--timeout TIME ends the whole sandbox",
    "--storage-opt": "--tmpfs-size BYTES, which limits the layer of --overlay too",
    "--sysctl": "sysctls are the kernel's defaults in a new namespace, and cannot be set",
    "--volumes-from": "name each with -v SRC:DST",
}
"""docker run's options that do not exist here."""

_STAYS = "no sandbox stays after its command: `fastns run` starts one and waits for it"
VERBS = {
    **dict.fromkeys(("attach", "exec", "kill", "logs", "ps", "rm", "start", "stop"), _STAYS),
    **dict.fromkeys(("create", "inspect", "wait"), _STAYS),
    **dict.fromkeys(("build", "image", "images", "pull", "push"), _NO_IMAGES),
}
"""docker's commands that do not exist here."""

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
    """A hint for a command that was not found, or None unless it looks like an image's name."""
    if not (_TAGGED.fullmatch(name) or _REGISTRY.fullmatch(name) or name in _SYSTEMS):
        return None
    return (
        f"{name} looks like an image; fastns takes a directory: "
        f"docker export $(docker create {name}) | tar -x -C DIR, then --rootfs DIR; or "
        "`fastns rootfs build` makes one from this machine's commands"
    )
