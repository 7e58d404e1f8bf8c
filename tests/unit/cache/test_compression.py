"""Content codings: chosen by the client's weights, made once, each a representation with a tag of its own."""

from __future__ import annotations

import asyncio
import gzip
import tracemalloc
import zlib
from typing import Any

import brotli
import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_64_hexdigest

from gateway.app.gateway import Gateway
from gateway.cache.compression import Coded, compressed
from gateway.http.codings import Undecodable, decoded, plain_tag, tag_of, wanted, zstd
from gateway.testing import StubUpstream, TurnedClock, running
from tests.support.gateways import gateway

TEXT = b'{"name":"value"},' * 400
SUM = xxh3_64_hexdigest(b'"a"br')[:8].encode()
BR = tag_of(b'"v"', "br").decode()
TAGS = st.builds(
    lambda weak, opaque: (b"W/" if weak else b"") + b'"' + opaque + b'"',
    st.booleans(),
    st.binary(max_size=12).map(lambda data: data.translate(None, b'"')),
)
"""Entity tags, also of bytes that RFC 9110 does not allow in them."""
DECODE = {"zstd": zstd.decompress, "br": brotli.decompress, "gzip": gzip.decompress}


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        (None, None),
        ("", None),
        ("identity", None),
        ("gzip", "gzip"),
        ("x-gzip", "gzip"),
        ("GZIP", "gzip"),
        ("gzip, deflate, br, zstd", "zstd"),
        ("gzip, deflate, br", "br"),
        ("br;q=0.5, gzip;q=0.8", "gzip"),
        ("br;q=0, gzip", "gzip"),
        ("gzip;q=0", None),
        ("*", "zstd"),
        ("*;q=0", None),
        ("zstd;q=0, *;q=0.5", "br"),
        ("identity;q=1, gzip;q=0.5", None),
        ("identity;q=0.5, gzip;q=0.5", "gzip"),
        ("identity;q=0, deflate", None),
        ("deflate", None),
        ("gzip;q=nonsense, br", "br"),
        ("gzip;level=9", None),
        ("gzip ; q=0.4 , br ; q=0.3", "gzip"),
    ],
)
def test_the_coding_is_the_one_with_the_greatest_weight(accepted: str | None, coding: str | None) -> None:
    headers = [(b"accept-encoding", accepted.encode())] if accepted is not None else []
    assert wanted(headers, ("zstd", "br", "gzip")) == coding


@pytest.mark.parametrize("coding", list(DECODE))
def test_each_coding_gives_back_the_body_and_is_the_same_each_time(coding: str) -> None:
    assert DECODE[coding](compressed(coding, TEXT)) == TEXT
    assert compressed(coding, TEXT) == compressed(coding, TEXT)


def test_the_tag_of_a_coding_is_another_and_weak_where_the_plain_one_is() -> None:
    assert [tag_of(tag, "br") for tag in (b'"a"', b'W/"a"')] == [b'"a-br.%b"' % SUM, b'W/"a-br.%b"' % SUM]


def test_what_is_no_entity_tag_stays_with_the_plain_form_alone() -> None:
    headers = [(b"vary", b"*"), (b"etag", b"bare")]
    assert Coded("br", b"").told(headers, "br") == [(b"vary", b"*"), (b"content-encoding", b"br")]
    assert Coded("br", b"").told(headers, None) == headers


@settings(max_examples=300)
@given(TAGS, st.sampled_from(sorted(DECODE)))
def test_a_suffix_is_taken_off_again_and_nothing_that_is_none(tag: bytes, coding: str) -> None:
    assert plain_tag(tag_of(tag, coding)) == tag
    assert plain_tag(tag_of(tag_of(tag, coding), "br")) == tag_of(tag, coding)
    assert plain_tag(tag) == tag
    own = tag[:-1] + b"-" + coding.encode() + b'"'
    assert plain_tag(own) == own
    assert plain_tag(own[:-1] + b'.0123abcd"') == own[:-1] + b'.0123abcd"'


@pytest.mark.parametrize("vary", [b"Accept-Encoding, Accept", b"*"])
def test_a_vary_that_covers_the_coding_already_stays_as_it_was(vary: bytes) -> None:
    headers = [(b"vary", vary), (b"etag", b'"v"')]
    coded = Coded("br", b"")
    assert coded.told(headers, None) == headers
    assert coded.told(headers, "br") == [(b"vary", vary), (b"etag", BR.encode()), (b"content-encoding", b"br")]


