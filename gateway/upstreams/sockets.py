"""The sockets of connections to upstreams: who is at the other end, and acknowledging what came at once."""

from __future__ import annotations

import asyncio
import socket
from functools import lru_cache

import aiohttp
from yarl import URL

_QUICKACK = getattr(socket, "TCP_QUICKACK", None)
"""Linux has it."""


def peer_of(transport: asyncio.BaseTransport) -> str:
    """The address at the other end of a connection."""
    name = transport.get_extra_info("peername")
    return str(name[0]) if isinstance(name, tuple) else ""


def acknowledge(transport: asyncio.BaseTransport | None) -> None:
    """Acknowledge what was received at once, where the system can.

    A server that writes head and body apart without TCP_NODELAY holds the body until the head is acknowledged (Nagle's
    algorithm), and on a kept connection the kernel delays that by 40 ms. The option lasts for a moment (tcp(7)), so it
    is set again for each piece that is not the last.
    """
    if _QUICKACK is not None and transport is not None:
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            try:
                sock.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)
            except OSError:
                return  # the connection has ended


@lru_cache(maxsize=256)
def host_of(origin: str) -> str:
    """The host of an origin, in the form that aiohttp passes to the resolver."""
    return URL(origin).raw_host or ""


@lru_cache(maxsize=64)
def client_timeout(pool: float | None, connect: float | None, read: float | None) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=None, connect=pool, sock_connect=connect, sock_read=read)
