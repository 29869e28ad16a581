"""The collective compiler: calls to plans, plans proved, plans to bytes.

``select`` chooses the algorithm, ``compile`` builds the plan with one of ``algorithms`` and lowers
it, ``verify`` proves the plans of all ranks, ``disassemble`` shows them. ``docs/plans.md`` explains
the format and the algorithms. Nothing here talks to the data plane.
"""

from __future__ import annotations

from jetstream.collectives.calls import Call
from jetstream.collectives.compile import build_plan, compile_plan
from jetstream.collectives.disassemble import disassemble
from jetstream.collectives.parts import Splits
from jetstream.collectives.select import choose
from jetstream.collectives.template import compile_splits
from jetstream.collectives.verify import verify_call, verify_plans

__all__ = [
    "Call",
    "Splits",
    "build_plan",
    "choose",
    "compile_plan",
    "compile_splits",
    "disassemble",
    "verify_call",
    "verify_plans",
]
