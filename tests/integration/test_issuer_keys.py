"""Keys of an issuer, at two gateways of two workers: rotated, asked for by names that nobody has, and outlived."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from uuid import uuid4

import aiohttp
import pytest

from tests.support.processes import GatewayProcess, MakeValkey, StartGateway
from tests.support.scale import size
from tests.support.tokens import TestIssuer

FLOOD = size("unknown_keys")
CLIENTS = 16
EVERY = 10.0
"""Seconds for which one request for an unknown key is enough: `unknown_kid_every`."""


class KeyServer:
    """Serves an issuer's keys, and counts how often."""

    def __init__(self) -> None:
        self.url = ""
        self.document = b""
        self.requests = 0

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server:
            yield

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.requests += 1
        head = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(self.document)
        writer.write(head + self.document)
        await writer.drain()
        writer.close()


def token(issuer: TestIssuer, kid: str | None = None) -> str:
    now = time.time()
    header = {} if kid is None else {"kid": kid}
    return issuer.sign("Ed25519", header=header, iat=now - 60, exp=now + 3600).decode()


async def statuses(gateways: Sequence[GatewayProcess], tokens: Sequence[str]) -> list[int]:
    """The statuses of a request with each token: each on a connection of its own, so that any worker gets it."""
    waiting = list(enumerate(tokens))
    found: list[int] = []

    async def client(session: aiohttp.ClientSession) -> None:
        while waiting:
            number, credential = waiting.pop()
            url = f"{gateways[number % len(gateways)].url}/items/1"
            async with session.get(url, headers={"authorization": f"Bearer {credential}"}) as response:
                await response.read()
                found.append(response.status)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True)) as session:
        await asyncio.gather(*(client(session) for _ in range(CLIENTS)))
    return found


@pytest.mark.timeout(240)
async def test_keys_are_rotated_at_once_sought_rarely_and_outlive_their_issuer(
    start_gateway: StartGateway, make_valkey: MakeValkey, origin: str
) -> None:
    valkey = make_valkey()
    old, new, server = TestIssuer(), TestIssuer(), KeyServer()
    new.keys["Ed25519"] = type(key := new.keys["Ed25519"]).import_key({**key.as_dict(private=True), "kid": "new"})
    server.document = old.jwks
    async with server.serving():
        old.url = new.url = server.url
        settings = {
            "redis_url": valkey.url,
            "workers": 2,
            "access_log": False,
            "upstreams": {"api": {"url": origin}},
            "identity": {"shop": {"issuer": server.url, "jwks": f"{server.url}/keys", "audience": "shop-api"}},
            "routes": {"items": {"upstream": "api", "path": "/items/{id}", "ttl": "1h", "identity": ["shop"]}},
        }

        async def fleet(*names: str) -> list[GatewayProcess]:
            return await asyncio.gather(*(asyncio.to_thread(start_gateway, settings, name=name) for name in names))

        gateways = await fleet("one", "two")
        known, rotated = [token(old)] * 4 * CLIENTS, [token(new)] * 4 * CLIENTS
        assert set(await statuses(gateways, known)) == {200}
        assert server.requests == 1

        server.document = json.dumps({"keys": [*json.loads(old.jwks)["keys"], *json.loads(new.jwks)["keys"]]}).encode()
        began = time.monotonic()
        assert set(await statuses(gateways, rotated)) == {200}
        accepted = time.monotonic() - began
        assert server.requests == 2

        strange = [token(new, str(uuid4())) for _ in range(FLOOD)]
        began, before = time.monotonic(), server.requests
        assert set(await statuses(gateways, strange)) == {401}
        seconds, fetches = time.monotonic() - began, server.requests - before
        assert fetches <= seconds // EVERY + 1

    for each in gateways:
        await asyncio.to_thread(each.end)
    gateways = await fleet("another")
    assert set(await statuses(gateways, known + rotated)) == {200}
    print(
        f"{len(rotated)} requests by a new key let in within {accepted:.2f} s; {FLOOD} unknown keys in {seconds:.1f} "
        f"s: {fetches} fetches; {2 * len(known)} requests let in after a restart without the issuer"
    )
