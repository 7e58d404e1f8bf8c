"""JSON texts: what is read and written again is the same text; what is no JSON is refused with a reason."""

from __future__ import annotations

import encodings
import inspect
import json
import sys
from decimal import Decimal
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.aggregates.merge import ShapeRules
from gateway.config.expressions import Expression
from gateway.http.json_text import (
    DEEPEST,
    UNREAD,
    NotJson,
    Number,
    TooDeep,
    Verbatim,
    canonical,
    exact,
    is_json,
    is_unicode,
    json_text,
    number_of,
    text_in,
    text_of,
    value_of,
    well_formed,
)

number_texts = st.from_regex(r"-?(0|[1-9][0-9]{0,30})(\.[0-9]{1,25})?([eE][+-]?[0-9]{1,5})?", fullmatch=True)
# Those that no float or int of orjson's would be read from and written to as they are.
HARD = [
    "1.0",
    "1.50",
    "1e400",
    "-1e400",
    "1E5",
    "1e+5",
    "-0",
    "-0.0",
    "0.10",
    "18446744073709551616",
    "1e-7",
    "0.00001",
]
number_texts = number_texts | st.sampled_from([*HARD, "9223372036854775807", "3.14159265358979323846", "1e16", "1e-07"])
strings = st.text(max_size=8).map(lambda text: orjson.dumps(text).decode())
texts = st.recursive(
    number_texts | strings | st.sampled_from(["null", "true", "false"]),
    lambda inner: (
        st.lists(inner, max_size=4).map(lambda items: f"[{','.join(items)}]")
        | st.dictionaries(strings, inner, max_size=4).map(
            lambda members: "{" + ",".join(f"{name}:{item}" for name, item in members.items()) + "}"
        )
    ),
    max_leaves=12,
)


@given(texts)
def test_a_text_that_is_read_and_written_is_the_same_text(text: str) -> None:
    assert text_of(value_of(text.encode())) == text.encode()


@given(texts)
def test_the_text_of_a_body_in_utf_8_is_the_very_bytes_that_came(text: str) -> None:
    body = f" {text}\n".encode()
    assert json_text(body)[0] is body


