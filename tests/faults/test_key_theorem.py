"""The theorem of the key, on a whole gateway (SECURITY.md): whoever is answered from what was stored for another would
have sent the upstream the very same request.

Two requests go to one gateway. Where the second is answered by the first one's fetch, it is sent to a second gateway
that has stored nothing: what the two upstreams saw must be the same, but for the request id.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from gateway.app.gateway import Gateway
from gateway.http.headers import is_dangerous
from tests.support.gateways import gateway
from tests.support.key_requests import EXAMPLES, FIELDS, PAIRS, number

Request = tuple[str, str, list[tuple[str, str]]]

TIMED = {
    "plain": {"ttl": "60s"},
    "chosen query": {"ttl": "60s", "query": ["a", "b"]},
    "vary": {"ttl": "60s", "vary": ["accept", "x-tenant"], "drop_query": ["b"]},
    "authorization in the key": {"ttl": "60s", "authorization": "key", "cookies": ["session"]},
    "both ignored": {"ttl": "60s", "authorization": "ignore", "cookies": "ignore"},
    "another path": {"ttl": "60s", "upstream_path": "/v2/{path}?fixed=1"},
}
FOLLOWING = {
    "plain": {},
    "credentials in the key": {"authorization": "key", "cookies": ["session", "lang"]},
    "ignored": {"authorization": "ignore", "cookies": "ignore", "query": ["a"]},
}

PIECES = ["x", "X", "%78", "%2e", ".", "..", "x;y", "a b", "%41", "é", "", "x:y", "a=b", "%0a", "%2f", "accept:a"]

requests = st.tuples(
    st.lists(st.sampled_from(PIECES), max_size=2).map("/".join),
    st.lists(st.sampled_from(PAIRS), max_size=3).map("&".join),
    st.lists(st.sampled_from(FIELDS), max_size=4, unique_by=lambda field: field[0].lower()),
)
twins = requests.flatmap(
    # Often the same but for one thing: two random requests seldom have one key.
    lambda one: st.tuples(
        st.just(one),
        st.one_of(
            requests,
            st.builds(lambda fields: (one[0], one[1], fields), requests.map(lambda other: other[2])),
            st.builds(lambda query: (one[0], query, one[2]), requests.map(lambda other: other[1])),
            st.permutations(one[1].split("&")).map(lambda pairs: (one[0], "&".join(pairs), one[2])),
        ),
    )
)


class Recorder(httpx.AsyncBaseTransport):
    """An upstream that remembers what it was sent, and answers so that it may be stored."""

    def __init__(self, **headers: str) -> None:
        self.seen: list[httpx.Request] = []
        self._headers = headers

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(request)
        return httpx.Response(200, text=str(len(self.seen)), headers=self._headers)


def facts(request: httpx.Request) -> tuple[str, bytes, list[tuple[bytes, bytes]]]:
    """What the upstream can see of a request, but for its id and the trace it belongs to."""
    fields = [(name.lower(), value) for name, value in request.headers.raw]
    ours = (b"x-request-id", b"traceparent", b"if-none-match", b"if-modified-since")
    return request.method, request.url.raw_path, sorted(pair for pair in fields if pair[0] not in ours)


async def sent(app: Gateway, request: Request, prefix: str) -> int:
    path, query, fields = request
    messages: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Any) -> None:
        messages.append(message)

    names = {name.lower() for name, _ in fields}
    headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in fields]
    raw = f"/{prefix}/{path}".encode("latin-1")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": raw.decode("latin-1"),
        "raw_path": raw,
        "query_string": query.encode("latin-1"),
        "root_path": "",
        "headers": headers if "host" in names else [*headers, (b"host", b"gateway.test")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    await app(scope, receive, send)
    return int(messages[0]["status"])


async def pair(config: dict[str, Any], one: Request, two: Request, **headers: str) -> list[httpx.Request] | None:
    """What two upstreams saw of two requests; None where the second was not answered from the first one's fetch."""
    first, second = Recorder(**headers), Recorder(**headers)
    routes = {"route": {"path": "/{path:path}", "upstream": "api", **config}}
    apps = gateway(first, routes), gateway(second, routes)
    prefix = f"n{next(number)}"
    if await sent(apps[0], one, prefix) != 200 or len(first.seen) != 1:
        return None
    if await sent(apps[0], two, prefix) not in (200, 206, 304) or len(first.seen) != 1:
        return None
    await sent(apps[1], two, prefix)
    return [*first.seen, *second.seen]


MANY = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.mark.parametrize("config", TIMED.values(), ids=TIMED.keys())
@MANY
@given(twins)
def test_with_a_duration_the_upstream_would_have_seen_the_same(
    config: dict[str, Any], both: tuple[Request, Request]
) -> None:
    seen = asyncio.run(pair(config, *both, Cache_Control="max-age=60"))
    event("one key" if seen else "two keys")
    if seen:
        assert facts(seen[0]) == facts(seen[1])


@pytest.mark.parametrize("config", FOLLOWING.values(), ids=FOLLOWING.keys())
@pytest.mark.parametrize("vary", ["", "accept, x-tenant"])
@MANY
@given(twins)
def test_with_ttl_origin_only_harmless_fields_that_the_upstream_does_not_vary_on_differ(
    config: dict[str, Any], vary: str, both: tuple[Request, Request]
) -> None:
    headers = {"cache-control": "max-age=60", **({"vary": vary} if vary else {})}
    seen = asyncio.run(pair(config, *both, **headers))
    event("one key" if seen else "two keys")
    if not seen:
        return
    (method, path, fields), (other_method, other_path, other_fields) = map(facts, seen)
    assert (method, path) == (other_method, other_path)
    differ = {name for name, _ in {*fields} ^ {*other_fields}}
    assert not differ & {b"authorization", b"cookie", b"host"}
    assert not differ & {name.strip().encode() for name in vary.split(",")}
    assert not any(is_dangerous(name) for name, _ in [*fields, *other_fields])
