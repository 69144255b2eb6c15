"""`fastns run` without sandboxes: flags become a Spec, exit codes, the status, messages."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import plans
import pytest

import fastns
from fastns import IDMapping, Mount, Rlimit, SpawnError, Spec, SpecError, errors
from fastns._command import cause_of
from fastns.cli import VERBS, _docker, main
from fastns.cli._errors import complain_of
from fastns.cli._flags import GROUPS
from fastns.cli._parser import parser_of
from fastns.cli.run import handles_sigint
from fastns.sandbox import Usage

ME = f"{os.getuid()}:{os.getgid()}"
UNLIMITED = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
USAGE = Usage(0.25, 0.5, 4096, True)
LOCALHOST = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"


class FakeSandbox:
    """A sandbox that has ended with `returncode`. If that is None, it ends when it is killed."""

    def __init__(self, returncode: int | None) -> None:
        self.pid = os.getpid()
        self.pidfd, self._other_end = os.pipe()
        self.usage = USAGE
        self.cause: str | None = None
        self.limits = ("memory", "cpus")
        self.wall_time = 0.75
        self.killed = False
        self.returncode: int | None = None
        self._end = returncode
        if returncode is not None:
            self._hang_up()

    def _hang_up(self) -> None:
        if self._other_end >= 0:
            os.close(self._other_end)
            self._other_end = -1

    def close(self) -> None:
        self._hang_up()
        os.close(self.pidfd)

    @property
    def exit_code(self) -> int | None:
        code = self.returncode
        return code if code is None or code >= 0 else 128 - code

    def kill(self) -> None:
        if self._end is None:
            self.killed = True
            self._end = -signal.SIGKILL
            self._hang_up()

    def wait(self, timeout: float | None = None) -> int:
        assert self._end is not None, "would wait for ever"
        self.returncode = self._end
        self.cause = cause_of(self._end, killed=self.killed)
        return self._end


class Layer:
    """Replaces fastns.spawn: records calls, and returns or raises what the test has set."""

    def __init__(self) -> None:
        self.args: list[str] = []
        self.spec = Spec()
        self.calls = 0
        self.returncode: int | None = 0
        self.error: Exception | None = None
        self.signals: list[int] = []
        self.sandbox: FakeSandbox | None = None

    def spawn(self, args: list[str], *, spec: Spec) -> FakeSandbox:
        self.calls += 1
        self.args, self.spec = args, spec
        if self.error is not None:
            raise self.error
        for number in self.signals:
            os.kill(os.getpid(), number)
        self.sandbox = FakeSandbox(self.returncode)
        return self.sandbox


@pytest.fixture
def layer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Layer]:
    result = Layer()
    monkeypatch.setattr(fastns, "spawn", result.spawn)
    monkeypatch.setenv("FROM_CALLER", "copied")
    monkeypatch.delenv("NOT_SET", raising=False)
    yield result
    if result.sandbox is not None:
        result.sandbox.close()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with data/, motd, vars, and rootfs/ with two files in /etc."""
    (tmp_path / "data").mkdir()
    (tmp_path / "motd").write_bytes(b"hi\xff\n")
    (tmp_path / "vars").write_text(
        '# comment\n\nA=1\n  B=two words\nC="quoted"\nFROM_CALLER\nNOT_SET\nD=\n'
    )
    (tmp_path / "rootfs/etc").mkdir(parents=True)
    (tmp_path / "rootfs/etc/hostname").write_text("before\n")
    (tmp_path / "rootfs/etc/hosts").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/etc").symlink_to("../rootfs/etc")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["ls"], ["ls"]),
        (["ls", "-l"], ["ls", "-l"]),
        (["ls", "--help"], ["ls", "--help"]),
        (["--", "ls", "-l"], ["ls", "-l"]),
        (["--hostname", "x", "--", "ls", "-l"], ["ls", "-l"]),
        (["--hostname=x", "ls", "--hostname=y"], ["ls", "--hostname=y"]),
        (["-v", "data:/b:ro", "cmd", "--foo"], ["cmd", "--foo"]),
        (["-vdata:/b:ro", "cmd", "-v"], ["cmd", "-v"]),
        (["-i", "sh", "-c", "echo -- a"], ["sh", "-c", "echo -- a"]),
        (["-iv", "data:/b", "sh"], ["sh"]),
        (["sh", "--", "-x"], ["sh", "--", "-x"]),
        (["--", "--", "x"], ["--", "x"]),
        (["--rm", "--init", "-e", "A=--", "env"], ["env"]),
        (["--", "-odd-name"], ["-odd-name"]),
        (["-e", "A=1", "-u", "1:2", "-w", "/x", "sh", "-e", "-u"], ["sh", "-e", "-u"]),
    ],
)
def test_options_end_at_the_command(
    layer: Layer, place: Path, words: list[str], command: list[str]
) -> None:
    assert main(["run", *words]) == 0
    assert layer.args == command


