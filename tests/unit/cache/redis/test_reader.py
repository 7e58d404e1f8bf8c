"""Reads by a pipe: a reply belongs to its command, what is doubtful ends the connection, nobody is left waiting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from operator import attrgetter
from types import SimpleNamespace
from uuid import uuid4

import fakeredis
import pytest
from msgspec import structs

from gateway.cache.redis.connection import Reply, connect
from gateway.cache.redis.reader import INTERNALS, MAX_BATCH, Pipe, Reads
from gateway.cache.redis.store import RedisStore
from gateway.cache.shared_store import Values
from gateway.server.embedded_redis import Embedded

Answering = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Peer:
    """A server that says what a test tells it to, and a pipe to it."""

    def __init__(self) -> None:
        self.accepted: asyncio.Future[asyncio.StreamWriter] = asyncio.get_running_loop().create_future()
        self.got = asyncio.Event()
        self.turns: list[tuple[float, float, bool, bool]] = []
        self.ended: list[int] = []
        self._serving: list[asyncio.Task[object]] = []

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if task := asyncio.current_task():
            self._serving.append(task)
        if not self.accepted.done():
            self.accepted.set_result(writer)
        while await reader.read(65536):
            self.got.set()
        writer.close()

    async def start(self, budget: float) -> Pipe:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*self.server.sockets[0].getsockname())
        pipe = Pipe(budget, lambda *turn: self.turns.append(turn), self.ended.append)
        assert pipe.take_over(SimpleNamespace(_reader=reader, _writer=writer))
        self.writer = await self.accepted
        self.pipe = pipe
        return pipe

    async def stop(self) -> None:
        self.pipe.close()
        self.writer.close()
        self.server.close()
        await asyncio.wait(self._serving)
        await asyncio.sleep(0)

    def say(self, data: bytes) -> None:
        self.writer.write(data)


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    peer = Peer()
    yield peer
    await peer.stop()


def asked(pipe: Pipe, *names: str) -> asyncio.Future[Reply]:
    future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
    pipe.read(names, 100, future.set_result)
    return future


def overdue(pipe: Pipe) -> None:
    pipe._sent[0] = structs.replace(pipe._sent[0], since=pipe._sent[0].since - 60.0)


def value(text: str) -> bytes:
    return f"${len(text)}\r\n{text}\r\n".encode()


async def test_replies_are_told_in_the_order_of_their_commands_however_they_come_in_pieces(peer: Peer) -> None:
    pipe = await peer.start(20.0)
    first, second = asked(pipe, "a", "b"), asked(pipe, "c")
    peer.say(value("A") + value("") + value("1") + b"$")
    assert await first == [b"A", None]
    assert not second.done()
    peer.say(value("C")[1:] + value("2"))
    assert await second == [b"C"]
    pipe.close()


async def test_a_late_reply_ends_the_connection_and_all_that_wait_on_it_as_one_failure(peer: Peer) -> None:
    pipe = await peer.start(0.02)
    assert await asyncio.gather(asked(pipe, "a"), asked(pipe, "b")) == [None, None]
    assert not pipe.open
    assert peer.ended == [2]
    assert await asked(pipe, "c") is None


async def test_what_is_asked_for_in_one_turn_is_one_write_whose_replies_are_passed_on_together(peer: Peer) -> None:
    pipe = await peer.start(20.0)
    told: list[object] = []
    for number in (1, 2):
        pipe.run(b"*1\r\n$4\r\nTIME\r\n" * number, number, told.append)
    assert pipe.unsent == 3 * len(b"*1\r\n$4\r\nTIME\r\n")
    await peer.got.wait()
    peer.say(value("A") + value("B") + value("C"))
    await asyncio.sleep(0.01)
    assert told == []
    peer.say(value("1"))
    while len(peer.turns) < 1:
        await asyncio.sleep(0)
    assert told == [[b"A"], [b"B", b"C"]]
    assert [turn[2:] for turn in peer.turns] == [(True, False)]


async def test_no_commands_have_no_replies_whatever_the_others_of_their_turn_get(peer: Peer) -> None:
    pipe = await peer.start(20.0)
    told: list[object] = []
    pipe.read([], 100, told.append)
    assert told == []
    pipe.run(b"", 0, told.append)
    await asyncio.sleep(0.01)
    assert told == [[], []]


async def test_a_refusal_is_none_for_those_alone_who_asked_for_it(peer: Peer) -> None:
    pipe = await peer.start(20.0)
    told: list[object] = []
    for _ in range(3):
        pipe.run(b"*1\r\n$4\r\nTIME\r\n", 1, told.append)
    await peer.got.wait()
    peer.say(value("A") + b"-OOM full\r\n" + value("C") + value("1"))
    while len(peer.turns) < 1:
        await asyncio.sleep(0)
    assert told == [[b"A"], None, [b"C"]]
    assert [turn[2:] for turn in peer.turns] == [(True, True)]


@pytest.mark.parametrize("ends", [True, False], ids=["it is closed", "a callback fails"])
async def test_who_waits_behind_a_callback_that_ends_the_connection_gets_none(peer: Peer, *, ends: bool) -> None:
    pipe = await peer.start(20.0)
    told: list[object] = []

    def failing(_: object) -> None:
        pipe.close() if ends else pipe.connection_lost(1 / 0)  # type: ignore[arg-type]

    for then in (failing, told.append):
        pipe.run(b"*1\r\n$4\r\nTIME\r\n", 1, then)
    await peer.got.wait()
    pipe.run(b"*1\r\n$4\r\nTIME\r\n", 1, told.append)
    peer.say(value("A") + value("B") + value("1"))
    while len(told) < 2:
        await asyncio.sleep(0)
    assert told == [None, None]
    assert not pipe.open


LOADING = b"-LOADING it loads\r\n"


@pytest.mark.parametrize("reply", [LOADING * 2, b":7\r\n" + value("1"), b"*1\r\n$1\r\nA\r\n" + value("1")])
async def test_a_reply_that_is_no_value_is_none(peer: Peer, reply: bytes) -> None:
    pipe = await peer.start(20.0)
    reading = asked(pipe, "a")
    peer.say(reply)
    assert await reading is None
    assert pipe.open
    pipe.close()


@pytest.mark.parametrize("said", [value("extra") + value("A") + value("1"), value("1") + value("A") + value("B")])
async def test_replies_that_were_shifted_end_the_connection(peer: Peer, said: bytes) -> None:
    pipe = await peer.start(20.0)
    first, second = asked(pipe, "a"), asked(pipe, "b")
    peer.say(said)
    assert await asyncio.gather(first, second) == [None, None]
    assert not pipe.open
    assert peer.ended == [2]


async def test_a_reply_that_came_while_the_loop_stood_still_is_read_before_it_counts_as_late(peer: Peer) -> None:
    pipe = await peer.start(20.0)
    reading = asked(pipe, "a")
    overdue(pipe)
    pipe._look_at_the_time()
    assert pipe.open
    pipe.data_received(value("A") + value("1"))
    assert await reading == [b"A"]
    asked(pipe, "b")
    overdue(pipe)
    pipe._look_at_the_time()
    pipe._look_at_the_time()
    assert not pipe.open


@pytest.mark.parametrize("said", [value("A") + value("1") + value("B"), value("A") + value("1") + b"?nonsense\r\n"])
async def test_a_reply_too_many_or_nonsense_ends_the_connection(peer: Peer, said: bytes) -> None:
    pipe = await peer.start(20.0)
    reading = asked(pipe, "a")
    peer.say(said)
    assert await reading == [b"A"]
    while pipe.open:
        await asyncio.sleep(0)
    assert peer.ended == [0]


async def test_a_connection_that_is_lost_leaves_nobody_waiting(peer: Peer) -> None:
    pipe = await peer.start(20.0)
    reading = asked(pipe, "a")
    peer.writer.close()
    assert await reading is None
    assert peer.ended == [1]


async def test_something_that_came_before_is_no_connection_to_take_over(peer: Peer) -> None:
    await peer.start(20.0)
    reader, writer = await asyncio.open_connection(*peer.server.sockets[0].getsockname())
    reader.feed_data(b"+OK\r\n")
    pipe = Pipe(1.0, lambda *_: None, peer.ended.append)
    assert not pipe.take_over(SimpleNamespace(_reader=reader, _writer=writer))
    assert not pipe.take_over(SimpleNamespace())
    writer.close()
    await writer.wait_closed()


class Asked:
    """Round trips that a test answers."""

    def __init__(self) -> None:
        self.trips: list[tuple[list[str], Callable[[Values | None], None]]] = []
        self.reads = Reads(lambda names, then: self.trips.append((names, then)))
        self.told: list[Values] = []

    def answer(self) -> None:
        names, then = self.trips.pop(0)
        then([name.encode() for name in names])


async def test_the_reads_of_a_turn_are_one_round_trip_and_each_key_is_read_once() -> None:
    asked = Asked()
    for names in (["i", "a"], ["i", "b"], ["a"]):
        asked.reads.add(names, asked.told.append)
    asked.reads.add(["never"], asked.told.append).cancel()
    await asyncio.sleep(0)
    assert [names for names, _ in asked.trips] == [["i", "a", "b"]]
    asked.answer()
    assert asked.told == [[b"i", b"a"], [b"i", b"b"], [b"a"]]


async def test_one_round_trip_has_so_many_names_at_most() -> None:
    asked = Asked()
    for number in range(MAX_BATCH):
        asked.reads.add([f"a{number}", f"b{number}"], asked.told.append)
    await asyncio.sleep(0)
    assert [len(names) for names, _ in asked.trips] == [MAX_BATCH, MAX_BATCH]


async def test_a_callback_that_fails_is_its_own_affair() -> None:
    asked = Asked()
    asked.reads.add(["a"], asked.told.append)
    asked.reads.add(["b"], lambda _: 1 / 0)  # type: ignore[arg-type, return-value]
    asked.reads.add(["c"], asked.told.append)
    await asyncio.sleep(0)
    with pytest.raises(ZeroDivisionError):
        asked.answer()
    await asyncio.sleep(0)
    assert asked.told == [[b"a"], [b"c"]]


async def connected(store: RedisStore) -> Pipe:
    while True:
        pipe = store._keeper.pipe
        if pipe is not None:
            return pipe
        await asyncio.sleep(0.001)


async def test_what_is_used_of_redis_py_is_there(valkey: Embedded) -> None:
    client = connect(valkey.url, 5.0)
    connection = client.connection_pool.make_connection()
    await connection.connect()
    moved = [
        f"{place}.{name}"
        for place, names in INTERNALS.items()
        for name, kind in names.items()
        if not isinstance(getattr(attrgetter(place)(SimpleNamespace(connection=connection)), name, None), kind)
    ]
    await connection.disconnect()
    await client.aclose()
    assert not moved, (
        f"redis-py has moved {moved}: adapt gateway/cache/redis/reader.py or redis_values.py, then INTERNALS"
    )


async def test_a_store_reads_by_a_pipe_and_by_another_once_it_is_lost(valkey: Embedded) -> None:
    store = RedisStore(valkey.url, prefix=f"{uuid4().hex}:", budget=5.0)
    assert await store.write([("a", b"\x00A", 60.0)])
    first = await connected(store)
    assert await store.read(["a", "b"]) == [b"\x00A", None]

    first.close()

    assert await store.read(["a", "b"]) == [b"\x00A", None]  # by redis-py's client
    assert store.statistics.failures == 0
    store._keeper._tried_at = float("-inf")
    assert await connected(store) is not first
    assert await store.read(["b", "a"]) == [None, b"\x00A"]
    await store.aclose()


async def test_a_client_that_connects_otherwise_is_read_without_a_pipe() -> None:
    store = RedisStore("redis://none", budget=5.0, client=fakeredis.FakeAsyncRedis())
    assert await store.write([("a", b"A", 60.0)])
    for _ in range(3):
        assert await store.read(["a", "b"]) == [b"A", None]
        await asyncio.sleep(0)
    assert store._keeper.pipe is None
    assert store.statistics.failures == 0
    await store.aclose()


async def test_a_thousand_leases_at_once_are_no_failure_of_redis(
    valkey: Embedded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "gateway.cache.redis.store.TURN_SECONDS", 60.0
    )  # on a loaded machine the last one's turn comes late
    store = RedisStore(valkey.url, prefix=f"{uuid4().hex}:", budget=20.0)
    got = await asyncio.gather(*(store.take(f"l:{number}", b"t", 60.0) for number in range(1000)))
    assert set(got) == {b"t"}
    assert store.available
    assert store.statistics.failures == 0
    await store.aclose()


async def test_a_write_that_is_not_answered_in_time_is_counted_as_dropped(peer: Peer) -> None:
    await peer.start(20.0)
    host, port = peer.server.sockets[0].getsockname()
    store = RedisStore(f"redis://{host}:{port}/0", budget=0.02)
    assert not await store.write([("a", b"A", 60.0), ("b", b"B", 60.0)])
    assert store.statistics.dropped == 2
    await store.aclose()


async def test_the_writes_of_one_pipeline_are_bounded_in_bytes(valkey: Embedded) -> None:
    store = RedisStore(valkey.url, prefix=f"{uuid4().hex}:", budget=20.0)
    values = [(f"k{number}", bytes(400_000), 60.0) for number in range(6)]
    assert await store.write(values)
    assert store.statistics.batches == 3
    assert store.statistics.dropped == 0
    await store.aclose()
