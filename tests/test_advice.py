"""What another TTL would do: the ladder's prediction against what the engine really does, changes estimated from
fetches, and the advice made of both."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from gateway.advice import Advice, advise, recommend
from gateway.changes import Changes
from gateway.engine import Ask, Engine, Route
from gateway.exchange import Exchange
from gateway.headers import Headers
from gateway.keys import Keying, plan
from gateway.ladder import LADDER, Recorder, Replay, Sighting, sampled
from gateway.memory import Memory
from gateway.outcome import Result
from gateway.policy import PLAIN, Rules
from gateway.shared import NoShared
from gateway.upstreams import Fetched, WholeBody

from .conftest import TurnedClock

Arrival = tuple[float, int]


def key_hash(number: int) -> int:
    return xxh3_64_intdigest(b"/items/%d" % number)


# --- traffic -----------------------------------------------------------------------------------------------


def poisson(seed: int, *, keys: int, rate: float, seconds: float) -> list[Arrival]:
    """Requests at random, the popularity of keys by Zipf's law."""
    lots = random.Random(seed)
    weights = [1 / (number + 1) ** 0.9 for number in range(keys)]
    at, arrivals = 0.0, []
    while (at := at + lots.expovariate(rate)) < seconds:
        arrivals.append((at, lots.choices(range(keys), weights)[0]))
    return arrivals


def bursty(seed: int, *, keys: int, rate: float, seconds: float) -> list[Arrival]:
    """Each key is asked for in bursts of some seconds, then not at all for long: far from Poisson."""
    lots = random.Random(seed)
    arrivals = []
    for key in range(keys):
        at = lots.expovariate(1 / 60)
        while at < seconds:
            end = at + lots.uniform(1, 20)
            while (at := at + lots.expovariate(rate * 8 / keys)) < min(end, seconds):
                arrivals.append((at, key))
            at = end + lots.paretovariate(1.5) * 40
    return sorted(arrivals)


# --- what really happens -----------------------------------------------------------------------------------


class Content:
    """An origin whose content has a version that changes at random (Poisson, for each key)."""

    name = "origin"
    deadline = 5.0

    def __init__(self, version: bytes) -> None:
        self.version = version

    async def fetch(self, method: str, headers: Headers) -> Fetched:
        return Fetched(200, ((b"content-length", b"%d" % len(self.version)),), WholeBody(self.version))


def versions(seed: int, key: int, rate: float, seconds: float) -> list[float]:
    """The instants at which a key's content changes."""
    lots = random.Random(seed * 1_000_003 + key)
    at, changes = 0.0, []
    while rate and (at := at + lots.expovariate(rate)) < seconds:
        changes.append(at)
    return changes


async def really_run(
    arrivals: list[Arrival], ttl: float, *, change_rate: float = 0.0, changes: Changes | None = None
) -> tuple[float, float, int]:
    """Send the arrivals through the gateway's engine on a turned clock: the hit ratio, the share of outdated answers,
    and the number of fetches."""
    clock = TurnedClock()
    start, seconds = clock.at, arrivals[-1][0]
    engine = Engine(memory=Memory(1 << 30), shared=NoShared(), clock=clock, jitter=random.Random(5).random)
    route = Route("items", Rules(ttl=ttl), Keying(vary=()))
    history: dict[int, list[float]] = {}
    fetched: dict[int, tuple[float, bytes]] = {}
    hits = outdated = 0
    for at, key in arrivals:
        clock.at = start + at
        if key not in history:
            history[key] = versions(1, key, change_rate, seconds)
        version = b"%d" % sum(change <= at for change in history[key])
        exchange = Exchange("id", 0.0, "GET", "client", "http")
        origin = Content(version)
        asked = Ask(route, plan(route.keying, "u", f"/items/{key}", ()), PLAIN, (), exchange, origin, _never)
        answer = await engine.answer(asked)
        hit = exchange.outcome.result is Result.HIT
        hits += hit
        outdated += answer.body != version
        if not hit:
            if changes is not None and key in fetched:
                last, before = fetched[key]
                changes.add(at - last, changed=before != version)
            fetched[key] = (at, version)
    await engine.aclose()
    return hits / len(arrivals), outdated / len(arrivals), len(arrivals) - hits


