"""merge: parts, what is configured for them, and the very bytes of the answer."""

from __future__ import annotations

import gzip
import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.aggregates.merge import (
    BodyCache,
    BodyTransform,
    Merge,
    MergePiece,
    ShapeRules,
    WrongType,
    decoded,
    joined,
    list_of,
    media_type,
)
from gateway.config.expressions import Expression
from gateway.config.part import PartConfig
from gateway.http.json_text import exactly, text_of

JSON = ((b"content-type", b"application/json"),)

PRODUCT = b'{"id":7,"name":"Teapot","seller":{"id":3,"town":"Ghent","vat":"BE1"},"tags":["a","b"]}'
CART = b'{"user":9,"items":[{"id":1,"price":{"cents":5,"cur":"EUR"}},{"id":2,"price":{"cents":7,"cur":"EUR"}}]}'


def shape_of(settings: dict[str, Any]) -> ShapeRules:
    config = PartConfig.model_validate({"upstream": "u", "path": "/", **settings})
    select = Expression(config.select) if config.select is not None else None
    return ShapeRules(select, tuple(config.allow), tuple(config.deny), tuple(config.rename.items()))


def answer(parts: list[tuple[str, bytes, dict[str, Any]]], merge: Merge = "shallow") -> bytes:
    """Each part with its name, body and configuration, through the steps that the gateway takes."""
    pieces = []
    for name, body, settings in parts:
        config = PartConfig.model_validate({"upstream": "u", "path": "/", **settings})
        text, value = decoded(body, JSON, config.decode)
        value = exactly(text, value)
        shape = shape_of(settings)
        if shape.changes:
            value = shape.apply(value)
            text = text_of(value)
        pieces.append(MergePiece(config.group_of(name), text, value))
    return joined(pieces, merge)


