"""What tests of an app need: a clock that the test turns, a stub upstream, and a client of a running gateway.

Nothing here waits for time to pass or opens a socket, and nothing needs pytest.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from starlette.types import Receive, Scope, Send

from gateway.app.generation import Generation
from gateway.upstreams.httpx_api import httpx

Answer = Callable[[httpx.Request], httpx.Response]
"""A stub upstream's response to a request."""


class TurnedClock:
    """A `Clock` that stands still until a test turns it: `create_app(…, clock=TurnedClock())`.

    `at` is in seconds since 1970; it begins at a whole second unless another is given.
    """

    def __init__(self, at: float = 1_800_000_000.0) -> None:
        self.at = at

    def now(self) -> float:
        """Seconds since 1970."""
        return self.at

    def when(self, counted: float) -> float:
        """The same: this clock does not follow the performance counter."""
        return self.at

    def turn(self, seconds: float) -> None:
        """Let `seconds` pass."""
        self.at += seconds


class StubUpstream(httpx.AsyncBaseTransport):
    """An upstream without a server: `create_app(…, transport=StubUpstream(answer))`.

    It answers by a function and keeps the requests, bodies read, in `requests`. `came` is released once for each
    request. While `gate` is cleared, requests wait for it, as for a slow upstream. What `answer` raises, as
    `httpx.ConnectError`, is the connection's failure.
    """

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.requests: list[httpx.Request] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.came = asyncio.Semaphore(0)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """What httpx calls for each request."""
        if not isinstance(request.stream, httpx.ByteStream):
            await request.aread()
        request.extensions.pop("attempt", None)  # refers to the app, past the garbage collector
        self.requests.append(request)
        self.came.release()
        await self.gate.wait()
        return self.answer(request)

    @property
    def asked(self) -> int:
        """How many requests came, the waiting ones included."""
        return len(self.requests)


@contextlib.asynccontextmanager
async def running(app: Generation) -> AsyncIterator[httpx.AsyncClient]:
    """Run the lifespan of `app`, a Gateway or the Cache of another app, and give a client of it.

    The client calls the app in this event loop, without a socket. Relative URLs are of `http://gateway.test`. An
    exception that the app does not handle is answered with 500, as by a server.
    """
    async with app.app.router.lifespan_context(app.app) as state:

        async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
            await app.app({**scope, "state": dict(state)} if state else scope, receive, send)

        transport = httpx.ASGITransport(with_state, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway.test") as client:
            yield client
