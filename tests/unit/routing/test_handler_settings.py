"""Arguments of `@cached`: checked as the configuration is, where they are written."""

from datetime import timedelta
from typing import Annotated, Any

import pytest
from fastapi import FastAPI, Header, HTTPException, Response
from fastapi.testclient import TestClient

from gateway import Gateway, cached
from gateway.testing import TurnedClock, running
from tests.support.handlers import app_of, asked, is_hit, of


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"ttl": 10}, "ttl=10: invalid duration; .* write 10s for seconds"),
        ({"ttl": "30s", "authorization": "Key"}, "authorization='Key' may be .* did you mean key"),
        ({"ttl": "30s", "authorization": "ignored"}, "authorization='ignored' may be .* did you mean ignore"),
        ({"ttl": "30s", "vary": "x-tenant"}, r"vary='x-tenant' must be a list, such as \['x-tenant'\]"),
        ({"ttl": "30s", "vary": ["authorization"]}, "authorization can't be part of the cache key"),
        ({"ttl": "30s", "cookies": "sid"}, r"cookies='sid' may be .*\['sid'\]"),
        ({"ttl": "30s", "cookies": ["none"]}, "'none' is a mode, not a name; write pass"),
        ({"ttl": "30s", "query": ["all"]}, "'all' is a mode, not a name; leave query out"),
        ({"ttl": "30s", "max_body": "2 megabytes"}, "max_body='2 megabytes': invalid size"),
        ({"ttl": "30s", "edge": "yes"}, "edge='yes'"),
        ({"ttl": "30s", "tags": "all"}, "tags='all' must be a list"),
        ({"ttl": "origin", "vary": ["x-a"]}, "vary requires a duration as ttl"),
        ({"ttl": "30s", "key": ["usr"]}, r"key=\['usr'\] 'usr' isn't a parameter .* did you mean user"),
        ({"ttl": "30s", "key": "user"}, r"write key=\['user'\]"),
        ({"ttl": "30s", "key": ["user"], "edge": True}, "key can't be combined with edge=True"),
    ],
)
def test_an_argument_that_means_nothing_is_refused_where_it_stands(arguments: Any, said: str) -> None:
    async def handler(user: str) -> str:
        return user

    with pytest.raises(ValueError, match=rf"@cached on .*handler: .*{said}"):
        cached(**arguments)(handler)


async def test_a_size_is_written_as_in_the_configuration() -> None:
    async def handler() -> str:
        return "x" * 2000

    small, large = app_of(of(handler, max_body="1KiB")), app_of(of(handler, max_body="2MiB"))
    assert [is_hit((await asked(app, {}, {}))[1]) for app in (small, large)] == [False, True]


# --- what the handler's value decides --------------------------------------------------------------------------


def stock(**arguments: Any) -> tuple[FastAPI, list[int]]:
    app, calls = Gateway({"redis_url": "none", "access_log": False}, clock=TurnedClock()), list[int]()

    @app.get("/stock/{n}")
    @cached(**arguments)
    async def stock(n: int, x_tenant: Annotated[str, Header()] = "") -> dict[str, int]:
        calls.append(n)
        return {"n": n}

    return app, calls


def test_when_says_whether_a_value_is_stored() -> None:
    app, calls = stock(ttl="30s", when=lambda value: value["n"] > 0)
    with TestClient(app) as client:
        told = {n: [client.get(f"/stock/{n}").headers["cache-control"] for _ in range(2)] for n in (0, 1)}
    assert calls == [0, 0, 1]
    assert told[0] == ["no-store"] * 2
    assert all("max-age" in each for each in told[1])


@pytest.mark.parametrize(
    ("lifetime", "said"),
    [
        ("20s", "max-age=20"),
        (20, "max-age=20"),
        (20.9, "max-age=20"),
        (timedelta(minutes=1), "max-age=60"),
        (0, "max-age=0"),
        (None, "no-store"),
    ],
)
def test_ttl_may_be_a_function_of_the_value(lifetime: Any, said: str) -> None:
    app, calls = stock(ttl=lambda value: lifetime)
    with TestClient(app) as client:
        assert [client.get("/stock/1").headers["cache-control"] for _ in range(2)] == [said] * 2
    assert len(calls) == (1 if said in ("max-age=20", "max-age=60") else 2)


async def test_a_lifetime_by_the_value_ends_and_is_one_entrys() -> None:
    clock, calls = TurnedClock(), list[int]()
    app = Gateway({"redis_url": "none", "access_log": False}, clock=clock)

    @app.get("/stock/{n}")
    @cached(ttl=lambda value: value, stale_while_revalidate="0s", stale_if_error="0s")
    async def stock(n: int) -> int:
        calls.append(n)
        return n

    async with running(app) as client:
        for seconds in (0, 15, 5):
            clock.turn(seconds)
            for n in (10, 100):
                assert (await client.get(f"/stock/{n}")).json() == n
    assert calls == [10, 100, 10]


def test_declared_headers_still_select_with_a_ttl_of_the_value() -> None:
    app, calls = stock(ttl=lambda value: "30s")
    with TestClient(app) as client:
        for tenant in ("a", "b", "a", "b"):
            client.get("/stock/1", headers={"x-tenant": tenant})
    assert calls == [1, 1]


def test_the_handlers_own_no_store_comes_before_a_ttl_of_the_value() -> None:
    app = Gateway({"redis_url": "none", "access_log": False})

    @app.get("/own")
    @cached(ttl=lambda value: "30s")
    async def own(response: Response) -> int:
        response.headers["cache-control"] = "no-store"
        return 1

    with TestClient(app) as client:
        assert client.get("/own").headers["cache-control"] == "no-store"


def test_exceptions_have_no_value_and_live_as_any_other() -> None:
    app = Gateway({"redis_url": "none", "access_log": False})

    @app.get("/lost")
    @cached(ttl=lambda value: value["n"], when=lambda value: value["n"])
    async def lost() -> dict[str, int]:
        raise HTTPException(404)

    with TestClient(app) as client:
        assert client.get("/lost").status_code == 404


@pytest.mark.parametrize("arguments", [{"when": True}, {"when": "stored"}])
def test_when_must_be_a_function(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"when=.* must be a function of the handler's value"):
        stock(ttl="30s", **arguments)


async def _later(value: Any) -> int:
    return 1


def test_an_async_function_can_not_decide() -> None:
    with pytest.raises(ValueError, match=r"ttl=.* must be a function"):
        stock(ttl=_later)


def test_a_ttl_that_is_no_duration_fails_the_request() -> None:
    app, _ = stock(ttl=lambda value: "soon")
    with TestClient(app, raise_server_exceptions=False) as client:
        assert client.get("/stock/1").status_code == 500
