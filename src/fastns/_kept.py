"""The part of a Container that stays: its server. It moves no files and has no run()."""

from __future__ import annotations

import errno
import os
import threading
import warnings

from fastns import _core
from fastns._compile.container import compile_container
from fastns._starter import Starter
from fastns._stdio import open_null
from fastns.errors import ClosedError, SpawnError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self, TypeVar

    from fastns.spec import Spec

    T = TypeVar("T")


class Kept(Starter):
    """A server whose commands run in its own namespaces."""

    name: str | None = None

    def __init__(self, spec: Spec | None, *, shares_plan: bool = False) -> None:
        """shares_plan: with all others of this spec that say so, and so a pool of cgroups, which
        outlives them."""
        self._server: _core.Server | None = None
        self._lock = threading.Lock()
        self._shares_plan = shares_plan
        self._plan = compile_container(spec, cached=shares_plan)
        sandbox = self._plan.sandbox
        assert sandbox is not None
        self._sandbox = sandbox
        with open_null() as null:
            self._server = _core.Server(self._plan, null.fileno())
        self._owner = os.getpid()

    def close(self) -> None:
        """Ends the container and all that runs in it. May be called again."""
        with self._lock:
            if self._server is not None:
                self._server.stop()
                self._server = None
            if not self._shares_plan:
                self._plan.close()

    def __enter__(self) -> Self:
        self._running()
        return self

    def _running(self) -> _core.Server:
        server = self._server
        if self._owner != os.getpid():
            raise ClosedError("the Container belongs to the process that this one was forked from")
        if server is None:
            raise ClosedError(
                "the Container is closed: use it inside its `with` block, or make another"
            )
        if not server.alive():
            raise ClosedError(
                "the Container has ended: its first process was killed (for lack of memory?)"
            )
        return server

    def _with_server(self, call: Callable[[_core.Server], T]) -> T:
        for _ in range(3):
            server = self._server
            try:
                if server is None or not server.usable():
                    server = self._running()
                return call(server)
            except ConnectionAbortedError:  # perhaps only the connection was closed
                if server is not None and not server.alive():
                    server.stop()
                    break
        raise SpawnError("helper", errno.ECANCELED)

    def __del__(self) -> None:
        server = getattr(self, "_server", None)  # also None if __init__ failed
        if server is not None and server.usable():
            words = f"{self!r} was not closed: use a `with` block, or close()"
            warnings.warn(words, ResourceWarning, 2, source=self)

    def __repr__(self) -> str:
        server = self._server
        state = "closed" if server is None else f"pid {server.pid}"
        named = "" if self.name is None else f" {self.name}"
        return f"<fastns.Container{named}: {state}>"
