"""The simulator's Python front; its table is kept in git, as virtual time depends on nothing."""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest

from jetstream import sim
from jetstream.cli.main import main

GOLDEN = Path(__file__).with_name("golden.txt")


def test_table_is_as_kept() -> None:
    # After a change of the protocol: python -m jetstream.sim > tests/sim/golden.txt, and look.
    want = GOLDEN.read_text()
    got = sim.format_table(sim.table())
    diff = difflib.unified_diff(want.splitlines(), got.splitlines(), "kept", "now", lineterm="")
    assert got == want, "\n".join(diff)


def test_a_run_follows_from_its_seed() -> None:
    link = sim.Link(loss=0.02, duplicate=0.01, reorder=0.05, corrupt=0.01, stall_us=500)
    first = sim.simulate(link=link, messages=50, seed=3)
    assert first == sim.simulate(link=link, messages=50, seed=3)
    assert first != sim.simulate(link=link, messages=50, seed=4)
    assert first.retransmits > 0
    assert first.refused > 0


def test_nothing_is_repeated_without_loss() -> None:
    result = sim.simulate(messages=200, message_bytes=64)
    assert (result.retransmits, result.timeouts, result.probes, result.duplicates) == (0, 0, 0, 0)
    # In a sequence of small exchanges the answers carry the acknowledgements.
    assert result.acks_sent < 10
    assert result.p50_us < 2 * 5.0 + 2


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"messages": 0}, "messages"),
        ({"message_bytes": 20000}, "chunks"),
        ({"link": sim.Link(loss=-1)}, "loss"),
        ({"mtu_bytes": 20}, "out of range"),
        ({"window": 129}, "out of range"),
    ],
)
def test_options_out_of_range(options: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        sim.simulate(**options)  # type: ignore[arg-type]


def test_no_end_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sim, "_LIMIT_US", 1000)
    with pytest.raises(sim.SimulationError, match="seed 1: stuck"):
        sim.simulate(link=sim.Link(loss=0.999), messages=1)


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sim", "--loss", "0", "--stall", "0", "--seed", "1"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed == GOLDEN.read_text().splitlines()[:3]
    assert main(["sim", "--loss", "1"]) == 2
    with pytest.raises(SystemExit):
        main(["sim", "--loss", "some"])
    assert "'some' is not a list of numbers" in capsys.readouterr().err