SPEC_CASES: list[tuple[list[str], dict[str, Any]]] = [
    ([], {}),
    (["--rootfs", "rootfs"], {"rootfs": "rootfs"}),
    (["--read-only", "--rootfs", "rootfs"], {"read_only": True, "rootfs": "rootfs"}),
    (["--overlay", "--rootfs", "rootfs"], {"overlay": True, "rootfs": "rootfs"}),
    (["--chroot", "--rootfs", "rootfs"], {"root_mode": "chroot", "rootfs": "rootfs"}),
    (["--no-default-mounts"], {"default_mounts": False}),
    (["--domainname", "d"], {"domainname": "d"}),
    (["-v", "/HERE/data:/x"], {"mounts": [Mount("/x", source="/HERE/data", options=["rbind"])]}),
    (["-v", "data:/x:ro"], {"mounts": [Mount("/x", source="/HERE/data", options=["rbind", "ro"])]}),
    (
        ["-v", "./motd:/x:rw"],
        {"mounts": [Mount("/x", source="/HERE/motd", options=["rbind", "rw"])]},
    ),
    (
        ["--volume", "data:/x:ro,nosuid"],
        {"mounts": [Mount("/x", source="/HERE/data", options=["rbind", "ro", "nosuid"])]},
    ),
    (
        ["--mount", "src=data,dst=/x"],
        {"mounts": [Mount("/x", source="/HERE/data", options=["rbind"])]},
    ),
    (
        ["--mount", "type=bind,source=data,target=/x,readonly"],
        {"mounts": [Mount("/x", source="/HERE/data", options=["rbind", "ro"])]},
    ),
    (
        ["--mount", "type=bind,source=data,destination=/x,ro=false,nodev"],
        {"mounts": [Mount("/x", source="/HERE/data", options=["rbind", "nodev"])]},
    ),
    (
        ["--mount", "src=data,dst=/x,bind-propagation=slave"],
        {"mounts": [Mount("/x", source="/HERE/data", options=["rbind", "slave"])]},
    ),
    (
        ["--mount", "type=tmpfs,dst=/x,tmpfs-size=1m,mode=700"],
        {"mounts": [Mount("/x", type="tmpfs", options=["size=1m", "mode=700"])]},
    ),
    (
        ["--mount", "src=data,dst=/x,bind,ro"],
        {"mounts": [Mount("/x", source="/HERE/data", options=["bind", "ro"])]},
    ),
    (["--mount", "type=proc,dst=/p"], {"mounts": [Mount("/p", type="proc")]}),
    (["--tmpfs", "/x"], {"mounts": [Mount("/x", type="tmpfs")]}),
    (
        ["--tmpfs", "/x:size=64m,mode=755"],
        {"mounts": [Mount("/x", type="tmpfs", options=["size=64m", "mode=755"])]},
    ),
    (
        ["--tmpfs", "/x", "-v", "data:/x/y", "--mount", "type=tmpfs,dst=/x/y/z"],
        {
            "mounts": [
                Mount("/x", type="tmpfs"),
                Mount("/x/y", source="/HERE/data", options=["rbind"]),
                Mount("/x/y/z", type="tmpfs"),
            ]
        },
    ),
    (["--file", "/etc/motd=a=b"], {"files": {"/etc/motd": "a=b"}}),
    (["--file", "/a="], {"files": {"/a": ""}}),
    (["--file", "/a=@motd"], {"files": {"/a": b"hi\xff\n"}}),
    (["--add-host", "db:10.0.0.2"], {"files": {"/etc/hosts": f"{LOCALHOST}10.0.0.2\tdb\n"}}),
    (
        ["--add-host", "a:fd00::1", "--add-host", "b:[FD00::2]"],
        {"files": {"/etc/hosts": f"{LOCALHOST}fd00::1\ta\nfd00::2\tb\n"}},
    ),
    (["--dns", "1.1.1.1"], {"files": {"/etc/resolv.conf": "nameserver 1.1.1.1\n"}}),
    (
        ["--hostname", "box", "--rootfs", "rootfs"],
        {
            "hostname": "box",
            "rootfs": "rootfs",
            "files": {
                "/etc/hosts": f"{LOCALHOST}127.0.1.1\tbox\n",
                "/etc/hostname": "box\n",
            },
        },
    ),
    (["--hostname", "box", "--rootfs", "empty"], {"hostname": "box", "rootfs": "empty"}),
    (["--hostname", "box", "--rootfs", "linked"], {"hostname": "box", "rootfs": "linked"}),
    (
        ["--hostname", "box", "--rootfs", "empty", "--overlay"],
        {
            "hostname": "box",
            "rootfs": "empty",
            "overlay": True,
            "files": {
                "/etc/hosts": f"{LOCALHOST}127.0.1.1\tbox\n",
                "/etc/hostname": "box\n",
            },
        },
    ),
    (
        ["--hostname", "box", "--rootfs", "empty", "--add-host", "db:10.0.0.2"],
        {
            "hostname": "box",
            "rootfs": "empty",
            "files": {"/etc/hosts": f"{LOCALHOST}127.0.1.1\tbox\n10.0.0.2\tdb\n"},
        },
    ),
    (
        ["--hostname", "box", "--rootfs", "rootfs", "--file", "/etc/hosts=mine"],
        {
            "hostname": "box",
            "rootfs": "rootfs",
            "files": {"/etc/hosts": "mine", "/etc/hostname": "box\n"},
        },
    ),
    (
        ["--hostname", "box", "--rootfs", "rootfs", "-v", "motd:/etc/hosts"],
        {
            "hostname": "box",
            "rootfs": "rootfs",
            "mounts": [Mount("/etc/hosts", source="/HERE/motd", options=["rbind"])],
            "files": {"/etc/hostname": "box\n"},
        },
    ),
    (
        ["--hostname", "box", "--rootfs", "rootfs", "--tmpfs", "/etc"],
        {"hostname": "box", "rootfs": "rootfs", "mounts": [Mount("/etc", type="tmpfs")]},
    ),
    (["--hostname", "box", "--mountns", "host"], {"hostname": "box", "mount": "host"}),
    (["--pid", "host"], {"pid": "host"}),
    (["--pid", "private"], {"pid": "new"}),
    (["--pid", "/proc/42/ns/pid"], {"pid": "/proc/42/ns/pid"}),
    (["--uts", "host"], {"uts": "host"}),
    (["--ipc", "host"], {"ipc": "host"}),
    (["--cgroupns", "host"], {"cgroup": "host"}),
    (["--mountns", "host"], {"mount": "host"}),
    (["--timens", "private"], {"time": "new"}),
    (["--network", "none"], {"network": "none"}),
    (["--network", "private"], {"network": "none"}),
    (["--network", "host"], {"network": "host"}),
    (["--network", "/proc/42/ns/net"], {"joined network": "/proc/42/ns/net"}),
    (["--userns", "auto"], {}),
    (["--userns", "host"], {"user namespace": "host"}),
    (["--userns", "private"], {"user namespace": "new"}),
    (
        ["--userns", "keep-id"],
        {
            "user namespace": "new",
            "user": ME,
            "uid_mappings": [IDMapping(os.getuid(), os.getuid(), 1)],
            "gid_mappings": [IDMapping(os.getgid(), os.getgid(), 1)],
        },
    ),
    (
        ["--userns", "keep-id", "-u", str(os.getuid())],  # the caller's gid is the only one
        {
            "user namespace": "new",
            "user": ME,
            "uid_mappings": [IDMapping(os.getuid(), os.getuid(), 1)],
            "gid_mappings": [IDMapping(os.getgid(), os.getgid(), 1)],
        },
    ),
    (
        ["--uidmap", "0:100000:65536", "--gidmap", "0:200000:10"],
        {
            "uid_mappings": [IDMapping(0, 100000, 65536)],
            "gid_mappings": [IDMapping(0, 200000, 10)],
        },
    ),
    (["-u", "7"], {"user": "7"}),
    (["--user", "7:8"], {"user": "7:8"}),
    (["-e", "A=1", "--env", "B=x=y"], {"env": {"A": "1", "B": "x=y"}}),
    (["-e", "FROM_CALLER", "-e", "NOT_SET"], {"env": {"FROM_CALLER": "copied"}}),
    (["-e", "A="], {"env": {"A": ""}}),
    (
        ["--env-file", "vars", "-e", "A=over"],
        {
            "env": {
                "A": "over",
                "B": "two words",
                "C": '"quoted"',
                "FROM_CALLER": "copied",
                "D": "",
            }
        },
    ),
    (["-w", "/work"], {"cwd": "/work"}),
    (["--cap-add", "net_raw"], {"capabilities": ("CAP_NET_RAW",)}),
    (
        ["--cap-add", "NET_RAW", "--cap-add", "CHOWN", "--cap-drop", "CAP_NET_RAW"],
        {"capabilities": ("CAP_CHOWN",)},
    ),
    (["--cap-drop", "ALL"], {}),
    (["--security-opt", "no-new-privileges=false"], {"no_new_privileges": False}),
    (["--security-opt", "no-new-privileges"], {}),
    (["--security-opt", "seccomp=unconfined"], {"seccomp": "unconfined"}),
    (["--allow-setid"], {"allow_setid": True}),
    (["--security-opt", "seccomp:/a:b=c.json"], {"seccomp": "/a:b=c.json"}),
    (
        ["--landlock-read", "/usr", "--landlock-read", "/", "--landlock-write", "/tmp"],
        {"landlock": {"read": ("/usr", "/"), "write": ("/tmp",)}},
    ),
    (["--landlock-write", "/tmp"], {"landlock": {"read": (), "write": ("/tmp",)}}),
    (["--tmpfs-size", "1g"], {"tmpfs_size": 1 << 30}),
    (["-m", "64m"], {"memory": "64m"}),
    (["--memory", "64m", "--memory-swap", "-1"], {"memory": "64m", "memory_swap": -1}),
    (["--pids-limit", "9"], {"pids_limit": 9}),
    (["--cpu-time", "1m30s"], {"cpu_time": 90.0}),
    (["--cpus", "1.5", "--cpu-weight", "7"], {"cpus": 1.5, "cpu_weight": 7}),
    (["--cpuset-cpus", "0-1,3"], {"cpuset": "0-1,3"}),
    (
        ["--io", "8:0:rbps=5", "--io", "8:0:wiops=6"],
        {"io": {"8:0": {"rbps": 5, "wiops": 6}}},
    ),
    (
        ["-m", "1g", "--cgroup-parent", "/a", "--no-require-limits"],
        {"memory": "1g", "cgroup_parent": "/a", "require_limits": False},
    ),
    (["--ulimit", "nofile=64"], {"rlimits": [Rlimit("RLIMIT_NOFILE", 64, 64)]}),
    (
        ["--ulimit", "nofile=64:128", "--ulimit", "cpu=3"],
        {"rlimits": [Rlimit("RLIMIT_NOFILE", 64, 128), Rlimit("RLIMIT_CPU", 3, 3)]},
    ),
    (["--init"], {"init": True}),
    (["-i", "--rm"], {}),
]


