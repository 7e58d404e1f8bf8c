"""epochs: what a purge has made of a response, judged by positions alone. (The stream's own tests: test_purging.)"""

from __future__ import annotations

import tracemalloc

import pytest

from gateway.policy.epochs import (
    EVERYTHING,
    LONGEST_NAME,
    MAX_PENDING,
    RECORD_BYTES,
    Epochs,
    Purge,
    PurgeState,
    bounded,
    full_key_name,
    full_route_name,
    full_tag_name,
    key_name,
    parse_position,
    purge_of,
    route_name,
    tag_name,
)

NAMES = (tag_name("a"),)


def purge(number: int, *names: str, soft: bool = False) -> Purge:
    return Purge(f"p{number}", names or NAMES, soft)


def state(epochs: Epochs, stamp: str, started: float = 0.0) -> PurgeState:
    return epochs.judge(stamp, started, NAMES)[0]


def test_a_floor_forgets_what_lies_before_it_and_makes_void_what_was_stamped_before() -> None:
    epochs = Epochs("g")
    early = epochs.stamp
    epochs.apply((5, 0), purge(1))
    epochs.apply((6, 0), purge(2, soft=True))
    epochs.apply((9, 0), purge(3, "t:b", soft=True))
    epochs.raise_floor((7, 0))
    assert state(epochs, early) is PurgeState.VOID
    assert list(epochs.records) == ["p3"]
    assert epochs.last_purge("t:a") is None
    assert epochs.last_purge("t:b") == "9-0 (soft)"
    assert state(epochs, "g 7-0") is PurgeState.VALID


def test_a_floor_never_sinks() -> None:
    epochs = Epochs("g")
    epochs.raise_floor((7, 0))
    version = epochs.version
    epochs.raise_floor((6, 0))
    assert (epochs.floor, epochs.version) == ((7, 0), version)


def test_what_is_fetched_after_a_floor_is_stamped_with_it_at_the_least() -> None:
    epochs = Epochs("g")
    epochs.raise_floor((7, 0))
    assert epochs.stamp == "g 7-0"


def test_a_later_purge_of_a_name_outlives_the_floor_of_an_earlier_one() -> None:
    epochs = Epochs("g")
    epochs.apply((5, 0), purge(1))
    epochs.apply((5, 1), purge(2, soft=True))
    epochs.apply((9, 0), purge(3))
    epochs.apply((9, 1), purge(4, soft=True))
    epochs.raise_floor((7, 0))
    assert list(epochs.records) == ["p3", "p4"]
    assert epochs.last_purge("t:a") == "9-1 (soft)"
    assert state(epochs, "g 8-0") is PurgeState.VOID
    assert state(epochs, "g 9-0") is PurgeState.SOFT


@pytest.mark.parametrize(
    ("lineage", "stamp", "found"),
    [
        (None, "old 3-0", PurgeState.VALID),
        (["old"], "old 3-0", PurgeState.VALID),
        ([], "old 3-0", PurgeState.VOID),
        ([], "g nonsense", PurgeState.VOID),
        (None, "g nonsense", PurgeState.VALID),
    ],
)
def test_a_stamp_of_another_generation_is_earlier_than_all_or_void(
    lineage: list[str] | None, stamp: str, found: PurgeState
) -> None:
    assert state(Epochs("g", lineage), stamp) is found


def test_another_generation_is_earlier_than_every_purge_of_this_one() -> None:
    epochs = Epochs("g", ["old"])
    epochs.apply((1, 0), purge(1))
    assert state(epochs, "old 999-0") is PurgeState.VOID


def test_a_stream_that_begins_anew_keeps_what_was_stamped_before_only_where_nothing_was_missed() -> None:
    for continuous, found in ((True, PurgeState.VALID), (False, PurgeState.VOID)):
        epochs = Epochs("old", ["older"])
        stamp = epochs.stamp
        epochs.adopt("new", [((1, 0), purge(1, "t:b"))], continuous=continuous)
        assert state(epochs, stamp) is found
        assert epochs.applied == (1, 0)


def test_without_a_lineage_another_generation_counts_as_earlier() -> None:
    epochs = Epochs("old")
    stamp = epochs.stamp
    epochs.adopt("new", [((1, 0), purge(1, "t:b"))])
    assert state(epochs, stamp) is PurgeState.VALID
    assert epochs.lineage is None


