"""Settings of an upstream: what may be set, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from gateway.config.upstream import UpstreamConfig
from tests.support.settings import URL, complaint, upstream


@pytest.mark.parametrize("url", ["http://h", "https://h:8443/prefix", "http://[::1]:80", "http://h/a%20b"])
def test_an_upstream_has_an_http_url(url: str) -> None:
    assert upstream(url=url).bases == [url]


def test_the_slash_at_the_end_of_a_url_goes() -> None:
    assert upstream(url="http://h/prefix/").url == "http://h/prefix"


def test_an_upstream_may_have_several_urls() -> None:
    assert UpstreamConfig.model_validate({"urls": "http://a, http://b"}).bases == ["http://a", "http://b"]


@pytest.mark.parametrize(
    ("request_fields", "message"),
    [
        ({"set": {"Host": "a b"}}, "headers.request.set.Host"),
        ({"add": {"Host": "a.test"}}, "Host can't be changed: it is the upstream's setting `host`"),
        ({"remove": ["host"]}, "host can't be changed: it is the upstream's setting `host`"),
    ],
)
def test_the_host_is_set_or_left(request_fields: dict[str, Any], message: str) -> None:
    settings = {"url": URL, "headers": {"request": request_fields}}
    assert message in complaint({"upstreams": {"a": settings}})


def test_fields_are_shown_as_short_as_they_may_be_written() -> None:
    assert upstream(headers={"request": {"set": {"x-a": "b"}}}).model_dump()["headers"] == {"x-a": "b"}
    both = {"request": {"set": {"x-a": "b"}, "remove": ["x-b"]}, "response": {"remove": ["x-c"]}}
    assert upstream(headers=both).model_dump()["headers"] == both


def test_an_upstream_without_its_url_has_no_base() -> None:
    assert UpstreamConfig.model_construct(url=None, urls=[]).bases == []


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
        ({"url": "http://up.test", "ca_file": "ca.pem"}, "ca_file requires a URL with https"),
        ({"url": "https://up.test", "ca_file": "ca.pem", "verify": False}, "no effect with `verify: false`"),
        ({"url": "https://up.test", "client_key": "a.key"}, "client_key requires client_cert"),
        ({"url": "https://up.test", "tls_name": "https://api"}, "isn't a host name"),
        ({"url": "https://up.test", "tls_name": "api:443"}, "isn't a host name"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        UpstreamConfig.model_validate(settings)
