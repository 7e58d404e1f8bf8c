"""Which conditional requests are made, what a 304 to them changes, and whether a client has a response already."""

from __future__ import annotations

import pytest

from gateway.policy.entry import Entry, Life
from gateway.policy.storability import ReceivedResponse
from gateway.policy.validation import (
    confirms,
    fields_of_304,
    freshened,
    is_own,
    not_modified,
    own_tag,
    proves,
    same_representation,
    selection_changes,
    validators,
)

BORN = 1_800_000_000.0  # Fri, 15 Jan 2027 08:00:00 GMT
THEN, BEFORE = b"Fri, 15 Jan 2027 08:00:00 GMT", b"Thu, 14 Jan 2027 08:00:00 GMT"
Fields = list[tuple[bytes, bytes]]


def entry(*headers: tuple[bytes, bytes], body: bytes = b"body", vary: tuple[str, ...] = ()) -> Entry:
    return Entry(
        key="k",
        primary="p",
        born=BORN,
        started=BORN,
        initial_age=0.0,
        status=200,
        headers=headers,
        body=body,
        life=Life(),
        vary=vary,
    )


def received(*headers: tuple[bytes, bytes], status: int = 304) -> ReceivedResponse:
    return ReceivedResponse(status, list(headers), BORN, BORN)


def etag(value: bytes) -> tuple[bytes, bytes]:
    return (b"etag", value)


# --- conditional requests ----------------------------------------------------------------------------------


def test_a_generated_tag_is_strong_the_bodys_own_and_recognised_even_if_weakened() -> None:
    assert own_tag(b"a") == own_tag(b"a") != own_tag(b"b")
    assert is_own(own_tag(b"a"))
    assert is_own(b"W/" + own_tag(b"a"))
    assert not is_own(b'"gw-1"')


def test_an_entry_is_validated_by_its_tag_and_date_but_never_by_a_generated_tag() -> None:
    stored = entry(etag(b'"v1"'), (b"last-modified", THEN))
    assert validators(stored) == [(b"if-none-match", b'"v1"'), (b"if-modified-since", THEN)]
    assert validators(entry(etag(own_tag(b"body")))) == []
    assert validators(entry(etag(b'"gw-1"'))) == [(b"if-none-match", b'"gw-1"')], "an upstream's own, of a like form"


# --- what a 304 changes ------------------------------------------------------------------------------------


def test_a_304_replaces_what_it_names_and_leaves_what_describes_the_stored_bytes() -> None:
    stored = entry(etag(b'"v1"'), (b"x-kept", b"1"), (b"x-old", b"1"), (b"content-encoding", b"gzip"))
    answer = received(
        etag(b'"v2"'),
        (b"x-old", b"2"),
        (b"content-encoding", b"br"),
        (b"set-cookie", b"a=1"),
        (b"connection", b"x-hop"),
        (b"x-hop", b"1"),
    )
    assert freshened(stored, answer) == (
        etag(b'"v1"'),
        (b"x-kept", b"1"),
        (b"content-encoding", b"gzip"),
        (b"x-old", b"2"),
    )


@pytest.mark.parametrize(
    ("known", "told", "applies"),
    [
        (None, b'"v1"', True),
        (b'"v1"', None, True),
        (b'"v1"', b'"v1"', True),
        (b'"v1"', b'"v2"', False),
        (b'W/"v1"', b'"v1"', False),
        (b'"v1"', b'W/"v1"', True),
        (b'"v1"', b'W/"v2"', False),
    ],
)
def test_a_304_applies_if_no_strong_validator_differs(known: bytes | None, told: bytes | None, applies: bool) -> None:
    stored = entry(*([etag(known)] if known else []))
    assert confirms(stored, received(*([etag(told)] if told else []))) is applies


@pytest.mark.parametrize(
    ("known", "told", "status", "proof"),
    [
        (None, b'"v1"', 304, False),
        (b'W/"v1"', b'W/"v1"', 304, False),
        (own_tag(b"x"), own_tag(b"x"), 304, False),
        (b'"v1"', b'"v1"', 200, True),
        (b'"v1"', b'"v2"', 304, False),
        (b'"v1"', None, 304, True),
        (b'"v1"', None, 200, False),
    ],
)
def test_one_strong_tag_proves_that_the_stored_bytes_are_right(
    known: bytes | None, told: bytes | None, status: int, proof: bool
) -> None:
    stored = entry(*([etag(known)] if known else []))
    assert proves(stored, received(*([etag(told)] if told else []), status=status)) is proof


@pytest.mark.parametrize(
    ("vary", "follows_origin", "changes"),
    [
        (b"*", False, True),
        (b"accept", True, False),
        (b"accept-language", True, True),
        (b"accept-language", False, False),
    ],
)
def test_a_selection_changes_with_vary_where_the_route_follows_the_origin(
    vary: bytes, follows_origin: bool, changes: bool
) -> None:
    stored = entry(vary=("accept",))
    assert selection_changes(stored, [(b"vary", vary)], follows_origin=follows_origin) is changes


@pytest.mark.parametrize(
    ("told", "same"),
    [
        ([], True),
        ([etag(b'"v1"'), (b"last-modified", THEN), (b"content-length", b"4")], True),
        ([etag(b'"v2"')], False),
        ([(b"last-modified", BEFORE)], False),
        ([(b"content-length", b"5")], False),
    ],
)
def test_a_head_response_matches_where_validators_and_length_agree(told: Fields, same: bool) -> None:
    stored = entry(etag(b'"v1"'), (b"last-modified", THEN))
    assert same_representation(stored, received(*told, status=200)) is same


# --- preconditions of clients ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_fields", "response_fields", "has_it"),
    [
        ([], [etag(b'"v1"')], False),
        ([(b"if-none-match", b" * ")], [], True),
        ([(b"if-none-match", b'"a", W/"v1"')], [etag(b'"v1"')], True),
        ([(b"if-none-match", b'"v1"')], [etag(b'W/"v1"')], True),
        ([(b"if-none-match", b'"a"')], [etag(b'"v1"')], False),
        ([(b"if-none-match", b'"v1"')], [], False),
        ([(b"if-none-match", b'"a"'), (b"if-modified-since", THEN)], [(b"last-modified", BEFORE)], False),
        ([(b"if-modified-since", b"nonsense")], [(b"last-modified", BEFORE)], False),
        ([(b"if-modified-since", THEN)], [(b"last-modified", THEN)], True),
        ([(b"if-modified-since", BEFORE)], [(b"last-modified", THEN)], False),
        ([(b"if-modified-since", THEN)], [(b"date", BEFORE)], True),
        ([(b"if-modified-since", THEN)], [], False),
    ],
)
def test_a_client_has_the_response_where_its_precondition_says_so(
    request_fields: Fields, response_fields: Fields, has_it: bool
) -> None:
    assert not_modified(request_fields, response_fields, BORN) is has_it


def test_a_304_has_no_fields_of_content_but_its_location_and_sets_no_cookie() -> None:
    fields = [etag(b'"v1"'), (b"content-type", b"a/b"), (b"content-location", b"/a"), (b"set-cookie", b"a=1")]
    assert fields_of_304([*fields, (b"x-own", b"1")]) == [etag(b'"v1"'), (b"content-location", b"/a"), (b"x-own", b"1")]
