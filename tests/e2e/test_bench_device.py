"""bench/device.py, run as its reader would run it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "bench" / "device.py"


@pytest.mark.parametrize(("table", "rows"), [("launches", 7), ("overlap", 2)])
def test_a_table(table: str, rows: int) -> None:
    """Every row is there, and its figures are numbers."""
    done = subprocess.run(
        [sys.executable, str(PROGRAM), table, "--rounds", "1"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("| ")][1:]
    cells = [[cell.strip(" %") for cell in line.strip("|").split("|")] for line in lines]
    assert len([line for line in cells if "---" not in line[0]]) == rows
    for line in cells:
        assert all("---" in cell or float(cell) is not None for cell in line[1:])


def test_help() -> None:
    done = subprocess.run([sys.executable, str(PROGRAM), "--help"], capture_output=True, check=True)
    assert b"separation" in done.stdout or b"apart" in done.stdout
