"""TLS of a client's connection: the same answers as without, and handshakes that are slow, refused or none."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import pytest

from gateway.app.gateway import Gateway
from gateway.config.models import ListenTlsConfig
from gateway.edge.certificate import Certificate
from gateway.edge.protocol import GatewayProtocol
from gateway.edge.tls import TlsConnection
from gateway.testing import StubUpstream
from tests.support.gateways import json_answer, served
from tests.support.raw_requests import GET, HOST
from tests.support.tls import Authority
from tests.support.wire import QUICK, Wire, guarded, refused_by

PLAIN = GET + HOST + b"\r\n"
Connect = Callable[..., Any]


@pytest.fixture
def certificate(ours: Authority) -> Certificate:
    cert, key = ours.issue("gateway.test", alternative="IP:127.0.0.1")
    return Certificate(ListenTlsConfig(cert=str(cert), key=str(key)))


@pytest.fixture
def client(ours: Authority) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(ours.certificate))
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


async def until(condition: Callable[[], bool]) -> None:
    """Return once the gateway is in that state; the test's time limit ends the waiting."""
    while not condition():
        await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def tls_door(app: Any, certificate: Certificate) -> AsyncIterator[Connect]:
    """Serves `app` by TLS; gives a function that opens a connection, with a context or, without one, by TCP alone."""
    http = partial(TlsConnection, certificate, GatewayProtocol)
    async with served(app, http=http) as url, contextlib.AsyncExitStack() as stack:
        port = int(url.rpartition(":")[2])

        async def connect(context: ssl.SSLContext | None = None) -> Wire:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
            stack.callback(writer.transport.abort)
            return Wire(reader, writer)

        yield connect


