"""torch.distributed with gloo: `python peer_gloo.py --shared FILE BYTES:ITERATIONS...`.

The program starts its two ranks itself.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import tempfile
from typing import Any

import loop
import numpy as np
import numpy.typing as npt

WORLD_SIZE = 2


def run_rank(rank: int, store_dir: str, arguments: argparse.Namespace) -> None:
    """Measure in-place all_reduce of a tensor that shares the NumPy array's memory."""
    loop.pin(rank)
    torch: Any = importlib.import_module("torch")  # not installed where the product is built
    torch.set_num_threads(1)
    dist = torch.distributed
    dist.init_process_group(
        "gloo", init_method=f"file://{store_dir}/store", rank=rank, world_size=WORLD_SIZE
    )

    def bind(x: npt.NDArray[np.float32]) -> tuple[Any, tuple[Any, ...]]:
        return dist.all_reduce, (torch.from_numpy(x),)

    loop.run(loop.Meeting(arguments.shared, rank, WORLD_SIZE), arguments.sizes, bind)
    dist.destroy_process_group()


def main() -> None:
    """Run both ranks and fail if one of them does."""
    arguments = loop.parse_arguments(__doc__)
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as store_dir:
        ranks = [
            context.Process(target=run_rank, args=(rank, store_dir, arguments), daemon=True)
            for rank in range(WORLD_SIZE)
        ]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
    if any(process.exitcode != 0 for process in ranks):
        raise SystemExit(f"exit codes of the ranks: {[process.exitcode for process in ranks]}")


if __name__ == "__main__":
    main()
