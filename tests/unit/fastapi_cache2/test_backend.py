"""An app written for fastapi-cache2, served by the gateway: its own decorator, on the gateway's store."""

from __future__ import annotations

import asyncio
import contextlib
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
import yaml
from fastapi import APIRouter, Depends, Request, Response
from fastapi_cache import FastAPICache
from fastapi_cache.backends.inmemory import InMemoryBackend
from fastapi_cache.coder import JsonCoder
from fastapi_cache.decorator import cache
from fastapi_cache.key_builder import default_key_builder
from msgspec import structs
from pydantic import BaseModel

from gateway import cached
from gateway.cache.engine import Engine
from gateway.cache.memory import Memory
from gateway.cache.redis.store import RedisStore
from gateway.cache.shared_store import NoShared
from gateway.cache.store import entry_name
from gateway.clock import SystemClock
from gateway.fastapi_cache2.backend import GatewayBackend, register, unregister
from gateway.fastapi_cache2.coder import GatewayCoder
from gateway.policy.entry import decode_stored, encode
from gateway.server.embedded_redis import Embedded
from gateway.testing import TurnedClock, running
from tests.support.fastapi_cache2 import (
    Cat,
    Counter,
    Include,
    Item,
    Point,
    engine_of,
    hit,
    numbers,
    returning,
    shop,
)
from tests.support.gateways import gateway

DOCUMENT = Path(__file__).parents[3] / "docs" / "moving-from-fastapi-cache2.md"


# --- an app moves in unchanged -------------------------------------------------------------------------------


async def test_the_second_request_is_a_hit_and_the_handler_is_called_once(include: Include) -> None:
    router, count = APIRouter(), Counter()

    @router.get("/items/{id}")
    @cache(expire=30, namespace="x")
    async def item(id: int) -> dict[str, int]:
        return {"id": id, "n": count()}

    async with shop(include, router) as client:
        first, second, other = [await client.get(path) for path in ("/items/1", "/items/1", "/items/2")]
    assert [hit(each) for each in (first, second, other)] == [False, True, False]
    assert first.json() == second.json() == {"id": 1, "n": 1}
    assert other.json() == {"id": 2, "n": 2}


async def test_an_entry_lives_as_long_as_its_decorator_says(include: Include, clock: TurnedClock) -> None:
    router, count = APIRouter(), Counter()

    @router.get("/n")
    @cache(expire=30)
    async def n() -> int:
        return count()

    async with shop(include, router, clock=clock) as client:
        await client.get("/n")
        clock.turn(20)
        later = await client.get("/n")
        clock.turn(10)
        expired = await client.get("/n")
    assert (later.text, later.headers["cache-control"]) == ("1", "max-age=10")
    assert (expired.text, hit(expired)) == ("2", False)


async def test_an_entry_without_an_expiry_lives_for_seven_days(clock: TurnedClock) -> None:
    backend = GatewayBackend(engine_of(clock))
    await backend.set("k", b"v")
    assert await backend.get_with_ttl("k") == (7 * 86_400, b"v")
    clock.turn(7 * 86_400)
    assert await backend.get_with_ttl("k") == (0, None)


async def test_a_default_expiry_and_prefix_are_given_when_registering(clock: TurnedClock) -> None:
    count = Counter()

    @cache(namespace="x", key_builder=lambda function, namespace="", **_: f"{namespace}:n")
    async def n() -> int:
        return count()

    backend = register(engine_of(clock), prefix="shop", expire=60)
    await n()
    assert (await backend.get_with_ttl("shop:x:n"))[0] == 60


async def test_a_cached_function_that_is_no_handler_gives_back_its_model() -> None:
    count = Counter()

    @cache(expire=30)
    async def point(x: int) -> Point:
        return Point(x, Decimal(count()))

    register(engine_of())
    assert [await point(7), await point(7)] == [Point(7, Decimal(1)), Point(7, Decimal(1))]


