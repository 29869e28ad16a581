"""Plans run on NumPy arrays under random schedules: an oracle for compiler and verifier alike."""

from __future__ import annotations

import itertools
import random
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jetstream.collectives.algorithms import ALGORITHMS, HIERARCHICAL
from jetstream.collectives.calls import COUNTED, PREFIXES, ROOTED, Call
from jetstream.collectives.compile import build_plan
from jetstream.collectives.ir import (
    AfterMode,
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
    ToPeer,
    step_bytes,
    step_count,
)
from jetstream.collectives.parts import Splits
from jetstream.collectives.verify import verify_plans
from jetstream.dtypes import DType, Kind, RedOp
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


def fold(
    parts: Sequence[Array], redop: RedOp, divisor: int, hosts: Sequence[int] | None = None
) -> Array:
    """Folds from left to right, 16-bit floats in float32, and rounds once; ``hosts`` apart."""
    dtype = parts[0].dtype
    hosts = [0] * len(parts) if hosts is None else hosts
    by_host = [
        [part for part, other in zip(parts, hosts, strict=True) if other == host]
        for host in dict.fromkeys(hosts)
    ]
    total = accumulate([accumulate(group, redop) for group in by_host], redop)
    if redop is RedOp.AVG:
        total = total / total.dtype.type(divisor)
    return total.astype(dtype)


def accumulate(parts: Sequence[Array], redop: RedOp) -> Array:
    """Folds from left to right, neither rounded nor divided."""
    is_narrow = parts[0].dtype.itemsize == 2 and redop not in (RedOp.MIN, RedOp.MAX)
    total = parts[0].astype(np.float32) if is_narrow else parts[0].copy()
    for part in parts[1:]:
        total = FOLDS[redop](total, part.astype(total.dtype))
    return total


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
        has_one = kind in (Kind.REDUCE, Kind.GATHER, Kind.SCATTER) and plan.rank != plan.call.root
        low = plan.call.part(plan.rank)[0]
        if not in_place or kind is Kind.BARRIER or has_one or plan.splits is not None:
            self.input, self.output = own.copy(), np.full(plan.output_bytes, 0xAA, np.uint8)
        elif kind in (Kind.ALL_GATHER, Kind.GATHER):
            self.input, self.output = memory[low : low + plan.input_bytes], memory
        elif kind in (Kind.REDUCE_SCATTER, Kind.SCATTER):
            self.input, self.output = memory, memory[low : low + plan.output_bytes]
        else:
            self.input, self.output = memory, memory
        self.input[:] = own
        is_in_place = np.shares_memory(self.input, self.output)
        #: from which promise on a SEND publishes by reference: never in every other rank
        self.refers = 3 if plan.rank % 2 else Refer.ALWAYS if is_in_place else Refer.APART
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
        span = span.part(step * chunk_bytes, step_bytes(span.bytes, chunk_bytes, step))
        buffer = (self.input, self.output, self.scratch)[span.buffer]
        return buffer[span.offset : span.offset + span.size_bytes]


