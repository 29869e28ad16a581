"""What may be published by reference: the algorithms say no more and no less than holds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jetstream.collectives.algorithms import ALGORITHMS
from jetstream.collectives.calls import PREFIXES, Call
from jetstream.collectives.compile import build_plan, compile_plan
from jetstream.collectives.ir import (
    REFER_NEVER_BYTES,
    After,
    Buffer,
    Copy,
    Op,
    Range,
    RankPlan,
    Refer,
    Send,
)
from jetstream.collectives.lower import decode_plan, encode_plan
from jetstream.collectives.refer import REFER_BYTES
from jetstream.collectives.verify import verify_plans
from jetstream.dtypes import Algorithm, DType, Kind, RedOp
from jetstream.errors import PlanError

WORLD = 3
SENDING = [which for which in ALGORITHMS if which[0] is not Kind.BARRIER]
#: Calls in which, in place, ranks overwrite what they have sent, and these ranks.
OVERWRITING = {
    (Kind.ALL_REDUCE, Algorithm.ONE_SHOT): {0, 1, 2},
    (Kind.ALL_REDUCE, Algorithm.TWO_SHOT): {0, 1, 2},
    (Kind.ALL_TO_ALL, Algorithm.DIRECT): {0, 1, 2},
    (Kind.REDUCE, Algorithm.TWO_SHOT): {0},
    (Kind.SCAN, Algorithm.DIRECT): {0, 1},
    (Kind.EXSCAN, Algorithm.DIRECT): {1},
}


def plans_of(which: tuple[Kind, Algorithm]) -> list[RankPlan]:
    kind, algorithm = which
    call = Call(kind, RedOp.SUM, DType.FLOAT32, 80, 0, WORLD, algorithm, 64)
    return [build_plan(call, rank) for rank in range(WORLD)]


def changed(plans: list[RankPlan], rank: int, index: int, op: Op) -> list[RankPlan]:
    ops = list(plans[rank].ops)
    ops[index] = op
    return [replace(p, ops=tuple(ops)) if p.rank == rank else p for p in plans]


def sends(plans: list[RankPlan]) -> list[tuple[int, int, Send]]:
    """Rank, index and SEND, of all that send from the caller's arrays."""
    return [
        (plan.rank, index, op)
        for plan in plans
        for index, op in enumerate(plan.ops)
        if isinstance(op, Send) and op.source.buffer is not Buffer.SCRATCH
    ]


@pytest.mark.parametrize("which", [w for w in SENDING if w[1] is not Algorithm.LEND])
def test_every_send_that_may_refer_does(which: tuple[Kind, Algorithm]) -> None:
    """Every SEND may; where it is overwritten in place, a promise for that too is refused."""
    plans = plans_of(which)
    verify_plans(plans)
    refused = set()
    for rank, index, op in sends(plans):
        assert op.refer is not Refer.NEVER
        if op.refer is Refer.APART:
            try:
                verify_plans(changed(plans, rank, index, replace(op, refer=Refer.ALWAYS)))
            except PlanError as error:
                assert f"overwrites INPUT in place, to which op #{index} may" in str(error)
                refused.add(rank)
    assert refused == OVERWRITING.get(which, set())


def test_a_source_that_is_overwritten_before_the_plan_ends() -> None:
    """Rank 0 sends its result and then writes over it, though with the same bytes."""
    plans = plans_of((Kind.ALL_REDUCE, Algorithm.TWO_SHOT))
    ops = plans[0].ops
    fold, result = next((i, op) for i, op in enumerate(ops) if isinstance(op, Send) and op.after)
    spare = Range(Buffer.SCRATCH, 0, result.bytes)
    lane = plans[0].lane_count
    saved = Copy(lane, spare, result.source, (After(result.after[0].op_index),))
    again = Copy(lane, result.source, spare, (After(fold),))
    edited = replace(plans[0], ops=(*ops, saved, again), scratch_bytes=result.bytes)
    with pytest.raises(PlanError, match=rf"overwrites OUTPUT, to which op #{fold} may refer"):
        verify_plans([edited, *plans[1:]])
    copies = (*ops[:fold], replace(result, refer=Refer.NEVER), *ops[fold + 1 :])
    verify_plans([replace(edited, ops=(*copies, saved, again)), *plans[1:]])


def test_what_is_lent_is_not_referred_to() -> None:
    plans = plans_of((Kind.ALL_REDUCE, Algorithm.LEND))
    op = replace(plans[1].ops[0], refer=Refer.APART)
    with pytest.raises(PlanError, match=r"rank 1 op #0 .*lends what it may publish by reference"):
        verify_plans(changed(plans, 1, 0, op))


def test_sizes() -> None:
    """Every kind that sends has a least size; what is sent in frames of one line is below it."""
    assert set(REFER_BYTES) == {kind for kind, _ in SENDING}
    assert min(REFER_BYTES.values()) > 40
    barrier = Call(Kind.BARRIER, RedOp.SUM, DType.UINT8, 0, 0, 2, Algorithm.DIRECT, 64)
    assert build_plan(barrier, 0).refer_bytes == REFER_NEVER_BYTES
    assert all(kind in REFER_BYTES for kind in PREFIXES)


@pytest.mark.parametrize("refer", Refer)
def test_binary_form(refer: Refer) -> None:
    plan = plans_of((Kind.ALL_GATHER, Algorithm.DIRECT))[1]
    edited = replace(
        plan, ops=(replace(plan.ops[0], refer=refer), *plan.ops[1:]), refer_bytes=12345
    )
    assert decode_plan(encode_plan(edited)) == edited
    assert decode_plan(compile_plan(plan.call, 1)) == plan
