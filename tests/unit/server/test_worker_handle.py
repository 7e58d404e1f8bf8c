"""A worker's handle in the supervisor: what its messages, its silence and its end mean. Real processes."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest

from gateway.server import worker_handle
from gateway.server.ipc import (
    Alive,
    Begin,
    Channel,
    CommandFailed,
    Commit,
    Order,
    Prepare,
    Problem,
    PurgeReported,
    Question,
    ReloadPrepared,
    Retire,
    Setup,
    Stop,
    Tell,
    WorkerReady,
)
from gateway.server.process import Spawned
from gateway.server.worker_handle import FIRST_PAUSE, LONGEST_PAUSE, Member, Slot

SETUP = Setup(1, "{}", [], None)
SLEEPING = "import signal, time; signal.signal(signal.SIGUSR1, signal.SIG_IGN); print(flush=True); time.sleep(600)"


@contextlib.asynccontextmanager
async def begun() -> AsyncIterator[tuple[Member, Channel, list[int]]]:
    """The handle of a process that sleeps, the worker's end of its messages, and the numbers of its questions."""
    ours, theirs = socket.socketpair()
    process = await asyncio.to_thread(subprocess.Popen, [sys.executable, "-c", SLEEPING], stdout=subprocess.PIPE)
    questions: list[int] = []
    try:
        assert process.stdout is not None
        process.stdout.readline()
        member = Member(Spawned(process, ours), 1, lambda _, number: questions.append(number))
        worker = Channel(*await asyncio.open_unix_connection(sock=theirs), Order)
        await member.begin(Begin(SETUP, "none", 0, 1))
        assert await worker.receive() == Begin(SETUP, "none", 0, 1)
        yield member, worker, questions
        process.kill()
        await worker.close()
        await asyncio.wait_for(member.gone.wait(), 10)
    finally:
        process.kill()
        process.communicate()


async def read(member: Member, worker: Channel) -> None:
    """Return once the member has read all that the worker sent."""
    worker.send(PurgeReported([], asked=True))
    await asyncio.wait_for(member._told.wait(), 10)
    member._told.clear()


async def test_it_answers_once_it_says_so_until_it_is_gone() -> None:
    async with begun() as (member, worker, _):
        assert (member.answers, member.silent) == (False, 0.0)
        worker.send(WorkerReady())
        await asyncio.wait_for(member.settled.wait(), 10)
        assert member.answers
        member.unresponsive = True
        assert not member.answers
        member.unresponsive = False
    assert not member.answers
    assert "SIGKILL" in member.how_it_ended


async def test_its_silence_counts_only_while_it_has_to_speak() -> None:
    async with begun() as (member, worker, _):
        worker.send(WorkerReady())
        await read(member, worker)
        await asyncio.sleep(0.02)
        before = member.silent
        assert before >= 0.02
        worker.send(Alive())
        await read(member, worker)
        assert member.silent < before
        preparing = asyncio.ensure_future(member.prepare(Prepare(SETUP), 10))
        await asyncio.sleep(0.02)
        assert member.silent == 0.0
        worker.send(ReloadPrepared(1))
        assert await preparing == []
        assert member.silent < 0.02
        member.send(Retire(1.0))
        await asyncio.sleep(0.02)
        assert (member.ending, member.silent) == (True, 0.0)


@pytest.mark.parametrize(("order", "ends"), [(Stop(0.0, 1.0), True), (Retire(1.0), True), (Commit(1), False)])
async def test_orders_to_end_are_remembered(order: object, ends: bool) -> None:
    async with begun() as (member, worker, _):
        member.send(order)
        member.send(Tell())
        assert (await worker.receive(), await worker.receive()) == (order, Tell())
        assert member.ending == ends


async def test_one_that_cannot_start_is_settled_by_its_end_with_its_reason() -> None:
    async with begun() as (member, worker, _):
        worker.send(CommandFailed("no such module"))
        await read(member, worker)
        assert not member.settled.is_set()
    assert member.settled.is_set()
    assert member.failure == CommandFailed("no such module")


async def test_it_tells_its_problems_with_a_configuration() -> None:
    async with begun() as (member, worker, _):
        preparing = asyncio.ensure_future(member.prepare(Prepare(SETUP), 10))
        assert await worker.receive() == Prepare(SETUP)
        worker.send(ReloadPrepared(1, [Problem("file", "key", "wrong")]))
        assert await preparing == [Problem("file", "key", "wrong")]
        late = await member.prepare(Prepare(SETUP), 0.01)
        assert [str(member.pid) in each.message for each in late] == [True]


async def test_one_that_ends_while_it_prepares_has_no_problems() -> None:
    async with begun() as (member, worker, _):
        preparing = asyncio.ensure_future(member.prepare(Prepare(SETUP), 60))
        assert await worker.receive() == Prepare(SETUP)
    assert await asyncio.wait_for(preparing, 10) == []


async def test_its_last_metrics_stay_where_it_does_not_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_handle, "REPORT_SECONDS", 0.01)
    async with begun() as (member, worker, questions):
        family = ("gateway_requests", "counter", "Requests.", [])
        worker.send(PurgeReported([family]))  # type: ignore[list-item]
        worker.send(Question(5))
        await asyncio.wait_for(_until(lambda: questions == [5]), 10)
        kept = member.families
        assert kept != []
        await member.tell()
        assert member.families == kept


async def _until(true: object) -> None:
    while not true():  # type: ignore[operator]
        await asyncio.sleep(0)


async def test_one_that_does_not_respond_is_killed_after_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_handle, "STACK_SECONDS", 0.01)
    async with begun() as (member, _, _):
        await member.end_unresponsive()
        assert await asyncio.to_thread(member._spawned.process.wait, 10) == -signal.SIGKILL


def test_workers_that_die_as_they_begin_are_replaced_ever_more_slowly() -> None:
    one, two = socket.socketpair()
    with one, two:
        slot, pauses = Slot(0, one), []
        for failures in range(12):
            slot.failures = failures
            pauses.append(slot.pause())
    assert pauses[:4] == [0.0, FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE]
    assert pauses[-1] == LONGEST_PAUSE
    assert pauses == sorted(pauses)
