"""Collectives over hosts: the bits of every algorithm are those that the placement promises.

The hosts are virtual: ranks of this machine that share nothing but a link.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

import jetstream
from jetstream.testing import reference, run_ranks

Array = NDArray[Any]

ALGORITHMS = ("one_shot", "two_shot", "lend", "hierarchical", "hierarchical_one_shot")
#: Partial folds as large as elements, twice and four times as large, and none.
OPS = {"float32": "avg", "bfloat16": "sum", "float8_e5m2": "prod", "int16": "avg"}
#: Less than a chunk, and several segments of a hierarchical all_reduce.
COUNTS = (7, 70_000)


def contribution(dtype: str, count: int, rank: int) -> Array:
    """Values whose fold depends on the order."""
    values = np.random.default_rng(rank).standard_normal(count) * 3
    return values.astype(getattr(ml_dtypes, dtype, None) or dtype)


def fold_everything(comm: jetstream.Communicator) -> dict[tuple[Any, ...], Array]:
    found: dict[tuple[Any, ...], Array] = {}
    root = comm.size - 1
    for dtype, op in OPS.items():
        for count in COUNTS:
            x = contribution(dtype, count, comm.rank)
            for algo in (None, *ALGORITHMS):
                found["all_reduce", dtype, count, algo] = comm.all_reduce(x.copy(), op, algo=algo)
            for algo in (None, "direct", "two_shot"):
                result = comm.reduce(x.copy(), root, op, algo=algo)
                if comm.rank == root:
                    found["reduce", dtype, count, algo] = result
        x = contribution(dtype, 100 * comm.size, comm.rank)
        found["reduce_scatter", dtype, x.size, None] = comm.reduce_scatter(x, op)
        if op != "avg":
            found["scan", dtype, x.size, None] = comm.scan(x.copy(), op)
        found["all_gather", dtype, x.size, None] = comm.all_gather(x)
        found["broadcast", dtype, x.size, None] = comm.broadcast(x.copy(), root)
        comm.barrier()
    return {key: np.array(value) for key, value in found.items()}


@pytest.mark.parametrize("hosts", [(0, 1, 0, 1), (0, 0, 1)])
def test_bits_are_those_of_the_placement(hosts: tuple[int, ...]) -> None:
    world = len(hosts)
    results = run_ranks(fold_everything, world, hosts=hosts, link="udp", timeout_s=120)
    for rank, found in enumerate(results):
        for (kind, dtype, count, algo), got in found.items():
            right = wanted(kind, dtype, count, hosts[: rank + 1] if kind == "scan" else hosts)
            if kind == "reduce_scatter":
                right = np.split(right, world)[rank]
            same = reference.same_bits(got.reshape(-1), right)
            assert same, f"{kind} {dtype} {count} {algo} on rank {rank}"


@cache
def wanted(kind: str, dtype: str, count: int, hosts: tuple[int, ...]) -> Array:
    """What the ranks on ``hosts`` contribute, put together or folded."""
    inputs = [contribution(dtype, count, rank) for rank in range(len(hosts))]
    if kind == "all_gather":
        return np.concatenate(inputs)
    return inputs[-1] if kind == "broadcast" else reference.fold(inputs, OPS[dtype], hosts=hosts)