async def test_an_init_of_the_apps_own_is_passed_over(include: Include) -> None:
    @contextlib.asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        FastAPICache.init(InMemoryBackend(), prefix="own")
        yield

    app = gateway(routes={}, include=include(APIRouter(lifespan=lifespan)))
    async with app.router.lifespan_context(app):
        assert isinstance(FastAPICache.get_backend(), GatewayBackend)


async def test_the_last_gateway_to_start_is_the_one_that_stores(include: Include) -> None:
    first, second = gateway(routes={}, include=[]), gateway(routes={}, include=[])
    await first.start()
    await second.start()
    await first.stop()
    backend = FastAPICache.get_backend()
    assert isinstance(backend, GatewayBackend)
    assert backend.engine is second.engine
    await second.stop()
    assert FastAPICache._backend is None


def test_a_gateway_without_such_an_app_never_imports_the_library() -> None:
    code = (
        "import asyncio, sys\n"
        "from gateway import create_app\n"
        "app = create_app({'redis_url': 'none'})\n"
        "async def run(): await app.start(); await app.stop()\n"
        "asyncio.run(run())\n"
        "assert 'fastapi_cache' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- what a handler returns comes back as it was -------------------------------------------------------------


class Lion(Cat):
    weight: int


async def test_a_decorators_own_coder_works(include: Include) -> None:
    router = APIRouter()

    @router.get("/")
    @cache(expire=30, coder=JsonCoder)
    async def handler() -> dict[str, int]:
        return {"a": 1}

    async with shop(include, router) as client:
        first, second = await client.get("/"), await client.get("/")
    assert hit(second)
    assert second.content == first.content


# --- clearing ------------------------------------------------------------------------------------------------


async def left(backend: GatewayBackend, *keys: str) -> list[str]:
    return [key for key in keys if await backend.get(key) is not None]


KEYS = ("gateway:a:1", "gateway:a:2", "gateway:ab:1", "gateway:b:1", "gateway::1", "own")


async def test_a_namespace_is_cleared_and_no_other() -> None:
    backend = await numbers(*KEYS)
    await FastAPICache.clear(namespace="a")
    assert await left(backend, *KEYS) == ["gateway:ab:1", "gateway:b:1", "gateway::1", "own"]


async def test_a_namespace_within_a_namespace_is_cleared_with_it() -> None:
    keys = ("gateway:a:b:1", "gateway:a:c:1")
    backend = await numbers(*keys)
    await FastAPICache.clear(namespace="a:b")
    assert await left(backend, *keys) == ["gateway:a:c:1"]
    await FastAPICache.clear(namespace="a")
    assert await left(backend, *keys) == []


async def test_a_namespace_deeper_than_eight_is_cleared_with_the_eighth() -> None:
    keys = ("1:2:3:4:5:6:7:8:9:a", "1:2:3:4:5:6:7:0:9:a")
    backend = await numbers(*keys)
    await backend.clear("1:2:3:4:5:6:7:8:9")
    assert await left(backend, *keys) == ["1:2:3:4:5:6:7:0:9:a"]


async def test_without_a_namespace_the_whole_prefix_is_cleared() -> None:
    backend = await numbers(*KEYS)
    await FastAPICache.clear()
    assert await left(backend, *KEYS) == ["own"]


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({"key": "gateway:a:1"}, "gateway:a:1"),
        ({"key": "1", "namespace": "a"}, "gateway:a:1"),
        ({"key": "own"}, "own"),
    ],
    ids=["whole", "within its namespace", "of an own key builder"],
)
async def test_a_key_is_cleared_and_no_other(arguments: dict[str, str], key: str) -> None:
    backend = await numbers(*KEYS)
    assert await FastAPICache.clear(**arguments) == 1
    assert await left(backend, *KEYS) == [each for each in KEYS if each != key]


async def test_clearing_says_whether_the_key_was_there() -> None:
    await numbers("gateway:a:1")
    assert await FastAPICache.clear(key="gateway:a:1") == 1
    assert await FastAPICache.clear(key="gateway:a:1") == 0


async def test_nothing_named_is_nothing_cleared() -> None:
    backend = await numbers("a:1")
    assert await backend.clear() == 0
    assert await left(backend, "a:1") == ["a:1"]


