"""The result: one row per case, the machine's facts, and the JSON form with its version."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jetstream.bench.config import BenchConfig
from jetstream.bench.kinds import Case
from jetstream.bench.measure import Samples
from jetstream.bench.stats import curve, listed

__all__ = ["SCHEMA", "Report", "Row", "make_row", "write_json"]

#: Name and version of the JSON document; the number grows when a field changes its meaning.
SCHEMA = "jetstream.bench/1"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. Times in microseconds, of the slower rank in each iteration."""

    kind: str
    size_bytes: int
    count: int
    dtype: str
    redop: str
    root: int
    algorithm: str  # "" for messages, which have no choice
    iterations: int
    mean_us: float
    min_us: float
    max_us: float
    percentiles_us: dict[str, float | None]  # by name, "p99.9"; None: too few iterations
    curve: list[tuple[float, float]]  # (quantile, latency)
    algbw_gbs: float
    busbw_gbs: float
    wrong: int | None  # elements; None: not checked
    checks: int  # results compared, per rank
    ranks_agree: bool | None
    samples_ns: list[int] | None = None

    @property
    def failed(self) -> bool:
        """Whether a check found wrong data, or ranks with different data."""
        return bool(self.wrong) or self.ranks_agree is False

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Row:
        """Reads what asdict and JSON made of a row."""
        pairs = [(float(quantile), float(us)) for quantile, us in values["curve"]]
        return cls(**{**values, "curve": pairs})


@dataclass(slots=True)
class Report:
    """Everything a run has found so far."""

    config: BenchConfig
    machine: dict[str, Any] = field(default_factory=dict)
    ranks: list[dict[str, Any]] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    complete: bool = False

    @property
    def wrong(self) -> int:
        """Wrong elements in all rows, counting a disagreement of ranks as one at least."""
        return sum(max(row.wrong or 0, int(row.failed)) for row in self.rows)

    @property
    def checks(self) -> int:
        """Results compared with the reference, over all rows and ranks."""
        return sum(row.checks for row in self.rows) * self.config.ranks

    def rows_of(self, kind: str) -> list[Row]:
        """Returns the rows of one kind in the order they were measured."""
        return [row for row in self.rows if row.kind == kind]


def make_row(case: Case, samples: Samples, *, keep_samples: bool) -> Row:
    """Turns the samples of a case into its row."""
    ordered = np.sort(samples.latency_ns)
    mean_us = float(ordered.mean()) / 1e3
    algbw_gbs = case.size_bytes / mean_us / 1e3 if mean_us else 0.0
    return Row(
        kind=case.kind,
        size_bytes=case.size_bytes,
        count=case.count,
        dtype=case.dtype,
        redop=case.redop,
        root=case.root,
        algorithm=samples.algorithm,
        iterations=int(ordered.size),
        mean_us=mean_us,
        min_us=float(ordered[0]) / 1e3,
        max_us=float(ordered[-1]) / 1e3,
        percentiles_us=listed(ordered),
        curve=curve(ordered),
        algbw_gbs=algbw_gbs,
        busbw_gbs=algbw_gbs * case.busbw_factor,
        wrong=samples.wrong,
        checks=samples.checks,
        ranks_agree=samples.ranks_agree,
        samples_ns=samples.latency_ns.tolist() if keep_samples else None,
    )


def to_document(report: Report) -> dict[str, Any]:
    """Returns the JSON document of a report."""
    return {
        "schema": SCHEMA,
        "complete": report.complete,
        "machine": report.machine,
        "ranks": report.ranks,
        "config": asdict(report.config),
        "rows": [_row_document(row) for row in report.rows],
        "wrong": report.wrong,
        "checks": report.checks,
    }


def write_json(path: Path, report: Report) -> None:
    """Writes the JSON document of a report to a file."""
    path.write_text(json.dumps(to_document(report), indent=1) + "\n", encoding="utf-8")


def kinds_in_order(rows: Iterable[Row]) -> list[str]:
    """Returns the kinds that occur, in order of first appearance."""
    return list(dict.fromkeys(row.kind for row in rows))


def _row_document(row: Row) -> dict[str, Any]:
    document = asdict(row)
    if document["samples_ns"] is None:
        del document["samples_ns"]
    return document