def test_a_purge_on_its_way_makes_void_what_was_fetched_before_it_was_issued() -> None:
    epochs = Epochs("g")
    epochs.pend(purge(1), 10.0)
    assert state(epochs, epochs.stamp, 10.0) is PurgeState.VOID
    assert state(epochs, epochs.stamp, 10.1) is PurgeState.VALID
    assert not epochs.untouched(epochs.stamp)
    epochs.apply((5, 0), purge(1))
    assert epochs.pending == {}
    assert state(epochs, epochs.stamp, 0.0) is PurgeState.VALID
    assert epochs.untouched(epochs.stamp)


def test_a_soft_purge_on_its_way_ends_freshness_when_it_was_issued() -> None:
    epochs = Epochs("g")
    epochs.pend(purge(1, soft=True), 10.0)
    assert epochs.judge(epochs.stamp, 5.0, ("t:other", *NAMES)) == (PurgeState.SOFT, 10.0)
    assert epochs.judge(epochs.stamp, 11.0, NAMES) == (PurgeState.VALID, 0.0)


def test_a_purge_takes_the_place_of_one_of_the_same_names_that_still_waits() -> None:
    epochs = Epochs("g")
    epochs.pend(purge(1), 10.0)
    epochs.pend(purge(2), 20.0)
    assert list(epochs.pending) == ["p2"]


def test_too_many_purges_on_their_way_become_one_of_everything() -> None:
    epochs = Epochs("g")
    for number in range(MAX_PENDING + 1):
        epochs.pend(purge(number, f"t:{number}"), 10.0)
    (waiting,) = epochs.pending.values()
    assert waiting[1].names == (EVERYTHING,)
    assert waiting[1].id == f"p{MAX_PENDING}"


def test_the_first_soft_purge_counts_and_the_last_purge_is_told() -> None:
    epochs = Epochs("g")
    epochs.apply((4000, 0), purge(1, soft=True))
    epochs.apply((9000, 0), purge(2, soft=True), 8.5)
    assert epochs.judge("g 0-0", 0.0, NAMES) == (PurgeState.SOFT, 4.0)
    assert epochs.judge("g 5000-0", 0.0, NAMES) == (PurgeState.SOFT, 8.5)
    epochs.apply((9500, 2), purge(3))
    assert epochs.last_purge("t:a") == "9500-2"


def test_positions_are_remembered_in_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.policy.epochs._MAX_MEMO", 4)
    epochs = Epochs("g")
    epochs.apply((5, 0), purge(1))
    assert [state(epochs, f"g {number}-0") for number in range(10)] == [PurgeState.VOID] * 5 + [PurgeState.VALID] * 5
    assert len(epochs._positions) <= 4


def test_a_position_without_a_sequence_number_is_its_first() -> None:
    assert parse_position("17") == (17, 0)
    with pytest.raises(ValueError, match="invalid literal"):
        parse_position("x")


def test_it_shows_its_state() -> None:
    assert repr(Epochs("generation")) == "<Epochs generati applied=0-0 floor=0-0 records=0 pending=0>"


# --- bounds ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["*", "k:api\n/short", "t:" + "x" * 31])
def test_a_short_name_is_its_own(name: str) -> None:
    assert bounded(name) == name


@pytest.mark.parametrize("name", ["k:api\n/" + "x" * 8000, "t:" + "x" * 32, "t:é", "t:\udcff", "t:" + "日" * 20])
def test_a_long_name_is_a_digest_that_no_short_one_is(name: str) -> None:
    digest = bounded(name)
    assert digest.startswith("#")
    assert len(digest) <= LONGEST_NAME
    assert bounded(digest) == digest
    assert bounded(name + "x") != digest


@pytest.mark.parametrize("text", ["a", "api\n/t", "\xe9", "x" * 100])
def test_keys_tags_and_routes_of_one_text_have_different_names(text: str) -> None:
    full = [named(text) for named in (full_key_name, full_tag_name, full_route_name)]
    names = [named(text) for named in (key_name, tag_name, route_name)]
    assert names == [*map(bounded, full)]
    assert len({*names, EVERYTHING}) == 4


