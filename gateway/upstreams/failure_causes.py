"""Why an upstream failed: one word of a closed set, for metrics and the log, and a text, for the log alone.

The exceptions of sockets, TLS and HTTP lie in each other: a refused connection is an OSError in aiohttp's error in
httpx's. The innermost says why.
"""

from __future__ import annotations

import errno
import re
import socket
import ssl
from collections.abc import Iterator
from typing import NamedTuple

import aiohttp

from gateway.upstreams.aiohttp_errors import HeadTooLarge
from gateway.upstreams.httpx_api import httpx

CAUSES = (
    *("name", "refused", "unreachable", "connect-timeout", "certificate", "tls"),
    *("reset", "timeout", "malformed", "large-head", "request", "cut", "files"),
)
"""The words. `unreachable` is any other error in making a connection, `request` a request that can't be sent, `cut` a
body that broke off after the response's head, `files` that the gateway has no file descriptor left."""


class Cause(NamedTuple):
    word: str
    text: str


def cause_of(error: BaseException) -> Cause:
    """Why a request failed with `error`."""
    chain = list(_within(error))
    if any(isinstance(each, OSError) and each.errno in (errno.EMFILE, errno.ENFILE) for each in chain):
        return Cause("files", "no file descriptor left for a connection")
    # aiohttp's errors are those of sockets and TLS as well, and say nothing of their own.
    for each in (each for each in chain if not isinstance(each, aiohttp.ClientError)):
        if isinstance(each, ssl.SSLCertVerificationError):
            return Cause("certificate", each.verify_message or str(each))
        if isinstance(each, socket.gaierror):
            return Cause("name", each.strerror or str(each))
        if isinstance(each, ssl.SSLError) and not isinstance(each, ssl.SSLWantReadError | ssl.SSLWantWriteError):
            return Cause("tls", (each.reason or str(each)).lower().replace("_", " "))
    for each in chain:
        if isinstance(each, aiohttp.ClientConnectorDNSError):  # a name that leads to no public address, or to nothing
            return Cause("name", each.os_error.strerror or str(each.os_error))
    if any(isinstance(each, httpx.ConnectTimeout | aiohttp.ConnectionTimeoutError) for each in chain):
        return Cause("connect-timeout", "no connection within connect_timeout")
    number = next((each.errno for each in chain if isinstance(each, OSError) and each.errno is not None), None)
    if number == errno.ECONNREFUSED:
        return Cause("refused", "connection refused")
    return _by_httpx(error, number)


def _by_httpx(error: BaseException, number: int | None) -> Cause:
    text = errno.errorcode.get(number, _shown(error)) if number is not None else _shown(error)
    if isinstance(error, httpx.ConnectError):
        return Cause("unreachable", text)
    if isinstance(error, TimeoutError | httpx.TimeoutException):
        return Cause("timeout", "no response before the deadline")
    if isinstance(error, HeadTooLarge):
        return Cause("large-head", text)
    if isinstance(error, httpx.RemoteProtocolError):
        return Cause("malformed", text)
    if isinstance(error, httpx.LocalProtocolError | httpx.UnsupportedProtocol):
        return Cause("request", text)
    return Cause("reset", text)


_VALUES = re.compile(r"""(\?)[^\s'"<>)]+|(b?['"])(?:[^'"\\]|\\.)*['"]""")
_LONGEST = 200
"""Characters of an error's message that are kept."""


def _shown(error: BaseException) -> str:
    """An error's message without what may hold a client's credentials: queries of URLs, and quoted values of fields."""
    return _VALUES.sub(lambda found: f"{found[1] or found[2]}…{found[2][-1:] if found[2] else ''}", str(error))[
        :_LONGEST
    ]


def _within(error: BaseException) -> Iterator[BaseException]:
    """An exception and those that it was raised from, or was raised while handling."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        if isinstance(each, BaseExceptionGroup):
            waiting += each.exceptions
        waiting.append(each.__cause__ or each.__context__)
        if isinstance(each, aiohttp.ClientConnectorCertificateError):
            waiting.append(each.certificate_error)
        elif isinstance(each, aiohttp.ClientConnectorError):
            waiting.append(each.os_error)
