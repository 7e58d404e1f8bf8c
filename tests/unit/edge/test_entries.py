"""What the edge keeps between requests: bounded, and of one generation of routes."""

from __future__ import annotations

from gateway.edge.hits import LINE_BYTES
from tests.support.edge_lines import GET, Line, asked, plain


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
