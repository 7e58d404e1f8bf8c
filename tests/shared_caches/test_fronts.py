"""Two users behind a shared cache, for every row of docs/keys.md: nobody is given what was made for the other."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.shared_caches import fronts, table
from tests.shared_caches.crowd import VALUES, crowd, wrongly_shown
from tests.shared_caches.origin import echo
from tests.shared_caches.rows import ECHOED, INPUTS, Input, Row, rows
from tests.support.gateways import served
from tests.support.processes import GatewayProcess
from tests.support.scale import size

URLS = 5
"""At so many URLs of a row: each has another order of those who ask first."""

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
async def behind(tmp_path: Path) -> AsyncIterator[GatewayProcess]:
    """A gateway with all rows, on upstreams that say what they see."""
    async with served(echo(honest=False)) as plain, served(echo(honest=True)) as honest:
        settings = {
            **table.settings(),
            "upstreams": {
                "plain": {"url": plain, "breaker_failures": 0},
                "honest": {"url": honest, "breaker_failures": 0},
            },
            "include": ["tests.shared_caches.handlers:router"],
        }
        gateway = await asyncio.to_thread(GatewayProcess, tmp_path, settings)
        try:
            yield gateway
        finally:
            await asyncio.to_thread(gateway.end)


@pytest.mark.parametrize("name", fronts.FRONTS)
async def test_no_answer_crosses_from_one_user_to_another(behind: GatewayProcess, tmp_path: Path, name: str) -> None:
    if name != "gateway" and fronts.program(name) is None:
        pytest.skip(f"{name} is not installed")
    place = tmp_path / "front"
    place.mkdir()
    port = int(behind.url.rpartition(":")[2])
    tried: Counter[str] = Counter()
    with ExitStack() as stack:
        url = await asyncio.to_thread(stack.enter_context, fronts.FRONTS[name](place, port))
        async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
            crossed = [found for row in rows() for found in await _crossed(session, url, row, tried)]
        stack.callback(lambda: None)
        await asyncio.to_thread(stack.close)
    assert not crossed, "\n".join(crossed)
    assert set(tried) == {row.id for row in rows()}, "rows of docs/keys.md that were not tried"
    assert set(tried.values()) == {2 * size("front_requests")}


async def _crossed(session: aiohttp.ClientSession, url: str, row: Row, tried: Counter[str]) -> list[str]:
    """What of one user's request stood in another's answer; both ask at once, each time with other inputs."""
    chance, requests = random.Random(row.id), size("front_requests")
    asked = [
        (user, _chosen(chance), chance.randrange(URLS)) for user in ("user-ann", "user-bob") for _ in range(requests)
    ]
    chance.shuffle(asked)
    found: list[str] = []

    async def ask(user: str, given: list[Input], which: int) -> None:
        headers = {name: value for each in given for name, value in each.headers(user).items()}
        query = "&".join((f"n={which}", *(each.query.format(user=user) for each in given if each.query)))
        async with session.get(f"{url}{row.path}?{query}", headers=headers) as response:
            assert response.status == row.status, f"{row.id}: {response.status} {await response.text()}"
            seen: dict[str, Any] = await response.json()
            tried[row.id] += 1
        sent = {each.name.lower() for each in given}
        wrong = wrongly_shown(seen, user, sent)
        if wrong:
            found.append(f"{row.id}: {user}, who sent {sorted(sent)}, is given {wrong}")

    for start in range(0, len(asked), 10):
        await asyncio.gather(*(ask(*each) for each in asked[start : start + 10]))
    return found


def _chosen(chance: random.Random) -> list[Input]:
    return [each for each in INPUTS if chance.random() < 0.4]


async def test_the_page_of_keys_is_what_the_gateway_does() -> None:
    found = await table.measured()
    leaks = [
        f"{each.row.id}: {given.name}"
        for each in found
        for given, cell in zip(INPUTS, each.cells, strict=True)
        if cell == table.LEAK
    ]
    assert leaks == []
    assert table.PAGE.read_text() == table.page(found), "run `make docs`"


def test_each_input_that_a_row_may_show_is_tried() -> None:
    assert set(ECHOED) == set(VALUES)


async def test_no_answer_crosses_in_a_crowd_at_two_workers(tmp_path: Path) -> None:
    requests = size("front_crowd")
    seen = await crowd(tmp_path, requests=requests, users=requests // 10)
    assert (seen.crossed, seen.failed) == ([], Counter())
    assert set(seen.rows) == {row.id for row in rows()}
    assert seen.hung_up > requests // 30
    assert seen.shared > requests // 30
