"""Plans run on NumPy arrays under random schedules: an oracle for compiler and verifier alike."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jetstream.collectives.algorithms import ALGORITHMS
from jetstream.collectives.calls import Call
from jetstream.collectives.compile import build_plan
from jetstream.collectives.ir import (
    AfterMode,
    FromAll,
    Op,
    Range,
    RankPlan,
    Reduce,
    Send,
    ToAll,
    step_bytes,
    step_count,
)
from jetstream.collectives.verify import verify_plans
from jetstream.dtypes import Algorithm, DType, Kind, RedOp
from jetstream.errors import PlanError

Array = np.ndarray[Any, np.dtype[Any]]
Frames = dict[tuple[int, int, bool], deque[Array]]

FOLDS = {
    RedOp.SUM: np.add,
    RedOp.AVG: np.add,
    RedOp.PROD: np.multiply,
    RedOp.MIN: np.minimum,
    RedOp.MAX: np.maximum,
}


def fold(parts: Sequence[Array], redop: RedOp, divisor: int) -> Array:
    """Folds from left to right, 16-bit floats in float32, and rounds once."""
    dtype = parts[0].dtype
    is_narrow = dtype.itemsize == 2
    total = parts[0].astype(np.float32) if is_narrow else parts[0].copy()
    for part in parts[1:]:
        total = FOLDS[redop](total, part.astype(total.dtype))
    if redop is RedOp.AVG:
        total = total / total.dtype.type(divisor)
    return total.astype(dtype)


class Rank:
    """One rank's memory and how far it has got; a step is the unit of execution."""

    def __init__(self, plan: RankPlan, contribution: Array, in_place: bool) -> None:
        self.plan = plan
        self.done = [0] * len(plan.ops)
        self.steps = [step_count(op.bytes, plan.call.chunk_bytes) for op in plan.ops]
        own = contribution.view(np.uint8)
        larger = max(plan.input_bytes, plan.output_bytes)
        memory = np.full(larger, 0xAA, np.uint8)
        kind = plan.call.kind
        low = plan.rank * min(plan.input_bytes, plan.output_bytes)
        if not in_place or kind is Kind.BARRIER:
            self.input, self.output = own.copy(), np.full(plan.output_bytes, 0xAA, np.uint8)
        elif kind is Kind.ALL_GATHER:
            self.input, self.output = memory[low : low + plan.input_bytes], memory
        elif kind is Kind.REDUCE_SCATTER:
            self.input, self.output = memory, memory[low : low + plan.output_bytes]
        else:
            self.input, self.output = memory, memory
        self.input[:] = own
        self.scratch = np.full(plan.scratch_bytes, 0xAA, np.uint8)

    def heads(self) -> list[int]:
        """The operation that each lane has come to."""
        found: dict[int, int] = {}
        for index, op in enumerate(self.plan.ops):
            if self.done[index] < self.steps[index]:
                found.setdefault(op.lane, index)
        return list(found.values())

    def may_start(self, index: int) -> bool:
        for edge in self.plan.ops[index].after:
            done, steps = self.done[edge.op_index], self.steps[edge.op_index]
            if done < (steps if edge.mode is AfterMode.DONE else min(steps, self.done[index] + 1)):
                return False
        return True

    def part(self, span: Range, index: int) -> Array:
        """The bytes of a range that the next step of an operation works on."""
        chunk_bytes, step = self.plan.call.chunk_bytes, self.done[index]
        low = span.offset + step * chunk_bytes
        buffer = (self.input, self.output, self.scratch)[span.buffer]
        return buffer[low : low + step_bytes(span.bytes, chunk_bytes, step)]


class Interpreter:
    """All ranks; every stream holds at most ``room`` frames."""

    def __init__(self, ranks: list[Rank], room: int) -> None:
        self.ranks = ranks
        self.room = room
        self.frames: Frames = {}

    def stream(self, sender: int, receiver: int, to_all: bool) -> deque[Array]:
        return self.frames.setdefault((sender, receiver, to_all), deque())

    def run(self, rng: random.Random) -> None:
        """Takes random steps until nothing is left; fails when nothing can go on."""
        while True:
            heads = [(rank, index) for rank in self.ranks for index in rank.heads()]
            if not heads:
                break
            rng.shuffle(heads)
            assert any(self.try_step(rank, index) for rank, index in heads), "deadlock"
        assert not any(self.frames.values()), "frames left over"

    def try_step(self, rank: Rank, index: int) -> bool:
        op = rank.plan.ops[index]
        if not rank.may_start(index) or not self.try_op(rank, index, op):
            return False
        rank.done[index] += 1
        return True

    def try_op(self, rank: Rank, index: int, op: Op) -> bool:
        own, call = rank.plan.rank, rank.plan.call
        if isinstance(op, Send):
            to_all = isinstance(op.to, ToAll)
            receivers = [r for r in range(call.world) if r != own]
            if not isinstance(op.to, ToAll):
                receivers = [op.to.peer]
            streams = [self.stream(own, receiver, to_all) for receiver in receivers]
            if any(len(stream) >= self.room for stream in streams):
                return False
            for stream in streams:
                stream.append(rank.part(op.source, index).copy())
            return True
        streams = [
            self.stream(source.peer, own, isinstance(source, FromAll))
            for source in op.sources
            if not isinstance(source, Range)
        ]
        if not all(streams):
            return False
        frames = iter([stream.popleft() for stream in streams])
        parts = [
            rank.part(source, index) if isinstance(source, Range) else next(frames)
            for source in op.sources
        ]
        target = rank.part(op.target, index)
        assert all(part.size == target.size for part in parts), "frame of another size"
        if isinstance(op, Reduce):
            elements = [np.frombuffer(part.tobytes(), call.dtype.numpy) for part in parts]
            target[:] = fold(elements, call.redop, rank.plan.divisor).view(np.uint8)
        else:
            target[:] = parts[0].copy()
        return True


