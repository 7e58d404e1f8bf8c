"""Each error of aiohttp becomes the error of httpx that says the same, and shows no URL."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import aiohttp
import httpx
import pytest
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong, TransferEncodingError

from gateway.upstreams.aiohttp_errors import ERRORS, HeadTooLarge, translated

KEY = ConnectionKey("up.test", 80, False, True, None, None, None)
REQUEST: Any = SimpleNamespace(real_url="http://up.test/?token=secret", method="GET", headers={}, url="http://up.test/")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (aiohttp.ConnectionTimeoutError("late"), httpx.ConnectTimeout),
        (aiohttp.SocketTimeoutError("late"), httpx.ReadTimeout),
        (aiohttp.ServerTimeoutError("late"), httpx.ReadTimeout),
        (TimeoutError(), httpx.ReadTimeout),
        (aiohttp.ClientConnectorError(KEY, OSError(111, "refused")), httpx.ConnectError),
        (aiohttp.ClientPayloadError("cut"), httpx.RemoteProtocolError),
        (aiohttp.ServerDisconnectedError(), httpx.ReadError),
        (aiohttp.ClientOSError(104, "reset"), httpx.ReadError),
        (aiohttp.ClientResponseError(REQUEST, (), message="bad"), httpx.RemoteProtocolError),
        (BadHttpMessage("bad"), httpx.RemoteProtocolError),
        (TransferEncodingError("bad"), httpx.RemoteProtocolError),
        (aiohttp.InvalidURL("x"), httpx.LocalProtocolError),
        (ConnectionResetError(104, "reset"), httpx.ReadError),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_an_error_has_its_counterpart(error: Exception, kind: type[Exception]) -> None:
    assert isinstance(error, (*ERRORS, ValueError))
    assert type(translated(error)) is kind
    assert str(translated(error))


def test_a_responses_error_shows_its_message_and_not_the_url() -> None:
    shown = str(translated(aiohttp.ClientResponseError(REQUEST, (), message="bad status line")))
    assert shown == "bad status line"


@pytest.mark.parametrize(
    ("error", "setting"),
    [
        (LineTooLong("the header", 8190), "max_response_headers"),
        (BadHttpMessage("Too many headers received"), "max_response_fields"),
        (aiohttp.ClientResponseError(REQUEST, (), message="Too many headers received"), "max_response_fields"),
    ],
)
def test_a_head_beyond_a_limit_names_the_setting(error: Exception, setting: str) -> None:
    found = translated(error)
    assert isinstance(found, HeadTooLarge)
    assert setting in str(found)
