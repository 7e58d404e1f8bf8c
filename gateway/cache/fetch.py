"""One fetch from its start to its result: an entry, a failure, or a response for one client only.

Keys with uncacheable responses are marked for a while (hit-for-miss), so that later requests don't queue. Keys whose
fetch failed back off: after a status, for the identity that got it, since one client's credentials say nothing about
others; after a lost connection or a timeout, for all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
from msgspec import structs

from gateway.cache.entry_writer import EntryWriter
from gateway.cache.flight import Failed, Flight, Landed, Landing, Marks, NotShareable
from gateway.cache.request import CacheRequest, Origin
from gateway.cache.store import TieredStore
from gateway.clock import Clock
from gateway.errors import PartFailed, UpstreamError, UpstreamTimeout
from gateway.http.codings import Undecodable, decoded
from gateway.http.headers import Headers, has, vary_names
from gateway.http.ranges import is_single, span_of
from gateway.policy import freshness, storability, validation
from gateway.policy.entry import Entry
from gateway.policy.freshness import Hit, Stale
from gateway.policy.keys import is_identity
from gateway.policy.preconditions import as_given
from gateway.policy.rules import PLAIN
from gateway.policy.storability import Admit, ReceivedResponse, Refuse
from gateway.policy.vary import Names, variant_key
from gateway.upstreams.request import Deadline
from gateway.upstreams.response import Body, Fetched, Live, Reads, WholeBody

MOST_DECODED = 16 * 1024 * 1024
"""Bytes up to which a body that ends with its connection is decoded, to see whether it is whole."""
PAUSE = 1.0
"""Seconds without bytes of a body of unknown length, after which it is streamed."""


@dataclass(slots=True)
class Durations:
    """Seconds: the back-off after a failure, and the duration of hit-for-miss."""

    retry_after: float = 1.0
    hit_for_miss: float = 5.0


class Fetch(msgspec.Struct):
    """What is fetched for a request, until when. A response may validate `stale`, or complete the part `begun`."""

    request: CacheRequest
    method: str
    stale: Entry | None
    ranged: bool
    """Whether the request's range is asked for."""
    deadline: Deadline
    flight: Flight | None
    conditional: bool = False
    begun: Entry | None = None
    completes: bool = True
    """Whether a stored part may be completed."""


