"""Prefix reductions: every rank sends to all above it, and folds what those below have sent.

A chain from rank to rank would send less, but it would round 16-bit floats at every hop, and its
latency grows with the world.
"""

from __future__ import annotations

from jetstream.collectives.builder import PlanBuilder
from jetstream.collectives.ir import After, FromPeer, Refer, ToPeer

__all__ = ["exscan", "scan"]


def scan(plan: PlanBuilder) -> None:
    """Fold the contributions of ranks 0 to this one into OUTPUT."""
    after = _send_upwards(plan)
    plan.fold(plan.output(), plan.input(), FromPeer, ranks=range(plan.rank + 1), after=after)


def exscan(plan: PlanBuilder) -> None:
    """Fold the contributions of the ranks below this one into OUTPUT; rank 0 writes nothing."""
    after = _send_upwards(plan)
    if plan.rank > 0:
        plan.fold(plan.output(), plan.input(), FromPeer, ranks=range(plan.rank), after=after)
    elif not plan.peers:  # no plan is empty
        plan.copy(plan.lane(), plan.output(0, 0), plan.input(0, 0))


def _send_upwards(plan: PlanBuilder) -> list[After]:
    """Send INPUT to each rank above, in a lane of its own; the edge says that all of it is out.

    OUTPUT may be INPUT, and an operation waits for few others: so each chunk goes to the ranks in
    turn, and the fold waits for the last of them.
    """
    after: list[After] = []
    for peer in range(plan.rank + 1, plan.call.world):
        lane, to = plan.lane(), ToPeer(peer)
        sent = plan.send(lane, plan.input(), to, after=after, refer=Refer.APART)
        after = [After(sent)]
    return after
