"""What all_reduce would take on more cores than there are here: prices from two ranks, then a sum.

The amounts are those of docs/algorithms.md: messages in a row, operations of the plan, bytes that a
rank writes and reads. Two ranks with a core each tell the prices: both algorithms, several sizes,
launched from C. A byte has one price in each algorithm, read or written: lines that are lent and
given back are cheaper than those of a ring.
"""

from __future__ import annotations

import itertools
import json
import sys
from dataclasses import dataclass

import loop
import numpy as np
from contestants import HERE, ContestantError, call
from report import format_size, format_value, rows

ALGORITHMS = ("one_shot", "lend")
FIT_BYTES = (64, 1024, 4096, 16384, 65536)
SHOW_BYTES = (8, 8192, 65536)
SHOW_RANKS = (2, 4, 8, 16, 32, 64)
LAUNCHES, ROUNDS = 2000, 5
TIMEOUT_S = 120


def amounts(algorithm: str, ranks: int, size_bytes: int) -> tuple[float, float, float]:
    """Messages in a row, operations, bytes written and read by one rank."""
    if algorithm == "one_shot":
        return 1, 2, (1 + ranks) * size_bytes
    return 2, 2 * ranks - 1, (3 - 2 / ranks) * size_bytes


@dataclass(frozen=True)
class Prices:
    """In ns; `error` is the largest relative one of the fit."""

    message: float
    operation: float
    byte: dict[str, float]
    error: float

    def time_us(self, algorithm: str, ranks: int, size_bytes: int) -> float:
        """What all_reduce takes."""
        messages, operations, moved = amounts(algorithm, ranks, size_bytes)
        fixed = messages * self.message + operations * self.operation
        return (fixed + moved * self.byte[algorithm]) / 1000


def fit(samples: dict[tuple[str, int], float]) -> Prices:
    """Prices from the times of two ranks, ns: each algorithm's line, by relative errors."""
    fixed, byte = {}, {}
    for algorithm in ALGORITHMS:
        sizes = np.array([size for name, size in samples if name == algorithm], float)
        times = np.array([time for (name, _), time in samples.items() if name == algorithm])
        slope, fixed[algorithm] = np.polyfit(sizes, times, 1, w=1 / times)
        byte[algorithm] = slope * sizes[0] / amounts(algorithm, 2, int(sizes[0]))[2]
    # one_shot: 1 message, 2 operations; lend: 2 and 3
    operation = min(max(2 * fixed["one_shot"] - fixed["lend"], 0.0), fixed["one_shot"] / 2)
    message = max(fixed["one_shot"] - 2 * operation, 0.0)
    rough = Prices(message, operation, byte, 0.0)
    errors = [
        abs(1000 * rough.time_us(name, 2, n) / time - 1) for (name, n), time in samples.items()
    ]
    return Prices(message, operation, byte, max(errors))


def run_rank() -> None:
    """Measure on one of two ranks; rank 0 prints the medians as JSON."""
    import jetstream

    with jetstream.init() as comm:
        loop.pin(comm.rank)
        found: dict[tuple[str, int], list[float]] = {}
        for _, algorithm, size in itertools.product(range(ROUNDS), ALGORITHMS, FIT_BYTES):
            x = np.zeros(size // 4, np.float32)
            comm.barrier()
            latency_ns = comm.time_launches("all_reduce", x, LAUNCHES, algo=algorithm)
            slowest = comm.all_gather(latency_ns).reshape(comm.size, -1).max(axis=0)
            found.setdefault((algorithm, size), []).append(float(np.median(slowest)))
        if comm.rank == 0:
            print(json.dumps([[*key, float(np.median(times))] for key, times in found.items()]))


def render() -> list[str]:
    """The model's table."""
    lines = ["## all_reduce on more cores: a model", ""]
    command = [sys.executable, "-m", "jetstream", "run", "-n", "2", str(HERE / "model.py")]
    try:
        output = call(command, {}, TIMEOUT_S)
    except ContestantError as error:
        return [*lines, f"not measured: {error}", ""]
    entries = json.loads(output[output.index("[[") :])
    prices = fit({(algorithm, size): time for algorithm, size, time in entries})
    bytes_text = ", ".join(f"{name} {price:.3f} ns" for name, price in prices.byte.items())
    lines += [
        f"Prices from two ranks: a message in a row {prices.message:.0f} ns, an operation "
        f"{prices.operation:.0f} ns, a byte {bytes_text}; largest error {prices.error:.0%}.",
        "Below, us of a launch from C with private arrays, every rank on a core of its own and all",
        "cores as near one another as these two; the cheaper algorithm. Computed, not measured.",
        "",
    ]
    cells = []
    for size in SHOW_BYTES:
        line = [format_size(size)]
        for ranks in SHOW_RANKS:
            times = {name: prices.time_us(name, ranks, size) for name in ALGORITHMS}
            best = min(times, key=lambda name: times[name])
            line.append(f"{format_value(times[best])} {best}")
        cells.append(line)
    return [*lines, *rows(["", *(f"{ranks} ranks" for ranks in SHOW_RANKS)], cells), ""]


if __name__ == "__main__":
    run_rank()
