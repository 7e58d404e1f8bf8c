"""Upstreams: the one place where the gateway speaks HTTP as a client.

httpx's API throughout, its transport called directly: the client around it costs 80 to 330 µs a request and adds
redirects, cookies and decoding that a gateway must not have. This module knows nothing of caching.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Protocol
from urllib.parse import quote, urlencode

import httpx

from .config import UpstreamConfig
from .errors import UpstreamBusy, UpstreamError, UpstreamMalformed, UpstreamTimeout, UpstreamUnreachable
from .headers import Headers, values
from .targets import normalise
from .transport import Interim, Transport

_STATUSES_WITHOUT_BODY = frozenset((204, 205, 304))


class Body:
    """A response's body: read whole up to a limit, or streamed, or first the one and then the other."""

    def __init__(self, name: str, response: httpx.Response, idle: float) -> None:
        self._name = name
        self._response = response
        self._idle = idle
        self._read: list[bytes] = []
        self._chunks: AsyncIterator[bytes] = aiter(response.stream)  # type: ignore[arg-type]

    async def whole(self, limit: int) -> bytes | None:
        """All of it; None where it is larger than `limit` bytes, and `chunks` then gives all of it.

        Raises UpstreamError where it breaks off.
        """
        size = 0
        while True:
            piece = await self._next()
            if piece is None:
                break
            self._read.append(piece)
            size += len(piece)
            if size > limit:
                return None
        body = self._read[0] if len(self._read) == 1 else b"".join(self._read)
        await self.aclose()
        return body

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body a piece at a time, what was read already first. Raises UpstreamError."""
        try:
            for piece in self._read:
                yield piece
            self._read = []
            while (chunk := await self._next_in_time()) is not None:
                yield chunk
        finally:
            await self.aclose()

    async def _next_in_time(self) -> bytes | None:
        try:
            async with asyncio.timeout(self._idle):
                return await self._next()
        except TimeoutError:
            raise UpstreamTimeout(self._name, "silent in the middle of its body") from None

    async def _next(self) -> bytes | None:
        try:
            return await anext(self._chunks, None)
        except httpx.TransportError as error:
            await self.aclose()
            raise translated(self._name, error) from error

    async def aclose(self) -> None:
        await self._response.aclose()


class ResponseBody(Protocol):
    """A body still to be read; `Body` is an upstream's, `WholeBody` one that is there already."""

    async def whole(self, limit: int) -> bytes | None: ...

    def chunks(self) -> AsyncIterator[bytes]: ...

    async def aclose(self) -> None: ...


class WholeBody:
    def __init__(self, content: bytes) -> None:
        self._content = content

    async def whole(self, limit: int) -> bytes | None:
        return self._content if len(self._content) <= limit else None

    async def chunks(self) -> AsyncIterator[bytes]:
        yield self._content

    async def aclose(self) -> None:
        return None


@dataclass(frozen=True, slots=True)
class Fetched:
    """A response as it came, its body still to be read. Field names are in lower case."""

    status: int
    headers: Headers
    body: ResponseBody

    @property
    def ends_surely(self) -> bool:
        """Whether a broken connection could be told from the end of the body (RFC 9112 §8)."""
        if self.status in _STATUSES_WITHOUT_BODY:
            return True
        return bool(values(self.headers, b"content-length")) or b"chunked" in b",".join(
            values(self.headers, b"transfer-encoding")
        )