@pytest.mark.parametrize(("words", "fields"), SPEC_CASES, ids=lambda case: " ".join(case) or "-")
def test_flags_become_a_spec(
    layer: Layer, place: Path, words: list[str], fields: dict[str, Any]
) -> None:
    here = str(place)
    assert main(["run", *(word.replace("/HERE", here) for word in words), "true"]) == 0
    assert layer.spec == expected_spec(fields, here)


def test_every_flag_has_a_row() -> None:
    """A flag that spec_of() does not read would be accepted, and ignored."""
    tried = {word.partition("=")[0] for words, _ in SPEC_CASES for word in words}
    for _, names, *_ in (flag for flags in GROUPS.values() for flag in flags):
        assert tried & {*names.split()}, names


def expected_spec(fields: dict[str, Any], here: str) -> Spec:
    """The Spec of a row of the table, in which each kind of namespace has a key."""
    fields = dict(fields)
    names = {
        **{name: name for name in ("pid", "uts", "ipc", "cgroup", "mount", "time")},
        "user namespace": "user",
        "joined network": "network",
    }
    namespaces = {space: fields.pop(name) for name, space in names.items() if name in fields}
    mounts = [
        Mount(
            mount.destination,
            type=mount.type,
            source=None if mount.source is None else str(mount.source).replace("/HERE", here),
            options=mount.options,
        )
        for mount in fields.pop("mounts", [])
    ]
    return Spec(namespaces=namespaces, mounts=mounts, die_with_parent=True, **fields)


