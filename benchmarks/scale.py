"""How a fleet scales: hit ratio, upstream load and Redis commands, from 1 replica to 1,000 and to ten million keys.

    python benchmarks/scale.py [--svg docs/scale.svg] [--requests 600000]

A simulation by discrete events; nothing is sent. Requests come by a Poisson process, in all the same number a second
however many replicas share them, each at a replica drawn at random, for a key drawn by a power law. A replica has a
memory of so many entries (least recently used go first) and joins its own requests for a key that it is fetching. With
the second tier it looks there before it fetches, and writes what it fetched; with the lease one fetch a key goes on in
the whole fleet, and the others look for its end at the growing gaps of `gateway/cache/leases.py`.

Commands to Redis are counted as the gateway sends them: a look-up is one round trip, a store one SET, a lease one
EVAL to take and one to give back, and between them a second look; who waits makes two round trips at each look. That is
more than the gateway needs now: the second look is left out but where another stored just now, and who waits makes one.
"""

from __future__ import annotations

import argparse
import random
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

RATE = 10_000.0
"""Requests a second, in all."""
TTL = 30.0
JITTER = 0.1
FETCH = 0.1
"""Seconds that the upstream takes."""
MEMORY_ENTRIES = 60_000
"""256 MiB of answers of 4 KiB."""
POWER = 0.9
"""The popularity of the n-th key is n to the power of -0.9, as measured of web traffic (Breslau 1999: 0.64 to 0.83; of
APIs it is steeper)."""
FIRST_PAUSE, GROWTH, LONGEST_PAUSE = 0.002, 1.6, 0.1

REPLICAS = (1, 3, 10, 30, 100, 300, 1000)
KEYS = (10_000, 100_000, 1_000_000, 10_000_000)
SHOWN_KEYS, SHOWN_REPLICAS = 1_000_000, 100


@dataclass(frozen=True)
class Mode:
    name: str
    colour: str
    shared: bool = False
    lease: bool = False


MODES = (
    Mode("memory alone", "#b5482a"),
    Mode("with Redis", "#c79a1b", shared=True),
    Mode("with Redis and lease", "#1f6f8b", shared=True, lease=True),
)


@dataclass
class Count:
    seconds: float = 0.0
    requests: int = 0
    hits: int = 0
    upstream: int = 0
    redis: int = 0

    @property
    def hit_ratio(self) -> float:
        return self.hits / self.requests

    @property
    def upstream_rate(self) -> float:
        return self.upstream / self.seconds

    @property
    def redis_rate(self) -> float:
        return self.redis / self.seconds


@dataclass
class Replica:
    entries: OrderedDict[int, float] = field(default_factory=OrderedDict)
    """When each entry ends, the one used last at the end."""
    flights: dict[int, tuple[float, float]] = field(default_factory=dict)
    """When each fetch under way, or waited for, brings its entry, and when that ends."""

    def fresh(self, key: int, now: float) -> bool:
        ends = self.entries.get(key, 0.0)
        if ends > now:
            self.entries.move_to_end(key)
            return True
        return False

    def keep(self, key: int, ends: float) -> None:
        self.entries[key] = ends
        self.entries.move_to_end(key)
        if len(self.entries) > MEMORY_ENTRIES:
            self.entries.popitem(last=False)

    def landed(self, key: int, now: float) -> bool:
        """Take what a flight has brought; whether one is still under way."""
        flight = self.flights.get(key)
        if flight is None:
            return False
        if flight[0] > now:
            return True
        del self.flights[key]
        self.keep(key, flight[1])
        return False


