"""Names of upstreams: resolved again in the background, with draining of connections to old addresses.

aiohttp resolves a name when it opens a connection, so a kept-alive connection stays on an address that the name has
left. Here each name is resolved again at an interval. Connections to an address that it no longer has finish what is in
flight and take no further request; several addresses are used in turn. A failed look-up changes nothing.

The interval is a setting and not the TTL of the record: the system's resolver, which handles the hosts file, search
domains and service names of the platform, returns no TTL.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Protocol
from weakref import WeakSet

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection, TCPConnector

from gateway.config.types import is_public
from gateway.observability.log import state

logger = logging.getLogger("gateway")

INTERNALS = {TCPConnector: ("_create_connection", "_get")}
"""Overridden parts of aiohttp that its documentation does not name; a test fails if a new aiohttp changes them."""


class PublicResolver(AbstractResolver):
    """Returns public addresses only: a name that resolves to an internal one (loopback, link-local, private) has none.

    Otherwise a name whose owner, or whose DNS, points it to 127.0.0.1 or 169.254.169.254 would make the gateway fetch
    internal resources and serve them publicly.
    """

    def __init__(self, resolver: AbstractResolver) -> None:
        self._resolver = resolver

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        public = [each for each in found if is_public(each["host"])]
        if not public:
            raise OSError(None, "the name resolves to no public address")
        return public

    async def close(self) -> None:
        await self._resolver.close()


class Drained(Protocol):
    """A connection as this module sees it."""

    peer: str
    """The address at its other end."""

    def drain(self) -> None:
        """Finish what is in flight, take no further request; close at once if nothing is in flight."""

    def drain_later(self) -> None:
        """The same of a connection that is new and about to be used: its first request is sent."""


class Name:
    """One name, its addresses as of the last look-up that succeeded, and the connections made by it."""

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port
        self.addresses: list[ResolveResult] = []
        self.failing = False
        """Whether the last look-up failed."""
        self.first: asyncio.Task[None] | None = None
        self.following: asyncio.Task[None] | None = None
        self._passed_over: set[str] = set()
        self._turns: list[str] = []
        self._connections: WeakSet[Drained] = WeakSet()

    def __repr__(self) -> str:
        return f"<Name {self.host} {', '.join(self.peers)}{' failing' if self.failing else ''}>"

    @property
    def peers(self) -> list[str]:
        """The addresses, each once, as a socket names its peer."""
        return list(dict.fromkeys(_unscoped(each["host"]) for each in self.addresses))

    @property
    def several(self) -> bool:
        """Whether requests go to several addresses in turn."""
        return len(self._turns) > 1

    @property
    def turn(self) -> str:
        """The address that the next request goes to."""
        return self._turns[0]

    def advance(self) -> None:
        """The address whose turn it is has had it."""
        self._turns.append(self._turns.pop(0))

    def found(self, addresses: list[ResolveResult]) -> None:
        """Use these from now on. Addresses that took no connection are tried again."""
        self.addresses, self.failing = addresses, False
        self._passed_over.clear()
        peers = self.peers
        kept = [each for each in self._turns if each in peers]
        self._turns = [*kept, *(each for each in peers if each not in kept)]
        for connection in list(self._connections):
            if connection.peer not in peers:
                self._connections.discard(connection)
                connection.drain()

    def in_order(self) -> list[ResolveResult]:
        """The addresses for a new connection, that whose turn it is first, those passed over last."""
        order = [*self._turns, *self._passed_over]
        if self.several:
            self.advance()
        return sorted(self.addresses, key=lambda each: order.index(_unscoped(each["host"])))

    def connected(self, connection: Drained, tried: list[str]) -> None:
        """A connection was made, after those of `tried` before its address took none."""
        if connection.peer not in self.peers:
            connection.drain_later()
            return
        self._connections.add(connection)
        for address in tried[: tried.index(connection.peer)] if connection.peer in tried else ():
            if address in self._turns:
                self._turns.remove(address)
                self._passed_over.add(address)


def _unscoped(address: str) -> str:
    """An address without its zone (`fe80::1%eth0`), which a socket's peer name does not have."""
    return address.partition("%")[0]


_TRIED: ContextVar[list[str]] = ContextVar("tried")
"""The addresses for the connection that is being made, in their order."""