def test_a_purge_holds_no_more_of_its_names_than_their_digests() -> None:
    long = full_key_name("api\n/" + "x" * 8000)
    one = purge_of("p", [long, long, "t:a"], by="b" * 1000)
    assert one == Purge("p", (bounded(long), "t:a"), by="b" * 64)
    assert purge_of("p", ["t:" + "x" * 40]).full == ("t:" + "x" * 40,)


def test_ten_thousand_purges_of_a_target_are_one_record() -> None:
    epochs = Epochs("g")
    for number in range(10_000):
        epochs.apply((number, 0), purge(number))
    assert list(epochs.records) == ["p9999"]
    assert epochs.weight == RECORD_BYTES
    assert len(epochs.superseded) == 9999
    assert state(epochs, "g 9998-0") is PurgeState.VOID
    assert state(epochs, "g 9999-0") is PurgeState.VALID


def test_a_soft_purge_takes_the_place_of_none() -> None:
    epochs = Epochs("g")
    epochs.apply((1000, 0), purge(1, soft=True))
    epochs.apply((9000, 0), purge(2, soft=True))
    epochs.apply((9500, 0), purge(3))
    assert list(epochs.records) == ["p1", "p2", "p3"]
    assert not epochs.superseded


def test_the_weight_of_records_is_theirs_in_memory() -> None:
    for names in (1, 10):
        tracemalloc.start()
        try:
            before, epochs = tracemalloc.get_traced_memory()[0], Epochs("g")
            for number in range(20_000 // names):
                each = [full_key_name(f"api\n/{'x' * 200}/{number}/{name}") for name in range(names)]
                epochs.apply((1_700_000_000_000 + number, 0), Purge(f"{number:024}", tuple(map(bounded, each))))
            taken = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
        assert 0.6 * epochs.weight < taken <= 1.15 * epochs.weight


def test_records_beyond_their_bytes_make_a_floor_of_the_oldest() -> None:
    epochs = Epochs("g")
    most = 16 * RECORD_BYTES
    for number in range(1, 17):
        epochs.apply((number, 0), purge(number, f"t:{number}"))
    assert epochs.surplus(most) is None
    epochs.apply((17, 0), purge(17, "t:17"))
    floor = epochs.surplus(most)
    assert floor == (3, 0)
    epochs.raise_floor(floor)
    assert epochs.weight == 14 * RECORD_BYTES
    assert state(epochs, "g 2-0") is PurgeState.VOID


def test_what_was_void_below_a_floor_stays_void_where_the_stream_begins_anew() -> None:
    epochs = Epochs("old", [])
    before = epochs.stamp
    epochs.apply((5, 0), purge(1))
    epochs.raise_floor((5, 0))
    after = epochs.stamp
    epochs.adopt("new", [])
    assert state(epochs, before) is PurgeState.VOID
    assert state(epochs, after) is PurgeState.VALID


def test_purges_on_their_way_are_counted_in_bytes() -> None:
    epochs = Epochs("g")
    names = tuple(f"t:{number}" for number in range(20_000))
    for number in range(20):
        epochs.pend(Purge(f"p{number}", (*names, f"t:x{number}")), 10.0)
    assert len(epochs.pending) < 10
    assert any(waiting.names == (EVERYTHING,) for _, waiting in epochs.pending.values())


def test_a_long_stamp_is_not_remembered() -> None:
    epochs = Epochs("g")
    epochs.apply((5, 0), purge(1))
    assert state(epochs, "g " + "9" * 1000 + "-0") is PurgeState.VALID
    assert not epochs._positions


def test_the_untouched_stamp_is_the_present_one_unless_a_purge_is_on_its_way() -> None:
    def told(epochs: Epochs) -> str | None:
        untouched = epochs.stamp if epochs.untouched(epochs.stamp) else None
        assert epochs.untouched_stamp == untouched
        return untouched

    epochs = Epochs("g", ["old"])
    assert told(epochs) == "g 0-0"
    epochs.pend(purge(1), 10.0)
    assert told(epochs) is None
    epochs.apply((5, 0), purge(1))
    assert told(epochs) == "g 5-0"
    epochs.raise_floor((7, 0))
    assert told(epochs) == "g 7-0"
    epochs.adopt("new", [((1, 0), purge(2))])
    assert told(epochs) == "new 1-0"
    assert told(Epochs()) is told(Epochs("", ["g"])) is None, "before the stream was read"
