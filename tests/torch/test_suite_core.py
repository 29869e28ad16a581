"""torch's own tests of collectives and messages pass on jetstream, as they do on gloo.

All of torch's tests, in every world size: `python -m tests.torch.suite`, see docs/testing.md.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch.distributed", reason="torch is not installed")
pytest.importorskip("expecttest", reason="torch's own tests need expecttest")

ROOT = Path(__file__).resolve().parents[2]
#: Fewer than this would mean that the selection has lost tests, in place of passing them.
LEAST_PASSED = 35


def test_core(tmp_path: Path) -> None:
    backend = "jetstream-as-gloo"  # which has more tests than jetstream by its own name
    command = [sys.executable, "-m", "tests.torch.suite", "--core", "--quiet"]
    command += ["--as", backend, "--world-size", "2", "--output", str(tmp_path)]
    ended = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    said = f"{ended.stdout[-6000:]}\n{ended.stderr[-6000:]}"
    assert ended.returncode == 0, said
    results = tmp_path / f"{backend}-2" / "results.json"
    assert json.loads(results.read_text())["count"]["passed"] >= LEAST_PASSED, said


def test_a_failure_is_reported_with_what_the_ranks_said(tmp_path: Path) -> None:
    """No test is done in no time."""
    command = [sys.executable, "-m", "tests.torch.suite", "--as", "gloo", "--world-size", "2"]
    command += ["-k", "test_get_rank$", "--timeout", "0", "--output", str(tmp_path)]
    ended = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 1, ended.stderr
    assert "test_get_rank  failed: " in ended.stdout
    outcome = json.loads((tmp_path / "gloo-2" / "results.json").read_text())["outcomes"][0]
    # The parent ends the ranks, unless one of them has given up a barrier before.
    assert re.search("Timing out|timed out|barrier timeout", outcome["reason"])
