"""Readers of what others send take a time that is linear in it, however small its elements are: four times as much
takes some four times as long, where a reader that copies what is left for each element takes sixteen."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import hiredis
import pytest

from gateway.cache.redis.reader import Pipe, _Turn
from gateway.http.headers import CacheControl, cookie_pairs, split_list
from gateway.http.json_text import json_text
from gateway.http.request_parser import ChunkedBody, LengthBody, Limits
from gateway.http.response_parser import Chunks, HeadForms, read_head
from gateway.routing.location import replaced
from gateway.testing import StubUpstream
from gateway.upstreams.connection import PlainConnection, Pool
from gateway.upstreams.plain_body import PlainBody
from gateway.upstreams.receiver import _end_of_head
from tests.support.gateways import gateway, json_answer, served

PIECE = 256 * 1024
"""Bytes that an event loop reads at once."""
MARGIN = 9


def seconds(work: Callable[[], object]) -> float:
    """The least processor time of three runs."""
    best = 1e9
    for _ in range(3):
        began = time.process_time()
        work()
        best = min(best, time.process_time() - began)
    return best


def pieces(data: bytes) -> list[bytes]:
    return [data[at : at + PIECE] for at in range(0, len(data), PIECE)]


def request_chunks(data: bytes) -> None:
    body = ChunkedBody(Limits(body=2**40, head=2**30, headers=10**9))
    for piece in pieces(data):
        assert body.take(piece, 0) == len(piece)
    assert body.done


def response_chunks(data: bytes) -> None:
    chunks = Chunks(2**30)
    for piece in pieces(data):
        chunks.take(piece)
    assert chunks.done


def a_value_for_a_pattern(data: bytes) -> None:
    """A head of a known form, but for a value that ends with a space."""
    forms, head = HeadForms(), b"HTTP/1.1 200 OK\r\nA: 1\r\nB: 2\r\n\r\n"
    for _ in range(65):
        forms.note(head, read_head(head, bodiless=False))
    assert forms.match(head) is not None
    assert forms.match(head.replace(b": 1", b": " + data)) is None


def in_pieces_of_one(data: bytes) -> None:
    body = LengthBody(len(data))
    for at in range(len(data)):
        body.take(data[at : at + 1], 0)
    assert body.done


def a_streamed_response(data: bytes) -> None:
    """A chunked response that nobody reads before it has ended."""

    async def receive() -> None:
        pool: Pool = Pool(None, limit=1, keepalive=1)  # type: ignore[arg-type]
        connection = PlainConnection(pool, 65_536)
        body = PlainBody(connection, asyncio.get_running_loop().create_future(), None)
        connection._body, connection._chunks = body, Chunks(2**30)
        for piece in pieces(data):
            connection._take_body(body, piece)
        assert len(body._pieces) <= len(pieces(data))
        assert body.ready()

    asyncio.run(receive())


def replies(data: bytes) -> None:
    """What Redis says, by the reader of the gateway's own connection."""

    async def read() -> None:
        pipe = Pipe(10.0, lambda *_: None, lambda turns: None)
        told: list[object] = []
        number = data.count(b"\r\n") // 2 - 1
        pipe._waiting.append((number, told.append))
        pipe._sent.append(_Turn(number, b"1", 0.0))
        for piece in pieces(data):
            pipe.data_received(piece)
        assert len(told) == 1

    asyncio.run(read())


def reply_of_redis(data: bytes) -> None:
    """One reply, by the reader of redis-py's connections."""
    reader = hiredis.Reader(notEnoughData=None)
    reply = None
    for piece in pieces(data):
        reader.feed(piece)
        reply = reader.gets()
    assert reply is not None


