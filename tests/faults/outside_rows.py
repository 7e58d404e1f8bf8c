"""Rows of the gateway as it is run, in processes of its own, and of its peers: what is seen of them from outside."""

from __future__ import annotations

import asyncio
import operator
import re
import sys
from pathlib import Path

from gateway.config.types import parse_duration
from tests.faults import bounds, ending, held, outside, overload, redis_load, soaking
from tests.faults.peers import Server, installed
from tests.faults.rows import Row, Rows
from tests.support.processes import ROOT, GatewayProcess, clean_environment
from tests.support.raw import MALFORMED, raw_upstream
from tests.support.raw_requests import REFUSED
from tests.support.scale import SIZES

# --- overload --------------------------------------------------------------------------------------------------


async def overload_alone(redis_url: str, directory: Path) -> Rows:
    yield await _overload("none", directory)


async def overload_with_redis(redis_url: str, directory: Path) -> Rows:
    yield await _overload(redis_url, directory)


async def _overload(redis_url: str, directory: Path) -> Row:
    async with overload.bounded_upstream() as raw:
        settings = {
            "access_log": False,
            "redis_url": redis_url,
            "upstreams": {"api": {"url": raw.url, **overload.OVERLOADED}},
            "routes": {"item": {"path": "/item/{id}", "upstream": "api", "ttl": "5m"}},
        }
        gateway = await asyncio.to_thread(GatewayProcess, directory, settings)
        try:
            seen = await overload.overload(gateway.url, seconds=60)
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


# --- Redis under load ------------------------------------------------------------------------------------------


async def redis_under_load(redis_url: str, directory: Path) -> Rows:
    seconds = 60.0
    for number, kind in enumerate(redis_load.KINDS):
        place = directory / str(number)
        place.mkdir()
        seen = await redis_load.noticed(place, kind, seconds=seconds)
        first, then = seen.first - seen.before, seen.then - seen.before
        met = first < 0.06 + seen.noise and then < 0.005 + seen.noise and not seen.failed and seen.back_after <= 1
        yield Row(
            f"Redis {kind}, {seconds:.0f} s under load",
            "0 failed, p99 +60 ms in the first second, then +5 ms (beyond the noise), used again within 1 s",
            f"{len(seen.failed)} of {seen.asked} failed {seen.failed[:2] or ''}; p99 {seen.before * 1000:.1f} ms "
            f"(noise {seen.noise * 1000:.1f}), {first * 1000:+.1f}, then {then * 1000:+.1f} ms; again after "
            f"{seen.back_after:.2f} s",
            met,
        )


# --- those who take their time, and how much they may take -----------------------------------------------------


async def memory(redis_url: str, directory: Path) -> Rows:
    for kind, bound in bounds.BOUNDS.items():
        seen = await bounds.tried(directory, bound.attempt)
        yield Row(
            f"memory: {kind}",
            f"{_told(bound.statuses)}; the peak grows by ≤ {bound.growth / bounds.MIB:.0f} MiB",
            f"{_told(seen.statuses)}; {seen.growth / bounds.MIB:.1f} MiB",
            dict(seen.statuses) == bound.statuses and seen.growth <= bound.growth,
        )


def _told(statuses: dict[str, int]) -> str:
    return ", ".join(f"{count:,} × {status}" for status, count in statuses.items())


async def slow(redis_url: str, directory: Path) -> Rows:
    closed, last, others = await held.slow_clients(directory, count=500, seconds=8)
    met = closed == 1000 and last <= 11 and others.met(share=0.2)
    yield Row(
        "500 silent and 500 dripping clients (`head_timeout: 10s`)",
        "1,000 closed within 10 s (and the second in which it is looked for); p99 of others ±20 % (beyond the noise)",
        f"{closed} closed, the last after {last:.1f} s; {others.told()}",
        met,
    )
    statuses, others = await held.hanging_upstream(directory, seconds=15)
    yield Row(
        "one upstream hangs, asked 200 times a second: the other's routes (no breaker)",
        "0 failed; p99 +5 ms at most (beyond the noise)",
        f"{others.told()}; of the one that hangs: {dict(statuses)}",
        others.met(seconds=0.005),
    )


