"""TLS between a client's socket and its connection: bytes of the one, text of the other.

Decides when a handshake is complete, too slow or refused, and how a connection ends (`close_notify`). The connection
behind it (`client_connection`) gets a transport like any other, and must not know more than its scheme.

Why not asyncio's: its connections exist only after their handshake, so that nothing counts or limits those that never
finish one, and what waits to be written is in two buffers, of which the guard would see one. Here OpenSSL never waits:
it reads and writes memory, and what it wrote goes to the socket at once.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, cast

from uvicorn.config import Config
from uvicorn.server import ServerState

from gateway.edge.certificate import Certificate
from gateway.edge.client_connection import guard_of
from gateway.edge.guard import EARLY, NEVER
from gateway.errors import RequestRefused

MOST = 16 * 1024
"""Bytes of text that are read at once: a record has at most so many (RFC 8446 §5.1), so that none is left in it."""
HTTP_INSTEAD = RequestRefused("This port speaks TLS: use https.", 400, "not_tls")


class TlsConnection(asyncio.Transport, asyncio.Protocol):
    """The protocol of a socket, and the transport of the connection that `make` makes once its handshake is complete.
    Until then the connection guard counts it, and its timeout is that of a request head."""

    def __init__(
        self,
        certificate: Certificate,
        make: Callable[..., Any],
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__()
        self._make = partial(make, config=config, server_state=server_state, app_state=app_state, _loop=_loop)
        self._connections = server_state.connections
        self._loop = _loop or asyncio.get_running_loop()
        self._context = certificate.context
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = self._context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        # What `read` and `write` of an SSLObject call, and nothing more: two calls fewer for each answer.
        inside = getattr(self._tls, "_sslobj", self._tls)
        self._decrypt: Callable[[int], bytes] = inside.read
        self._encrypt: Callable[[Any], int] = inside.write
        self._guard = guard_of(config.loaded_app)
        self._inner: Any = None
        """The connection; None during the handshake."""
        self._entered = self._closing = self._ended = self._paused = False
        self._deadline = NEVER

    # --- the socket's protocol -----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._socket = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        self._peer = str(peer[0]) if isinstance(peer, tuple) else ""
        self._began = time.perf_counter()
        self._deadline = self._began + self._guard.timeouts.head
        self._entered = True
        self._connections.add(cast(Any, self))
        try:
            self._guard.enter(self, self._peer, self._loop, transport)
        except RequestRefused as refused:
            # An answer would cost a handshake, and a client that is one too many gets none.
            self._give_up(refused.reason)

    def data_received(self, data: bytes) -> None:
        if self._ended:
            return  # its last word was said; what the client still sends is not looked at
        self._incoming.write(data)
        if self._inner is not None or self._is_complete():
            self._read()

    def eof_received(self) -> bool | None:
        return self._inner.eof_received() if self._inner is not None else None

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = self._ended = True
        self._leave()
        if self._inner is not None:
            self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        if self._inner is not None:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        if self._inner is not None:
            self._inner.resume_writing()

    # --- the handshake -------------------------------------------------------------------------------------

    def sweep(self, now: float) -> None:
        """Called twice a second by the guard, during the handshake."""
        if now + EARLY >= self._deadline and not self._socket.is_closing():
            self._give_up("slow_handshake")

    def shutdown(self) -> None:
        """The server stops: a connection without a request is not waited for."""
        self._socket.abort()

    def _give_up(self, reason: str) -> None:
        self._ended = self._closing = True
        self._guard.count(reason)
        self._socket.abort()

    def _leave(self) -> None:
        if self._entered:
            self._entered = False
            self._connections.discard(cast(Any, self))
            self._guard.leave(self, self._peer)

    def _is_complete(self) -> bool:
        """Go on with the handshake; whether it is complete."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return False
        except ssl.SSLError as error:
            self._refuse(error)
            return False
        self._flush()
        self._leave()
        self._inner = self._make()
        self._inner.connection_made(self)
        return not self._closing

    def _refuse(self, error: ssl.SSLError) -> None:
        if error.reason == "HTTP_REQUEST":
            answer = self._guard.refusal(HTTP_INSTEAD, client=self._peer, method="", scheme="http", began=self._began)
            self._socket.write(answer)
        else:
            self._flush()  # the alert
            self._guard.count("handshake")
        self._ended = self._closing = True
        self._socket.close()

    # --- the connection's transport ------------------------------------------------------------------------

    def _read(self) -> None:
        """Give the connection all text that is here, unless it pauses reading."""
        try:
            while not (self._paused or self._ended):
                text = self._decrypt(MOST)
                if not text:
                    self.close()  # the client has ended the session
                    return
                self._inner.data_received(text)
                if not self._incoming.pending:
                    break
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:
            self.abort()
            return
        if self._outgoing.pending:
            self._flush()

    def _flush(self) -> None:
        data = self._outgoing.read()
        if data:
            self._socket.write(data)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._ended or not data:
            return
        written = self._encrypt(data)
        while written < len(data):
            written += self._encrypt(memoryview(data)[written:])
        self._socket.write(self._outgoing.read())

    def _end_session(self) -> None:
        """Say `close_notify`, after which nothing is written."""
        if not self._ended:
            self._ended = True
            with suppress(ssl.SSLError):  # that the client's has not come yet
                self._tls.unwrap()
            self._flush()

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._end_session()
        if self._socket.can_write_eof():
            self._socket.write_eof()

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._end_session()
            self._socket.close()

    def abort(self) -> None:
        self._closing = self._ended = True
        self._socket.abort()

    def is_closing(self) -> bool:
        return self._closing

    def is_reading(self) -> bool:
        return not self._paused

    def pause_reading(self) -> None:
        self._paused = True
        if not self._closing:
            self._socket.pause_reading()

    def resume_reading(self) -> None:
        if self._paused:
            self._paused = False
            if not self._closing:
                self._socket.resume_reading()
                self._loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        """Read the text that came before reading was paused."""
        if self._incoming.pending and not (self._closing or self._paused):
            self._read()

    def get_write_buffer_size(self) -> int:
        return self._socket.get_write_buffer_size()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._socket.get_write_buffer_limits()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._socket.set_write_buffer_limits(high, low)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._inner = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return cast(asyncio.BaseProtocol, self._inner)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "sslcontext":
            return self._context
        if name == "ssl_object":
            return self._tls
        return self._socket.get_extra_info(name, default)
