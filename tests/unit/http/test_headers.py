"""headers: what a field means to a cache, whatever was sent."""

from __future__ import annotations

from decimal import Decimal

import pytest
from http_sf import DisplayString, Token
from hypothesis import given
from hypothesis import strategies as st

from gateway.http.headers import (
    MAX_DELTA,
    NO_DIRECTIVES,
    CacheControl,
    combined,
    connection_named,
    connection_options,
    cookie_pairs,
    delta_seconds,
    dictionary,
    end_to_end,
    first,
    framed,
    has,
    http_date,
    in_one_line,
    is_dangerous,
    is_strong,
    opaque_tag,
    parse_age,
    parse_date,
    sent_value,
    split_list,
    unquote,
    values,
    vary_names,
    without,
)

NOW = 1_800_000_000.0
TEXT = st.text(st.characters(max_codepoint=255), max_size=40)
FIELDS = ((b"accept", b"a"), (b"vary", b"x"), (b"accept", b"b"))


def test_lines_of_one_field_are_kept_in_order_combined_or_found_by_the_first() -> None:
    assert values(FIELDS, b"accept") == [b"a", b"b"]
    assert combined(FIELDS, b"accept") == "a, b"
    assert first(FIELDS, b"accept") == "a"
    assert (combined(FIELDS, b"age"), first(FIELDS, b"age"), has(FIELDS, b"age")) == (None, None, False)
    assert has(FIELDS, b"vary")
    assert without(FIELDS, b"accept") == [(b"vary", b"x")]


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("a, b ,c", ["a", "b", "c"]),
        (",, a,", ["a"]),
        ('a="b,c", d', ['a="b,c"', "d"]),
        (r'a="b\",c", d', [r'a="b\",c"', "d"]),
        ('a="never ends, b', ['a="never ends, b']),
        ("", []),
    ],
)
def test_a_list_is_cut_at_its_commas_but_not_in_quotes(text: str, items: list[str]) -> None:
    assert split_list(text) == items


@pytest.mark.parametrize(("text", "content"), [('"a"', "a"), (r'"a\"b"', 'a"b'), ("a", "a"), ('"', '"'), ('""', "")])
def test_a_quoted_string_is_its_content(text: str, content: str) -> None:
    assert unquote(text) == content


def test_what_connection_names_ends_here_with_the_hop_by_hop_fields() -> None:
    fields = [(b"connection", b"close, X-Own"), (b"x-own", b"1"), (b"te", b"trailers"), (b"x-other", b"2")]
    assert connection_named(fields) == {b"close", b"x-own"}
    assert connection_named(()) == frozenset()
    assert end_to_end(fields) == [(b"x-other", b"2")]
    assert end_to_end(fields[1:]) == [fields[1], fields[3]]
    assert end_to_end(fields[3:]) == fields[3:]


def test_options_of_a_connection_are_read_from_all_lines_in_any_case() -> None:
    lines = [(b"connection", b"Keep-Alive, Upgrade"), (b"connection", b"\tCLOSE ")]
    assert connection_options(lines) == {b"keep-alive", b"upgrade", b"close"}  # RFC 9112 §9.3
    assert connection_options([(b"accept", b"close")]) == frozenset()


def test_a_response_without_content_is_sent_without_the_fields_that_frame_some() -> None:
    given = [(b"content-length", b"5"), (b"transfer-encoding", b"chunked"), (b"x-a", b"1")]
    assert framed(204, given) == framed(304, given) == [(b"x-a", b"1")]  # RFC 9110 §8.6
    assert framed(205, given) == [(b"x-a", b"1"), (b"content-length", b"0")]  # RFC 9110 §15.3.6
    assert framed(200, given) == [(b"content-length", b"5"), (b"x-a", b"1")]
    plain = given[:1]
    assert framed(200, plain) is plain


@pytest.mark.parametrize("name", [b"x-forwarded-host", b"x-forwarded", b"x_user", b"x-original-url", b"forwarded"])
def test_a_field_that_changes_an_answer_behind_the_key_is_dangerous(name: bytes) -> None:
    assert is_dangerous(name)


@pytest.mark.parametrize("name", [b"accept", b"x-user", b"authorization"])
def test_other_fields_are_not(name: bytes) -> None:
    assert not is_dangerous(name)


# --- Cache-Control -----------------------------------------------------------------------------------------


def parse(text: str) -> CacheControl:
    return CacheControl.of([(b"cache-control", text.encode("latin-1"))])


