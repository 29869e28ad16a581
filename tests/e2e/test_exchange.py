"""all_to_all, the rooted collectives, prefixes and unequal parts against NumPy, to the bit.

As in test_collectives.py every rank knows what all ranks contribute, and makes the result itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jetstream.communicator import Communicator
from jetstream.dtypes import DType
from jetstream.plans import UNEQUAL_PLANS_MAX
from jetstream.testing.plugin import Pools
from jetstream.testing.reference import fold, same_bits

WORLDS = range(1, 9)
WORLDS_SHORT = (1, 2, 3, 5, 8)
MOVED = ("float32", "bfloat16", "uint8", "int64")
#: 16-bit floats and their double rounding, integers that wrap, an op that has no neutral element.
REDUCED = (("bfloat16", "sum"), ("int32", "prod"), ("float32", "avg"), ("float16", "max"))
OPS = ("sum", "prod", "min", "max", "avg")
LARGE = (1 << 18) + 3

Array = np.ndarray[Any, np.dtype[Any]]


def make(dtype: str, *seed_and_count: int) -> Array:
    """Random elements; the last number is how many."""
    kind = DType[dtype.upper()].numpy
    rng = np.random.default_rng(seed_and_count)
    if kind.kind in "iu":
        limits = np.iinfo(kind)
        return rng.integers(limits.min, limits.max, seed_and_count[-1], kind, endpoint=True)
    return (rng.standard_normal(seed_and_count[-1]) * 10).astype(kind)


def check(got: Array | None, expected: Array | None, *what: object) -> None:
    if expected is None or got is None:
        assert got is None and expected is None, what
    elif not same_bits(got, expected):
        raise AssertionError(f"{what}: {got} is not {expected}")


def counts_of(full: bool) -> tuple[int, ...]:
    return (0, 1, 11, 41, 333, 1024, 4097) if full else (0, 11, 333)


def offsets(counts: Sequence[int]) -> list[slice]:
    bounds = [0, *itertools.accumulate(counts)]
    return [slice(low, high) for low, high in itertools.pairwise(bounds)]


# --- equal parts -------------------------------------------------------------------------------


def run_all_to_all(comm: Communicator, dtype: str, count: int, full: bool) -> None:
    size, rank = comm.size, comm.rank
    whole = [make(dtype, r, count, size * count) for r in range(size)]
    mine = slice(rank * count, (rank + 1) * count)
    expected = np.concatenate([array[mine] for array in whole])
    for chunk_bytes in (None, 192) if full else (None,):
        x = whole[rank].copy()
        check(comm.all_to_all(x, chunk_bytes=chunk_bytes), expected, "all_to_all", dtype, count)
        check(x, whole[rank], "the input has changed")
        assert comm.all_to_all(x, out=x, chunk_bytes=chunk_bytes) is x
        check(x, expected, "all_to_all in place", dtype, count)


def run_rooted_moves(comm: Communicator, dtype: str, count: int, roots: Sequence[int]) -> None:
    size, rank = comm.size, comm.rank
    parts = [make(dtype, r, 1, count) for r in range(size)]
    whole = np.concatenate(parts)
    for root in roots:
        is_root = rank == root
        check(comm.gather(parts[rank], root), whole if is_root else None, "gather", count)
        x = whole.copy() if is_root else None
        out = None if is_root else np.empty(count, whole.dtype)
        check(comm.scatter(x, root, out=out), parts[rank], "scatter", dtype, count)
        if is_root:  # in place: the root's own part stays where it is
            slots = np.zeros_like(whole)
            own = slots[rank * count : (rank + 1) * count]
            own[:] = parts[rank]
            assert comm.gather(own, root, out=slots) is slots
            check(slots, whole, "gather in place", dtype, count)
            assert comm.scatter(slots, root, out=own) is own
            check(slots, whole, "scatter in place", dtype, count)
        else:
            comm.gather(parts[rank], root)
            comm.scatter(None, root, out=out)


def run_moves(comm: Communicator, dtype: str, counts: Sequence[int], full: bool) -> None:
    for count in counts:
        run_all_to_all(comm, dtype, count, full)
        roots = range(comm.size) if full else {0, count % comm.size, comm.size - 1}
        run_rooted_moves(comm, dtype, count, sorted(roots))


def run_reduce(comm: Communicator, dtype: str, op: str, count: int, full: bool) -> None:
    arrays = [make(dtype, r, 2, count) for r in range(comm.size)]
    expected = fold(arrays, op)
    mine = arrays[comm.rank]
    for algo, chunk_bytes in ((None, None), ("direct", 192), ("two_shot", 192 if full else None)):
        for root in range(comm.size) if full else (count % comm.size,):
            is_root = comm.rank == root
            options: dict[str, Any] = {"algo": algo, "chunk_bytes": chunk_bytes}
            x = mine.copy()
            got = comm.reduce(x, root, op, **options)
            assert got is (x if is_root else None)
            check(x, expected if is_root else mine, "reduce", dtype, op, count, root, options)
            x, out = mine.copy(), np.empty_like(mine)
            got = comm.reduce(x, root, op, out=out if is_root else None, **options)
            check(got, expected if is_root else None, "reduce into out", dtype, op, count)
            check(x, mine, "the input has changed")


def run_prefixes(comm: Communicator, dtype: str, op: str, count: int, full: bool) -> None:
    arrays = [make(dtype, r, 3, count) for r in range(comm.size)]
    mine, rank = arrays[comm.rank], comm.rank
    for chunk_bytes in (None, 192) if full else (192,):
        x, out = mine.copy(), np.empty_like(mine)
        assert comm.scan(x, op, chunk_bytes=chunk_bytes) is x
        assert comm.scan(mine, op, out=out, chunk_bytes=chunk_bytes) is out
        for got in (x, out):
            check(got, fold(arrays[: rank + 1], op), "scan", dtype, op, count)
        x, out = mine.copy(), np.full_like(mine, 7)
        assert comm.exscan(x, op, chunk_bytes=chunk_bytes) is x
        assert comm.exscan(mine, op, out=out, chunk_bytes=chunk_bytes) is out
        for got, untouched in ((x, mine), (out, np.full_like(mine, 7))):
            expected = fold(arrays[:rank], op) if rank else untouched
            check(got, expected, "exscan", dtype, op, count)


def run_reductions(
    comm: Communicator, dtype: str, op: str, counts: Sequence[int], full: bool
) -> None:
    for count in counts:
        run_reduce(comm, dtype, op, count, full)
        if op != "avg":
            run_prefixes(comm, dtype, op, count, full)


# --- unequal parts -----------------------------------------------------------------------------


def uneven(world: int, turn: int) -> list[int]:
    """Rows of each rank: none at some, one at others, more than a chunk."""
    return [(0, 1, 5, 700, 2)[(rank * 3 + turn) % 5] for rank in range(world)]


def run_counts(comm: Communicator, dtype: str, turn: int) -> None:
    size, rank = comm.size, comm.rank
    counts = uneven(size, turn)
    rows = offsets(counts)
    parts = [make(dtype, r, turn, 3 * counts[r]).reshape(-1, 3) for r in range(size)]
    whole = np.concatenate(parts)
    check(comm.all_gather(parts[rank], counts=counts), whole, "all_gather", counts)
    slots = np.zeros_like(whole)
    slots[rows[rank]] = parts[rank]
    comm.all_gather(slots[rows[rank]], out=slots, counts=np.array(counts))
    check(slots, whole, "all_gather in place", counts)
    wide = [make(dtype, r, turn, 3 * sum(counts)).reshape(-1, 3) for r in range(size)]
    expected = fold([array[rows[rank]] for array in wide], "sum")
    check(comm.reduce_scatter(wide[rank], counts=counts), expected, "reduce_scatter", counts)
    for root in sorted({0, turn % size}):
        is_root = rank == root
        got = comm.gather(parts[rank], root, counts=counts)
        check(got, whole if is_root else None, "gather", counts)
        out = np.zeros_like(parts[rank])
        assert comm.scatter(whole if is_root else None, root, out=out, counts=counts) is out
        check(out, parts[rank], "scatter", counts)


def run_splits(comm: Communicator, dtype: str, turn: int) -> None:
    size, rank = comm.size, comm.rank
    matrix = [uneven(size, turn + 2 * r) for r in range(size)]
    arrays = [make(dtype, r, turn, 2 * sum(matrix[r])).reshape(-1, 2) for r in range(size)]
    expected = np.concatenate([arrays[r][offsets(matrix[r])[rank]] for r in range(size)])
    received = [matrix[r][rank] for r in range(size)]
    options: dict[str, Any] = {"input_splits": matrix[rank], "output_splits": received}
    check(comm.all_to_all(arrays[rank], **options), expected, "all_to_all", matrix)
    out = np.empty_like(expected)
    assert comm.all_to_all(arrays[rank], out=out, chunk_bytes=64, **options) is out
    check(out, expected, "all_to_all into out", matrix)


def run_default_splits(comm: Communicator) -> None:
    """None beside the other rank's splits stands for equal parts, as in torch."""
    size, rank = comm.size, comm.rank
    x = np.arange(2 * size) + 100 * rank
    expected = np.concatenate([np.arange(2 * rank, 2 * rank + 2) + 100 * r for r in range(size)])
    check(comm.all_to_all(x, output_splits=[2] * size), expected, "no input_splits")
    out = np.empty(2 * size, x.dtype)
    check(comm.all_to_all(x, out=out, input_splits=[2] * size), expected, "no output_splits")


