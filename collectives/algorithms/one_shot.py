"""One-shot all-reduce: everyone sends everything to everyone, one message deep."""

from __future__ import annotations

from jetstream.collectives.builder import PlanBuilder
from jetstream.collectives.ir import After, FromAll, Refer, ToAll

__all__ = ["all_reduce"]


def all_reduce(plan: PlanBuilder) -> None:
    """Send INPUT to all; fold all ranks' contributions, in rank order, into OUTPUT."""
    after = []
    if plan.peers:
        sent = plan.send(plan.lane(), plan.input(), ToAll(), refer=Refer.APART)
        # OUTPUT may be INPUT: a chunk is overwritten only after it has gone out.
        after = [After(sent)]
    contributions = plan.contributions(plan.input(), FromAll)
    plan.reduce(plan.lane(), plan.output(), contributions, after=after)
