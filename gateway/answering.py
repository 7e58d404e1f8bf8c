"""What a request is answered with, once it is known what lies stored or what a fetch came to; and what is told of it.

Each answer sets its request's Outcome, of which headers, metrics and the log are made.
"""

from __future__ import annotations

import math
from typing import assert_never

from . import answers, policy
from .answers import Answer
from .asks import Ask
from .background import Background
from .clock import Clock
from .errors import UpstreamError
from .exchange import Exchange
from .fetched import PartOfBody
from .fetching import Durations, Fetching
from .flight import Alone, Failed, Landed, Landing
from .headers import Headers, first, without
from .outcome import Outcome, Result
from .prepared import Prepared
from .ranges import OutOfRange, Part, wanted
from .record import Stored
from .traffic import Traffic, key_hash
from .upstreams import Fetched


class Answering:
    def __init__(
        self,
        *,
        clock: Clock,
        traffic: Traffic,
        prepared: Prepared,
        fetching: Fetching,
        background: Background,
        durations: Durations,
    ) -> None:
        self._clock = clock
        self._traffic = traffic
        self._prepared = prepared
        self._fetching = fetching
        self._background = background
        self._durations = durations

    def from_stored(
        self,
        ask: Ask,
        stored: Stored,
        result: Result,
        *,
        tier: str | None = None,
        forward: str | None = None,
        status: int | None = None,
        kept: bool = False,
        collapsed: bool = False,
        detail: str | None = None,
    ) -> Answer:
        now = self._clock.now()
        rules = ask.route.rules
        ask.exchange.stored = stored
        ask.exchange.key = key_hash(ask.plan.base)
        self._traffic.seen(ask.route.name, ask.exchange.key)
        fresh_for = int(policy.windows(stored, rules).fresh - now)
        ask.exchange.outcome = Outcome(
            result,
            forward=forward,
            forward_status=status,
            ttl=fresh_for if forward is None else None,
            stored=kept,
            collapsed=collapsed,
            tier=tier,
            detail=detail,
        )
        coded = self._prepared.choose(ask.headers, stored, rules)
        return answers.stored_answer(ask.exchange, ask.headers, stored, rules, now, coded)

    def landed(
        self,
        ask: Ask,
        landing: Landing,
        stale: Stored | None,
        forward: str,
        *,
        collapsed: bool,
        detail: str | None = None,
    ) -> Answer:
        match landing:
            case Landed(stored, status, kept):
                result = Result.REVALIDATED if status == 304 else Result.MISS
                return self.from_stored(
                    ask, stored, result, forward=forward, status=status, kept=kept, collapsed=collapsed
                )
            case Failed():
                return self.failed(ask, landing, stale, forward, collapsed=collapsed)
            case Alone(fetched, reason, answered):
                return self.streamed(ask, fetched, forward, detail or reason, answered)
            case _:
                assert_never(landing)

    def failed(self, ask: Ask, failed: Failed, stale: Stored | None, forward: str, *, collapsed: bool) -> Answer:
        if stale is not None and self._fetching.usable_on_error(ask, stale):
            return self.from_stored(
                ask, stale, Result.STALE_ERROR, forward="stale", status=failed.status, collapsed=collapsed
            )
        if failed.error is not None:
            if not isinstance(failed.error, UpstreamError):
                raise failed.error
            return self.broken(ask.exchange, failed.error, forward=forward, collapsed=collapsed)
        ask.exchange.outcome = Outcome(Result.MISS, forward=forward, forward_status=failed.status, collapsed=collapsed)
        headers = _with_length(policy.passed_on(failed.headers), len(failed.body))
        if ask.facts.head:
            return Answer(failed.status, answers.of_head(headers), b"")
        return Answer(failed.status, headers, failed.body)

    def streamed(
        self, ask: Ask, fetched: Fetched, forward: str, detail: str | None, answered: int | None = None
    ) -> Answer:
        status = fetched.status if answered is None else answered
        ask.exchange.outcome = Outcome(Result.MISS, forward=forward, forward_status=status, detail=detail)
        headers = policy.passed_on(fetched.headers)
        if ask.facts.head and not ask.route.follows_origin:  # the upstream was asked by GET
            headers = answers.of_head(headers)
        if fetched.status in (200, 206) and policy.not_modified(ask.headers, headers, self._clock.now()):
            self._background.spawn(fetched.body.aclose())
            return Answer(304, policy.fields_of_304(headers), b"")
        part = _part_of(ask, fetched, headers)
        if isinstance(part, OutOfRange):
            self._background.spawn(fetched.body.aclose())
            return answers.out_of_range(ask.exchange, part)
        if part is not None:
            return answers.partial(headers, part, PartOfBody(fetched.body, part.first, part.last))
        return Answer(fetched.status, headers, fetched.body)

    def broken(self, exchange: Exchange, error: UpstreamError, *, forward: str, collapsed: bool = False) -> Answer:
        exchange.outcome = Outcome(Result.ERROR, forward=forward, collapsed=collapsed, detail=error.kind)
        answer = answers.problem(exchange, error.status, f"{error.title} ({error.upstream}).", title=error.title)
        if error.status == 503:
            seconds = error.retry_after if error.retry_after is not None else self._durations.retry_after
            answer.headers.append((b"retry-after", b"%d" % max(1, math.ceil(seconds))))
        return answer

    def unsatisfiable(self, ask: Ask) -> Answer:
        ask.exchange.outcome = Outcome(Result.ERROR, forward="request", detail="only-if-cached")
        return answers.problem(ask.exchange, 504, "Nothing stored answers this request, and it asked for no more.")


def _part_of(ask: Ask, fetched: Fetched, headers: Headers) -> Part | OutOfRange | None:
    """The part that a request wants of a whole that is for it alone, on a route where a whole that is stored is cut as
    well; None for all of it, also where its length is not known before its end."""
    length = first(headers, b"content-length")
    if fetched.status != 200 or length is None or ask.route.follows_origin or ask.route.local or ask.facts.head:
        return None
    return wanted(ask.headers, headers, int(length))


def _with_length(headers: list[tuple[bytes, bytes]], length: int) -> list[tuple[bytes, bytes]]:
    return [*without(headers, b"content-length"), (b"content-length", b"%d" % length)]
