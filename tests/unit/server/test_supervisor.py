"""A supervisor in this process and its real workers: begun, replaced, reloaded, ended. Under load, and with many
deaths, in tests/integration/test_supervisor.py."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from gateway.config.loader import Loaded, load
from gateway.errors import ConfigError
from gateway.server.embedded_redis import Embedded
from gateway.server.listener import url_of
from gateway.server.process import spawn
from gateway.server.reload import Files
from gateway.server.supervisor import StartError, Supervisor
from tests.support.gateways import served
from tests.support.processes import Valkey

pytestmark = pytest.mark.timeout(60)
ROUTES: dict[str, Any] = {"rest": {"path": "/{path:path}", "upstream": "api", "ttl": "60s"}}


async def upstream(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": scope["path"].encode()})


class Site:
    """A configuration's file and the gateway that runs by it."""

    def __init__(self, directory: Path, api: str, redis_url: str) -> None:
        self.file = directory / "gateway.yaml"
        self.settings: dict[str, Any] = {
            "redis_url": redis_url,
            "redis_prefix": uuid4().hex,
            "port": 0,
            "host": "127.0.0.1",
            "workers": 2,
            "admin_listen": f"unix:{directory}/admin",
            "access_log": False,
            "shutdown_delay": "0s",
            "shutdown_timeout": "2s",
            "upstreams": {"api": {"url": api}},
            "routes": ROUTES,
        }
        self.write()

    def write(self, **settings: Any) -> None:
        self.file.write_text(yaml.safe_dump({**self.settings, **settings}))

    def read(self) -> Loaded:
        return load(self.file, environ={}, dotenv=None)

    async def metric(self, name: str, **labels: str) -> float:
        transport = httpx.AsyncHTTPTransport(uds=self.settings["admin_listen"].removeprefix("unix:"))
        async with httpx.AsyncClient(transport=transport, base_url="http://admin", timeout=60) as operator:
            text = (await operator.get("/metrics")).text
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        return sum(each.value for each in samples if each.name == name and labels.items() <= each.labels.items())

    async def comes_to(self, value: float, name: str, **labels: str) -> None:
        while await self.metric(name, **labels) != value:
            await asyncio.sleep(0.02)


def children() -> list[str]:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def workers() -> set[int]:
    """The processes of ours that answer."""
    return {int(pid) for pid in children() if Path(f"/proc/{pid}/comm").read_text() == "gateway-worker\n"}


@contextlib.asynccontextmanager
async def supervised(site: Site, watched: Files | None = None, number: int = 2) -> AsyncIterator[httpx.AsyncClient]:
    supervisor = Supervisor(site.read(), site.read, spawn(), [watched] if watched is not None else [])
    running = asyncio.ensure_future(supervisor.run())
    limits = httpx.Limits(max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=url_of(supervisor._slots[0].socket), timeout=60, limits=limits) as client:
        try:
            assert (await client.get("/first")).text == "/first"
            await site.comes_to(number, "gateway_workers")
            yield client
        finally:
            if not running.done():  # one that has failed handles no signal: this process would end
                os.kill(os.getpid(), signal.SIGTERM)
            await running


@pytest.fixture
async def site(tmp_path: Path, valkey: Embedded) -> AsyncIterator[Site]:
    async with served(upstream) as api:
        yield Site(tmp_path, api, valkey.url)


async def test_workers_are_one_gateway_whose_metrics_stay_when_they_are_replaced(site: Site) -> None:
    async with supervised(site) as client:
        for number in range(5):
            assert (await client.get(f"/{number}")).text == f"/{number}"
        assert await site.metric("gateway_requests_total") == 6
        before = workers()
        os.kill(os.getpid(), signal.SIGUSR2)
        while workers() & before:
            await asyncio.sleep(0.05)
        assert (await client.get("/5")).text == "/5"
        await site.comes_to(7, "gateway_requests_total")
        assert await site.metric("gateway_worker_deaths_total") == 0


async def test_a_reload_is_taken_by_all_workers_or_by_none(site: Site) -> None:
    async with supervised(site) as client:
        site.write(routes={"new": {"path": "/new", "upstream": "api", "ttl": "60s"}})
        os.kill(os.getpid(), signal.SIGHUP)
        await site.comes_to(1, "gateway_reloads_total", result="done")
        assert {(await client.get("/old")).status_code for _ in range(8)} == {404}
        site.file.write_text("routes: 7\n")
        os.kill(os.getpid(), signal.SIGHUP)
        await site.comes_to(1, "gateway_reloads_total", result="refused")
        assert {(await client.get("/new")).status_code for _ in range(8)} == {200}


async def test_a_changed_file_reloads(site: Site) -> None:
    site.settings["watch"] = True
    site.write()
    async with supervised(site, Files([site.file])) as client:
        site.write(routes={"new": {"path": "/new", "upstream": "api"}})
        await site.comes_to(1, "gateway_reloads_total", result="done")
        assert (await client.get("/old")).status_code == 404


