"""What the runner of torch's tests makes of their results."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

SUITE = Path(__file__).parent / "suite"


@pytest.fixture(scope="module")
def outcomes() -> ModuleType:
    spec = importlib.util.spec_from_file_location("suite_outcomes", SUITE / "outcomes.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("result", "known", "becomes", "is_good"),
    [
        ("passed", None, "passed", True),
        ("failed", None, "failed", False),
        ("skipped", None, "skipped", True),
        ("failed", "torch's own", "excluded", True),
        ("passed", "torch's own", "passed, but is excluded", False),
        ("skipped", "torch's own", "skipped", True),
    ],
)
def test_judging(
    outcomes: ModuleType, result: str, known: str | None, becomes: str, is_good: bool
) -> None:
    judged = outcomes.judge(outcomes.Outcome("test_x", result, 1.0, "said"), known)
    assert judged.result == becomes
    run = outcomes.Run("gloo", 2, "2.13", [judged])
    assert run.is_good is is_good
    assert run.count() == {becomes: 1}
    if becomes != "passed":
        assert f"{becomes}: test_x: " in run.summary()


def test_reason_in_a_line(outcomes: ModuleType) -> None:
    printed = (
        "--- raised\nTraceback (most recent call last):\nRuntimeError: Process 0 exited with:\n"
        "Traceback:\nAssertionError: Scalars are not equal!\n\nExpected 1 but got 2.\n"
    )
    line = outcomes.Outcome("test_x", "failed", 0.1, printed).line
    assert line == "AssertionError: Scalars are not equal!"
    assert outcomes.Outcome("test_x", "skipped", 0.1, "no CUDA").line == "no CUDA"


def test_writing(outcomes: ModuleType, tmp_path: Path) -> None:
    run = outcomes.Run("gloo", 3, "2.13", [outcomes.Outcome("test_x", "passed", 0.5)])
    run.write(tmp_path / "results.json")
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["count"] == {"passed": 1}
    assert written["outcomes"][0]["name"] == "test_x"