def run_unequal(comm: Communicator, dtype: str, turns: int) -> None:
    for turn in range(turns):
        run_counts(comm, dtype, turn)
        run_splits(comm, dtype, turn)
    run_default_splits(comm)


# --- shapes ------------------------------------------------------------------------------------


def run_axes(comm: Communicator) -> None:
    size, rank = comm.size, comm.rank
    cube = np.arange(8 * size * size * 3, dtype=np.int32).reshape(2 * size, 4, 3 * size)
    arrays = [cube + 1000 * r for r in range(size)]
    for axis in (0, 2, -1):
        pieces = [np.split(array, size, axis) for array in arrays]
        expected = np.concatenate([pieces[r][rank] for r in range(size)], axis)
        check(comm.all_to_all(arrays[rank], axis=axis), expected, "all_to_all axis", axis)
        x = arrays[rank].copy()
        assert comm.all_to_all(x, axis=axis, out=x) is x
        check(x, expected, "all_to_all axis in place", axis)
        whole = comm.gather(pieces[0][rank], axis=axis)
        check(whole, arrays[0] if rank == 0 else None, "gather axis", axis)
        out = np.empty_like(np.ascontiguousarray(pieces[0][rank]))
        comm.scatter(arrays[0] if rank == 0 else None, axis=axis, out=out)
        check(out, np.ascontiguousarray(pieces[0][rank]), "scatter axis", axis)
    counts = uneven(size, 1)
    wide = np.arange(2 * sum(counts), dtype=np.float32).reshape(2, -1)
    mine = wide[:, offsets(counts)[rank]]
    check(comm.all_gather(mine, axis=1, counts=counts), wide, "all_gather axis counts")
    got = comm.reduce_scatter(wide, axis=1, counts=counts)
    check(got, np.ascontiguousarray(mine) * np.float32(size), "reduce_scatter axis counts")
    out = np.empty_like(np.ascontiguousarray(mine))
    comm.scatter(wide if rank == 0 else None, axis=1, counts=counts, out=out)
    check(out, np.ascontiguousarray(mine), "scatter axis counts")
    splits = {"input_splits": counts, "output_splits": [counts[rank]] * size}
    got = comm.all_to_all(wide, axis=1, **splits)
    check(got, np.concatenate([mine] * size, 1), "all_to_all axis splits")


