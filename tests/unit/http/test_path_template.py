"""templates: which requests a route takes, which route is more specific, what the upstream is asked."""

from __future__ import annotations

import random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gateway.errors import RequestRefused
from gateway.http.path_template import TemplateError, compile_path, compile_target, render_tag, tag_parameters
from gateway.http.target import normalise, normalise_path


def matched(template: str, path: str) -> dict[str, str] | None:
    return compile_path(template).match(path)


# --- matching ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "path", "parameters"),
    [
        pytest.param("/", "/", {}, id="the root"),
        pytest.param("/a/b", "/a/b", {}, id="no parameter"),
        pytest.param("/a.b", "/aXb", None, id="a dot is a dot"),
        pytest.param("/a", "/a/", None, id="a trailing slash is another path"),
        pytest.param("/a", "/A", None, id="case counts"),
        pytest.param("/p/{id}", "/p/7", {"id": "7"}, id="one segment"),
        pytest.param("/p/{id}", "/p/", None, id="an empty segment is no value"),
        pytest.param("/p/{id}", "/p/7/8", None, id="not two segments"),
        pytest.param("/p/{id}", "/p/a%20b", {"id": "a%20b"}, id="a value stays encoded"),
        pytest.param("/p/{id}", "/p/7\n", {"id": "7\n"}, id="a line feed ends nothing"),
        pytest.param("/{a}/x/{b_2}", "/1/x/2", {"a": "1", "b_2": "2"}, id="two parameters"),
        pytest.param("/p/{id}.json", "/p/7.json", {"id": "7"}, id="a piece of a segment"),
        pytest.param("/p/{id}.json", "/p/.json", None, id="an empty piece is no value"),
        pytest.param("/{a}-{b}", "/1-2-3", {"a": "1-2", "b": "3"}, id="two pieces, the first takes most"),
        pytest.param("/f/{rest:path}", "/f/a/b", {"rest": "a/b"}, id="all that follows"),
        pytest.param("/f/{rest:path}", "/f/", {"rest": ""}, id="nothing that follows"),
        pytest.param("/f/{rest:path}", "/f", None, id="the slash must be there"),
        pytest.param("/{path:path}", "//a\n", {"path": "/a\n"}, id="a catch-all catches all"),
        pytest.param("/caf\xe9 {x}", "/caf%C3%A9%201", {"x": "1"}, id="literals are encoded as paths are"),
        pytest.param("/%7ea%2D", "/~a-", {}, id="literals are normalised as paths are"),
    ],
)
def test_a_template_takes_the_paths_of_its_form(template: str, path: str, parameters: dict[str, str] | None) -> None:
    assert matched(template, path) == parameters


def test_a_template_knows_its_parameters_in_order() -> None:
    assert compile_path("/{b}/{a}/{rest:path}").parameters == ("b", "a", "rest")


def test_a_template_shows_its_normal_text() -> None:
    assert compile_path("/caf\xe9/{id}").text == "/caf%C3%A9/{id}"


@pytest.mark.parametrize(
    ("template", "why"),
    [
        pytest.param("", "must begin with a slash", id="empty"),
        pytest.param("a/{b}", "must begin with a slash", id="no slash"),
        pytest.param("/a?b=1", "a path alone", id="a query"),
        pytest.param("/a#b", "a path alone", id="a fragment"),
        pytest.param("/{a}/{a}", "names a parameter twice", id="a parameter twice"),
        pytest.param("/{a}/{a:path}", "names a parameter twice", id="a parameter twice, once for all"),
        pytest.param("/{id:int}", r"\{id:int\} is unknown; write \{id\} or \{id:path\}", id="another convertor"),
        pytest.param("/{rest:path}/a", "must be last", id="something after all that follows"),
        pytest.param("/{rest:path}{a}", "must be last", id="a parameter after all that follows"),
        pytest.param("/{}", "an unmatched brace", id="no name"),
        pytest.param("/{a", "an unmatched brace", id="an open brace"),
        pytest.param("/a}", "an unmatched brace", id="a closing brace"),
        pytest.param("/{1a}", "an unmatched brace", id="a name that begins with a digit"),
        pytest.param("/{a-b}", "an unmatched brace", id="a name with a hyphen"),
        pytest.param("/{{a}}", "an unmatched brace", id="doubled braces"),
        pytest.param("/a/../b", "must not have dot segments", id="dot segments"),
        pytest.param("/a/./{b}", "must not have dot segments", id="one dot"),
        pytest.param("/../a", "leaves the root", id="out of the root"),
        pytest.param("/a/..;/b", "dot segment with parameters", id="a dot segment with a parameter"),
        pytest.param("/a%2fb", "encoded slash", id="an encoded slash"),
        pytest.param("/a\\b", "encoded slash, backslash", id="a backslash"),
        pytest.param("/a%252eb", "doubly encoded", id="a dot encoded twice"),
        pytest.param("/100%", "invalid percent-encoding", id="a stray percent sign"),
        pytest.param("/%2{a}", "invalid percent-encoding", id="an escape that a parameter would complete"),
        pytest.param("/a\n", "control character", id="a control character"),
    ],
)
def test_a_malformed_template_says_what_to_write(template: str, why: str) -> None:
    with pytest.raises(TemplateError, match=why):
        compile_path(template)


