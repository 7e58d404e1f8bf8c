"""The figures as a table, as a picture, and as JSON that later runs of other rows are joined to."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

import msgspec

from benchmarks.rows import Bar
from benchmarks.run import Measured


@dataclass(frozen=True, slots=True)
class Column:
    """One peer's figures in a row: the median of its rounds, the least and the greatest. Of rates also the requests for
    a second of its processor time, and the shares of their cores that it and wrk used; medians, too."""

    peer: str
    median: float
    least: float
    greatest: float
    per_cpu_second: float | None = None
    server: float | None = None
    load: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The ratio of ours to `peer`'s, the median over rounds, beside its bar; and that by processor time, which counts
    instead where wrk was the limit. Where it is a `difference`, how much more ours is, in the row's unit."""

    peer: str
    ratio: float
    bound: float
    ambition: float
    lower: bool
    by_cpu: float | None = None
    limited: bool = False
    difference: bool = False

    @property
    def counted(self) -> float:
        return self.by_cpu if self.limited and self.by_cpu is not None else self.ratio

    @property
    def met(self) -> bool:
        return self.counted <= self.bound if self.lower else self.counted >= self.bound

    @property
    def text(self) -> str:
        """What counts, for a table."""
        return f"+{self.counted:.0f}" if self.difference else f"{self.counted:.2f}"

    @property
    def goal(self) -> str:
        return f"{'at most ' if self.lower else ''}{self._bound(self.bound)}"

    @property
    def wish(self) -> str:
        return f"{'at most ' if self.lower else ''}{self._bound(self.ambition)}"

    def _bound(self, bound: float) -> str:
        return f"{bound:+g}" if self.difference else f"{bound:.3g}"


@dataclass(frozen=True, slots=True)
class Result:
    """A row as it is kept in results.json."""

    key: str
    title: str
    unit: str
    columns: tuple[Column, ...]
    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Results:
    machine: str
    command: str
    rows: tuple[Result, ...]


def result(measured: Measured) -> Result:
    row = measured.row
    columns = tuple(_column(measured, name) for name in row.columns if measured.figures.get(name))
    verdicts = tuple(verdict for bar in row.bars if (verdict := _verdict(measured, bar)) is not None)
    unit = "µs" if row.latency or row.cost else "requests/s"
    left_out = tuple(f"{name} is left out: {reason}" for name, reason in measured.left_out.items())
    return Result(row.key, row.title, unit, columns, verdicts, (*left_out, *_latency_notes(measured)))


def _column(measured: Measured, name: str) -> Column:
    figures, loads = measured.figures[name], measured.loads.get(name)
    told = (statistics.median(figures), min(figures), max(figures))
    if not loads:
        return Column(name, *told)
    used = (statistics.median(getattr(each, of) for each in loads) for of in ("per_cpu_second", "server", "load"))
    return Column(name, *told, *used)


def _verdict(measured: Measured, bar: Bar) -> Verdict | None:
    ratio, by_cpu = measured.ratio(bar), measured.cpu_ratio(bar)
    if ratio is None:
        return None
    limited = measured.limited(bar)
    return Verdict(bar.peer, ratio, bar.bound, bar.ambition, bar.lower, by_cpu, limited, bar.difference)


def _latency_notes(measured: Measured) -> Iterable[str]:
    for name, found in measured.latencies.items():
        p50, p999 = (statistics.median(getattr(each, field) for each in found) for field in ("p50", "p999"))
        yield f"{name} at {measured.rates[name]:,.0f} requests/s: p50 {p50:,.0f} µs, p99.9 {p999:,.0f} µs"


# --- the table ---------------------------------------------------------------------------------------------


