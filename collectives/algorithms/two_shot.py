"""Two-shot: a reduce-scatter and an all-gather or a gather, streamed into each other.

Each rank folds one shard of the array, so the bytes per rank do not grow with the world, and the
fold is in the same order as in one-shot, so the bits are the same.
"""

from __future__ import annotations

from itertools import pairwise

from jetstream.collectives.builder import PlanBuilder
from jetstream.collectives.ir import After, AfterMode, FromPeer, Refer, ToPeer

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
    shard only. Between hosts the stream from a rank to another carries the rank's contribution
    first, then its result.
    """
    parts = shards(plan.input_bytes, plan.call.world)
    own = parts[plan.rank]
    lanes = dict(plan.peer_lanes())
    sent = {
        peer: plan.send(lane, plan.input(*parts[peer]), ToPeer(peer), refer=Refer.APART)
        for peer, lane in lanes.items()
    }
    folded = plan.fold(plan.output(*own), plan.input(*own), FromPeer)
    after, remote = [After(folded)], {peer: lanes[peer] for peer in plan.remote}
    plan.send_all(plan.output(*own), after=after, refer=Refer.ALWAYS, lanes=remote)
    for peer, lane in plan.peer_lanes():
        # OUTPUT may be INPUT: a chunk is overwritten only after it has gone out.
        after = [After(sent[peer])]
        after += [After(folded, AfterMode.DONE)] if peer in remote else []
        plan.copy(lane, plan.output(*parts[peer]), plan.from_any(peer), after=after)


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
    folded = plan.fold(target, plan.input(*parts[plan.rank]), FromPeer)
    if not is_root:
        plan.send(lanes[root], target, ToPeer(root), after=[After(folded)])
        return
    for peer, lane in plan.peer_lanes():
        # OUTPUT may be INPUT: a chunk is overwritten only after it has gone out.
        after = [After(folded, AfterMode.DONE), After(sent[peer])]
        plan.copy(lane, plan.output(*parts[peer]), FromPeer(peer), after=after)
