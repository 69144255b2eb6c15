"""The ways of starting that are tested with faults.

Each runs the probe. For each sandbox it returns the probe's output and what the result claims.
"""

from __future__ import annotations

import errno
import functools
import gc
import os
import signal
from collections.abc import Callable
from importlib import import_module
from types import FunctionType
from typing import Any, NamedTuple

import fastns
from fastns import Container, IDMapping, Mount, Rlimit, Spec, Template, _core
from fastns._compile import userns

PROBE = "/probe"


class Setting(NamedTuple):
    """The environment of a start: the root with the probe, a directory to bind, whether the caller
    is a user, its cgroup, the first id of a range, and the timeout of a run in seconds."""

    root: str
    volume: str
    user: bool
    cgroup: str
    first_id: int
    timeout: float | None


class Start:
    """One start. Faults are injected into start(), not into prepare() and close()."""

    timed = True  # whether it has a time limit

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def fields(self) -> dict[str, Any]:
        return {
            "rootfs": self.setting.root,
            "hostname": "inside",
            "domainname": "of.it",
            "mounts": [
                Mount("/mnt", source=self.setting.volume, options=["ro"]),
                Mount("/run/more/deep", type="tmpfs", options=["size=1m"]),
            ],
            "files": {"/etc/hosts": "127.0.0.1 inside\n"},
            "rlimits": [Rlimit("RLIMIT_NOFILE", 200, 300), Rlimit("RLIMIT_CORE", 0, 0)],
            "umask": 0o27,
            "env": {"OWN": "yes"},
            "cwd": "/tmp",
        }

    def prepare(self) -> None:
        self.plan = fastns.compile(Spec(**self.fields()))

    def start(self) -> list[Any]:
        done = fastns.run(
            [PROBE], spec=self.plan, capture_output=True, timeout=self.setting.timeout
        )
        return [of_run(done)]

    def close(self) -> None:
        self.plan.close()


def of_run(done: Any) -> Any:
    """What the result of a run claims, with its output; or its error."""
    if isinstance(done, BaseException):
        return done
    claims = {
        name: getattr(done, name)
        for name in ("method", "id_map", "mount_namespace", "limits", "cause", "truncated")
    }
    for name in ("memory_peak", "pids_peak", "cpu_time"):
        value = getattr(done.usage, name)
        claims[name] = value is None or value > 0  # None without a cgroup of its own
    return {"claims": claims, "code": done.returncode, "out": done.stdout, "err": done.stderr}


class Direct(Start):
    pass


class Plain(Start):
    """All defaults: the shortest path."""

    def fields(self) -> dict[str, Any]:
        return {"rootfs": self.setting.root}

    def start(self) -> list[Any]:
        return [of_run(fastns.run([PROBE], spec=self.plan, capture_output=True))]

    timed = False


class Cold(Start):
    """The first start of a process, with empty caches and including compile()."""

    def prepare(self) -> None:
        if not self.setting.user:
            limit = userns.inotify_limit() or b""
            os.close(_core.user_namespace(userns.range_of_root(), limit))
        for known in gc.get_objects():
            cached = isinstance(known, FunctionType) and hasattr(known, "cache_clear")
            cached = cached or isinstance(known, functools._lru_cache_wrapper)
            if cached and known.__module__.startswith("fastns"):
                known.cache_clear()

    def start(self) -> list[Any]:
        super().prepare()
        return super().start()

    def close(self) -> None:
        if hasattr(self, "plan"):
            self.plan.close()


class Init(Start):
    def fields(self) -> dict[str, Any]:
        return super().fields() | {"init": True}


class Capabilities(Start):
    def fields(self) -> dict[str, Any]:
        return super().fields() | {"capabilities": ["CAP_NET_RAW", "CAP_SYS_ADMIN"]}


class Limits(Start):
    def fields(self) -> dict[str, Any]:
        return super().fields() | {
            "memory": "64m",
            "pids_limit": 20,
            "cpus": 1.5,
            "cgroup_parent": self.setting.cgroup,
            # cpu_time needs version 2, where the user has no cgroup.
            **({} if self.setting.user else {"cpu_time": 30}),
        }


class Overlay(Start):
    def fields(self) -> dict[str, Any]:
        return super().fields() | {
            "overlay": True,
            "files": {"/etc/hosts": "x", "/tmp/made": "y"},
            "landlock": {"read": ["/"], "write": ["/tmp"]},
            "additional_gids": [] if self.setting.user else [7, 9],
            "user": "0:0" if self.setting.user else "5:6",
            "die_with_parent": True,
        }


class Ids(Start):
    """Id maps, which a process outside has to write."""

    def fields(self) -> dict[str, Any]:
        maps = (IDMapping(0, self.setting.first_id, 1000),)
        return super().fields() | {
            "uid_mappings": maps,
            "gid_mappings": maps,
            "user": "3:4",
            "additional_gids": [8],
        }


