"""Purges in one process: when one is complete, and what of them is kept."""

from __future__ import annotations

import pytest

from gateway.cache import purge_log
from gateway.cache.purge_log import LocalPurges, PurgeCounts, PurgeReport
from gateway.policy.epochs import MAX_BYTES
from gateway.testing import TurnedClock


@pytest.mark.parametrize(
    ("report", "complete"),
    [
        (PurgeReport(2, 2, 0.1), True),
        (PurgeReport(1, 2, 0.1), False),
        (PurgeReport(2, 2, 0.1, added=False), False),
        (PurgeReport(2, 2, 0.1, settled=False), False),
        (PurgeReport(0, 0, 0.0), True),
    ],
)
def test_a_purge_is_complete_once_it_is_added_and_every_live_worker_has_applied_it(
    report: PurgeReport, complete: bool
) -> None:
    assert report.complete == complete
    assert bool(report.detail) == (not complete)
    told = PurgeCounts()
    told.count(report)
    assert (told.complete, told.unconfirmed) == (int(complete), int(not complete))


def test_a_report_gives_the_reason_why_it_is_not_complete() -> None:
    assert PurgeReport(1, 2, 0.1, added=False).detail.startswith("Redis has not accepted it yet")
    assert PurgeReport(1, 2, 0.1, settled=False).detail.startswith("The other workers apply it")
    assert PurgeReport(2, 2, 0.1, settled=False).detail.startswith("There may be a worker that has not applied it")


async def test_it_is_complete_at_once_and_later_purges_have_later_positions(clock: TurnedClock) -> None:
    purges = LocalPurges(clock)
    positions = []
    for _ in range(3):  # twice within the same millisecond
        assert (await purges.purge(["t:a"])).complete
        positions.append(purges.epochs.applied)
    clock.turn(-10)
    await purges.purge(["t:a"])
    positions.append(purges.epochs.applied)
    assert positions == sorted(set(positions))


async def test_it_trusts_memory_without_end(clock: TurnedClock) -> None:
    purges = LocalPurges(clock)
    await purges.start()
    assert purges.trusted_until == float("inf")
    assert purges.distrusted_since(clock.now()) is None
    await purges.aclose()


async def test_the_oldest_purges_give_way_to_a_floor(clock: TurnedClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(purge_log, "MAX_RECORDS", 3)
    purges = LocalPurges(clock)
    for number in range(10):
        clock.turn(1)
        await purges.purge([f"t:{number}"])
    assert len(purges.epochs.records) <= 4
    assert purges.epochs.floor > (0, 0)


async def test_what_is_kept_is_bounded_in_bytes(clock: TurnedClock) -> None:
    purges = LocalPurges(clock)
    for number in range(40):
        clock.turn(1)
        await purges.purge([f"t:{number}-{each}-{'x' * 200}" for each in range(MAX_BYTES // 200 // 20)])
    assert purges.epochs.floor > (0, 0)
