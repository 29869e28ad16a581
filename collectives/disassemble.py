"""Plans as text, for people and for the golden files of the tests."""

from __future__ import annotations

from jetstream.collectives.ir import (
    FromAll,
    FromLent,
    FromPeer,
    Op,
    Range,
    RankPlan,
    Reduce,
    Refer,
    Send,
    Source,
    ToAll,
)
from jetstream.collectives.lower import decode_plan

__all__ = ["disassemble", "format_op", "format_plan"]


_STREAMS: dict[type[Source], str] = {FromAll: "all", FromPeer: "peer", FromLent: "lent"}
_REFERS = {Refer.NEVER: "", Refer.APART: ", or refer apart", Refer.ALWAYS: ", or refer"}


def disassemble(data: bytes) -> str:
    """Format the bytes of a plan as text; raises PlanError if they are not a plan."""
    return format_plan(decode_plan(data))


def format_plan(plan: RankPlan) -> str:
    """Format a plan: two lines of header, one line per operation."""
    call = plan.call
    lines = [
        f"{call.describe()}: {call.algorithm.label}, chunks of {call.chunk_bytes} bytes, "
        f"rank {plan.rank} of {call.world}",
        f"input {plan.input_bytes} bytes, output {plan.output_bytes}, "
        f"scratch {plan.scratch_bytes}, divisor {plan.divisor}, lanes {plan.lane_count}",
    ]
    lines += [f"#{index:<3} lane {op.lane:<3} {format_op(op)}" for index, op in enumerate(plan.ops)]
    return "\n".join(lines) + "\n"


def format_op(op: Op) -> str:
    """Format an operation: ``reduce output[0:8] <- input[0:8], all 1  after #0 chunk``."""
    sources = ", ".join(_format_source(source) for source in op.sources)
    if isinstance(op, Send):
        target = "all" if isinstance(op.to, ToAll) else f"peer {op.to.peer}"
        text = f"send   {sources} -> {target}"
        text += f", back to {_format_source(op.back)}" if op.back is not None else ""
        text += _REFERS[op.refer]
    else:
        text = f"{type(op).__name__.lower():<6} {_format_source(op.target)} <- {sources}"
        text += ", given back" if isinstance(op, Reduce) and op.gives_back else ""
        text += ", of partials" if isinstance(op, Reduce) and op.partials else ""
    edges = ", ".join(f"#{edge.op_index} {edge.mode.name.lower()}" for edge in op.after)
    return f"{text}  after {edges}" if edges else text


def _format_source(source: Source) -> str:
    if isinstance(source, Range):
        end = source.offset + source.size_bytes
        partial = " partial" if source.scale else ""
        return f"{source.buffer.name.lower()}[{source.offset}:{end}]{partial}"
    return f"{_STREAMS[type(source)]} {source.peer}"
