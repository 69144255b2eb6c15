"""The signals that end a verb, waits that check for them, and the names of signals."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
else:
    import _signal  # `signal` would import `enum`

SIGINT, SIGKILL = _signal.SIGINT, _signal.SIGKILL


class Signals:
    """Collects SIGINT, SIGTERM and SIGHUP while sandboxes run, instead of acting on them.

    They arrive as bytes in a pipe (signal.set_wakeup_fd). So no exception can come between the
    start of a sandbox and the assignment of its handle. An ignored signal (nohup, a background job
    of a shell) stays ignored.
    """

    def __enter__(self) -> Signals:
        self.pipe, self._write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._previous_fd = _signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        self._previous = {
            number: _signal.signal(number, lambda *_: None)  # take() reads the pipe
            for number in (SIGINT, _signal.SIGTERM, _signal.SIGHUP)
            if _signal.getsignal(number) != _signal.SIG_IGN
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            # None: Python did not install the handler, and cannot restore it
            _signal.signal(number, _signal.SIG_DFL if handler is None else handler)
        _signal.set_wakeup_fd(self._previous_fd)
        os.close(self.pipe)
        os.close(self._write_end)

    def take(self) -> list[int]:
        """The signals that arrived since the last call, in order."""
        try:
            return [number for number in os.read(self.pipe, 512) if number in self._previous]
        except BlockingIOError:
            return []


class Stopped(Exception):
    """A signal has arrived that ends this process."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def ready(fd: int, events: int, signals: Signals, seconds: float | None = None) -> bool:
    """Waits until the fd is readable or writable; False after `seconds`. Raises Stopped."""
    import select

    poll = select.poll()
    poll.register(fd, events)
    poll.register(signals.pipe, select.POLLIN)
    found = dict(poll.poll(None if seconds is None else seconds * 1000))
    if signals.pipe in found:
        look_for(signals)
    return fd in found


def look_for(signals: Signals) -> None:
    """Raises Stopped if a signal has arrived."""
    for number in signals.take():
        raise Stopped(number)


def signal_name(number: int) -> str:
    import signal  # slow to import, and only needed after a signal

    try:
        return signal.Signals(number).name
    except ValueError:  # most real-time signals have no name
        return f"SIG{number}"
