"""Hits in the access log: the app's own lines, of which most was written before.

Memos: what a header block was answered to a request line last, ready to be given again.

Most hits are repetitions: the same line, asked for with the same header block, while the same response lies in memory.
What the first of them found out holds for the next as long as nothing has changed that it rests on; and that is
compared by a few numbers, instead of looked up once more: the turns of the nodes in memory, which tell that the same
response lies there, that no other may be selected, and that its coded body is there; the purges' version; and the
instant up to which the answer's head holds, which is never later than its freshness or the trust in memory. Anything
else goes the long way (`hits`), which leaves another memo. So a memo decides nothing; it only remembers.

A hit this way takes half of what the long way takes (docs/performance.md).

Hits before ASGI: what the edge remembers, and the answers it writes from it.

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
import time
from collections import deque
from collections.abc import Callable

import orjson

from gateway.advisor.ttl_ladder import Sight
from gateway.cache.engine import Engine
from gateway.cache.memory import MOST_USES, Node
from gateway.cache.respond import stored_answer
from gateway.context import Outcome, RequestContext, Result
from gateway.edge.entries import (
    JOINED,
    SHAPES,
    Endings,
    HeaderBlock,
    KnownRoute,
    KnownTarget,
    Memo,
    PreparedResponse,
    ResponseForm,
)
from gateway.edge.head_template import MARK, TICKS, template_of
from gateway.edge.passthrough import PassThrough
from gateway.edge.shared_lookup import SharedFinder, SharedHit
from gateway.edge.splice import Splicer, has_expired
from gateway.http.forwarding import Trusted
from gateway.http.headers import has
from gateway.http.target import Target
from gateway.observability.access_log import AccessLog, JsonAccessLog, pieces_of, silent
from gateway.observability.metrics import SECONDS, Metrics
from gateway.observability.trace_context import TRACEPARENT
from gateway.policy import freshness
from gateway.policy.entry import Entry
from gateway.policy.epochs import PurgeState, tag_name
from gateway.policy.vary import likely_key, newest
from gateway.routing.cors import Cors
from gateway.routing.fast_path import FastPath

_SECONDS_TEXT = [orjson.dumps(ticks / 1_000_000) for ticks in range(TICKS)]


class HitLog:
    """Writes to `log`. `exchange` makes a request's Exchange."""

    def __init__(
        self,
        log: AccessLog,
        trusted: Trusted,
        exchange: Callable[[KnownTarget, HeaderBlock, bytes, float, str], RequestContext],
    ) -> None:
        self._log = log
        self._trusted = trusted
        self._exchange = exchange

    def note(
        self,
        spot: KnownTarget,
        block: HeaderBlock,
        ready: PreparedResponse,
        shape: ResponseForm,
        request_id: bytes,
        began: float,
        peer: str,
        now: float,
        elapsed: float,
        tier: str = "memory",
    ) -> None:
        """The request's line in the access log."""
        if not isinstance(self._log, JsonAccessLog) or tier != "memory":
            exchange = self._exchange(spot, block, request_id, began, peer)
            exchange.key = ready.key
            exchange.outcome = Outcome(shape.result, ttl=int(ready.fresh - now), tier=tier)
            self._log(exchange, shape.status, shape.length, elapsed)
            return
        if not self._log.wants(shape.result):
            return
        pieces = shape.lines.get((spot, block.host)) if shape.lines is not None else None
        before, between, behind, rest, end = pieces or self._pieces(spot, block, ready, shape)
        client = block.clients.get(peer) or self._client(block, peer)
        ticks = int(elapsed * 1_000_000 + 0.5)
        seconds = _SECONDS_TEXT[ticks] if ticks < TICKS else orjson.dumps(round(elapsed, 6))
        moment = self._log.now()
        self._log.write(b"".join((before, moment, between, request_id, behind, client, rest, seconds, end)))

    def _pieces(
        self, spot: KnownTarget, block: HeaderBlock, ready: PreparedResponse, shape: ResponseForm
    ) -> tuple[bytes, ...]:
        """What of a line in the access log is the same for all hits of a shape by one request line and host."""
        exchange = self._exchange(spot, block, b"", 0.0, "")
        exchange.key = ready.key
        exchange.outcome = Outcome(shape.result, tier="memory")
        share = self._log.share_of(shape.result) if isinstance(self._log, JsonAccessLog) else 1.0
        before, between, behind, rest, end = pieces_of(exchange, shape.status, shape.length, share)
        if shape.lines is None or len(shape.lines) >= SHAPES:
            shape.lines = {}
        pieces = shape.lines[spot, block.host] = (before + b'"', b'"' + between + b'"', b'"' + behind, rest, end)
        return pieces

    def _client(self, block: HeaderBlock, peer: str) -> bytes:
        if len(block.clients) >= SHAPES:
            block.clients.clear()
        client = block.clients[peer] = orjson.dumps(self._trusted.client(peer, block.headers))
        return client