async def test_a_worker_that_dies_is_replaced_and_its_figures_count_on(site: Site) -> None:
    async with supervised(site) as client:
        os.kill(min(workers()), signal.SIGKILL)
        await site.comes_to(1, "gateway_worker_deaths_total")
        await site.comes_to(2, "gateway_workers")
        assert {(await client.get("/a")).text for _ in range(8)} == {"/a"}


async def told(log: pytest.LogCaptureFixture, text: str) -> str:
    while not (found := [each.message for each in log.records if text in each.message]):
        await asyncio.sleep(0.02)
    return found[0]


async def hits(client: httpx.AsyncClient, number: int) -> list[str]:
    """The answers to so many hits at once, each on a connection of its own."""
    answers = await asyncio.gather(*(client.get("/first", timeout=5) for _ in range(number)))
    return [answer.text for answer in answers]


async def test_a_stopped_worker_is_replaced_and_its_share_of_connections_answered_by_another(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    site.write(worker_unresponsive_after="1s")
    async with supervised(site) as client:
        before = workers()
        stopped = min(before)
        os.kill(stopped, signal.SIGSTOP)
        line = await told(caplog, "unresponsive")
        assert f"the worker {stopped} is unresponsive" in line
        assert "worker_unresponsive_after" in line
        assert await hits(client, 40) == ["/first"] * 40
        await site.comes_to(2, "gateway_workers")
        assert await hits(client, 40) == ["/first"] * 40
        assert stopped not in workers()
        assert await site.metric("gateway_workers_unresponsive_total") == 1
        assert await site.metric("gateway_worker_deaths_total") == 1


async def test_a_worker_that_runs_again_before_the_limit_stays(site: Site) -> None:
    site.write(worker_unresponsive_after="6s")
    async with supervised(site) as client:
        before = workers()
        all_children = len(children())
        os.kill(min(before), signal.SIGSTOP)
        while len(children()) == all_children:  # until half of the limit, when the next one is prepared
            await asyncio.sleep(0.02)
        os.kill(min(before), signal.SIGCONT)
        assert await hits(client, 40) == ["/first"] * 40
        assert workers() == before
        assert await site.metric("gateway_workers_unresponsive_total") == 0


async def test_the_only_worker_is_replaced_when_a_handler_blocks_it(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "blocking.py").write_text(
        "import time\nfrom fastapi import APIRouter\nrouter = APIRouter()\n"
        "@router.get('/block')\nasync def block() -> None:\n    time.sleep(60)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    site.write(worker_unresponsive_after="1s", workers=1, include=["blocking:router"])
    async with supervised(site, number=1) as client:
        (before,) = workers()
        blocked = asyncio.ensure_future(client.get("/block"))
        await told(caplog, f"the worker {before} is unresponsive")
        assert (await client.get("/first", timeout=20)).text == "/first"
        with pytest.raises(httpx.RemoteProtocolError):
            await blocked
        assert before not in workers()


async def test_readyz_says_how_many_workers_answer_while_some_do_not(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    site.write(worker_unresponsive_after="1s")
    async with supervised(site) as client:
        assert "workers" not in (await client.get("/readyz")).json()
        os.kill(min(workers()), signal.SIGSTOP)
        await told(caplog, "unresponsive")
        ready = await client.get("/readyz")
        assert ready.status_code == 200
        assert (ready.json()["workers_answering"], ready.json()["workers"]) == (1, 2)
        await site.comes_to(2, "gateway_workers")
        while "workers" in (await client.get("/readyz")).json():
            await asyncio.sleep(0.02)


async def test_it_does_not_start_where_a_worker_cannot_and_says_why(site: Site) -> None:
    site.write(include=["nowhere:router"])
    with pytest.raises((ConfigError, StartError), match="nowhere"):
        await Supervisor(site.read(), site.read).run()
    assert [path.name for path in site.file.parent.iterdir()] == ["gateway.yaml"]


async def test_what_all_workers_find_is_logged_once(
    site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gateway")
    valkey = Valkey(tmp_path)
    await asyncio.to_thread(valkey.start)
    site.write(redis_url=valkey.url)
    try:
        async with supervised(site) as client:
            await asyncio.to_thread(valkey.kill)
            for number in range(20):  # of both workers, as each connection is new
                assert (await client.get(f"/{number}")).text == f"/{number}"
            await told(caplog, "is not used: ")
            await asyncio.to_thread(valkey.start)
            await told(caplog, "is used again")
            await site.comes_to(1, "gateway_redis_available")
    finally:
        valkey.end()
    lines = [each.message for each in caplog.records if each.message.startswith("Redis at ")]
    assert [("is not used: " in line, "is used again" in line) for line in lines] == [(True, False), (False, True)]
