"""Warming: what a file names is asked for once each, no faster than allowed, and what came of it is told."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from gateway.cli.commands import app as cli
from gateway.cli.warm import WarmError, wanted, warm
from gateway.testing import StubUpstream, TurnedClock, running
from tests.support.gateways import gateway, json_answer, served


def listed(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "list"
    path.write_text("".join(line + "\n" for line in lines))
    return path


def test_what_is_the_same_target_is_wanted_once_and_the_most_wanted_first(tmp_path: Path) -> None:
    path = listed(
        tmp_path, "# home", "", "/a", "https://api.example.com/b?y=1&x=2", "/b?x=2&y=1", "/%62?y=1&x=2&gclid=z"
    )
    found = wanted(path, top=None, drop_query=("gclid",))
    assert found.targets == ["/b?x=2&y=1", "/a"]
    assert wanted(path, top=1, drop_query=("gclid",)).targets == ["/b?x=2&y=1"]


def test_a_line_may_be_a_read_with_content(tmp_path: Path) -> None:
    lines = ('QUERY /s?b=2&a=1 {"q": "a b"}', 'QUERY /s?a=1&b=2  {"q": "a b"}', "POST /s", "GET /t")
    found = wanted(listed(tmp_path, *lines), top=None)
    assert found.targets == ['QUERY /s?a=1&b=2 {"q": "a b"}', "POST /s ", "/t"]
    with pytest.raises(WarmError, match="line 1: PUT is no read; expected GET, POST, QUERY"):
        wanted(listed(tmp_path, "PUT /s {}"), top=None)


async def test_reads_with_content_are_warmed() -> None:
    routes = {"s": {"path": "/s", "upstream": "api", "ttl": "60s", "methods": ["GET", "QUERY"]}}
    upstream = StubUpstream(json_answer())
    async with served(gateway(upstream, routes)) as url:
        targets = ['QUERY /s {"q":1}', 'QUERY /s {"q":2}', 'QUERY /s {"q":1}']
        warmed = await warm(url, targets, rate=None, concurrency=1)
    assert warmed.outcomes == {"stored": 2, "fresh already": 1}
    assert [request.content for request in upstream.requests] == [b'{"q":1}', b'{"q":2}']


def test_an_access_log_names_what_was_answered_and_had_no_query(tmp_path: Path) -> None:
    lines = [
        {"method": "GET", "path": "/a", "status": 200},
        {"method": "GET", "path": "/a", "status": 200},
        {"method": "GET", "path": "/b", "status": 404},
        {"method": "POST", "path": "/c", "status": 200},
        {"method": "GET", "path": "/d", "status": 200, "query": ["token"]},
    ]
    found = wanted(listed(tmp_path, *map(json.dumps, lines)), top=None)
    assert (found.targets, found.skipped) == (["/a"], 1)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("/a/%2f", "line 1: /a/%2f isn't a URL"),
        ("{nonsense", "line 1 isn't a line"),
        ("ftp://x/y", "line 1: ftp://x/y isn't an http:// or https:// URL"),
        ("items/1", "line 1: items/1 is neither a path, which begins with /, nor a URL"),
    ],
)
def test_a_line_that_means_nothing_is_refused(tmp_path: Path, line: str, why: str) -> None:
    with pytest.raises(WarmError, match=why):
        wanted(listed(tmp_path, line), top=None)


def test_of_a_log_that_is_being_written_the_line_without_an_end_is_left_out(tmp_path: Path) -> None:
    log = tmp_path / "access.jsonl"
    log.write_text('{"method": "GET", "path": "/a", "status": 200}\n{"method": "GET", "pa')
    assert wanted(log, top=None).targets == ["/a"]


async def test_what_was_asked_for_is_a_hit_afterwards(clock: TurnedClock) -> None:
    upstream = StubUpstream(json_answer(cache_control="max-age=60"))
    app = gateway(upstream, clock=clock)
    async with running(app) as client:
        await client.get("/a", headers={"accept-language": "de"})
        warmed = await warm(
            "http://gateway.test", ["/a", "/b", "/c"], rate=None, concurrency=2, transport=httpx.ASGITransport(app)
        )
        assert warmed.outcomes == {"fresh already": 1, "stored": 2}
        assert "hit" in (await client.get("/c")).headers["cache-status"]


async def test_no_more_are_asked_for_at_once_than_allowed(clock: TurnedClock) -> None:
    upstream = StubUpstream(json_answer(cache_control="max-age=60"))
    upstream.gate.clear()
    app = gateway(upstream, clock=clock)
    async with running(app):
        targets = [f"/{number}" for number in range(20)]
        work = asyncio.ensure_future(
            warm("http://gateway.test", targets, rate=None, concurrency=3, transport=httpx.ASGITransport(app))
        )
        for _ in range(3):
            await upstream.came.acquire()
        for _ in range(50):
            await asyncio.sleep(0)
        assert upstream.asked == 3
        upstream.gate.set()
        assert (await work).outcomes == {"stored": 20}


async def test_what_fails_and_what_cannot_be_stored_is_told(clock: TurnedClock) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/down":
            raise httpx.ConnectError("refused")
        return httpx.Response(200, headers={"cache-control": "no-store"})

    app = gateway(StubUpstream(answer), clock=clock)
    async with running(app):
        transport = httpx.ASGITransport(app)
        warmed = await warm("http://gateway.test", ["/down", "/live"], rate=1e6, concurrency=1, transport=transport)
    assert warmed.outcomes == {"failed": 1, "not storable": 1}
    assert warmed.failed == ["/down"]


async def test_the_command_warms_a_running_gateway(clock: TurnedClock, tmp_path: Path) -> None:
    app = gateway(StubUpstream(json_answer(cache_control="max-age=60")), clock=clock)
    path = listed(tmp_path, "/a", "/b", "/b")
    async with served(app) as url:
        arguments = ["warm", "--from", str(path), "--url", url, "--rate", "1000/s"]
        result = await asyncio.to_thread(CliRunner().invoke, cli, arguments)
    assert result.exit_code == 0, result.output
    assert "2 requested: 2 stored" in result.output


async def test_a_404_has_failed_and_each_failure_is_told_with_its_reason(tmp_path: Path) -> None:
    app = gateway(StubUpstream(lambda request: httpx.Response(404)))
    async with served(app) as url:
        order = ["warm", "--from", str(listed(tmp_path, "/items/1")), "--url", url]
        result = await asyncio.to_thread(CliRunner().invoke, cli, order)
    assert result.exit_code == 3
    assert "failed: /items/1: 404 Not Found" in result.output


def test_where_nobody_listens_the_reason_is_told(tmp_path: Path) -> None:
    order = ["warm", "--from", str(listed(tmp_path, "/a")), "--url", "http://127.0.0.1:9"]
    result = CliRunner().invoke(cli, order)
    assert (result.exit_code, "failed: /a: " in result.output, "connect" in result.output) == (3, True, True)


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://127.0.0.1:8000", "http://"])
def test_what_is_no_url_of_a_gateway_is_refused_with_what_to_write(tmp_path: Path, url: str) -> None:
    result = CliRunner().invoke(cli, ["warm", "--from", str(listed(tmp_path, "/a")), "--url", url])
    assert isinstance(result.exception, WarmError)
    assert "expected http://127.0.0.1:8000" in str(result.exception) or url == "http://"
