"""redis_urls: the URLs by which a Redis is named, and what is wrong with those that name none."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.cache.redis.connection import connect, is_cluster
from gateway.config.types import (
    check_redis_url,
    credentials_of,
    database_of,
    hosts_of,
    ignored_options,
    parse_duration,
    parse_size,
    show_duration,
    show_size,
)
from tests.support.settings import URL, config, route, upstream


@pytest.mark.parametrize(
    "url",
    [
        *("redis://cache", "redis://cache:6380/2", "rediss://user:pass%2Fword@cache:6379/0", "redis://[::1]:6379/1"),
        *("unix:///run/redis.sock", "redis+cluster://a:1,b:2,c", "rediss+cluster://a"),
        *("redis+sentinel://a:1,b/main", "rediss+sentinel://user:pw@a/main/3"),
    ],
)
def test_a_url_that_names_a_redis_is_taken(url: str) -> None:
    check_redis_url(url)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://cache", "the scheme must be one of redis, "),
        ("unix://run/redis.sock", "requires a socket path"),
        ("redis://", "isn't host:port"),
        ("redis://cache:0", "isn't host:port"),
        ("redis://cache:70000", "isn't host:port"),
        ("redis://cache:x", "isn't host:port"),
        ("redis+cluster://a,,b", "isn't host:port"),
        ("redis+sentinel://a:1", "requires the service name"),
        ("redis+sentinel://a:1/main/x", "must end with the number of a database"),
        ("redis://cache/one", "must end with the number of a database"),
        ("redis://cache/1/2", "must end with the number of a database"),
        ("redis://cache?decode_responses=true", "decode_responses can't be set: the gateway decodes replies itself"),
        ("redis+cluster://cache?protocol=2", "protocol can't be set"),
        ("redis://cache?socket_timeout=5s", "socket_timeout must be seconds"),
        ("rediss://cache?ssl_cert_reqs=no", "ssl_cert_reqs must be none, optional or required"),
        ("redis://cache?socket_keepalive=maybe", "socket_keepalive must be true or false"),
        ("redis://cache?db=one", "the option db must be the number of a database"),
    ],
)
def test_one_that_names_none_is_refused_and_why(url: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        check_redis_url(url)


def test_hosts_have_the_usual_port_of_what_they_are() -> None:
    assert hosts_of("redis+cluster://a:1,b,[::1]:2,[::2]") == [("a", 1), ("b", 6379), ("::1", 2), ("::2", 6379)]
    check_redis_url("rediss+sentinel://user:p@[::1],b,[::2]:2/main/3?sentinel_username=x")
    assert hosts_of("redis+sentinel://user:p@a,b:1/main") == [("a", 26379), ("b", 1)]


def test_the_database_is_the_number_at_the_end() -> None:
    urls = ("redis://a", "redis://a/3", "redis+sentinel://a/main", "redis+sentinel://a/main/4")
    assert [database_of(url) for url in urls] == [0, 3, 0, 4]


def test_credentials_are_decoded_and_left_out_where_empty() -> None:
    assert credentials_of("redis://us%40er:pass%2Fword@a") == {"username": "us@er", "password": "pass/word"}
    assert credentials_of("redis://:pw@a") == {"password": "pw"}
    assert credentials_of("redis://a") == {}


@pytest.mark.parametrize(
    ("url", "warned"),
    [
        ("redis://cache?timeout=5", "the option timeout is unknown and ignored; did you mean socket_timeout?"),
        ("redis://cache?ssl_cert_reqs=none", "the option ssl_cert_reqs is ignored: it requires TLS (rediss://)"),
        ("redis+cluster://cache?db=1", "the option db is unknown and ignored"),
        ("redis://cache?sentinel_username=x", "the option sentinel_username is unknown and ignored"),
    ],
)
def test_an_option_without_an_effect_is_a_warning_and_does_not_reach_the_client(url: str, warned: str) -> None:
    check_redis_url(url)
    (warning,) = ignored_options(url)
    assert warned in warning
    client = connect(url, 1.0)
    if not is_cluster(client):
        client.connection_pool.make_connection()  # TypeError where redis-py is given an argument that it has not


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
        "9" * 400 + "h 1m",
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


def test_names_of_headers_are_in_lower_case() -> None:
    assert route(ttl="1s", vary="Accept, X-A").vary == ["accept", "x-a"]
    assert upstream(headers={"X-Key": "K"}).headers.sent == {"x-key": "K"}


def test_a_part_of_a_millisecond_is_shown_as_one() -> None:
    assert show_duration(timedelta(microseconds=250)) == "0.25ms"


@pytest.mark.parametrize("written", [30, "30"], ids=repr)
def test_a_number_without_a_unit_is_told_how_to_write_seconds(written: object) -> None:
    with pytest.raises(ValueError, match="write 30s for seconds"):
        parse_duration(written)
