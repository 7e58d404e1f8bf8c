"""vary: which of a target's stored responses a request selects, by what they vary on."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from gateway.http.headers import Headers, cookie_pairs
from gateway.policy.identity_key import UNKEYED
from gateway.policy.vary import (
    MAX_VARY_SETS,
    MOST_NAMES,
    MOST_SUFFIXES,
    Suffixes,
    VaryIndex,
    are_names,
    latest,
    likely_key,
    newest,
    selected_keys,
    variant_key,
    with_vary,
)


@dataclass(frozen=True)
class Response:
    born: float


def index_of(*names: tuple[str, ...]) -> VaryIndex:
    return VaryIndex(primary="p", names=names)


ACCEPT, TENANT = ("accept",), ("x-tenant",)
ONE, TWO = (f"base\nvary x-tenant:{UNKEYED.of_field('x-tenant', value)}" for value in "12")
REQUEST: Headers = [(b"accept", b"a/b"), (b"x-tenant", b"1")]


# --- the index ---------------------------------------------------------------------------------------------


def test_the_first_set_of_fields_begins_an_index() -> None:
    assert with_vary(None, "p", ACCEPT) == index_of(ACCEPT)


def test_the_newest_set_of_fields_comes_first_and_once() -> None:
    index = VaryIndex(primary="p", names=(("a",), ("b",), ("c",)))
    assert with_vary(index, "p", ("b",)) == VaryIndex(primary="p", names=(("b",), ("a",), ("c",)))


def test_an_index_keeps_eight_sets_of_fields() -> None:
    index = None
    for number in range(20):
        index = with_vary(index, "p", (f"x-{number}",))
    assert index is not None
    assert index.names == tuple((f"x-{number}",) for number in range(19, 19 - MAX_VARY_SETS, -1))


def test_the_latest_fields_are_those_of_the_newest_set() -> None:
    assert [latest(each) for each in (None, index_of(), index_of(ACCEPT, TENANT))] == [(), (), ACCEPT]


# --- keys --------------------------------------------------------------------------------------------------


def test_without_vary_a_variant_has_the_base_as_its_key() -> None:
    assert variant_key("base", (), [(b"accept", b"a/b")]) == "base"


def test_a_variant_is_selected_by_the_fields_that_vary_names() -> None:
    key = variant_key("base", ("accept", "x-a"), [(b"accept", b"a/b"), (b"accept", b"c/d")])
    assert key == "base\nvary accept:a/b, c/d\nvary x-a"


def test_an_absent_field_selects_another_variant_than_an_empty_one() -> None:
    assert variant_key("base", ("x-a",), []) != variant_key("base", ("x-a",), [(b"x-a", b"")])


def test_a_field_that_connection_names_selects_the_variant_of_those_who_send_none() -> None:
    tenant, named = (b"x-tenant", b"1"), (b"connection", b"close, X-Tenant")
    unsent = variant_key("base", TENANT, [tenant, named])
    assert unsent == variant_key("base", TENANT, []) != variant_key("base", TENANT, [tenant])


def test_one_cookie_selects_whatever_the_others_are() -> None:
    def key(*lines: bytes) -> str:
        return variant_key("base", ("cookie:sid",), [(b"cookie", line) for line in lines])

    assert key(b"sid=a; theme=dark") == key(b"theme=light; sid=a") == key(b"theme=light", b"sid=a")
    assert key(b"SID=a") == key(b"sid") == key()
    assert len({key(b"sid=a"), key(b"sid=b"), key(b"sid="), key(), key(b"sid=a; sid=b")}) == 5


def test_a_cookie_selects_nothing_where_connection_names_the_cookie_field() -> None:
    named = [(b"connection", b"Cookie"), (b"cookie", b"sid=a")]
    assert variant_key("base", ("cookie:sid",), named) == variant_key("base", ("cookie:sid",), [])


@given(*[st.lists(st.text("ab=; ,", max_size=8), max_size=3)] * 2)
def test_requests_of_one_cookie_value_set_that_cookie_alike_for_every_reader(one: list[str], other: list[str]) -> None:
    first, second = ([(b"cookie", line.encode()) for line in lines] for lines in (one, other))
    if cookie_pairs(first, "a") == cookie_pairs(second, "a"):
        seen = [Request({"type": "http", "headers": headers}).cookies.get("a") for headers in (first, second)]
        assert seen[0] == seen[1]


@pytest.mark.parametrize("name", [":host", ":scheme"])
def test_what_a_handler_saw_of_the_target_selects_like_a_field(name: str) -> None:
    def key(value: bytes) -> str:
        return variant_key("base", (name,), [(b"host", b"unseen"), (name.encode(), value)])

    assert key(b"one.example") != key(b"two.example")


# --- selection ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("births", "expected"),
    [
        ({}, None),
        ({"base": 1.0}, 1.0),
        ({"base": 1.0, "base\nvary accept:a/b": 2.0}, 2.0),
        ({"base": 3.0, "base\nvary accept:a/b": 2.0}, 3.0),
        ({"base\nvary accept:a/b": 2.0, ONE: 4.0}, 4.0),
        ({"base\nvary accept:c/d": 9.0, TWO: 9.0}, None),
    ],
)
def test_the_newest_of_what_a_request_selects_is_found(births: dict[str, float], expected: float | None) -> None:
    stored = {key: Response(born) for key, born in births.items()}
    found = newest(index_of(ACCEPT, TENANT, ()), "base", Suffixes(REQUEST), stored.get)
    assert (found and found.born) == expected


def test_without_an_index_a_request_selects_its_base_key() -> None:
    assert newest(None, "base", Suffixes(REQUEST), {"base": Response(1.0)}.get) == Response(1.0)
    assert selected_keys(None, "base", Suffixes(REQUEST)) == ["base"]
    assert likely_key(None, "base", Suffixes(REQUEST)) == "base"


def test_a_request_selects_a_key_for_each_set_of_fields_its_base_key_first() -> None:
    index = index_of(TENANT, (), ACCEPT)
    assert selected_keys(index, "base", Suffixes(REQUEST)) == ["base", ONE, "base\nvary accept:a/b"]


def test_the_likely_key_is_by_what_the_newest_response_varies_on() -> None:
    assert likely_key(index_of(TENANT, ACCEPT), "base", Suffixes(REQUEST)) == ONE


def test_nothing_is_selected_by_who_does_not_see_a_field_that_takes_part() -> None:
    stored = {"base": Response(1.0), "base\nvary accept:a/b": Response(2.0)}
    suffixes = Suffixes(REQUEST, lambda name: name == "x-tenant")
    assert newest(index_of(ACCEPT, TENANT), "base", suffixes, stored.get) is None
    assert selected_keys(index_of(ACCEPT, TENANT), "base", suffixes) is None
    assert newest(index_of(ACCEPT), "base", suffixes, stored.get) == Response(2.0)


def test_the_sets_of_fields_remembered_with_one_header_block_are_bounded() -> None:
    suffixes = Suffixes(REQUEST)
    for number in range(MOST_SUFFIXES + 1):
        assert suffixes[(f"x-{number}",)] == f"\nvary x-{number}"
    assert len(suffixes) == 1


@pytest.mark.parametrize(
    ("names", "valid"),
    [
        ((), True),
        (("accept", "cookie:sid", ":host"), True),
        (("Accept",), False),
        (("",), False),
        (("cookie:",), False),
        (("cookie:a=b",), False),
        (("a b",), False),
        (("accept", "a\nb"), False),
        (("x",) * MOST_NAMES, True),
        (("x",) * (MOST_NAMES + 1), False),
    ],
)
def test_an_entry_varies_on_field_names_in_lower_case_cookies_and_pseudo_fields(
    names: tuple[str, ...], valid: bool
) -> None:
    assert are_names(names) is valid
