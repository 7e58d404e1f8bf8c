"""The httpx transport that carries requests to upstreams, on aiohttp.

`httpx-aiohttp` is the base. What this subclass does otherwise, each found by trying (docs/decisions/0002):

- the request target goes out as it is: the base hands aiohttp a string, which yarl requotes (`%2C` becomes `,`),
  so that the upstream would see other bytes than the cache key has;
- failures get their own kind: the base turns a lost connection into ConnectTimeout;
- no cookie jar (the base's session keeps one upstream's cookies for the next client's request), no proxy from the
  environment, no header that nobody set.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import aiohttp
import httpx
from aiohttp.http_exceptions import HttpProcessingError
from httpx_aiohttp.transport import AiohttpResponseStream, AiohttpTransport
from yarl import URL

_AUTO_HEADERS = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")


class _Stream(AiohttpResponseStream):
    """A response body, as received: not decoded, and whole or an error."""

    async def __aiter__(self) -> Any:
        try:
            async for chunk in self._aiohttp_response.content.iter_any():
                yield chunk
        except (aiohttp.ClientError, TimeoutError, HttpProcessingError, OSError) as error:
            raise translated(error) from error

    async def aclose(self) -> None:
        # Released to the pool where it was read to its end, closed otherwise.
        if not self._aiohttp_response.content.at_eof():
            self._aiohttp_response.close()
        else:
            self._aiohttp_response.release()


class Transport(AiohttpTransport):
    """An httpx transport over a pool of aiohttp connections, at most `max_connections` of them.

    `max_response_headers` bounds the bytes of a response's head, one line of it as well as all of them.
    """

    def __init__(
        self,
        *,
        max_connections: int = 100,
        keepalive: float = 15.0,
        verify: bool = True,
        max_response_headers: int = 65_536,
    ) -> None:
        super().__init__(client=self._open_session, trust_env=False, verify=verify)
        self._max_connections = max_connections
        self._keepalive = keepalive
        self._tls: ssl.SSLContext | bool = self.ssl_context if verify else False
        self._max_head = max_response_headers

    def _open_session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=self._max_connections,
                keepalive_timeout=self._keepalive,
                ssl=self._tls,
                ttl_dns_cache=10,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=_AUTO_HEADERS,
            trust_env=False,
            auto_decompress=False,
            max_line_size=self._max_head,
            max_field_size=self._max_head,
        )

    @property
    def connections_in_use(self) -> int:
        if not isinstance(self.client, aiohttp.ClientSession) or self.client.connector is None:
            return 0
        return len(self.client.connector._acquired)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if not isinstance(self.client, aiohttp.ClientSession):
            self.client = self.get_client()
        timeout = request.extensions.get("timeout", {})
        try:
            response = await self.client.request(
                request.method,
                URL(str(request.url), encoded=True),
                headers=request.headers.multi_items(),
                data=_body_of(request),
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(
                    total=None,
                    connect=timeout.get("pool"),
                    sock_connect=timeout.get("connect"),
                    sock_read=timeout.get("read"),
                ),
            )
        except (aiohttp.ClientError, TimeoutError, HttpProcessingError, OSError, ValueError) as error:
            raise translated(error) from error
        return httpx.Response(
            response.status,
            headers=response.raw_headers,
            stream=_Stream(response),
            request=request,
            extensions={"http_version": b"HTTP/1.1"},
        )


def _body_of(request: httpx.Request) -> Any:
    try:
        return request.content or None
    except httpx.RequestNotRead:
        # aiohttp frames a streamed body itself.
        request.headers.pop("transfer-encoding", None)
        return request.stream


def translated(error: Exception) -> httpx.TransportError:
    """The httpx error that says the same as one of aiohttp's."""
    text = str(error) or type(error).__name__
    kinds: tuple[tuple[type[Exception] | tuple[type[Exception], ...], type[httpx.TransportError]], ...] = (
        (aiohttp.ConnectionTimeoutError, httpx.ConnectTimeout),
        (aiohttp.SocketTimeoutError, httpx.ReadTimeout),
        ((asyncio.TimeoutError, aiohttp.ServerTimeoutError), httpx.ReadTimeout),
        (aiohttp.ClientConnectorError, httpx.ConnectError),
        (aiohttp.ClientPayloadError, httpx.RemoteProtocolError),
        ((aiohttp.ServerDisconnectedError, aiohttp.ClientOSError), httpx.ReadError),
        ((aiohttp.ClientResponseError, HttpProcessingError), httpx.RemoteProtocolError),
        ((aiohttp.InvalidURL, ValueError), httpx.LocalProtocolError),
    )
    for kind, counterpart in kinds:
        if isinstance(error, kind):
            return counterpart(text)
    return httpx.ReadError(text)
