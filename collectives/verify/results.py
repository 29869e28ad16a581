"""Symbolic execution: what each byte of OUTPUT is made of, against what the kind promises.

The hazards have been ruled out, so every schedule computes the same, and running the steps in one
order is enough. Ranks in place need no run of their own: with no INPUT byte read after it has
been overwritten, they read the same values as ranks with INPUT apart.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import accumulate
from typing import TypeAlias

from jetstream.collectives.calls import PREFIXES, REDUCING, Call
from jetstream.collectives.ir import Buffer, FromLent, Range, RankPlan, Reduce, Send
from jetstream.collectives.verify.graph import StepGraph
from jetstream.collectives.verify.structure import op_error, plan_error
from jetstream.dtypes import Kind
from jetstream.errors import PlanError

__all__ = ["check_results"]

Promise: TypeAlias = "list[tuple[int, _Value | None]]"
_Group: TypeAlias = tuple[tuple[int, int], ...]


class _Stage(Enum):
    """How far a value has come."""

    PLAIN = "not folded"
    PARTIAL = "partial folds"
    FOLDED = "folded"


@dataclass(frozen=True, slots=True)
class _Value:
    """What a run of bytes is made of: bytes of the ranks' INPUTs, one after the other.

    ``groups`` are folded one after the other, and first the terms of each: (rank, offset), offsets
    relative to ``base``; so a part of a run differs from the whole in ``base`` alone. Where a fold
    of groups is the same as one of single terms it is written as that (``_normal``).
    """

    groups: tuple[_Group, ...]
    base: int
    stage: _Stage
    #: of partial folds
    scale: int = 1

    @property
    def terms(self) -> list[tuple[int, int]]:
        """The terms of all groups."""
        return [term for group in self.groups for term in group]

    def shifted(self, offset: int) -> _Value:
        """The value that starts ``offset`` bytes into this one."""
        return _Value(self.groups, self.base + offset // self.scale, self.stage, self.scale)


@dataclass(frozen=True, slots=True)
class _Run:
    """Bytes with one value, None where nothing has been written, and the op that wrote them."""

    bytes: int
    value: _Value | None
    writer: int | None

    def cut(self, low: int, high: int) -> _Run:
        """Bytes ``low`` to ``high`` of this run."""
        value = None if self.value is None else self.value.shifted(low)
        return _Run(high - low, value, self.writer)


class _Memory:
    """One buffer of one rank: runs by where they start."""

    def __init__(self, size_bytes: int, value: _Value | None) -> None:
        self._starts = [0]
        self._runs = [_Run(size_bytes, value, None)]

    def read(self, low: int, high: int) -> list[_Run]:
        first, last = self._span(low, high)
        runs = []
        for start, run in zip(self._starts[first:last], self._runs[first:last], strict=True):
            runs.append(run.cut(max(low - start, 0), min(high - start, run.bytes)))
        return runs

    def write(self, low: int, runs: Sequence[_Run]) -> None:
        high = low + sum(run.bytes for run in runs)
        first, last = self._span(low, high)
        start, end = self._starts[first], self._starts[last - 1]
        head = self._runs[first].cut(0, low - start)
        tail = self._runs[last - 1].cut(high - end, self._runs[last - 1].bytes)
        position, starts, kept = start, [], []
        for run in (head, *runs, tail):
            if run.bytes > 0:
                starts.append(position)
                kept.append(run)
                position += run.bytes
        self._starts[first:last], self._runs[first:last] = starts, kept

    def _span(self, low: int, high: int) -> tuple[int, int]:
        """Indices of the runs that hold bytes ``low`` to ``high``, which are not empty."""
        first = bisect_right(self._starts, low) - 1
        return first, bisect_right(self._starts, high - 1, lo=first)


def check_results(graph: StepGraph) -> None:
    """Run all plans on symbols; raises PlanError where OUTPUT is not what the kind promises."""
    memories = [
        (
            _Memory(plan.input_bytes, _plain(plan.rank)),
            _Memory(plan.output_bytes, None),
            _Memory(plan.scratch_bytes, None),
        )
        for plan in graph.plans
    ]
    frames: dict[int, list[_Run]] = {}
    for node in graph.order:
        if graph.steps[node].bytes > 0:
            _run_step(graph, node, memories[graph.steps[node].rank], frames)
    for plan in graph.plans:
        promise = _promise(graph.plans, plan.rank)
        _check_output(plan, memories[plan.rank][Buffer.OUTPUT], promise)


def _run_step(
    graph: StepGraph, node: int, memory: tuple[_Memory, ...], frames: dict[int, list[_Run]]
) -> None:
    step = graph.steps[node]
    op = graph.plans[step.rank].ops[step.op_index]
    inputs: list[list[_Run]] = []
    for source in op.sources:
        if isinstance(source, Range):
            span = step.of(source)
            inputs.append(memory[span.buffer].read(span.offset, span.offset + span.size_bytes))
        elif isinstance(source, FromLent):
            inputs.append(frames[graph.lender[node]])
        else:
            inputs.append(frames[graph.frames[node][source]])
        for run in inputs[-1]:
            if run.value is None:
                raise graph.error(node, "reads bytes that nothing has written")
    if isinstance(op, Send):
        frames[node] = inputs[0]
        return
    if isinstance(op, Reduce):
        runs = [_fold(graph, node, op, values) for values in _columns(inputs)]
        for lender in graph.frames[node].values() if op.gives_back else ():
            frames[lender] = runs
    else:
        runs = inputs[0]
    target = step.of(op.target)
    written = [_Run(run.bytes, run.value, step.op_index) for run in runs]
    memory[target.buffer].write(target.offset, written)


def _columns(inputs: list[list[_Run]]) -> Iterator[tuple[_Run, ...]]:
    """Cut lists of runs, equal in bytes, at each other's boundaries; yields one run of each."""
    ends = sorted({end for runs in inputs for end in accumulate(run.bytes for run in runs)})
    return zip(*(_cut_at(runs, ends) for runs in inputs), strict=True)