class Fetcher:
    def __init__(self, tiers: TieredStore, clock: Clock, storing: EntryWriter, durations: Durations) -> None:
        self._tiers = tiers
        self._clock = clock
        self._storing = storing
        self._durations = durations
        self._uncacheable = Marks()
        self._backing_off = Marks()
        self._not_whole = {"too-large": Marks(), "endless": Marks()}

    async def land(
        self,
        request: CacheRequest,
        origin: Origin,
        stale: Entry | None,
        *,
        method: str = "GET",
        ranged: bool = False,
        within: float | None = None,
        flight: Flight | None = None,
        now: float | None = None,
    ) -> Landing:
        """Fetch, and classify the response: to be stored, a failure, or for its client only.

        `within` (seconds) is the rest of its timeout. Requests that wait for `flight` get the response head as soon as
        it arrives. `now` is the time, if the caller has just read the clock.
        """
        left = origin.deadline if within is None else min(within, origin.deadline)
        follows_origin = request.route.follows_origin
        if method == "HEAD" and not follows_origin:
            method = "GET"
        # Whether nothing less than the whole can be asked for: else `_special` sees.
        whole = not (ranged or stale is not None or (follows_origin and (method == "HEAD" or self._tiers.has_parts)))
        landing: Landing | None = None
        try:
            with Deadline(left) as deadline:
                fetch = Fetch(request, method, stale, ranged, deadline, flight)
                while landing is None:
                    fields = request.plan.forward
                    if not whole:
                        fields = (*fields, *self._special(fetch))
                    sent, stamp = self._clock.now() if now is None else now, self._tiers.purges.epochs.stamp
                    fetched = await origin.fetch(method, fields)
                    received = ReceivedResponse(fetched.status, fetched.headers, sent, self._clock.now(), stamp)
                    try:
                        if whole:
                            landing = await self._judge(fetch, fetched, received)
                        else:
                            landing = await self._landing(fetch, fetched, received)
                    except BaseException:
                        await fetched.body.aclose()
                        raise
                    now = None
            if follows_origin and isinstance(landing, Landed) and not self._serves_others(request, landing.stored):
                self.mark_uncacheable(self.flight_key(request))
            return landing
        except TimeoutError:
            return self._broken(request, UpstreamTimeout(origin.name, "no complete response before the deadline"))
        except UpstreamError as error:
            return self._broken(request, error)

    def _broken(self, request: CacheRequest, error: UpstreamError) -> Failed:
        """No response came, or not all of it."""
        self.rest(request)
        # A part's result belongs to one client's request, as a status does.
        identity = tuple(identity_of(request)) if isinstance(error, PartFailed) else None
        return Failed(error.status, error=error, identity=identity)

    def _special(self, fetch: Fetch) -> Headers:
        """The fields by which a request asks for less than the whole."""
        request, stale = fetch.request, fetch.stale
        if stale is not None:
            stale = fetch.stale = self._tiers.conditional(stale, request.wanted)
        conditions = validation.validators(stale) if stale is not None else []
        fetch.conditional, fetch.begun = bool(conditions), None
        ranges = _range_of(request.headers) if fetch.ranged else []
        whole = fetch.method == "GET" and not ranges and stale is None
        if request.route.follows_origin and whole and fetch.completes:
            fetch.begun, ranges = self._storing.to_complete(request)
        return (*conditions, *ranges)

    def _landing(
        self, fetch: Fetch, fetched: Fetched, received: ReceivedResponse
    ) -> Coroutine[Any, Any, Landing | None]:
        """The result of a response; None if it is not for this request, and the whole must be asked for."""
        if fetched.status == 304 and fetch.conditional and fetch.stale is not None:
            return self._confirmed(fetch, fetch.stale, fetched, received)
        if fetch.begun is not None and fetched.status in (206, 416):
            return self._completed(fetch, fetch.begun, fetched, received)
        if fetch.method == "HEAD":
            return self._head(fetch, fetched, received)
        if fetch.ranged and (fetched.status != 200 or not fetch.request.route.follows_origin):
            return self._partial(fetch, fetched, received)
        return self._judge(fetch, fetched, received)

    async def _confirmed(
        self, fetch: Fetch, stale: Entry, fetched: Fetched, received: ReceivedResponse
    ) -> Landing | None:
        """The stored response updated by a 304."""
        await fetched.body.aclose()
        fetch.stale = None
        if not validation.confirms(stale, received):
            return None
        landing = await self._storing.confirmed(fetch.request, stale, received)
        return self._unstorable(fetch, landing) if isinstance(landing, NotShareable) else landing

    async def _completed(
        self, fetch: Fetch, begun: Entry, fetched: Fetched, received: ReceivedResponse
    ) -> Landing | None:
        """A stored part and the rest of its representation."""
        whole = await self._storing.completed(fetch.request, begun, fetched, received)
        if whole is None:
            await fetched.body.aclose()
            fetch.completes = fetch.ranged = False
        return whole

    async def _head(self, fetch: Fetch, fetched: Fetched, received: ReceivedResponse) -> Landing:
        """The answer to a HEAD, for its client; it refreshes the stored GET."""
        fetch.deadline.lift()
        await self._storing.freshen_by_head(fetch.request, received)
        return NotShareable(fetched, "head")

    async def _judge(self, fetch: Fetch, fetched: Fetched, received: ReceivedResponse) -> Landing:
        """A whole new response: to be kept, a failure to share, or for its client alone."""
        request, stale = fetch.request, fetch.stale
        unshared = None if fetched.reads is None else _unshared(request, fetched.reads)
        if unshared is not None:
            return self._unstorable(fetch, NotShareable(fetched, unshared))
        if fetched.made is not None:
            landing = self._storing.derived(request, fetched, received, fetched.made, stale)
            return self._unstorable(fetch, landing) if isinstance(landing, NotShareable) else landing
        verdict = storability.admit(received, request.facts, request.route.rules, request.plan)
        if fetched.reads is not None and isinstance(verdict, Admit):
            verdict = _varying(verdict, fetched, fetched.reads)
        better = stale is not None and self.usable_on_error(request, stale)
        if (
            fetched.status >= 429
            and self._is_failure(request, fetched.status)
            and (isinstance(verdict, Refuse) or better)
        ):
            failed = await self._failed(request, fetched, received, verdict, better=better)
            return failed if failed is not None else self._unstorable(fetch, NotShareable(fetched, "failure"))
        if isinstance(verdict, Refuse):
            return self._unstorable(fetch, NotShareable(fetched, verdict.reason))
        if not (fetched.framed or fetched.ends_surely or (fetched.shows_cut and not request.route.follows_origin)):
            return self._unstorable(fetch, NotShareable(fetched, "end-in-doubt"))
        if request.route.made:
            return self._unstorable(fetch, NotShareable(fetched, "parts"))
        whole = fetched.body
        if isinstance(whole, WholeBody) and len(whole.content) <= request.route.max_body:
            return self._stored(fetch, fetched, received, verdict, whole.content)
        return await self._received(fetch, fetched, received, verdict, better=better)

    async def _received(
        self, fetch: Fetch, fetched: Fetched, received: ReceivedResponse, verdict: Admit, *, better: bool
    ) -> Landing:
        """A response that may be kept, once all of its body has come. One without a known end is streamed before that,
        unless a stale response is `better`, which replaces it if it breaks off."""
        request = fetch.request
        reason = self._not_whole_just_now(request)
        if reason is not None:  # each concurrent request would buffer up to the limit for nothing
            return self._unstorable(fetch, NotShareable(fetched, reason))
        if fetch.flight is not None:
            fetch.flight.promise(partial(self._storing.preview, request, received, verdict))
        body = await fetched.body.whole(request.route.max_body, None if better else _live(fetched, fetch.deadline))
        if body is not None:
            return self._stored(fetch, fetched, received, verdict, body)
        reason = "endless" if isinstance(fetched.body, Body) and fetched.body.live else "too-large"
        self._not_whole[reason].put(self.flight_key(request), self._clock.now() + self._durations.hit_for_miss)
        return self._unstorable(fetch, NotShareable(fetched, reason))

    def _stored(
        self, fetch: Fetch, fetched: Fetched, received: ReceivedResponse, verdict: Admit, body: bytes
    ) -> Landing:
        """A response whose whole `body` is here, as an entry; unless the body, or what a handler read to make it, shows
        that it is for its client alone."""
        request, unshared = fetch.request, None
        if fetched.reads is not None:
            unshared = _unshared(request, fetched.reads)  # what streams may have read more
            verdict = _varying(verdict, fetched, fetched.reads)
        if unshared is None and not (fetched.framed or fetched.ends_surely) and _is_cut(fetched.headers, body):
            unshared = "end-in-doubt"
        if unshared is not None:
            whole = Fetched(fetched.status, fetched.headers, WholeBody(body))
            return self._unstorable(fetch, NotShareable(whole, unshared))
        return self._storing.admitted(request, received, verdict, body, fetch.stale)

    def _not_whole_just_now(self, request: CacheRequest) -> str | None:
        """Why the last response for the same flights could not be stored, if it was too large, or did not end."""
        for reason, marks in self._not_whole.items():
            if marks and marks.active(self.flight_key(request), self._clock.now()):
                return reason
        return None

    def _is_failure(self, request: CacheRequest, status: int) -> bool:
        """Whether a status means that the upstream can't respond now. A handler's 429 is its response."""
        return status >= 500 or (status == 429 and not request.route.local)

    async def _failed(
        self,
        request: CacheRequest,
        fetched: Fetched,
        received: ReceivedResponse,
        verdict: Admit | Refuse,
        *,
        better: bool,
    ) -> Failed | None:
        """A failure that a stale response replaces, or that waiting requests may share; None if neither."""
        rest = storability.retry_after(received)
        self.rest(request, rest, own=True)
        identity = identity_of(request)
        credentials = any(name in (b"authorization", b"cookie") for name, _ in identity)
        selected = fetched.reads is not None and bool(fetched.reads.names())
        personal = credentials or selected or (isinstance(verdict, Refuse) and verdict.personal)
        if personal and not better:
            return None
        body = await fetched.body.whole(request.route.max_body)
        if body is None:
            return None
        return Failed(fetched.status, fetched.headers, body, personal=personal, identity=tuple(identity), rest=rest)

    async def _partial(self, fetch: Fetch, fetched: Fetched, received: ReceivedResponse) -> NotShareable:
        """The answer to a range request: for its client, and kept as the part it is (RFC 9111 §3.3)."""
        request, deadline = fetch.request, fetch.deadline
        verdict = storability.admit(
            structs.replace(received, status=200), request.facts, request.route.rules, request.plan
        )
        if (
            fetched.status != 206
            or not request.route.follows_origin
            or not isinstance(verdict, Admit)
            or not fetched.ends_surely
            or span_of(received.headers) is None
        ):
            deadline.lift()
            return NotShareable(fetched, "range")
        body = await fetched.body.whole(request.route.max_body)
        if body is None:
            deadline.lift()
            return NotShareable(fetched, "too-large")
        self._storing.keep_part(request, received, body)
        return NotShareable(Fetched(206, fetched.headers, WholeBody(body)), "range")

    def _unstorable(self, fetch: Fetch, landing: NotShareable) -> NotShareable:
        """For its client alone, from now on at the body's own pace."""
        fetch.deadline.lift()
        self.mark_uncacheable(self.flight_key(fetch.request))
        return landing

    def _serves_others(self, request: CacheRequest, stored: Entry) -> bool:
        """Whether a stored response may be served to all without validation: not one that arrives stale (`no-cache`,
        `max-age=0`)."""
        decision = freshness.decide(stored, PLAIN, request.route.rules, self._clock.now())
        return isinstance(decision, Hit | Stale)

    # --- marks of earlier fetches ---------------------------------------------------------------------------

    def rest(self, request: CacheRequest, seconds: float | None = None, *, own: bool = False) -> None:
        """Back off for this key, for at least so many seconds; for this identity only if it is its `own` failure."""
        key = self._own_key(request) if own else request.plan.base
        self._backing_off.put(key, self._clock.now() + max(self._durations.retry_after, seconds or 0.0))

    def is_backing_off(self, request: CacheRequest) -> bool:
        return bool(self._backing_off) and any(
            map(self.is_key_backing_off, (request.plan.base, self._own_key(request)))
        )

    def is_key_backing_off(self, base: str) -> bool:
        return self._backing_off.active(base, self._clock.now())

    def usable_on_error(self, request: CacheRequest, stale: Entry) -> bool:
        return freshness.usable_on_error(stale, request.facts, request.route.rules, self._clock.now())

    def may_send_range(self, request: CacheRequest) -> bool:
        """On a route with a duration `Range` is not in the key: the whole is fetched and cut, if it can be kept. A
        range is one of a GET (RFC 9110 §14.2)."""
        if request.facts.head or not request.facts.ranged:
            return False
        ranges = _range_of(request.headers)
        if not ranges or not (request.route.follows_origin or is_single(ranges)):
            return False
        return request.route.follows_origin or self._uncacheable.active(self.flight_key(request), self._clock.now())

    def is_asked_again(self, request: CacheRequest, landing: NotShareable) -> bool:
        """Whether the complete response arrived, is too large to store, and a part of it was requested: the next such
        request is sent to the upstream, and so is this one, instead of reading and discarding everything before the
        part."""
        if not request.facts.ranged or landing.reason != "too-large":
            return False
        if request.route.local or request.route.made:
            return False
        return landing.fetched.status == 200 and self.may_send_range(request)

    def is_uncacheable(self, key: str) -> bool:
        """Whether a recent flight of this key returned a response for its client only."""
        return bool(self._uncacheable) and self._uncacheable.active(key, self._clock.now())

    def mark_uncacheable(self, key: str) -> None:
        self._uncacheable.put(key, self._clock.now() + self._durations.hit_for_miss)

    def flight_key(self, request: CacheRequest, vary: Names = ()) -> str:
        """What requests that wait for one fetch have in common: the variant, by `vary` or that of the newest response;
        and the credentials that the upstream sees though they are not in the key, unless the stored response is known
        to be for all."""
        if vary:
            key = variant_key(request.plan.base, vary, request.headers, request.route.keying.identity_key)
        else:
            key = self._tiers.flight_key(request.wanted)
        if not request.facts.authorized or not request.route.follows_origin:
            return key
        identity = _line_of([pair for pair in request.plan.forward if pair[0] == b"authorization"], request)
        return key + identity if identity and not self._is_shared(request) else key

    def _is_shared(self, request: CacheRequest) -> bool:
        stored = self._tiers.at_hand(request.wanted)
        return stored is not None and stored.life.shared

    @staticmethod
    def _own_key(request: CacheRequest) -> str:
        """The base key, and all fields that identified the client to the upstream."""
        return (
            request.plan.base + _line_of(identity_of(request), request)
            if request.route.follows_origin
            else request.plan.base
        )


