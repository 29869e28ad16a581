"""MPI through mpi4py: `mpiexec -n 2 python peer_mpi.py --shared FILE BYTES:ITERATIONS...`."""

from __future__ import annotations

import importlib
import os
from typing import Any

import loop
import numpy as np
import numpy.typing as npt


def launcher_rank() -> int:
    """This process's rank on its host, from the launcher: pinning must precede MPI's start."""
    for name in ("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "PMI_RANK"):
        if name in os.environ:
            return int(os.environ[name])
    raise SystemExit("start this program under mpiexec")


def main() -> None:
    """Measure in-place Allreduce with mpi4py's default thread level."""
    arguments = loop.parse_arguments(__doc__)
    loop.pin(launcher_rank())
    mpi: Any = importlib.import_module("mpi4py.MPI")  # not installed where the product is built
    world = mpi.COMM_WORLD

    def bind(x: npt.NDArray[np.float32]) -> tuple[Any, tuple[Any, ...]]:
        return world.Allreduce, (mpi.IN_PLACE, x)

    loop.run(loop.Meeting(arguments.shared, world.rank, world.size), arguments.sizes, bind)


if __name__ == "__main__":
    main()
