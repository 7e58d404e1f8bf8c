"""What the edge keeps of aggregates and their parts."""

from __future__ import annotations

import pytest

from gateway.testing import TurnedClock
from tests.support.edge_lines import Line, asked
from tests.support.gateways import lose_wholes
from tests.support.splice import UPSTREAM_HEADERS, JoiningSide, Parts, get


@pytest.mark.parametrize("edge", [True, False])
async def test_each_join_tells_the_advice_of_each_part(clock: TurnedClock, edge: bool) -> None:
    """Otherwise the advisor knew of a part only that it was fetched, and foretold that no TTL brings a hit."""
    changing = Parts()
    changing.headers = {"cache-control": "max-age=20"}
    side = JoiningSide(clock, changing, edge=edge)
    for _ in range(10):
        await side.ask(get("/plain/1"))
        lose_wholes(side.app)
    seen = side.app.engine.traffic.take()
    assert {name: seen[name].requests for name in ("plain.user", "plain.offers", "plain.news")} == {
        "plain.user": 10,
        "plain.offers": 10,
        "plain.news": 10,
    }
    assert {each.number for each in seen["plain.user"].sightings} == {10}


async def test_what_is_remembered_of_wholes_is_bounded() -> None:
    changing = Parts()
    changing.headers = dict(UPSTREAM_HEADERS[0])
    side = JoiningSide(TurnedClock(), changing, edge=True, memory="1MiB")
    line = Line(side.counted)
    for number in range(200):
        for _ in range(2):
            await asked(line, get(f"/plain/{number}"))
            lose_wholes(side.app)
    edge = side.app.edge
    assert edge is not None
    joins = edge._joins
    assert edge._most < 200
    assert len(joins._order) == len(joins._at_hand) == len(edge.known_targets) == edge._most
    assert sum(len(known_target.splices) for known_target in edge.known_targets.values()) <= edge._most
