"""Compare jetstream with the floor and the peers, all of them in one run.

`python bench/compare.py` installs the peers, measures all contestants in alternating rounds and
prints a markdown report of the tables asked for. Run it with the Python that has jetstream.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contestants import (
    CONTESTANTS,
    HERE,
    PEERS,
    Contestant,
    ContestantError,
    Key,
    Record,
    Samples,
    Workshop,
    measure,
    note,
)

ITERATIONS_MIN, ITERATIONS_MAX = 20, 20000
ITERATIONS_BYTES = 1 << 30  # total payload of one case
FAR = 2.0  # cores are far apart when a line takes this many times the shortest time seen
PERCENTILES = {"p50": "p50_us", "p99": "p99_us", "p99.9": "p999_us"}
OURS = ("jetstream", "jetstream-sym")


@dataclass(frozen=True)
class Table:
    """What one table of the report shows: every collective at every size, on so many ranks."""

    title: str
    collectives: tuple[str, ...] = ("all_reduce",)
    sizes: str = "8,64,1K,8K,16K,64K,256K,1M,8M,64M"
    dtype: str = "float32"
    ranks: int = 2

    def cases(self) -> list[Key]:
        """Its cases, row by row."""
        sizes = [parse_size(size) for size in self.sizes.split(",")]
        return [
            (collective, size)
            for collective in self.collectives
            for size in (sizes if collective != "barrier" else sizes[:1])
        ]


TABLES = {
    "all_reduce": [Table("all_reduce, 2 ranks")],
    "bfloat16": [Table("all_reduce, 2 ranks", sizes="8,8K,64K,1M,8M", dtype="bfloat16")],
    "others": [
        Table(
            "other collectives, 2 ranks",
            ("all_gather", "reduce_scatter", "broadcast", "all_to_all", "barrier", "sendrecv"),
            sizes="8,4K,8K,64K,1M",
        )
    ],
    "oversubscribed": [Table("all_reduce, more ranks than cores", sizes="8,8K,64K,1M", ranks=4)],
    "scaling": [
        Table(f"all_reduce, {ranks} ranks", sizes="8,8K,64K", ranks=ranks)
        for ranks in (2, 3, 4, 6, 8)
    ],
}


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
    of one distance, the one met most often, are compared with each other.
    """

    def __init__(self, table: Table) -> None:
        self.table = table
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
            limit_us = FAR * min((min(r["line_us"]) for r in records), default=0.0)
            for record in records:
                is_far = {line_us > limit_us for line_us in record["line_us"]}
                name = "mixed" if len(is_far) > 1 else "far" if True in is_far else "near"
                record["distance"] = name
                self.distances[name] += 1

    def kept(self, name: str | None, key: Key) -> dict[int, Record]:
        """The records of a contestant in one case that count, by round."""
        wanted = max(("near", "far"), key=lambda distance: self.distances[distance])
        rounds = self.rounds.get(name or "", {}).items()
        records = {i: samples[key] for i, samples in rounds if key in samples}
        return {i: record for i, record in records.items() if record["distance"] == wanted}

    def median(self, name: str, key: Key, field: str) -> float | None:
        """The median over the rounds, us; None for a contestant without results."""
        values = [record[field] for record in self.kept(name, key).values()]
        return statistics.median(values) if values else None

    def best_peer(self, key: Key, field: str) -> str | None:
        """The peer with the lowest median."""
        medians = {name: self.median(name, key, field) for name in PEERS}
        known = {name: value for name, value in medians.items() if value is not None}
        return min(known, key=lambda name: known[name]) if known else None

    def ratio(self, name: str | None, base: str | None, key: Key, field: str) -> list[float]:
        """The ratio in each round, sorted; empty when no round has results of both."""
        ours, theirs = self.kept(name, key), self.kept(base, key)
        return sorted(ours[i][field] / theirs[i][field] for i in ours.keys() & theirs.keys())