class Fleet:
    """One run. `warm` seconds go by before anything is counted."""

    def __init__(self, mode: Mode, replicas: int, keys: int, *, seed: int = 1, warm: float = TTL) -> None:
        self._mode = mode
        self._replicas = [Replica() for _ in range(replicas)]
        self._chance = random.Random(seed)
        self._draw = power_law(keys, POWER, self._chance)
        self._shared: dict[int, float] = {}
        self._leases: dict[int, tuple[float, float]] = {}
        self._warm = warm
        self._count = Count()

    def run(self, requests: int) -> Count:
        now = 0.0
        for _ in range(requests):
            now += self._chance.expovariate(RATE)
            if now > self._warm and not self._count.seconds:
                self._count = Count(seconds=1e-9)
            self._request(now, self._chance.choice(self._replicas), self._draw())
        self._count.seconds = now - self._warm
        return self._count

    def _request(self, now: float, replica: Replica, key: int) -> None:
        count = self._count
        count.requests += 1
        under_way = replica.landed(key, now)
        if replica.fresh(key, now):
            count.hits += 1
        elif not under_way:
            self._miss(now, replica, key)

    def _miss(self, now: float, replica: Replica, key: int) -> None:
        if self._mode.shared:
            self._count.redis += 1
            self._store_landed(now, key)
            ends = self._shared.get(key, 0.0)
            if ends > now:
                self._count.hits += 1
                replica.keep(key, ends)
                return
        replica.flights[key] = self._wait_for_other(now, key) or self._fetch(now, key)

    def _store_landed(self, now: float, key: int) -> None:
        flight = self._leases.get(key)
        if flight is not None and flight[0] <= now:
            self._shared[key] = flight[1]
            del self._leases[key]

    def _wait_for_other(self, now: float, key: int) -> tuple[float, float] | None:
        if not self._mode.lease:
            return None
        self._count.redis += 1  # taking the lease, or learning that another has it
        flight = self._leases.get(key)
        if flight is None:
            return None
        seen = next(moment for moment in looks(now) if self._count_look() and moment >= flight[0])
        return seen, flight[1]

    def _count_look(self) -> bool:
        self._count.redis += 2
        return True

    def _fetch(self, now: float, key: int) -> tuple[float, float]:
        self._count.upstream += 1
        flight = now + FETCH, now + FETCH + TTL * (1 - JITTER * self._chance.random())
        if self._mode.shared:
            self._count.redis += 3 if self._mode.lease else 1  # the second look, the store, the giving back
            self._leases[key] = flight
        return flight


def looks(now: float) -> Iterator[float]:
    pause = FIRST_PAUSE
    while True:
        now += pause
        yield now
        pause = min(pause * GROWTH, LONGEST_PAUSE)


def power_law(keys: int, power: float, chance: random.Random) -> Callable[[], int]:
    """Draws keys from 1 on, each with a probability as its number to the power of `-power` (by inversion)."""
    exponent = 1.0 - power
    low, high = 0.5**exponent, (keys + 0.5) ** exponent

    def draw() -> int:
        drawn: float = (low + (high - low) * chance.random()) ** (1.0 / exponent)
        return round(drawn)

    return draw


# --- the picture -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    mode: Mode
    replicas: int
    keys: int
    count: Count


WIDTH, HEIGHT, LEFT, TOP, GAP = 300, 200, 66, 64, 96


