"""aiohttp's side of a connection to an upstream: what is received, and which of it answers a request."""

from __future__ import annotations

import asyncio
import re
import select
from collections.abc import Sequence
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import RawResponseMessage
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import StreamReader

from gateway.http.response_parser import WITHOUT_BODY
from gateway.upstreams.connection import MOST_INTERIM, TOO_MANY_INTERIM
from gateway.upstreams.connection_end import ends_on_purpose
from gateway.upstreams.sockets import acknowledge, peer_of


class Receiver(ResponseHandler):
    """aiohttp's side of a connection, with rules for unsolicited bytes.

    aiohttp fails the response they follow, if they arrived together. RFC 9112 §6.3 ends a response with its
    Content-Length: it is delivered, the surplus is discarded, and the connection is never reused, as in nginx and
    Varnish. (A surplus after a chunked body is still a failure.) Bytes between a response and the next request, which
    aiohttp would parse as the next response, close the connection here, as in `connection`, and so does a head that
    announces content which must not follow it.
    """

    _left: int | None = None
    """How much of the present response's body is still to come; None between responses, or where unknown."""
    _asked = False
    """Whether a request was sent whose response has not ended."""
    _poll: select.poll | None = None
    _interims = 0
    """How many interim responses came since the last request was sent."""
    requests = 0
    """How many were sent on this connection."""
    received = False
    """Whether anything came since the last of them was sent."""
    peer = ""
    _ended_on_purpose = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.peer = peer_of(transport)
        self._poll = select.poll()
        self._poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)

    def eof_received(self) -> None:
        assert self.transport is not None
        self._ended_on_purpose = ends_on_purpose(self.transport)
        super().eof_received()

    def connection_lost(self, exc: BaseException | None) -> None:
        """aiohttp ends a body without a length here, also if the connection was reset: then it is incomplete."""
        payload = self._payload
        if payload is not None and not payload.is_eof() and (exc is not None or not self._ended_on_purpose):
            payload.set_exception(aiohttp.ClientPayloadError("the connection broke within the body"))
        super().connection_lost(exc)

    def is_connected(self) -> bool:
        """Whether a request may be sent on it: aiohttp's pool calls it when it takes it out."""
        return super().is_connected() and self._poll is not None and not self._poll.poll(0)

    def drain(self) -> None:
        self.force_close()
        if not self._asked:
            self.close()

    def drain_later(self) -> None:
        self.force_close()

    def wait_longer(self) -> None:
        """Have no limit on the time between two pieces any more."""
        self._drop_timeout()
        self._read_timeout = None

    def set_response_params(self, **params: Any) -> None:
        """aiohttp calls this right before it sends a request."""
        self._asked, self._interims = True, 0
        super().set_response_params(**params)

    def feed_data(self, data: tuple[RawResponseMessage, StreamReader], size: int = 0) -> None:
        """Take a message that was parsed."""
        message, payload = data
        if message.code == 101 or announces_wrongly(message.code, message.raw_headers, bodiless=self._skip_payload):
            self.force_close()
            if message.code < 200:
                self.set_exception(
                    HttpProcessingError(message="an unsolicited protocol upgrade, or an interim response with content")
                )
                return
        if self._are_too_many(message.code < 200):
            return
        if message.code >= 200:
            payload.on_eof(self._answered)
        super().feed_data(data, size)

    def _are_too_many(self, interim: bool) -> bool:
        """Whether there were too many interim responses; then the connection is closed, and parsed responses behind
        them are discarded."""
        if self._interims > MOST_INTERIM:
            return True
        self._interims += interim
        if self._interims <= MOST_INTERIM:
            return False
        self.force_close()
        self.set_exception(HttpProcessingError(message=TOO_MANY_INTERIM))
        if self.transport is not None:
            self.transport.abort()  # aiohttp's own `abort` forgets the exception
        return True

    def _answered(self) -> None:
        self._asked = False

    def data_received(self, data: bytes) -> None:
        if not data:
            super().data_received(data)  # aiohttp continues with the rest
            return
        self.received = True
        if not self._asked:
            self.force_close()
            self.abort()
            return
        if self._parser is None or self._payload_parser is not None:
            super().data_received(data)
            return
        end = self._end_of_response(data)
        if end is not None and end < len(data):
            data = data[:end]
            self.force_close()
        super().data_received(data)
        if self._asked:
            acknowledge(self.transport)

    def _end_of_response(self, data: bytes) -> int | None:
        """The index in `data` at which the current response ends; None if that is unknown here."""
        if self._left is None:
            head_end = _end_of_head(data)
            if head_end is None:
                return None
            length = 0 if self._skip_payload else _content_length(data[:head_end])
            if length is None:
                return None
            self._left = head_end + length
        end = self._left
        self._left = end - len(data) if end > len(data) else None
        return end


def _end_of_head(data: bytes) -> int | None:
    """The end of a final response's head at the beginning of `data`, interim responses before it passed over."""
    start = 0
    while True:
        end = data.find(b"\r\n\r\n", start)
        if end < 0 or not data.startswith(b"HTTP/1.", start):
            return None
        if data[start + 9 : start + 10] != b"1":
            return end + 4
        start = end + 4


_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,18})[ \t]*(?=\r\n)", re.IGNORECASE)
_CODING = re.compile(rb"\r\ntransfer-encoding:", re.IGNORECASE)


def _content_length(head: bytes) -> int | None:
    last = head[head.rfind(b"HTTP/1.") :]
    if last[9:12] in (b"204", b"304"):
        return 0
    lengths = _LENGTH.findall(last)
    return int(lengths[0]) if len(lengths) == 1 and not _CODING.search(last) else None


def announces_wrongly(status: int, fields: Sequence[tuple[bytes, bytes]], *, bodiless: bool) -> bool:
    """Whether a head announces content that must not follow it: of a 1xx, 204, 205 or 304, or in answer to a HEAD."""
    if not bodiless and status >= 200 and status not in (*WITHOUT_BODY, 205):
        return False
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0 \t") != b"")
        for name, value in ((name.lower(), value) for name, value in fields)
    )