def cases_for(contestant: Contestant, table: Table) -> list[str]:
    """What a contestant measures of a table."""
    cases = []
    for collective, size_bytes in table.cases():
        if contestant.can(collective, table.dtype, table.ranks):
            count = max(ITERATIONS_MIN, min(ITERATIONS_MAX, ITERATIONS_BYTES // size_bytes))
            cases.append(f"{collective}:{size_bytes}:{count}")
    return cases


def run_table(arguments: argparse.Namespace, table: Table) -> Results:
    """Measure every contestant once per round, in an order that turns round each time."""
    workshop = Workshop(arguments.venv, is_installing=not arguments.no_install)
    results = Results(table)
    ready: list[tuple[Contestant, list[str]]] = []
    for contestant in CONTESTANTS:
        is_wanted = not arguments.only or contestant.name in arguments.only.split(",")
        if is_wanted and cases_for(contestant, table):
            try:
                ready.append((contestant, workshop.prepare(contestant, table.ranks)))
            except ContestantError as error:
                results.failures[contestant.name] = str(error)
    options = ["--dtype", table.dtype, "--budget", str(arguments.budget)]
    note(f"{table.title}, {table.dtype}")
    for index in range(arguments.rounds):
        for contestant, command in ready[:: -1 if index % 2 else 1]:
            name = contestant.name
            if name in results.failures:
                continue
            begin_s = time.monotonic()
            try:
                samples = measure(contestant, command, cases_for(contestant, table), options)
                results.rounds.setdefault(name, {})[index] = samples
            except ContestantError as error:
                results.failures[name] = f"round {index + 1}: {error}"
            took_s = time.monotonic() - begin_s
            state = results.failures.get(name, "done")
            note(f"round {index + 1}/{arguments.rounds} {name:13} {took_s:5.1f} s  {state}")
    results.sort_out()
    return results


def format_us(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def format_ratio(ratios: list[float], suffix: str = "") -> str:
    """'median [min..max]' of the rounds' ratios."""
    if not ratios:
        return "-"
    return f"{statistics.median(ratios):.2f} [{ratios[0]:.2f}..{ratios[-1]:.2f}]{suffix}"


def rows(heads: list[str], lines: list[list[str]]) -> list[str]:
    """A markdown table."""
    head = ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    return head + ["| " + " | ".join(line) + " |" for line in lines]


def times(results: Results, name: str, key: Key) -> str:
    """'p50 / p99 / p99.9' of a contestant."""
    values = [results.median(name, key, field) for field in PERCENTILES.values()]
    return " / ".join(format_us(value) for value in values if value is not None) or "-"


def ratios(results: Results, key: Key) -> list[str]:
    """What jetstream takes, as a part of what others take."""
    pairs = [("jetstream", "floor"), ("jetstream-sym", "floor"), ("jetstream-c", "floor-c")]
    cells = [format_ratio(results.ratio(*pair, key, "p50_us")) for pair in pairs]
    if key[0] != "all_reduce" or results.table.dtype != "float32" or results.table.ranks != 2:
        cells = []
    for ours in OURS:
        for field in PERCENTILES.values():
            best = results.best_peer(key, field)
            cells.append(format_ratio(results.ratio(ours, best, key, field), f" {best}"))
    return cells


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
    lines += [f"p50 / p99 / p99.9 in us, slower rank, median of {rounds} rounds."]
    lines += [f"Samples by distance of the two cores: {counts}; one distance is compared.", ""]
    cells = [[labels[key], *(times(results, name, key) for name in names)] for key in keys]
    lines += [*rows(["", *names], cells), ""]
    heads = [f"{ours} / best peer, {name}" for ours in OURS for name in PERCENTILES]
    cells = [[labels[key], *ratios(results, key)] for key in keys]
    if len(cells[0]) > len(heads) + 1:
        heads = ["jetstream / floor", "jetstream-sym / floor", "jetstream-c / floor-c", *heads]
    lines += ["Ratios: median [min..max] of the rounds' ratios; below 1 jetstream is faster.", ""]
    lines += rows(["", *heads], cells)
    if results.failures:
        lines += ["", "Not measured, or not in every round:", ""]
        lines += [f"- {name}: {reason}" for name, reason in results.failures.items()]
    return [*lines, ""]


def describe_machine() -> dict[str, str]:
    """What a reader needs to judge the figures."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    packages = [package for c in CONTESTANTS for package in (*c.packages, *c.bare)]
    versions = dict.fromkeys(package for package in packages if "==" in package)
    return {
        "processor": f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "peers": ", ".join(versions),
        "load average at the start": f"{os.getloadavg()[0]:.2f}",
    }


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    known_tables = ", ".join([*TABLES, "all"])
    parser.add_argument(
        "tables", nargs="*", default=["all_reduce"], metavar="TABLE", help=known_tables
    )
    parser.add_argument("--rounds", type=int, default=5, help="alternating rounds (default 5)")
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--sizes", help="instead of the tables' own, for example 8,64K,1M")
    parser.add_argument("--budget", type=float, default=0.6, help="seconds a case (default 0.6)")
    parser.add_argument("--only", metavar="NAMES", help="a comma-separated choice of contestants")
    parser.add_argument("--venv", type=Path, default=HERE / ".venv-peers", metavar="DIR")
    parser.add_argument("--no-install", action="store_true", help="use what DIR holds already")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples to FILE")
    arguments = parser.parse_args()
    if "all" in arguments.tables:
        arguments.tables = list(TABLES)
    if not TABLES.keys() >= set(arguments.tables):
        parser.error(f"choose from {known_tables}")
    try:
        _ = [parse_size(size) for size in (arguments.sizes or "8").split(",")]
    except ValueError as error:
        parser.error(f"--sizes: {error}")
    known = {contestant.name for contestant in CONTESTANTS}
    if arguments.only and not known.issuperset(arguments.only.split(",")):
        parser.error(f"--only: choose from {', '.join(sorted(known))}")
    if arguments.quick:
        arguments.rounds = 1
    return arguments


def as_json(results: Results) -> dict[str, Any]:
    """All samples of a table."""
    rounds = {
        name: {index: list(samples.values()) for index, samples in by_round.items()}
        for name, by_round in results.rounds.items()
    }
    return {"table": vars(results.table), "failures": results.failures, "rounds": rounds}


def main() -> None:
    """Measure, then report, table by table."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    arguments = parse_arguments()
    machine = describe_machine()
    print("\n".join(f"- {key}: {value}" for key, value in machine.items()) + "\n")
    done = []
    for name in arguments.tables:
        for table in TABLES[name]:
            if arguments.sizes:
                table = Table(**{**vars(table), "sizes": arguments.sizes})
            results = run_table(arguments, table)
            print("\n".join(render(results, arguments.rounds)), flush=True)
            done.append(as_json(results))
            if arguments.json:
                record = {"machine": machine, "tables": done}
                arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
