"""Percentiles of bench: nearest rank, and silence where the samples cannot tell."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from jetstream.bench.stats import (
    curve,
    listed,
    percentile_us,
    quantile_name,
    samples_needed,
    slowest_rank,
)


@pytest.mark.parametrize(
    ("quantile", "count"), [(0.99, 368), (0.999, 3688), (0.9999, 36887), (0.5, 6)]
)
def test_samples_needed_for_a_two_sided_bound(quantile: float, count: int) -> None:
    assert samples_needed(quantile) == count
    assert 1 - quantile**count >= 0.975 > 1 - quantile ** (count - 1)


@pytest.mark.parametrize("quantile", [0.0, 1.0, -1.0, 2.0])
def test_samples_needed_refuses(quantile: float) -> None:
    with pytest.raises(ValueError, match="between"):
        samples_needed(quantile)


def test_percentile_is_a_latency_that_occurred() -> None:
    ordered = np.arange(1, 10_001, dtype=np.int64) * 1000
    assert percentile_us(ordered, 0.5) == 5000.0
    assert percentile_us(ordered, 0.99) == 9900.0
    assert percentile_us(ordered, 0.999) == 9990.0


def test_percentile_agrees_with_numpy() -> None:
    ordered = np.sort(np.random.default_rng(3).integers(100, 10**6, 5003))
    for quantile in (0.5, 0.9, 0.99, 0.999):
        expected = np.quantile(ordered, quantile, method="inverted_cdf") / 1e3
        assert percentile_us(ordered, quantile) == expected


def test_percentile_is_not_told_from_too_few_samples() -> None:
    ordered = np.arange(367, dtype=np.int64)
    assert percentile_us(ordered, 0.99) is None
    assert percentile_us(np.arange(368, dtype=np.int64), 0.99) is not None
    assert percentile_us(np.empty(0, np.int64), 0.5) is None


def test_curve_rises_from_the_minimum_to_the_maximum() -> None:
    ordered = np.sort(np.random.default_rng(1).integers(500, 90_000, 2000))
    points = curve(ordered)
    assert points[0] == (0.0, ordered[0] / 1e3)
    assert points[-1] == (1 - 1 / 2000, ordered[-1] / 1e3)
    assert points == sorted(points)
    assert all(low[1] <= high[1] for low, high in pairwise(points))


def test_curve_of_one_and_of_none() -> None:
    assert curve(np.array([7000], np.int64))[-1] == (0.0, 7.0)
    assert curve(np.empty(0, np.int64)) == []


def test_slowest_rank_counts_in_each_iteration() -> None:
    assert slowest_rank(np.array([[1, 9, 3], [4, 2, 3]])).tolist() == [4, 9, 3]


def test_listed_names() -> None:
    values = listed(np.arange(400, dtype=np.int64))
    assert values["p50"] is not None
    assert values["p99.9"] is None
    assert quantile_name(0.9995) == "p99.95"
