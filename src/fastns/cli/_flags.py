"""From the flags of `fastns run` and `batch` to a Spec: one small function per kind of value.

Each function raises UsageError, which names the flag and the value. What a Spec checks by itself
(types of mounts, absolute paths, flags that contradict each other) is left to it; FLAG_OF_FIELD
leads from the field it names back to the flag.
"""

from __future__ import annotations

import os

from fastns.cli import UsageError, complain, whole
from fastns.errors import SpecError
from fastns.spec import IDMapping, Mount, Rlimit, Spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import Any, TypeVar

    from fastns.cli._options import Options
    from fastns.cli._parser import Parser

    T = TypeVar("T")

NAMESPACE_FLAGS = {
    "pid": "pid",
    "uts": "uts",
    "ipc": "ipc",
    "network": "network",
    "userns": "user",
    "cgroupns": "cgroup",
    "mountns": "mount",
    "timens": "time",
}
"""Flag without its dashes -> the namespace it sets."""

FLAG_OF_FIELD = {
    "rootfs": "--rootfs",
    "root_mode": "--chroot",
    "read_only": "--read-only",
    "overlay": "--overlay",
    "hostname": "--hostname",
    "domainname": "--domainname",
    "mounts": "-v, --mount or --tmpfs",
    "files": "--file, --add-host or --dns",
    "tmpfs_size": "--tmpfs-size",
    "env": "-e or --env-file",
    "cwd": "--workdir",
    "user": "--user",
    "uid_mappings": "--uidmap or --userns keep-id",
    "gid_mappings": "--gidmap or --userns keep-id",
    "network": "--network",
    **{f"namespaces.{space}": f"--{flag}" for flag, space in NAMESPACE_FLAGS.items()},
    "rlimits": "--ulimit",
    "init": "--init",
    "capabilities": "--cap-add",
    "no_new_privileges": "--security-opt",
    "seccomp": "--security-opt",
    "allow_setid": "--allow-setid",
    "landlock": "--landlock-read or --landlock-write",
    "memory": "--memory",
    "max_output": "--max-output",
    "on_output_limit": "--on-output-limit",
    "memory_swap": "--memory-swap",
    "pids_limit": "--pids-limit",
    "cpus": "--cpus",
    "cpu_weight": "--cpu-weight",
    "cpuset": "--cpuset-cpus",
    "cpu_time": "--cpu-time",
    "io": "--io",
    "cgroup_parent": "--cgroup-parent",
}
"""Field of a Spec, as SpecError names it -> the flags that set it."""