class Chroot(Start):
    """A chroot, and a time namespace."""

    def fields(self) -> dict[str, Any]:
        return super().fields() | {
            "root_mode": "chroot",
            "namespaces": {"time": "new", "user": "new"},
            "no_new_privileges": True,
            "read_only": True,
        }


class Host(Start):
    """Without a rootfs."""

    def fields(self) -> dict[str, Any]:
        return {"mounts": [Mount("/tmp/in", source=self.setting.root)]}

    def start(self) -> list[Any]:
        done = fastns.run(
            ["/tmp/in" + PROBE],
            spec=self.plan,
            capture_output=True,
            timeout=self.setting.timeout,
        )
        return [of_run(done)]


class Spawn(Start):
    timed = False

    def start(self) -> list[Any]:
        return [of_spawn(fastns.spawn, self.plan)]


def way_of(name: str) -> type[Start]:
    return WAYS[name] if name in WAYS else BAD[name]


def of_spawn(spawn: Callable[..., Any], plan: Any = None) -> Any:
    options = {} if plan is None else {"spec": plan}
    with spawn(
        [PROBE], stdin=fastns.DEVNULL, stdout=fastns.PIPE, stderr=fastns.PIPE, **options
    ) as sandbox:
        out, err = sandbox.communicate()
        claims = {name: getattr(sandbox, name) for name in ("method", "id_map")}
        return {"claims": claims, "code": sandbox.returncode, "out": out, "err": err}


class Batch(Start):
    def start(self) -> list[Any]:
        results = fastns.run_batch(
            [[PROBE]] * 3, spec=self.plan, concurrency=2, timeout=self.setting.timeout
        )
        return [of_run(result) for result in results]


class _OfTemplate(Start):
    ready: int | None = 0
    reuse = False
    template: Template | None = None

    def prepare(self) -> None:
        self.template = Template(Spec(**self.fields()), ready=self.ready, reuse=self.reuse)
        self.template.__enter__()

    def start(self) -> list[Any]:
        assert self.template is not None
        done = self.template.run([PROBE], capture_output=True, timeout=self.setting.timeout)
        return [of_run(done)]

    def close(self) -> None:
        if self.template is not None:
            self.template.close()


class TemplateStart(_OfTemplate):
    """The start of the server, and one run."""

    timed = False
    ready = 2

    def prepare(self) -> None:
        pass

    def start(self) -> list[Any]:
        super().prepare()
        return super().start()


class TemplateRun(_OfTemplate):
    pass


class TemplateReady(_OfTemplate):
    """Runs in ready sandboxes while the server makes the next ones."""

    ready = 2

    def start(self) -> list[Any]:
        return [*super().start(), *super().start(), *super().start()]


class TemplateNetworks(_OfTemplate):
    """Two runs in one network namespace, which serves again."""

    def fields(self) -> dict[str, Any]:
        return super().fields() | {"read_only": True}

    def start(self) -> list[Any]:
        return [*super().start(), *super().start()]


class TemplateRooms(_OfTemplate):
    """Two runs in one room, which is made ahead, and one in another, which a batch has made."""

    ready = 1
    reuse = True

    def fields(self) -> dict[str, Any]:
        return super().fields() | {
            "overlay": True,
            "mounts": [Mount("/more", type="tmpfs", options=["size=1m"])],
            "files": {},
            "rlimits": [Rlimit("RLIMIT_CORE", 0, 0)],
        }

    def start(self) -> list[Any]:
        assert self.template is not None
        (other,) = self.template.run_batch([[PROBE]], concurrency=1, timeout=self.setting.timeout)
        return [*super().start(), *super().start(), of_run(other)]


class TemplateSpawn(_OfTemplate):
    timed = False

    def start(self) -> list[Any]:
        assert self.template is not None
        return [of_spawn(self.template.spawn)]


class TemplateBatch(_OfTemplate):
    def start(self) -> list[Any]:
        assert self.template is not None
        results = self.template.run_batch(
            [[PROBE]] * 3, concurrency=2, timeout=self.setting.timeout
        )
        return [of_run(result) for result in results]


class TemplateLimits(_OfTemplate):
    def fields(self) -> dict[str, Any]:
        return super().fields() | {
            "memory": "64m",
            "pids_limit": 20,
            "cgroup_parent": self.setting.cgroup,
        }


class TemplateCapabilities(_OfTemplate):
    def fields(self) -> dict[str, Any]:
        return super().fields() | {"capabilities": ["CAP_NET_RAW"], "overlay": True}


