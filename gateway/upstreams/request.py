"""One request to an upstream: its body, its timeouts, and what is sent to a host."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable
from dataclasses import dataclass

import httpx

from gateway.http.headers import Headers, has, without
from gateway.upstreams.connection import Interim
from gateway.upstreams.hosts import Base
from gateway.upstreams.transport import Attempt, UpstreamTimeouts

AHEAD = 64 * 1024
"""Bytes that are here before a place is taken: what uvicorn holds of a body before it stops reading."""


class Upload(httpx.AsyncByteStream):
    """A body that is read once: first, up to `AHEAD` bytes, by `begin`; then all of it, by the sender."""

    def __init__(self, chunks: AsyncIterable[bytes]) -> None:
        self._chunks: AsyncIterator[bytes] = aiter(chunks)
        self._read: list[bytes] = []
        self._whole = False
        self._ended: Callable[[], None] | None = None

    async def begin(self) -> bool:
        """Read the beginning; whether that is the whole body. Raises what its source raises."""
        size = 0
        while size < AHEAD and not self._whole:
            piece = await anext(self._chunks, None)
            if piece is None:
                self._whole = True
            else:
                self._read.append(piece)
                size += len(piece)
        return self._whole

    def on_end(self, ended: Callable[[], None]) -> None:
        """Call `ended` once, when all was read or reading stops."""
        self._ended = ended

    def end(self) -> None:
        ended, self._ended = self._ended, None
        if ended is not None:
            ended()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            while self._read:
                yield self._read.pop(0)
            if not self._whole:
                async for piece in self._chunks:
                    yield piece
        finally:
            self.end()

    async def aclose(self) -> None:
        self.end()


@dataclass(frozen=True, slots=True)
class Patience:
    """How long one fetch may take, and how often it is tried again.

    `timeout` is in seconds, for a whole answer, or a streamed one's head and then between two pieces; None: the
    upstream's own. `retries` is how often at most an idempotent request is repeated where nothing was received; the
    upstream's budget bounds it as well.
    """

    timeout: float | None = None
    retries: int = 1
    apart: set[str] | None = None
    """The hosts that were tried for the same request: another one is taken, if there is one. It is added to."""


ORDINARY = Patience()


class Sending:
    """One request, as it is sent once or twice."""

    def __init__(
        self,
        method: str,
        target: str,
        headers: list[tuple[bytes, bytes]],
        body: AsyncIterable[bytes] | None,
        interim: Interim | None,
        patience: Patience,
        timeout: float,
        bounded: bool,
        constants: Headers = (),
    ) -> None:
        self.method = method
        self.bounded = bounded
        self.body = body
        self.interim = interim
        self.patience = patience
        self.timeout = timeout if patience.timeout is None else patience.timeout
        # A body is sent at its client's pace: then each step has the deadline, not all of them together.
        self.until = asyncio.get_running_loop().time() + self.timeout if body is None else None
        self.target = target
        self.headers = headers
        self.constants = constants

    @property
    def stream(self) -> httpx.AsyncByteStream | None:
        if self.body is None:
            return None
        return self.body if isinstance(self.body, Upload) else Upload(self.body)

    def fields(self, base: Base) -> list[tuple[bytes, bytes]]:
        """The header fields as they go to a host."""
        fields = self.headers
        if self.body is None and self.method in ("POST", "PUT", "PATCH"):
            fields = [*without(fields, b"content-length"), (b"content-length", b"0")]
        return fields if has(fields, b"host") else [(b"host", base.sent_host), *fields]

    def timeouts(self, connect: float) -> UpstreamTimeouts:
        bounded = self.until is not None
        return UpstreamTimeouts(self.timeout, min(connect, self.timeout), self.timeout, bounded)

    def request(self, base: Base, attempt: Attempt, connect: float, tls_name: str | None) -> httpx.Request:
        times = self.timeouts(connect)
        timeout = {"connect": times.connect, "read": times.read, "write": times.read, "pool": times.pool}
        return httpx.Request(
            self.method,
            base.join(self.target),
            headers=self.fields(base),
            stream=self.stream,
            extensions={"timeout": timeout, "attempt": attempt, **({"sni_hostname": tls_name} if tls_name else {})},
        )
