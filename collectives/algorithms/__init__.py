"""The algorithms, by kind of collective: each a function that fills a PlanBuilder.

``docs/algorithms.md`` gives the steps and the bytes of each.
"""

from __future__ import annotations

from collections.abc import Callable

from jetstream.collectives.algorithms import (
    direct,
    hierarchical,
    hierarchical_all_reduce,
    lend,
    one_shot,
    prefix,
    two_shot,
)
from jetstream.collectives.builder import PlanBuilder
from jetstream.dtypes import Algorithm, Kind

__all__ = ["ALGORITHMS", "HIERARCHICAL"]

#: What can be compiled, flat: all ranks do the same, wherever they are.
ALGORITHMS: dict[tuple[Kind, Algorithm], Callable[[PlanBuilder], None]] = {
    (Kind.ALL_REDUCE, Algorithm.ONE_SHOT): one_shot.all_reduce,
    (Kind.ALL_REDUCE, Algorithm.TWO_SHOT): two_shot.all_reduce,
    (Kind.ALL_REDUCE, Algorithm.LEND): lend.all_reduce,
    (Kind.ALL_GATHER, Algorithm.DIRECT): direct.all_gather,
    (Kind.REDUCE_SCATTER, Algorithm.DIRECT): direct.reduce_scatter,
    (Kind.BROADCAST, Algorithm.DIRECT): direct.broadcast,
    (Kind.BARRIER, Algorithm.DIRECT): direct.barrier,
    (Kind.ALL_TO_ALL, Algorithm.DIRECT): direct.all_to_all,
    (Kind.REDUCE, Algorithm.DIRECT): direct.reduce,
    (Kind.REDUCE, Algorithm.TWO_SHOT): two_shot.reduce,
    (Kind.GATHER, Algorithm.DIRECT): direct.gather,
    (Kind.SCATTER, Algorithm.DIRECT): direct.scatter,
    (Kind.SCAN, Algorithm.DIRECT): prefix.scan,
    (Kind.EXSCAN, Algorithm.DIRECT): prefix.exscan,
}

#: For ranks on several hosts; on one host these are flat ones.
HIERARCHICAL: dict[tuple[Kind, Algorithm], Callable[[PlanBuilder], None]] = {
    (Kind.ALL_REDUCE, Algorithm.HIERARCHICAL): hierarchical_all_reduce.all_reduce,
    (Kind.ALL_REDUCE, Algorithm.HIERARCHICAL_ONE_SHOT): hierarchical.all_reduce_one_shot,
    (Kind.ALL_GATHER, Algorithm.HIERARCHICAL): hierarchical.all_gather,
    (Kind.REDUCE_SCATTER, Algorithm.HIERARCHICAL): hierarchical.reduce_scatter,
    (Kind.BROADCAST, Algorithm.HIERARCHICAL): hierarchical.broadcast,
    (Kind.BARRIER, Algorithm.HIERARCHICAL): hierarchical.barrier,
    (Kind.REDUCE, Algorithm.HIERARCHICAL): hierarchical.reduce,
}
