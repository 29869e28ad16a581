"""Seeded faults in plans with parts, roots, prefixes and splits: each refused for its reason."""

from __future__ import annotations

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
    FromPeer,
    Op,
    Range,
    RankPlan,
    Reduce,
    ToPeer,
)
from jetstream.collectives.parts import Splits
from jetstream.collectives.verify import verify_call, verify_plans
from jetstream.dtypes import Algorithm, DType, Kind, RedOp
from jetstream.errors import PlanError

WORLD = 3
DIRECT, TWO_SHOT = Algorithm.DIRECT, Algorithm.TWO_SHOT

Edit = Callable[[RankPlan], Sequence[Op]]


def plans_of(
    kind: Kind, algorithm: Algorithm = DIRECT, *, count: int = 25, root: int = 0, **parts: Any
) -> list[RankPlan]:
    """Sound plans: parts of 100 bytes, which are two chunks of which the second is ragged."""
    call = Call(kind, RedOp.SUM, DType.FLOAT32, count, root, WORLD, algorithm, 64, **parts)
    plans = [build_plan(call, rank) for rank in range(WORLD)]
    verify_plans(plans)
    return plans


def edited(plans: list[RankPlan], edit: Edit, *ranks: int) -> list[RankPlan]:
    return [
        replace(plan, ops=tuple(edit(plan))) if plan.rank in (ranks or range(WORLD)) else plan
        for plan in plans
    ]


def with_op(index: int, **changes: Any) -> Edit:
    def edit(plan: RankPlan) -> Sequence[Op]:
        ops = list(plan.ops)
        ops[index] = replace(ops[index], **changes)
        return ops

    return edit


def exchanged(first: int, second: int, *fields: str) -> Edit:
    """Exchanges fields of two operations."""

    def edit(plan: RankPlan) -> Sequence[Op]:
        ops = list(plan.ops)
        one = {name: getattr(ops[first], name) for name in fields}
        other = {name: getattr(ops[second], name) for name in fields}
        ops[first], ops[second] = replace(ops[first], **other), replace(ops[second], **one)
        return ops

    return edit


def with_sources(index: int, change: Callable[[tuple[Any, ...]], tuple[Any, ...]]) -> Edit:
    def edit(plan: RankPlan) -> Sequence[Op]:
        op = plan.ops[index]
        assert isinstance(op, Reduce)
        return with_op(index, sources=change(op.sources))(plan)

    return edit


def refused(plans: list[RankPlan], text: str) -> None:
    with pytest.raises(PlanError, match=text):
        verify_plans(plans)


# --- all_to_all: rank 0 is #0 send to 1, #1 send to 2, #2 own copy, #3 copy from 1, #4 from 2 ----


def test_parts_sent_to_each_other() -> None:
    refused(
        edited(plans_of(Kind.ALL_TO_ALL), exchanged(0, 1, "to"), 0),
        r"rank 1 op #\d .*OUTPUT bytes 0 to 64 come from INPUT offsets \[200\], not \[100\]",
    )


def test_parts_written_to_each_others_place() -> None:
    refused(
        edited(plans_of(Kind.ALL_TO_ALL), exchanged(3, 4, "target", "after"), 0),
        r"rank 0 op #4 .*OUTPUT bytes 100 to 164 come from ranks \[2\], not \[1\]",
    )


def test_part_overwritten_before_it_is_out() -> None:
    plans = plans_of(Kind.ALL_TO_ALL)
    text = r"rank 2 op #3 \(copy .*\): may overwrite INPUT in place while op #0 reads it"
    refused(edited(plans, with_op(3, after=()), 2), text)
    refused(edited(plans, with_op(3, after=(After(1),)), 2), text)


def test_own_part_forgotten() -> None:
    elsewhere = Range(Buffer.OUTPUT, 0, 0)
    nothing = with_op(2, target=elsewhere, source=Range(Buffer.INPUT, 0, 0))
    refused(
        edited(plans_of(Kind.ALL_TO_ALL), nothing, 1),
        "rank 1: nothing writes OUTPUT bytes 100 to 200",
    )


@pytest.mark.parametrize(
    ("sent", "awaited", "text"),
    [
        (7, 8, "consumes frame 0 of rank 0's stream to rank 1, which is step 0 of 28 bytes"),
        (8, 7, "consumes frame 0 of rank 0's stream to rank 1, which is step 0 of 32 bytes"),
        (0, 1, "of 4 bytes consumes frame 0 .*, which is step 0 of 0 bytes"),
        (32, 16, "sends frame 1 of rank 0's stream to rank 1, which rank 1 never consumes"),
        (16, 32, "awaits frame 1 of rank 0's stream to rank 1, which carries 1 frames"),
    ],
)
def test_splits_that_disagree(sent: int, awaited: int, text: str) -> None:
    call = Call(Kind.ALL_TO_ALL, RedOp.SUM, DType.FLOAT32, 0, 0, 2, DIRECT, 64, has_splits=True)
    verify_call(call, [Splits((1, sent), (1, 3)), Splits((3, 2), (sent, 2))])
    with pytest.raises(PlanError, match=text):
        verify_call(call, [Splits((1, sent), (1, 3)), Splits((3, 2), (awaited, 2))])


