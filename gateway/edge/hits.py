"""Hits before ASGI: finds the entry that a request selects in memory, and serves it.

Decides whether a request can be served here: its request line has a fast path (which the app leaves with its first
response), and a fresh entry, or a stale one within its window, is in memory and was not purged. It must not know which
route a path belongs to, or how bytes are read and written; the app serves everything else.

Responses are made by the same functions as in the app. What is the same for all hits of an entry is made once (a
`ResponseForm`); `Age` and the remaining freshness are updated once a second. Request lines and header blocks are
remembered separately, since their pairs would be many; `X-Request-ID` is not part of a block, as it differs with each
request.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Iterable

from gateway.cache.engine import Engine
from gateway.cache.request import Route
from gateway.cache.respond import stored_answer
from gateway.context import RequestContext, Result
from gateway.edge.credentials import Credentials
from gateway.edge.entries import (
    SHAPES,
    Endings,
    HeaderBlock,
    KnownRoute,
    KnownTarget,
    PreparedResponse,
    ResponseForm,
)
from gateway.edge.header_block import REMEMBERED
from gateway.edge.hit_log import HitLog
from gateway.edge.passthrough import PassThrough
from gateway.edge.response_memos import Memos
from gateway.edge.shared_lookup import SharedFinder, SharedHit
from gateway.edge.splice import Splicer, has_expired
from gateway.http.forwarding import PREFIX, Trusted
from gateway.http.headers import Headers, has
from gateway.http.target import Target
from gateway.identity.principal import Principal
from gateway.observability.access_log import AccessLog, silent
from gateway.observability.metrics import Metrics
from gateway.observability.trace_context import TRACEPARENT
from gateway.policy import freshness
from gateway.policy.entry import Entry
from gateway.policy.epochs import PurgeState, tag_name
from gateway.policy.vary import likely_key, newest
from gateway.routing.cors import Cors
from gateway.routing.fast_path import FastPath, Recall
from gateway.routing.user_middleware import KnownMiddleware

LINE_BYTES = 2560
"""Approximate size of a request line and all that is prepared for it (1.3 KB when it is learned, 1.5 KB once it is a
hit of 12 header fields; measured by tracemalloc and by the process's size, at 20,000 lines)."""
FORM_BYTES = 700
"""Bytes of a form of a response beside its head, which is as large as its fields."""
_PLAIN_READ = re.compile(rb"(?:GET|HEAD) /[!-~]* HTTP/1\.1")
REMEMBERED_CONTENT = 6 * 1024
"""The longest request line with its content that is remembered, in bytes."""


class Edge:
    """The edge's state for one generation of the app's routes. A reload, or an override, makes a new one.

    `room` bounds it, in bytes, approximately.
    """

    __slots__ = (
        *("_clock", "_content_bytes", "_cors", "_credentials", "_engine", "_expected", "_expected_before"),
        *("_form_bytes", "_joins", "_known", "_memory", "_metrics", "_most", "_note", "_order", "_purges", "_room"),
        *("_root", "_trusted", "app_targets", "blocks", "known_contents", "known_targets", "left_to_app", "memos"),
        *("pass_through", "reads", "shared_finder", "solved_targets", "traced"),
    )

    def __init__(
        self,
        engine: Engine,
        *,
        metrics: Metrics,
        cors: Cors | KnownMiddleware | None = None,
        log: AccessLog = silent,
        trusted: Trusted | None = None,
        traced: bool = False,
        root: str = "",
        room: int = 32 * 1024 * 1024,
        left_to_app: frozenset[bytes] = frozenset(),
        credentials: Iterable[str] = (),
        reads: frozenset[str] = frozenset(),
    ) -> None:
        self._engine = engine
        self._purges = engine.tiers.purges
        self._memory = engine.memory
        self._clock = engine.clock
        self._metrics = metrics
        self._cors = cors
        self._trusted = trusted or Trusted([])
        self.traced = traced
        self._root = root
        self.reads = reads
        """The methods by which a route is read with content."""
        self.left_to_app = left_to_app
        """Request fields, in lower case, on which the app's own middleware acts."""
        written = None if log is silent else log
        self._note = None if written is None else HitLog(written, self._trusted, self._exchange).note
        self._room = room
        self._most = max(64, room // LINE_BYTES)
        self._joins = Splicer(engine, metrics=metrics, cors=cors, log=written, exchange=self._exchange, most=self._most)
        self.memos = Memos(engine, most=self._most, note=self._note, trusted=self._trusted)
        key = engine.identity_key
        self._credentials = Credentials(credentials, self.judged, key, most=self._most, room=room // 4)
        self.shared_finder = SharedFinder(engine, self._in_memory, most=self._most)
        self.pass_through: PassThrough | None = None
        self.forget()

    def __repr__(self) -> str:
        return f"<Edge {len(self.known_targets)} lines, {len(self.blocks)} header blocks, {len(self._order)} responses>"

    def forget(self) -> None:
        """Forget everything: it may be outdated."""
        self.known_targets: dict[bytes, KnownTarget] = {}
        self.solved_targets: dict[bytes, KnownTarget] = {}
        """Those of which the app solves dependencies first."""
        self.known_contents: dict[bytes, KnownTarget] = {}
        """Those of reads with content, by line and content."""
        self._content_bytes = 0
        self._expected: dict[bytes, Recall] = {}
        self._expected_before: dict[bytes, Recall] = {}
        """Those of which there may be a second request; an older half goes at once, which costs less than each by
        itself."""
        self.app_targets: dict[bytes, Target] = {}
        """The targets of request lines that the app answers."""
        self.blocks: dict[bytes, HeaderBlock] = {}
        self._known: dict[int, KnownRoute] = {}
        self._order: deque[tuple[dict[str, PreparedResponse], str]] = deque()
        self._form_bytes = 0
        self._credentials.forget()
        self._joins.forget()
        self.memos.forget()

    def expect(self, line: bytes, recall: Recall) -> None:
        """Take note that a pass-through answers this request line so. What is prepared for a line is made when it comes
        again (`known`): most lines that miss never do."""
        if len(line) > REMEMBERED or line in self.known_targets or not may_be_repeated(line):
            return
        if len(self._expected) * 2 >= self._most:
            self._expected_before, self._expected = self._expected, {}
        self._expected[line] = recall

    def known(self, line: bytes) -> KnownTarget | None:
        """What is prepared for a request line, if it was answered before."""
        known = self.known_targets.get(line)
        if known is not None:
            return known
        expected = self._expected.pop(line, None) or self._expected_before.pop(line, None)
        if expected is None:
            return None
        self.learn(line, *expected.recall(line))
        return self.known_targets.get(line)

    def learn(self, line: bytes, recall: FastPath, target: Target | None) -> None:
        """Take note that the app answers this request line so."""
        known_targets = self.solved_targets if recall.solved else self.known_targets
        if recall.content:
            self._learn_content(line, recall, target)
            return
        if len(line) > REMEMBERED or line in known_targets or not may_be_repeated(line):
            return
        if len(known_targets) >= self._most:
            del known_targets[next(iter(known_targets))]
        known_targets[line] = KnownTarget(line, recall, self._known_route(recall.route), target)

    def _learn_content(self, line: bytes, recall: FastPath, target: Target | None) -> None:
        known = self.known_contents
        if len(line) > REMEMBERED_CONTENT or line in known or not may_be_repeated(line):
            return
        self._content_bytes += LINE_BYTES + len(line)
        while self._content_bytes > self._room // 4 and known:
            oldest = next(iter(known))
            self._content_bytes -= LINE_BYTES + len(oldest)
            del known[oldest]
        known[line] = KnownTarget(line, recall, self._known_route(recall.route), target)

    def _known_route(self, route: Route) -> KnownRoute:
        known = self._known.get(id(route))
        if known is None:
            known = self._known[id(route)] = KnownRoute(route, self._engine.traffic.recorders[route.name])
        return known

    def learn_target(self, line: bytes, target: Target) -> None:
        """Take note that the app answers this request line, so that its target is not worked out again."""
        if line in self.app_targets or len(line) > REMEMBERED or _PLAIN_READ.fullmatch(line) is None:
            return
        if len(self.app_targets) * 4 >= self._most:
            del self.app_targets[next(iter(self.app_targets))]
        self.app_targets[line] = target

    def block(self, text: bytes, headers: list[tuple[bytes, bytes]]) -> HeaderBlock:
        """The header block of these bytes, whose headers, without X-Request-ID, are these."""
        return self._credentials.block(text, headers, self.blocks) or self.judged(text, headers)

    def renewed(self, block: HeaderBlock, before: bytes, value: bytes, after: bytes) -> HeaderBlock | None:
        """The header block with another credential, whose value stands between `before` and `after`."""
        return self._credentials.renewed(block, before, value, after, self.blocks)

    def judged(self, text: bytes, headers: list[tuple[bytes, bytes]]) -> HeaderBlock:
        block = HeaderBlock(headers, self._engine.identity_key)
        if self.traced and has(headers, TRACEPARENT):
            block.plain = block.takes_content = False  # the client requested a trace
        if self.left_to_app and any(has(headers, name) for name in self.left_to_app):
            block.plain = block.takes_content = False
        block.prefixed = bool(self._trusted) and has(headers, PREFIX)
        if len(text) <= REMEMBERED:
            if len(self.blocks) * 4 >= self._most:
                del self.blocks[next(iter(self.blocks))]
            self.blocks[text] = block
        return block

    def has_another_prefix(self, block: HeaderBlock, peer: str) -> bool:
        """Whether the client reached the gateway under another path prefix than the configured one: the paths in an
        answer are others then."""
        return block.prefixed and self._trusted.prefix(peer, block.headers) not in (None, self._root)

    def view(self, known_target: KnownTarget, block: HeaderBlock, peer: str) -> HeaderBlock | None:
        """The block by which a request of this line is answered here; None if the app must decide who is let in."""
        if not known_target.guarded:
            return block
        now = self._clock.now()
        view = self._credentials.view(known_target, block, now)
        if view is not None:
            return view
        refuses = known_target.recall.refuses
        verify = refuses is None or not refuses(self._trusted.client(peer, block.headers))
        return self._credentials.admitted(known_target, block, verify=verify)

    # --- answering -----------------------------------------------------------------------------------------

    def answer(
        self,
        transport: asyncio.Transport,
        peer: str,
        known_target: KnownTarget,
        block: HeaderBlock,
        request_id: bytes,
        began: float,
        shared_hit: SharedHit | None = None,
    ) -> bool:
        """Write the response, if it is prepared in memory or is `shared_hit`; False if the app must serve it. `began`
        is a value of the performance counter. `block` is the `view` of the request's own."""
        now = self._clock.now()
        if known_target.guarded and (block.admitted is None or not block.admitted.holds(now)):
            return False
        admit = known_target.recall.admit
        if known_target.splices and self._joins.ended(known_target, block, now):
            return admit is None and self._joins.answer(transport, peer, known_target, block, request_id, began)
        stored = self._in_memory(known_target, block) if shared_hit is None else shared_hit.stored
        if stored is not None and known_target.recall.joinable is not None and has_expired(stored, now):
            stored = None
        ready = None if stored is None else self._ready(known_target, block, stored)
        if stored is None or ready is None or (now >= ready.fresh and not _serves_stale(known_target, ready, now)):
            return admit is None and self._joins.answer(transport, peer, known_target, block, request_id, began)
        if now > self._purges.trusted_until:
            return False
        kind = known_target.head + 2 * (now >= ready.fresh)
        shape = self._shape(known_target, block, ready, stored, kind, now)
        body = None if shape is None else self._body(shape, stored)
        if shape is None or body is None:
            ready.shapes.pop((kind, block.form), None)
            return False
        if admit is not None and not admit(_principal_of(block), self._trusted.client(peer, block.headers), now):
            return False
        if kind > 1:
            self._refresh(known_target, block, ready, stored, request_id, began, peer)
        if now >= shape.until:
            shape.render(stored, ready, known_target.known.route.rules, now, self._purges.trusted_until)
        looked = None if shared_hit is None else shared_hit.seconds
        elapsed = shape.write(
            transport, body, request_id, began, connection=known_target.connection(block), looked=looked
        )
        sight = known_target.known.recorder.seen(ready.key, now)
        shape.tally.add(elapsed)
        if self._note is not None:
            tier = "memory" if shared_hit is None else shared_hit.tier
            self._note(known_target, block, ready, shape, request_id, began, peer, now, elapsed, tier)
        if shared_hit is None and kind < 2 and not known_target.recall.solved:
            self.memos.keep(known_target, block, stored, ready, shape, sight)
        return True

    def _in_memory(self, known_target: KnownTarget, block: HeaderBlock) -> Entry | None:
        bases, known = block.bases, known_target.known
        added = bases[known] if known in bases else block.base(known)
        if added is None:
            return None
        base = known_target.stem + added
        index = self._memory.index(known_target.primary)
        return self._memory.get(base) if index is None else newest(index, base, block.vary, self._memory.get)

    def _ready(self, known_target: KnownTarget, block: HeaderBlock, stored: Entry) -> PreparedResponse | None:
        """The prepared stored response; None if a purge has invalidated it."""
        ready = known_target.known.ready.get(stored.key)
        if ready is not None and ready.headers is not stored.headers:
            ready = None
        if ready is not None and ready.version == self._purges.epochs.version:
            return ready
        return self._judged(known_target, block, stored, ready)

    def _judged(
        self, known_target: KnownTarget, block: HeaderBlock, stored: Entry, known: PreparedResponse | None
    ) -> PreparedResponse | None:
        """The prepared response after purges: unchanged if they don't concern it, made again otherwise."""
        epochs = self._purges.epochs
        if stored.stamp != epochs.untouched_stamp and not epochs.untouched(stored.stamp):
            names = (*known_target.names, *map(tag_name, stored.tags), *stored.names)
            state, softened = epochs.judge(stored.stamp, stored.started, names)
            if state is PurgeState.VOID:
                return None
            if state is PurgeState.SOFT:
                stored = freshness.softened(stored, softened)
        base = known_target.stem + (block.bases[known_target.known] or "")
        index = self._memory.index(known_target.primary)
        flight = base if index is None else likely_key(index, base, block.vary)
        if known is not None and known.softened == stored.softened:
            known.version, known.flight = epochs.version, flight
            return known
        return self._kept(
            known_target,
            stored.key,
            PreparedResponse(stored, known_target.known.route, epochs, base=base, flight=flight),
        )

    def _kept(self, known_target: KnownTarget, key: str, ready: PreparedResponse) -> PreparedResponse:
        known = known_target.known.ready
        if len(key) > REMEMBERED:  # of fields of up to 32 KiB: it is prepared anew each time
            return ready
        if key not in known:
            self._order.append((known, key))
            if len(self._order) > self._most:
                old, oldest = self._order.popleft()
                old.pop(oldest, None)
        known[key] = ready
        return ready

    def _shape(
        self,
        known_target: KnownTarget,
        block: HeaderBlock,
        ready: PreparedResponse,
        stored: Entry,
        kind: int,
        now: float,
    ) -> ResponseForm | None:
        shape = ready.shapes.get((kind, block.form))
        if shape is None or (shape.volatile and now >= shape.until):
            known = known_target.known
            shape = None
            if known_target.splices and kind < 2:
                shape = self._joins.shape(known_target, block, stored, self._endings(known, Result.HIT))
            shape = shape or self._made(known_target, block, stored, kind, now)
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
        self._form_bytes += FORM_BYTES + len(shape.head) + len(form[1])
        if self._form_bytes > self._room:
            self.forget()  # those that were replaced since are counted, too: what is in use is learnt again

    def _body(self, shape: ResponseForm, stored: Entry) -> bytes | None:
        """The body to send; None if its coded form is gone, or belongs to another response."""
        if not shape.coded:
            return stored.body
        made = self._memory.get(shape.coded)
        return made.body if made is not None and made.born == stored.born else None

    def _made(
        self, known_target: KnownTarget, block: HeaderBlock, stored: Entry, kind: int, now: float
    ) -> ResponseForm | None:
        """The form of the response for this request; None if the app must serve it."""
        rules = known_target.known.route.rules
        exchange = RequestContext("", 0.0, "HEAD" if known_target.head else "GET", "", "")
        may_be_coded = freshness.is_compressible(stored, rules)
        coded = self._engine.prepared.choose(block.headers, stored) if may_be_coded else None
        if coded is not None and coded.pending:
            return None
        answer = known_target.recall.public(stored_answer(exchange, block.headers, stored, rules, now, coded))
        cors, known = self._cors, known_target.known
        origin = None if cors is None else block.origin

        def told(headers: Headers) -> Headers:
            return known.route.downstream.told(headers if cors is None else cors.told(headers, origin), stored.vary)

        around = known.heads.around_age(answer.status, answer.headers, stored.vary, origin, told)
        if around is None:
            return None
        result = Result.STALE if kind > 1 else Result.HIT
        tally = self._metrics.tally(known.route.name, result, answer.status)
        body = answer.body
        assert isinstance(body, bytes)
        endings = self._endings(known, result)
        shape = ResponseForm(answer.status, *around, endings, result, tally, length=len(body))
        shape.coded = coded.key if coded is not None else ""
        shape.volatile = rules.client_ttl is not None
        return shape

    # --- besides -------------------------------------------------------------------------------------------

    def _exchange(
        self, known_target: KnownTarget, block: HeaderBlock, request_id: bytes, began: float, peer: str
    ) -> RequestContext:
        return RequestContext(
            request_id=request_id.decode("ascii"),
            began=began,
            method=known_target.method,
            client=self._trusted.client(peer, block.headers),
            scheme="",
            host=block.host,
            target=known_target.target,
            headers=block.headers,
            route=known_target.known.route.name,
            downstream=known_target.known.route.downstream,
            principal=_principal_of(block),
        )

    def _refresh(
        self,
        known_target: KnownTarget,
        block: HeaderBlock,
        ready: PreparedResponse,
        stored: Entry,
        request_id: bytes,
        began: float,
        peer: str,
    ) -> None:
        """Refresh a stale response in the background. Not before that is certain: the app would find the result."""
        if ready.flight in self._engine.flights:
            return
        assert known_target.recall.ask is not None
        # After purges: without the softening it would look like a refreshed entry.
        judged = stored if ready.softened is None else freshness.softened(stored, ready.softened)
        self._engine.refresh_behind(
            known_target.recall.ask(self._exchange(known_target, block, request_id, began, peer)), judged
        )


def may_be_repeated(line: bytes) -> bool:
    """Whether what was judged of a request line holds with any header block: its target names no authority, which
    another block's `Host` may contradict (RFC 9112 §3.2.2)."""
    return line.partition(b" ")[2].startswith(b"/")


def _principal_of(block: HeaderBlock) -> Principal | None:
    return None if block.admitted is None else block.admitted.principal


def _serves_stale(known_target: KnownTarget, ready: PreparedResponse, now: float) -> bool:
    return now < ready.revalidate and known_target.recall.ask is not None
