"""Splices aggregates before ASGI: joins the stored bytes of parts.

Decides whether an expired or purged aggregate can be joined here: all its parts are fresh in memory, or stale with a
refresh of each in progress. The joined response is kept as in the app. It must not know how parts depend on each other:
the app provides the entries of the parts and the bytes between them (`SplicePlan`), and serves everything more complex
itself, such as a condition, a list, a merge into the root, an envelope or a failed part.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.aggregates.lifetime import PartLife, joining, together, whole_headers
from gateway.aggregates.merge import BodyCache
from gateway.aggregates.splice_plan import SplicePart, SplicePlan
from gateway.cache.memory import MOST_USES, size_of
from gateway.cache.respond import stored_answer
from gateway.cache.store import Selection
from gateway.context import Outcome, PartState, RequestContext, Result
from gateway.edge.entries import Endings, ResponseForm
from gateway.edge.head_template import MARK, head_of, start_of, template_of, with_last
from gateway.edge.splice_state import CHANGING, NOTHING, CachedPart, Splice
from gateway.http.headers import has, http_date
from gateway.observability.access_log import AccessLog
from gateway.observability.metrics import Metrics, Tally
from gateway.observability.response_headers import complete
from gateway.policy.entry import Entry, Life
from gateway.policy.keys import Plan
from gateway.policy.rules import MAX_LIFE
from gateway.policy.validation import own_tag
from gateway.policy.vary import VaryIndex, newest
from gateway.routing.cors import Cors
from gateway.routing.user_middleware import KnownMiddleware

if TYPE_CHECKING:
    from gateway.cache.engine import Engine
    from gateway.edge.entries import HeaderBlock, KnownTarget


FORMS = 32
"""Maximum number of forms of an aggregate's head, by Origin and the like."""
COPIED = 16 * 1024
"""Up to this size a body is copied behind its head, for one write."""
_CONDITIONS = (b"if-none-match", b"if-modified-since")


@dataclass(frozen=True, slots=True)
class Gathered:
    """A whole's body, and what its parts bring into its life: seconds, and instants."""

    body: bytes
    age: float
    fresh: float
    started: float


