"""Every collective against the reference in NumPy, to the bit, at every world size.

The values of all ranks are known to all, so each rank checks its own result against what the
reference makes of all contributions. Equality to the bit with one and the same reference is also
equality between ranks, algorithms and chunk sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jetstream.communicator import Communicator
from jetstream.dtypes import DType
from jetstream.testing.plugin import Pools
from jetstream.testing.reference import fold, same_bits

OPS = ("sum", "prod", "min", "max", "avg")
DTYPES = tuple(dtype.label for dtype in DType)
#: Types that the ordinary run tries with every world and size; others it tries with some.
COMMON = ("float64", "float32", "float16", "bfloat16", "int32", "int64", "uint8")
WORLDS = range(1, 9)
WORLDS_SHORT = (1, 2, 3, 5, 8)
LARGE = (1 << 20) + 3
#: Collectives with a large array that the ordinary run tries; --full-matrix tries all.
LARGE_SAMPLE = (
    *(("float32", "sum"), ("bfloat16", "avg"), ("int64", "max"), ("uint8", "prod")),
    ("float8_e4m3fn", "premul_sum"),
)

Array = np.ndarray[Any, np.dtype[Any]]


def ops_of(dtype: str) -> tuple[str, ...]:
    return tuple(op.label for op in DType[dtype.upper()].redops)


def inputs(world: int, dtype: str, op: str, count: int) -> list[Array]:
    """What each rank contributes: full range, and for prod close to 1 so that it says something."""
    kind = DType[dtype.upper()].numpy
    arrays = []
    for rank in range(world):
        rng = np.random.default_rng([rank, count, kind.num])
        if kind.kind == "b":
            arrays.append(rng.random(count) < (rank + 1) / (world + 1))
        elif kind.kind in "iu":
            limits = np.iinfo(kind)
            arrays.append(rng.integers(limits.min, limits.max, count, kind, endpoint=True))
        elif op == "prod":
            size, turn = np.exp2(rng.uniform(-1, 1, count)), np.exp(1j * rng.uniform(0, 7, count))
            arrays.append((size * turn if kind.kind == "c" else size).astype(kind))
        elif kind.kind == "c":
            arrays.append((rng.standard_normal((count, 2)) @ [1, 1j] * 100).astype(kind))
        else:
            arrays.append((rng.standard_normal(count) * 100).astype(kind))
    return arrays


def scales_of(world: int, dtype: str, op: str) -> list[Any] | None:
    """The factor of each rank in a premultiplied sum; None for any other operation."""
    kind = DType[dtype.upper()].numpy.kind
    if op != "premul_sum":
        return None
    step: complex = 3 if kind in "iu" else 0.3 + 0.1j if kind == "c" else -0.3
    return [(rank + 1) * step for rank in range(world)]


def factor_of(comm: Communicator, dtype: str, op: str) -> dict[str, Any]:
    scales = scales_of(comm.size, dtype, op)
    return {} if scales is None else {"scale": scales[comm.rank]}


def small_counts(dtype: str, full: bool) -> tuple[int, ...]:
    itemsize = DType[dtype.upper()].itemsize
    inline = 40 // itemsize  # the longest array that travels within a frame's own line
    more = (2, 7, 64, inline, 1021) if full else ()
    return (0, 1, inline + 1, 333, 4096 // itemsize, *more)


def all_reduce_variants(turn: int, count: int, full: bool) -> list[dict[str, Any]]:
    """Ways to ask for one and the same result: all of them, or one after the other."""
    small, large = (4096, 131072) if count >= LARGE else (64, 512)
    sizes = (None, small, large, 192)
    ways = [{"algo": a, "chunk_bytes": c} for c in sizes for a in ("lend", "two_shot", "one_shot")]
    return ways if full else [ways[turn % 5]]


def check(got: Array, expected: Array, *what: object) -> None:
    if not same_bits(got, expected):
        wrong = np.flatnonzero(got.reshape(-1) != expected.reshape(-1)) if got.size else ()
        raise AssertionError(f"{what}: {len(wrong)} wrong, first at {wrong[:5]}; {got} {expected}")


def run_all_reduce(
    comm: Communicator, dtype: str, op: str, count: int, ways: list[dict[str, Any]]
) -> None:
    arrays = inputs(comm.size, dtype, op, count)
    expected = fold(arrays, op, scales=scales_of(comm.size, dtype, op))
    mine, factor = arrays[comm.rank], factor_of(comm, dtype, op)
    for options in ways:
        x = mine.copy()
        assert comm.all_reduce(x, op, **options, **factor) is x
        check(x, expected, "all_reduce", dtype, op, count, options)
    out = np.empty_like(mine)
    assert comm.all_reduce(mine, op, out=out, **factor) is out
    check(out, expected, "all_reduce", dtype, op, count, "out of place")
    check(mine, inputs(comm.size, dtype, op, count)[comm.rank], "the input has changed")


def run_reduce_scatter(comm: Communicator, dtype: str, op: str, count: int, full: bool) -> None:
    arrays = inputs(comm.size, dtype, op, comm.size * count)
    mine = slice(comm.rank * count, (comm.rank + 1) * count)
    expected = fold([a[mine] for a in arrays], op, scales=scales_of(comm.size, dtype, op))
    factor = factor_of(comm, dtype, op)
    for chunk_bytes in (None, 192) if full else (None,):
        got = comm.reduce_scatter(arrays[comm.rank], op, chunk_bytes=chunk_bytes, **factor)
        check(got, expected, "reduce_scatter", dtype, op, count, chunk_bytes)


def run_reductions(
    comm: Communicator, dtype: str, cases: Sequence[tuple[str, int]], full: bool
) -> None:
    """The part of the matrix that combines elements; a case is an operation and a count."""
    for turn, (op, count) in enumerate(cases):
        ways = all_reduce_variants(turn + comm.size, count, full)
        run_all_reduce(comm, dtype, op, count, ways)
        run_reduce_scatter(comm, dtype, op, count, full)


def run_movements(comm: Communicator, dtype: str, counts: tuple[int, ...], full: bool) -> None:
    """The part of the matrix that only moves elements."""
    for count in counts:
        arrays = inputs(comm.size, dtype, "sum", count)
        mine = arrays[comm.rank]
        for chunk_bytes in (None, 4096) if full else (None,):
            got = comm.all_gather(mine, chunk_bytes=chunk_bytes)
            check(got, np.concatenate(arrays), "all_gather", dtype, count, chunk_bytes)
        for root in range(comm.size) if full or count == 333 else (count % comm.size,):
            x = mine.copy()
            assert comm.broadcast(x, root) is x
            check(x, arrays[root], "broadcast", dtype, count, root)
        comm.barrier()


def run_movements_of_all_types(comm: Communicator, full: bool) -> None:
    for dtype in DTYPES:
        counts = small_counts(dtype, full) if full or dtype in COMMON else (7 * comm.size,)
        run_movements(comm, dtype, counts, full)


def run_large(comm: Communicator, dtype: str, op: str, full: bool) -> None:
    run_reductions(comm, dtype, [(op, LARGE)], full)
    run_movements(comm, dtype, (LARGE,), full)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """What the ordinary run tries of the large arrays, and what --full-matrix does."""
    full = bool(metafunc.config.getoption("--full-matrix"))
    worlds: Sequence[int] = WORLDS if full else WORLDS_SHORT
    if "each_world" in metafunc.fixturenames:
        metafunc.parametrize("each_world", worlds)
    if "full" in metafunc.fixturenames:
        metafunc.parametrize("full", [full], ids=["full" if full else "short"])
    if "type_case" in metafunc.fixturenames:
        metafunc.parametrize(
            "type_case",
            [(w, d) for w in worlds for d in DTYPES if full or d in COMMON or w in (2, 5)],
            ids=str,
        )
    if "large_case" in metafunc.fixturenames:
        few: Sequence[int] = WORLDS if full else (2, 3)
        every = [(dtype, op) for dtype in DTYPES for op in ops_of(dtype)]
        cases = every if full else LARGE_SAMPLE
        metafunc.parametrize(
            "large_case", [(world, *case) for world in few for case in cases], ids=str
        )


def test_reductions(rank_pools: Pools, type_case: tuple[int, str], full: bool) -> None:
    world, dtype = type_case
    counts = small_counts(dtype, full)
    cases = [
        (op, count)
        for op in ops_of(dtype)
        for count in (counts if full or (dtype in COMMON and op in OPS) else (counts[2], 333))
    ]
    rank_pools(world).run(run_reductions, dtype, cases, full, timeout_s=300)


def test_movements(rank_pools: Pools, each_world: int, full: bool) -> None:
    rank_pools(each_world).run(run_movements_of_all_types, full, timeout_s=300)


def test_large(rank_pools: Pools, large_case: tuple[int, str, str], full: bool) -> None:
    """1 MiB and three elements: more than any buffer of the data plane holds."""
    world, dtype, op = large_case
    rank_pools(world).run(run_large, dtype, op, full, timeout_s=300)


# --- shapes ----------------------------------------------------------------------------------


def run_shapes(comm: Communicator) -> None:
    size, rank = comm.size, comm.rank
    parts = [np.arange(24, dtype=np.float32).reshape(2, 3, 4) + 100 * r for r in range(size)]
    for axis in (0, 1, 2, -1, -3):
        expected = np.concatenate(parts, axis)
        check(comm.all_gather(parts[rank], axis=axis), expected, "all_gather axis", axis)
        out = np.empty(expected.size, np.float32)
        assert comm.all_gather(parts[rank], axis=axis, out=out) is out
        check(out, expected.reshape(-1), "all_gather axis out", axis)
    whole = np.arange(size * 2 * size * 3, dtype=np.int32).reshape(size * 2, size * 3)
    arrays = [whole + 7 * r for r in range(size)]
    for axis in (0, 1, -1):
        expected = np.split(fold(arrays, "sum"), size, axis)[rank]
        got = comm.reduce_scatter(arrays[rank], axis=axis)
        check(got, np.ascontiguousarray(expected), "reduce_scatter axis", axis)


def run_zero_dimensions(comm: Communicator) -> None:
    scalar = np.array(float(comm.rank))
    check(comm.all_gather(scalar), np.arange(comm.size, dtype=float), "all_gather 0-d")
    assert comm.all_reduce(scalar) is scalar
    check(scalar, np.array(float(sum(range(comm.size)))), "all_reduce 0-d")
    got = comm.broadcast(np.array(comm.rank), root=comm.size - 1)
    assert got.shape == () and got == comm.size - 1


def run_outputs(comm: Communicator) -> None:
    """``out`` may have any shape with the right number of elements, also a part of the input."""
    size, rank = comm.size, comm.rank
    x = np.full((3, 4), rank + 1, np.float64)
    total = float(sum(range(1, size + 1)))
    out = np.zeros((2, 6))
    assert comm.all_reduce(x, out=out) is out
    assert (out == total).all() and (x == rank + 1).all()
    whole = np.zeros((size, 5), np.int64)
    whole[rank] = rank
    assert comm.all_gather(whole[rank], out=whole) is whole
    assert (whole == np.arange(size)[:, None]).all()
    wide = np.arange(size * 4, dtype=np.int32) + rank
    part = wide[rank * 4 : (rank + 1) * 4]
    expected = fold([np.arange(size * 4, dtype=np.int32) + r for r in range(size)], "sum")
    comm.reduce_scatter(wide, out=part)
    check(part, expected[rank * 4 : (rank + 1) * 4], "reduce_scatter into its part of x")


def run_strided(comm: Communicator) -> None:
    """Non-contiguous inputs are copied where a result goes elsewhere."""
    base = np.arange(60, dtype=np.float32).reshape(6, 10) * (comm.rank + 1)
    strided = base[::2, ::3]
    factor = sum(range(1, comm.size + 1))
    out = np.empty(strided.shape, np.float32)
    comm.all_reduce(strided, out=out)
    plain = np.arange(60, dtype=np.float32).reshape(6, 10)[::2, ::3]
    check(out, plain * np.float32(factor), "strided all_reduce")
    gathered = comm.all_gather(base.T)
    assert gathered.shape == (10 * comm.size, 6)
    check(gathered[10 * comm.rank :][:10], np.ascontiguousarray(base.T), "strided all_gather")
    y = base.T if comm.rank == 0 else np.empty((10, 6), np.float32)
    got = comm.broadcast(y, root=0)
    assert np.array_equal(got, np.arange(60, dtype=np.float32).reshape(6, 10).T)


def run_all_shapes(comm: Communicator) -> None:
    for run in (run_shapes, run_zero_dimensions, run_outputs, run_strided):
        run(comm)


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_shapes(rank_pools: Pools, world: int) -> None:
    rank_pools(world).run(run_all_shapes)


def run_special_values(comm: Communicator) -> None:
    specials = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, 3.0], np.float32)
    for dtype in ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"):
        arrays = [np.roll(specials, r).astype(DType[dtype.upper()].numpy) for r in range(comm.size)]
        for op in OPS:
            for algo in ("one_shot", "two_shot", "lend"):
                got = comm.all_reduce(arrays[comm.rank].copy(), op, algo=algo)
                check(got, fold(arrays, op), "special", dtype, op, algo)


def test_special_values(rank_pools: Pools) -> None:
    rank_pools(3).run(run_special_values)


# --- anything --------------------------------------------------------------------------------

SHAPES = st.lists(st.integers(0, 9), min_size=0, max_size=4).map(tuple)
STEPS = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(("all_reduce", "all_gather", "reduce_scatter", "broadcast")),
        "dtype": st.sampled_from(DTYPES),
        "op": st.integers(0, 99),
        "shape": SHAPES,
        "axis": st.integers(0, 3),
        "root": st.integers(0, 2),
        "algo": st.sampled_from((None, "one_shot", "two_shot", "lend")),
        "chunk_bytes": st.sampled_from((None, 64, 192, 8192)),
        "seed": st.integers(0, 2**16),
    }
)


def run_step(comm: Communicator, step: dict[str, Any]) -> None:
    kind, shape, ops = step["kind"], tuple(step["shape"]), ops_of(step["dtype"])
    op = ops[step["op"] % len(ops)]
    factor, scales = factor_of(comm, step["dtype"], op), scales_of(comm.size, step["dtype"], op)
    axis = step["axis"] % max(len(shape), 1)
    if kind == "reduce_scatter":
        shape = shape or (1,)
        shape = (*shape[:axis], shape[axis] * comm.size, *shape[axis + 1 :])
    count = int(np.prod(shape, dtype=int))
    arrays = [a.reshape(shape) for a in inputs(comm.size, step["dtype"], op, count)]
    mine, chunk = arrays[comm.rank], {"chunk_bytes": step["chunk_bytes"]}
    if kind == "all_reduce":
        got = comm.all_reduce(mine.copy(), op, algo=step["algo"], **chunk, **factor)
        expected = fold(arrays, op, scales=scales)
    elif kind == "all_gather":
        got = comm.all_gather(mine, axis=axis, **chunk)
        expected = np.concatenate(arrays, axis) if shape else np.stack(arrays)
    elif kind == "reduce_scatter":
        got = comm.reduce_scatter(mine, op, axis=axis, **chunk, **factor)
        expected = np.split(fold(arrays, op, scales=scales), comm.size, axis)[comm.rank]
    else:
        root = step["root"] % comm.size
        got, expected = comm.broadcast(mine.copy(), root, **chunk), arrays[root]
    check(got, expected, step)


def run_steps(comm: Communicator, steps: list[dict[str, Any]]) -> None:
    for step in steps:
        run_step(comm, step)


@pytest.mark.parametrize("world", [1, 2, 3])
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=st.lists(STEPS, min_size=1, max_size=12))
def test_any_sequence(rank_pools: Pools, world: int, steps: list[dict[str, Any]]) -> None:
    rank_pools(world).run(run_steps, steps)
