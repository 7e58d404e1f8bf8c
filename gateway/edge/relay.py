"""A WebSocket between a client and an upstream: whole frames of each are written to the other as they came.

Decides when reading pauses (backpressure), which code each side gets when the other breaks the protocol, falls silent
or is gone, and when the gateway itself ends it. It must not know how either side's handshake was made, nor what
messages mean. Its deadlines are looked at by the connection guard's sweep.

                    client ends with      upstream ends with
    Close frame     the same              the same
    gone (1006)     -                     upstream gets 1001; client gets 1011
    violation       its own code          upstream gets 1001; client gets 1011
    idle, deploy    1001                  1001
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from os import urandom

from gateway.context import Ended
from gateway.edge.guard import SlowReader
from gateway.edge.http10 import reset
from gateway.http.websocket import (
    GOING_AWAY,
    INTERNAL,
    LOST,
    NO_CODE,
    POLICY,
    Close,
    Frames,
    close_frame,
    ping_frame,
)
from gateway.upstreams.websocket import WAITING, UpstreamSocket, WebSocketCounts

CLOSING = 2.0
"""Seconds for the other side's Close frame, and for the end of its connection."""
RESTARTS = "the gateway restarts"
MOST_CONTROLS = 200
"""Control frames of one side between two looks (0.5 s): more are a flood."""


@dataclass(frozen=True, slots=True)
class RelayLimits:
    """In bytes, and in seconds."""

    message: int
    idle: float
    ping: float
    write: float


class _Side:
    """One end. `frames` are those that it sends."""

    __slots__ = (
        *("close_received", "close_sent", "controls", "frames", "name", "pauses", "pinged", "reader", "received_at"),
        *("transport", "written"),
    )

    def __init__(self, name: str, frames: Frames, transport: asyncio.Transport, now: float) -> None:
        self.name = name
        self.frames = frames
        self.transport: asyncio.Transport | None = transport
        self.pauses: set[str] = set()
        """Why nothing is read from it now."""
        self.received_at = now
        """When something came from it last."""
        self.pinged: float | None = None
        """When it was sent a ping that nothing came after."""
        self.close_received = False
        """Whether it has sent a Close frame."""
        self.close_sent = False
        """Whether it was sent a Close frame: then nothing more."""
        self.controls = self.written = 0
        self.reader = SlowReader()

    @property
    def mask(self) -> bytes:
        return urandom(4) if self.name == "upstream" else b""

    def write(self, data: bytes) -> None:
        if self.transport is not None and data:
            self.transport.write(data)
            self.written += len(data)

    def pause(self, why: str) -> None:
        self.pauses.add(why)
        if self.transport is not None and not self.transport.is_closing():
            self.transport.pause_reading()

    def resume(self, why: str) -> None:
        self.pauses.discard(why)
        if not self.pauses and self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    def end(self) -> None:
        """Write nothing more, and wait for its end: closing at once would reset what it still sends, and with it the
        Close frame that it has not read (RFC 6455 §7.1.1)."""
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        if self.close_received or not transport.can_write_eof():
            transport.close()
        else:
            self.pauses.clear()
            transport.resume_reading()
            transport.write_eof()

    def is_stuck(self, now: float, limit: float) -> bool:
        """Whether it has read too little of what waits for it, for `limit` seconds."""
        unsent = self.transport.get_write_buffer_size() if self.transport is not None else 0
        return self.reader.is_too_slow(now, limit, unsent, self.written)