# --- which is more specific --------------------------------------------------------------------------------

BY_SPECIFICITY = (
    "/a/b",
    "/a/{x}-long-literal",
    "/a/{x}.js",
    "/a/{x}",
    "/a/b{rest:path}",
    "/a/{rest:path}",
    "/{x}.json",
    "/{x}",
    "/{x}/b",
    "/{path:path}",
)


def test_the_more_specific_template_comes_first_whatever_the_order() -> None:
    shuffled = random.Random(7).sample(BY_SPECIFICITY, len(BY_SPECIFICITY))
    assert sorted(shuffled, key=lambda text: compile_path(text).specificity) == list(BY_SPECIFICITY)


@pytest.mark.parametrize("one", ["/{a}", "/x/{a}/y", "/{a}.json", "/{a:path}"])
def test_names_of_parameters_do_not_matter_to_specificity(one: str) -> None:
    assert compile_path(one).specificity == compile_path(one.replace("{a", "{another")).specificity


# --- what the upstream is asked ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "parameters", "path", "query"),
    [
        pytest.param("/v2/items", {}, "/v2/items", (), id="no parameter"),
        pytest.param("/v2/{id}", {"id": "a%20b"}, "/v2/a%20b", (), id="a value as it came"),
        pytest.param("/{b}/{a}", {"a": "1", "b": "2"}, "/2/1", (), id="in another order"),
        pytest.param("/{a}/{a}.json", {"a": "1"}, "/1/1.json", (), id="twice"),
        pytest.param("/v2/{rest}", {"rest": "a/b"}, "/v2/a/b", (), id="all that follows"),
        pytest.param("/v2/{rest:path}", {"rest": ""}, "/v2/", (), id="all that follows, empty"),
        pytest.param("/caf\xe9", {}, "/caf%C3%A9", (), id="literals are encoded"),
        pytest.param("/s?q={q}", {"q": "b"}, "/s", ("q=b",), id="in the query"),
        pytest.param("/s?q={q}", {"q": "a&b=c+d;e"}, "/s", ("q=a%26b%3Dc%2Bd%3Be",), id="one value of the query"),
        pytest.param("/s?q={q}", {"q": "a%20%c3%a9"}, "/s", ("q=a%20%C3%A9",), id="encoded once, not twice"),
        pytest.param("/s?q={q}", {"q": "%FF"}, "/s", ("q=%FF",), id="the bytes it came with"),
        pytest.param("/s?q={q}", {"q": "a/b~"}, "/s", ("q=a%2Fb~",), id="a slash in the query"),
        pytest.param("/s?a=1&&b={b}&", {"b": "2"}, "/s", ("a=1", "b=2"), id="empty pairs go"),
        pytest.param("/s?", {}, "/s", (), id="an empty query"),
    ],
)
def test_a_target_is_rendered_with_the_values_of_its_route(
    target: str, parameters: dict[str, str], path: str, query: tuple[str, ...]
) -> None:
    assert compile_target(target, tuple(parameters)).render(parameters) == (path, query)


@pytest.mark.parametrize(
    ("target", "why"),
    [
        pytest.param("v2", "must begin with a slash", id="no slash"),
        pytest.param("//evil.example/{", "an unmatched brace", id="an open brace"),
        pytest.param("http://evil/", "must begin with a slash", id="a URL"),
        pytest.param("/a#b", "must not have a fragment", id="a fragment"),
        pytest.param("/{x}", r"uses \{x\}, which the route's path does not have \(it has: id, n\)", id="unknown"),
        pytest.param("/a?b={x}", r"uses \{x\}", id="unknown in the query"),
        pytest.param("/a/../b", "must not have dot segments", id="dot segments"),
        pytest.param("/a%2fb", "encoded slash", id="an encoded slash"),
        pytest.param("/{id}%", "invalid percent-encoding", id="a stray percent sign"),
    ],
)
def test_a_malformed_target_says_what_to_write(target: str, why: str) -> None:
    with pytest.raises(TemplateError, match=why):
        compile_target(target, ("id", "n"))


def test_an_unknown_parameter_of_a_path_without_any_says_so() -> None:
    with pytest.raises(TemplateError, match="it has: none"):
        compile_target("/{x}", ())