def test_splits_of_a_call_without_and_the_other_way_round() -> None:
    plans = plans_of(Kind.ALL_TO_ALL)
    splits = Splits((25,) * 3, (25,) * 3)
    refused([replace(plan, splits=splits) for plan in plans], "rank 0: has splits, or lacks them")


# --- reduce: root 0 is #0 reduce; two-shot: #0, #1 sends, #2 reduce, then #3 send, or copies -----


def test_reduce_in_another_order() -> None:
    refused(
        edited(plans_of(Kind.REDUCE, root=1), with_sources(0, lambda s: (s[1], s[0], s[2])), 1),
        r"rank 1 op #0 .*folded in the order \[1, 0, 2\], not in rank order",
    )


def test_reduce_sent_to_a_rank_that_is_not_the_root() -> None:
    refused(
        edited(plans_of(Kind.REDUCE), with_op(0, to=ToPeer(1)), 2),
        r"rank 0 op #0 .* awaits frame 0 of rank 2's stream to rank 0, which carries 0 frames",
    )


def test_result_collected_before_the_contribution() -> None:
    plans = plans_of(Kind.REDUCE, TWO_SHOT, count=80, root=2)
    only_chunk = with_op(3, after=(After(2), After(0)))
    refused(edited(plans, only_chunk, 2), "rank 2 op #3 .* uses the same stream as op #2")


def test_result_sent_in_a_lane_of_its_own() -> None:
    plans = plans_of(Kind.REDUCE, TWO_SHOT, count=80)
    refused(
        edited(plans, with_op(3, lane=3), 1),
        r"rank 1 op #3 \(send .*\): step 0 uses the same stream as op #0 and nothing orders",
    )


def test_shard_overwritten_before_it_is_out() -> None:
    plans = plans_of(Kind.REDUCE, TWO_SHOT, count=80)
    done = (After(2, AfterMode.DONE),)
    refused(
        edited(plans, with_op(3, after=done), 0),
        r"rank 0 op #3 \(copy .*\): may overwrite INPUT in place while op #0 reads it",
    )


def test_result_sent_before_it_is_folded() -> None:
    plans = plans_of(Kind.REDUCE, TWO_SHOT, count=80)
    refused(
        edited(plans, with_op(3, after=()), 2),
        r"rank 2 op #2 \(reduce .*\): may overwrite SCRATCH while op #3 reads it",
    )


def test_shards_collected_into_each_others_place() -> None:
    plans = plans_of(Kind.REDUCE, TWO_SHOT, count=96)  # equal shards
    refused(
        edited(plans, exchanged(3, 4, "target", "after"), 0),
        r"rank 0 op #4 .*OUTPUT bytes 128 to 192 come from INPUT offsets \[256, 256, 256\]",
    )


# --- gather and scatter --------------------------------------------------------------------------


def test_gathered_into_each_others_place() -> None:
    refused(
        edited(plans_of(Kind.GATHER, root=2), exchanged(1, 2, "target"), 2),
        r"rank 2 op #2 .*OUTPUT bytes 0 to 64 come from ranks \[1\], not \[0\]",
    )


def test_root_that_does_not_wait() -> None:
    """Of nothing; so that only the arrival tells."""
    plans = plans_of(Kind.GATHER, count=0)
    alone = edited(plans, lambda plan: plan.ops[:2], 0)
    empty = Copy(0, Range(Buffer.OUTPUT, 0, 0), Range(Buffer.INPUT, 0, 0))
    refused(edited(alone, lambda plan: [empty], 2), "rank 0: may finish before rank 2 has started")


def test_scattered_to_each_other() -> None:
    refused(
        edited(plans_of(Kind.SCATTER), exchanged(0, 1, "source"), 0),
        r"rank 1 op #0 .*OUTPUT bytes 0 to 64 come from INPUT offsets \[200\], not \[100\]",
    )


def test_rank_that_does_not_wait_for_the_root() -> None:
    plans = plans_of(Kind.SCATTER, count=0)
    empty = Copy(0, Range(Buffer.OUTPUT, 0, 0), Range(Buffer.INPUT, 0, 0))
    lonely = edited(plans, lambda plan: [replace(plan.ops[1], lane=0)], 0)
    plans = edited(lonely, lambda plan: [empty], 1)
    refused(plans, "rank 1: may finish before rank 0 has started")


# --- counts --------------------------------------------------------------------------------------