def run_other_shapes(comm: Communicator) -> None:
    """0-d arrays, ``out`` of another shape, strided input, no rows at all."""
    size, rank = comm.size, comm.rank
    scalar = np.array(float(rank))
    expected = np.arange(size, dtype=float)
    check(comm.gather(scalar), expected if rank == 0 else None, "gather 0-d")
    out = np.empty(())
    assert comm.scatter(expected if rank == 0 else None, out=out) is out
    assert out == rank
    assert comm.scan(scalar) is scalar and scalar == sum(range(rank + 1))
    flat = np.empty(size * 6)
    got = comm.all_to_all(np.full((size, 3, 2), rank), out=np.empty((6, size), int))
    assert got.shape == (6, size) and sorted(got.reshape(-1)) == sorted([*range(size)] * 6)
    strided = np.arange(12.0).reshape(2, 6)[:, ::2]
    result = comm.gather(strided, out=flat if rank == 0 else None)
    assert result is (flat if rank == 0 else None)
    if rank == 0:
        assert (flat.reshape(size, 2, 3) == strided).all()
    assert comm.scan(strided, out=np.empty(6)).tolist() == ((rank + 1) * strided).ravel().tolist()
    nothing = np.empty((0, 3))
    assert comm.all_to_all(nothing).shape == (0, 3)
    zeros = [0] * size
    got = comm.all_to_all(nothing, input_splits=zeros, output_splits=zeros)
    assert got.shape == (0, 3)
    assert comm.all_gather(nothing, counts=zeros).shape == (0, 3)


