"""Direct algorithms: every byte goes straight from the rank that has it to those that need it."""

from __future__ import annotations

from jetstream.collectives.builder import PlanBuilder
from jetstream.collectives.ir import FromAll, FromPeer, ToAll, ToPeer

__all__ = ["all_gather", "barrier", "broadcast", "reduce_scatter"]


def all_gather(plan: PlanBuilder) -> None:
    """Send INPUT to all; copy it and every peer's into the slots of OUTPUT, in rank order."""
    slot_bytes = plan.call.input_bytes
    if plan.peers:
        plan.send(plan.lane(), plan.input(), ToAll())
    plan.copy(plan.lane(), plan.output(plan.rank * slot_bytes, slot_bytes), plan.input())
    for peer, lane in plan.peer_lanes():
        plan.copy(lane, plan.output(peer * slot_bytes, slot_bytes), FromAll(peer))


def reduce_scatter(plan: PlanBuilder) -> None:
    """Send slice j of INPUT to rank j; fold everyone's own slice, in rank order, into OUTPUT."""
    slice_bytes = plan.call.output_bytes
    for peer, lane in plan.peer_lanes():
        plan.send(lane, plan.input(peer * slice_bytes, slice_bytes), ToPeer(peer))
    own = plan.input(plan.rank * slice_bytes, slice_bytes)
    plan.reduce(plan.lane(), plan.output(), plan.contributions(own, FromPeer))


def broadcast(plan: PlanBuilder) -> None:
    """Root: send INPUT to all and copy it to OUTPUT. Others: copy root's stream to OUTPUT."""
    root = plan.call.root
    if plan.rank != root:
        plan.copy(plan.lane(), plan.output(), FromAll(root))
        return
    if plan.peers:
        plan.send(plan.lane(), plan.input(), ToAll())
    plan.copy(plan.lane(), plan.output(), plan.input())


def barrier(plan: PlanBuilder) -> None:
    """Send an empty frame to all, then await one of each peer.

    One lane is enough: nobody gets through before all have come, so the order of looking at the
    peers does not matter. Alone in the world, an empty copy keeps the plan from being empty.
    """
    lane = plan.lane()
    if plan.peers:
        plan.send(lane, plan.input(), ToAll())
    for peer in plan.peers:
        plan.copy(lane, plan.output(), FromAll(peer))
    if not plan.peers:
        plan.copy(lane, plan.output(), plan.input())