async def _never() -> Fetched:
    raise AssertionError("nothing here passes by the cache")


def replayed(arrivals: list[Arrival], *, workers: int = 1, every: float = 1.0) -> Replay:
    """The arrivals as `workers` record them between them, and the leader replays them each second."""
    recorders = [Recorder() for _ in range(workers)]
    replay = Replay(0.0, window=math.inf)
    turn = every

    def deliver() -> None:
        sightings = []
        for recorder in recorders:
            requests, seen = recorder.take()
            replay.count(requests)
            sightings += seen
        replay.observe(sorted(sightings, key=lambda each: each.first))

    for position, (at, key) in enumerate(arrivals):
        if at >= turn:
            deliver()
            turn = at + every
        recorders[position % workers].seen(key_hash(key), at)
    deliver()
    return replay


TRAFFIC = {
    "poisson": poisson(11, keys=300, rate=12.0, seconds=900.0),
    "hot": [(number / 50, 0) for number in range(50 * 300)],
    "bursty": bursty(12, keys=120, rate=14.0, seconds=900.0),
}


@pytest.mark.parametrize("ttl", [1.0, 3.0, 10.0, 30.0, 60.0, 300.0, 900.0])
@pytest.mark.parametrize("kind", TRAFFIC)
async def test_the_predicted_hit_ratio_is_within_two_points_of_the_real_one(kind: str, ttl: float) -> None:
    arrivals = TRAFFIC[kind]
    predicted = next(rung for rung in replayed(arrivals).rungs(0.0) if rung.ttl == ttl)
    real, _, fetches = await really_run(arrivals, ttl)
    assert predicted.hit_ratio == pytest.approx(real, abs=0.02)
    assert predicted.upstream * arrivals[-1][0] == pytest.approx(fetches, rel=0.05)


@pytest.mark.parametrize("ttl", [5.0, 30.0, 120.0, 600.0])
async def test_the_predicted_share_of_outdated_answers_is_within_three_points_of_the_real_one(ttl: float) -> None:
    arrivals = TRAFFIC["poisson"]
    seen = Changes()
    await really_run(arrivals, 20.0, change_rate=1 / 300, changes=seen)
    predicted = next(rung for rung in replayed(arrivals).rungs(seen.rate().rate) if rung.ttl == ttl)
    _, real, _ = await really_run(arrivals, ttl, change_rate=1 / 300)
    assert predicted.outdated == pytest.approx(real, abs=0.03)


def test_what_several_workers_record_between_them_predicts_the_same() -> None:
    arrivals = TRAFFIC["bursty"]
    alone, together = replayed(arrivals).rungs(0.0), replayed(arrivals, workers=4).rungs(0.0)
    for one, four in zip(alone, together, strict=True):
        assert four.hit_ratio == pytest.approx(one.hit_ratio, abs=0.005)


def test_a_sample_of_many_keys_predicts_as_all_of_them_would_within_its_own_error() -> None:
    arrivals = poisson(13, keys=6_000, rate=200.0, seconds=120.0)
    everything = Replay(0.0, window=math.inf, least_keys=1_000_000, most_keys=1_000_000)
    sample = Replay(0.0, window=math.inf, least_keys=1_000)
    sample.lower(0.1)
    sample.lower(0.5)  # never back
    sightings = [Sighting(key_hash(key), at, at, 1) for at, key in arrivals]
    for replay in (everything, sample):
        replay.count(len(arrivals))
        replay.observe(sightings)
    assert len(sample) < 0.15 * len(everything)
    for whole, part in zip(everything.rungs(0.0), sample.rungs(0.0), strict=True):
        assert part.upstream == pytest.approx(whole.upstream, abs=3 * part.upstream_error)
        assert part.hit_ratio == pytest.approx(whole.hit_ratio, abs=3 * part.hit_ratio_error)


