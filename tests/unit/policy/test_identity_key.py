"""identity_key: the digests in keys, which nobody without the secret can make."""

from __future__ import annotations

import re

import pytest

from gateway.policy.identity_key import KEY_BYTES, UNKEYED, IdentityKey, ShownKey, derived

A, B = (letter * KEY_BYTES for letter in (b"a", b"b"))


def test_a_digest_depends_on_the_secret_the_field_and_the_value() -> None:
    digests = {
        IdentityKey(secret).of_field(name, value)
        for secret in (A, B)
        for name in ("authorization", "x-api-key")
        for value in ("1", "2", "\xe9")
    }
    assert len(digests) == 12
    assert all(re.fullmatch("[0-9a-f]{32}", digest) for digest in digests)
    assert IdentityKey(A).of_field("authorization", "1") == IdentityKey(A).of_field("authorization", "1")


@pytest.mark.parametrize("name", ["accept", "accept-language", "origin", ":host"])
def test_a_field_that_content_is_negotiated_by_stands_as_it_is(name: str) -> None:
    assert IdentityKey(A).of_field(name, "de") == "de"


def test_a_key_is_shown_with_values_but_for_those_that_say_who_asks() -> None:
    shown = ShownKey(lambda name: name == "authorization")
    assert [shown.of_field(name, "1") for name in ("authorization", "x-tenant")] == ["***", "1"]
    assert shown.digest("?", "api_key=1") == "***"
    assert shown.digest_bytes("?", b"api_key=1") == "***"


def test_a_secret_of_the_configuration_makes_one_key_in_all_workers_and_is_not_that_key() -> None:
    assert derived(b"0123456789abcdef") == derived(b"0123456789abcdef") != derived(b"0123456789abcdeg")
    assert len(derived(b"x" * 100)) == KEY_BYTES
    assert b"0123456789abcdef" not in derived(b"0123456789abcdef")


def test_a_secret_is_not_shown() -> None:
    assert repr(IdentityKey(A)) == "<IdentityKey>"


def test_a_digest_of_text_beyond_latin_1_is_one_too() -> None:
    assert len({UNKEYED.digest("?", text) for text in ("\u20ac", "\\u20ac1", "\ud800")}) == 3


def test_a_secret_that_is_replaced_makes_other_digests_from_then_on() -> None:
    key = IdentityKey(A)
    before = key.of_field("authorization", "1")
    key.secret = B
    assert key.of_field("authorization", "1") == IdentityKey(B).of_field("authorization", "1") != before