FLAG_OF_WORDS = {
    "; names are not looked up": "",
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
"""What an error or a hint says of a Spec -> the same on the command line."""
_MOUNT = r"Mount\('([^']*)', source='([^']*)', options=\['([^']*)'\]\)"
_MOUNTS = rf"mounts=\[({_MOUNT}(?:, {_MOUNT})*)\]"

LOCALHOST = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"

SECONDS = {"ms": 1e-3, "us": 1e-6, "h": 3600.0, "m": 60.0, "s": 1.0}

MOUNT_PATHS = {
    "src": "source",
    "source": "source",
    "dst": "destination",
    "destination": "destination",
    "target": "destination",
}
SWITCHED_ON = ("", "1", "true")
SWITCHED_OFF = ("0", "false")


def add_sandbox_flags(parser: Parser | Options) -> Any:
    """Add what `fastns run` and `fastns batch` say about a sandbox, in the order of the help.

    Returns the last group, "the process", to which a verb may add. spec_of() reads them.
    """
    group: Any
    parser.like_docker = True

    def switch(*names: str, help: str) -> None:
        group.add_argument(*names, action="store_true", help=help)

    def value(*names: str, metavar: str, help: str) -> None:
        group.add_argument(*names, metavar=metavar, help=help)

    def values(*names: str, metavar: str, help: str) -> None:
        group.add_argument(*names, metavar=metavar, action="append", default=[], help=help)

    def mount(*names: str, metavar: str, help: str) -> None:
        """One list for every kind: a later mount may lie on an earlier one."""
        reader = MOUNT_FLAGS[names[-1]]
        group.add_argument(
            *names,
            dest="mounts",
            metavar=metavar,
            action="append",
            type=lambda text: (reader, text),
            default=[],
            help=help,
        )

    group = parser.add_argument_group("the root")
    value(
        "--rootfs",
        metavar="DIR",
        help="the root file system (default: system directories of the host)",
    )
    switch("--read-only", help="a read-only root")
    switch("--overlay", help="a throw-away writable layer over the root")
    switch("--chroot", help="change the root with chroot instead of pivot_root")

    group = parser.add_argument_group("what is in it")
    mount(
        "-v",
        "--volume",
        metavar="SRC:DST[:ro,noidmap,dev]",
        help="bind a host file or directory. Started by root, it keeps its owners where the file "
        "system can (idmap: or fails); with noidmap root's files are nobody's inside",
    )
    mount("--mount", metavar="type=T,src=S,dst=D[,ro]", help="any mount; type is bind, tmpfs, ...")
    mount("--tmpfs", metavar="DST[:size=64m]", help="an empty directory in memory")
    value("--tmpfs-size", metavar="BYTES", help="of /tmp and each tmpfs without a size=")
    values("--file", metavar="DST=TEXT", help="a file with this text (DST=@PATH: a copy of PATH)")
    switch("--no-default-mounts", help="without /proc, /sys, /dev, /tmp, /run")

    group = parser.add_argument_group("its identity")
    value("--hostname", metavar="NAME", help="its host name")
    value("--domainname", metavar="NAME", help="its NIS domain name")
    values("--add-host", metavar="NAME:IP", help="a line of /etc/hosts")
    values("--dns", metavar="IP", help="a name server of /etc/resolv.conf")

    group = parser.add_argument_group("namespaces: private, host, or a path to join")
    value("--pid", metavar="MODE", help="process ids")
    value("--uts", metavar="MODE", help="host name")
    value("--ipc", metavar="MODE", help="System V IPC and message queues")
    value("--network", "--net", metavar="MODE", help="none (only lo; the default), host, or a path")
    value(
        "--userns",
        metavar="MODE",
        help="auto (the default: a range of ids for root), host, private, keep-id, or a path",
    )
    value("--cgroupns", metavar="MODE", help="the view of cgroups")
    value("--mountns", metavar="MODE", help="mounts")
    value("--timens", metavar="MODE", help="monotonic and boot clocks (default: host)")

    group = parser.add_argument_group("ids")
    values("--uidmap", metavar="C:H:N", help="map N user ids from C inside to H outside")
    values("--gidmap", metavar="C:H:N", help="map N group ids from C inside to H outside")
    value(
        "-u",
        "--user",
        metavar="USER[:GROUP]",
        help="run as these ids, or names of the root's /etc/passwd and /etc/group (default: 0:0)",
    )

    group = parser.add_argument_group("the process")
    values("-e", "--env", metavar="K=V", help="a variable (K alone: copied from here)")
    values("--env-file", metavar="F", help="a file of such lines")
    value("-w", "--workdir", metavar="DIR", help="its working directory inside")
    values(
        "--ulimit",
        metavar="NAME=SOFT[:HARD]",
        help="a resource limit in place of its default, such as nofile=64:64",
    )
    switch("--init", help="a reaper as pid 1, the command its child: what it raises ends it")
    process = group

    group = parser.add_argument_group("what it may do")
    values("--cap-add", metavar="CAP", help="a capability, such as NET_RAW (default: none; ALL)")
    values("--cap-drop", metavar="CAP", help="without one of those added")
    values(
        "--security-opt",
        metavar="OPT",
        help="no-new-privileges=false, seccomp=unconfined, seccomp=FILE (JSON as docker's)",
    )
    switch("--allow-setid", help="allow set-user-ID files even where host files can be written")
    values("--landlock-read", metavar="PATH", help="only there files are read and executed; inside")
    values("--landlock-write", metavar="PATH", help="there they are written as well (Landlock)")

    group = parser.add_argument_group("limits, of all its processes together")
    value("-m", "--memory", metavar="BYTES", help="memory, its tmpfs included, such as 64m")
    value("--memory-swap", metavar="BYTES", help="memory and swap (default: no swap; -1: any)")
    value("--pids-limit", metavar="N", help="processes and threads")
    value("--cpus", metavar="N", help="CPU time, in CPUs, such as 1.5")
    value("--cpu-time", metavar="TIME", help="CPU time in all, of all its processes, such as 2s")
    value("--cpu-weight", metavar="N", help="its share where CPUs are short: 1 to 10000")
    value("--cpuset-cpus", metavar="LIST", help="the CPUs it may use, such as 0-1,3")
    values(
        "--io",
        metavar="DEV:KEY=N",
        help="I/O a second: KEY is rbps, riops or, with cgroup version 2, wbps, wiops",
    )
    value("--cgroup-parent", metavar="PATH", help="the cgroup to make its cgroups below")
    switch("--no-require-limits", help="go on without a limit that cannot be enforced here")
    return process


def hint_for_field(field: str, verb: str) -> str | None:
    """Which flag a SpecError is about; None when it is about none."""
    flag = FLAG_OF_FIELD.get(field) or FLAG_OF_FIELD.get(field.split(".")[0])
    return f"set by {flag}; see fastns {verb} --help" if flag else None


def in_flags(text: str) -> str:
    """What fastns says of a Spec, in the words of the command line."""
    for words, flag in FLAG_OF_WORDS.items():
        text = text.replace(words, flag)
    if "mounts=[" not in text:
        return text
    import re  # only an error needs it

    return re.sub(_MOUNTS, lambda found: _volumes(found[1]), text)


def _volumes(mounts: str) -> str:
    """`Mount(...), Mount(...)` of a hint, as -v."""
    import re
    import shlex

    found = re.findall(_MOUNT, mounts)
    return " ".join(f"-v {shlex.quote(f'{src}:{dst}:{opt}')}" for dst, src, opt in found)


def complain_of(error: Exception, verb: str, hint: str | None = None) -> None:
    """Write an error of a Spec or of a start to stderr, in the words of the command line.

    `hint` goes before the error's own.
    """
    if isinstance(error, SpecError):
        complain(f"{error.field}: {in_flags(error.reason)}", hint_for_field(error.field, verb))
    elif isinstance(error, FileNotFoundError) and error.filename is None:  # of getcwd(2)
        complain("the working directory does not exist any more", "give absolute paths, or cd /")
    else:
        complain(error, hint or in_flags(getattr(error, "hint", None) or ""))


def spec_of(
    flags: argparse.Namespace, caller: Mapping[str, str], extra_env: Mapping[str, str]
) -> Spec:
    """The Spec that the flags of add_sandbox_flags() describe.

    `caller` is the environment that `-e NAME` copies from; `extra_env` lies under the flags.
    Raises UsageError for a flag's value, SpecError for what the Spec itself refuses.
    """
    modes = {space: getattr(flags, flag) for flag, space in NAMESPACE_FLAGS.items()}
    keep_id = modes["user"] == "keep-id"
    if keep_id and (flags.uidmap or flags.gidmap):
        raise UsageError(
            "--userns keep-id and --uidmap or --gidmap: each sets the whole map",
            "use one of them",
        )
    mounts = [read(text) for read, text in flags.mounts]
    contents = files(flags, mounts)
    user: str | None = flags.user
    home = None
    if user and not user.replace(":", "").isdigit():
        from fastns.cli._users import Accounts

        if flags.userns == "host" and flags.rootfs:
            raise UsageError(
                f"--user {user} with --userns host: the passwd and group files of {flags.rootfs} "
                "would choose a user of the host",
                "give numbers",
            )
        accounts = Accounts(flags, mounts, contents)
        user, home = accounts.ids(), accounts.home()
    uid_mappings = [id_mapping("--uidmap", text) for text in flags.uidmap]
    gid_mappings = [id_mapping("--gidmap", text) for text in flags.gidmap]
    if keep_id:
        uid, gid = os.getuid(), os.getgid()
        uid_mappings, gid_mappings = [IDMapping(uid, uid, 1)], [IDMapping(gid, gid, 1)]
        if user is None or ":" not in user:
            user = f"{uid if user is None else user}:{gid}"
    joined_network = modes["network"] is not None and "/" in modes["network"]
    fields = {
        "rootfs": flags.rootfs,
        "root_mode": "chroot" if flags.chroot else None,
        "hostname": flags.hostname,
        "domainname": flags.domainname,
        "cwd": flags.workdir,
        "user": user,
        "network": None if joined_network else network(modes["network"]),
        "memory": flags.memory,
        "memory_swap": -1 if flags.memory_swap == "-1" else flags.memory_swap,
        "cpuset": flags.cpuset_cpus,
        "cgroup_parent": flags.cgroup_parent,
        "tmpfs_size": flags.tmpfs_size,
        "on_output_limit": flags.on_output_limit,
        "landlock": landlock(flags.landlock_read, flags.landlock_write),
    }
    return Spec(
        **{name: value for name, value in fields.items() if value is not None},
        read_only=flags.read_only,
        overlay=flags.overlay,
        allow_setid=flags.allow_setid,
        init=flags.init,
        die_with_parent=True,
        namespaces=namespaces(modes),
        mounts=mounts,
        default_mounts=not flags.no_default_mounts,
        files=contents,
        env={**extra_env, **({"HOME": home} if home else {}), **environment(flags, caller)},
        uid_mappings=uid_mappings,
        gid_mappings=gid_mappings,
        rlimits=[rlimit(text) for text in flags.ulimit],
        capabilities=capabilities(flags.cap_add, flags.cap_drop),
        **security(flags.security_opt),
        pids_limit=_number("--pids-limit", flags.pids_limit, int),
        cpus=_number("--cpus", flags.cpus, float),
        cpu_time=None if flags.cpu_time is None else duration("--cpu-time", flags.cpu_time),
        cpu_weight=_number("--cpu-weight", flags.cpu_weight, int),
        io=io_rates(flags.io),
        require_limits=not flags.no_require_limits,
    )


class naming:
    """Turns a SpecError into a UsageError that starts with the flag and its value."""

    def __init__(self, flag: str, text: str) -> None:
        self._where = f"{flag} {text}"

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: object, _traceback: object) -> None:
        if isinstance(error, SpecError):
            raise UsageError(f"{self._where}: {error}", "--help shows its form") from None