class Interpreter:
    """All ranks; every stream holds at most ``room`` frames."""

    def __init__(self, ranks: list[Rank], room: int) -> None:
        self.ranks = ranks
        self.room = room
        self.frames: Frames = {}
        self.given_back: Frames = {}
        self.lent: Counter[tuple[int, int]] = (
            Counter()
        )  # frames not taken back, by sender, receiver

    def stream(self, sender: int, receiver: int, to_all: bool) -> deque[Array]:
        return self.frames.setdefault((sender, receiver, to_all), deque())

    def source(self, rank: int, source: FromAll | FromPeer | FromLent) -> deque[Array]:
        if isinstance(source, FromLent):
            return self.given_back.setdefault((rank, source.peer, False), deque())
        return self.stream(source.peer, rank, isinstance(source, FromAll))

    def run(self, rng: random.Random) -> None:
        """Takes random steps until nothing is left; fails when nothing can go on."""
        while True:
            heads = [(rank, index) for rank in self.ranks for index in rank.heads()]
            if not heads:
                break
            rng.shuffle(heads)
            assert any(self.try_step(rank, index) for rank, index in heads), "deadlock"
        assert not any(self.frames.values()), "frames left over"
        assert not any(self.lent.values()), "frames not taken back"

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
            receivers = list(rank.plan.placement.neighbours(own))
            if not isinstance(op.to, ToAll):
                receivers = [op.to.peer]
            streams = [self.stream(own, receiver, to_all) for receiver in receivers]
            if any(len(stream) >= self.room for stream in streams):
                return False
            if op.back is not None:
                return self.lend(rank, index, op, streams[0])
            # The array itself where that is allowed, in every other rank, else a copy.
            frame = rank.part(op.source, index)
            frame = frame if op.refer >= rank.refers else frame.copy()
            for stream in streams:
                stream.append(frame)
            return True
        sources = [source for source in op.sources if not isinstance(source, Range)]
        streams = [self.source(own, source) for source in sources]
        if not all(streams):
            return False
        taken = [stream.popleft() for stream in streams]
        frames = iter(taken)
        parts = [
            rank.part(source, index) if isinstance(source, Range) else next(frames)
            for source in op.sources
        ]
        target = rank.part(op.target, index)
        size = target.size // max(1, op.target.scale)
        takes = call.partial_scale if isinstance(op, Reduce) and op.partials else 1
        assert all(part.size == size * takes for part in parts), "frame of another size"
        if isinstance(op, Reduce):
            wide = np.dtype(np.float32) if call.partial_scale > 1 else call.dtype.numpy
            dtype = wide if op.partials else call.dtype.numpy
            total = accumulate([np.frombuffer(p.tobytes(), dtype) for p in parts], call.redop)
            if op.target.scale == 0:
                total = fold([total], call.redop, rank.plan.divisor).astype(call.dtype.numpy)
            target[:] = total.view(np.uint8)
            for source, frame in zip(sources, taken, strict=True) if op.gives_back else ():
                frame[:] = target
                lender = self.given_back.setdefault((source.peer, own, False), deque())
                lender.append(frame)
        else:
            target[:] = parts[0].copy()
        for source in sources:
            if isinstance(source, FromLent):
                self.lent[own, source.peer] -= 1
        return True

    def lend(self, rank: Rank, index: int, op: Send, stream: deque[Array]) -> bool:
        """Sends a copy, or in every other rank the memory that the result is wanted in."""
        assert isinstance(op.to, ToPeer)
        assert op.back is not None
        pair = rank.plan.rank, op.to.peer
        if self.lent[pair] >= self.room:
            return False
        self.lent[pair] += 1
        frame = rank.part(op.source, index).copy()
        if rank.plan.rank % 2 == 0:
            rank.part(op.back, index)[:] = frame
            frame = rank.part(op.back, index)
        stream.append(frame)
        return True


