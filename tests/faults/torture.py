"""`make torture`: the rows of docs/reliability.md at full length, each as promise, figure demanded, figure seen.

    python -m tests.faults.torture [part …]      parts: identity cancellation upstream redis overload peers soak

`peers` measures nginx and Varnish beside the gateway, where they are installed; their rows are never unmet. `SOAK=1h`
sets the length of the soak, which is left out otherwise. Ends with 1 where a row is not met.
"""

from __future__ import annotations

import asyncio
import operator
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from gateway.config import UpstreamConfig, parse_duration
from gateway.errors import UpstreamError
from gateway.upstreams import Upstream

from ..integration.processes import GatewayProcess, Valkey
from ..raw import Connection, raw_upstream
from ..test_door import REFUSED
from ..test_upstream_guards import FORMS
from ..test_upstreams import MALFORMED
from . import outside, scenarios, soaking
from .peers import Server, installed
from .troubles import TROUBLES


class Row(NamedTuple):
    promise: str
    demanded: str
    seen: str
    met: bool | None
    """None of a peer."""


Rows = AsyncIterator[Row]


async def identity(redis_url: str, directory: Path) -> Rows:
    users = await scenarios.many_users(redis_url, requests=10_000, users=1000)
    yield Row(
        "never one user's data to another (10,000 requests of 1,000 users, 30 % cancelled, Redis late and sliced)",
        "0 wrong, 0 failed",
        f"{len(users.wrong)} wrong, {len(users.failed)} failed of {users.answered}; {users.cancelled} cancelled",
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


async def overload(redis_url: str, directory: Path) -> Rows:
    yield await _overload("none", directory)
    yield await _overload(redis_url, directory)


async def _overload(redis_url: str, directory: Path) -> Row:
    async with scenarios.bounded_upstream() as raw:
        settings = {
            "access_log": False,
            "redis_url": redis_url,
            "upstreams": {"api": {"url": raw.url, **scenarios.OVERLOADED}},
            "routes": {"item": {"path": "/item/{id}", "upstream": "api", "ttl": "5m"}},
        }
        gateway = await asyncio.to_thread(GatewayProcess, directory, settings)
        try:
            seen = await scenarios.overload(gateway.url, seconds=float(os.environ.get("OVERLOAD", "60")))
        finally:
            await asyncio.to_thread(gateway.end)
    share = seen.goodput / seen.peak
    return Row(
        f"overload (twice capacity, open loop{'' if redis_url == 'none' else ', with Redis'})",
        "503 in < 50 ms, goodput ≥ 80 % of peak, recovered in 5 s, hits served",
        f"503 p99 {seen.shed_p99 * 1000:.1f} ms ({seen.shed} of them), goodput {share:.0%}, recovered in "
        f"{seen.recovered:.1f} s, {seen.hits_served} of {seen.hits} hits, else {dict(seen.other)}",
        seen.shed_p99 < 0.05 and share >= 0.8 and seen.recovered < 5 and seen.hits == seen.hits_served,
    )


async def peers(redis_url: str, directory: Path) -> Rows:
    origin = outside.Origin()
    async with raw_upstream(origin.script) as raw:
        for start in installed():
            place = directory / start.__name__
            (place / "cache").mkdir(parents=True)
            async with start(place, raw.url, redis_url) as server:
                async for row in _measured(server, origin):
                    yield row if server.name == "gateway" else row._replace(met=None)


async def _measured(server: Server, origin: outside.Origin) -> Rows:
    name, count = server.name, len(REFUSED)
    once = await outside.asked_by_a_crowd(server, origin, count=200)
    yield Row(f"{name}: one upstream request a key (200 at once; cold, expired)", "1 and 1", str(once), once == (1, 1))
    well, asked = await outside.answered_while_failing(server, origin, count=20)
    yield Row(f"{name}: stale while the upstream says 503 (7 s)", "20 of 20", f"{well}, {asked} probes", well == 20)
    refused = await outside.refused(server, [data for data, _, _ in REFUSED.values()])
    yield Row(f"{name}: ambiguous or oversized requests refused", f"{count}", f"{refused}", refused == count)
    kinds = len(MALFORMED)
    failed, right = await outside.malformed(server, origin, MALFORMED.values())
    seen = f"{failed} × 5xx or cut, {right} right next"
    yield Row(f"{name}: malformed upstream answers", f"{kinds} × 502, {kinds} right", seen, failed == right == kinds)
    closed, last = await outside.slow_clients(server, count=500, patience=15)
    seen = f"{closed} closed, the last after {last:.1f} s"
    yield Row(
        f"{name}: 500 silent and 500 dripping clients", "1,000 closed in 10 s", seen, closed == 1000 and last < 10
    )
    for what, act in (("reloaded", server.reload), ("workers replaced", server.replace)):
        if act is not None:
            made, wrong = await outside.failed_while(server, 20, 5, act)
            yield Row(
                f"{name}: {what} thrice under 200 requests a second", "0 failed", f"{wrong} of {made}", wrong == 0
            )
    if server.kill is not None:
        made, wrong = await outside.failed_while(server, 60, 5, server.kill)
        promise = f"{name}: a worker killed by -9 every 5 s for 60 s, 200 requests a second"
        yield Row(promise, "99.9 % answered", f"{1 - wrong / made:.3%} of {made}", wrong <= made / 1000)


async def soak(redis_url: str, directory: Path) -> Rows:
    if "SOAK" not in os.environ:
        return
    seconds = parse_duration(os.environ["SOAK"]).total_seconds()
    every = min(300.0, seconds / 12)
    seen = await soaking.soak(directory, seconds=seconds, every=every)
    flat, told = True, []
    for name in ("memory", "descriptors", "threads", "connections"):
        before, after = seen.grown(operator.attrgetter(name))
        flat = flat and after <= before * 1.1 + 5
        told.append(f"{name} {before:.0f} to {after:.0f}")
    peace, over_all = seen.share(peace=True), seen.share(peace=False)
    yield Row(
        f"soak ({os.environ['SOAK']}, 2 gateways of 2 workers, a fault every {every:.0f} s: {', '.join(seen.asked)})",
        "99.99 % outside of faults, 99.9 % over all; memory (KiB), descriptors, threads, connections within 10 %",
        f"{peace:.4%}, {over_all:.4%} of {seen.asked.total()}; {', '.join(told)}; failed: {dict(seen.kinds)}",
        peace >= 0.9999 and over_all >= 0.999 and flat,
    )


PARTS: dict[str, Callable[[str, Path], Rows]] = {
    each.__name__: each for each in (identity, cancellation, upstream, redis, overload, peers, soak)
}


async def torture(names: list[str]) -> bool:
    console, table = Console(width=200), Table("promise", "demanded", "seen", "met", title="torture")
    met = True
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        valkey = Valkey(directory, unix=False)
        stack.callback(valkey.end)
        await asyncio.to_thread(valkey.start)
        for name in names:
            began = time.monotonic()
            async for row in PARTS[name](valkey.url, directory):
                table.add_row(row.promise, row.demanded, row.seen, {True: "yes", False: "NO", None: ""}[row.met])
                met = met and row.met is not False
            console.print(f"{name}: {time.monotonic() - began:.1f} s")
    console.print(table)
    return met


def main() -> None:
    names = sys.argv[1:] or list(PARTS)
    unknown = set(names) - set(PARTS)
    if unknown:
        sys.exit(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    work: Awaitable[bool] = torture(names)
    sys.exit(0 if asyncio.run(work) else 1)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