def test_hostname_covers_existing_files_of_the_host(layer: Layer) -> None:
    assert main(["run", "--hostname", "box", "true"]) == 0
    names = {name for name in ("/etc/hosts", "/etc/hostname") if is_plain_file(name)}
    assert set(layer.spec.files) == names


def is_plain_file(path: str) -> bool:
    return os.path.isfile(path) and not os.path.islink(path) and not os.path.islink("/etc")


def test_unlimited_is_the_largest_limit(layer: Layer) -> None:
    assert main(["run", "--ulimit", "core=unlimited", "true"]) == 0
    (limit,) = layer.spec.rlimits
    assert limit == Rlimit("RLIMIT_CORE", *UNLIMITED)


BAD_CASES: list[tuple[list[str], str]] = [
    ([], "no command"),
    (["--"], "no command"),
    (["--hostnam", "x", "true"], "--hostnam"),
    (["--host=x", "true"], "--host"),
    (["-z", "true"], "-z"),
    (["--rootfs"], "--rootfs"),
    (["--init=yes", "true"], "--init"),
    (["-t", "true"], "not available yet"),
    (["-it", "true"], "not available yet"),
    (["-v", "data", "true"], "--volume data"),
    (["-v", "a:b:c:d", "true"], "--volume a:b:c:d"),
    (["-v", ":/x", "true"], "--volume :/x"),
    (["-v", "missing:/x", "true"], "/missing does not exist"),
    (["-v", "data:relative", "true"], "relative"),
    (["-v", "data:/x:sideways", "true"], "sideways"),
    (["--mount", "type=bind,src=data", "true"], "no dst="),
    (["--mount", "type=bind,dst=/x", "true"], "no src="),
    (["--mount", "src=missing,dst=/x", "true"], "/missing does not exist"),
    (["--mount", "src=data,dst=/x,ro=maybe", "true"], "ro=maybe"),
    (["--mount", "type=magic,dst=/x", "true"], "magic"),
    (["--tmpfs", ":size=1m", "true"], "--tmpfs :size=1m"),
    (["--file", "/x", "true"], "--file /x"),
    (["--file", "=x", "true"], "--file =x"),
    (["--file", "/x=@missing", "true"], "missing: No such file"),
    (["--add-host", "db", "true"], "--add-host db"),
    (["--add-host", "db:ten", "true"], "'ten'"),
    (["--add-host", "a:1.1.1.1", "--file", "/etc/hosts=", "true"], "/etc/hosts"),
    (["--dns", "dot", "true"], "--dns dot"),
    (["--dns", "1.1.1.1", "--file", "/etc/resolv.conf=", "true"], "/etc/resolv.conf"),
    (["--pid", "sideways", "true"], "--pid sideways"),
    (["--pid", "keep-id", "true"], "--pid keep-id"),
    (["--ipc", "proc/42/ns/ipc", "true"], "proc/42/ns/ipc"),
    (["--userns", "sideways", "true"], "--userns sideways"),
    (["--network", "bridge", "true"], "--network bridge"),
    (["--network", "", "true"], "--network"),
    (["--userns", "keep-id", "--uidmap", "0:1:1", "true"], "keep-id"),
    (["--userns", "keep-id", "-u", "4294967294", "true"], "4294967294"),
    (["--uidmap", "0:1:1", "true"], "gid_mappings"),
    (["--uidmap", "0:1", "true"], "--uidmap 0:1"),
    (["--gidmap", "0:x:1", "true"], "--gidmap 0:x:1"),
    (["-e", "=x", "true"], "--env =x"),
    (["--env-file", "missing", "true"], "--env-file missing: No such file"),
    (["-w", "relative", "true"], "relative"),
    (["-u", "", "true"], "user: ''"),
    (["-u", "no-such-user", "true"], "there is no user no-such-user"),
    (["--cap-add", "FLY", "true"], "--cap-add FLY"),
    (["--security-opt", "magic", "true"], "--security-opt magic"),
    (["-m", "lots", "true"], "lots"),
    (["--pids-limit", "few", "true"], "--pids-limit few"),
    (["--pids-limit", "1_0", "true"], "--pids-limit 1_0"),
    (["--cpus", "\u0661", "true"], "--cpus \u0661"),
    (["--cpus", "x", "true"], "--cpus x"),
    (["--cpus", "", "true"], "--cpus : not a number"),
    (["--pid", "", "true"], "--pid : not a namespace mode"),
    (["--timeout", "", "true"], "--timeout : expected a time"),
    (["--hostname", "", "true"], "hostname: ''"),
    (["--io", "8:0", "true"], "--io 8:0"),
    (["--ulimit", "nofile", "true"], "--ulimit nofile"),
    (["--ulimit", "nofile=many", "true"], "--ulimit nofile=many"),
    (["--ulimit", "magic=1", "true"], "'magic': expected one of cpu"),
    (["--ulimit", "nofile=2:1", "true"], "2"),
    (["--timeout", "soon", "true"], "--timeout soon"),
    (["--timeout", "0", "true"], "--timeout 0"),
    (["--timeout", "-1", "true"], "--timeout -1"),
    (["--timeout", "1x", "true"], "--timeout 1x"),
    (["--hostname", "x", "--uts", "host", "true"], "hostname"),
    (["--overlay", "true"], "overlay"),
    (["--status-fd", "x", "true"], "--status-fd x"),
    (["--status-fd", "987", "true"], "--status-fd 987"),
]


