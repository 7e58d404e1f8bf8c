"""One fetch from its start to its result: an entry, a failure, or a response for one client only.

Keys with uncacheable responses are marked for a while (hit-for-miss), so that later requests don't queue. Keys whose
fetch failed back off: after a status, for the identity that got it, since one client's credentials say nothing about
others; after a lost connection or a timeout, for all.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from typing import Self

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


class Deadline:
    """`asyncio.timeout` for the running task, without coroutines of its own: each fetch has one. `when` is on the event
    loop's clock; None once it is lifted."""

    __slots__ = ("_asked", "_expired", "_handle", "_task", "when")

    def __init__(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None
        self._task, self._asked = task, task.cancelling()
        self._expired = False
        self.when: float | None = loop.time() + seconds
        self._handle: asyncio.TimerHandle | None = loop.call_at(self.when, self._expire)

    def lift(self) -> None:
        """It ends nothing from now on."""
        self.when = None
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _expire(self) -> None:
        self._handle = None
        self._expired = True
        self._task.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        """Raises TimeoutError in place of the cancellation that it caused."""
        self.lift()
        if self._expired and self._task.uncancel() <= self._asked and kind is asyncio.CancelledError:
            raise TimeoutError from error


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
        try:
            landing = await self._fetch(
                request, origin, stale, method=method, ranged=ranged, left=left, flight=flight, now=now
            )
            if (
                isinstance(landing, Landed)
                and request.route.follows_origin
                and not self._serves_others(request, landing.stored)
            ):
                self.mark_uncacheable(self.flight_key(request))
            return landing
        except TimeoutError:
            error: UpstreamError = UpstreamTimeout(origin.name, "no complete response before the deadline")
        except UpstreamError as failure:
            error = failure
        self.rest(request)
        # A part's result belongs to one client's request, as a status does.
        identity = tuple(identity_of(request)) if isinstance(error, PartFailed) else None
        return Failed(error.status, error=error, identity=identity)

    async def _fetch(
        self,
        request: CacheRequest,
        origin: Origin,
        stale: Entry | None,
        *,
        method: str,
        ranged: bool,
        left: float,
        flight: Flight | None,
        now: float | None = None,
        complete: bool = True,
    ) -> Landing:
        if method == "HEAD" and not request.route.follows_origin:
            method = "GET"
        stale = None if stale is None else self._tiers.conditional(stale, request.wanted)
        conditions = validation.validators(stale) if stale is not None else []
        ranges = _range_of(request.headers) if ranged else []
        begun = None
        if request.route.follows_origin and method == "GET" and not ranged and stale is None and complete:
            begun, ranges = self._storing.to_complete(request)
        sent, stamp = self._clock.now() if now is None else now, self._tiers.purges.epochs.stamp
        with Deadline(left) as deadline:
            forward = request.plan.forward
            fetched = await origin.fetch(method, (*forward, *conditions, *ranges) if conditions or ranges else forward)
            received = ReceivedResponse(fetched.status, fetched.headers, sent, self._clock.now(), stamp)
            try:
                if fetched.status == 304 and conditions and stale is not None:
                    await fetched.body.aclose()
                    landing = await self._confirmed(request, stale, received, deadline)
                    if landing is not None:
                        return landing
                    return await self._fetch(
                        request, origin, None, method=method, ranged=ranged, left=left, flight=flight
                    )
                if begun is not None and fetched.status in (206, 416):
                    whole = await self._storing.completed(request, begun, fetched, received)
                    if whole is not None:
                        return whole
                    await fetched.body.aclose()
                    return await self._fetch(
                        request, origin, None, method=method, ranged=False, left=left, flight=flight, complete=False
                    )
                if method == "HEAD":
                    deadline.lift()
                    await self._storing.freshen_by_head(request, received)
                    return NotShareable(fetched, "head")
                if ranged and (fetched.status != 200 or not request.route.follows_origin):
                    return await self._partial(request, fetched, received, deadline)
                return await self._judge(request, fetched, received, stale, deadline, flight)
            except BaseException:
                await fetched.body.aclose()
                raise

    async def _confirmed(
        self, request: CacheRequest, stale: Entry, received: ReceivedResponse, deadline: Deadline
    ) -> Landing | None:
        """The stored response updated by a 304; None if the 304 does not apply to this request."""
        if not validation.confirms(stale, received):
            return None
        landing = await self._storing.confirmed(request, stale, received)
        if isinstance(landing, NotShareable):
            return self._unstorable(request, landing, deadline)
        return landing

    async def _judge(
        self,
        request: CacheRequest,
        fetched: Fetched,
        received: ReceivedResponse,
        stale: Entry | None,
        deadline: Deadline,
        flight: Flight | None,
    ) -> Landing:
        """A whole new response: to be kept, a failure to share, or for its client alone."""
        unshared = None if fetched.reads is None else _unshared(request, fetched.reads)
        if unshared is not None:
            return self._unstorable(request, NotShareable(fetched, unshared), deadline)
        if fetched.made is not None:
            landing = self._storing.derived(request, fetched, received, fetched.made)
            return self._unstorable(request, landing, deadline) if isinstance(landing, NotShareable) else landing
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
            return (
                failed if failed is not None else self._unstorable(request, NotShareable(fetched, "failure"), deadline)
            )
        if isinstance(verdict, Refuse):
            return self._unstorable(request, NotShareable(fetched, verdict.reason), deadline)
        if not (fetched.framed or fetched.ends_surely or (fetched.shows_cut and not request.route.follows_origin)):
            return self._unstorable(request, NotShareable(fetched, "end-in-doubt"), deadline)
        if request.route.made:
            return self._unstorable(request, NotShareable(fetched, "parts"), deadline)
        body: bytes | None
        if isinstance(fetched.body, WholeBody) and len(fetched.body.content) <= request.route.max_body:
            body = fetched.body.content
        else:
            reason = self._not_whole_just_now(request)
            if reason is not None:  # each concurrent request would buffer up to the limit for nothing
                return self._unstorable(request, NotShareable(fetched, reason), deadline)
            if flight is not None:
                flight.promise(partial(self._storing.preview, request, received, verdict))
            body = await fetched.body.whole(request.route.max_body, None if better else _live(fetched, deadline))
        if body is None:
            reason = "endless" if isinstance(fetched.body, Body) and fetched.body.live else "too-large"
            self._not_whole[reason].put(self.flight_key(request), self._clock.now() + self._durations.hit_for_miss)
            return self._unstorable(request, NotShareable(fetched, reason), deadline)
        if fetched.reads is not None:
            unshared = _unshared(request, fetched.reads)  # what streams may have read more
            verdict = _varying(verdict, fetched, fetched.reads)
        if unshared is None and not (fetched.framed or fetched.ends_surely) and _is_cut(fetched.headers, body):
            unshared = "end-in-doubt"
        if unshared is not None:
            whole = Fetched(fetched.status, fetched.headers, WholeBody(body))
            return self._unstorable(request, NotShareable(whole, unshared), deadline)
        return self._storing.admitted(request, received, verdict, body)

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

    async def _partial(
        self, request: CacheRequest, fetched: Fetched, received: ReceivedResponse, deadline: Deadline
    ) -> NotShareable:
        """The answer to a range request: for its client, and kept as the part it is (RFC 9111 §3.3)."""
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

    def _unstorable(self, request: CacheRequest, landing: NotShareable, deadline: Deadline) -> NotShareable:
        """For its client alone, from now on at the body's own pace."""
        deadline.lift()
        self.mark_uncacheable(self.flight_key(request))
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

    def is_asked_again(self, request: CacheRequest, landing: Landing | None) -> bool:
        """Whether the complete response arrived, is too large to store, and a part of it was requested: the next such
        request is sent to the upstream, and so is this one, instead of reading and discarding everything before the
        part."""
        if (
            not isinstance(landing, NotShareable)
            or landing.reason != "too-large"
            or request.route.local
            or request.route.made
        ):
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
        secret = request.route.keying.identity_key
        if vary:
            key = variant_key(request.plan.base, vary, request.headers, secret)
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
