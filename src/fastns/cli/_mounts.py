"""Reads the flags that mount something or add a file. Imported only if one is set."""

from __future__ import annotations

import os

from fastns.cli import Naming, UsageError
from fastns.cli._values import SWITCHED_OFF, SWITCHED_ON, checked
from fastns.spec import Mount

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

LOCALHOST = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
MOUNT_PATHS = {
    "src": "source",
    "source": "source",
    "dst": "destination",
    "destination": "destination",
    "target": "destination",
}


def volume(text: str) -> Mount:
    """`SRC:DST[:option,...]`: a bind of SRC."""
    parts = text.split(":")
    if len(parts) not in (2, 3) or not all(parts):
        raise UsageError(
            f"--volume {text}: expected SRC:DST or SRC:DST:ro", "for example: -v ./data:/data:ro"
        )
    options = parts[2].split(",") if len(parts) == 3 else []
    return _bind("--volume", text, parts[0], parts[1], options)


def mount(text: str) -> Mount:
    """`type=T,src=S,dst=D,...`, as in docker; other words are mount options."""
    kind = "bind"
    paths = dict.fromkeys(MOUNT_PATHS.values(), "")
    options = []
    for item in text.split(","):
        key, equals, value = item.partition("=")
        if key == "type":
            kind = value
        elif key in MOUNT_PATHS:
            paths[MOUNT_PATHS[key]] = value
        elif key in ("ro", "readonly"):
            options += ["ro"] if _switched_on(text, item, value) else []
        elif key == "bind-propagation":
            options.append(value)
        elif key in ("tmpfs-size", "tmpfs-mode") and equals:
            options.append(f"{key.removeprefix('tmpfs-')}={value}")
        elif item:
            options.append(item)
    source, destination = paths["source"], paths["destination"]
    for key, missing in (("dst", not destination), ("src", kind == "bind" and not source)):
        if missing:
            raise UsageError(
                f"--mount {text}: no {key}=",
                "for example: --mount type=bind,src=./data,dst=/data,ro",
            )
    if kind == "bind":
        return _bind("--mount", text, source, destination, options)
    return checked(
        "--mount", text, Mount, destination, type=kind, source=source or None, options=options
    )


def _switched_on(text: str, item: str, value: str) -> bool:
    if value.lower() in (*SWITCHED_ON, *SWITCHED_OFF):
        return value.lower() in SWITCHED_ON
    raise UsageError(
        f"--mount {text}: {item} is neither true nor false", "write ro, or leave it out"
    )


def tmpfs(text: str) -> Mount:
    """`DST[:option,...]`: an empty directory in memory."""
    destination, _, options = text.partition(":")
    if not destination:
        raise UsageError(f"--tmpfs {text}: expected DST or DST:size=64m", "--tmpfs /scratch")
    words = options.split(",") if options else []
    return checked("--tmpfs", text, Mount, destination, type="tmpfs", options=words)


def _bind(flag: str, text: str, source: str, destination: str, options: list[str]) -> Mount:
    """A bind, with what is mounted below its source unless `bind` is among the options."""
    path = os.path.abspath(source)
    if not os.path.exists(path):
        raise UsageError(f"{flag} {text}: {path} does not exist", "create it first")
    words = options if {"bind", "rbind"} & set(options) else ["rbind", *options]
    return checked(flag, text, Mount, destination, type="bind", source=path, options=words)


READERS = {"--volume": volume, "--mount": mount, "--tmpfs": tmpfs}


def files(flags: argparse.Namespace, mounts: Iterable[Mount]) -> dict[str, str | bytes]:
    """Spec.files from --file, --add-host, --dns and --hostname."""
    result = dict(_file(text) for text in flags.file)
    hosts = [_host(text) for text in flags.add_host]
    servers = [f"nameserver {_address('--dns', text, text)}\n" for text in flags.dns]
    for flag, path, lines in (
        ("--add-host", "/etc/hosts", hosts),
        ("--dns", "/etc/resolv.conf", servers),
    ):
        if lines and path in result:
            raise UsageError(f"{flag} and --file {path}: both write {path}", "use one of them")
    if servers:
        result["/etc/resolv.conf"] = "".join(servers)
    named = flags.hostname is not None
    own_line = f"127.0.1.1\t{flags.hostname}\n" if named else ""
    taken = [*result, *(mount.destination for mount in mounts)]
    if hosts or (named and _may_write(flags, taken, "/etc/hosts")):
        result["/etc/hosts"] = LOCALHOST + own_line + "".join(hosts)
    if named and _may_write(flags, taken, "/etc/hostname"):
        result["/etc/hostname"] = f"{flags.hostname}\n"
    return result


def _file(text: str) -> tuple[str, str | bytes]:
    """`DST=TEXT`, or `DST=@PATH` for the bytes of a file of the caller."""
    destination, equals, content = text.partition("=")
    if not destination or not equals:
        raise UsageError(
            f"--file {text}: expected DST=TEXT or DST=@PATH",
            "for example: --file /etc/motd=hello",
        )
    if not content.startswith("@"):
        return destination, content
    path = content[1:]
    with Naming(f"--file {text}: {path}", "@ names a file to copy"), open(path, "rb") as source:
        return destination, source.read()


def _host(text: str) -> str:
    """`NAME:IP`: a line of /etc/hosts."""
    name, _, ip = text.partition(":")
    if not name or not ip or any(letter.isspace() for letter in name):
        raise UsageError(f"--add-host {text}: expected NAME:IP", "--add-host db:10.0.0.2")
    return f"{_address('--add-host', text, ip.removeprefix('[').removesuffix(']'))}\t{name}\n"


def _address(flag: str, text: str, ip: str) -> str:
    import ipaddress  # slow to import, and seldom needed

    try:
        return str(ipaddress.ip_address(ip))
    except ValueError:
        raise UsageError(
            f"{flag} {text}: {ip!r} is not an IP address", "for example: 10.0.0.2 or fd00::2"
        ) from None


def _may_write(flags: argparse.Namespace, taken: Iterable[str], path: str) -> bool:
    """Whether --hostname may add this file: only if the root has it or an overlay would take it,
    never through a symbolic link, nor at or below a place that other flags use (`taken`)."""
    if flags.mountns not in (None, "private"):
        return False
    if any(f"{path}/".startswith(f"{place.rstrip('/')}/") for place in taken):
        return False
    if flags.overlay:
        return True
    place = flags.rootfs or "/"
    for name in path.strip("/").split("/"):
        place = os.path.join(place, name)
        if os.path.islink(place):
            return False
    return os.path.isfile(place)
