"""The admin listener: which requests are allowed, and what is logged of them."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from gateway.admin.app import create_admin
from gateway.config.overrides import Override
from gateway.testing import StubUpstream, TurnedClock, running
from tests.support.admin import Worker, working
from tests.support.gateways import gateway, json_answer, served
from tests.support.personal import bearer, gateway_of, personal, shared, told


async def test_overrides_come_and_go_over_http_and_all_of_it_is_audited(clock: TurnedClock) -> None:
    worker = Worker(StubUpstream(json_answer()), clock)
    async with working(worker), worker.operator() as operator:
        order = {"route": "item", "value": "10s", "for": "1h", "by": "ann\n\x1b[31m"}
        made = (await operator.post("/overrides", json=order)).json()
        assert (made["setting"], made["until"]) == ("ttl", clock.at + 3600)
        listed = (await operator.get("/overrides")).json()["overrides"]
        assert [each["value"] for each in listed] == ["10s"]
        (row,) = (await operator.get("/routes")).json()["routes"]
        assert (row["shown"], row["overridden"], row["ttl"]) == ("10s", True, 10.0)
        assert row["sources"][0].startswith("live override by ann")
        assert (await operator.delete("/overrides/item/ttl?by=ben")).status_code == 200
        assert (await operator.delete("/overrides/item/ttl")).status_code == 404
        await operator.post("/purge", json={"tags": ["items"], "soft": True})
        events = (await operator.get("/audit")).json()["events"]
    assert [(each["what"], each["by"]) for each in events] == [
        ("purge", "127.0.0.1"),
        ("ttl reset", "ben (127.0.0.1)"),
        ("ttl set", "ann[31m (127.0.0.1)"),
    ]
    assert events[0]["detail"] == "tag items, softly"


@pytest.mark.parametrize(
    "order",
    [{}, {"route": "item"}, {"route": "item", "value": 5}, {"route": "item", "value": "1x"}, {"rout": "item"}, []],
)
async def test_an_override_order_that_means_nothing_is_refused(clock: TurnedClock, order: Any) -> None:
    worker = Worker(StubUpstream(json_answer()), clock)
    async with working(worker), worker.operator() as operator:
        answer = await operator.post("/overrides", json=order)
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"


PROTECTED = [
    *(("GET", path) for path in ("/overrides", "/routes", "/audit", "/live", "/advice")),
    *(("POST", path) for path in ("/overrides", "/purge", "/explain")),
    ("DELETE", "/overrides/item/ttl"),
]


@pytest.mark.parametrize(("method", "path"), PROTECTED)
async def test_without_the_token_nothing_is_shown_or_changed(clock: TurnedClock, method: str, path: str) -> None:
    worker = Worker(StubUpstream(json_answer()), clock)
    async with working(worker), worker.operator() as operator:
        del operator.headers["authorization"]
        assert (await operator.request(method, path)).status_code == 401
        # What a browser would send along with another page's request is no token.
        forged = await operator.request(method, path, headers={"cookie": "token=secret", "origin": "https://evil.test"})
        assert forged.status_code == 401


async def test_who_tries_tokens_is_answered_no_more_for_a_while(clock: TurnedClock) -> None:
    worker = Worker(StubUpstream(json_answer()), clock)
    async with working(worker), worker.operator() as operator:
        wrong = [await operator.get("/audit", headers={"authorization": f"Bearer {n}"}) for n in range(12)]
        assert [each.status_code for each in wrong] == [401] * 10 + [429] * 2
        assert (await operator.get("/audit")).status_code == 429
        assert "retry-after" in wrong[-1].headers


async def test_who_tries_tokens_does_not_lock_out_their_owner_behind_the_same_address(clock: TurnedClock) -> None:
    worker = Worker(StubUpstream(json_answer()), clock)
    async with working(worker), worker.operator() as operator:
        assert (await operator.get("/audit")).status_code == 200
        wrong = [await operator.get("/audit", headers={"authorization": f"Bearer {n}"}) for n in range(12)]
        assert [each.status_code for each in wrong] == [401] * 10 + [429] * 2
        assert (await operator.get("/audit")).status_code == 200


async def test_a_name_that_was_made_to_lead_to_loopback_is_not_answered() -> None:
    admin = create_admin(gateway(StubUpstream(json_answer()), {}, admin_listen="ops.internal:9000"))
    async with served(admin) as url:
        port = url.rpartition(":")[2]
        async with httpx.AsyncClient(base_url=url) as client:
            for host in (f"127.0.0.1:{port}", "localhost", "LOCALHOST.:1", "[::1]:9000", "ops.internal:9000"):
                assert (await client.get("/metrics", headers={"host": host})).status_code == 200
            for host in (f"rebound.evil.test:{port}", "127.0.0.1.evil.test", "localhost.evil.test", "evil.test:127"):
                for path in ("/metrics", "/healthz", "/console"):
                    refused = await client.get(path, headers={"host": host})
                    assert (refused.status_code, "gateway_" in refused.text) == (421, False)


@pytest.mark.parametrize("name", ["Anna Maria", "cn=anna,ou=people", "user:anna,user:berta"])
async def test_a_purge_by_a_tag_of_a_claim_takes_the_values_that_users_have(name: str) -> None:
    upstream = StubUpstream(told)
    tagged = {**personal(["sub"], "/me", tags=["user:{claim.sub}"]), "path": "/me", "identity": ["shop"]}
    app = gateway_of({"all": shared("/all")}, upstream, {"me": tagged})
    transport = httpx.ASGITransport(create_admin(app, "a" * 32))
    admin = {"authorization": f"Bearer {'a' * 32}"}
    async with (
        running(app) as client,
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers=admin) as operator,
    ):
        for user in (name, "berta"):
            await client.get("/me", headers=bearer(sub=user))
        refused = await operator.post("/purge", json={"tags": [f"user:{name}", "items x"]})
        assert (refused.status_code, "give each tag by itself" in refused.text) == (400, True)
        purged = await operator.post("/purge", json={"tags": [f"user:{name}"]})
        assert purged.json()["complete"]
        for user in (name, "berta"):
            await client.get("/me", headers=bearer(sub=user))
    assert [each.headers["x-user"] for each in upstream.requests] == [name, "berta", name]


async def test_control_characters_that_stand_in_redis_reach_no_log(
    clock: TurnedClock, caplog: pytest.LogCaptureFixture
) -> None:
    worker = Worker(StubUpstream(json_answer()), clock)
    planted = Override(
        route="item", setting="ttl", value="5s", by="me\n2026 ERROR all is lost\x1b[2J", at=0.0, until=9e9
    )
    with caplog.at_level("INFO", logger="gateway"):
        worker.operations._tell({planted.key: planted})
    assert r"by 'me\n2026 ERROR all is lost\x1b[2J'" in caplog.text
