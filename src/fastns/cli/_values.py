"""Reads the values of flags: times, numbers, namespaces, ids, variables, permissions, mounts.

Each function raises UsageError, which names the flag and the value. Imported only if one of these
flags is set.
"""

from __future__ import annotations

import os

from fastns.cli import Naming, UsageError, whole
from fastns.errors import SpecError
from fastns.spec import IDMapping, Mount, Rlimit

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import Any, TypeVar

    T = TypeVar("T")

MODES = {
    "network": {"none": "none", "host": "host", "private": "none"},
    "user": {"auto": "", "keep-id": "new", "private": "new", "host": "host"},
}
"""Namespaces with modes of their own: mode -> its word in a Spec, or "" for the default."""
LOCALHOST = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
MOUNT_PATHS = {
    **dict.fromkeys(("src", "source"), "source"),
    **dict.fromkeys(("dst", "destination", "target"), "destination"),
}
SECONDS = {"ms": 1e-3, "us": 1e-6, "h": 3600.0, "m": 60.0, "s": 1.0}
SWITCHED_ON = ("", "1", "true")
SWITCHED_OFF = ("0", "false")


def fields(
    flags: argparse.Namespace, spaces: Mapping[str, str], caller: Mapping[str, str]
) -> dict[str, Any]:
    """The Spec fields set by the flags that this module reads.

    `spaces` maps a flag to its namespace; `caller` is the environment that `-e NAME` copies from.
    """
    modes = {space: getattr(flags, flag) for flag, space in spaces.items()}
    found = {
        **namespaces(modes, spaces),
        "uid_mappings": [id_mapping("--uidmap", text) for text in flags.uidmap],
        "gid_mappings": [id_mapping("--gidmap", text) for text in flags.gidmap],
        "env": environment(flags, caller),
        "rlimits": [rlimit(text) for text in flags.ulimit],
        "capabilities": capabilities(flags.cap_add, flags.cap_drop),
        **security(flags.security_opt),
        "memory_swap": -1 if flags.memory_swap == "-1" else flags.memory_swap,
        "pids_limit": number("--pids-limit", flags.pids_limit, int),
        "cpus": number("--cpus", flags.cpus, float),
        "cpu_time": duration("--cpu-time", flags.cpu_time),
        "cpu_weight": number("--cpu-weight", flags.cpu_weight, int),
        "io": io_rates(flags.io),
    }
    mounts = found["mounts"] = [READERS[name](text) for name, text in flags.mounts]
    found["files"] = files(flags, mounts)
    if flags.landlock_read or flags.landlock_write:
        found["landlock"] = {"read": flags.landlock_read, "write": flags.landlock_write}
    return found


def checked(flag: str, text: str, kind: Callable[..., T], *values: object, **named: object) -> T:
    """Returns kind(*values, **named). Its SpecError becomes a UsageError that names the flag."""
    try:
        return kind(*values, **named)
    except SpecError as error:
        raise UsageError(f"{flag} {text}: {error}", "--help shows its form") from None


def duration(flag: str, text: str | None) -> float | None:
    """The seconds of `2s`, `500ms`, `1m30s`, `1.5h` or a plain number; always above zero."""
    if text is None:
        return None
    seconds = _seconds(text)
    if not seconds > 0:
        raise UsageError(
            f"{flag} {text}: expected a time above zero", "for example: 2s, 500ms, 1m30s or 2.5"
        )
    return seconds


def _seconds(text: str) -> float:
    """The seconds that a text stands for, or 0 if it is not a time."""
    total, rest = 0.0, text
    while rest:
        number = rest[: len(rest) - len(rest.lstrip("0123456789."))]
        rest = rest[len(number) :]
        if not number.strip(".") or number.count(".") > 1:
            return 0.0
        if number == text:
            return float(number)
        unit = next((unit for unit in SECONDS if rest.startswith(unit)), None)
        if unit is None:
            return 0.0
        total += float(number) * SECONDS[unit]
        rest = rest[len(unit) :]
    return total


def number(flag: str, text: str | None, kind: Callable[[str], T]) -> T | None:
    if text is None:
        return None
    try:
        return kind(text if text.isascii() and "_" not in text else "")
    except ValueError:
        what = "a whole number" if kind is int else "a number such as 1.5"
        raise UsageError(f"{flag} {text}: not a number", f"expected {what}") from None


def whole_number(flag: str, text: str | None, largest: int, example: str) -> int | None:
    """A whole number from 1 to `largest`."""
    if text is None:
        return None
    found = whole(text)
    if found is None or not 1 <= found <= largest:
        raise UsageError(f"{flag} {text}: not a number from 1 to {largest}", example)
    return found


# Namespaces and ids