def serving(
    content: bytes = TEXT, *, ttl: str | None = "10s", clock: Any = None, **headers: str
) -> tuple[Gateway, StubUpstream]:
    fields = {"content-type": "application/json", "etag": '"v"', "cache-control": "max-age=10"}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    upstream = StubUpstream(lambda _: httpx.Response(200, content=content, headers=fields))
    # Nothing but the coding is in its `Vary`.
    own = {"ttl": ttl, "vary": [], "authorization": "ignore", "cookies": "ignore"} if ttl else {}
    route = {"path": "/{path:path}", "upstream": "api", **own}
    return gateway(upstream, {"rest": route}, clock=clock), upstream


async def raw(client: httpx.AsyncClient, path: str = "/", **headers: str) -> tuple[httpx.Response, bytes]:
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    async with client.stream("GET", path, headers={"accept-encoding": "identity"} | fields) as response:
        return response, b"".join([piece async for piece in response.aiter_raw()])


@pytest.mark.parametrize("coding", list(DECODE))
async def test_text_is_given_plain_until_a_stored_response_is_asked_for_and_its_coding_made_behind(coding: str) -> None:
    app, upstream = serving()
    async with running(app) as client:
        first, plain = await raw(client, accept_encoding=coding)
        await app.engine.settle()
        assert app.engine.prepared.made == 0  # most responses that are fetched are never asked for again
        await raw(client, accept_encoding=coding)
        await app.engine.settle()
        second, body = await raw(client, accept_encoding=coding)
        other, whole = await raw(client)
    assert (plain, whole, DECODE[coding](body)) == (TEXT, TEXT, TEXT)
    assert [each.headers["vary"] for each in (first, second, other)] == ["accept-encoding"] * 3
    assert [each.headers["etag"] for each in (first, second, other)] == ['"v"', tag_of(b'"v"', coding).decode(), '"v"']
    assert (second.headers["content-encoding"], second.headers["content-length"]) == (coding, str(len(body)))
    assert "content-encoding" not in other.headers
    assert upstream.asked == 1


async def test_each_form_is_confirmed_by_its_own_tag() -> None:
    app, _ = serving()
    async with running(app) as client:
        for _ in range(2):
            await raw(client, accept_encoding="br")
            await app.engine.settle()
        answers = {
            tag: (await raw(client, accept_encoding="br", if_none_match=tag))[0] for tag in (BR, '"v"', '"w"', "*")
        }
    assert {tag: answer.status_code for tag, answer in answers.items()} == {
        BR: 304,
        '"v"': 304,
        '"w"': 200,
        "*": 304,
    }
    assert [answers[tag].headers["etag"] for tag in (BR, '"v"', "*")] == [BR, '"v"', BR]


@pytest.mark.parametrize(
    ("content", "headers"),
    [
        (b"x" * 1023, {}),
        (TEXT, {"cache_control": "max-age=10, no-transform"}),
        (TEXT, {"content_type": "image/png"}),
        (gzip.compress(TEXT) * 9, {"content_encoding": "gzip"}),
    ],
)
async def test_what_is_small_or_no_text_or_must_not_be_changed_stays_as_it_is(
    content: bytes, headers: dict[str, str]
) -> None:
    app, _ = serving(content, **headers)
    async with running(app) as client:
        for _ in range(2):
            response, body = await raw(client, accept_encoding="br")
            await app.engine.settle()
    assert (body, response.headers["etag"], "vary" in response.headers) == (content, '"v"', False)


async def test_a_route_that_follows_its_upstream_keeps_bodies_as_received() -> None:
    app, _ = serving(ttl=None)
    async with running(app) as client:
        for _ in range(2):
            response, body = await raw(client, accept_encoding="br")
            await app.engine.settle()
    assert (body, "content-encoding" in response.headers) == (TEXT, False)


async def test_what_does_not_shrink_is_given_plain() -> None:
    noise = bytes(range(33, 127)) * 1
    content = b"".join(bytes(reversed(noise[i:] + noise[:i])) for i in range(0, 94, 7))[:1100]
    app, _ = serving(content.translate(None, b"<>"))
    async with running(app) as client:
        for _ in range(3):
            response, body = await raw(client, accept_encoding="gzip")
            await app.engine.settle()
    made = app.engine.prepared.made
    assert made == 1
    assert ("content-encoding" in response.headers) == (len(body) < len(content) * 0.9)


async def test_a_range_is_one_of_the_plain_form() -> None:
    app, _ = serving()
    async with running(app) as client:
        for _ in range(2):
            await raw(client, accept_encoding="br")
            await app.engine.settle()
        part, body = await raw(client, accept_encoding="br", range="bytes=0-9")
        whole, _ = await raw(client, accept_encoding="br", range="bytes=0-9", if_range=BR)
    assert (part.status_code, part.headers["etag"], body) == (206, '"v"', TEXT[:10])
    assert (whole.status_code, whole.headers["etag"]) == (200, '"v"')


