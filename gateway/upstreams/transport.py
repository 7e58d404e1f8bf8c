"""The httpx transport that carries requests to upstreams, on aiohttp.

What it takes care of, each found by trying (docs/decisions/0002):

- the request target goes out as it is: of a string yarl requotes `%2C` to `,`, and the upstream would see other bytes
  than the cache key has;
- failures get their own kind: a lost connection is no ConnectTimeout;
- bytes after a response's end do not fail it, and interim responses (1xx) are reported;
- no cookie jar (it would keep one upstream's cookies for the next client's request), no proxy from the environment, no
  header that was not set.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterable, Callable, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any, TypeVar, cast

import aiohttp
from aiohttp.abc import AbstractResolver
from aiohttp.connector import Connection
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from gateway.config.tls import TlsFileError, client_context
from gateway.config.upstream import UpstreamConfig
from gateway.errors import ConfigError, ConfigProblem
from gateway.http.response_parser import MOST_FIELDS
from gateway.internals import missing, unknown_version
from gateway.observability.log import ONCE
from gateway.upstreams import name_resolution
from gateway.upstreams.aiohttp_errors import ERRORS, translated
from gateway.upstreams.connection import PlainConnection, Pool
from gateway.upstreams.httpx_api import httpx
from gateway.upstreams.name_resolution import Connector, Names, PublicResolver
from gateway.upstreams.receiver import Receiver
from gateway.upstreams.request import METHODS, Attempt, ReceivedHead, UpstreamTimeouts, request_head
from gateway.upstreams.sockets import client_timeout

logger = logging.getLogger("gateway")
INTERNALS: dict[type, tuple[str, ...]] = {
    aiohttp.ClientSession: ("_retry_connection",),
    aiohttp.TCPConnector: ("_acquired", *name_resolution.INTERNALS[aiohttp.TCPConnector]),
}
"""What is used of aiohttp beyond its documentation. Without it, upstreams are reached by httpx's own transport."""
P = TypeVar("P", bound=asyncio.Protocol)
_AUTO_HEADERS = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")


class Answered(aiohttp.ClientResponse):
    """A response that reports interim ones (1xx) before it, which aiohttp drops silently."""

    async def start(self, connection: Connection) -> aiohttp.ClientResponse:
        protocol, attempt = connection.protocol, _ATTEMPT.get()
        if isinstance(protocol, Receiver):
            attempt.on(protocol)
        tell = attempt.interim
        if protocol is None or tell is None:
            return await super().start(connection)
        read = protocol.read

        async def told() -> Any:
            message, payload = await read()
            if 102 <= message.code <= 199:
                tell(message.code, message.raw_headers)
            return message, payload

        protocol.read = told  # type: ignore[method-assign]
        try:
            return await super().start(connection)
        finally:
            del protocol.read


_ATTEMPT: ContextVar[Attempt] = ContextVar("attempt")
IDEMPOTENT = frozenset(("GET", "HEAD", "OPTIONS", "PUT", "DELETE", "QUERY"))


