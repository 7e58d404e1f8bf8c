"""What clients can make a gateway remember, at a length that CI can bear (`remembered` measures all kinds in full)."""

from __future__ import annotations

from pathlib import Path

from tests.faults.bounds import KIB, MIB
from tests.faults.remembered import KINDS, grown


async def test_unsafe_requests_leave_digests_in_the_worker_and_in_redis(tmp_path: Path) -> None:
    seen = await grown(tmp_path, KINDS["POSTs to targets of 8 KiB"], 2000)
    assert seen.statuses == {"200": 2000}
    assert seen.metrics["gateway_purge_records"] == 2000
    assert seen.metrics["gateway_purge_bytes"] < 2000 * KIB
    assert seen.valkey < 2 * MIB  # 16 MiB of targets