def _cut_at(runs: list[_Run], ends: list[int]) -> Iterator[_Run]:
    low = start = 0
    remaining = iter(runs)
    run = next(remaining)
    for high in ends:
        if low == start + run.bytes:
            start, run = low, next(remaining)
        yield run.cut(low - start, high - start)
        low = high


def _fold(graph: StepGraph, node: int, op: Reduce, runs: tuple[_Run, ...]) -> _Run:
    groups: list[_Group] = []
    for run in runs:
        value = run.value
        assert value is not None
        if value.stage is not (_Stage.PARTIAL if op.partials else _Stage.PLAIN):
            again = ", so it would round twice" if value.stage is _Stage.FOLDED else ""
            raise graph.error(node, f"folds what is {value.stage.value} already{again}")
        groups += [tuple((r, value.base + offset) for r, offset in g) for g in value.groups]
    base = groups[0][0][1]
    relative = [tuple((rank, offset - base) for rank, offset in group) for group in groups]
    call, scale = graph.plans[graph.steps[node].rank].call, op.target.scale
    size_bytes = runs[0].bytes // (call.partial_scale if op.partials else 1)
    if scale:
        terms = tuple(term for group in relative for term in group)
        return _Run(size_bytes * scale, _Value((terms,), base, _Stage.PARTIAL, scale), None)
    return _Run(size_bytes, _Value(_normal(call, relative), base, _Stage.FOLDED), None)


def _normal(call: Call, groups: Sequence[_Group]) -> tuple[_Group, ...]:
    """The groups of a fold as it does not matter how they came about.

    From left to right the terms of the first group come one by one; so they do in all groups
    where the order of rounding does not matter.
    """
    alone = len(groups) if call.is_exact else 1
    terms = [(term,) for group in groups[:alone] for term in group]
    return (*terms, *groups[alone:])


