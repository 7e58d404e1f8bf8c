"""Active checks, circuit breakers and the slow start of hosts that come back, with real servers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from gateway.app.gateway import create_app
from gateway.app.generations import Generations
from gateway.config.loader import Loaded, load
from gateway.config.models import Config
from gateway.config.upstream import UpstreamConfig
from gateway.edge import GatewayProtocol
from gateway.errors import ConfigError, UpstreamCircuitOpen
from gateway.observability.access_log import silent
from gateway.testing import running
from gateway.upstreams.client import Upstream
from tests.support.gateways import gateway, served
from tests.support.raw import Connection, ask, raw_upstream

CHECK = {"path": "/health?deep=1", "every": "100ms", "timeout": "500ms", "healthy_after": 2, "unhealthy_after": 2}


class Server:
    """Answers with its name; checks with `status`. `checked` is released for each check."""

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.status = b"204 No Content"
        self.requests = 0
        self.heads: list[bytes] = []
        self.checked = asyncio.Semaphore(0)

    async def __call__(self, connection: Connection) -> None:
        while head := await connection.request():
            if b" /base/health?deep=1 " in head:
                self.heads.append(head)
                self.checked.release()
                await connection.send(b"HTTP/1.1 %b\r\nContent-Length: 0\r\n\r\n" % self.status)
            else:
                self.requests += 1
                await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n" + self.name)

    async def until(self, true: Callable[[], bool]) -> None:
        """Look after each check whether it is so."""
        async with asyncio.timeout(20):
            while not true():
                await self.checked.acquire()
                await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def two(**settings: Any) -> AsyncIterator[tuple[Upstream, Server, Server]]:
    one, other = Server(b"a"), Server(b"b")
    async with raw_upstream(one) as a, raw_upstream(other) as b:
        urls = [f"{each.url}/base" for each in (a, b)]
        config = {"urls": urls, "health": CHECK, "slow_start": "0s", "headers": {"x-key": "k"}, **settings}
        upstream = Upstream("up", UpstreamConfig.model_validate(config))
        upstream.start()
        upstream.start()  # a second time changes nothing
        try:
            yield upstream, one, other
        finally:
            await upstream.aclose()


@pytest.mark.parametrize("transport", ["aiohttp", "httpx"])
async def test_a_host_whose_check_fails_gets_no_requests_until_it_succeeds_again(
    transport: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gateway")
    async with two(transport=transport, host="api.internal") as (upstream, one, _):
        assert {(await ask(upstream))[1] for _ in range(4)} == {b"a", b"b"}
        one.status = b"503 Service Unavailable"
        await one.until(lambda: not upstream.hosts[0].healthy)
        assert {(await ask(upstream))[1] for _ in range(6)} == {b"b"}
        one.status = b"200 OK"
        await one.until(lambda: upstream.hosts[0].healthy)
        assert {(await ask(upstream))[1] for _ in range(4)} == {b"a", b"b"}
        assert b"host: api.internal\r\n" in one.heads[0].lower()
        assert b"x-key: k\r\n" in one.heads[0].lower()
    told = [record.getMessage().partition(": ")[2] for record in caplog.records]
    name = upstream.hosts[0].name
    assert told == [f"{name} is unhealthy and gets no requests: status 503", f"{name} is healthy again"]
    assert not [task for task in asyncio.all_tasks() if "_watch" in repr(task.get_coro())]


async def test_without_a_healthy_host_requests_are_refused_and_readiness_says_so() -> None:
    server = Server(b"a")
    async with raw_upstream(server) as raw:
        settings = {"url": f"{raw.url}/base", "health": {**CHECK, "unhealthy_after": 1}}
        routes = {"all": {"path": "/{path:path}", "upstream": "up", "ttl": "0s", "stale_if_error": "60s"}}
        app = gateway(None, routes, upstreams={"up": settings})
        upstream = app.upstreams["up"]
        async with running(app) as client:
            assert (await client.get("/page")).text == "a"
            assert "upstreams_without_host" not in (await client.get("/readyz")).json()
            server.status = b"500 Broken"
            await server.until(lambda: not upstream.hosts[0].healthy)
            asked = server.requests
            assert (await client.get("/page")).text == "a"  # stale
            refused = await client.get("/other")
            assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
            assert server.requests == asked
            ready = await client.get("/readyz")
            assert (ready.status_code, ready.json()["upstreams_without_host"]) == (200, ["up"])
            healthy = [
                sample.value
                for family in app.metrics.collect()
                if family.name == "gateway_upstream_healthy"
                for sample in family.samples
            ]
            assert healthy == [0.0]
            server.status = b"200 OK"
            await server.until(lambda: upstream.hosts[0].healthy)
            assert (await client.get("/other")).text == "a"


async def test_a_host_that_does_not_answer_its_check_is_unhealthy() -> None:
    async def silent(connection: Connection) -> None:
        await connection.closed()

    settings = {**CHECK, "timeout": "50ms", "unhealthy_after": 1}
    async with raw_upstream(silent) as raw:
        for url in (raw.url, "http://127.0.0.1:1"):
            upstream = Upstream("up", UpstreamConfig.model_validate({"url": url, "health": settings}))
            upstream.start()
            async with asyncio.timeout(10):
                while upstream.hosts[0].healthy:
                    await asyncio.sleep(0.01)
            with pytest.raises(UpstreamCircuitOpen, match="no healthy host"):
                await ask(upstream)
            await upstream.aclose()


class Turned:
    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at


async def test_a_host_that_comes_back_gets_a_growing_share() -> None:
    clock = Turned()
    async with contextlib.AsyncExitStack() as stack:
        urls = [(await stack.enter_async_context(raw_upstream(Server(name)))).url for name in (b"a", b"b")]
        config = UpstreamConfig.model_validate({"urls": urls, "slow_start": "10s"})
        upstream = Upstream("up", config, monotonic=clock)

        async def share() -> int:
            return Counter([(await ask(upstream))[1] for _ in range(100)])[b"a"]

        upstream.hosts[0].judge("status 503")
        assert await share() == 0
        upstream.hosts[0].judge(None)
        shares = []
        for _ in range(4):
            shares.append(await share())
            clock.at += 4
        assert shares[0] < 12
        assert shares == sorted(shares)
        assert shares[-1] == 50
        # Where no other can be used, it takes all.
        upstream.hosts[0].judge(None)
        upstream.hosts[1].judge("status 503")
        assert await share() == 100
        await upstream.aclose()


async def test_a_circuit_breaker_is_logged_once_as_it_opens_and_once_as_it_closes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "gateway")
    status = b"500 Broken"

    async def script(connection: Connection) -> None:
        while await connection.request():
            await connection.send(b"HTTP/1.1 %b\r\nContent-Length: 0\r\n\r\n" % status)

    clock = Turned()
    async with raw_upstream(script) as raw:
        config = UpstreamConfig.model_validate({"url": raw.url, "breaker_failures": 3, "breaker_open_for": "2s"})
        upstream = Upstream("up", config, monotonic=clock)
        for _ in range(3):
            for _ in range(5):
                with contextlib.suppress(UpstreamCircuitOpen):
                    await ask(upstream)
            clock.at += 3  # then one request tries it, and fails
        assert not upstream.usable
        status = b"200 OK"
        assert (await ask(upstream))[0] == 200
        assert upstream.usable
        await upstream.aclose()
    told = [record.getMessage() for record in caplog.records if "circuit breaker" in record.getMessage()]
    assert len(told) == 2
    assert "is open" in told[0]
    assert "is closed again" in told[1]


async def test_keys_do_not_depend_on_the_host() -> None:
    one, other = Server(b"a"), Server(b"b")
    async with raw_upstream(one) as a, raw_upstream(other) as b:
        routes = {"all": {"path": "/{path:path}", "upstream": "up", "ttl": "60s"}}
        app = gateway(None, routes, upstreams={"up": {"urls": [a.url, b.url]}})
        http: Any = GatewayProtocol
        async with served(app, http=http) as url, httpx.AsyncClient(base_url=url) as client:
            assert len({(await client.get("/x")).text for _ in range(6)}) == 1
        assert one.requests + other.requests == 1


@pytest.mark.parametrize(
    ("health", "message"),
    [
        ({}, "Field required"),
        ({"path": "health"}, "must be a path"),
        ({"path": "/a b"}, "must be a path"),
        ({"path": "/../a"}, "must be a path"),
        ({"path": "/h", "every": "1ms"}, "greater than or equal"),
        ({"path": "/h", "healthy_after": 0}, "greater than or equal"),
    ],
)
def test_a_check_that_is_none_is_refused(health: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        UpstreamConfig.model_validate({"url": "http://up.test", "health": health})


def test_a_limit_of_a_duration_is_told_as_durations_are_written(tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    settings = "{url: 'http://up.test', resolve_every: 1ms, stream_idle_timeout: 0s, health: {path: /h, every: 5ms}}"
    file.write_text(f"redis_url: none\nupstreams: {{up: {settings}}}\n")
    with pytest.raises(ConfigError) as raised:
        load(file, environ={}, dotenv=None)
    assert [problem.message for problem in raised.value.problems] == [
        "1ms must be greater than or equal to 100ms",
        "5ms must be greater than or equal to 100ms",
        "0s must be greater than 0s",
    ]


async def test_a_reload_checks_the_new_upstream_and_no_longer_the_old_one() -> None:
    one, other = Server(b"a"), Server(b"b")
    async with raw_upstream(one) as a, raw_upstream(other) as b:

        def loaded(url: str) -> Loaded:
            upstreams = {"up": {"url": f"{url}/base", "health": CHECK}}
            routes = {"all": {"path": "/{path:path}", "upstream": "up"}}
            config = {"redis_url": "none", "upstreams": upstreams, "routes": routes}
            return Loaded(Config.model_validate(config), {}, ())

        generations = Generations(create_app(loaded(a.url), log=silent))
        await generations.current.start()
        await one.checked.acquire()
        old = generations.current.upstreams["up"]
        generations.reload(loaded(b.url))
        await other.checked.acquire()
        async with asyncio.timeout(10):
            while old._checks is not None and old._checks._tasks:
                await asyncio.sleep(0.01)
        await generations.current.stop()
    assert not [task for task in asyncio.all_tasks() if "_watch" in repr(task.get_coro())]
