"""redis_urls: the URLs by which a Redis is named, and what is wrong with those that name none."""

from __future__ import annotations

import pytest

from gateway.cache.redis.connection import BoundedParser, connect, is_cluster
from gateway.config.types import check_redis_url, credentials_of, database_of, hosts_of, ignored_options


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


@pytest.mark.parametrize("url", ["redis://a", "rediss://a", "redis+sentinel://a/main", "redis+cluster://a:1,b:2"])
async def test_every_client_reads_with_the_parser_that_bounds_what_it_takes(url: str) -> None:
    client = connect(url, 1.0)
    made = client.connection_kwargs if is_cluster(client) else client.connection_pool.connection_kwargs
    assert made["parser_class"] is BoundedParser


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


def test_options_of_tls_reach_a_clusters_nodes_and_sentinels_master() -> None:
    nodes = connect("rediss+cluster://cache?ssl_ca_certs=/ca.pem&ssl_check_hostname=no", 1.0).connection_kwargs
    assert (nodes["ssl_ca_certs"], nodes["ssl_check_hostname"]) == ("/ca.pem", False)
    master = connect("rediss+sentinel://cache/main?ssl_cert_reqs=none", 1.0).connection_pool.connection_kwargs
    assert master["ssl_cert_reqs"] == "none"
