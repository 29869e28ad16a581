"""Direct algorithms: every byte goes straight from the rank that has it to those that need it."""

from __future__ import annotations

from itertools import accumulate

from jetstream.collectives.builder import PlanBuilder
from jetstream.collectives.ir import After, FromPeer, Refer, ToAll, ToPeer

__all__ = [
    "all_gather",
    "all_to_all",
    "barrier",
    "broadcast",
    "gather",
    "reduce",
    "reduce_scatter",
    "scatter",
]


def all_gather(plan: PlanBuilder) -> None:
    """Send INPUT to all; copy it and every peer's into the slots of OUTPUT, in rank order."""
    plan.send_all(plan.input(), refer=Refer.ALWAYS)
    plan.copy(plan.lane(), plan.output(*plan.call.part(plan.rank)), plan.input())
    for peer, lane in plan.peer_lanes():
        plan.copy(lane, plan.output(*plan.call.part(peer)), plan.from_any(peer))


def gather(plan: PlanBuilder) -> None:
    """Root: copy INPUT and every peer's into the slots of OUTPUT. Others: send INPUT to it."""
    root = plan.call.root
    if plan.rank != root:
        plan.send(plan.lane(), plan.input(), ToPeer(root), refer=Refer.ALWAYS)
        return
    plan.copy(plan.lane(), plan.output(*plan.call.part(root)), plan.input())
    for peer, lane in plan.peer_lanes():
        plan.copy(lane, plan.output(*plan.call.part(peer)), FromPeer(peer))


def reduce_scatter(plan: PlanBuilder) -> None:
    """Send part j of INPUT to rank j; fold everyone's own part into OUTPUT."""
    for peer, lane in plan.peer_lanes():
        part = plan.input(*plan.call.part(peer))
        plan.send(lane, part, ToPeer(peer), refer=Refer.ALWAYS)
    own = plan.input(*plan.call.part(plan.rank))
    plan.fold(plan.output(), own, FromPeer)


def reduce(plan: PlanBuilder) -> None:
    """Root: fold all ranks' contributions into OUTPUT. Others: send INPUT to it."""
    root = plan.call.root
    if plan.rank != root:
        plan.send(plan.lane(), plan.input(), ToPeer(root), refer=Refer.ALWAYS)
        return
    plan.fold(plan.output(), plan.input(), FromPeer)


def scatter(plan: PlanBuilder) -> None:
    """Root: send part j of INPUT to rank j, copy the own part. Others: copy from the root."""
    root = plan.call.root
    if plan.rank != root:
        plan.copy(plan.lane(), plan.output(), FromPeer(root))
        return
    for peer, lane in plan.peer_lanes():
        part = plan.input(*plan.call.part(peer))
        plan.send(lane, part, ToPeer(peer), refer=Refer.ALWAYS)
    plan.copy(plan.lane(), plan.output(), plan.input(*plan.call.part(root)))


def all_to_all(plan: PlanBuilder) -> None:
    """Send part j of INPUT to rank j; copy the own part, and from rank j into part j of OUTPUT.

    Each peer has a lane of its own in both directions, so that no rank holds up another.
    """
    sent_parts, received_parts = _pairs(plan)
    sent = {
        peer: plan.send(lane, plan.input(*sent_parts[peer]), ToPeer(peer), refer=Refer.APART)
        for peer, lane in plan.peer_lanes()
    }
    own = plan.output(*received_parts[plan.rank])
    plan.copy(plan.lane(), own, plan.input(*sent_parts[plan.rank]))
    for peer, lane in plan.peer_lanes():
        # With equal parts OUTPUT may be INPUT: a chunk is overwritten only after it has gone out.
        after = [After(sent[peer])] if plan.splits is None else []
        plan.copy(lane, plan.output(*received_parts[peer]), FromPeer(peer), after=after)


def _pairs(plan: PlanBuilder) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Offset and bytes, by rank, of what goes there and of what comes from there."""
    if plan.splits is None:
        parts = [plan.call.part(rank) for rank in range(plan.call.world)]
        return parts, parts
    itemsize = plan.call.dtype.itemsize
    sent, received = (
        list(zip(accumulate(sizes, initial=0), sizes, strict=False))
        for sizes in (
            [count * itemsize for count in counts]
            for counts in (plan.splits.sent, plan.splits.received)
        )
    )
    return sent, received


def broadcast(plan: PlanBuilder) -> None:
    """Root: send INPUT to all and copy it to OUTPUT. Others: copy root's stream to OUTPUT."""
    root = plan.call.root
    if plan.rank != root:
        plan.copy(plan.lane(), plan.output(), plan.from_any(root))
        return
    plan.send_all(plan.input(), refer=Refer.ALWAYS)
    plan.copy(plan.lane(), plan.output(), plan.input())


def barrier(plan: PlanBuilder) -> None:
    """Send an empty frame to all, then await one of each peer.

    One lane is enough: nobody gets through before all have come, so the order of looking at the
    peers does not matter. Alone in the world, an empty copy keeps the plan from being empty.
    """
    lane = plan.lane()
    for peer in plan.remote:
        plan.send(lane, plan.input(), ToPeer(peer))
    if plan.neighbours:
        plan.send(lane, plan.input(), ToAll())
    for peer in plan.peers:
        plan.copy(lane, plan.output(), plan.from_any(peer))
    if not plan.peers:
        plan.copy(lane, plan.output(), plan.input())
