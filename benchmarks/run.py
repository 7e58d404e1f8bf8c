"""Measures rows: peers in turn, round by round, so that the machine's drift meets all of them alike."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from benchmarks.load import Figure, Pattern, ask, check, warm, wrk
from benchmarks.machine import BenchmarkError
from benchmarks.open_loop import Latencies
from benchmarks.peers import Lab, Peer
from benchmarks.rows import Bar, Row

_SATURATING_SECONDS = 1.0
_REPEATING_SECONDS = 4.0
_REPEATS = 2
_WARM_UPS = 6
_SAMPLE = 2000
_BESIDE = 100
"""Requests in a run that wrk does not count: those in flight at its end, and the checks before and after it."""
_EVICTED = 1 / 20_000
"""The share of a run of hits that may be misses. HAProxy looks entries up by 32 bits of their hash, by which one or two
of 100,000 keys evict another."""
SATURATED = 0.95
"""The share of its core from which on wrk counts as the limit."""


@dataclass(frozen=True, slots=True)
class Plan:
    """`seconds` a peer a round; the Zipf row over so many `keys`, and a filled gateway with so many `entries`."""

    rounds: int
    seconds: float
    keys: int = 100_000
    entries: int = 1_000_000


@dataclass(slots=True)
class Measured:
    """A row's figures by peer, one a round: requests a second; or microseconds, of the p99 or of processor time."""

    row: Row
    figures: dict[str, list[float]] = field(default_factory=dict)
    loads: dict[str, list[Figure]] = field(default_factory=dict)
    """The same with the shares of the cores; of rates."""
    latencies: dict[str, list[Latencies]] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)
    """Of a latency row: the arrival rate, requests a second."""
    left_out: dict[str, str] = field(default_factory=dict)

    def median(self, peer: str) -> float:
        return statistics.median(self.figures[peer])

    def ratio(self, bar: Bar) -> float | None:
        """Ours to that peer's, or its difference, round by round; the median. None where either has no figures."""
        ours, theirs = (self.figures.get(name, []) for name in (self.row.columns[0], bar.peer))
        if bar.difference:
            return (
                statistics.median(mine - other for mine, other in zip(ours, theirs, strict=False)) if theirs else None
            )
        return _median_ratio(ours, theirs)

    def cpu_ratio(self, bar: Bar) -> float | None:
        """The same of the requests for each second of the servers' processor time."""
        if self.row.cost:
            return None
        ours, theirs = (self.loads.get(name, []) for name in (self.row.columns[0], bar.peer))
        return _median_ratio([each.per_cpu_second for each in ours], [each.per_cpu_second for each in theirs])

    def limited(self, bar: Bar) -> bool:
        """Whether wrk had no more of its core to give: the rates then tell of wrk, not of the servers."""
        both = [each.load for name in (self.row.columns[0], bar.peer) for each in self.loads.get(name, [])]
        return bool(both) and max(both) > SATURATED and not self.row.cost


def _median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=False) if other]
    return statistics.median(ratios) if ratios else None


def measure(lab: Lab, row: Row, plan: Plan, tell: Callable[[str], None]) -> Measured:
    """Raises BenchmarkError where our own figures can't be had; another peer is left out, with the reason."""
    measured = Measured(row)
    present = list(row.columns)

    def each(step: Callable[[Peer], None]) -> None:
        for name in tuple(present):
            try:
                step(lab.peer(name))
            except BenchmarkError as error:
                if name == row.columns[0]:
                    raise BenchmarkError(f"{row.title}: {name}: {error}") from error
                present.remove(name)
                measured.left_out[name] = str(error)
                measured.figures.pop(name, None)
                tell(f"  {name} is left out: {error}")

    each(partial(_prepare, lab, row))
    if row.latency:
        each(partial(_find_rate, lab, measured))
    for number in range(plan.rounds):
        each(partial(_round, lab, plan, measured))
        tell(f"  {row.title}: round {number + 1} of {plan.rounds}")
    return measured


def _prepare(lab: Lab, row: Row, peer: Peer) -> None:
    """Have everything stored that hits will be asked for: a shared tier that is slow for a moment may miss some."""
    if row.pattern.misses == 1:
        return
    pattern = row.pattern_of(peer.name)
    headers = [each for each in (*pattern.headers, *pattern.turns[:1]) if each.startswith("Authorization:")]
    for _ in range(_WARM_UPS):
        warm(peer.port, pattern.paths(pattern.count), headers, pattern.content)
        before = lab.asked()
        warm(peer.port, pattern.paths(_SAMPLE), headers, pattern.content)
        if lab.asked() == before:
            _repeat_all(lab, row, peer)
            return
    raise BenchmarkError(f"{peer.name} still asks the upstream after {_WARM_UPS} requests for everything")


