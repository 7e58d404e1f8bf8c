"""Line charts as SVG: a title, axes with ticks, a line a series, a legend. Readable on light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 760, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 180, 48, 52
COLOURS = ("#0969da", "#bc4c00", "#1a7f37", "#8250df", "#bf3989", "#9a6700", "#57606a")


@dataclass(frozen=True)
class Series:
    """One line; with `marks` its points are drawn, and no line between them."""

    name: str
    points: Sequence[tuple[float, float]]
    marks: bool = False
    colour: int | None = None


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    log_y: bool = False,
    x_ticks: Sequence[tuple[float, str]] | None = None,
) -> str:
    """The chart as a whole SVG document. On a logarithmic axis all values must be above 0."""
    xs = [x for each in series for x, _ in each.points]
    ys = [y for each in series for _, y in each.points]
    across = _Axis(min(xs), max(xs), LEFT, WIDTH - RIGHT, logarithmic=log_x)
    up = _Axis(min(0.0, *ys) if not log_y else min(ys), max(ys), HEIGHT - BOTTOM, TOP, logarithmic=log_y)
    parts = [_head(title), *_horizontal(up, y_label), *_vertical(across, x_label, x_ticks)]
    for position, each in enumerate(series):
        colour = COLOURS[(each.colour if each.colour is not None else position) % len(COLOURS)]
        parts += _line(each, across, up, colour)
        parts.append(_legend(each, position, colour))
    return "\n".join([*parts, "</svg>\n"])


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def place(self, value: float) -> float:
        low, high, at = (self._scaled(each) for each in (self.low, self.high, value))
        return self.start + (self.end - self.start) * ((at - low) / (high - low) if high > low else 0.5)

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.logarithmic else value

    def ticks(self) -> list[tuple[float, str]]:
        if self.logarithmic:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            found = [10.0**power for power in range(first, last + 1)]
            return [(each, f"{each:g}") for each in found if self.low <= each <= self.high]
        step = 10 ** math.floor(math.log10((self.high - self.low) or 1))
        step = next(step * part for part in (0.1, 0.2, 0.5, 1, 2) if (self.high - self.low) / (step * part) <= 8)
        count = int(math.floor(self.high / step) - math.ceil(self.low / step)) + 1
        return [
            (each, f"{each:g}") for each in (round((math.ceil(self.low / step) + n) * step, 12) for n in range(count))
        ]


def _head(title: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}" font-family="system-ui, sans-serif" font-size="12">\n'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>\n'
        f'<text x="{LEFT}" y="26" font-size="15" font-weight="600" fill="#1f2328">{escape(title)}</text>'
    )


def _horizontal(axis: _Axis, label: str) -> list[str]:
    lines = [f'<text x="{LEFT}" y="{TOP - 6}" fill="#57606a">{escape(label)}</text>']
    for value, text in axis.ticks():
        y = axis.place(value)
        lines.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="#d8dee4"/>')
        lines.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end" fill="#57606a">{text}</text>')
    return lines


def _vertical(axis: _Axis, label: str, ticks: Sequence[tuple[float, str]] | None) -> list[str]:
    middle = (LEFT + WIDTH - RIGHT) / 2
    lines = [f'<text x="{middle}" y="{HEIGHT - 10}" text-anchor="middle" fill="#57606a">{escape(label)}</text>']
    for value, text in ticks if ticks is not None else axis.ticks():
        x = axis.place(value)
        lines.append(
            f'<line x1="{x:.1f}" y1="{HEIGHT - BOTTOM}" x2="{x:.1f}" y2="{HEIGHT - BOTTOM + 5}" stroke="#57606a"/>'
        )
        lines.append(
            f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle" fill="#57606a">{escape(text)}</text>'
        )
    return lines


def _line(series: Series, across: _Axis, up: _Axis, colour: str) -> list[str]:
    places = [(across.place(x), up.place(y)) for x, y in series.points]
    if series.marks:
        return [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>' for x, y in places]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>']


def _legend(series: Series, position: int, colour: str) -> str:
    x, y = WIDTH - RIGHT + 16, TOP + 8 + position * 20
    mark = (
        f'<circle cx="{x + 8}" cy="{y}" r="4" fill="{colour}"/>'
        if series.marks
        else f'<line x1="{x}" y1="{y}" x2="{x + 16}" y2="{y}" stroke="{colour}" stroke-width="2"/>'
    )
    return f'{mark}<text x="{x + 22}" y="{y + 4}" fill="#1f2328">{escape(series.name)}</text>'
