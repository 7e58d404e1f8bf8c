"""targets: what is the same target, what is another, what is refused."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from gateway.errors import RequestRefused
from gateway.http import target as target_module
from gateway.http.target import (
    TRACKING_PARAMETERS,
    Target,
    below,
    check_host,
    credentials_in,
    is_credential,
    normalise,
    normalise_query,
    other_slash,
    recode_path,
    resolve,
    resolve_below,
    select_query,
    split_raw_target,
    without_credentials,
)

UNRESERVED = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"


def normal(raw: str) -> Target:
    """The target of a request line in origin form, each character one byte."""
    path, _, query = raw.partition("?")
    return normalise(path.encode("latin-1"), query.encode("latin-1"))


# --- paths -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        pytest.param("/", "/", id="root"),
        pytest.param("/a/b", "/a/b", id="plain"),
        pytest.param("/%41%7e%2Dz", "/A~-z", id="encoded unreserved"),
        pytest.param("/%2e%2Ehidden", "/..hidden", id="encoded dots of a name"),
        pytest.param("/caf%c3%a9", "/caf%C3%A9", id="hex case"),
        pytest.param("/caf\xc3\xa9", "/caf%C3%A9", id="raw UTF-8"),
        pytest.param("/caf\xe9", "/caf%E9", id="raw latin-1"),
        pytest.param("/a b", "/a%20b", id="space"),
        pytest.param('/<">^`{|}[]#', "/%3C%22%3E%5E%60%7B%7C%7D%5B%5D%23", id="not allowed raw"),
        pytest.param("/!$&'()*+,;=:@", "/!$&'()*+,;=:@", id="sub-delims stay"),
        pytest.param("/%21%24%26%3b%3D%3A%40", "/%21%24%26%3B%3D%3A%40", id="encoded sub-delims stay"),
        pytest.param("/100%25", "/100%25", id="encoded percent"),
        pytest.param("/a%3Fb", "/a%3Fb", id="encoded question mark"),
        pytest.param("//a///b", "//a///b", id="empty segments are kept"),
        pytest.param("/a/", "/a/", id="a trailing slash is kept"),
        pytest.param("/A/b", "/A/b", id="case is kept"),
        pytest.param("/a;v=1/b", "/a;v=1/b", id="parameters are kept"),
        pytest.param("/a..;/b", "/a..;/b", id="dots at the end of a name"),
        pytest.param("/.../b", "/.../b", id="three dots"),
        pytest.param("/.well-known", "/.well-known", id="a hidden name"),
        pytest.param("/me/x.css", "/me/x.css", id="a name with a suffix"),
        pytest.param("//evil.example/x", "//evil.example/x", id="a host in the path is a path"),
        pytest.param("/@host:80/http://x", "/@host:80/http://x", id="a URL in the path is a path"),
        pytest.param("/%252541", "/%252541", id="a percent sign encoded thrice"),
    ],
)
def test_a_path_has_one_form(raw: str, path: str) -> None:
    assert str(normal(raw)) == path


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        pytest.param("/a/./b", "/a/b", id="one dot"),
        pytest.param("/a/../b", "/b", id="two dots"),
        pytest.param("/a/b/..", "/a/", id="two dots at the end"),
        pytest.param("/a/.", "/a/", id="one dot at the end"),
        pytest.param("/.", "/", id="only one dot"),
        pytest.param("/a/..", "/", id="back to the root"),
        pytest.param("/a/%2e%2E/b", "/b", id="encoded dots"),
        pytest.param("/a/.%2e/b", "/b", id="half encoded dots"),
        pytest.param("/a//../b", "/a/b", id="an empty segment is a segment"),
        pytest.param("//..", "/", id="two dots after an empty segment"),
        pytest.param("/a/..//b", "//b", id="an empty segment after two dots"),
    ],
)
def test_dot_segments_are_removed(raw: str, path: str) -> None:
    assert str(normal(raw)) == path


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        pytest.param("", "begin with a slash", id="empty"),
        pytest.param("a", "begin with a slash", id="no slash"),
        pytest.param("*", "begin with a slash", id="asterisk"),
        pytest.param("/a\\b", "a backslash", id="backslash"),
        pytest.param("\\\\host/x", "begin with a slash", id="two backslashes"),
        pytest.param("/%5c", "encoded slash, backslash or control", id="encoded backslash"),
        pytest.param("/a%2fb", "encoded slash", id="encoded slash"),
        pytest.param("/a%2Fb", "encoded slash", id="encoded slash in capitals"),
        pytest.param("/%00", "encoded NUL", id="encoded NUL"),
        pytest.param("/a%0ab", "control character", id="encoded line feed"),
        pytest.param("/a%0d%0ab", "control character", id="encoded CR LF"),
        pytest.param("/a%09", "control character", id="encoded tab"),
        pytest.param("/a%7f", "control character", id="encoded DEL"),
        pytest.param("/a\x00", "control character", id="raw NUL"),
        pytest.param("/a\nb", "control character", id="raw line feed"),
        pytest.param("/a\x7f", "control character", id="raw DEL"),
        pytest.param("/..", "leaves the root", id="out of the root"),
        pytest.param("/../../etc/passwd", "leaves the root", id="far out of the root"),
        pytest.param("/a/../../b", "leaves the root", id="out of the root in the middle"),
        pytest.param("/%2e%2e/b", "leaves the root", id="out of the root, encoded"),
        pytest.param("//../../b", "leaves the root", id="out of the root after an empty segment"),
        pytest.param("/a/..;/b", "dot segment with parameters", id="two dots with a parameter"),
        pytest.param("/a/..;x=1/b", "dot segment with parameters", id="two dots with a long parameter"),
        pytest.param("/a/.;/b", "dot segment with parameters", id="one dot with a parameter"),
        pytest.param("/a/%2e%2e;/b", "dot segment with parameters", id="encoded dots with a parameter"),
        pytest.param("/a/..%3bx/b", "dot segment with parameters", id="two dots with an encoded semicolon"),
        pytest.param("/a/%252e%252e/b", "doubly encoded", id="dots encoded twice"),
        pytest.param("/a/%252E", "doubly encoded", id="a dot encoded twice in capitals"),
        pytest.param("/a%252fb", "doubly encoded", id="a slash encoded twice"),
        pytest.param("/a%255cb", "doubly encoded", id="a backslash encoded twice"),
        pytest.param("/a%2500", "doubly encoded", id="a NUL encoded twice"),
        pytest.param("/a/%25%32%65/b", "doubly encoded", id="a dot encoded twice, its digits encoded too"),
        pytest.param("/a%2%35%32f", "invalid percent-encoding", id="a percent sign put together"),
        pytest.param("/100%", "invalid percent-encoding", id="a percent sign at the end"),
        pytest.param("/%zz", "invalid percent-encoding", id="a percent sign before letters"),
        pytest.param("/%4", "invalid percent-encoding", id="a percent sign before one digit"),
        pytest.param("/%%41", "invalid percent-encoding", id="a percent sign before another"),
        pytest.param("/%+1", "invalid percent-encoding", id="a signed number"),
    ],
)
def test_a_path_that_could_mean_two_things_is_refused(raw: str, why: str) -> None:
    with pytest.raises(RequestRefused, match=why) as caught:
        normal(raw)
    assert caught.value.status == 400


def test_a_question_mark_that_belongs_to_the_path_stays_there() -> None:
    assert str(normalise(b"/a?b", b"c=1")) == "/a%3Fb?c=1"


@pytest.mark.parametrize(
    ("raw", "decoded"),
    [
        pytest.param("/caf%C3%A9/a%20b", "/café/a b", id="UTF-8"),
        pytest.param("/%FF", "/\ufffd", id="no UTF-8"),
        pytest.param("/%C0%AF", "/\ufffd\ufffd", id="an overlong slash is no slash"),
        pytest.param("/100%25", "/100%", id="percent"),
    ],
)
def test_the_decoded_path_is_what_a_framework_matches(raw: str, decoded: str) -> None:
    assert normal(raw).decoded == decoded


def test_a_piece_of_a_path_is_encoded_as_in_a_whole_one() -> None:
    assert recode_path("%41 \xe9/") == "A%20%E9/"


# --- queries -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "query"),
    [
        pytest.param("", "", id="none"),
        pytest.param("b=1&a=2", "a=2&b=1", id="sorted by name"),
        pytest.param("a=2&b=0&a=1", "a=2&a=1&b=0", id="order kept within a name"),
        pytest.param("%61=2&b=0&a=1", "a=2&a=1&b=0", id="one name in two spellings"),
        pytest.param("&&a=1&", "a=1", id="empty pairs go"),
        pytest.param("&", "", id="only empty pairs"),
        pytest.param("a", "a", id="a name alone"),
        pytest.param("a=&a", "a=&a", id="an empty value is not no value"),
        pytest.param("=1", "=1", id="an empty name"),
        pytest.param("a=1=2", "a=1=2", id="an equals sign in a value"),
        pytest.param("a=1;b=2", "a=1;b=2", id="a semicolon separates nothing"),
        pytest.param("b=1;a=2&a=1", "a=1&b=1;a=2", id="a semicolon hides no name"),
        pytest.param("a=%41%3d%26", "a=A%3D%26", id="encoded separators stay"),
        pytest.param("a=100%", "a=100%25", id="a stray percent sign at the end"),
        pytest.param("a=%zz&b=%%41", "a=%25zz&b=%25A", id="stray percent signs"),
        pytest.param("a=%2%35", "a=%2525", id="a percent sign put together"),
        pytest.param("a=b c&d=\xe9", "a=b%20c&d=%E9", id="not allowed raw"),
        pytest.param("a=b+c", "a=b+c", id="a plus sign is itself"),
        pytest.param("a=?/:@", "a=?/:@", id="allowed raw"),
        pytest.param("a=\\", "a=%5C", id="a backslash"),
        pytest.param("a=%2e%2e%2f%5c%0a", "a=..%2F%5C%0A", id="a path in a value is a value"),
        pytest.param("a=http%3A//h/", "a=http%3A//h/", id="a URL in a value is a value"),
        pytest.param("A=1&a=2", "A=1&a=2", id="case counts"),
    ],
)
def test_a_query_has_one_form(raw: str, query: str) -> None:
    assert normalise(b"/", raw.encode("latin-1")).query_string == query


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        pytest.param("a=%00", "encoded NUL", id="encoded NUL"),
        pytest.param("a=\x00", "control character", id="raw NUL"),
        pytest.param("a=\r\nb", "control character", id="raw line break"),
        pytest.param("a=\x7f", "control character", id="raw DEL"),
    ],
)
def test_a_query_with_controls_is_refused(raw: str, why: str) -> None:
    with pytest.raises(RequestRefused, match=why):
        normalise_query(raw)


def test_a_query_of_nothing_is_no_query() -> None:
    assert str(normal("/a?")) == str(normal("/a?&&")) == "/a"


def select(query: str, allowed: frozenset[str] | None = None, dropped: tuple[str, ...] = ()) -> str:
    return "&".join(select_query(normalise_query(query), allowed, dropped))


def test_all_pairs_count_where_nothing_is_listed() -> None:
    assert select("b=1&a=2") == "a=2&b=1"


@pytest.mark.parametrize(
    ("query", "left"),
    [
        pytest.param("page=2&evil=1&fields=a&page=3", "fields=a&page=2&page=3", id="listed names"),
        pytest.param("p%61ge=1", "page=1", id="an encoded name"),
        pytest.param("Page=1", "", id="case counts"),
        pytest.param("page", "page", id="a name alone"),
        pytest.param("page;evil=1", "", id="a semicolon is part of the name"),
        pytest.param("page=1;evil=2", "page=1;evil=2", id="a semicolon is part of the value"),
        pytest.param("a%20b=1", "a%20b=1", id="a name that must be encoded"),
        pytest.param("=1", "", id="an empty name"),
    ],
)
def test_only_allowed_parameters_count(query: str, left: str) -> None:
    assert select(query, allowed=frozenset(("page", "fields", "a b"))) == left


@pytest.mark.parametrize("name", ["utm_source", "utm_", "gclid", "fbclid", "msclkid", "mc_eid", "_hsenc", "g%63lid"])
def test_tracking_parameters_are_dropped(name: str) -> None:
    assert select(f"{name}=1&page=2", dropped=TRACKING_PARAMETERS) == "page=2"


@pytest.mark.parametrize("name", ["utm", "xutm_source", "gclid2", "GCLID"])
def test_parameters_like_tracking_parameters_stay(name: str) -> None:
    assert select(f"{name}=1", dropped=TRACKING_PARAMETERS) == f"{name}=1"


def test_a_parameter_that_is_listed_is_never_dropped() -> None:
    assert select("utm_id=1&utm_x=2", allowed=frozenset(("utm_id",)), dropped=("utm_*",)) == "utm_id=1"


# --- Host and the forms of a target ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "known"),
    [
        pytest.param(b"api.example.com", "api.example.com", id="a name"),
        pytest.param(b"API.Example.com:8080", "api.example.com:8080", id="in lower case"),
        pytest.param(b"192.0.2.7", "192.0.2.7", id="IPv4"),
        pytest.param(b"[2001:DB8::1]:80", "[2001:db8::1]:80", id="IPv6"),
        pytest.param(b"my_service", "my_service", id="an underscore"),
    ],
)
def test_a_host_is_known_in_lower_case(host: bytes, known: str) -> None:
    assert check_host([host], "1.1") == known


@pytest.mark.parametrize(
    "hosts",
    [
        pytest.param([], id="missing"),
        pytest.param([b"a", b"a"], id="twice the same"),
        pytest.param([b"a", b"b"], id="two"),
        pytest.param([b""], id="empty"),
        pytest.param([b"a b"], id="space"),
        pytest.param([b" a"], id="space before"),
        pytest.param([b"a,b"], id="a list"),
        pytest.param([b"a/b"], id="a path"),
        pytest.param([b"user@a"], id="user information"),
        pytest.param([b"http://a"], id="a URL"),
        pytest.param([b"a:"], id="an empty port"),
        pytest.param([b":80"], id="a port alone"),
        pytest.param([b"a:b"], id="a port that is no number"),
        pytest.param([b"a:123456"], id="a port of six digits"),
        pytest.param([b"a:80:80"], id="two ports"),
        pytest.param([b"[::1"], id="an open bracket"),
        pytest.param([b"[name]"], id="a name in brackets"),
        pytest.param([b"a\n"], id="a line feed at the end"),
        pytest.param([b"a\x00"], id="NUL"),
        pytest.param([b"a%2e"], id="percent"),
        pytest.param([b"a?b"], id="a query"),
        pytest.param([b"caf\xc3\xa9"], id="non-ASCII"),
    ],
)
@pytest.mark.parametrize("version", ["1.1", "2"])
def test_a_missing_double_or_malformed_host_is_refused(hosts: list[bytes], version: str) -> None:
    with pytest.raises(RequestRefused, match="Host"):
        check_host(hosts, version)


def test_http_1_0_may_send_no_host() -> None:
    assert check_host([], "1.0") == ""


@pytest.mark.parametrize("hosts", [[b"a", b"b"], [b""], [b"a b"]], ids=["two", "empty", "malformed"])
def test_http_1_0_may_not_send_a_wrong_host(hosts: list[bytes]) -> None:
    with pytest.raises(RequestRefused, match="Host"):
        check_host(hosts, "1.0")


@pytest.mark.parametrize(
    ("raw", "path", "query"),
    [
        pytest.param(b"/a", b"/a", b"", id="a path"),
        pytest.param(b"/a?b=1?c", b"/a", b"b=1?c", id="the first question mark divides"),
        pytest.param(b"//evil/x", b"//evil/x", b"", id="two slashes are a path"),
        pytest.param(b"/\xe9", b"/\xe9", b"", id="any bytes"),
        pytest.param(b"http://api.test/a?b=1", b"/a", b"b=1", id="absolute form"),
        pytest.param(b"HTTP://API.test/a", b"/a", b"", id="case of scheme and host"),
        pytest.param(b"http://api.test", b"/", b"", id="absolute form without a path"),
        pytest.param(b"http://api.test?b", b"/", b"b", id="absolute form with a query alone"),
        pytest.param(b"http://api.test:80/a", b"/a", b"", id="the default port"),
        pytest.param(b"https://api.test/a", b"/a", b"", id="TLS ended before us"),
    ],
)
def test_a_target_in_origin_or_absolute_form_has_a_path_and_a_query(raw: bytes, path: bytes, query: bytes) -> None:
    assert split_raw_target(raw, "api.test", scheme="http") == (path, query)


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"*", id="asterisk form"),
        pytest.param(b"api.test:80", id="authority form"),
        pytest.param(b"", id="empty"),
        pytest.param(b"a/b", id="no slash"),
        pytest.param(b"?a", id="a query alone"),
        pytest.param(b"\\\\evil\\x", id="backslashes"),
        pytest.param(b"@evil/x", id="an at sign"),
        pytest.param(b":80@evil/x", id="a port and an at sign"),
        pytest.param(b"ftp://api.test/a", id="another scheme"),
        pytest.param(b"http:/api.test/a", id="one slash"),
        pytest.param(b"http:\\\\api.test/a", id="a scheme with backslashes"),
        pytest.param(b"/a#b", id="a fragment"),
        pytest.param(b"/a?b#c", id="a fragment after a query"),
        pytest.param(b"http://api.test/a#b", id="a fragment in absolute form"),
        pytest.param(b"http://api.test?b#c", id="a fragment after a query in absolute form"),
        pytest.param(b"http://evil.test/a", id="another authority"),
        pytest.param(b"http://api.test.evil/a", id="another authority with the same beginning"),
        pytest.param(b"http://api.test:8080/a", id="another port"),
        pytest.param(b"http://api.test:443/a", id="the default port of the other scheme"),
        pytest.param(b"http://user@api.test/a", id="user information"),
        pytest.param(b"http://evil@api.test:80/", id="a host before an at sign"),
        pytest.param(b"http:///a", id="an empty authority"),
        pytest.param(b"http://api.test\\evil/a", id="a backslash in the authority"),
        pytest.param(b"http://api.test%2eevil/a", id="a percent sign in the authority"),
    ],
)
def test_other_forms_of_a_target_are_refused(raw: bytes) -> None:
    with pytest.raises(RequestRefused, match="request target"):
        split_raw_target(raw, "api.test", scheme="http")


def test_the_default_port_is_the_schemes() -> None:
    assert split_raw_target(b"https://api.test/a", "api.test:443", scheme="https") == (b"/a", b"")


def test_an_absolute_target_needs_no_host_in_http_1_0() -> None:
    assert split_raw_target(b"http://api.test/a", "", scheme="http") == (b"/a", b"")


# --- properties --------------------------------------------------------------------------------------------

SIGNS = [*"/.;%\\ab+~@:'|= \xe9\0", "//", "..", "/../", "/./", "..;", "%2", "%2e", "%2E", "%25", "%32", "%65"]
PIECES = st.sampled_from([*SIGNS, "%2f", "%5C", "%00", "%0a", "%61", "%7e", "%c3%a9", "%C3"])
ANY_BYTE = st.characters(min_codepoint=0, max_codepoint=0xFF)
ENCODED = st.builds("%{:02x}".format, st.integers(0, 0xFF)) | st.builds("%{:02X}".format, st.integers(0, 0xFF))
PATHS = st.lists(PIECES | ANY_BYTE | ENCODED, max_size=12).map(lambda pieces: "/" + "".join(pieces))
PAIRS = st.lists(PIECES | st.sampled_from(["&", "?", "&&", "a=1", "b=2"]) | ANY_BYTE | ENCODED, max_size=12)
QUERIES = PAIRS.map("".join)
# So few that two of them often have the same normal form.
SIMILAR = st.lists(st.sampled_from(["a", "%61", "A", "%41", "/", ".", "%2e", "/./"]), max_size=5)


def normal_or_none(path: str, query: str) -> Target | None:
    try:
        return normalise(path.encode("latin-1"), query.encode("latin-1"))
    except RequestRefused:
        return None


@st.composite
def targets(draw: st.DrawFn) -> Target:
    target = normal_or_none(draw(PATHS), draw(QUERIES))
    assume(target is not None)
    assert target is not None
    return target


properties = settings(deadline=None)


@properties
@given(targets())
def test_a_normal_target_is_its_own_normal_form(target: Target) -> None:
    assert normal(str(target)) == target


@properties
@given(targets())
def test_a_normal_target_leaves_nothing_to_interpret(target: Target) -> None:
    octets = re.findall("%(.{0,2})", str(target))
    assert all(re.fullmatch("[0-9A-F]{2}", octet) for octet in octets)
    assert not {chr(int(octet, 16)) for octet in octets} & set(UNRESERVED)
    assert str(target).isascii()
    assert str(target).isprintable()
    assert not set(str(target)) & set(' "#<>[]\\^`{|}')
    assert target.path.startswith("/")
    assert not {".", ".."} & set(target.path.split("/"))
    assert not {"2F", "5C", "00", "0A", "0D"} & set(re.findall("%(..)", target.path))


@properties
@given(targets())
def test_decoding_a_normal_path_changes_no_segment_boundary(target: Target) -> None:
    assert target.decoded.count("/") == target.path.count("/")


@properties
@given(targets())
def test_httpx_sends_the_very_bytes_of_a_normal_target(target: Target) -> None:
    assert httpx.URL(f"http://h{target}").raw_path == str(target).encode("ascii")
    assert httpx.URL(f"http://h{target}").host == "h"


@properties
@given(st.tuples(SIMILAR, SIMILAR), st.tuples(SIMILAR, SIMILAR))
def test_two_raw_targets_are_one_exactly_where_the_upstream_gets_the_same_bytes(
    one: tuple[list[str], list[str]], other: tuple[list[str], list[str]]
) -> None:
    first, second = (normal_or_none("/" + "".join(path), "&".join(query)) for path, query in (one, other))
    assume(first is not None and second is not None)
    assert (first == second) == (str(first) == str(second))


@properties
@given(targets(), st.data())
def test_a_target_in_disguise_is_the_same_target(target: Target, data: st.DataObject) -> None:
    def disguised(text: str) -> str:
        return "".join(
            data.draw(st.sampled_from([f"%{ord(char):02x}", f"%{ord(char):02X}", char])) if char in UNRESERVED else char
            for char in text
        )

    # Digits of an escape stay: to encode them would encode something else.
    pieces = re.split("(%..)", str(target))
    raw = "".join(piece if piece.startswith("%") else disguised(piece) for piece in pieces)
    assert normal(raw) == target


@properties
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9))))
def test_pairs_are_sorted_by_name_and_keep_their_order_within_it(pairs: list[tuple[str, int]]) -> None:
    query = normalise_query("&".join(f"{name}={value}" for name, value in pairs))
    assert list(query) == [f"{name}={value}" for name, value in sorted(pairs, key=lambda pair: pair[0])]


# --- encoded slashes ---------------------------------------------------------------------------------------


def kept(raw: str) -> str:
    return normalise(raw.encode(), b"", "keep").path


@pytest.mark.parametrize(
    ("raw", "path", "decoded"),
    [
        ("/projects/group%2fname", "/projects/group%2Fname", "/projects/group%2Fname"),
        ("/@scope%2Fname", "/@scope%2Fname", "/@scope%2Fname"),
        ("/api/queues/%2F/jobs", "/api/queues/%2F/jobs", "/api/queues/%2F/jobs"),
        ("/job/a%252fb", "/job/a%252fb", "/job/a%2fb"),
        ("/a/../b%2Fc/./d%20e", "/b%2Fc/d%20e", "/b%2Fc/d e"),
        ("/a%2F.../b", "/a%2F.../b", "/a%2F.../b"),
        ("/a/%2F/", "/a/%2F/", "/a/%2F/"),
    ],
)
def test_an_encoded_slash_that_is_kept_is_a_character_of_its_segment(raw: str, path: str, decoded: str) -> None:
    target = normalise(raw.encode(), b"", "keep")
    assert (target.path, target.decoded) == (path, decoded)


@pytest.mark.parametrize(
    "raw",
    [
        *("/a%2f..", "/a%2F../b", "/..%2fa", "/a/..%2Fb", "/%2e%2e%2fb", "/a%2F%2e%2E", "/a%2f.%2fb", "/.%2Fa"),
        *("/a%252f..", "/..%252fa", "/a/%2e%2e%252F", "/a%2f..%252fb", "/a%2F..;x/b", "/a/..;%2Fb", "/a%252F.;"),
        *("/a%5cb", "/a%2F%5c..", "/a%2Fb%00", "/a%2Fb%0a", "/a%252e%2Fb", "/a%255c%2F", "/a\\b%2F", "/../a%2Fb"),
    ],
)
def test_what_leaves_its_place_when_it_is_decoded_is_refused_though_slashes_are_kept(raw: str) -> None:
    with pytest.raises(RequestRefused):
        kept(raw)


def test_a_slash_that_is_decoded_is_one_before_anything_is_looked_at() -> None:
    assert normalise(b"/a%2f..%2Fb%2fc", b"", "decode").path == "/b/c"
    for raw in (b"/a%252fb", b"/..%2fa", b"/a%5cb"):
        with pytest.raises(RequestRefused):
            normalise(raw, b"", "decode")


RULES = st.sampled_from(["refuse", "keep", "decode"])
RAW = st.lists(st.sampled_from(["a", "/", "%2f", "%2F", "%252f", ".", "..", ";", "%2e", "%41", "A"]), max_size=10)


@example(pieces=["%2f", "/", ".."], of_kept="refuse", of_decoded="keep")
@given(pieces=RAW, of_kept=RULES, of_decoded=RULES)
def test_a_path_has_one_reading_whatever_its_routes_say(pieces: list[str], of_kept: Any, of_decoded: Any) -> None:
    raw = ("/" + "".join(pieces)).encode()

    def rule(target: Target) -> Any:
        return of_kept if "%2" in target.path else of_decoded

    try:
        target = resolve(raw, b"", rule)
    except RequestRefused:
        return
    if "%2F" in target.path or "%252" in target.path:
        assert of_kept == "keep"
        # What is kept is the same target again, and no other path of plain slashes.
        assert resolve(target.path.encode(), b"", rule) == target
        whole = target.path.replace("%252f", "/").replace("%252F", "/").replace("%2F", "/")
        assert not {".", ".."} & set(whole.split("/"))
    else:
        assert target == normalise(target.path.encode(), b"")
        # A dot segment may have removed the encoded slash: then the path's route keeps slashes, or decodes them.
        assert of_decoded in ("keep", "decode") or b"%2f" not in raw.lower()


@given(st.text("ab.~-_/%2EfF;\\", max_size=12))
def test_a_path_that_is_plain_is_its_own_normal_form(text: str) -> None:
    """`normalise` takes plain paths as they are: what the whole rule makes of them is the same."""
    raw = f"/{text}".encode()
    try:
        whole = target_module._normalise(raw, b"", "refuse")
    except RequestRefused:
        with pytest.raises(RequestRefused):
            normalise(raw, b"")
    else:
        assert normalise(raw, b"") == whole


# --- below a prefix ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "prefix", "path"),
    [
        pytest.param("/api/items", "/api", "/items", id="below it"),
        pytest.param("/api", "/api", "/", id="the prefix itself"),
        pytest.param("/api/", "/api", "/", id="the prefix and a slash"),
        pytest.param("/apis/items", "/api", "/apis/items", id="another segment"),
        pytest.param("/items", "/api", "/items", id="a proxy has stripped it"),
        pytest.param("/items", "", "/items", id="no prefix"),
        pytest.param("/a/b/c", "/a/b", "/c", id="two segments"),
    ],
)
def test_a_target_is_known_by_what_stands_below_the_prefix(raw: str, prefix: str, path: str) -> None:
    target = normal(f"{raw}?b&a")
    assert below(target, prefix) == Target(path, ("a", "b"), path)


def test_what_stands_below_a_prefix_is_decoded_as_a_whole_target_is() -> None:
    assert below(normal("/api/caf%c3%a9%20"), "/api").decoded == "/café "
    assert below(normalise(b"/api/a%2fb", b"", "keep"), "/api").decoded == "/a%2Fb"


def test_the_route_below_a_prefix_decides_over_encoded_slashes() -> None:
    seen: list[str] = []

    def keeps(target: Target) -> Any:
        seen.append(target.path)
        return "keep" if target.path.startswith("/files/") else "refuse"

    assert resolve_below(b"/api/files/a%2Fb", b"q", "/api", keeps) == Target(
        "/api/files/a%2Fb", ("q",), "/api/files/a%2Fb"
    )
    assert seen == ["/files/a%2Fb"]
    with pytest.raises(RequestRefused, match="encoded slash"):
        resolve_below(b"/api/other/a%2Fb", b"", "/api", keeps)


@pytest.mark.parametrize(("path", "other"), [("/a", "/a/"), ("/a/", "/a"), ("/a//", "/a"), ("/", "")])
def test_a_path_has_another_with_or_without_its_trailing_slash(path: str, other: str) -> None:
    assert other_slash(path) == other


# --- credentials in the query ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("token", "access_token", "refreshToken", "id_token_hint", "secret", "client_secret", "password", "passwd"),
        *("passphrase", "credential", "X-Amz-Credential", "X-Amz-Signature", "signature", "jwt", "assertion"),
        *("authorization", "api_key", "api-key", "apikey", "apiKey", "access_key", "auth", "hmac", "key", "otp", "pwd"),
        *("session", "sessionid", "sid", "sig", "SIG", "user.sig", "%74oken", "aws%5Fsecret", "x" * 80 + "_token"),
    ],
)
def test_a_parameter_that_holds_a_credential_is_known_by_its_words(name: str) -> None:
    assert is_credential(name)


@pytest.mark.parametrize(
    "name", ["page", "q", "design", "monkey", "keyboard", "author", "sidebar", "sessions", "x" * 80, "", "%6bid"]
)
def test_a_parameter_whose_name_only_contains_such_a_word_is_not(name: str) -> None:
    assert not is_credential(name)


@pytest.mark.parametrize(
    ("target", "shown", "hidden"),
    [
        ("/a", "/a", ""),
        ("/token=1", "/token=1", ""),
        ("/a?", "/a?", ""),
        ("/a?page=1", "/a?page=1", ""),
        ("/a?token", "/a?token", ""),
        ("/a?token=", "/a?token=***", "token="),
        ("/a?page=1&token=x%3Dy&sig=z=z", "/a?page=1&token=***&sig=***", "token=x%3Dy&sig=z=z"),
        ("/a?token=1&token=2", "/a?token=***&token=***", "token=1&token=2"),
        ("/a?q=?token=1", "/a?q=?token=1", ""),
    ],
)
def test_a_target_is_shown_without_the_values_of_credentials(target: str, shown: str, hidden: str) -> None:
    assert (without_credentials(target), credentials_in(target)) == (shown, hidden)