class _Stream(httpx.AsyncByteStream):
    """A response body, as received: not decoded, and whole or an error."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def __aiter__(self) -> Any:
        try:
            async for chunk in self._response.content.iter_any():
                yield chunk
        except (aiohttp.ClientError, TimeoutError, HttpProcessingError, OSError) as error:
            raise translated(error) from error

    def wait_longer(self) -> None:
        connection = self._response.connection
        if connection is not None and isinstance(connection.protocol, Receiver):
            connection.protocol.wait_longer()

    async def aclose(self) -> None:
        # Released to the pool where it was read to its end, closed otherwise.
        if not self._response.content.at_eof():
            self._response.close()
        else:
            self._response.release()


class Transport(httpx.AsyncBaseTransport):
    """An httpx transport over a pool of aiohttp connections, at most `max_connections` of them.

    `max_response_headers` bounds the size of a response head, of each line as well as in all. A name is resolved again
    every `resolve_every` seconds; with `public_only` one that resolves to no public address is refused. `resolver`
    resolves names; default: the system's resolver.
    """

    def __init__(
        self,
        *,
        max_connections: int = 100,
        keepalive: float = 15.0,
        verify: bool | ssl.SSLContext = True,
        max_response_headers: int = 65_536,
        max_response_fields: int = MOST_FIELDS,
        public_only: bool = False,
        resolve_every: float = 10.0,
        tls_name: str | None = None,
        resolver: AbstractResolver | None = None,
    ) -> None:
        self.session: aiohttp.ClientSession | None = None
        """For requests with a streamed body; it is opened in the event loop of the first request."""
        self._max_connections = max_connections
        self._keepalive = keepalive
        self._tls: ssl.SSLContext | bool = httpx.create_ssl_context(trust_env=False) if verify is True else verify
        self._max_head = max_response_headers
        self._max_fields = max_response_fields
        self._public_only = public_only
        self._resolve_every = resolve_every
        self._tls_name = tls_name
        self._resolver = resolver
        self.names: Names | None = None
        """The names that lead to the upstream; None until the first connection."""
        self.plain = Pool(self._connect, limit=max_connections, keepalive=keepalive)
        self._connector: Connector | None = None
        self._unpooled: Connector | None = None
        self._origins: dict[str, aiohttp.ClientRequest] = {}

    def _open_connector(self, factory: Callable[[], asyncio.Protocol], limit: int) -> Connector:
        if self.names is None:
            resolver = self._resolver or aiohttp.ThreadedResolver()
            self.names = Names(PublicResolver(resolver) if self._public_only else resolver, self._resolve_every)
            self.plain.several = self.names.several
        return Connector(
            self.names, factory, self._make_room, limit=limit, keepalive_timeout=self._keepalive, ssl=self._tls
        )

    def _make_room(self) -> None:
        """Close idle connections, where one more would be beyond `max_connections`. Requests in flight are fewer than
        that already, by the upstream's limit."""
        session = self.session.connector if self.session is not None else None
        pools = (self.plain, *((session,) if isinstance(session, Connector) else ()))
        more = sum(pool.open for pool in pools) - self._max_connections
        while more > 0 and any(pool.close_idle() for pool in pools):
            more -= 1

    def _open_session(self) -> aiohttp.ClientSession:
        factory = partial(Receiver, loop=asyncio.get_running_loop())
        session = aiohttp.ClientSession(
            connector=self._open_connector(factory, self._max_connections),
            response_class=Answered,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=_AUTO_HEADERS,
            trust_env=False,
            auto_decompress=False,
            max_line_size=self._max_head,
            max_headers=self._max_fields + 8,  # what it counts besides differs; `check_head` counts the fields
            max_field_size=self._max_head,
        )
        session._retry_connection = False  # it repeats what failed on a new connection, too
        return session

    @property
    def connections_in_use(self) -> int:
        plain = self.plain.in_use
        if self.session is None or self.session.connector is None:
            return plain
        return plain + len(self.session.connector._acquired)

    async def aclose(self) -> None:
        self.plain.close()
        for connector in (self._connector, self._unpooled):
            if connector is not None:
                await connector.close()
        if self.session is not None:
            await self.session.close()
        if self.names is not None:
            await self.names.close()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        timeout = request.extensions.get("timeout", {})
        received = await self.send(
            request.method,
            str(request.url),
            request.headers.raw,
            _body_of(request),
            UpstreamTimeouts(timeout.get("pool"), timeout.get("connect"), timeout.get("read")),
            request.extensions.get("attempt") or Attempt(),
        )
        return httpx.Response(
            received.status,
            headers=received.headers,
            stream=received.stream,
            request=request,
            extensions={"http_version": b"HTTP/1.1"},
        )

    async def send(
        self,
        method: str,
        url: str,
        headers: Sequence[tuple[bytes, bytes]],
        body: bytes | AsyncIterable[bytes] | None,
        timeouts: UpstreamTimeouts,
        attempt: Attempt,
    ) -> ReceivedHead:
        """What `handle_async_request` does, without httpx's objects, which take a tenth of a request's time.

        Raises httpx.TransportError.
        """
        if self.session is None:
            self.session = self._open_session()
        try:
            if isinstance(body, bytes) or (body is None and method in METHODS):
                return await self._send_plain(method, url, headers, body or b"", timeouts, attempt)
            return await self._send_by_session(method, url, headers, body, timeouts, attempt)
        except httpx.TransportError:
            raise
        except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
            if not isinstance(error, aiohttp.ClientConnectorError):
                attempt.lost()
            raise translated(error) from error
        except (*ERRORS, ValueError) as error:
            raise translated(error) from error

    async def _send_plain(
        self,
        method: str,
        url: str,
        headers: Sequence[tuple[bytes, bytes]],
        body: bytes,
        timeouts: UpstreamTimeouts,
        attempt: Attempt,
    ) -> ReceivedHead:
        origin, target = _split_url(url)
        head = request_head(method, target, headers) + body
        connection = await self.plain.connection(origin, pool=timeouts.pool, connect=timeouts.connect)
        answer = connection.send(head, attempt, timeouts.read)
        try:
            return await (answer if timeouts.bounded else asyncio.wait_for(answer, timeouts.read))
        except BaseException as error:
            connection.leave(answer)
            if isinstance(error, httpx.ReadError):
                attempt.lost()
            if isinstance(error, TimeoutError):
                raise httpx.ReadTimeout("timed out") from None
            raise

    async def open(self, origin: str, timeout: float, factory: Callable[[], P]) -> P:
        """A new connection that is the caller's, made by `factory`, always the same. Raises httpx.ConnectTimeout, and
        what else aiohttp does."""
        if self.session is None:
            self.session = self._open_session()
        if self._unpooled is None:
            self._unpooled = self._open_connector(factory, 0)
        return cast(P, await self._opened(self._unpooled, origin, timeout))

    async def _connect(self, origin: str, timeout: float | None) -> PlainConnection:
        """A new connection. Raises httpx.ConnectTimeout, and what else aiohttp does."""
        if self._connector is None:
            self._connector = self._open_connector(
                partial(PlainConnection, self.plain, self._max_head, self._max_fields), 0
            )
        made = await self._opened(self._connector, origin, timeout)
        assert isinstance(made, PlainConnection)
        return made

    async def _opened(self, connector: Connector, origin: str, timeout: float | None) -> object:
        to = self._origins.get(origin)
        if to is None:
            assert self.session is not None
            loop = asyncio.get_running_loop()
            to = self._origins[origin] = aiohttp.ClientRequest(
                "GET", URL(origin), loop=loop, session=self.session, server_hostname=self._tls_name
            )
        try:
            return await connector._create_connection(to, [], client_timeout(None, timeout, None))
        except TimeoutError as error:  # of whom aiohttp's session says that it was in connecting
            raise httpx.ConnectTimeout("no connection in time") from error

    async def _send_by_session(
        self,
        method: str,
        url: str,
        headers: Sequence[tuple[bytes, bytes]],
        body: bytes | AsyncIterable[bytes] | None,
        timeouts: UpstreamTimeouts,
        attempt: Attempt,
    ) -> ReceivedHead:
        assert self.session is not None
        _ATTEMPT.set(attempt)
        response = await self.session.request(
            method,
            URL(url, encoded=True),
            headers=_texts(headers, streamed=body is not None and not isinstance(body, bytes)),
            data=body,
            allow_redirects=False,
            timeout=client_timeout(timeouts.pool, timeouts.connect, timeouts.read),
            server_hostname=self._tls_name,
        )
        return ReceivedHead(response.status, response.raw_headers, _Stream(response))


