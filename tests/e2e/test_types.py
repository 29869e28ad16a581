"""Element types and reductions beyond the matrix: what is refused, and premultiplied sums."""

from __future__ import annotations

import pickle
import sys
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from jetstream.communicator import Communicator
from jetstream.dtypes import DType, RedOp
from jetstream.errors import ArgumentError
from jetstream.testing.plugin import Pools
from jetstream.testing.reference import fold, same_bits

NAN, INF = float("nan"), float("inf")


def refuses(comm: Communicator, match: str, call: Any) -> None:
    """The call fails on every rank before anything is sent, and the communicator goes on."""
    with pytest.raises(ArgumentError, match=match):
        call()
    assert comm.all_reduce(np.ones(3))[0] == comm.size


def run_undefined(comm: Communicator) -> None:
    for dtype in DType:
        x = np.ones(comm.size, dtype.numpy)
        for op in RedOp:
            if op in dtype.redops:
                continue
            match = f"op {op.label} is not defined for {dtype.label}, which has sum, prod"
            for call in (comm.all_reduce, comm.reduce_scatter, comm.reduce):
                refuses(comm, match, partial(call, x, op=op.label))
        assert (x == np.ones(1, dtype.numpy)).all()


def test_what_is_not_defined_is_refused(rank_pools: Pools) -> None:
    rank_pools(2).run(run_undefined)


def run_bad_scales(comm: Communicator) -> None:
    floats, integers, truths = np.ones(4, np.float32), np.ones(4, np.uint8), np.ones(4, bool)
    cases: list[tuple[Any, Any, str]] = [
        (floats, None, "needs scale, the factor of this rank"),
        (floats, "2", "float32 needs one real number"),
        (floats, [1.0], "needs one real number"),
        (floats, 1j, "needs one real number"),
        (floats, object(), "needs one real number"),
        (floats, 10**400, "needs one real number"),
        (floats.astype(np.complex64), "i", "complex64 needs one number"),
        (integers, 1.0, "uint8 needs an integer from 0 to 255"),
        (integers, -1, "uint8 needs an integer from 0 to 255"),
        (integers, 256, "uint8 needs an integer from 0 to 255"),
        (truths, 1, "op premul_sum is not defined for bool"),
    ]
    for x, scale, match in cases:
        before = x.copy()
        for call in (comm.all_reduce, comm.reduce_scatter):
            refuses(comm, match, partial(call, x, "premul_sum", scale=scale))
        assert (x == before).all()
    for op in ("sum", RedOp.MAX):
        refuses(
            comm, "scale goes with op premul_sum", partial(comm.all_reduce, floats, op, scale=2)
        )


def test_bad_scales_are_refused(rank_pools: Pools) -> None:
    rank_pools(2).run(run_bad_scales)


def run_premultiplied(comm: Communicator) -> None:
    """Each rank has a factor of its own; only in place is the input changed."""
    size, rank = comm.size, comm.rank
    x = np.full(5, rank + 1, np.int64)
    factors: list[Any] = [2, np.int8(-3), np.uint16(7), 1, 0]
    expected = sum((r + 1) * int(factors[r]) for r in range(size))
    out = np.empty(5, np.int64)
    assert comm.all_reduce(x, "premul_sum", scale=factors[rank], out=out) is out
    assert (out == expected).all() and (x == rank + 1).all()
    wide = np.full(5 * size, rank + 1, np.int64)
    part = comm.reduce_scatter(wide, RedOp.PREMUL_SUM, scale=factors[rank])
    assert (part == expected).all() and (wide == rank + 1).all()
    got = comm.reduce(x, 0, "premul_sum", scale=factors[rank], out=out)
    assert got is (out if rank == 0 else None)
    assert (out == expected).all() and (x == rank + 1).all()
    prefix = np.full(5, -9, np.int64)
    comm.scan(x, "premul_sum", scale=factors[rank], out=prefix)
    assert (prefix == sum((r + 1) * int(factors[r]) for r in range(rank + 1))).all()
    prefix[...] = -9
    comm.exscan(x, "premul_sum", scale=factors[rank], out=prefix)
    below = sum((r + 1) * int(factors[r]) for r in range(rank)) if rank else -9
    assert (prefix == below).all() and (x == rank + 1).all()
    work = comm.all_reduce(x, "premul_sum", scale=factors[rank], async_op=True)
    assert work.wait() is x and (x == expected).all()
    y = np.full(5, rank + 1, np.int64)
    assert comm.all_reduce(y, "premul_sum", scale=factors[rank]) is y and (y == expected).all()
    plain = np.full(5, rank + 1, np.int64)
    assert (comm.all_reduce(plain) == sum(range(1, size + 1))).all()
    strided = np.arange(10.0)[::2]
    got = comm.all_reduce(strided, "premul_sum", scale=0.5, out=np.empty(5))
    assert (got == strided * 0.5 * size).all()


@pytest.mark.parametrize("world", [1, 3])
def test_premultiplied_sum(rank_pools: Pools, world: int) -> None:
    rank_pools(world).run(run_premultiplied)


def run_scales_of_any_kind(comm: Communicator) -> None:
    """Scales are rounded to the element type; what that makes infinite or NaN goes its way."""
    scales = [0.1, np.float32(1e30), ml_dtypes.bfloat16(3), np.array(-2.5), NAN, INF, 1e-30, True]
    for dtype in ("float64", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "complex64"):
        x = np.array([1.5, -0.0, 448, 1e-3]).astype(DType[dtype.upper()].numpy)
        for turn in range(len(scales)):
            mine = [scales[(turn + r) % len(scales)] for r in range(comm.size)]
            expected = fold([x] * comm.size, "premul_sum", scales=mine)
            for algo in ("one_shot", "two_shot"):
                got = comm.all_reduce(x.copy(), "premul_sum", scale=mine[comm.rank], algo=algo)
                assert same_bits(got, expected), (dtype, mine, got, expected)


def test_scales_of_any_kind(rank_pools: Pools) -> None:
    rank_pools(2).run(run_scales_of_any_kind)


def run_truths(comm: Communicator) -> None:
    """Votes, as programs take them: is anyone, is everyone."""
    mine = np.array([True, False, comm.rank == 0, comm.rank != 0])
    assert comm.all_reduce(mine.copy(), "max").tolist() == [True, False, True, comm.size > 1]
    assert comm.all_reduce(mine.copy(), "min").tolist() == [True, False, comm.size == 1, False]
    odd = np.full(3, 2 * comm.rank, np.uint8).view(bool)  # not only 0 and 1
    got = comm.all_reduce(odd, "sum")
    assert got.view(np.uint8).tolist() == [int(comm.size > 1)] * 3


@pytest.mark.parametrize("world", [1, 2, 3])
def test_truths(rank_pools: Pools, world: int) -> None:
    rank_pools(world).run(run_truths)


def run_unpickled(comm: Communicator) -> int:
    raw = pickle.dumps(np.ones(8, np.float32))
    for _ in range(100):
        comm.all_reduce(pickle.loads(raw))
    before = sys.getallocatedblocks()
    for _ in range(1000):
        comm.all_reduce(pickle.loads(raw))
    return sys.getallocatedblocks() - before


def test_types_of_unpickled_arrays_are_not_kept(rank_pools: Pools) -> None:
    """Each such array has a dtype object of its own."""
    assert max(rank_pools(2).run(run_unpickled)) < 300
