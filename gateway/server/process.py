"""Operating-system processes: starting a worker so that it can't outlive its parent, and its garbage collection.

A worker is a fresh interpreter, not a fork: it shares no threads, event loop or memory with the supervisor. It imports
while the configuration is still being read, and gets its sockets afterwards. What a worker does is decided in `worker`.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

_PR_SET_PDEATHSIG = 1
_WORKER = "import sys; sys.path[:] = {path!r}; from gateway.server.bootstrap import main; main({fd}, {parent})"


class Spawned:
    """A worker process and the supervisor's end of its control socket."""

    def __init__(self, process: subprocess.Popen[bytes], control: socket.socket) -> None:
        self.process = process
        self.control = control

    def __repr__(self) -> str:
        return f"<Spawned pid={self.process.pid} status={self.process.returncode}>"

    def hand_over(self, sockets: Sequence[socket.socket]) -> None:
        """Give it the sockets to listen on, once; they stay open here too."""
        socket.send_fds(self.control, [b"\0"], [sock.fileno() for sock in sockets])

    def abandon(self) -> None:
        """End it, before it was given anything."""
        self.control.close()
        self.process.kill()
        self.process.wait()


def spawn() -> Spawned:
    """Start a worker process. It waits for its sockets and its configuration."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _WORKER.format(path=sys.path, fd=theirs.fileno(), parent=os.getpid())],
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            process_group=0,  # Ctrl-C is the supervisor's, which ends its workers in order
        )
    return Spawned(process, ours)


def die_with(parent: int, number: signal.Signals) -> None:
    """Make the kernel send this process a signal when its parent ends (Linux); exit now if that has happened."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os._exit(1)


def be_called(name: str) -> None:
    """The process name in `ps` and `top`, at most 15 characters (Linux)."""
    if sys.platform == "linux":
        with open("/proc/self/comm", "w") as comm:
            comm.write(name)


def how_it_ended(status: int) -> str:
    if status >= 0:
        return f"status {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"


LOOK_EVERY = 1.0
"""Seconds between two checks whether a collection is due."""
_YOUNG = 7000, 2
"""The thresholds of the young rounds. CPython's own 700 objects are what 30 misses under way take together: round after
round then walked all of these, for a fifth of their time."""
_YOUNG_ROUNDS = 4  # so that a full round comes after 70,000 objects or more, as in CPython
_COUNT_EVERY = 10.0  # seconds; counting frozen objects traverses at least their list
_THAW_EVERY = 600.0
_THAW_WAITS = 60.0  # seconds for an idle moment
_GATHERED = 100_000  # frozen objects more than after the last thaw, beside half of those: 10 to 20 MB
_NEVER = 1_000_000


class Garbage:
    """Runs the garbage collector's full rounds.

    CPython frees most objects with their last reference. Its collector looks for cycles among the rest. A full round
    traverses all tracked objects and blocks the event loop (35 ms and more at 70,000 objects; two cores, CPython
    3.11), and one begins whenever their number has grown by a quarter. A gateway under load has that many: the edge's
    memos.

    So full rounds start here. Objects that survive one are frozen (`gc.freeze`), and the next walks only newer ones.
    Everything is thawed and walked every ten minutes, sooner where much has gathered, and after a reload, which leaves
    a generation of routes behind; while no fetch is under way, if possible. CPython still runs the young
    rounds, more rarely.

    `observe` gets the seconds that each full round took, `idle` says whether one would delay no fetch. The collector is
    the process's, so a worker has one `Garbage`.
    """

    def __init__(
        self,
        observe: Callable[[float], None],
        idle: Callable[[], bool] = lambda: True,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._observe = observe
        self._idle = idle
        self._monotonic = monotonic
        self._rounds = 0
        self._live = 0
        self._counted = self._thaw_due = 0.0

    async def run(self) -> None:
        """Begin full rounds when they are due, until cancelled; then CPython does again."""
        before = gc.get_threshold()
        gc.set_threshold(*_YOUNG, _NEVER)
        try:
            self._begin()
            while True:
                await asyncio.sleep(LOOK_EVERY)
                self.look()
        finally:
            gc.set_threshold(*before)

    def _begin(self) -> None:
        """Freeze what was made at start without walking it, which would keep the first request waiting for 60 ms: next
        to nothing of it (0.3 of 85 MiB) is garbage. `beginning` had switched the collector off."""
        gc.freeze()
        gc.enable()
        self._live = gc.get_freeze_count()
        self._thaw_due = self._monotonic() + _THAW_EVERY
        self._rounds = _young_rounds()

    def look(self) -> None:
        """A round, if one is due."""
        now = self._monotonic()
        if now - self._counted >= _COUNT_EVERY:
            self._counted = now
            if gc.get_freeze_count() > self._live * 1.5 + _GATHERED:
                self.thaw_soon()
        if now >= self._thaw_due and (self._idle() or now >= self._thaw_due + _THAW_WAITS):
            self.thaw()
        elif _young_rounds() - self._rounds >= _YOUNG_ROUNDS:
            self._round()

    def thaw_soon(self) -> None:
        """At the next look, or within a minute of it."""
        self._thaw_due = min(self._thaw_due, self._monotonic())

    def thaw(self) -> None:
        """Walk all there is."""
        gc.unfreeze()
        self._round()
        self._live = gc.get_freeze_count()
        self._thaw_due = self._monotonic() + _THAW_EVERY

    def _round(self) -> None:
        began = time.perf_counter()
        gc.collect()
        gc.freeze()
        self._observe(time.perf_counter() - began)
        self._rounds = _young_rounds()


def _young_rounds() -> int:
    """How often the middle generation was walked since the start."""
    count: int = gc.get_stats()[1]["collections"]
    return count