def table(results: Iterable[Result]) -> str:
    """Markdown: a line for each bar, then each row's figures with their spread."""
    results = list(results)
    lines = [
        verdicts(results),
        "",
        "| what | server | median | least to greatest | unit | for a CPU second | of its core | of wrk's core |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [_column_line(each, column) for each in results for column in each.columns]
    notes = [f"- {each.title}: {note}" for each in results for note in each.notes]
    return "\n".join((*lines, *(["", *notes] if notes else []), ""))


def verdicts(results: Iterable[Result]) -> str:
    lines = ["| what | against | ratio | by CPU time | at least | ambition | |", "|---|---|---|---|---|---|---|"]
    return "\n".join((*lines, *(_verdict_line(each, verdict) for each in results for verdict in each.verdicts)))


def _verdict_line(result: Result, verdict: Verdict) -> str:
    wanted = f"{verdict.goal} | {verdict.wish}"
    ratio, by_cpu = (
        verdict.text if not verdict.limited else f"{verdict.ratio:.2f}",
        "" if verdict.by_cpu is None else f"{verdict.by_cpu:.2f}",
    )
    if verdict.limited:
        ratio, by_cpu = f"({ratio}: wrk was the limit)", f"**{by_cpu}**"
    return f"| {result.title} | {verdict.peer} | {ratio} | {by_cpu} | {wanted} | {'✓' if verdict.met else '✗'} |"


def _column_line(result: Result, column: Column) -> str:
    spread = f"{column.least:,.0f} to {column.greatest:,.0f}"
    used = " |  |  |"
    if column.per_cpu_second is not None:
        used = f" {column.per_cpu_second:,.0f} | {column.server:.0%} | {column.load:.0%} |"
    return f"| {result.title} | {column.peer} | {column.median:,.0f} | {spread} | {result.unit} |{used}"


# --- results.json ------------------------------------------------------------------------------------------


def read(path: Path) -> dict[str, Result]:
    """What earlier runs found, by row; nothing where there were none."""
    if not path.exists():
        return {}
    return {each.key: each for each in msgspec.json.decode(path.read_bytes(), type=Results).rows}


def write(path: Path, results: Iterable[Result], machine: str, command: str) -> None:
    encoded = msgspec.json.encode(Results(machine, command, tuple(results)))
    path.write_bytes(msgspec.json.format(encoded, indent=2) + b"\n")


# --- the picture -------------------------------------------------------------------------------------------

_WIDTH, _LABELS, _BAR, _GAP = 820, 250, 18, 6
_OURS, _THEIRS, _TEXT, _FAINT = "#0f766e", "#94a3b8", "#334155", "#64748b"


def picture(results: Iterable[Result], machine: str) -> str:
    """An SVG: a group of bars for each row of rates, the gateway's first."""
    parts, top = [_text(16, 28, "Requests a second on one core", size=18, weight="600")], 48
    for each in results:
        if each.unit == "requests/s":
            group, top = _group(each, top)
            parts += group
    parts.append(_text(16, top + 18, f"{machine}; medians, the thin line from least to greatest", color=_FAINT))
    size = f'width="{_WIDTH}" height="{top + 34}" viewBox="0 0 {_WIDTH} {top + 34}"'
    ground = '<rect width="100%" height="100%" fill="#ffffff"/>'
    font = 'font-family="system-ui, sans-serif"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {font}>{ground}{"".join(parts)}</svg>\n'


def _group(result: Result, top: int) -> tuple[list[str], int]:
    parts = [_text(16, top + 16, result.title, weight="600")]
    top += 26
    scale = (_WIDTH - _LABELS - 110) / max(column.greatest for column in result.columns)
    for number, column in enumerate(result.columns):
        parts += _bar(column, top, scale, _OURS if number == 0 else _THEIRS)
        top += _BAR + _GAP
    return parts, top + 14


def _bar(column: Column, top: int, scale: float, color: str) -> list[str]:
    middle = top + _BAR / 2
    least, greatest = _LABELS + column.least * scale, _LABELS + column.greatest * scale
    return [
        _text(_LABELS - 8, top + 13, column.peer, anchor="end"),
        f'<rect x="{_LABELS}" y="{top}" width="{column.median * scale:.1f}" height="{_BAR}" fill="{color}" rx="2"/>',
        f'<path d="M{least:.1f} {middle}H{greatest:.1f}" stroke="{_TEXT}" stroke-width="1.5"/>',
        _text(int(greatest) + 8, top + 13, f"{column.median:,.0f}"),
    ]


def _text(
    x: int, y: int, text: str, *, size: int = 12, weight: str = "400", anchor: str = "start", color: str = _TEXT
) -> str:
    style = f'font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" fill="{color}"'
    return f'<text x="{x}" y="{y}" {style}>{escape(text)}</text>'
