"""The signals that ask a verb to end, and the names of all."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from types import FrameType
else:
    import _signal  # what `signal` is made of: that brings `enum`

SIGINT, SIGKILL = _signal.SIGINT, _signal.SIGKILL


class Signals:
    """Collects SIGINT, SIGTERM and SIGHUP while sandboxes run, instead of acting on them.

    They arrive as bytes in a pipe (signal.set_wakeup_fd), so that nothing is ever raised between
    a spawn and the moment its handle has a name. A signal that is ignored (nohup, a background
    job of a shell) stays ignored.
    """

    def __enter__(self) -> Signals:
        self.pipe, self._write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._previous_fd = _signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        self._previous = {
            number: _signal.signal(number, _do_nothing)
            for number in (SIGINT, _signal.SIGTERM, _signal.SIGHUP)
            if _signal.getsignal(number) != _signal.SIG_IGN
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            # None: a handler that Python did not install and cannot name
            _signal.signal(number, _signal.SIG_DFL if handler is None else handler)
        _signal.set_wakeup_fd(self._previous_fd)
        os.close(self.pipe)
        os.close(self._write_end)

    def take(self) -> list[int]:
        """The signals that came since the last call, in their order."""
        try:
            return [number for number in os.read(self.pipe, 512) if number in self._previous]
        except BlockingIOError:
            return []


def _do_nothing(_number: int, _frame: FrameType | None) -> None:
    """The handler of a signal that is read from the pipe."""


def signal_name(number: int) -> str:
    """SIGKILL for 9, and SIG40 for a real-time signal without a name."""
    import signal  # only a signal needs it

    try:
        return signal.Signals(number).name
    except ValueError:  # most real-time signals have no name of their own
        return f"SIG{number}"
