"""Makes entries of responses and stores them: complete, freshened by a 304, completed from parts, or derived from
others.

`policy.storability` decides what may be stored; this module sends no requests.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from msgspec import structs

from gateway.advisor.traffic import Traffic
from gateway.cache.background import Background
from gateway.cache.flight import Landed, Landing, NotShareable
from gateway.cache.request import CacheRequest
from gateway.cache.store import TieredStore
from gateway.clock import Clock
from gateway.http.headers import has, http_date, without
from gateway.http.ranges import PartialBody, combine, is_whole, rest_of
from gateway.policy import storability, validation
from gateway.policy.entry import DerivedFrom, Entry, Life
from gateway.policy.keys import holds_identity
from gateway.policy.storability import Admit, ReceivedResponse, Refuse
from gateway.policy.vary import variant_key
from gateway.upstreams.response import Fetched, WholeBody

_WHEN_SERVED = frozenset((b"content-length", b"age"))
"""Fields that no entry has: they are made when it is served."""


class EntryWriter:
    """`jitter` returns fractions in [0, 1)."""

    def __init__(
        self, tiers: TieredStore, clock: Clock, traffic: Traffic, background: Background, jitter: Callable[[], float]
    ) -> None:
        self._tiers = tiers
        self._clock = clock
        self._traffic = traffic
        self._background = background
        self.jitter = jitter

    def admitted(
        self,
        request: CacheRequest,
        received: ReceivedResponse,
        verdict: Admit,
        body: bytes,
        before: Entry | None = None,
    ) -> Landed:
        """Store a whole response, which replaces `before`."""
        stored = self._stored(request, received, verdict, body)
        if before is not None:
            self._compared(request, before, received, changed=before.body != stored.body)
        return Landed(stored, received.status, self._tiers.keep(stored, request.wanted), verdict.form)

    def preview(self, request: CacheRequest, received: ReceivedResponse, verdict: Admit) -> Entry:
        """The entry for `admitted`, without the body, which has not arrived yet."""
        return self._stored(request, received, verdict, b"")

    async def confirmed(self, request: CacheRequest, stale: Entry, received: ReceivedResponse) -> Landing | None:
        """A 304, or a HEAD response: refreshes the stored response with the received fields (RFC 9111 §4.3.4, §4.3.5);
        for its client only, if they forbid storing. None if it may be another client's: `Vary` has changed, and no
        strong tag proves that the bytes belong to this request."""
        headers = validation.freshened(stale, received)
        if not has(received.headers, b"date"):
            headers = (*without(headers, b"date"), (b"date", http_date(int(received.arrived))))
        whole = structs.replace(received, status=stale.status, headers=(*headers, *_age_of(received)))
        verdict = storability.admit(whole, request.facts, request.route.rules, request.plan)
        moves = validation.selection_changes(stale, headers, follows_origin=request.route.follows_origin)
        if moves or isinstance(verdict, Refuse):
            received = structs.replace(received, stamp=await self._void(request))
        if moves and not validation.proves(stale, received):
            return None
        if isinstance(verdict, Refuse):
            length = (b"content-length", b"%d" % len(stale.body))
            fetched = Fetched(stale.status, (*headers, length), WholeBody(stale.body))
            return NotShareable(fetched, verdict.reason, status=received.status)
        stored = self._stored(request, structs.replace(whole, stamp=received.stamp), verdict, stale.body)
        self._compared(request, stale, received, changed=False)
        return Landed(stored, received.status, self._tiers.keep(stored, request.wanted))

    async def _void(self, request: CacheRequest) -> str:
        """Invalidate all entries of the target, here and everywhere, because their selection is obsolete; returns the
        stamp for the new entry."""
        await self._tiers.invalidate(
            [request.plan.primary], by="a 304 or HEAD response that changed whether the entry may be stored"
        )
        await self._tiers.purged()
        return self._tiers.stamp()

    def _stored(self, request: CacheRequest, received: ReceivedResponse, verdict: Admit, body: bytes) -> Entry:
        plan, route = request.plan, request.route
        headers, names = verdict.headers, dict(verdict.headers) if verdict.form is None else verdict.form.names
        if b"etag" not in names and received.status == 200 and not route.follows_origin:
            headers += ((b"etag", validation.own_tag(body)),)
        if b"date" not in names:
            headers += ((b"date", http_date(int(received.arrived))),)
        vary, tags = verdict.vary, (*request.wanted.tags, *verdict.tags)
        return Entry(
            key=variant_key(plan.base, vary, request.headers, route.keying.identity_key) if vary else plan.base,
            primary=plan.primary,
            born=received.arrived,
            started=received.sent,
            initial_age=verdict.initial_age,
            status=received.status,
            headers=headers,
            body=body,
            life=verdict.life,
            jitter=self.jitter(),
            tags=tuple(dict.fromkeys(tags)) if len(tags) > 1 else tags,
            stamp=received.stamp,
            vary=vary,
            route=route.name,
        )

    def _compared(self, request: CacheRequest, before: Entry, received: ReceivedResponse, *, changed: bool) -> None:
        request.exchange.changed = changed
        self._traffic.fetched(request.route.name, received.sent - before.started, changed=changed)

    def derived(
        self,
        request: CacheRequest,
        fetched: Fetched,
        received: ReceivedResponse,
        made: DerivedFrom,
        before: Entry | None,
    ) -> Landed | NotShareable:
        """Keep a response that a fetch derived from stored ones, which have decided all but whom it is for; it replaces
        `before`."""
        plan, body = request.plan, fetched.body
        if request.route.rules.off:
            return NotShareable(fetched, "off")
        if made.personal and not holds_identity(plan.keyed, plan.unkeyed, made.vary):
            return NotShareable(fetched, "private")
        if not isinstance(body, WholeBody) or len(body.content) > request.route.max_body:
            return NotShareable(fetched, "too-large")
        stored = self._derived(request, fetched, made, body.content, received.sent, received.arrived)
        if before is not None:
            self._compared(request, before, received, changed=before.body != stored.body)
        return Landed(stored, received.status, self._tiers.keep(stored, request.wanted))

    def made(self, request: CacheRequest, fetched: Fetched, made: DerivedFrom, body: bytes) -> Entry:
        """Keep a response just derived from memory."""
        now = self._clock.now()
        stored = self._derived(request, fetched, made, body, now, now)
        self._tiers.keep(stored, request.wanted)
        return stored

    @staticmethod
    def _derived(
        request: CacheRequest, fetched: Fetched, made: DerivedFrom, body: bytes, began: float, now: float
    ) -> Entry:
        plan, vary, identity_key = request.plan, made.vary, request.route.keying.identity_key
        headers = (*[pair for pair in fetched.headers if pair[0] not in _WHEN_SERVED], (b"date", http_date(int(now))))
        return Entry(
            key=variant_key(plan.base, vary, request.headers, identity_key) if vary else plan.base,
            primary=plan.primary,
            born=now,
            started=made.started or began,
            initial_age=made.age,
            status=fetched.status,
            headers=headers,
            body=body,
            life=Life(lifetime=made.lifetime),
            tags=request.wanted.tags,
            stamp=made.stamp,
            vary=vary,
            route=request.route.name,
            names=made.names,
        )

    async def freshen_by_head(self, request: CacheRequest, received: ReceivedResponse) -> None:
        """Apply a HEAD response to the stored GET: it is refreshed, or invalidated (RFC 9111 §4.3.5)."""
        stored = self._tiers.at_hand(request.wanted)
        if stored is None or received.status != 200:
            return
        if not validation.same_representation(stored, received):
            await self._tiers.invalidate([request.plan.primary])
            return
        landing = await self.confirmed(request, stored, received)
        if isinstance(landing, Landed) and landing.kept:
            self._background.spawn(self._tiers.share(landing.stored))

    async def keep_representation(self, request: CacheRequest, fetched: Fetched) -> Fetched:
        """Keep a POST's answer that is the representation of its target (RFC 9110 §9.3.3), if its life is stated."""
        now = math.nextafter(self._clock.now(), math.inf)  # later than the invalidation just made
        received = ReceivedResponse(fetched.status, fetched.headers, now, now, self._tiers.stamp())
        # Without the plan: the POST's upstream saw more identifying fields than the key of a GET contains.
        verdict = storability.admit(received, request.facts, request.route.rules)
        if not isinstance(verdict, Admit) or not verdict.life.lifetime or not fetched.ends_surely:
            return fetched
        body = await fetched.body.whole(request.route.max_body)
        if body is None:
            return fetched
        await self._tiers.purged()  # the invalidation just made must lie before the stamp, or it voids this answer, too
        stored = self._stored(request, structs.replace(received, stamp=self._tiers.stamp()), verdict, body)
        if self._tiers.keep(stored, request.wanted):
            self._background.spawn(self._tiers.share(stored))
        return Fetched(fetched.status, fetched.headers, WholeBody(body))

    # --- parts ---------------------------------------------------------------------------------------------

    def to_complete(self, request: CacheRequest) -> tuple[Entry | None, list[tuple[bytes, bytes]]]:
        """A stored part, and the fields that fetch the rest of its representation."""
        for part in self._tiers.parts(request.wanted):
            fields = rest_of(part.headers)
            if fields:
                return part, fields
        return None, []

    async def completed(
        self, request: CacheRequest, part: Entry, fetched: Fetched, received: ReceivedResponse
    ) -> Landing | None:
        """The complete response from a stored part and the rest; None if they are not of one representation."""
        if fetched.status != 206 or not fetched.ends_surely:
            return None
        body = await fetched.body.whole(request.route.max_body)
        if body is None:
            return None
        piece = combine(PartialBody(part.headers, part.body), PartialBody(received.headers, body))
        if piece is None or not is_whole(piece.headers):
            return None
        return self.keep_whole(request, received, piece)

    def keep_part(self, request: CacheRequest, received: ReceivedResponse, body: bytes) -> None:
        """Store a part, joined with stored parts of the same representation (RFC 9111 §3.4)."""
        piece = PartialBody(received.headers, body)
        for known in self._tiers.parts(request.wanted):
            joined = combine(PartialBody(known.headers, known.body), piece)
            if joined is not None and len(joined.body) <= request.route.max_body:
                piece = joined
        if is_whole(piece.headers):
            landing = self.keep_whole(request, received, piece)
            if isinstance(landing, Landed) and landing.kept:
                self._background.spawn(self._tiers.share(landing.stored))
            return
        whole = structs.replace(received, status=200, headers=piece.headers)
        verdict = storability.admit(whole, request.facts, request.route.rules, request.plan)
        if isinstance(verdict, Admit):
            self._tiers.keep_part(self._stored(request, received, verdict, piece.body))

    def keep_whole(self, request: CacheRequest, received: ReceivedResponse, piece: PartialBody) -> Landing:
        """Store a representation whose parts are all there: it is a 200 now (RFC 9111 §3.4)."""
        received = structs.replace(received, status=200, headers=without(piece.headers, b"content-range"))
        verdict = storability.admit(received, request.facts, request.route.rules, request.plan)
        if isinstance(verdict, Refuse):
            return NotShareable(Fetched(200, received.headers, WholeBody(piece.body)), verdict.reason)
        return self.admitted(request, received, verdict, piece.body)


def _age_of(received: ReceivedResponse) -> list[tuple[bytes, bytes]]:
    return [pair for pair in received.headers if pair[0] == b"age"]
