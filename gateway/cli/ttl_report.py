"""`gateway ttl advise`: the advice of a running gateway, or of an access log, as a table for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import groupby
from pathlib import Path

import msgspec

from gateway.advisor.advice import Advice, Changes, recommend
from gateway.advisor.traffic import Advisor, RouteBatch
from gateway.advisor.ttl_ladder import Rung, Sighting
from gateway.cli.tables import Table, table_of
from gateway.errors import GatewayError

CACHEABLE = frozenset(("hit", "stale", "stale_error", "revalidated", "miss"))


class LogError(GatewayError):
    """An access log is unusable; the message says which line, or what is missing."""


class TargetError(GatewayError):
    """A target of the advice is invalid; the message says how to write it."""


def parse_share(text: str) -> float:
    """`1%` or `0.01` as a share between 0 and 1. Raises TargetError."""
    percent = text.strip().endswith("%")
    try:
        share = float(text.strip().removesuffix("%")) / (100 if percent else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise TargetError(f"--max-outdated {text}: write a share such as 1% or 0.01")
    return share


def parse_rate(text: str, option: str) -> float:
    """`50/s`, `50` or `300/m` as requests a second, more than none. Raises TargetError, which names the option."""
    number, slash, unit = text.strip().partition("/")
    seconds = {"s": 1.0, "m": 60.0, "h": 3600.0}.get(unit) if slash else 1.0
    try:
        rate = float(number) / seconds if seconds else -1.0
    except ValueError:
        rate = -1.0
    if not 0 < rate < float("inf"):
        raise TargetError(f"{option} {text}: write requests a second such as 50/s, or 300/m, 1000/h")
    return rate


class LogLine(msgspec.Struct, gc=False):
    """The fields of an access log line that the advice uses."""

    time: datetime
    outcome: str
    route: str = ""
    key: str = ""
    changed: bool | None = None
    stored: bool = False
    forward_status: int | None = None
    share: float = 1.0

    @property
    def counts(self) -> bool:
        return bool(self.key) and self.outcome in CACHEABLE


def advice_of_log(path: Path, today: dict[str, float | None]) -> list[Advice]:
    """The advice that an access log (JSON lines) comes to. Raises LogError."""
    advisor = Advisor()
    fetched: dict[str, float] = {}
    lines = (line for line in _read(path) if line.counts)
    seen = False
    for second, group in groupby(lines, key=lambda line: int(line.time.timestamp())):
        seen = True
        batch: dict[str, RouteBatch] = {}
        for line in group:
            _refuse_a_sample(line, path)
            route = batch.setdefault(line.route, RouteBatch(1.0, 0, [], Changes()))
            at = line.time.timestamp()
            route.requests += 1
            route.sightings.append(Sighting(int(line.key, 16), at, at, 1))
            if line.changed is not None and line.key in fetched:
                route.changes.add(at - fetched[line.key], changed=line.changed)
            if line.forward_status is not None:
                fetched[line.key] = at
        advisor.add([batch], float(second))
    if not seen:
        raise LogError(f"{path} has no line with a cache key; expected the gateway's access log (`access_log: true`)")
    return advisor.advice(today)


def _refuse_a_sample(line: LogLine, path: Path) -> None:
    if line.share < 1:
        raise LogError(
            f"{path} has only {line.share:.3g} of the hits (setting `log_hits`): advice requires all of them; "
            "use the running gateway (`gateway ttl advise`), or log with `log_hits: 1`"
        )


def _read(path: Path) -> Iterator[LogLine]:
    decoder = msgspec.json.Decoder(LogLine)
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        yield decoder.decode(line)
                    except msgspec.DecodeError as error:
                        if line.startswith(b"{") and not line.endswith(b"\n"):
                            return  # the log is being written, and this line has no end yet
                        raise LogError(f"{path} line {number} isn't a line of the access log: {error}") from None
    except OSError as error:
        raise LogError(f"{path} can't be read: {error.strerror}") from None


def report(
    advice: Sequence[Advice], *, max_outdated: float | None = None, max_upstream: float | None = None
) -> Iterator[str]:
    """For each route its current TTL, the recommendation for the targets, and the reason: lines of some 80 columns."""
    width = max([len("route"), *(len(each.route) for each in advice)])
    yield _columns("route", "", "ttl", "hit ratio", "upstream", "outdated", width=width)
    for each in advice:
        found = recommend(each, max_outdated=max_outdated, max_upstream=max_upstream)
        yield _columns(each.route, "today", *_today(each), width=width)
        if found.ttl is not None:
            yield _columns("", "advised", *_figures(each, found.ttl), width=width)
        yield f"  {found.why}"
        yield from (f"  {line}" for line in _seen(each))


def _columns(route: str, which: str, ttl: str, hits: str, upstream: str, outdated: str, *, width: int) -> str:
    return f"{route:<{width}}  {which:<7}  {ttl:<6}  {hits:<10}  {upstream:<9}  {outdated}".rstrip()


def _today(advice: Advice) -> tuple[str, str, str, str]:
    if advice.today is None:
        return "origin", "-", "-", "-"
    if not advice.tells:
        return duration(advice.today), "-", "-", "-"
    return _figures(advice, advice.today)


def _figures(advice: Advice, ttl: float) -> tuple[str, str, str, str]:
    rung = advice.at(ttl)
    hits = f"{rung.hit_ratio:.1%}{_give_or_take(rung.hit_ratio_error * 100)}"
    return duration(ttl), hits, f"{rung.upstream:.3g}/s", _outdated(advice, rung)


def _outdated(advice: Advice, rung: Rung) -> str:
    return f"{rung.outdated:.2%}" if advice.has_change_rate else "?"


def _give_or_take(points: float) -> str:
    return f" ±{1.96 * points:.1f}" if points >= 0.05 else ""


def _seen(advice: Advice) -> Iterator[str]:
    """The data behind the recommendation, and its confidence."""
    changes = advice.changes
    sample = "all keys" if advice.sampled >= 1 else f"{advice.keys} keys ({advice.sampled:.2%})"
    yield f"{advice.requests} request{'s' if advice.requests != 1 else ''} in {duration(advice.seconds)}, {sample}"
    if advice.has_change_rate:
        every = f"changes every {duration(1 / changes.rate)}" if changes.rate else "no change"
        low = duration(1 / changes.high) if changes.high else "0s"
        high = duration(1 / changes.low) if changes.low else "never"
        fetches = f"{changes.fetches} fetch{'es' if changes.fetches != 1 else ''}"
        yield f"{every} ({low} to {high}) by {fetches} compared with those before"


def duration(seconds: float) -> str:
    """Seconds in the largest unit of which there are two or more, in three figures."""
    if seconds >= 365 * 86_400:
        return "a year or more"
    for unit, size in (("d", 86_400.0), ("h", 3600.0), ("m", 60.0)):
        if seconds >= 2 * size or seconds == size:
            return f"{seconds / size:.3g}{unit}"
    return f"{seconds:.3g}s"


def ladder_table(advice: Advice) -> Table:
    """Every TTL of the ladder for one route."""
    shown = table_of("ttl", "hit ratio", "upstream", "outdated", "")
    for rung in advice.rungs:
        note = "" if rung.seen else "not enough traffic yet"
        shown.add_row(
            duration(rung.ttl),
            f"{rung.hit_ratio:.1%}{_give_or_take(rung.hit_ratio_error * 100)}",
            f"{rung.upstream:.3g}/s",
            _outdated(advice, rung),
            note,
        )
    return shown
