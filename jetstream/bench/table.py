"""The table as text: head, columns of nccl-tests with the tail beside them, footer, summary."""

from __future__ import annotations

from jetstream.bench.kinds import REDUCING
from jetstream.bench.results import Report, Row, kinds_in_order
from jetstream.bench.sizes import format_size
from jetstream.bench.stats import samples_needed

__all__ = ["column_lines", "footer_lines", "head_lines", "row_line", "summary_lines"]

#: Up to this size an operation is about latency: the summary speaks of its tail.
LATENCY_BYTES = 64 << 10
_RANKS_SHOWN = 8
_FORMAT = "{:>12} {:>12} {:>9} {:>6} {:>5} {:>9} {:>8} {:>8} {:>7} {:>8} {:>8} {:>8} {:>8}"


def head_lines(report: Report) -> list[str]:
    """Returns what a reader has to know about machine and method, as comment lines."""
    machine, config = report.machine, report.config
    lines = [
        f"# jetstream bench {machine['jetstream']} (build {machine['build_id'][:12]}), "
        f"Python {machine['python']}, NumPy {machine['numpy']}",
        f"# {machine['cpu']}, {machine['cores']} cores, {machine['instruction_set']}; "
        f"{machine['kernel']}, clock {machine['clock_source'] or 'unknown'}",
    ]
    shown = report.ranks[:_RANKS_SHOWN]
    lines += [
        f"#   rank {index:>3}   pid {rank['pid']:>7}   cores {rank['cores']:<9} on {rank['host']}"
        for index, rank in enumerate(shown)
    ]
    if len(report.ranks) > len(shown):
        lines.append(f"#   and {len(report.ranks) - len(shown)} more ranks")
    count = f"{config.iterations}" if config.iterations else f"about {config.budget_s:g} s of"
    place = "input not rewritten" if config.launch == "c" else "input rewritten before each"
    lines += [
        f"# {count} iterations a size, launched from {config.launch.capitalize()}, {place}, "
        "garbage collection off",
        "# times are those of the slower rank in each iteration; time(us) is their mean",
    ]
    if oversubscribed(report):
        lines.append(
            f"# note: {config.ranks} ranks share {cores_used(report)} cores: oversubscribed, "
            "latencies include the wait for a core"
        )
    elif busy(report):
        lines.append(
            f"# note: load average {machine['load']} on {machine['cores']} cores: other programs "
            "run here and will be seen in the tail"
        )
    return lines


def column_lines(kind: str) -> list[str]:
    """Returns the two lines above the rows of one kind."""
    names = ("size", "count", "type", "redop", "root", "time", "algbw", "busbw", "#wrong")
    units = ("(B)", "(elements)", "", "", "", "(us)", "(GB/s)", "(GB/s)", "")
    tail = ("p50", "p99", "p99.9", "max")
    first = _FORMAT.format(*names, *tail)
    second = _FORMAT.format(*units, *("(us)",) * len(tail))
    return ["#", f"# {kind}", "#" + first[1:], "#" + second[1:]]


def row_line(row: Row) -> str:
    """Returns one row; ``-`` for what does not apply, or needs more iterations to be told."""
    tail = [row.percentiles_us[name] for name in ("p50", "p99", "p99.9")]
    bandwidth = [f"{row.algbw_gbs:.2f}", f"{row.busbw_gbs:.2f}"] if row.size_bytes else ["-", "-"]
    wrong = "-" if row.wrong is None else str(row.wrong)
    return _FORMAT.format(
        row.size_bytes,
        row.count,
        row.dtype,
        row.redop,
        row.root,
        format_us(row.mean_us),
        *bandwidth,
        "differ" if not row.wrong and row.failed else wrong,
        *(format_us(value) for value in tail),
        format_us(row.max_us),
    )


