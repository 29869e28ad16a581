"""Two-shot: a reduce-scatter and an all-gather or a gather, streamed into each other.

Each rank folds one shard of the array, so the bytes per rank do not grow with the world, and the
fold is in rank order as in one-shot, so the bits are the same.
"""

from __future__ import annotations

from itertools import pairwise

from jetstream.collectives.builder import PlanBuilder
from jetstream.collectives.ir import After, AfterMode, FromAll, FromPeer, Refer, ToAll, ToPeer

__all__ = ["all_reduce", "reduce", "shards"]

# A cache line; every element size divides it.
_SHARD_ALIGN = 64


def shards(total_bytes: int, world: int) -> list[tuple[int, int]]:
    """Cut an array into one (offset, bytes) per rank, contiguous and as even as cache lines allow.

    Boundaries lie on multiples of 64 bytes. Where there are fewer lines than ranks some shards
    are empty; their operations exchange empty frames like any others.
    """
    lines = -(-total_bytes // _SHARD_ALIGN)
    bounds = [min(lines * rank // world * _SHARD_ALIGN, total_bytes) for rank in range(world + 1)]
    return [(low, high - low) for low, high in pairwise(bounds)]


def all_reduce(plan: PlanBuilder) -> None:
    """Send shard j to rank j, fold the own shard, send the result to all, collect the others'.

    Each peer has a lane of its own in both directions: a rank that is late holds up its own
    shard only.
    """
    parts = shards(plan.input_bytes, plan.call.world)
    own = parts[plan.rank]
    sent = {
        peer: plan.send(lane, plan.input(*parts[peer]), ToPeer(peer), refer=Refer.APART)
        for peer, lane in plan.peer_lanes()
    }
    contributions = plan.contributions(plan.input(*own), FromPeer)
    folded = plan.reduce(plan.lane(), plan.output(*own), contributions)
    if plan.peers:
        result, after = plan.output(*own), [After(folded)]
        plan.send(plan.lane(), result, ToAll(), after=after, refer=Refer.ALWAYS)
    for peer, lane in plan.peer_lanes():
        # OUTPUT may be INPUT: a chunk is overwritten only after it has gone out.
        after = [After(sent[peer])]
        plan.copy(lane, plan.output(*parts[peer]), FromAll(peer), after=after)


def reduce(plan: PlanBuilder) -> None:
    """Send shard j to rank j, fold the own shard, send the result to the root, which collects.

    The stream from a rank to the root carries the rank's contribution first, then its result; so
    the root copies results once it has folded its own shard.
    """
    root = plan.call.root
    parts = shards(plan.input_bytes, plan.call.world)
    own_bytes = parts[plan.rank][1]
    lanes = dict(plan.peer_lanes())
    sent = {
        peer: plan.send(lane, plan.input(*parts[peer]), ToPeer(peer), refer=Refer.APART)
        for peer, lane in lanes.items()
    }
    is_root = plan.rank == root
    target = plan.output(*parts[root]) if is_root else plan.scratch(own_bytes)
    contributions = plan.contributions(plan.input(*parts[plan.rank]), FromPeer)
    folded = plan.reduce(plan.lane(), target, contributions)
    if not is_root:
        plan.send(lanes[root], target, ToPeer(root), after=[After(folded)])
        return
    for peer, lane in plan.peer_lanes():
        # OUTPUT may be INPUT: a chunk is overwritten only after it has gone out.
        after = [After(folded, AfterMode.DONE), After(sent[peer])]
        plan.copy(lane, plan.output(*parts[peer]), FromPeer(peer), after=after)
