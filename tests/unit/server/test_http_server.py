"""A server on its own socket and on an adopted one, until it is drained. In a worker: test_worker.py."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import httpx
import pytest

from gateway.app.generations import Generations
from gateway.server.http_server import Server
from gateway.server.listener import listen, url_of
from gateway.testing import StubUpstream
from tests.support.gateways import gateway, json_answer


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[tuple[Server, Generations, httpx.AsyncClient]]:
    generations = Generations(gateway(StubUpstream(json_answer())))
    server, sock = Server(generations, lifespan=True), listen("127.0.0.1", 0, "port")
    task = asyncio.ensure_future(server.serve(sockets=[sock]))
    try:
        async with httpx.AsyncClient(base_url=url_of(sock), timeout=30) as client:
            await server.up.wait()
            yield server, generations, client
            server.should_exit = True
            await task
    finally:
        sock.close()


async def test_it_answers_on_an_adopted_socket_until_that_is_released() -> None:
    async with serving() as (server, _, client):
        other = listen("127.0.0.1", 0, "port")
        await server.adopt(1, other)
        url = url_of(other)
        assert [(await client.get(at)).status_code for at in ("/a", f"{url}/a")] == [200, 200]
        server.release(1)
        other.close()  # the server had a copy
        with pytest.raises(httpx.ConnectError):
            async with httpx.AsyncClient(timeout=30) as another:
                await another.get(url)
        assert (await client.get("/a")).status_code == 200


async def test_a_drained_server_answers_once_more_on_a_kept_connection_and_ends() -> None:
    async with serving() as (server, generations, client):
        assert "connection" not in (await client.get("/a")).headers
        draining = asyncio.ensure_future(server.drain(generations.guard, delay=0, linger=30, timeout=5))
        while not generations.guard.draining:
            await asyncio.sleep(0)
        assert (await client.get("/a")).headers["connection"] == "close"
        await draining
        assert server.should_exit
