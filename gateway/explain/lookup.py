"""The stored response for an explained request, and the engine's decision about it. Read-only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import assert_never

from gateway.cache.compression import Coded
from gateway.cache.engine import Engine
from gateway.cache.request import Route
from gateway.cache.respond import stored_answer
from gateway.cache.store import Found, Selection
from gateway.context import RequestContext
from gateway.explain import trace
from gateway.explain.trace import BYPASSES, UNKNOWN, EntryTrace, Name
from gateway.http.headers import Headers
from gateway.policy import freshness
from gateway.policy.content import Content
from gateway.policy.entry import Entry
from gateway.policy.epochs import key_name, route_name, tag_name
from gateway.policy.freshness import Bypass, Hit, Miss, Revalidate, Stale, Unsatisfiable
from gateway.policy.keys import Plan
from gateway.policy.rules import CachePolicy, RequestDirectives
from gateway.policy.vary import latest

READS = ("GET", "HEAD")
NOTHING = Found(None)


@dataclass(frozen=True, slots=True)
class LookupRequest:
    """A request as the engine sees it: `name` is the route's by which its answers are purged."""

    method: str
    headers: Headers
    name: str
    route: Route
    plan: Plan
    facts: RequestDirectives
    tags: tuple[str, ...] = ()
    content: Content | None = None
    """That of a read whose content is part of its key."""

    @property
    def is_read(self) -> bool:
        return self.method in READS or self.content is not None


@dataclass(frozen=True, slots=True)
class ExplainedDecision:
    """The decision for a request, and the reason; `status` is the client's status, if known."""

    decision: str
    why: str
    found: Found = NOTHING
    status: int | None = None


@dataclass(frozen=True, slots=True)
class Stores:
    """`engine` is None where only the configuration is known."""

    engine: Engine | None

    async def judge(self, lookup: LookupRequest) -> ExplainedDecision:
        if not lookup.is_read:
            return ExplainedDecision("pass", trace.passed(lookup.method))
        if lookup.plan.bypass is not None:
            return ExplainedDecision("bypass", BYPASSES[lookup.plan.bypass])
        if self.engine is None:
            return _undecided(lookup)
        return self._decided(self.engine, lookup, await self.found(lookup))

    async def found(self, lookup: LookupRequest) -> Found:
        """The stored response: in this worker's memory, else in Redis."""
        if self.engine is None or lookup.plan.bypass is not None or not lookup.is_read:
            return Found(None)
        identity_key = lookup.route.keying.identity_key
        wanted = Selection(lookup.plan, lookup.headers, lookup.name, lookup.tags, identity_key=identity_key)
        here = Found(self.engine.tiers.at_hand(wanted), "memory")
        decision = freshness.decide(here.stored, lookup.facts, lookup.route.rules, self.engine.clock.now())
        satisfied = not isinstance(decision, Revalidate | Miss | Unsatisfiable)
        if satisfied or lookup.route.made or not self.engine.shared.available:
            return here if here.stored is not None else Found(None)
        there = await self.engine.tiers.look(wanted)
        if here.stored is None or (there.stored is not None and there.stored.born > here.stored.born):
            return there
        return here

    def _decided(self, engine: Engine, lookup: LookupRequest, found: Found) -> ExplainedDecision:
        now = engine.clock.now()
        stored, rules = found.stored, lookup.route.rules
        match decision := freshness.decide(stored, lookup.facts, rules, now):
            case Hit():
                why = f"fresh for {decision.windows.fresh - now:.1f} s more"
                return ExplainedDecision("hit", why, found, self._status(lookup, decision.stored, now))
            case Stale():
                why = trace.why_stale(decision.windows, now, refresh=decision.refresh)
                return ExplainedDecision("stale", why, found, self._status(lookup, decision.stored, now))
            case Revalidate():
                if engine.is_backing_off(lookup.plan.base) and freshness.usable_on_error(
                    decision.stored, lookup.facts, rules, now
                ):
                    why = trace.why_backing_off(decision.windows, now)
                    return ExplainedDecision("stale_error", why, found, self._status(lookup, decision.stored, now))
                return ExplainedDecision("revalidate", trace.why_asked(decision, now), found)
            case Miss():
                return ExplainedDecision("miss", trace.why_missed(stored, self._other_variants(lookup)), found)
            case Bypass():
                return ExplainedDecision("bypass", BYPASSES.get(decision.reason, decision.reason), found)
            case Unsatisfiable():
                return ExplainedDecision("504", "no stored response matches (only-if-cached)", found)
            case _:
                assert_never(decision)

    def _other_variants(self, lookup: LookupRequest) -> tuple[str, ...]:
        """The request headers on which the target's stored responses vary; empty if there are none."""
        return latest(self.engine.memory.index(lookup.plan.primary)) if self.engine is not None else ()

    def _status(self, lookup: LookupRequest, stored: Entry, now: float) -> int:
        """The status of the answer from `stored`: its own, 304, 206 or 416. No coded form is made for it."""
        rules = lookup.route.rules
        coded = Coded(None, stored.body) if freshness.is_compressible(stored, rules) else None
        exchange = RequestContext("", 0.0, lookup.method, "", "http", headers=lookup.headers)
        return stored_answer(exchange, lookup.headers, stored, rules, now, coded).status

    def entry(self, found: Found, rules: CachePolicy) -> EntryTrace | None:
        stored = found.stored
        if stored is None or self.engine is None:
            return None
        now = self.engine.clock.now()
        ends = freshness.windows(stored, rules)
        return EntryTrace(
            tier=found.tier or "",
            status=stored.status,
            bytes=len(stored.body),
            age=round(freshness.current_age(stored, now) if rules.ttl is None else max(0.0, now - stored.born), 3),
            fresh_for=round(ends.fresh - now, 3),
            stale_while_revalidate_for=round(ends.revalidate - now, 3),
            stale_if_error_for=round(ends.error - now, 3),
            varies_on=stored.vary,
            tags=stored.tags,
            purged_softly=stored.softened is not None,
        )

    def names(self, lookup: LookupRequest, stored: Entry | None) -> Iterator[Name]:
        """The names by which the answer can be purged, and when each last was."""
        all_tags = dict.fromkeys((*lookup.tags, *(stored.tags if stored is not None else ())))
        named = [("key", key_name(lookup.plan.primary)), (f"route {lookup.name}", route_name(lookup.name))]
        named += [(f"tag {tag}", tag_name(tag)) for tag in all_tags]
        for shown, name in named:
            yield Name(name=shown, epoch=self._last_purge(name))

    def _last_purge(self, name: str) -> str:
        return "" if self.engine is None else self.engine.tiers.purges.epochs.last_purge(name) or "-"


def _undecided(lookup: LookupRequest) -> ExplainedDecision:
    """The decision without the stores, as far as the configuration and the request make it."""
    decision = freshness.decide(None, lookup.facts, lookup.route.rules, 0.0)
    if isinstance(decision, Bypass):
        return ExplainedDecision("bypass", BYPASSES[decision.reason])
    return ExplainedDecision(UNKNOWN, "no running gateway was consulted, so stored entries are unknown")
