"""The advisor's predictions against what really happens, as a table and a picture.

python -m benchmarks.advice            the table, and docs/tuning.svg
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.advice_model import Arrival, Turned, bursty, key_hash, poisson, really_run, replayed
from benchmarks.charts import Series, line_chart
from gateway.advisor.advice import Changes
from gateway.advisor.traffic import Advisor, Traffic
from gateway.advisor.ttl_ladder import Rung

PICTURE = Path("docs/tuning.svg")
TTLS = (1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0)
CHANGE_EVERY = 300.0
WATCHED_TTL = 20.0


def traffic() -> dict[str, list[Arrival]]:
    return {
        "Poisson": poisson(11, keys=300, rate=12.0, seconds=1800.0),
        "bursty": bursty(12, keys=120, rate=14.0, seconds=1800.0),
    }


async def rows(arrivals: list[Arrival]) -> Iterator[tuple[Rung, float, float]]:
    """For each TTL: what was predicted from traffic watched under another TTL, the real hit ratio, the real share of
    outdated answers."""
    changes = Changes()
    await really_run(arrivals, WATCHED_TTL, change_rate=1 / CHANGE_EVERY, changes=changes)
    predicted = {rung.ttl: rung for rung in replayed(arrivals).rungs(changes.rate().rate)}
    real = [await really_run(arrivals, ttl, change_rate=1 / CHANGE_EVERY) for ttl in TTLS]
    return iter([(predicted[ttl], hits, outdated) for ttl, (hits, outdated, _) in zip(TTLS, real, strict=True)])


def cost() -> None:
    """What a request pays for being counted, and what a second of a busy site costs whoever replays it."""
    traffic, keys = Traffic(Turned()), [key_hash(number) for number in range(1000)]
    recorder, calls = traffic.recorders["items"], 1_000_000
    now, began = 0.0, time.perf_counter()
    for number in range(calls):
        now += 0.00002
        recorder.seen(keys[number % 1000], now)
    each = (time.perf_counter() - began) / calls
    advisor, batch = Advisor(), traffic.take()
    began = time.perf_counter()
    advisor.add([batch], now)
    replay = (time.perf_counter() - began) / now
    print(f"{each * 1e9:.0f} ns a request; {replay * 1e3:.1f} ms a second to replay 50,000 requests/s for 1,000 keys")


async def compare() -> list[Series]:
    """Prints the table; gives the lines of the picture."""
    series = []
    print("| traffic | TTL | hit ratio, predicted | real | outdated, predicted | real |")
    print("|---|---|---|---|---|---|")
    for number, (name, arrivals) in enumerate(traffic().items()):
        found = list(await rows(arrivals))
        for rung, hits, outdated in found:
            shown = f"{rung.hit_ratio:.1%} | {hits:.1%} | {rung.outdated:.1%} | {outdated:.1%}"
            print(f"| {name} | {rung.ttl:g} s | {shown} |")
        for what, predicted, real in (
            ("hits", [(r.ttl, r.hit_ratio * 100) for r, _, _ in found], [(r.ttl, h * 100) for r, h, _ in found]),
            ("outdated", [(r.ttl, r.outdated * 100) for r, _, _ in found], [(r.ttl, o * 100) for r, _, o in found]),
        ):
            colour = number * 2 + (what == "outdated")
            series.append(Series(f"{name}: {what}", predicted, colour=colour))
            series.append(Series("  really", real, marks=True, colour=colour))
    return series


def main() -> None:
    series = asyncio.run(compare())
    ticks = [(ttl, f"{ttl:g} s" if ttl < 60 else f"{ttl / 60:g} min") for ttl in TTLS]
    title = "Hit ratio and outdated responses by TTL: predicted and measured"
    PICTURE.write_text(line_chart(title, series, x_label="TTL", y_label="% of answers", log_x=True, x_ticks=ticks))
    print(f"\nThe picture: {PICTURE}\n")
    cost()


if __name__ == "__main__":
    main()
