"""part_plan and part_config: what an aggregate's parts need, and what is said of those that can't be."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gateway.config.loader import load
from gateway.config.models import Config
from gateway.config.part_values import Missing, PartTarget, Values, condition_holds
from gateway.config.route import RouteConfig
from gateway.errors import ConfigError, RequestRefused
from gateway.http.target import normalise

UPSTREAMS = {"shop": {"url": "http://shop"}, "promo": {"urls": ["http://a", "http://b"]}}


def config(parts: dict[str, Any], **settings: Any) -> Config:
    routes = {
        "home": {"path": "/home/{user}", "parts": parts, **settings},
        "product": {"path": "/products/{id}", "upstream": "shop"},
        "profile": {"path": "/profiles/{user}", "upstream": "shop"},
    }
    return Config.model_validate({"upstreams": UPSTREAMS, "routes": routes})


def home(parts: dict[str, Any]) -> RouteConfig:
    return config(parts).routes["home"]


def part(path: str = "/x", **settings: Any) -> dict[str, Any]:
    return {"upstream": "shop", "path": path, **settings}


def target(text: str) -> PartTarget:
    earlier = {"cart": part(), "each": part("/{item}", for_each="cart.ids")}
    parts = {**earlier, "it": part(text)}
    found = home(parts).part_plan.parts["it"].target
    assert found is not None
    return found


def values(query: dict[str, str] | None = None, **given: Any) -> Values:
    pairs = tuple(f"{name}={quote(value)}" for name, value in (query or {}).items())
    return Values(**{"path": {"user": "7"}, "pairs": pairs, "header": {}, **given})


# --- the graph ---------------------------------------------------------------------------------------------


def test_a_part_comes_after_those_whose_values_it_takes() -> None:
    plan = home({"seller": part("/s/{product.seller_id}"), "product": part("/p/{user}"), "x": part()}).part_plan
    assert plan.order == ("product", "seller", "x")
    assert plan.parts["seller"].needs == ("product",)


def test_a_part_needs_what_its_path_headers_tags_list_and_condition_name() -> None:
    plan = home(
        {
            **{name: part() for name in ("a", "b", "c", "d", "e")},
            "it": part("/{item}/{a.x}", headers={"x-b": "{b.x}"}, tags=["t:{c.x}"], for_each="d.l[*]", when="e.x"),
        }
    ).part_plan
    assert set(plan.parts["it"].needs) == {"a", "b", "c", "d", "e"}


def test_what_is_shown_brings_what_it_needs() -> None:
    plan = home({"a": part(), "b": part("/{a.x}"), "c": part("/{b.x}"), "d": part()}).part_plan
    assert plan.closure(["c"]) == {"a", "b", "c"}


def test_a_selection_is_asked_for_in_the_order_of_its_needs_and_no_more_than_a_thousand_are_remembered() -> None:
    names = [f"p{number}" for number in range(11)]
    plan = home({"p0": part("/{p10.x}"), **{name: part() for name in names[1:]}}).part_plan
    for number in range(1, 1 << len(names)):
        shown = tuple(name for place, name in enumerate(names) if number >> place & 1)
        asked = plan.sequence(shown)
        assert set(asked) == {*shown, *(["p10"] if "p0" in shown else [])}
        assert "p0" not in shown or asked.index("p10") < asked.index("p0")
        assert plan.sequence(shown) is asked
        assert len(plan._sequences) <= 1001


def test_a_part_that_names_a_route_needs_no_path_where_the_aggregates_has_its_parameters() -> None:
    assert home({"a": {"route": "profile"}}).part_plan.order == ("a",)


@pytest.mark.parametrize(
    "when",
    [
        "cart.items[?price > `5`] | [0]",
        "cart[0].price == `1`",
        "cart.*.price",
        "cart.items[].price | length(@) > `1`",
        "length(cart) > `1` && query.list[0] && query.list[*].price",
    ],
)
def test_a_condition_takes_the_first_name_and_what_stands_below_it_is_no_parts(when: str) -> None:
    plan = home({"cart": part(), "price": part(), "it": part(when=when)}).part_plan
    assert plan.parts["it"].needs == ("cart",)
    assert plan.query <= {"list"}


def test_the_query_parameters_and_headers_that_any_part_reads_are_known() -> None:
    plan = home(
        {
            "a": part("/a?page={query.page}", query=["sort"]),
            "b": part(headers={"x-app": "{header.X-App}"}, when="query.platform == 'ios' && header.x_beta"),
        }
    ).part_plan
    assert plan.query == {"page", "sort", "platform"}
    assert plan.reads == {"x-app", "x-beta"}


# --- templates ---------------------------------------------------------------------------------------------


def test_values_of_every_kind_stand_in_a_target() -> None:
    given = values(
        query={"q": "a b&c"}, header={"x-app": "i/o"}, parts={"cart": {"n": {"id": 5}, "ok": True, "f": 1.5}}
    )
    text = "/u/{user}/{cart.n.id}/{cart.ok}/{cart.f}?q={query.q}&h={header.x-app}&c=1"
    path, query = target(text).render(given)
    assert path == "/u/7/5/true/1.5"
    assert query == ("q=a%20b%26c", "h=i%2Fo", "c=1")


def test_a_query_value_that_the_client_did_not_send_takes_its_pair_along() -> None:
    assert target("/o?page={query.page}&a=1").render(values()) == ("/o", ("a=1",))


@pytest.mark.parametrize("found", [None, {}, {"id": None}, {"id": ""}, {"id": []}, {"id": {"x": 1}}, [1], "text"])
def test_a_value_of_an_earlier_part_that_is_no_scalar_is_missing(found: Any) -> None:
    with pytest.raises(Missing, match=r"cart\.id"):
        target("/s/{cart.id}").render(values(parts={"cart": found}))


def test_a_path_value_that_the_client_did_not_send_is_missing() -> None:
    with pytest.raises(Missing, match=r"query\.q"):
        target("/s/{query.q}").render(values())


@pytest.mark.parametrize("value", ["..", ".", "a/b", "a\\b", "../../x", "%2e%2e", "a\nb", "\0", "..;", "%2f"])
def test_no_value_leaves_its_segment(value: str) -> None:
    try:
        path, query = target("/v1/{query.x}/end").render(values(query={"x": value}))
    except RequestRefused:
        return
    assert path.startswith("/v1/")
    assert path.endswith("/end")
    assert path.count("/") == 3
    assert query == ()


@given(st.text(min_size=1, max_size=20))
def test_whatever_the_value_the_target_is_normal_and_has_the_segments_of_its_template(value: str) -> None:
    try:
        path, query = target("/v1/{query.x}/end?q={query.x}&r=1").render(values(query={"x": value}))
    except (RequestRefused, UnicodeEncodeError):
        return
    assert path.count("/") == 3
    assert len(query) == 2
    assert str(normalise(path.encode(), "&".join(query).encode())) == f"{path}?{'&'.join(query)}"


# --- conditions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("when", "holds"),
    [
        ("query.debug", False),
        ("query.platform == 'ios'", True),
        ("query.platform == 'ios' && cart.items", True),
        ("!(query.platform)", False),
        ("header.x_beta", True),
        ("header.\"x-beta\" == '1'", True),
        ("path.user == '7'", True),
        ("cart.total > `10`", False),
        ("cart.total >= `10`", True),
        ("length(cart.items) == `2`", True),
        ("length(cart.total) == `2`", False),
        ("cart.empty", False),
        ("cart.zero", True),
    ],
)
def test_a_condition_is_true_as_jmespath_has_it(when: str, holds: bool) -> None:
    cart = {"total": 10, "items": [1, 2], "empty": [], "zero": 0}
    given = values(query={"platform": "ios"}, header={"x-beta": "1"})
    plan = home({"cart": part(), "it": part(when=when)}).part_plan
    assert condition_holds(plan.parts["it"].when, given, {"cart": cart}) is holds


# --- what is refused ---------------------------------------------------------------------------------------

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


FILE = """\
upstreams:
  shop:
    url: http://shop:8080
