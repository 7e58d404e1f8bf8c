"""A stable app in front of the current generation of routes.

A reload prepares the next generation next to the current one, completely, and only then replaces it: a request finishes
on the generation that it began on, stored entries stay valid, and unchanged upstreams keep their connections. Those of
changed upstreams are closed after their last request.
"""

from __future__ import annotations

import asyncio

from fastapi.dependencies import models
from starlette.types import Receive, Scope, Send

from gateway.app.generation import Generation
from gateway.config.loader import Loaded
from gateway.config.tls import files_of, fingerprint
from gateway.edge.guard import ConnectionGuard, Underway
from gateway.edge.hits import Edge
from gateway.upstreams.client import Upstream


class Generations:
    """An ASGI app around a gateway that has not started; it runs the gateway's lifespan."""

    def __init__(self, gateway: Generation) -> None:
        self.current = gateway
        self.number = 1
        self._earlier: set[Underway] = set()
        self._retiring: set[asyncio.Task[None]] = set()
        self._refused_files: dict[str, bytes] = {}
        """What the upstreams' files contained when they last could not be used."""

    def __repr__(self) -> str:
        return f"<Generations {self.number} requests={self.current.underway.count} retiring={len(self._retiring)}>"

    @property
    def guard(self) -> ConnectionGuard:
        return self.current.guard

    @property
    def edge(self) -> Edge | None:
        """What the protocol class may serve from: nothing during shutdown, because then each response is the last on
        its connection, and served by the app."""
        current = self.current  # read on each hit: saves a lookup
        return None if current.guard.draining else current.edge

    @property
    def takes_websockets(self) -> bool:
        """An app around which a `Cache` is takes what its own routes do."""
        return bool(getattr(self.current, "takes_websockets", True))

    def prepare(self, loaded: Loaded) -> Generation:
        """The next generation, which changes nothing yet. Raises ConfigError."""
        return self.current.renewed(loaded)

    def switch(self, gateway: Generation) -> None:
        """Let a prepared generation answer all requests from now on."""
        old = self.current
        gateway.take_over(old)
        self.current, self.number = gateway, self.number + 1
        old.edge = None  # what it has learned leads back to `old`, past the garbage collector
        forget_endpoints()
        self._earlier = {each for each in (*self._earlier, old.underway) if each.count}
        kept = set(map(id, gateway.upstreams.values()))
        left = [upstream for upstream in old.upstreams.values() if id(upstream) not in kept]
        if left:
            self._retiring.add(task := asyncio.ensure_future(self._retire(tuple(self._earlier), left)))
            task.add_done_callback(self._retiring.discard)

    def reload(self, loaded: Loaded) -> None:
        """Answer by another configuration from now on. Raises ConfigError, and nothing has changed then."""
        self.switch(self.prepare(loaded))

    def renew_certificates(self) -> bool:
        """Open new connections with the upstreams' certificates and keys as their files are now; whether any file has
        changed. Raises ConfigError, once for each change, and nothing has changed then."""
        current = self.current
        now = {name: fingerprint(files_of(each)) for name, each in current.config.upstreams.items()}
        if now in (current.tls_files, self._refused_files):
            return False
        self._refused_files = now
        self.switch(self.prepare(current.loaded))
        return True

    @property
    def tls_state(self) -> str:
        """Names the contents of the upstreams' files of certificates and keys that are in use."""
        return b"".join(self.current.tls_files.values()).hex()

    async def _retire(self, earlier: tuple[Underway, ...], upstreams: list[Upstream]) -> None:
        """Close the connections of removed upstreams once nothing uses them: no request of an earlier generation,
        through ASGI or the pass-through, and no fetch that one of them started."""
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
            await current.app(scope, receive, send)
        finally:
            current.underway.ended()

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.current.app(scope, receive, send)
        finally:
            for task in self._retiring:
                task.cancel()
            if self._retiring:
                await asyncio.wait(set(self._retiring))


def forget_endpoints() -> None:
    """Empty what FastAPI keeps about endpoints: for the whole process, the last 4,096 it has seen (0.165).

    An endpoint refers to its app, so each generation would stay in memory (2.4 MB with one route) after the next one
    has taken its place, and in tests each app. What is still in use is classified again.
    """
    for value in vars(models).values():
        if hasattr(value, "cache_clear"):
            value.cache_clear()
