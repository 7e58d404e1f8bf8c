"""The limits of a route: who is counted by each, in which order they are asked, and the fields that announce them.

Limits that count all requests come before the cache, those that count misses before the upstream; those that count
refused credentials before a signature is verified.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import Literal

from gateway.config.models import Config
from gateway.config.rate_limits import CLIENT, PLAN_CLAIM, SECONDS, RateLimitConfig, parse_quota, parse_rate
from gateway.context import Allowance, RequestContext
from gateway.errors import LimitReached
from gateway.identity.principal import MissingClaim, Principal, canonical
from gateway.limits.bucket import Bucket, Subject, Verdict
from gateway.limits.limiter import Limiter
from gateway.limits.meter import QuotaPolicy

Field = tuple[bytes, bytes]
_Memo = tuple[Principal | None, str, tuple[Subject, ...], Bucket | None]
"""Who is counted for whom, and the bucket of that, if it is one."""
_MOST_REMEMBERED = 10_000
_OF_CALENDARS = {"day": SECONDS["d"], "month": 30 * SECONDS["d"]}


@lru_cache(maxsize=4096)
def network_of(client: str) -> bytes:
    """The address of a client, or of IPv6 its /64, as one subscriber has at least that."""
    try:
        address = ip_address(client)
    except ValueError:
        return client.encode("utf-8", "replace")
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped.packed
        return address.packed[:8]
    return address.packed


@dataclass(frozen=True, slots=True)
class Limit:
    """One of `rate_limits`. `plans` are the policies of those whose claim `plan_claim` has the name of a plan."""

    name: str
    by: str
    counts: Literal["all", "misses", "refused"]
    policy: QuotaPolicy
    plan_claim: str = ""
    plans: Mapping[str, QuotaPolicy] | None = None

    @classmethod
    def of(cls, name: str, config: RateLimitConfig) -> Limit:
        policy = _policy(name, config.rate or config.quota or "", config)
        plans = {plan: _policy(name, text, config) for plan, text in config.plans.items() if plan != PLAN_CLAIM}
        return cls(name, config.by, config.counts, policy, config.plans.get(PLAN_CLAIM, ""), plans)

    def counted(self, principal: Principal | None, client: str) -> tuple[QuotaPolicy, bytes]:
        """The policy of a request, and who is counted: by address where there is no such claim."""
        if principal is None or self.by == CLIENT:
            return self._policy_of(principal), b"client " + network_of(client)
        try:
            who = canonical(principal.claim(self.by))
        except ValueError:  # a missing claim, or a value in which two may look alike
            return self._policy_of(principal), b"client " + network_of(client)
        issuer = principal.issuer.encode("utf-8", "surrogatepass")
        return self._policy_of(principal), b"%d:%b %b" % (len(issuer), issuer, who)

    def _policy_of(self, principal: Principal | None) -> QuotaPolicy:
        if not self.plans or principal is None:
            return self.policy
        try:
            plan = principal.claim(self.plan_claim)
        except MissingClaim:
            return self.policy
        return self.plans.get(plan, self.policy) if isinstance(plan, str) else self.policy


def _policy(name: str, text: str, config: RateLimitConfig) -> QuotaPolicy:
    if config.quota is not None:
        count, calendar = parse_quota(text)
        return QuotaPolicy(name, count, float(_OF_CALENDARS[calendar]), count, calendar)
    count, period = parse_rate(text)
    if config.burst is None:
        return QuotaPolicy(name, count, period, count)
    own_count, own_period = parse_rate(config.rate or text)
    burst = max(1, round(config.burst * (count / period) / (own_count / own_period)))
    return QuotaPolicy(name, count, period, burst)


@dataclass(frozen=True, slots=True)
class RouteLimits:
    """The limits that a route names."""

    limiter: Limiter
    of_all: tuple[Limit, ...] = ()
    of_misses: tuple[Limit, ...] = ()
    of_refused: tuple[Limit, ...] = ()
    _subjects: dict[int | str, _Memo] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, config: Config, names: Sequence[str], limiter: Limiter) -> RouteLimits | None:
        """None for a route without limits."""
        limits = [Limit.of(name, config.rate_limits[name]) for name in dict.fromkeys(names)]
        if not limits:
            return None
        of_all, of_misses, of_refused = (tuple(each for each in limits if each.counts == kind) for kind in _KINDS)
        return cls(limiter, of_all, of_misses, of_refused)

    def subjects(self, principal: Principal | None, client: str) -> tuple[Subject, ...]:
        """Who is counted by the limits that count all requests, for `admit`."""
        counted = [limit.counted(principal, client) for limit in self.of_all]
        return tuple((policy.text, key) for policy, key in counted)

    def admits_hit(self, principal: Principal | None, client: str, now: float) -> bool:
        """Count a hit by the limits that count all, if it may pass at once; False, and nothing is counted: the app
        decides. Who is counted is remembered for a principal, of which there is one object for each credential; a
        bucket that the limiter has forgotten has no credit that may be used."""
        memo = self._subjects.get(client if principal is None else id(principal))
        if memo is None or memo[0] is not principal or memo[1] != client:
            memo = self._remember(principal, client, self.subjects(principal, client))
        bucket = memo[3]
        if bucket is not None and now < bucket.until:
            left = bucket.credit - 1
            if left >= 0 and left != bucket.low:
                bucket.credit = left
                return True
        admitted = self.admit(memo[2], now)
        if admitted and len(memo[2]) == 1:
            self._remember(principal, client, memo[2])
        return admitted

    def _remember(self, principal: Principal | None, client: str, subjects: tuple[Subject, ...]) -> _Memo:
        if len(self._subjects) >= _MOST_REMEMBERED:
            self._subjects.clear()
        bucket = self.limiter.bucket(subjects[0]) if len(subjects) == 1 else None
        memo = self._subjects[client if principal is None else id(principal)] = principal, client, subjects, bucket
        return memo

    def admit(self, subjects: Sequence[Subject], now: float) -> bool:
        """Let a hit pass at once by the limits that count all requests; False: the app decides. `now` is the clock's,
        in seconds."""
        admit = self.limiter.admit
        if len(subjects) == 1:
            return admit(subjects[0], now)
        for place, subject in enumerate(subjects):
            if not admit(subject, now):
                for other in subjects[:place]:
                    self.limiter.undo(other)
                return False
        return True

    async def before_cache(self, exchange: RequestContext) -> LimitReached | None:
        """Count a request by the limits that count all; why it does not pass."""
        reached = await self._count(self.of_all, exchange)
        exchange.allowance = self.allowance()
        return reached

    def allowance(self) -> Allowance | None:
        """What is asked before the upstream is; None where no limit counts that."""
        return MissAllowance(self) if self.of_misses else None

    async def before_upstream(self, exchange: RequestContext) -> LimitReached | None:
        """Count a request by the limits that count misses."""
        return await self._count(self.of_misses, exchange)

    def not_a_miss(self, exchange: RequestContext) -> None:
        """Take back what `before_upstream` has counted."""
        for limit in self.of_misses:
            self.limiter.give_back(*limit.counted(exchange.principal, exchange.client))

    def refuses_many(self, client: str) -> bool:
        """Whether the client at this address had reached a limit of refused credentials with its last request."""
        counted = [limit.counted(None, client) for limit in self.of_refused]
        return any(self.limiter.is_exhausted(policy, key) for policy, key in counted)

    async def before_verifying(self, exchange: RequestContext) -> LimitReached | None:
        """Count a credential of a client that has reached a limit of refused ones, before it is verified; why it is
        not."""
        return await self._count(self.of_refused, exchange)

    async def correct_refused(self, exchange: RequestContext, *, counts: bool) -> None:
        """Count a credential that was refused, or take back that one was counted which was not."""
        if counts:
            await self._count(self.of_refused, exchange, announced=False)
            return
        for limit in self.of_refused:
            self.limiter.give_back(*limit.counted(None, exchange.client))

    def known(self, principal: Principal | None, client: str) -> list[tuple[Limit, QuotaPolicy, Verdict | None]]:
        """What this worker knows of each limit of a request, without counting it."""
        found = []
        for limit in (*self.of_all, *self.of_misses, *self.of_refused):
            policy, key = limit.counted(None if limit.counts == "refused" else principal, client)
            found.append((limit, policy, self.limiter.known(policy, key)))
        return found

    async def _count(
        self, limits: Iterable[Limit], exchange: RequestContext, *, announced: bool = True
    ) -> LimitReached | None:
        verdicts: list[tuple[Verdict, bytes]] = []
        for limit in limits:
            policy, key = limit.counted(exchange.principal, exchange.client)
            verdict = await self.limiter.acquire(policy, key)
            verdicts.append((verdict, key))
            if not verdict.admitted:
                for passed, counted in verdicts[:-1]:
                    self.limiter.give_back(passed.policy, counted)
                break
        if announced and verdicts:
            exchange.rate_limit = announcing([verdict for verdict, _ in verdicts], exchange.rate_limit)
        last = verdicts[-1][0] if verdicts else None
        return None if last is None or last.admitted else LimitReached((last.policy.name,), last.wait)


_KINDS = ("all", "misses", "refused")


class MissAllowance:
    """Counts one request by the limits that count misses, once."""

    __slots__ = ("_asked", "_before", "_limits", "_reached")

    def __init__(self, limits: RouteLimits) -> None:
        self._limits = limits
        self._asked = False
        self._before: tuple[Field, ...] = ()
        self._reached: LimitReached | None = None

    async def refusal(self, exchange: RequestContext) -> LimitReached | None:
        if not self._asked:
            self._asked, self._before = True, exchange.rate_limit
            self._reached = await self._limits.before_upstream(exchange)
        return self._reached

    def give_back(self, exchange: RequestContext) -> None:
        if self._asked and self._reached is None:
            self._asked, exchange.rate_limit = False, self._before
            self._limits.not_a_miss(exchange)


def announcing(verdicts: Sequence[Verdict], before: Sequence[Field] = ()) -> tuple[Field, Field]:
    """The fields `RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers-10 §3, §4): lists of items
    with parameters (RFC 9651), those of `before` first. The names of limits need no escaping."""
    policies = [b'"%b";q=%d;w=%d' % (_name(each), each.policy.count, _window(each)) for each in verdicts]
    states = [b'"%b";r=%d;t=%d' % (_name(each), each.remaining, _seconds(each)) for each in verdicts]
    known = dict(before)
    return (
        (b"ratelimit-policy", b", ".join([*filter(None, [known.get(b"ratelimit-policy")]), *policies])),
        (b"ratelimit", b", ".join([*filter(None, [known.get(b"ratelimit")]), *states])),
    )


def _name(verdict: Verdict) -> bytes:
    return verdict.policy.name.encode("ascii")


def _window(verdict: Verdict) -> int:
    return max(1, int(verdict.policy.period))


def _seconds(verdict: Verdict) -> int:
    """Until the quota is whole again; of a refused request, until one passes."""
    seconds = verdict.reset if verdict.admitted else verdict.wait
    return int(seconds) + (seconds > int(seconds))
