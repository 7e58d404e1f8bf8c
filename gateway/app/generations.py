"""A stable app in front of the generation of routes that answers now.

A reload makes the next generation beside the one that answers, whole, and only then puts it in its place: a request
runs to its end on the generation that it began on, what is stored stays valid, and upstreams whose configuration did
not change keep their connections. Those that changed are closed once the last request to them has ended.
"""

from __future__ import annotations

import asyncio

from starlette.types import Receive, Scope, Send

from gateway.app.gateway import Gateway
from gateway.cache.background import Underway
from gateway.config.loader import Loaded
from gateway.edge.guard import ConnectionGuard
from gateway.edge.hits import Edge
from gateway.upstreams.client import Upstream


class Generations:
    """An ASGI app. Made of a gateway that has not started; it takes the gateway's lifespan in its charge."""

    def __init__(self, gateway: Gateway) -> None:
        self.current = gateway
        self.number = 1
        self._earlier: set[Underway] = set()
        self._retiring: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Generations {self.number} requests={self.current.underway.count} retiring={len(self._retiring)}>"

    @property
    def door(self) -> ConnectionGuard:
        return self.current.door

    @property
    def edge(self) -> Edge | None:
        """What the protocol class may answer from by itself: nothing while it drains, for then each answer is the last
        on its connection, and the app's to give."""
        current = self.current  # asked at each hit: one look less
        return None if current.door.draining else current.edge

    def prepare(self, loaded: Loaded) -> Gateway:
        """The next generation, which changes nothing yet. Raises ConfigError."""
        return self.current.renewed(loaded)

    def switch(self, gateway: Gateway) -> None:
        """Let a prepared generation answer all requests from now on."""
        old = self.current
        gateway.take_over(old)
        self.current, self.number = gateway, self.number + 1
        self._earlier = {each for each in (*self._earlier, old.underway) if each.count}
        kept = set(map(id, gateway.upstreams.values()))
        left = [upstream for upstream in old.upstreams.values() if id(upstream) not in kept]
        if left:
            self._retiring.add(task := asyncio.ensure_future(self._retire(tuple(self._earlier), left)))
            task.add_done_callback(self._retiring.discard)

    def reload(self, loaded: Loaded) -> None:
        """Answer by another configuration from now on. Raises ConfigError, and nothing has changed then."""
        self.switch(self.prepare(loaded))

    async def _retire(self, earlier: tuple[Underway, ...], upstreams: list[Upstream]) -> None:
        """Close the connections of upstreams that are left, once nobody who may use them is under way: no request of
        an earlier generation, whether it came through ASGI or past it, and no fetch that one of them began."""
        try:
            for underway in earlier:
                await underway.none()
            await self.current.engine.background.outlast()
        finally:
            for upstream in upstreams:
                await upstream.aclose()

    def expect_lifespan(self) -> None:
        self.current.expect_lifespan()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
            return
        current = self.current
        current.underway.began()
        try:
            await current(scope, receive, send)
        finally:
            current.underway.ended()

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.current(scope, receive, send)
        finally:
            for task in self._retiring:
                task.cancel()
            if self._retiring:
                await asyncio.wait(set(self._retiring))