async def test_what_a_304_confirms_need_not_be_made_again(clock: TurnedClock) -> None:
    app, upstream = serving(clock=clock)
    async with running(app) as client:
        for _ in range(2):
            await raw(client, accept_encoding="br")
            await app.engine.settle()
        clock.turn(20)
        upstream.answer = lambda _: httpx.Response(304, headers={"etag": '"v"'})
        response, _ = await raw(client, accept_encoding="br")
        await app.engine.settle()
    assert (response.headers["content-encoding"], app.engine.prepared.made) == ("br", 1)


async def test_requests_that_share_a_fetch_have_the_coding_made() -> None:
    app, upstream = serving()
    async with running(app) as client:
        await asyncio.gather(*(raw(client, accept_encoding="br") for _ in range(2)))
        await app.engine.settle()
        response, _ = await raw(client, accept_encoding="br")
    assert (upstream.asked, response.headers["content-encoding"]) == (1, "br")


async def test_many_at_once_have_it_made_once() -> None:
    app, _ = serving()
    async with running(app) as client:
        await raw(client)
        await asyncio.gather(*(raw(client, accept_encoding="br") for _ in range(20)))
        await app.engine.settle()
    assert app.engine.prepared.made == 1


async def test_a_coding_counts_in_memory() -> None:
    app, _ = serving()
    async with running(app) as client:
        await raw(client)
        before = app.engine.memory.statistics.bytes
        await raw(client, accept_encoding="gzip")
        await app.engine.settle()
    assert app.engine.memory.statistics.bytes > before + len(compressed("gzip", TEXT))


# --- decoding ------------------------------------------------------------------------------------------------

PLAIN = b'{"a":1}' * 1000


def _raw_deflate(body: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(body) + compressor.flush()


def _zstd(body: bytes) -> bytes:
    return zstd.compress(body)


ENCODED = {
    "gzip": gzip.compress(PLAIN),
    "X-Gzip": gzip.compress(PLAIN[:50]) + gzip.compress(PLAIN[50:]) + b"\0\0",
    "deflate": zlib.compress(PLAIN),
    "DEFLATE": _raw_deflate(PLAIN),
    "br": brotli.compress(PLAIN),
    "zstd": _zstd(PLAIN[:50]) + _zstd(PLAIN[50:]),
    "gzip, identity, br": brotli.compress(gzip.compress(PLAIN)),
    "identity": PLAIN,
}


@pytest.mark.parametrize("coding", ENCODED)
def test_a_body_is_decoded_within_its_limit(coding: str) -> None:
    headers = ((b"content-encoding", coding.encode()),)
    assert decoded(headers, ENCODED[coding], len(PLAIN)) == PLAIN
    if coding != "identity":
        with pytest.raises(Undecodable, match="larger than 6999 bytes"):
            decoded(headers, ENCODED[coding], len(PLAIN) - 1)


@pytest.mark.parametrize("coding", [each for each in ENCODED if each != "identity"])
def test_a_body_that_is_cut_or_not_in_its_coding_is_refused(coding: str) -> None:
    headers, body = ((b"content-encoding", coding.encode()),), ENCODED[coding].rstrip(b"\0")
    for cut in (1, 5, len(body) // 2):
        with pytest.raises(Undecodable):
            decoded(headers, body[:-cut], len(PLAIN))
    with pytest.raises(Undecodable):
        decoded(headers, b"nonsense", len(PLAIN))


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
def test_nothing_is_nothing_in_any_coding(coding: str) -> None:
    for text in (coding, f"{coding}, gzip"):
        assert decoded(((b"content-encoding", text.encode()),), b"", 10) == b""
    assert decoded(((b"content-encoding", f"{coding}, gzip".encode()),), gzip.compress(b""), 10) == b""


def test_a_bomb_is_refused_before_it_is_large() -> None:
    zeros = b"\0" * 50_000_000
    for coding, body in (("gzip", gzip.compress(zeros)), ("br", brotli.compress(zeros)), ("zstd", _zstd(zeros))):
        tracemalloc.start()
        with pytest.raises(Undecodable, match="larger than 1000 bytes"):
            decoded(((b"content-encoding", coding.encode()),), body, 1000)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
        tracemalloc.stop()


def test_what_would_be_too_much_work_or_is_not_supported_is_refused() -> None:
    with pytest.raises(Undecodable, match="more than 4"):
        decoded(((b"content-encoding", b"gzip, gzip, gzip"), (b"content-encoding", b"gzip, br")), b"x", 100)
    with pytest.raises(Undecodable, match="not supported"):
        decoded(((b"content-encoding", b"compress"),), b"x", 100)
    for coding, member in ((b"gzip", gzip.compress(b"")), (b"zstd", _zstd(b""))):
        with pytest.raises(Undecodable, match="more than 100 members"):
            decoded(((b"content-encoding", coding),), member * 101, 100)
