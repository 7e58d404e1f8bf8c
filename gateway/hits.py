"""Hits before ASGI: what the edge remembers, and the answers it writes from it.

The edge learns from the app. When the app has answered a request on a declared route, the route leaves a Recall: which
route it was, what it asked the cache for, how its answers are made public. From then on the same request line is
answered here, as long as a fresh response for it lies in memory. So no second place decides which route a path belongs
to, and what is unknown here is not answered here. Answers are made by the functions that the app makes them by; what
does not change from one hit to the next is made once (a Shape), `Age` and the remaining freshness once a second.

A request is known by its request line and by its header block, each remembered for itself: many clients ask for many
things, and remembering pairs would remember little. `X-Request-ID` is left out of a block, as it differs each time.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import orjson
from msgspec import structs
from uvicorn.protocols.http.httptools_impl import STATUS_LINE
from xxhash import xxh3_64_intdigest

from . import policy
from .access_log import AccessLog, JsonAccessLog, pieces_of, silent
from .answers import Answer, is_writable, stored_answer
from .edge_joins import Joins
from .engine import Ask, Engine, Route
from .epochs import EVERYTHING, Epochs, State, key_name, route_name, tag_name
from .exchange import Exchange
from .headers import Headers, has, values
from .joints import Joinable, Joint
from .keys import Plan, plan, primary_key, variant_key
from .ladder import Recorder
from .metrics import Metrics, Tally
from .middleware import Cors, server_timing
from .outcome import Outcome, Result, cache_status
from .proxies import Trusted
from .record import Stored, VaryIndex
from .targets import Target
from .tiers import Found, Selection
from .trace_context import TRACEPARENT
from .traffic import key_hash

# What makes a request more than a plain one: the app knows what to do.
_NOT_PLAIN = frozenset(
    (
        *(b"cache-control", b"content-length", b"expect", b"if-match", b"if-range", b"if-unmodified-since", b"pragma"),
        *(b"range", b"transfer-encoding", b"upgrade", b"x-request-id", b"gateway-explain"),
    )
)
_FORMING = frozenset((b"accept-encoding", b"if-none-match", b"if-modified-since", b"origin"))
REMEMBERED = 1024
"""The longest request line or header block that is remembered, in bytes."""
JOINED = 16 * 1024
"""Up to this size a body is copied behind its head, for one write; larger ones are handed over as they are."""
KEPT_JOINED = 2048
"""Up to this size the copy is kept until the age changes."""
SHAPES = 32
"""How many forms of one stored response are kept, of each kind: by coding, by 200 or 304, by Origin."""
TICKS = 1000
"""For how many microseconds the fields that tell the time taken are made beforehand."""

_CLOSING = b"\r\nconnection: close\r\n"
_SECONDS_TEXT = [orjson.dumps(ticks / 1_000_000) for ticks in range(TICKS)]


@dataclass(frozen=True, slots=True)
class Recall:
    """How the app answered a request, for the edge to do the same. `ask` is the request as the engine takes it, to
    refresh a stale answer; None leaves stale answers to the app."""

    route: Route
    origin: str
    target: str
    tags: tuple[str, ...]
    public: Callable[[Answer], Answer]
    ask: Callable[[Exchange], Ask] | None
    joinable: Callable[[Exchange], Joinable | None] | None = None
    """How the answer can be joined of what lies in memory; of aggregates."""


class Block:
    """A request's header block, judged: whether the edge may answer it, and what of it selects an answer.

    `headers` are without X-Request-ID. `plain` is False for whatever the app must see. `form` is what may change the
    form of an answer: the codings, the conditions, the Origin.
    """

    __slots__ = ("bases", "clients", "close", "form", "headers", "host", "origin", "plain", "vary")

    def __init__(self, headers: list[tuple[bytes, bytes]]) -> None:
        self.headers = headers
        self.plain = not any(name in _NOT_PLAIN for name, _ in headers)
        self.form = b"\n".join(name + b":" + value for name, value in headers if name in _FORMING)
        origins = values(headers, b"origin")
        self.origin = origins[0].decode("latin-1") if origins else None
        hosts = values(headers, b"host")
        self.host = hosts[0].decode("latin-1").lower() if hosts else ""
        self.close = any(
            item.strip(b" \t").lower() == b"close"
            for value in values(headers, b"connection")
            for item in value.split(b",")
        )
        self.bases: dict[Known, str | None] = {}
        self.vary: dict[tuple[str, ...], str | None] = {}
        self.clients: dict[str, bytes] = {}

    def base(self, known: Known) -> str | None:
        """What the counted inputs add to a primary key on a route; None where the request goes by the cache."""
        asked = plan(known.route.keying, "", "", self.headers)
        unshared = known.route.follows_origin and has(self.headers, b"authorization")
        base = None if asked.bypass is not None or unshared else asked.base[len(primary_key("", "")) :]
        self.bases[known] = base
        return base

    def variant(self, names: tuple[str, ...]) -> str | None:
        """What the fields that a response varies on add to its base key; None where that can't be known here."""
        suffix = None if "x-request-id" in names else variant_key("", names, self.headers)
        self.vary[names] = suffix
        return suffix


