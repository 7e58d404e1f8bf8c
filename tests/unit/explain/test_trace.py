"""The text of a trace."""

from __future__ import annotations

import re

from gateway.explain.trace import Name, Trace, render
from gateway.testing import TurnedClock, running
from tests.support.explain import ANY, started


def test_the_text_says_of_a_path_without_route_that_there_is_none() -> None:
    text = render(Trace(request="GET /x", target="/x", decision="404", why="no declared route has this path"))
    assert text.splitlines() == [
        "GET /x",
        "  decision  404: no declared route has this path",
        "  target    /x",
    ]


async def test_the_text_tells_the_windows_of_what_is_stored(clock: TurnedClock) -> None:
    app, _ = started(clock)
    async with running(app) as client:
        await client.get("/items/7")
        clock.turn(31)
        text = render(await app.explain("GET", "/items/7", ANY))
    assert re.search(r"fresh: ended \d+\.\d s ago", text)
    assert "until" not in text
    assert "stale while revalidating for" in text
    assert "in memory: 200" in text


def test_the_text_tells_when_a_name_was_purged() -> None:
    names = (Name(name="tag item", epoch="1795883466358-0"), Name(name="key", epoch="-"))
    text = render(Trace(request="GET /a", decision="hit", why="", names=names))
    assert "tag item: last purged 2026-11-28 16:31:06Z" in text
    assert "key: not purged of late" in text