def run_async(comm: Communicator) -> None:
    size, rank = comm.size, comm.rank
    x = np.arange(size) + 10.0 * rank
    root_out = np.empty(size * size) if rank == 0 else None
    works = [
        comm.all_to_all(x, async_op=True),
        comm.reduce(x.copy(), 0, async_op=True),
        comm.gather(x, 0, out=root_out, async_op=True),
        comm.scatter(x, 0, out=np.empty(1), async_op=True),
        comm.scan(x.copy(), async_op=True),
        comm.exscan(x.copy(), async_op=True),
        comm.all_gather(x[: rank + 1], counts=range(1, size + 1), async_op=True),
    ]
    exchanged, reduced, gathered, scattered, scanned, below, joined = [w.wait() for w in works]
    assert (exchanged == rank + 10.0 * np.arange(size)).all()
    total = size * np.arange(size) + 10.0 * sum(range(size))
    check(reduced, total if rank == 0 else None, "reduce")
    assert gathered is root_out
    assert scattered == rank
    assert (scanned == (rank + 1) * np.arange(size) + 10.0 * sum(range(rank + 1))).all()
    assert (below == (rank * np.arange(size) + 10.0 * sum(range(rank)) if rank else x)).all()
    assert joined.size == size * (size + 1) // 2


def run_torch(comm: Communicator) -> None:
    import torch

    size, rank = comm.size, comm.rank
    x = torch.arange(2 * size, dtype=torch.bfloat16)
    got = comm.all_to_all(x)
    assert got.dtype == torch.bfloat16 and got.tolist() == [2.0 * rank, 2.0 * rank + 1] * size
    got = comm.gather(x[:2])
    assert got is None if rank else got.tolist() == [0.0, 1.0] * size


def run_records(comm: Communicator) -> None:
    x = np.ones(2 * comm.size, np.float32)
    calls = {
        "all_to_all": lambda: comm.all_to_all(x),
        "reduce": lambda: comm.reduce(x.copy()),
        "gather": lambda: comm.gather(x),
        "scatter": lambda: comm.scatter(x, out=np.empty(2, np.float32)),
        "scan": lambda: comm.scan(x.copy()),
        "exscan": lambda: comm.exscan(x.copy()),
    }
    for kind, call in calls.items():
        call()
        record = comm.last_op
        assert record is not None and record.kind == kind and kind in str(record)
        assert record.nbytes > 0, "also where a rank has no output"


def run_ever_new_splits(comm: Communicator) -> None:
    """Plans of splits that never come again push out each other, and no plan of another call."""
    size, rank = comm.size, comm.rank

    def exchange(turn: int, **options: Any) -> Any:
        sent = [turn + r for r in range(size)]
        received = [turn + rank] * size
        x = np.repeat(np.arange(size) + 10 * rank, sent)
        options |= {"input_splits": sent, "output_splits": received}
        return comm.all_to_all(x, **options), np.repeat(rank + 10 * np.arange(size), received)

    x = np.ones(5)
    comm.all_reduce(x)
    for turn in range(3 * UNEQUAL_PLANS_MAX):
        check(*exchange(turn), "turn", turn)
        if turn % 16 == 0:
            counts = [turn + 1, *range(1, size)]
            assert comm.all_gather(x[:1].repeat(counts[rank]), counts=counts).size == sum(counts)
    plans = comm.counters()["plans"]
    comm.all_reduce(x)
    check(*exchange(3 * UNEQUAL_PLANS_MAX - 1), "the last one again")
    assert comm.counters()["plans"] == plans, "both were still loaded"
    check(*exchange(0), "the first one again")
    assert comm.counters()["plans"] == plans + 1, "it had been pushed out"
    # More at once than are kept: none of those in flight is taken away.
    running = [exchange(turn, async_op=True) for turn in range(2 * UNEQUAL_PLANS_MAX)]
    for work, expected in running:
        check(work.wait(), expected, "in flight")
    check(*exchange(5), "afterwards")


