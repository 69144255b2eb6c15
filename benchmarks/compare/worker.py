"""Runs one contender: reads requests from stdin, and writes replies to stdout, as lines of JSON.

python -m compare.worker RIVAL ROOT [--mib N] [--mounts N] [--uid N]
"""

import argparse
import atexit
import ctypes
import json
import os
import resource
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import fastns
from compare import rivals

MS_REC, MS_PRIVATE, MNT_DETACH = 16384, 1 << 18, 2


def make_mounts(count: int) -> None:
    """Add `count` mounts, in a new mount namespace of this process."""
    libc = ctypes.CDLL(None, use_errno=True)
    fastns.unshare("mount")
    libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None)
    place = tempfile.mkdtemp(prefix="fastns-mounts-").encode()
    atexit.register(os.rmdir, place)
    if libc.mount(b"tmpfs", place, b"tmpfs", 0, None) < 0:
        raise OSError(ctypes.get_errno(), "mount")
    atexit.register(libc.umount2, place, MNT_DETACH)  # runs before the rmdir above
    for number in range(count):
        target = place + b"/%d" % number
        os.mkdir(target)
        libc.mount(b"tmpfs", target, b"tmpfs", 0, None)


def available() -> int:
    """Available memory in KiB."""
    with open("/proc/meminfo") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("MemAvail"))


class Worker:
    def __init__(self, rival: Any) -> None:
        self.rival = rival
        self.live: list[fastns.Sandbox] = []

    def time(self, n: int = 1) -> list[float]:
        """Seconds of each of n consecutive starts."""
        times = []
        for _ in range(n):
            start = time.perf_counter()
            code = self.rival.run("/true")
            times.append(time.perf_counter() - start)
            if code != 0:
                raise RuntimeError(f"ended with {code}")
        return times

    def probe(self) -> Any:
        return json.loads(self.rival.output("/probe"))

    def rate(self, threads: int, seconds: float) -> float:
        """Starts per second of all threads, each of which starts in a loop."""
        end, counts = time.monotonic() + seconds, [0] * threads

        def loop(index: int) -> None:
            while time.monotonic() < end:
                self.rival.run("/true")
                counts[index] += 1

        start = time.monotonic()
        workers = [threading.Thread(target=loop, args=(index,)) for index in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return sum(counts) / (time.monotonic() - start)

    def batch(self, n: int, concurrency: int) -> float:
        start = time.perf_counter()
        self.rival.batch("/true", n, concurrency)
        return n / (time.perf_counter() - start)

    def grow(self, n: int) -> dict[str, float]:
        """Start n more sleeping sandboxes. Return the median times of the first and the last 1,000
        starts, and the memory of each sandbox in KiB."""
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        before, times = available(), []
        for _ in range(n):
            start = time.perf_counter()
            self.live.append(self.rival.template.spawn(["/sleep"]))
            times.append(time.perf_counter() - start)
        last = sorted(times[-1000:])[len(times[-1000:]) // 2]
        first = sorted(times[:1000])[len(times[:1000]) // 2]
        return {"first": first, "last": last, "kib": (before - available()) / n}

    def end(self) -> int:
        for sandbox in self.live:
            sandbox.kill()
        for sandbox in self.live:
            sandbox.wait()
        self.live.clear()
        self.rival.close()
        return 0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("rival")
    parser.add_argument("root", type=Path)
    parser.add_argument("--mib", type=int, default=0)
    parser.add_argument("--mounts", type=int, default=0)
    parser.add_argument("--uid", type=int, default=0)
    options = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the rivals' output must not mix with the replies
    module = rivals.load(options.rival)  # before --uid: that user may be unable to read it
    fastns.compile(fastns.Spec())
    if options.uid:
        os.setgroups([])
        os.setresgid(options.uid, options.uid, options.uid)
        os.setresuid(options.uid, options.uid, options.uid)
    if options.mounts:
        make_mounts(options.mounts)
    memory = bytearray(options.mib << 20)
    memory[::4096] = b"x" * len(memory[::4096])
    worker = Worker(module.Rival(options.root))
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        name, arguments = json.loads(line)
        try:
            answer = {"value": getattr(worker, name)(**arguments)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
