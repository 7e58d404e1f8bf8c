"""Settings of an aggregate's part: what may be set, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from tests.support.part_settings import config, home, part

REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"a": part("/{b.x}"), "b": part("/{a.x}")}, "parts.a", "cycle: a → b → a"),
    ({"a": part("/{a.x}")}, "parts.a", "cycle: a → a"),
    ({"a": part(upstream="shp")}, "parts.a.upstream", "there is no upstream shp; did you mean shop?"),
    ({"a": part("/{usr}")}, "parts.a.path", "uses {usr}, which the aggregate's path does not have; did you mean user?"),
    ({"cart": part(), "a": part("/{cart}")}, "parts.a.path", "write {cart.field}"),
    ({"cart": part(), "a": part("/{crt.x}")}, "parts.a.path", "there is no part crt; did you mean cart?"),
    ({"cart": part(), "a": part("/{cart.x..y}")}, "parts.a.path", "valid JMESPath"),
    ({"a": part("/{user")}, "parts.a.path", "brace"),
    ({"a": part("x")}, "parts.a.path", "slash"),
    ({"a": part("/a/../x")}, "parts.a.path", "dot segments"),
    ({"a": part(), "b": part(group="a")}, "parts.b.group", "a is already the group of the part a"),
    ({"a": part(group="_meta")}, "parts.a.group", "isn't a valid group name"),
    (
        {"a": part(), "b": part(path="/b/{item}", for_each="a.ids", group=None)},
        "parts.b.group",
        "can't be combined with `for_each`",
    ),
    ({"query": part()}, "parts.query", "reserved in templates"),
    ({"a": part(select="x[")}, "parts.a.select", "valid JMESPath"),
    ({"a": part(when="query")}, "parts.a.when", "such as query.name"),
    ({"a": part(when="nope.x")}, "parts.a.when", "there is no part nope"),
    ({"a": part("/{item}", for_each="nope.x")}, "parts.a.for_each", "there is no part nope"),
    ({"c": part(), "a": part("/{item}", for_each="[*]")}, "parts.a.for_each", "must begin with an earlier part"),
    ({"c": part(), "a": part("/x", for_each="c.l")}, "parts.a", "{item}"),
    ({"a": part("/{item}")}, "parts.a.path", "uses {item}"),
    ({"a": part(batch="/p?ids={ids}")}, "parts.a", "batch requires `for_each`"),
    ({"a": part(elements="required")}, "parts.a", "elements requires `for_each`"),
    ({"a": part(allow=["x"], deny=["y"])}, "parts.a", "deny can't be combined with `allow`"),
    ({"a": part(decode="binary")}, "parts.a.decode", "'auto', 'json', 'text' or 'xml'"),
    ({"a": part(headers={"host": "x"})}, "parts.a.headers", "set for each request"),
    ({"a": part(hedge="50ms")}, "parts.a.hedge", "needs an upstream with several `urls`"),
    ({"a": {"path": "/x"}}, "parts.a", "requires exactly one of `upstream`, `route` and `static`"),
    ({"a": {"upstream": "shop"}}, "parts.a", "path is missing"),
    ({"a": {"route": "produkt"}}, "parts.a.route", "with an upstream; did you mean product?"),
    ({"a": {"route": "product"}}, "parts.a.path", "has {id}, which this one has not"),
    ({"a": {"route": "product", "path": "/products/{user}", "ttl": "5s"}}, "parts.a", "ttl is set by the route"),
    ({"a": {"static": 1, "ttl": "5s"}}, "parts.a", "ttl has no effect on a static part"),
    ({"A": part()}, "parts", "a valid name"),
    ({"a": part(colour="red")}, "parts.a.colour", "Extra inputs"),
    ({"s": part(shadow=True), "a": part("/{s.x}")}, "parts.a.path", "a shadow part"),
    ({"a": part(method="POST", retries=1)}, "parts.a", "may not be idempotent"),
    ({"a": part("/{header.a b}")}, "parts.a.path", "which isn't a valid header name"),
    ({"a": part(deny=["x..y"])}, "parts.a.deny", "names joined by dots, such as seller.name"),
    ({"a": part(rename={".x": "y"})}, "parts.a.rename", "names joined by dots, such as seller.name"),
    ({"a": part(headers={"x-app": "a\nb"})}, "parts.a.headers", "the value of x-app has a character"),
    ({"a": part(tags=["a b"])}, "parts.a.tags", "the tag 'a b' is empty or has a space"),
    ({"a": part(body={"q": 1})}, "parts.a", "body requires `method: POST`"),
    ({"a": part(shadow=True, optional=True)}, "parts.a", "shadow can't be combined"),
    ({"a": part(vary="accept")}, "parts.a", "vary requires a duration as ttl"),
]


@pytest.mark.parametrize(("parts", "where", "said"), REFUSED, ids=[f"{where}: {said}" for _, where, said in REFUSED])
def test_what_is_wrong_with_a_part_is_said_at_its_place(parts: dict[str, Any], where: str, said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        config(parts)
    (error,) = caught.value.errors()
    assert ".".join(map(str, error["loc"])).removeprefix("routes.home.") == where
    assert said in error["msg"]


@pytest.mark.parametrize(("given", "taken"), [("pass", "pass"), ("ignore", "ignore"), ("a, b", ["a", "b"])])
def test_a_parts_cookies_are_passed_or_ignored_or_those_of_a_list(given: str, taken: Any) -> None:
    assert home({"a": part(cookies=given)}).parts["a"].cookies == taken


def test_a_parameter_of_several_segments_is_refused_in_a_parts_path() -> None:
    with pytest.raises(ValidationError, match="matches several segments; a value must fit in one"):
        config({"a": part("/{rest}")}, path="/home/{rest:path}")


def test_what_an_upstreams_route_is_told_is_refused_of_an_aggregate() -> None:
    with pytest.raises(ValidationError, match="ttl requires `upstream`"):
        config({"a": part()}, ttl="5s")