class Upstream:
    """An API behind the gateway: a pool of connections, its deadlines, and a base that no request leaves.

    In a handler, `get` and `request` speak to it with httpx's Response; the engine uses `fetch`.
    """

    def __init__(self, name: str, config: UpstreamConfig, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self.name = name
        self.config = config
        self.timeout = config.timeout.total_seconds()
        self._transport = transport or _transport(config)
        self._bases = cycle([_Base.of(url) for url in config.bases])
        self._constants = tuple((k.encode("latin-1"), v.encode("latin-1")) for k, v in config.headers.items())
        self._constant_names = frozenset(key for key, _ in self._constants)
        connect = config.connect_timeout.total_seconds()
        self._extensions = {
            "timeout": {"connect": connect, "read": self.timeout, "write": self.timeout, "pool": self.timeout}
        }

    def __repr__(self) -> str:
        return f"<Upstream {self.name} {', '.join(self.config.bases)}>"

    async def fetch(
        self,
        method: str,
        target: str,
        headers: Headers,
        body: AsyncIterable[bytes] | None = None,
        interim: Interim | None = None,
    ) -> Fetched:
        """Ask for `target` (a normalised path and query); the response's head has come when this returns.

        `interim` is told of 1xx responses before it. The caller closes the body. Raises UpstreamError: no connection,
        a deadline passed, nonsense received.
        """
        request = httpx.Request(
            method,
            next(self._bases).join(target),
            headers=[*self._forwarded(headers)],
            stream=_Sent(body) if body is not None else None,
            extensions=self._extensions if interim is None else {**self._extensions, "interim": interim},
        )
        if body is None and method in ("POST", "PUT", "PATCH"):
            request.headers["content-length"] = "0"
        try:
            async with asyncio.timeout(self.timeout if body is None else None):
                response = await self._transport.handle_async_request(request)
        except TimeoutError:
            raise UpstreamTimeout(self.name, "no answer within its deadline") from None
        except httpx.TransportError as error:
            raise translated(self.name, error) from error
        return await self._checked(response)

    def _forwarded(self, headers: Headers) -> list[tuple[bytes, bytes]]:
        kept = [pair for pair in headers if pair[0] not in self._constant_names]
        return [*kept, *self._constants]

    async def _checked(self, response: httpx.Response) -> Fetched:
        headers = [(name.lower(), value) for name, value in response.headers.raw]
        try:
            check_response(self.name, response.status_code, headers, self.config.max_response_headers)
        except UpstreamError:
            await response.aclose()
            raise
        return Fetched(response.status_code, headers, Body(self.name, response, self.timeout))

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
        max_body: int = 16 * 1024 * 1024,
    ) -> httpx.Response:
        """For handlers: ask for `path` below the base and read the answer whole (at most `max_body` bytes).

        `path` is percent-encoded where it must be. Raises UpstreamError.
        """
        query = urlencode(params, doseq=True) if params else ""
        target = normalise(quote(path, safe="/%:@!$&'()*+,;=~-._").encode(), query.encode())
        fields = [(k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in (headers or {}).items()]
        if not any(name == b"accept-encoding" for name, _ in fields):
            fields.append((b"accept-encoding", b"identity"))
        if content is not None:
            fields.append((b"content-length", b"%d" % len(content)))
        try:
            async with asyncio.timeout(self.timeout):
                fetched = await self.fetch(method, str(target), fields, _once(content) if content else None)
                body = await fetched.body.whole(max_body)
        except TimeoutError:
            raise UpstreamTimeout(self.name, "no whole answer within its deadline") from None
        if body is None:
            await fetched.body.aclose()
            raise UpstreamMalformed(self.name, f"its body is larger than {max_body} bytes")
        return httpx.Response(fetched.status, headers=list(fetched.headers), content=body)

    async def get(
        self,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """`request` with GET. Raises UpstreamError."""
        return await self.request("GET", path, params=params, headers=headers)

    async def aclose(self) -> None:
        await self._transport.aclose()


@dataclass(frozen=True, slots=True)
class _Base:
    scheme: str
    netloc: bytes
    prefix: str

    @classmethod
    def of(cls, url: str) -> _Base:
        parsed = httpx.URL(url)
        return cls(parsed.scheme, parsed.netloc, parsed.raw_path.decode("ascii").rstrip("/"))

    def join(self, target: str) -> httpx.URL:
        """The URL of `target` below this base; asserted to be what was meant, byte for byte."""
        raw_path = (self.prefix + target).encode("ascii")
        url = httpx.URL(f"{self.scheme}://{self.netloc.decode('ascii')}").copy_with(raw_path=raw_path)
        segments = target.partition("?")[0].split("/")
        if (
            url.scheme != self.scheme
            or url.netloc != self.netloc
            or url.raw_path != raw_path
            or not target.startswith("/")
            or "." in segments
            or ".." in segments
        ):
            raise UpstreamMalformed("gateway", "a target that would leave its upstream's base")
        return url


class _Sent(httpx.AsyncByteStream):
    def __init__(self, chunks: AsyncIterable[bytes]) -> None:
        self._chunks = chunks

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._chunks:
            yield chunk


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content


def _transport(config: UpstreamConfig) -> httpx.AsyncBaseTransport:
    if config.transport == "aiohttp":
        return Transport(
            max_connections=config.max_connections,
            verify=config.verify,
            max_response_headers=config.max_response_headers,
        )
    limits = httpx.Limits(max_connections=config.max_connections, max_keepalive_connections=config.max_connections)
    return httpx.AsyncHTTPTransport(limits=limits, verify=config.verify, trust_env=False)


def check_response(name: str, status: int, headers: Sequence[tuple[bytes, bytes]], max_head: int) -> None:
    """Raises UpstreamMalformed where a response's head is no HTTP, or contradicts itself, or is too large."""
    if not 200 <= status <= 599:
        raise UpstreamMalformed(name, f"the status {status}")
    if sum(len(key) + len(value) + 4 for key, value in headers) > max_head:
        raise UpstreamMalformed(name, "a head that is too large")
    for key, value in headers:
        if not key or b"\0" in value or b"\r" in value or b"\n" in value or b" " in key:
            raise UpstreamMalformed(name, "a malformed header")
    lengths = values(headers, b"content-length")
    if len(set(lengths)) > 1 or any(not length.isdigit() for length in lengths):
        raise UpstreamMalformed(name, "contradictory lengths")
    codings = values(headers, b"transfer-encoding")
    if codings and (lengths or b",".join(codings).strip().lower() != b"chunked"):
        raise UpstreamMalformed(name, "a framing in doubt")


def translated(name: str, error: httpx.TransportError) -> UpstreamError:
    """The gateway's error for one of httpx's; a test goes through all of httpx's."""
    kinds: tuple[tuple[type[httpx.TransportError], type[UpstreamError], str], ...] = (
        (httpx.PoolTimeout, UpstreamBusy, "all connections are taken"),
        (httpx.TimeoutException, UpstreamTimeout, "no answer within its deadline"),
        (httpx.RemoteProtocolError, UpstreamMalformed, "a response that is not HTTP, or broke off"),
        (httpx.LocalProtocolError, UpstreamMalformed, "a request that cannot be sent"),
        (httpx.UnsupportedProtocol, UpstreamMalformed, "an unsupported protocol"),
    )
    for kind, counterpart, reason in kinds:
        if isinstance(error, kind):
            return counterpart(name, reason)
    return UpstreamUnreachable(name, "no connection, or it broke")