def _live(fetched: Fetched, deadline: Deadline) -> Live | None:
    """Recognises a body to be streamed at once, because it may be endless; None if its end is known."""
    when = deadline.when
    if when is None or has(fetched.headers, b"content-length"):
        return None
    return Live(PAUSE, (when - asyncio.get_running_loop().time()) / 2)


def identity_of(request: CacheRequest) -> list[tuple[bytes, bytes]]:
    """The fields that identified the client to the upstream."""
    return [pair for pair in request.plan.forward if _says_who(pair[0])]


def _says_who(name: bytes) -> bool:
    return is_identity(name.decode("latin-1"))


def _line_of(fields: list[tuple[bytes, bytes]], request: CacheRequest) -> str:
    sent = b"\n".join(name + b":" + value for name, value in fields).decode("latin-1")
    return "\nfor " + request.route.keying.identity_key.digest("for", sent) if fields else ""


def _is_cut(headers: Headers, body: bytes) -> bool:
    """Whether the content coding of a body that ends with its connection shows that it is not all of it."""
    try:
        decoded(headers, body, MOST_DECODED)
    except Undecodable:
        return True
    return False


def _unshared(request: CacheRequest, reads: Reads) -> str | None:
    """Why a handler's response is for its client only; None if its inputs are known and equal to those of `request`."""
    return reads.reason() or (None if reads.agrees(request.headers) else "reads-changed")


def _varying(verdict: Admit, fetched: Fetched, reads: Reads) -> Admit:
    """The verdict on a handler's response, which varies on the fields that were read and on its own `Vary`."""
    said = vary_names(fetched.headers) or ()
    return structs.replace(verdict, vary=tuple(sorted({*said, *reads.names()})))


def _range_of(headers: Headers) -> list[tuple[bytes, bytes]]:
    return [pair for pair in as_given(headers) if pair[0] in (b"range", b"if-range")]
