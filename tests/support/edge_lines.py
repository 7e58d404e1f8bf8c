"""Connections without sockets: a protocol class of ours, an app behind it, and two gateways to compare.

One of the two has the edge, the other has not; what both live through must come to the same bytes and lines of the log.
"""

from __future__ import annotations

import asyncio
import re
import weakref
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar, cast

import httpx
import uvicorn
from uvicorn.server import ServerState

from gateway.app.gateway import Gateway, create_app
from gateway.app.generations import Generations
from gateway.context import RequestContext
from gateway.edge.client_connection import ClientConnection
from gateway.edge.passthrough import PassThrough, PassThroughRequest
from gateway.edge.protocol import GatewayProtocol
from gateway.observability.access_log import fields_of
from gateway.testing import StubUpstream, TurnedClock
from tests.support.gateways import gateway

AnyBoth = TypeVar("AnyBoth", bound="Both")
ANSWERED_IN = 30.0
"""Seconds: less than a test has, so that one which would wait for ever says what it waits for."""
GET = b"GET /o/1 HTTP/1.1\r\nHost: gateway.test\r\n%b\r\n"


class Pipe(asyncio.Transport):
    """A transport that keeps what is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": ("192.0.2.1", 4711), "sockname": ("127.0.0.1", 80)}.get(name, default)

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def can_write_eof(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0


class Counted:
    """An app as uvicorn sees it, and how often it was asked for what was no hit: by ASGI, or past it."""

    def __init__(self, app: Gateway) -> None:
        self.app = app
        self.asked = 0
        self.passed = 0
        self.guard = app.guard
        if app.edge is not None and app.edge.pass_through is not None:
            app.edge.pass_through = cast(Any, Passing(self, app.edge.pass_through))

    @property
    def edge(self) -> Any:
        return self.app.edge

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked += 1
        await self.app(scope, receive, send)


class Passing:
    """Counts what passes."""

    def __init__(self, counted: Counted, pass_through: PassThrough) -> None:
        self._counted = counted
        self._pass_through = pass_through

    def pass_request(self, *args: Any, **kwargs: Any) -> PassThroughRequest | None:
        return self._count(self._pass_through.pass_request(*args, **kwargs))

    def repeated(self, *args: Any, **kwargs: Any) -> PassThroughRequest | None:
        return self._count(self._pass_through.repeated(*args, **kwargs))

    def _count(self, pass_request: PassThroughRequest | None) -> PassThroughRequest | None:
        if pass_request is not None:
            self._counted.asked += 1
            self._counted.passed += 1
        return pass_request


_protocols: weakref.WeakSet[GatewayProtocol] = weakref.WeakSet()


def forget_lines() -> None:
    """End what each `Line` leaves behind. A protocol and its edge refer to their app past the garbage collector, until
    the connection is lost and the lifespan has ended; a line has no lifespan, and the app would stay in memory."""
    for protocol in list(_protocols):
        if (edge := getattr(protocol.config.app, "edge", None)) is not None:
            edge.forget()
        for name in (*vars(protocol), *ClientConnection.__slots__, *GatewayProtocol.__slots__):
            delattr(protocol, name)
    _protocols.clear()


class Line:
    """A connection to an app, by its protocol class alone."""

    def __init__(self, app: Counted | Generations) -> None:
        plain: dict[str, Any] = {"date_header": False, "server_header": False, "proxy_headers": False}
        config = uvicorn.Config(cast(Any, app), lifespan="off", log_config=None, **plain)
        self.pipe = Pipe()
        self.protocol = GatewayProtocol(config, ServerState(), {})
        self.protocol.connection_made(self.pipe)
        _protocols.add(self.protocol)

    def send(self, data: bytes) -> None:
        self.protocol.data_received(data)

    async def answer(self) -> bytes:
        """What is written until nothing is owed or under way any more. A request whose body is not sent whole is an
        error, after `ANSWERED_IN`."""
        async with asyncio.timeout(ANSWERED_IN):
            while self.protocol.tasks or self.protocol._asking is not None:
                await asyncio.wait(set(self.protocol.tasks)) if self.protocol.tasks else await asyncio.sleep(0)
        written, self.pipe.written = self.pipe.written, b""
        return written

    def hang_up(self) -> None:
        self.protocol.connection_lost(None)


async def asked(line: Line, request: bytes) -> bytes:
    line.send(request)
    return await line.answer()


class Changing:
    """What the upstream says at the moment; the same to both gateways."""

    def __init__(self) -> None:
        self.status = 200
        self.version = 1
        self.headers: dict[str, str] = {}

    def say(self, status: int, headers: Mapping[str, str], version: int) -> None:
        self.status, self.headers, self.version = status, dict(headers), version

    def __call__(self, request: httpx.Request) -> httpx.Response:
        parts = [str(self.version), request.url.path, request.headers.get("accept-encoding", "")]
        body = b"" if self.status == 204 else "|".join(parts).encode() * (self.version * 40)
        plain = {"content-type": "text/plain"}  # and no Date: the gateway's own is of the turned clock
        return httpx.Response(self.status, content=body, headers=plain | self.headers)


class Side:
    """One of the two gateways that are compared. `written` adds routes in Python."""

    def __init__(
        self,
        clock: TurnedClock,
        changing: Changing,
        *,
        edge: bool,
        written: Callable[[Gateway, Changing], object] = lambda app, changing: None,
        **settings: Any,
    ) -> None:
        self.lines: list[dict[str, Any]] = []
        config = {
            "redis_url": "none",
            "redis_secret": "the same in both: keys are in logs",
            "upstreams": {"api": {"url": "http://api.test", "timeout": "5s"}},
            "memory": "4MiB",
            **settings,
        }
        self.upstream = StubUpstream(changing)
        self.app = create_app(config, transport=self.upstream, clock=clock, log=self._log)
        written(self.app, changing)
        if not edge:
            self.app.edge = None
        self.app.engine._storing.jitter = lambda: 0.5
        self.counted = Counted(self.app)
        self.line: Line | None = None
        self.sent = 0

    def _log(self, exchange: RequestContext, status: int, size: int, seconds: float) -> None:
        fields = fields_of(exchange, status, size, seconds)
        self.lines.append(
            {name: fields[name] for name in fields if name not in ("time", "seconds", "request_id", "upstream_seconds")}
        )

    async def ask(self, request: bytes) -> tuple[bytes, bool]:
        if self.line is None or self.line.pipe.closed:
            self.line = Line(self.counted)
        self.sent += 1
        self.line.send(request)
        answer = await self.line.answer()
        closed = self.line.pipe.closed
        if closed:
            self.line.hang_up()
            self.line = None
        await self.app.engine.settle()
        return masked(answer), closed

    def counts(self) -> list[str]:
        text = self.app.metrics.render().decode().splitlines()
        return [line for line in text if line.startswith(("gateway_requests_total", "gateway_request_seconds_count"))]


_MASKS = (
    (re.compile(rb"x-request-id: [0-9a-f]{32}\r\n"), b"x-request-id: made\r\n"),
    (re.compile(rb"x-process-time: [0-9.]+\r\n"), b"x-process-time: t\r\n"),
    (re.compile(rb"dur=[0-9.]+"), b"dur=t"),
    # What is answered without the cache has the real clock's date, which may turn between the two.
    (re.compile(rb"date: \w+, \d\d \w+ %d " % datetime.now(UTC).year + rb"[0-9:]+ GMT\r\n"), b"date: now\r\n"),
    (re.compile(rb'"request_id":"[^"]*"'), b""),
)


def masked(answer: bytes) -> bytes:
    """An answer without clocks and ids."""
    for pattern, instead in _MASKS:
        answer = pattern.sub(instead, answer)
    return answer


class Both:
    """Two gateways that live through the same, one with the edge and one without. `said` are the headers that the
    upstream begins with."""

    def __init__(self, changing: Changing, side: Callable[..., Side], said: Mapping[str, str]) -> None:
        self.clock = TurnedClock()
        self.changing = changing
        self.sides = [side(self.clock, changing, edge=edge) for edge in (True, False)]
        self._said = said
        self.last = b""

    async def live(self, story: list[tuple[str, Any]]) -> None:
        self.clock.turn(100_000)
        self.changing.say(200, self._said, 1)
        self.last = b""
        for side in self.sides:
            side.app.engine.memory.clear()
            side.lines.clear()
        for kind, what in story:
            await self.step(kind, what)
        assert self.sides[0].lines == self.sides[1].lines

    async def step(self, kind: str, what: Any) -> None:
        if kind == "turn":
            self.clock.turn(what)
        elif kind == "say":
            self.changing.say(*what)
        elif kind == "purge":
            for side in self.sides:
                await side.app.purge(**what)
        elif kind == "ask" or self.last:
            await self.ask(kind, what)

    async def ask(self, kind: str, what: bytes | None) -> bytes:
        """Ask both for `what`, or for the last again; they answer the same."""
        self.last = what if what is not None else self.last
        first, second = [await side.ask(self.last) for side in self.sides]
        assert first == second, self.last
        return first[0]


def living(make: Callable[[], AnyBoth]) -> Iterator[tuple[asyncio.Runner, AnyBoth]]:
    """What `make` makes in a loop, and the loop's runner; for fixtures of a module."""
    with asyncio.Runner() as runner:

        async def made() -> AnyBoth:
            return make()

        yield runner, runner.run(made())


def get(target: bytes, host: bytes = b"gateway.test", more: bytes = b"", version: bytes = b"1.1") -> bytes:
    named = b"Host: " + host + b"\r\n" if host else b""
    return b"GET " + target + b" HTTP/" + version + b"\r\n" + named + more + b"\r\n"


def plain(**settings: Any) -> tuple[Counted, StubUpstream]:
    upstream = StubUpstream(lambda _: httpx.Response(200, content=b"body", headers={"cache-control": "max-age=60"}))
    return Counted(gateway(upstream, **settings)), upstream
