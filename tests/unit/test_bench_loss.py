"""What loss costs: the table of ``bench/loss.py``."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def loss(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("loss")


def test_losses(loss: Any) -> None:
    assert loss.parse_losses("0,0.05") == (0.0, 0.05)
    for wrong in ("1", "-0.1", "nan", "foo", "0,"):
        with pytest.raises(argparse.ArgumentTypeError):
            loss.parse_losses(wrong)


def test_the_simulator_is_in_the_table(loss: Any) -> None:
    quiet, lossy = (loss.simulate(rate, calls=400) for rate in (0.0, 0.05))
    assert quiet["p999_us"] < lossy["p999_us"]
    assert quiet["gbps"] > lossy["gbps"]
    measured = {"p50_us": 1.26, "p99_us": 20, "p999_us": 300, "gbps": 4.5, "retransmits": 7}
    measured |= {"duplicates": 1, "timeouts": 0, "probes": 2}
    rows = [{"loss": 0.05, "link": "udp", **measured}, {"loss": 0.05, "link": "simulated", **lossy}]
    lines = loss.format_table(rows).splitlines()
    assert lines[2] == "| 5 % | udp | 1.3 | 20.0 | 300.0 | 4.50 | 7 | 1 | 0 |"
    assert lines[3].endswith(" |  |  |  |")
    assert len({line.count("|") for line in lines}) == 1
