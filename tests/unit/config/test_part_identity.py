"""Aggregates with `identity`: what each part depends on, and which combinations are refused."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from gateway.config.models import Config
from gateway.config.part_identity import claims_of_parts, claims_of_whole

ISSUER = {"issuer": "https://id.example.com", "audience": ["shop-api"]}
ME: dict[str, Any] = {"upstream": "shop", "path": "/me", "per": ["sub"]}


def config(parts: dict[str, Any], routes: dict[str, Any] | None = None, **home: Any) -> Config:
    route = {"path": "/home/{id}", "identity": ["shop"], "parts": parts, **home}
    return Config.model_validate(
        {
            "upstreams": {"shop": {"url": "http://shop.example.com"}},
            "identity": {"shop": ISSUER, "partner": {**ISSUER, "issuer": "https://b.example", "from": ["x-key"]}},
            "routes": {"home": route, **(routes or {})},
        }
    )


def problem(parts: dict[str, Any], routes: dict[str, Any] | None = None, **home: Any) -> str:
    with pytest.raises(ValidationError) as refused:
        config(parts, routes, **home)
    return str(refused.value)


def part(**settings: Any) -> dict[str, Any]:
    return {"upstream": "shop", "path": "/x", **settings}


def declared(**settings: Any) -> dict[str, Any]:
    return {"named": {"path": "/named", "upstream": "shop", "ttl": "30s", **settings}}


def test_a_part_depends_on_its_own_claims_or_on_those_of_the_parts_whose_values_it_takes() -> None:
    parts = {
        "all": part(),
        "me": ME,
        "plan": part(per=["plan"]),
        "both": part(path="/x/{me.id}", when="plan.gold"),
        "after": part(path="/x/{both.id}"),
        "wider": part(path="/x/{me.id}", per=["sub", "tenant"]),
        "named": {"route": "named"},
        "constant": {"static": 1},
    }
    found = config(parts, declared(identity=["shop"], per=["tier"]))
    home = found.routes["home"]
    assert claims_of_parts(home.part_plan, found.routes) == {
        "all": (),
        "me": ("sub",),
        "plan": ("plan",),
        "both": ("plan", "sub"),
        "after": ("plan", "sub"),
        "wider": ("sub", "tenant"),
        "named": ("tier",),
        "constant": (),
    }
    assert claims_of_whole(home, found.routes) == ("plan", "sub", "tenant", "tier")


def test_the_whole_may_depend_on_more_than_its_parts() -> None:
    found = config({"me": ME}, per=["sub", "plan"])
    assert claims_of_whole(found.routes["home"], found.routes) == ("plan", "sub")


@pytest.mark.parametrize(
    ("parts", "home", "message"),
    [
        ({"me": ME}, {"per": ["plan"]}, "lacks `sub`, which the response depends on by me"),
        (
            {"me": ME, "more": part(path="/x/{me.id}", per=["plan"])},
            {},
            "the part more takes values of the part me, whose responses depend on `sub`; add sub to its `per`",
        ),
        ({"me": ME, "more": part(path="/x/{me.id}", per=[])}, {}, "the part more takes values of the part me"),
        ({"me": ME, "more": part(when="me.gold", per=[])}, {}, "the part more takes values of the part me"),
        ({"me": ME, "more": part(path="/x/{item}", for_each="me.ids", per=[])}, {}, "takes values of the part me"),
        ({"me": ME, "more": part(headers={"x-seg": "{me.segment}"}, per=[])}, {}, "takes values of the part me"),
        ({"me": {**ME, "forward": {"x-plan": "plan"}}}, {}, "`plan` must be in `per` too"),
        ({"me": {**ME, "forward": {"x-u": "sub"}, "headers": {"x-u": "1"}}}, {}, "is in `headers` of the part, too"),
        ({"me": {**ME, "authorization": "key"}}, {}, "can't be combined with the aggregate's `identity`"),
        ({"all": part(headers={"x-a": "{header.authorization}"})}, {}, "header authorization, which has credentials"),
        ({"all": part(headers={"x-a": "{header.x-key}"})}, {"identity": ["partner"]}, "x-key, which has credentials"),
        (
            {"me": {**ME, "forward": {"x-u": "sub"}}, "all": part(headers={"x-a": "{header.x-u}"})},
            {},
            "header x-u, which the part me makes of a claim",
        ),
        ({"me": {**ME, "tags": ["plan:{claim.plan}"]}}, {}, "`plan` must be in `per` too"),
        ({"all": part(tags=["user:{claim.sub}"])}, {}, "`sub` must be in `per` too"),
        ({"me": ME}, {"tags": ["plan:{claim.plan}"]}, "`plan` must be in `per` too"),
        ({"me": {**ME, "forward": {"host": "sub"}}}, {}, "has a meaning of its own"),
        ({"me": ME}, {"identity": []}, "per requires `identity` of the aggregate"),
        ({"me": ME}, {"forward": {"x-user": "sub"}, "per": ["sub"]}, "in an aggregate, set it on each part"),
        ({"me": ME}, {"identity": ["shpo"]}, "there is no identity 'shpo'; did you mean shop?"),
        ({"me": {"static": 1, "per": ["sub"]}}, {}, "per has no effect on a static part"),
        ({"me": {"route": "named", "per": ["sub"]}}, {}, "per is set by the route"),
    ],
)
def test_what_would_show_one_user_anothers_is_refused(parts: Any, home: dict[str, Any], message: str) -> None:
    assert message in problem(parts, declared(), **home)


def test_a_part_may_take_values_of_headers_that_say_nothing_of_who_asks() -> None:
    parts = {"me": ME, "all": part(headers={"x-a": "{header.x-lang}"})}
    assert set(config(parts, declared()).routes["home"].parts) == {"me", "all"}


@pytest.mark.parametrize(
    ("named", "home", "message"),
    [
        ({"identity": ["shop"]}, {"identity": []}, "an aggregate, which lets anybody in, can't be made of it"),
        ({"identity": ["partner"]}, {}, "the route named doesn't take the credentials of shop"),
        ({"identity": ["shop"]}, {"optional": True}, "requires a credential, and the aggregate doesn't"),
        ({"identity": ["shop"], "ttl": "origin", "forward_token": True}, {}, "forwards the credential itself"),
        ({"identity": ["shop"], "require": {"scopes": ["a"]}}, {}, "requires the scope a"),
        ({"identity": ["shop"], "require": {"claims": {"t": ["a"]}}}, {}, "requires a value of the claim t"),
        (
            {"identity": ["shop"], "require": {"claims": {"t": ["a"]}}},
            {"require": {"claims": {"t": ["a", "b"]}}},
            "requires a value of the claim t",
        ),
        (
            {"identity": ["shop"], "require": {"claims": {"t": [1]}}},
            {"require": {"claims": {"t": [True]}}},
            "requires a value of the claim t",
        ),
    ],
)
def test_a_part_is_no_way_around_what_its_route_requires(
    named: dict[str, Any], home: dict[str, Any], message: str
) -> None:
    assert message in problem({"named": {"route": "named"}}, declared(**named), **home)


def test_a_part_of_a_route_is_as_narrow_as_the_parts_it_takes_values_of() -> None:
    parts = {"me": ME, "named": {"route": "named", "path": "/named/{me.id}"}}
    routes = declared(path="/named/{id}")
    assert "the part named takes values of the part me" in problem(parts, routes)
    config(parts, declared(path="/named/{id}", identity=["shop"], per=["sub"]))


def test_a_route_may_be_a_part_where_the_aggregate_requires_as_much() -> None:
    require = {"scopes": ["a"], "claims": {"t": ["a", "b"]}}
    strict = {"scopes": ["a", "b"], "claims": {"t": ["a"], "u": [1]}}
    config({"named": {"route": "named"}}, declared(identity=["shop", "partner"], require=require), require=strict)