routes:
  home:
    path: /home/{user}
    parts:
      product:
        upstream: shop
        path: /products/{seller.product_id}
      seller:
        upstream: shop
        path: /sellers/{product.seller_id}
  cart:
    path: /cart/{user}
    parts:
      lines:
        upstream: shp
        path: /lines/{usr}
      total:
        upstream: shop
        path: /total
        select: a..b
      sum:
        upstream: shop
        path: /sum
        group: total
"""


def test_each_problem_is_told_with_its_line_and_reason(tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text(FILE)
    with pytest.raises(ConfigError) as caught:
        load(path, environ={}, dotenv=None)
    told = {(problem.source.rpartition(" ")[2], problem.key) for problem in caught.value.problems}
    assert ("8", "routes.home.parts.product") in told
    assert ("23", "routes.cart.parts.total.select") in told
    path.write_text(FILE.replace("{seller.product_id}", "1").replace("a..b", "a.b"))
    with pytest.raises(ConfigError) as caught:
        load(path, environ={}, dotenv=None)
    told = {(problem.source.rpartition(" ")[2], problem.key) for problem in caught.value.problems}
    parts = "routes.cart.parts"
    assert told == {("18", f"{parts}.lines.upstream"), ("19", f"{parts}.lines.path"), ("27", f"{parts}.sum.group")}
