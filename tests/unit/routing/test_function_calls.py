"""Functions behind the cache: `@cached` outside of routes, and `get_or_set`."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient
from pydantic import BaseModel

from gateway import Cache, Gateway, UpstreamError, cached, get_or_set
from gateway.testing import TurnedClock, running

QUIET = {"redis_url": "none", "access_log": False}


class Rate(BaseModel):
    currency: str
    value: float = 1.5


@dataclass
class Opaque:
    value: int


class Asked:
    """Counts, and may wait or fail."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None

    async def __call__(self, value: Any) -> Any:
        self.calls.append(value)
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return value


@pytest.fixture
def clock() -> TurnedClock:
    return TurnedClock()


@pytest.fixture
async def app(clock: TurnedClock) -> AsyncIterator[Gateway]:
    app = Gateway(QUIET, clock=clock)
    async with running(app):
        yield app


def rates(asked: Asked, **arguments: Any) -> Any:
    @cached(**{"ttl": "30s", "stale_while_revalidate": "0s", **arguments})
    async def rate(currency: str, day: int = 1) -> Rate:
        await asked((currency, day))
        return Rate(currency=currency)

    return rate


async def test_a_functions_arguments_are_its_key_however_they_are_given(app: Gateway) -> None:
    asked = Asked()
    rate = rates(asked)
    values = [await rate("eur"), await rate("eur", 1), await rate(currency="eur", day=1), await rate("usd")]
    assert values == [Rate(currency=each) for each in ("eur", "eur", "eur", "usd")]
    assert asked.calls == [("eur", 1), ("usd", 1)]


async def test_a_value_ends_with_its_ttl(app: Gateway, clock: TurnedClock) -> None:
    asked = Asked()
    rate = rates(asked)
    for seconds in (0, 20, 20):
        clock.turn(seconds)
        await rate("eur")
    assert len(asked.calls) == 2


async def test_concurrent_calls_are_one(app: Gateway) -> None:
    asked = Asked()
    asked.gate.clear()
    rate = rates(asked)
    waiting = [asyncio.ensure_future(rate("eur")) for _ in range(5)]
    while not asked.calls:
        await asyncio.sleep(0)
    asked.gate.set()
    assert await asyncio.gather(*waiting) == [Rate(currency="eur")] * 5
    assert len(asked.calls) == 1


async def test_an_exception_is_that_of_all_who_wait_and_not_stored(app: Gateway) -> None:
    asked = Asked()
    asked.error = KeyError("eur")
    asked.gate.clear()
    rate = rates(asked)
    waiting = [asyncio.ensure_future(rate("eur")) for _ in range(3)]
    while not asked.calls:
        await asyncio.sleep(0)
    asked.gate.set()
    assert [type(each) for each in await asyncio.gather(*waiting, return_exceptions=True)] == [KeyError] * 3
    asked.error = UpstreamError("shop", "away")
    with pytest.raises(UpstreamError):
        await rate("eur")
    asked.error = None
    assert await rate("eur") == Rate(currency="eur")
    assert len(asked.calls) == 3


async def test_a_failure_is_covered_by_stale_if_error(app: Gateway, clock: TurnedClock) -> None:
    asked = Asked()
    rate = rates(asked, stale_if_error="10m")
    await rate("eur")
    clock.turn(60)
    asked.error = KeyError("eur")
    assert await rate("eur") == Rate(currency="eur")
    assert len(asked.calls) == 2


async def test_a_stale_value_is_refreshed_behind(app: Gateway, clock: TurnedClock) -> None:
    asked = Asked()
    rate = rates(asked, stale_while_revalidate="10m")
    await rate("eur")
    clock.turn(60)
    assert await rate("eur") == Rate(currency="eur")
    await app.engine.settle()
    assert len(asked.calls) == 2
    await rate("eur")
    assert len(asked.calls) == 2


@pytest.mark.parametrize("by", [{"tags": ["rate:eur"]}, {"everything": True}, {"routes": [""]}])
async def test_values_are_purged_as_responses_are(by: dict[str, Any], app: Gateway) -> None:
    asked = Asked()
    rate = rates(asked, tags=["rate:{currency}"])
    await rate("eur")
    if by.get("routes"):
        by = {"routes": [name for name in app.route_names() if name.endswith("rate")]}
    await app.purge(**by)
    await rate("eur")
    assert len(asked.calls) == 2


