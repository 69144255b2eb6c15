"""What a Template and a Container share: how commands are started through a server."""

from __future__ import annotations

from fastns import _core
from fastns._command import Prepared

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    from fastns.errors import SpawnError
    from fastns.results import CompletedSandbox

    T = TypeVar("T")


class Starter:
    """Starts commands through a server."""

    _server: _core.Server | None
    _sandbox: _core.Plan  # of each command

    def _prepared(self, extra: _core._Extra | None = None) -> Any:
        """What run() and the others accept as `spec`. Not stored: a cycle would keep a dropped
        object alive."""
        return Prepared(self._sandbox, self, extra)

    def _extra_of(self, user: str | int | None) -> _core._Extra | None:
        """Raises: SpecError if a command cannot have these ids."""
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def _running(self) -> _core.Server:
        """The server, which is started if there is none. Raises: ClosedError, SpawnError."""
        raise NotImplementedError

    def _with_server(self, call: Callable[[_core.Server], T]) -> T:
        """Returns call(server)."""
        raise NotImplementedError

    def _start(self, *arguments: Any) -> _core.Process:
        return self._with_server(lambda server: _core.spawn(self._sandbox, server, *arguments))

    def _run(self, item: _core._Item) -> _core._Outcome | SpawnError:
        return self._with_server(lambda server: _core.run(self._sandbox, server, item))

    def _run_plain(
        self, args: object, pipes: int, timeout_ns: int | None
    ) -> CompletedSandbox | _core._Outcome | SpawnError | None:
        """As _core.run_plain(), but also None if there is no server, or it was just killed."""
        server = self._server
        if server is None or not server.usable():
            return None
        try:
            return _core.run_plain(self._sandbox, server, args, pipes, timeout_ns)
        except ConnectionAbortedError:
            return None

    def __exit__(self, *_: object) -> None:
        self.close()
