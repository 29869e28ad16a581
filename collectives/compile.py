"""From a call to its plans: a pure function, so equal calls give equal bytes."""

from __future__ import annotations

from jetstream.collectives.algorithms import ALGORITHMS
from jetstream.collectives.builder import PlanBuilder
from jetstream.collectives.calls import Call
from jetstream.collectives.ir import RankPlan
from jetstream.collectives.lower import encode_plan
from jetstream.errors import PlanError

__all__ = ["build_plan", "compile_plan"]


def build_plan(call: Call, rank: int) -> RankPlan:
    """Build the plan of ``rank`` as data.

    Raises PlanError if the rank is not one of the call's, or the call's kind does not have the
    algorithm asked for.
    """
    if not 0 <= rank < call.world:
        raise PlanError(f"{call.describe()}: rank {rank} of {call.world} ranks")
    algorithm = ALGORITHMS.get((call.kind, call.algorithm))
    if algorithm is None:
        raise PlanError(f"{call.describe()} has no algorithm {call.algorithm.label}")
    builder = PlanBuilder(call, rank)
    algorithm(builder)
    return builder.build()


def compile_plan(call: Call, rank: int) -> bytes:
    """Compile the plan of ``rank`` to the bytes that ``js_comm_load_plan`` takes.

    Raises PlanError as ``build_plan`` does.
    """
    return encode_plan(build_plan(call, rank))
