"""What clients can make a worker remember is counted and bounded, and does what docs/bounds.md says at its bound.
(Purges: tests/unit/policy/test_epochs.py; entries: tests/unit/cache/test_memory.py.)"""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec import structs

from gateway.aggregates.merge import PLACE_BYTES, BodyCache, WrongType
from gateway.aggregates.part_result import BackOff, Failure
from gateway.app.gateway import Gateway
from gateway.cache.flight import Marks
from gateway.edge import hits
from gateway.edge.protocol import GatewayProtocol
from gateway.edge.shared_lookup import LONGEST_KNOWN, Records
from gateway.http import target
from gateway.http.headers import CacheControl, parse_date
from gateway.http.target import is_credential
from gateway.policy import keys
from gateway.policy.entry import encode
from gateway.policy.keys import is_identity
from gateway.policy.rules import PLAIN, CachePolicy
from gateway.policy.storability import ReceivedResponse, admit
from gateway.policy.vary import MOST_SUFFIXES, Suffixes
from gateway.testing import StubUpstream, TurnedClock, running
from gateway.upstreams import request as upstream_request
from tests.faults.bounds import MIB
from tests.faults.remembered import KINDS, grown
from tests.support.entries import SAMPLE
from tests.support.gateways import gateway, json_answer, served

LONG = "x" * 8000


