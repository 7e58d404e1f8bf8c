"""Partitions: two principals share a response if and only if all that the route depends on is the same."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from gateway.identity.principal import MissingClaim, Principal, canonical, is_of_one_user, partition
from gateway.policy.identity_key import IdentityKey

KEY = IdentityKey(b"k" * 32)
VALUES = st.recursive(
    st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def principal(claims: dict[str, Any], issuer: str = "https://id.example.com") -> Principal:
    return Principal(provider="shop", issuer=issuer, claims=claims)


def same(one: Any, other: Any) -> bool:
    """Equality that tells 1 from True, which Python doesn't."""
    if type(one) is not type(other):
        return False
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    return bool(one == other)


@given(one=VALUES, other=VALUES)
@example(one=1, other="1")
@example(one=1, other=True)
@example(one="a", other=["a"])
@example(one="é", other="e\u0301")
@example(one="\ud800", other="\\ud800")
@example(one=2**64 + 1, other=2**64)
@example(one={"a": 1, "b": 2}, other={"b": 2, "a": 1})
def test_partitions_are_equal_if_and_only_if_the_claims_are(one: Any, other: Any) -> None:
    partitions = {partition(principal({"sub": value}), ("sub",), KEY) for value in (one, other)}
    assert (len(partitions) == 1) == same(one, other)


@given(st.lists(st.text(max_size=6), min_size=2, max_size=2), st.lists(st.text(max_size=6), min_size=2, max_size=2))
@example(["a", "b,1:c"], ["a,1:b", "c"])
@example(['a"', ""], ["a", '"'])
def test_separators_in_claims_move_nothing_from_one_to_the_next(one: list[str], other: list[str]) -> None:
    assume(one != other)
    first, second = (principal({"sub": values[0], "tenant": values[1]}) for values in (one, other))
    assert partition(first, ("sub", "tenant"), KEY) != partition(second, ("sub", "tenant"), KEY)


def test_a_claim_of_another_name_or_issuer_is_another_partition() -> None:
    anna = principal({"sub": "anna", "plan": "anna"})
    assert partition(anna, ("sub",), KEY) != partition(anna, ("plan",), KEY)
    elsewhere = principal({"sub": "anna"}, issuer="https://other.example.com")
    assert partition(anna, ("sub",), KEY) != partition(elsewhere, ("sub",), KEY)


def test_a_refreshed_token_and_the_order_of_names_change_nothing() -> None:
    first = principal({"sub": "anna", "plan": "gold", "jti": "1", "exp": 1})
    second = principal({"plan": "gold", "sub": "anna", "jti": "2", "exp": 2})
    assert partition(first, ("sub", "plan"), KEY) == partition(second, ("plan", "sub"), KEY)


def test_without_claims_all_who_are_let_in_share_a_response() -> None:
    assert partition(principal({"sub": "anna"}), (), KEY) == ""


def test_a_partition_contains_no_claim_and_depends_on_the_secret() -> None:
    anna = principal({"sub": "anna"})
    found = partition(anna, ("sub",), KEY)
    assert len(found) == 32
    assert int(found, 16)
    assert found != partition(anna, ("sub",), IdentityKey(b"j" * 32))


@pytest.mark.parametrize("claims", [{}, {"sub": None}, {"Sub": "anna"}])
def test_a_claim_that_is_missing_is_no_partition_of_its_own(claims: dict[str, Any]) -> None:
    with pytest.raises(MissingClaim) as missing:
        partition(principal(claims), ("sub",), KEY)
    assert missing.value.name == "sub"


@pytest.mark.parametrize("value", [1.5, float("inf"), [1.0]])
def test_a_number_with_a_fraction_selects_nothing(value: Any) -> None:
    with pytest.raises(ValueError, match="fraction"):
        canonical(value)


def test_a_claim_that_is_nested_too_deeply_is_refused() -> None:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(ValueError, match="nested"):
        canonical(value)


def test_a_dot_goes_into_an_object_unless_a_claim_has_the_whole_name() -> None:
    found = principal({"realm": {"role": "a"}, "https://example.com/plan": "gold", "x.y": 1, "x": {"y": 2}})
    assert [found.claim(name) for name in ("realm.role", "https://example.com/plan", "x.y")] == ["a", "gold", 1]
    for name in ("realm.other", "realm.role.deeper", "none.at.all"):
        with pytest.raises(MissingClaim):
            found.claim(name)


def test_only_the_subject_names_one_user() -> None:
    assert is_of_one_user(("plan", "sub"))
    assert not is_of_one_user(("plan", "tenant"))
    assert (principal({"sub": "anna"}).subject, principal({"sub": 7}).subject) == ("anna", None)
