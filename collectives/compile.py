"""From a call to its plans: a pure function, so equal calls give equal bytes."""

from __future__ import annotations

from collections.abc import Sequence

from jetstream.collectives.algorithms import ALGORITHMS, HIERARCHICAL
from jetstream.collectives.builder import PlanBuilder
from jetstream.collectives.calls import Call
from jetstream.collectives.ir import RankPlan
from jetstream.collectives.lower import encode_plan
from jetstream.collectives.parts import SPLIT_MAX, Splits
from jetstream.collectives.placement import place
from jetstream.errors import PlanError

__all__ = ["build_plan", "check_splits", "compile_plan"]


def build_plan(
    call: Call, rank: int, splits: Splits | None = None, hosts: Sequence[int] = ()
) -> RankPlan:
    """Build the plan of ``rank`` as data; ``splits`` are the rank's where the call has them.

    ``hosts`` are the hosts of all ranks, by any number; none: all ranks share one. They must be
    told to all ranks alike. Raises PlanError if the rank is not one of the call's, the call's kind
    does not have the algorithm asked for, or splits or hosts do not fit the call.
    """
    if not 0 <= rank < call.world:
        raise PlanError(f"{call.describe()}: rank {rank} of {call.world} ranks")
    key = (call.kind, call.algorithm)
    algorithm = ALGORITHMS.get(key) or HIERARCHICAL.get(key)
    if algorithm is None:
        raise PlanError(f"{call.describe()} has no algorithm {call.algorithm.label}")
    check_splits(call, rank, splits)
    builder = PlanBuilder(call, rank, place(hosts, call.world), splits)
    algorithm(builder)
    return builder.build()


def compile_plan(
    call: Call, rank: int, splits: Splits | None = None, hosts: Sequence[int] = ()
) -> bytes:
    """Compile the plan of ``rank`` to the bytes that ``js_comm_load_plan`` takes.

    Raises PlanError as ``build_plan`` does.
    """
    return encode_plan(build_plan(call, rank, splits, hosts))


def check_splits(call: Call, rank: int, splits: Splits | None) -> None:
    """Raise PlanError if the splits of a rank do not fit the call."""
    if call.has_splits != (splits is not None):
        raise PlanError(f"{call.describe()}: splits are needed for a call that has them, only")
    if splits is None:
        return
    for counts in (splits.sent, splits.received):
        if len(counts) != call.world or min(counts) < 0 or max(counts) > SPLIT_MAX:
            raise PlanError(
                f"{call.describe()}: {call.world} splits from 0 to {SPLIT_MAX} are needed"
            )
    if splits.sent[rank] != splits.received[rank]:
        raise PlanError(
            f"{call.describe()}: rank {rank} sends {splits.sent[rank]} elements to itself "
            f"and awaits {splits.received[rank]}"
        )