# Namespaces and ids


def namespaces(modes: Mapping[str, str | None]) -> dict[str, str]:
    """Spec.namespaces from the namespace flags. `network` is there only when it is a path."""
    words = {"private": "new", "host": "host"}
    result = {}
    for flag, space in NAMESPACE_FLAGS.items():
        mode = modes[space]
        if mode is None:
            continue
        if "/" in mode:
            result[space] = mode
        elif space == "network":
            continue
        elif space == "user" and mode in ("auto", "keep-id"):
            if mode == "keep-id":
                result[space] = "new"
        elif mode in words:
            result[space] = words[mode]
        else:
            more = "auto, keep-id, " if space == "user" else ""
            raise UsageError(
                f"--{flag} {mode}: not a namespace mode",
                f"one of {more}private, host, or a path such as /proc/42/ns/{proc_name(space)}",
            )
    return result


def proc_name(space: str) -> str:
    """The file of a namespace below /proc/PID/ns."""
    return {"network": "net", "mount": "mnt"}.get(space, space)


def network(mode: str | None) -> str | None:
    """Spec.network from a --network word that is not a path."""
    if mode is None:
        return None
    if mode in ("none", "private"):
        return "none"
    if mode == "host":
        return "host"
    raise UsageError(
        f"--network {mode}: not a network mode",
        "one of none, host, or a path such as /proc/42/ns/net",
    )


