"""A model of the fleet: whatever happens to workers, connections and Redis, no answer that starts after a confirmed
purge contains what was fetched before it.

The code is the real one, and so is the Valkey; hypothesis decides what happens when. Nothing waits: each worker's turn
at the stream is a step of its own, and clocks are turned.

Seen red when one of these is taken away: the workers known before Redis lost all; the look for the record applied
last, and adding again what Redis lost; the doubt of foreign generations; the floor; the life of a second while blind,
and the wait for who fell silent; the judgement of a joined flight by the tags it brought; pending purges; the end of
freshness by soft ones.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import pytest
import redis.asyncio as redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from gateway.cache.memory import Memory
from gateway.cache.purge_log import PurgeReport
from gateway.cache.redis.purge_log import RedisPurges
from gateway.cache.redis.store import RedisStore
from gateway.cache.store import Found, Selection, TieredStore
from gateway.policy import freshness
from gateway.policy.entry import Entry, Life
from gateway.policy.epochs import RECORD_BYTES, Purge, full_key_name, full_tag_name, key_name, show_position, tag_name
from gateway.policy.freshness import Decision, Hit, Stale
from gateway.policy.keys import Plan
from gateway.policy.rules import PLAIN, CachePolicy
from gateway.server.embedded_redis import Embedded
from gateway.testing import TurnedClock
from tests.support.scale import size

RULES = CachePolicy(ttl=3600.0, stale_while_revalidate=600.0, stale_if_error=0.0)
BLIND = 30.0
KEYS = ("a", "b")
BOTH = "both of them, by a tag that is longer than a digest"
NAMES = {
    "a": [full_key_name("a")],
    "b": [full_key_name("b")],
    "both": [full_tag_name(BOTH)],
    "upstream": [full_tag_name("upstream-b")],
}
SELDOM = st.sampled_from([False, False, False, True])
OFTEN = size("purge_fleets")


class Connection:
    """A worker's connection to the stream: cut, or losing the reply of the next command that Redis has done."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.cut = False
        self.loses_reply = False

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        async def command(*arguments: Any, **options: Any) -> Any:
            if self.cut:
                raise redis.ConnectionError("cut")
            reply = await getattr(self._client, name)(*arguments, **options)
            if self.loses_reply:
                self.loses_reply = False
                raise redis.ConnectionError("the reply is lost")
            return reply

        return command

    async def aclose(self) -> None:
        return None


class CutStore(RedisStore):
    """The shared tier, out of reach while it is cut."""

    cut = False

    async def read(self, names: Sequence[str]) -> list[bytes | None]:
        return [None] * len(names) if self.cut else await super().read(names)

    async def write(self, values: Sequence[tuple[str, bytes, float]]) -> bool:
        return False if self.cut else await super().write(values)


@dataclass(eq=False)
class Fetch:
    worker: Worker
    key: str
    number: int
    stamp: str
    started: float
    joined: list[tuple[set[int], int]] = field(default_factory=list)


@dataclass(eq=False)
class Issued:
    """A purge, and all that its issuer knows of it. `number`: fetches up to that one began before it."""

    by: Worker
    purge: Purge
    number: int
    place: str = ""
    since: float = 0.0
    exempt: set[Worker] | None = None
    forgotten: bool = False
    """Whether Redis lost it while nobody who knew it could reach Redis."""

    @property
    def confirmed(self) -> bool:
        return self.exempt is not None


