"""The values of a part's target, headers and condition: what is missing, and what a value can't change."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.part_values import Missing, PartTarget, Values, condition_holds
from gateway.errors import RequestRefused
from gateway.http.target import normalise
from tests.support.part_settings import home, part


def target(text: str) -> PartTarget:
    earlier = {"cart": part(), "each": part("/{item}", for_each="cart.ids")}
    parts = {**earlier, "it": part(text)}
    found = home(parts).part_plan.parts["it"].target
    assert found is not None
    return found


def values(query: dict[str, str] | None = None, **given: Any) -> Values:
    pairs = tuple(f"{name}={quote(value)}" for name, value in (query or {}).items())
    return Values(**{"path": {"user": "7"}, "pairs": pairs, "header": {}, **given})


def test_values_of_every_kind_stand_in_a_target() -> None:
    given = values(
        query={"q": "a b&c"}, header={"x-app": "i/o"}, parts={"cart": {"n": {"id": 5}, "ok": True, "f": 1.5}}
    )
    text = "/u/{user}/{cart.n.id}/{cart.ok}/{cart.f}?q={query.q}&h={header.x-app}&c=1"
    path, query = target(text).render(given)
    assert path == "/u/7/5/true/1.5"
    assert query == ("q=a%20b%26c", "h=i%2Fo", "c=1")


@given(
    text=st.sampled_from(
        ["/u/{user}", "/u-{user}/x/{user}", "/{user}~{user}", "/%41%20/{user}", "/a/.x/{user}", "/{user}?a=1"]
    ),
    user=st.text(alphabet="aZ09-_~", min_size=1, max_size=8),
)
def test_plain_values_of_the_path_fill_a_format_as_they_fill_the_template(text: str, user: str) -> None:
    filled = target(text)
    rendered = filled.render(values(path={"user": user}))
    assert not filled.plain or (filled.plain % {"user": user}, ()) == rendered
    assert bool(filled.plain) is not any(mark in text for mark in ("%", "/.", "?"))


@pytest.mark.parametrize("text", ["/{query.q}", "/{header.x-app}", "/{cart.id}", "/{user}/{query.q}"])
def test_a_target_that_takes_other_values_has_no_format(text: str) -> None:
    assert not target(text).plain


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
