"""Types of the binding; _core.pyx and its parts have the docstrings."""

from collections.abc import Callable, Sequence
from typing import Any, BinaryIO, Final, TypeAlias, final

from fastns._command import Completed, Used
from fastns._compile.ops import Op
from fastns._policy.cgroup_plan import CgroupPlan
from fastns.errors import SpawnError
from fastns.results import CompletedSandbox
from fastns.spec import Spec

STAGES: Final[tuple[str, ...]]
OPS: Final[dict[str, int]]
COUNTS: Final[tuple[str, ...]]
DETAILS: Final[dict[str, int]]
HOW_CREATE: Final[int]
HOW_NO_SYMLINKS: Final[int]
HOW_RECURSIVE: Final[int]
HOW_SLAVE: Final[int]
HOW_UNBINDABLE: Final[int]
HOW_KEEP: Final[int]
HOW_IDMAP: Final[int]
HOW_OPEN: Final[int]
HOW_OWNED: Final[int]
HOW_SEALED: Final[int]
HOW_OPTIONAL: Final[int]
HOW_IF_THERE: Final[int]
HOW_AHEAD: Final[int]
HOW_HALF: Final[int]
HOW_RAISE: Final[int]
MAX_SOURCES: Final[int]
PIPE_STDIN: Final[int]
PIPE_STDOUT: Final[int]
PIPE_STDERR: Final[int]
PIPE_JOINED: Final[int]

_Ids: TypeAlias = tuple[int, int, int]  # first uid, first gid, how many
_Stdio: TypeAlias = tuple[int, int, int]
_Fds: TypeAlias = tuple[int, ...]
_Texts: TypeAlias = tuple[bytes, ...]
_Binds: TypeAlias = tuple[tuple[str, str, bool, bool, str], ...]
_Result: TypeAlias = tuple[int, Used, float]  # returncode, usage, wall time
_Extra: TypeAlias = tuple[tuple[int, int] | None, int, int]
_Item: TypeAlias = tuple[
    _Texts, _Texts, _Texts, bytes, _Stdio, int, bytes, int | None, int, _Extra | None
]
_Times: TypeAlias = tuple[float, float, float, float]
_Outcome: TypeAlias = tuple[
    _Result, bytes | None, bytes | None, tuple[int, int], bool, bool, bool, _Times
]

@final
class CgroupPool:
    owner: Final[int]
    def __new__(
        cls,
        hierarchies: tuple[tuple[int, bool], ...],
        settings: tuple[tuple[int, str, str], ...],
        counters: tuple[tuple[str, int, str, str, int, bool, str | None], ...],
        memory: tuple[int, str, str, str] | None,
        cpu_time: int,
    ) -> CgroupPool: ...
    def remove(self, patience_ms: int) -> bool: ...

@final
class Plan:
    ops: Final[tuple[Op, ...]]
    environ: Final[_Texts]
    search_path: Final[_Texts]
    cwd: Final[bytes]
    id_map: Final[str]
    method: Final[str]
    hop: Final[bool]
    namespaces: Final[tuple[str, ...]]
    mount_namespace: Final[str]
    filtered: Final[bool]
    max_output: Final[int]
    capped: Final[bool]
    cgroups: Final[CgroupPlan | None]
    sandbox: Final[Plan | None]
    rooms: Final[bool]
    container: Final[bool]
    limits: Final[tuple[str, ...]]
    ids: Final[_Ids | None]
    inotify: Final[bytes]
    view: Final[tuple[str, ...] | None]
    pipe_owner: Final[tuple[int, int] | None]
    binds: Final[_Binds]
    spec: Final[Spec | None]
    last_ids: Final[tuple[int, int] | None]
    def __new__(cls, **parts: Any) -> Plan: ...  # only _compile.made() calls it
    def close(self) -> None: ...
    def can_idmap(self, path: bytes, recursive: bool) -> int: ...
    def describe(self) -> list[str]: ...

@final
class Process:
    @property
    def reaped(self) -> bool: ...
    @property
    def pid(self) -> int: ...
    @property
    def pidfd(self) -> int: ...
    def wait(self, timeout_ns: int | None = None) -> bool: ...
    def reap(self) -> _Result | None: ...
    def kill(self, signal: int) -> int: ...
    def kill_all(self) -> int: ...

@final
class Server:
    plan: Final[Plan]
    def __new__(cls, plan: Plan, null: int, ready: int = 0) -> Server: ...
    @property
    def running(self) -> bool: ...
    @property
    def pid(self) -> int: ...
    def alive(self) -> bool: ...
    def usable(self) -> bool: ...
    def stats(self) -> tuple[int, ...]: ...
    def stop(self) -> None: ...

@final
class Fd:
    def fileno(self) -> int: ...
    def close(self) -> None: ...
    def file(self, how: str) -> BinaryIO: ...
    def give(self, name: object, flags: int) -> int: ...
    def __enter__(self) -> Fd: ...
    def __exit__(self, *exc_info: object) -> None: ...

def open_pipe(owner: tuple[int, int] | None = None) -> tuple[Fd, Fd]: ...
def open_null() -> Fd: ...

@final
class Pipes:
    def __new__(
        cls, process: Process, stdin: int, stdout: int, stderr: int, input: bytes, limit: int = 0
    ) -> Pipes: ...
    @property
    def dropped(self) -> tuple[int, int]: ...
    @property
    def over(self) -> bool: ...
    def run(self, timeout_ns: int | None = None) -> bool: ...
    def finish(self) -> None: ...
    def output(self, which: int) -> bytes: ...

def spawn(
    plan: Plan,
    server: Server | None,
    argv: _Texts,
    environ: _Texts,
    directories: _Texts,
    cwd: bytes,
    stdio: _Stdio,
    keep: _Fds,
    extra: _Extra | None = None,
) -> Process: ...
def run_plain(
    plan: Plan, server: Server | None, args: object, pipes: int, timeout_ns: int | None
) -> CompletedSandbox | _Outcome | SpawnError | None: ...
def set_completed_class(cls: type[Completed]) -> None: ...
def run(plan: Plan, server: Server | None, item: _Item) -> _Outcome | SpawnError: ...
def spawn_batch(
    plan: Plan, server: Server | None, items: Sequence[_Item], concurrency: int
) -> list[Process | SpawnError]: ...
def run_batch(
    plan: Plan,
    server: Server | None,
    items: Sequence[_Item],
    concurrency: int,
    progress: Callable[[int], object] | None = None,
    each: Callable[[int, _Outcome | SpawnError], object] | None = None,
) -> list[_Outcome | SpawnError]: ...
def user_namespace(ids: _Ids, inotify: bytes) -> int: ...
def capabilities() -> int: ...
def is_dumpable() -> bool: ...
def landlock_abi() -> int: ...
def has_tree_namespaces() -> bool: ...
def unshare(flags: int) -> int: ...
def setns(fd: int, flags: int) -> int: ...
def pack_plan(
    plan: Plan, timeout_ns: int | None, hints: list[tuple[str, str, int, bytes, bytes]]
) -> bytes: ...