def footer_lines(rows: list[Row]) -> list[str]:
    """Returns the lines that nccl-tests ends a table with, for the rows of one kind."""
    lines = []
    if any(row.percentiles_us["p99.9"] is None for row in rows):
        lines.append(
            f"# -: too few iterations to tell (p99 needs {samples_needed(0.99)}, "
            f"p99.9 needs {samples_needed(0.999)})"
        )
    if any(row.wrong is None for row in rows):
        lines.append("# Out of bounds values : not checked")
    else:
        wrong = sum(row.wrong or 0 for row in rows)
        verdict = "FAILED" if any(row.failed for row in rows) else "OK"
        lines.append(f"# Out of bounds values : {wrong} {verdict}")
    if any(row.busbw_gbs for row in rows):
        average = sum(row.busbw_gbs for row in rows) / len(rows)
        lines.append(f"# Avg bus bandwidth    : {average:.4g} GB/s")
    return lines


def summary_lines(report: Report) -> list[str]:
    """Returns the result in plain words, one or two lines for each kind."""
    if not report.rows:
        return []
    lines = ["#", "# In short"]
    for kind in kinds_in_order(report.rows):
        rows = report.rows_of(kind)
        texts = _kind_summary(rows)
        lines += [f"#   {name:<15}{text}" for name, text in zip((kind, ""), texts, strict=False)]
    checked = report.checks
    if report.wrong:
        lines.append("#   WRONG DATA: see the column #wrong; these figures mean nothing")
    elif checked:
        how = "folded in NumPy" if any(r.kind in REDUCING for r in report.rows) else "in NumPy"
        lines.append(
            f"#   {checked} results compared bit for bit with a reference {how}: all equal"
        )
    return lines


def format_us(value: float | None) -> str:
    """Writes microseconds with three to four digits; ``-`` for None."""
    if value is None:
        return "-"
    return f"{value:.2f}" if value < 100 else f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def median_us(row: Row) -> float:
    """Returns the median, or the mean where there are too few iterations for one."""
    median = row.percentiles_us["p50"]
    return row.mean_us if median is None else median


def tail_ratio(row: Row) -> float | None:
    """Returns p99.9 / p50; None where there are too few iterations."""
    p999, p50 = row.percentiles_us["p99.9"], row.percentiles_us["p50"]
    return None if p999 is None or not p50 else p999 / p50


def size_text(row: Row) -> str:
    """Returns the size of a row for people."""
    return format_size(row.size_bytes)


def latency_rows(rows: list[Row]) -> list[Row]:
    """Returns the rows whose tail the summary speaks of: small, with p99.9 known."""
    return [r for r in rows if r.size_bytes <= LATENCY_BYTES and tail_ratio(r) is not None]


def cores_used(report: Report) -> int:
    """Returns how many cores the ranks of this host may run on, together."""
    numbers: set[int] = set()
    for rank in report.ranks:
        for part in rank["cores"].split(","):
            first, _, last = part.partition("-")
            numbers.update(range(int(first), int(last or first) + 1))
    return len(numbers)


def oversubscribed(report: Report) -> bool:
    """Whether there are more ranks than cores for them."""
    return len(report.ranks) > cores_used(report)


def busy(report: Report) -> bool:
    """Whether there was more work on this host than a bench run before this one explains."""
    machine = report.machine
    return bool(float(machine.get("load", 0)) > 1.25 * machine.get("cores", 1))


def _kind_summary(rows: list[Row]) -> list[str]:
    fastest = min(rows, key=median_us)
    if not fastest.size_bytes:
        texts = [f"{format_us(median_us(fastest))} us (median)"]
    else:
        texts = [
            f"smallest latency {format_us(median_us(fastest))} us (median, {size_text(fastest)})"
        ]
        best = max(rows, key=lambda row: row.busbw_gbs)
        if best.busbw_gbs:  # a single rank has no bus
            texts[0] += f"; best bus bandwidth {best.busbw_gbs:.2f} GB/s ({size_text(best)})"
    small = latency_rows(rows)
    if not small:
        return texts
    worst = max(small, key=lambda row: tail_ratio(row) or 0.0)
    ratios = [tail_ratio(row) or 0.0 for row in small]
    if len(small) == 1:
        texts.append(f"one in a thousand takes {ratios[0]:.1f} times the median or longer")
    else:
        texts.append(
            f"tail up to {size_text(max(small, key=lambda r: r.size_bytes))}: p99.9 is "
            f"{min(ratios):.1f} to {max(ratios):.1f} times the median "
            f"(worst at {size_text(worst)})"
        )
    return texts
