"""The verifier: proves the plans of all ranks of one call before a byte moves.

It raises PlanError, naming rank, operation and fault, unless all of this holds:

- ``structure``: every plan is well formed on its own;
- ``graph``: frames sent and frames awaited match one to one, in order and size, and the plans run
  to their end with room for a single frame per stream;
- ``hazards``: whatever the timing, no two steps race for the same bytes or the same stream, with
  INPUT and OUTPUT apart and in place;
- ``results``: OUTPUT is what the kind of collective promises, folded once in the order of hosts
  and ranks, and no rank leaves before those it depends on have come.
"""

from __future__ import annotations

from collections.abc import Sequence

from jetstream.collectives.calls import Call
from jetstream.collectives.compile import build_plan
from jetstream.collectives.ir import RankPlan
from jetstream.collectives.parts import Splits
from jetstream.collectives.verify.graph import build_graph
from jetstream.collectives.verify.hazards import check_hazards
from jetstream.collectives.verify.results import check_results
from jetstream.collectives.verify.structure import check_structure

__all__ = ["verify_call", "verify_plans"]


def verify_call(
    call: Call, splits: Sequence[Splits] | None = None, hosts: Sequence[int] = ()
) -> None:
    """Compile ``call`` for all ranks and prove the plans; raises PlanError if they are wrong.

    ``splits``, by rank, for a call that has them; ``hosts``, by rank, as for ``build_plan``.
    """
    everyone = (None,) * call.world
    verify_plans(
        [build_plan(call, rank, one, hosts) for rank, one in enumerate(splits or everyone)]
    )


def verify_plans(plans: Sequence[RankPlan]) -> None:
    """Prove the plans of one call, one per rank in rank order; raises PlanError if they are wrong.

    Time and memory grow with the square of the number of steps of all ranks: a second for 64 ranks
    with one chunk per operation. A plan is periodic in its chunks, so sizes of one, two and three
    chunks per operation, with ragged ends, stand for the larger ones.
    """
    check_structure(plans)
    graph = build_graph(plans)
    check_hazards(graph)
    check_results(graph)
