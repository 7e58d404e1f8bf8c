"""Messages between the supervisor and its workers, over a real socket pair."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from gateway.config.loader import load
from gateway.errors import ConfigProblem
from gateway.observability.log import Mark, Marked
from gateway.server.ipc import (
    MAX_MESSAGE,
    Abort,
    Adopt,
    Alive,
    Alone,
    Begin,
    Channel,
    CommandFailed,
    Commit,
    Logged,
    Order,
    Prepare,
    Problem,
    PurgeReported,
    Question,
    Release,
    ReloadPrepared,
    Report,
    Retire,
    Setup,
    Stop,
    Tell,
    Totals,
    WorkerReady,
    Workers,
)

SETUP = Setup(7, '{"port": 8001}', [], None)
ORDERS = [
    *(Begin(SETUP, "none", 1, 2), Prepare(SETUP), Commit(3), Abort(3), Adopt(1), Release(1), Tell(), Totals(5, [])),
    *(Stop(1.0, 2.0), Retire(3.0), Workers(1, 2), Alone(True)),
]
REPORTS = [
    *(WorkerReady(), CommandFailed("no", [Problem("a", "b", "c")]), ReloadPrepared(3, []), Alive()),
    *(PurgeReported([], asked=True), Question(4), Logged(Marked(Mark("Redis", "away"), 30, "Redis is away"))),
]


@contextlib.asynccontextmanager
async def ends() -> AsyncIterator[tuple[Channel, Channel, asyncio.StreamWriter]]:
    """The supervisor's end, the worker's, and the writer of the latter."""
    one, two = socket.socketpair()
    supervisors = await asyncio.open_unix_connection(sock=one)
    workers = await asyncio.open_unix_connection(sock=two)
    try:
        yield Channel(*supervisors, Report), Channel(*workers, Order), workers[1]
    finally:
        for _, writer in (supervisors, workers):
            writer.close()


async def test_every_message_arrives_as_it_was_sent_and_in_order() -> None:
    assert {type(each) for each in ORDERS} == set(Order.__args__)
    assert {type(each) for each in REPORTS} == set(Report.__args__)
    async with ends() as (supervisor, worker, _):
        for order in ORDERS:
            supervisor.send(order)
        for report in REPORTS:
            worker.send(report)
        assert [await worker.receive() for _ in ORDERS] == ORDERS
        assert [await supervisor.receive() for _ in REPORTS] == REPORTS


async def test_what_was_sent_before_the_end_arrives_and_then_nothing_comes() -> None:
    async with ends() as (supervisor, worker, _):
        worker.send(Alive())
        await worker.close()
        assert await supervisor.receive() == Alive()
        assert await supervisor.receive() is None
        supervisor.send(Tell())  # to nobody


async def test_a_message_cut_off_by_the_end_of_its_sender_is_the_end() -> None:
    async with ends() as (supervisor, _, writer):
        writer.write(struct.pack("!I", 100) + b"half")
        writer.close()
        assert await supervisor.receive() is None


async def test_a_length_beyond_the_limit_is_not_waited_for() -> None:
    async with ends() as (supervisor, _, writer):
        writer.write(struct.pack("!I", MAX_MESSAGE + 1))
        async with asyncio.timeout(10):
            assert await supervisor.receive() is None


async def test_a_message_of_the_other_direction_is_an_error() -> None:
    async with ends() as (supervisor, worker, _):
        worker.send(Commit(1))
        with pytest.raises(msgspec.ValidationError):
            await supervisor.receive()


def test_a_configuration_comes_out_as_it_was_read(tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text(f"port: 8123\nmemory: {2**63}B\nupstreams: {{api: {{url: http://api.test}}}}\n")
    loaded = load(file, environ={"GATEWAY_ADMIN_TOKEN": "secret", "GATEWAY_RETRY_AFTER": "7s"}, dotenv=None)
    sent = msgspec.msgpack.decode(msgspec.msgpack.encode(Setup.of(3, loaded)), type=Setup)
    assert sent.number == 3
    assert sent.loaded.config == loaded.config
    assert sent.loaded.sources == loaded.sources
    assert sent.loaded.admin_token == "secret"


def test_a_problem_comes_out_as_it_was() -> None:
    problem = ConfigProblem("gateway.yaml line 3", "routes.a", "is wrong")
    assert str(Problem.of(problem).problem) == str(problem)
