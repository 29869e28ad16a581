"""Tables, the samples that fill them, and the report in markdown."""

from __future__ import annotations

import argparse
import statistics
from collections import Counter
from dataclasses import dataclass, field

from contestants import CONTESTANTS, PEERS, Key, Record, Samples

FAR = 2.0  # cores are far apart when a line takes this many times the shortest time seen
PERCENTILES = {"p50": "p50_us", "p99": "p99_us", "p99.9": "p999_us"}
OURS = (
    *("jetstream", "jetstream-sym", "jetstream-persistent"),
    *(f"jetstream-{link}{how}" for link in ("udp", "packet", "xdp") for how in ("", "-persistent")),
)
HOW = ("-sym", "-persistent")  # other ways to call what OURS has without
#: What else is set against what, at the median.
PAIRS = tuple((f"jetstream{suffix}", f"floor{suffix}") for suffix in ("", "-sym", "-c", "-sym-c"))


@dataclass(frozen=True)
class Table:
    """What one table of the report shows: every collective at every size, on so many ranks.

    `columns` names the fields of a record that a cell shows; with others than percentiles there
    are no ratios.
    """

    title: str
    collectives: tuple[str, ...] = ("all_reduce",)
    sizes: str = "8,64,1K,8K,16K,64K,256K,1M,8M,64M"
    dtype: str = "float32"
    ranks: int = 2
    path: str = "memory"  # between the ranks, or "network"
    columns: dict[str, str] = field(default_factory=lambda: dict(PERCENTILES))

    def cases(self) -> list[Key]:
        """Its cases, row by row."""
        sizes = [parse_size(size) for size in self.sizes.split(",")]
        return [
            (collective, size)
            for collective in self.collectives
            for size in (sizes if collective != "barrier" else sizes[:1])
        ]

    @property
    def has_ratios(self) -> bool:
        """Whether its cells are latencies that can be compared."""
        return self.columns == PERCENTILES


def parse_size(text: str) -> int:
    """Turn '64K' into 65536."""
    units = {"K": 10, "M": 20, "G": 30}
    unit = units.get(text[-1:].upper(), 0)
    value = int(text[:-1] if unit else text) << unit
    if value < 4 or value % 4:
        raise argparse.ArgumentTypeError(f"{text}: not a positive multiple of 4 bytes")
    return value


def format_size(size_bytes: int) -> str:
    """Turn 65536 into '64 KiB'."""
    for unit, shift in (("MiB", 20), ("KiB", 10)):
        if size_bytes >= 1 << shift and size_bytes % (1 << shift) == 0:
            return f"{size_bytes >> shift} {unit}"
    return f"{size_bytes} B"


class Results:
    """The samples of one table, round by round, and what follows from them.

    A hypervisor may move the virtual cores closer together or further apart while we measure, so
    each sample carries the time of one line from core to core before and after it. Only samples
    of one ``distance`` are compared: near, far, or "" for the one that most contestants met in that
    case.
    """

    def __init__(self, table: Table) -> None:
        self.table = table
        self.distance = ""
        self.rounds: dict[str, dict[int, Samples]] = {}
        self.failures: dict[str, str] = {}
        self.distances: Counter[str] = Counter()

    def sort_out(self) -> None:
        """Write each sample's distance into it: near, far, or mixed. Call after the last round."""
        for is_floor in (False, True):  # C and Python see different times of a line
            records = [
                record
                for contestant in CONTESTANTS
                if contestant.is_floor == is_floor
                for samples in self.rounds.get(contestant.name, {}).values()
                for record in samples.values()
            ]
            lines_us = [min(r["line_us"]) for r in records if "line_us" in r]
            limit_us = FAR * min(lines_us, default=0.0)
            for record in records:
                is_far = {line_us > limit_us for line_us in record.get("line_us", [0.0])}
                name = "mixed" if len(is_far) > 1 else "far" if True in is_far else "near"
                record["distance"] = name
                self.distances[name] += 1

    def _met(self, distance: str, key: Key) -> tuple[int, int]:
        """How many contestants have samples of this distance in one case, and how many samples."""
        counts = [
            sum(key in samples and samples[key]["distance"] == distance for samples in by_round)
            for by_round in (rounds.values() for rounds in self.rounds.values())
        ]
        return sum(count > 0 for count in counts), sum(counts)

    def kept(self, name: str | None, key: Key) -> dict[int, Record]:
        """The records of a contestant in one case that count, by round."""
        commonest = max(("near", "far"), key=lambda distance: self._met(distance, key))
        wanted = self.distance or commonest
        rounds = self.rounds.get(name or "", {}).items()
        records = {i: samples[key] for i, samples in rounds if key in samples}
        return {i: record for i, record in records.items() if record["distance"] == wanted}

    def median(self, name: str, key: Key, column: str) -> float | None:
        """The median over the rounds; None for a contestant without results."""
        values = [record[column] for record in self.kept(name, key).values()]
        return statistics.median(values) if values else None

    def best_peer(self, key: Key, column: str) -> str | None:
        """The peer with the lowest median."""
        medians = {name: self.median(name, key, column) for name in PEERS}
        known = {name: value for name, value in medians.items() if value is not None}
        return min(known, key=lambda name: known[name]) if known else None

    def ratio(self, name: str | None, base: str | None, key: Key, column: str) -> list[float]:
        """The ratio in each round, sorted; where no round has results of both, that of medians."""
        ours, theirs = self.kept(name, key), self.kept(base, key)
        if not (ours and theirs):
            return []
        rounds = ours.keys() & theirs.keys()
        if not rounds:
            parts = [[record[column] for record in kept.values()] for kept in (ours, theirs)]
            return [statistics.median(parts[0]) / statistics.median(parts[1])]
        return sorted(ours[i][column] / theirs[i][column] for i in rounds)