@pytest.mark.parametrize(("words", "told"), BAD_CASES, ids=lambda case: str(case))
def test_a_wrong_flag_is_125_and_two_lines(
    layer: Layer,
    place: Path,
    capfd: pytest.CaptureFixture[str],
    words: list[str],
    told: str,
) -> None:
    assert main(["run", *words]) == 125
    assert layer.calls == 0
    out, err = capfd.readouterr()
    first, second = err.splitlines()
    assert out == ""
    assert first.startswith("fastns: ")
    assert told in first
    assert second.startswith("hint: ")
    assert len(second) > len("hint: ")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["run", "--hostnam", "x", "true"], "did you mean --hostname?"),
        (["run", "-rm", "true"], "did you mean --rm?"),
        (["run", "--mem", "5m", "true"], "did you mean --memory or --memory-swap?"),
        (["run", "--time", "5", "true"], "did you mean --timens or --timeout?"),
        (["compile", "--mem", "5m"], "see fastns compile --help"),
        (["run", "--port", "5", "true"], "see fastns run --help"),
        (["doctor", "-p", "5"], "see fastns doctor --help"),
        (["rnu"], "did you mean run?"),
        (["doktor"], "did you mean doctor?"),
        (["--verison"], "did you mean --version?"),
        (["xyzzy"], f"one of {', '.join(VERBS)}; see fastns --help"),
        ([], f"one of {', '.join(VERBS)}; see fastns --help"),
        ([""], f"one of {', '.join(VERBS)}; see fastns --help"),
    ],
)
def test_the_hint_names_the_closest_word(
    capsys: pytest.CaptureFixture[str], words: list[str], hint: str
) -> None:
    assert main(words) == 125
    assert capsys.readouterr().err.splitlines()[1] == f"hint: {hint}"


def test_an_unprivileged_callers_error_names_the_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SpecError) as caught:
        plans.decided(Spec(namespaces={"user": "host"}), plans.USER)
    complain_of(caught.value, "run")
    assert capsys.readouterr().err.endswith(" with --userns host: leave it out\n")