@given(texts, st.sampled_from(["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]))
def test_a_body_in_another_form_of_unicode_is_the_same_text(text: str, encoding: str) -> None:
    marked = f"[{text},1]"
    assert json_text(marked.encode(encoding))[0] == marked.encode()


@given(number_texts, number_texts)
def test_numbers_are_compared_by_what_their_texts_say(one: str, other: str) -> None:
    a, b = number_of(one), number_of(other)
    exact_a, exact_b = Decimal(one), Decimal(other)
    if isinstance(a, Number) or isinstance(b, Number):
        assert (a == b, a != b) == (exact_a == exact_b, exact_a != exact_b)
        assert (a < b, a <= b) == (exact_a < exact_b, exact_a <= exact_b)
        assert (a > b, a >= b) == (exact_a > exact_b, exact_a >= exact_b)


@given(st.dictionaries(st.sampled_from("abcd"), texts, min_size=1))
def test_what_a_shape_leaves_is_as_it_came(members: dict[str, str]) -> None:
    body = "{" + ",".join(f'"{name}":{text}' for name, text in members.items()) + "}"
    first, text = next(iter(members.items()))
    value = value_of(body.encode())
    left = [f'"{name}":{each}' for name, each in members.items() if name != first]
    assert text_of(ShapeRules(select=Expression(first)).apply(value)) == text.encode()
    assert text_of(ShapeRules(deny=(first,)).apply(value)) == ("{" + ",".join(left) + "}").encode()
    assert text_of(ShapeRules(rename=((first, "e"),)).apply(value)) == body.replace(f'"{first}":', '"e":', 1).encode()


@pytest.mark.parametrize("escape", ["\\ud800", "\\udc00", "a\\uDBFFb", "\\ud800\\ud800"])
def test_a_surrogate_without_its_other_half_is_kept(escape: str) -> None:
    body = f'{{"{escape}":["{escape}",1.0]}}'.encode()
    assert json_text(body)[0] is not None
    written = text_of(value_of(body))
    assert json.loads(written) == json.loads(body)
    assert written.endswith(b",1.0]}")
    orjson.loads(well_formed(body))


@pytest.mark.parametrize(
    ("body", "charset", "said"),
    [
        (b"[NaN]", "", "not valid JSON"),
        (b"[-Infinity]", "", "not valid JSON"),
        (b"[01]", "", "not valid JSON"),
        (b"[1.]", "", "not valid JSON"),
        (b'["\n"]', "", "not valid JSON"),
        (b"[1] [2]", "", "not valid JSON"),
        (b'"\xff"', "", "n't text in utf-8"),
        (b'"\xff"', "utf-8", "n't text in utf-8"),
        (b'"\xff"', "klingon", "n't text in klingon"),
        (b'"\xff"', "idna", "charset idna"),
        (b'"\xff"', "Unicode_Escape", "charset Unicode_Escape"),
        (b'"\xff"', "rot13", "n't text in rot13"),
        (b'"\xff"', "a\0b", "n't text in"),
        (b'"\xed\xa0\x80"', "", "n't text in utf-8"),
        (b"[" * 1025 + b"]" * 1024, "", "not valid JSON"),
        (b"[" * 1025 + b"]" * 1026, "", "not valid JSON"),
        (b'{"a":' * 5000 + b'"\\ud80"' + b"}" * 5000, "", "not valid JSON"),
    ],
)
def test_what_is_no_json_is_refused_with_its_reason(body: bytes, charset: str, said: str) -> None:
    with pytest.raises(NotJson, match=said):
        json_text(body, charset)


def test_a_charset_counts_where_the_bytes_are_no_utf_8() -> None:
    assert json_text('"ü"'.encode("latin-1"), "ISO-8859-1")[0] == '"ü"'.encode()
    assert json_text('"ü"'.encode(), "ISO-8859-1")[0] == '"ü"'.encode()


def test_a_number_of_any_length_is_read_and_written() -> None:
    text = b"[" + b"9" * 100_000 + b",0." + b"1" * 100_000 + b"]"
    assert text_of(value_of(text)) == text


@pytest.mark.parametrize("leaf", [b"1", b"1.0", b'"\\ud800"'])
def test_no_more_levels_are_written_than_254(leaf: bytes) -> None:
    text = b"[" * 254 + leaf + b"]" * 254
    assert text_of(value_of(text)) == text
    with pytest.raises(TooDeep):
        text_of(value_of(b"[" + text + b"]"))


@pytest.mark.parametrize("text", [b"[" * 1025 + b"]" * 1025, b'{"a":[' * 50_000 + b'"\\ud800"' + b"]}" * 50_000])
def test_text_that_is_nested_too_deeply_to_be_read_is_json_all_the_same(text: bytes) -> None:
    assert json_text(text) == (text, UNREAD)
    with pytest.raises(TooDeep):
        value_of(text)


def _is_read(text: bytes) -> bool:
    try:
        json.loads(text.decode(), parse_constant=lambda name: [][1])
    except (ValueError, IndexError):
        return False
    return True


@given(texts, st.lists(st.tuples(st.integers(0, 60), st.sampled_from([*'{}[]:,"0-.eE\\ntu \n\0\1'])), max_size=3))
def test_what_is_json_is_told_without_reading_it(text: str, changed: list[tuple[int, str]]) -> None:
    assert is_json(text.encode())
    for at, char in changed:
        text = text[:at] + char + text[at + (at % 2) :]
        assert is_json(text.encode()) is _is_read(text.encode()), text


@pytest.mark.parametrize(
    "text",
    [
        *(
            '""',
            "0",
            "-0",
            "-1.5e+7",
            "true",
            "false",
            "null",
            "[]",
            "{}",
            " [ ] ",
            '{"a":[1,{"b":null}],"c":"\\u00e9"}',
        ),
        *("[[],[]]", '{"a":{},"b":[]}', "\t\r\n1 "),
    ],
)
def test_json_of_every_kind_is_json(text: str) -> None:
    assert is_json(text.encode())


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "1 2", "[1 2]", "[1,]", "[,1]", "[1", "1]", "[1}", "{1}", '{"a"}', '{"a":}', '{"a":1,}', '{"a" 1}'),
        *(
            '{"a":1 "b":2}',
            '{"a":1',
            '{"a":1]',
            "{]",
            "[}",
            ",",
            ":",
            "]",
            "}",
            "[:]",
            '{,"a":1}',
            '{"a":,}',
            '{"a"::1}',
        ),
        *("01", "1.", ".5", "+1", "1e", "NaN", "tru", "'a'", '"a', '"\\x"', '"\n"', "\0", "\1", "[\1]", '{"a":1}}'),
    ],
)
def test_what_breaks_the_grammar_of_json_anywhere_is_none(text: str) -> None:
    assert not is_json(text.encode())  # RFC 8259 §2


