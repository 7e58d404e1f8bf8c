"""s3fifo: keeps what is used again through scans, as well as the paper's algorithm, within the bytes it is given."""

from __future__ import annotations

import bisect
import gc
import itertools
import random
import tracemalloc
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.cache.memory import ENTRY_BYTES, GONE, Ghosts, S3Fifo

UNIT = 1024
ROOMY = 2**20


def holding(room_for: int, *keys: str) -> S3Fifo[str]:
    store: S3Fifo[str] = S3Fifo(ROOMY)
    for key in keys:
        keep(store, key, room_for)
    return store


def keep(store: S3Fifo[str], key: str, room_for: int) -> None:
    store.put(key, key, UNIT - ENTRY_BYTES)
    while store.bytes > room_for * UNIT:
        store.evict()


def kept(store: S3Fifo[str], keys: str) -> str:
    return "".join(key for key in keys if store.get(key) is not None)


# --- which entries stay ------------------------------------------------------------------------------------


def test_what_is_used_once_after_it_came_goes_in_its_turn() -> None:
    store = holding(10, *"abcdefghij")
    store.get("a")
    keep(store, "k", 10)
    assert kept(store, "abk") == "bk"


def test_what_comes_back_soon_after_it_went_enters_the_main_queue() -> None:
    store = holding(10, *"abcdefghijk")
    keep(store, "a", 10)
    for number in range(50):
        keep(store, str(number), 10)
    assert store.get("a") is not None


def test_what_the_main_queue_has_not_used_since_goes_when_others_earn_its_place() -> None:
    store = holding(10, *"abcdefghijk")
    keep(store, "a", 10)
    for key in "0123456789" * 3:
        keep(store, key, 10)
    assert store.get("a") is None


def test_a_removed_value_is_gone_at_once_and_may_come_again() -> None:
    store = holding(10, "a")
    store.remove("a")
    assert store.get("a") is None
    assert len(store) == 0
    keep(store, "a", 10)
    assert store.get("a") == "a"
    assert (len(store), store.bytes) == (1, UNIT)


def test_evicting_a_node_whose_value_was_removed_is_no_eviction() -> None:
    store = holding(10, "a", "b")
    store.remove("a")
    assert [store.evict(), store.evict()] == [False, True]
    assert store.bytes == 0


def test_an_eviction_ends_when_everything_was_used_a_lot() -> None:
    store = holding(2000, *map(str, range(2000)))
    for _ in range(3):
        for number in range(2000):
            store.get(str(number))
    for number in range(2000, 2100):
        keep(store, str(number), 2000)
    assert store.bytes <= 2000 * UNIT


# --- ghosts ------------------------------------------------------------------------------------------------


def test_a_ghost_is_found_once() -> None:
    ghosts = Ghosts(64)
    ghosts.add(hash("a"))
    assert ghosts.discard(hash("a"), 64)
    assert not ghosts.discard(hash("a"), 64)


def test_only_the_newest_ghosts_count() -> None:
    ghosts = Ghosts(2**16)
    for number in range(100):
        ghosts.add(hash(str(number)))
    found = [number for number in range(100) if ghosts.discard(hash(str(number)), 10)]
    assert set(found) <= set(range(90, 100))
    assert len(found) >= 9


def test_ghosts_take_no_more_room_however_many_came() -> None:
    ghosts = Ghosts(64)
    for number in range(10_000):
        ghosts.add(hash(str(number)))
    assert ghosts.bytes == 8 * 64
    assert sum(ghosts.discard(hash(str(number)), 10_000) for number in range(10_000)) <= 64


# --- hit ratio ---------------------------------------------------------------------------------------------


def zipf(keys: int, requests: int, alpha: float, *, scan_every: int = 0, scan: int = 0) -> Iterator[int]:
    """Requests whose popularity is Zipf's, with a run of keys that no one asks for again after every `scan_every`."""
    chance = random.Random(7)
    weights = list(itertools.accumulate(1 / rank**alpha for rank in range(1, keys + 1)))
    fresh = itertools.count(keys)
    for number in range(requests):
        yield bisect.bisect(weights, chance.random() * weights[-1])
        if scan_every and number % scan_every == scan_every - 1:
            yield from itertools.islice(fresh, scan)


def ours(size: int) -> Callable[[int], bool]:
    store: S3Fifo[str] = S3Fifo(2**25)

    def asked(number: int) -> bool:
        hit = store.get(str(number)) is not None
        if not hit:
            keep(store, str(number), size)
        return hit

    return asked


def least_recently_used(size: int) -> Callable[[int], bool]:
    held: OrderedDict[int, None] = OrderedDict()

    def asked(number: int) -> bool:
        hit = number in held
        held[number] = None
        held.move_to_end(number)
        if len(held) > size:
            held.popitem(last=False)
        return hit

    return asked