def _texts(headers: Sequence[tuple[bytes, bytes]], *, streamed: bool) -> list[tuple[str, str]]:
    """Fields for aiohttp, which sends them in UTF-8; others are decoded as Latin-1, as in httpx.

    aiohttp frames a streamed body itself.
    """
    sent = [pair for pair in headers if pair[0].lower() != b"transfer-encoding"] if streamed else headers
    try:
        return [(name.decode(), value.decode()) for name, value in sent]
    except UnicodeDecodeError:
        return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in sent]


def _body_of(request: httpx.Request) -> Any:
    try:
        return request.content or None
    except httpx.RequestNotRead:
        return request.stream


def _split_url(url: str) -> tuple[str, str]:
    """The origin of `url`, and the target to ask it for."""
    start = url.find("/", url.index("//") + 2)
    return (url[:start], url[start:]) if start > 0 else (url, "/")


def _is_known(name: str, config: UpstreamConfig) -> bool:
    """Whether aiohttp has what is used of it. If not, that is logged. Raises ConfigError where httpx's own transport
    can't do what is asked for."""
    if not (lacking := missing(INTERNALS)):
        return True
    text = unknown_version("aiohttp", ", ".join(lacking))
    if config.addresses == "public":
        raise ConfigError([ConfigProblem("", f"upstreams.{name}.addresses", f"public requires aiohttp, and {text}")])
    said = "upstreams are reached by httpx's own transport, by a new connection for each request: %s"
    logger.warning(said, text, extra=ONCE)
    return False


def transport_of(name: str, config: UpstreamConfig) -> httpx.AsyncBaseTransport:
    """The transport that an upstream's settings ask for; httpx's own where aiohttp is another than known. Raises
    ConfigError."""
    try:
        tls = client_context(config)
    except TlsFileError as error:
        raise ConfigError([ConfigProblem("", f"upstreams.{name}.{error.setting}", str(error))]) from None
    if config.transport == "aiohttp" and _is_known(name, config):
        return Transport(
            max_connections=config.max_connections,
            verify=tls,
            max_response_headers=config.max_response_headers,
            max_response_fields=config.max_response_fields,
            public_only=config.addresses == "public",
            resolve_every=config.resolve_every.total_seconds(),
            tls_name=config.tls_name,
        )
    # Its pool hands what comes behind a response to the next request, so no connection is used twice.
    limits = httpx.Limits(max_connections=config.max_connections, max_keepalive_connections=0)
    return httpx.AsyncHTTPTransport(limits=limits, verify=tls, trust_env=False)
