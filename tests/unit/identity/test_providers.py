"""The providers of a configuration, over reloads."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.cache.redis.store import RedisStore
from gateway.cache.shared_store import NoShared, SharedStore
from gateway.config.identity import IssuerConfig
from gateway.config.upstream import UpstreamConfig
from gateway.errors import ConfigError
from gateway.identity.admission import NotAdmitted
from gateway.identity.providers import Providers
from gateway.policy.identity_key import UNKEYED
from gateway.testing import StubUpstream, TurnedClock
from gateway.upstreams.client import Upstream
from tests.support.records import api_key
from tests.support.tokens import ISSUER, TestIssuer

issuer = TestIssuer()


def setting(**settings: Any) -> IssuerConfig:
    return IssuerConfig(**{"issuer": ISSUER, "jwks": json.loads(issuer.jwks), "audience": ["shop-api"], **settings})


@pytest.fixture
def providers(clock: TurnedClock) -> Providers:
    return Providers(store=NoShared(), clock=clock, identity_key=UNKEYED)


async def test_a_reload_keeps_what_did_not_change_and_ends_what_did(providers: Providers) -> None:
    first = providers.of({"kept": setting(), "changed": setting(), "gone": setting()})
    providers.take_over()
    await providers.start()
    await first["kept"].verified(issuer.sign())
    second = providers.of({"kept": setting(), "changed": setting(leeway="1s")})
    assert providers["gone"] is first["gone"]  # in force until the next ones take over
    providers.take_over()
    assert second["kept"] is first["kept"] is providers["kept"]
    assert second["changed"] is not first["changed"]
    assert second["kept"].known(issuer.sign()) is not None
    await asyncio.wait(set(providers._ending))
    assert first["gone"].source._running.done()  # type: ignore[attr-defined]
    assert providers.without_keys == []
    assert (await second["changed"].verified(issuer.sign())).subject == "anna"
    await providers.aclose()


async def test_a_provider_without_keys_is_named(providers: Providers) -> None:
    providers.of({"shop": setting(), "away": setting(jwks="file:/nowhere")})
    providers.take_over()
    assert providers.without_keys == ["shop", "away"]
    await providers.start()
    assert providers.without_keys == ["away"]
    await providers.aclose()


async def test_a_secret_needs_no_requests(providers: Providers) -> None:
    secret = "0123456789abcdef0123456789abcdef"
    found = providers.of({"shop": IssuerConfig(issuer=ISSUER, audience=["a"], algorithms=["HS256"], secret=secret)})
    providers.take_over()
    await providers.start()
    assert providers.without_keys == []
    assert found["shop"].sources == ("authorization",)
    assert secret not in repr(providers)
    await providers.aclose()


async def test_without_the_extra_the_configuration_is_refused_and_says_what_to_install(
    providers: Providers, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [each for each in sys.modules if each.startswith(("joserfc", "gateway.identity.key_set"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "joserfc", None)
    with pytest.raises(ConfigError, match=r"requires the package joserfc.*: install cached-gateway\[identity\]"):
        providers.of({"shop": setting()})


class Place:
    """Where two issuers serve their keys; counts."""

    def __init__(self) -> None:
        self.pages = {"/keys": issuer.jwks, "/others": TestIssuer().jwks}
        self.upstream = StubUpstream(lambda request: httpx.Response(200, content=self.pages[request.url.path]))

    def providers(self, store: SharedStore, clock: TurnedClock) -> Providers:
        return Providers(store=store, clock=clock, identity_key=UNKEYED, transport=lambda name: self.upstream)


async def test_a_reload_of_other_settings_keeps_the_keys(clock: TurnedClock) -> None:
    place = Place()
    providers = place.providers(NoShared(), clock)
    providers.of({"shop": setting(jwks=f"{ISSUER}/keys")})
    providers.take_over()
    await providers.start()
    found = providers.of({"shop": setting(jwks=f"{ISSUER}/keys", audience=["another"])})
    providers.take_over()
    assert providers.without_keys == []
    assert len(place.upstream.requests) == 1
    with pytest.raises(NotAdmitted, match="another audience"):
        await found["shop"].verified(issuer.sign())
    await providers.aclose()


async def test_keys_of_a_former_place_verify_nothing(redis_store: RedisStore, clock: TurnedClock) -> None:
    place = Place()
    providers = place.providers(redis_store, clock)
    for path in ("keys", "others"):
        found = providers.of({"shop": setting(jwks=f"{ISSUER}/{path}")})
        providers.take_over()
        await providers.start()
    with pytest.raises(NotAdmitted, match="signature is invalid"):
        await found["shop"].verified(issuer.sign())
    await providers.aclose()


async def test_keys_of_the_configuration_are_not_shared(redis_store: RedisStore, clock: TurnedClock) -> None:
    for _ in range(2):
        providers = Place().providers(redis_store, clock)
        providers.of({"shop": setting()})
        providers.take_over()
        await providers.start()
        assert providers["shop"].source.fetches == 1  # type: ignore[attr-defined]
        await providers.aclose()


async def test_a_token_waits_for_the_first_keys_after_a_reload(clock: TurnedClock) -> None:
    providers = Place().providers(NoShared(), clock)
    providers.take_over()
    await providers.start()
    found = providers.of({"shop": setting(jwks=f"{ISSUER}/keys")})
    providers.take_over()
    assert providers.without_keys == ["shop"]
    assert (await found["shop"].verified(issuer.sign())).subject == "anna"
    await providers.aclose()


# --- API keys, opaque tokens, revocations ------------------------------------------------------------------------


def upstream_of(answer: Any = None) -> Upstream:
    said = answer or (lambda request: httpx.Response(200, json={"active": True, "sub": "anna"}))
    return Upstream("idp", UpstreamConfig(url="http://idp.test"), StubUpstream(said))


OPAQUE = IssuerConfig(introspect={"upstream": "idp", "client_id": "gateway", "client_secret": "s"})


async def test_a_revocation_ends_what_the_edge_remembers_of_every_provider(
    providers: Providers, tmp_path: Path
) -> None:
    (tmp_path / "keys.yaml").write_text("keys: []\n")
    config = {
        "shop": setting(),
        "partner": IssuerConfig(keys="redis"),
        "file": IssuerConfig(keys=f"file:{tmp_path}/keys.yaml"),
        "opaque": OPAQUE,
    }
    found = providers.of(config, {"idp": upstream_of()})
    providers.take_over()
    await providers.start()
    before = [each.epoch.version for each in found.values()]
    await providers.credentials.publish(api_key("a"))
    assert [each.epoch.version for each in found.values()] == [version + 1 for version in before]
    assert providers.without_keys == []
    assert not providers.without_records
    await providers.aclose()


async def test_a_file_of_keys_that_is_wrong_refuses_a_configuration_and_not_one_that_is_in_force(
    providers: Providers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.identity.api_keys.LOOK_EVERY", 0.01)
    path = tmp_path / "keys.yaml"
    config = {"partner": IssuerConfig(keys=f"file:{path}")}
    with pytest.raises(ConfigError, match=r"keys\.yaml"):
        providers.of(config)
    path.write_text("keys: []\n")
    first = providers.of(config)["partner"]
    providers.take_over()
    await providers.start()
    path.write_text("keys: 7\n")
    assert providers.of(config)["partner"] is first
    providers.take_over()
    async with asyncio.timeout(10):
        while first.keys.failure is None:  # type: ignore[union-attr]
            await asyncio.sleep(0.01)
    assert first.ready
    await providers.aclose()


async def test_an_upstream_that_is_replaced_is_asked_by_another_provider(providers: Providers) -> None:
    one, other = upstream_of(), upstream_of()
    first = providers.of({"opaque": OPAQUE}, {"idp": one})["opaque"]
    providers.take_over()
    assert providers.of({"opaque": OPAQUE}, {"idp": one})["opaque"] is first
    assert providers.of({"opaque": OPAQUE}, {"idp": other})["opaque"] is not first


async def test_an_endpoint_that_does_not_answer_is_named(providers: Providers) -> None:
    found = providers.of({"opaque": OPAQUE}, {"idp": upstream_of(lambda request: httpx.Response(500))})["opaque"]
    providers.take_over()
    await providers.start()
    assert providers.unanswered == []
    with pytest.raises(NotAdmitted):
        await found.verified(b"token")
    assert (providers.unanswered, providers.without_keys) == (["opaque"], [])
    await providers.aclose()


async def test_where_there_is_no_redis_it_is_said_that_no_key_can_be_created(
    providers: Providers, caplog: pytest.LogCaptureFixture
) -> None:
    providers.of({"partner": IssuerConfig(keys="redis")})
    providers.take_over()
    await providers.start()
    assert "no API key can be created" in caplog.text
    await providers.aclose()