def as_in_the_paper(size: int) -> Callable[[int], bool]:
    """Algorithm 1 of the paper, word for word: exact ghosts, no bound on an eviction's steps."""
    small, main, ghosts = deque[int](), deque[int](), OrderedDict[int, None]()
    freq = dict[int, int]()

    def insert_in_main(number: int) -> None:
        while len(main) >= size - size // 10:
            tail = main.popleft()
            if freq[tail] > 0:
                freq[tail] -= 1
                main.append(tail)
            else:
                del freq[tail]
        main.append(number)

    def evict_from_small() -> None:
        while len(small) >= size // 10:
            tail = small.popleft()
            if freq[tail] > 1:
                freq[tail] = 0
                insert_in_main(tail)
                continue
            del freq[tail]
            ghosts[tail] = None
            if len(ghosts) > size - size // 10:
                ghosts.popitem(last=False)

    def asked(number: int) -> bool:
        if number in freq:
            freq[number] = min(freq[number] + 1, 3)
            return True
        freq[number] = 0
        if number in ghosts:
            del ghosts[number]
            insert_in_main(number)
        else:
            evict_from_small()
            small.append(number)
        return False

    return asked


@pytest.mark.parametrize(
    ("alpha", "scan"),
    [(1.0, 0), (1.0, 3000), (0.8, 3000)],
    ids=["Zipf 1.0", "Zipf 1.0 and scans", "Zipf 0.8 and scans"],
)
def test_the_hit_ratio_is_the_papers_and_better_than_that_of_lru(alpha: float, scan: int) -> None:
    trace = list(zipf(20_000, 120_000, alpha, scan_every=6000, scan=scan))
    size = 2000
    found = {
        policy: sum(map(policy(size), trace)) / len(trace) for policy in (ours, as_in_the_paper, least_recently_used)
    }
    assert found[ours] > found[as_in_the_paper] - 0.02
    assert found[ours] > found[least_recently_used] + 0.02


# --- bounds ------------------------------------------------------------------------------------------------

KEYS = st.sampled_from("abcdefghijklmnop")
ACTIONS = st.lists(
    st.tuples(st.just("put"), KEYS, st.integers(1, 5000))
    | st.tuples(st.sampled_from(["get", "remove"]), KEYS, st.just(0)),
    max_size=80,
)


@given(ACTIONS, st.integers(0, 20_000))
def test_whatever_comes_bytes_count_what_is_held_and_eviction_brings_them_down(
    actions: list[tuple[str, str, int]], room: int
) -> None:
    store: S3Fifo[int] = S3Fifo(room)
    last: dict[str, int] = {}
    for action, key, size in actions:
        if action == "put":
            store.put(key, size, size)
            last[key] = size
        elif action == "get":
            assert store.get(key) in (None, last.get(key))
        else:
            store.remove(key)
            last.pop(key, None)
        while store.bytes > room:
            store.evict()
    held = [size for key in last if (size := store.get(key)) is not None]
    assert len(store) == len(held)
    assert store.bytes >= sum(held) + ENTRY_BYTES * len(held)
    while store.bytes:
        store.evict()
    assert len(store) == 0


@pytest.mark.parametrize("count", [1000, 6000, 10_000, 30_000, 50_000])
def test_an_entry_is_counted_with_the_bytes_that_the_store_takes_for_it(count: int) -> None:
    keys = [f"key {number}" for number in range(count)]
    gc.collect()
    tracemalloc.start()
    try:
        store: S3Fifo[str] = S3Fifo(2**25)
        overhead = tracemalloc.get_traced_memory()[0]
        for key in keys:
            store.put(key, key, 1000)
        measured = tracemalloc.get_traced_memory()[0] - overhead
    finally:
        tracemalloc.stop()
    assert store.overhead == pytest.approx(overhead, abs=4096)
    assert measured / count == pytest.approx(ENTRY_BYTES, rel=0.15)


def test_the_garbage_collector_does_not_follow_entries() -> None:
    store: S3Fifo[str] = S3Fifo(2**25)
    gc.collect()
    before = len(gc.get_objects())
    for number in range(20_000):
        store.put(str(number), "value", 100)
    gc.collect()
    assert len(gc.get_objects()) - before < 100
    assert len(store) == 20_000


# --- nodes that are kept -----------------------------------------------------------------------------------


def test_a_nodes_turn_tells_that_its_value_is_another_or_gone() -> None:
    store = holding(10, *"ab")
    node, other = store.node("a"), store.node("b")
    assert node is not None
    assert other is not None
    turns = [node.turn]
    for change in (lambda: keep(store, "a", 10), lambda: store.remove("a"), lambda: keep(store, "a", 10)):
        change()
        turns.append(node.turn)
    assert len(set(turns)) == 4
    assert store.node("a") is node
    store.evict()
    store.clear()
    assert [(each.value, each.turn) for each in (node, other)] == [(None, GONE), (None, GONE)]
    assert store.node("a") is None
