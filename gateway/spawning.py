"""Worker processes: how they are started, and that none outlives its parent.

A worker is a fresh interpreter and no fork: nothing of the supervisor's (its threads, its loop, its memory) is in it.
It imports what it needs while its configuration is still being read, and gets its sockets afterwards.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1
_WORKER = "import sys; sys.path[:] = {path!r}; from gateway.beginning import main; main({fd}, {parent})"


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
    """Let the kernel send this process a signal when its parent ends (Linux); end it now where that has happened."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os._exit(1)


def be_called(name: str) -> None:
    """What `ps` and `top` call this process, in 15 characters at most (Linux)."""
    if sys.platform == "linux":
        with open("/proc/self/comm", "w") as comm:
            comm.write(name)


def log_to_stderr() -> None:
    form = "%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=logging.INFO, format=form, datefmt="%Y-%m-%dT%H:%M:%S", stream=sys.stderr)
    logging.Formatter.converter = time.gmtime
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    # It tells of every change in a folder it watches; where standard error goes to a file there, without end.
    logging.getLogger("watchfiles").setLevel(logging.WARNING)


def how_it_ended(status: int) -> str:
    if status >= 0:
        return f"status {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"
