"""The decode step example: the program runs, measures and checks itself; its checks can fail."""

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
    program = [str(EXAMPLES / "decode_step.py"), *options]
    return subprocess.run(
        launch + program, cwd=folder, capture_output=True, text=True, timeout=PROGRAM_TIMEOUT_S
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", [1, 2])
def test_program_measures_and_checks(size: int, dtype: str, tmp_path: Path) -> None:
    quick = ("--steps", "2", "--shrink", "256", "--batch", "1", "2", "--dtype", dtype)
    done = start(tmp_path, size, *quick, "--peer", "mpi")
    assert done.returncode == 0, done.stdout + done.stderr
    item_bytes = 4 if dtype == "float32" else 2
    for batch in (1, 2):
        assert f"64 all-reduces of {batch * 4 * item_bytes} KiB {dtype}" in done.stdout
    for name in ("private", "symmetric", "symmetric, out="):
        assert done.stdout.count(f"jetstream, {name} ") == 2
    assert "of the model's" in done.stdout and "1/256" in done.stdout
    assert "all contestants agree" in done.stdout
    if size == 2 or dtype == "bfloat16":  # MPI cannot take part, and the reason is told
        assert "without mpi: " in done.stdout


def test_ranks_that_do_not_divide_are_refused(tmp_path: Path) -> None:
    done = start(tmp_path, 3, "--steps", "1")
    assert done.returncode == 2 and "powers of two" in done.stderr


def run_check(comm: Communicator, folder: str) -> None:
    sys.path.insert(0, folder)
    check: Any = importlib.import_module("decode_step").check
    good = np.full((2, 8), 3, np.float32)
    one_bit_off = good.copy()
    one_bit_off[1, 7] = np.nextafter(np.float32(3), np.float32(4))
    names = ["jetstream, private", "jetstream, symmetric", "peer"]
    assert check(comm, names, [good, good, one_bit_off], "float32") == []
    (text,) = check(comm, names, [good, one_bit_off, good], "float32")
    assert text == "jetstream, symmetric: not the bits of jetstream, private"
    (text,) = check(comm, names, [good, good, good * 1.01], "float32")
    assert text == "peer: not the result of jetstream, private"
    assert check(comm, names, [good, good, good * 1.01], "bfloat16") == []
    mine = one_bit_off if comm.rank == 1 else good
    texts = check(comm, names[:1], [mine], "float32")
    assert texts == ["jetstream, private: not the same bits on all ranks"]


def test_checks_can_fail(rank_pools: Pools) -> None:
    rank_pools(2).run(run_check, str(EXAMPLES))
