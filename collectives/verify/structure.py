"""What must hold of each plan on its own: sizes, ranges, peers, lanes and edges."""

from __future__ import annotations

from collections.abc import Sequence

from jetstream.collectives.calls import CHUNK_BYTES_MAX, Call
from jetstream.collectives.disassemble import format_op
from jetstream.collectives.ir import (
    AFTER_MAX,
    LANES_MAX,
    OPS_MAX,
    PARTIAL_ALIGN,
    REDUCE_SOURCES_MAX,
    SOURCES_MAX,
    Buffer,
    Copy,
    FromAll,
    FromLent,
    FromPeer,
    Op,
    Range,
    RankPlan,
    Reduce,
    Refer,
    Send,
    ToAll,
)
from jetstream.errors import PlanError

__all__ = ["check_structure", "op_error", "plan_error"]


def plan_error(rank: int, text: str) -> PlanError:
    """An error of one rank's plan as a whole."""
    return PlanError(f"rank {rank}: {text}")


def op_error(plan: RankPlan, op_index: int, text: str) -> PlanError:
    """An error of one operation."""
    return PlanError(f"rank {plan.rank} op #{op_index} ({format_op(plan.ops[op_index])}): {text}")


def check_structure(plans: Sequence[RankPlan]) -> None:
    """Check that the plans are those of one call, and each is well formed; raises PlanError."""
    if not plans:
        raise PlanError("no plans to verify")
    call = plans[0].call
    if len(plans) != call.world:
        raise PlanError(f"{len(plans)} plans for {call.world} ranks")
    for rank, plan in enumerate(plans):
        if plan.rank != rank:
            raise plan_error(rank, f"its plan is for rank {plan.rank}")
        if plan.call != call:
            raise plan_error(rank, f"{plan.call.describe()} is not rank 0's {call.describe()}")
        if plan.hosts != plans[0].hosts:
            raise plan_error(rank, f"hosts {plan.hosts} are not rank 0's {plans[0].hosts}")
        _check_plan(plan, call)


def _check_plan(plan: RankPlan, call: Call) -> None:
    sizes = (plan.input_bytes, plan.output_bytes, plan.divisor)
    if call.has_splits != (plan.splits is not None):
        raise plan_error(plan.rank, "has splits, or lacks them, unlike its call")
    wanted = (
        call.input_bytes(plan.rank, plan.splits),
        call.output_bytes(plan.rank, plan.splits),
        call.divisor,
    )
    if sizes != wanted or plan.scratch_bytes < 0:
        raise plan_error(plan.rank, f"input, output and divisor are {sizes}, not {wanted}")
    source_count = sum(len(op.sources) for op in plan.ops)
    if not 1 <= len(plan.ops) <= OPS_MAX or source_count > SOURCES_MAX:
        raise plan_error(
            plan.rank,
            f"{len(plan.ops)} operations with {source_count} sources; "
            f"1 to {OPS_MAX} with up to {SOURCES_MAX} are possible",
        )
    lanes = {op.lane for op in plan.ops}
    if len(lanes) > LANES_MAX or lanes != set(range(len(lanes))):
        raise plan_error(plan.rank, f"lanes are not numbered 0 to {LANES_MAX - 1} without gaps")
    for op_index, op in enumerate(plan.ops):
        fault = _op_fault(plan, op_index, op)
        if fault is not None:
            raise op_error(plan, op_index, fault)


def _op_fault(plan: RankPlan, op_index: int, op: Op) -> str | None:
    if not 1 <= len(op.sources) <= (REDUCE_SOURCES_MAX if isinstance(op, Reduce) else 1):
        return f"{len(op.sources)} sources"
    if len(op.after) > AFTER_MAX:
        return f"{len(op.after)} edges; at most {AFTER_MAX} are possible"
    # Edges that point backwards, and lanes that run in list order, cannot form a cycle in a plan.
    for edge in op.after:
        if not 0 <= edge.op_index < op_index:
            return f"waits for op #{edge.op_index}, which is not an earlier one"
    if isinstance(op, Reduce) and op.bytes % plan.call.dtype.itemsize != 0:
        return f"{op.bytes} bytes are not whole elements of {plan.call.dtype.label}"
    fault = _partials_fault(plan, op)
    if fault is not None:
        return fault
    if isinstance(op, Send):
        return (
            _destination_fault(plan, op)
            or _sources_fault(plan, op)
            or (None if op.back is None else _back_fault(plan, op, op.back))
        )
    if op.target.buffer is Buffer.INPUT:
        return "writes to INPUT"
    return _range_fault(plan, op.target) or _sources_fault(plan, op)