def id_mapping(flag: str, text: str) -> IDMapping:
    """`C:H:N`: N ids from C inside to H outside."""
    numbers = [whole(part) for part in text.split(":")]
    if len(numbers) != 3 or None in numbers:
        raise UsageError(
            f"{flag} {text}: expected three numbers, inside:outside:count",
            f"for example: {flag} 0:100000:65536",
        )
    with naming(flag, text):
        return IDMapping(*(number for number in numbers if number is not None))


# Mounts


def volume(text: str) -> Mount:
    """`SRC:DST[:option,...]`: a bind of SRC."""
    parts = text.split(":")
    if len(parts) not in (2, 3) or not all(parts):
        raise UsageError(
            f"--volume {text}: expected SRC:DST or SRC:DST:ro", "for example: -v ./data:/data:ro"
        )
    options = parts[2].split(",") if len(parts) == 3 else []
    source = existing("--volume", text, parts[0])
    with naming("--volume", text):
        return Mount(parts[1], type="bind", source=source, options=with_submounts(options))


def mount(text: str) -> Mount:
    """`type=T,src=S,dst=D,...` as docker takes it; other words are mount options."""
    kind = "bind"
    paths: dict[str, str] = {}
    options = []
    for item in text.split(","):
        key, equals, value = item.partition("=")
        if key == "type":
            kind = value
        elif key in MOUNT_PATHS:
            paths[MOUNT_PATHS[key]] = value
        elif key in ("ro", "readonly"):
            options += ["ro"] if switched_on(text, item, value) else []
        elif key == "bind-propagation":
            options.append(value)
        elif key in ("tmpfs-size", "tmpfs-mode") and equals:
            options.append(f"{key.removeprefix('tmpfs-')}={value}")
        elif item:
            options.append(item)
    example = "for example: --mount type=bind,src=./data,dst=/data,ro"
    if not paths.get("destination"):
        raise UsageError(f"--mount {text}: no dst=", example)
    source = paths.get("source")
    if kind == "bind":
        if not source:
            raise UsageError(f"--mount {text}: no src=", example)
        source = existing("--mount", text, source)
        options = with_submounts(options)
    with naming("--mount", text):
        return Mount(
            paths["destination"],
            type=kind,  # type: ignore[arg-type]  # it is checked there
            source=source,
            options=options,
        )