@pytest.mark.parametrize("charset", ["idna", "undefined", "punycode", "unicode_escape", "rot13", "no-such-charset-1"])
def test_a_charset_that_is_none_of_texts_leaves_nothing_behind(charset: str) -> None:
    before = len(encodings._cache)  # type: ignore[attr-defined]
    with pytest.raises(NotJson):
        text_in(b"x" * 1_000_000, charset)
    assert len(encodings._cache) == before  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "charset", ["UTF8", "utf-16", "ISO_8859-1", "latin1", "Windows-1252", "Shift_JIS", "EUC-KR", "gb18030"]
)
def test_charsets_of_texts_are_known_by_all_their_names(charset: str) -> None:
    assert text_in("abc".encode(charset), charset) == "abc"


# --- expressions ---------------------------------------------------------------------------------------------

BODY = b"""{"n":[18446744073709551617,1.0,-2.50,1e400],"r":3.14159265358979323846,"s":"18446744073709551617",
"i":[{"id":1,"p":0.10},{"p":0.3},{"id":null,"p":0.2}],"o":[{"i":[{"id":1},{}]},{},{"i":[]}]}"""

FOUND: list[tuple[str, str]] = [
    ("n", "[18446744073709551617,1.0,-2.50,1e400]"),
    ("sort(n)", "[-2.50,1.0,18446744073709551617,1e400]"),
    ("[max(n), min(n)]", "[1e400,-2.50]"),
    ("sort_by(i, &p)[*].p", "[0.10,0.2,0.3]"),
    ("max_by(i, &p).p", "0.3"),
    ("sum(n[:1])", "18446744073709551617"),
    ("sum(i[].p)", "0.60"),
    ("avg(`[1, 2]`)", "1.5"),
    ("floor(n[0])", "18446744073709551617"),
    ("[floor(n[2]), ceil(n[2]), abs(n[2])]", "[-3,-2,2.50]"),
    ("floor(n[3])", "1E+400"),
    ("to_number(s)", "18446744073709551617"),
    ("to_number(' 7 ')", "7"),
    ("to_number('x')", "null"),
    ("to_string(n)", '"[18446744073709551617,1.0,-2.50,1e400]"'),
    ("type(n[1])", '"number"'),
    ("n[?@ > `1e399`]", "[1e400]"),
    ("n[0] > `18446744073709551616`", "true"),
    ("r == `3.14159265358979323846`", "true"),
    ("r == `3.14159265358979323847`", "false"),
    ("i[?p == `0.1`].id", "[1]"),
    ("contains(n, `1`)", "true"),
    ("{a: `1.50`, b: `[18446744073709551617]`}", '{"a":1.50,"b":[18446744073709551617]}'),
]


@pytest.mark.parametrize(("expression", "found"), FOUND)
def test_an_expression_finds_numbers_as_they_came_and_compares_them_exactly(expression: str, found: str) -> None:
    assert text_of(Expression(expression).search(value_of(BODY))).decode() == found


@pytest.mark.parametrize("expression", ["s > `1`", "abs(s)", "sort_by(i, &id)", "nothing(s)"])
def test_what_can_not_be_applied_is_a_value_error(expression: str) -> None:
    with pytest.raises(ValueError):
        Expression(expression).search(value_of(BODY))


@pytest.mark.parametrize(
    ("expression", "places"),
    [
        ("i[*].id", [1, None, None]),
        ("i[?p > `0.15`].id", [None, None]),
        ("o[*].i[*].id", [[1, None], None, []]),
        ("o[].i[].id", [1, None, None]),
        ("i[0].*", [1, 0.1]),
        ("i[2].*", [None, 0.2]),
        ("s[*].id", None),
        ("s.*", None),
        ("s[?id].id", None),
    ],
)
def test_places_keep_null_where_a_projection_finds_nothing(expression: str, places: Any) -> None:
    assert Expression(expression).places(value_of(BODY)) == places


# --- numbers and texts by themselves -----------------------------------------------------------------------


def test_a_number_shows_its_text_and_differs_from_what_is_none() -> None:
    number = Number("1.10")
    assert repr(number) == "1.10"
    assert number == Number("1.1")
    assert number != Number("1.11")
    assert (number != 1.1) is False
    assert number != "1.10"
    assert (number == "1.10") is False
    assert hash(number) == hash(1.1)


@pytest.mark.parametrize("compare", ["__lt__", "__le__", "__gt__", "__ge__"])
def test_a_number_has_no_order_with_a_text(compare: str) -> None:
    assert getattr(Number("1.10"), compare)("1") is NotImplemented
    assert getattr(Number("9007199254740993"), compare)(9007199254740993) is (compare in ("__le__", "__ge__"))