@pytest.mark.parametrize(
    ("text", "directives"),
    [
        ("max-age=60", {"max-age": "60"}),
        ("Max-Age = 60", {"max-age": "60"}),
        ('max-age="60"', {"max-age": "60"}),
        ("max-age=60, max-age=10", {"max-age": "10"}),
        ("max-age=10, max-age=60", {"max-age": "10"}),
        ("s-maxage=x, s-maxage=9", {"s-maxage": "x"}),
        ('private="a", private', {"private": None}),
        ('no-cache, no-cache="a"', {"no-cache": None}),
        ("public, public=1", {"public": None}),
        ("@, =1, no-store", {"no-store": None}),
        ("", {}),
    ],
)
def test_directives_are_read_and_of_two_the_safer_counts(text: str, directives: dict[str, str | None]) -> None:
    assert parse(text).directives == directives


def test_lines_are_one_list() -> None:
    lines = [(b"cache-control", b"public"), (b"cache-control", b"max-age=1")]
    assert CacheControl.of(lines).directives == {"public": None, "max-age": "1"}
    assert CacheControl.of(()) is NO_DIRECTIVES
    assert not NO_DIRECTIVES


def test_a_directive_is_in_its_field_by_its_name() -> None:
    assert "max-age" in parse("Max-Age=1")
    assert "private" not in parse("Max-Age=1")


def test_a_long_field_is_parsed_like_a_short_one() -> None:
    long = ", ".join(["max-age=60", *(f"x-{number}" for number in range(100))])
    assert parse(long).directives == {"max-age": "60", **{f"x-{number}": None for number in range(100)}}


def test_a_directive_tells_its_seconds_its_fields_and_whether_it_stands_alone() -> None:
    directives = parse('max-age=60, stale-if-error=x, private="Set-Cookie, X-Own", no-cache')
    assert directives.seconds("max-age") == 60
    assert directives.seconds("stale-if-error") == 0
    assert directives.seconds("s-maxage") is None
    assert directives.fields("private") == {b"set-cookie", b"x-own"}
    assert directives.fields("public") == frozenset()
    assert (directives.unqualified("no-cache"), directives.unqualified("private")) == (True, False)
    assert not directives.unqualified("no-store")


@given(
    st.dictionaries(
        st.from_regex(r"[a-z][a-z\-]{0,10}", fullmatch=True),
        st.none() | st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=12),
    )
)
def test_what_is_written_is_read_as_it_was(directives: dict[str, str | None]) -> None:
    assert parse(CacheControl(directives).render()).directives == directives


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("60", 60), ("0", 0), ("-1", 0), ("+1", 0), ("1.5", 0), (" 1", 0), ("1s", 0), ("", 0), (None, 0), ("²", 0)),
        *(("\u0661", 0), ("9" * 30, MAX_DELTA), ("2147483648", MAX_DELTA), ("2147483647", MAX_DELTA - 1)),
    ],
)
def test_delta_seconds_that_cannot_be_read_are_none_at_all(text: str | None, seconds: int) -> None:
    assert delta_seconds(text) == seconds


@pytest.mark.parametrize(("lines", "age"), [([b"7"], 7), ([b"7, 9"], 7), ([b"x"], 0), ([], 0), ([b""], 0), ([b","], 0)])
def test_age_is_its_first_value(lines: list[bytes], age: int) -> None:
    assert parse_age([(b"age", line) for line in lines]) == age


# --- dates -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        *("Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"),
        "sun, 06 NOV 1994 08:49:37 gmt",
    ],
)
def test_the_three_forms_of_a_date_in_any_case_are_one_instant(text: str) -> None:
    assert parse_date(text, NOW) == 784_111_777.0


@pytest.mark.parametrize(
    "text",
    [
        *(None, "", "0", "-1", "yesterday", "Sun, 06 Nov 1994 08:49:37", "Sun, 06 Nov 1994 08:49:37 CET"),
        *("Sun, 00 Nov 1994 08:49:37 GMT", "Sun, 32 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 24:49:37 GMT"),
        *("Sun, 06 Nov 1994 08:60:37 GMT", "Sun, 06 Nov 1994 08:49:61 GMT", "Sun, 06 Nov 0000 08:49:37 GMT"),
        *("Sun, 6 Nov 1994 08:49:37 GMT", "Sun, 06  Nov 1994 08:49:37 GMT", "Sun, 06-Nov-1994 08:49:37 GMT"),
        *("Sun, 06 Nov 94 08:49:37 GMT", "Sun 06 Nov 1994 08:49:37 GMT", " Sun, 06 Nov 1994 08:49:37 GMT"),
        *("Sun, 06 Nov 1994 08:49:37 UTC", "Sun, 06 Nov 1994 08:49:37 GMT" + " " * 20),
    ],
)
def test_what_is_no_date_is_none(text: str | None) -> None:
    assert parse_date(text, NOW) is None