class ContainerRun(Start):
    """A command in a container that is there, with files in and out."""

    container: Container | None = None

    def prepare(self) -> None:
        self.container = Container(Spec(**self.fields()))
        import_module("fastns._files")

    def start(self) -> list[Any]:
        assert self.container is not None
        options: Any = {"capture_output": True, "timeout": self.setting.timeout}
        files = {"/tmp/in/file": b"in"}
        done = self.container.run([PROBE], files=files, outputs=[*files, "/missing"], **options)
        found = of_run(done)
        if not isinstance(done, BaseException):
            found["claims"]["files"] = repr(sorted(done.files.items()))
        return [found]

    def close(self) -> None:
        if self.container is not None:
            self.container.close()


class ContainerStart(ContainerRun):
    """The start of a container, one command, and the end of both."""

    timed = False

    def prepare(self) -> None:
        pass

    def start(self) -> list[Any]:
        with Container(Spec(**self.fields())) as container:
            return [of_run(container.run([PROBE], capture_output=True))]


WAYS: dict[str, type[Start]] = {
    "plain": Plain,
    "direct": Direct,
    "cold": Cold,
    "init": Init,
    "capabilities": Capabilities,
    "limits": Limits,
    "overlay": Overlay,
    "ids": Ids,
    "chroot": Chroot,
    "host": Host,
    "spawn": Spawn,
    "batch": Batch,
    "template-start": TemplateStart,
    "template-run": TemplateRun,
    "template-ready": TemplateReady,
    "template-networks": TemplateNetworks,
    "template-rooms": TemplateRooms,
    "template-spawn": TemplateSpawn,
    "template-batch": TemplateBatch,
    "template-limits": TemplateLimits,
    "template-capabilities": TemplateCapabilities,
    "container-run": ContainerRun,
    "container-start": ContainerStart,
}


# ---- controls: broken starts that the campaign has to find ----


class Bad(Plain):
    """A start that handles a failing call wrongly."""

    kind: str  # the kind of error that the campaign must report

    def start(self) -> list[Any]:
        try:
            return super().start()
        except fastns.SpawnError as error:
            return self.go_wrong(error)

    def go_wrong(self, error: fastns.SpawnError) -> list[Any]:
        raise NotImplementedError


class Weaker(Bad):
    kind = "posture"

    def go_wrong(self, error: fastns.SpawnError) -> list[Any]:
        plan = fastns.compile(Spec(**self.fields(), network="host"))
        return [of_run(fastns.run([PROBE], spec=plan, capture_output=True))]


class Unfiltered(Bad):
    kind = "posture"

    def go_wrong(self, error: fastns.SpawnError) -> list[Any]:
        plan = fastns.compile(Spec(**self.fields(), seccomp="unconfined"))
        return [of_run(fastns.run([PROBE], spec=plan, capture_output=True))]


class Nothing(Bad):
    kind = "posture"

    def go_wrong(self, error: fastns.SpawnError) -> list[Any]:
        done = fastns.run([PROBE, "--exit", "0"], spec=self.plan, capture_output=True)
        return [of_run(done)]


class Inherits(Bad):
    kind = "posture"

    def go_wrong(self, error: fastns.SpawnError) -> list[Any]:
        with open("/etc/passwd") as file:
            sandbox = fastns.spawn(
                [PROBE], spec=self.plan, stdout=fastns.PIPE, pass_fds=[file.fileno()]
            )
            out, _ = sandbox.communicate()
            done = of_run(fastns.run([PROBE], spec=self.plan, capture_output=True))
            return [done | {"out": out}]


class LeavesFd(Bad):
    kind = "left"

    def go_wrong(self, error: fastns.SpawnError) -> list[Any]:
        os.dup(0)
        raise error


class LeavesProcess(Bad):
    kind = "left"

    def go_wrong(self, error: fastns.SpawnError) -> list[Any]:
        if os.fork() == 0:
            signal.pause()
        raise error


class LeavesMask(Bad):
    kind = "left"

    def go_wrong(self, error: fastns.SpawnError) -> list[Any]:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        raise error


class LeavesCgroup(Bad):
    kind = "left"

    def go_wrong(self, error: fastns.SpawnError) -> list[Any]:
        os.mkdir(f"/sys/fs/cgroup/pids{self.setting.cgroup}/left")
        raise error


class Hangs(Bad):
    kind = "hang"

    def go_wrong(self, error: fastns.SpawnError) -> list[Any]:
        while True:
            signal.pause()


class Dies(Bad):
    kind = "died"

    def go_wrong(self, error: fastns.SpawnError) -> list[Any]:
        os.kill(os.getpid(), signal.SIGKILL)
        raise error


class Untyped(Bad):
    kind = "untyped"

    def go_wrong(self, error: fastns.SpawnError) -> list[Any]:
        raise OSError(error.errno, "no type")


class OtherErrno(Bad):
    kind = "errno"

    def go_wrong(self, error: fastns.SpawnError) -> list[Any]:
        raise fastns.SpawnError(error.stage, errno.ECANCELED)


BAD: dict[str, type[Bad]] = {f"bad-{way.__name__}": way for way in Bad.__subclasses__()}