def _repeat_all(lab: Lab, row: Row, peer: Peer) -> None:
    """Have each of many keys requested again, more than once: what a server prepares when a response is used again is
    not a cost of each hit."""
    pattern, seconds = row.pattern_of(peer.name), _REPEATING_SECONDS
    if pattern.kind != "zipf":
        return
    in_turn = replace(pattern, kind="spread")
    wanted = _REPEATS * pattern.count
    while wrk(peer.port, in_turn, pid=peer.pid, core=lab.load_core, seconds=seconds).requests < wanted:
        seconds *= 2  # each run begins with the first key


def _round(lab: Lab, plan: Plan, measured: Measured, peer: Peer) -> None:
    row = measured.row
    figure = _latency(lab, plan, measured, peer) if row.latency else _load(lab, plan, measured, peer)
    measured.figures.setdefault(peer.name, []).append(figure)


def _latency(lab: Lab, plan: Plan, measured: Measured, peer: Peer) -> float:
    before = lab.asked()
    found = _open_loop(lab, peer, measured.row.pattern, measured.rates[peer.name], plan.seconds)
    check_misses(peer.name, lab.asked() - before, found.requests, 0)
    measured.latencies.setdefault(peer.name, []).append(found)
    return found.p99


def _load(lab: Lab, plan: Plan, measured: Measured, peer: Peer) -> float:
    row, before = measured.row, lab.asked()
    load = wrk(
        peer.port,
        row.pattern_of(peer.name),
        pid=peer.pid,
        core=lab.load_core,
        seconds=plan.seconds,
        connections=row.connections,
    )
    check_misses(peer.name, lab.asked() - before, load.requests, row.pattern.misses)
    if row.stores:
        _check_stored(lab, peer, row.pattern.path + load.missed)
    measured.loads.setdefault(peer.name, []).append(load)
    return 1e6 / load.per_cpu_second if row.cost else load.rate


def check_misses(name: str, asked: int, requests: int, share: float) -> None:
    """Raises BenchmarkError where the upstream got another share of the requests than those for new keys."""
    if not share and asked > _EVICTED * requests:
        raise BenchmarkError(f"{name} asked the upstream {asked} times in a run of hits")
    if share and abs(asked - share * requests) > _BESIDE:
        raise BenchmarkError(f"{name} asked the upstream {asked} times for {requests} requests")


def _check_stored(lab: Lab, peer: Peer, path: str) -> None:
    before = lab.asked()
    check(ask(peer.port, path), path)
    if lab.asked() != before:
        raise BenchmarkError(f"{peer.name} has not stored a response that it got during the run")


def _find_rate(lab: Lab, measured: Measured, peer: Peer) -> None:
    """Half of what `peer` can do; where all get the same rate, half of what the slowest can."""
    row = measured.row
    rate = wrk(peer.port, row.pattern, pid=peer.pid, core=lab.load_core, seconds=_SATURATING_SECONDS).rate / 2
    measured.rates[peer.name] = rate
    if row.same_rate:
        measured.rates = dict.fromkeys(measured.rates, min(measured.rates.values()))


def _open_loop(lab: Lab, peer: Peer, pattern: Pattern, rate: float, seconds: float) -> Latencies:
    for path in pattern.paths(20):
        check(ask(peer.port, path), path)
    size = pattern.path.split("/")[2]
    command = [sys.executable, "-m", "benchmarks.open_loop", str(peer.port), str(rate), str(seconds), size]
    ran = subprocess.run(
        [*command, pattern.path, str(pattern.count), str(pattern.step)],
        capture_output=True,
        text=True,
        timeout=seconds + 60,
        preexec_fn=lambda: os.sched_setaffinity(0, {lab.load_core}),
    )
    if ran.returncode:
        raise BenchmarkError(f"open-loop load on {peer.name} failed: {ran.stderr[-500:]}")
    found = Latencies(**json.loads(ran.stdout))
    if found.wrong or found.unanswered:
        raise BenchmarkError(
            f"{peer.name}: {found.wrong} answers of {found.requests} wrong, {found.unanswered} missing"
        )
    return found
