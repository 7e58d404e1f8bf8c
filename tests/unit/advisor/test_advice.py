"""What another TTL would do: the ladder's prediction against what the engine really does, changes estimated from
fetches, and the advice made of both."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.advice_model import Arrival, bursty, key_hash, poisson, really_run, replayed
from gateway.advisor.advice import LEAST_COMPARISONS, Advice, Changes, advise, recommend
from gateway.advisor.ttl_ladder import LADDER, Replay, Sighting
from gateway.cli.ttl_report import report

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


def test_the_shortest_ttl_is_advised_that_meets_the_upstream_target() -> None:
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
        ({"max_upstream": 0.0}, "no TTL meets"),
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
    assert "not enough traffic" in found.why


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


def test_a_moment_of_traffic_is_no_reason_to_advise_anything_and_rates_count_the_silence_after_it() -> None:
    replay = Replay(0.0)
    replay.count(1)
    replay.observe([Sighting(1, 0.0, 0.0, 1)])
    first = advise("items", 5.0, replay, Changes().rate())
    assert not first.tells
    assert recommend(first, max_outdated=0.1).ttl is None
    replay.reach(10.0)
    later = advise("items", 5.0, replay, Changes().rate())
    assert later.tells
    assert later.at(5.0).upstream == pytest.approx(0.1)


def test_where_nothing_was_fetched_twice_no_share_of_outdated_answers_is_promised() -> None:
    unknown = advise("items", 30.0, replayed(TRAFFIC["poisson"]), Changes().rate())
    found = recommend(unknown, max_outdated=0.01)
    assert found.ttl is None
    assert "unknown" in found.why
    assert recommend(unknown, max_upstream=1000.0).ttl is not None
    assert "  ?" in list(report([unknown]))[1]


def test_of_a_few_comparisons_no_share_of_outdated_answers_is_promised() -> None:
    changes = Changes()
    for _ in range(LEAST_COMPARISONS - 1):
        changes.add(60.0, changed=False)
    few = advise("items", 30.0, replayed(TRAFFIC["poisson"]), changes.rate())
    found = recommend(few, max_outdated=0.01)
    assert found.ttl is None
    assert f"{LEAST_COMPARISONS - 1} fetches were compared, {LEAST_COMPARISONS} are required" in found.why
    assert "  ?" in list(report([few]))[1]
    changes.add(60.0, changed=False)
    enough = advise("items", 30.0, replayed(TRAFFIC["poisson"]), changes.rate())
    assert recommend(enough, max_outdated=0.01).ttl is not None