def test_dockers_words_get_a_hint(
    layer: Layer, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    known = {name: kind for kind in ("run", "batch") for name in options_of(kind)}
    assert not known.keys() & _docker.OPTIONS.keys()
    for option, hint in _docker.OPTIONS.items():
        for words in ([option, "x", "true"], [f"{option}=x", "true"]):
            assert main(["run", *words]) == 125
            first, second = capfd.readouterr().err.splitlines()
            assert (first, second) == (f"fastns: unknown option: {option}", f"hint: {hint}")
            for named in re.findall(r"(?<![-\w])--?[a-z][a-z-]*", hint):
                assert named in known or named in DOCKERS, hint
    for verb, hint in _docker.VERBS.items():
        assert verb not in VERBS
        assert main([verb]) == 125
        assert capfd.readouterr().err.splitlines()[1] == f"hint: {hint}"
    for words in (["-itd"], ["-dit"], ["-d"]):
        assert main(["run", *words, "true"]) == 125
        assert "unknown option: -d" in capfd.readouterr().err
    assert layer.calls == 0


DOCKERS = ("--restart",)


def options_of(verb: str) -> list[str]:
    return [*parser_of(verb)._option_string_actions]


def test_net_is_network(layer: Layer) -> None:
    assert main(["run", "--net", "host", "true"]) == 0
    assert layer.spec.namespace("network") == "host"


@pytest.mark.parametrize(
    ("name", "is_image"),
    [
        ("ubuntu:22.04", True),
        ("ubuntu", True),
        ("library/alpine:3", True),
        ("ghcr.io/owner/name", True),
        ("localhost:5000/x:1", True),
        (f"debian@sha256:{'0' * 64}", True),
        ("python", False),
        ("nosuch", False),
        ("bin/nosuch", False),
        ("./build.sh/x", False),
        ("/ubuntu:22.04", False),
    ],
)
def test_the_hint_of_an_image_name(
    layer: Layer, capfd: pytest.CaptureFixture[str], name: str, is_image: bool
) -> None:
    layer.error = SpawnError("exec", errno.ENOENT, path=name)
    assert main(["run", name, "bash"]) == 127
    first, second = capfd.readouterr().err.splitlines()
    assert first.startswith(f"fastns: exec {name}: ")
    assert (f"{name} looks like an image" in second) is is_image
    layer.error = SpawnError("exec", errno.EACCES, path=name)
    assert main(["run", name, "bash"]) == 126
    assert "image" not in capfd.readouterr().err


@pytest.mark.parametrize("words", [[""], ["batch", ""]])
def test_an_empty_word_is_quoted(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert main(words) == 125
    assert "''" in capsys.readouterr().err.splitlines()[0]


@pytest.mark.parametrize(
    "words", ["run -v ./x:/mnt -- ls", "run --rootfs x ls", "batch --rootfs x -"]
)
def test_a_working_directory_that_is_gone(tmp_path: Path, words: str) -> None:
    line = f'cd "$1"; rmdir "$1"; {sys.executable} -m fastns {words}'
    done = subprocess.run(["bash", "-c", line, "-", tmp_path], capture_output=True, text=True)
    assert done.returncode == 125
    assert done.stderr.splitlines() == [
        "fastns: the working directory does not exist any more",
        "hint: give absolute paths, or cd /",
    ]


@pytest.mark.parametrize(
    "hint",
    [row[3] for host_root in (False, True) for row in errors.known_hints(host_root=host_root)],
    ids=lambda hint: hint[:40],
)
def test_a_hint_names_flags(layer: Layer, capsys: pytest.CaptureFixture[str], hint: str) -> None:
    layer.error = SpawnError("mount", errno.ENOENT, hint=hint)
    assert main(["run", "true"]) == 125
    told = capsys.readouterr().err.splitlines()[1]
    assert re.search(r"=(True|False|')|_mappings|namespaces[=[]|give a rootfs", told) is None


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (["--overlay"], "needs --rootfs"),
        (["--hostname", "x", "--uts", "host"], "needs --uts private"),
        (["--init", "--pid", "host"], "needs --pid private"),
        (["--uidmap", "0:0:1"], "--uidmap and --gidmap are needed together"),
    ],
)
def test_an_error_of_a_spec_names_flags(
    capsys: pytest.CaptureFixture[str], words: list[str], flag: str
) -> None:
    assert main(["run", *words, "true"]) == 125
    assert flag in capsys.readouterr().err.splitlines()[0]


@pytest.mark.parametrize(("returncode", "exit_code"), [(0, 0), (3, 3), (125, 125), (-9, 137)])
def test_the_exit_code_is_the_commands(
    layer: Layer, returncode: int, exit_code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    layer.returncode = returncode
    assert main(["run", "true"]) == exit_code
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("stage", "code", "exit_code"),
    [
        ("exec", errno.ENOENT, 127),
        ("exec", errno.ENOTDIR, 127),
        ("exec", errno.EACCES, 126),
        ("exec", errno.ENOEXEC, 126),
        ("exec", errno.E2BIG, 126),
        ("mount", errno.ENOENT, 125),
        ("clone", errno.ENOSPC, 125),
        ("chdir", errno.EACCES, 125),
    ],
)
def test_the_stage_of_a_failure_decides_the_exit_code(
    layer: Layer,
    capsys: pytest.CaptureFixture[str],
    stage: str,
    code: int,
    exit_code: int,
) -> None:
    layer.error = SpawnError(stage, code, path="/here", hint="a way out")
    assert main(["run", "true"]) == exit_code
    assert capsys.readouterr().err.splitlines() == [f"fastns: {layer.error}", "hint: a way out"]


@pytest.mark.parametrize("time", ["10ms", "0.01", ".01s", "0m0.01s"])
def test_a_timeout_kills_the_sandbox(layer: Layer, time: str) -> None:
    layer.returncode = None
    assert main(["run", "--timeout", time, "sleep"]) == 124
    assert layer.sandbox is not None
    assert layer.sandbox.killed


def test_a_command_that_ends_in_time_is_not_killed(layer: Layer) -> None:
    layer.returncode = 4
    assert main(["run", "--timeout", "1h", "true"]) == 4
    assert layer.sandbox is not None
    assert not layer.sandbox.killed


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_ends_fastns_ends_the_sandbox(layer: Layer, number: int) -> None:
    layer.returncode = None
    layer.signals = [number]
    before = signal.signal(number, signal.SIG_DFL)  # nohup(1) ignores it
    try:
        assert main(["run", "sleep"]) == 128 + number
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)
    assert layer.sandbox is not None
    assert layer.sandbox.killed