class Worker:
    def __init__(self, url: str, prefix: str, clock: TurnedClock) -> None:
        self.client = redis.Redis.from_url(url)
        self.connection = Connection(self.client)
        self.store = CutStore(url, prefix=prefix, budget=5.0, client=self.client)
        self.purges = RedisPurges(
            self.connection,
            clock,
            prefix=prefix,
            blind=BLIND,
            max_records=6,
            max_bytes=5 * RECORD_BYTES,
            young=86_400.0,
        )
        self.tiers = TieredStore(Memory(1_000_000), self.store, clock, purges=self.purges, budget=5.0)
        self.clock = clock
        self.heard: set[Worker] = set()

    def __repr__(self) -> str:
        return f"<Worker {self.purges.worker[:4]} {self.purges!r}>"

    async def turn(self) -> bool:
        try:
            await self.purges.synchronise()
            await self.purges.census()
        except redis.ConnectionError:
            return False
        return True

    async def add(self, name: str) -> None:
        with contextlib.suppress(redis.ConnectionError):
            await self.purges._stream.add([Purge(uuid4().hex, (name,))])

    async def end(self) -> None:
        self.connection.loses_reply = False
        await self.purges.aclose()
        await self.store.aclose()

    def wanted(self, key: str) -> Selection:
        return Selection(Plan(key, key, ()), (), f"route_{key}", (BOTH,))

    def stored(self, fetch: Fetch) -> Entry:
        return Entry(
            key=fetch.key,
            primary=fetch.key,
            born=self.clock.now(),
            started=fetch.started,
            initial_age=0.0,
            status=200,
            headers=(),
            body=b"%d" % fetch.number,
            life=Life(),
            tags=(BOTH, f"upstream-{fetch.key}"),
            stamp=fetch.stamp,
        )


def touched(key: str, purge: Purge) -> bool:
    return not {key_name(key), tag_name(BOTH), tag_name(f"upstream-{key}"), "*"}.isdisjoint(purge.names)