# name of the case, parts, merge, the answer
CASES: list[tuple[str, list[tuple[str, bytes, dict[str, Any]]], Merge, bytes]] = [
    ("no part", [], "shallow", b"{}"),
    ("one part", [("a", b'{"x":1}', {})], "shallow", b'{"a":{"x":1}}'),
    ("two parts in their order", [("b", b"1", {}), ("a", b"2", {})], "shallow", b'{"b":1,"a":2}'),
    ("bytes as they came", [("a", b'{ "x" : 1.50 }\n', {})], "shallow", b'{"a":{ "x" : 1.50 }\n}'),
    ("an empty object", [("a", b"{}", {})], "shallow", b'{"a":{}}'),
    ("a whole array", [("a", b"[1,2]", {})], "shallow", b'{"a":[1,2]}'),
    ("an empty array", [("a", b"[]", {})], "shallow", b'{"a":[]}'),
    ("a number", [("a", b"7", {})], "shallow", b'{"a":7}'),
    ("a string", [("a", '"ü"'.encode(), {})], "shallow", '{"a":"ü"}'.encode()),
    ("null", [("a", b"null", {})], "shallow", b'{"a":null}'),
    ("false", [("a", b"false", {})], "shallow", b'{"a":false}'),
    ("escapes untouched", [("a", b'"\\u00fc\\/"', {})], "shallow", b'{"a":"\\u00fc\\/"}'),
    ("a number too big for 64 bits, spliced", [("a", b"12345678901234567890123", {})], "shallow",
     b'{"a":12345678901234567890123}'),
    ("doubled keys, spliced", [("a", b'{"x":1,"x":2}', {})], "shallow", b'{"a":{"x":1,"x":2}}'),
    ("group renames the part", [("a", b"1", {"group": "first"})], "shallow", b'{"first":1}'),
    ("select a field", [("a", PRODUCT, {"select": "seller.town"})], "shallow", b'{"a":"Ghent"}'),
    ("select makes an object", [("a", PRODUCT, {"select": "{n: name, t: seller.town}"})], "shallow",
     b'{"a":{"n":"Teapot","t":"Ghent"}}'),
    ("select over a list", [("a", CART, {"select": "items[*].price.cents"})], "shallow", b'{"a":[5,7]}'),
    ("select with a filter", [("a", CART, {"select": "items[?id==`2`] | [0].id"})], "shallow", b'{"a":2}'),
    ("select of what is not there", [("a", PRODUCT, {"select": "nothing.here"})], "shallow", b'{"a":null}'),
    ("allow", [("a", PRODUCT, {"allow": ["id", "name"]})], "shallow", b'{"a":{"id":7,"name":"Teapot"}}'),
    ("allow keeps the part's order", [("a", PRODUCT, {"allow": ["name", "id"]})], "shallow",
     b'{"a":{"id":7,"name":"Teapot"}}'),
    ("allow a path", [("a", PRODUCT, {"allow": ["seller.town"]})], "shallow", b'{"a":{"seller":{"town":"Ghent"}}}'),
    ("allow through a list", [("a", CART, {"allow": ["items.price.cents"]})], "shallow",
     b'{"a":{"items":[{"price":{"cents":5}},{"price":{"cents":7}}]}}'),
    ("allow the whole of what a longer path names", [("a", PRODUCT, {"allow": ["seller", "seller.id"]})], "shallow",
     b'{"a":{"seller":{"id":3,"town":"Ghent","vat":"BE1"}}}'),
    ("allow what is not there", [("a", PRODUCT, {"allow": ["price"]})], "shallow", b'{"a":{}}'),
    ("allow below a scalar", [("a", PRODUCT, {"allow": ["name.first"]})], "shallow", b'{"a":{}}'),
    ("allow in a whole array", [("a", b'[{"x":1,"y":2},{"x":3}]', {"allow": ["x"]})], "shallow",
     b'{"a":[{"x":1},{"x":3}]}'),
    ("deny", [("a", PRODUCT, {"deny": ["seller", "tags"]})], "shallow", b'{"a":{"id":7,"name":"Teapot"}}'),
    ("deny a path", [("a", PRODUCT, {"deny": ["seller.vat", "seller.id", "tags", "id"]})], "shallow",
     b'{"a":{"name":"Teapot","seller":{"town":"Ghent"}}}'),
    ("deny through a list", [("a", CART, {"deny": ["items.price.cur", "user"]})], "shallow",
     b'{"a":{"items":[{"id":1,"price":{"cents":5}},{"id":2,"price":{"cents":7}}]}}'),
    ("deny what is not there", [("a", b'{"x":1}', {"deny": ["y.z"]})], "shallow", b'{"a":{"x":1}}'),
    ("rename in its place", [("a", b'{"x":1,"y":2}', {"rename": {"x": "z"}})], "shallow", b'{"a":{"z":1,"y":2}}'),
    ("rename at a path", [("a", PRODUCT, {"allow": ["seller.town"], "rename": {"seller.town": "city"}})], "shallow",
     b'{"a":{"seller":{"city":"Ghent"}}}'),
    ("rename through a list", [("a", CART, {"allow": ["items.id"], "rename": {"items.id": "sku"}})], "shallow",
     b'{"a":{"items":[{"sku":1},{"sku":2}]}}'),
    ("allow through a list leaves out what is no object",
     [("a", b'{"items":[7,{"id":1,"x":2}]}', {"allow": ["items.id"]})], "shallow", b'{"a":{"items":[{"id":1}]}}'),
    ("allow of what is no object shows nothing", [("a", b'"secret"', {"allow": ["id"]})], "shallow", b'{"a":null}'),
    ("deny below what is no object", [("a", b'{"seller":3,"x":1}', {"deny": ["seller.vat"]})], "shallow",
     b'{"a":{"seller":3,"x":1}}'),
    ("rename below what is no object", [("a", b'{"seller":3,"x":1}', {"rename": {"seller.town": "city"}})], "shallow",
     b'{"a":{"seller":3,"x":1}}'),
    ("rename over another key", [("a", b'{"x":1,"y":2}', {"rename": {"x": "y"}})], "shallow", b'{"a":{"y":1}}'),
    ("rename to itself", [("a", b'{"x":1}', {"rename": {"x": "x"}})], "shallow", b'{"a":{"x":1}}'),
    ("rename what is not there", [("a", b'{"x":1}', {"rename": {"q": "y"}})], "shallow", b'{"a":{"x":1}}'),
    ("select, deny, rename, group: in that order",
     [("a", PRODUCT, {"select": "seller", "deny": ["vat"], "rename": {"town": "city"}, "group": "shop"})], "shallow",
     b'{"shop":{"id":3,"city":"Ghent"}}'),
    ("text", [("a", b"say \"hi\"\n", {"decode": "text"})], "shallow", b'{"a":"say \\"hi\\"\\n"}'),
    ("xml", [("a", b"<r><x>1</x><x>2</x></r>", {"decode": "xml"})], "shallow", b'{"a":{"r":{"x":["1","2"]}}}'),
    ("xml, selected", [("a", b"<r><x k='v'>1</x></r>", {"decode": "xml", "select": "r.x"})], "shallow",
     b'{"a":{"@k":"v","#text":"1"}}'),
    ("root alone", [("a", b'{"x":1}', {"group": None})], "shallow", b'{"x":1}'),
    ("root and a group", [("a", b'{"x":1}', {"group": None}), ("b", b"2", {})], "shallow", b'{"x":1,"b":2}'),
    ("two at the root: the later wins, in the place of the first",
     [("a", b'{"x":1,"y":1}', {"group": None}), ("b", b'{"x":2,"z":2}', {"group": None})], "shallow",
     b'{"x":2,"y":1,"z":2}'),
    ("shallow replaces objects", [("a", b'{"o":{"p":1}}', {"group": None}), ("b", b'{"o":{"q":2}}', {"group": None})],
     "shallow", b'{"o":{"q":2}}'),
    ("deep merges objects", [("a", b'{"o":{"p":1,"r":1}}', {"group": None}),
                             ("b", b'{"o":{"q":2,"r":2}}', {"group": None})],
     "deep", b'{"o":{"p":1,"r":2,"q":2}}'),
    ("deep replaces arrays", [("a", b'{"l":[1]}', {"group": None}), ("b", b'{"l":[2]}', {"group": None})], "deep",
     b'{"l":[2]}'),
    ("concat joins arrays", [("a", b'{"l":[1]}', {"group": None}), ("b", b'{"l":[2]}', {"group": None})], "concat",
     b'{"l":[1,2]}'),
    ("concat joins arrays within objects",
     [("a", b'{"o":{"l":[1],"s":1}}', {"group": None}), ("b", b'{"o":{"l":[2],"s":2}}', {"group": None})], "concat",
     b'{"o":{"l":[1,2],"s":2}}'),
    ("numbers keep their digits through a merge",
     [("a", b'{"o":{"x":1.0}}', {"group": None}), ("b", b'{"o":{"y":18446744073709551617}}', {"group": None}),
      ("o", b'{"z":1e400}', {})], "deep", b'{"o":{"x":1.0,"y":18446744073709551617,"z":1e400}}'),
    ("concat of an array and a scalar: the later wins",
     [("a", b'{"l":[1]}', {"group": None}), ("b", b'{"l":2}', {"group": None})], "concat", b'{"l":2}'),
    ("deep into a group", [("a", b'{"x":1}', {}), ("b", b'{"a":{"y":2}}', {"group": None})], "deep",
     b'{"a":{"x":1,"y":2}}'),
    ("shallow over a group", [("a", b'{"x":1}', {}), ("b", b'{"a":{"y":2}}', {"group": None})], "shallow",
     b'{"a":{"y":2}}'),
    ("a group after the root: the later wins",
     [("b", b'{"a":{"y":2}}', {"group": None}), ("a", b'{"x":1}', {})], "shallow", b'{"a":{"x":1}}'),
    ("beside the root a group's bytes are as they came",
     [("a", b'{ "x": 1e2 }', {}), ("b", b'{"z":1}', {"group": None})], "shallow", b'{"a":{ "x": 1e2 },"z":1}'),
    ("four parts", [("a", b"1", {}), ("b", b"[2]", {}), ("c", b'{"d":3}', {}), ("e", b'"4"', {})], "shallow",
     b'{"a":1,"b":[2],"c":{"d":3},"e":"4"}'),
]  # fmt: skip