class Known:
    """A route as the edge knows it, and what is ready of its stored responses, by their keys."""

    __slots__ = ("ready", "recorder", "route")

    def __init__(self, route: Route, recorder: Recorder) -> None:
        self.route = route
        self.recorder = recorder
        self.ready: dict[str, Ready] = {}


class Spot:
    """A request line that the app has answered before."""

    __slots__ = ("head", "joints", "known", "modern", "names", "primary", "recall", "target")

    def __init__(self, line: bytes, recall: Recall, known: Known, target: Target | None) -> None:
        self.recall = recall
        self.known = known
        self.target = target
        self.head = line.startswith(b"HEAD ")
        self.modern = line.endswith(b"HTTP/1.1")
        self.primary = primary_key(recall.origin, recall.target)
        tags = (tag_name(tag) for tag in recall.tags)
        self.names = (EVERYTHING, key_name(self.primary), route_name(recall.route.name), *tags)
        self.joints: dict[str, Joint | None] = {}


class Ready:
    """A stored response made ready: its windows as the purges known by then leave it, and its shapes.

    It holds the stored headers, by whose identity it knows its response again, but not the body; one that is brought
    anew each time it knows by all else and the body's hash. Shapes are kept by what they are for: hits of GET and HEAD,
    stale answers to GET and HEAD.
    """

    __slots__ = ("brought", "flight", "fresh", "headers", "key", "revalidate", "shapes", "softened", "version")

    def __init__(self, stored: Stored, route: Route, epochs: Epochs, *, base: str, flight: str) -> None:
        self.key = key_hash(base)
        self.headers = stored.headers
        self.version = epochs.version
        self.softened = stored.softened
        self.flight = flight
        windows = policy.windows(stored, route.rules)
        self.fresh = windows.fresh
        self.revalidate = windows.revalidate
        self.shapes: tuple[dict[bytes, Shape], ...] = ({}, {}, {}, {})
        self.brought: tuple[Stored, int] | None = None

    def is_of(self, brought: Stored) -> bool:
        """Whether this was made of the same response that is brought now once more."""
        if self.brought is None or self.brought != _known_by(brought):
            return False
        self.headers = brought.headers
        return True


class Shape:
    """One form of a stored response: all bytes of an answer but those that differ with each request.

    `before` ends where the age stands, `after` follows it and ends where the request id stands. `until` is the
    instant at which the age or the remaining freshness changes next; `head` and `end` hold until then.
    `coded` is the key under which the body lies in memory, where it is not the stored response's own.
    """

    __slots__ = (
        *("after", "before", "coded", "end", "head", "length", "lines", "result"),
        *("status", "tally", "timing", "told", "until", "volatile"),
    )

    def __init__(self, status: int, before: bytes, after: bytes, result: Result, tally: Tally, *, length: int) -> None:
        self.status = status
        self.before = before
        self.after = after
        self.result = result
        self.tally = tally
        self.length = length
        self.coded = ""
        self.lines: dict[tuple[Spot, str], tuple[bytes, ...]] = {}
        self.volatile = False
        self.timing: list[bytes] = []
        self.until = -math.inf
        self.told = b"cache-status: " + cache_status(Outcome(result, ttl=0)).removesuffix(b"0")
        self.head = self.end = b""

    def render(self, stored: Stored, body: bytes, ready: Ready, rules: policy.Rules, now: float) -> None:
        """Write the age and the remaining freshness at `now`."""
        age = policy.age_for(stored, rules, now)
        left = ready.fresh - now
        self.head = b"%b%d%b" % (self.before, int(age), self.after)
        kept = body if self.length <= KEPT_JOINED and self.length else b""
        self.end = b"%b%d\r\n\r\n%b" % (self.told, left, kept)
        self.until = now + min(1.0 - age % 1.0, left % 1.0)
        if self.result is Result.HIT:
            self.until = min(self.until, ready.fresh)


@dataclass(frozen=True, slots=True)
class Brought:
    """A stored response that lay not in memory when it was wanted; `seconds` is what looking for it took."""

    stored: Stored
    tier: str
    seconds: float


