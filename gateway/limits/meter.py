"""The arithmetic of a limit: the generic cell rate algorithm (GCRA, ITU-T I.371), and credit. Pure.

A meter holds how much of the burst is spent. A request passes while at most `burst - 1` is; what is spent is regained
at the rate. That is GCRA: its theoretical arrival time lies `spent * interval` after now. A quota regains nothing
before its calendar period ends.

Workers hold credit: requests that they may let pass without asking. It is spent when it is given, and a meter regains
nothing of what workers hold (`spent` is at least that), because it would otherwise be there twice. So over all workers
no more passes than the burst and the rate allow, however old the credit is, and whatever their clocks show. What a
worker returns unused is regained at once; credit that it neither used nor returned ends with its lease, and stays
spent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

LEASE = 3.0
"""Seconds for which a meter believes that a worker holds credit. Workers use it for less (`limiter.VALID`)."""
MOST_HELD = 2
"""At most this fraction of a burst (one half) is held by workers; of what is left, a worker gets a quarter."""
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class QuotaPolicy:
    """What a subject may do: `count` requests in `period` seconds, `burst` at once. With `calendar` (`day`, `month`),
    `count` in each such period of UTC. `name` is the limit's."""

    name: str
    count: int
    period: float
    burst: int
    calendar: str = ""
    text: str = field(init=False, repr=False, compare=False)
    """Equal for equal policies."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", f"{self.name} {self.count} {self.period:g} {self.burst} {self.calendar}")

    @property
    def interval(self) -> float:
        """Seconds in which one request is regained; 0 for a quota."""
        return 0.0 if self.calendar else self.period / self.count

    def ends(self, now: float) -> float:
        """When the quota's calendar period ends, in seconds since 1970; of a rate, infinity."""
        if not self.calendar:
            return float("inf")
        today = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        if self.calendar == "day":
            return (today + timedelta(days=1)).timestamp()
        return (today.replace(day=28) + timedelta(days=4)).replace(day=1).timestamp()

    def span(self, now: float) -> str:
        """The calendar period, as in a key; empty for a rate."""
        if not self.calendar:
            return ""
        return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d" if self.calendar == "day" else "%Y-%m")


@dataclass(frozen=True, slots=True)
class Ask:
    """What a worker asks of a meter. `demand` requests wait; `want` more would be used soon. Of the credit that it was
    given it still holds `held`, and returns `back`. `debt` passed without credit, or was taken back where negative.
    `floor` is what it knows to be spent: it counts where the meter is new, and with `restore` in any case."""

    policy: QuotaPolicy
    key: bytes
    demand: int = 0
    want: int = 0
    held: int = 0
    back: int = 0
    debt: int = 0
    floor: float = 0.0
    restore: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """`granted` of the demand pass; `extra` is credit. `spent` of the burst is spent, and `wait` seconds are to pass
    before one more request does; 0 where all demand was granted."""

    granted: int
    extra: int
    spent: float
    wait: float


@dataclass(slots=True)
class Meter:
    """What a subject has spent. `mark` is the theoretical arrival time of a rate, in seconds, or what is spent of a
    quota; `held` the credit of workers, and when its lease ends."""

    mark: float | None = None
    held: dict[str, tuple[int, float]] = field(default_factory=dict)

    def is_idle(self, policy: QuotaPolicy, now: float) -> bool:
        """Whether it says no more than a new one does."""
        lent = any(until > now for _, until in self.held.values())
        return not lent and (self.mark is None or (policy.interval > 0 and self.mark <= now))


def settle(meter: Meter, ask: Ask, worker: str, now: float) -> Reply:
    """Answer `ask` of `worker`, and change `meter` accordingly. `now` is in seconds, of the meter's clock. The script
    in `cache.redis.meters` does the same."""
    policy, interval = ask.policy, ask.policy.interval
    burst = policy.burst
    new = meter.mark is None
    spent = 0.0 if meter.mark is None else (meter.mark - now) / interval if interval else meter.mark
    spent = max(0.0, spent, ask.floor if new or ask.restore else 0.0, sum(count for count, _ in meter.held.values()))
    spent = min(spent, 2.0 * burst)
    # A lease far in the future is of a clock that was set back since.
    meter.held = {name: given for name, given in meter.held.items() if now < given[1] <= now + 2 * LEASE}
    mine = meter.held.pop(worker, (0, 0.0))[0]
    back = min(ask.back, mine)
    held = min(ask.held, mine - back)
    others = sum(count for count, _ in meter.held.values())
    spent = max(spent + ask.debt - back, others + held)
    left = max(0, int(burst - spent + _ROUNDING))
    granted = min(ask.demand, left)
    extra = 0
    if granted == ask.demand:
        extra = max(0, min(ask.want, (left - granted) // 4, burst // MOST_HELD - others - held))
    spent += granted + extra
    if held + extra:
        meter.held[worker] = (held + extra, now + LEASE)
    meter.mark = now + spent * interval if interval else spent
    wait = 0.0 if granted == ask.demand else max(0.0, spent + 1 - burst) * interval
    return Reply(granted, extra, spent, wait)


class LocalMeters:
    """The meters of a worker that shares no Redis. Bounded: beyond `most` the oldest are forgotten, and their subjects
    have their whole burst again. `now` is in seconds since 1970."""

    def __init__(self, *, most: int = 200_000) -> None:
        self._most = most
        self._meters: dict[tuple[str, bytes, str], tuple[QuotaPolicy, Meter]] = {}

    def __len__(self) -> int:
        return len(self._meters)

    def settle(self, ask: Ask, now: float) -> Reply:
        name = (ask.policy.name, ask.key, ask.policy.span(now))
        known = self._meters.pop(name, None)
        meter = Meter() if known is None else known[1]
        while len(self._meters) >= self._most:
            del self._meters[next(iter(self._meters))]
        self._meters[name] = (ask.policy, meter)
        return settle(meter, ask, "", now)

    def sweep(self, now: float, most: int = 2000) -> None:
        """Forget meters that say no more than a new one, among the `most` that were not looked at for longest."""
        for name in [name for name, _ in zip(self._meters, range(most), strict=False)]:
            policy, meter = self._meters.pop(name)
            if name[2] == policy.span(now) and not meter.is_idle(policy, now):
                self._meters[name] = (policy, meter)