def _destination_fault(plan: RankPlan, op: Send) -> str | None:
    if op.back is not None and op.refer is not Refer.NEVER:
        return "lends what it may publish by reference"
    placement = plan.placement
    if isinstance(op.to, ToAll):
        return None if placement.neighbours(plan.rank) else "there is nobody to send to"
    fault = _peer_fault(plan, op.to.peer)
    if fault is not None or placement.is_local(plan.rank, op.to.peer):
        return fault
    if op.back is not None or op.refer is not Refer.NEVER:
        return "lends to another host, or publishes there by reference"
    return None


def _partials_fault(plan: RankPlan, op: Op) -> str | None:
    """Partial folds: a REDUCE makes them in SCRATCH, SENDs send them, another REDUCE takes them."""
    scale = plan.call.partial_scale
    lends, takes, target = False, False, None if isinstance(op, Send) else op.target
    if isinstance(op, Send):
        lends, takes, target = op.back is not None, op.source.scale != 0, op.back
    elif isinstance(op, Reduce):
        lends, takes = op.gives_back, op.partials
    makes = target is not None and target.scale != 0
    spans = [source for source in op.sources if isinstance(source, Range)]
    if any(span.scale != (scale if takes else 0) for span in spans):
        return "takes partial folds for elements, or elements for them"
    if not takes and not makes:
        return None
    if scale == 0:
        return f"{plan.call.describe()} has no partial folds"
    if (takes and makes) or lends or not isinstance(op, Send | Reduce):
        return "cannot do this with partial folds"
    if min(op.bytes, plan.call.chunk_bytes) * scale > CHUNK_BYTES_MAX:
        return f"{scale} times a chunk is more than {CHUNK_BYTES_MAX} bytes"
    spans = [span for span in (*spans, target) if span is not None and span.scale != 0]
    if any(span.buffer is not Buffer.SCRATCH or span.offset % PARTIAL_ALIGN for span in spans):
        return f"partial folds do not lie in SCRATCH at a multiple of {PARTIAL_ALIGN} bytes"
    return None


def _back_fault(plan: RankPlan, op: Send, back: Range) -> str | None:
    if isinstance(op.to, ToAll):
        return "lends a frame to all"
    if back.buffer is Buffer.INPUT:
        return "takes back into INPUT"
    if back.bytes != op.bytes:
        return f"lends {op.bytes} bytes and takes back {back.bytes}"
    return _range_fault(plan, back)


def _sources_fault(plan: RankPlan, op: Op) -> str | None:
    streams = [source for source in op.sources if not isinstance(source, Range)]
    if len(set(streams)) != len(streams):
        return "takes two frames of one stream in one step"
    fault: str | None
    for source in op.sources:
        if isinstance(source, FromLent) and not isinstance(op, Copy):
            fault = "takes a frame back, which only a copy can"
        elif isinstance(op, Reduce) and op.gives_back and not isinstance(source, Range | FromPeer):
            fault = "gives back a frame that was sent to all"
        elif not isinstance(source, Range):
            fault = _peer_fault(plan, source.peer) or _stream_fault(plan, source)
        elif source.bytes != op.bytes:
            fault = f"a source of {source.bytes} bytes for a target of {op.bytes}"
        else:
            fault = _range_fault(plan, source)
        if fault is not None:
            return fault
    return None


def _stream_fault(plan: RankPlan, source: FromAll | FromPeer | FromLent) -> str | None:
    if isinstance(source, FromPeer) or plan.placement.is_local(plan.rank, source.peer):
        return None
    return f"rank {source.peer} is on another host, to which no such stream leads"


def _peer_fault(plan: RankPlan, peer: int) -> str | None:
    if 0 <= peer < plan.call.world and peer != plan.rank:
        return None
    return f"rank {peer} is not a peer of rank {plan.rank} in a world of {plan.call.world}"


def _range_fault(plan: RankPlan, span: Range) -> str | None:
    size_bytes = plan.buffer_bytes(span.buffer)
    end = span.offset + span.size_bytes
    if span.offset >= 0 and span.bytes >= 0 and end <= size_bytes:
        return None
    return f"bytes {span.offset} to {end} lie outside {span.buffer.name} of {size_bytes} bytes"
