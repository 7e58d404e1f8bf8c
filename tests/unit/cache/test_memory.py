"""memory: the tier in the process keeps within its bytes, responses and indices together."""

from __future__ import annotations

import gc
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from gateway.cache.memory import ENTRY_BYTES, Memory, size_of
from gateway.policy.entry import Entry, Life, decode_stored, encode
from gateway.policy.vary import VaryIndex
from tests.support.entries import SAMPLE


def stored(key: str, body: int = 100, primary: str | None = None) -> Entry:
    return Entry(
        key=key,
        primary=primary or key,
        born=2.0,
        started=1.0,
        initial_age=0.0,
        status=200,
        headers=(),
        body=b"x" * body,
        life=Life(lifetime=60.0),
    )


def index(primary: str, *names: str) -> VaryIndex:
    return VaryIndex(primary=primary, names=(names or ("accept",),))


SIZE = size_of(stored("a")) + ENTRY_BYTES
HALF = SIZE // 2  # more than a small memory takes for ghosts
REMOVED = Memory(2**20)
REMOVED.put(stored("a"))
REMOVED.remove("a")
NODE = REMOVED.statistics.bytes
"""What a removed response leaves behind until its turn to be evicted comes."""


def holding(*keys: str, room_for: int = 10) -> Memory:
    memory = Memory(SIZE * room_for + HALF)
    for key in keys:
        memory.put(stored(key))
    return memory


def kept(memory: Memory, keys: str) -> str:
    return "".join(key for key in keys if memory.get(key) is not None)


# --- what is stored ----------------------------------------------------------------------------------------


def test_what_is_put_is_found_under_its_key() -> None:
    one = stored("a")
    memory = holding()
    memory.put(one)
    assert memory.get("a") is one
    assert memory.get("b") is None
    assert len(memory) == 1


def test_a_newer_response_replaces_the_older_of_its_key() -> None:
    memory = holding("a")
    memory.put(stored("a", body=200))
    found = memory.get("a")
    assert found is not None
    assert len(found.body) == 200
    assert (memory.statistics.entries, memory.statistics.bytes) == (1, SIZE + 100)


def test_bytes_are_given_back_when_a_response_is_removed_but_for_its_node() -> None:
    memory = holding("a", "b")
    memory.remove("a")
    assert memory.get("a") is None
    assert (memory.statistics.entries, memory.statistics.bytes) == (1, SIZE + NODE)


def test_removing_what_is_not_there_changes_nothing() -> None:
    memory = holding("a")
    memory.remove("b")
    assert (memory.statistics.entries, memory.statistics.bytes) == (1, SIZE)


def test_clearing_removes_everything() -> None:
    memory = holding("a")
    memory.put_index(index("a"))
    memory.clear()
    assert memory.get("a") is None
    assert memory.index("a") is None
    assert (memory.statistics.entries, memory.statistics.bytes) == (0, 0)


def test_an_index_is_found_under_its_primary_key() -> None:
    memory = holding()
    memory.put_index(index("a"))
    assert memory.index("a") == index("a")
    assert memory.index("b") is None


def test_a_newer_index_replaces_the_older_and_is_counted_once() -> None:
    memory = holding()
    memory.put_index(index("a"))
    memory.put_index(index("a", "x-a"))
    assert memory.index("a") == index("a", "x-a")
    assert memory.statistics.bytes == counted(index("a", "x-a")) > 0


# --- bounds ------------------------------------------------------------------------------------------------


def test_a_response_larger_than_an_eighth_is_not_kept() -> None:
    memory = Memory(8 * size_of(stored("a", body=100)))
    memory.put(stored("a", body=101))
    memory.put(stored("b", body=100))
    assert kept(memory, "ab") == "b"


def test_a_response_too_large_to_be_kept_removes_the_older_of_its_key() -> None:
    memory = holding("a")
    memory.put(stored("a", body=10 * SIZE))
    assert memory.get("a") is None
    assert (memory.statistics.entries, memory.statistics.bytes) == (0, NODE)


def test_a_memory_of_nothing_keeps_nothing() -> None:
    memory = Memory(0)
    memory.put(stored("a", body=0))
    memory.put_index(index("a"))
    assert memory.get("a") is None
    assert memory.index("a") is None
    assert memory.statistics.bytes == 0


# --- eviction ----------------------------------------------------------------------------------------------


def test_what_was_never_used_is_evicted_in_the_order_it_came() -> None:
    memory = holding(*"abcdefghijkl", room_for=10)
    assert kept(memory, "abcdefghijkl") == "cdefghijkl"
    assert memory.statistics.evictions == 2


def test_what_was_used_twice_outlives_a_scan() -> None:
    memory = holding(*"abcdefghij", room_for=10)
    for _ in range(2):
        memory.get("a")
    for number in range(100):
        memory.put(stored(str(number)))
    assert memory.get("a") is not None


def test_a_large_response_evicts_as_many_as_it_needs() -> None:
    memory = holding(*"abcdefghijklmnopqrst", room_for=20)
    memory.put(stored("z", body=100 + SIZE))
    assert kept(memory, "abcz") == "cz"


def test_a_replaced_response_evicts_nothing() -> None:
    memory = holding(*"abcdefghij", room_for=10)
    memory.put(stored("e"))
    assert memory.statistics.evictions == 0


def test_responses_go_before_the_indices_that_find_them() -> None:
    memory = holding(*"abcdefghij", room_for=10)
    memory.put_index(index("j"))
    assert memory.get("a") is None
    assert memory.index("j") is not None