class Relay(asyncio.Protocol):
    """The protocol of the client's transport once its handshake is complete. `lost` is called when that is gone."""

    def __init__(
        self, upstream: UpstreamSocket, counts: WebSocketCounts, limits: RelayLimits, lost: Callable[[Relay], None]
    ) -> None:
        self._on_end: Callable[[Ended], None] | None = None
        self._ended: Ended | None = None
        self._socket = upstream
        self._counts = counts
        self._limits = limits
        self._lost = lost
        self._deadline: float | None = None
        """When an end that has begun is forced."""
        self._why: tuple[str, Close] | None = None
        self._open = False

    def __repr__(self) -> str:
        return f"<Relay {'ending' if self._why else 'open' if self._open else 'new'} {self._socket!r}>"

    def begin(self, transport: asyncio.Transport, early: bytes) -> None:
        """Pass frames on from now on; `early` has come from the client already."""
        assert self._socket.transport is not None
        now, largest = time.perf_counter(), self._limits.message
        self._message, self._seen = now, 0
        transport.set_write_buffer_limits(high=WAITING)
        self._client = _Side("client", Frames(from_client=True, largest=largest), transport, now)
        self._upstream = _Side("upstream", Frames(from_client=False, largest=largest), self._socket.transport, now)
        self._open = True
        self._counts.open += 1
        if early:
            self.data_received(early)
        self._socket.give_to(self)

    # --- bytes ---------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._pass_on(self._client, self._upstream, data)

    def from_upstream(self, data: bytes) -> None:
        self._pass_on(self._upstream, self._client, data)

    def _pass_on(self, side: _Side, other: _Side, data: bytes) -> None:
        frames = side.frames
        if data:
            side.received_at, side.pinged = time.perf_counter(), None
        passed = frames.take(data)
        if not other.close_sent:
            other.write(passed)
        if frames.violation is not None:
            self._violated(side, frames.violation)
        elif frames.close is not None:
            self._closed_by(side, other, frames.close)
        elif frames.more and "slice" not in side.pauses:
            side.pause("slice")
            asyncio.get_running_loop().call_soon(self._next_slice, side, other)

    def _next_slice(self, side: _Side, other: _Side) -> None:
        """Look at frames that came in one piece with others, after what other connections have to do."""
        self._pass_on(side, other, b"")
        if side.frames.more and side.frames.violation is None and side.frames.close is None:
            asyncio.get_running_loop().call_soon(self._next_slice, side, other)
        else:
            side.resume("slice")

    def pause_writing(self) -> None:
        self._upstream.pause("full")

    def resume_writing(self) -> None:
        self._upstream.resume("full")

    def upstream_full(self, full: bool) -> None:
        if full:
            self._client.pause("full")
        else:
            self._client.resume("full")

    # --- ends ----------------------------------------------------------------------------------------------

    def connection_lost(self, exc: Exception | None) -> None:
        self._client.transport = None
        self._gone(self._client, GOING_AWAY, "the client is gone")
        self._lost(self)

    def upstream_lost(self) -> None:
        self._upstream.transport = None
        self._gone(self._upstream, INTERNAL, "the upstream is gone")

    def _gone(self, side: _Side, code: int, reason: str) -> None:
        other = self._upstream if side is self._client else self._client
        self._ends(side.name, Close(LOST))
        if not (side.close_received and other.close_received):
            self._send_close(other, Close(code, reason))
        other.end()
        if self._client.transport is None and self._upstream.transport is None:
            self._finish()

    def _closed_by(self, side: _Side, other: _Side, close: Close) -> None:
        """A Close frame of `side` was passed on."""
        side.close_received = True
        self._ends(side.name, close)
        if side.close_sent:  # by the gateway
            if side.transport is not None:
                side.transport.close()
        else:
            other.close_sent = True
        if side.close_received and other.close_received:
            self._close_both()

    def _violated(self, side: _Side, close: Close) -> None:
        other = self._upstream if side is self._client else self._client
        code, reason = (GOING_AWAY, "the client broke the protocol")
        if side is self._upstream:
            code, reason = INTERNAL, "the upstream broke the protocol"
        self._end(side.name, {side.name: close, other.name: Close(code, reason)})
        side.end()  # its Close frame could not be distinguished from other bytes

    def shutdown(self) -> None:
        """The server stops, or another process takes over."""
        self._end("gateway", Close(GOING_AWAY, RESTARTS))

    def _end(self, by: str, close: Close | dict[str, Close]) -> None:
        """Send each side a Close frame, and wait for theirs for a while."""
        if not self._open or self._why is not None:
            return
        closes = close if isinstance(close, dict) else {"client": close, "upstream": close}
        self._ends(by, closes["client"])
        for side in (self._client, self._upstream):
            self._send_close(side, closes[side.name])

    def _ends(self, by: str, close: Close) -> None:
        if self._why is None:
            self._why = by, close
            self._deadline = time.perf_counter() + CLOSING

    def _send_close(self, side: _Side, close: Close) -> None:
        """Send a Close frame, if no frame to that side is under way; then only the end of the connection is left."""
        if side.transport is None or side.close_sent:
            return
        side.close_sent = True
        other = self._upstream if side is self._client else self._client
        if other.frames.left:
            side.transport.abort()
            return
        side.write(close_frame(close, side.mask))
        if side.close_received:
            side.transport.close()

    def _close_both(self) -> None:
        for side in (self._client, self._upstream):
            if side.transport is not None:
                side.transport.close()

    def _finish(self) -> None:
        if self._open:
            self._open = False
            assert self._why is not None
            by, close = self._why
            self._counts.open -= 1
            self._counts.closed[by, _label(close.code)] += 1
            for side in (self._client, self._upstream):
                self._counts.messages[side.name] += side.frames.messages
            self._ended = Ended(by, close.code, self._upstream.frames.bytes)
            if self._on_end is not None:
                self._on_end(self._ended)

    def on_end(self, ended: Callable[[Ended], None]) -> None:
        """Call `ended` once it has ended; at once, if it has already."""
        self._on_end = ended
        if self._ended is not None:
            ended(self._ended)

    # --- deadlines -----------------------------------------------------------------------------------------

    def sweep(self, now: float) -> None:
        """Called twice a second."""
        if not self._open:
            return
        if self._deadline is not None:
            if now >= self._deadline:
                self._abort()
            return
        messages = self._client.frames.messages + self._upstream.frames.messages
        if messages != self._seen:
            self._seen, self._message = messages, now
        elif now - self._message >= self._limits.idle:
            self._end("gateway", Close(GOING_AWAY, "idle"))
            return
        for side in (self._client, self._upstream):
            self._look(side, now)

    def _look(self, side: _Side, now: float) -> None:
        new, side.controls = side.frames.controls - side.controls, side.frames.controls
        if new > MOST_CONTROLS:
            self._violated(side, Close(POLICY, "too many control frames"))
        elif side.is_stuck(now, self._limits.write):
            self._cut(side)
        elif side.pauses:
            side.pinged = None  # what it sends isn't read
        elif side.pinged is not None:
            if now - side.pinged >= self._limits.ping:
                self._cut(side)
        elif now - side.received_at >= self._limits.ping:
            self._ping(side, now)

    def _ping(self, side: _Side, now: float) -> None:
        """Ping a silent side, unless a frame to it is under way: a large one may take a slow sender minutes."""
        other = self._upstream if side is self._client else self._client
        if not other.frames.left and not side.close_sent:
            side.pinged = now
            side.write(ping_frame(side.mask))

    def _cut(self, side: _Side) -> None:
        """A side that does not read, or does not answer pings, is as good as gone."""
        if side.transport is not None:
            reset(side.transport)

    def _abort(self) -> None:
        for side in (self._client, self._upstream):
            if side.transport is not None:
                side.transport.abort()


def _label(code: int) -> str:
    """A code as a metric has it: those that applications choose are one."""
    if code >= 3000:
        return f"{code // 1000}xxx"
    return "none" if code == NO_CODE else str(code)
