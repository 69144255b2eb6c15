"""Template: a spec prepared once, from which sandboxes start faster than from the spec itself.

A server process (csrc/program) builds the root once and starts each sandbox as a clone of itself.
So a start copies neither this process nor the host's table of mounts, and unmounts no old root.
"""

from __future__ import annotations

import errno
import os
import threading
import warnings

from fastns import _core
from fastns._args import check_whole
from fastns._commands import Commands
from fastns._compile.template import compile_template, why_fresh
from fastns._light import record
from fastns._stdio import open_null
from fastns.errors import ClosedError, SpawnError, SpecError
from fastns.spec import Spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    T = TypeVar("T")


MAX_READY = 1024


@record(frozen=True)
class TemplateStats:
    """What a template has done since its server was started."""

    networks_made: int
    networks_reused: int  # how often one was given to a further sandbox
    networks_touched: int  # dropped, as a command had used them
    networks_exposed: int  # dropped, as a command could have passed an fd of them to another
    rooms_made: int
    rooms_reused: int  # commands whose room had served before
    rooms_touched: int  # thrown away, as a command had left something in them, or had not exited
    rooms_exposed: int  # thrown away, as a command could have passed an fd of them to another
    why_fresh: str  # with reuse=True: what in the spec keeps rooms from serving again; "": nothing


def _ready() -> int:
    """The default: while one sandbox runs, the next is being made."""
    return min(max(2, len(os.sched_getaffinity(0))), 16)


class Template(Commands):
    """Starts sandboxes of one spec. A context manager, which any number of threads may use.

    Each sandbox has fresh namespaces, a fresh /proc, and an empty file system of its own on every
    writable default mount and every tmpfs of the spec. Its network namespace may have been that of
    an earlier sandbox, if that is proven not to have used it. /dev and injected files are
    read-only. The files of a bind or a writable rootfs are shared by all, as between sandboxes of a
    Spec. A sandbox that can write to the root can also remove directories on which other sandboxes
    have mounts, which removes these mounts. Use overlay=True for untrusted code.

    A sandbox has a session of its own, without the caller's terminal. A signal typed there reaches
    the caller but not the sandbox; if the caller ends, so does the sandbox. The command is always
    pid 1 (init is not supported), which receives only SIGKILL, SIGSTOP and signals that it has a
    handler for: see Spec's init.

    The server starts at the first use, and again after it was killed or this process has forked.
    Its sandboxes end when it does: at close(), when the Template is dropped (with a
    ResourceWarning), or with this process. A closed Template raises ClosedError.

    Args:
        spec: a Spec; None is Spec(). With overlay each sandbox has an empty layer of its own over
            the root. init, ranges of ids and joined user, pid, mount or time namespaces are not
            supported. A relative rootfs is resolved now.
        ready: how many sandboxes are made ahead, up to the execution of their command. Each is used
            once, by run() or spawn(), and replaced when it has ended. None: as many as this process
            has CPUs, from 2 to 16, but 0 if limits use cgroup version 2: there it is faster to
            clone a sandbox into its cgroup than to move one that is ready, for which the kernel may
            take 20 ms.
        reuse: sandboxes may serve again: for commands of one owner. Each is then a room, whose
            pid 1 starts one command of run() or run_batch() after another. After a command it kills
            what is left, and proves that nothing was touched that the next one can see. If that
            fails, the room is thrown away. It needs Spec(), or a rootfs with overlay=True, and the
            other defaults; stats() says what in the spec is in the way. See the guide for what
            remains visible.
    Raises: SpecError when a template, or this caller, does not support what is in the spec.
    """

    def __init__(
        self, spec: Spec | None = None, *, ready: int | None = None, reuse: bool = False
    ) -> None:
        if ready is not None:
            check_whole("ready", ready, 0, MAX_READY)
        self._server: _core.Server | None = None
        self._closed = False
        self._lock = threading.Lock()
        self._plan = compile_template(spec, reuse=reuse)
        self._why_fresh = why_fresh(spec) if reuse else ""
        sandbox = self._plan.sandbox
        assert sandbox is not None
        self._sandbox = sandbox
        if ready is None:
            unified = sandbox.cgroups is not None and sandbox.cgroups.unified
            ready = 0 if unified else _ready()
        self._ready = ready

    def _extra_of(self, user: str | int | None) -> None:
        if user is not None:
            raise SpecError(
                "user", "a Template's commands have the ids of its spec: Spec(user=...)"
            )

    def stats(self) -> TemplateStats:
        """What it has done since its server was started."""
        counts: tuple[Any, ...] = self._with_server(_core.Server.stats)
        return TemplateStats(*(*counts, self._why_fresh))

    def close(self) -> None:
        """Ends the server and every sandbox that still runs. May be called again."""
        with self._lock:
            self._closed = True
            if self._server is not None:
                self._server.stop()
                self._server = None
            self._sandbox.close()

    def __enter__(self) -> Template:
        self._running()
        return self

    def _with_server(self, call: Callable[[_core.Server], T]) -> T:
        """Returns call(server), after starting a new server if the last one was killed."""
        for _ in range(3):
            server = self._server
            try:
                if server is None or not server.usable():
                    server = self._running()
                return call(server)
            except ConnectionAbortedError:
                continue
        raise SpawnError("helper", errno.ECANCELED)

    def _running(self) -> _core.Server:
        with self._lock:
            if self._closed:
                raise ClosedError(
                    "the Template is closed: use it inside its `with` block, or make another"
                )
            if self._server is not None and not self._server.alive():
                self._server.stop()
                self._server = None
            if self._server is None:
                with open_null() as null:
                    self._server = _core.Server(self._plan, null.fileno(), self._ready)
            return self._server

    def __del__(self) -> None:
        server = getattr(self, "_server", None)  # also None if __init__ failed
        if server is not None and server.usable():
            words = f"{self!r} was not closed: use a `with` block, or close()"
            warnings.warn(words, ResourceWarning, 2, source=self)

    def __repr__(self) -> str:
        return f"<fastns.Template: {len(self._plan.ops)} ops once, {len(self._sandbox.ops)} each>"