async def test_what_is_stored_after_a_clear_is_a_hit() -> None:
    backend = await numbers("gateway:a:1")
    await FastAPICache.clear(namespace="a")
    assert await backend.get("gateway:a:1") is None
    await backend.set("gateway:a:1", b"new", 30)
    assert await backend.get("gateway:a:1") == b"new"


async def test_the_gateways_own_purge_of_a_tag_clears_the_namespace_of_that_name(include: Include) -> None:
    app = gateway(routes={}, include=include(APIRouter()))
    async with running(app):
        backend = GatewayBackend(app.engine)
        for key in KEYS:
            await backend.set(key, b"v", 30)
        await app.purge(tags=["gateway:a"])
        assert await left(backend, "gateway:a:1", "gateway:b:1") == ["gateway:b:1"]
        await app.purge(everything=True)
        assert await left(backend, *KEYS) == []


@pytest.mark.parametrize("which", ["namespace", "key"])
async def test_a_clear_during_a_call_wins(include: Include, which: str) -> None:
    router, count = APIRouter(), Counter()
    called, go_on = asyncio.Event(), asyncio.Event()

    @router.get("/")
    @cache(expire=30, namespace="x", key_builder=lambda function, namespace="", **_: f"{namespace}:n")
    async def handler() -> int:
        called.set()
        await go_on.wait()
        return count()

    async with shop(include, router) as client:
        under_way = asyncio.ensure_future(client.get("/"))
        await called.wait()
        await FastAPICache.clear(**({"namespace": "x"} if which == "namespace" else {"key": "gateway:x:n"}))
        go_on.set()
        assert (await under_way).text == "1"
        again, then = await client.get("/"), await client.get("/")
    assert (again.text, hit(again)) == ("2", False)
    assert (then.text, hit(then)) == ("2", True)


async def test_a_clear_during_a_refresh_that_a_client_asked_for_wins(include: Include) -> None:
    router, count = APIRouter(), Counter()
    called, go_on = asyncio.Event(), asyncio.Event()
    go_on.set()

    @router.get("/")
    @cache(expire=30, namespace="x")
    async def handler() -> int:
        called.set()
        await go_on.wait()
        return count()

    async with shop(include, router) as client:
        await client.get("/")
        called.clear()
        go_on.clear()
        under_way = asyncio.ensure_future(client.get("/", headers={"cache-control": "no-cache"}))
        await called.wait()
        await FastAPICache.clear(namespace="x")
        go_on.set()
        await under_way
        assert not hit(await client.get("/"))


async def test_a_clear_during_a_call_wins_where_another_cached_call_is_made_within() -> None:
    outer, inner = Counter(), Counter()

    @cache(expire=30, namespace="inner")
    async def part() -> int:
        return inner()

    @cache(expire=30, namespace="outer")
    async def whole() -> int:
        await FastAPICache.clear(namespace="outer")
        await part()
        return outer()

    register(engine_of())
    await whole()
    await whole()
    assert (outer.calls, inner.calls) == (2, 1)


async def test_what_was_cleared_during_its_call_does_not_take_the_place_of_what_was_called_for_since() -> None:
    backend = GatewayBackend(engine_of())

    async def again() -> None:
        await backend.get("k")
        await backend.set("k", b"new", 30)

    await backend.get("k")
    await backend.clear(key="k")
    await asyncio.create_task(again())
    await backend.set("k", b"old", 30)
    assert await backend.get("k") == b"new"


async def test_a_get_from_another_gateway_is_not_what_a_set_belongs_to() -> None:
    one, other = GatewayBackend(engine_of()), GatewayBackend(engine_of())
    await other.clear(key="k")
    await one.get("k")
    await other.set("k", b"v", 30)
    assert await other.get("k") == b"v"


async def test_of_calls_that_fail_the_last_sixty_four_are_remembered() -> None:
    backend = GatewayBackend(engine_of())
    for number in range(65):
        await backend.get(f"k{number}")
    for number in range(65):
        await backend.clear(key=f"k{number}")
        await backend.set(f"k{number}", b"v", 30)
    assert await left(backend, *(f"k{number}" for number in range(65))) == ["k0"]