async def test_requests_are_answered_and_the_connection_is_kept(
    certificate: Certificate, client: ssl.SSLContext
) -> None:
    upstream = StubUpstream(json_answer(cache_control="no-store"))
    async with tls_door(guarded(upstream), certificate) as connect:
        wire = await connect(client)
        assert wire.writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
        for number in range(1, 4):
            wire.send(PLAIN)
            status, _, body = await wire.answer()
            assert (status, body) == (200, b'{"n":%d}' % number)
        wire.send(b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 0\r\n\r\n")
        assert (await wire.answer())[0] == 200
    assert upstream.requests[-1].headers["x-forwarded-proto"] == "https"


async def test_a_hit_and_a_large_pipeline_are_the_same_as_without(
    certificate: Certificate, client: ssl.SSLContext
) -> None:
    async with tls_door(guarded(), certificate) as connect:
        wire = await connect(client)
        wire.send(PLAIN * 2000)
        for _ in range(2000):
            status, _, body = await wire.answer()
            assert (status, body) == (200, b'{"n":1}')


async def test_a_head_in_many_records_is_put_together(certificate: Certificate, client: ssl.SSLContext) -> None:
    async with tls_door(guarded(), certificate) as connect:
        wire = await connect(client)
        for byte in PLAIN:
            wire.send(bytes((byte,)))
        assert (await wire.answer())[0] == 200


async def test_a_refusal_arrives_whole_and_ends_the_session(certificate: Certificate, client: ssl.SSLContext) -> None:
    async with tls_door(guarded(), certificate) as connect:
        wire = await connect(client)
        wire.send(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n" + b"x" * 100_000)
        assert (await wire.answer())[0] == 400
        assert await wire.ended()  # by close_notify: a cut would be an error


async def test_versions_below_the_lowest_are_refused(ours: Authority, client: ssl.SSLContext) -> None:
    cert, key = ours.issue("gateway.test", alternative="IP:127.0.0.1")
    app = guarded()
    async with tls_door(app, Certificate(ListenTlsConfig(cert=str(cert), key=str(key), min="1.3"))) as connect:
        client.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
            await connect(client)
        assert refused_by(app) == {"handshake": 1}


async def test_http_on_this_port_is_answered_by_what_to_do(certificate: Certificate) -> None:
    app = guarded()
    async with tls_door(app, certificate) as connect:
        wire = await connect()
        wire.send(PLAIN)
        status, _, body = await wire.answer()
        assert status == 400
        assert b"use https" in body
        assert await wire.ended()
        assert refused_by(app) == {"not_tls": 1}


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02\x00\x01\x00", b"\x16"])
async def test_a_handshake_that_stands_still_is_ended(sent: bytes, certificate: Certificate) -> None:
    app = guarded(limits=QUICK)
    async with tls_door(app, certificate) as connect:
        wire = await connect()
        wire.send(sent)
        assert len(app.guard) == 1
        assert await wire.ended()
        await until(lambda: len(app.guard) == 0)
        assert refused_by(app) == {"slow_handshake": 1}


async def test_what_is_no_handshake_is_refused(certificate: Certificate) -> None:
    app = guarded()
    async with tls_door(app, certificate) as connect:
        wire = await connect()
        wire.send(b"\x00" * 4000)
        await wire.rest()
        assert refused_by(app) == {"handshake": 1}


async def test_one_connection_too_many_gets_no_handshake(certificate: Certificate, client: ssl.SSLContext) -> None:
    app = guarded(limits={"connections": 1})
    async with tls_door(app, certificate) as connect:
        wire = await connect(client)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await connect(client)
        assert refused_by(app) == {"connections": 1}
        wire.send(PLAIN)
        assert (await wire.answer())[0] == 200


async def test_new_connections_get_the_changed_certificate_and_open_ones_go_on(
    certificate: Certificate, client: ssl.SSLContext, ours: Authority
) -> None:
    async with tls_door(guarded(), certificate) as connect:
        before = await connect(client)
        cert, key = ours.issue("other.test", alternative="IP:127.0.0.1")
        certificate.configure(ListenTlsConfig(cert=str(cert), key=str(key)))
        after = await connect(client)
        subjects = [wire.writer.get_extra_info("peercert")["subject"][0][0][1] for wire in (before, after)]
        assert subjects == ["gateway.test", "other.test"]
        for wire in (before, after):
            wire.send(PLAIN)
            assert (await wire.answer())[0] == 200


async def test_a_client_that_reads_nothing_is_cut_off(certificate: Certificate, client: ssl.SSLContext) -> None:
    app: Gateway = guarded(StubUpstream(json_answer(x="x" * 60_000)), limits=QUICK)
    async with tls_door(app, certificate) as connect:
        wire = await connect(client)
        wire.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        wire.reader._transport.pause_reading()  # type: ignore[attr-defined]
        wire.send(PLAIN * 300)
        await until(lambda: len(app.guard) == 0)


async def test_the_clients_end_of_the_session_ends_the_connection(
    certificate: Certificate, client: ssl.SSLContext
) -> None:
    app = guarded()
    async with tls_door(app, certificate) as connect:
        wire = await connect(client)
        await until(lambda: len(app.guard) == 1)
        wire.writer.close()
        await until(lambda: len(app.guard) == 0)


async def test_renegotiation_is_refused_and_a_connection_that_is_cut_in_its_handshake_is_forgotten(
    certificate: Certificate,
) -> None:
    app = guarded()
    async with tls_door(app, certificate) as connect:
        wire = await connect()
        port = wire.writer.get_extra_info("peername")[1]
        wire.send(b"\x16\x03\x01")
        await until(lambda: len(app.guard) == 1)
        wire.writer.transport.abort()
        await until(lambda: len(app.guard) == 0)
        client = await asyncio.create_subprocess_exec(
            *("openssl", "s_client", "-tls1_2", "-connect", f"127.0.0.1:{port}", "-servername", "any.test"),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        assert client.stdin is not None
        await until(lambda: len(app.guard) == 1)
        client.stdin.write(b"R\n")
        said, _ = await asyncio.wait_for(client.communicate(), 20)
        assert b"no renegotiation" in said
        assert b"CN = gateway.test" in said
        await until(lambda: len(app.guard) == 0)