@pytest.mark.parametrize(
    ("route", "path", "target"),
    [
        pytest.param("/v1/{id}.json", "/v1/...json", "/items/{id}/secret", id="the dots before a suffix"),
        pytest.param("/{a}-{b}", "/.-.", "/x/{a}{b}/y", id="dots put together"),
        pytest.param("/files{rest:path}", "/files../admin", "/public/{rest}", id="dots after a literal"),
    ],
)
def test_a_value_stays_within_its_segment(route: str, path: str, target: str) -> None:
    template = compile_path(route)
    parameters = template.match(str(normalise(path.encode(), b"")))
    assert parameters is not None
    rendered = None
    try:
        rendered, _ = compile_target(target, template.parameters).ask(parameters)
    except RequestRefused:
        return
    assert normalise_path(rendered) == rendered


@pytest.mark.parametrize("query", ["q=a b", "q=caf\xe9", "q=%zz", "q={", "q=\n"])
def test_the_query_of_a_target_is_normalised_or_refused(query: str) -> None:
    try:
        _, pairs = compile_target(f"/s?{query}", ()).render({})
    except TemplateError:
        return
    assert pairs == normalise(b"/s", "&".join(pairs).encode("latin-1")).query


# --- tags --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "tag"),
    [
        pytest.param("catalog", "catalog", id="no parameter"),
        pytest.param("product:{id}", "product:a b", id="a decoded value"),
        pytest.param("{n}:{id}", "7:a b", id="two values"),
        pytest.param("{other}:{n}", "{other}:7", id="an unknown name stays"),
    ],
)
def test_a_tag_holds_the_values_it_is_given(template: str, tag: str) -> None:
    assert render_tag(template, {"id": "a b", "n": "7"}) == tag


def test_the_parameters_of_a_tag_are_known() -> None:
    assert tag_parameters("{a}:b:{c}") == ("a", "c")


# --- properties --------------------------------------------------------------------------------------------

SEGMENT = st.text(st.sampled_from("ab.-%~\xe9 ;"), max_size=4)


@settings(deadline=None)
@given(st.lists(SEGMENT, max_size=4))
def test_the_captured_values_make_up_the_path_again(segments: list[str]) -> None:
    try:
        path = normalise("/".join(["", *segments, ""]).encode("latin-1"), b"").path
    except RequestRefused:
        assume(False)
    for text in ("/{all:path}", "/{a}/{rest:path}", "/{a}{b}/{rest:path}"):
        template = compile_path(text)
        parameters = template.match(path)
        if parameters is not None:
            assert compile_target(text, template.parameters).render(parameters) == (path, ())


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=8))
def test_a_value_in_the_query_is_one_value_with_the_bytes_it_came_with(value: bytes) -> None:
    encoded = "".join(f"%{octet:02X}" for octet in value)
    _, pairs = compile_target("/s?q={v}", ("v",)).render({"v": encoded})
    (pair,) = pairs
    assume(b"\0" not in value)
    assert normalise(b"/", pair.encode("ascii")).query == pairs
    assert compile_target("/s?q={v}", ("v",)).render({"v": pair.removeprefix("q=")})[1] == pairs


@given(
    template=st.sampled_from(
        ("/v/{a}", "/v/.{a}", "/v/..{a}", "/v/%25{a}", "/v/{a}.{b}", "/{a}/{b}", "/v/{b:path}", "/x")
    ),
    a=st.text("ab.~-_%2Ef;", min_size=1, max_size=5),
    b=st.text("ab.~-_/", max_size=5),
)
def test_a_target_is_refused_or_normalised_whatever_its_values_are(template: str, a: str, b: str) -> None:
    """A template is rendered without another look at values that can't leave their place: the whole rule agrees."""
    target = compile_target(template.replace(":path", ""), ("a", "b"))
    try:
        path, _ = target.ask({"a": a, "b": b})
    except RequestRefused:
        return
    assert normalise_path(path) == path


PLAIN = st.text("abZ09-_~", min_size=1, max_size=4)


@given(
    template=st.sampled_from(
        ("/v/{a}", "/v/.{a}", "/v/%25{a}", "/v/{a}.{b}", "/{a}/{b}", "/v/{b:path}", "/x", "/x?q={a}")
    ),
    a=PLAIN,
    b=st.lists(PLAIN, min_size=1, max_size=3).map("/".join),
)
def test_plain_values_are_filled_in_as_any_are(template: str, a: str, b: str) -> None:
    target, values = compile_target(template.replace(":path", ""), ("a", "b")), {"a": a, "b": b}
    assert (target.plain_path == "") is ("%" in template or "/." in template or "?" in template)
    if target.plain_path:
        assert target.ask(values) == (target.plain_path % values, ())


def test_an_encoded_slash_in_a_value_is_decoded_for_an_upstream_that_wants_slashes() -> None:
    asked = {
        slashes: compile_target("/files/{name}?q={name}", ("name",), slashes).ask({"name": "a%2Fb"})
        for slashes in ("keep", "decode")
    }
    assert asked == {"keep": ("/files/a%2Fb", ("q=a%2Fb",)), "decode": ("/files/a/b", ("q=a%2Fb",))}
    with pytest.raises(RequestRefused, match="leave its segment"):
        compile_target("/files/{name}", ("name",), "decode").ask({"name": "..%2Fb"})
