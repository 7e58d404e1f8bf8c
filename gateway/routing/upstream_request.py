"""Requests that bypass the cache: what is forwarded to an upstream, and which preconditions the upstream evaluates.

The gateway evaluates a precondition on a tag that it generated (RFC 9110 §13.1.1): before a write it fetches the
current representation. The upstream can change between that response and the write; to prevent that, the upstream must
issue the tags.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import msgspec
from msgspec import structs

from gateway.cache.engine import Engine
from gateway.cache.request import Route
from gateway.cache.respond import problem
from gateway.config.models import Config
from gateway.context import RequestContext
from gateway.errors import UpstreamError, UpstreamTimeout, UpstreamUnreachable
from gateway.http.field_changes import NO_CHANGES, FieldChanges
from gateway.http.headers import WITHOUT_CONTENT, Headers, first, has, values, without
from gateway.observability.metrics import Metrics
from gateway.policy.content import QUERY, Content
from gateway.policy.keys import Plan, passed_through, plan, sent_host, without_ignored
from gateway.policy.preconditions import as_given, as_known, own_tags, settled, without_own
from gateway.policy.validation import own_tag
from gateway.upstreams.client import Upstream
from gateway.upstreams.request import ORDINARY, Interim, Patience
from gateway.upstreams.response import Fetched, LimitedBody, WholeBody, too_large

VIA = (b"via", b"1.1 gateway")
_STATUS_CLASSES = tuple(f"{digit}xx" for digit in range(10))
"""The result of a request as the metrics name it, by the first digit of its status."""


class UpstreamOrigin(msgspec.Struct, frozen=True):
    """The origin of one request's responses: its target at an upstream."""

    upstream: Upstream
    target: str
    request_id: str
    metrics: Metrics
    interim: Interim | None = None
    patience: Patience = ORDINARY
    changes: FieldChanges = NO_CHANGES
    """Changes by the route's settings to the fields of its requests."""
    largest: int | None = None
    """Bytes of the largest body that the route passes on; None: any."""
    sent_as: str | None = None
    """The method with which a read that has content is sent; None for other requests."""
    content: Content | None = None
    """The content of such a read, if the cache may serve it."""

    @property
    def name(self) -> str:
        return self.upstream.name

    @property
    def deadline(self) -> float:
        return self.upstream.timeout if self.patience.timeout is None else self.patience.timeout

    def refusal(self) -> UpstreamError | None:
        places = self.upstream.places
        return None if places.taken < places.narrow else self.upstream.refusal()

    def fetch(self, method: str, headers: Headers) -> Coroutine[Any, Any, Fetched]:
        # The caller applies this origin's timeout, which is the upstream's own: one timer suffices.
        content, bounded = self.content, self.patience is ORDINARY
        if content is None:
            return self.send(method, headers, None, bounded=bounded)
        if content.method != QUERY:
            # RFC 9110 §13.1.2: a server answers such a condition by 412, unless the method is GET or HEAD.
            headers = without(headers, b"if-none-match", b"if-modified-since")
        return self.send(content.method, headers, content.body, bounded=bounded)

    async def send(self, method: str, headers: Headers, body: Any, *, bounded: bool = False) -> Fetched:
        """Send the request, and count its result. `bounded` as in `Upstream.fetch`. Raises UpstreamError."""
        began = time.perf_counter()
        result = "cancelled"
        try:
            patience = self.patience if self.sent_as is None else replace(self.patience, safe=True)
            fetched = await self.upstream.fetch(
                method,
                self.target,
                headers,
                body,
                self.interim,
                patience,
                bounded=bounded,
                changes=self.changes,
                request_id=self.request_id,
            )
            result = _STATUS_CLASSES[fetched.status // 100]
            if self.largest is not None:
                fetched = await self._limited(method, fetched, self.largest)
        except UpstreamError as error:
            result = error.kind
            raise
        finally:
            self.metrics.upstream(self.upstream.name, result, time.perf_counter() - began)
        return fetched

    async def _limited(self, method: str, fetched: Fetched, largest: int) -> Fetched:
        """The response, if its body may be so large. Raises UpstreamTooLarge."""
        length = first(fetched.headers, b"content-length")
        if method == "HEAD" or fetched.status in WITHOUT_CONTENT:
            return fetched
        if length is None:
            return structs.replace(fetched, body=LimitedBody(self.name, fetched.body, largest))
        if int(length) > largest:
            await fetched.body.aclose()
            raise too_large(self.name, largest)
        return fetched


async def send_past(
    engine: Engine, exchange: RequestContext, route: Route, origin: UpstreamOrigin, body: Any, target: str
) -> Fetched:
    """The upstream's response to a request for `target` that bypasses the cache; 412 if a precondition on a tag of the
    gateway is false. `origin` is of what would be stored. Raises UpstreamError."""
    is_read = exchange.method in ("GET", "HEAD") or origin.sent_as is not None
    headers = await _for_upstream(exchange, route, origin, is_read=is_read)
    if headers is None:
        await _outdate(engine, exchange, route, origin)
        failed = problem(exchange, 412, "The precondition is false for the current representation.")
        assert isinstance(failed.body, bytes)
        return Fetched(failed.status, failed.headers, WholeBody(failed.body))
    if is_read:
        headers = without_ignored(route.keying, headers)
    told = route.keying.constants
    sending = structs.replace(origin, target=target)
    sent = [*sent_host(route.keying, headers), *forwarded(exchange, headers, told, body=body is not None)]
    fetched = await sending.send(origin.sent_as or exchange.method, sent, body)
    if fetched.status == 304:
        return structs.replace(fetched, headers=as_known(exchange.headers, fetched.headers))
    return fetched


async def _for_upstream(
    exchange: RequestContext, route: Route, origin: UpstreamOrigin, *, is_read: bool
) -> Headers | None:
    """A request's fields with the preconditions that the upstream evaluates; None if one that the gateway evaluates is
    false. Raises UpstreamError."""
    headers: Headers | None = as_given(exchange.headers)
    assert headers is not None
    if is_read:
        headers = without_own(headers, b"if-none-match") if own_tags(headers, b"if-none-match") else headers
    names = [name for name in (b"if-match", b"if-none-match") if own_tags(headers, name)]
    tags = await _tags_now(exchange, route, origin) if names else (None, None)
    for name in names:
        headers = settled(headers, name, *tags) if headers is not None else None
    return headers


async def _outdate(engine: Engine, exchange: RequestContext, route: Route, origin: UpstreamOrigin) -> None:
    """Invalidate entries with a tag in `If-Match` that is no longer current: a client that gets a 412 reads again, and
    must not get the same tag. A tag that was never issued invalidates nothing."""
    asked = _read_by_all(exchange, route, origin)
    stored = engine.memory.get(asked.base)
    if stored is not None and own_tags(as_given(exchange.headers), b"if-match") & {*values(stored.headers, b"etag")}:
        await engine.invalidate([asked.primary])


def _read_by_all(exchange: RequestContext, route: Route, origin: UpstreamOrigin) -> Plan:
    """The plan of a read of a request's target whose answer is stored: without what would go past the cache."""
    keying = route.keying
    uncounted = [
        *((b"authorization",) if keying.authorization == "pass" else ()),
        *((b"cookie",) if not keying.cookies else ()),
    ]
    conditions = (b"if-match", b"if-unmodified-since", b"range")
    fields = without(exchange.headers, *uncounted, *conditions)
    return plan(keying, origin.name, origin.target, fields, content=origin.content)


async def _tags_now(
    exchange: RequestContext, route: Route, origin: UpstreamOrigin
) -> tuple[bytes | None, bytes | None]:
    """The upstream's tag of the current representation, or the gateway's if it has none. It is fetched like a response
    to be stored, which is what the gateway's tag was made for. Raises UpstreamError."""
    asked = _read_by_all(exchange, route, origin)
    try:
        async with asyncio.timeout(origin.deadline):
            fetched = await structs.replace(origin, interim=None).fetch("GET", asked.forward)
            try:
                body = await fetched.body.whole(route.max_body)
            finally:
                await fetched.body.aclose()
    except TimeoutError:
        raise UpstreamTimeout(origin.name, "no complete response before the deadline") from None
    if fetched.status >= 500:
        raise UpstreamUnreachable(origin.name, f"{fetched.status} in response to a precondition")
    if fetched.status != 200 or body is None:
        return None, None
    given = values(fetched.headers, b"etag")
    return (given[0], None) if given else (None, own_tag(body))


def forwarded(
    exchange: RequestContext, headers: Headers, told: Headers, *, body: bool = False
) -> list[tuple[bytes, bytes]]:
    """The fields of a request that bypasses the cache: the client's, and the forwarding fields.

    `told` are the forwarding fields of every fetch: with a `public_url` host and scheme are those of the URL, whatever
    the client's `Host`; otherwise a link made from it (such as a password reset) may lead to another host.
    """
    kept = passed_through(headers)
    if body or has(headers, b"content-length"):
        kept += [pair for pair in headers if pair[0] == b"content-length"]
    host = first(told, b"x-forwarded-host") or exchange.host
    scheme = first(told, b"x-forwarded-proto") or exchange.scheme
    known = [VIA]
    if exchange.forwarded_for:
        known.append((b"x-forwarded-for", exchange.forwarded_for.encode("latin-1")))
        known.append((b"forwarded", forwarded_element(exchange.forwarded_for, scheme, host)))
    known.append((b"x-forwarded-proto", scheme.encode("latin-1")))
    if host:
        known.append((b"x-forwarded-host", host.encode("latin-1")))
    return [*kept, *known]


def forwarded_element(chain: str, scheme: str, host: str) -> bytes:
    """`Forwarded` (RFC 7239) for the request: each address of the chain, and the requested host and scheme."""
    nodes = [f'for="[{node}]"' if ":" in node else f"for={node}" for node in chain.split(", ")]
    nodes[-1] += f";proto={scheme}"
    if host:
        nodes[-1] += f';host="{host}"'
    return ", ".join(nodes).encode("latin-1")


def public_constants(config: Config) -> tuple[tuple[bytes, bytes], ...]:
    """The forwarding fields of every fetch whose response may be stored: nothing about the client."""
    if config.public_url is None:
        return (VIA,)
    public = urlsplit(config.public_url)
    return (
        VIA,
        (b"x-forwarded-host", public.netloc.encode("latin-1")),
        (b"x-forwarded-proto", public.scheme.encode("latin-1")),
    )