class Splicer:
    """An edge's state of aggregates and their parts; at most `most` of each. `exchange` makes a request's
    `RequestContext`, for the log and for the app's own functions."""

    def __init__(
        self,
        engine: Engine,
        *,
        metrics: Metrics,
        cors: Cors | KnownMiddleware | None,
        log: AccessLog | None,
        exchange: Callable[[KnownTarget, HeaderBlock, bytes, float, str], RequestContext],
        most: int,
    ) -> None:
        self._tiers = engine.tiers
        self._memory = engine.memory
        self._traffic = engine.traffic
        self._largest = engine.memory.capacity // 8
        self._unindexed = engine.memory.selector("")
        self._flights = engine.flights
        self._clock = engine.clock
        self._metrics = metrics
        self._cors = cors
        self._log = log
        self._exchange = exchange
        self._most = most
        self._at_hand: dict[SplicePart, CachedPart] = {}
        self._retold = 0
        self._order: deque[tuple[dict[str, Splice | None], str]] = deque()
        self._heads: dict[tuple[object, ...], tuple[bytes, Tally]] = {}

    def forget(self) -> None:
        self._at_hand.clear()
        self._order.clear()
        self._heads.clear()

    def ended(self, known_target: KnownTarget, block: HeaderBlock, now: float) -> bool:
        """Whether the last joined response for such a request is in memory, and expired."""
        splice = known_target.splices.get(block.bases.get(known_target.known) or "")
        if splice is None or now < splice.until or splice.node.turn != splice.turn:
            return False
        if splice.node.uses < MOST_USES:
            splice.node.uses += 1
        return True

    def answer(
        self,
        transport: asyncio.Transport,
        peer: str,
        known_target: KnownTarget,
        block: HeaderBlock,
        request_id: bytes,
        began: float,
    ) -> bool:
        """Join the parts and write the response, if every part is usable in memory; False if the app must do it.
        `began` is a value of the performance counter."""
        base = block.bases.get(known_target.known)
        if base is None or known_target.recall.joinable is None:
            return False
        splice = known_target.splices[base] if base in known_target.splices else self._learn(known_target, block, base)
        now = self._clock.now()
        if splice is None or self._tiers.purges.distrusted_since(now) is not None:
            return False
        looking = time.perf_counter()
        found = self._gathered(splice, block, now)
        if found is None:
            return self._while_refreshed(transport, peer, known_target, block, request_id, began, splice, now)
        share = (time.perf_counter() - looking) / len(splice.sides)
        stored = self._kept(splice, known_target, block, found, now)
        status, start, tally = self._start(splice, known_target, block, stored, now)
        body = b"" if known_target.head or status == 304 else stored.body
        elapsed = time.perf_counter() - began
        assert stored.life.lifetime is not None
        # As policy.windows computes it for an aggregate: no rules of its own, and no stale windows.
        ttl = int(min(now - found.age + stored.life.lifetime, now + MAX_LIFE) - now)
        timing, end = splice.ending.timing(elapsed, share), splice.ending.status(ttl)
        if connection := known_target.connection(block):
            end = with_last(end, connection)
        if len(body) <= COPIED:
            transport.write(b"".join((start, splice.ending.start, request_id, timing, end, body)))
        else:
            transport.writelines((b"".join((start, splice.ending.start, request_id, timing, end)), body))
        known_target.known.recorder.seen(splice.hash, now)
        tally.add(elapsed)
        for each in splice.tallies:
            each.count += 1
        for side in splice.sides:
            side.recorder.seen(side.hash, now)
        if self._log is not None:
            self._note(splice, known_target, block, request_id, began, peer, status, len(body), ttl, elapsed)
        return True

    # --- the parts -----------------------------------------------------------------------------------------

    def _learn(self, known_target: KnownTarget, block: HeaderBlock, base: str) -> Splice | None:
        """How the aggregate is joined for requests with the base key `base`; None if the app must do it."""
        assert known_target.recall.joinable is not None
        joinable = known_target.recall.joinable(self._exchange(known_target, block, b"", 0.0, ""))
        assert joinable is None or isinstance(joinable, SplicePlan)
        splice = None
        if joinable is not None:
            sides = [self._side(each) for each in joinable.splice_parts if each.transform is not None]
            route = known_target.known.route.name
            tallies = [self._metrics.part_tally(route, name, "hit") for name in joinable.said]
            plan, recall = Plan(known_target.primary, known_target.stem + base, ()), known_target.recall
            wanted = Selection(plan, (), recall.route.name, recall.tags)
            splice = Splice(known_target.known.route, joinable, wanted, sides, tallies)
        if base not in known_target.splices:
            self._order.append((known_target.splices, base))
            if len(self._order) > self._most:
                splices, oldest = self._order.popleft()
                splices.pop(oldest, None)
        known_target.splices[base] = splice
        return splice

    def _side(self, splice_part: SplicePart) -> CachedPart:
        side = self._at_hand.get(splice_part)
        if side is None:
            if len(self._at_hand) >= self._most:
                del self._at_hand[next(iter(self._at_hand))]
            side = self._at_hand[splice_part] = CachedPart(splice_part, self._traffic.recorders[splice_part.route])
        return side

    def _gathered(self, splice: Splice, block: HeaderBlock, now: float) -> Gathered | None:
        """The aggregate from parts that are all fresh in memory; None if one of them is not."""
        body_cache = splice.body_cache
        version = self._tiers.purges.epochs.version
        unindexed = self._unindexed
        pieces = splice.frame.copy()
        age, fresh, started = 0.0, now + MAX_LIFE, now
        for side, place in zip(splice.sides, splice.places, strict=True):
            node = side.node
            stored = node.value
            if stored is None or node.turn != side.turn or side.version != version or side.index_turn != unindexed.turn:
                stored = self._looked_up(side, block, body_cache)
            elif node.uses < MOST_USES:
                node.uses += 1
            if stored is None or now >= side.fresh:
                return None
            pieces[place] = (
                stored.body
                if side.as_is
                else body_cache.prepared(side.transform, stored.key, stored.headers, stored.body).text
            )
            own = side.initial_age + (now - side.born) if now > side.born else side.initial_age
            age = own if own > age else age
            fresh = side.fresh if side.fresh < fresh else fresh
            started = side.started if side.started < started else started
        return Gathered(b"".join(pieces), age, fresh, started)

    def _looked_up(self, side: CachedPart, block: HeaderBlock, body_cache: BodyCache) -> Entry | None:
        """A part's response in memory, which `side` follows from now on; None if there is no usable one."""
        index = self._memory.index(side.primary)
        stored = self._memory.get(side.base) if index is None else self._newest(index, side, block)
        epochs = self._tiers.purges.epochs
        if stored is None:
            return None
        if stored.headers is not side.headers or side.version != epochs.version:
            told = side.told
            if not side.take(stored, epochs, body_cache):
                return None
            self._retold += side.told is not told
        node = self._memory.node(side.base) if index is None else None
        side.node = NOTHING if node is None else node
        side.turn, side.index_turn = side.node.turn, self._unindexed.turn
        return stored

    def _newest(self, index: VaryIndex, side: CachedPart, block: HeaderBlock) -> Entry | None:
        """The newest response of a part in memory that the request selects; None also if it varies on something that
        the part doesn't see unchanged."""
        unseen = side.splice_part.unseen
        if any(names and (unseen is None or not unseen.isdisjoint(names)) for names in index.names):
            return None
        return newest(index, side.base, block.vary, self._memory.get)

    # --- parts that are refreshed behind -------------------------------------------------------------------

    def _while_refreshed(
        self,
        transport: asyncio.Transport,
        peer: str,
        known_target: KnownTarget,
        block: HeaderBlock,
        request_id: bytes,
        began: float,
        splice: Splice,
        now: float,
    ) -> bool:
        """Join parts of which some are stale, and write the response, which is not kept; False if one of them is not
        being refreshed."""
        if any(has(block.headers, name) for name in _CONDITIONS):
            return False
        looking = time.perf_counter()
        found = self._stale_too(splice, block, now)
        if found is None:
            return False
        body, said, lives = found
        share = (time.perf_counter() - looking) / len(splice.sides)
        exchange = self._exchange(known_target, block, request_id, began, peer)
        exchange.outcome = Outcome(Result.STALE, detail="joined")
        exchange.parts = tuple(PartState(name, said[name], share) for name in splice.said)
        life = joining(together(lives), complete=True, stamp="", longest=0.0, vary=splice.vary_always)
        parts = ", ".join(f"{each.name}={each.text}" for each in exchange.parts)
        headers = whole_headers(body, life, parts, complete=True)
        headers = headers if self._cors is None else self._cors.told(headers, block.origin)
        head = head_of(200, complete(exchange, headers))
        if connection := known_target.connection(block):
            head = with_last(head, connection)
        body = b"" if known_target.head else body
        transport.write(head + body)
        self._count(known_target, exchange, time.perf_counter() - began, len(body))
        for side in splice.sides:
            side.recorder.seen(side.hash, now)
        return True

    def _stale_too(
        self, splice: Splice, block: HeaderBlock, now: float
    ) -> tuple[bytes, dict[str, str], list[PartLife]] | None:
        """The body, the state of each part, and its contribution to the aggregate's life."""
        pieces, said, lives = splice.frame.copy(), dict[str, str](), list[PartLife]()
        for name, side, place in zip(splice.asked, splice.sides, splice.places, strict=True):
            stored = self._looked_up(side, block, splice.body_cache)
            behind = side.base in self._flights and self._memory.index(side.primary) is None
            if stored is None or now >= (side.revalidate if behind else side.fresh):
                return None
            age = side.age(now)
            said[name] = "hit" if now < side.fresh else f"stale;age={int(age)}"
            lives.append(PartLife(age, side.fresh - now, vary=stored.vary))
            pieces[place] = splice.body_cache.prepared(side.transform, stored.key, stored.headers, stored.body).text
        return b"".join(pieces), said, lives

    def _count(self, known_target: KnownTarget, exchange: RequestContext, elapsed: float, size: int) -> None:
        route = known_target.known.route.name
        self._metrics.tally(route, Result.STALE, 200).add(elapsed)
        for each in exchange.parts:
            self._metrics.part_tally(route, each.name, each.text.partition(";")[0]).count += 1
        if self._log is not None:
            self._log(exchange, 200, size, elapsed)

    # --- the whole -----------------------------------------------------------------------------------------

    def shape(
        self, known_target: KnownTarget, block: HeaderBlock, stored: Entry, endings: Endings
    ) -> ResponseForm | None:
        """The form of a hit on an aggregate, by the head made for its join; None if there is none."""
        splice = known_target.splices.get(block.bases.get(known_target.known) or "")
        if splice is None or stored.headers[3:-1] != splice.rest:
            return None
        head = splice.heads.get(block.form) or self._head_known(splice, known_target, block)
        if head is None:
            return None
        template, tally = head
        before, after = (template % splice.values(stored, MARK)).split(MARK)
        return ResponseForm(
            200, before, after, endings, Result.HIT, tally, length=0 if known_target.head else len(stored.body)
        )

    def _kept(
        self, splice: Splice, known_target: KnownTarget, block: HeaderBlock, found: Gathered, now: float
    ) -> Entry:
        """The whole as a stored response. Its parts were judged in this very turn: it is stamped by now."""
        if splice.retold != self._retold:
            splice.retold = self._retold
            if [side.told for side in splice.sides] != splice.told:
                splice.settle()
        suffix = block.vary[splice.vary] or ""
        lifetime = found.age + (found.fresh - now)
        promise = b"max-age=%d" % lifetime
        size = splice.fixed + len(found.body) + len(promise)
        known = bool(splice.fixed) and size <= self._largest and not suffix and self._lies_there(splice)
        stored = Entry(
            key=splice.node.key if known else splice.base + suffix,
            primary=known_target.primary,
            born=now,
            started=found.started,
            initial_age=found.age,
            status=200,
            headers=(
                splice.first,
                (b"cache-control", promise),
                (b"etag", own_tag(found.body)),
                *splice.rest,
                (b"date", http_date(int(now))),
            ),
            body=found.body,
            life=Life(lifetime=lifetime),
            tags=known_target.recall.tags,
            stamp=self._tiers.stamp(),
            vary=splice.vary,
            route=known_target.known.route.name,
            names=splice.names,
        )
        if known:
            self._memory.renew(splice.node, stored, size)
            splice.turn = splice.node.turn
        else:
            self._keep(splice, stored)
        splice.until = now - found.age + lifetime
        return stored

    def _lies_there(self, splice: Splice) -> bool:
        """Whether the last response of this splice is in memory, and no index selects among variants of it."""
        return splice.node.turn == splice.turn and splice.index_turn == self._unindexed.turn

    def _keep(self, splice: Splice, stored: Entry) -> None:
        if not splice.fixed:
            splice.fixed = size_of(stored) - len(stored.body) - len(stored.headers[1][1])
        self._tiers.keep(stored, splice.wanted, size=splice.fixed + len(stored.body) + len(stored.headers[1][1]))
        splice.node, splice.turn = NOTHING, -1
        node = self._memory.node(stored.key)
        if node is not None and node.value is stored and self._memory.index(stored.primary) is None:
            splice.node, splice.turn, splice.index_turn = node, node.turn, self._unindexed.turn

    def _start(
        self, splice: Splice, known_target: KnownTarget, block: HeaderBlock, stored: Entry, now: float
    ) -> tuple[int, bytes, Tally]:
        """The status, the response's own fields, and where it is counted."""
        known = splice.heads.get(block.form) or self._head_known(splice, known_target, block)
        if known is not None:
            template, tally = known
            return 200, template % splice.values(stored, b"%d" % stored.initial_age), tally
        exchange = RequestContext("", 0.0, "HEAD" if known_target.head else "GET", "", "")
        answer = stored_answer(exchange, block.headers, stored, known_target.known.route.rules, now)
        headers = answer.headers if self._cors is None else self._cors.told(answer.headers, block.origin)
        headers = splice.downstream.told(headers, stored.vary)
        tally = self._metrics.tally(known_target.known.route.name, Result.HIT, answer.status)
        if not (has(block.headers, b"if-none-match") or has(block.headers, b"if-modified-since")):
            made = template_of(200, headers, CHANGING)
            if made is not None:
                if len(self._heads) >= self._most:
                    self._heads.clear()
                self._heads[known_target.known.route.name, splice.rest, block.form] = (made, tally)
        return answer.status, start_of(answer.status, headers), tally

    def _head_known(self, splice: Splice, known_target: KnownTarget, block: HeaderBlock) -> tuple[bytes, Tally] | None:
        """The head of this form, if it was made for another request line."""
        head = self._heads.get((known_target.known.route.name, splice.rest, block.form))
        if head is not None:
            if len(splice.heads) >= FORMS:
                splice.heads.clear()
            splice.heads[block.form] = head
        return head

    def _note(
        self,
        splice: Splice,
        known_target: KnownTarget,
        block: HeaderBlock,
        request_id: bytes,
        began: float,
        peer: str,
        status: int,
        size: int,
        ttl: int,
        elapsed: float,
    ) -> None:
        """The request's line in the access log."""
        assert self._log is not None
        exchange = self._exchange(known_target, block, request_id, began, peer)
        exchange.key = splice.hash
        exchange.outcome = Outcome(Result.HIT, ttl=ttl, tier="memory", detail="joined")
        self._log(exchange, status, size, elapsed)


def has_expired(stored: Entry, now: float) -> bool:
    """Whether an aggregate has expired, regardless of purges; as in policy.windows for a route without rules."""
    lifetime = stored.life.lifetime
    return lifetime is not None and now >= stored.born - stored.initial_age + lifetime
