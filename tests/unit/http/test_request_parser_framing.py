"""framing: where a body ends, and what is too large at its end. (What clients see of it: test_door.)"""

from __future__ import annotations

import pytest

from gateway.errors import RequestRefused
from gateway.http.request_parser import ChunkedBody, Limits


def taken(data: bytes, limits: Limits) -> ChunkedBody:
    body = ChunkedBody(limits)
    body.take(data, 0)
    return body


def test_trailers_end_with_an_empty_line() -> None:
    assert taken(b"3\r\nabc\r\n0\r\nX-One: 1\r\n\r\n", Limits()).done


@pytest.mark.parametrize(("lines", "length"), [(3, 1), (2, 60)])
def test_trailers_count_against_the_limits_of_a_head(lines: int, length: int) -> None:
    trailers = (b"X-One: " + b"1" * length + b"\r\n") * lines
    with pytest.raises(RequestRefused, match="trailers are too large") as refused:
        taken(b"0\r\n" + trailers + b"\r\n", Limits(head=100, headers=2))
    assert (refused.value.status, refused.value.reason) == (431, "large_head")
