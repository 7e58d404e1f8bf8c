"""One client's connection: which of its bytes are processed, in which order, and within which time."""

from __future__ import annotations

import asyncio
import inspect
import socket
import time
from pathlib import Path

import httpx
import pytest
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from gateway.edge.client_connection import INTERNALS
from gateway.edge.protocol import GatewayProtocol
from gateway.testing import StubUpstream
from tests.support.gateways import json_answer, served
from tests.support.raw_requests import ACCEPTED, GET, HOST, POST
from tests.support.wire import QUICK, Wire, door, guarded, refused_by


async def test_what_is_well_formed_passes_whole_and_byte_by_byte() -> None:
    async with door(guarded()) as connect:
        for name, sent in ACCEPTED.items():
            for pieces in ([sent], [bytes((each,)) for each in sent]):
                wire = await connect()
                for piece in pieces:
                    wire.send(piece)
                    await asyncio.sleep(0)
                status, _, body = await wire.answer()
                if status == 100:
                    status, _, body = await wire.answer()
                assert (name, status, body[:5]) == (name, 200, b'{"n":')


async def test_a_connection_is_kept_after_an_upgrade_that_was_ignored() -> None:
    async with door(guarded()) as connect:
        wire = await connect()
        for sent in (ACCEPTED["an upgrade to HTTP/2"], ACCEPTED["a body"], ACCEPTED["a plain request"]):
            wire.send(sent)
            assert (await wire.answer())[0] == 200


async def test_a_pipeline_of_a_thousand_is_answered_in_order_one_at_a_time() -> None:
    upstream = StubUpstream(json_answer(cache_control="no-store"))
    async with door(guarded(upstream)) as connect:
        wire = await connect()
        wire.send(b"".join(b"GET /%d HTTP/1.1\r\n" % number + HOST + b"\r\n" for number in range(1000)))
        for number in range(1000):
            status, _, body = await wire.answer()
            assert (status, body) == (200, b'{"n":%d}' % (number + 1))
    assert [request.url.path for request in upstream.requests] == [f"/{number}" for number in range(1000)]


async def test_a_refusal_in_a_pipeline_comes_after_the_answers_before_it() -> None:
    upstream = StubUpstream(json_answer())
    async with door(guarded(upstream)) as connect:
        wire = await connect()
        upstream.gate.clear()
        wire.send(GET + HOST + b"\r\n" + GET + b"\r\n")
        await upstream.came.acquire()
        upstream.gate.set()
        assert [(await wire.answer())[0] for _ in range(2)] == [200, 400]
        assert await wire.ended()


async def test_trailers_do_not_become_headers() -> None:
    upstream = StubUpstream(json_answer())
    async with door(guarded(upstream)) as connect:
        wire = await connect()
        wire.send(POST + b"Transfer-Encoding: chunked\r\n\r\n")
        wire.send(b"1\r\na\r\n0\r\nAuthorization: secret\r\nX-Trailer: v\r\n\r\n")
        assert (await wire.answer())[0] == 200
    assert not {"authorization", "x-trailer"} & set(upstream.requests[0].headers)


async def test_a_head_refused_gets_its_answer_without_a_body_for_HEAD() -> None:
    async with door(guarded()) as connect:
        wire = await connect()
        wire.send(b"HEAD / HTTP/1.1\r\nHost: a b\r\n\r\n")
        answer = await wire.rest()
        assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