async def test_key_names_what_counts_and_when_and_ttl_decide_by_the_value(app: Gateway, clock: TurnedClock) -> None:
    asked = Asked()

    @cached(ttl=lambda value: value, when=lambda value: value > 1, key=["seconds"], stale_while_revalidate="0s")
    async def lifetime(seconds: int, session: object) -> int:
        return int(await asked(seconds))

    for _ in range(2):
        assert [await lifetime(each, object()) for each in (1, 10, 100)] == [1, 10, 100]
    clock.turn(20)
    assert [await lifetime(each, object()) for each in (10, 100)] == [10, 100]
    assert asked.calls == [1, 10, 100, 1, 10]


async def test_arguments_that_can_not_be_compared_are_not_cached_and_reported_once(
    app: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    asked = Asked()

    @cached(ttl="30s")
    async def of(session: object) -> int:
        return int(await asked(1))

    assert [await of(object()) for _ in range(2)] == [1, 1]
    assert len(asked.calls) == 2
    assert [each.getMessage() for each in caplog.records if "are not cached" in each.getMessage()][1:] == []


async def test_a_value_that_json_does_not_restore_is_made_each_time(app: Gateway) -> None:
    asked = Asked()

    @cached(ttl="30s")
    async def opaque(value: int):  # type: ignore[no-untyped-def]
        return Opaque(await asked(value))

    assert [await opaque(1) for _ in range(2)] == [Opaque(1)] * 2
    assert len(asked.calls) == 2


async def test_a_deadline_ends_a_call(app: Gateway) -> None:
    asked = Asked()
    asked.gate.clear()
    rate = rates(asked, deadline="20ms")
    with pytest.raises(TimeoutError, match="within"):
        await rate("eur")


async def test_without_an_app_or_with_the_switch_off_the_function_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked()
    rate = rates(asked)
    assert [await rate("eur") for _ in range(2)] == [Rate(currency="eur")] * 2
    assert [await get_or_set("a", lambda: asked(1), ttl="30s") for _ in range(2)] == [1, 1]
    monkeypatch.setenv("GATEWAY_CACHE", "off")
    async with running(Gateway(QUIET)):
        assert [await rate("eur") for _ in range(2)] == [Rate(currency="eur")] * 2
    assert len(asked.calls) == 6


def test_sync_functions_are_cached_where_their_thread_may_wait_and_handlers_stay_plain_functions() -> None:
    app, calls = FastAPI(), list[str]()
    Cache(app, QUIET)

    @cached(ttl="30s")
    def slow(n: int) -> int:
        calls.append("slow")
        return n

    @app.get("/sync/{n}")
    def sync(n: int) -> int:
        return slow(n) + slow(n)

    @app.get("/handler")
    @cached(ttl="30s")
    async def handler() -> int:
        calls.append("handler")
        return 1

    @app.get("/direct")
    async def direct() -> int:
        return await handler() + await handler()

    @cached(ttl="30s")
    async def dependency() -> int:
        calls.append("dependency")
        return 1

    @app.get("/depends")
    async def depends(one: Annotated[int, Depends(dependency)]) -> int:
        return one

    with TestClient(app) as client:
        assert [client.get("/sync/2").json() for _ in range(2)] == [4, 4]
        assert client.get("/direct").json() == 2
        assert [client.get("/depends").json() for _ in range(2)] == [1, 1]
    assert calls == ["slow", "handler", "handler", "dependency", "dependency"]
    assert slow(1) == 1


async def test_get_or_set_makes_a_value_once_and_restores_its_type(app: Gateway, clock: TurnedClock) -> None:
    asked = Asked()

    async def make() -> Rate:
        return Rate(currency=await asked("eur"))

    for _ in range(2):
        assert await get_or_set("rate/eur", make, ttl="30s", tags=["rates"]) == Rate(currency="eur")
    assert await get_or_set("rate/usd", lambda: asked("usd"), ttl="30s") == "usd"
    assert await get_or_set("sync", lambda: 3, ttl="30s", returns=int) == 3
    assert await get_or_set("sync", lambda: 4, ttl="30s", returns=int) == 3
    await app.purge(tags=["rates"])
    await get_or_set("rate/eur", make, ttl="30s", stale_while_revalidate="0s")
    await app.purge(routes=["get_or_set"])
    assert await get_or_set("sync", lambda: 4, ttl="30s", returns=int) == 4
    assert asked.calls == ["eur", "usd", "eur"]


async def test_get_or_set_refuses_wrong_arguments(app: Gateway) -> None:
    with pytest.raises(ValueError, match="invalid duration"):
        await get_or_set("a", lambda: 1, ttl="soon")
