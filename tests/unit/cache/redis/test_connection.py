"""A deadline that does not take the loop's own standing still for the other side's silence."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import ResponseError

from gateway.cache.redis.connection import BoundedParser, Deadline, connect, is_cluster
from gateway.cache.redis.store import RedisStore
from gateway.server.embedded_redis import Embedded
from tests.support.proxy import faulty_url


async def test_what_takes_longer_is_ended() -> None:
    with pytest.raises(TimeoutError):
        async with Deadline(0.01):
            await asyncio.Event().wait()


async def test_what_is_over_in_time_is_not_touched_and_leaves_no_timer() -> None:
    async with Deadline(0.01):
        pass
    await asyncio.sleep(0.03)


async def test_who_is_cancelled_hears_of_that_and_of_no_deadline() -> None:
    async def waiting() -> None:
        async with Deadline(60.0):
            await asyncio.Event().wait()

    task = asyncio.ensure_future(waiting())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_answer_that_came_while_the_loop_stood_still_is_taken() -> None:
    answer = asyncio.get_running_loop().create_future()
    ours, theirs = await _pair(answer)
    async with Deadline(0.05):
        theirs.write(b"x")
        time.sleep(0.15)  # noqa: ASYNC251 - as a neighbour on the processor does
        assert await ours.read(1) == b"x"
    theirs.close()
    answer.set_result(None)


async def test_a_timer_that_comes_late_lets_the_loop_read_once_more_and_no_longer() -> None:
    # As on uvloop, which runs its timers before it reads.
    for ready in (True, False):
        deadline, answer = Deadline(60.0), asyncio.get_running_loop().create_future()
        if ready:
            asyncio.get_running_loop().call_later(0.0, answer.set_result, b"x")
        async with contextlib.AsyncExitStack() as stack:
            if not ready:
                stack.enter_context(pytest.raises(TimeoutError))
            await stack.enter_async_context(deadline)
            deadline._handle.cancel()
            deadline._due -= 120.0
            deadline._comes()
            await answer


async def _pair(end: asyncio.Future[None]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    came: asyncio.Queue[asyncio.StreamReader] = asyncio.Queue()

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.put_nowait(reader)
        await end
        writer.close()

    server = await asyncio.start_server(hold, "127.0.0.1", 0)
    _, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
    server.close()
    return await came.get(), writer


async def test_redis_is_not_left_alone_because_the_loop_stood_still(redis_store: RedisStore) -> None:
    redis_store._budget = 0.05
    assert await redis_store.write([("name", b"value", 60.0)])
    for _ in range(4):
        reading = asyncio.ensure_future(redis_store.read(["name"]))
        while not redis_store._reads._under_way:
            await asyncio.sleep(0)
        await asyncio.sleep(0)  # it is sent
        time.sleep(0.12)  # noqa: ASYNC251 - as a neighbour on the processor does
        assert await reading == [b"value"]
    assert (redis_store.available, redis_store.statistics.failures) == (True, 0)


@pytest.mark.parametrize("url", ["redis://a", "rediss://a", "redis+sentinel://a/main", "redis+cluster://a:1,b:2"])
async def test_every_client_reads_with_the_parser_that_bounds_what_it_takes(url: str) -> None:
    client = connect(url, 1.0)
    made = client.connection_kwargs if is_cluster(client) else client.connection_pool.connection_kwargs
    assert made["parser_class"] is BoundedParser


def test_options_of_tls_reach_a_clusters_nodes_and_sentinels_master() -> None:
    nodes = connect("rediss+cluster://cache?ssl_ca_certs=/ca.pem&ssl_check_hostname=no", 1.0).connection_kwargs
    assert (nodes["ssl_ca_certs"], nodes["ssl_check_hostname"]) == ("/ca.pem", False)
    master = connect("rediss+sentinel://cache/main?ssl_cert_reqs=none", 1.0).connection_pool.connection_kwargs
    assert master["ssl_cert_reqs"] == "none"


async def test_the_connections_to_sentinels_are_closed_with_the_client(valkey: Embedded) -> None:
    async with faulty_url(valkey.url) as proxy:
        client = connect(f"redis+sentinel://{proxy.host}:{proxy.port}/main", 5.0)
        with pytest.raises(ResponseError, match="SENTINEL"):  # which only a Sentinel knows
            await client.get("key")
        assert proxy.open == 1
        await client.aclose()
        await proxy.until(lambda: proxy.open == 0)


def made_by(client: Any) -> Any:
    """A connection as a client makes it, which is not opened."""
    if is_cluster(client):
        [node] = client.startup_nodes
        assert node.connection_class is client.connection_kwargs["connection_class"]
        return node.connection_class(**node.connection_kwargs)
    return client.connection_pool.make_connection()


@pytest.mark.parametrize("kind", ["rediss://a{}", "rediss+cluster://a{}", "rediss+sentinel://a/main{}"])
async def test_connections_by_tls_share_the_authorities_that_they_trust(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("once")
    same = [made_by(connect(kind.format(f"?ssl_ca_certs={file}"), 1.0)) for _ in range(2)]
    assert same[0].ssl_context is same[1].ssl_context
    assert same[0].ca_certs == str(file)
    others = [made_by(connect(kind.format(query), 1.0)) for query in ("", "?ssl_cert_reqs=none")]
    os.utime(file, (1, 1))  # it was changed
    others.append(made_by(connect(kind.format(f"?ssl_ca_certs={file}"), 1.0)))
    assert len({id(each.ssl_context) for each in (*same, *others)}) == 4
    assert others[0].ssl_context.get() is others[0].ssl_context.get()


async def test_a_sentinels_own_connections_share_them_too() -> None:
    pool = connect("rediss+sentinel://a/main?ssl_cert_reqs=none", 1.0).connection_pool
    [sentinel] = pool.sentinel_manager.sentinels
    first, second = sentinel.connection_pool.make_connection(), sentinel.connection_pool.make_connection()
    assert first.ssl_context is second.ssl_context
