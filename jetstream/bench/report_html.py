"""The result as one self-contained HTML page: figures, table, facts, and how to read them."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path

from jetstream.bench.report_style import style_sheet
from jetstream.bench.report_svg import Line, percentile_figure, size_figure, size_label
from jetstream.bench.results import Report, Row
from jetstream.bench.sizes import format_size
from jetstream.bench.table import (
    busy,
    format_us,
    latency_rows,
    median_us,
    oversubscribed,
    size_text,
    tail_ratio,
)

__all__ = ["render_page", "write_html"]

_DASH = "\u2013"
_TIMES = "\u00d7"
_READING = (
    "<p><b>Each operation is timed by itself</b>, on every rank, and counts with the time of the "
    "slower rank. Its input is rewritten before, outside of the timed part. Python's garbage "
    "collection is off in the timed loop.</p>",
    "<p><b>Percentile curves</b> read from left to right: half of all operations are at least as "
    "fast as the curve over 50, all but one in a thousand as the curve over 99.9. A flat curve is "
    "a uniform operation; where it turns upwards, the tail begins. The dotted end of a curve "
    "rests on too few operations to be told with confidence.</p>",
    "<p><b>p50 and p99.9</b> matter for different people: one collective takes p50, but a step "
    "that waits for a thousand of them in a row nearly always meets one p99.9.</p>",
    "<p><b>algbw</b> is size divided by mean time. <b>busbw</b> multiplies it so that it can be "
    "compared with the hardware's bandwidth, whatever the number of ranks n: 2(n-1)/n for "
    "all_reduce, (n-1)/n where there are parts, 1 otherwise, as nccl-tests has it. "
    "The size of a collective with parts is that of all parts together.</p>",
    "<p><b>#wrong</b> counts elements whose bits differ from a reference computed in NumPy from "
    "the inputs of all ranks, at several iterations of each size.</p>",
)
_FACT_NAMES = {
    "cpu": "Processor",
    "cores": "Cores",
    "cores_allowed": "Cores allowed",
    "instruction_set": "Instruction set in use",
    "memory_bytes": "Memory",
    "kernel": "Kernel",
    "clock_source": "Clock source",
    "host": "Host",
    "load": "Load average before",
    "jetstream": "jetstream",
    "build_id": "Build",
    "python": "Python",
    "numpy": "NumPy",
    "time": "Measured",
}
_COLUMNS = (
    ("size", ""),
    ("count", "elements"),
    ("type", ""),
    ("redop", ""),
    ("root", ""),
    ("algorithm", ""),
    ("iterations", ""),
    ("time", "µs"),
    ("algbw", "GB/s"),
    ("busbw", "GB/s"),
    ("#wrong", ""),
    ("min", "µs"),
    ("p50", "µs"),
    ("p99", "µs"),
    ("p99.9", "µs"),
    ("max", "µs"),
)


def write_html(path: Path, report: Report) -> None:
    """Writes the page to a file."""
    path.write_text(render_page(report), encoding="utf-8")


def render_page(report: Report) -> str:
    """Returns the page; it needs no other file and no network."""
    kinds = ", ".join(dict.fromkeys(row.kind for row in report.rows)) or "no results"
    title = f"jetstream bench: {kinds} on {report.config.ranks} ranks"
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in report.rows:
        groups.setdefault((row.kind, row.dtype, row.redop), []).append(row)
    sections = "".join(_section(key, rows) for key, rows in groups.items())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style_sheet()}</style></head><body><main>"
        f'<header><h1>{escape(title)}</h1><p class="soft">{escape(_subtitle(report))}</p>'
        f"{_alerts(report)}{_tiles(report)}</header>{sections}"
        f'<h2>How to read this</h2><div class="card read">{"".join(_READING)}</div>'
        f'<h2>Machine and method</h2><div class="card">{_facts(report)}</div>'
        "</main></body></html>\n"
    )


def _subtitle(report: Report) -> str:
    machine = report.machine
    day = str(machine.get("time", ""))[:16].replace("T", " ")
    launched = report.config.launch.capitalize()
    return f"{machine.get('cpu', 'unknown processor')}, launched from {launched}, {day}"


def _alerts(report: Report) -> str:
    texts = []
    if report.wrong:
        texts.append("Wrong data was found: the figures below mean nothing until that is solved.")
    if not report.complete:
        texts.append("The run ended early: this page holds what was measured until then.")
    if oversubscribed(report):
        texts.append(
            "There are more ranks than cores: latencies include the wait for a core, and say "
            "little about the interconnect."
        )
    elif busy(report):
        texts.append(
            f"The load average was {report.machine['load']} on {report.machine['cores']} cores: "
            "other programs ran on this host, and are part of the tails below."
        )
    return "".join(f'<p class="card alert">{escape(text)}</p>' for text in texts)


def _tiles(report: Report) -> str:
    moving = [row for row in report.rows if row.busbw_gbs]
    tiles = []
    if report.rows:
        row = min(report.rows, key=median_us)
        what = f"smallest median latency: {_row_text(row)}"
        tiles.append(_tile(f"{format_us(median_us(row))} µs", what))
    if moving:
        row = max(moving, key=lambda row: row.busbw_gbs)
        what = f"best bus bandwidth: {_row_text(row)}"
        tiles.append(_tile(f"{row.busbw_gbs:.2f} GB/s", what))
    small = latency_rows(report.rows)
    if small:
        row = max(small, key=lambda row: tail_ratio(row) or 0.0)
        what = f"largest tail to 64 KiB, p99.9 over median: {_row_text(row)}"
        tiles.append(_tile(f"{tail_ratio(row):.1f} {_TIMES}", what))
    if report.checks:
        style = "bad" if report.wrong else "good"
        what = f"wrong elements in {report.checks:,} results compared bit for bit"
        tiles.append(_tile(f"{report.wrong:,}", what, style))
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _row_text(row: Row) -> str:
    if not row.size_bytes:
        return row.kind
    size = size_text(row).replace(" ", "\u00a0")  # number and unit stay on one line
    return f"{row.kind}, {size}"


def _tile(figure: str, text: str, style: str = "") -> str:
    style = f"card tile {style}".strip()
    return f'<div class="{style}"><b>{escape(figure)}</b><span>{escape(text)}</span></div>'


def _section(key: tuple[str, str, str], rows: list[Row]) -> str:
    words = [word for word in key if word != "none"]
    name = "-".join(words)
    figures = [
        _figure(
            "Latency percentiles",
            "One curve for each size; flat is uniform, a rise on the right is the tail.",
            percentile_figure(rows, name=name),
        )
    ]
    if rows[0].size_bytes:
        figures.append(_latency_figure(rows, name))
        if rows[0].busbw_gbs:
            figures.append(_bandwidth_figure(rows, name))
        figures += _tail_figure(rows, name)
    return (
        f"<section><h2>{escape(', '.join(words))}</h2>"
        f'<div class="figures">{"".join(figures)}</div>{_table(rows, words)}</section>'
    )


def _figure(title: str, text: str, svg: str) -> str:
    return (
        f'<figure class="card"><figcaption><h3>{escape(title)}</h3>{escape(text)}</figcaption>'
        f'<div class="wide">{svg}</div></figure>'
    )


def _latency_figure(rows: list[Row], name: str) -> str:
    lines = []
    for percentile, style in (("p50", "p50"), ("p99", "p99"), ("p99.9", "p999")):
        known = [(row, row.percentiles_us[percentile]) for row in rows]
        pairs = [(row, us) for row, us in known if us is not None]
        points = tuple((float(row.size_bytes), us) for row, us in pairs)
        hints = tuple(f"{size_text(row)} {percentile} {format_us(us)} µs" for row, us in pairs)
        if points:
            lines.append(Line(percentile, style, points, hints))
    points = tuple((float(row.size_bytes), row.max_us) for row in rows)
    hints = tuple(f"{size_text(row)} max {format_us(row.max_us)} µs" for row in rows)
    lines.append(Line("max", "max", points, hints))
    svg = size_figure(lines, name=f"l-{name}", title="Latency by size", axis="latency", unit="us")
    return _figure("Latency by size", "The distance between the lines is the jitter.", svg)


def _bandwidth_figure(rows: list[Row], name: str) -> str:
    points = tuple((float(row.size_bytes), row.busbw_gbs) for row in rows)
    hints = tuple(f"{size_text(row)} {row.busbw_gbs:.3g} GB/s" for row in rows)
    line = Line("busbw", "p50", points, hints)
    svg = size_figure([line], name=f"b-{name}", title="Bus bandwidth by size", axis="GB/s", unit="")
    text = "What one rank moves; comparable with the hardware's bandwidth."
    return _figure("Bus bandwidth by size", text, svg)


def _tail_figure(rows: list[Row], name: str) -> list[str]:
    lines = []
    for percentile, style in (("p99", "p99"), ("p99.9", "p999")):
        pairs = []
        for row in rows:
            us, median = row.percentiles_us[percentile], median_us(row)
            if us is not None and median:
                pairs.append((row, us / median))
        points = tuple((float(row.size_bytes), ratio) for row, ratio in pairs)
        hints = tuple(
            f"{size_text(row)} {percentile} {ratio:.3g} {_TIMES} p50" for row, ratio in pairs
        )
        if points:
            lines.append(Line(percentile, style, points, hints))
    if not lines:
        return []
    svg = size_figure(
        lines, name=f"r-{name}", title="Tail by size", axis="times the median", unit=_TIMES
    )
    return [_figure("Tail by size", "Percentiles over the median; 1 would be no jitter.", svg)]


def _table(rows: Iterable[Row], words: list[str]) -> str:
    head = "".join(f'<th scope="col">{name}<small>{unit}</small></th>' for name, unit in _COLUMNS)
    body = "".join(_table_row(row) for row in rows)
    caption = escape(", ".join(words)) + ": times of the slower rank in each iteration; "
    caption += f"{_DASH} stands "
    caption += "for a percentile that needs more iterations"
    return (
        f'<div class="card table wide" tabindex="0" role="region" aria-label="Results">'
        f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def _table_row(row: Row) -> str:
    wrong = _DASH if row.wrong is None else f"{row.wrong:,}"
    style = ' class="wrong"' if row.failed else ' class="ok"' if row.wrong == 0 else ""
    if row.failed and not row.wrong:
        wrong = "ranks differ"
    moved = bool(row.size_bytes)
    tail = [row.percentiles_us[name] for name in ("p50", "p99", "p99.9")]
    cells = [
        f"{row.count:,}",
        *(_DASH if word == "none" else word for word in (row.dtype, row.redop)),
        str(row.root) if row.root >= 0 else _DASH,
        row.algorithm or _DASH,
        f"{row.iterations:,}",
        format_us(row.mean_us),
        f"{row.algbw_gbs:.2f}" if moved else _DASH,
        f"{row.busbw_gbs:.2f}" if moved else _DASH,
    ]
    times = [row.min_us, *tail, row.max_us]
    after = [format_us(value).replace("-", _DASH) for value in times]
    return (
        f'<tr><th scope="row">{size_label(row)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + f"<td{style}>{wrong}</td>"
        + "".join(f"<td>{cell}</td>" for cell in after)
        + "</tr>"
    )


def _facts(report: Report) -> str:
    config = report.config
    facts = [
        (label, _fact_text(key, report.machine[key]))
        for key, label in _FACT_NAMES.items()
        if report.machine.get(key) not in (None, "")
    ]
    places = "; ".join(
        f"{index}: pid {rank['pid']} on cores {rank['cores']}"
        for index, rank in enumerate(report.ranks[:16])
    )
    facts.append(("Ranks", f"{config.ranks} ({places})"))
    count = f"{config.iterations}" if config.iterations else f"about {config.budget_s:g} s"
    facts.append(("Iterations a size", f"{count}, after at least {config.warmup} to warm up"))
    return (
        "<dl>"
        + "".join(
            f"<div><dt>{escape(label)}</dt><dd>{escape(text)}</dd></div>" for label, text in facts
        )
        + "</dl>"
    )


def _fact_text(key: str, value: object) -> str:
    return format_size(int(str(value))) if key == "memory_bytes" else str(value)
