"""Settings of a route: what may be set, and what is refused."""

from __future__ import annotations

import pytest

from docs.generate_reference import meanings
from gateway.config.route import RouteConfig
from gateway.config.types import DEFAULT_VARY
from tests.support.settings import complaint, route


@pytest.mark.parametrize(
    ("written", "cookies"),
    [("pass", "pass"), ("ignore", "ignore"), ("a, b", ["a", "b"]), (["a"], ["a"]), ([], [])],
    ids=repr,
)
def test_cookies_pass_are_ignored_or_named(written: object, cookies: object) -> None:
    assert route(cookies=written).cookies == cookies


def test_the_default_vary_is_what_the_documentation_says() -> None:
    described = meanings(RouteConfig)["vary"]
    assert ", ".join(DEFAULT_VARY) in described.replace("\n", " ")


def test_a_route_asks_for_the_same_path_where_it_names_no_other() -> None:
    assert route().target_text == "/p/{id}"
    assert route(upstream_path="/v2/{id}").target_text == "/v2/{id}"


def test_the_path_of_a_route_is_normalised() -> None:
    assert route(path="/caf\xe9/%7e{id}").path == "/caf%C3%A9/~{id}"
    assert route(path="/x/{id}").template.parameters == ("id",)


def test_tags_may_hold_parameters_of_the_path() -> None:
    assert route(tags="catalog, product:{id}").tags == ["catalog", "product:{id}"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"path": None}, ".path: Input should be a valid string", id="no path"),
        pytest.param({"path": "p"}, ".path: must begin with a slash", id="a relative path"),
        pytest.param({"path": "/{a:int}"}, ".path: {a:int} is unknown; write {a} or {a:path}", id="another convertor"),
        pytest.param({"path": "/{a}/{a}"}, ".path: names a parameter twice", id="a parameter twice"),
        pytest.param({"path": "/../a"}, ".path: The path leaves the root", id="out of the root"),
        pytest.param({"upstream": 5}, ".upstream: Input should be a valid string", id="no upstream"),
        pytest.param({"upstream_path": ""}, ": upstream_path must begin with a slash", id="an empty upstream path"),
        pytest.param({"upstream_path": "/{x}"}, ": upstream_path uses {x}", id="an unknown parameter"),
        pytest.param({"ttl": "forever"}, ".ttl: invalid duration", id="no duration"),
        pytest.param({"ttl": "-1s"}, ".ttl: invalid duration", id="a negative duration"),
        pytest.param({"ttl": 30}, ".ttl: invalid duration", id="a duration without a unit"),
        pytest.param({"stale_if_error": "x"}, ".stale_if_error: invalid duration", id="no stale window"),
        pytest.param({"vary": ["accept"]}, ": vary requires a duration as ttl", id="vary with ttl: origin"),
        pytest.param({"stream": "share"}, ": stream: share requires a duration as ttl", id="share with ttl: origin"),
        pytest.param({"ttl": "1s", "vary": ["a b"]}, ".vary: 'a b' isn't a valid header name", id="no header name"),
        pytest.param(
            {"ttl": "1s", "vary": ["a:b"]}, ".vary: 'a:b' isn't a valid header name", id="a colon in a header name"
        ),
        pytest.param({"client_ttl": "1s"}, ": client_ttl requires a duration as ttl", id="client_ttl with ttl: origin"),
        pytest.param({"authorization": "yes"}, ".authorization: Input should be 'pass', 'ignore' or", id="no choice"),
        pytest.param({"request_directives": "no"}, ".request_directives: Input should be 'honour'", id="none"),
        pytest.param({"max_body": "big"}, ".max_body: invalid size", id="no size"),
        pytest.param({"tags": ["a b"]}, ".tags: the tag 'a b' is empty or has a space", id="a tag with space"),
        pytest.param({"tags": ["a,b"]}, ".tags: the tag 'a,b' is empty or has a space", id="a tag with a comma"),
        pytest.param({"tags": [""]}, ".tags: the tag '' is empty", id="an empty tag"),
        pytest.param({"tags": ["a\n"]}, ".tags: the tag 'a\\n' is empty or has a space", id="a tag with a line feed"),
        pytest.param({"tags": ["p:{x}"]}, ": tags: {x} isn't a parameter of the path /p/{id}", id="an unknown tag"),
        pytest.param({"reads": ["PUT"]}, ".reads: PUT is no read with a body; expected POST, QUERY", id="a write"),
        pytest.param(
            {"reads": "PSOT"},
            ".reads: PSOT is no read with a body; expected POST, QUERY, REPORT, SEARCH; did you",
            id="a misspelt read",
        ),
        pytest.param(
            {"methods": ["GET"], "reads": ["POST"]}, ": reads: POST must be in `methods` too", id="no such method"
        ),
        pytest.param({"body": {"max": "1KiB"}}, ": body requires `reads`, or QUERY in `methods`", id="no read"),
        pytest.param(
            {"methods": "any", "upstream_method": "POST"}, ": upstream_method requires `reads`", id="another method"
        ),
        pytest.param(
            {"reads": ["POST"], "body": {"types": ["json"]}},
            ".body.types: 'json' isn't a media type",
            id="no media type",
        ),
        pytest.param(
            {"reads": ["POST"], "body": {"max": "2MiB"}},
            ".body.max: Input should be less than or equal",
            id="too large",
        ),
        pytest.param(
            {"reads": ["POST"], "upstream_method": "PUT"}, ".upstream_method: Input should be 'POST' or", id="PUT"
        ),
        pytest.param({"tll": "1s"}, ".tll: Extra inputs are not permitted", id="an unknown name"),
    ],
)
def test_a_wrong_setting_of_a_route_is_told_what_would_be_right(settings: dict[str, object], message: str) -> None:
    wrong = {"path": "/p/{id}", "upstream": "a", **settings}
    assert complaint({"routes": {"r": wrong}}).startswith(f"routes.r{message}")