class Fleet(RuleBasedStateMachine):
    url = ""
    fetches: Bundle[Fetch] = Bundle("fetches")

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.prefix = f"{uuid4().hex}:"
        self.admin = redis.Redis.from_url(self.url)
        self.clock = TurnedClock()
        self.workers: list[Worker] = []
        self.number = 0
        self.issued: list[Issued] = []
        self.snapshot: dict[bytes, bytes] | None = None
        self.unheard: set[Worker] = set()  # those that a Redis which lost all has not heard of again
        self.registered: set[Worker] = set()
        self.run(self.set_clock(ahead=True))
        self.start_worker()
        self.start_worker()

    def run(self, work: Awaitable[Any]) -> Any:
        return self.loop.run_until_complete(asyncio.ensure_future(work, loop=self.loop))

    def teardown(self) -> None:
        async def close() -> None:
            for worker in self.workers:
                await worker.store.aclose()
            await self.admin.delete(*await self.admin.keys(self.prefix + "*"), "none")
            await self.admin.aclose()

        self.run(close())
        self.loop.close()

    def one(self, number: int) -> Worker:
        return self.workers[number % len(self.workers)]

    # --- workers -------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.workers) < 4)
    @rule()
    def start_worker(self) -> None:
        self.workers.append(Worker(self.url, self.prefix, self.clock))
        self.turn(len(self.workers) - 1)

    @precondition(lambda self: len(self.workers) > 1)
    @rule(which=st.integers(0, 3), kill=SELDOM)
    def end_worker(self, which: int, kill: bool) -> None:
        worker = self.one(which)
        if not kill and worker.connection.cut:
            return
        self.workers.remove(worker)
        self.unheard.discard(worker)
        self.run(worker.store.aclose() if kill else worker.end())

    @rule(which=st.integers(0, 3))
    def turn(self, which: int) -> None:
        worker = self.one(which)
        if self.run(worker.turn()):
            self.unheard.discard(worker)
            self.registered.add(worker)
            worker.heard |= self.registered

    @rule(which=st.integers(0, 3))
    def tidy(self, which: int) -> None:
        """Earlier than it ever is: some have not applied what took a record's place."""
        with contextlib.suppress(redis.ConnectionError):
            self.run(self.one(which).purges.tidy(0.0))

    @rule()
    def turn_all(self) -> None:
        for which in range(len(self.workers)):
            self.turn(which)

    @rule(which=st.integers(0, 3), stream=SELDOM, store=SELDOM, alone=st.booleans())
    def cut_or_join(self, which: int, stream: bool, store: bool, alone: bool) -> None:
        worker = self.one(which)
        for other in self.workers if alone else ():
            other.connection.cut = other.store.cut = False
        worker.connection.cut, worker.store.cut = stream, store

    @rule(which=st.integers(0, 3))
    def lose_the_next_reply(self, which: int) -> None:
        self.one(which).connection.loses_reply = True

    @rule(seconds=st.sampled_from([0.3, 1.0, 5.0, 29.0, 40.0]))
    def turn_the_clock(self, seconds: float) -> None:
        self.clock.turn(seconds)

    # --- fetches and answers -------------------------------------------------------------------------------

    @rule(target=fetches, which=st.integers(0, 3), key=st.sampled_from(KEYS))
    def begin_a_fetch(self, which: int, key: str) -> Fetch:
        return self.fetch(which, key)

    def fetch(self, which: int, key: str) -> Fetch:
        worker = self.one(which)
        self.number += 1
        return Fetch(worker, key, self.number, worker.tiers.stamp(), self.clock.now())

    @rule(fetch=fetches)
    def join_a_fetch(self, fetch: Fetch) -> None:
        if not fetch.worker.tiers.outlived(fetch.stamp, fetch.started, fetch.worker.wanted(fetch.key)):
            fetch.joined.append((set(), self.bound(fetch.worker, fetch.key)))

    @rule(fetch=fetches)
    def land_a_fetch(self, fetch: Fetch) -> None:
        worker = fetch.worker
        if worker not in self.workers:
            return
        stored, wanted = worker.stored(fetch), worker.wanted(fetch.key)
        if worker.tiers.valid(stored, wanted):
            for _, bound in fetch.joined:
                assert fetch.number > bound, f"{worker} answered who had joined by what was purged before"
        if worker.tiers.keep(stored, wanted):
            self.run(worker.tiers.share(stored))

    @rule(which=st.integers(0, 3), key=st.sampled_from(KEYS))
    def answer(self, which: int, key: str) -> None:
        worker = self.one(which)
        bound, fresh_bound = self.bound(worker, key), self.bound(worker, key, soft=True)
        wanted = worker.wanted(key)
        found = Found(worker.tiers.at_hand(wanted), "memory")
        if not isinstance(self.decided(found), Hit):
            found = self.run(worker.tiers.newer(wanted, found))
        decision = self.decided(found)
        if isinstance(decision, Hit | Stale):
            assert int(decision.stored.body) > bound, f"{worker} answered by what was purged"
        if isinstance(decision, Hit):
            assert int(decision.stored.body) > fresh_bound, f"{worker} took for fresh what was softly purged"

    @invariant()
    def answers_hold(self) -> None:
        for which in range(len(self.workers)):
            for key in KEYS:
                self.answer(which, key)

    @rule()
    def fill(self) -> None:
        for which in range(len(self.workers)):
            for key in KEYS:
                self.land_a_fetch(self.fetch(which, key))

    def decided(self, found: Found) -> Decision:
        return freshness.decide(found.stored, PLAIN, RULES, self.clock.now())

    def bound(self, worker: Worker, key: str, *, soft: bool = False) -> int:
        """No answer of this worker to a request that comes now may contain what that fetch or one before it brought."""
        holds = (
            issued.number
            for issued in self.issued
            if (issued.by is worker or (issued.exempt is not None and worker not in issued.exempt))
            and not issued.forgotten
            and touched(key, issued.purge)
            and (soft or not issued.purge.soft)
        )
        return max(holds, default=0)

    # --- purges --------------------------------------------------------------------------------------------

    @rule(which=st.integers(0, 3), what=st.sampled_from(sorted(NAMES)), soft=st.booleans())
    def purge(self, which: int, what: str, soft: bool) -> None:
        worker = self.one(which)
        self.issued.append(Issued(worker, worker.purges.issue(NAMES[what], soft=soft), self.number))
        self.ask_for_confirmation(-1)

    @precondition(lambda self: self.issued)
    @rule(which=st.integers(-8, -1))
    def ask_for_confirmation(self, which: int) -> None:
        issued = self.issued[which % len(self.issued)] if which != -1 else self.issued[-1]
        if issued.by not in self.workers or issued.confirmed:
            return
        report = self.run(self.reported(issued))
        if report is not None and report.complete:
            # Of a worker that was cut off before Redis lost all, only those can know who were there, too.
            issued.exempt = {worker for worker in self.unheard if worker.connection.cut} - issued.by.heard

    async def reported(self, issued: Issued) -> PurgeReport | None:
        purges = issued.by.purges
        try:
            added = await purges._stream.add([issued.purge], count=True)
        except redis.ConnectionError:
            return None
        if added.generation != issued.place:
            issued.place, issued.since = added.generation, self.clock.now()
        return purges.report([issued.purge], added, self.clock.now() - issued.since)

    @rule(which=st.integers(0, 3), what=st.sampled_from(sorted(NAMES)), soft=SELDOM, mature=st.booleans())
    def purge_until_confirmed(self, which: int, what: str, soft: bool, mature: bool, *, fill: bool = True) -> None:
        if fill:
            self.fill()
        self.purge(which, what, soft)
        if mature:
            self.mature()
        self.ask_for_confirmation(-1)
        self.turn_all()
        self.ask_for_confirmation(-1)

    @rule(what=st.sampled_from(sorted(NAMES)), join=st.booleans())
    def purge_during_a_fetch(self, what: str, join: bool) -> None:
        under_way = [self.fetch(which, key) for which in range(len(self.workers)) for key in KEYS]
        self.purge_until_confirmed(0, what, soft=False, mature=True)
        for fetch in under_way:
            if join:
                self.join_a_fetch(fetch)
            self.land_a_fetch(fetch)

    @precondition(lambda self: len(self.workers) > 1)
    @rule(which=st.integers(0, 3), store=st.booleans(), what=st.sampled_from(sorted(NAMES)), late=st.booleans())
    def blind(self, which: int, store: bool, what: str, late: bool) -> None:
        """Cut off for so long that the others count it no longer."""
        worker = self.one(which)
        worker.connection.cut, worker.store.cut = True, store
        self.turn_all()
        self.clock.turn(40)
        self.mature()
        self.fill()
        self.purge(which + 1, what, soft=False)
        self.turn_all()
        if late:
            self.clock.turn(1.5)
        self.ask_for_confirmation(-1)

    # --- Redis ---------------------------------------------------------------------------------------------

    @rule()
    def mature(self) -> None:
        """Time enough for all that can reach it has passed since Redis lost all."""
        for which, worker in enumerate(self.workers):
            worker.connection.loses_reply = False
            self.turn(which)
        self.run(self.admin.delete(f"{self.prefix}{{purge}}:young"))

    @rule(everything=st.booleans(), ahead=st.booleans())
    def lose_redis(self, everything: bool, ahead: bool) -> None:
        """All of it, or (in a cluster) the node with the stream alone; its clock may be another's after that."""
        self.run(self.lost("*" if everything else "{purge}*"))
        self.run(self.set_clock(ahead=ahead))
        self.forget()
        self.snapshot = None

    async def set_clock(self, *, ahead: bool) -> None:
        """Positions are at least as late as the last one was: so one that was ahead stays in force."""
        if ahead:
            log = f"{self.prefix}{{purge}}:log"
            await self.admin.xadd(log, {"none": "none"}, id="9999999999999-0")
            await self.admin.xdel(log, "9999999999999-0")

    async def lost(self, pattern: str) -> None:
        for name in await self.admin.keys(self.prefix + pattern):
            await self.admin.delete(name)

    @rule()
    def replicate(self) -> None:
        async def dump() -> dict[bytes, bytes]:
            names = await self.admin.keys(self.prefix + "{purge}*")
            return {name: await self.admin.dump(name) for name in names}

        self.snapshot = self.run(dump())

    @precondition(lambda self: self.snapshot is not None)
    @rule()
    def fail_over(self) -> None:
        """To the replica, which lacks what came since."""
        snapshot = self.snapshot
        assert snapshot is not None

        async def restore() -> None:
            await self.lost("{purge}*")
            for name, value in snapshot.items():
                await self.admin.restore(name, 0, value)

        self.forget()
        self.run(restore())
        self.turn_all()  # a worker that starts before them would not hear of what was lost

    def forget(self) -> None:
        self.unheard, self.registered = set(self.workers), set()
        reached = [worker for worker in self.workers if not worker.connection.cut]
        for issued in self.issued:
            known = [w for w in reached if self.knows(w, issued)]
            trimmed = [w for w in reached if show_position(w.purges.epochs.floor) != "0-0"]
            issued.forgotten |= not known and not trimmed

    def knows(self, worker: Worker, issued: Issued) -> bool:
        """Whether it has the purge, or a later hard one that took its place."""
        since = self.issued[self.issued.index(issued) :]
        ids = {each.purge.id for each in since if each.purge.names == issued.purge.names and not each.purge.soft}
        known = {*worker.purges.epochs.records, *worker.purges.epochs.pending}
        return issued.purge.id in known or (not issued.purge.soft and not known.isdisjoint(ids))

    @rule(which=st.integers(0, 3), what=st.sampled_from(sorted(NAMES)), loss=st.integers(0, 3), start=st.booleans())
    def lose_what_was_purged(self, which: int, what: str, loss: int, start: bool) -> None:
        self.fill()
        self.replicate()
        self.purge_until_confirmed(which, what, soft=False, mature=True, fill=False)
        if loss < 2:
            self.lose_redis(everything=bool(loss), ahead=start)
        elif loss == 2:
            self.fail_over()
        if start and len(self.workers) < 4:
            self.start_worker()
        self.answers_hold()
        self.turn_all()

    @rule(which=st.integers(0, 3), other=st.integers(0, 3), what=st.sampled_from(sorted(NAMES)), cut=st.booleans())
    def purge_after_a_loss(self, which: int, other: int, what: str, cut: bool) -> None:
        self.fill()
        self.one(other).connection.cut = cut
        self.lose_redis(everything=True, ahead=False)
        self.one(other).connection.loses_reply = not cut
        self.turn(other)
        self.turn(which)
        self.purge(which, what, soft=False)

    @rule()
    def flood(self) -> None:
        """More purges than the stream keeps."""
        for _ in range(8):
            self.run(self.one(0).add("flood"))


