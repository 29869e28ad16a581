"""Proof that timing does not matter: conflicting steps are ordered by happens-before.

Room in streams orders nothing here: real streams have more of it than the minimum.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from jetstream.collectives.calls import PREFIXES
from jetstream.collectives.ir import Buffer, Copy, Range, RankPlan, Refer, Send
from jetstream.collectives.verify.graph import StepGraph
from jetstream.collectives.verify.structure import op_error, plan_error
from jetstream.dtypes import Kind

__all__ = ["check_hazards"]


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where a rank's buffers lie, in one line of addresses, and what may be referred to there."""

    label: str
    bases: tuple[int, int, int]
    refer: Refer

    def address(self, span: Range) -> int:
        return self.bases[span.buffer] + span.offset


@dataclass(frozen=True, slots=True)
class _Access:
    low: int
    high: int
    node: int
    buffer: Buffer
    is_write: bool
    #: a read that goes on until the plan ends: the peers read the array itself
    is_shared: bool = False


def check_hazards(graph: StepGraph) -> None:
    """Check memory, streams and arrival; raises PlanError where the outcome depends on timing."""
    before = _happens_before(graph)
    for nodes in (*graph.sent.values(), *graph.taken.values(), *graph.taken_back.values()):
        _check_stream(graph, before, nodes)
    for plan in graph.plans:
        for layout in _layouts(plan):
            _check_memory(graph, before, plan, layout)
    _check_arrival(graph, before)


def _happens_before(graph: StepGraph) -> list[int]:
    """For each step the set, as bits, of steps that have finished when it starts.

    A frame tells its receiver what had happened before the SEND started, but not that the SEND
    has finished: a link may still read the source, to send a lost frame again. The bits above
    the steps are the ranks that have entered the call.
    """
    before = [0] * len(graph.steps)
    for node in graph.order:
        seen = 1 << (len(graph.steps) + graph.steps[node].rank)
        for other in graph.local[node]:
            seen |= before[other] | 1 << other
        for other in graph.frames[node].values():
            seen |= before[other]
            if other in graph.giver:  # nobody but the receiver touches what is lent
                seen |= 1 << other
        if node in graph.lender:
            giver = graph.giver[graph.lender[node]]
            seen |= before[giver] | 1 << giver
        before[node] = seen
    return before


def _is_before(before: list[int], first: int, second: int) -> bool:
    return bool(before[second] >> first & 1)


def _check_stream(graph: StepGraph, before: list[int], nodes: list[int]) -> None:
    for first, second in pairwise(nodes):
        if not _is_before(before, first, second):
            other = graph.steps[first]
            raise graph.error(
                second,
                f"uses the same stream as op #{other.op_index} and nothing orders the two",
            )


def _layouts(plan: RankPlan) -> Iterator[_Layout]:
    """The ways in which a caller may lay out INPUT and OUTPUT."""
    scratch = plan.input_bytes + plan.output_bytes
    yield _Layout("", (0, plan.input_bytes, scratch), Refer.APART)
    always = Refer.ALWAYS
    call = plan.call
    if call.kind in (Kind.REDUCE, Kind.GATHER, Kind.SCATTER) and plan.rank != call.root:
        return  # has one buffer only
    if call.kind in (Kind.ALL_GATHER, Kind.GATHER):
        yield _Layout(" in place", (call.part(plan.rank)[0], 0, scratch), always)
    elif call.kind in (Kind.REDUCE_SCATTER, Kind.SCATTER):
        yield _Layout(" in place", (0, call.part(plan.rank)[0], scratch), always)
    elif call.kind is not Kind.BARRIER and plan.splits is None:
        yield _Layout(" in place", (0, 0, scratch), always)


def _accesses(graph: StepGraph, plan: RankPlan, layout: _Layout) -> Iterator[_Access]:
    first = graph.first[plan.rank][0]
    for node in range(first, len(graph.steps)):
        step = graph.steps[node]
        if step.rank != plan.rank:
            return
        op = plan.ops[step.op_index]
        reads = [step.of(source) for source in op.sources if isinstance(source, Range)]
        if isinstance(op, Send):
            writes = [] if op.back is None else [step.of(op.back)]
        else:
            writes = [step.of(op.target)]
        if node in graph.giver:  # the peer may work in this rank's memory
            low = layout.address(writes[0])
            buffer, end = writes[0].buffer, low + writes[0].size_bytes
            yield _Access(low, end, graph.giver[node], buffer, True)
        if isinstance(op, Copy) and [layout.address(r) for r in reads] == [
            layout.address(w) for w in writes
        ]:
            continue  # a copy onto itself is left out
        is_shared = isinstance(op, Send) and op.refer >= layout.refer
        for span in reads:
            low = layout.address(span)
            yield _Access(low, low + span.size_bytes, node, span.buffer, False, is_shared)
        for span in writes:
            low = layout.address(span)
            yield _Access(low, low + span.size_bytes, node, span.buffer, True)


def _check_memory(graph: StepGraph, before: list[int], plan: RankPlan, layout: _Layout) -> None:
    found = sorted(_accesses(graph, plan, layout), key=lambda access: access.low)
    for index, one in enumerate(found):
        for other in found[index + 1 :]:
            if other.low >= one.high:
                break
            if other.low < other.high and (one.is_write or other.is_write):
                _check_pair(graph, before, layout, one, other)


def _check_pair(
    graph: StepGraph, before: list[int], layout: _Layout, one: _Access, other: _Access
) -> None:
    """Check two accesses that share bytes, at least one of them a write."""
    if one.node == other.node:
        if (one.low, one.high) != (other.low, other.high):
            raise graph.error(one.node, f"has a target that overlaps a source{layout.label}")
        return
    read, write = (other, one) if one.is_write else (one, other)
    plan = graph.plans[graph.steps[write.node].rank]
    reader, writer = (graph.steps[access.node].op_index for access in (read, write))
    place = f"{read.buffer.name}{layout.label}"
    if _is_before(before, read.node, write.node):
        if read.is_shared:
            raise op_error(plan, writer, f"overwrites {place}, to which op #{reader} may refer")
        return
    if not _is_before(before, write.node, read.node):
        verb = "writes" if read.is_write else "reads"
        raise op_error(
            plan, writer, f"may overwrite {place} while op #{reader} {verb} it: nothing orders them"
        )
    # With INPUT apart this would have read the caller's data; in place it reads the result.
    if read.buffer is Buffer.INPUT:
        raise op_error(plan, writer, f"overwrites {place} before op #{reader} has read it")


def _check_arrival(graph: StepGraph, before: list[int]) -> None:
    """No rank may leave before the ranks it depends on have entered, whatever the size."""
    for plan in graph.plans:
        first = graph.first[plan.rank]
        end = graph.first[plan.rank + 1][0] if plan.rank + 1 < len(graph.plans) else len(before)
        entered = 0
        for node in range(first[0], end):
            entered |= before[node] >> len(graph.steps)
        for rank in _awaited(plan):
            if not entered >> rank & 1:
                raise plan_error(plan.rank, f"may finish before rank {rank} has started")


def _awaited(plan: RankPlan) -> Sequence[int]:
    """The ranks that a rank's result depends on."""
    call = plan.call
    if call.kind in (Kind.BROADCAST, Kind.SCATTER):
        return [call.root]
    if call.kind in PREFIXES:
        return range(plan.rank + (call.kind is Kind.SCAN))
    if call.kind in (Kind.REDUCE, Kind.GATHER) and plan.rank != call.root:
        return []
    return range(call.world)
