"""One fetch from its beginning to what it comes to: a response to be kept, a failure to share, or one client's alone.

What an upstream cannot give twice, or failed to give, is remembered for a while: so that those who come next do not
queue for it (*uncacheable*), and do not ask again at once (*resting*).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from msgspec import structs

from . import policy
from .asks import Ask, Origin
from .clock import Clock
from .errors import UpstreamError, UpstreamTimeout
from .flight import Alone, Failed, Landing, Marks
from .headers import Headers
from .preconditions import as_given
from .ranges import span_of
from .record import Stored
from .storing import Storing
from .tiers import Tiers
from .upstreams import Fetched, WholeBody


@dataclass(slots=True)
class Durations:
    """Seconds: until what failed is asked for again, and for how long nobody waits for what cannot be shared."""

    retry_after: float = 1.0
    uncacheable_for: float = 5.0


class Fetching:
    def __init__(self, tiers: Tiers, clock: Clock, storing: Storing, durations: Durations) -> None:
        self._tiers = tiers
        self._clock = clock
        self._storing = storing
        self._durations = durations
        self._uncacheable = Marks()
        self._resting = Marks()
        self._too_large = Marks()

    async def land(
        self,
        ask: Ask,
        origin: Origin,
        stale: Stored | None,
        *,
        method: str = "GET",
        ranged: bool = False,
        within: float | None = None,
    ) -> Landing:
        """Fetch, and decide what the response is: to be kept, a failure, or for its client alone.

        `within` (seconds) is what is left of its deadline.
        """
        left = origin.deadline if within is None else min(within, origin.deadline)
        try:
            return await self._fetch(ask, origin, stale, method=method, ranged=ranged, left=left)
        except TimeoutError:
            error: UpstreamError = UpstreamTimeout(origin.name, "no whole answer within its deadline")
        except UpstreamError as failure:
            error = failure
        self.rest(ask)
        return Failed(error.status, error=error)

    async def _fetch(
        self,
        ask: Ask,
        origin: Origin,
        stale: Stored | None,
        *,
        method: str,
        ranged: bool,
        left: float,
        complete: bool = True,
    ) -> Landing:
        if method == "HEAD" and not ask.route.follows_origin:
            method = "GET"
        stale = self._tiers.conditional(stale, ask.wanted)
        conditions = policy.validators(stale) if stale is not None else []
        ranges = _range_of(ask.headers) if ranged else []
        begun = None
        if method == "GET" and not ranged and stale is None and complete and ask.route.follows_origin:
            begun, ranges = self._storing.to_complete(ask)
        sent, stamp = self._clock.now(), self._tiers.stamp()
        async with asyncio.timeout(left) as deadline:
            fetched = await origin.fetch(method, [*ask.plan.forward, *conditions, *ranges])
            received = policy.Received(fetched.status, fetched.headers, sent, self._clock.now(), stamp)
            try:
                if fetched.status == 304 and conditions and stale is not None:
                    await fetched.body.aclose()
                    if policy.confirms(stale, received):
                        return self._storing.confirmed(ask, stale, received)
                    return await self._fetch(ask, origin, None, method=method, ranged=ranged, left=left)
                if begun is not None and fetched.status in (206, 416):
                    whole = await self._storing.completed(ask, begun, fetched, received)
                    if whole is not None:
                        return whole
                    await fetched.body.aclose()
                    return await self._fetch(ask, origin, None, method=method, ranged=False, left=left, complete=False)
                if method == "HEAD":
                    deadline.reschedule(None)
                    await self._storing.freshen_by_head(ask, received)
                    return Alone(fetched, "head")
                if ranged and (fetched.status != 200 or not ask.route.follows_origin):
                    return await self._partial(ask, fetched, received, deadline)
                return await self._judge(ask, fetched, received, stale, deadline)
            except BaseException:
                await fetched.body.aclose()
                raise

    async def _judge(
        self,
        ask: Ask,
        fetched: Fetched,
        received: policy.Received,
        stale: Stored | None,
        deadline: asyncio.Timeout,
    ) -> Landing:
        """A whole new response: to be kept, a failure to share, or for its client alone."""
        verdict = policy.admit(received, ask.facts, ask.route.rules)
        better = stale is not None and self.usable_on_error(ask, stale)
        if fetched.status >= 500 and (isinstance(verdict, policy.Refuse) or better):
            self.rest(ask)
            if better or not (isinstance(verdict, policy.Refuse) and verdict.personal):
                body = await fetched.body.whole(ask.route.max_body)
                if body is not None:
                    return Failed(fetched.status, fetched.headers, body)
            return self._unstorable(ask, fetched, "failure", deadline)
        if isinstance(verdict, policy.Refuse):
            return self._unstorable(ask, fetched, verdict.reason, deadline)
        if not fetched.ends_surely:
            return self._unstorable(ask, fetched, "end-in-doubt", deadline)
        if ask.route.made and fetched.made is None:
            return self._unstorable(ask, fetched, "parts", deadline)
        key = self.flight_key(ask)
        if self._too_large.active(key, self._clock.now()):
            # It was so a moment ago: each of those who come for it now would collect as much as may be kept, in vain.
            return self._unstorable(ask, fetched, "too-large", deadline)
        body = await fetched.body.whole(ask.route.max_body)
        if body is None:
            self._too_large.put(key, self._clock.now() + self._durations.uncacheable_for)
            return self._unstorable(ask, fetched, "too-large", deadline)
        return self._storing.admitted(ask, received, verdict, body, fetched.made)

    async def _partial(self, ask: Ask, fetched: Fetched, received: policy.Received, deadline: asyncio.Timeout) -> Alone:
        """The answer to a range request: for its client, and kept as the part it is (RFC 9111 §3.3)."""
        verdict = policy.admit(structs.replace(received, status=200), ask.facts, ask.route.rules)
        if (
            fetched.status != 206
            or not ask.route.follows_origin
            or not isinstance(verdict, policy.Admit)
            or not fetched.ends_surely
            or span_of(received.headers) is None
        ):
            deadline.reschedule(None)
            return Alone(fetched, "range")
        body = await fetched.body.whole(ask.route.max_body)
        if body is None:
            deadline.reschedule(None)
            return Alone(fetched, "too-large")
        self._storing.keep_part(ask, received, body)
        return Alone(Fetched(206, fetched.headers, WholeBody(body)), "range")

    def _unstorable(self, ask: Ask, fetched: Fetched, reason: str, deadline: asyncio.Timeout) -> Alone:
        """For its client alone, from now on at the body's own pace."""
        deadline.reschedule(None)
        self._uncacheable.put(self.flight_key(ask), self._clock.now() + self._durations.uncacheable_for)
        return Alone(fetched, reason)

    # --- what is remembered of fetches ---------------------------------------------------------------------

    def rest(self, ask: Ask) -> None:
        self._resting.put(ask.plan.base, self._clock.now() + self._durations.retry_after)

    def is_resting(self, ask: Ask) -> bool:
        return self.is_resting_key(ask.plan.base)

    def is_resting_key(self, base: str) -> bool:
        return self._resting.active(base, self._clock.now())

    def usable_on_error(self, ask: Ask, stale: Stored) -> bool:
        return policy.usable_on_error(stale, ask.facts, ask.route.rules, self._clock.now())

    def may_send_range(self, ask: Ask) -> bool:
        """On a route with a duration `Range` is not in the key: the whole is fetched and cut, if it can be kept."""
        return ask.route.follows_origin or self._uncacheable.active(self.flight_key(ask), self._clock.now())

    def is_uncacheable(self, key: str) -> bool:
        """Whether what a flight of this key brought a moment ago was for its client alone."""
        return self._uncacheable.active(key, self._clock.now())

    def flight_key(self, ask: Ask) -> str:
        return self._tiers.flight_key(ask.wanted)


def _range_of(headers: Headers) -> list[tuple[bytes, bytes]]:
    return [pair for pair in as_given(headers) if pair[0] in (b"range", b"if-range")]