def test_an_ignored_signal_stays_ignored(layer: Layer) -> None:
    layer.returncode = 0
    layer.signals = [signal.SIGHUP]
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert main(["run", "true"]) == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("words", "command_catches", "exit_code"),
    [([], False, 130), ([], True, 124), (["--init"], True, 130)],
)
def test_interrupt_ends_only_commands_that_do_not_handle_it(
    layer: Layer,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    command_catches: bool,
    exit_code: int,
) -> None:
    monkeypatch.setattr("fastns.cli.run.handles_sigint", lambda pid: command_catches)
    layer.returncode = None
    layer.signals = [signal.SIGINT]
    assert main(["run", "--timeout", "50ms", *words, "sh"]) == exit_code


def test_handles_sigint_reads_the_disposition() -> None:
    before = signal.getsignal(signal.SIGINT)
    try:
        found = {}
        for handler in (signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler):
            signal.signal(signal.SIGINT, handler)
            found[handler] = handles_sigint(os.getpid())
    finally:
        signal.signal(signal.SIGINT, before)
    assert list(found.values()) == [False, True, True]
    assert not handles_sigint(2**31 - 1)


def status_of(words: list[str]) -> tuple[int, dict[str, Any]]:
    """The exit code of `fastns run --status-fd N WORDS` and its status."""
    read_end, write_end = os.pipe()
    try:
        code = main(["run", "--status-fd", str(write_end), *words])
    finally:
        os.close(write_end)
    with open(read_end) as lines:
        (line,) = lines
    return code, json.loads(line)


def test_status_of_an_exit(layer: Layer) -> None:
    layer.returncode = 3
    assert status_of(["true"]) == (
        3,
        {
            "exit_code": 3,
            "signal": None,
            "cause": "exited",
            "usage": USAGE.as_dict(),
            "wall_time": 0.75,
            "limits": ["memory", "cpus"],
            "truncated": False,
        },
    )


def test_status_of_a_signal(layer: Layer) -> None:
    layer.returncode = -signal.SIGSEGV
    code, status = status_of(["true"])
    assert (code, status["exit_code"], status["signal"]) == (139, 139, "SIGSEGV")
    assert status["cause"] == "signaled"


def test_status_of_a_timeout(layer: Layer) -> None:
    layer.returncode = None
    code, status = status_of(["--timeout", "1ms", "true"])
    assert (code, status["exit_code"], status["cause"]) == (124, 124, "timeout")
    assert status["signal"] == "SIGKILL"


def test_status_of_a_kill(layer: Layer) -> None:
    layer.returncode = None
    layer.signals = [signal.SIGTERM]
    code, status = status_of(["true"])
    assert (code, status["exit_code"], status["cause"]) == (143, 143, "killed")
    assert status["signal"] == "SIGTERM"


def test_status_of_a_failed_step(layer: Layer) -> None:
    layer.error = SpawnError("mount", errno.EPERM, op_index=4, path="/proc", hint="h")
    assert status_of(["true"]) == (
        125,
        {
            "exit_code": 125,
            "signal": None,
            "cause": "failed",
            "usage": None,
            "wall_time": None,
            "limits": None,
            "truncated": False,
            "stage": "mount",
            "errno": errno.EPERM,
            "path": "/proc",
            "message": str(layer.error),
        },
    )


@pytest.mark.parametrize(
    "words", [["-v", "nowhere", "true"], ["-w", "relative", "true"], ["--nonsense", "true"]]
)
def test_status_of_a_wrong_flag(layer: Layer, words: list[str]) -> None:
    code, status = status_of(words)
    assert (code, status["exit_code"], status["cause"]) == (125, 125, "failed")
    assert (status["stage"], status["errno"], status["path"]) == (None, None, None)
    assert status["message"]


