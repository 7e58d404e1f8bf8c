"""config: what may be set, what it means, and what a wrong value is told."""

from __future__ import annotations

from datetime import timedelta

import pytest
from pydantic import ValidationError

from docs.generate_reference import meanings
from gateway.config.models import Config, CorsConfig
from gateway.config.route import RouteConfig
from gateway.config.upstream import UpstreamConfig
from gateway.http.target import TRACKING_PARAMETERS
from tests.support.settings import URL, complaint, config, cors

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


def test_every_setting_is_documented() -> None:
    for model in (Config, UpstreamConfig, RouteConfig, CorsConfig):
        of = meanings(model)
        assert not [name for name in model.model_fields if not of[name]]


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
        pytest.param({"public_url": "https://api.test/a,b"}, ": public_url: its path must be a path", id="a comma"),
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
