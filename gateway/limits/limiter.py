"""A worker's part in the limits: which request passes at once, which waits for Redis, and which is refused.

A bucket is what the worker knows of one subject under one policy: credit that it may use without asking, and until when
it need not ask because the limit is reached. `admit` is the fast way: a look-up and two comparisons. `acquire` asks the
meter where that is not enough; all asks of one event loop iteration are one command.

Of a policy with a large burst each worker has a share that needs no credit, a tenth of the burst over the fleet, which
it reports with the first use. Without Redis a tenth of the rate, over the fleet, passes (of a quota, a tenth of it): so
over all workers at most `burst + 1.1 * rate` passes, whether Redis answers all, some or none of them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from secrets import token_hex
from typing import Protocol

from gateway.cache.background import Background, end
from gateway.cache.redis.meters import MeterAsk, MeterReply
from gateway.clock import Clock
from gateway.limits.bucket import Bucket, Subject, Verdict
from gateway.limits.meter import LEASE, Ask, LocalMeters, QuotaPolicy, Reply
from gateway.policy.identity_key import IdentityKey

logger = logging.getLogger("gateway")
SHARE = 0.1
VALID = 2.0
"""Seconds for which credit is used: less than its lease, which is counted by another clock and begins later."""
LOOK_EVERY = 1.0
MOST_BUCKETS = 50_000
"""Of one worker, some 400 bytes each."""
MOST_WANTED = 4096
_SOON = 1.0
"""Seconds: a worker that asks again so soon wants twice the credit."""
_AHEAD = 8
"""From so much credit on, more is asked for when half of it is used."""
_RETRY_WITHOUT_REDIS = 10.0
_OVER = float("-inf")
_ROUNDING = 1e-6
"""Seconds: a clock that counts from 1970 is no more exact."""


class Meters(Protocol):
    """The meters that all workers share."""

    @property
    def available(self) -> bool: ...

    @property
    def at_once(self) -> int: ...

    async def settle(self, worker: str, lease: float, asks: Sequence[MeterAsk]) -> list[MeterReply] | None: ...

    async def look(self, worker: str, epoch: str) -> tuple[int, int, str] | None: ...


class Limiter:
    """The limits of one worker. `meters` are those that all workers share; None if there is no Redis, and this worker
    is the only one. `workers` is how many there are at least."""

    def __init__(
        self,
        clock: Clock,
        identity_key: IdentityKey,
        meters: Meters | None = None,
        *,
        workers: int = 1,
        most: int = MOST_BUCKETS,
    ) -> None:
        self._clock = clock
        self._identity_key = identity_key
        self._meters = meters
        self._local = LocalMeters() if meters is None else None
        self._most = most
        self._buckets: dict[Subject, Bucket] = {}
        self._open: set[Bucket] = set()
        """Those with credit of a meter, or with debt."""
        self._due: list[Bucket] = []
        self._background = Background()
        self._task: asyncio.Task[None] | None = None
        self._name = token_hex(6)
        self._epoch = ""
        self._answered_at: float | None = None
        self._share_from = float("-inf")
        self._evicts = False
        self.workers = self._least = workers
        self._place = workers - 1
        self.by_share = False
        """Whether Redis does not answer, so that each worker uses its share alone."""
        self.refused: dict[str, int] = {}
        self.shared: dict[str, int] = {}
        """How many requests passed by a worker's share while Redis was away, by limit."""

    def __repr__(self) -> str:
        return f"<Limiter {len(self._buckets)} subjects, {self.workers} workers{', by share' * self.by_share}>"

    def __len__(self) -> int:
        return len(self._buckets)

    def bucket(self, subject: Subject) -> Bucket | None:
        """What is known of a subject. It admits nothing once it is forgotten."""
        return self._buckets.get(subject)

    # --- deciding ------------------------------------------------------------------------------------------

    def admit(self, subject: Subject, now: float) -> bool:
        """Let a request pass at once, if there is credit for it; False: `acquire` decides. `now` is the clock's."""
        bucket = self._buckets.get(subject)
        if bucket is None or bucket.credit < 1 or now >= bucket.until:
            return False
        bucket.credit -= 1
        if bucket.credit == bucket.low:
            bucket.refill = True
            self._ask(bucket)
        return True

    def undo(self, subject: Subject) -> None:
        """Take back what `admit` has just let pass."""
        self._buckets[subject].credit += 1

    async def acquire(self, policy: QuotaPolicy, key: bytes) -> Verdict:
        """Whether a request of `key` passes, which counts then."""
        now = self._clock.now()
        subject = policy.text, key
        bucket = self._buckets.get(subject)
        if bucket is None or now >= bucket.ends:
            bucket = self._new(policy, key, now)
        if self.admit(subject, now):
            return bucket.verdict(now)
        if now < bucket.refused_until:
            return self._refuse(bucket, now, bucket.refused_until - now)
        if self._local is not None:
            future = self._waiting_at(bucket)
            self._settle_here(bucket)
            return future.result()
        if self._meters is None or not self._meters.available:
            self._lose(now)
            return self._by_share(bucket, now)
        future = self._waiting_at(bucket)
        self._ask(bucket)
        return await future

    @staticmethod
    def _waiting_at(bucket: Bucket) -> asyncio.Future[Verdict]:
        future: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        bucket.waiting.append(future)
        return future

    def give_back(self, policy: QuotaPolicy, key: bytes) -> None:
        """A request that had passed was not one that counts: the meter learns it with the next ask."""
        bucket = self._buckets.get((policy.text, key))
        if bucket is not None:
            bucket.debt -= 1
            self._open.add(bucket)

    def is_exhausted(self, policy: QuotaPolicy, key: bytes) -> bool:
        """Whether the last request of `key` was refused, as far as this worker knows."""
        bucket = self._buckets.get((policy.text, key))
        return bucket is not None and bucket.refused_until > bucket.spent_at

    def known(self, policy: QuotaPolicy, key: bytes) -> Verdict | None:
        """What this worker knows of a subject, without counting anything; None where it knows nothing."""
        bucket = self._buckets.get((policy.text, key))
        now = self._clock.now()
        if bucket is None or now >= bucket.ends:
            return None
        return bucket.verdict(now, wait=bucket.refused_until - now if now < bucket.refused_until else None)

    def _refuse(self, bucket: Bucket, now: float, wait: float) -> Verdict:
        name = bucket.policy.name
        self.refused[name] = self.refused.get(name, 0) + 1
        return bucket.verdict(now, wait=wait)

    # --- without Redis -------------------------------------------------------------------------------------

    def _by_share(self, bucket: Bucket, now: float) -> Verdict:
        """Decide by this worker's share. It begins with the last answer of Redis, so that it is not there beside a
        burst that Redis has just given."""
        policy = bucket.policy
        wait = self._wait_by_quota(bucket, now) if policy.calendar else self._wait_by_rate(bucket, now)
        if wait > 0:
            bucket.refused_until = now + wait
            return self._refuse(bucket, now, wait)
        bucket.debt += 1
        bucket.from_share += 1
        self._open.add(bucket)
        self.shared[policy.name] = self.shared.get(policy.name, 0) + 1
        return bucket.verdict(now)

    def _wait_by_rate(self, bucket: Bucket, now: float) -> float:
        # Of a burst smaller than the fleet, only so many workers have a share: all at once would be more.
        sharers = min(self.workers, bucket.policy.burst)
        pace = bucket.policy.interval * sharers / SHARE
        if self._place >= sharers:
            return pace
        most = max(1, self._share_of(bucket.policy))
        waited = min(now - max(bucket.share_from, self._share_from), pace * most)
        if waited < pace - _ROUNDING:
            return pace - waited
        bucket.share_from = now - waited + pace
        return 0.0

    def _wait_by_quota(self, bucket: Bucket, now: float) -> float:
        if bucket.from_share < int(SHARE * bucket.policy.count / self.workers):
            return 0.0
        return min(_RETRY_WITHOUT_REDIS, max(1e-3, bucket.ends - now))

    def _share_of(self, policy: QuotaPolicy) -> int:
        return int(SHARE * min(policy.burst, policy.count) / self.workers)

    def _lose(self, now: float) -> None:
        if not self.by_share:
            self.by_share = True
            self._share_from = max(self._share_from, now if self._answered_at is None else self._answered_at)
            logger.warning(
                "rate limits: Redis does not answer: until it does, each worker lets its share pass, a tenth of each"
                " limit divided by %d workers",
                self.workers,
            )

    def _hear(self, now: float) -> None:
        self._answered_at = now
        if self.by_share:
            self.by_share = False
            logger.info("rate limits: Redis answers again: all workers share each limit")
            self._background.spawn(self.look())

    # --- asking --------------------------------------------------------------------------------------------

    def _ask(self, bucket: Bucket) -> None:
        if self._local is not None:
            self._settle_here(bucket)
        elif not bucket.due and not bucket.asking:
            bucket.due = True
            self._due.append(bucket)
            if len(self._due) == 1:
                asyncio.get_running_loop().call_soon(self._flush)

    def _settle_here(self, bucket: Bucket) -> None:
        assert self._local is not None
        now = self._clock.now()
        waiting, ask = self._made(bucket, now)
        self._settled(bucket, waiting, ask, self._local.settle(ask, now), now)

    def _flush(self) -> None:
        due, self._due = self._due, []
        at_once = 1 if self._meters is None else self._meters.at_once
        for at in range(0, len(due), at_once):
            self._background.spawn(self._settle(due[at : at + at_once]))

    async def _settle(self, buckets: Sequence[Bucket], *, restore: bool = False) -> None:
        assert self._meters is not None
        now = self._clock.now()
        made = [self._made(bucket, now, restore=restore) for bucket in buckets]
        replies: list[MeterReply] | None = None
        try:
            asks = [self._as_sent(ask, now) for _, ask in made]
            replies = await self._meters.settle(self._name, LEASE, asks)
        finally:
            if replies is None:
                self._lose(now)
            else:
                self._hear(now)
            for at, (bucket, (waiting, ask)) in enumerate(zip(buckets, made, strict=True)):
                reply = None if replies is None else Reply(*replies[at])
                self._settled(bucket, waiting, ask, reply, now)

    def _made(self, bucket: Bucket, now: float, *, restore: bool = False) -> tuple[list[asyncio.Future[Verdict]], Ask]:
        """What is to be asked, and who waits for it."""
        bucket.due, bucket.asking = False, True
        waiting = [future for future in bucket.waiting if not future.done()]
        bucket.waiting.clear()
        used, bucket.refill = bool(waiting) or bucket.refill, False
        if used:
            soon = now - bucket.asked_at < _SOON
            bucket.want = min(MOST_WANTED, max(1, 2 * bucket.want)) if soon else 0
            bucket.asked_at = now
        held = back = 0
        if bucket.free:
            bucket.debt += bucket.lent - bucket.credit
            bucket.lent = bucket.credit
        elif now < bucket.until and now - bucket.asked_at < _SOON:
            held = bucket.credit
        else:
            back, bucket.credit = bucket.credit, 0
        want = bucket.want if used else 0
        floor = bucket.spent_now(now)
        return waiting, Ask(bucket.policy, bucket.key, len(waiting), want, held, back, bucket.debt, floor, restore)

    def _as_sent(self, ask: Ask, now: float) -> MeterAsk:
        policy = ask.policy
        digest = self._identity_key.digest_bytes("limit", ask.key)
        span = policy.span(now)
        life = int((policy.ends(now) - now + 3600) * 1000) if policy.calendar else 0
        return MeterAsk(
            f"{policy.name}:{digest}{':' + span if span else ''}",
            policy.interval * 1e6,
            policy.burst,
            life,
            ask.demand,
            ask.want,
            ask.held,
            ask.back,
            ask.debt,
            ask.floor,
            ask.restore,
        )

    def _settled(
        self, bucket: Bucket, waiting: Sequence[asyncio.Future[Verdict]], ask: Ask, reply: Reply | None, sent: float
    ) -> None:
        """Take a reply to `ask`, sent at `sent`, or that there was none, and tell those that wait."""
        bucket.asking = False
        now = self._clock.now()
        if reply is None:
            for future in (*waiting, *bucket.waiting):
                if not future.done():
                    future.set_result(self._by_share(bucket, now))
            bucket.waiting.clear()
            return
        self._take(bucket, ask, reply, sent)
        granted = reply.granted
        for future in waiting:
            if future.done():
                continue  # its client has gone; what it was granted serves the next
            granted -= 1
            future.set_result(
                bucket.verdict(now) if granted >= 0 else self._refuse(bucket, now, bucket.refused_until - now)
            )
        self._serve_others(bucket, now)

    def _take(self, bucket: Bucket, ask: Ask, reply: Reply, sent: float) -> None:
        bucket.spent, bucket.spent_at = reply.spent, sent
        bucket.debt -= ask.debt
        if bucket.free:
            bucket.debt += bucket.lent - bucket.credit  # used while the reply was on its way
            bucket.free, bucket.credit = False, 0
        bucket.credit += reply.extra
        bucket.until = min(sent + VALID, bucket.ends)
        bucket.low = bucket.credit // 2 if bucket.credit >= _AHEAD else -1
        bucket.refused_until = sent
        if reply.granted < ask.demand:
            wait = max(reply.wait, 1e-3) if bucket.policy.interval else bucket.ends - sent
            bucket.refused_until = sent + wait
        if bucket.credit or bucket.debt:
            self._open.add(bucket)
        else:
            self._open.discard(bucket)

    def _serve_others(self, bucket: Bucket, now: float) -> None:
        """Those that came while a reply was on its way."""
        while bucket.waiting:
            future = bucket.waiting[0]
            if future.done():
                bucket.waiting.popleft()
            elif now < bucket.refused_until:
                bucket.waiting.popleft()
                future.set_result(self._refuse(bucket, now, bucket.refused_until - now))
            elif bucket.credit and now < bucket.until:
                bucket.waiting.popleft()
                bucket.credit -= 1
                future.set_result(bucket.verdict(now))
            else:
                self._ask(bucket)
                return

    # --- subjects ------------------------------------------------------------------------------------------

    def _new(self, policy: QuotaPolicy, key: bytes, now: float) -> Bucket:
        subject = policy.text, key
        known = self._buckets.pop(subject, None)
        if known is not None:
            known.until = _OVER
            self._open.discard(known)
        while len(self._buckets) >= self._most:
            self._evict(now)
        alone = self._local is not None
        share = 0 if alone or self._evicts or self.by_share or policy.calendar else self._share_of(policy)
        bucket = self._buckets[subject] = Bucket(policy, key, now, share)
        return bucket

    def _evict(self, now: float) -> None:
        """Forget the oldest subject: the meter knows what it has spent. From then on new subjects have no share before
        they were asked for, as they may be old ones; and none in place of one whose share was used without Redis."""
        subject = next(iter(self._buckets))
        bucket = self._buckets.pop(subject)
        bucket.until = _OVER
        self._open.discard(bucket)
        self._evicts = True
        if bucket.from_share and self.by_share:
            self._share_from = now
        if bucket.credit and not bucket.free:
            bucket.asked_at = float("-inf")
            self._ask(bucket)  # what it did not use is returned

    # --- each second ---------------------------------------------------------------------------------------

    def start(self) -> None:
        if self._task is None:
            self._task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(LOOK_EVERY)

    async def look(self) -> None:
        """Return credit that was not used, report debts, and learn how many workers there are. After Redis has lost its
        data, tell it what this worker knows to be spent."""
        now = self._clock.now()
        if self._local is not None:
            self._local.sweep(now)
        elif self._meters is not None:
            found = await self._meters.look(self._name, token_hex(8))
            if found is None:
                self._lose(now)
                return
            self._hear(now)
            count, self._place, epoch = found
            self.workers = max(count, self._least)
            lost = self._epoch not in ("", epoch)
            self._epoch = epoch
            if lost:
                await self._restore(now)
        for bucket in tuple(self._open):
            if bucket.debt or (bucket.credit and now - bucket.asked_at >= _SOON):
                self._ask(bucket)

    async def _restore(self, now: float) -> None:
        spent = [each for each in self._buckets.values() if not each.asking and each.spent_now(now) > 0]
        logger.warning("rate limits: Redis has lost its data; sending it what %d subjects have spent", len(spent))
        at_once = 1 if self._meters is None else self._meters.at_once
        for at in range(0, len(spent), at_once):
            batch = [each for each in spent[at : at + at_once] if not each.asking]
            if batch:
                await self._settle(batch, restore=True)

    async def aclose(self) -> None:
        """Return what credit is left."""
        await end(self._task)
        self._task = None
        for bucket in tuple(self._open) if self._meters is not None and self._meters.available else ():
            bucket.asked_at = float("-inf")
            self._ask(bucket)
        await asyncio.sleep(0)
        await self._background.drain(0.5)
        await self._background.cancel()
        self._resolve(self._buckets.values())

    def _resolve(self, buckets: Iterable[Bucket]) -> None:
        now = self._clock.now()
        for bucket in buckets:
            for future in bucket.waiting:
                if not future.done():
                    future.set_result(self._by_share(bucket, now))
