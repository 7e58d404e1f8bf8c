"""What aggregates are made of, by their settings and those of their parts."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.aggregates.aggregate import Aggregate
from tests.support.shop import Shop, home, part


def aggregate(parts: dict[str, Any], **settings: Any) -> Aggregate:
    return home(Shop(), parts, **settings).aggregates[0]


def test_parts_of_equal_settings_share_what_of_a_request_counts() -> None:
    sources = aggregate({"a": part("/a"), "b": part("/b"), "c": part("/c", vary=["x-c"])}).kit.sources
    keyings = [source.route.keying for source in sources.values()]
    assert keyings[0] is keyings[1]
    assert keyings[2].vary == ("x-c",)


def test_the_whole_has_all_that_counts_for_a_part_in_its_key() -> None:
    keying = aggregate(
        {
            "a": part("/a", vary=["x-b", "x-a"]),
            "b": part("/b", authorization="key", cookies=["c", "b"]),
            "c": part("/c/{header.x-c}", cookies=["a"]),
        }
    ).route.keying
    assert keying.vary == ("x-a", "x-b", "x-c")
    assert (keying.authorization, keying.cookies) == ("key", ("a", "b", "c"))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({"authorization": "pass"}, ("pass", ())), ({"cookies": "pass"}, ("key", None))],
)
def test_where_credentials_are_passed_to_a_part_they_take_the_whole_past_the_cache(
    settings: dict[str, Any], expected: tuple[str, Any]
) -> None:
    keying = aggregate({"a": part("/a", **settings), "b": part("/b", authorization="key")}).route.keying
    assert (keying.authorization, keying.cookies) == expected


def test_a_part_that_names_a_route_is_fetched_as_that_is() -> None:
    made = aggregate({"a": {"route": "product", "path": "/products/{user}"}, "b": part("/b")})
    assert (made.kit.sources["a"].route.name, made.part_routes) == ("product", ["home.b"])


@pytest.mark.parametrize(
    ("before", "after", "settings"),
    [
        ({}, {"allow": ["id"]}, {}),
        ({"ttl": "1m"}, {"ttl": "2m"}, {}),
        ({}, {}, {"merge": "deep"}),
        ({"group": "a"}, {"group": None}, {}),
    ],
    ids=["its shape", "its lifetime", "how parts are merged", "no group"],
)
def test_settings_that_change_a_whole_change_its_key(
    before: dict[str, Any], after: dict[str, Any], settings: dict[str, Any]
) -> None:
    first, second = aggregate({"a": part("/a", **before)}), aggregate({"a": part("/a", **after)}, **settings)
    assert first.route.keying.marks != second.route.keying.marks
    assert aggregate({"a": part("/a", **before)}, summary="Other").route.keying == first.route.keying


def test_with_a_part_that_is_never_cached_the_whole_is_not() -> None:
    never = aggregate({"a": part("/a", ttl="0s"), "b": part("/b")})
    assert (never.route.rules.off, aggregate({"b": part("/b")}).route.rules.off) == (True, False)
