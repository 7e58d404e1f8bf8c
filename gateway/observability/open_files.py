"""The process's limit of open files (RLIMIT_NOFILE): raised at the start, and what happens near it.

A descriptor's number is the lowest that is free, so a new connection's number shows how many are open. Some are kept
back for upstreams, Redis and refusals: at the limit itself the event loop can only drop connections without a response.
"""

from __future__ import annotations

import logging
import os
import resource
import time

from gateway.observability.log import state

logger = logging.getLogger("gateway")
QUIET_SECONDS = 5.0
"""How long nothing is refused before the shortage counts as over: one log line for each change."""


def raise_limit() -> tuple[int, int]:
    """Raise the soft limit to the hard one; the limits before and after."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        return soft, soft
    return soft, hard


class OpenFiles:
    """`limit` is the greatest number of descriptors; that of the process if it is not given."""

    def __init__(self, limit: int | None = None) -> None:
        found = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if limit is None else limit
        self.limit = found if found != resource.RLIM_INFINITY else 2**31
        kept_back = min(max(self.limit // 8, 16), 1024)
        self._most = self.limit - kept_back
        self._full = self.limit - kept_back // 4
        self.short = False
        self._refused = 0
        self._at = 0.0

    def __repr__(self) -> str:
        return f"<OpenFiles limit={self.limit} {'short' if self.short else 'enough'}>"

    def is_too_many(self, descriptor: int) -> bool:
        """Whether a client's connection with this descriptor must be refused. It is noted."""
        if descriptor < self._most:
            return False
        self._refused += 1
        self.note()
        return True

    def is_full(self, descriptor: int) -> bool:
        """Whether not even a refused connection may stay open for a moment."""
        return descriptor >= self._full

    def note(self) -> None:
        """A descriptor was wanted and there is none."""
        self._at = time.monotonic()
        if not self.short:
            self.short = True
            logger.error(
                "no file descriptors left: the process may open %d; new connections are refused with 503 until some "
                "are closed. Raise the limit: `ulimit -n`, LimitNOFILE in systemd, --ulimit nofile in Docker",
                self.limit,
                extra=state("open files", "short"),
            )

    def look(self) -> None:
        """Called each second: find a shortage that no connection showed, or the end of one."""
        try:
            descriptor = os.open(os.devnull, os.O_RDONLY)
        except OSError:
            self.note()
            return
        os.close(descriptor)
        if self.short and descriptor < self._most and time.monotonic() - self._at > QUIET_SECONDS:
            self.short = False
            said = "there are file descriptors again; %d connections were refused"
            logger.info(said, self._refused, extra=state("open files"))
            self._refused = 0