def test_part_in_the_place_of_equal_parts() -> None:
    plans = plans_of(Kind.ALL_GATHER, count=30, counts=(5, 5, 20))
    moved = with_op(2, target=Range(Buffer.OUTPUT, 24, 20))
    refused(edited(plans, moved, 0), "rank 0 op #[23] .*may overwrite OUTPUT while op #[23] writes")


def test_slice_of_equal_parts() -> None:
    plans = plans_of(Kind.REDUCE_SCATTER, count=30, counts=(5, 20, 5))
    wrong = with_op(1, source=Range(Buffer.INPUT, 80, 20))
    text = r"rank 2 op #2 .*come from INPUT offsets \[80, 100, 100\], not \[100, 100, 100\]"
    refused(edited(plans, wrong, 0), text)


def test_sizes_of_equal_parts() -> None:
    plans = plans_of(Kind.GATHER, count=30, counts=(5, 5, 20))
    plans[1] = replace(plans[1], input_bytes=40)
    refused(plans, "rank 1: input, output and divisor are")


# --- prefixes: rank 0 is #0 send to 1, #1 send to 2, #2 reduce -----------------------------------


def test_scan_overwrites_what_it_still_sends() -> None:
    plans = plans_of(Kind.SCAN)
    refused(
        edited(plans, with_op(2, after=()), 0),
        r"rank 0 op #2 \(reduce .*\): may overwrite INPUT in place while op #[01] reads it",
    )
    refused(
        edited(plans, with_op(1, after=()), 0),
        r"rank 0 op #2 \(reduce .*\): may overwrite INPUT in place while op #0 reads it",
    )
    refused(
        edited(plans_of(Kind.EXSCAN), with_op(1, after=()), 1),
        r"rank 1 op #1 \(reduce .*\): may overwrite INPUT in place while op #0 reads it",
    )


def test_scan_in_one_lane() -> None:
    """All chunks to one peer before the first to the next: those wait for each other."""
    plans = plans_of(Kind.SCAN, count=60)

    def one_lane(plan: RankPlan) -> Sequence[Op]:
        last = len(plan.ops) - 1
        return [replace(op, lane=int(index == last)) for index, op in enumerate(plan.ops)]

    refused(edited(plans, one_lane, 0), "is in a deadlock: it waits for")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda s: (s[1], s[0], s[2]), r"folded in the order \[1, 0, 2\], not in rank order"),
        (lambda s: (s[2], s[0], s[1]), r"folded in the order \[2, 0, 1\], not in rank order"),
        (lambda s: (*s, s[2]), r"count a rank twice: \[0, 1, 2, 2\]"),
        (lambda s: s[:2], r"come from ranks \[0, 1\], not \[0, 1, 2\]"),
        (lambda s: s[1:], "sends frame 0 of rank 0's stream to rank 2, which rank 2 never"),
    ],
)
def test_scan_of_other_ranks(change: Any, text: str) -> None:
    refused(edited(plans_of(Kind.SCAN), with_sources(0, change), 2), text)


def test_exscan_that_takes_its_own_part() -> None:
    def add_own(plan: RankPlan) -> Sequence[Op]:
        own = Range(Buffer.INPUT, 0, 100)
        return with_sources(0, lambda sources: (*sources, own))(plan)

    refused(edited(plans_of(Kind.EXSCAN), add_own, 2), r"come from ranks \[0, 1, 2\], not \[0, 1\]")


def test_exscan_that_writes_on_rank_0() -> None:
    def write(plan: RankPlan) -> Sequence[Op]:
        target, source = Range(Buffer.OUTPUT, 0, 100), Range(Buffer.INPUT, 0, 100)
        return [*plan.ops, Copy(2, target, source)]

    refused(
        edited(plans_of(Kind.EXSCAN), write, 0), "rank 0 op #2 .*OUTPUT bytes 0 to 64 must stay as"
    )


def test_scan_that_does_not_wait() -> None:
    """Nothing to fold, and rank 1 leaves before rank 0 has come."""
    plans = plans_of(Kind.SCAN, count=0)
    empty = Range(Buffer.OUTPUT, 0, 0)

    def only_to_two(plan: RankPlan) -> Sequence[Op]:
        return [replace(plan.ops[1], lane=0, after=()), replace(plan.ops[2], lane=1, after=())]

    def without_zero(plan: RankPlan) -> Sequence[Op]:
        return [plan.ops[0], Reduce(1, empty, (Range(Buffer.INPUT, 0, 0),))]

    plans = edited(edited(plans, only_to_two, 0), without_zero, 1)
    refused(plans, "rank 1: may finish before rank 0 has started")


def test_higher_rank_in_a_scan() -> None:
    plans = plans_of(Kind.SCAN)
    upwards = with_sources(1, lambda sources: (*sources, FromPeer(2)))
    refused(
        edited(plans, upwards, 1), "awaits frame 0 of rank 2's stream to rank 1, which carries 0"
    )
