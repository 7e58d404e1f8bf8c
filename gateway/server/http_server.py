"""The uvicorn server on a worker's sockets, and how it stops without failing a request."""

from __future__ import annotations

import asyncio
import contextlib
import random
import select
import socket
from collections.abc import Iterator
from functools import partial
from typing import Any

import uvicorn

from gateway.edge.certificate import Certificate
from gateway.edge.client_connection import INTERNALS
from gateway.edge.guard import ConnectionGuard
from gateway.edge.protocol import GatewayProtocol
from gateway.edge.relay import Relay
from gateway.edge.tls import TlsConnection
from gateway.internals import require
from gateway.server.listener import BACKLOG

LINGER = 2.0
"""Seconds that idle connections stay open after another worker has taken over: a client that sends within them learns
from `Connection: close` to take a new one, where closing at once would break the request it is just sending."""
SETTLE = 0.3
"""The same when the whole gateway stops, and for connections that were accepted last and have sent nothing yet."""
LOOK = 0.02


class Server(uvicorn.Server):
    """A server among several in one process: the signals are the process's, not its own. With a `certificate` it speaks
    TLS. Raises UnknownVersion."""

    def __init__(
        self, app: Any, *, lifespan: bool, websockets: bool = False, certificate: Certificate | None = None
    ) -> None:
        require("uvicorn", INTERNALS)
        self.up = asyncio.Event()
        self._adopted: dict[int, asyncio.Server] = {}
        super().__init__(
            uvicorn.Config(
                app,
                http=_connection(certificate),
                lifespan="on" if lifespan else "off",
                # GatewayProtocol asks only whether there is one: it has its own, imported with the first handshake.
                ws=asyncio.Protocol if websockets else "none",
                log_config=None,
                access_log=False,
                date_header=False,
                server_header=False,
                proxy_headers=False,
                backlog=BACKLOG,
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()

    async def adopt(self, number: int, sock: socket.socket) -> None:
        """Accept on another socket too, known by a number."""
        self.release(number)

        def protocol() -> asyncio.Protocol:
            return self.config.http_protocol_class(  # type: ignore[call-arg]
                config=self.config, server_state=self.server_state, app_state=self.lifespan.state, _loop=None
            )

        loop = asyncio.get_running_loop()
        self._adopted[number] = await loop.create_server(protocol, sock=sock.dup(), backlog=BACKLOG)

    def release(self, number: int) -> None:
        """Stop accepting there; another worker does."""
        if (server := self._adopted.pop(number, None)) is not None:
            server.close()

    async def drain(self, guard: ConnectionGuard, *, delay: float, linger: float, timeout: float) -> None:
        """End it: accept for `delay` seconds more, each answer the last on its connection; leave idle connections open
        for `linger` seconds, those with a request for `timeout`. All is closed when `serve` returns."""
        guard.draining = True
        for connection in list(self.server_state.connections):
            if isinstance(connection, GatewayProtocol):
                connection.make_this_the_last()
        await asyncio.sleep(delay)
        await self._accept_the_rest()
        for server in (*self.servers, *self._adopted.values()):
            server.close()
        loop = asyncio.get_running_loop()
        until = loop.time() + linger
        for connection in list(self.server_state.connections):
            if isinstance(connection, Relay):
                # Spread, as all of their clients connect again.
                loop.call_later(random.random() * linger, connection.shutdown)
        while self.server_state.connections and loop.time() < until:  # noqa: ASYNC110
            await asyncio.sleep(LOOK)
        self.config.timeout_graceful_shutdown = timeout  # type: ignore[assignment]  # a float does as well
        self.should_exit = True

    async def _accept_the_rest(self) -> None:
        """Return at a moment with an empty backlog: closing a listener resets connections in it."""
        servers = (*self.servers, *self._adopted.values())
        listening = [sock.fileno() for server in servers for sock in server.sockets]
        poll = select.poll()
        for number in listening:
            poll.register(number, select.POLLIN)
        for _ in range(100):
            if not poll.poll(0):
                return
            await asyncio.sleep(0)


def _connection(certificate: Certificate | None) -> Any:
    """Makes the protocol of a new connection, as uvicorn calls it."""
    return GatewayProtocol if certificate is None else partial(TlsConnection, certificate, GatewayProtocol)
