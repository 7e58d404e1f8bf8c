"""Digests (RFC 9530, RFC 3230, RFC 1864) describe the bytes that are sent, in every form, or are left out."""

from __future__ import annotations

import base64
import gzip
import hashlib
from typing import Any

import httpx
import pytest

from gateway.app.gateway import Gateway
from gateway.http.ranges import PartialBody, combine
from gateway.testing import StubUpstream, TurnedClock, running
from tests.support.gateways import gateway, served
from tests.support.raw import Connection, raw_upstream

TEXT = b'{"name":"value"},' * 400
NAMES = ("content-digest", "content-md5", "repr-digest", "digest")


def sha(data: bytes) -> str:
    return base64.b64encode(hashlib.sha256(data).digest()).decode()


def digests(content: bytes, representation: bytes) -> dict[str, str]:
    return {
        "content-digest": f"sha-256=:{sha(content)}:",
        "content-md5": base64.b64encode(hashlib.md5(content).digest()).decode(),
        "repr-digest": f"sha-256=:{sha(representation)}:",
        "digest": f"sha-256={sha(representation)}",
    }


def upstream_of(
    text: bytes = TEXT, *, etag: str = '"v"', cache_control: str = "max-age=60", **more: str
) -> StubUpstream:
    """`text` under every path, whole or in parts, described by all four digests."""
    fields = {"etag": etag, "cache-control": cache_control, "content-type": "application/json", **more}

    def answer(request: httpx.Request) -> httpx.Response:
        if request.headers.get("if-none-match") == etag:
            return httpx.Response(304, headers={**fields, **digests(b"", text)})
        asked = request.headers.get("range", "")
        if not asked.startswith("bytes="):
            return httpx.Response(200, content=text, headers={**fields, **digests(text, text)})
        first, _, last = asked.removeprefix("bytes=").partition("-")
        part = text[int(first) : int(last or len(text)) + 1]
        said = {"content-range": f"bytes {first}-{int(first) + len(part) - 1}/{len(text)}"}
        return httpx.Response(206, content=part, headers={**fields, **digests(part, text), **said})

    return StubUpstream(answer)


def app_of(upstream: StubUpstream, ttl: str = "60s", **settings: Any) -> Gateway:
    route = {"path": "/{path:path}", "upstream": "api", "ttl": ttl}
    return gateway(upstream, {"rest": route}, **settings)


async def read(client: httpx.AsyncClient, method: str = "GET", **headers: str) -> tuple[httpx.Response, bytes]:
    fields = {"accept-encoding": "identity"} | {name.replace("_", "-"): value for name, value in headers.items()}
    async with client.stream(method, "/doc", headers=fields) as response:
        return response, b"".join([piece async for piece in response.aiter_raw()])


def told(response: httpx.Response) -> dict[str, str]:
    return {name: response.headers[name] for name in NAMES if name in response.headers}


def agree(response: httpx.Response, content: bytes, representation: bytes) -> bool:
    """Whether every digest that stands there is right, and those of the representation stand there."""
    right = digests(content, representation)
    return all(right[name] == value for name, value in told(response).items()) and "repr-digest" in response.headers


@pytest.mark.parametrize("ttl", ["60s", "origin"])
@pytest.mark.parametrize("cache_control", ["max-age=60", "no-store"])
async def test_they_describe_what_is_sent_passed_on_stored_or_in_part(ttl: str, cache_control: str) -> None:
    async with running(app_of(upstream_of(cache_control=cache_control), ttl)) as client:
        for _ in range(2):
            whole, body = await read(client)
            assert (told(whole), body) == (digests(TEXT, TEXT), TEXT)
            part, body = await read(client, range="bytes=3-9")
            assert (part.status_code, body, agree(part, body, TEXT)) == (206, TEXT[3:10], True)
            known, body = await read(client, if_none_match='"v"')
            assert (known.status_code, agree(known, b"", TEXT)) == (304, True)
            head, body = await read(client, "HEAD")
            assert "content-digest" not in told(head) or ttl == "origin"
            assert agree(head, TEXT, TEXT)


async def test_a_compressed_form_has_none_of_the_plain_one() -> None:
    app = app_of(upstream_of())
    async with running(app) as client:
        for _ in range(3):
            coded, body = await read(client, accept_encoding="gzip")
            await app.engine.settle()
        known, _ = await read(client, accept_encoding="gzip", if_none_match=coded.headers["etag"])
        part, piece = await read(client, accept_encoding="gzip", range="bytes=0-9")
    assert (coded.headers["content-encoding"], gzip.decompress(body), told(coded)) == ("gzip", TEXT, {})
    assert (known.status_code, told(known)) == (304, {})
    assert (part.status_code, piece, agree(part, piece, TEXT)) == (206, TEXT[:10], True)


