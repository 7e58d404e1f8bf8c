"""The bytes of a request without a body."""

from __future__ import annotations

import httpx
import pytest

from gateway.upstreams.request import request_head


def test_a_request_is_its_line_its_fields_as_they_are_and_an_empty_line() -> None:
    head = request_head("GET", b"/a?b=%2C", [(b"host", b"api.test"), (b"x-name", "grün".encode("latin-1"))])
    assert head == b"GET /a?b=%2C HTTP/1.1\r\nhost: api.test\r\nx-name: gr\xfcn\r\n\r\n"


@pytest.mark.parametrize("value", [b"a\r\nx: y", b"a\nb", b"a\rb", b"a\0b"])
def test_a_field_that_would_end_its_line_is_not_sent(value: bytes) -> None:
    for field in ((b"x-a", value), (value, b"x")):
        with pytest.raises(httpx.LocalProtocolError):
            request_head("GET", b"/", [field])


@pytest.mark.parametrize("target", [b"", b"a", b"/a b", b"/a\r\nx: y", b"/\xc3\xbc"])
def test_a_target_that_is_none_is_not_sent(target: bytes) -> None:
    with pytest.raises(httpx.LocalProtocolError):
        request_head("GET", target, [])


def test_the_host_is_sent_once_and_first_unless_the_fields_have_one() -> None:
    other, own = (b"x-a", b"1"), (b"host", b"own.test")
    cases = (
        ([other, other], [(b"host", b"api.test"), other, other]),
        ([own, other], [own, other]),
        ([other, own], [other, own]),
        ([], [(b"host", b"api.test")]),
    )
    for fields, sent in cases:
        assert request_head("GET", b"/", fields, b"api.test") == request_head("GET", b"/", sent)
