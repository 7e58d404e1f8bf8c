"""What `Cache-Status` (RFC 9211) says of an answer, and the tally of a run by it."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

KINDS = ("hit", "stale", "collapsed", "miss", "bypass", "untold")


def kind(field_value: str | None) -> str:
    """One of `KINDS`, by the cache nearest to the client (the last member, RFC 9211 §2): `stale` is an old answer given
    at once, `collapsed` one that another request's fetch brought, `untold` an answer without the field."""
    if not field_value:
        return "untold"
    parameters = [part.strip() for part in field_value.rpartition(",")[2].split(";")[1:]]
    if "collapsed" in parameters:
        return "collapsed"
    if "hit" in parameters:
        return "stale" if any(part.startswith("ttl=-") for part in parameters) else "hit"
    return "bypass" if {"fwd=bypass", "fwd=method", "fwd=request"} & set(parameters) else "miss"


@dataclass(slots=True)
class Tally:
    """Counts and latencies (milliseconds) by path and kind."""

    latencies: dict[str, dict[str, array[float]]] = field(default_factory=lambda: defaultdict(dict))
    errors: int = 0

    def add(self, path: str, kind: str, milliseconds: float) -> None:
        self.latencies[path].setdefault(kind, array("d")).append(milliseconds)

    def lines(self) -> Iterable[str]:
        """A table: hit ratio beside latency, a line a path, and all of them together."""
        yield f"{'path':40} {'requests':>9} {'hit ratio':>9} {'p50':>8} {'p99':>8}   p50 of hits / of the rest (ms)"
        for path in sorted(self.latencies):
            yield _line(path, self.latencies[path])
        yield _line("all", self._all())
        if self.errors:
            yield f"{self.errors} requests failed and are counted nowhere above"

    def _all(self) -> dict[str, array[float]]:
        found: dict[str, array[float]] = {}
        for kinds in self.latencies.values():
            for name, values in kinds.items():
                found.setdefault(name, array("d")).extend(values)
        return found


def _line(path: str, kinds: dict[str, array[float]]) -> str:
    served = [each for name in ("hit", "stale") for each in kinds.get(name, ())]
    rest = [each for name, values in kinds.items() if name not in ("hit", "stale") for each in values]
    both = [*served, *rest]
    ratio = f"{len(served) / len(both):.1%}" if both and set(kinds) != {"untold"} else "untold"
    split = f"{_part(served, 0.5):>8} / {_part(rest, 0.5)}"
    return f"{path:40} {len(both):>9} {ratio:>9} {_part(both, 0.5):>8} {_part(both, 0.99):>8}   {split}"


def _part(values: list[float], part: float) -> str:
    if not values:
        return "-"
    return f"{sorted(values)[min(len(values) - 1, int(len(values) * part))]:.2f}"
