"""Reports to the service manager that started the process: systemd's sd_notify protocol, one datagram a message.

Decides what is reported and when. Without NOTIFY_SOCKET in the environment nothing is sent, and no failure to send ends
the gateway: a report is advice. No library is used: `sdnotify` has had no release since 2017, `cysystemd` needs
libsystemd, and the protocol is stable (https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html).
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

logger = logging.getLogger("gateway")


class ServiceManager:
    """The service manager that `environ` names; `os.environ` if it is not given."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self._watchdog = _watchdog_seconds(environ)
        self._failed = False

    def __repr__(self) -> str:
        return f"<ServiceManager {self._address!r} watchdog={self._watchdog:g}s>"

    def ready(self, status: str) -> None:
        """All workers serve requests; `status` is what `systemctl status` shows."""
        self._send("READY=1", f"STATUS={status}")

    def stopping(self, seconds: float) -> None:
        """The shutdown has begun and ends within `seconds`, which may be more than the unit's TimeoutStopSec."""
        self._send("STOPPING=1", "STATUS=stopping", f"EXTEND_TIMEOUT_USEC={round(seconds * 1_000_000)}")

    @asynccontextmanager
    async def reloading(self) -> AsyncIterator[None]:
        """While the configuration is read and applied. The time is required by `Type=notify-reload`."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
        try:
            yield
        finally:
            self._send("READY=1")

    async def keep_alive(self) -> None:
        """Report twice in each interval of the unit's WatchdogSec that the event loop runs; return if it has none."""
        while self._watchdog:
            self._send("WATCHDOG=1")
            await asyncio.sleep(self._watchdog / 2)

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.setblocking(False)
                sock.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            if not self._failed:
                logger.warning("the service manager at %r can't be reached: %s", self._address, error)
            self._failed = True
        else:
            self._failed = False


def _address(name: str) -> str:
    """NOTIFY_SOCKET as an address: a path, or with `@` a name in Linux's abstract namespace. Others (vsock) are for
    virtual machines."""
    return "\0" + name[1:] if name.startswith("@") else name if name.startswith("/") else ""


def _watchdog_seconds(environ: Mapping[str, str]) -> float:
    """The unit's WatchdogSec; 0 if there is none, or if it is another process's."""
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    text = environ.get("WATCHDOG_USEC", "0")
    return int(text) / 1_000_000 if text.isdecimal() else 0.0
