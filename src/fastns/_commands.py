"""The methods that start commands, of a Template and of a Container."""

from __future__ import annotations

from fastns._light import overload
from fastns._run import run
from fastns._starter import Starter
from fastns.batch import run_batch, spawn_batch
from fastns.sandbox import Sandbox, spawn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Literal, Unpack

    from fastns._command import Args
    from fastns._signatures import (
        BatchByUser,
        BatchText,
        BatchTextByUser,
        RunByUser,
        RunText,
        RunTextByUser,
        SpawnByUser,
        SpawnText,
        SpawnTextByUser,
    )
    from fastns.batch import Jobs, Result
    from fastns.errors import SpawnError
    from fastns.results import CompletedSandbox


class Commands(Starter):
    """run(), spawn() and the batches, without their `spec`."""

    @overload
    def spawn(
        self, args: Args, *, text: Literal[True], **options: Unpack[SpawnTextByUser]
    ) -> Sandbox[str]: ...
    @overload
    def spawn(
        self, args: Args, *, text: Literal[False] | None = None, **options: Unpack[SpawnByUser]
    ) -> Sandbox[bytes]: ...
    @overload
    def spawn(
        self, args: Args, *, text: bool | None = None, **options: Unpack[SpawnTextByUser]
    ) -> Sandbox[Any]: ...
    def spawn(
        self,
        args: Args,
        *,
        text: bool | None = None,
        user: str | int | None = None,
        **options: Unpack[SpawnText],
    ) -> Sandbox:
        """As fastns.spawn(), but without `spec`. user: "uid" or "uid:gid" of the command, in a
        Container that has a range of ids; None: the spec's.

        Raises: as fastns.spawn(); SpawnError, stage "helper", if the server is killed meanwhile.
        """
        return spawn(args, spec=self._prepared(self._extra_of(user)), text=text, **options)

    @overload
    def run(
        self, args: Args, *, text: Literal[True], **options: Unpack[RunTextByUser]
    ) -> CompletedSandbox[str]: ...
    @overload
    def run(
        self, args: Args, *, text: Literal[False] | None = None, **options: Unpack[RunByUser]
    ) -> CompletedSandbox[bytes]: ...
    @overload
    def run(
        self, args: Args, *, text: bool | None = None, **options: Unpack[RunTextByUser]
    ) -> CompletedSandbox[Any]: ...
    def run(
        self,
        args: Args,
        *,
        text: bool | None = None,
        user: str | int | None = None,
        **options: Unpack[RunText],
    ) -> CompletedSandbox:
        """As fastns.run(), but without `spec`. user: as in spawn()."""
        return run(args, spec=self._prepared(self._extra_of(user)), text=text, **options)

    def spawn_batch(
        self,
        jobs: Jobs,
        *,
        concurrency: int | None = None,
        user: str | int | None = None,
    ) -> list[Sandbox | SpawnError]:
        """As fastns.spawn_batch(), but without `spec`. user: as in spawn()."""
        return spawn_batch(jobs, spec=self._prepared(self._extra_of(user)), concurrency=concurrency)

    @overload
    def run_batch(
        self, jobs: Jobs, *, text: Literal[True], **options: Unpack[BatchTextByUser]
    ) -> list[Result[str]]: ...
    @overload
    def run_batch(
        self, jobs: Jobs, *, text: Literal[False] | None = None, **options: Unpack[BatchByUser]
    ) -> list[Result[bytes]]: ...
    @overload
    def run_batch(
        self, jobs: Jobs, *, text: bool | None = None, **options: Unpack[BatchTextByUser]
    ) -> list[Result[Any]]: ...
    def run_batch(
        self,
        jobs: Jobs,
        *,
        text: bool | None = None,
        user: str | int | None = None,
        **options: Unpack[BatchText],
    ) -> list[Result]:
        """As fastns.run_batch(), but without `spec`. user: as in spawn()."""
        return run_batch(jobs, spec=self._prepared(self._extra_of(user)), text=text, **options)