class Edge:
    """What one generation of the app's routes lets the edge know. A reload, or an override, makes another one.

    `room` bounds what is remembered, in bytes, roughly.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        metrics: Metrics,
        cors: Cors | None = None,
        log: AccessLog = silent,
        trusted: Trusted | None = None,
        traced: bool = False,
        room: int = 32 * 1024 * 1024,
    ) -> None:
        self._engine = engine
        self._tiers = engine.tiers
        self._memory = engine.memory
        self._clock = engine.clock
        self._metrics = metrics
        self._cors = cors
        self._log = None if log is silent else log
        self._trusted = trusted or Trusted([])
        self._traced = traced
        self._timings = {result: _timings(result) for result in (Result.HIT, Result.STALE)}
        self._most = max(64, room // 4096)
        self._joins = Joins(engine, metrics=metrics, cors=cors, log=self._log, exchange=self._exchange, most=self._most)
        self.forget()

    def __repr__(self) -> str:
        return f"<Edge {len(self.spots)} lines, {len(self.blocks)} header blocks, {len(self._order)} responses>"

    def forget(self) -> None:
        """Know nothing: what was learned may no longer hold."""
        self.spots: dict[bytes, Spot] = {}
        self.blocks: dict[bytes, Block] = {}
        self._known: dict[int, Known] = {}
        self._order: deque[tuple[dict[str, Ready], str]] = deque()
        self._joins.forget()

    def learn(self, line: bytes, recall: Recall, target: Target | None) -> None:
        """Take note that the app answers this request line so."""
        if len(line) > REMEMBERED or line in self.spots:
            return
        known = self._known.get(id(recall.route))
        if known is None:
            known = self._known[id(recall.route)] = Known(
                recall.route, self._engine.traffic.recorder(recall.route.name)
            )
        if len(self.spots) >= self._most:
            del self.spots[next(iter(self.spots))]
        self.spots[line] = Spot(line, recall, known, target)

    def judged(self, text: bytes, headers: list[tuple[bytes, bytes]]) -> Block:
        """The judged form of a header block whose headers, without X-Request-ID, are these."""
        block = Block(headers)
        if self._traced and has(headers, TRACEPARENT):
            block.plain = False  # its client wants to see it in a trace
        if len(text) <= REMEMBERED:
            if len(self.blocks) * 4 >= self._most:
                del self.blocks[next(iter(self.blocks))]
            self.blocks[text] = block
        return block

    # --- answering -----------------------------------------------------------------------------------------

    def answer(
        self,
        transport: asyncio.Transport,
        peer: str,
        spot: Spot,
        block: Block,
        request_id: bytes,
        began: float,
        brought: Brought | None = None,
    ) -> bool:
        """Write the answer, if it lies ready in memory, or was `brought`; False where the app must give it. `began` is
        on the performance counter."""
        known = spot.known
        stored = self._in_memory(spot, block) if brought is None else brought.stored
        if stored is None:
            return self._joins.answer(transport, peer, spot, block, request_id, began)
        now = self._clock.now()
        purges = self._tiers.purges
        ready = known.ready.get(stored.key)
        epochs = purges.epochs
        if (
            ready is None
            or ready.version != epochs.version
            or (ready.headers is not stored.headers and (brought is None or not ready.is_of(stored)))
        ):
            ready = self._prepare(spot, block, stored)
            if ready is None:
                return self._joins.answer(transport, peer, spot, block, request_id, began)
            if brought is not None:
                ready.brought = _known_by(stored)
        if purges.distrusted_since(now) is not None:
            return False
        kind = int(spot.head)
        if now >= ready.fresh:
            if now >= ready.revalidate or spot.recall.ask is None:
                return self._joins.answer(transport, peer, spot, block, request_id, began)
            kind += 2
        shape = ready.shapes[kind].get(block.form)
        if shape is None or (shape.volatile and now >= shape.until):
            shape = self._shape(spot, block, ready, stored, kind, now)
            if shape is None:
                return False
        body = stored.body
        if shape.coded:
            made = self._memory.get(shape.coded)
            if made is None or made.born != stored.born:
                del ready.shapes[kind][block.form]
                return False
            body = made.body
        if kind > 1 and ready.flight not in self._engine.flights:
            # Not before the answer is certain: the app would find what this refresh brings. As the purges leave it:
            # unsoftened it would be taken for one that somebody has refreshed already.
            judged = stored if ready.softened is None else policy.softened(stored, ready.softened)
            self._refresh(spot, block, judged, request_id, began, peer)
        if now >= shape.until:
            shape.render(stored, body, ready, known.route.rules, now)
        elapsed = time.perf_counter() - began
        ticks = int(elapsed * 1_000_000 + 0.5)
        if brought is not None:
            timing = _timing(shape.result, elapsed, brought.seconds)
        else:
            timing = shape.timing[ticks] if ticks < TICKS else _timing(shape.result, elapsed)
        end = shape.end if spot.modern and not block.close else shape.end.replace(b"\r\n", _CLOSING, 1)
        length = shape.length
        if length <= KEPT_JOINED:
            transport.write(b"".join((shape.head, request_id, timing, end)))
        elif length <= JOINED:
            transport.write(b"".join((shape.head, request_id, timing, end, body)))
        else:
            transport.writelines((b"".join((shape.head, request_id, timing, end)), body))
        known.recorder.seen(ready.key, now)
        shape.tally.add(elapsed)
        if self._log is not None:
            tier = "memory" if brought is None else brought.tier
            self._note(spot, block, ready, shape, request_id, began, peer, now, elapsed, tier)
        return True

    def _in_memory(self, spot: Spot, block: Block) -> Stored | None:
        bases, known = block.bases, spot.known
        added = bases[known] if known in bases else block.base(known)
        if added is None:
            return None
        base = spot.primary + added
        index = self._memory.index(spot.primary)
        return self._memory.get(base) if index is None else self._newest(index, base, block)

    def may_lie_elsewhere(self, spot: Spot, block: Block) -> bool:
        """Whether the shared tier may hold what memory does not: then it is asked here, before the app is."""
        if spot.known.route.made or block.bases.get(spot.known) is None or not self._engine.shared.available:
            return False
        return self._in_memory(spot, block) is None

    async def from_elsewhere(self, spot: Spot, block: Block, headers: Headers) -> Brought | None:
        """What the shared tier has for a request with these headers, if it says so in time; taken into memory, as the
        app's own look takes it."""
        began = time.perf_counter()
        wanted = Selection(Plan(spot.primary, spot.primary + (block.bases[spot.known] or ""), ()), headers, spot.names)
        found = await self._tiers.newer(wanted, Found(None))
        if found.stored is None:
            return None
        return Brought(found.stored, found.tier or "redis", time.perf_counter() - began)

    def _newest(self, index: VaryIndex, base: str, block: Block) -> Stored | None:
        """The newest response in memory that the request selects, as `Tiers.at_hand` finds it; None also where a
        field that the edge does not see takes part in that."""
        get = self._memory.get
        found = get(base)
        for names in index.names:
            suffix = block.vary.get(names)
            if suffix is None and (suffix := block.variant(names)) is None:
                return None
            other = get(base + suffix) if suffix else None
            if other is not None and (found is None or other.born > found.born):
                found = other
        return found

    def _prepare(self, spot: Spot, block: Block, stored: Stored) -> Ready | None:
        """The stored response made ready; None where a purge has made it void."""
        epochs = self._tiers.purges.epochs
        names = (*spot.names, *map(tag_name, stored.tags), *stored.names)
        state, softened = epochs.judge(stored.stamp, stored.started, names)
        if state is State.VOID:
            return None
        if state is State.SOFT:
            stored = policy.softened(stored, softened)
        route = spot.known.route
        base = spot.primary + (block.bases[spot.known] or "")
        index = self._memory.index(spot.primary)
        flight = variant_key(base, index.names[0], block.headers) if index is not None and index.names else base
        ready = Ready(stored, route, epochs, base=base, flight=flight)
        known = spot.known.ready
        if stored.key not in known:
            self._order.append((known, stored.key))
            if len(self._order) > self._most:
                old, key = self._order.popleft()
                old.pop(key, None)
        known[stored.key] = ready
        return ready

    def _shape(self, spot: Spot, block: Block, ready: Ready, stored: Stored, kind: int, now: float) -> Shape | None:
        """The form of the answer that this request gets; None where the app must give it its own."""
        rules = spot.known.route.rules
        exchange = Exchange("", 0.0, "HEAD" if spot.head else "GET", "", "")
        coded = self._engine.prepared.choose(block.headers, stored, rules)
        if coded is not None and coded.pending:
            return None
        answer = spot.recall.public(stored_answer(exchange, block.headers, stored, rules, now, coded))
        headers = answer.headers if self._cors is None else self._cors.told(answer.headers, block.origin)
        if not is_writable(answer.status, headers):
            return None
        lines = [name + b": " + value + b"\r\n" for name, value in headers]
        at = next(i for i, (name, _) in enumerate(headers) if name == b"age")
        result = Result.STALE if kind > 1 else Result.HIT
        body = answer.body
        assert isinstance(body, bytes)
        shape = Shape(
            answer.status,
            STATUS_LINE[answer.status] + b"".join(lines[:at]) + b"age: ",
            b"\r\n" + b"".join(lines[at + 1 :]) + b"x-request-id: ",
            result,
            self._metrics.tally(spot.known.route.name, result, answer.status),
            length=len(body),
        )
        shape.timing = self._timings[result]
        shape.coded = coded.key if coded is not None else ""
        shape.volatile = rules.client_ttl is not None
        shapes = ready.shapes[kind]
        if len(shapes) >= SHAPES:
            shapes.clear()
        shapes[block.form] = shape
        return shape

    # --- besides -------------------------------------------------------------------------------------------

    def _exchange(self, spot: Spot, block: Block, request_id: bytes, began: float, peer: str) -> Exchange:
        return Exchange(
            request_id=request_id.decode("ascii"),
            began=began,
            method="HEAD" if spot.head else "GET",
            client=self._trusted.client(peer, block.headers),
            scheme="",
            host=block.host,
            target=spot.target,
            headers=block.headers,
            route=spot.known.route.name,
        )

    def _refresh(self, spot: Spot, block: Block, stored: Stored, request_id: bytes, began: float, peer: str) -> None:
        assert spot.recall.ask is not None
        ask = spot.recall.ask(self._exchange(spot, block, request_id, began, peer))
        self._engine.refresh_behind(ask, stored)

    def _note(
        self,
        spot: Spot,
        block: Block,
        ready: Ready,
        shape: Shape,
        request_id: bytes,
        began: float,
        peer: str,
        now: float,
        elapsed: float,
        tier: str,
    ) -> None:
        """The request's line in the access log."""
        assert self._log is not None
        if not isinstance(self._log, JsonAccessLog) or tier != "memory":
            exchange = self._exchange(spot, block, request_id, began, peer)
            exchange.key = ready.key
            exchange.outcome = Outcome(shape.result, ttl=int(ready.fresh - now), tier=tier)
            self._log(exchange, shape.status, shape.length, elapsed)
            return
        if not self._log.wants(shape.result):
            return
        before, between, behind, rest, end = shape.lines.get((spot, block.host)) or self._pieces(
            spot, block, ready, shape
        )
        client = block.clients.get(peer) or self._client(block, peer)
        ticks = int(elapsed * 1_000_000 + 0.5)
        seconds = _SECONDS_TEXT[ticks] if ticks < TICKS else orjson.dumps(round(elapsed, 6))
        moment = self._log.now()
        self._log.write(b"".join((before, moment, between, request_id, behind, client, rest, seconds, end)))

    def _pieces(self, spot: Spot, block: Block, ready: Ready, shape: Shape) -> tuple[bytes, ...]:
        """What of a line in the access log is the same for all hits of a shape by one request line and host."""
        exchange = self._exchange(spot, block, b"", 0.0, "")
        exchange.key = ready.key
        exchange.outcome = Outcome(shape.result, tier="memory")
        share = self._log.share_of(shape.result) if isinstance(self._log, JsonAccessLog) else 1.0
        before, between, behind, rest, end = pieces_of(exchange, shape.status, shape.length, share)
        if len(shape.lines) >= SHAPES:
            shape.lines.clear()
        pieces = shape.lines[spot, block.host] = (before + b'"', b'"' + between + b'"', b'"' + behind, rest, end)
        return pieces

    def _client(self, block: Block, peer: str) -> bytes:
        if len(block.clients) >= SHAPES:
            block.clients.clear()
        client = block.clients[peer] = orjson.dumps(self._trusted.client(peer, block.headers))
        return client


def _known_by(stored: Stored) -> tuple[Stored, int]:
    return structs.replace(stored, body=b""), xxh3_64_intdigest(stored.body)


def _timing(result: Result, elapsed: float, looked: float | None = None) -> bytes:
    """The fields that tell the time taken, in seconds and milliseconds, as the app tells it. `looked` (seconds) is what
    the shared tier took of it, where it was asked."""
    exchange = Exchange("", 0.0, "", "", "", outcome=Outcome(result))
    if looked is not None:
        exchange.spend("cache", looked)
    return b"\r\nx-process-time: %.6f\r\nserver-timing: %b\r\n" % (elapsed, server_timing(exchange, elapsed))


def _timings(result: Result) -> list[bytes]:
    return [_timing(result, ticks / 1_000_000) for ticks in range(TICKS)]