@pytest.mark.parametrize(("parts", "merge", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_parts_become_the_answer(parts: list[tuple[str, bytes, dict[str, Any]]], merge: Merge, expected: bytes) -> None:
    assert answer(parts, merge) == expected
    json.loads(expected)


WRONG: list[tuple[str, bytes, bytes, str, str]] = [
    ("cut JSON", b'{"x":', b"application/json", "auto", "not valid JSON"),
    ("white space", b" ", b"application/json", "auto", "not valid JSON"),
    ("two values", b"1 2", b"application/json", "auto", "not valid JSON"),
    ("NaN", b"[NaN]", b"application/json", "auto", "not valid JSON"),
    ("broken UTF-8", b'"\xff"', b"application/json", "auto", "n't text in utf-8"),
    ("nested deep and cut", b"[" * 5000 + b"]" * 4999, b"application/json", "auto", "not valid JSON"),
    ("XML in no charset", b"<?xml version='1.0' encoding='idna'?><r/>", b"text/xml", "xml", "charset idna"),
    ("XML said to be in none", b"<r/>", b"text/xml; charset=undefined", "xml", "charset undefined"),
    ("an image", b"\x89PNG", b"image/png", "auto", "image/png"),
    ("text in an unknown charset", b"x", b"text/plain; charset=klingon", "auto", "n't text in klingon"),
    ("text in another charset than it says", b"\xff", b"text/plain; charset=utf-8", "auto", "n't text in utf-8"),
    ("HTML where JSON was wanted", b"<p>", b"text/html", "json", "not valid JSON"),
    ("XML that ends early", b"<r>", b"text/xml", "xml", "XML"),
    ("XML with entities", b'<!DOCTYPE r [<!ENTITY a "b">]><r>&a;</r>', b"text/xml", "xml", "XML"),
]


@pytest.mark.parametrize(("body", "kind", "decode", "said"), [case[1:] for case in WRONG], ids=[c[0] for c in WRONG])
def test_what_is_of_the_wrong_type_is_said(body: bytes, kind: bytes, decode: Any, said: str) -> None:
    with pytest.raises(WrongType, match=said):
        decoded(body, ((b"content-type", kind),), decode)


@pytest.mark.parametrize("kind", [b"application/json", b"text/plain", b"text/xml", b"image/png", b""])
@pytest.mark.parametrize("decode", ["auto", "json", "text", "xml"])
def test_a_body_of_no_bytes_is_null_whatever_its_type(kind: bytes, decode: Any) -> None:
    headers = ((b"content-type", kind), (b"content-encoding", b"gzip"))
    assert decoded(b"", headers, decode) == (b"null", None)


def test_a_body_is_decompressed_up_to_its_limit() -> None:
    body = b'{"a": "' + b"x" * 1000 + b'"}'
    headers = (*JSON, (b"content-encoding", b"gzip"))
    assert decoded(gzip.compress(body), headers, "auto", len(body))[0] == body
    with pytest.raises(WrongType, match="larger than 1008 bytes, decompressed"):
        decoded(gzip.compress(body), headers, "auto", len(body) - 1)
    with pytest.raises(WrongType, match="not valid gzip"):
        decoded(body, headers, "auto", len(body))


def test_text_and_xml_are_read_in_their_charset_without_a_byte_order_mark() -> None:
    assert decoded(b"\xef\xbb\xbfhi", ((b"content-type", b"text/plain"),), "auto")[1] == "hi"
    assert decoded("hi".encode("utf-16"), ((b"content-type", b"text/plain; charset=utf-16"),), "auto")[1] == "hi"
    latin = ((b"content-type", b"text/xml; charset=iso-8859-1"),)
    assert decoded("<a>ü</a>".encode("latin-1"), latin, "xml")[1] == {"a": "ü"}
    assert decoded(b"\xef\xbb\xbf<a>1</a>", ((b"content-type", b"text/xml"),), "xml")[1] == {"a": "1"}


def test_a_body_without_a_type_is_taken_for_json() -> None:
    assert decoded(b"[1]", (), "auto") == (b"[1]", [1])


def test_text_is_read_in_its_charset() -> None:
    headers = ((b"content-type", b'Text/Plain; Charset="ISO-8859-1"'),)
    assert decoded(b"\xfc", headers, "auto")[1] == "ü"
    assert media_type(headers[0][1]) == ("text/plain", "iso-8859-1")


def test_a_media_type_may_have_other_parameters() -> None:
    assert media_type(b"text/plain; format=flowed; charset=utf-8") == ("text/plain", "utf-8")
    assert media_type(b"text/plain; format=flowed") == ("text/plain", "")


def test_prepared_bodies_are_bounded_in_bytes() -> None:
    bodies = BodyCache(capacity=4000)
    plain = BodyTransform("p", "auto", shape_of({}))
    for number in range(100):
        body = orjson.dumps({"n": number, "text": "x" * 500})
        assert bodies.prepared(plain, f"k{number}", (), body).text == body
    assert bodies.parsed == 100
    bodies.prepared(plain, "k99", (), body)
    assert bodies.parsed == 100
    bodies.prepared(plain, "k0", (), orjson.dumps({"n": 0, "text": "x" * 500}))
    assert bodies.parsed == 101


def test_a_part_that_is_no_object_is_not_merged_into_the_root() -> None:
    at_root = BodyTransform("p", "auto", shape_of({}), at_root=True)
    for _ in range(2):
        with pytest.raises(WrongType, match="only objects can be merged into the root"):
            BodyCache().prepared(at_root, "k", (), b"[1]")


def test_only_objects_merge_into_the_root() -> None:
    with pytest.raises(WrongType, match="isn't an object"):
        joined([MergePiece(None, b"[1]", [1])])


def test_a_select_that_can_not_be_applied_is_of_the_wrong_type() -> None:
    with pytest.raises(WrongType, match="select"):
        ShapeRules(select=Expression("length(name)")).apply({"name": 7})


@pytest.mark.parametrize("merge", ["deep", "concat"])
def test_of_values_too_deep_to_be_merged_the_later_stands_as_it_came(merge: Merge) -> None:
    deep = b'{"a":' * 600 + b"1" + b"}" * 600
    at_root = MergePiece(None, b"", {"k": {"a": {"b": 1}}})
    assert joined([at_root, MergePiece("k", deep)], merge) == b'{"k":' + deep + b"}"
    assert joined([MergePiece("k", deep), at_root], merge) == b'{"k":{"a":{"b":1}}}'


def test_a_list_of_texts() -> None:
    assert list_of([b"1", b'{"a":2}']) == b'[1,{"a":2}]'
    assert list_of([]) == b"[]"


numbers = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
indents = st.sampled_from([None, 0, 2])


@given(st.lists(st.tuples(st.text(min_size=1), values, indents, st.booleans()), max_size=6, unique_by=lambda p: p[0]))
def test_splicing_gives_the_json_that_parsing_and_joining_gives(
    parts: list[tuple[str, Any, int | None, bool]],
) -> None:
    bodies = [(name, json.dumps(value, indent=indent, ensure_ascii=a).encode()) for name, value, indent, a in parts]
    spliced = joined([MergePiece(name, body) for name, body in bodies])
    assert json.loads(spliced) == {name: json.loads(body) for name, body in bodies}
    assert orjson.loads(spliced) == {name: orjson.loads(body) for name, body in bodies}


@given(st.lists(st.tuples(st.text(min_size=1), st.dictionaries(st.text(), values, max_size=4)), max_size=4))
def test_a_group_beside_the_root_stands_there_as_when_all_is_parsed(parts: list[tuple[str, dict[str, Any]]]) -> None:
    pieces = [MergePiece("group", b'{"kept": 1}'), *(MergePiece(None, json.dumps(v).encode(), v) for _, v in parts)]
    expected: dict[str, Any] = {"group": {"kept": 1}}
    for _, value in parts:
        expected |= value
    assert orjson.loads(joined(pieces)) == expected