def test_a_key_is_in_or_out_for_good() -> None:
    replay = Replay(0.0, least_keys=10, share=0.0)
    thresholds = []
    for number in range(1000):
        replay.observe([Sighting(key_hash(number), number / 10, number / 10, 1)])
        thresholds.append(replay.threshold)
    assert thresholds == sorted(thresholds, reverse=True)
    assert 5 <= len(replay) <= 20
    assert repr(replay) == f"<Replay {len(replay)} keys, {replay.threshold:.3g} of all>"


def test_figures_older_than_two_windows_no_longer_count() -> None:
    replay = Replay(0.0, window=60.0)
    for second in range(600):
        replay.count(1)
        replay.observe([Sighting(1, float(second), float(second), 1)])
    assert replay.requests <= 121
    assert replay.seconds() <= 121
    ten = replay.rungs(0.0)[LADDER.index(10.0)]
    assert ten.upstream == pytest.approx(0.1, abs=0.02)


def test_a_window_that_turns_keeps_what_the_rungs_hold() -> None:
    replay = Replay(0.0, window=60.0)
    for second in range(300):
        replay.count(1)
        replay.observe([Sighting(1, float(second), float(second), 1)])
    day = replay.rungs(0.0)[-1]
    assert day.upstream == 0.0  # it was fetched once, before the windows that count


def test_a_recorder_counts_all_requests_and_tells_those_of_one_tick_together() -> None:
    recorder = Recorder()
    for step in range(100):
        recorder.seen(7, step / 500)
    requests, sightings = recorder.take()
    assert requests == sum(each.number for each in sightings) == 100
    assert len(sightings) == 2
    assert recorder.take() == (0, [])


def test_a_recorder_is_bounded_whatever_is_asked_for() -> None:
    recorder = Recorder(most_keys=100)
    for number in range(10_000):
        recorder.seen(key_hash(number), number / 10_000)
    requests, sightings = recorder.take()
    assert requests == 10_000
    assert all(sampled(each.key, recorder.threshold) for each in sightings)
    assert len({each.key for each in sightings}) <= 100


@given(st.lists(st.tuples(st.floats(0, 5000), st.integers(0, 3)), max_size=60))
def test_no_traffic_makes_a_longer_ttl_ask_more_than_every_request(arrivals: list[Arrival]) -> None:
    replay = replayed(sorted(arrivals))
    for rung in replay.rungs(0.01):
        assert 0.0 <= rung.hit_ratio <= 1.0
        assert 0.0 <= rung.outdated <= 1.0
        assert rung.upstream >= 0.0


# --- changes -----------------------------------------------------------------------------------------------


def observed(rate: float, gaps: Iterator[float], seed: int = 3) -> Changes:
    lots, changes = random.Random(seed), Changes()
    for gap in gaps:
        changes.add(gap, changed=lots.random() < -math.expm1(-rate * gap))
    return changes


@pytest.mark.parametrize("rate", [0.001, 0.02, 0.3, 2.0])
def test_the_change_rate_is_found_from_irregular_gaps(rate: float) -> None:
    lots = random.Random(4)
    found = observed(rate, (lots.choice((0.3, 2.0, 15.0, 90.0)) for _ in range(4000))).rate()
    assert found.rate == pytest.approx(rate, rel=0.15)
    assert found.high is not None
    assert found.low < rate < found.high


def test_at_equal_gaps_it_is_the_estimator_of_cho_and_garcia_molina() -> None:
    changes = Changes()
    for number in range(50):
        changes.add(8.0, changed=number < 30)
    assert changes.rate().rate == pytest.approx(-math.log((50 - 30 + 0.5) / (50 + 0.5)) / 8.0, rel=1e-6)