Note = Callable[[KnownTarget, HeaderBlock, PreparedResponse, ResponseForm, bytes, float, str, float, float], None]
"""Writes a hit's line in the access log."""


class Memos:
    """Makes memos, at most `most`, keeps them with their blocks, and answers by them. `note` writes the access log."""

    def __init__(self, engine: Engine, *, most: int, note: Note | None) -> None:
        self._memory = engine.memory
        self._purges = engine.tiers.purges
        self._epochs = engine.tiers.purges.epochs
        self._when = engine.clock.when
        self._most = most
        self._note = note
        self._order: deque[tuple[dict[bytes, Memo], bytes]] = deque()

    def __len__(self) -> int:
        return len(self._order)

    def forget(self) -> None:
        for memos, _ in self._order:
            memos.clear()
        self._order.clear()

    def keep(
        self,
        spot: KnownTarget,
        block: HeaderBlock,
        stored: Entry,
        ready: PreparedResponse,
        shape: ResponseForm,
        sight: Sight,
    ) -> None:
        """Remember that `stored`, which lies in memory fresh, was the answer."""
        node = self._memory.node(stored.key)
        source = self._memory.node(shape.coded) if shape.coded else node
        if node is None or source is None or node.value is not stored or block.close or not spot.modern:
            return
        selector = self._memory.selector(spot.primary)
        if spot.line not in block.memos:
            self._order.append((block.memos, spot.line))
            if len(self._order) > self._most:
                memos, line = self._order.popleft()
                memos.pop(line, None)
        block.memos[spot.line] = Memo(
            *(node, node.turn, selector, selector.turn, source, source.turn, ready.version),
            *(shape, sight, spot.known.recorder, ready, spot),
        )

    def answer(
        self, memo: Memo, transport: asyncio.Transport, peer: str, block: HeaderBlock, request_id: bytes, began: float
    ) -> bool:
        """Answer as the last time, if nothing has changed since; False where that must be found out. `began` is on the
        performance counter."""
        node, source, shape = memo.node, memo.source, memo.shape
        stored = source.value
        if (
            stored is None
            or node.turn != memo.turn
            or source.turn != memo.source_turn
            or memo.selector.turn != memo.selector_turn
            or self._epochs.version != memo.version
        ):
            return False
        now = self._when(began)
        if now >= shape.until and not self._renewed(memo, now):
            return False
        if source.uses < MOST_USES or node.uses < MOST_USES:
            _use(node, source)
        elapsed = time.perf_counter() - began
        ticks = int(elapsed * 1_000_000 + 0.5)
        timing = shape.timing[ticks] if ticks < TICKS else shape.ending.plain.timing(elapsed)
        body = stored.body if shape.length else b""
        if shape.length <= JOINED:
            transport.write(b"".join((shape.head, request_id, timing, shape.end, body)))
        else:
            transport.writelines((b"".join((shape.head, request_id, timing, shape.end)), body))
        sight, tally = memo.sight, shape.tally
        if now < sight.until:
            sight.count += 1
            sight.last = now
            memo.recorder.requests += 1
        else:
            memo.sight = memo.recorder.seen(memo.ready.key, now)
        tally.count += 1
        tally.seconds += elapsed
        if elapsed > SECONDS[0]:
            tally.add_slow(elapsed)
        if self._note is not None:
            self._note(memo.spot, block, memo.ready, shape, request_id, began, peer, now, elapsed)
        return True

    def _renewed(self, memo: Memo, now: float) -> bool:
        """Write the head anew for `now`; False where more may have changed than the age and the remaining freshness."""
        ready, stored = memo.ready, memo.node.value
        if memo.shape.volatile or now >= ready.fresh or stored is None:
            return False
        if self._purges.distrusted_since(now) is not None:
            return False
        memo.shape.render(stored, ready, memo.spot.known.route.rules, now, self._purges.trusted_until)
        return True