def test_a_response_goes_where_there_are_as_many_indices() -> None:
    memory = holding("a", "b", room_for=8)
    long = "x" * (3 * SIZE)
    memory.put_index(index(long))
    memory.put_index(index(long + "y"))
    assert kept(memory, "ab") == "b"
    assert memory.index(long) is not None


def test_the_oldest_index_goes_where_there_are_more_of_them_than_responses() -> None:
    memory = Memory(2000)
    for number in range(10):
        memory.put_index(index(str(number)))
    assert memory.index("0") is None
    assert memory.index("9") is not None
    assert memory.statistics.bytes <= 2000


def test_evicting_an_index_is_no_eviction_of_a_response() -> None:
    memory = Memory(500)
    memory.put_index(index("a"))
    memory.put_index(index("b"))
    assert memory.index("a") is None
    assert memory.statistics.evictions == 0


def test_an_index_that_was_used_twice_stays() -> None:
    memory = Memory(2000)
    memory.put_index(index("a"))
    for number in range(100):
        memory.index("a")
        memory.put_index(index(str(number)))
    assert memory.index("a") is not None


def test_an_index_is_counted_with_the_names_it_holds() -> None:
    memory = Memory(2**30)
    memory.put_index(VaryIndex(primary="a", names=tuple((f"x-{each}-{'y' * 1000}",) for each in range(8))))
    assert memory.statistics.bytes > 8000


def test_a_memory_shows_its_state() -> None:
    assert repr(holding("a", room_for=10)) == f"<Memory 1 entries, {SIZE} of {10 * SIZE + HALF} bytes, 0 evicted>"


# --- properties --------------------------------------------------------------------------------------------

ALL = "abcdefghijkl"
KEYS = st.sampled_from(ALL)
ACTIONS = st.lists(
    st.tuples(st.just("put"), KEYS, st.integers(0, 2000))
    | st.tuples(st.just("get"), KEYS, st.just(0))
    | st.tuples(st.just("remove"), KEYS, st.just(0))
    | st.tuples(st.just("index"), KEYS, st.integers(0, 100)),
    max_size=60,
)


def act(memory: Memory, action: str, key: str, number: int) -> None:
    if action == "put":
        memory.put(stored(key, body=number))
    elif action == "get":
        memory.get(key)
    elif action == "remove":
        memory.remove(key)
    else:
        memory.put_index(index(key, f"x-{number}"))


def counted(one: VaryIndex) -> int:
    memory = Memory(2**30)
    memory.put_index(one)
    return memory.statistics.bytes


@given(st.sampled_from([0, 300, 2000, 10_000, 100_000]), ACTIONS)
def test_a_memory_never_holds_more_than_its_capacity_and_counts_what_it_holds(
    capacity: int, actions: list[tuple[str, str, int]]
) -> None:
    memory = Memory(capacity)
    for action in actions:
        act(memory, *action)
        assert memory.statistics.bytes <= capacity
    held = [found for key in ALL if (found := memory.get(key)) is not None]
    indices = [found for key in ALL if (found := memory.index(key)) is not None]
    assert memory.statistics.entries == len(memory) == len(held)
    removed = memory.statistics.bytes - sum(size_of(each) + ENTRY_BYTES for each in held) - sum(map(counted, indices))
    assert removed % NODE == 0
    assert 0 <= removed <= NODE * len(ALL)


# --- the bytes of a response ------------------------------------------------------------------------------


def entry(number: int, body: int, headers: int, names: int) -> Entry:
    primary = f"catalog\n/products/{number:08d}"
    return Entry(
        key=f"{primary}\naccept:application/json\naccept-language:en",
        primary=primary,
        born=1.8e9 + number,
        started=1.8e9 + number + 0.5,
        initial_age=float(number),
        status=200,
        headers=tuple((b"x-header-%02d" % each, b"value %02d of %08d" % (each, number)) for each in range(headers)),
        body=b"b" * body,
        life=Life(lifetime=60.0 + number),
        jitter=0.5 + number / 1e6,
        tags=tuple(f"tag:{each}:{number}" for each in range(names)),
        vary=tuple(f"x-header-{each:02d}" for each in range(names)),
        route="products",
    )


@pytest.mark.usefixtures("only_new_objects")
@pytest.mark.parametrize("from_redis", [True, False], ids=["read from Redis", "made here"])
@pytest.mark.parametrize(("headers", "names"), [(0, 0), (10, 2), (40, 12)], ids=["bare", "usual", "many headers"])
@pytest.mark.parametrize("body", [0, 10, 100, 1000, 10_000, 100_000, 1024 * 1024])
def test_a_stored_response_is_counted_with_the_bytes_it_takes(
    body: int, headers: int, names: int, from_redis: bool
) -> None:
    def taken(number: int) -> Entry:
        made = entry(number, body, headers, names)
        stored = decode_stored(encode(made), made.key) if from_redis else made
        assert stored is not None
        return stored

    memory, count = Memory(2**27), 24 if body > 10_000 else 300
    memory.put(taken(count))
    counted = memory.statistics.bytes
    gc.collect()  # empties CPython's free lists too, whose objects tracemalloc would not see
    tracemalloc.start()
    try:
        for number in range(count):
            memory.put(taken(number))
        gc.collect()
        measured = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert memory.statistics.bytes - counted == pytest.approx(measured, rel=0.15)


def test_a_key_that_is_its_own_primary_key_is_counted_once() -> None:
    assert size_of(structs.replace(SAMPLE, key=SAMPLE.primary)) < size_of(SAMPLE) - len(SAMPLE.primary)
