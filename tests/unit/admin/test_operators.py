"""Operators: which credential allows what at the admin listener, and under whose name."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from gateway.admin.app import create_admin
from gateway.admin.operations import operations_of
from gateway.admin.operators import Operator, printable
from gateway.app.gateway import create_app
from gateway.app.generations import Generations
from gateway.config.loader import Loaded
from gateway.config.models import Config
from gateway.observability.access_log import silent
from gateway.testing import StubUpstream, TurnedClock, running
from tests.support.personal import SHOP, bearer, told

CI, DESK = "ci-token-0123456789", "desk-token-0123456789"
CONFIG: dict[str, Any] = {
    "redis_url": "none",
    "upstreams": {"shop": {"url": "http://shop.example.com"}},
    "routes": {"item": {"path": "/items/{id}", "upstream": "shop", "ttl": "100s", "tags": ["items"]}},
    "identity": {"staff": SHOP},
    "admin_tokens": {
        "ci": {"token": CI, "roles": ["purge"]},
        "desk": {"token": DESK},
        "tuner": {"token": "tuner-token-0123456789", "roles": ["read", "ttl"]},
    },
    "admin_identity": {"issuer": "staff", "roles": {"sre": ["read", "ttl", "purge"], "support": ["read"]}},
}
PURGE = {"tags": ["items"]}
OVERRIDE = {"route": "item", "value": "3s", "for": "1m"}


def as_bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


async def statuses(headers: dict[str, str], token: str | None = "the-one", **settings: Any) -> tuple[list[int], Any]:
    """Those of a look, a purge and an override; and the audit list, as the one token reads it."""
    loaded = Loaded(Config.model_validate({**CONFIG, **settings}), {}, ())
    app = create_app(loaded, transport=StubUpstream(told), clock=TurnedClock(), log=silent)
    generations = Generations(app)
    operations = operations_of(generations, loaded)
    admin = create_admin(lambda: generations.current, token, operations=operations)
    transport = httpx.ASGITransport(admin)
    async with running(app), httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        found = [
            await client.get("/routes", headers=headers),
            await client.post("/purge", headers=headers, json={**PURGE, "by": "anna"}),
            await client.post("/overrides", headers=headers, json=OVERRIDE),
        ]
        events = (await client.get("/audit", headers=as_bearer("the-one"))).json().get("events", [])
        await operations.aclose()
    return [each.status_code for each in found], events


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (as_bearer("the-one"), [200, 200, 200]),
        (as_bearer(CI), [403, 200, 403]),
        (as_bearer(DESK), [200, 403, 403]),
        (as_bearer("tuner-token-0123456789"), [200, 403, 200]),
        (bearer(sub="anna", roles="support"), [200, 403, 403]),
        (bearer(sub="anna", roles=["sre", "other"]), [200, 200, 200]),
        (bearer(sub="anna", roles=["other", 7]), [403, 403, 403]),
        (bearer(sub="anna"), [403, 403, 403]),
        (bearer(sub="anna", roles="sre", aud="another"), [401, 401, 401]),
        (bearer(sub="anna", roles="sre", iss="https://another.example"), [401, 401, 401]),
        (as_bearer("a.b.c"), [401, 401, 401]),
        (as_bearer(""), [401, 401, 401]),
        ({}, [401, 401, 401]),
    ],
)
async def test_a_credential_allows_what_its_roles_do(headers: dict[str, str], expected: list[int]) -> None:
    assert (await statuses(headers))[0] == expected


async def test_the_audit_list_has_the_name_of_the_credential() -> None:
    _, events = await statuses(as_bearer(CI))
    assert [(each["what"], each["by"]) for each in events] == [("purge", "ci, for anna (127.0.0.1)")]
    _, events = await statuses(bearer(sub="berta", roles="sre"))
    named = {each["what"]: each["by"] for each in events}
    assert named == {"purge": "berta of staff, for anna (127.0.0.1)", "ttl set": "berta of staff (127.0.0.1)"}
    _, events = await statuses(as_bearer("the-one"))
    assert {each["by"] for each in events} == {"anna (127.0.0.1)", "127.0.0.1"}


async def test_named_tokens_work_without_the_one_token() -> None:
    assert (await statuses(as_bearer(DESK), token=None))[0] == [200, 403, 403]
    found, _ = await statuses(as_bearer("x"), token=None, admin_tokens={}, admin_identity=None)
    assert found == [403, 403, 403]


async def test_operators_tokens_without_keys_of_their_issuer_are_a_503() -> None:
    without = {"staff": {**SHOP, "jwks": "https://id.example.com/keys"}}
    found, _ = await statuses(bearer(sub="anna", roles="sre"), identity=without)
    assert found == [503, 503, 503]


def test_a_name_is_printable_and_bounded() -> None:
    assert printable("a\nb\x1b" + "c" * 100) == "ab" + "c" * 62
    assert Operator("ci", frozenset()).who("x\r\ny", "10.0.0.1") == "ci, for xy (10.0.0.1)"
