"""What the edge keeps between requests: bounded, and of one generation of routes."""

from __future__ import annotations

import httpx

from gateway.cache.request import Route
from gateway.edge.entries import HeaderBlock
from gateway.edge.header_block import REMEMBERED
from gateway.edge.hits import LINE_BYTES
from gateway.policy.keys import Keying
from gateway.policy.rules import CachePolicy
from gateway.testing import StubUpstream
from tests.support.edge_lines import GET, Counted, Line, asked, plain
from tests.support.gateways import gateway


async def test_another_generation_of_routes_knows_nothing_of_the_last() -> None:
    app, _ = plain()
    line = Line(app)
    for _ in range(2):
        await asked(line, GET % b"")
    other, _ = plain()
    app.app = other.app
    assert b"fwd=miss" in await asked(line, GET % b"")


async def test_what_is_remembered_is_bounded() -> None:
    app, _ = plain(memory="1MiB")
    line = Line(app)
    for number in range(300):
        request = (GET % b"A: %d\r\n" % number).replace(b"/o/1", b"/o/%d" % number)
        await asked(line, request)
        await asked(line, request)
    edge = app.app.edge
    most = 2**20 // 4 // LINE_BYTES
    assert len(edge.known_targets) == most
    assert len(edge.blocks) <= most // 4 + 1
    assert len(edge._order) <= most
    assert len(edge.memos) <= most


async def test_no_long_key_is_kept_though_its_response_is_served() -> None:
    routes = {"o": {"path": "/o/{id}", "upstream": "api", "ttl": "1m"}}
    app = Counted(gateway(StubUpstream(lambda _: httpx.Response(200, content=b"body")), routes=routes))
    line = Line(app)
    for length, kept in ((2 * REMEMBERED, 0), (REMEMBERED // 2, 1)):
        request = GET % (b"Accept-Language: %b\r\n" % (b"k" * length))
        for _ in range(4):
            answer = await asked(line, request)
        assert b"gateway; hit" in answer
        assert len(app.edge._order) == kept
    assert app.passed == 2  # the edge served the others


async def test_a_line_is_prepared_for_when_it_comes_again() -> None:
    app, _ = plain()
    line, edge = Line(app), app.app.edge
    first = await asked(line, GET % b"")
    assert b"fwd=miss" in first
    assert not edge.known_targets
    assert app.passed == 1
    second = await asked(line, GET % b"")
    assert b"gateway; hit" in second
    assert app.passed == 1  # the edge answered it
    assert [*edge.known_targets] == [b"GET /o/1 HTTP/1.1"]


async def test_what_is_known_of_lines_that_come_once_is_bounded_and_forgets_the_oldest() -> None:
    app, _ = plain(memory="1MiB")
    line, edge = Line(app), app.app.edge
    for number in range(300):
        await asked(line, (GET % b"").replace(b"/o/1", b"/o/%d" % number))
    assert not edge.known_targets
    assert edge._most // 2 <= len(edge._expected) + len(edge._expected_before) <= edge._most + 2
    before = app.passed
    for number, passes in ((299, 0), (0, 1)):
        answer = await asked(line, (GET % b"").replace(b"/o/1", b"/o/%d" % number))
        assert b"gateway; hit" in answer
        assert app.passed - before == passes
    edge.forget()
    assert not edge._expected
    assert not edge._expected_before


def test_a_block_has_no_plan_for_a_route_that_keys_the_request_id_which_is_not_in_it() -> None:
    block = HeaderBlock([(b"host", b"a"), (b"accept", b"a/b")])
    types, ids = (Route(name, CachePolicy(ttl=60.0), Keying((name,))) for name in ("accept", "x-request-id"))
    found = block.planned[types, "GET"]
    assert found is not None
    assert found[0].plan("up", "/").base == "up\n/\naccept:a/b"
    assert block.planned[ids, "GET"] is None
