"""Routes with `identity`, through the whole app: who is let in, what is shared, and what the upstream sees."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from gateway.app.gateway import Gateway, create_app
from gateway.testing import StubUpstream, TurnedClock, running
from tests.support.tokens import ISSUER, TestIssuer, unsigned

issuer = TestIssuer()
SHOP = {"issuer": ISSUER, "jwks": f"{ISSUER}/keys", "audience": ["shop-api"]}


class Stand:
    """The gateway before one upstream and an issuer, both of which count."""

    def __init__(
        self,
        clock: TurnedClock,
        route: dict[str, Any],
        shop: dict[str, Any] | None = None,
        routes: dict[str, Any] | None = None,
    ) -> None:
        self.upstream = StubUpstream(self._answer)
        self.jwks = issuer.jwks
        self.private = False
        settings: dict[str, Any] = {
            "redis_url": "none",
            "upstreams": {"shop": {"url": "http://shop.example.com"}},
            "identity": {"shop": {**SHOP, **(shop or {})}},
            "routes": {"home": {"path": "/home", "upstream": "shop", "ttl": "30s", "identity": ["shop"], **route}},
        }
        settings["routes"].update(routes or {})
        self.app: Gateway = create_app(settings, transport=self.upstream, clock=clock)
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://gateway")

    def _answer(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/keys":
            return httpx.Response(200, content=self.jwks)
        headers = {"cache-control": "private, max-age=60"} if self.private else {}
        return httpx.Response(200, json={"user": request.headers.get("x-user", "")}, headers=headers)

    @property
    def seen(self) -> list[httpx.Request]:
        """The requests that the upstream got."""
        return [request for request in self.upstream.requests if request.url.path != "/keys"]

    async def get(self, token: bytes | None = None, **headers: str) -> httpx.Response:
        if token is not None:
            headers["authorization"] = f"Bearer {token.decode()}"
        return await self.client.get("/home", headers=headers)


@pytest.fixture
def stand(clock: TurnedClock) -> Any:
    stands: list[Any] = []

    async def made(shop: dict[str, Any] | None = None, routes: dict[str, Any] | None = None, **route: Any) -> Stand:
        found = Stand(clock, route, shop, routes)
        context = running(found.app)
        await context.__aenter__()
        stands.append(context)
        return found

    made.stands = stands  # type: ignore[attr-defined]
    return made


@pytest.fixture(autouse=True)
async def ended(stand: Any) -> AsyncIterator[None]:
    yield
    for context in stand.stands:
        await context.__aexit__(None, None, None)


async def test_a_route_with_identity_lets_nobody_in_without_a_credential(stand: Any) -> None:
    shop = await stand()
    response = await shop.get()
    assert response.status_code == 401
    metadata = "http://gateway/.well-known/oauth-protected-resource/home"
    assert response.headers["www-authenticate"] == f'Bearer resource_metadata="{metadata}"'
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["content-type"] == "application/problem+json"
    assert shop.seen == []


async def test_one_copy_is_for_all_who_are_let_in(stand: Any) -> None:
    shop = await stand()
    for user in ("anna", "berta"):
        response = await shop.get(issuer.sign(sub=user))
        assert response.status_code == 200
    (seen,) = shop.seen
    assert "authorization" not in seen.headers
    assert response.headers["cache-status"].startswith("gateway; hit")
    assert "private" in response.headers["cache-control"]
    assert "authorization" in response.headers["vary"]


async def test_a_copy_for_each_user_is_for_all_of_her_tokens(stand: Any) -> None:
    shop = await stand(per=["sub"], forward={"X-User": "sub"})
    first = await shop.get(issuer.sign(sub="anna", jti="1"))
    refreshed = await shop.get(issuer.sign("ES256", sub="anna", jti="2"))
    other = await shop.get(issuer.sign(sub="berta"))
    assert [each.json()["user"] for each in (first, refreshed, other)] == ["anna", "anna", "berta"]
    assert [each.headers["x-user"] for each in shop.seen] == ["anna", "berta"]
    assert "hit" in refreshed.headers["cache-status"]


async def test_a_client_can_not_say_who_it_is_by_the_forwarded_header(stand: Any) -> None:
    shop = await stand(per=["sub"], forward={"x-user": "sub"})
    for headers in (
        {"X-User": "berta"},
        {"x_user": "berta"},
        {"connection": "x-user"},
        {"connection": "close, x-user"},
    ):
        response = await shop.get(issuer.sign(sub="anna"), **headers)
        assert response.json() == {"user": "anna"}
    (seen,) = shop.seen
    assert seen.headers.get_list("x-user") == ["anna"]


async def test_the_upstreams_private_response_is_stored_for_its_user(stand: Any) -> None:
    shop = await stand(per=["sub"], forward={"x-user": "sub"})
    shop.private = True
    await shop.get(issuer.sign(sub="anna"))
    assert "hit" in (await shop.get(issuer.sign(sub="anna"))).headers["cache-status"]
    assert (await shop.get(issuer.sign(sub="berta"))).json() == {"user": "berta"}


async def test_the_upstreams_private_response_is_not_stored_for_a_group(stand: Any) -> None:
    shop = await stand(per=["plan"])
    shop.private = True
    for _ in range(2):
        response = await shop.get(issuer.sign(sub="anna", plan="gold"))
        assert "hit" not in response.headers["cache-status"]
    assert len(shop.seen) == 2


async def test_a_route_that_follows_its_upstream_keeps_users_apart_too(stand: Any) -> None:
    shop = await stand(ttl="origin", per=["sub"], forward={"x-user": "sub"})
    shop.private = True
    users = [(await shop.get(issuer.sign(sub=user))).json()["user"] for user in ("anna", "berta", "anna")]
    assert users == ["anna", "berta", "anna"]
    assert len(shop.seen) == 2
    assert all("authorization" not in each.headers for each in shop.seen)


async def test_anonymous_requests_have_a_copy_of_their_own_where_they_are_let_in(stand: Any) -> None:
    shop = await stand(optional=True)
    for token in (None, issuer.sign(), None, issuer.sign(sub="berta")):
        assert (await shop.get(token)).status_code == 200
    assert len(shop.seen) == 2
    assert (await shop.get(b"no.such.token")).status_code == 401


@pytest.mark.parametrize(
    ("token", "error"),
    [
        (unsigned({"alg": "none"}, issuer.claims(), b""), "invalid_token"),
        (unsigned({"alg": "RS256", "kid": "rsa"}, issuer.claims()), "invalid_token"),
        (issuer.sign(exp=1.0), "invalid_token"),
        (TestIssuer().sign(), "invalid_token"),
        (b"opaque", "invalid_token"),
    ],
)
async def test_an_invalid_token_is_a_401_that_says_so(stand: Any, token: bytes, error: str) -> None:
    shop = await stand()
    response = await shop.get(token)
    assert response.status_code == 401
    assert f'error="{error}"' in response.headers["www-authenticate"]
    assert token.decode() not in response.text + str(response.headers)
    assert shop.seen == []


async def test_what_a_credential_must_say_is_a_403(stand: Any) -> None:
    shop = await stand(require={"scopes": ["home:read"], "claims": {"tenant": ["a", "b"]}})
    good = {"scope": "home:read other", "tenant": "b"}
    assert (await shop.get(issuer.sign(**good))).status_code == 200
    refused = await shop.get(issuer.sign(**good | {"scope": "other"}))
    assert refused.status_code == 403
    assert 'error="insufficient_scope"' in refused.headers["www-authenticate"]
    assert 'scope="home:read"' in refused.headers["www-authenticate"]
    for claims in ({"tenant": "c"}, {"tenant": None}, {"tenant": ["c"]}, {"tenant": 1}):
        assert (await shop.get(issuer.sign(**good | claims))).status_code == 403
    assert (await shop.get(issuer.sign(**good | {"tenant": ["c", "a"]}))).status_code == 200


async def test_a_credential_without_a_claim_of_the_key_is_a_403(stand: Any) -> None:
    shop = await stand(per=["sub"])
    for claims in ({"sub": None}, {"sub": 2**70 + 1}):
        status = (await shop.get(issuer.sign(**claims))).status_code
        assert status == (403 if claims["sub"] is None else 200)


@pytest.mark.parametrize("value", ["a\r\nx-admin: 1", " a", "ä", "", ["a"], {"a": 1}])
async def test_a_claim_that_is_no_header_value_is_a_403(stand: Any, value: Any) -> None:
    shop = await stand(per=["name"], forward={"x-name": "name"})
    response = await shop.get(issuer.sign(name=value))
    assert response.status_code == (200 if value == "" else 403)
    assert all("x-admin" not in each.headers for each in shop.seen)


async def test_a_token_of_a_cookie_is_taken_out_of_the_cookies(stand: Any) -> None:
    shop = await stand({"from": ["cookie:session"]}, ttl="origin", cookies="pass")
    token = issuer.sign().decode()
    response = await shop.client.get("/home", headers={"cookie": f"a=1; session={token}; b=2"})
    assert response.status_code == 200
    assert shop.seen[0].headers.get("cookie") == "a=1; b=2"
    assert "cookie" in response.headers["vary"]
    doubled = await shop.client.get("/home", headers={"cookie": f"session={token}; session={token}"})
    assert doubled.status_code == 400


async def test_two_credentials_of_one_kind_are_refused(stand: Any) -> None:
    shop = await stand()
    tokens = [("authorization", f"Bearer {issuer.sign(sub=user).decode()}") for user in ("anna", "berta")]
    assert (await shop.client.get("/home", headers=tokens)).status_code == 400
    assert shop.seen == []


async def test_the_token_is_forwarded_where_the_upstream_decides(stand: Any) -> None:
    shop = await stand(ttl="origin", forward_token=True, per=["sub"])
    token = issuer.sign()
    await shop.get(token)
    assert shop.seen[0].headers["authorization"] == f"Bearer {token.decode()}"


async def test_every_method_needs_the_credential_but_a_preflight(stand: Any) -> None:
    shop = await stand(methods="any", per=["sub"], forward={"x-user": "sub"})
    bearer = {"authorization": f"Bearer {issuer.sign().decode()}"}
    for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"):
        assert (await shop.client.request(method, "/home")).status_code == 401
        assert (await shop.client.request(method, "/home", headers=bearer)).status_code == 200
    assert {each.headers.get("x-user") for each in shop.seen} == {"anna"}
    assert all("authorization" not in each.headers for each in shop.seen)
    preflight = {"origin": "https://app.example.com", "access-control-request-method": "GET"}
    assert (await shop.client.request("OPTIONS", "/home", headers=preflight)).status_code == 200


async def test_a_token_that_was_accepted_ends_with_its_time(stand: Any, clock: TurnedClock) -> None:
    shop = await stand()
    token = issuer.sign(exp=clock.now() + 60)
    assert (await shop.get(token)).status_code == 200
    clock.turn(89.9)
    assert (await shop.get(token)).status_code == 200
    clock.turn(0.1)
    assert (await shop.get(token)).status_code == 401


async def test_a_token_ends_with_its_key(stand: Any, clock: TurnedClock) -> None:
    shop = await stand()
    token = issuer.sign(exp=clock.now() + 3600)
    assert (await shop.get(token)).status_code == 200
    shop.jwks = TestIssuer().jwks
    clock.turn(300)
    await shop.app.worker_state.providers["shop"].source.tick()
    assert (await shop.get(token)).status_code == 401


async def test_a_key_that_was_added_is_accepted_at_once(stand: Any, clock: TurnedClock) -> None:
    shop = await stand()
    other = TestIssuer()
    for name, key in other.keys.items():
        other.keys[name] = type(key).import_key({**key.as_dict(private=True), "kid": f"new-{key.kid}"})
    shop.jwks = other.jwks
    clock.turn(20)
    assert (await shop.get(other.sign(header={"kid": "new-rsa"}))).status_code == 200


async def test_without_keys_a_token_is_a_503_and_readiness_says_so(clock: TurnedClock) -> None:
    shop = Stand(clock, {})
    shop.jwks = b"<html>"
    async with running(shop.app):
        response = await shop.get(issuer.sign())
        assert response.status_code == 503
        assert response.headers["retry-after"] == "10"
        assert "www-authenticate" not in response.headers
        ready = (await shop.client.get("/readyz")).json()
        assert ready["identity_without_keys"] == ["shop"]


async def test_concurrent_users_get_their_own(stand: Any) -> None:
    shop = await stand(per=["sub"], forward={"x-user": "sub"})
    users = [f"user-{index % 25}" for index in range(200)]
    responses = await asyncio.gather(*(shop.get(issuer.sign("Ed25519", sub=user)) for user in users))
    assert [each.json()["user"] for each in responses] == users
    assert len(shop.seen) == 25


async def test_a_preflight_carries_nothing_that_only_a_principal_may_say(stand: Any) -> None:
    shop = await stand(methods="any", per=["sub"], forward={"x-user": "sub"})
    preflight = {"origin": "https://app.example.com", "access-control-request-method": "GET"}
    forged = {"x-user": "berta", "authorization": f"Bearer {issuer.sign().decode()}"}
    assert (await shop.client.request("OPTIONS", "/home", headers={**preflight, **forged})).status_code == 200
    (seen,) = shop.seen
    assert not {"x-user", "authorization"}.intersection(seen.headers)


async def test_a_purge_is_by_address_and_needs_no_credential(stand: Any) -> None:
    shop = await stand(purge_from=["127.0.0.1"])
    token = issuer.sign()
    await shop.get(token)
    assert (await shop.client.request("PURGE", "/home")).status_code == 200
    assert "miss" in (await shop.get(token)).headers["cache-status"]
    closed = await stand()
    assert (await closed.client.request("PURGE", "/home")).status_code == 403


async def test_routes_that_forward_other_claims_share_no_response(stand: Any) -> None:
    other = {"path": "/other", "upstream": "shop", "upstream_path": "/home", "ttl": "30s", "identity": ["shop"]}
    routes = {
        "other": {**other, "per": ["name", "sub"], "forward": {"x-user": "name"}},
        "plain": {**other, "path": "/"},
    }
    shop = await stand(per=["sub", "name"], forward={"x-user": "sub"}, routes=routes)
    bearer = {"authorization": f"Bearer {issuer.sign(sub='anna', name='Anna').decode()}"}
    users = [(await shop.client.get(path, headers=bearer)).json()["user"] for path in ("/home", "/other", "/")]
    assert users == ["anna", "Anna", ""]


async def test_a_claim_of_any_name_may_be_missing(stand: Any) -> None:
    shop = await stand(per=['t\u00e4t"ig\u20ac'])
    response = await shop.get(issuer.sign())
    assert response.status_code == 403
    assert "no claim `t?t?ig?`" in response.headers["www-authenticate"]