# --- two tiers -----------------------------------------------------------------------------------------------


def connected(valkey: Embedded) -> Callable[[], RedisStore]:
    """Makes stores that share one prefix of a real Valkey."""
    return partial(RedisStore, valkey.url, prefix=f"{uuid4().hex}:", budget=10.0)


async def test_two_gateways_on_one_redis_share_their_entries(include: Include, valkey: Embedded) -> None:
    router, count, store = APIRouter(), Counter(), connected(valkey)

    @router.get("/")
    @cache(expire=30)
    async def handler() -> Item:
        return Item(id=count())

    async with shop(include, router, store=store()) as one:
        first = await one.get("/")
    async with shop(include, router, store=store()) as other:
        second = await other.get("/")
    assert (hit(second), count.calls) == (True, 1)
    assert second.content == first.content


@contextlib.asynccontextmanager
async def replica(store: RedisStore) -> AsyncIterator[GatewayBackend]:
    app = gateway(routes={}, store=store, redis_budget="10s")
    async with running(app):
        yield GatewayBackend(app.engine, budget=10.0)


async def test_what_was_found_in_redis_is_kept_in_memory(valkey: Embedded) -> None:
    store = connected(valkey)
    async with replica(store()) as one, replica(store()) as other:
        await one.set("k", b"v", 30)
        await other.get("k")
        reads = other.engine.shared.statistics.reads  # type: ignore[attr-defined]
        assert await other.get("k") == b"v"
        assert other.engine.shared.statistics.reads == reads  # type: ignore[attr-defined]


@pytest.mark.parametrize("arguments", [{"namespace": "gateway:x"}, {"key": "gateway:x:1"}], ids=["namespace", "key"])
async def test_what_one_gateway_clears_is_cleared_in_the_memory_of_the_other(
    valkey: Embedded, arguments: dict[str, str]
) -> None:
    store = connected(valkey)
    async with replica(store()) as one, replica(store()) as other:
        await one.set("gateway:x:1", b"v", 30)
        assert await other.get("gateway:x:1") == b"v"
        await one.clear(**arguments)
        assert await other.get("gateway:x:1") is None


async def test_a_redis_that_is_killed_is_not_missed(include: Include) -> None:
    router, count = APIRouter(), Counter()

    @router.get("/{id}")
    @cache(expire=30, namespace="x")
    async def handler(id: int) -> int:
        return count()

    with Embedded(maxmemory=2**24) as server:
        async with shop(include, router, store=RedisStore(server.url, budget=1.0)) as client:
            await client.get("/1")
            server.stop()
            kept, new, again = [await client.get(path) for path in ("/1", "/2", "/2")]
            await FastAPICache.clear(namespace="x")
            cleared = await client.get("/1")
    assert [hit(each) for each in (kept, new, again, cleared)] == [True, False, True, False]
    assert [each.text for each in (kept, new, again, cleared)] == ["1", "2", "2", "3"]


class Silent(NoShared):
    """A shared tier that never answers."""

    available = True

    async def read(self, names: Sequence[str]) -> list[bytes | None]:
        return await asyncio.get_running_loop().create_future()

    async def write(self, values: Sequence[tuple[str, bytes, float]]) -> bool:
        return await asyncio.get_running_loop().create_future()


async def test_a_shared_tier_that_does_not_answer_is_waited_for_within_the_budget() -> None:
    backend = GatewayBackend(engine_of(store=Silent()), budget=0.01)
    assert await backend.get("k") is None
    await backend.set("k", b"v", 30)
    assert await backend.get("k") == b"v"


NAME = "@fc2\ngateway:x:k"


def altered(data: bytes, **changes: Any) -> bytes:
    stored = decode_stored(data, NAME)
    assert stored is not None
    return encode(structs.replace(stored, **changes))


