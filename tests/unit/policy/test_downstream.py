"""downstream: the fields that tell the caches behind the gateway what selects a response, and whom it is for."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.http.field_changes import FieldChanges
from gateway.policy.downstream import NOTHING, Downstream, for_users, with_private
from gateway.policy.keys import Keying

Fields = list[tuple[bytes, bytes]]


# --- what a route adds -------------------------------------------------------------------------------------


def told(keying: Keying, *own: tuple[bytes, bytes], selecting: tuple[str, ...] = (), made: bool = False) -> Fields:
    return Downstream.of(keying, made=made).told(list(own), selecting)


AGE = (b"cache-control", b"max-age=5")
TYPE = (b"content-type", b"text/plain")
TENANT = Keying(vary=("x-tenant",), authorization="ignore", cookies=())
FOLLOWING = Keying(vary=None, authorization="ignore", cookies=())


@pytest.mark.parametrize(
    ("keying", "vary", "private"),
    [
        (TENANT, "x-tenant", False),
        (Keying(vary=(), authorization="ignore", cookies=()), "", False),
        (Keying(vary=("x-tenant",)), "authorization, cookie, x-tenant", False),
        (Keying(vary=(), authorization="key", cookies=()), "authorization", True),
        (Keying(vary=(), authorization="ignore", cookies=("sid",)), "cookie", True),
        (Keying(vary=("x-api-key",), authorization="ignore", cookies=()), "x-api-key", True),
        (Keying(("x-who",), "ignore", (), identities=frozenset({"x-who"})), "x-who", True),
        (Keying((), cookies=(), credentials=("authorization",)), "authorization", True),
        (
            Keying((), cookies=(), credentials=("x-token", "cookie:t"), shared=True),
            "authorization, cookie, x-token",
            False,
        ),
        (FOLLOWING, "", False),
        (Keying(vary=None), "", False),
        (Keying(vary=None, authorization="key", cookies=("sid",)), "authorization, cookie", True),
    ],
)
def test_a_key_is_told_field_by_field_and_is_private_where_it_says_who_asks(
    keying: Keying, vary: str, private: bool
) -> None:
    expected = [(b"cache-control", b"private, max-age=5" if private else b"max-age=5")]
    expected += [(b"vary", vary.encode())] if vary else []
    assert told(keying, AGE) == expected


def test_what_an_upstream_varies_on_stays_before_what_the_key_adds() -> None:
    assert told(TENANT, AGE, (b"vary", b"Accept"), (b"vary", b"X-B")) == [AGE, (b"vary", b"Accept, X-B, x-tenant")]
    assert told(TENANT, AGE, (b"vary", b"X-Tenant")) == [AGE, (b"vary", b"X-Tenant")]
    assert told(TENANT, AGE, (b"vary", b"*")) == [AGE, (b"vary", b"*")]


def test_what_nobody_may_store_needs_no_more() -> None:
    assert told(TENANT, (b"cache-control", b"no-store")) == [(b"cache-control", b"no-store")]
    assert NOTHING.told([AGE]) == [AGE]


def test_fields_that_a_stored_response_varies_on_are_told_by_the_fields_they_are_of() -> None:
    selecting = ("cookie:sid", ":host", ":scheme", "x-b")
    assert told(FOLLOWING, AGE, selecting=selecting) == [
        (b"cache-control", b"private, max-age=5"),
        (b"vary", b"cookie, x-b"),
    ]


def test_an_upstream_that_varies_on_an_identity_says_itself_whether_that_is_private() -> None:
    public = (b"cache-control", b"public, max-age=5")
    own = (b"vary", b"Authorization")
    assert told(FOLLOWING, public, own, selecting=("authorization",)) == [public, own]
    assert told(TENANT, AGE, own, selecting=("authorization",))[0] == (b"cache-control", b"private, max-age=5")
    assert told(TENANT, AGE, own)[0] == AGE


def test_what_passed_by_the_cache_is_private_where_the_route_decides_the_life() -> None:
    said = Downstream.of(Keying(vary=("x-tenant",)), made=False).told([AGE], passed=True)
    assert said[0] == (b"cache-control", b"private, max-age=5")
    assert Downstream.of(Keying(vary=None), made=False).told([AGE], passed=True) == [AGE]


def test_of_a_joined_answer_its_own_vary_counts_as_it_is_that_of_its_parts() -> None:
    whole = [AGE, (b"vary", b"authorization")]
    assert told(TENANT, *whole, made=True)[0] == (b"cache-control", b"private, max-age=5")
    assert told(TENANT, AGE, (b"vary", b"accept"), made=True)[0] == AGE
    nobodys = Keying(vary=(), authorization="ignore", cookies=())
    assert told(nobodys, *whole, made=True)[0] == (b"cache-control", b"private, max-age=5")
    assert told(nobodys, AGE, TYPE, made=True) == told(nobodys, AGE, TYPE) == [AGE, TYPE]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([], [(b"cache-control", b"private")]),
        ([AGE], [(b"cache-control", b"private, max-age=5")]),
        ([(b"cache-control", b"public, max-age=5")], [(b"cache-control", b"private, max-age=5")]),
        ([(b"cache-control", b'private="set-cookie", max-age=5')], [(b"cache-control", b"private, max-age=5")]),
        ([(b"cache-control", b"public"), AGE], [(b"cache-control", b"private, max-age=5")]),
        ([AGE, (b"cdn-cache-control", b"max-age=9"), TYPE], [(b"cache-control", b"private, max-age=5"), TYPE]),
        ([(b"x-accel-expires", b"9"), AGE, (b"surrogate-control", b"a")], [(b"cache-control", b"private, max-age=5")]),
    ],
)  # fmt: skip
def test_private_answers_say_so_to_every_kind_of_cache(before: Fields, after: Fields) -> None:
    assert with_private(before) == after


def test_a_response_that_is_not_stored_tells_also_what_it_was_made_of() -> None:
    plain = Downstream.of(TENANT, made=False)
    told = plain.varying(["accept", ":host", "cookie:theme"], private=False)
    assert (told.vary, told.is_private) == (("accept", "cookie", "x-tenant"), True), "a cookie identifies the client"
    assert plain.varying(["accept"], private=False).told([AGE]) == [AGE, (b"vary", b"accept, x-tenant")]
    assert plain.varying([], private=True).told([AGE])[0] == (b"cache-control", b"private, max-age=5")
    assert plain.vary == ("x-tenant",), "the route's own fields stay"


# --- changes by settings -----------------------------------------------------------------------------------

OWN = Keying(vary=("x-tenant",), authorization="ignore", cookies=())
NOBODYS = Keying(vary=(), authorization="ignore", cookies=())


def changed(
    *headers: tuple[bytes, bytes], put: dict[str, str] | None = None, removed: tuple[str, ...] = (), **more: Any
) -> dict[bytes, bytes]:
    changes = FieldChanges.of(put or {}, {}, removed)
    keying = more.pop("keying", NOBODYS)
    return dict(Downstream.of(keying, made=False, changes=changes).told(list(headers), **more))


LIFE = (b"cache-control", b"public, max-age=60")


def test_a_life_can_be_set_and_taken_away() -> None:
    assert changed(LIFE, put={"cache-control": "max-age=5"})[b"cache-control"] == b"max-age=5"
    assert b"cache-control" not in changed(LIFE, removed=("cache-control",))


@pytest.mark.parametrize("forbids", [b"no-store", b"private, max-age=9", b"no-cache", b"max-age=9, no-store"])
def test_what_forbids_to_store_or_share_stays(forbids: bytes) -> None:
    for given in ({"put": {"cache-control": "public, max-age=60"}}, {"removed": ("cache-control",)}):
        kept = changed((b"cache-control", forbids), **given)[b"cache-control"]  # type: ignore[arg-type]
        word = next(word for word in (b"no-store", b"no-cache", b"private") if word in forbids)
        assert word in kept
        assert b"public" not in kept
    relaxed = changed((b"cache-control", forbids), put={"cdn-cache-control": "max-age=60", "expires": "0"})
    assert not {b"cdn-cache-control", b"expires"} & relaxed.keys()


def test_private_is_decided_after_the_changes() -> None:
    keyed = Keying(vary=(), authorization="key", cookies=())
    fields = changed(LIFE, put={"cache-control": "public, max-age=60"}, keying=keyed)
    assert fields[b"cache-control"] == b"private, max-age=60"


def test_vary_keeps_what_selects_the_answer() -> None:
    given = (b"vary", b"x-junk, accept-language")
    selecting = ("accept-language",)
    stored = changed(LIFE, given, removed=("vary",), keying=OWN, selecting=selecting)
    assert stored[b"vary"] == b"x-tenant, accept-language"
    passed = changed(LIFE, given, removed=("vary",), keying=OWN, stored=False)
    assert passed[b"vary"] == b"x-junk, accept-language, x-tenant"
    assert changed(LIFE, (b"vary", b"*"), removed=("vary",))[b"vary"] == b"*"
    made = (b"vary", b"Origin, x-junk, Accept-Encoding")
    assert changed(LIFE, made, removed=("vary",))[b"vary"] == b"origin, accept-encoding"
    assert changed(LIFE, given, put={"vary": "x-more"}, keying=OWN)[b"vary"] == b"x-more, x-tenant"


def test_an_interim_response_is_without_the_fields_that_final_ones_lose() -> None:
    changes = FieldChanges.of({"x-set": "1"}, {"x-added": ["1"]}, ["x-removed"])
    given = [(b"link", b"</a>"), (b"x-removed", b"1"), (b"x-set", b"0"), (b"x-added", b"0")]
    told = Downstream.of(NOBODYS, made=False, changes=changes)
    assert told.interim(given) == [(b"link", b"</a>"), (b"x-added", b"0")]
    assert Downstream.of(NOBODYS, made=False).interim(given) == given


@pytest.mark.parametrize(
    ("own", "control"),
    [
        ([], b"private"),
        ([AGE], b"private, max-age=5"),
        ([(b"cache-control", b"public, max-age=5")], b"public, max-age=5"),
    ],
)
def test_what_an_app_answers_a_user_is_private_unless_it_says_public(own: Fields, control: bytes) -> None:
    found = for_users(("x-api-key", "cookie:session")).told(own)
    assert sorted(found) == [(b"cache-control", control), (b"vary", b"cookie, x-api-key")]