def namespaces(modes: Mapping[str, str | None], flags: Mapping[str, str]) -> dict[str, Any]:
    """The fields `namespaces` and `network` of a Spec, from the mode of each namespace."""
    found: dict[str, str] = {}
    for flag, space in flags.items():
        mode = modes[space]
        words = MODES.get(space, {"private": "new", "host": "host"})
        if mode is None:
            continue
        if "/" not in mode and mode not in words:
            file = {"mount": "mnt", "network": "net"}.get(space, space)
            raise UsageError(
                f"--{flag} {mode}: not a namespace mode",
                f"one of {', '.join(words)}, or a path such as /proc/42/ns/{file}",
            )
        found[space] = words.get(mode, mode)
    word = found.get("network", "/")
    network = {} if "/" in word else {"network": found.pop("network")}
    return {"namespaces": {space: mode for space, mode in found.items() if mode}, **network}


def id_mapping(flag: str, text: str) -> IDMapping:
    """`C:H:N`: N ids from C inside to H outside."""
    numbers = [whole(part) for part in text.split(":")]
    if len(numbers) != 3 or None in numbers:
        raise UsageError(
            f"{flag} {text}: expected three numbers, inside:outside:count",
            f"for example: {flag} 0:100000:65536",
        )
    return checked(flag, text, IDMapping, *numbers)


# The process


def environment(flags: argparse.Namespace, caller: Mapping[str, str]) -> dict[str, str]:
    """The variables of the --env-file files, overridden by those of -e."""
    result = {}
    for flag, item in _variables(flags):
        name, equals, value = item.partition("=")
        if not name or any(letter.isspace() for letter in name):
            raise UsageError(f"{flag} {item}: no name before =", "expected NAME=VALUE or NAME")
        if equals:
            result[name] = value
        elif name in caller:
            result[name] = caller[name]
    return result


def environment_has(flags: argparse.Namespace, name: str) -> bool:
    """Whether the flags mention this variable."""
    return any(item.partition("=")[0] == name for _, item in _variables(flags))


def _variables(flags: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Yields the flag and the item, `K=V` or `K`, of each variable."""
    for path in flags.env_file:
        named = Naming(f"--env-file {path}", "a file of lines NAME=VALUE")
        with named, open(path, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.readlines()
        for number, line in enumerate(lines, start=1):
            item = line.lstrip().removesuffix("\n")
            if item and not item.startswith("#"):
                yield f"--env-file {path}:{number}:", item
    for item in flags.env:
        yield "--env", item


def rlimit(text: str) -> Rlimit:
    """`name=soft[:hard]`. Names are docker's, which are those of setrlimit(2) without RLIMIT_."""
    name, _, limits = text.partition("=")
    soft, _, hard = limits.partition(":")
    return checked("--ulimit", text, Rlimit, name, _limit(text, soft), _limit(text, hard or soft))


def _limit(text: str, word: str) -> int:
    if word in ("unlimited", "-1"):
        import resource

        return resource.RLIM_INFINITY
    number = whole(word)
    if number is None:
        raise UsageError(
            f"--ulimit {text}: expected NAME=SOFT or NAME=SOFT:HARD",
            "for example: --ulimit nofile=64:64, or core=unlimited",
        )
    return number


# Permissions and limits


def capabilities(added: list[str], dropped: list[str]) -> tuple[str, ...]:
    if not added and not dropped:
        return ()
    from fastns.capabilities import names

    add = {name for text in added for name in checked("--cap-add", text, names, [text])}
    drop = {name for text in dropped for name in checked("--cap-drop", text, names, [text])}
    return names(add - drop)


def security(options: list[str]) -> dict[str, Any]:
    """The fields of a Spec that `no-new-privileges[=true|false]`, `seccomp=default|unconfined|FILE`
    and `systempaths=unconfined` set."""
    fields: dict[str, Any] = {}
    for option in options:
        key = option.partition("=")[0].partition(":")[0]  # docker accepts both
        value = option[len(key) + 1 :]
        if key == "seccomp" and value:
            fields["seccomp"] = value
        elif (key, value) == ("systempaths", "unconfined"):
            fields |= {"masked_paths": (), "readonly_paths": ()}
        elif key == "no-new-privileges" and value in (*SWITCHED_ON, *SWITCHED_OFF):
            fields["no_new_privileges"] = value in SWITCHED_ON
        else:
            raise UsageError(
                f"--security-opt {option}: unknown",
                "no-new-privileges=false, seccomp=unconfined, seccomp=FILE, systempaths=unconfined",
            )
    return fields


def io_rates(texts: list[str]) -> dict[str, dict[str, int]]:
    """`/dev/sda:rbps=1048576`, one rate each; the device is a path or major:minor."""
    found: dict[str, dict[str, int]] = {}
    for text in texts:
        device, _, rate = text.rpartition(":")
        key, _, word = rate.partition("=")
        number = whole(word)
        if not device or number is None:
            raise UsageError(
                f"--io {text}: expected DEVICE:KEY=NUMBER", "--io /dev/sda:rbps=1048576"
            )
        found.setdefault(device, {})[key] = number
    return found


# Mounts and files


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
    """A bind. It includes mounts below its source, unless `bind` is among the options."""
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
    """Whether --hostname may write this file: not in the host's mount namespace or a joined one,
    and not at or below a path that other flags use (`taken`). Without --overlay, the root must have
    the file, and its path must not contain a symbolic link."""
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
