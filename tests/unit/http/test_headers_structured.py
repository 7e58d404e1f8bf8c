"""structured: a dictionary of structured fields, or nothing at all."""

from __future__ import annotations

from decimal import Decimal

import pytest
from http_sf import DisplayString

from gateway.http.headers import dictionary


@pytest.mark.parametrize(
    ("text", "members"),
    [
        ("", {}),
        ("  a=1  ", {"a": 1}),
        ("a, b", {"a": True, "b": True}),
        ("a=1;x;y=2,\tb=?0 , c", {"a": 1, "b": False, "c": True}),
        ("a=1, a=2", {"a": 2}),
        ('a="q, \\" b", c=1.5', {"a": 'q, " b', "c": Decimal("1.5")}),
        ("a=(1 2;x), b=:YQ==:", {"a": [(1, {}), (2, {"x": True})], "b": b"a"}),
        ('a=%"caf%c3%a9"', {"a": DisplayString("café")}),
    ],
)
def test_the_members_of_a_dictionary_are_read_as_their_types(text: str, members: dict[str, object]) -> None:
    assert dictionary(text) == members


@pytest.mark.parametrize(
    "text",
    [
        "A=1",
        "a=",
        "a=1,",
        "a=1 b=2",
        "a=1,,b",
        'a="never ends',
        "a=1.",
        "=1",
        "a=(1 2",
        'a=%"%ff"',
        "a=@999999999999999",
    ],
)
def test_what_breaks_the_syntax_anywhere_is_none_at_all(text: str) -> None:
    assert dictionary(text) is None
