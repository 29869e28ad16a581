"""The verifier refuses broken plans, and says which rank and operation is wrong and how."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from jetstream.collectives.calls import Call
from jetstream.collectives.compile import build_plan
from jetstream.collectives.ir import (
    After,
    AfterMode,
    Buffer,
    Copy,
    FromAll,
    FromPeer,
    Op,
    Range,
    RankPlan,
    Reduce,
    Send,
    ToAll,
    ToPeer,
)
from jetstream.collectives.verify import verify_plans
from jetstream.dtypes import Algorithm, DType, Kind, RedOp
from jetstream.errors import PlanError

WORLD = 3
# Two chunks per operation, of which the second is ragged.
PART_BYTES = 100

ONE_SHOT = (Kind.ALL_REDUCE, Algorithm.ONE_SHOT)
TWO_SHOT = (Kind.ALL_REDUCE, Algorithm.TWO_SHOT)
ALL_GATHER = (Kind.ALL_GATHER, Algorithm.DIRECT)
REDUCE_SCATTER = (Kind.REDUCE_SCATTER, Algorithm.DIRECT)
BROADCAST = (Kind.BROADCAST, Algorithm.DIRECT)
BARRIER = (Kind.BARRIER, Algorithm.DIRECT)

Which = tuple[Kind, Algorithm]
Edit = Callable[[RankPlan], Sequence[Op]]


def plans_of(which: Which) -> list[RankPlan]:
    """Sound plans: shards of 64, 128 and 128 bytes in two-shot, parts of 100 bytes in others."""
    kind, algorithm = which
    count = {BARRIER: 0, TWO_SHOT: 80}.get(which, PART_BYTES // 4)
    call = Call(kind, RedOp.SUM, DType.FLOAT32, count, 0, WORLD, algorithm, 64)
    return [build_plan(call, rank) for rank in range(WORLD)]


def edited(plans: list[RankPlan], edit: Edit, *ranks: int) -> list[RankPlan]:
    """Replaces the operations of some ranks, all by default."""
    return [
        replace(plan, ops=tuple(edit(plan))) if plan.rank in (ranks or range(WORLD)) else plan
        for plan in plans
    ]


def with_op(index: int, **changes: Any) -> Edit:
    """Changes fields of one operation."""

    def edit(plan: RankPlan) -> Sequence[Op]:
        ops = list(plan.ops)
        ops[index] = replace(ops[index], **changes)
        return ops

    return edit


def without_op(index: int) -> Edit:
    """Leaves one operation out, with the edges that name it, and closes the gap in the lanes."""

    def edit(plan: RankPlan) -> Sequence[Op]:
        kept = [op for position, op in enumerate(plan.ops) if position != index]
        lanes = sorted({op.lane for op in kept})
        return [
            replace(
                op,
                lane=lanes.index(op.lane),
                after=tuple(
                    After(edge.op_index - (edge.op_index > index), edge.mode)
                    for edge in op.after
                    if edge.op_index != index
                ),
            )
            for op in kept
        ]

    return edit


def refused(plans: list[RankPlan], text: str) -> None:
    with pytest.raises(PlanError, match=text):
        verify_plans(plans)


@pytest.mark.parametrize(
    "which", [ONE_SHOT, TWO_SHOT, ALL_GATHER, REDUCE_SCATTER, BROADCAST, BARRIER]
)
def test_the_plans_were_sound_before(which: Which) -> None:
    verify_plans(plans_of(which))


# --- frames ---------------------------------------------------------------------------------


def test_dropped_send() -> None:
    refused(
        edited(plans_of(ONE_SHOT), without_op(0), 1),
        r"rank 0 op #1 \(reduce .*\): step 0 at rank 0 awaits frame 0 of rank 1's stream to all, "
        "which carries 0 frames",
    )


def test_dropped_receive() -> None:
    refused(
        edited(plans_of(BARRIER), without_op(2), 0),
        r"rank 2 op #0 \(send .*\): step 0 sends frame 0 of rank 2's stream to all, "
        "which rank 0 never consumes",
    )


def test_wrong_peer() -> None:
    refused(
        edited(plans_of(REDUCE_SCATTER), with_op(1, to=ToPeer(1)), 0),
        "rank 2 op #2 .* awaits frame 0 of rank 0's stream to rank 2, which carries 0 frames",
    )


def test_shards_sent_to_each_others_owner() -> None:
    def swap(plan: RankPlan) -> Sequence[Op]:
        return with_op(1, to=ToPeer(1))(replace(plan, ops=tuple(with_op(0, to=ToPeer(2))(plan))))

    refused(
        edited(plans_of(REDUCE_SCATTER), swap, 0),
        r"rank 1 op #2 .*: OUTPUT bytes 0 to 64 come from INPUT offsets \[200, 100, 100\], "
        r"not \[100, 100, 100\]",
    )


def test_frame_of_another_size() -> None:
    refused(
        edited(plans_of(BROADCAST), with_op(0, source=Range(Buffer.INPUT, 0, 96)), 0),
        "rank 1 op #0 .* step 1 of 36 bytes consumes frame 1 of rank 0's stream to all, "
        "which is step 1 of 32 bytes",
    )


def test_frame_of_another_step() -> None:
    def split(plan: RankPlan) -> Sequence[Op]:
        return [
            Copy(0, Range(Buffer.OUTPUT, 0, 64), FromAll(0)),
            Copy(0, Range(Buffer.OUTPUT, 64, 36), FromAll(0)),
        ]

    refused(
        edited(plans_of(BROADCAST), split, 1),
        "rank 1 op #1 .* step 0 of 36 bytes consumes frame 1 .*, which is step 1 of 36 bytes",
    )


def test_two_sends_on_one_stream_in_two_lanes() -> None:
    def twice(plan: RankPlan) -> Sequence[Op]:
        return [*plan.ops, Send(1, Range(Buffer.INPUT, 0, 0), ToAll())]

    def await_twice(plan: RankPlan) -> Sequence[Op]:
        return [*plan.ops, Copy(0, Range(Buffer.OUTPUT, 0, 0), FromAll(0))]

    plans = edited(edited(plans_of(BARRIER), twice, 0), await_twice, 1, 2)
    refused(plans, r"rank 0 op #3 .* uses the same stream as op #0 and nothing orders the two")
    ordered = edited(
        plans, lambda plan: [*plan.ops[:-1], replace(plan.ops[-1], after=(After(0),))], 0
    )
    verify_plans(ordered)


def test_two_receives_on_one_stream_in_two_lanes() -> None:
    def halves(plan: RankPlan) -> Sequence[Op]:
        low, high = Range(Buffer.INPUT, 0, 64), Range(Buffer.INPUT, 64, 36)
        copy = Copy(1, Range(Buffer.OUTPUT, 0, 100), Range(Buffer.INPUT, 0, 100))
        return [Send(0, low, ToAll()), Send(0, high, ToAll()), copy]

    def unordered(plan: RankPlan) -> Sequence[Op]:
        return [
            Copy(0, Range(Buffer.OUTPUT, 0, 64), FromAll(0)),
            Copy(1, Range(Buffer.OUTPUT, 64, 36), FromAll(0)),
        ]

    plans = edited(edited(plans_of(BROADCAST), halves, 0), unordered, 1, 2)
    refused(plans, r"rank 1 op #1 .* uses the same stream as op #0")


# --- waiting --------------------------------------------------------------------------------


def test_cyclic_wait() -> None:
    def receive_first(plan: RankPlan) -> Sequence[Op]:
        return [*plan.ops[1:], plan.ops[0]]

    refused(
        edited(plans_of(BARRIER), receive_first),
        r"rank 0 op #\d .* is in a deadlock: it waits for rank \d op #\d, which waits for ",
    )


@pytest.mark.parametrize("which", [REDUCE_SCATTER, TWO_SHOT])
def test_sends_to_rotating_peers_in_one_lane(which: Which) -> None:
    def one_lane(plan: RankPlan) -> Sequence[Op]:
        sends = [op for op in plan.ops[:2] if isinstance(op, Send)]
        if plan.rank == 1:  # rank 1's next peer is 2, then 0; the others' are in rank order
            sends.reverse()
        rest = [
            replace(op, lane=op.lane - 1, after=tuple(e for e in op.after if e.op_index > 1))
            for op in plan.ops[2:]
        ]
        return [*(replace(op, lane=0) for op in sends), *rest]

    call = plans_of(which)[0].call
    if which is TWO_SHOT:  # two chunks per shard
        call = replace(call, count=WORLD * 32)
    plans = [build_plan(call, rank) for rank in range(WORLD)]
    verify_plans(plans)
    refused(edited(plans, one_lane), "is in a deadlock")


def test_barrier_that_does_not_wait() -> None:
    lonely = Copy(0, Range(Buffer.OUTPUT, 0, 0), Range(Buffer.INPUT, 0, 0))
    refused(
        edited(plans_of(BARRIER), lambda plan: [lonely]),
        "rank 0: may finish before rank 1 has started",
    )


# --- memory ---------------------------------------------------------------------------------


def test_one_shot_without_its_edge() -> None:
    refused(
        edited(plans_of(ONE_SHOT), with_op(1, after=()), 2),
        r"rank 2 op #1 \(reduce .*\): may overwrite INPUT in place while op #0 reads it",
    )


def test_two_shot_without_the_edge_of_a_copy() -> None:
    # That the shard comes back proves that the frame has arrived, not that nobody still reads
    # the source: a link may send it again.
    refused(
        edited(plans_of(TWO_SHOT), with_op(4, after=()), 0),
        r"rank 0 op #4 \(copy .*\): may overwrite INPUT in place while op #0 reads it",
    )


def test_two_shot_that_sends_before_it_has_folded() -> None:
    refused(
        edited(plans_of(TWO_SHOT), with_op(3, after=()), 0),
        r"rank 0 op #2 \(reduce .*\): may overwrite OUTPUT while op #3 reads it",
    )


def test_input_read_after_it_was_overwritten() -> None:
    def swap_halves_first(plan: RankPlan) -> Sequence[Op]:
        """Only wrong in place: with INPUT apart, what follows overwrites the halves."""
        swap = [
            Copy(0, Range(Buffer.OUTPUT, 0, 32), Range(Buffer.INPUT, 32, 32)),
            Copy(0, Range(Buffer.OUTPUT, 32, 32), Range(Buffer.INPUT, 0, 32)),
        ]
        return [*swap, *(replace(op, lane=0) for op in plan.ops)]

    refused(
        edited(plans_of(BROADCAST), swap_halves_first, 0),
        r"rank 0 op #0 \(copy .*\): overwrites INPUT in place before op #1 has read it",
    )


def test_two_writers() -> None:
    def twice(plan: RankPlan) -> Sequence[Op]:
        copy = plan.ops[1]
        return [*plan.ops, replace(copy, lane=4)]

    refused(
        edited(plans_of(ALL_GATHER), twice, 1),
        "rank 1 op #[14] .* may overwrite OUTPUT while op #[14] writes it",
    )


def test_target_that_overlaps_its_source() -> None:
    def shift(plan: RankPlan) -> Sequence[Op]:
        target, source = Range(Buffer.OUTPUT, 4, 40), Range(Buffer.OUTPUT, 0, 40)
        return [*plan.ops, Copy(0, target, source, (After(1, AfterMode.DONE),))]

    refused(edited(plans_of(BROADCAST), shift, 0), "rank 0 op #2 .* target that overlaps a source")


def test_bytes_that_nothing_has_written() -> None:
    scratch = with_op(0, source=Range(Buffer.SCRATCH, 0, 100))
    plans = [replace(plan, scratch_bytes=100) for plan in plans_of(BROADCAST)]
    refused(edited(plans, scratch, 0), "rank 0 op #0 .* step 0 reads bytes that nothing has")


# --- results --------------------------------------------------------------------------------


def swap_sources(plan: RankPlan) -> Sequence[Op]:
    reduce = plan.ops[-1]
    assert isinstance(reduce, Reduce)
    first, second, third = reduce.sources
    return [*plan.ops[:-1], replace(reduce, sources=(second, first, third))]


def test_swapped_fold_order() -> None:
    refused(
        edited(plans_of(ONE_SHOT), swap_sources, 2),
        r"rank 2 op #1 .*: OUTPUT bytes 0 to 64 are folded in the order \[1, 0, 2\]",
    )


def test_own_contribution_twice() -> None:
    def twice(plan: RankPlan) -> Sequence[Op]:
        reduce = plan.ops[-1]
        assert isinstance(reduce, Reduce)
        return [
            plan.ops[0],
            replace(reduce, sources=(*reduce.sources, Range(Buffer.INPUT, 0, 100))),
        ]

    refused(edited(plans_of(ONE_SHOT), twice, 1), r"count a rank twice: \[0, 1, 2, 1\]")


def test_missing_contribution() -> None:
    def ignore(plan: RankPlan) -> Sequence[Op]:
        reduce = plan.ops[-1]
        assert isinstance(reduce, Reduce)
        own = Range(Buffer.INPUT, 100 * plan.rank, 100)
        sources = tuple(source for source in reduce.sources if source != own)
        return [*plan.ops[:-1], replace(reduce, sources=sources)]

    refused(
        edited(plans_of(REDUCE_SCATTER), ignore, 0), r"come from ranks \[1, 2\], not \[0, 1, 2\]"
    )


def test_wrong_source_offset() -> None:
    refused(
        edited(plans_of(REDUCE_SCATTER), with_op(0, source=Range(Buffer.INPUT, 104, 100)), 0),
        r"rank 1 op #2 .*come from INPUT offsets \[104, 100, 100\], not \[100, 100, 100\]",
    )


def test_wrong_target_offset() -> None:
    def swap_slots(plan: RankPlan) -> Sequence[Op]:
        send, own, first, second = plan.ops
        assert isinstance(first, Copy) and isinstance(second, Copy)
        return [
            send,
            own,
            replace(first, target=second.target),
            replace(second, target=first.target),
        ]

    refused(
        edited(plans_of(ALL_GATHER), swap_slots, 0),
        r"rank 0 op #3 .*: OUTPUT bytes 100 to 164 come from ranks \[2\], not \[1\]",
    )


def test_bytes_left_out() -> None:
    refused(
        edited(plans_of(ALL_GATHER), without_op(1), 2),
        "rank 2: nothing writes OUTPUT bytes 200 to 300",
    )


def test_second_rounding() -> None:
    def again(plan: RankPlan) -> Sequence[Op]:
        output = Range(Buffer.OUTPUT, 0, 100)
        return [*plan.ops, Reduce(1, output, (output,))]

    refused(edited(plans_of(ONE_SHOT), again, 0), "rank 0 op #2 .* it would round twice")


def test_data_not_folded() -> None:
    alone = replace(plans_of(ONE_SHOT)[0].call, world=1)
    plan = build_plan(alone, 0)
    copy = Copy(0, Range(Buffer.OUTPUT, 0, 100), Range(Buffer.INPUT, 0, 100))
    refused([replace(plan, ops=(copy,))], "OUTPUT bytes 0 to 64 are not folded")


# --- structure ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("which", "index", "changes", "text"),
    [
        (ONE_SHOT, 1, {"target": Range(Buffer.INPUT, 0, 100)}, "writes to INPUT"),
        (
            ONE_SHOT,
            1,
            {"target": Range(Buffer.OUTPUT, 4, 100)},
            "bytes 4 to 104 lie outside OUTPUT of 100 bytes",
        ),
        (ONE_SHOT, 0, {"source": Range(Buffer.INPUT, -4, 100)}, "bytes -4 to 96 lie outside INPUT"),
        (ONE_SHOT, 0, {"source": Range(Buffer.SCRATCH, 0, 4)}, "outside SCRATCH of 0 bytes"),
        (ONE_SHOT, 1, {"target": Range(Buffer.OUTPUT, 0, 96)}, "100 bytes for a target of 96"),
        (
            ONE_SHOT,
            1,
            {
                "target": Range(Buffer.OUTPUT, 0, 98),
                "sources": (FromAll(0), FromAll(2)),
            },
            "98 bytes are not whole elements of float32",
        ),
        (
            ONE_SHOT,
            1,
            {"sources": (FromAll(0), FromAll(0), FromAll(2))},
            "two frames of one stream",
        ),
        (ONE_SHOT, 1, {"sources": ()}, "0 sources"),
        (ONE_SHOT, 1, {"sources": (FromAll(3),)}, "rank 3 is not a peer of rank 1"),
        (ONE_SHOT, 1, {"sources": (FromPeer(1),)}, "rank 1 is not a peer of rank 1"),
        (REDUCE_SCATTER, 0, {"to": ToPeer(1)}, "rank 1 is not a peer of rank 1"),
        (ONE_SHOT, 1, {"after": (After(1),)}, "waits for op #1, which is not an earlier one"),
        (ONE_SHOT, 0, {"after": (After(-1),)}, "waits for op #-1"),
        (ONE_SHOT, 1, {"after": (After(0),) * 5}, "5 edges; at most 4"),
    ],
)
def test_malformed_operation(which: Which, index: int, changes: dict[str, Any], text: str) -> None:
    refused(
        edited(plans_of(which), with_op(index, **changes), 1),
        f"rank 1 op #{index} .*{re.escape(text)}",
    )


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"rank": 0}, "rank 1: its plan is for rank 0"),
        ({"ops": ()}, "rank 1: 0 operations"),
        ({"input_bytes": 96}, "rank 1: input, output and divisor are"),
        ({"divisor": 3}, "rank 1: input, output and divisor are"),
        ({"scratch_bytes": -1}, "rank 1: input, output and divisor are"),
    ],
)
def test_malformed_plan(changes: dict[str, Any], text: str) -> None:
    plans = plans_of(ONE_SHOT)
    plans[1] = replace(plans[1], **changes)
    refused(plans, text)


def test_plans_that_are_not_of_one_call() -> None:
    plans = plans_of(ONE_SHOT)
    refused([], "no plans")
    refused(plans[:2], "2 plans for 3 ranks")
    refused(
        [plans[0], plans_of(TWO_SHOT)[1], plans[2]],
        r"rank 1: all_reduce\(.*count=80\) is not rank 0's all_reduce\(.*count=25\)",
    )


def test_lanes_with_a_gap() -> None:
    refused(edited(plans_of(ONE_SHOT), with_op(1, lane=2), 1), "rank 1: lanes are not numbered")


def test_nobody_to_send_to() -> None:
    plan = build_plan(replace(plans_of(ONE_SHOT)[0].call, world=1), 0)
    send = Send(0, Range(Buffer.INPUT, 0, 100), ToAll())
    refused([replace(plan, ops=(send, *plan.ops))], "there is nobody to send to")
