"""Aggregates with `identity`: shared parts are fetched once for all, personal ones once for each user, and what one
user was answered reaches no other."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.app.generations import forget_endpoints
from gateway.explain.trace import render
from gateway.testing import StubUpstream, running
from tests.support.personal import asked_for, bearer, gateway_of, personal, shared, told
from tests.support.scale import size

SCREEN = {f"part_{number}": shared(f"/shared/{number}") for number in range(5)} | {"me": personal(["sub"], "/me")}


async def test_a_screen_of_shared_parts_and_a_personal_one_costs_one_fetch_a_user() -> None:
    upstream = StubUpstream(told)
    async with running(gateway_of(SCREEN, upstream)) as client:
        for user in ("anna", "berta", "carla", "anna"):
            response = await client.get("/home", headers=bearer(sub=user))
            assert response.json()["me"] == {"path": "/me", "sub": user}
    assert upstream.asked == 5 + 3
    assert set(asked_for(upstream).values()) == {1}
    assert "authorization" not in {name for request in upstream.requests for name in request.headers}


async def test_a_second_token_of_a_user_is_a_hit_of_the_whole() -> None:
    upstream = StubUpstream(told)
    async with running(gateway_of(SCREEN, upstream)) as client:
        await client.get("/home", headers=bearer(sub="anna", jti="1"))
        response = await client.get("/home", headers=bearer(sub="anna", jti="2"))
    assert response.headers["cache-status"].startswith("gateway; hit")
    assert response.headers["cache-control"].startswith("private")
    assert "authorization" in response.headers["vary"]


async def test_a_downstream_that_checks_tokens_gets_private_where_the_upstream_says_so() -> None:
    upstream = StubUpstream(told)
    parts = {"all": shared("/all"), "me": personal(["sub"], "/me")}
    async with running(gateway_of(parts, upstream, downstream="shared")) as client:
        response = await client.get("/home", headers=bearer(sub="anna"))
    assert response.headers["cache-control"].startswith("private")
    async with running(gateway_of({"all": shared("/all")}, upstream, downstream="shared")) as client:
        response = await client.get("/home", headers=bearer(sub="anna"))
    assert response.headers["cache-control"].startswith("max-age")


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer x.y.z"}, {"x-user": "anna"}])
async def test_nobody_is_let_in_without_a_valid_credential(headers: dict[str, str]) -> None:
    upstream = StubUpstream(told)
    async with running(gateway_of(SCREEN, upstream)) as client:
        response = await client.get("/home", headers=headers)
    assert response.status_code == 401
    assert response.headers["cache-control"] == "no-store"
    assert upstream.asked == 0


async def test_a_client_can_not_say_who_it_is_to_any_part() -> None:
    upstream = StubUpstream(told)
    parts = {"all": shared("/all", ttl="origin"), "me": personal(["sub"], "/me", ttl="origin")}
    async with running(gateway_of(parts, upstream)) as client:
        response = await client.get("/home", headers={**bearer(sub="anna"), "x-user": "berta", ":principal": "0"})
    assert response.json() == {"all": {"path": "/all"}, "me": {"path": "/me", "sub": "anna"}}


async def test_anonymous_requests_have_parts_of_their_own() -> None:
    upstream = StubUpstream(told)
    parts = {"all": shared("/all"), "me": personal(["sub"], "/me")}
    async with running(gateway_of(parts, upstream, optional=True)) as client:
        assert (await client.get("/home")).json()["me"] == {"path": "/me"}
        assert (await client.get("/home", headers=bearer(sub="anna"))).json()["me"]["sub"] == "anna"
        assert (await client.get("/home")).json()["me"] == {"path": "/me"}
    assert upstream.asked == 3


async def test_a_token_without_a_claim_of_a_part_is_refused_before_any_fetch() -> None:
    upstream = StubUpstream(told)
    parts = {"all": shared("/all"), "plan": personal(["plan"], "/plan", optional=True)}
    async with running(gateway_of(parts, upstream)) as client:
        response = await client.get("/home", headers=bearer(sub="anna"))
        odd = await client.get("/home", headers=bearer(sub="anna", plan="a\nb"))
    assert (response.status_code, odd.status_code, upstream.asked) == (403, 403, 0)


async def test_what_takes_values_of_a_personal_part_is_personal() -> None:
    """It has no `per`, and its target is the same for both users."""
    upstream = StubUpstream(told)
    parts = {"me": personal(["sub"], "/me"), "more": shared("/more/{me.path}", encoded_slashes="keep")}
    async with running(gateway_of(parts, upstream)) as client:
        for user in ("anna", "berta"):
            assert (await client.get("/home", headers=bearer(sub=user))).status_code == 200
    assert [path for path, *_ in asked_for(upstream).elements() if path.startswith("/more")] == ["/more//me"] * 2


async def test_a_route_with_identity_is_one_copy_as_a_route_and_as_a_part() -> None:
    upstream = StubUpstream(told)
    me = {"path": "/me", "upstream": "shop", "ttl": "30s", "identity": ["shop"], "per": ["sub"]}
    me["forward"] = {"x-user": "sub"}
    parts = {"all": shared("/all"), "me": {"route": "me"}}
    async with running(gateway_of(parts, upstream, {"me": me})) as client:
        assert (await client.get("/home", headers=bearer(sub="anna"))).json()["me"]["sub"] == "anna"
        alone = await client.get("/me", headers=bearer(sub="anna"))
        assert alone.headers["cache-status"].startswith("gateway; hit")
        assert (await client.get("/home", headers=bearer(sub="berta"))).json()["me"]["sub"] == "berta"
    assert upstream.asked == 3


async def test_a_stale_part_is_of_its_user_when_the_upstream_fails() -> None:
    failing = False

    def answer(request: httpx.Request) -> httpx.Response:
        if failing:
            raise httpx.ConnectError("down")
        return told(request)

    upstream = StubUpstream(answer)
    parts = {"all": shared("/all", stale_if_error="10m"), "me": personal(["sub"], "/me", stale_if_error="10m")}
    app = gateway_of(parts, upstream, errors=True)
    async with running(app) as client:
        for user in ("anna", "berta"):
            await client.get("/home", headers=bearer(sub=user))
        failing = True
        app.engine.clock.turn(60)  # type: ignore[attr-defined]
        for user in ("berta", "anna"):
            response = await client.get("/home", headers=bearer(sub=user))
            assert response.json()["me"]["sub"] == user
            assert "stale" in response.headers["gateway-parts"]
        assert (await client.get("/home", headers=bearer(sub="carla"))).status_code == 502


async def test_purges_reach_the_copies_of_all_users() -> None:
    upstream = StubUpstream(told)
    app = gateway_of(SCREEN, upstream)
    async with running(app) as client:
        for _ in range(2):
            for user in ("anna", "berta"):
                await client.get("/home", headers=bearer(sub=user))
            await app.purge(routes=["home.me"])
    assert [asked_for(upstream)[("/me", user, "", "")] for user in ("anna", "berta")] == [2, 2]
    assert asked_for(upstream)[("/shared/0", "", "", "")] == 1


async def test_an_explanation_is_of_the_asking_user_and_names_no_value() -> None:
    upstream = StubUpstream(told)
    app = gateway_of(SCREEN, upstream)
    async with running(app) as client:
        await client.get("/home", headers=bearer(sub="anna"))
        hit = await app.explain("GET", "/home", _encoded(bearer(sub="anna")))
        other = await app.explain("GET", "/home", _encoded(bearer(sub="berta")))
        refused = await app.explain("GET", "/home")
    assert (hit.decision, other.decision, refused.decision) == ("hit", "join", "401")
    entries = [[part.entry is not None for part in trace.parts] for trace in (hit, other)]
    assert entries == [[True] * 6, [True] * 5 + [False]]
    assert [part.per for part in hit.parts] == [()] * 5 + [("sub",)]
    assert "one response for each value of sub" in render(hit)
    assert ":principal:***" in hit.key
    assert "berta" not in repr(other)


def _encoded(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(b"accept", b"*/*"), *((name.encode(), value.encode()) for name, value in headers.items())]


# --- any parts, any users --------------------------------------------------------------------------------------

USERS = [{"sub": sub, "plan": plan, "tenant": tenant} for sub, plan, tenant in (
    ("anna", "gold", "a"), ("berta", "gold", "b"), ("carla", "free", "a"), ("a,4:anna", "go", "ld"), ("änna", "1", "1"),
)]  # fmt: skip
TOKENS = [bearer(**{**user, "sub": user["sub"].replace("ä", "a~")}) for user in USERS]
CLAIMS = st.lists(st.sampled_from(["sub", "plan", "tenant"]), unique=True, max_size=3)


@given(
    parts=st.lists(CLAIMS, min_size=1, max_size=4),
    requests=st.lists(st.tuples(st.integers(0, len(USERS) - 1), st.booleans()), min_size=1, max_size=12),
    follows=st.booleans(),
)
@settings(max_examples=size("personal_stories"), deadline=None)
def test_each_user_gets_what_the_upstream_says_for_that_user(
    parts: list[list[str]], requests: list[tuple[int, bool]], follows: bool
) -> None:
    """All requests are sent at once; some clients leave while the upstream is asked."""
    asyncio.run(_lived_through(parts, requests, "origin" if follows else "30s"))
    forget_endpoints()  # of thousands of gateways the heap gets so large that collecting it takes seconds


async def _lived_through(parts: list[list[str]], requests: list[tuple[int, bool]], ttl: str) -> None:
    upstream = StubUpstream(_for_a_minute)
    upstream.gate.clear()
    config = {f"p{number}": _part(number, claims, ttl) for number, claims in enumerate(parts)}
    async with running(gateway_of(config, upstream, deadline="60s")) as client:
        tasks = [asyncio.ensure_future(client.get("/home", headers=TOKENS[user])) for user, _ in requests]
        await upstream.came.acquire()
        left = [task for task, (_, leaves) in zip(tasks, requests, strict=True) if leaves]
        for task in left:
            task.cancel()
        upstream.gate.set()
        await asyncio.wait(tasks)
        for task, (user, leaves) in zip(tasks, requests, strict=True):
            if not leaves:
                assert task.result().json() == _expected(parts, user)
        again = [await client.get("/home", headers=TOKENS[user]) for user, _ in requests]
        assert [each.json() for each in again] == [_expected(parts, user) for user, _ in requests]
    wanted = {_asked(number, claims, user) for number, claims in enumerate(parts) for user, _ in requests}
    counts = asked_for(upstream)
    assert set(counts) == wanted
    assert max(counts.values()) <= 1 + len(left)


def _for_a_minute(request: httpx.Request) -> httpx.Response:
    response = told(request)
    response.headers.setdefault("cache-control", "max-age=60")
    return response


def _part(number: int, claims: list[str], ttl: str) -> dict[str, Any]:
    part = personal(claims, f"/{number}") if claims else shared(f"/{number}")
    return {**part, "ttl": ttl, "timeout": "60s"}  # a machine with other work may stand still for seconds


def _value(claim: str, user: int) -> str:
    return USERS[user][claim].replace("ä", "a~")


def _expected(parts: list[list[str]], user: int) -> dict[str, Any]:
    return {
        f"p{number}": {"path": f"/{number}", **{claim: _value(claim, user) for claim in claims}}
        for number, claims in enumerate(parts)
    }


def _asked(number: int, claims: list[str], user: int) -> tuple[str, ...]:
    return (f"/{number}", *(_value(claim, user) if claim in claims else "" for claim in ("sub", "plan", "tenant")))


# --- tags of claims ----------------------------------------------------------------------------------------------


async def test_a_purge_by_the_users_name_reaches_her_part_alone_and_the_name_is_stored_nowhere() -> None:
    upstream = StubUpstream(told)
    parts = {
        "all": shared("/all"),
        "me": personal(["sub"], "/me", tags=["user:{claim.sub}"]),
        "named": {"route": "named"},
    }
    named = {"path": "/named", "upstream": "shop", "ttl": "30s", "identity": ["shop"], "per": ["sub"]}
    named |= {"forward": {"x-user": "sub"}, "tags": ["user:{claim.sub}"]}
    app = gateway_of(parts, upstream, {"named": named}, tags=["home:{claim.sub}"])
    async with running(app) as client:
        for user in ("anna", "berta"):
            await client.get("/home", headers=bearer(sub=user))
        await app.purge(tags=["user:anna"])
        for user in ("anna", "berta"):
            await client.get("/home", headers=bearer(sub=user))
        trace = await app.explain("GET", "/home", _encoded(bearer(sub="anna")))
    counts = asked_for(upstream)
    assert [counts[(path, user, "", "")] for path in ("/me", "/named") for user in ("anna", "berta")] == [2, 1, 2, 1]
    assert counts[("/all", "", "", "")] == 1
    assert any(each.name.startswith("tag home:~") for each in trace.names)
    assert not any("anna" in tag for shard in app.engine.memory._responses._shards for tag in _tags_of(shard))


def _tags_of(shard: Any) -> list[str]:
    return [tag for each in shard.values() for tag in getattr(getattr(each, "value", each), "tags", ())]