CORRUPT: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda data: b"",
    "foreign": lambda data: b"\x80\x04K\x01.",
    "cut": lambda data: data[:-5],
    "flipped": lambda data: data.replace(b"hello", b"jello"),
    "of another key": lambda data: altered(data, key="@fc2\ngateway:x:other"),
    "of another version of the coder": lambda data: altered(data, body=b"FC2\x02\xc0"),
}


@pytest.mark.parametrize("how", CORRUPT)
async def test_a_corrupt_entry_in_redis_is_a_miss(include: Include, valkey: Embedded, how: str) -> None:
    router, count, store = APIRouter(), Counter(), connected(valkey)

    @router.get("/")
    @cache(expire=30, namespace="x", key_builder=lambda function, namespace="", **_: f"{namespace}:k")
    async def handler() -> dict[str, str]:
        count()
        return {"text": "hello"}

    async with shop(include, router, store=store()) as client:
        await client.get("/")
    tool = store()
    (data,) = await tool.read([entry_name(NAME)])
    assert data is not None
    await tool.write([(entry_name(NAME), CORRUPT[how](data), 60.0)])
    await tool.aclose()
    async with shop(include, router, store=store()) as client:
        response = await client.get("/")
    assert (response.status_code, hit(response), count.calls) == (200, False, 2)
    assert response.json() == {"text": "hello"}


async def test_an_entry_of_a_model_that_has_changed_since_is_a_miss() -> None:
    engine = engine_of()
    register(engine)
    await returning(lambda: Cat(name="a"), Cat, own_key=False)()
    assert await returning(lambda: Lion(name="a", weight=1), Lion, own_key=False)() == Lion(name="a", weight=1)
    assert engine.tiers.unreadable == 1


async def test_an_entry_larger_than_memory_takes_is_still_shared(valkey: Embedded) -> None:
    store = connected(valkey)()
    backend = GatewayBackend(Engine(memory=Memory(800), shared=store, clock=SystemClock()), budget=1.0)
    await backend.set("k", bytes(5000), 30)
    assert await backend.get("k") == bytes(5000)
    await store.aclose()


def test_an_etag_is_the_same_in_every_process() -> None:
    code = "from gateway.fastapi_cache2.coder import GatewayCoder; print(hash(GatewayCoder.encode({'a': [1, 'b']})))"
    seen = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, check=True, capture_output=True
        ).stdout
        for seed in ("1", "2")
    }
    assert seen == {f"{hash(GatewayCoder.encode({'a': [1, 'b']}))}\n".encode()}


def test_a_backend_shows_its_engine() -> None:
    assert repr(GatewayBackend(engine_of())).startswith("<GatewayBackend <Engine ")


def test_unregistering_twice_does_no_harm() -> None:
    engine = engine_of()
    register(engine)
    unregister(engine)
    unregister(engine)
    assert FastAPICache._backend is None


# --- what an argument counts for -----------------------------------------------------------------------------


class Session:
    """A dependency without a repr of its own."""


def key_of(*arguments: object) -> str:
    key = FastAPICache.get_key_builder()(key_of, "n", args=arguments, kwargs={})
    assert isinstance(key, str)
    return key


def test_plain_arguments_have_the_librarys_own_key() -> None:
    register(engine_of())
    assert key_of(1, "a") == default_key_builder(key_of, "n", args=(1, "a"), kwargs={})


def test_an_object_at_the_address_of_one_that_is_gone_is_another_key() -> None:
    register(engine_of())
    keys, addresses = set(), set()
    for _ in range(50):
        session = Session()
        keys.add(key_of(session))
        addresses.add(id(session))
        del session
    assert len(addresses) < 50
    assert len(keys) == 50


def test_an_object_that_lives_on_is_the_same_key() -> None:
    register(engine_of())
    session = Session()
    assert key_of(session) == key_of(session)


def test_an_object_that_cannot_be_followed_is_a_new_key_each_time() -> None:
    register(engine_of())
    sessions = [Session()]
    assert key_of(sessions) != key_of(sessions)


