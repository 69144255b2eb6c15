"""Passes the output of a command on up to a limit. What is over it is read, counted and dropped, or
ends the command."""

from __future__ import annotations

import os
import select
import threading

CHUNK = 1 << 16


class Relay(threading.Thread):
    """Reads `source` to its end, on a thread of its own, and writes the first bytes to `sink`.

    `over` is an eventfd that is written to when there is more, or None.
    """

    def __init__(self, source: int, sink: int, limit: int, over: int | None) -> None:
        super().__init__(daemon=True)
        self.dropped = 0  # bytes
        self.done = 0  # bytes read, and bytes written
        self._source = source
        self._sink = sink
        self._left = limit
        self._over = over
        self.start()

    def run(self) -> None:
        while chunk := os.read(self._source, CHUNK):
            self.done += len(chunk)
            kept, self._left = chunk[: self._left], max(0, self._left - len(chunk))
            self.dropped += len(chunk) - len(kept)
            if self.dropped and self._over is not None:
                os.eventfd_write(self._over, 1)
                self._over = None
            if kept and not self._write(memoryview(kept)):
                break
        os.close(self._source)

    def _write(self, data: memoryview) -> bool:
        """False when nobody reads any longer: closing the source then gives the command SIGPIPE."""
        try:
            while data:
                written = os.write(self._sink, data[: select.PIPE_BUF])  # so that `done` tells
                self.done += written
                data = data[written:]
        except OSError:
            return False
        return True