def make_inputs(call: Call, seed: int) -> list[Array]:
    """Values whose sum depends on the order of folding, in the call's type."""
    rng = np.random.default_rng(seed)
    elements = call.input_bytes // call.dtype.itemsize
    return [
        (rng.integers(1, 200, elements) / 7).astype(call.dtype.numpy) for _ in range(call.world)
    ]


def expected(call: Call, inputs: list[Array], rank: int) -> Array:
    if call.kind is Kind.ALL_REDUCE:
        return fold(inputs, call.redop, call.divisor)
    if call.kind is Kind.REDUCE_SCATTER:
        slices = [part.reshape(call.world, call.count)[rank] for part in inputs]
        return fold(slices, call.redop, call.divisor)
    if call.kind is Kind.ALL_GATHER:
        return np.concatenate(inputs)
    return inputs[call.root]


def run_and_compare(plans: list[RankPlan], seed: int, in_place: bool, room: int) -> None:
    call = plans[0].call
    inputs = make_inputs(call, seed)
    ranks = [Rank(plan, inputs[plan.rank], in_place) for plan in plans]
    Interpreter(ranks, room).run(random.Random(seed))
    for rank in ranks:
        wanted = expected(call, inputs, rank.plan.rank)
        assert rank.output.tobytes() == wanted.tobytes(), f"rank {rank.plan.rank}"
        if not in_place:
            assert rank.input.tobytes() == inputs[rank.plan.rank].tobytes()


@st.composite
def calls(draw: st.DrawFn, world_max: int = 6) -> Call:
    kind, algorithm = draw(st.sampled_from(list(ALGORITHMS)))
    world = draw(st.integers(1, world_max))
    return Call(
        kind=kind,
        redop=draw(st.sampled_from([RedOp.SUM, RedOp.MAX, RedOp.AVG])),
        dtype=draw(st.sampled_from([DType.FLOAT32, DType.FLOAT64, DType.BFLOAT16])),
        count=0 if kind is Kind.BARRIER else draw(st.integers(0, 200)),
        root=draw(st.integers(0, world - 1)) if kind is Kind.BROADCAST else 0,
        world=world,
        algorithm=algorithm,
        chunk_bytes=64 * draw(st.integers(1, 3)),
    )


@given(call=calls(), seed=st.integers(0, 999), in_place=st.booleans(), room=st.integers(1, 4))
@settings(max_examples=120, deadline=None, database=None)
def test_plans_compute_what_numpy_does(call: Call, seed: int, in_place: bool, room: int) -> None:
    run_and_compare([build_plan(call, rank) for rank in range(call.world)], seed, in_place, room)


@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.BFLOAT16])
@pytest.mark.parametrize("redop", RedOp)
def test_bits_do_not_depend_on_algorithm_or_chunks(redop: RedOp, dtype: DType) -> None:
    results = set()
    for algorithm in (Algorithm.ONE_SHOT, Algorithm.TWO_SHOT):
        for chunk_bytes in (64, 192, 32768):
            call = Call(Kind.ALL_REDUCE, redop, dtype, 333, 0, 5, algorithm, chunk_bytes)
            ranks = [Rank(build_plan(call, r), make_inputs(call, 1)[r], True) for r in range(5)]
            Interpreter(ranks, 2).run(random.Random(7))
            results |= {rank.output.tobytes() for rank in ranks}
    assert len(results) == 1


def mutate(draw: st.DrawFn, plan: RankPlan) -> RankPlan:
    """One change of one operation: edges, lane, fold order, target, or place in the list."""
    index = draw(st.integers(0, len(plan.ops) - 1))
    op = plan.ops[index]
    changes: list[Op] = [replace(op, after=())]
    changes += [replace(op, lane=lane) for lane in range(plan.lane_count)]
    if not isinstance(op, Send):
        targets = [other.target for other in plan.ops if not isinstance(other, Send)]
        changes += [replace(op, target=target) for target in targets]
    if isinstance(op, Reduce):
        changes.append(replace(op, sources=tuple(draw(st.permutations(op.sources)))))
    changes = [change for change in changes if change != op]
    ops = list(plan.ops)
    if changes:
        ops[index] = draw(st.sampled_from(changes))
    if not changes or draw(st.booleans()):
        ops.insert(draw(st.integers(0, len(ops) - 1)), ops.pop(index))
    lanes = sorted({op.lane for op in ops})
    return replace(plan, ops=tuple(replace(op, lane=lanes.index(op.lane)) for op in ops))


@given(call=calls(world_max=3), data=st.data(), seed=st.integers(0, 999))
@settings(max_examples=300, deadline=None, database=None)
def test_what_the_verifier_accepts_computes_the_right_result(
    call: Call, data: st.DataObject, seed: int
) -> None:
    plans = [build_plan(call, rank) for rank in range(call.world)]
    victim = data.draw(st.integers(0, call.world - 1))
    mutated = st.composite(lambda draw: mutate(draw, plans[victim]))
    plans[victim] = data.draw(mutated())
    try:
        verify_plans(plans)
    except PlanError:
        return
    for attempt in range(4):
        run_and_compare(plans, seed + attempt, in_place=attempt % 2 == 0, room=1 + attempt)
