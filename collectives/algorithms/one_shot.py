"""One-shot all-reduce: everyone sends everything to everyone, one message deep."""

from __future__ import annotations

from jetstream.collectives.builder import PlanBuilder
from jetstream.collectives.ir import Refer

__all__ = ["all_reduce"]


def all_reduce(plan: PlanBuilder) -> None:
    """Send INPUT to all; fold all ranks' contributions into OUTPUT."""
    # OUTPUT may be INPUT: a chunk is overwritten only after it has gone out.
    after = plan.send_all(plan.input(), refer=Refer.APART)
    plan.fold(plan.output(), plan.input(), plan.from_any, after=after)
