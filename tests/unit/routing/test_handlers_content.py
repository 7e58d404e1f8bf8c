"""Reads with content: QUERY, and POST where a route declares it as a read, through the cache."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from gateway.app.gateway import Gateway, create_app
from gateway.testing import StubUpstream, TurnedClock, running

SEARCH = {"path": "/search", "upstream": "api", "ttl": "60s", "methods": ["GET", "QUERY", "POST"], "reads": ["POST"]}
JSON = {"content-type": "application/json"}


class Searches(StubUpstream):
    """Answers with the number of the request, and keeps method, fields and content of each."""

    def __init__(self, **headers: str) -> None:
        self.seen: list[tuple[str, httpx.Headers, bytes]] = []
        self.status = 200
        self.fields = {name.replace("_", "-"): value for name, value in headers.items()}
        super().__init__(self._answer)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.seen.append((request.method, request.headers, request.content))
        return httpx.Response(self.status, json={"n": len(self.seen)}, headers=self.fields)


def site(upstream: httpx.AsyncBaseTransport, clock: Any = None, **route: Any) -> Gateway:
    """`route` changes the route `search`; None removes a setting."""
    search = {name: value for name, value in {**SEARCH, **route}.items() if value is not None}
    config = {"redis_url": "none", "upstreams": {"api": {"url": "http://api.test"}}, "routes": {"search": search}}
    return create_app(config, transport=upstream, clock=clock)


def status(response: httpx.Response) -> str:
    return response.headers["cache-status"]


async def test_simultaneous_reads_with_one_content_are_one_request() -> None:
    """Those with another content, or another method, wait for their own."""
    going, seen = asyncio.Event(), asyncio.Semaphore(0)

    class Slow(httpx.AsyncBaseTransport):
        def __init__(self) -> None:
            self.contents: list[bytes] = []

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            self.contents.append(request.method.encode() + await request.aread())
            seen.release()
            await going.wait()
            return httpx.Response(200, content=self.contents[-1])

    async with running(site(upstream := Slow(), body={"normalise": "json"})) as client:
        texts = (b'{"a":1,"b":2}', b'{"b": 2, "a": 1}', b'{"a":1}')
        asks = [
            asyncio.ensure_future(client.request(method, "/search", content=text, headers=JSON))
            for _ in range(5)
            for method in ("QUERY", "POST")
            for text in texts
        ]
        for _ in range(4):
            await asyncio.wait_for(seen.acquire(), 20)
        going.set()
        answers = await asyncio.gather(*asks)
    assert sorted(upstream.contents) == sorted(
        method + text for method in (b"QUERY", b"POST") for text in (texts[0], texts[2])
    )
    assert sum("collapsed" in status(answer) for answer in answers) == len(asks) - 4


@pytest.mark.parametrize("method", ["QUERY", "POST"])
async def test_the_second_request_with_the_same_content_is_a_hit(method: str) -> None:
    upstream = Searches()
    async with running(site(upstream)) as client:
        first = await client.request(method, "/search", json={"q": "shoes"})
        second = await client.request(method, "/search", json={"q": "shoes"})
        other = await client.request(method, "/search", json={"q": "hats"})
    assert "fwd=miss; stored" in status(first)
    assert "gateway; hit" in status(second)
    assert second.content == first.content != other.content
    assert [(verb, body) for verb, _, body in upstream.seen] == [(method, b'{"q":"shoes"}'), (method, b'{"q":"hats"}')]


async def test_method_content_and_its_type_are_in_the_key() -> None:
    upstream = Searches()
    body = {"types": ["application/json", "text/*"]}
    requests: list[tuple[str, str, dict[str, str], bytes]] = [
        ("QUERY", "/search", JSON, b"1"),
        ("POST", "/search", JSON, b"1"),
        ("QUERY", "/search?page=2", JSON, b"1"),
        ("QUERY", "/search", {"content-type": "text/plain"}, b"1"),
        ("QUERY", "/search", {"content-type": "application/json; charset=utf-8"}, b"1"),
        ("QUERY", "/search", {**JSON, "content-language": "de"}, b"1"),
        ("QUERY", "/search", {**JSON, "content-encoding": "gzip"}, b"1"),
        ("QUERY", "/search", JSON, b"1 "),
        ("QUERY", "/search", JSON, b""),
    ]
    async with running(site(upstream, body=body)) as client:
        answers = [
            await client.request(method, target, headers=headers, content=content)
            for _ in range(2)
            for method, target, headers, content in requests
        ]
    assert len(upstream.seen) == len(requests)
    assert all("hit" in status(answer) for answer in answers[len(requests) :])
    sent = [(verb, fields["content-type"], body) for verb, fields, body in upstream.seen]
    assert sent == [(method, headers["content-type"], content) for method, _, headers, content in requests]


async def test_a_get_of_the_same_target_is_another_response() -> None:
    upstream = Searches()
    async with running(site(upstream)) as client:
        await client.request("QUERY", "/search", json={"q": "shoes"})
        assert "fwd=miss" in status(await client.get("/search"))
        assert "hit" in status(await client.get("/search"))


async def test_with_upstream_method_both_methods_are_one_read() -> None:
    upstream = Searches()
    async with running(site(upstream, upstream_method="POST")) as client:
        await client.request("QUERY", "/search", json={"q": "shoes"})
        second = await client.post("/search", json={"q": "shoes"})
    assert "hit" in status(second)
    assert [verb for verb, _, _ in upstream.seen] == ["POST"]


def permuted(value: Any, order: random.Random) -> Any:
    if isinstance(value, dict):
        pairs = list(value.items())
        order.shuffle(pairs)
        return {name: permuted(each, order) for name, each in pairs}
    return [permuted(each, order) for each in value] if isinstance(value, list) else value


async def test_a_thousand_spellings_of_one_search_make_one_request() -> None:
    upstream = Searches()
    order = random.Random(18)
    names = {f"name{number}": {"deep": [{"a": 1, "b": "ü"}], "n": number} for number in range(6)}
    async with running(site(upstream, body={"normalise": "json"})) as client:
        for number in range(1000):
            text = json.dumps(permuted(names, order), indent=number % 5 or None, ensure_ascii=number % 2 == 0)
            kind = "application/json" if number % 3 else "Application/JSON; charset=UTF-8"
            answer = await client.request("QUERY", "/search", content=text, headers={"content-type": kind})
            assert answer.json() == {"n": 1}
    (_, fields, body), *more = upstream.seen
    assert not more
    assert body == json.dumps(names, separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode()
    assert fields["content-type"] == "application/json"
    assert fields["content-length"] == str(len(body))


@pytest.mark.parametrize(
    "headers",
    [
        {"cache-control": "no-transform"},
        {"content-digest": "sha-256=:abc=:"},
        {"content-type": "application/json; charset=iso-8859-1"},
        {"content-type": "text/json"},
    ],
)
async def test_content_that_may_not_be_changed_is_sent_as_it_came(headers: dict[str, str]) -> None:
    upstream = Searches()
    body = {"normalise": "json", "types": "*/*"}
    async with running(site(upstream, body=body)) as client:
        for text in (b'{"b": 1, "a": 2}', b'{"b": 1, "a": 2}', b'{"a":2,"b":1}'):
            await client.request("QUERY", "/search", content=text, headers={**JSON, **headers})
    assert [sent for _, _, sent in upstream.seen] == [b'{"b": 1, "a": 2}', b'{"a":2,"b":1}']


async def test_content_that_cannot_be_in_the_key_bypasses_the_cache_and_says_why() -> None:
    upstream = Searches()
    async with running(site(upstream, body={"max": "16B"})) as client:
        await client.get("/search")
        for _ in range(2):
            large = await client.request("QUERY", "/search", content=b'"%b"' % (b"x" * 40), headers=JSON)
            assert status(large).endswith("fwd=bypass; fwd-status=200; detail=content-too-large")
            kind = await client.post("/search", content=b"q=1", headers={"content-type": "text/plain"})
            assert "fwd=bypass" in status(kind)
            assert "detail=content-type" in status(kind)
            assert "detail=content-type" in status(await client.request("QUERY", "/search", content=b"q=1"))
        assert "hit" in status(await client.get("/search"))  # none of them was taken for a write
    assert [len(body) for _, _, body in upstream.seen] == [0, 42, 3, 3, 42, 3, 3]


async def test_chunked_content_is_read_up_to_the_limit_and_then_streamed_on() -> None:
    async def pieces(count: int) -> AsyncIterator[bytes]:
        for _ in range(count):
            yield b"12345"

    upstream = Searches()
    async with running(site(upstream, body={"max": "16B"}, upstream_method="POST")) as client:
        for count in (3, 3, 4, 4):
            await client.request("QUERY", "/search", content=pieces(count), headers=JSON)
    assert [(verb, len(body)) for verb, _, body in upstream.seen] == [("POST", 15), ("POST", 20), ("POST", 20)]
    assert upstream.seen[0][1]["content-length"] == "15"


@pytest.mark.parametrize("method", ["QUERY", "POST"])
async def test_a_client_that_has_the_response_gets_a_304(method: str) -> None:
    async with running(site(Searches(etag='"v1"'))) as client:
        await client.request(method, "/search", json={"q": 1})
        known = await client.request(method, "/search", json={"q": 1}, headers={"if-none-match": '"v1"'})
        other = await client.request(method, "/search", json={"q": 1}, headers={"if-none-match": '"v2"'})
    assert (known.status_code, known.content) == (304, b"")
    assert other.status_code == 200


async def test_query_is_validated_at_the_upstream_and_post_is_fetched_whole() -> None:
    upstream, clock = Searches(etag='"v1"'), TurnedClock()
    async with running(site(upstream, clock)) as client:
        for method in ("QUERY", "POST"):
            await client.request(method, "/search", json={"q": 1})
            clock.turn(61)
            await client.request(method, "/search", json={"q": 1})
    conditions = [(verb, fields.get("if-none-match")) for verb, fields, _ in upstream.seen]
    assert conditions == [("QUERY", None), ("QUERY", '"v1"'), ("POST", None), ("POST", None)]


async def test_a_failing_upstream_is_covered_by_the_stale_response() -> None:
    upstream, clock = Searches(), TurnedClock()
    async with running(site(upstream, clock, stale_if_error="10m")) as client:
        fresh = await client.post("/search", json={"q": 1})
        clock.turn(61)
        upstream.status = 503
        stale = await client.post("/search", json={"q": 1})
        unknown = await client.post("/search", json={"q": 2})
    assert (stale.status_code, stale.content) == (200, fresh.content)
    assert unknown.status_code == 503


async def test_a_purge_of_the_path_or_a_tag_reaches_the_variants_of_its_content() -> None:
    upstream = Searches()
    app = site(upstream, tags=["searches"])
    async with running(app) as client:
        for purge in ({"keys": ["/search"]}, {"tags": ["searches"]}, {"routes": ["search"]}):
            await client.request("QUERY", "/search", json={"q": 1})
            assert "hit" in status(await client.request("QUERY", "/search", json={"q": 1}))
            await app.purge(**purge)
            assert "fwd=miss" in status(await client.request("QUERY", "/search", json={"q": 1}))


async def test_a_write_invalidates_what_a_read_stored_and_a_declared_read_does_not() -> None:
    async with running(site(Searches(), methods="any")) as client:
        await client.get("/search")
        await client.post("/search", json={"q": 1})
        assert "hit" in status(await client.get("/search"))
        await client.put("/search", json={"q": 1})
        assert "fwd=miss" in status(await client.get("/search"))
        assert "fwd=miss" in status(await client.post("/search", json={"q": 1}))


async def test_query_without_a_declaration_is_forwarded_and_invalidates_nothing() -> None:
    async with running(site(Searches(), methods="any", reads=None)) as client:
        await client.get("/search")
        for _ in range(2):
            assert "fwd=method" in status(await client.request("QUERY", "/search", json={"q": 1}))
        assert "hit" in status(await client.get("/search"))


async def test_identities_bypass_the_cache_with_their_content_as_it_came() -> None:
    upstream = Searches()
    async with running(site(upstream, body={"normalise": "json"})) as client:
        for _ in range(2):
            headers = {**JSON, "authorization": "Bearer one"}
            answer = await client.request("QUERY", "/search", content=b'{"b": 1, "a": 2}', headers=headers)
            assert "detail=authorization" in status(answer)
    assert [(fields["authorization"], body) for _, fields, body in upstream.seen] == [
        ("Bearer one", b'{"b": 1, "a": 2}')
    ] * 2


async def test_an_upstream_that_decides_sees_the_content_and_its_fields_once() -> None:
    upstream = Searches(cache_control="max-age=60", vary="x-shop")
    async with running(site(upstream, ttl="origin", body={"normalise": "json"})) as client:
        for shop in ("a", "b", "a"):
            await client.request("QUERY", "/search", content=b'{"b": 1, "a": 2}', headers={**JSON, "x-shop": shop})
    assert [(fields["x-shop"], fields.get_list("content-type"), body) for _, fields, body in upstream.seen] == [
        ("a", ["application/json"], b'{"a":2,"b":1}'),
        ("b", ["application/json"], b'{"a":2,"b":1}'),
    ]


async def test_a_range_of_a_search_is_the_whole() -> None:
    upstream = Searches(cache_control="max-age=60")
    async with running(site(upstream, ttl="origin")) as client:
        for _ in range(2):
            answer = await client.request("QUERY", "/search", json={"q": 1}, headers={"range": "bytes=0-1"})
            assert (answer.status_code, answer.json()) == (200, {"n": 1})
    assert all("range" not in fields for _, fields, _ in upstream.seen)


async def test_what_may_be_queried_is_said_with_the_methods() -> None:
    async with running(
        site(Searches(), methods=["GET", "QUERY"], reads=None, body={"types": ["a/b", "c/*"]})
    ) as client:
        options = await client.options("/search")
        refused = await client.delete("/search")
    assert (options.status_code, options.headers["allow"]) == (204, "GET, HEAD, QUERY, OPTIONS")
    assert options.headers["accept-query"] == refused.headers["accept-query"] == "a/b, c/*"
    assert refused.status_code == 405
