"""Latency statistics: percentiles by nearest rank, and how many samples each one needs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "LISTED_QUANTILES",
    "curve",
    "geometric_range",
    "listed",
    "percentile_us",
    "samples_needed",
    "slowest_rank",
]

#: Quantiles that the JSON document lists for every size.
LISTED_QUANTILES = (0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9995, 0.9999, 0.99999)

_CURVE_POINTS_PER_DECADE = 12
_CONFIDENCE = 0.975


def samples_needed(quantile: float) -> int:
    """Returns the fewest samples for which a quantile has a two-sided 95 % confidence bound.

    368 for p99, 3688 for p99.9. With fewer, the number printed would be the luck of a few
    samples, so it is not printed.
    """
    if not 0.0 < quantile < 1.0:
        raise ValueError(f"quantile {quantile} is not between 0 and 1")
    return math.ceil(round(math.log(1.0 - _CONFIDENCE) / math.log(quantile), 6))


def slowest_rank(latency_ns: NDArray[np.int64]) -> NDArray[np.int64]:
    """Reduces latencies of shape (ranks, iterations) to the slower rank's of each iteration."""
    return np.asarray(latency_ns.max(axis=0))


def percentile_us(sorted_ns: NDArray[np.int64], quantile: float) -> float | None:
    """Returns a quantile in microseconds by nearest rank: a latency that really occurred.

    sorted_ns: ascending. None where there are too few samples to tell (see samples_needed).
    """
    count = int(sorted_ns.size)
    if count == 0 or count < samples_needed(quantile):
        return None
    return _nearest_rank_us(sorted_ns, quantile)


def curve(sorted_ns: NDArray[np.int64]) -> list[tuple[float, float]]:
    """Returns the percentile curve as (quantile, latency in us), even steps of log10(1/(1-q)).

    Ends at the maximum, drawn at the quantile 1 - 1/n.
    """
    count = int(sorted_ns.size)
    if count == 0:
        return []
    decades = math.log10(count)
    steps = max(1, math.ceil(decades * _CURVE_POINTS_PER_DECADE))
    quantiles = [1.0 - 10.0 ** (-decades * step / steps) for step in range(steps)]
    points = [(q, _nearest_rank_us(sorted_ns, q)) for q in quantiles]
    points.append((1.0 - 1.0 / count, float(sorted_ns[-1]) / 1e3))
    return points


def listed(sorted_ns: NDArray[np.int64]) -> dict[str, float | None]:
    """Returns LISTED_QUANTILES by name ("p99.9"), in microseconds; None: too few samples."""
    return {quantile_name(q): percentile_us(sorted_ns, q) for q in LISTED_QUANTILES}


def quantile_name(quantile: float) -> str:
    """Returns "p99.9" for 0.999."""
    return f"p{quantile * 100:.7g}"


def geometric_range(values: Sequence[float]) -> tuple[float, float]:
    """Returns the smallest and largest positive value; (1, 10) when there is none."""
    positive = [value for value in values if value > 0]
    return (min(positive), max(positive)) if positive else (1.0, 10.0)


def _nearest_rank_us(sorted_ns: NDArray[np.int64], quantile: float) -> float:
    rank = max(1, math.ceil(round(quantile * sorted_ns.size, 6)))
    return float(sorted_ns[rank - 1]) / 1e3