def format_value(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def format_ratio(ratios: list[float]) -> str:
    """'median [min..max]' of the rounds' ratios."""
    if not ratios:
        return "-"
    low, middle, high = (
        format_value(value) for value in (ratios[0], statistics.median(ratios), ratios[-1])
    )
    return f"{middle} [{low}..{high}]"


def rows(heads: list[str], lines: list[list[str]]) -> list[str]:
    """A markdown table."""
    head = ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    return head + ["| " + " | ".join(line) + " |" for line in lines]


def cell(results: Results, name: str, key: Key) -> str:
    """'p50 / p99 / p99.9' of a contestant, or what else the table's columns are."""
    values = [results.median(name, key, column) for column in results.table.columns.values()]
    return " / ".join(format_value(value) for value in values if value is not None) or "-"


def against_best(results: Results, ours: str, key: Key, column: str) -> str:
    """The ratio to the best peer, in bold where that peer is faster."""
    best = results.best_peer(key, column)
    ratios = results.ratio(ours, best, key, column)
    if not ratios:
        return "-"
    text = f"{format_ratio(ratios)} {best}"
    return f"**{text}**" if statistics.median(ratios) > 1 else text


def ratio_columns(results: Results) -> tuple[list[str], dict[Key, list[str]]]:
    """Heads and cells of the second part of a table."""
    names = {name for name in results.rounds if results.rounds[name]}
    ours = [name for name in OURS if name in names]
    pairs = [pair for pair in PAIRS if names.issuperset(pair)]
    heads = [f"{name} / best peer, {label}" for name in ours for label in PERCENTILES]
    beside_gloo = [name for name in ours if "gloo" in names and not name.endswith(HOW)]
    heads += [f"gloo / {name}" for name in beside_gloo]
    heads += [f"{a} / {b}" for a, b in pairs]
    cells = {}
    for key in results.table.cases():
        line = [against_best(results, o, key, c) for o in ours for c in PERCENTILES.values()]
        for name in beside_gloo:
            ratios = results.ratio("gloo", name, key, "p50_us")
            line.append(format_value(statistics.median(ratios)) if ratios else "-")
        cells[key] = line + [format_ratio(results.ratio(*pair, key, "p50_us")) for pair in pairs]
    return heads, cells


def count_wins(results: Results) -> list[str]:
    """One line per contestant of ours: in how many cells it is the fastest of all."""
    lines = []
    for name in OURS:
        won = cells = 0
        for key in results.table.cases():
            for column in PERCENTILES.values():
                ratios = results.ratio(name, results.best_peer(key, column), key, column)
                cells += bool(ratios)
                won += bool(ratios) and statistics.median(ratios) <= 1
        if cells:
            lines.append(f"- {name}: faster than every peer in {won} of {cells} cells")
    return lines


def render(results: Results, rounds: int) -> list[str]:
    """One table of the report, in markdown."""
    table = results.table
    names = [contestant.name for contestant in CONTESTANTS if results.rounds.get(contestant.name)]
    keys = table.cases()
    labels = {key: f"{key[0]} {format_size(key[1])}" for key in keys}
    if len(table.collectives) == 1:
        labels = {key: format_size(key[1]) for key in keys}
    counts = ", ".join(f"{count} {name}" for name, count in results.distances.most_common())
    lines = [f"## {table.title}, {table.dtype}", ""]
    what = " / ".join(table.columns)
    lines += [f"{what}{' in us, slowest rank' * table.has_ratios}; medians of {rounds} rounds."]
    which = f"those with cores {results.distance}" if results.distance else "one in each row"
    lines += [f"Samples by distance of the two cores: {counts}; {which}.", ""]
    if table.has_ratios:
        grid = [[labels[key], *(cell(results, name, key) for name in names)] for key in keys]
        lines += [*rows(["", *names], grid), ""]
        heads, cells = ratio_columns(results)
        lines += ["Ratios: median [min..max] of the rounds' ratios. Below 1 jetstream is faster,"]
        lines += ["**bold** where the best peer is.", ""]
        lines += [*rows(["", *heads], [[labels[key], *cells[key]] for key in keys]), ""]
        lines += count_wins(results)
    else:
        grid = [[name, *(cell(results, name, key) for key in keys)] for name in names]
        lines += rows(["", *(labels[key] for key in keys)], grid)
    if results.failures:
        lines += ["", "Not measured, or not in every round:", ""]
        lines += [f"- {name}: {reason}" for name, reason in results.failures.items()]
    return [*lines, ""]