def test_the_exact_value_is_that_of_the_text_unless_its_exponent_is_beyond_all_bounds() -> None:
    assert exact(2**70) == Decimal(2**70)
    assert exact(0.1) == exact(Number("0.1")) == Decimal("0.1")
    assert exact(Number("1e-9999999999999999999")) == 0
    assert exact(Number("1e9999999999999999999")) == Decimal("Infinity")


@pytest.mark.parametrize(("text", "sendable"), [("", True), ("é€😀", True), ("\ud800", False), ("a\udfff", False)])
def test_a_text_with_an_unpaired_surrogate_cannot_be_sent(text: str, sendable: bool) -> None:
    assert is_unicode(text) is sendable


# --- writing -----------------------------------------------------------------------------------------------


def test_text_inside_a_value_is_written_as_it_is() -> None:
    raw = Verbatim(b'{"a" : 1.00}')
    assert text_of({"x": raw, "y": [raw]}) == b'{"x":{"a" : 1.00},"y":[{"a" : 1.00}]}'


def test_a_value_with_text_inside_is_not_escaped_more_than_others() -> None:
    assert text_of({"é": Verbatim('"ü"'.encode())}) == '{"é":"ü"}'.encode()


def test_what_orjson_refuses_is_written_beside_what_is_written_as_it_is() -> None:
    value = {
        "big": 2**70,
        "lone\ud800": "\udfff",
        "raw": Verbatim(b"1.00"),
        "n": Number("1.10"),
        "t": (True, None, 0.5),
    }
    assert text_of(value) == (
        b'{"big":1180591620717411303424,"lone\\ud800":"\\udfff","raw":1.00,"n":1.10,"t":[true,null,0.5]}'
    )


def test_what_is_no_value_of_json_is_a_type_error() -> None:
    with pytest.raises(TypeError):
        text_of({"a": object()})


def test_a_value_is_too_deep_also_where_the_stack_has_little_room_left() -> None:
    value: Any = 2**70
    for _ in range(DEEPEST - 1):
        value = [value]
    assert text_of(value)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 100)
    try:
        with pytest.raises(TooDeep, match="nested too deeply to be written"):
            text_of(value)
    finally:
        sys.setrecursionlimit(limit)


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        (b'{"a" : "\\u00e9"}', b'{"a" : "\\u00e9"}'),
        (b'"\\ud83d\\ude00"', '"😀"'.encode()),
        (b'"\\ud800"', b'"?"'),
        (b'["\\uDFFF", 1]', b'["?", 1]'),
    ],
)
def test_a_surrogate_without_its_other_half_becomes_a_question_mark(text: bytes, sent: bytes) -> None:
    assert well_formed(text) == sent


# --- the canonical form ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "form"),
    [
        (b' { "b" : 1 , "a" : [ ] } ', b'{"a":[],"b":1}'),
        (b'{"b":{"d":1,"c":2},"a":3}', b'{"a":3,"b":{"c":2,"d":1}}'),
        (b"[1.0, 1.00, 1e2, 1E+2, -0, -0.0, 0.1]", b"[1.0,1.00,1e2,1E+2,-0,-0.0,0.1]"),
        (b"[12345678901234567890123, 18446744073709551616]", b"[12345678901234567890123,18446744073709551616]"),
        (b"1" * 60_000, b"1" * 60_000),
        (b"1e999999999", b"1e999999999"),
        (b'"\\u0041\\/\\ud83d\\ude00"', '"A/😀"'.encode()),
        (b"true", b"true"),
        (b"[" * 200 + b"]" * 200, b"[" * 200 + b"]" * 200),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_the_canonical_form_sorts_names_drops_space_and_keeps_numbers(text: bytes, form: bytes) -> None:
    assert canonical(text) == form
    assert canonical(form) == form


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[1,]",
        b"NaN",
        b"[Infinity]",
        b"01",
        b"'a'",
        b'"a\nb"',
        b'{"a":1,"a":1}',
        b'{"a":1,"\\u0061":2}',
        b'[{"x":{"a":1,"b":2,"a":3}}]',
        b'"\\ud800"',
        b'{"\\ud800":1}',
        b'"\xff"',
        b"\xef\xbb\xbf1",
        '"ä"'.encode("utf-16"),
        b"[" * 65_536,
        b"[" * 32_768 + b"]" * 32_768,
        b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        b'{"a":' * 300 + b"1" + b"}" * 300,
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_readers_may_understand_differently_has_no_canonical_form(text: bytes) -> None:
    assert canonical(text) is None
