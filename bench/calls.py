"""What a call from Python adds to the data plane: test_calls.py on one rank and on two."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from contestants import HERE, ContestantError, call
from report import format_size, rows

CALLS = 1000  # in a round, as in test_calls.py
BASE = "launched from C"
TIMEOUT_S = 300


def measure(ranks: int) -> list[dict[str, Any]]:
    """The benchmarks of one run, as pytest-benchmark writes them."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "calls.json"
        words = [sys.executable, "-m", "jetstream", "run", "-n", str(ranks)]
        call([*words, str(HERE / "calls.py"), str(file)], {}, TIMEOUT_S)
        benchmarks: list[dict[str, Any]] = json.loads(file.read_text())["benchmarks"]
    return benchmarks


def render(ranks: int) -> list[str]:
    """One table: ns per call, and what is more than the plan launched from C takes."""
    lines = [f"## Calls, {ranks} rank(s), float32", ""]
    try:
        found = measure(ranks)
    except ContestantError as error:
        return [*lines, f"not measured: {error}", ""]
    medians: dict[tuple[str, int], float] = {}
    for entry in found:
        info = entry["extra_info"]
        medians[info["way"], info["size_bytes"]] = entry["stats"]["median"] * 1e9 / CALLS
    sizes = sorted({size for _, size in medians})
    cells = []
    for way in dict.fromkeys(way for way, _ in medians):
        line = [way]
        for size in sizes:
            ns = medians[way, size]
            line += [f"{ns:.0f}", f"{ns - medians[BASE, size]:+.0f}" if way != BASE else ""]
        cells.append(line)
    heads = [head for size in sizes for head in (f"{format_size(size)}, ns", "more than C")]
    lines += ["Median of rounds of 1000 calls back to back, rank 0; a loop's turn is in it.", ""]
    return [*lines, *rows(["", *heads], cells), ""]


def run_rank(file: str) -> int:
    """One rank: pytest; only the first rank's figures are kept and only its output is shown."""
    import pytest  # here, since the report needs none

    is_first = os.environ.get("JETSTREAM_RANK", "0") == "0"
    target = file if is_first else os.devnull
    options = [
        "-q",
        "-p",
        "no:cacheprovider",
        "--benchmark-disable-gc",
        "--benchmark-sort=fullname",
    ]
    return int(pytest.main([*options, f"--benchmark-json={target}", str(HERE / "test_calls.py")]))


if __name__ == "__main__":
    sys.exit(run_rank(sys.argv[1]))
