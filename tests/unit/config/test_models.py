"""config: what may be set, what it means, and what a wrong value is told."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from docs.generate_reference import meanings
from gateway.config.models import Config, CorsConfig
from gateway.config.route import RouteConfig
from gateway.config.types import DEFAULT_VARY, parse_duration, parse_size, show_duration, show_size
from gateway.config.upstream import UpstreamConfig
from gateway.http.target import TRACKING_PARAMETERS

URL = "http://catalog:8080"


def route(**settings: object) -> RouteConfig:
    return RouteConfig.model_validate({"path": "/p/{id}", "upstream": "catalog", **settings})


def upstream(**settings: object) -> UpstreamConfig:
    return UpstreamConfig.model_validate({"url": URL, **settings})


def cors(**settings: object) -> CorsConfig:
    return CorsConfig.model_validate(settings)


def config(**settings: object) -> Config:
    return Config.model_validate(settings)


def complaint(settings: Mapping[str, Any]) -> str:
    """What is said of the one thing that is wrong: its place and the message."""
    with pytest.raises(ValidationError) as caught:
        Config.model_validate(settings)
    (error,) = caught.value.errors()
    return f"{'.'.join(map(str, error['loc']))}: {error['msg'].removeprefix('Value error, ')}"


# --- durations ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("250ms", 0.25),
        ("30s", 30),
        ("5m", 300),
        ("1h", 3600),
        ("2d", 172_800),
        ("1.5h", 5400),
        ("0", 0),
        (0, 0),
        ("0s", 0),
        (" 5s ", 5),
        (timedelta(seconds=7), 7),
    ],
)
def test_a_duration_is_a_number_and_a_unit(written: object, seconds: float) -> None:
    assert parse_duration(written) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "written",
    [
        "",
        "s",
        "5",
        "5 s",
        "-5s",
        "5S",
        "5sec",
        "1h30m",
        "1e3s",
        "nan",
        "inf s",
        ".5s",
        "5.s",
        "٣s",
        None,
        True,
        5.5,
        [],
    ],
    ids=repr,
)
def test_what_is_no_duration_is_told_how_to_write_one(written: object) -> None:
    with pytest.raises(ValueError, match="invalid duration; expected a number and a unit"):
        parse_duration(written)


@pytest.mark.parametrize("written", [30, "30"], ids=repr)
def test_a_number_without_a_unit_is_told_how_to_write_seconds(written: object) -> None:
    with pytest.raises(ValueError, match="write 30s for seconds"):
        parse_duration(written)


@pytest.mark.parametrize("written", ["999999999999d", "9" * 400 + "s"], ids=["many days", "many digits"])
def test_a_duration_beyond_all_bounds_is_too_long(written: str) -> None:
    with pytest.raises(ValueError, match="duration out of range"):
        parse_duration(written)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0s"), (0.25, "250ms"), (1.5, "1500ms"), (30, "30s"), (90, "90s"), (300, "5m"), (5400, "90m"), (86_400, "1d")],
)
def test_a_duration_is_shown_in_the_largest_unit_that_holds_it(seconds: float, shown: str) -> None:
    assert show_duration(timedelta(seconds=seconds)) == shown


@given(st.integers(0, 100 * 365 * 86_400_000))
def test_a_duration_that_is_shown_is_parsed_as_it_was(milliseconds: int) -> None:
    duration = timedelta(milliseconds=milliseconds)
    assert parse_duration(show_duration(duration)) == duration


# --- sizes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "size"),
    [("0", 0), ("5B", 5), ("64KiB", 65_536), ("256MiB", 2**28), ("1GiB", 2**30), ("1.5KiB", 1536), (" 1B ", 1), (7, 7)],
)
def test_a_size_is_a_number_and_a_unit(written: object, size: int) -> None:
    assert parse_size(written) == size


@pytest.mark.parametrize(
    "written", ["", "5", "5 KiB", "5KB", "5kib", "5M", "-5B", "1e3B", "\u0663B", None, True, 5.5, []], ids=repr
)
def test_what_is_no_size_is_told_how_to_write_one(written: object) -> None:
    with pytest.raises(ValueError, match="invalid size; expected a number and a unit"):
        parse_size(written)


def test_a_size_beyond_all_bounds_is_too_large() -> None:
    with pytest.raises(ValueError, match="size out of range"):
        parse_size("9" * 400 + "GiB")


@pytest.mark.parametrize(("size", "shown"), [(0, "0B"), (5, "5B"), (1536, "1536B"), (2**20, "1MiB"), (2**31, "2GiB")])
def test_a_size_is_shown_in_the_largest_unit_that_holds_it(size: int, shown: str) -> None:
    assert show_size(size) == shown


@given(st.integers(0, 2**53))
def test_a_size_that_is_shown_is_parsed_as_it_was(size: int) -> None:
    assert parse_size(show_size(size)) == size


# --- what may be set ---------------------------------------------------------------------------------------


def test_nothing_needs_to_be_set() -> None:
    found = Config()
    assert (found.host, found.port, found.redis_url, found.memory) == ("127.0.0.1", 8000, "embedded", 256 * 2**20)
    assert found.drop_query == list(TRACKING_PARAMETERS)
    assert not found.cors.enabled


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Config().port = 1  # type: ignore[misc]


@pytest.mark.parametrize("name", ["upstreams", "routes"])
def test_an_empty_section_is_a_section_of_nothing(name: str) -> None:
    assert getattr(config(**{name: None}), name) == {}


@pytest.mark.parametrize(
    ("written", "items"),
    [
        ("a, b ,,c", ["a", "b", "c"]),
        ("", []),
        (["a, b"], ["a, b"]),
    ],
    ids=["commas", "empty", "a list as it is"],
)
def test_a_list_may_be_written_with_commas(written: object, items: list[str]) -> None:
    assert route(query=written).query == items


@pytest.mark.parametrize(
    ("written", "ttl", "shown"),
    [("origin", "origin", "origin"), ("30s", timedelta(seconds=30), "30s"), ("0", timedelta(), "0s")],
)
def test_a_ttl_is_origin_or_a_duration(written: str, ttl: object, shown: str) -> None:
    found = route(ttl=written)
    assert found.ttl == ttl
    assert found.model_dump()["ttl"] == shown


def test_durations_and_sizes_are_shown_as_they_are_written() -> None:
    shown = config(memory="64KiB", retry_after="1500ms", upstreams={"a": {"url": URL, "timeout": "2s"}}).model_dump()
    assert (shown["memory"], shown["retry_after"], shown["upstreams"]["a"]["timeout"]) == ("64KiB", "1500ms", "2s")


@pytest.mark.parametrize(
    ("written", "cookies"),
    [("pass", "pass"), ("ignore", "ignore"), ("a, b", ["a", "b"]), (["a"], ["a"]), ([], [])],
    ids=repr,
)
def test_cookies_pass_are_ignored_or_named(written: object, cookies: object) -> None:
    assert route(cookies=written).cookies == cookies


def test_names_of_headers_are_in_lower_case() -> None:
    assert route(ttl="1s", vary="Accept, X-A").vary == ["accept", "x-a"]
    assert upstream(headers={"X-Key": "K"}).headers.sent == {"x-key": "K"}


def test_the_default_vary_is_what_the_documentation_says() -> None:
    described = meanings(RouteConfig)["vary"]
    assert ", ".join(DEFAULT_VARY) in described.replace("\n", " ")


def test_every_setting_is_documented() -> None:
    models = (Config, UpstreamConfig, RouteConfig, CorsConfig)
    assert not [name for model in models for name in model.model_fields if not meanings(model)[name]]


@pytest.mark.parametrize("url", ["http://h", "https://h:8443/prefix", "http://[::1]:80", "http://h/a%20b"])
def test_an_upstream_has_an_http_url(url: str) -> None:
    assert upstream(url=url).bases == [url]


def test_the_slash_at_the_end_of_a_url_goes() -> None:
    assert upstream(url="http://h/prefix/").url == "http://h/prefix"


def test_an_upstream_may_have_several_urls() -> None:
    assert UpstreamConfig.model_validate({"urls": "http://a, http://b"}).bases == ["http://a", "http://b"]


def test_an_upstream_without_its_url_has_no_base() -> None:
    assert UpstreamConfig.model_construct(url=None, urls=[]).bases == []


def test_a_route_asks_for_the_same_path_where_it_names_no_other() -> None:
    assert route().target_text == "/p/{id}"
    assert route(upstream_path="/v2/{id}").target_text == "/v2/{id}"


def test_the_path_of_a_route_is_normalised() -> None:
    assert route(path="/caf\xe9/%7e{id}").path == "/caf%C3%A9/~{id}"
    assert route(path="/x/{id}").template.parameters == ("id",)


@pytest.mark.parametrize(
    ("written", "url"),
    [("/docs", "/docs"), ("/docs/", "/docs"), ("/", "/"), (False, "off"), ("off", "off"), ("none", "off")],
    ids=repr,
)
@pytest.mark.parametrize("page", ["docs", "redoc"])
def test_a_page_has_a_path_or_is_off(page: str, written: object, url: str) -> None:
    assert getattr(config(**{page: written}), page) == url


@pytest.mark.parametrize(
    "url", ["embedded", "none", "redis://cache:6379/0", "rediss://:secret@cache", "unix:///run/valkey.sock"]
)
def test_the_shared_tier_has_a_url(url: str) -> None:
    assert config(redis_url=url).redis_url == url


@pytest.mark.parametrize("listen", ["127.0.0.1:9000", "[::1]:9000", "localhost:0", "unix:/run/gw.sock", "none"])
def test_the_admin_listens_somewhere_or_nowhere(listen: str) -> None:
    assert config(admin_listen=listen).admin_listen == listen


def test_tags_may_hold_parameters_of_the_path() -> None:
    assert route(tags="catalog, product:{id}").tags == ["catalog", "product:{id}"]


def test_routers_are_named_by_module_and_attribute() -> None:
    assert config(include="shop.routes:router, _a:b_2").include == ["shop.routes:router", "_a:b_2"]


@pytest.mark.parametrize("prefix", ["gw:", "", "a.b-c_d:7"])
def test_the_prefix_of_redis_names_is_plain(prefix: str) -> None:
    assert config(redis_prefix=prefix).redis_prefix == prefix


def test_trusted_proxies_are_networks() -> None:
    assert config(trusted_proxies="10.0.0.0/8, 192.0.2.7, ::1").trusted_proxies == ["10.0.0.0/8", "192.0.2.7", "::1"]


@pytest.mark.parametrize(
    "settings",
    [{"allow_origins": ["*"]}, {"allow_origins": "https://a"}, {"allow_origin_regex": r"https://.*\.example"}],
    ids=["all", "one", "a pattern"],
)
def test_cors_is_on_where_an_origin_is_allowed(settings: dict[str, object]) -> None:
    assert cors(**settings).enabled


def test_credentials_go_with_listed_origins() -> None:
    assert cors(allow_origins=["https://a"], allow_credentials=True).allow_credentials


# --- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"prot": 1}, "prot: Extra inputs are not permitted", id="an unknown name"),
        pytest.param({"port": -1}, "port: Input should be greater than or equal to 0", id="a negative port"),
        pytest.param({"port": 65536}, "port: Input should be less than or equal to 65535", id="a port too high"),
        pytest.param({"port": "http"}, "port: Input should be a valid integer", id="a port that is no number"),
        pytest.param({"host": 1}, "host: Input should be a valid string", id="a host of the wrong type"),
        pytest.param({"access_log": "perhaps"}, "access_log: Input should be a valid boolean", id="no boolean"),
        pytest.param({"memory": "5MB"}, "memory: invalid size", id="no size"),
        pytest.param({"memory": -1}, "memory: Input should be greater than or equal to 0", id="a negative size"),
        pytest.param({"memory": "9" * 400 + "GiB"}, "memory: size out of range", id="a size too large"),
        pytest.param({"retry_after": "5"}, "retry_after: invalid duration", id="no duration"),
        pytest.param({"retry_after": None}, "retry_after: invalid duration", id="a duration of nothing"),
        pytest.param(
            {"retry_after": timedelta(-1)},
            "retry_after: Input should be greater than or equal to",
            id="a negative duration",
        ),
        pytest.param({"drop_query": 5}, "drop_query: Input should be a valid list", id="no list"),
        pytest.param({"drop_query": [5]}, "drop_query.0: Input should be a valid string", id="a list of numbers"),
        pytest.param({"public_url": "api.test"}, "public_url: must be an http:// or https:// URL", id="no URL"),
        pytest.param({"redis_url": "cache:6379"}, "redis_url: must be embedded, none, ", id="no Redis URL"),
        pytest.param({"redis_url": "http://h"}, "redis_url: must be embedded, none, ", id="HTTP for Redis"),
        pytest.param({"redis_prefix": "a b"}, "redis_prefix: may contain only letters", id="a prefix with space"),
        pytest.param({"redis_prefix": "a\n"}, "redis_prefix: may contain only letters", id="a prefix with LF"),
        pytest.param({"admin_listen": "9000"}, "admin_listen: must be host:port", id="a port alone"),
        pytest.param({"admin_listen": ":9000"}, "admin_listen: must be host:port", id="no host"),
        pytest.param({"admin_listen": "h:"}, "admin_listen: must be host:port", id="no port"),
        pytest.param({"admin_listen": "h:70000"}, "admin_listen: must be host:port", id="an admin port too high"),
        pytest.param({"admin_listen": "unix:x"}, "admin_listen: must be host:port", id="a relative socket"),
        pytest.param({"trusted_proxies": ["x"]}, "trusted_proxies: 'x' isn't a valid network", id="no network"),
        pytest.param({"trusted_proxies": ["10.0.0.1/8"]}, "trusted_proxies: '10.0.0.1/8' isn't", id="host bits set"),
        pytest.param({"include": ["shop.routes"]}, "include: 'shop.routes' must be module:", id="no attribute"),
        pytest.param({"include": ["a:b.c"]}, "include: 'a:b.c' must be module:attribute", id="a deep attribute"),
        pytest.param({"include": ["1a:b"]}, "include: '1a:b' must be module:attribute", id="no module name"),
        pytest.param({"docs": "docs"}, "docs: must be a path such as /docs, or off", id="a relative page"),
        pytest.param({"redoc": True}, "redoc: must be a path such as /docs, or off", id="a page that is on"),
        pytest.param({"routes": []}, "routes: Input should be a valid dictionary", id="a list of routes"),
        pytest.param({"routes": {"a-b": {}}}, "routes: 'a-b' isn't a valid name", id="a name with a hyphen"),
        pytest.param({"routes": {"A": {}}}, "routes: 'A' isn't a valid name", id="a name in capitals"),
        pytest.param({"routes": {"a__b": {}}}, "routes: 'a__b' isn't a valid name", id="a name with two underscores"),
        pytest.param({"routes": {1: {}}}, "routes: 1 isn't a valid name", id="a name that is a number"),
        pytest.param({"upstreams": {"": {}}}, "upstreams: '' isn't a valid name", id="an empty name"),
        pytest.param({"upstreams": {"a\n": {}}}, "upstreams: 'a\\n' isn't a valid name", id="a name with a line feed"),
        pytest.param({"upstreams": {"a": None}}, "upstreams.a: Input should be a valid dictionary", id="no settings"),
    ],
)
def test_a_wrong_setting_is_told_what_would_be_right(settings: dict[str, object], message: str) -> None:
    assert complaint(settings).startswith(message)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"url": "h:80"}, ".url: must be an http:// or https:// URL with a host", id="no scheme"),
        pytest.param({"url": "ftp://h"}, ".url: must be an http:// or https:// URL with a host", id="another scheme"),
        pytest.param({"url": "http://"}, ".url: must be an http:// or https:// URL with a host", id="no host"),
        pytest.param({"url": "http:///a"}, ".url: must be an http:// or https:// URL with a host", id="a path alone"),
        pytest.param({"url": "http://u@h"}, ".url: must not carry credentials", id="a user"),
        pytest.param({"url": "http://:p@h"}, ".url: must not carry credentials", id="a password"),
        pytest.param({"url": "http://h?a=1"}, ".url: must not have a query or fragment", id="a query"),
        pytest.param({"url": "http://h#a"}, ".url: must not have a query or fragment", id="a fragment"),
        pytest.param({"url": "http://h:0"}, ".url: has an invalid port", id="port 0"),
        pytest.param({"url": "http://h:65536"}, ".url: has an invalid port", id="a port too high"),
        pytest.param({"url": "http://h:x"}, ".url: has an invalid port", id="a port that is no number"),
        pytest.param({"url": "http://[::1"}, ".url: Invalid IPv6 URL", id="an open bracket"),
        pytest.param({"urls": ["x"]}, ".urls.0: must be an http:// or https:// URL", id="one of several"),
        pytest.param({"url": None}, ": needs exactly one of `url` and `urls`", id="neither url nor urls"),
        pytest.param({"urls": [URL]}, ": needs exactly one of `url` and `urls`", id="url and urls"),
        pytest.param({"timeout": "soon"}, ".timeout: invalid duration", id="no duration"),
        pytest.param({"max_connections": 0}, ".max_connections: Input should be greater than or equal to 1", id="none"),
        pytest.param(
            {"headers": {"a b": "c"}},
            ".headers.request.set.a b: 'a b' isn't a valid header name",
            id="a header name with space",
        ),
        pytest.param(
            {"headers": {"": "c"}}, ".headers.request.set.: '' isn't a valid header name", id="an empty header name"
        ),
        pytest.param(
            {"headers": {"a": "b\r\nc: d"}}, ".headers.request.set.a: the value of a has a character", id="a line break"
        ),
        pytest.param({"headers": {"a": "\0"}}, ".headers.request.set.a: the value of a has a character", id="NUL"),
        pytest.param({"transport": "curl"}, ".transport: Input should be 'aiohttp' or 'httpx'", id="no transport"),
        pytest.param({"verify": "maybe"}, ".verify: Input should be a valid boolean", id="no boolean"),
        pytest.param({"retries": 3}, ".retries: Extra inputs are not permitted", id="an unknown name"),
    ],
)
def test_a_wrong_setting_of_an_upstream_is_told_what_would_be_right(settings: dict[str, Any], message: str) -> None:
    wrong = {"url": URL, **settings} if settings.keys() != {"urls"} or settings["urls"] == [URL] else settings
    assert complaint({"upstreams": {"a": wrong}}).startswith(f"upstreams.a{message}")


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
        pytest.param({"tll": "1s"}, ".tll: Extra inputs are not permitted", id="an unknown name"),
    ],
)
def test_a_wrong_setting_of_a_route_is_told_what_would_be_right(settings: dict[str, object], message: str) -> None:
    wrong = {"path": "/p/{id}", "upstream": "a", **settings}
    assert complaint({"routes": {"r": wrong}}).startswith(f"routes.r{message}")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param(
            {"allow_origins": ["*"], "allow_credentials": True},
            ": allow_origins `*` with allow_credentials lets every web page act as the user",
            id="all origins with credentials",
        ),
        pytest.param(
            {"allow_origins": "https://a, *", "allow_credentials": True},
            ": allow_origins `*` with allow_credentials",
            id="all origins among others with credentials",
        ),
        *(
            pytest.param({"allow_origins": [origin]}, f".allow_origins: {origin!r} isn't a valid origin", id=origin)
            for origin in ("https://*.a.test", "https://a.test/", "a.test", "https://A.test", "https://a.test#b")
        ),
        pytest.param({"allow_origin_regex": "("}, ": allow_origin_regex isn't a valid", id="an open parenthesis"),
        pytest.param({"allow_origin_regex": "a{9999999999}"}, ": allow_origin_regex isn't", id="too many repeats"),
        pytest.param({"allow_origin_regex": "(" * 9999}, ": allow_origin_regex isn't", id="too deep"),
        pytest.param({"max_age": 600}, ".max_age: invalid duration", id="no duration"),
        pytest.param({"allow_origin": "a"}, ".allow_origin: Extra inputs are not permitted", id="an unknown name"),
    ],
)
def test_a_wrong_setting_of_cors_is_told_what_would_be_right(settings: dict[str, object], message: str) -> None:
    assert complaint({"cors": settings}).startswith(f"cors{message}")


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(ValidationError) as caught:
        config(port=-1, memory="x", upstreams={"a": {"url": "x", "timeout": "y"}})
    assert caught.value.error_count() == 4


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"upstreams": {"a": {"url": "http://a b"}}}, id="space in a host"),
        pytest.param({"upstreams": {"a": {"url": "http://cat\nalog"}}}, id="a line feed in a host"),
        pytest.param({"upstreams": {"a": {"url": "http://h/?"}}}, id="an empty query"),
        pytest.param({"upstreams": {"a": {"url": "http://h/a/../b"}}}, id="dot segments in a prefix"),
        pytest.param({"upstreams": {"a": {"url": URL, "headers": {"x": "\u2192"}}}}, id="no latin-1"),
        pytest.param({"upstreams": {"a": {"url": URL, "headers": {"X": "1", "x": "2"}}}}, id="the same header twice"),
        pytest.param({"upstreams": {"a": {"url": URL, "headers": {"content-length": "1"}}}}, id="our framing"),
        pytest.param({"port": True}, id="a boolean for a number"),
        pytest.param({"routes": {"r": {"path": "/", "upstream": "a", "ttl": "1s", "vary": "host"}}}, id="vary: host"),
        pytest.param({"routes": {"r": {"path": "/", "upstream": "a", "ttl": "1s", "vary": "te"}}}, id="vary: te"),
        pytest.param({"routes": {"r": {"path": "/", "upstream": "a", "ttl": "1s", "vary": "range"}}}, id="vary: range"),
        pytest.param({"routes": {"r": {"path": "/", "upstream": "a", "ttl": timedelta(-1)}}}, id="a negative ttl"),
        pytest.param({"cors": {"allow_origin_regex": ".*", "allow_credentials": True}}, id="a pattern for all origins"),
    ],
)
def test_what_would_fail_or_mislead_later_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        config(**settings)


def test_a_secret_that_can_be_guessed_is_refused_and_a_good_one_is_not_shown() -> None:
    with pytest.raises(ValidationError, match="must have at least 16 characters"):
        Config.model_validate({"redis_secret": "short"})
    assert "0123456789abcdef" not in repr(Config.model_validate({"redis_secret": "0123456789abcdef"}))


def test_a_part_of_a_millisecond_is_shown_as_one() -> None:
    assert show_duration(timedelta(microseconds=250)) == "0.25ms"