@dataclass(frozen=True)
class Panel:
    title: str
    places: Sequence[int]
    highest: float
    lines: Sequence[tuple[Mode, Sequence[float]]]
    ratio: bool = False

    def draw(self, left: float, top: float) -> Iterator[str]:
        yield f'<text x="{left}" y="{top - 12}" class="t">{self.title}</text>'
        for step in range(5):
            y = top + HEIGHT - HEIGHT * step / 4
            yield f'<line x1="{left}" y1="{y}" x2="{left + WIDTH}" y2="{y}" class="g"/>'
            yield f'<text x="{left - 6}" y="{y + 4}" class="n" text-anchor="end">{self._label(step / 4)}</text>'
        for number, place in enumerate(self.places):
            x = self._x(left, number)
            yield f'<text x="{x}" y="{top + HEIGHT + 18}" class="n" text-anchor="middle">{short(place)}</text>'
        for mode, figures in self.lines:
            points = [(self._x(left, n), top + HEIGHT * (1 - each / self.highest)) for n, each in enumerate(figures)]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            yield f'<polyline points="{path}" stroke="{mode.colour}" class="l"/>'
            yield from (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{mode.colour}"/>' for x, y in points)

    def _x(self, left: float, number: int) -> float:
        return left + WIDTH * number / (len(self.places) - 1)

    def _label(self, share: float) -> str:
        return f"{share * self.highest * 100:.0f} %" if self.ratio else short(round(share * self.highest))


def short(number: int) -> str:
    for size, unit in ((1_000_000, "M"), (1000, "k")):
        if number >= size:
            return f"{number / size:g}{unit}"
    return str(number)


def panels(rows: Sequence[Row], places: Sequence[int], of: Callable[[Row], int], what: str) -> Iterator[Panel]:
    figures: tuple[tuple[str, Callable[[Count], float], bool], ...] = (
        ("hit ratio", lambda count: count.hit_ratio, True),
        ("upstream requests a second", lambda count: count.upstream_rate, False),
        ("Redis commands a second", lambda count: count.redis_rate, False),
    )
    for title, figure, ratio in figures:
        lines = [
            (mode, [figure(row.count) for place in places for row in rows if row.mode is mode and of(row) == place])
            for mode in MODES
        ]
        top = max(each for _, line in lines for each in line)
        yield Panel(f"{title}, by {what}", places, 1.0 if ratio else round_up(top), lines, ratio)


def round_up(number: float) -> float:
    size = 10.0 ** (len(str(int(number))) - 1)
    return next(step * size for step in (1, 2, 4, 6, 8, 10) if step * size >= number)


def picture(rows: Sequence[Row]) -> str:
    grid = [
        list(panels([r for r in rows if r.keys == SHOWN_KEYS], REPLICAS, lambda row: row.replicas, "replicas")),
        list(panels([r for r in rows if r.replicas == SHOWN_REPLICAS], KEYS, lambda row: row.keys, "keys")),
    ]
    width, height = LEFT + 3 * (WIDTH + GAP), TOP + 2 * (HEIGHT + GAP)
    body = [line for y, row in enumerate(grid) for x, panel in enumerate(row)
            for line in panel.draw(LEFT + x * (WIDTH + GAP), TOP + y * (HEIGHT + GAP))]  # fmt: skip
    for number, mode in enumerate(MODES):
        x = LEFT + number * 220
        body.append(f'<line x1="{x}" y1="20" x2="{x + 24}" y2="20" stroke="{mode.colour}" class="l"/>')
        body.append(f'<text x="{x + 32}" y="24" class="t">{mode.name}</text>')
    style = (
        ".t{font:13px sans-serif;fill:#222}.n{font:11px sans-serif;fill:#555}"
        ".g{stroke:#ddd}.l{fill:none;stroke-width:2.5}"
    )
    return "\n".join(
        [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
         "<title>Hit ratio, upstream load and Redis commands, by replicas and by keys</title>",
         f'<style>{style}</style><rect width="100%" height="100%" fill="#fff"/>', *body, "</svg>", ""]
    )  # fmt: skip


def table(rows: Sequence[Row]) -> Iterator[str]:
    yield "| replicas | keys | tiers | hit ratio | upstream a second | Redis commands a second |"
    yield "|---|---|---|---|---|---|"
    for row in rows:
        count = row.count
        redis = f"{count.redis_rate:,.0f}" if row.mode.shared else "-"
        figures = f"{count.hit_ratio:.1%} | {count.upstream_rate:,.0f} | {redis}"
        yield f"| {row.replicas:,} | {row.keys:,} | {row.mode.name} | {figures} |"


def simulate(requests: int) -> list[Row]:
    places = [(replicas, SHOWN_KEYS) for replicas in REPLICAS]
    places += [(SHOWN_REPLICAS, keys) for keys in KEYS if keys != SHOWN_KEYS]
    return [
        Row(mode, replicas, keys, Fleet(mode, replicas, keys).run(requests))
        for replicas, keys in places
        for mode in MODES
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--svg", type=Path, help="where to write the picture")
    parser.add_argument("--requests", type=int, default=900_000, help="requests in each of the 30 runs")
    options = parser.parse_args()
    rows = simulate(options.requests)
    print("\n".join(table(rows)))
    if options.svg:
        options.svg.write_text(picture(rows))


if __name__ == "__main__":
    main()