# 60,000 where the stack of a regular expression is larger than what the allocator keeps: each run faults its pages in.
CHUNK = b"1\r\nx\r\n"
ELEMENTS: dict[str, tuple[Callable[[bytes], object], bytes, bytes, bytes, int]] = {
    "chunks of a request": (request_chunks, b"", CHUNK, b"0\r\n\r\n", 20_000),
    "trailers of a request": (request_chunks, b"0\r\n", b"a:\r\n", b"\r\n", 20_000),
    "bytes of a request": (in_pieces_of_one, b"", b"x", b"", 50_000),
    "chunks of a response": (response_chunks, b"", CHUNK, b"0\r\n\r\n", 20_000),
    "trailers of a response": (response_chunks, b"0\r\n", b"a:\r\n", b"\r\n", 20_000),
    "a value where a pattern expects one": (a_value_for_a_pattern, b"a", b" a", b" ", 200_000),
    "chunks that wait to be read": (a_streamed_response, b"", CHUNK, b"0\r\n\r\n", 20_000),
    "interim heads before aiohttp's": (_end_of_head, b"", b"HTTP/1.1 103 E\r\n\r\n", b"", 20_000),
    "replies of Redis": (replies, b"", b"$0\r\n\r\n", b"$1\r\n1\r\n", 20_000),
    "elements of a reply": (reply_of_redis, b"", b"$1\r\nx\r\n", b"", 20_000),
    "elements of JSON": (json_text, b"[0", b",0", b"]", 50_000),
    "directives": (lambda data: CacheControl.parse([data.decode()]), b"", b"a,", b"", 20_000),
    "elements of a list": (lambda data: split_list(data.decode()), b"", b'"a",', b"", 20_000),
    "crumbs of a cookie": (lambda data: cookie_pairs([(b"cookie", data)], "b"), b"", b"a=b;", b"", 20_000),
    "links": (lambda data: replaced(b"link", data, lambda text: text), b"", b"<a>;b=c,", b"", 20_000),
    "parameters of a link": (lambda data: replaced(b"link", data, lambda text: text), b"<a>", b';b="c"', b"", 60_000),
    "anchors that are none": (lambda data: replaced(b"link", data, lambda text: text), b"<a>", b";anchor", b"", 60_000),
}


@pytest.mark.parametrize("kind", ELEMENTS)
def test_small_elements_take_a_linear_time(kind: str) -> None:
    work, start, element, end, count = ELEMENTS[kind]
    if kind == "elements of a reply":
        small, large = (b"*%d\r\n" % many + element * many for many in (count, 4 * count))
    else:
        small, large = (start + element * many + end for many in (count, 4 * count))
    assert seconds(lambda: work(large)) < MARGIN * max(seconds(lambda: work(small)), 0.001)


async def test_an_upload_in_chunks_of_a_byte_is_taken_in_a_linear_time() -> None:
    """With the parser, uvicorn's buffer and the upstream's connection."""

    async def spent(count: int) -> float:
        app = gateway(StubUpstream(json_answer()))
        async with served(app, http="gateway.edge:GatewayProtocol") as url:
            reader, writer = await asyncio.open_connection(*url.removeprefix("http://").split(":"))
            data = CHUNK * count + b"0\r\n\r\n"
            began = time.process_time()
            writer.write(
                b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n" + data
            )
            answer = await reader.read()
            taken = time.process_time() - began
            writer.close()
        assert answer.startswith(b"HTTP/1.1 200")
        return taken

    small = min([await spent(40_000) for _ in range(2)])
    assert await spent(160_000) < MARGIN * small


async def test_a_pipeline_of_small_requests_is_answered_in_a_linear_time() -> None:
    async def spent(count: int) -> float:
        app = gateway(StubUpstream(json_answer(cache_control="max-age=600")))
        async with served(app, http="gateway.edge:GatewayProtocol") as url:
            reader, writer = await asyncio.open_connection(*url.removeprefix("http://").split(":"))
            request = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"
            began = time.process_time()
            writer.write(request * (count - 1) + request[:-2] + b"Connection: close\r\n\r\n")
            answers = await reader.read()
            taken = time.process_time() - began
            writer.close()
        assert answers.count(b"HTTP/1.1 200") == count
        return taken

    small = min([await spent(1000) for _ in range(2)])
    assert await spent(4000) < MARGIN * small