# --- tests -------------------------------------------------------------------------------------


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    full = bool(metafunc.config.getoption("--full-matrix"))
    worlds: Sequence[int] = WORLDS if full else WORLDS_SHORT
    if "each_world" in metafunc.fixturenames:
        metafunc.parametrize("each_world", worlds)
    if "full" in metafunc.fixturenames:
        metafunc.parametrize("full", [full], ids=["full" if full else "short"])
    if "reduced" in metafunc.fixturenames:
        every = [(dtype.label, op) for dtype in DType for op in OPS if dtype <= DType.UINT8]
        cases = [
            (world, *case)
            for world in worlds
            for case in (every if full else REDUCED[: 4 if world <= 3 else 2])
        ]
        metafunc.parametrize("reduced", cases, ids=str)


def run_moves_of_types(comm: Communicator, dtypes: Sequence[str], full: bool) -> None:
    for dtype in dtypes:
        run_moves(comm, dtype, counts_of(full), full)


def test_moves(rank_pools: Pools, each_world: int, full: bool) -> None:
    dtypes = MOVED if full or each_world <= 3 else MOVED[:1]
    rank_pools(each_world).run(run_moves_of_types, dtypes, full, timeout_s=300)


def test_reductions(rank_pools: Pools, reduced: tuple[int, str, str], full: bool) -> None:
    world, dtype, op = reduced
    rank_pools(world).run(run_reductions, dtype, op, counts_of(full), full, timeout_s=300)


def test_unequal(rank_pools: Pools, each_world: int, full: bool) -> None:
    for dtype in MOVED if full else MOVED[:1]:
        rank_pools(each_world).run(run_unequal, dtype, 5 if full else 2, timeout_s=300)


def run_large(comm: Communicator, full: bool) -> None:
    run_moves(comm, "float32", (LARGE,), full)
    run_reductions(comm, "bfloat16", "sum", (LARGE,), full)


@pytest.mark.parametrize("world", [2, 3])
def test_large(rank_pools: Pools, world: int, full: bool) -> None:
    """Several chunks per operation."""
    rank_pools(world).run(run_large, full, timeout_s=300)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_shapes(rank_pools: Pools, world: int) -> None:
    for run in (run_axes, run_other_shapes, run_async, run_records, run_ever_new_splits):
        rank_pools(world).run(run)


def test_torch(rank_pools: Pools) -> None:
    pytest.importorskip("torch")
    rank_pools(2).run(run_torch)


STEPS = st.fixed_dictionaries(
    {
        "run": st.sampled_from(("moves", "reductions", "counts", "splits")),
        "dtype": st.sampled_from(MOVED),
        "op": st.sampled_from(OPS),
        "count": st.integers(0, 300),
    }
)


def run_steps(comm: Communicator, steps: list[dict[str, Any]]) -> None:
    for step in steps:
        if step["run"] == "moves":
            run_moves(comm, step["dtype"], (step["count"],), False)
        elif step["run"] == "reductions":
            run_reductions(comm, step["dtype"], step["op"], (step["count"],), False)
        else:
            run = run_counts if step["run"] == "counts" else run_splits
            run(comm, step["dtype"], step["count"])


@pytest.mark.parametrize("world", [2, 3])
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=st.lists(STEPS, min_size=1, max_size=8))
def test_any_sequence(rank_pools: Pools, world: int, steps: list[dict[str, Any]]) -> None:
    rank_pools(world).run(run_steps, steps)
