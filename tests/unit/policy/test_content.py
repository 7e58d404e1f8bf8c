"""The content of a read: what of it is in the key, in which form it is sent, and what bypasses the cache."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.http.headers import Headers
from gateway.policy.content import NOT_ITS_TYPE, TOO_LARGE, Content, ContentRules, media_type
from gateway.policy.identity_key import UNKEYED, IdentityKey
from gateway.policy.keys import Keying, plan

RULES = ContentRules(frozenset(("QUERY",)), ("application/json", "text/*"), 100)
NORMAL = ContentRules(frozenset(("QUERY",)), ("*/*",), 100, normalise=True)
JSON: Headers = [(b"content-type", b"application/json")]
SOME = Content("QUERY", ((b"content-type", b"a/b"),), b"secret text")


@pytest.mark.parametrize(
    ("headers", "refusal"),
    [
        (JSON, None),
        ([(b"content-type", b"Application/JSON;charset=utf-8")], None),
        ([(b"content-type", b"text/csv")], None),
        ([(b"content-type", b"text")], NOT_ITS_TYPE),
        ([(b"content-type", b"application/jsonl")], NOT_ITS_TYPE),
        ([(b"content-type", b"")], NOT_ITS_TYPE),
        ([], NOT_ITS_TYPE),
        ([*JSON, *JSON], NOT_ITS_TYPE),
        ([*JSON, (b"content-length", b"100")], None),
        ([*JSON, (b"content-length", b"101")], TOO_LARGE),
    ],
)
def test_the_head_says_whether_the_content_can_be_in_the_key(headers: Headers, refusal: str | None) -> None:
    assert RULES.refusal(headers) == refusal


def test_the_line_of_the_key_has_a_digest_and_nothing_of_the_content() -> None:
    line = SOME.line(UNKEYED)
    assert line.startswith("\n:content:QUERY:")
    assert len(line) == len("\n:content:QUERY:") + 32
    assert line != SOME.line(IdentityKey(b"k" * 32))


def test_each_part_of_the_content_changes_the_line() -> None:
    others = [
        Content("POST", SOME.fields, SOME.body),
        Content("QUERY", SOME.fields, SOME.body + b" "),
        Content("QUERY", ((b"content-type", b"a/c"),), SOME.body),
        Content("QUERY", (*SOME.fields, (b"content-language", b"de")), SOME.body),
        Content("QUERY", (), b"content-type:a/b\n\n" + SOME.body),
        Content("QUERY", (), SOME.body),
    ]
    assert len({each.line(UNKEYED) for each in (SOME, *others)}) == 7


def test_normalised_content_keeps_its_language() -> None:
    german = NORMAL.content("QUERY", [*JSON, (b"content-language", b"de")], b'{"q": "hut"}')
    assert german.fields == (*JSON, (b"content-language", b"de"))
    assert german.body == b'{"q":"hut"}'
    assert german != NORMAL.content("QUERY", JSON, b'{"q": "hut"}')


@pytest.mark.parametrize("vary", [("accept",), ("content-type",), None])
def test_the_upstream_gets_the_fields_of_the_content_that_is_in_the_key(vary: tuple[str, ...] | None) -> None:
    """What the upstream sees of a request is a function of its key: its own fields of the content are not sent."""
    content = Content("QUERY", ((b"content-type", b"application/json"),), b"{}")
    one = plan(Keying(vary), "api", "/s", [(b"content-type", b"application/json; x=1")], content=content)
    two = plan(Keying(vary), "api", "/s", [(b"content-encoding", b"gzip")], content=content)
    assert (one.base, one.forward) == (two.base, two.forward)
    assert one.forward == content.fields
    assert one.primary == "api\n/s"
    assert one.bypass is None


def test_with_a_method_of_the_upstream_s_the_client_s_is_not_in_the_key() -> None:
    rules = ContentRules(frozenset(("QUERY", "POST")), ("*/*",), 100, sent_as="POST")
    assert rules.content("QUERY", JSON, b"1") == rules.content("POST", JSON, b"1")
    assert RULES.content("QUERY", JSON, b"1") != RULES.content("POST", JSON, b"1")


@pytest.mark.parametrize("kind", ["application/json", "application/JSON ; charset=UTF-8", "application/geo+json"])
def test_normalised_content_has_one_form_and_its_bare_type(kind: str) -> None:
    headers = [(b"content-type", kind.encode())]
    found = NORMAL.content("QUERY", headers, b' {"b": [1, 2.50], "a": "\\u00e4"} ')
    assert (found.fields, found.body) == (
        ((b"content-type", media_type(headers).encode()),),
        '{"a":"ä","b":[1,2.50]}'.encode(),
    )


@pytest.mark.parametrize(
    "field",
    [
        (b"cache-control", b"no-transform"),
        (b"content-encoding", b"gzip"),
        (b"digest", b"x"),
        (b"signature", b"x"),
        (b"content-type", b"application/json; charset=latin-1"),
        (b"content-type", b"application/json; charset=utf-8; v=1"),
        (b"content-type", b"text/plain"),
    ],
)
def test_content_that_may_not_be_changed_keeps_its_bytes(field: tuple[bytes, bytes]) -> None:
    headers = [pair for pair in JSON if pair[0] != field[0]] + [field]
    assert NORMAL.content("QUERY", headers, b'{"b": 1, "a": 2}').body == b'{"b": 1, "a": 2}'


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(values, st.integers())
def test_each_spelling_of_a_value_has_the_same_key_and_the_same_value(value: Any, seed: int) -> None:
    order = random.Random(seed)

    def shuffled(each: Any) -> Any:
        if isinstance(each, dict):
            return {name: shuffled(each[name]) for name in order.sample(sorted(each), len(each))}
        return [shuffled(item) for item in each] if isinstance(each, list) else each

    texts = [json.dumps(shuffled(value), indent=order.choice([None, 1]), ensure_ascii=order.random() < 0.5)]
    texts.append(json.dumps(value))
    found = {NORMAL.content("QUERY", JSON, text.encode()) for text in texts}
    assert len(found) == 1
    assert json.loads(found.pop().body) == value