def _promise(plans: Sequence[RankPlan], rank: int) -> Promise:
    """What a kind of collective promises of OUTPUT: values by number of bytes, in order.

    None stands for bytes that nothing may write.
    """
    call, own_bytes = plans[rank].call, plans[rank].output_bytes
    if call.kind is Kind.BARRIER or own_bytes == 0:
        return []
    if call.kind in REDUCING:
        ranks = range(rank + (call.kind is Kind.SCAN) if call.kind in PREFIXES else call.world)
        offset = call.part(rank)[0] if call.kind is Kind.REDUCE_SCATTER else 0
        by_host = plans[rank].placement.by_host(ranks)
        groups = _normal(call, [tuple((peer, 0) for peer in group) for group in by_host])
        return [(own_bytes, _Value(groups, offset, _Stage.FOLDED) if groups else None)]
    if call.kind in (Kind.BROADCAST, Kind.SCATTER):
        offset = call.part(rank)[0] if call.kind is Kind.SCATTER else 0
        return [(own_bytes, _plain(call.root, offset))]
    if call.kind is Kind.ALL_TO_ALL:
        return [_exchanged(plans[peer], rank) for peer in range(call.world)]
    return [(call.part(peer)[1], _plain(peer)) for peer in range(call.world)]  # gathered


def _plain(rank: int, offset: int = 0) -> _Value:
    """Bytes of a rank's INPUT."""
    return _Value((((rank, 0),),), offset, _Stage.PLAIN)


def _exchanged(sender: RankPlan, receiver: int) -> tuple[int, _Value]:
    """What an all_to_all brings from one rank to another."""
    if sender.splits is None:
        offset, size_bytes = sender.call.part(receiver)
    else:
        itemsize = sender.call.dtype.itemsize
        offset = sum(sender.splits.sent[:receiver]) * itemsize
        size_bytes = sender.splits.sent[receiver] * itemsize
    return size_bytes, _plain(sender.rank, offset)


def _check_output(plan: RankPlan, output: _Memory, promise: Promise) -> None:
    position = 0
    for size_bytes, wanted in promise:
        offset = 0
        for run in output.read(position, position + size_bytes) if size_bytes > 0 else []:
            right = None if wanted is None else wanted.shifted(offset)
            if run.value != right:
                raise _output_error(plan, position + offset, run, right)
            offset += run.bytes
        position += size_bytes


def _output_error(plan: RankPlan, low: int, run: _Run, wanted: _Value | None) -> PlanError:
    place = f"OUTPUT bytes {low} to {low + run.bytes}"
    if run.value is None or run.writer is None:
        return plan_error(plan.rank, f"nothing writes {place}")
    if wanted is None:
        return op_error(plan, run.writer, f"{place} must stay as they are")
    ranks = [rank for rank, _ in run.value.terms]
    wanted_ranks = [rank for rank, _ in wanted.terms]
    if run.value.stage is not wanted.stage:
        fault = f"are {run.value.stage.value}, but should be {wanted.stage.value}"
    elif ranks == wanted_ranks and len(run.value.groups) != len(wanted.groups):
        fault = "are not folded by host"
    elif ranks == wanted_ranks:
        found, right = (
            [value.base + offset for _, offset in value.terms] for value in (run.value, wanted)
        )
        fault = f"come from INPUT offsets {found}, not {right}"
    elif len(set(ranks)) < len(ranks):
        fault = f"count a rank twice: {ranks}"
    elif sorted(ranks) == sorted(wanted_ranks):
        order = "in rank order" if wanted_ranks == sorted(wanted_ranks) else f"{wanted_ranks}"
        fault = f"are folded in the order {ranks}, not {order}"
    else:
        fault = f"come from ranks {ranks}, not {wanted_ranks}"
    return op_error(plan, run.writer, f"{place} {fault}")
