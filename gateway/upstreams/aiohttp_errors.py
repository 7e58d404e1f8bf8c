"""Translates aiohttp's errors into httpx's."""

from __future__ import annotations

import asyncio

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong

from gateway.upstreams.httpx_api import httpx

ERRORS = (aiohttp.ClientError, TimeoutError, HttpProcessingError, OSError)
"""What aiohttp raises where a request fails, or its response."""


class HeadTooLarge(httpx.RemoteProtocolError):
    """A response head larger than the settings allow; the text names the setting."""


def translated(error: Exception) -> httpx.TransportError:
    """The httpx error that corresponds to one of aiohttp's."""
    # Of a response's error the message alone: its text has the URL, which may hold a credential.
    message = error.message if isinstance(error, aiohttp.ClientResponseError | HttpProcessingError) else str(error)
    text = message or type(error).__name__
    if isinstance(error, LineTooLong):
        return HeadTooLarge("its head is larger than max_response_headers")
    if isinstance(error, aiohttp.ClientResponseError | HttpProcessingError) and "Too many headers" in text:
        return HeadTooLarge("its head has more fields than max_response_fields")
    kinds: tuple[tuple[type[Exception] | tuple[type[Exception], ...], type[httpx.TransportError]], ...] = (
        (aiohttp.ConnectionTimeoutError, httpx.ConnectTimeout),
        (aiohttp.SocketTimeoutError, httpx.ReadTimeout),
        ((asyncio.TimeoutError, aiohttp.ServerTimeoutError), httpx.ReadTimeout),
        (aiohttp.ClientConnectorError, httpx.ConnectError),
        (aiohttp.ClientPayloadError, httpx.RemoteProtocolError),
        ((aiohttp.ServerDisconnectedError, aiohttp.ClientOSError), httpx.ReadError),
        ((aiohttp.ClientResponseError, HttpProcessingError), httpx.RemoteProtocolError),
        ((aiohttp.InvalidURL, ValueError), httpx.LocalProtocolError),
    )
    for kind, counterpart in kinds:
        if isinstance(error, kind):
            return counterpart(text)
    return httpx.ReadError(text)
