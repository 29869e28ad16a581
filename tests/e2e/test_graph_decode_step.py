"""The decode step as one graph: the program runs and checks itself; its checks can fail."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jetstream.communicator import Communicator
from jetstream.testing.plugin import Pools

EXAMPLES = Path(__file__).parents[2] / "examples"
PROGRAM_TIMEOUT_S = 120


def start(folder: Path, size: int, *options: str) -> subprocess.CompletedProcess[str]:
    """Runs the program where Python finds the installed package, not the source tree."""
    launch = [sys.executable, "-m", "jetstream", "run", "-n", str(size)]
    program = [str(EXAMPLES / "graph_decode_step.py"), *options]
    return subprocess.run(
        launch + program, cwd=folder, capture_output=True, text=True, timeout=PROGRAM_TIMEOUT_S
    )


@pytest.mark.parametrize(("size", "dtype"), [(1, "float32"), (2, "float32"), (2, "bfloat16")])
def test_program_measures_and_checks(size: int, dtype: str, tmp_path: Path) -> None:
    pytest.importorskip("numba")
    quick = ("--steps", "3", "--layers", "3", "--columns", "5", "--dtype", dtype)
    done = start(tmp_path, size, *quick)
    assert done.returncode == 0, done.stdout + done.stderr
    hidden = 2048 if dtype == "float32" else 4096
    assert f"hidden size {hidden}, 5 columns a rank; 6 all-reduces of 8 KiB {dtype}" in done.stdout
    for name in ("Python, ordinary calls ", "Python, persistent calls ", "one graph "):
        assert done.stdout.count(name) == 1
    assert "all three ways give the same bits, on all ranks" in done.stdout


def test_without_numba(tmp_path: Path) -> None:
    code = "import sys, runpy; sys.modules['numba'] = None; sys.argv = ['x']; "
    code += f"runpy.run_path({str(EXAMPLES / 'graph_decode_step.py')!r}, run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PROGRAM_TIMEOUT_S,
    )
    assert done.returncode == 2 and "pip install numba" in done.stderr, done.stderr


def run_check(comm: Communicator, folder: str) -> None:
    sys.path.insert(0, folder)
    check: Any = importlib.import_module("graph_decode_step").check
    good = np.full(8, 3, np.float32)
    one_bit_off = good.copy()
    one_bit_off[7] = np.nextafter(np.float32(3), np.float32(4))
    assert check(comm, {"a": good, "b": good.copy()}, good, "float32") == []
    wrong = check(comm, {"a": good, "b": one_bit_off}, good, "float32")
    assert wrong == ["b: not the bits of a"]
    mine = one_bit_off if comm.rank else good
    wrong = check(comm, {"a": mine}, good, "float32")
    assert wrong == ["a: not the same bits on all ranks"]
    for output in (good * 2, np.full(8, np.nan, np.float32)):
        assert "a: not what NumPy computes" in check(comm, {"a": output}, good, "float32")


def test_check_can_fail(rank_pools: Pools) -> None:
    rank_pools(2).run(run_check, str(EXAMPLES))
