"""A worker in this process, on real sockets, told what to do as its supervisor tells it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from gateway.config.loader import Loaded, load
from gateway.server import worker
from gateway.server.ipc import (
    Abort,
    Adopt,
    Alive,
    Begin,
    Channel,
    CommandFailed,
    Commit,
    Prepare,
    PurgeReported,
    Question,
    Release,
    ReloadPrepared,
    Report,
    Retire,
    Setup,
    Stop,
    Tell,
    Totals,
    WorkerReady,
)
from gateway.server.listener import listen, url_of
from gateway.server.metrics_totals import total
from tests.support.gateways import served

ROUTES: dict[str, Any] = {"rest": {"path": "/{path:path}", "upstream": "api", "ttl": "60s"}}


async def upstream(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": scope["path"].encode()})


class Held:
    """A worker by its other end. `slots` are the sockets of two slots, the first of them the worker's own."""

    def __init__(self, directory: Path, api: str) -> None:
        self.file = directory / "gateway.yaml"
        self.api = api
        self.slots = [listen("127.0.0.1", 0, "port") for _ in range(2)]
        self.admin = listen("127.0.0.1", 0, "admin_listen")
        self.control, self._theirs = socket.socketpair()
        self.client = httpx.AsyncClient(base_url=url_of(self.slots[0]), timeout=30)
        self.operator = httpx.AsyncClient(base_url=url_of(self.admin), timeout=30)

    def loaded(self, **settings: Any) -> Loaded:
        upstreams = {"api": {"url": self.api}}
        config = {"redis_url": "none", "access_log": False, "upstreams": upstreams, "routes": ROUTES, **settings}
        self.file.write_text(yaml.safe_dump(config))
        return load(self.file, environ={}, dotenv=None)

    async def begin(self, loaded: Loaded) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=self.control)
        self.channel = Channel(reader, writer, Report)
        self._given = [*(slot.dup() for slot in self.slots), self.admin.dup()]
        self.ended = asyncio.ensure_future(worker.work(self._theirs, self._given))
        self.channel.send(Begin(Setup.of(1, loaded), "none", 0, len(self.slots)))

    async def said(self, kind: type[Any]) -> Any:
        """The next report of a kind; signs of life, and reports of metrics that were not asked for, are passed over."""
        while True:
            report = await self.channel.receive()
            if isinstance(report, kind) and (not isinstance(report, PurgeReported) or report.asked):
                return report
            assert isinstance(report, PurgeReported | Alive), report

    async def close(self) -> None:
        """Stop the worker before its channel is closed: one that loses its supervisor ends its process, this one."""
        self.channel.send(Stop(0.0, 5.0))
        await asyncio.wait((self.ended,))
        await self.client.aclose()
        await self.operator.aclose()
        await self.channel.close()
        for sock in (*self.slots, self.admin, *self._given):
            sock.close()


@contextlib.asynccontextmanager
async def held(directory: Path) -> AsyncIterator[Held]:
    async with served(upstream) as api:
        one = Held(directory, api)
        await one.begin(one.loaded())
        try:
            await one.said(WorkerReady)
            yield one
        finally:
            await one.close()
            gc.unfreeze()
    assert one.ended.result() == 0


async def test_it_answers_once_it_says_so_and_ends_in_order_when_told_to(tmp_path: Path) -> None:
    async with held(tmp_path) as one:
        answer = await one.client.get("/a")
        assert (answer.status_code, answer.text) == (200, "/a")
        assert (await one.operator.get("/healthz")).status_code == 200
        assert (await one.operator.get("/readyz")).status_code == 200


async def test_a_number_of_any_size_in_the_configuration_reaches_it(tmp_path: Path) -> None:
    async with held(tmp_path) as one:
        parts = {"big": {"static": [2**70, -(2**70)]}}
        one.channel.send(Prepare(Setup.of(2, one.loaded(routes={"big": {"path": "/big", "parts": parts}}))))
        await one.said(ReloadPrepared)
        one.channel.send(Commit(2))
        one.channel.send(Tell())
        await one.said(PurgeReported)
        assert (await one.client.get("/big")).content == b'{"big":[%d,%d]}' % (2**70, -(2**70))


