"""A trace as text, for people: what `gateway explain` prints."""

from __future__ import annotations

from collections.abc import Iterator

from .explain_trace import UNKNOWN, Entry, Lifetime, PartTrace, Trace
from .overrides import instant


def render(trace: Trace) -> str:
    """The trace as text, a fact a line."""
    return "\n".join(_lines(trace))


def _lines(trace: Trace) -> Iterator[str]:
    yield trace.request
    yield from _line("decision", f"{trace.decision}: {trace.why}")
    yield from _line("target", trace.target, *trace.normalised)
    if trace.route:
        yield from _line("route", f"{trace.route} ({trace.path})", *(f"over {lost}" for lost in trace.lost))
        yield from _line("asks", f"{trace.upstream} for {trace.asks}" if trace.upstream else trace.asks)
        yield from _line("dropped", *trace.dropped)
        yield from _line("key", *trace.key)
        yield from _line("variant", *trace.variant)
    if trace.ttl is not None:
        yield from _line(trace.ttl.setting, _lifetime(trace.ttl), *trace.ttl.notes)
    yield from _line("windows", *_windows(trace))
    if trace.names:
        if trace.decision != UNKNOWN:
            yield from _line("stored", *_entry_lines(trace.entry))
        yield from _line("names", *(f"{name.name}: {_purged(name.epoch)}" for name in trace.names))
    for part in trace.parts:
        yield from _line(f"part {part.name}", *_part_lines(part))
    yield from _line("client", *trace.client)


def _windows(trace: Trace) -> Iterator[str]:
    shown = trace.ttl.setting if trace.ttl is not None else ""  # negative_ttl, of a stored 404
    return (f"{window.setting} {_lifetime(window)}" for window in trace.windows if window.setting != shown)


def _part_lines(part: PartTrace) -> Iterator[str]:
    yield f"{part.upstream} for {part.asks}" if part.asks else part.note
    if part.ttl is not None:
        yield f"{part.ttl.setting} {_lifetime(part.ttl)}"
    if part.entry is not None:
        yield from _entry_lines(part.entry)


def _lifetime(lifetime: Lifetime) -> str:
    return f"{lifetime.value}: {', over '.join(lifetime.sources)}"


def _line(label: str, *values: str) -> Iterator[str]:
    shown = [value for value in values if value]
    for position, value in enumerate(shown):
        yield f"  {label if not position else '':<{max(10, len(label) + 2) if not position else 10}}{value}"


def _entry_lines(entry: Entry | None) -> Iterator[str]:
    if entry is None:
        yield "nothing"
        return
    yield f"in {entry.tier}: {entry.status}, {entry.bytes} bytes, {entry.age:.1f} s old"
    yield _window("fresh", entry.fresh_for)
    if entry.stale_while_revalidate_for > entry.fresh_for:
        yield _window("stale while revalidating", entry.stale_while_revalidate_for)
    if entry.stale_if_error_for > entry.fresh_for:
        yield _window("stale if the upstream fails", entry.stale_if_error_for)
    if entry.varies_on:
        yield f"varies on {', '.join(entry.varies_on)}"
    if entry.purged_softly:
        yield "purged softly: its freshness has ended"


def _window(what: str, left: float) -> str:
    return f"{what} for {left:.1f} s more" if left > 0 else f"{what}: ended {-left:.1f} s ago"


def _purged(position: str) -> str:
    """When a name was last purged: the time that its position in Redis's stream begins with."""
    milliseconds, dash, _ = position.partition("-")
    if dash and milliseconds.isdigit():
        return f"last purged {instant(int(milliseconds) / 1000)}"
    return "not purged of late" if position == "-" else f"last purged {position}"
