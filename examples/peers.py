"""All-reduces of other libraries, for the examples to compare jetstream's with.

A peer takes part where it is installed: mpi4py when `mpirun` has started the ranks, torch with gloo
under any launcher.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

import jetstream

PEERS = ("mpi", "gloo")


class MissingPeerError(RuntimeError):
    """A peer cannot take part; the text says why."""


@dataclass(frozen=True)
class Peer:
    """A library's all-reduce: ``reduce(x)`` adds an array up over the ranks, in place."""

    name: str
    reduce: Callable[[Any], Any]
    has_bfloat16: bool


def open_mpi(comm: jetstream.Communicator, _stack: ExitStack) -> Peer:
    """MPI, whichever mpi4py finds."""
    try:
        mpi: Any = importlib.import_module("mpi4py.MPI")
    except (ImportError, RuntimeError) as error:
        raise MissingPeerError(f"mpi4py cannot be loaded: {error}") from error
    world = mpi.COMM_WORLD
    if world.size != comm.size:
        raise MissingPeerError("start the ranks with mpirun to compare with MPI")

    def reduce(x: Any) -> Any:
        world.Allreduce(mpi.IN_PLACE, x)
        return x

    library = mpi.Get_library_version().replace(",", " ").split()
    return Peer(f"{' '.join(library[:2])}, mpi4py", reduce, has_bfloat16=False)


def open_gloo(comm: jetstream.Communicator, stack: ExitStack) -> Peer:
    """torch.distributed with gloo, its ranks meeting in a file that rank 0 names."""
    try:
        importlib.import_module("torch.distributed")  # "torch" alone finds the folder beside this
        torch: Any = importlib.import_module("torch")
    except ImportError as error:
        raise MissingPeerError(f"torch cannot be loaded: {error}") from error
    torch.set_num_threads(1)
    name = np.zeros(256, np.uint8)
    if comm.rank == 0:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        path = f"{folder}/store".encode()
        name[: len(path)] = np.frombuffer(path, np.uint8)
    comm.broadcast(name)
    path = bytes(name).rstrip(b"\0").decode()
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{path}", rank=comm.rank, world_size=comm.size
    )
    stack.callback(torch.distributed.destroy_process_group)

    def reduce(x: Any) -> Any:
        if x.dtype == ml_dtypes.bfloat16:
            tensor = torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
        else:
            tensor = torch.from_numpy(x)
        torch.distributed.all_reduce(tensor)
        return x

    return Peer("gloo, torch", reduce, has_bfloat16=True)


def open_peers(
    comm: jetstream.Communicator, wanted: Sequence[str], stack: ExitStack
) -> tuple[list[Peer], list[str]]:
    """The peers among ``wanted`` that can take part, and why the others cannot."""
    peers, notes = [], []
    for name, start in (("mpi", open_mpi), ("gloo", open_gloo)):
        if name in wanted:
            try:
                peers.append(start(comm, stack))
            except MissingPeerError as error:
                notes.append(f"without {name}: {error}")
    return peers, notes