async def deploys(redis_url: str, directory: Path) -> Rows:
    seen = await ending.terminated(directory, seconds=10)
    limit = ending.STOP_DELAY + ending.STOP_TIMEOUT
    no, gone = seen.said_no_after, seen.gone_after
    yield Row(
        "SIGTERM under 200 requests a second, 2 workers, a client that heeds /readyz",
        f"0 failed; /readyz says no within 1 s; gone within {limit:.0f} s, status 0",
        f"{seen.failed} of {seen.made} failed; no after {no:.2f} s; gone after {gone:.1f} s, status {seen.status}",
        seen.failed == 0 and no < 1 and gone < limit and seen.status == 0,
    )


# --- properties at length --------------------------------------------------------------------------------------


async def theorem(redis_url: str, directory: Path) -> Rows:
    yield await _tests(
        f"the theorem of the key ({SIZES['key_pairs'].full} pairs of requests for each configuration)",
        "tests/faults/test_key_theorem.py",
        "tests/faults/test_key_theorem_on_the_wire.py",
    )


async def openapi(redis_url: str, directory: Path) -> Rows:
    yield await _tests(
        f"Schemathesis at our own OpenAPI ({SIZES['openapi_requests'].full} requests of each operation, of each kind)",
        "tests/integration/test_openapi.py",
    )


async def _tests(promise: str, *files: str) -> Row:
    """Files of tests, at full scale."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pytest", "-q", "--scale", "full", "-p", "no:cacheprovider", *files),
        cwd=ROOT,
        env=clean_environment(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    lines = output.decode(errors="replace").strip().splitlines()
    failed = [line.strip() for line in lines if re.match("FAILED|ERROR|E  ", line)][:6]
    return Row(promise, "no test fails", "; ".join([*failed, lines[-1].strip("= ")]), process.returncode == 0)


# --- beside the peers ------------------------------------------------------------------------------------------


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
    refused, ended = await outside.refused(server, [data for data, _, _ in REFUSED.values()])
    yield Row(
        f"{name}: ambiguous or oversized requests refused, and the connection closed",
        f"{count}, {count}",
        f"{refused}, {ended}",
        refused == ended == count,
    )
    kinds = len(MALFORMED)
    failed, right = await outside.malformed(server, origin, MALFORMED.values())
    seen = f"{failed} × 5xx or cut, {right} right next"
    yield Row(f"{name}: malformed upstream answers", f"{kinds} × 502, {kinds} right", seen, failed == right == kinds)
    closed, last = await outside.slow_clients(server, count=500, patience=15)
    seen = f"{closed} closed, the last after {last:.1f} s"
    yield Row(
        f"{name}: 500 silent and 500 dripping clients", "1,000 closed in 10 s", seen, closed == 1000 and last <= 11
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


async def soak(redis_url: str, directory: Path, *, length: str) -> Rows:
    seconds = parse_duration(length).total_seconds()
    every = min(300.0, seconds / 12)
    seen = await soaking.soak(directory, seconds=seconds, every=every)
    flat, told = True, []
    for name in ("memory", "descriptors", "threads", "connections"):
        before, after = seen.grown(operator.attrgetter(name))
        flat = flat and after <= before * 1.1 + 5
        told.append(f"{name} {before:.0f} to {after:.0f}")
    peace, over_all = seen.share(peace=True), seen.share(peace=False)
    yield Row(
        f"soak ({length}, 2 gateways of 2 workers, a fault every {every:.0f} s: {', '.join(seen.asked)})",
        "99.99 % outside of faults, 99.9 % over all; memory (KiB), descriptors, threads, connections within 10 %",
        f"{peace:.4%}, {over_all:.4%} of {seen.asked.total()}; {', '.join(told)}; failed: {dict(seen.kinds)}",
        peace >= 0.9999 and over_all >= 0.999 and flat,
    )