async def test_one_that_is_replaced_ends_what_it_has_begun(tmp_path: Path) -> None:
    async with served(upstream) as api:
        one = Held(tmp_path, api)
        await one.begin(one.loaded())
        await one.said(WorkerReady)
        assert (await one.client.get("/a")).text == "/a"
        one.channel.send(Retire(5.0))
        assert (await one.client.get("/b")).headers["connection"] == "close"
        assert await one.ended == 0
        last = None
        while (report := await one.channel.receive()) is not None:
            last = report
        assert isinstance(last, PurgeReported)
        requests = next(each for each in last.families if each.name == "gateway_requests")
        assert sum(value for name, _, value in requests.samples if name == "gateway_requests_total") == 2
        await one.close()
        gc.unfreeze()


async def test_a_prepared_generation_answers_once_it_is_committed_and_not_before(tmp_path: Path) -> None:
    async with held(tmp_path) as one:
        setup = Setup.of(2, one.loaded(routes={"new": {"path": "/new", "upstream": "api"}}))
        one.channel.send(Prepare(setup))
        assert (await one.said(ReloadPrepared)).problems == []
        assert (await one.client.get("/old")).status_code == 200
        one.channel.send(Commit(2))
        one.channel.send(Tell())
        await one.said(PurgeReported)
        assert (await one.client.get("/old")).status_code == 404
        assert (await one.client.get("/new")).status_code == 200


async def test_a_generation_that_is_given_up_is_not_committed(tmp_path: Path) -> None:
    async with held(tmp_path) as one:
        setup = Setup.of(2, one.loaded(routes={"new": {"path": "/new", "upstream": "api"}}))
        one.channel.send(Prepare(setup))
        await one.said(ReloadPrepared)
        one.channel.send(Abort(2))
        one.channel.send(Commit(2))
        one.channel.send(Tell())
        await one.said(PurgeReported)
        assert (await one.client.get("/old")).status_code == 200


async def test_a_configuration_that_no_app_can_be_made_of_is_refused_by_name(tmp_path: Path) -> None:
    async with held(tmp_path) as one:
        one.channel.send(Prepare(Setup.of(2, one.loaded(include=["nowhere:router"]))))
        (problem,) = (await one.said(ReloadPrepared)).problems
        assert problem.key.startswith("include")
        assert (await one.client.get("/a")).status_code == 200


async def test_one_that_cannot_begin_says_why(tmp_path: Path) -> None:
    one = Held(tmp_path, "http://127.0.0.1:9")
    await one.begin(one.loaded(include=["nowhere:router"]))
    failed = await one.said(CommandFailed)
    assert "nowhere" in failed.message
    assert [each.problem.key.partition(".")[0] for each in failed.problems] == ["include"]
    assert await one.ended == 2
    await one.close()


async def test_signs_of_life_come_between_its_other_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "ALIVE_EVERY", 0.001)
    async with held(tmp_path) as one:
        for _ in range(3):
            await one.said(Alive)
        one.channel.send(Tell())
        assert (await one.said(PurgeReported)).families


async def test_a_slot_that_has_no_worker_is_answered_by_who_adopts_it_until_it_is_released(tmp_path: Path) -> None:
    async with held(tmp_path) as one:
        one.channel.send(Adopt(1))
        async with httpx.AsyncClient(base_url=url_of(one.slots[1]), timeout=30) as client:
            assert (await client.get("/a")).text == "/a"
            one.channel.send(Release(1))
            one.channel.send(Tell())
            await one.said(PurgeReported)
        reader, writer = await asyncio.open_connection(*one.slots[1].getsockname())
        one.slots[1].setblocking(False)
        accepted, _ = await asyncio.get_running_loop().sock_accept(one.slots[1])  # nobody else took it
        accepted.close()
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()


async def test_the_metrics_it_shows_are_those_that_its_supervisor_tells_of_all(tmp_path: Path) -> None:
    async with held(tmp_path) as one:
        await one.client.get("/a")
        asked = asyncio.ensure_future(one.operator.get("/metrics"))
        question = await one.said(Question)
        one.channel.send(Tell())
        own = (await one.said(PurgeReported)).families
        one.channel.send(Totals(question.question, total([own, own])))
        text = (await asked).text
    told = [line for line in text.splitlines() if line.startswith("gateway_requests_total")]
    assert sum(float(line.rpartition(" ")[2]) for line in told) == 2


async def test_it_shows_its_own_metrics_where_its_supervisor_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "ANSWER_SECONDS", 0.01)
    async with held(tmp_path) as one:
        text = (await one.operator.get("/metrics")).text
    assert "# TYPE gateway_requests_total counter" in text
