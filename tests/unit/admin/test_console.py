"""The console: its page, its rows, and the stream of figures."""

from __future__ import annotations

import httpx
import msgspec

from gateway.admin.figures import Figures
from gateway.testing import StubUpstream, TurnedClock
from tests.support.admin import TOKEN, Worker, working
from tests.support.gateways import json_answer, served


async def test_the_console_lists_the_parts_of_an_aggregate_and_an_override_acts_on_one(clock: TurnedClock) -> None:
    upstream = StubUpstream(json_answer())
    worker = Worker(upstream, clock, routes={"home": {"path": "/home", "parts": {
        "offers": {"upstream": "api", "path": "/offers", "ttl": "100s"}}}})  # fmt: skip
    async with working(worker), worker.client() as client, worker.operator() as operator:
        await client.get("/home")
        clock.turn(20)
        await client.get("/home")
        assert len(upstream.requests) == 1
        order = {"route": "home.offers", "value": "10s"}
        assert (await operator.post("/overrides", json=order)).status_code == 200
        (row,) = (await operator.get("/routes")).json()["routes"]
        assert (row["name"], row["path"], row["ttl"], row["overridden"]) == (
            "home.offers",
            "part of /home",
            10.0,
            True,
        )
        assert row["sources"][0].startswith("live override by")
        await client.get("/home")
        assert len(upstream.requests) == 2


async def test_the_page_brings_all_it_needs_and_lets_nothing_else_in(clock: TurnedClock) -> None:
    worker = Worker(StubUpstream(json_answer()), clock)
    async with working(worker), worker.operator() as operator:
        page = await operator.get("/console")
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert "http://" not in page.text.replace("http://www.w3.org", "")
        assert "https://" not in page.text
        for name, kind in (
            ("console.js", "text/javascript"),
            ("console.css", "text/css"),
            ("uplot.js", "text/javascript"),
        ):
            assert f"console/{name}" in page.text
            found = await operator.get(f"/console/{name}")
            assert (found.status_code, found.headers["content-type"].split(";")[0]) == (200, kind)
        for name in ("nothing.js", "..%2fapp.py", "index.html.bak", "uplot"):
            assert (await operator.get(f"/console/{name}")).status_code == 404


async def test_figures_are_streamed_until_the_worker_ends(clock: TurnedClock) -> None:
    worker = Worker(StubUpstream(json_answer()), clock)
    async with (
        working(worker),
        worker.client() as client,
        served(worker.admin) as url,
        httpx.AsyncClient(base_url=url, headers=TOKEN) as operator,
        operator.stream("GET", "/live") as response,
    ):
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = response.aiter_lines()
        await client.get("/items/1")
        await client.get("/items/1")
        while not (line := await anext(lines)).startswith("data: "):
            pass
        figures = msgspec.json.decode(line.removeprefix("data: "), type=Figures)
        worker.operations.closing.set()
        assert [line async for line in lines if line] == []
    assert figures.memory_entries == 1
    assert figures.redis_available is None  # no Redis is configured, which is not one that is away
