"""Types of the binding; the words are in _core.pyx."""

from collections.abc import Callable, Sequence
from typing import BinaryIO, Final, TypeAlias, final

from fastns._compile.ops import Op
from fastns._ended import Completed
from fastns._policy.cgroup_plan import CgroupPlan
from fastns.errors import SpawnError
from fastns.results import CompletedSandbox

STAGES: Final[tuple[str, ...]]
OPS: Final[dict[str, int]]
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
MAX_SOURCES: Final[int]
PLAN_INIT: Final[int]
ID_MAPS: Final[dict[str, int]]
PIPE_STDIN: Final[int]
PIPE_STDOUT: Final[int]
PIPE_STDERR: Final[int]
PIPE_JOINED: Final[int]

_Result: TypeAlias = tuple[int, int, float, float, int, bool, float, "dict[str, int | None] | None"]
_Item: TypeAlias = tuple[
    tuple[bytes, ...],
    tuple[bytes, ...],
    tuple[bytes, ...],
    bytes,
    tuple[int, int, int],
    int,
    bytes,
    int | None,
    int,
]
_Outcome: TypeAlias = tuple[_Result, bytes | None, bytes | None, tuple[int, int], bool, bool]

COUNTS: Final[tuple[str, ...]]

@final
class CgroupPool:
    def __new__(
        cls,
        hierarchies: tuple[tuple[int, bool], ...],
        settings: tuple[tuple[int, str, str], ...],
        counters: tuple[tuple[str, int, str, str, int, bool, str | None], ...],
        memory: tuple[int, str, str, str] | None,
        cpu_time: int,
    ) -> CgroupPool: ...
    @property
    def owner(self) -> int: ...
    def remove(self, patience_ms: int) -> bool: ...

def user_namespace(ids: tuple[int, int, int], inotify: bytes) -> int: ...

@final
class Plan:
    def __new__(
        cls,
        *,
        ops: tuple[Op, ...],
        environ: tuple[bytes, ...],
        search_path: tuple[bytes, ...],
        cwd: bytes,
        clone_flags: int,
        id_map: str,
        uid_map: bytes | None,
        gid_map: bytes | None,
        n_early: int,
        hop: bool,
        init: bool,
        method: str,
        namespaces: tuple[str, ...],
        mount_namespace: str,
        filtered: bool,
        sandbox: Plan | None = None,
        netns_pool: int = 0,
        max_output: int = 0,
        capped: bool = False,
        cgroups: CgroupPlan | None = None,
        ids: tuple[int, int, int] | None = None,
        inotify: bytes = b"",
        pipe_owner: tuple[int, int] | None = None,
        maps_first: bool = False,
        own_memory: bool = False,
        binds: tuple[tuple[str, str, bool, bool, str], ...] = (),
        view: tuple[str, ...] | None = None,
    ) -> Plan: ...
    @property
    def binds(self) -> tuple[tuple[str, str, bool, bool, str], ...]: ...
    @property
    def view(self) -> tuple[str, ...] | None: ...
    @property
    def ids(self) -> tuple[int, int, int] | None: ...
    @property
    def inotify(self) -> bytes: ...
    @property
    def pipe_owner(self) -> tuple[int, int] | None: ...
    @property
    def cgroups(self) -> CgroupPlan | None: ...
    @property
    def sandbox(self) -> Plan | None: ...
    @property
    def ops(self) -> tuple[Op, ...]: ...
    @property
    def environ(self) -> tuple[bytes, ...]: ...
    @property
    def search_path(self) -> tuple[bytes, ...]: ...
    @property
    def cwd(self) -> bytes: ...
    @property
    def id_map(self) -> str: ...
    @property
    def method(self) -> str: ...
    @property
    def namespaces(self) -> tuple[str, ...]: ...
    @property
    def max_output(self) -> int: ...
    @property
    def capped(self) -> bool: ...
    @property
    def hop(self) -> bool: ...
    @property
    def mount_namespace(self) -> str: ...
    @property
    def filtered(self) -> bool: ...
    @property
    def limits(self) -> tuple[str, ...]: ...
    def close(self) -> None: ...
    def can_idmap(self, path: bytes, recursive: bool) -> int: ...
    def describe(self) -> list[str]: ...

@final
class Process:
    @property
    def pid(self) -> int: ...
    @property
    def pidfd(self) -> int: ...
    @property
    def reaped(self) -> bool: ...
    def wait(self, timeout_ns: int | None = None) -> bool: ...
    def reap(self) -> _Result | None: ...
    def kill(self, signal: int) -> int: ...
    def kill_all(self) -> int: ...

@final
class Server:
    def __new__(cls, plan: Plan, null: int, parked: int = 0) -> Server: ...
    @property
    def plan(self) -> Plan: ...
    @property
    def running(self) -> bool: ...
    @property
    def pid(self) -> int: ...
    def alive(self) -> bool: ...
    def usable(self) -> bool: ...
    def spawn(
        self,
        argv: tuple[bytes, ...],
        environ: tuple[bytes, ...],
        directories: tuple[bytes, ...],
        cwd: bytes,
        stdio: tuple[int, int, int],
        keep: tuple[int, ...],
    ) -> Process: ...
    def pool(self) -> tuple[int, int, float]: ...
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
        cls,
        process: Process,
        stdin: int,
        stdout: int,
        stderr: int,
        input: bytes,
        limit: int = 0,
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
    argv: tuple[bytes, ...],
    environ: tuple[bytes, ...],
    directories: tuple[bytes, ...],
    cwd: bytes,
    stdio: tuple[int, int, int],
    keep: tuple[int, ...],
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
def capabilities() -> int: ...
def is_dumpable() -> bool: ...
def landlock_abi() -> int: ...
def has_tree_namespaces() -> bool: ...
def unshare(flags: int) -> int: ...
def setns(fd: int, flags: int) -> int: ...

DETAILS: Final[dict[str, int]]

def pack_plan(
    plan: Plan,
    timeout_ns: int | None,
    hints: list[tuple[str, str, int, bytes, bytes]],
) -> bytes: ...
