"""The kinds of operation that bench measures: geometry, bandwidth factor, and the call itself.

Sizes follow nccl-tests: of collectives with parts they are those of all parts together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from jetstream.bench.reference import SHIFTS, Part, fold, source, table
from jetstream.dtypes import DType

if TYPE_CHECKING:
    from jetstream.communicator import Communicator

__all__ = [
    "COLLECTIVES",
    "KINDS",
    "LAUNCHED_FROM_C",
    "PREFIXES",
    "REDUCING",
    "ROOTED",
    "SHARDED",
    "Case",
    "Operation",
    "build",
]

Array = NDArray[Any]

COLLECTIVES = (
    *("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "barrier"),
    *("reduce", "gather", "scatter", "scan", "exscan"),
)
KINDS = (*COLLECTIVES, "sendrecv", "pingpong")
#: Kinds that combine elements, so that ``-o`` applies.
REDUCING = ("all_reduce", "reduce_scatter", "reduce", "scan", "exscan")
#: Of these, the ones that know no average.
PREFIXES = ("scan", "exscan")
#: Kinds with a root.
ROOTED = ("broadcast", "reduce", "gather", "scatter")
#: Kinds that Communicator.time_launches can repeat.
LAUNCHED_FROM_C = ("all_reduce", "barrier")

#: Kinds whose arrays have a part for each rank.
SHARDED = ("all_gather", "reduce_scatter", "all_to_all", "gather", "scatter")
_IN_PLACE = ("all_reduce", "broadcast", "reduce", "scan", "exscan")
_SAME_EVERYWHERE = ("all_reduce", "all_gather", "broadcast")


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the table: an operation with everything that determines its cost."""

    kind: str
    world: int
    requested_bytes: int = 0
    dtype: str = "none"
    redop: str = "none"
    root: int = -1

    @property
    def itemsize(self) -> int:
        """Bytes of one element; 0 for a barrier."""
        return 0 if self.kind == "barrier" else int(DType[self.dtype.upper()].itemsize)

    @property
    def count(self) -> int:
        """Elements as nccl-tests counts them: of one part where there are parts."""
        if self.kind == "barrier":
            return 0
        shards = self.world if self.kind in SHARDED else 1
        return max(1, self.requested_bytes // (self.itemsize * shards))

    @property
    def size_bytes(self) -> int:
        """The size column: what was asked for, rounded to whole elements on every rank."""
        return self.count * self.itemsize * (self.world if self.kind in SHARDED else 1)

    @property
    def busbw_factor(self) -> float:
        """What algbw is multiplied with to get the load on one rank's link (nccl-tests)."""
        if self.kind == "all_reduce":
            return 2.0 * (self.world - 1) / self.world
        return (self.world - 1) / self.world if self.kind in SHARDED else 1.0

    @property
    def same_everywhere(self) -> bool:
        """Whether all ranks must end with the same bits."""
        return self.kind in _SAME_EVERYWHERE


@dataclass(frozen=True, slots=True)
class Operation:
    """A case made ready on one rank."""

    call: Callable[[], object]
    target: Array  # rewritten before each call
    windows: tuple[Array, ...]  # what it is rewritten with, by iteration modulo SHIFTS
    result: Array
    parts: tuple[Part, ...]  # what the result must be
    divisor: int = 1  # operations of the kind within one call; 0: this rank's time is not one


def build(comm: Communicator, case: Case) -> Operation:
    """Allocates the buffers of a case and binds its call; no communication."""
    if case.kind == "barrier":
        empty = np.empty(0, np.uint8)
        return Operation(comm.barrier, empty, (empty,) * SHIFTS, empty, ())
    dtype = np.dtype(DType[case.dtype.upper()].numpy)
    input_count, output_count = (case.count * parts for parts in _parts_of(comm, case))
    values = source(comm.rank, dtype, case.redop, input_count)
    windows = tuple(values[shift : shift + input_count] for shift in range(SHIFTS))
    target = windows[0].copy()
    result = target if case.kind in _IN_PLACE else np.zeros(output_count, dtype)
    call, divisor = _bind(comm, case, target, result)
    parts = _expected(comm, case, dtype)
    return Operation(call, target, windows, result, parts, divisor)


def _parts_of(comm: Communicator, case: Case) -> tuple[int, int]:
    """How many times ``count`` input and output of this rank hold."""
    whole, is_root = comm.size, comm.rank == case.root
    if case.kind in ("reduce_scatter", "all_to_all"):
        return whole, whole if case.kind == "all_to_all" else 1
    if case.kind == "all_gather":
        return 1, whole
    if case.kind == "gather":
        return 1, whole if is_root else 0
    if case.kind == "scatter":
        return whole if is_root else 1, 1
    return 1, 1


def _bind(
    comm: Communicator, case: Case, target: Array, result: Array
) -> tuple[Callable[[], object], int]:
    """Returns the call with its arguments, and the divisor of its time."""
    if case.kind == "all_reduce":
        return partial(comm.all_reduce, target, case.redop), 1
    if case.kind == "all_gather":
        return partial(comm.all_gather, target, out=result), 1
    if case.kind == "reduce_scatter":
        return partial(comm.reduce_scatter, target, case.redop, out=result), 1
    if case.kind == "all_to_all":
        return partial(comm.all_to_all, target, out=result), 1
    if case.kind == "broadcast":
        return partial(comm.broadcast, target, case.root), 1
    if case.kind == "reduce":
        return partial(comm.reduce, target, case.root, case.redop), 1
    if case.kind in ("gather", "scatter"):
        call = comm.gather if case.kind == "gather" else comm.scatter
        return partial(call, target, case.root, out=result), 1
    if case.kind in PREFIXES:
        prefix = comm.scan if case.kind == "scan" else comm.exscan
        return partial(prefix, target, case.redop), 1
    if case.kind == "sendrecv":
        return partial(_exchange, comm, target, result), 1
    peer = comm.rank ^ 1
    if peer >= comm.size:
        return int, 0  # no partner: a call that does nothing
    if comm.rank % 2 == 0:
        return partial(_ping, comm, target, result, peer), 2
    return partial(_pong, comm, result, peer), 0


def _exchange(comm: Communicator, target: Array, result: Array) -> None:
    sending = comm.isend(target, (comm.rank + 1) % comm.size)
    comm.recv(result, (comm.rank - 1) % comm.size)
    sending.wait()


def _ping(comm: Communicator, target: Array, result: Array, peer: int) -> None:
    comm.send(target, peer)
    comm.recv(result, peer)


def _pong(comm: Communicator, result: Array, peer: int) -> None:
    comm.recv(result, peer)
    comm.send(result, peer)


def _expected(comm: Communicator, case: Case, dtype: np.dtype[Any]) -> tuple[Part, ...]:
    """Returns the parts of the result on this rank at shift 0."""
    world, rank, count = comm.size, comm.rank, case.count
    if case.kind in ("reduce", "gather") and rank != case.root:
        return ()
    if case.kind in REDUCING:
        start = rank * count if case.kind == "reduce_scatter" else 0
        folded = {"scan": rank + 1, "exscan": rank}.get(case.kind, world)
        # Below rank 0 there is none: its array stays as it is.
        right = fold(folded, dtype, case.redop) if folded else table(rank, dtype, case.redop)
        return (Part(0, count, right, start),)
    if case.kind in ("all_gather", "gather", "all_to_all"):
        start = rank * count if case.kind == "all_to_all" else 0
        return tuple(Part(r * count, count, table(r, dtype, "none"), start) for r in range(world))
    if case.kind == "scatter":
        return (Part(0, count, table(case.root, dtype, "none"), rank * count),)
    if case.kind == "pingpong" and rank ^ 1 >= world:
        return ()
    sender = {"broadcast": case.root, "sendrecv": (rank - 1) % world, "pingpong": rank & ~1}
    return (Part(0, count, table(sender[case.kind], dtype, "none"), 0),)