def test_a_year_of_two_digits_lies_at_most_fifty_years_ahead() -> None:
    # NOW is in 2027.
    assert parse_date("Friday, 01-Jan-77 00:00:00 GMT", NOW) == 3_376_684_800.0
    assert parse_date("Sunday, 01-Jan-78 00:00:00 GMT", NOW) == 252_460_800.0


@given(st.integers(0, 4_000_000_000))
def test_a_date_that_is_written_is_read_as_it_was(seconds: int) -> None:
    assert parse_date(http_date(seconds).decode(), NOW) == seconds


# --- validators and Vary -----------------------------------------------------------------------------------


def test_a_weak_tag_is_known_by_its_mark() -> None:
    assert (opaque_tag('W/"a"'), opaque_tag('"a"')) == ('"a"', '"a"')
    assert (is_strong('W/"a"'), is_strong('"a"')) == (False, True)


@pytest.mark.parametrize(
    ("lines", "names"),
    [
        ([], ()),
        ([b"Accept-Language, accept"], ("accept", "accept-language")),
        ([b"B", b"a"], ("a", "b")),
        ([b"*"], None),
        ([b"accept, *"], None),
        ([b"not a name"], None),
    ],
)
def test_vary_lists_names_or_means_that_nothing_may_be_reused(
    lines: list[bytes], names: tuple[str, ...] | None
) -> None:
    assert vary_names([(b"vary", line) for line in lines]) == names


@pytest.mark.parametrize(
    ("name", "lines", "value"),
    [
        pytest.param("x-own", [b"B ,a"], "B, a", id="one space behind a comma"),
        pytest.param("x-own", [b"a", b"b"], "a, b", id="lines are joined"),
        pytest.param("x-own", [b"a,"], "a", id="an empty element goes"),
        pytest.param("x-own", [b"", b"a", b" "], "a", id="an empty line goes"),
        pytest.param("x-own", [b","], "", id="of empty elements alone nothing is left"),
        pytest.param("x-own", [b""], "", id="an empty field is not absent"),
        pytest.param("x-own", [b'"a,b" ,c'], '"a,b", c', id="a comma in quotes"),
        pytest.param("x-own", [b"caf\xe9,\xff"], "caf\xe9, \xff", id="obs-text"),
        pytest.param("x-own", [b"Sat, 28 Nov 2026"], "Sat, 28 Nov 2026", id="a date"),
        pytest.param("accept-language", [b"DE ; q=0.5,  en"], "en, de;q=0.5", id="case and order of what is ranked"),
        pytest.param("accept-language", [b"fr,de;q=0.9,EN"], "en, fr, de;q=0.9", id="equal ranks by name"),
        pytest.param("accept-language", [b"de;q=x"], "de;q=x", id="a rank that can't be read"),
        pytest.param("accept-encoding", [b"GZIP"], "gzip", id="one element"),
        pytest.param("accept", [b"A/b"], "A/b", id="case counts"),
        pytest.param("user-agent", [b"a (b,c)", b"d"], "a (b,c), d", id="a comment is no list"),
        pytest.param("referer", [b"http://a/?b=1,2"], "http://a/?b=1,2", id="a URL is no list"),
        pytest.param("cookie", [b"a=1", b"b=2,"], "a=1; b=2,", id="cookies"),
        pytest.param("authorization", [b'Digest a="b",c=d'], 'Digest a="b",c=d', id="credentials"),
        pytest.param("x-own", [], None, id="absent"),
    ],
)
def test_a_request_field_has_one_value(name: str, lines: list[bytes], value: str | None) -> None:
    fields = [(name.encode(), line) for line in lines]
    assert sent_value([(b"x-other", b"1"), *fields], name) == value
    assert in_one_line(fields) == ([] if value is None else [(name.encode(), value.encode("latin-1"))])


@given(st.lists(st.text(st.sampled_from('a,; "\\q=1\xe9'), max_size=8), min_size=1, max_size=3))
@pytest.mark.parametrize("name", ["x-own", "accept-language", "user-agent"])
def test_the_one_value_of_a_field_is_its_own_value(name: str, lines: list[str]) -> None:
    value = sent_value([(name.encode(), line.encode("latin-1")) for line in lines], name)
    assert value is not None
    assert sent_value([(name.encode(), value.encode("latin-1"))], name) == value


