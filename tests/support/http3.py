"""A client of HTTP/3 (aioquic), for one request."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ConnectionTerminated, QuicEvent


class _Client(QuicConnectionProtocol):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._http = H3Connection(self._quic)
        self._fields: dict[str, str] = {}
        self._body = b""
        self._answer: asyncio.Future[tuple[dict[str, str], bytes]] = asyncio.get_running_loop().create_future()

    async def get(self, host: str, path: str) -> tuple[dict[str, str], bytes]:
        stream = self._quic.get_next_available_stream_id()
        fields = {":method": "GET", ":scheme": "https", ":authority": host, ":path": path}
        self._http.send_headers(stream, [(name.encode(), value.encode()) for name, value in fields.items()], True)
        self.transmit()
        return await self._answer

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, ConnectionTerminated) and not self._answer.done():
            self._answer.set_exception(ConnectionError(event.reason_phrase))
        for each in self._http.handle_event(event):
            if isinstance(each, HeadersReceived):
                self._fields |= {name.decode(): value.decode() for name, value in each.headers}
            elif isinstance(each, DataReceived):
                self._body += each.data
            if getattr(each, "stream_ended", False) and not self._answer.done():
                self._answer.set_result((self._fields, self._body))


async def get(port: int, host: str, path: str) -> tuple[dict[str, str], bytes]:
    """The fields, with `:status`, and the body of the answer on this machine's `port`; its certificate is believed.
    Raises ConnectionError."""
    configuration = QuicConfiguration(
        is_client=True, alpn_protocols=H3_ALPN, server_name=host, verify_mode=ssl.CERT_NONE
    )
    async with connect("127.0.0.1", port, configuration=configuration, create_protocol=_Client) as client:
        assert isinstance(client, _Client)
        return await client.get(host, path)
