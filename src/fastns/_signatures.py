"""The keyword arguments of run(), spawn() and run_batch(). Only type checkers import this module.

The functions take a `spec`, the methods of a Template or a Container a `user` instead. Those with
an Encoding return text; without one, and without text=True, they return bytes.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TypedDict

from fastns._core import Plan
from fastns._files import Files
from fastns._stdio import Stdio
from fastns.spec import Spec


class Encoding(TypedDict, total=False):
    encoding: str | None
    errors: str | None


class OfSpec(TypedDict, total=False):
    spec: Spec | Plan | None


class Streams(TypedDict, total=False):
    stdin: Stdio
    stdout: Stdio
    stderr: Stdio
    env: Mapping[str, str] | None
    cwd: str | os.PathLike[str] | None


class ByUser(TypedDict, total=False):
    user: str | int | None


class Spawn(Streams, total=False):
    pass_fds: Iterable[int]


class SpawnText(Spawn, Encoding): ...


class SpawnOfSpec(Spawn, OfSpec): ...


class SpawnTextOfSpec(SpawnOfSpec, Encoding): ...


class SpawnByUser(Spawn, ByUser): ...


class SpawnTextByUser(SpawnText, ByUser): ...


class Run(Streams, total=False):
    input: bytes | str | None
    capture_output: bool
    timeout: float | None
    check: bool
    files: Files | None
    outputs: Sequence[str]


class RunText(Run, Encoding): ...


class RunOfSpec(Run, OfSpec): ...


class RunTextOfSpec(RunOfSpec, Encoding): ...


class RunByUser(Run, ByUser): ...


class RunTextByUser(RunText, ByUser): ...


class Batch(TypedDict, total=False):
    concurrency: int | None
    timeout: float | None
    capture_output: bool
    max_output: int | None


class BatchText(Batch, Encoding): ...


class BatchOfSpec(Batch, OfSpec): ...


class BatchTextOfSpec(BatchOfSpec, Encoding): ...


class BatchByUser(Batch, ByUser): ...


class BatchTextByUser(BatchText, ByUser): ...
