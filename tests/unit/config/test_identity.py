"""The settings of `identity`, and those of routes that require it."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from gateway.config.identity import IssuerConfig, check_claim_field
from gateway.config.models import Config
from gateway.config.route import RouteConfig

GOOD: dict[str, Any] = {"issuer": "https://id.example.com", "audience": ["shop-api"]}


def problem(model: Any, **settings: Any) -> str:
    with pytest.raises(ValidationError) as refused:
        model(**settings)
    return str(refused.value)


def test_an_issuer_and_an_audience_are_enough() -> None:
    found = IssuerConfig(**GOOD)
    assert (found.jwks, found.algorithms, found.sources) == ("auto", ["RS256", "ES256", "Ed25519"], ["authorization"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"audience": []}, "audience is required"),
        ({"issuer": ""}, "issuer's URL"),
        ({"issuer": "a b"}, "issuer's URL"),
        ({"issuer": "https://"}, "a URL with a host"),
        ({"issuer": "shop"}, "jwks: auto requires"),
        ({"algorithms": ["none"]}, "`none` is no signature"),
        ({"algorithms": ["RS255"]}, "isn't a supported algorithm"),
        ({"algorithms": []}, "at least one algorithm"),
        ({"algorithms": ["HS256"]}, "HS256 requires `secret`"),
        ({"algorithms": ["HS256"], "secret": "short"}, "at least 32 bytes"),
        ({"algorithms": ["HS512"], "secret": "x" * 63}, "at least 64 bytes"),
        ({"algorithms": ["HS256", "RS256"], "secret": "x" * 32}, "is for HS256, HS384 and HS512 alone"),
        ({"secret": "x" * 32}, "is for HS256, HS384 and HS512 alone"),
        ({"jwks": "keys.json"}, "must be auto"),
        ({"jwks": "file:"}, "must be auto"),
        ({"jwks": "https://a:b@id.example.com/keys"}, "credentials"),
        ({"from": []}, "at least one header or cookie"),
        ({"from": ["cookie:"]}, "neither a header nor"),
        ({"from": ["a header"]}, "neither a header nor"),
        ({"leeway": "1h"}, "less than or equal"),
        ({"unknown_kid_every": "0s"}, "greater than or equal"),
    ],
)
def test_a_setting_that_can_not_be_is_refused_with_its_reason(settings: dict[str, Any], message: str) -> None:
    assert message in problem(IssuerConfig, **{**GOOD, **settings})


def test_sources_are_read_as_headers_are() -> None:
    found = IssuerConfig(**GOOD, **{"from": ["Authorization", "X-Token", "cookie:Session"]})
    assert found.sources == ["authorization", "x-token", "cookie:Session"]


def test_a_shared_secret_is_masked() -> None:
    found = IssuerConfig(**GOOD, algorithms=["HS256"], secret="x" * 32)
    assert "x" * 32 not in repr(found)


def route(**settings: Any) -> dict[str, Any]:
    return {"path": "/home", "upstream": "shop", "identity": ["shop"], "ttl": "30s", **settings}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"authorization": "key"}, "authorization can't be combined with `identity`"),
        ({"forward": {"x-user": "sub"}}, "`sub` must be in `per` too"),
        ({"forward": {"x-user": "sub"}}, "lacks `sub`, which x-user forwards"),
        ({"forward_token": True}, "forward_token requires `ttl: origin`"),
        ({"forward": {"x user": "sub"}, "per": ["sub"]}, "isn't a valid header name"),
        ({"forward": {"Host": "sub"}, "per": ["sub"]}, "has a meaning of its own"),
        ({"forward": {"x-forwarded-for": "sub"}, "per": ["sub"]}, "has a meaning of its own"),
        ({"forward": {"x_user": "sub"}, "per": ["sub"]}, "has a meaning of its own"),
        ({"identity": [], "per": ["sub"]}, "per requires `identity`"),
        ({"identity": [], "optional": True}, "optional requires `identity`"),
    ],
)
def test_a_route_that_can_not_be_is_refused_with_its_reason(settings: dict[str, Any], message: str) -> None:
    assert message in problem(RouteConfig, **route(**settings))


def test_a_route_names_an_identity_that_there_is() -> None:
    upstreams = {"shop": {"url": "http://shop.example.com"}}
    message = problem(Config, upstreams=upstreams, identity={"shop": GOOD}, routes={"home": route(identity=["shp"])})
    assert "there is no identity 'shp'" in message
    assert "shop" in message


def test_an_aggregate_is_made_of_no_route_with_identity() -> None:
    routes = {"home": route(), "screen": {"path": "/screen", "parts": {"a": {"route": "home"}}}}
    upstreams = {"shop": {"url": "http://shop.example.com"}}
    message = problem(Config, upstreams=upstreams, identity={"shop": GOOD}, routes=routes)
    assert "routes.screen.parts.a.route" in message
    assert "the route home has `identity`" in message


@pytest.mark.parametrize("name", ["Connection", "content-length", "cookie", "Authorization", "x-request-id"])
def test_a_header_with_a_meaning_of_its_own_is_made_of_no_claim(name: str) -> None:
    with pytest.raises(ValueError, match="meaning of its own"):
        check_claim_field(name)


def test_the_forwarded_token_is_for_routes_that_store_by_their_upstream() -> None:
    assert RouteConfig(**route(ttl="origin", forward_token=True)).forward_token
    assert RouteConfig(**route(cache=False, forward_token=True)).forward_token


def test_a_token_in_a_field_of_its_own_is_not_forwarded_where_responses_are_stored() -> None:
    settings: dict[str, Any] = {"upstreams": {"shop": {"url": "http://shop.example.com"}}}
    settings["identity"] = {"shop": {**GOOD, "from": ["authorization", "x-access"]}}
    message = problem(Config, **settings, routes={"home": route(ttl="origin", forward_token=True)})
    assert "routes.home.forward_token" in message
    assert "shop takes them from x-access" in message
    Config(**settings, routes={"home": route(cache=False, forward_token=True)})
    settings["identity"]["shop"]["from"] = ["authorization", "cookie:token"]
    Config(**settings, routes={"home": route(ttl="origin", forward_token=True)})


# --- API keys and opaque tokens ----------------------------------------------------------------------------------

ASKED: dict[str, Any] = {"upstream": "shop", "client_id": "gateway", "client_secret": "s"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "needs issuer (signed tokens), keys (API keys) or introspect (opaque tokens)"),
        ({**GOOD, "keys": "redis"}, "can't be combined: issuer and keys"),
        ({"keys": "redis", "introspect": ASKED}, "can't be combined: keys and introspect"),
        ({"keys": "redis", "jwks": "auto"}, "jwks requires `issuer`, and can't be combined with `keys`"),
        ({"introspect": ASKED, "header": "x"}, "header requires `keys`, and can't be combined with `introspect`"),
        ({"keys": "rediss"}, "must be redis, or file:PATH"),
        ({"keys": "file:"}, "must be redis, or file:PATH"),
        ({"keys": "redis", "header": "x key"}, "must be a header's name"),
        ({"introspect": {**ASKED, "path": "introspect"}}, "must be a path such as /introspect"),
        ({"introspect": {**ASKED, "path": "/a?b"}}, "must be a path such as /introspect"),
        ({"introspect": {**ASKED, "client_id": ""}}, "the gateway's name at the endpoint"),
        ({"introspect": {**ASKED, "cache": "2h"}}, "less than or equal to"),
    ],
)
def test_an_identity_is_of_one_kind_with_the_settings_of_that_kind(settings: dict[str, Any], message: str) -> None:
    assert message in problem(IssuerConfig, **settings)


def test_an_endpoint_has_a_path_of_its_own() -> None:
    asked = IssuerConfig.model_validate({"introspect": {**ASKED, "path": "/oauth/introspect"}}).introspect
    assert asked is not None
    assert asked.path == "/oauth/introspect"


def test_credentials_are_where_each_kind_has_them() -> None:
    assert IssuerConfig(keys="redis", header="X-Key").sources == ["x-key"]
    assert IssuerConfig(introspect=ASKED, **{"from": ["cookie:sid"]}).sources == ["cookie:sid"]
    assert "'s'" not in repr(IssuerConfig(introspect=ASKED))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"redis_url": "none"}, "redis_url is none"),
        ({}, "set redis_dir to a folder"),
        ({"redis_dir": "/data"}, ""),
        ({"redis_url": "redis://r:6379"}, ""),
    ],
)
def test_keys_are_kept_where_they_are_not_lost(settings: dict[str, Any], message: str) -> None:
    found = {"identity": {"partner": {"keys": "redis"}}, **settings}
    if not message:
        Config(**found)
        return
    said = problem(Config, **found)
    assert "identity.partner.keys" in said
    assert message in said


def test_an_endpoint_is_asked_at_an_upstream_that_there_is() -> None:
    identity = {"opaque": {"introspect": {**ASKED, "upstream": "shp"}}}
    message = problem(Config, upstreams={"shop": {"url": "http://shop.example.com"}}, identity=identity)
    assert "identity.opaque.introspect.upstream" in message
    assert "there is no upstream 'shp'; did you mean shop?" in message