def test_counting_changes_alone_would_find_too_little() -> None:
    found = observed(1.0, (2.0 for _ in range(2000))).rate()
    naive = found.changed / (found.fetches * 2.0)
    assert naive < 0.5
    assert found.rate == pytest.approx(1.0, rel=0.1)


def test_no_change_seen_is_no_proof_of_none() -> None:
    rate = observed(0.0, (10.0 for _ in range(30))).rate()
    assert (rate.rate, rate.low) == (0.0, 0.0)
    assert rate.high == pytest.approx(3 / 300)
    assert Changes().rate().high is None


def test_changes_at_every_fetch_give_a_finite_rate() -> None:
    changes = Changes()
    for _ in range(20):
        changes.add(5.0, changed=True)
    rate = changes.rate()
    assert 0.5 < rate.rate < 1.0
    assert rate.high is not None
    assert rate.low < rate.rate < rate.high


def test_estimates_merge_as_if_one_had_seen_it_all() -> None:
    lots = random.Random(8)
    gaps = [(lots.uniform(1, 50), lots.random() < 0.4) for _ in range(300)]
    whole, one, two = Changes(), Changes(), Changes()
    for position, (gap, changed) in enumerate(gaps):
        whole.add(gap, changed=changed)
        (one, two)[position % 2].add(gap, changed=changed)
    one.merge(two)
    assert one.rate().rate == pytest.approx(whole.rate().rate)
    assert "of 300 fetches" in repr(one)


# --- advice ------------------------------------------------------------------------------------------------


def some_advice(change_rate: float = 1 / 300) -> Advice:
    changes = observed(change_rate, (30.0 for _ in range(400)))
    return advise("items", 30.0, replayed(TRAFFIC["poisson"]), changes.rate())


def test_the_longest_ttl_is_advised_that_keeps_answers_new_enough() -> None:
    advice = some_advice()
    found = recommend(advice, max_outdated=0.05)
    assert found.ttl is not None
    assert advice.at(found.ttl).outdated <= 0.05
    longer = LADDER[LADDER.index(found.ttl) + 1]
    assert advice.at(longer).outdated > 0.05


def test_the_shortest_ttl_is_advised_that_relieves_the_upstream_enough() -> None:
    advice = some_advice()
    found = recommend(advice, max_upstream=4.0)
    assert found.ttl is not None
    assert advice.at(found.ttl).upstream <= 4.0
    shorter = LADDER[LADDER.index(found.ttl) - 1]
    assert advice.at(shorter).upstream > 4.0


@pytest.mark.parametrize(
    ("targets", "why"),
    [
        ({"max_outdated": 0.0}, "changes too often"),
        ({"max_upstream": 0.0}, "no TTL relieves"),
        ({"max_outdated": 0.002, "max_upstream": 1.0}, "meets both"),
    ],
)
def test_targets_that_no_ttl_meets_are_said_to_be_so(targets: dict[str, float], why: str) -> None:
    found = recommend(some_advice(), **targets)
    assert found.ttl is None
    assert why in found.why


def test_a_ttl_longer_than_the_traffic_was_watched_is_not_advised() -> None:
    advice = some_advice(0.0)
    found = recommend(advice, max_outdated=0.5)
    assert found.ttl == max(ttl for ttl in LADDER if ttl <= advice.seconds)
    assert "not watched" in found.why


def test_without_traffic_there_is_no_advice() -> None:
    found = recommend(advise("items", None, Replay(0.0), Changes().rate()), max_outdated=0.1)
    assert (found.ttl, found.why) == (None, "no traffic was seen")


def test_between_two_rungs_figures_lie_between() -> None:
    advice = some_advice()
    low, middle, high = advice.at(30.0), advice.at(37.0), advice.at(45.0)
    assert low.hit_ratio < middle.hit_ratio < high.hit_ratio
    assert low.outdated < middle.outdated < high.outdated
    assert advice.at(0.1) == advice.rungs[0]
    assert advice.at(1e9) == advice.rungs[-1]