@pytest.mark.parametrize(
    ("lines", "forbids"),
    [
        (["max-age=60;private"], "private"),
        (["max-age=60 private"], "private"),
        (["private;x", "max-age=60"], "private"),
        (['ext="a\\", private, max-age=60'], "private"),
        (['ext="open', "max-age=60, no-store"], "no-store"),
        (['ext="open, no-store'], "no-store"),
        (["max-age=60;no-cache"], "no-cache"),
    ],
)
def test_what_forbids_storing_counts_also_where_what_stands_around_it_cannot_be_read(
    lines: list[str], forbids: str
) -> None:
    assert CacheControl.parse(lines).unqualified(forbids)


@pytest.mark.parametrize(
    "line", ['ext="private"', "nonprivate=1", "x-no-store", 'a="no-store, private"', "ext=private"]
)
def test_a_word_that_only_looks_like_one_that_forbids_forbids_nothing(line: str) -> None:
    directives = CacheControl.parse([line])
    assert not any(directives.unqualified(name) for name in ("private", "no-store", "no-cache"))


@pytest.mark.parametrize(
    ("lines", "pairs"),
    [
        ([b"sid=a; theme=dark"], "sid=a"),
        ([b"theme=dark;  sid = a "], "sid = a"),
        ([b"sid=a; sid=b"], "sid=a;sid=b"),
        ([b"sid=a", b"x=1", b"sid=b"], "sid=a;;sid=b"),
        ([b"sid="], "sid="),
        ([b"sid"], None),
        ([b"SID=a; xsid=b"], None),
        ([], None),
    ],
)
def test_all_pairs_of_one_cookie_are_kept_as_they_were_sent(lines: list[bytes], pairs: str | None) -> None:
    assert cookie_pairs([(b"cookie", line) for line in lines], "sid") == pairs


# --- structured fields -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "members"),
    [
        pytest.param("", {}, id="empty"),
        pytest.param("  a=1  ", {"a": 1}, id="space around"),
        pytest.param("a, b=?0;x, c=?1", {"a": True, "b": False, "c": True}, id="booleans"),
        pytest.param("a=1;x;y=2,\tb=?0 , c", {"a": 1, "b": False, "c": True}, id="parameters and a tab"),
        pytest.param('a="x, \\"y\\"" , b=tok/en:*', {"a": 'x, "y"', "b": Token("tok/en:*")}, id="a string and a token"),
        pytest.param("a=(1 2;x);q=1, b=:YQ==:", {"a": [(1, {}), (2, {"x": True})], "b": b"a"}, id="a list and bytes"),
        pytest.param("a=1, a=2", {"a": 2}, id="the last of two"),
        pytest.param("a=-1.5, *c", {"a": Decimal("-1.5"), "*c": True}, id="a decimal, a star"),
        pytest.param('a=%"caf%c3%a9"', {"a": DisplayString("café")}, id="a display string"),
    ],
)
def test_a_dictionary_is_read_by_its_grammar(text: str, members: dict[str, object]) -> None:
    assert dictionary(text) == members


@pytest.mark.parametrize(
    "text",
    [
        "a,",
        ",a",
        "a,,b",
        "a=",
        "a =1",
        "a= 1",
        "A=1",
        "a=1 b=2",
        "&&&&",
        'a="x',
        "a=1.",
        "a=1.2345",
        "a=1e5",
        "a=é",
        'a="\x01"',
        "a=1234567890123456",
        "a=(1",
        "a=?2",
        "=1",
        "a=1,",
        'a=%"\u00fc"',
        'a=%"%ff"',
        "a=@999999999999999",
    ],
)
def test_what_breaks_the_grammar_anywhere_is_no_dictionary(text: str) -> None:
    assert dictionary(text) is None


# --- whatever is sent --------------------------------------------------------------------------------------


@given(st.lists(TEXT, max_size=4))
def test_what_was_parsed_renders_to_what_parses_the_same(lines: list[str]) -> None:
    control = CacheControl.parse(lines)
    assert CacheControl.parse([control.render()]) == control


@given(TEXT, TEXT, st.floats(0, 4e9))
def test_no_text_however_malformed_raises(text: str, other: str, now: float) -> None:
    for line in (text, other):
        parse_date(line, now)
        split_list(line)
        unquote(line)
        dictionary(line)
    fields = [(name, text.encode("latin-1")) for name in (b"vary", b"age", b"connection", b"cache-control", b"accept")]
    assert vary_names(fields) is None or all(vary_names(fields) or ())
    assert 0 <= parse_age(fields) <= MAX_DELTA
    end_to_end(fields)
    sent_value(fields, "accept")


@given(st.integers(0))
def test_delta_seconds_end_at_2_to_the_31(seconds: int) -> None:
    assert delta_seconds(str(seconds)) == min(seconds, MAX_DELTA)
