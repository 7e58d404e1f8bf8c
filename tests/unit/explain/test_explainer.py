"""Why a request is answered as it is: the trace says what the engine then does, and changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from gateway.admin.app import create_admin
from gateway.app.gateway import create_app
from gateway.cli.commands import app as cli
from gateway.config.loader import load
from gateway.explain.trace import Lifetime, Trace, render
from gateway.routing.cached_decorator import cached
from gateway.testing import StubUpstream, TurnedClock, running
from tests.support.explain import ANY, FILE, ROUTES, SUMS, started
from tests.support.gateways import gateway, json_answer


async def test_the_trace_names_the_route_that_won_and_those_that_lost(clock: TurnedClock) -> None:
    app, _ = started(clock)
    trace = await app.explain("GET", "/items/7")
    assert (trace.route, trace.path, trace.lost) == ("item", "/items/{id}", ("rest (/{path:path})",))
    assert (trace.upstream, trace.asks) == ("api", "/v2/7")


async def test_it_says_what_was_normalised_dropped_and_keyed(clock: TurnedClock) -> None:
    app, _ = started(clock)
    headers = ((b"accept-language", b"de"), (b"x-other", b"1"))
    trace = await app.explain("GET", "/items/%37?b=2&a=1&utm_source=x&z=9", headers)
    assert trace.target == "/items/7?a=1&b=2&utm_source=x&z=9"
    assert trace.normalised == ("path /items/%37 is /items/7", "query parameters are sorted by name")
    assert [line.split(" (")[0] for line in trace.dropped] == ["query parameter utm_source", "query parameter z"]
    assert trace.key == ("api", "/v2/7?a=1&b=2", "accept-language:de")


async def test_what_it_foretells_is_what_happens_and_nothing_is_asked_for_it(clock: TurnedClock) -> None:
    app, upstream = started(clock)
    async with running(app) as client:
        for turn, decision, status in (
            (0, "miss", "gateway; fwd=miss"),
            (1, "hit", "gateway; hit; ttl="),
            (31, "stale", "gateway; hit; ttl=-"),
            (400, "revalidate", "gateway; fwd=stale"),
        ):
            clock.turn(turn)
            asked = upstream.asked
            trace = await app.explain("GET", "/items/7", ANY)
            assert trace.decision == decision
            assert upstream.asked == asked
            response = await client.get("/items/7")
            assert response.headers["cache-status"].startswith(status)
            await app.engine.settle()


async def test_a_stored_answer_is_shown_with_its_age_and_windows(clock: TurnedClock) -> None:
    app, _ = started(clock)
    async with running(app) as client:
        await client.get("/items/7")
        clock.turn(10)
        trace = await app.explain("GET", "/items/7", ANY)
    assert trace.entry is not None
    assert (trace.entry.tier, trace.entry.status, trace.entry.age) == ("memory", 200, 10.0)
    assert 17 <= trace.entry.fresh_for <= 20
    assert trace.entry.stale_while_revalidate_for == pytest.approx(trace.entry.fresh_for + 60, abs=0.01)
    assert trace.entry.stale_if_error_for == pytest.approx(trace.entry.fresh_for + 300, abs=0.01)


@pytest.mark.parametrize(
    ("method", "target", "headers", "decision", "why"),
    [
        ("POST", "/items/7", {}, "pass", "only GET and HEAD"),
        ("GET", "/items/7", {"authorization": "Bearer x"}, "bypass", "setting `authorization`"),
        ("GET", "/items/7", {"cookie": "a=1"}, "bypass", "setting `cookies`"),
        ("GET", "/items/7", {"cache-control": "no-store"}, "bypass", "no-store"),
        ("GET", "/items/7", {"cache-control": "only-if-cached"}, "504", "only-if-cached"),
        ("GET", "/items/%2f", {}, "400", "encoded slash"),
        ("GET", "items", {}, "400", "must be a path"),
    ],
)
async def test_ways_past_the_cache_say_why(
    clock: TurnedClock, method: str, target: str, headers: dict[str, str], decision: str, why: str
) -> None:
    app, _ = started(clock)
    fields = tuple((name.encode(), value.encode()) for name, value in headers.items())
    trace = await app.explain(method, target, fields)
    assert trace.decision == decision
    assert why in trace.why


async def test_what_the_client_asked_for_is_said(clock: TurnedClock) -> None:
    app, _ = started(clock)
    async with running(app) as client:
        await client.get("/items/7")
        clock.turn(5)
        trace = await app.explain("GET", "/items/7", (*ANY, (b"cache-control", b"max-age=3")))
    assert trace.decision == "revalidate"
    assert trace.client == ("max-age=3: an older response is not accepted",)
    assert "requires a fetch" in trace.why


async def test_a_route_that_follows_its_upstream_says_what_the_upstream_stated(clock: TurnedClock) -> None:
    app, _ = started(clock, cache_control="max-age=60, must-revalidate", vary="accept-language")
    async with running(app) as client:
        await client.get("/other", headers={"accept-language": "fr"})
        trace = await app.explain("GET", "/other", ((b"accept-language", b"fr"),))
    assert trace.ttl is not None
    assert (trace.ttl.value, trace.ttl.sources) == ("origin", ("default",))
    assert "the upstream stated 60 s" in trace.ttl.notes
    assert any("never served stale" in note for note in trace.ttl.notes)
    assert trace.variant == ("vary accept-language:fr",)


async def test_the_ttl_is_told_with_who_set_it_and_what_that_overruled(clock: TurnedClock, tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text(FILE)
    loaded = load(file, environ={"GATEWAY_ROUTES__ITEM__TTL": "10s"}, dotenv=None)
    app = create_app(loaded, transport=StubUpstream(json_answer(cache_control="max-age=60")), clock=clock)
    async with running(app) as client:
        await client.get("/items/7")
        trace = await app.explain("GET", "/items/7", ANY)
    assert trace.ttl is not None
    assert trace.ttl.value == "10s"
    environment, from_file, upstream = trace.ttl.sources
    assert environment == "environment GATEWAY_ROUTES__ITEM__TTL (10s)"
    assert from_file.endswith("gateway.yaml line 5 (30s)")
    assert upstream == "upstream (max-age=60)"


async def test_the_admin_listener_gives_the_trace_as_json_to_who_has_the_token(clock: TurnedClock) -> None:
    app, _ = started(clock)
    order = {"target": "/items/7", "headers": [["Accept-Language", "de"]]}
    transport = httpx.ASGITransport(create_admin(app, "secret"))
    async with httpx.AsyncClient(transport=transport, base_url="http://admin.test") as client:
        assert (await client.post("/explain", json=order)).status_code == 401
        headers = {"authorization": "Bearer secret"}
        answer = await client.post("/explain", json=order, headers=headers)
        assert answer.json()["key"] == ["api", "/v2/7", "accept-language:de"]
        assert (await client.post("/explain", json={"targt": "/"}, headers=headers)).status_code == 400


def test_the_command_explains_by_a_configuration_alone(tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text(FILE)
    result = CliRunner().invoke(cli, ["explain", "GET", "/items/7?b=1&a=2", "-H", "Accept: text/html", "-c", str(file)])
    assert result.exit_code == 0
    for line in ("decision  unknown", "route     item (/items/{id})", "ttl       30s", "accept:text/html"):
        assert line in result.output
    assert "stored" not in result.output.replace("stored entries are unknown", "")


def test_a_header_without_a_colon_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text(FILE)
    result = CliRunner().invoke(cli, ["explain", "GET", "/", "-H", "nonsense", "-c", str(file)])
    assert result.exit_code == 2


# --- aggregates --------------------------------------------------------------------------------------------

HOME: dict[str, Any] = {
    "home": {
        "path": "/home/{user}",
        "tags": ["home:{user}"],
        "parts": {
            "profile": {"upstream": "api", "path": "/users/{user}", "ttl": "50s", "tags": ["user:{user}"]},
            "more": {"upstream": "api", "path": "/more/{profile.n}", "ttl": "20s"},
            "fixed": {"static": {"a": 1}},
        },
    }
}


async def test_an_aggregate_is_explained_with_its_parts(clock: TurnedClock) -> None:
    upstream = StubUpstream(json_answer())
    app = gateway(upstream, HOME, clock=clock)
    async with running(app) as client:
        before = await app.explain("GET", "/home/7", ANY)
        assert (before.route, before.decision) == ("home", "join")
        assert upstream.asked == 0
        await client.get("/home/7")
        clock.turn(5)
        trace = await app.explain("GET", "/home/7", ANY)
    assert trace.decision == "hit"
    assert trace.entry is not None
    assert 10 < trace.entry.fresh_for <= 15
    assert {name.name for name in trace.names} >= {"key", "route home", "tag home:7"}
    profile, more, fixed = trace.parts
    assert (profile.upstream, profile.asks) == ("api", "/users/7")
    assert profile.ttl is not None
    assert profile.ttl.value == "50s"
    assert profile.entry is not None
    assert (profile.entry.tier, profile.entry.age) == ("memory", 5.0)
    assert more.note == "requested with values of profile"
    assert fixed.note == "static"
    text = render(trace)
    assert "part profile" in text
    assert "api for /users/7" in text


def test_an_aggregate_is_explained_by_its_configuration_alone(tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text(
        "upstreams: {api: {url: 'http://api.test'}}\n"
        "routes:\n  home:\n    path: /home/{user}\n    parts:\n"
        "      profile: {upstream: api, path: '/users/{user}', ttl: 50s}\n"
    )
    result = CliRunner().invoke(cli, ["explain", "GET", "/home/7", "-c", str(file)])
    assert result.exit_code == 0
    assert "api for /users/7" in result.output
    assert "ttl 50s: " in result.output
    assert "gateway.yaml line 6" in result.output


# --- handlers in Python ------------------------------------------------------------------------------------


@SUMS.get("/sums/{a}")
@cached(ttl="20s", tags=["sum:{a}"], stale_if_error="1m")
async def sums(a: int, b: int = 0) -> dict[str, int]:
    return {"sum": a + b}


@SUMS.get("/time")
async def what_time_it_is() -> str:
    return "now"


# --- as it is foretold, so it happens ----------------------------------------------------------------------

STATUSES = {"hit": "gateway; hit; ttl=", "stale": "gateway; hit; ttl=-", "bypass": "gateway; fwd=bypass"}
STATUSES |= {"pass": "gateway; fwd=method", "revalidate": "gateway; fwd=stale", "stale_error": "gateway; hit; ttl=-"}
ORIGIN = "http://shop.test"
AT_REST = '"of the upstream"'


@pytest.mark.parametrize(
    ("method", "target", "headers", "decision", "status"),
    [
        ("GET", "/items/7", {}, "hit", 200),
        ("HEAD", "/items/7", {}, "hit", 200),
        ("GET", "/items/7", {"if-none-match": AT_REST}, "hit", 304),
        ("GET", "/items/7", {"if-none-match": '"another"'}, "hit", 200),
        ("GET", "/items/7", {"if-none-match": f'"another", W/{AT_REST}'}, "hit", 304),
        ("GET", "/items/7", {"range": "bytes=0-1"}, "hit", 206),
        ("GET", "/items/7", {"range": "bytes=9999-"}, "hit", 416),
        ("HEAD", "/items/7", {"range": "bytes=0-1"}, "hit", 200),
        ("GET", "/items/7", {"if-match": AT_REST}, "bypass", None),
        ("GET", "/items/7", {"content-length": "2"}, "bypass", None),
        ("GET", "/items/7", {"content-length": "0"}, "hit", 200),
        ("GET", "/items/7", {"host": "a b"}, "400", None),
        ("GET", "http://other.test/items/7", {"host": "api.test"}, "400", None),
        ("GET", "/items/8", {"range": "bytes=0-1"}, "miss", None),
        ("GET", "/items/8", {"if-none-match": AT_REST}, "miss", None),
        ("POST", "/items/7", {}, "pass", None),
        ("OPTIONS", "/items/7", {}, "pass", None),
        ("OPTIONS", "/items/7", {"origin": ORIGIN, "access-control-request-method": "GET"}, "preflight", None),
        ("TRACE", "/items/7", {}, "405", None),
        ("PURGE", "/items/7", {}, "403", None),
        ("GET", "/items/7/", {}, "307", None),
        ("GET", "/nowhere", {}, "404", None),
        ("DELETE", "/home/7", {}, "405", None),
        ("GET", "/home/7", {"content-length": "2"}, "bypass", None),
        ("GET", "/healthz", {}, "local", None),
        ("HEAD", "/readyz", {}, "local", None),
        ("GET", "/openapi.json", {}, "local", None),
        ("POST", "/healthz", {}, "405", None),
        ("GET", "/sums/4", {"content-length": "2"}, "bypass", None),
        ("DELETE", "/sums/4", {}, "405", None),
    ],
)
async def test_whatever_a_client_asks_is_foretold_as_it_happens(
    clock: TurnedClock, method: str, target: str, headers: dict[str, str], decision: str, status: int | None
) -> None:
    app = gateway(
        StubUpstream(json_answer(etag=AT_REST)),
        {"item": ROUTES["item"], **HOME},
        clock=clock,
        cors={"allow_origins": [ORIGIN]},
    )
    app.include_router(SUMS)
    async with running(app) as client:
        await client.get("/items/7")
        fields = tuple((name.encode(), value.encode()) for name, value in headers.items())
        trace = await app.explain(method, target, (*ANY, *fields))
        assert (trace.decision, trace.status) == (decision, status), trace.why
        if target.startswith("http"):
            return  # the client of this test cannot send a target in that form
        body = b"hi" if headers.get("content-length") == "2" else None
        response = await client.request(method, target, headers=headers, content=body)
    cached = response.headers.get("cache-status", "")
    if decision.isdigit():
        assert response.status_code == int(decision)
    elif decision in ("local", "preflight"):
        assert (response.status_code, cached) == (200, "")
    else:
        assert cached.startswith(STATUSES.get(decision, "gateway; fwd=miss"))
    assert status in (None, response.status_code)


async def test_the_client_reads_what_its_condition_or_range_comes_to(clock: TurnedClock) -> None:
    app = gateway(StubUpstream(json_answer(etag=AT_REST)), ROUTES, clock=clock)
    async with running(app) as client:
        await client.get("/items/7")
        for header, target, said in (
            ((b"if-none-match", AT_REST.encode()), "/items/7", "If-None-Match: the client has it, so 304"),
            ((b"if-none-match", b'"x"'), "/items/7", "If-None-Match: the client has a different"),
            ((b"if-none-match", b'"x"'), "/items/8", "If-None-Match: 304 if"),
            ((b"range", b"bytes=0-1"), "/items/7", "Range: 206"),
            ((b"range", b"bytes=999-"), "/items/7", "Range: not satisfiable"),
            ((b"range", b"lines=1-"), "/items/7", "Range: ignored"),
            ((b"range", b"bytes=0-1"), "/items/8", "Range: applied"),
        ):
            trace = await app.explain("GET", target, (*ANY, header))
            assert len(trace.client) == 1
            assert trace.client[0].startswith(said)


async def test_while_a_failed_upstream_rests_the_stale_answer_is_foretold(clock: TurnedClock) -> None:
    app, upstream = started(clock)
    async with running(app) as client:
        await client.get("/items/7")
        clock.turn(200)
        upstream.answer = lambda request: httpx.Response(500)
        await client.get("/items/7")
        await app.engine.settle()
        trace = await app.explain("GET", "/items/7", ANY)
        assert (trace.decision, trace.status) == ("stale_error", 200)
        assert "detail=resting" in (await client.get("/items/7")).headers["cache-status"]


def test_every_window_that_somebody_set_is_told_with_who_did(tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text(
        "upstreams: {api: {url: 'http://api.test'}}\n"
        "routes:\n  item:\n    path: /items/{id}\n    upstream: api\n    ttl: 30s\n    stale_if_error: 5m\n"
    )
    result = CliRunner().invoke(cli, ["explain", "GET", "/items/7", "-c", str(file)])
    assert f"windows   stale_if_error 5m: {file} line 7 (5m)" in result.output
    assert "stale_while_revalidate" not in result.output


def test_the_ttl_of_a_stored_404_is_shown_once() -> None:
    negative = Lifetime(value="5s", sources=("gateway.yaml line 9 (5s)",), setting="negative_ttl")
    windows = (negative, Lifetime(value="1m", sources=("gateway.yaml line 10 (1m)",), setting="stale_if_error"))
    text = render(Trace(request="GET /a", decision="hit", why="", ttl=negative, windows=windows))
    assert (text.count("negative_ttl"), text.count("stale_if_error")) == (1, 1)


async def test_a_read_with_content_is_explained_by_its_content_and_shows_none_of_it(clock: TurnedClock) -> None:
    search = {"path": "/search", "upstream": "api", "ttl": "60s", "methods": ["GET", "QUERY"], "body": {"max": "20B"}}
    app = gateway(StubUpstream(json_answer()), {"search": search}, clock=clock)
    fields = (*ANY, (b"content-type", b"application/json"))
    async with running(app) as client:
        await client.request("QUERY", "/search", content=b'"shoes"', headers={"content-type": "application/json"})
        found = await app.explain("QUERY", "/search", fields, b'"shoes"')
        assert (found.decision, found.route) == ("hit", "search")
        assert found.key[-1] == ":content:QUERY: digest of 7 bytes of application/json"
        assert "shoes" not in str(found)
        assert (await app.explain("QUERY", "/search", fields, b'"hats"')).decision == "miss"
        large = await app.explain("QUERY", "/search", fields, b'"hats and shoes and bags"')
        assert (large.decision, large.why) == ("bypass", "its body is larger than `body.max`, so it bypasses the cache")
        assert (await app.explain("QUERY", "/search", ANY, b"1")).why.startswith("the type of its body")
        assert (await app.explain("QUERY", "/search", fields)).decision == "unknown"


async def test_a_shared_stream_is_explained_by_its_key() -> None:
    route = {"path": "/prices", "upstream": "api", "ttl": "0s", "stream": "share"}
    app = gateway(StubUpstream(json_answer()), {"prices": route})
    found = await app.explain("GET", "/prices", ANY)
    assert (found.decision, found.key) == ("stream", ("api", "/prices", "accept:*/*"))
    assert (await app.explain("GET", "/prices", ((b"authorization", b"x"),))).decision == "bypass"


async def test_a_handshake_is_explained_as_what_is_passed_on_if_its_credential_lets_it_in() -> None:
    talk = {"path": "/talk/{id}", "upstream": "api", "websocket": True}
    own = {"issuer": "https://issuer.test", "jwks": "https://issuer.test/keys", "audience": "a"}
    routes = {"talk": talk, "own": {**talk, "path": "/own", "identity": ["own"], "cache": False}}
    app = gateway(StubUpstream(json_answer()), routes, identity={"own": own})
    handshake = ((b"upgrade", b"WebSocket"), *ANY)
    found = await app.explain("GET", "/talk/7", handshake)
    assert (found.decision, found.route, found.upstream, found.asks) == ("bypass", "talk", "api", "/talk/7")
    assert found.why.startswith("a WebSocket")
    assert not (await app.explain("GET", "/talk/7", ANY)).why.startswith("a WebSocket")
    assert (await app.explain("GET", "/own", handshake)).decision == "401"
