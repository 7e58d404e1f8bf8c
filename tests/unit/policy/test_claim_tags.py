"""Tags that name claims: their values are in no stored name, and a purge finds them."""

from __future__ import annotations

import pytest

from gateway.policy.claim_tags import TagNames, claims_of, hidden, render_tags
from gateway.policy.identity_key import IdentityKey

KEY = IdentityKey(b"k" * 32)


def test_a_tag_names_its_claims() -> None:
    assert claims_of("user:{claim.sub}:{id}:{claim.address.country}") == ("sub", "address.country")
    assert claims_of("product:{id}") == ()


def test_a_personal_value_is_in_a_digest() -> None:
    (tag,) = render_tags(["user:{claim.sub}"], {}, {"sub": "alice"}, KEY)
    assert tag.startswith("user:~")
    assert "alice" not in tag
    assert render_tags(["user:{claim.sub}"], {}, {"sub": "alice"}, IdentityKey(b"o" * 32)) != (tag,)
    assert render_tags(["user:{claim.sub}"], {}, {"sub": "berta"}, KEY) != (tag,)


def test_other_tags_are_in_clear_text_and_one_without_its_claim_is_left_out() -> None:
    tags = render_tags(["product:{id}", "user:{claim.sub}", "{unknown}"], {"id": "7"}, {}, KEY)
    assert tags == ("product:7", "{unknown}")


def test_a_value_is_not_read_as_a_template() -> None:
    (one,) = render_tags(["{id}:{claim.sub}"], {"id": "{claim.sub}"}, {"sub": "{id}"}, KEY)
    assert one == hidden("{id}", "{claim.sub}:{id}", KEY)


@pytest.mark.parametrize("claim", ["alice", "a:b", "ä", "[1]", "a b"])
def test_a_purge_of_the_readable_name_finds_the_stored_one(claim: str) -> None:
    templates = ["user:{claim.sub}", "order:{id}:{claim.sub}", "product:{id}"]
    stored = render_tags(templates, {"id": "7"}, {"sub": claim}, KEY)
    names = TagNames(templates)
    assert names.stored([f"user:{claim}", f"order:7:{claim}", "product:7"], KEY) == list(stored)


def test_a_name_that_is_in_clear_text_elsewhere_is_purged_there_too() -> None:
    names = TagNames(["user:{claim.sub}", "user:{id}"])
    assert names.stored(["user:7"], KEY) == [hidden("user:{", "user:7", KEY), "user:7"]
    assert TagNames(["user:{id}"]).stored(["user:7"], KEY) == ["user:7"]