@pytest.mark.timeout(240)
def test_no_answer_that_starts_after_a_confirmed_purge_contains_what_was_fetched_before_it(valkey: Embedded) -> None:
    machine = type("Fleet", (Fleet,), {"url": valkey.url})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=OFTEN,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            database=None,
            phases=(Phase.generate,),  # shrinking takes minutes: add Phase.shrink to see a short story
            suppress_health_check=list(HealthCheck),
        ),
    )


# --- what the model meets too seldom ---------------------------------------------------------------------------


async def test_a_confirmation_counts_in_the_generation_of_its_purge_alone(valkey: Embedded, clock: TurnedClock) -> None:
    """A worker that has told of itself, and not yet heard that Redis lost all, has applied later positions than any of
    the new stream, whose clock is behind."""
    prefix = f"{uuid4().hex}:"
    log = f"{prefix}{{purge}}:log"
    one, two = Worker(valkey.url, prefix, clock), Worker(valkey.url, prefix, clock)
    await one.client.xadd(log, {"none": "none"}, id="9999999999999-0")
    await one.client.xdel(log, "9999999999999-0")
    assert await one.turn()
    assert await two.turn()
    await one.add("before")
    assert await one.turn()
    await one.client.delete(*await one.client.keys(f"{prefix}*"))
    one.connection.loses_reply = True
    assert not await one.turn()
    assert await two.turn()
    purge = two.purges.issue(NAMES["a"], soft=False)
    await two.purges._stream.add([purge])
    assert await two.turn()
    report = two.purges.report([purge], await two.purges._stream.add([purge], count=True), 0.0)
    assert (report.confirmed, report.workers) == (1, 2)
    assert await one.turn()
    report = two.purges.report([purge], await two.purges._stream.add([purge], count=True), 0.0)
    assert (report.confirmed, report.workers, report.settled) == (2, 2, False)
    await one.client.delete(f"{prefix}{{purge}}:young")
    assert two.purges.report([purge], await two.purges._stream.add([purge], count=True), 0.0).complete
    for worker in (one, two):
        await worker.end()


async def test_a_purge_issued_while_redis_is_away_is_added_by_the_first_turn_after(
    valkey: Embedded, clock: TurnedClock
) -> None:
    prefix = f"{uuid4().hex}:"
    one, two = Worker(valkey.url, prefix, clock), Worker(valkey.url, prefix, clock)
    assert await one.turn()
    assert await two.turn()
    one.connection.cut = True
    assert not (await one.purges.purge(NAMES["a"], wait=False)).complete
    assert not await one.turn()
    one.connection.cut = False
    assert await one.turn()
    assert await two.turn()
    assert [purge.names for _, purge in two.purges.epochs.records.values()] == [tuple(NAMES["a"])]
    for worker in (one, two):
        await worker.end()
