"""Short versions of the soak tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
LIMIT_S = 300


@pytest.mark.parametrize("ranks", [2, 5])
def test_random_communicators(ranks: int, no_leaks: None) -> None:
    command = ["soak_groups.py", "--seconds", "3", "--ranks", str(ranks), "--seed", "1"]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=HERE,
        timeout=LIMIT_S,
        check=False,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout
    assert "memory flat" in done.stdout
