"""jetstream: `python -m jetstream run -n 2 peer_jetstream.py --shared FILE CASES`.

With `--memory symmetric` the arrays come from `comm.empty`, with `--persistent` operations from
`comm.persistent`. With `--launched` the same plan is launched from C, back to back, as a device
would do it.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import loop
import ml_dtypes
import numpy as np

import jetstream


def run_launched(comm: Any, bench: loop.Bench, arguments: argparse.Namespace, new: Any) -> None:
    """Measure launches from C. Values double in each one; the first few are checked exactly."""
    for case in arguments.cases:
        pattern = np.arange(max(1, case.size_bytes // 4), dtype=np.int64) % loop.PATTERN
        x = new(pattern.size, np.float32)
        x[:] = pattern + comm.rank
        checked = 3
        comm.time_launches(case.collective, x, checked)
        total = comm.size * pattern + comm.size * (comm.size - 1) // 2
        if case.collective != "barrier" and not np.array_equal(
            x, total * comm.size ** (checked - 1)
        ):
            raise SystemExit(f"wrong result at {case.size_bytes} B")
        bench.report(case, partial(comm.time_launches, case.collective, x))


def bind(comm: Any, dtype: str, collective: str, x: loop.Array, out: loop.Array) -> loop.Operation:
    """The call as a user writes it."""
    if dtype == "bfloat16":
        x, out = x.view(ml_dtypes.bfloat16), out.view(ml_dtypes.bfloat16)
    if collective in ("all_reduce_out", "all_gather", "reduce_scatter", "all_to_all"):
        call = getattr(comm, collective.removesuffix("_out"))
        return (lambda x, out: call(x, out=out)), (x, out)
    if collective == "barrier":
        return comm.barrier, ()
    if collective == "sendrecv":
        peer = comm.rank ^ 1
        first = comm.rank < peer
        trip = loop.echo(lambda x: comm.send(x, peer), lambda y: comm.recv(y, peer), first)
        return trip, (x, out)
    return getattr(comm, collective), (x,)


def bind_persistent(
    comm: Any, dtype: str, collective: str, x: loop.Array, out: loop.Array
) -> loop.Operation:
    """An operation prepared once."""
    if dtype == "bfloat16":
        x, out = x.view(ml_dtypes.bfloat16), out.view(ml_dtypes.bfloat16)
    if collective == "barrier":
        return comm.persistent(collective), ()
    kind = collective.removesuffix("_out")
    return comm.persistent(kind, x, **({} if x is out else {"out": out})), ()


def new_symmetric(comm: Any, count: int, dtype: Any) -> loop.Array:
    """An array in memory that all ranks share."""
    element = np.dtype(dtype)
    array: loop.Array = comm.zeros(count * element.itemsize, "uint8").view(element)
    return array


def main() -> None:
    """Measure on ordinary arrays or on symmetric ones."""
    arguments = loop.parse_arguments(__doc__)
    with jetstream.init() as comm:
        loop.pin(comm.rank)
        meeting = loop.Meeting(arguments.shared, comm.rank, comm.size)
        new: Any = np.zeros
        if arguments.memory == "symmetric":
            new = partial(new_symmetric, comm)
        binder = bind_persistent if arguments.persistent else bind
        bench = loop.Bench(meeting, arguments, partial(binder, comm, arguments.dtype), new)
        if arguments.launched:
            run_launched(comm, bench, arguments, new)
        else:
            bench.run()


if __name__ == "__main__":
    main()