def switched_on(text: str, item: str, value: str) -> bool:
    """The truth of `ro`, `ro=true`, `readonly=0`."""
    if value.lower() in SWITCHED_ON:
        return True
    if value.lower() in SWITCHED_OFF:
        return False
    raise UsageError(
        f"--mount {text}: {item} is neither true nor false", "write ro, or leave it out"
    )


def tmpfs(text: str) -> Mount:
    """`DST[:option,...]`: an empty directory in memory."""
    destination, _, options = text.partition(":")
    if not destination:
        raise UsageError(f"--tmpfs {text}: expected DST or DST:size=64m", "--tmpfs /scratch")
    with naming("--tmpfs", text):
        return Mount(destination, type="tmpfs", options=options.split(",") if options else [])


def with_submounts(options: list[str]) -> list[str]:
    """A bind takes along what is mounted below its source, unless `bind` says otherwise."""
    return options if {"bind", "rbind"} & set(options) else ["rbind", *options]


def existing(flag: str, text: str, source: str) -> str:
    """The absolute path of a bind's source, which has to exist."""
    path = os.path.abspath(source)
    if not os.path.exists(path):
        raise UsageError(f"{flag} {text}: {path} does not exist", "create it first")
    return path


MOUNT_FLAGS = {"--volume": volume, "--mount": mount, "--tmpfs": tmpfs}
"""What reads the value of each flag that mounts something."""


# Files


def files(flags: argparse.Namespace, mounts: Iterable[Mount]) -> dict[str, str | bytes]:
    """Spec.files from --file, --add-host, --dns and --hostname."""
    result = dict(file(text) for text in flags.file)
    hosts = [add_host(text) for text in flags.add_host]
    servers = [f"nameserver {address('--dns', text, text)}\n" for text in flags.dns]
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
    if hosts or (named and may_write(flags, taken, "/etc/hosts")):
        result["/etc/hosts"] = LOCALHOST + own_line + "".join(hosts)
    if named and may_write(flags, taken, "/etc/hostname"):
        result["/etc/hostname"] = f"{flags.hostname}\n"
    return result


def file(text: str) -> tuple[str, str | bytes]:
    """`DST=TEXT`, or `DST=@PATH` for the bytes of a file of the caller."""
    destination, equals, content = text.partition("=")
    if not destination or not equals:
        raise UsageError(
            f"--file {text}: expected DST=TEXT or DST=@PATH",
            "for example: --file /etc/motd=hello",
        )
    if not content.startswith("@"):
        return destination, content
    try:
        with open(content[1:], "rb") as source:
            return destination, source.read()
    except OSError as error:
        raise UsageError(
            f"--file {text}: {content[1:]}: {error.strerror}", "@ names a file to copy"
        ) from None


def add_host(text: str) -> str:
    """`NAME:IP`: a line of /etc/hosts."""
    name, _, ip = text.partition(":")
    if not name or not ip or any(letter.isspace() for letter in name):
        raise UsageError(f"--add-host {text}: expected NAME:IP", "--add-host db:10.0.0.2")
    return f"{address('--add-host', text, ip.removeprefix('[').removesuffix(']'))}\t{name}\n"