def make_inputs(plans: Sequence[RankPlan], seed: int) -> list[Array]:
    """Values whose sum depends on the order of folding, in the call's type."""
    rng = np.random.default_rng(seed)
    dtype = plans[0].call.dtype
    return [
        (rng.integers(1, 200, plan.input_bytes // dtype.itemsize) / 7).astype(dtype.numpy)
        for plan in plans
    ]


def part_of(plan: RankPlan, array: Array, rank: int) -> Array:
    """The part of a whole array that belongs to a rank."""
    if plan.splits is not None:
        first, count = sum(plan.splits.sent[:rank]), plan.splits.sent[rank]
        return array[first : first + count]
    low, size_bytes = plan.call.part(rank)
    itemsize = plan.call.dtype.itemsize
    return array[low // itemsize : (low + size_bytes) // itemsize]


def expected(plans: Sequence[RankPlan], inputs: list[Array], rank: int) -> Array | None:
    """What OUTPUT must be; None if nothing writes it."""
    call = plans[rank].call
    hosts = plans[rank].placement.hosts
    if plans[rank].output_bytes == 0 or (call.kind is Kind.EXSCAN and rank == 0):
        return None
    if call.kind in (Kind.ALL_REDUCE, Kind.REDUCE):
        return fold(inputs, call.redop, call.divisor, hosts)
    if call.kind in PREFIXES:
        count = rank + (call.kind is Kind.SCAN)
        return fold(inputs[:count], call.redop, call.divisor, hosts[:count])
    if call.kind is Kind.REDUCE_SCATTER:
        slices = [part_of(plans[rank], array, rank) for array in inputs]
        return fold(slices, call.redop, call.divisor, hosts)
    if call.kind in (Kind.ALL_GATHER, Kind.GATHER):
        return np.concatenate(inputs)
    if call.kind is Kind.ALL_TO_ALL:
        return np.concatenate([part_of(plans[p], inputs[p], rank) for p in range(call.world)])
    root = inputs[call.root]
    return part_of(plans[rank], root, rank) if call.kind is Kind.SCATTER else root


def run_and_compare(plans: list[RankPlan], seed: int, in_place: bool, room: int) -> None:
    inputs = make_inputs(plans, seed)
    ranks = [Rank(plan, inputs[plan.rank], in_place) for plan in plans]
    before = [rank.output.tobytes() for rank in ranks]
    Interpreter(ranks, room).run(random.Random(seed))
    for number, rank in enumerate(ranks):
        wanted = expected(plans, inputs, number)
        bits = before[number] if wanted is None else wanted.tobytes()
        assert rank.output.tobytes() == bits, f"rank {number}"
        if not in_place:
            assert rank.input.tobytes() == inputs[number].tobytes()


def build_plans(
    call: Call, rng: random.Random, hosts: Sequence[int] | None = None
) -> list[RankPlan]:
    """The plans of all ranks, on some hosts, with random splits where the call has them."""
    ranks = range(call.world)
    if hosts is None:
        hosts = [rng.randrange(4) for _ in ranks] if rng.randrange(3) else ()
    if not call.has_splits:
        return [build_plan(call, rank, hosts=hosts) for rank in ranks]
    rows = [tuple(rng.choice((0, 1, 16, 50, 200)) for _ in ranks) for _ in ranks]
    columns = list(zip(*rows, strict=True))
    return [build_plan(call, rank, Splits(rows[rank], columns[rank]), hosts) for rank in ranks]


@st.composite
def calls(draw: st.DrawFn, world_max: int = 6) -> Call:
    kind, algorithm = draw(st.sampled_from([*ALGORITHMS, *HIERARCHICAL]))
    world = draw(st.integers(1, world_max))
    counts: tuple[int, ...] = ()
    count = 0 if kind is Kind.BARRIER else draw(st.integers(0, 200))
    has_splits = kind is Kind.ALL_TO_ALL and draw(st.booleans())
    if kind in COUNTED and world > 1 and draw(st.booleans()):
        counts = tuple(draw(st.lists(st.integers(0, 200), min_size=world - 1, max_size=world - 1)))
        counts = (*counts, counts[0] + draw(st.integers(1, 40)))
        count = sum(counts)
    redops = [RedOp.SUM, RedOp.MAX] if kind in PREFIXES else [RedOp.SUM, RedOp.MAX, RedOp.AVG]
    return Call(
        kind=kind,
        redop=draw(st.sampled_from(redops)),
        dtype=draw(st.sampled_from([DType.FLOAT32, DType.FLOAT64, DType.BFLOAT16])),
        count=0 if has_splits else count,
        counts=counts,
        has_splits=has_splits,
        root=draw(st.integers(0, world - 1)) if kind in ROOTED else 0,
        world=world,
        algorithm=algorithm,
        chunk_bytes=64 * draw(st.integers(1, 3)),
    )


@given(call=calls(), seed=st.integers(0, 999), in_place=st.booleans(), room=st.integers(1, 4))
@settings(max_examples=240, deadline=None, database=None)
def test_plans_compute_what_numpy_does(call: Call, seed: int, in_place: bool, room: int) -> None:
    run_and_compare(build_plans(call, random.Random(seed)), seed, in_place, room)


@pytest.mark.parametrize("hosts", [(), (0, 1, 0, 1, 1), (0, 0, 1, 2, 2)])
@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.BFLOAT16])
@pytest.mark.parametrize("redop", [op for op in DType.FLOAT32.redops if op in FOLDS])
def test_bits_do_not_depend_on_algorithm_or_chunks(
    redop: RedOp, dtype: DType, hosts: tuple[int, ...]
) -> None:
    results = set()
    algorithms = [a for kind, a in (*ALGORITHMS, *HIERARCHICAL) if kind is Kind.ALL_REDUCE]
    for algorithm, chunk_bytes in itertools.product(algorithms, (64, 192, 32768)):
        call = Call(Kind.ALL_REDUCE, redop, dtype, 333, 0, 5, algorithm, chunk_bytes)
        plans = [build_plan(call, rank, hosts=hosts) for rank in range(5)]
        inputs = make_inputs(plans, 1)
        ranks = [Rank(plan, inputs[plan.rank], True) for plan in plans]
        Interpreter(ranks, 2).run(random.Random(7))
        results |= {rank.output.tobytes() for rank in ranks}
    assert results == {fold(inputs, redop, 5, hosts or None).tobytes()}


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
        changes.append(replace(op, partials=not op.partials))
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
    plans = build_plans(call, random.Random(seed))
    victim = data.draw(st.integers(0, call.world - 1))
    mutated = st.composite(lambda draw: mutate(draw, plans[victim]))
    plans[victim] = data.draw(mutated())
    try:
        verify_plans(plans)
    except PlanError:
        return
    for attempt in range(4):
        run_and_compare(plans, seed + attempt, in_place=attempt % 2 == 0, room=1 + attempt)
