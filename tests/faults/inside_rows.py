"""Rows whose gateway is in this process, so that its pools and counters can be looked at; its door is the real one."""

from __future__ import annotations

from pathlib import Path

from gateway.config.upstream import UpstreamConfig
from gateway.errors import UpstreamError
from gateway.upstreams.client import Upstream
from tests.faults import scenarios
from tests.faults.rows import Row, Rows
from tests.faults.troubles import TROUBLES
from tests.support.raw import MALFORMED, Connection, raw_upstream
from tests.support.target_forms import FORMS


async def identity(redis_url: str, directory: Path) -> Rows:
    users = await scenarios.many_users(redis_url, requests=10_000, users=1000)
    yield Row(
        "never one user's data to another (10,000 requests of 1,000 users, 30 % cancelled, Redis late and sliced)",
        "0 wrong, 0 failed",
        f"{len(users.wrong)} wrong, {len(users.failed)} failed of {users.answered}; {users.cancelled} cancelled, "
        f"the slowest answer after {users.slowest:.2f} s",
        not users.wrong and not users.failed,
    )


async def cancellation(redis_url: str, directory: Path) -> Rows:
    seen = await scenarios.cancellations(redis_url, requests=10_000)
    yield Row(
        "cancellation (10,000 requests, a slow upstream, a late Redis)",
        "0 held, 100 of 100 right after",
        f"{seen.held} held, {seen.right_after} of 100, {seen.cancelled} cancelled",
        seen.held == 0 and seen.right_after == 100,
    )


async def upstream(redis_url: str, directory: Path) -> Rows:
    once = await scenarios.stampede(redis_url, clients=200)
    yield Row(
        "one upstream request a key (200 at once, two gateways; cold, expired)", "1 and 1", str(once), once == (1, 1)
    )
    for failure in scenarios.FAILURES:
        answered, asked = await scenarios.stale_while_failing(failure, seconds=60)
        met = answered == 60 and asked <= 13
        yield Row(
            f"stale when the upstream fails ({failure}, 60 s)", "60 of 60, ≤ 13 probes", f"{answered}, {asked}", met
        )
    refused, stored, right = await scenarios.malformed(MALFORMED.values())
    count = len(MALFORMED)
    yield Row(
        f"malformed upstream answers ({count} kinds)",
        f"{count} × 502, 0 stored, {count} right next",
        f"{refused} × 502, {stored} stored, {right} right next",
        (refused, stored, right) == (count, 0, count),
    )
    made, asked = await scenarios.retries(requests=2000)
    yield Row(
        "retries bounded (upstream always 503)", "≤ 1.1 × the clients'", f"{asked / made:.3f} ×", asked <= 1.1 * made
    )
    stayed = [await _stays(form) for form in FORMS]
    yield Row(
        "stays on the configured upstream",
        f"{len(FORMS)} of {len(FORMS)}",
        f"{sum(stayed)} of {len(FORMS)}",
        all(stayed),
    )


async def _stays(target: str) -> bool:
    heads: list[bytes] = []

    async def script(connection: Connection) -> None:
        heads.append(await connection.request())
        await connection.send(scenarios.OK)

    async with raw_upstream(script) as raw:
        base = Upstream("base", UpstreamConfig.model_validate({"url": raw.url + "/prefix"}))
        try:
            fetched = await base.fetch("GET", target, [])
            await fetched.body.aclose()
        except UpstreamError:
            return heads == []
        finally:
            await base.aclose()
        host = raw.url.removeprefix("http://").encode()
        return heads[0].startswith(b"GET /prefix/") and scenarios.field_of(heads[0], b"host") == host


async def redis(redis_url: str, directory: Path) -> Rows:
    for trouble in TROUBLES:
        seen = await scenarios.redis_trouble(redis_url, trouble, requests=400)
        yield Row(
            f"Redis {trouble.__name__.replace('_', ' ')} (400 requests)",
            "0 failed, hits within 1 s",
            f"{len(seen.failed)} failed, slowest {seen.slowest * 1000:.0f} ms, hits after {seen.back_after:.2f} s",
            not seen.failed and seen.back_after <= 1.0,
        )