def address(flag: str, text: str, ip: str) -> str:
    """An IP address in its usual form."""
    import ipaddress  # slow to import, and seldom needed

    try:
        return str(ipaddress.ip_address(ip))
    except ValueError:
        raise UsageError(
            f"{flag} {text}: {ip!r} is not an IP address", "for example: 10.0.0.2 or fd00::2"
        ) from None


def may_write(flags: argparse.Namespace, taken: Iterable[str], path: str) -> bool:
    """Whether a file that nobody asked for by name may be put there.

    It may where one exists already or an overlay takes it; never through a symbolic link, nor
    over what the flags put at or above it (`taken`).
    """
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


# The process


def environment(flags: argparse.Namespace, caller: Mapping[str, str]) -> dict[str, str]:
    """The variables of the --env-file files, and over them those of -e."""
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
    """Whether the flags say something about this variable."""
    return any(item.partition("=")[0] == name for _, item in _variables(flags))


def _variables(flags: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """(where it stands, `K=V` or `K`) for each variable."""
    for path in flags.env_file:
        try:
            with open(path, encoding="utf-8", errors="surrogateescape") as lines:
                for number, line in enumerate(lines, start=1):
                    item = line.lstrip().removesuffix("\n")
                    if item and not item.startswith("#"):
                        yield f"--env-file {path}:{number}:", item
        except OSError as error:
            raise UsageError(
                f"--env-file {path}: {error.strerror}", "a file of lines NAME=VALUE"
            ) from None
    for item in flags.env:
        yield "--env", item


def rlimit(text: str) -> Rlimit:
    """`name=soft[:hard]`, the name as in docker and setrlimit(2) without RLIMIT_."""
    name, _, limits = text.partition("=")
    soft, _, hard = limits.partition(":")
    low, high = _limit(text, soft), _limit(text, hard or soft)
    with naming("--ulimit", text):
        return Rlimit(name, low, high)


def capabilities(added: list[str], dropped: list[str]) -> tuple[str, ...]:
    """Those added, without those dropped."""
    if not added and not dropped:
        return ()
    from fastns.capabilities import names

    found = []
    for flag, texts in (("--cap-add", added), ("--cap-drop", dropped)):
        full: set[str] = set()
        for text in texts:
            with naming(flag, text):
                full.update(names([text]))
        found.append(full)
    return names(found[0] - found[1])


def security(options: list[str]) -> dict[str, Any]:
    """Fields of a Spec that --security-opt sets: `no-new-privileges[=true|false]`,
    `seccomp=default|unconfined|FILE`, `systempaths=unconfined`."""
    fields: dict[str, Any] = {}
    for option in options:
        key = option.partition("=")[0].partition(":")[0]  # docker takes both
        value = option[len(key) + 1 :]
        if key == "seccomp" and value:
            fields["seccomp"] = value
        elif (key, value) == ("systempaths", "unconfined"):
            fields |= {"masked_paths": (), "readonly_paths": ()}
        elif key == "no-new-privileges" and value in (*SWITCHED_ON, *SWITCHED_OFF):
            fields["no_new_privileges"] = value in SWITCHED_ON
        else:
            raise UsageError(
                f"--security-opt {option}: not known",
                "no-new-privileges=false, seccomp=unconfined, seccomp=FILE, systempaths=unconfined",
            )
    return fields


def landlock(read: list[str], write: list[str]) -> dict[str, list[str]] | None:
    """Spec.landlock; None: no path is given."""
    return {"read": read, "write": write} if read or write else None


def _number(flag: str, text: str | None, kind: Callable[[str], T]) -> T | None:
    if text is None:
        return None
    try:
        return kind(text)
    except ValueError:
        what = "a whole number" if kind is int else "a number such as 1.5"
        raise UsageError(f"{flag} {text}: not a number", f"{what} expected") from None


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


def duration(flag: str, text: str) -> float:
    """Seconds of `2s`, `500ms`, `1m30s`, `1.5h` or a plain number of seconds; more than zero."""
    seconds = _seconds(text)
    if not seconds > 0:
        raise UsageError(
            f"{flag} {text}: not a time above zero", "for example: 2s, 500ms, 1m30s or 2.5"
        )
    return seconds


def _seconds(text: str) -> float:
    """The time that a word stands for; 0 if it is none."""
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
