"""structured: a dictionary of structured fields, or nothing at all."""

from __future__ import annotations

import pytest

from gateway.http.headers import dictionary


@pytest.mark.parametrize(
    ("text", "members"),
    [
        ("", {}),
        ("  a=1  ", {"a": "1"}),
        ("a, b", {"a": "?1", "b": "?1"}),
        ("a=1;x;y=2,\tb=?0 , c", {"a": "1", "b": "?0", "c": "?1"}),
        ("a=1, a=2", {"a": "2"}),
        ('a="q, \\" b", c=1.5', {"a": '"q, \\" b"', "c": "1.5"}),
        ("a=(1 2;x), b=:YQ==:, c=@17, d=tok/en", {"a": "(1 2;x)", "b": ":YQ==:", "c": "@17", "d": "tok/en"}),
    ],
)
def test_the_members_of_a_dictionary_are_read_as_they_are_written(text: str, members: dict[str, str]) -> None:
    assert dictionary(text) == members


@pytest.mark.parametrize("text", ["A=1", "a=", "a=1,", "a=1 b=2", "a=1,,b", 'a="never ends', "a=1.", "=1", "a=(1 2"])
def test_what_breaks_the_syntax_anywhere_is_none_at_all(text: str) -> None:
    assert dictionary(text) is None
