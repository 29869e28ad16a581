"""MPI through mpi4py: `mpiexec -n 2 python peer_mpi.py --shared FILE CASES`.

With `--library FILE` the all-reduce is that of oneCCL, which uses MPI to start: FILE is
c/oneccl.cpp, built.
"""

from __future__ import annotations

import ctypes
import importlib
import os
from functools import partial
from typing import Any

import loop
import numpy as np

ADDRESS_BYTES = 256  # of oneCCL's meeting place


def launcher_rank() -> int:
    """This process's rank, from the launcher: pinning must precede MPI's start."""
    for name in ("OMPI_COMM_WORLD_RANK", "PMI_RANK"):
        if name in os.environ:
            return int(os.environ[name])
    raise SystemExit("start this program under mpiexec")


def bind(mpi: Any, collective: str, x: loop.Array, out: loop.Array) -> loop.Operation:
    """The buffer call of mpi4py."""
    world = mpi.COMM_WORLD
    if collective == "all_reduce":
        return world.Allreduce, (mpi.IN_PLACE, x)
    if collective == "all_reduce_out":
        return world.Allreduce, (x, out)
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
    peer = world.rank ^ 1
    first = world.rank < peer
    return loop.echo(lambda x: world.Send(x, peer), lambda y: world.Recv(y, peer), first), (x, out)


def open_oneccl(world: Any, path: str) -> Any:
    """oneCCL on all ranks of `world`; all_reduce only."""
    library = ctypes.CDLL(path)
    address = np.zeros(ADDRESS_BYTES, np.uint8)
    pointer = ctypes.c_void_p(address.ctypes.data)
    library.oneccl_open(world.rank, pointer, ctypes.c_size_t(ADDRESS_BYTES))
    world.Bcast(address)
    library.oneccl_join(world.rank, world.size, pointer)
    return library


def bind_oneccl(
    library: Any, dtype: str, _collective: str, x: loop.Array, _out: loop.Array
) -> loop.Operation:
    """A call without arguments, on an array that was named before."""
    pointer, count = ctypes.c_void_p(x.ctypes.data), ctypes.c_size_t(x.size)
    library.oneccl_bind(pointer, count, ctypes.c_bool(dtype == "bfloat16"))
    return library.oneccl_all_reduce, ()


def main() -> None:
    """Measure with mpi4py's default thread level."""
    arguments = loop.parse_arguments(__doc__)
    loop.pin(launcher_rank())
    mpi: Any = importlib.import_module("mpi4py.MPI")  # not installed where the product is built
    world = mpi.COMM_WORLD
    meeting = loop.Meeting(arguments.shared, world.rank, world.size)
    if not arguments.library:
        loop.Bench(meeting, arguments, partial(bind, mpi)).run()
        return
    library = open_oneccl(world, arguments.library)
    loop.Bench(meeting, arguments, partial(bind_oneccl, library, arguments.dtype)).run()
    library.oneccl_close()


if __name__ == "__main__":
    main()
