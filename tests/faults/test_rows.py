"""The rows of docs/reliability.md at a size that CI can bear; `make torture` runs them at full length."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.app.gateway import Gateway
from gateway.edge.protocol import GatewayProtocol
from tests.faults import overload, scenarios
from tests.faults.scenarios import app_for, path_of, response, started
from tests.faults.troubles import TROUBLES
from tests.support.gateways import served
from tests.support.processes import Valkey
from tests.support.proxy import FaultProxy
from tests.support.raw import MALFORMED, Connection, raw_upstream

alone = pytest.mark.alone  # Redis has 50 ms to answer


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory: Path = tmp_path_factory.mktemp("valkey")
    valkey = Valkey(directory, unix=False)
    valkey.start()
    yield valkey.url
    valkey.end()


WAYS = pytest.mark.parametrize("door", [True, False], ids=["past ASGI", "by the app"])


@alone
@WAYS
async def test_no_user_is_given_what_is_anothers_whatever_is_cancelled_and_however_late_redis_is(
    redis_url: str, door: bool
) -> None:
    seen = await scenarios.many_users(redis_url, requests=1500, users=150, door=door)
    assert (seen.wrong, seen.failed, seen.held) == ([], [], 0)
    assert seen.cancelled > 100
    assert seen.answered > 900


@alone
@WAYS
async def test_after_a_thousand_cancellations_nothing_is_held_and_a_hundred_of_a_hundred_are_right(
    redis_url: str, door: bool
) -> None:
    seen = await scenarios.cancellations(redis_url, requests=1000, door=door)
    assert seen.cancelled > 300
    assert (seen.right_after, seen.held, seen.flights, seen.others) == (100, 0, 0, {})


@alone
async def test_two_hundred_at_once_at_two_gateways_ask_the_upstream_once(redis_url: str) -> None:
    assert await scenarios.stampede(redis_url, clients=200) == (1, 1)


@pytest.mark.parametrize("failure", scenarios.FAILURES)
async def test_while_the_upstream_fails_every_answer_is_stale_and_it_is_asked_once_an_interval(failure: str) -> None:
    answered, asked = await scenarios.stale_while_failing(failure, seconds=60)
    assert answered == 60
    assert 5 <= asked <= 60 / 5 + 1


async def test_an_upstream_that_fails_sees_no_more_requests_than_the_clients_made() -> None:
    made, seen = await scenarios.retries(requests=200)
    assert seen <= 1.1 * made


@alone
@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda each: each.__name__)
async def test_whatever_happens_to_redis_no_request_fails_and_it_is_used_again_within_a_second(
    redis_url: str, trouble: Callable[[FaultProxy], Any]
) -> None:
    seen = await scenarios.redis_trouble(redis_url, trouble)
    assert seen.failed == []
    assert seen.asked == 150
    print(f"{trouble.__name__}: slowest {seen.slowest:.3f} s, back after {seen.back_after:.3f} s")
    assert seen.back_after < 2.0  # promised is 1 s: a loaded machine gets the other


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
async def test_a_malformed_answer_is_502_and_not_stored_and_the_next_request_is_right(data: bytes) -> None:
    answers = [data]

    async def script(connection: Connection) -> None:
        head = await connection.request()
        await connection.send(answers.pop() if answers else response(path_of(head).encode()))

    async with raw_upstream(script) as raw:
        app = app_for(raw, {"item": {"path": "/item/{id}", "upstream": "api", "ttl": "60s"}})
        async with started(app) as (client,):
            broken = await client.get("/item/1")
            await app.engine.settle()
            assert broken.status_code == 502
            assert stored(app) == 0
            raw_address = raw.url.removeprefix("http://")
            assert raw_address not in broken.text
            assert raw_address.partition(":")[2] not in broken.text
            right = await client.get("/item/1")
            assert (right.status_code, right.text) == (200, "/item/1")


def stored(app: Gateway) -> int:
    return app.engine.memory.statistics.entries


async def test_a_million_queries_take_no_more_memory_than_is_configured() -> None:
    async with raw_upstream(scenarios.answering(lambda head: response(b"x" * 500))) as raw:
        app = app_for(raw, {"item": {"path": "/item", "upstream": "api", "ttl": "60s"}}, memory="256KiB")
        async with started(app) as (client,):
            for number in range(0, 2000, 50):
                await asyncio.gather(*(client.get(f"/item?q={number + each}") for each in range(50)))
            assert app.engine.memory.statistics.bytes <= 256 * 1024
            assert app.engine.memory.statistics.evictions > 500


@pytest.mark.alone  # it measures the upstream's capacity
async def test_at_twice_capacity_hits_are_served_the_rest_is_told_at_once_and_goodput_stays() -> None:
    async with overload.bounded_upstream() as raw:
        app = app_for(
            raw, {"item": {"path": "/item/{id}", "upstream": "api", "ttl": "60s"}}, upstream=overload.OVERLOADED
        )
        async with served(app, http=GatewayProtocol) as url:
            seen = await overload.overload(url, seconds=3, capacity=250)
    print(seen)
    assert seen.hits_served == seen.hits > 40
    assert seen.shed > 100
    assert seen.other == {}
    assert seen.goodput > 0.5 * seen.peak  # promised are 80 %: a loaded machine gets less
    assert seen.recovered < 5