async def test_a_304_changes_no_digest_of_the_stored_bytes(clock: TurnedClock) -> None:
    """What it says of content is said of none; what it says of the representation may be said of other bytes, where
    the tag is weak."""
    upstream = upstream_of(etag='W/"v"')
    async with running(app_of(upstream, "10s", clock=clock)) as client:
        await read(client)
        clock.turn(20)
        fields = {"etag": 'W/"v"', **digests(b"", b"other")}
        upstream.answer = lambda _: httpx.Response(304, headers=fields)
        again, body = await read(client)
    assert (told(again), body, upstream.asked) == (digests(TEXT, TEXT), TEXT, 2)


async def test_a_head_that_freshens_changes_none_either(clock: TurnedClock) -> None:
    upstream = upstream_of()
    async with running(app_of(upstream, "origin", clock=clock)) as client:
        await read(client)
        fields = {"etag": '"v"', "cache-control": "max-age=99", "x-new": "1", **digests(b"", b"other")}
        upstream.answer = lambda _: httpx.Response(200, headers=fields)
        await read(client, "HEAD", cache_control="no-cache")
        again, _ = await read(client)
    assert (again.headers["x-new"], told(again)) == ("1", digests(TEXT, TEXT))


async def test_a_part_of_a_stored_part_and_a_whole_made_of_parts() -> None:
    upstream = upstream_of()
    async with running(app_of(upstream, "origin")) as client:
        first, body = await read(client, range="bytes=0-99")
        assert (body, told(first)) == (TEXT[:100], digests(body, TEXT))
        piece, body = await read(client, range="bytes=10-19")
        assert (upstream.asked, body, agree(piece, body, TEXT)) == (1, TEXT[10:20], True)
        whole, body = await read(client)
    assert (whole.status_code, body, agree(whole, body, TEXT)) == (200, TEXT, True)
    assert upstream.requests[-1].headers["range"] == "bytes=100-"


async def test_a_part_that_is_shorter_than_it_said_is_sent_with_its_own_length() -> None:
    fields = {"cache-control": "max-age=60", "content-range": "bytes 4-9/10"}
    upstream = StubUpstream(lambda _: httpx.Response(206, content=b"01234", headers=fields))
    async with running(app_of(upstream, "origin")) as client:
        await read(client, range="bytes=-5")
        piece, body = await read(client, range="bytes=6-")
    assert (body, piece.headers["content-length"], upstream.asked) == (b"234", "3", 1)


def test_parts_put_together_have_the_digest_of_neither() -> None:
    def piece(first: int, last: int) -> PartialBody:
        content = TEXT[first : last + 1]
        fields = {"etag": '"v"', "content-range": f"bytes {first}-{last}/{len(TEXT)}", **digests(content, TEXT)}
        return PartialBody([(name.encode(), value.encode()) for name, value in fields.items()], content)

    joined = combine(piece(0, 9), piece(10, 19))
    assert joined is not None
    assert [name.decode() for name, _ in joined.headers] == ["etag", "repr-digest", "digest", "content-range"]


@pytest.mark.parametrize("status", [200, 503])
async def test_the_head_of_what_cannot_be_stored_has_no_digest_of_content(status: int) -> None:
    fields = {"cache-control": "no-store", **digests(TEXT, TEXT)}
    upstream = StubUpstream(lambda _: httpx.Response(status, content=TEXT, headers=fields))
    async with running(app_of(upstream)) as client:
        head, _ = await read(client, "HEAD")
    assert (head.status_code, sorted(told(head))) == (status, ["digest", "repr-digest"])


@pytest.mark.parametrize("framing", ["Transfer-Encoding: chunked\r\nTrailer: Repr-Digest, ETag", "Content-Length: 5"])
async def test_trailers_describe_nothing_here_and_lengths_are_those_of_the_bytes(framing: str) -> None:
    """A digest, a tag or a length in trailers is not merged into the fields of what is stored (RFC 9110 §6.5.1)."""
    chunked = "chunked" in framing
    trailers = b'Repr-Digest: sha-256=:AAAA:\r\nETag: "t"\r\nContent-Length: 3\r\n'
    body = b"5\r\nhello\r\n0\r\n" + trailers + b"\r\n" if chunked else b"hello"

    async def script(connection: Connection) -> None:
        while await connection.request():
            said = f"HTTP/1.1 200 OK\r\nContent-Digest: sha-256=:{sha(b'hello')}:\r\n{framing}\r\n\r\n"
            await connection.send(said.encode() + body)

    async with raw_upstream(script) as raw:
        routes = {"rest": {"path": "/{path:path}", "upstream": "api", "ttl": "60s"}}
        app = gateway(None, routes, upstreams={"api": {"url": raw.url}})
        async with served(app, http="gateway.edge:GatewayProtocol") as url, httpx.AsyncClient(base_url=url) as client:
            for _ in range(3):
                answer, content = await read(client)
                assert (content, answer.headers["content-length"]) == (b"hello", "5")
                assert told(answer) == {"content-digest": f"sha-256=:{sha(b'hello')}:"}
                assert "trailer" not in answer.headers
                assert answer.headers["etag"] != '"t"'
