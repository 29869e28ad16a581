"""The figures of the HTML page, as inline SVG written by hand: no script, no outside resource."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from jetstream.bench.report_style import RAMP_STEPS
from jetstream.bench.results import Row
from jetstream.bench.sizes import format_size
from jetstream.bench.stats import geometric_range
from jetstream.bench.table import format_us

__all__ = ["Line", "percentile_figure", "size_figure", "size_label"]

_WIDTH, _HEIGHT = 640, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, _WIDTH - 86, 28, 50
#: Factor between the number of samples and the last percentile they can tell (see stats).
_SAMPLES_PER_TAIL = 3.689


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a figure over the message size."""

    label: str
    style: str  # CSS class
    points: tuple[tuple[float, float], ...]  # (size in bytes, value)
    hints: tuple[str, ...]  # shown when the pointer rests on a point


@dataclass(frozen=True, slots=True)
class _Scale:
    """Maps the logarithm of a value to a coordinate."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        share = (math.log10(value) - math.log10(self.low)) / math.log10(self.high / self.low)
        return self.start + share * (self.end - self.start)


def percentile_figure(rows: Sequence[Row], *, name: str) -> str:
    """Draws one percentile curve for each row: x = log10(1/(1-q)), y = latency, logarithmic."""
    tail_max = max(max(row.iterations for row in rows), 100)
    x = _Scale(1.0, float(tail_max), _LEFT, _RIGHT)
    y = _vertical([us for row in rows for _, us in row.curve])
    parts = [_grid_horizontal(y, _time_label), _percentile_ticks(x, y)]
    for index, row in enumerate(rows):
        ramp = round(index * (RAMP_STEPS - 1) / max(1, len(rows) - 1))
        points = [(x.at(1 / (1 - q)), y.at(us)) for q, us in row.curve]
        told, beyond = _split(points, x.at(max(1.0, row.iterations / _SAMPLES_PER_TAIL)))
        parts.append(
            f'<g class="curve c{ramp}"><title>{escape(_curve_hint(row))}</title>'
            f'<path class="hit" d="{_path(points)}"/><path d="{_path(told)}"/>'
            f'<path class="beyond" d="{_path(beyond)}"/>'
            f"{_legend_entry(size_label(row), len(rows) - 1 - index)}</g>"
        )
    parts.append(_axis_titles("share of operations that are at least this fast, %", "latency"))
    text = "Percentile curves, one for each size. " + " ".join(_curve_hint(row) for row in rows)
    return _svg(f"pc-{name}", f"Latency percentiles, {name}", text, parts)


def size_figure(lines: Sequence[Line], *, name: str, title: str, axis: str, unit: str) -> str:
    """Draws lines over the message size; unit "us" writes times, anything else is appended.

    The lines come from the lowest to the highest, so that the legend is in their order.
    """
    sizes = sorted({size for line in lines for size, _ in line.points})
    x = _Scale(sizes[0] / 1.4, sizes[-1] * 1.4, _LEFT, _RIGHT)
    y = _vertical([value for line in lines for _, value in line.points])
    tick = _time_label if unit == "us" else (lambda value: f"{value:g}{unit}")
    parts = [_grid_horizontal(y, tick), _size_ticks(sizes, x, y)]
    for index, line in enumerate(lines):
        points = [(x.at(size), y.at(value)) for size, value in line.points]
        dots = "".join(
            f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3.2"><title>{escape(hint)}</title></circle>'
            for (px, py), hint in zip(points, line.hints, strict=True)
        )
        entry = _legend_entry(line.label, len(lines) - 1 - index) if len(lines) > 1 else ""
        parts.append(f'<g class="line {line.style}"><path d="{_path(points)}"/>{dots}{entry}</g>')
    parts.append(_axis_titles("message size", axis))
    text = f"{title}. " + " ".join(hint + "." for line in lines for hint in line.hints)
    return _svg(name, title, text, parts)


def size_label(row: Row) -> str:
    """Returns the size of a row for people; the kind where there is no size."""
    return format_size(row.size_bytes) if row.size_bytes else row.kind


def _vertical(values: Sequence[float]) -> _Scale:
    low, high = geometric_range(values)
    low, high = low / 1.25, high * 1.25
    if high / low < 4:
        middle = math.sqrt(low * high)
        low, high = middle / 2, middle * 2
    return _Scale(low, high, _HEIGHT - _BOTTOM, _TOP)


def _ticks(low: float, high: float) -> list[float]:
    """Returns 1, 10, 100 ... within a range, and numbers between where these are few."""
    decades = math.log10(high / low)
    steps: tuple[float, ...] = (1,)
    if decades < 3.2:
        steps = (1, 2, 5) if decades > 1 else (1, 1.5, 2, 3, 4, 5, 7)
    first = math.floor(math.log10(low))
    ticks = [
        step * 10.0**power for power in range(first, first + int(decades) + 2) for step in steps
    ]
    return [tick for tick in ticks if low <= tick <= high]


def _time_label(us: float) -> str:
    if us >= 1e6:
        return f"{us / 1e6:g} s"
    return f"{us / 1e3:g} ms" if us >= 1e3 else f"{us:g} µs"


def _grid_horizontal(y: _Scale, label: Callable[[float], str]) -> str:
    return "".join(
        f'<line class="grid" x1="{_LEFT}" x2="{_RIGHT}" y1="{y.at(v):.1f}" y2="{y.at(v):.1f}"/>'
        f'<text x="{_LEFT - 8}" y="{y.at(v) + 4:.1f}" text-anchor="end">{escape(label(v))}</text>'
        for v in _ticks(y.low, y.high)
    )


def _percentile_ticks(x: _Scale, y: _Scale) -> str:
    parts = [_tick_x(x.at(2.0), y, "50")]
    for power in range(1, math.floor(math.log10(x.high)) + 1):
        parts.append(_tick_x(x.at(10.0**power), y, f"{100 - 100 / 10**power:.10g}"))
    return "".join(parts)


def _size_ticks(sizes: Sequence[float], x: _Scale, y: _Scale) -> str:
    every = max(1, math.ceil(len(sizes) / 8))
    return "".join(
        _tick_x(x.at(size), y, format_size(int(size)) if index % every == 0 else "")
        for index, size in enumerate(sizes)
    )


def _tick_x(at: float, y: _Scale, text: str) -> str:
    style = "grid" if text else "grid faint"
    return (
        f'<line class="{style}" x1="{at:.1f}" x2="{at:.1f}" y1="{y.end}" y2="{y.start}"/>'
        f'<text x="{at:.1f}" y="{y.start + 18}" text-anchor="middle">{text}</text>'
    )


def _axis_titles(below: str, beside: str) -> str:
    return (
        f'<text class="axis" x="{_LEFT}" y="{_HEIGHT - 8}">{escape(below)}</text>'
        f'<text class="axis" x="{_LEFT - 8}" y="{_TOP - 14}">{escape(beside)}</text>'
    )


def _legend_entry(label: str, place: int) -> str:
    """Writes one line of the legend, in the right margin, `place` lines from the top."""
    at = _TOP + 10 + 14.5 * place
    return (
        f'<path d="M{_RIGHT + 10} {at - 4:.1f}h14"/>'
        f'<text class="key" x="{_RIGHT + 29}" y="{at:.1f}">{escape(label)}</text>'
    )


def _split(
    points: Sequence[tuple[float, float]], limit: float
) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """Splits a curve where the samples stop telling; both parts share the point between."""
    told = [point for point in points if point[0] <= limit] or [points[0]]
    return told, [told[-1], *points[len(told) :]]


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) if points else ""


def _curve_hint(row: Row) -> str:
    tail = row.percentiles_us
    names = [name for name in ("p50", "p99", "p99.9", "p99.99") if tail[name] is not None]
    known = ", ".join(f"{name} {format_us(tail[name])} µs" for name in names)
    most = f"max {format_us(row.max_us)} µs of {row.iterations} operations"
    return f"{size_label(row)}: {known}, {most}."


def _svg(name: str, title: str, text: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-labelledby="t-{name} d-{name}">'
        f'<title id="t-{name}">{escape(title)}</title><desc id="d-{name}">{escape(text)}</desc>'
        + "".join(parts)
        + "</svg>"
    )
