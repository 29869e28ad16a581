"""The algorithms, by kind of collective: each a function that fills a PlanBuilder.

``docs/algorithms.md`` gives the steps and the bytes of each.
"""

from __future__ import annotations

from collections.abc import Callable

from jetstream.collectives.algorithms import direct, lend, one_shot, prefix, two_shot
from jetstream.collectives.builder import PlanBuilder
from jetstream.dtypes import Algorithm, Kind

__all__ = ["ALGORITHMS"]

#: What can be compiled.
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