async def test_a_key_builder_of_the_apps_own_is_given_when_registering() -> None:
    backend = register(engine_of(), key_builder=lambda function, namespace="", **_: f"{namespace}:own")
    cat = returning(lambda: Cat(name="a"), Cat, own_key=False)
    await cat()
    assert await cat() == Cat(name="a")
    assert await left(backend, "gateway::own") == ["gateway::own"]


async def test_an_asynchronous_key_builder_works(clock: TurnedClock) -> None:
    async def build(function: Any, namespace: str = "", **_: Any) -> str:
        return f"{namespace}:own"

    @cache(expire=30, namespace="x")
    async def cat() -> Cat:
        return Cat(name="a")

    backend = register(engine_of(clock), key_builder=build)  # type: ignore[arg-type]
    await cat()
    assert await cat() == Cat(name="a")
    assert await left(backend, "gateway:x:own") == ["gateway:x:own"]


# --- what the documentation says -----------------------------------------------------------------------------


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)


async def test_the_documented_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, lifespan, summary = blocks("python")
    name = f"shop_{uuid4().hex}"
    (tmp_path / f"{name}.py").write_text(f"{module}\n{summary}\n{lifespan}\nrouter.lifespan_context = lifespan\n")
    monkeypatch.syspath_prepend(tmp_path)
    (settings,) = blocks("yaml")
    app = gateway(routes={}, **yaml.safe_load(settings.replace("shop:router", f"{name}:router")))
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://gateway.test") as client,
    ):
        first, second = await client.get("/products/7"), await client.get("/products/7")
        await client.get("/products/7/summary")
        summary_again = await client.get("/products/7/summary")
        prefix, expire = FastAPICache.get_prefix(), FastAPICache.get_expire()
    assert [hit(first), hit(second)] == [False, True]
    assert second.json() == {"id": 7, "name": "product 7"}
    assert summary_again.headers["cache-status"].startswith("gateway; hit")
    assert (prefix, expire) == ("shop", 60)


Decorate = Callable[[Any], Any]


def both(include: Include, add: Callable[[APIRouter, Decorate], None]) -> list[str]:
    """A handler as fastapi-cache2 caches it at `/theirs`, and as `@cached` does at `/ours`."""
    router = APIRouter()
    for path, decorate in (("/theirs", cache(expire=30)), ("/ours", cached(ttl="30s"))):
        piece = APIRouter(prefix=path)
        add(piece, decorate)
        router.include_router(piece)
    return include(router)


async def asked_of_both(included: list[str], ask: Callable[[httpx.AsyncClient, str], Any]) -> tuple[Any, Any]:
    async with running(gateway(routes={}, include=included)) as client:
        return await ask(client, "/theirs"), await ask(client, "/ours")


async def test_requests_at_once_share_one_call_of_cached_alone(include: Include) -> None:
    counters: list[Counter] = []
    gates: list[asyncio.Event] = []

    def add(router: APIRouter, decorate: Decorate) -> None:
        count, gate = Counter(), asyncio.Event()
        counters.append(count)
        gates.append(gate)

        @router.get("")
        @decorate
        async def handler() -> int:
            number = count()
            await gate.wait()
            return number

    included = both(include, add)
    app = gateway(routes={}, include=included)
    async with running(app) as client:
        waiting = [asyncio.ensure_future(client.get(path)) for path in ("/theirs", "/ours") for _ in range(5)]
        while counters[0].calls < 5 or sum(flight.waiting for flight in app.engine.flights.values()) < 5:
            await asyncio.sleep(0)
        for gate in gates:
            gate.set()
        await asyncio.gather(*waiting)
    assert [count.calls for count in counters] == [5, 1]


async def test_a_header_on_the_injected_response_survives_with_cached_alone(include: Include) -> None:
    def add(router: APIRouter, decorate: Decorate) -> None:
        @router.get("")
        @decorate
        async def handler(response: Response) -> int:
            response.headers["x-own"] = "1"
            return 1

    async def ask(client: httpx.AsyncClient, path: str) -> str | None:
        await client.get(path)
        return (await client.get(path)).headers.get("x-own")

    assert await asked_of_both(both(include, add), ask) == (None, "1")