def _use(node: Node[Entry], source: Node[Entry]) -> None:
    """Count the use of both, as looking them up does."""
    if node.uses < MOST_USES:
        node.uses += 1
    if source is not node and source.uses < MOST_USES:
        source.uses += 1


LINE_BYTES = 2560
"""What a request line costs with all that is ready for it, roughly (1.3 KB when it is learned, 1.5 KB once it is a hit
of 12 header fields; measured by tracemalloc and by the process's size, at 20,000 lines)."""
REMEMBERED = 1024
"""The longest request line or header block that is remembered, in bytes."""


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
        self._purges = engine.tiers.purges
        self._memory = engine.memory
        self._clock = engine.clock
        self._metrics = metrics
        self._cors = cors
        self._trusted = trusted or Trusted([])
        self._traced = traced
        written = None if log is silent else log
        self._note = None if written is None else HitLog(written, self._trusted, self._exchange).note
        self._most = max(64, room // LINE_BYTES)
        self._joins = Splicer(engine, metrics=metrics, cors=cors, log=written, exchange=self._exchange, most=self._most)
        self.memos = Memos(engine, most=self._most, note=self._note)
        self.elsewhere = SharedFinder(engine, self._in_memory, most=self._most)
        self.passages: PassThrough | None = None
        self.forget()

    def __repr__(self) -> str:
        return f"<Edge {len(self.spots)} lines, {len(self.blocks)} header blocks, {len(self._order)} responses>"

    def forget(self) -> None:
        """Know nothing: what was learned may no longer hold."""
        self.spots: dict[bytes, KnownTarget] = {}
        self.blocks: dict[bytes, HeaderBlock] = {}
        self._known: dict[int, KnownRoute] = {}
        self._order: deque[tuple[dict[str, PreparedResponse], str]] = deque()
        self._joins.forget()
        self.memos.forget()

    def learn(self, line: bytes, recall: FastPath, target: Target | None) -> None:
        """Take note that the app answers this request line so."""
        if len(line) > REMEMBERED or line in self.spots:
            return
        known = self._known.get(id(recall.route))
        if known is None:
            known = self._known[id(recall.route)] = KnownRoute(
                recall.route, self._engine.traffic.recorder(recall.route.name)
            )
        if len(self.spots) >= self._most:
            del self.spots[next(iter(self.spots))]
        self.spots[line] = KnownTarget(line, recall, known, target)

    def judged(self, text: bytes, headers: list[tuple[bytes, bytes]]) -> HeaderBlock:
        """The judged form of a header block whose headers, without X-Request-ID, are these."""
        block = HeaderBlock(headers, self._engine.identity_key)
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
        spot: KnownTarget,
        block: HeaderBlock,
        request_id: bytes,
        began: float,
        brought: SharedHit | None = None,
    ) -> bool:
        """Write the answer, if it lies ready in memory, or was `brought`; False where the app must give it. `began` is
        on the performance counter."""
        now = self._clock.now()
        if spot.joints and self._joins.ended(spot, block, now):
            return self._joins.answer(transport, peer, spot, block, request_id, began)
        stored = self._in_memory(spot, block) if brought is None else brought.stored
        if stored is not None and spot.recall.joinable is not None and has_expired(stored, now):
            stored = None
        ready = None if stored is None else self._ready(spot, block, stored)
        if stored is None or ready is None or (now >= ready.fresh and not _serves_stale(spot, ready, now)):
            return self._joins.answer(transport, peer, spot, block, request_id, began)
        if self._purges.distrusted_since(now) is not None:
            return False
        kind = spot.head + 2 * (now >= ready.fresh)
        shape = self._shape(spot, block, ready, stored, kind, now)
        body = None if shape is None else self._body(shape, stored)
        if shape is None or body is None:
            ready.shapes.pop((kind, block.form), None)
            return False
        if kind > 1:
            self._refresh(spot, block, ready, stored, request_id, began, peer)
        if now >= shape.until:
            shape.render(stored, ready, spot.known.route.rules, now, self._purges.trusted_until)
        close = block.close or not spot.modern
        looked = None if brought is None else brought.seconds
        elapsed = shape.write(transport, body, request_id, began, close=close, looked=looked)
        sight = spot.known.recorder.seen(ready.key, now)
        shape.tally.add(elapsed)
        if self._note is not None:
            tier = "memory" if brought is None else brought.tier
            self._note(spot, block, ready, shape, request_id, began, peer, now, elapsed, tier)
        if brought is None and kind < 2:
            self.memos.keep(spot, block, stored, ready, shape, sight)
        return True

    def _in_memory(self, spot: KnownTarget, block: HeaderBlock) -> Entry | None:
        bases, known = block.bases, spot.known
        added = bases[known] if known in bases else block.base(known)
        if added is None:
            return None
        base = spot.stem + added
        index = self._memory.index(spot.primary)
        return self._memory.get(base) if index is None else newest(index, base, block.vary, self._memory.get)

    def _ready(self, spot: KnownTarget, block: HeaderBlock, stored: Entry) -> PreparedResponse | None:
        """The stored response made ready; None where a purge has made it void."""
        ready = spot.known.ready.get(stored.key)
        if ready is not None and ready.headers is not stored.headers:
            ready = None
        if ready is not None and ready.version == self._purges.epochs.version:
            return ready
        return self._judged(spot, block, stored, ready)

    def _judged(
        self, spot: KnownTarget, block: HeaderBlock, stored: Entry, known: PreparedResponse | None
    ) -> PreparedResponse | None:
        """As the purges leave it: what is known of the response where they left it alone, made anew where not."""
        epochs = self._purges.epochs
        names = (*spot.names, *map(tag_name, stored.tags), *stored.names)
        state, softened = epochs.judge(stored.stamp, stored.started, names)
        if state is PurgeState.VOID:
            return None
        if state is PurgeState.SOFT:
            stored = freshness.softened(stored, softened)
        base = spot.stem + (block.bases[spot.known] or "")
        flight = likely_key(self._memory.index(spot.primary), base, block.vary)
        if known is not None and known.softened == stored.softened:
            known.version, known.flight = epochs.version, flight
            return known
        return self._kept(
            spot, stored.key, PreparedResponse(stored, spot.known.route, epochs, base=base, flight=flight)
        )

    def _kept(self, spot: KnownTarget, key: str, ready: PreparedResponse) -> PreparedResponse:
        known = spot.known.ready
        if key not in known:
            self._order.append((known, key))
            if len(self._order) > self._most:
                old, oldest = self._order.popleft()
                old.pop(oldest, None)
        known[key] = ready
        return ready

    def _shape(
        self, spot: KnownTarget, block: HeaderBlock, ready: PreparedResponse, stored: Entry, kind: int, now: float
    ) -> ResponseForm | None:
        shape = ready.shapes.get((kind, block.form))
        if shape is None or (shape.volatile and now >= shape.until):
            known = spot.known
            shape = None
            if spot.joints and kind < 2:
                shape = self._joins.shape(spot, block, stored, self._endings(known, Result.HIT))
            shape = shape or self._made(spot, block, stored, kind, now)
            if shape is not None:
                self._keep_shape(ready, (kind, block.form), shape)
        return shape

    @staticmethod
    def _endings(known: KnownRoute, result: Result) -> Endings:
        endings = known.endings.get(result)
        if endings is None:
            endings = known.endings[result] = Endings(known.route.name, result)
        return endings

    def _keep_shape(self, ready: PreparedResponse, form: tuple[int, bytes], shape: ResponseForm) -> None:
        if len(ready.shapes) >= SHAPES:
            ready.shapes.clear()
        ready.shapes[form] = shape

    def _body(self, shape: ResponseForm, stored: Entry) -> bytes | None:
        """The body that is sent; None where its coded form is gone, or another response's."""
        if not shape.coded:
            return stored.body
        made = self._memory.get(shape.coded)
        return made.body if made is not None and made.born == stored.born else None

    def _made(self, spot: KnownTarget, block: HeaderBlock, stored: Entry, kind: int, now: float) -> ResponseForm | None:
        """The form of the answer that this request gets; None where the app must give it its own."""
        rules = spot.known.route.rules
        exchange = RequestContext("", 0.0, "HEAD" if spot.head else "GET", "", "")
        coded = self._engine.prepared.choose(block.headers, stored, rules)
        if coded is not None and coded.pending:
            return None
        answer = spot.recall.public(stored_answer(exchange, block.headers, stored, rules, now, coded))
        headers = answer.headers if self._cors is None else self._cors.told(answer.headers, block.origin)
        headers = spot.known.route.downstream.told(headers, stored.vary)
        template = template_of(answer.status, headers, (b"age",))
        if template is None:
            return None
        before, after = (template % MARK).split(MARK)
        result = Result.STALE if kind > 1 else Result.HIT
        tally = self._metrics.tally(spot.known.route.name, result, answer.status)
        body = answer.body
        assert isinstance(body, bytes)
        endings = self._endings(spot.known, result)
        shape = ResponseForm(answer.status, before, after, endings, result, tally, length=len(body))
        shape.coded = coded.key if coded is not None else ""
        shape.volatile = rules.client_ttl is not None
        return shape

    # --- besides -------------------------------------------------------------------------------------------

    def _exchange(
        self, spot: KnownTarget, block: HeaderBlock, request_id: bytes, began: float, peer: str
    ) -> RequestContext:
        return RequestContext(
            request_id=request_id.decode("ascii"),
            began=began,
            method="HEAD" if spot.head else "GET",
            client=self._trusted.client(peer, block.headers),
            scheme="",
            host=block.host,
            target=spot.target,
            headers=block.headers,
            route=spot.known.route.name,
            downstream=spot.known.route.downstream,
        )

    def _refresh(
        self,
        spot: KnownTarget,
        block: HeaderBlock,
        ready: PreparedResponse,
        stored: Entry,
        request_id: bytes,
        began: float,
        peer: str,
    ) -> None:
        """Refresh behind a stale answer. Not before that is certain: the app would find what this brings."""
        if ready.flight in self._engine.flights:
            return
        assert spot.recall.ask is not None
        # As the purges leave it: unsoftened it would be taken for one that somebody has refreshed already.
        judged = stored if ready.softened is None else freshness.softened(stored, ready.softened)
        self._engine.refresh_behind(spot.recall.ask(self._exchange(spot, block, request_id, began, peer)), judged)


def _serves_stale(spot: KnownTarget, ready: PreparedResponse, now: float) -> bool:
    return now < ready.revalidate and spot.recall.ask is not None