class Names(AbstractResolver):
    """A resolver with a cache, which resolves each name again every `every` seconds until it is closed. A first look-up
    that fails raises what `resolver` raises; a later one is logged once."""

    def __init__(self, resolver: AbstractResolver, every: float) -> None:
        self._resolver = resolver
        self._every = every
        self._names: dict[str, Name] = {}
        self.several: dict[str, Name] = {}
        """Those that lead to several addresses."""
        self.failures = 0
        """How many look-ups failed."""

    def __repr__(self) -> str:
        return f"<Names {list(self._names.values())}>"

    def known(self) -> list[Name]:
        return list(self._names.values())

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        name = self._names.get(host)
        if name is None:
            name = self._names[host] = Name(host, port)
            name.first = asyncio.ensure_future(self._first(name, family))
            name.first.add_done_callback(lambda first: first.cancelled() or first.exception())
        if name.first is not None:
            await asyncio.shield(name.first)
        order = name.in_order()
        _TRIED.set([_unscoped(each["host"]) for each in order])
        return [{**each, "port": port} for each in order]

    async def _first(self, name: Name, family: socket.AddressFamily) -> None:
        try:
            name.found(await self._look_up(name, family))
        except BaseException:
            self._names.pop(name.host, None)
            raise
        self._share_out(name)
        name.first = None
        name.following = asyncio.ensure_future(self._follow(name, family))

    async def _follow(self, name: Name, family: socket.AddressFamily) -> None:
        while True:
            await asyncio.sleep(self._every)
            try:
                found = await self._look_up(name, family)
            except Exception as error:  # whatever a resolver raises, the next look-up is made
                self._log_failure(name, error)
                continue
            if name.failing:
                addresses = ", ".join(each["host"] for each in found)
                logger.info("the name %s is found again: %s", name.host, addresses, extra=state(f"name {name.host}"))
            name.found(found)
            self._share_out(name)

    async def _look_up(self, name: Name, family: socket.AddressFamily) -> list[ResolveResult]:
        try:
            found = await self._resolver.resolve(name.host, name.port, family)
            if not found:
                raise OSError(None, "the name has no address")
        except Exception:
            self.failures += 1
            raise
        return found

    def _log_failure(self, name: Name, error: Exception) -> None:
        if not name.failing:
            name.failing = True
            logger.warning(
                "the name %s of an upstream is not found (%s); its last addresses stay in use: %s",
                name.host,
                getattr(error, "strerror", None) or str(error) or type(error).__name__,
                ", ".join(name.peers),
                extra=state(f"name {name.host}", "not found"),
            )

    def _share_out(self, name: Name) -> None:
        """Have requests go to each of a name's addresses in turn, if there are several."""
        if name.several:
            self.several[name.host] = name
        else:
            self.several.pop(name.host, None)

    def connected(self, host: str, connection: Drained) -> None:
        """A connection was opened for the name `host`, or for an address, which isn't a name."""
        name = self._names.get(host)
        if name is not None:
            name.connected(connection, _TRIED.get([]))
            self._share_out(name)

    async def close(self) -> None:
        tasks = [task for name in self._names.values() for task in (name.first, name.following) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._names.clear()
        self.several.clear()
        await self._resolver.close()


class Connector(TCPConnector):
    """aiohttp's connector and pool, with the addresses of `names`; `factory` makes the protocol of a connection, and
    `make_room` is called before one is made."""

    def __init__(
        self, names: Names, factory: Callable[[], asyncio.Protocol], make_room: Callable[[], None], **options: Any
    ) -> None:
        super().__init__(resolver=names, use_dns_cache=False, **options)
        self._factory = factory  # type: ignore[assignment]
        self._names = names
        self._make_room = make_room

    @property
    def open(self) -> int:
        """The open connections, and those that are being made, if this is their pool."""
        return len(self._acquired) + sum(map(len, self._conns.values()))

    def close_idle(self) -> bool:
        """Close the connection that has been idle for longest; whether there was one."""
        idle = min((kept for kept in self._conns.values() if kept), key=lambda kept: kept[0][1], default=None)
        if idle is not None:
            idle.popleft()[0].close()
        return idle is not None

    async def _create_connection(
        self, req: aiohttp.ClientRequest, traces: list[Any], timeout: aiohttp.ClientTimeout
    ) -> ResponseHandler:
        self._make_room()
        made: Any = await super()._create_connection(req, traces, timeout)
        self._names.connected(req.url.raw_host or "", made)
        return made  # type: ignore[no-any-return]

    async def _get(self, key: Any, traces: list[Any]) -> Connection | None:
        """A kept connection: to the address whose turn it is, where there are several."""
        name = self._names.several.get(key.host)
        idle = self._conns.get(key)
        if name is not None and idle:
            turn = next((at for at, (kept, _) in enumerate(idle) if getattr(kept, "peer", "") == name.turn), None)
            if turn is None:
                return None
            idle.rotate(-turn)
            name.advance()
        return await super()._get(key, traces)