@pytest.mark.parametrize("condition", ["*", '"another", {}', '{}, "another"'])
async def test_a_list_of_tags_is_understood_by_cached_alone(include: Include, condition: str) -> None:
    def add(router: APIRouter, decorate: Decorate) -> None:
        @router.get("")
        @decorate
        async def handler() -> int:
            return 1

    async def ask(client: httpx.AsyncClient, path: str) -> tuple[bool, int]:
        tag = (await client.get(path)).headers["etag"]
        response = await client.get(path, headers={"if-none-match": condition.format(tag)})
        return tag.endswith('"'), response.status_code

    assert await asked_of_both(both(include, add), ask) == ((False, 200), (True, 304))


@pytest.mark.parametrize("directives", ["no-cache, max-age=0", "max-age=0", "No-Cache", "no-store, max-age=0"])
async def test_request_directives_are_parsed_by_cached_alone(include: Include, directives: str) -> None:
    def add(router: APIRouter, decorate: Decorate) -> None:
        count = Counter()

        @router.get("")
        @decorate
        async def handler() -> int:
            return count()

    async def ask(client: httpx.AsyncClient, path: str) -> str:
        await client.get(path)
        return (await client.get(path, headers={"cache-control": directives})).text

    assert await asked_of_both(both(include, add), ask) == ("1", "2")


async def test_what_is_read_of_the_request_itself_is_in_the_key_of_cached_alone(include: Include) -> None:
    def add(router: APIRouter, decorate: Decorate) -> None:
        @router.get("")
        @decorate
        async def handler(request: Request) -> list[str]:
            return [str(request.query_params), request.headers.get("authorization", "")]

    async def ask(client: httpx.AsyncClient, path: str) -> Any:
        await client.get(path, params={"a": 1}, headers={"authorization": "a"})
        return (await client.get(path, params={"a": 2}, headers={"authorization": "b"})).json()

    assert await asked_of_both(both(include, add), ask) == (["a=1", "a"], ["a=2", "b"])


async def test_what_a_dependency_gives_anew_hits_with_cached_alone(include: Include) -> None:
    def add(router: APIRouter, decorate: Decorate) -> None:
        count = Counter()

        @router.get("")
        @decorate
        async def handler(session: Session = Depends(Session)) -> int:
            return count()

    async def ask(client: httpx.AsyncClient, path: str) -> list[str]:
        return [(await client.get(path)).text for _ in range(3)]

    assert await asked_of_both(both(include, add), ask) == (["1", "2", "3"], ["1", "1", "1"])


async def test_the_default_expiry_is_latched_at_the_first_call(clock: TurnedClock) -> None:
    @cache(namespace="x", key_builder=lambda function, namespace="", **_: f"{namespace}:n")
    async def n() -> int:
        return 1

    register(engine_of(clock), expire=10)
    await n()
    backend = register(engine_of(clock), expire=20)
    await n()
    assert (await backend.get_with_ttl("gateway:x:n"))[0] == 10


async def test_an_entry_that_no_longer_fits_is_an_error_where_the_decorator_builds_its_key(include: Include) -> None:
    engine = engine_of()

    async def answered(value: BaseModel) -> int:
        router = APIRouter()
        router.get("/", response_model=type(value))(returning(lambda: value, type(value), own_key=True))
        async with shop(include, router) as client:
            register(engine)
            return (await client.get("/")).status_code

    assert [await answered(Cat(name="a")), await answered(Lion(name="a", weight=1))] == [200, 500]


async def test_a_return_annotation_filters_with_cached_alone(include: Include) -> None:
    def add(router: APIRouter, decorate: Decorate) -> None:
        @router.get("")
        @decorate
        async def handler() -> Cat:
            return Lion(name="a", weight=190)

    async def ask(client: httpx.AsyncClient, path: str) -> Any:
        return (await client.get(path)).json()

    assert await asked_of_both(both(include, add), ask) == ({"name": "a", "weight": 190}, {"name": "a"})
