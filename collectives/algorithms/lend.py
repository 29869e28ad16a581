"""Lending all-reduce: two-shot in which a shard comes back to its owner in the memory it came in.

Each rank lends shard j of its array to rank j, which folds all ranks' shards and writes the result
back over each of them. So every line of memory moves to the folding rank and back, once each, and
no rank writes to a line of which another still holds a copy, which is what costs a stream most.
Arrays in the segment are lent where they lie, and nothing is copied.
"""

from __future__ import annotations

from jetstream.collectives.algorithms import two_shot
from jetstream.collectives.builder import PlanBuilder
from jetstream.collectives.ir import FromLent, FromPeer, ToPeer

__all__ = ["all_reduce"]


def all_reduce(plan: PlanBuilder) -> None:
    """Lend shard j to rank j; fold the own shard and give it back; take the others back.

    Between hosts nothing can be lent: there it is two-shot.
    """
    if not plan.placement.is_one_host:
        two_shot.all_reduce(plan)
        return
    parts = two_shot.shards(plan.input_bytes, plan.call.world)
    own = parts[plan.rank]
    for peer, lane in plan.peer_lanes():
        part = plan.input(*parts[peer])
        plan.send(lane, part, ToPeer(peer), back=plan.output(*parts[peer]))
    contributions = plan.contributions(plan.input(*own), FromPeer, range(plan.call.world))
    plan.reduce(plan.lane(), plan.output(*own), contributions, gives_back=True)
    for peer, lane in plan.peer_lanes():
        plan.copy(lane, plan.output(*parts[peer]), FromLent(peer))
