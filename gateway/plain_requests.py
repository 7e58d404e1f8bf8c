"""Requests without a body: the bytes that go out, and what is leaned on in aiohttp to connect.

Most of what a gateway sends is a GET: a line and some fields that were checked already. aiohttp finds the address, and
makes the connection and its TLS; then the connection is ours (`plain_connections`). Of aiohttp's session, request and
response objects, which merge defaults, cookies, traces and encodings that a gateway must not have, nothing is made.
What this leans on beyond aiohttp's documentation is named in `INTERNALS`; a test fails where a new aiohttp moves it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

import aiohttp
import httpx
from aiohttp.connector import BaseConnector
from aiohttp.http_exceptions import HttpProcessingError

INTERNALS = {BaseConnector: ("_create_connection",)}
METHODS = frozenset(("GET", "HEAD"))
_BREAKS = re.compile(rb"[\r\n\0]")
_TARGET = re.compile(rb"/[\x21-\x7e]*")


def split_url(url: str) -> tuple[str, bytes]:
    """The origin of `url`, and the target to ask it for."""
    start = url.find("/", url.index("//") + 2)
    return (url[:start], url[start:].encode("ascii")) if start > 0 else (url, b"/")


def request_head(method: str, target: bytes, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """A request's bytes, where it has no body. Raises httpx.LocalProtocolError where a field would end its line."""
    lines = [name + b": " + value for name, value in headers]
    if not _TARGET.fullmatch(target) or _BREAKS.search(b"".join(lines)):
        raise httpx.LocalProtocolError("a request that cannot be sent")
    return b"\r\n".join((b"%b %b HTTP/1.1" % (method.encode("ascii"), target), *lines, b"", b""))


@lru_cache(maxsize=64)
def client_timeout(pool: float | None, connect: float | None, read: float | None) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=None, connect=pool, sock_connect=connect, sock_read=read)


ERRORS = (aiohttp.ClientError, TimeoutError, HttpProcessingError, OSError)
"""What aiohttp raises where a request fails, or its response."""