def test_status_fd_has_to_be_writable(
    layer: Layer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        assert main(["run", "--status-fd", str(fd), "true"]) == 125
    finally:
        os.close(fd)
    assert "not open for writing" in capsys.readouterr().err
    assert layer.calls == 0


@pytest.mark.parametrize("stream", [0, 1, 2])
def test_status_fd_must_not_be_the_commands_stdio(
    layer: Layer, capfd: pytest.CaptureFixture[str], tmp_path: Path, stream: int
) -> None:
    """The fd is refused if it is the stream itself, a copy, or the same file opened again."""
    saved = os.dup(stream)
    own = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    os.dup2(own, stream)
    others = [own, os.open(tmp_path / "file", os.O_WRONLY)]
    apart = os.open(tmp_path / "other", os.O_WRONLY | os.O_CREAT)
    try:
        codes = [main(["run", "--status-fd", str(fd), "true"]) for fd in (stream, *others)]
        fine = main(["run", "--status-fd", str(apart), "true"])
    finally:
        os.dup2(saved, stream)
        for fd in (saved, *others, apart):
            os.close(fd)
    assert (codes, fine) == ([125] * 3, layer.returncode)
    assert layer.calls == 1
    assert (tmp_path / "other").read_text()
    told = (tmp_path / "file").read_text() + capfd.readouterr().err
    name = ("stdin", "stdout", "stderr")[stream]
    assert told.count(f"this is the command's {name},") == 3


def test_the_error_names_the_status_fd_by_its_number(
    layer: Layer, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """stdin and stderr may be the same file, for example a terminal."""
    saved = [os.dup(stream) for stream in (0, 2)]
    own = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    try:
        for stream in (0, 2):
            os.dup2(own, stream)
        assert main(["run", "--status-fd", "2", "true"]) == 125
    finally:
        for fd, stream in zip(saved, (0, 2), strict=True):
            os.dup2(fd, stream)
            os.close(fd)
        os.close(own)
    assert layer.calls == 0
    told = (tmp_path / "file").read_text() + capfd.readouterr().err
    assert "--status-fd 2: this is the command's stderr" in told
    assert "3>status.json" in told


def test_a_closed_status_pipe_does_not_change_the_exit_code(
    layer: Layer, capsys: pytest.CaptureFixture[str]
) -> None:
    layer.returncode = 3
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        assert main(["run", "--status-fd", str(write_end), "true"]) == 3
    finally:
        os.close(write_end)
    assert capsys.readouterr().err == f"fastns: --status-fd {write_end}: Broken pipe\n"


def test_dry_run_prints_the_ops_and_starts_nothing(
    layer: Layer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []

    def compile_(spec: Spec) -> SimpleNamespace:
        seen.append(spec)
        return SimpleNamespace(describe=lambda: ["hostname box", "chdir /"])

    monkeypatch.setattr(fastns, "compile", compile_)
    assert main(["run", "--dry-run", "--rootfs", "/", "--init", "true"]) == 0
    assert capsys.readouterr().out == "hostname box\nchdir /\n"
    assert seen == [Spec(rootfs="/", init=True, die_with_parent=True)]
    assert layer.calls == 0


def test_dry_run_refuses_what_a_run_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--dry-run", "-w", "relative", "true"]) == 125
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[1] == "hint: set by --workdir; see fastns run --help"


@pytest.mark.parametrize(
    ("words", "terminal", "term"),
    [([], True, "vt100"), ([], False, None), (["-e", "TERM=mine"], True, "mine")],
)
def test_term_is_copied_when_stdin_is_a_terminal(
    layer: Layer,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    terminal: bool,
    term: str | None,
) -> None:
    monkeypatch.setenv("TERM", "vt100")
    monkeypatch.setattr(os, "isatty", lambda fd: terminal and fd == 0)
    assert main(["run", *words, "true"]) == 0
    assert layer.spec.env.get("TERM") == term


@pytest.mark.parametrize(
    ("term", "entries", "inside"),
    [
        (
            "xterm-kitty",
            ["usr/share/terminfo/x/xterm-kitty", "etc/terminfo/x/xterm"],
            "xterm-kitty",
        ),
        (
            "xterm-kitty",
            ["lib/terminfo/78/xterm", "etc/terminfo/x/xterm-256color"],
            "xterm-256color",
        ),
        ("xterm-kitty", ["lib/terminfo/78/xterm"], "xterm"),
        ("xterm-kitty", [], "xterm-kitty"),
        ("dumb", ["lib/terminfo/x/xterm"], "dumb"),
        ("../x", ["lib/terminfo/x/xterm"], "xterm"),
    ],
)
def test_term_is_replaced_by_one_that_the_root_knows(
    layer: Layer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    term: str,
    entries: list[str],
    inside: str,
) -> None:
    for entry in entries:
        (tmp_path / entry).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / entry).touch()
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr(os, "isatty", lambda fd: fd == 0)
    assert main(["run", "--rootfs", str(tmp_path), "true"]) == 0
    assert layer.spec.env["TERM"] == inside


def test_no_term_to_copy(layer: Layer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TERM", raising=False)
    monkeypatch.setattr(os, "isatty", lambda fd: True)
    assert main(["run", "true"]) == 0
    assert "TERM" not in layer.spec.env


def test_help_of_the_program_names_each_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for verb in ("run", "rootfs", "doctor"):
        assert f"\n  {verb} " in out


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_has_its_own_help(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    assert main([verb, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: fastns {verb}")


def test_a_reader_that_closes_the_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m fastns doctor | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1] == "141"
    assert done.stderr == ""


def test_help_of_run_names_each_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--help"]) == 0
    out = capsys.readouterr().out
    flags = (
        "--rootfs --read-only --overlay --chroot -v --volume --mount --tmpfs --file "
        "--no-default-mounts --hostname --add-host --dns --pid --uts --ipc --network --userns "
        "--cgroupns --mountns --timens --uidmap --gidmap -u --user -e --env --env-file -w "
        "--workdir --ulimit --init -i -t --timeout --status-fd --dry-run --rm"
    )
    assert [flag for flag in flags.split() if flag not in out] == []


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fastns {fastns.__version__}\n"


def test_run_imports_little(layer: Layer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A spawn by `run` imports no module that only other verbs need."""
    code = (
        "import sys, fastns, fastns.cli\n"
        "class Stop(Exception): pass\n"
        "def spawn(*a, **k): raise Stop\n"
        "fastns.spawn = spawn\n"
        "try: fastns.cli.main(['run', '-e', 'A=1', 'true'])\n"
        "except Stop: pass\n"
        "print(*sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    unwanted = {
        "rich",
        "fastns.rootfs",
        "fastns.cli.rootfs",
        "elftools",
        "json",
        "ipaddress",
        "ctypes",
        "difflib",
        "fastns.doctor",
        "importlib.metadata",
    }
    assert unwanted & set(done.stdout.split()) == set()
