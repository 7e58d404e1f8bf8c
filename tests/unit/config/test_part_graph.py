"""part_plan and part_config: what an aggregate's parts need, and what is said of those that can't be."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.config.loader import load
from gateway.errors import ConfigError
from tests.support.part_settings import home, part

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


def test_a_selection_is_asked_for_in_the_order_of_its_needs() -> None:
    names = [f"p{number}" for number in range(11)]
    plan = home({"p0": part("/{p10.x}"), **{name: part() for name in names[1:]}}).part_plan
    for number in range(1, 1 << len(names)):
        shown = tuple(name for place, name in enumerate(names) if number >> place & 1)
        asked = plan.sequence(shown)
        assert set(asked) == {*shown, *(["p10"] if "p0" in shown else [])}
        assert "p0" not in shown or asked.index("p10") < asked.index("p0")


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
