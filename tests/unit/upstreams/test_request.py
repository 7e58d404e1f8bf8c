"""The bytes of a request without a body, and the deadline of one."""

from __future__ import annotations

import asyncio
import weakref
from contextvars import ContextVar

import httpx
import pytest
import uvloop

from gateway.http.headers import Headers
from gateway.upstreams.hosts import Base
from gateway.upstreams.request import MOST_LENGTHS, ORDINARY, Deadline, Sending, request_head

BASE = Base.of("http://api.test")


def sent(fields: Headers, request_id: str) -> bytes:
    """What goes out for a request with an ID."""
    head = Sending("GET", "/", fields, None, None, ORDINARY, 1.0, None, request_id=request_id).in_one(BASE)
    assert head is not None
    return head


def test_a_request_is_its_line_its_fields_as_they_are_and_an_empty_line() -> None:
    head = request_head("GET", "/a?b=%2C", [(b"host", b"api.test"), (b"x-name", "grün".encode("latin-1"))])
    assert head == b"GET /a?b=%2C HTTP/1.1\r\nhost: api.test\r\nx-name: gr\xfcn\r\n\r\n"


@pytest.mark.parametrize("value", [b"a\r\nx: y", b"a\nb", b"a\rb", b"a\0b"])
def test_a_field_that_would_end_its_line_is_not_sent(value: bytes) -> None:
    for field in ((b"x-a", value), (value, b"x")):
        with pytest.raises(httpx.LocalProtocolError):
            request_head("GET", "/", [field])
        for fields in ([field], (field,), (field, (b"x-b", b"1"))):
            with pytest.raises(httpx.LocalProtocolError):
                sent(fields, "an-id")


@pytest.mark.parametrize("target", ["", "a", "/a b", "/a\r\nx: y", "/ü"])
def test_a_target_that_is_none_is_not_sent(target: str) -> None:
    with pytest.raises(httpx.LocalProtocolError):
        request_head("GET", target, [])


def test_the_host_is_sent_once_and_first_unless_the_fields_have_one() -> None:
    other, own = (b"x-a", b"1"), (b"host", b"own.test")
    cases = (
        ([other, other], [(b"host", b"api.test"), other, other]),
        ([own, other], [own, other]),
        ([other, own], [other, own]),
        ([], [(b"host", b"api.test")]),
    )
    for fields, whole in cases:
        assert request_head("GET", "/", fields, b"api.test") == request_head("GET", "/", whole)
        whole.append((b"x-request-id", b"an-id"))
        assert sent(fields, "an-id") == sent(tuple(fields), "an-id") == request_head("GET", "/", whole)


@pytest.mark.parametrize("request_id", ["a\r\nx: y", "a\nb", "a\rb", "a\0b"])
def test_an_id_that_would_end_its_line_is_not_sent(request_id: str) -> None:
    with pytest.raises(httpx.LocalProtocolError):
        sent([], request_id)


@pytest.mark.parametrize("request_id", ["", "a b", "a\tb", "\x7f"])
def test_an_id_is_the_last_field_whatever_it_is(request_id: str) -> None:
    assert sent([], request_id).endswith(b"\r\nx-request-id: " + request_id.encode() + b"\r\n\r\n")


def test_a_request_whose_fields_were_completed_is_the_same() -> None:
    sending = Sending("GET", "/", ((b"x-a", b"1"),), None, None, ORDINARY, 1.0, None, request_id="an-id")
    fields = sending.fields(BASE)
    assert sending.in_one(BASE) == request_head("GET", "/", fields) == sent([(b"x-a", b"1")], "an-id")


async def test_a_deadline_ends_what_its_task_waits_for() -> None:
    with pytest.raises(TimeoutError), Deadline(0.0):
        await asyncio.Event().wait()
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()
    await asyncio.sleep(0)  # nothing is left to end this


async def test_a_deadline_that_was_lifted_or_left_ends_nothing() -> None:
    with Deadline(0.0) as deadline:
        deadline.lift()
        assert deadline.when is None
        await asyncio.sleep(0.001)
    with Deadline(0.0):
        pass
    await asyncio.sleep(0.001)


def test_a_deadline_has_an_instant_also_where_no_time_is_left() -> None:
    async def read() -> None:
        for seconds in (60.0, 0.0, -1.0):
            with Deadline(seconds) as deadline:
                left = asyncio.get_running_loop().time() + max(seconds, 0.0)
                assert deadline.when == pytest.approx(left, abs=5.0)

    uvloop.run(read())


@pytest.mark.parametrize("seconds", [0.0, 60.0])
async def test_a_cancellation_from_outside_stays_one(seconds: float) -> None:
    waits = asyncio.Event()

    async def wait() -> None:
        with Deadline(seconds):
            waits.set()
            await asyncio.Event().wait()

    task = asyncio.ensure_future(wait())
    await waits.wait()
    task.cancel()  # before the deadline's own
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def test_an_error_at_the_deadline_is_not_replaced() -> None:
    async def fail() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"), Deadline(0.0):
        await fail()


async def test_deadlines_of_the_same_length_end_each_at_its_time() -> None:
    loop = asyncio.get_running_loop()
    ended: list[str | float] = []

    async def wait(pause: float) -> None:
        await asyncio.sleep(pause)
        began = loop.time()
        # Two turns of the loop after its time: a task takes one to end.
        late = loop.call_at(began + 0.08, loop.call_soon, loop.call_soon, ended.append, "late")
        with pytest.raises(TimeoutError), Deadline(0.06):
            await asyncio.Event().wait()
        late.cancel()
        ended.append(pause if loop.time() - began > 0.059 else "early")

    for _ in range(3):
        with Deadline(0.06):
            await asyncio.sleep(0.01)  # over, before those that follow
    async with asyncio.timeout(10.0):
        await asyncio.gather(*map(wait, (0.02, 0.0, 0.04, 0.0)))
    assert ended == [0.0, 0.0, 0.02, 0.04]


def test_a_deadline_that_is_over_keeps_nothing_of_its_request() -> None:
    class Request:
        pass

    kept: list[weakref.ref[Request]] = []
    current: ContextVar[Request] = ContextVar("current")

    async def fetch() -> None:
        request = Request()
        kept.append(weakref.ref(request))
        current.set(request)
        with Deadline(60.0):
            await asyncio.sleep(0)

    async def fetch_several() -> None:
        for _ in range(3):
            await asyncio.ensure_future(fetch())
        await asyncio.sleep(0.001)  # cancelled timers are gone
        assert not any(ref() for ref in kept)

    uvloop.run(fetch_several())


async def test_few_lengths_of_deadlines_are_remembered() -> None:
    for number in range(10 * MOST_LENGTHS):
        for _ in range(2):
            with Deadline(60.0 + number):
                pass
    assert Deadline._queues is not None
    assert len(Deadline._queues.by_length) == MOST_LENGTHS
    with pytest.raises(TimeoutError), Deadline(0.0), Deadline(0.0):
        await asyncio.Event().wait()


def test_each_event_loop_has_its_own_deadlines() -> None:
    async def expire() -> None:
        for _ in range(3):
            with pytest.raises(TimeoutError), Deadline(0.001):
                await asyncio.Event().wait()

    with asyncio.Runner() as one, asyncio.Runner(loop_factory=uvloop.new_event_loop) as other:
        for runner in (one, other, one, other):
            runner.run(asyncio.wait_for(expire(), 10.0))