def taken(work: Callable[[], Any]) -> int:
    """Bytes that are held after `work` and were not before, its result among them."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        kept = work()
        return tracemalloc.get_traced_memory()[0] - before + 0 * sys.getsizeof(kept)
    finally:
        tracemalloc.stop()


def test_marks_of_long_keys_are_hashes() -> None:
    marks = Marks()

    def fill() -> Marks:
        for number in range(20_000):
            marks.put(f"{LONG}{number}", 60.0)
        return marks

    assert taken(fill) < 4 * MIB
    assert len(marks) == 10_000
    assert marks.active(f"{LONG}19999", 0.0)
    assert not marks.active(f"{LONG}9999", 0.0)
    assert not marks.active(LONG, 0.0)


def test_failures_of_parts_are_kept_by_digests(clock: TurnedClock) -> None:
    failures, failure = BackOff(clock, 60.0), Failure("timeout", "too late")

    def fill() -> BackOff:
        for number in range(20_000):
            failures.put(f"{LONG}{number}", failure)
        return failures

    assert taken(fill) < 4 * MIB
    assert failures.get(f"{LONG}19999") is failure
    assert failures.get(f"{LONG}9999") is None
    clock.turn(61)
    assert failures.claim(f"{LONG}19999", 5.0) is None
    assert failures.claim(f"{LONG}19999", 5.0) is failure
    failures.discard(f"{LONG}19999")
    assert failures.get(f"{LONG}19999") is None


def long_names(number: int) -> Iterator[str]:
    return (f"{LONG}{each}" for each in range(number))


@pytest.mark.parametrize(
    "judge",
    [
        is_identity,
        is_credential,
        lambda name: keys.shared_name("e", name),
        lambda name: parse_date(name, 0.0),
        lambda name: CacheControl.of([(b"cache-control", name.encode())]),
        lambda name: target.normalise(b"/" + name.encode(), b"a=" + name.encode()),
        lambda name: admit(
            ReceivedResponse(200, [(b"cache-control", b"max-age=1"), (b"etag", name.encode())], 0.0, 0.0),
            PLAIN,
            CachePolicy(ttl=1.0),
            keys.Plan("p", "p", (), None, (name,), (name,)),
        ),
    ],
    ids=["identity", "credential", "name", "date", "directives", "target", "terms"],
)
def test_what_is_judged_of_a_long_text_is_not_remembered(judge: Callable[[str], object]) -> None:
    judge(LONG)

    def many() -> None:
        for name in long_names(2000):
            judge(name)

    assert taken(many) < MIB  # 16 MiB of texts


def test_names_are_judged_the_same_whether_they_are_remembered_or_not() -> None:
    for name in ("x-user-token", "accept"):
        assert is_identity(name) is is_identity(f"{'a-' * 50}{name}")
    for name in ("api_key", "page"):
        assert is_credential(name) is is_credential(f"{'a_' * 50}{name}")
    assert keys._known_identity.cache_info().maxsize == 4096
    assert target._known_credential.cache_info().maxsize == 4096
    for key in ("api\n/t", "api\n/t\naccept:a"):
        assert keys.shared_name("e", key) == "e" + keys._place(key)
    assert keys._known_place.cache_info().maxsize == 1024
    assert upstream_request._known_lines.cache_info().maxsize == 256


def test_the_suffixes_of_a_header_block_are_bounded() -> None:
    suffixes = Suffixes([(b"accept", b"a")])
    for number in range(10 * MOST_SUFFIXES):
        assert suffixes[("accept", f"x-{number}")] == f"\nvary accept:a\nvary x-{number}"
    assert len(suffixes) <= MOST_SUFFIXES


def test_prepared_bodies_are_counted_with_their_keys() -> None:
    cache = BodyCache(100 * (8000 + PLACE_BYTES))
    for number in range(1000):
        cache._keep(("x", f"{LONG}{number}"), b"", WrongType("nothing"))
    assert len(cache._kept) <= 100
    assert 0 < cache._bytes <= 100 * (8000 + PLACE_BYTES)
    for _ in range(1000):
        cache._keep(("x", "a"), b"", WrongType("nothing"))
    assert cache._bytes <= 100 * (8000 + PLACE_BYTES)


def test_a_record_with_a_large_head_is_read_and_not_remembered() -> None:
    for size, known in ((10, 1), (LONGEST_KNOWN, 0)):
        records = Records(b"", most=10)
        entry = structs.replace(SAMPLE, headers=((b"x", b"y" * size),))
        for _ in range(2):
            assert records.stored(encode(entry), entry.key) == entry
        assert len(records) == known


async def test_forms_of_responses_are_counted_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    forgotten = 0
    forget = hits.Edge.forget

    def counted(edge: hits.Edge) -> None:
        nonlocal forgotten
        forgotten += 1
        forget(edge)

    monkeypatch.setattr(hits.Edge, "forget", counted)
    large = {"cache-control": "max-age=600", "x-large": "y" * 20_000}
    app: Gateway = gateway(StubUpstream(lambda request: httpx.Response(200, json={}, headers=large)), memory="8MiB")
    async with served(app, http=GatewayProtocol) as url, httpx.AsyncClient(base_url=url) as client:
        room = app.edge._room  # type: ignore[union-attr]
        before, most = forgotten, 0
        for number in range(300):
            for _ in range(2):
                answer = await client.get("/x", headers={"origin": f"http://{number}.test"})
            most = max(most, app.edge._form_bytes)  # type: ignore[union-attr]
        assert "hit" in answer.headers["cache-status"]
    assert most <= room + 30_000
    assert forgotten > before


async def test_a_long_host_is_not_remembered() -> None:
    async with running(gateway(StubUpstream(json_answer()))) as client:
        await client.get("/healthz", headers={"host": LONG})
        tracemalloc.start()
        try:
            for host in long_names(300):
                await client.get("/healthz", headers={"host": host})
            assert tracemalloc.get_traced_memory()[0] < MIB  # 2 MiB of texts
        finally:
            tracemalloc.stop()


async def test_responses_that_may_not_be_stored_leave_digests(tmp_path: Path) -> None:
    seen = await grown(tmp_path, KINDS["URLs that may not be stored"], 6000)
    assert seen.statuses == {"200": 6000}
    assert seen.worker < 28 * MIB  # 48 MiB of targets, of which several copies were kept; 14 to 19 were seen
    assert seen.valkey < 2 * MIB


async def test_a_client_that_left_is_counted_no_longer() -> None:
    app = gateway(StubUpstream(json_answer()))
    async with running(app):
        door = app.guard
        for number in range(1000):
            client = f"10.0.{number // 250}.{number % 250}"
            door.admit(client)
            door.release(client)
        assert not door._requests_by_client
        assert not door._by_client
