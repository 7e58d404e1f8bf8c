"""Requests without a body: their bytes, and what is leaned on in aiohttp."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from gateway.upstreams.connection import INTERNALS, request_head
from tests.support.raw import OK, Connection, always, raw_upstream, speaking_to


def test_what_is_used_of_aiohttp_is_there() -> None:
    missing = [
        f"{kind.__name__}.{name}" for kind, names in INTERNALS.items() for name in names if not hasattr(kind, name)
    ]
    assert not missing, f"this aiohttp has no {', '.join(missing)}: see gateway/upstreams/connection.py"


def test_a_request_is_its_line_its_fields_as_they_are_and_an_empty_line() -> None:
    head = request_head("GET", b"/a?b=%2C", [(b"host", b"api.test"), (b"x-name", "grün".encode("latin-1"))])
    assert head == b"GET /a?b=%2C HTTP/1.1\r\nhost: api.test\r\nx-name: gr\xfcn\r\n\r\n"


@pytest.mark.parametrize("value", [b"a\r\nx: y", b"a\nb", b"a\rb", b"a\0b"])
def test_a_field_that_would_end_its_line_is_not_sent(value: bytes) -> None:
    for field in ((b"x-a", value), (value, b"x")):
        with pytest.raises(httpx.LocalProtocolError):
            request_head("GET", b"/", [field])


@pytest.mark.parametrize("target", [b"", b"a", b"/a b", b"/a\r\nx: y", b"/\xc3\xbc"])
def test_a_target_that_is_none_is_not_sent(target: bytes) -> None:
    with pytest.raises(httpx.LocalProtocolError):
        request_head("GET", target, [])


async def test_another_protocol_that_nobody_asked_for_is_an_error_and_ends_the_connection() -> None:
    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n")
        await connection.closed()

    async with raw_upstream(script) as raw:
        upstream = speaking_to(raw)
        with pytest.raises(Exception, match="invalid or incomplete"):
            await upstream.fetch("GET", "/", [])
        assert upstream._transport.connections_in_use == 0  # type: ignore[attr-defined]
        await upstream.aclose()


async def test_connections_of_both_kinds_have_one_limit() -> None:
    async with raw_upstream(always(OK)) as raw:
        upstream = speaking_to(raw, max_connections=4)
        for methods in ("GET GET GET GET", "OPTIONS OPTIONS OPTIONS", "GET GET OPTIONS OPTIONS", "GET GET GET GET"):
            fetched = await asyncio.gather(*(upstream.fetch(method, "/", []) for method in methods.split()))
            for each in fetched:
                assert await each.body.whole(10) == b"ok"
                await each.body.aclose()
            await asyncio.sleep(0.05)  # until the server has seen what was closed
            assert raw.open <= 4
        await upstream.aclose()