@pytest.mark.parametrize("before", [b"GET", b"HEAD"])
async def test_part_of_a_head_is_refused_by_its_own_method(before: bytes, method: bytes) -> None:
    async with door(guarded()) as connect:
        wire = await connect()
        wire.send(before + b" / HTTP/1.1\r\n" + HOST + b"\r\n")
        head = await wire.reader.readuntil(b"\r\n\r\n")
        if before == b"GET":
            await wire.reader.readexactly(int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0]))
        wire.send(method + b" / HTTP/1.1\r\nA: \0")
        head, _, body = (await wire.rest()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ")
        assert (body == b"") is (method == b"HEAD")


async def test_a_body_that_stalls_is_answered_with_408_and_the_upstream_request_ends() -> None:
    app = guarded(limits=QUICK)
    async with door(app) as connect:
        wire = await connect()
        wire.send(POST + b"Content-Length: 1000\r\n\r\nabc")
        assert (await wire.answer())[0] == 408
        assert await wire.ended()
        await app.engine.settle()
    assert refused_by(app) == {"slow_body": 1.0}


async def test_a_client_that_reads_nothing_is_cut_off() -> None:
    app = guarded(StubUpstream(lambda request: _large()), limits=QUICK, max_body="64MiB")
    async with door(app) as connect:
        wire = await connect()
        wire.writer.transport.pause_reading()  # type: ignore[attr-defined]
        wire.send(GET + HOST + b"\r\n")
        while len(app.guard) == 0:
            await asyncio.sleep(0.01)
        while len(app.guard):
            await asyncio.sleep(0.05)
        wire.writer.transport.resume_reading()  # type: ignore[attr-defined]
        with pytest.raises(ConnectionResetError):
            await wire.reader.read()


async def test_the_first_heads_time_begins_with_the_connection_and_anothers_with_its_first_byte() -> None:
    app = guarded()
    async with door(app) as connect:
        wire = await connect()
        while not app.guard._connections:
            await asyncio.sleep(0)
        (connection,) = app.guard._connections
        assert isinstance(connection, GatewayProtocol)
        due = connection._deadline
        for each in GET[:3]:
            wire.send(bytes((each,)))
            taken = len(connection._buffer)
            while len(connection._buffer) == taken:
                await asyncio.sleep(0)
            assert connection._deadline == due
        wire.send(GET[3:] + HOST + b"\r\n")
        assert (await wire.answer())[0] == 200
        idle = connection._deadline
        assert idle - due > 60
        wire.send(b"G")
        while not connection._buffer:
            await asyncio.sleep(0)
        assert due < connection._deadline < idle - 60


@pytest.mark.parametrize(("unsent", "ended"), [((5000, 4999, 4998), True), ((5000, 1, 5000, 2, 6000), False)])
async def test_a_client_must_take_so_much_of_what_it_is_sent(unsent: tuple[int, ...], ended: bool) -> None:
    app = guarded(limits={"write_timeout": "8s"})
    async with door(app) as connect:
        await connect()
        while not app.guard._connections:
            await asyncio.sleep(0)
        (connection,) = app.guard._connections
        assert isinstance(connection, GatewayProtocol)
        now = time.perf_counter()
        for number, size in enumerate(unsent):
            connection.transport.get_write_buffer_size = lambda size=size: size  # type: ignore[method-assign]
            assert not connection.transport.is_closing()
            connection._watch_writing(now + 8 * number / (len(unsent) - 1))
        assert connection.transport.is_closing() is ended


async def test_a_client_that_reads_a_stream_which_is_faster_than_it_is_not_reset() -> None:
    class Stream:
        written = 0

        def cancel(self) -> None: ...
        def make_last(self) -> bool:
            return False

    app = guarded(limits={"write_timeout": "8s"})
    async with door(app) as connect:
        await connect()
        while not app.guard._connections:
            await asyncio.sleep(0)
        (connection,) = app.guard._connections
        assert isinstance(connection, GatewayProtocol)
        connection._asking = stream = Stream()
        for second in range(10):
            stream.written = 2000 * second
            connection.transport.get_write_buffer_size = lambda at=second: 1000 + 1000 * at  # type: ignore[method-assign]
            connection._watch_writing(time.perf_counter() + second)
        assert not connection.transport.is_closing()


def _large() -> httpx.Response:
    return httpx.Response(200, content=b"x" * 32 * 1024 * 1024)


async def test_a_slow_upstream_is_no_fault_of_the_client() -> None:
    upstream = StubUpstream(json_answer())
    app = guarded(upstream, limits={"head_timeout": "600ms", "keep_alive": "600ms"})
    async with door(app) as connect:
        upstream.gate.clear()
        wire = await connect()
        wire.send(GET + HOST + b"\r\n")
        await asyncio.sleep(1.5)
        upstream.gate.set()
        assert (await wire.answer())[0] == 200


def test_uvicorn_is_as_the_protocol_knows_it() -> None:
    for kind, names in INTERNALS.items():
        source = inspect.getsource(kind)
        moved = [name for name in names if f"self.{name}" not in source and f"def {name}(" not in source]
        assert not moved, (
            f"uvicorn's {kind.__name__} has moved {moved}: adapt gateway/edge/client_connection.py, then INTERNALS"
        )


def test_the_protocol_is_uvicorns() -> None:
    assert issubclass(GatewayProtocol, HttpToolsProtocol)
    assert set(INTERNALS) == {HttpToolsProtocol, RequestResponseCycle}


async def test_the_gateways_own_attributes_are_not_in_the_instance_dictionary_which_stays_small() -> None:
    config = uvicorn.Config(guarded(), log_config=None)
    ours, uvicorns = GatewayProtocol(config, ServerState(), {}), HttpToolsProtocol(config, ServerState(), {})
    assert set(vars(ours)) == set(vars(uvicorns))
    assert len({*vars(ours), "url"}) <= 30  # CPython's limit for attributes stored in line


async def test_the_protocol_serves_over_a_unix_socket_too(tmp_path: Path) -> None:
    place = str(tmp_path / "door")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(place)
        async with served(guarded(), sock=sock, http=GatewayProtocol, proxy_headers=False):
            wire = Wire(*await asyncio.open_unix_connection(place))
            for expected in ("gateway; fwd=miss; stored; fwd-status=200", "gateway; hit; ttl=59"):
                wire.send(GET + HOST + b"\r\n")
                assert (await wire.answer())[1]["cache-status"] == expected
            wire.writer.close()
