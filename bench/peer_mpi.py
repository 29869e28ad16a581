"""MPI through mpi4py: `mpiexec -n 2 python peer_mpi.py --shared FILE CASES`."""

from __future__ import annotations

import importlib
import os
from functools import partial
from typing import Any

import loop


def launcher_rank() -> int:
    """This process's rank on its host, from the launcher: pinning must precede MPI's start."""
    for name in ("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "PMI_RANK"):
        if name in os.environ:
            return int(os.environ[name])
    raise SystemExit("start this program under mpiexec")


def bind(mpi: Any, collective: str, x: loop.Array, out: loop.Array) -> loop.Operation:
    """The buffer call of mpi4py."""
    world = mpi.COMM_WORLD
    if collective == "all_reduce":
        return world.Allreduce, (mpi.IN_PLACE, x)
    if collective == "reduce_scatter":
        return world.Reduce_scatter_block, (x, out)
    if collective == "all_gather":
        return world.Allgather, (x, out)
    if collective == "all_to_all":
        return world.Alltoall, (x, out)
    if collective == "broadcast":
        return world.Bcast, (x,)
    if collective == "barrier":
        return world.Barrier, ()
    peer = 1 - world.rank
    if peer < 0:
        return loop.idle, ()
    first = world.rank == 0
    return loop.echo(lambda x: world.Send(x, peer), lambda y: world.Recv(y, peer), first), (x, out)


def main() -> None:
    """Measure with mpi4py's default thread level."""
    arguments = loop.parse_arguments(__doc__)
    loop.pin(launcher_rank())
    mpi: Any = importlib.import_module("mpi4py.MPI")  # not installed where the product is built
    meeting = loop.Meeting(arguments.shared, mpi.COMM_WORLD.rank, mpi.COMM_WORLD.size)
    loop.Bench(meeting, arguments, partial(bind, mpi)).run()


if __name__ == "__main__":
    main()
