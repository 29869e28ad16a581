"""The report of the comparison with peers: what counts, what is marked; the model of more ranks."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parents[2] / "bench"
KEY = ("all_reduce", 8)


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Import a module of the benchmarks by its name."""
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module


def sample(time_us: float, line_us: float = 0.1) -> dict[tuple[str, int], dict[str, Any]]:
    record = dict.fromkeys(("p50_us", "p99_us", "p999_us"), time_us)
    return {KEY: {**record, "line_us": [line_us, line_us]}}


def make(report: Any, **times_us: list[dict[tuple[str, int], Any]]) -> Any:
    results = report.Results(report.Table("title", sizes="8"))
    for name, rounds in times_us.items():
        results.rounds[name] = dict(enumerate(rounds))
    results.sort_out()
    return results


def test_slower_than_the_best_peer_is_bold(load: Callable[[str], Any]) -> None:
    report = load("report")
    ours, peer, other = [sample(2.0), sample(4.0)], [sample(1.0), sample(1.0)], [sample(9.0)] * 2
    text = "\n".join(report.render(make(report, jetstream=ours, openmpi=peer, mpich=other), 2))
    assert "**3.00 [2.00..4.00] openmpi**" in text
    assert "jetstream: faster than every peer in 0 of 3 cells" in text
    text = "\n".join(report.render(make(report, jetstream=peer, openmpi=ours, mpich=other), 2))
    assert " 0.38 [0.25..0.50] openmpi |" in text
    assert "jetstream: faster than every peer in 3 of 3 cells" in text


def test_one_distance_of_the_cores_is_compared(load: Callable[[str], Any]) -> None:
    report = load("report")
    far = sample(50.0, line_us=0.3)
    results = make(report, jetstream=[sample(2.0), far], mpich=[far, sample(4.0), sample(4.0)])
    assert results.median("jetstream", KEY, "p50_us") == 2.0
    assert results.median("mpich", KEY, "p50_us") == 4.0
    assert results.ratio("jetstream", "mpich", KEY, "p50_us") == [0.5]  # no round has both
    results.distance = "far"
    assert results.ratio("jetstream", "mpich", KEY, "p50_us") == [1.0]
    assert results.ratio("jetstream", "gloo", KEY, "p50_us") == []


def test_failures_are_named(load: Callable[[str], Any]) -> None:
    report = load("report")
    results = make(report, jetstream=[sample(1.0)])
    results.failures["gloo"] = "not installed"
    assert "- gloo: not installed" in report.render(results, 1)


def test_sizes(load: Callable[[str], Any]) -> None:
    report = load("report")
    for text, value in (("8", 8), ("64K", 65536), ("1M", 1 << 20)):
        assert report.parse_size(text) == value
    assert report.format_size(65536) == "64 KiB"
    for text in ("0", "6", "x"):
        with pytest.raises((ValueError, argparse.ArgumentTypeError)):
            report.parse_size(text)


def test_model_finds_the_prices_again(load: Callable[[str], Any]) -> None:
    model = load("model")
    true = model.Prices(100.0, 40.0, {"one_shot": 0.2, "lend": 0.05}, 0.0)
    keys = [(name, size) for name in model.ALGORITHMS for size in model.FIT_BYTES]
    found = model.fit({key: 1000 * true.time_us(key[0], 2, key[1]) for key in keys})
    assert found.message == pytest.approx(100.0) and found.operation == pytest.approx(40.0)
    assert found.byte == pytest.approx(true.byte)
    assert found.error < 1e-6
    assert true.time_us("one_shot", 8, 1000) == pytest.approx(0.18 + 9 * 0.2)


def test_links_are_set_against_the_best_peer_and_gloo(load: Callable[[str], Any]) -> None:
    report = load("report")
    times = {"jetstream-udp": 2.0, "jetstream-packet": 1.0, "mpich-tcp": 4.0, "gloo": 80.0}
    results = make(report, **{name: [sample(time)] for name, time in times.items()})
    heads, cells = report.ratio_columns(results)
    row = dict(zip(heads, cells[KEY], strict=True))
    assert row["jetstream-udp / best peer, p50"] == "0.50 [0.50..0.50] mpich-tcp"
    assert row["jetstream-packet / best peer, p99.9"] == "0.25 [0.25..0.25] mpich-tcp"
    assert row["gloo / jetstream-udp"] == "40.0" and row["gloo / jetstream-packet"] == "80.0"


def test_contestants_differ_by_what_is_between_the_ranks(load: Callable[[str], Any]) -> None:
    contestants, hosts = load("contestants"), load("hosts")
    for one in contestants.CONTESTANTS:
        for path in one.paths:
            there = one.between(path, {"MORE": "1"})
            assert there.command == (one.on_hosts if path == "hosts" else one.command)
            assert there.command and there.environment["MORE"] == "1"
            assert not any("{" in value for value in there.environment.values())
    mpich = contestants.BY_NAME["mpich"]
    (tcp,) = (one for one in contestants.CONTESTANTS if one.name == "mpich-tcp")
    assert "FI_TCP_IFACE" not in mpich.between("memory", {}).environment
    assert tcp.between("network", {}).environment["FI_TCP_IFACE"] == "lo"
    assert tcp.between("hosts", {}).environment["FI_TCP_IFACE"] == hosts.INTERFACE
