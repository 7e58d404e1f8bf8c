"""Requests that repeat: a client sends the same header block with each request on a connection, but for a request id.

What was judged of the block once need not be judged again while it is the same, byte for byte.
"""

from __future__ import annotations

import re
from random import getrandbits
from typing import Protocol

from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from .hits import Edge
from .remembered import Block

_REQUEST_ID_LINE = re.compile(rb"\r\nx-request-id:[ \t]*([A-Za-z0-9._\-]{1,128})\r\n", re.IGNORECASE)
_LONGEST_ID = 128
_IN_ID = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
# What is no part of a request id becomes another character: an id that is the same afterwards is sane. A third of what
# the regular expression takes.
_SANE = bytes(char if char in _IN_ID else 255 - char for char in range(256))


class Bearer(Protocol):
    """An app that brings an edge along."""

    @property
    def edge(self) -> Edge | None: ...


def bearer_of(app: object) -> tuple[Bearer | None, bool]:
    """The app's, and whether uvicorn has wrapped it in its ProxyHeadersMiddleware (`--proxy-headers`, its default).

    Other wrappers are not looked through: they may refuse a request. That one changes only requests with the fields
    by which proxies tell of the client, which are then the app's to answer.
    """
    wrapped = isinstance(app, ProxyHeadersMiddleware)
    bearer = app.app if isinstance(app, ProxyHeadersMiddleware) else app
    return (bearer if hasattr(bearer, "edge") else None), wrapped


class Repeat:
    """A header block as it came on a connection: what stood before the request id, and what behind it."""

    __slots__ = ("block", "edge", "front", "front_length", "numbered", "rear", "rear_length")

    def __init__(self, edge: Edge, block: Block, front: bytes, rear: bytes, *, numbered: bool) -> None:
        self.edge = edge
        self.block = block
        self.front, self.front_length = front, len(front)
        self.rear, self.rear_length = rear, len(rear)
        self.numbered = numbered

    @classmethod
    def of(cls, edge: Edge, head: bytes, end: int, fields: list[tuple[bytes, bytes]]) -> tuple[Repeat, bytes]:
        """The block of a head that was read, whose request line ends at `end`; and its request id, or a new one."""
        match = _REQUEST_ID_LINE.search(head, end)
        if match is None:
            front, rear, request_id = head[end:], b"", new_request_id()
        else:
            front, rear, request_id = head[end : match.start(1)], head[match.end(1) :], match[1]
            fields = _without_request_id(fields)
        text = front + rear
        block = edge.blocks.get(text) or edge.judged(text, fields)
        return cls(edge, block, front, rear, numbered=match is not None), request_id

    def request_id(self, data: bytes, end: int) -> bytes:
        """The request id in `data`, whose request line ends at `end` and which goes on as this block does; a new one
        where the block has none. Empty where it is another block, or more than one request, or the id is not sane."""
        start = end + self.front_length
        if not self.numbered:
            return new_request_id() if len(data) == start else b""
        request_id = data[start : len(data) - self.rear_length]
        if not data.endswith(self.rear) or len(request_id) > _LONGEST_ID or request_id.translate(_SANE) != request_id:
            return b""
        return request_id


def new_request_id() -> bytes:
    return b"%032x" % getrandbits(128)


def _without_request_id(fields: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The fields without the first request id."""
    at = next(i for i, (name, _) in enumerate(fields) if name == b"x-request-id")
    return fields[:at] + fields[at + 1 :]
