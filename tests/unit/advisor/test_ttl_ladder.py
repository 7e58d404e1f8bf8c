"""The ladder of TTLs: which keys are sampled, what is counted of them, and for how long."""

from __future__ import annotations

import pytest

from benchmarks.advice_model import key_hash
from gateway.advisor.ttl_ladder import LADDER, MOST_SIGHTINGS, Recorder, Replay, Sighting, sampled


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


def test_a_sight_that_is_still_held_when_it_was_told_counts_for_nothing_any_more() -> None:
    recorder = Recorder()
    sight = recorder.seen(7, 1.0)
    assert recorder.seen(7, 1.01) is sight
    recorder.take()
    assert sight.until < 1.0
    assert recorder.seen(7, 1.02) is not sight
    recorder.lower(0.0)
    assert recorder.seen(8, 1.0).until > 1e9
    assert recorder.take() == (2, [])


def test_requests_that_the_caller_counted_are_told_as_they_were_counted() -> None:
    recorder = Recorder(most_keys=50)
    recorder.add(3, 1.0, 1.09, 40)
    assert recorder.take() == (40, [Sighting(3, 1.0, 1.09, 40)])
    for number in range(1000):
        recorder.add(key_hash(number), 2.0, 2.0, 1)
    requests, sightings = recorder.take()
    assert requests == 1000
    assert len(sightings) < 200
    assert recorder.threshold < 0.2


def test_what_is_seen_after_the_caller_counted_is_counted_beside_it() -> None:
    recorder = Recorder()
    recorder.add(3, 1.0, 1.09, 40)
    recorder.seen(3, 2.0)
    assert recorder.take() == (41, [Sighting(3, 1.0, 1.09, 40), Sighting(3, 2.0, 2.0, 1)])


def test_fewer_keys_are_sampled_where_there_is_more_to_tell_than_is_told_at_once() -> None:
    recorder = Recorder()
    for second in range(4):
        for number in range(300):
            recorder.seen(key_hash(number), float(second))
    requests, sightings = recorder.take()
    assert requests == len(sightings) == 1200 > MOST_SIGHTINGS
    assert 0.5 <= recorder.threshold < 1.0


def test_counts_of_one_key_add_up_and_stay_sightings_of_their_own() -> None:
    recorder = Recorder()
    recorder.add(3, 1.0, 1.09, 40)
    recorder.add(3, 2.0, 2.05, 2)
    assert recorder.take() == (42, [Sighting(3, 1.0, 1.09, 40), Sighting(3, 2.0, 2.05, 2)])


def test_a_sample_only_ever_shrinks() -> None:
    recorder = Recorder()
    recorder.lower(0.25)
    recorder.lower(0.5)
    assert recorder.threshold == 0.25


def test_a_recorder_is_bounded_whatever_is_asked_for() -> None:
    recorder = Recorder(most_keys=100)
    for number in range(10_000):
        recorder.seen(key_hash(number), number / 10_000)
    requests, sightings = recorder.take()
    assert requests == 10_000
    assert all(sampled(each.key, recorder.threshold) for each in sightings)
    assert len({each.key for each in sightings}) <= 100
