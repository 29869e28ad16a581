"""The verifier refuses plans that lend wrongly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from jetstream.collectives.calls import Call
from jetstream.collectives.compile import build_plan
from jetstream.collectives.ir import (
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
)
from jetstream.collectives.verify import verify_plans
from jetstream.dtypes import Algorithm, DType, Kind, RedOp
from jetstream.errors import PlanError

WORLD = 3
Edit = Callable[[list[Op]], None]


def plans_of(algorithm: Algorithm, kind: Kind = Kind.ALL_REDUCE) -> list[RankPlan]:
    """All-reduce has shards of 64, 128 and 128 bytes, in chunks of 64."""
    call = Call(kind, RedOp.SUM, DType.FLOAT32, 80, 0, WORLD, algorithm, 64)
    return [build_plan(call, rank) for rank in range(WORLD)]


def refused(plans: list[RankPlan], rank: int, edit: Edit, text: str) -> None:
    """Expects that the plans hold, and no longer once one rank's operations are edited."""
    verify_plans(plans)
    ops = list(plans[rank].ops)
    edit(ops)
    plans[rank] = replace(plans[rank], ops=tuple(ops))
    with pytest.raises(PlanError, match=text):
        verify_plans(plans)


def changing(index: int, **changes: Any) -> Edit:
    """Changes fields of one operation."""

    def edit(ops: list[Op]) -> None:
        ops[index] = replace(ops[index], **changes)

    return edit


def lend_plans() -> list[RankPlan]:
    """Of each rank two sends that lend, a reduce that gives back, two copies."""
    plans = plans_of(Algorithm.LEND)
    kinds = [Send, Send, Reduce, Copy, Copy]
    assert all([type(op) for op in plan.ops] == kinds for plan in plans)
    return plans


def test_a_frame_that_is_not_given_back() -> None:
    text = r"rank 1 op #2 .*step 0 consumes a lent frame and does not give it back"
    refused(lend_plans(), 1, changing(2, gives_back=False), text)


def test_a_frame_that_is_given_back_and_was_not_lent() -> None:
    text = r"rank 1 op #2 .*step 0 gives back a frame that is not lent"
    plans = plans_of(Algorithm.DIRECT, Kind.REDUCE_SCATTER)
    refused(plans, 1, changing(2, gives_back=True), text)


def test_a_frame_that_is_never_taken_back() -> None:
    text = r"rank 2 op #1 .*step 0 lends a frame that is never taken back"
    refused(lend_plans(), 2, list.pop, text)


def test_a_frame_that_is_taken_back_and_was_not_lent() -> None:
    text = r"rank 2 op #3 .*step 0 takes back a frame that is never lent"
    refused(lend_plans(), 2, changing(0, back=None), text)


def test_frames_lent_and_not_lent_on_one_stream() -> None:
    def send_more(ops: list[Op]) -> None:
        ops.append(replace(ops[0], back=None))

    text = r"rank 0 op #0 .*lends a frame of .*, which carries others too"
    plans = lend_plans()
    extra = Copy(5, Range(Buffer.OUTPUT, 64, 128), FromPeer(0))
    plans[1] = replace(plans[1], ops=(*plans[1].ops, extra))
    ops = list(plans[0].ops)
    send_more(ops)
    plans[0] = replace(plans[0], ops=tuple(ops))
    with pytest.raises(PlanError, match=text):
        verify_plans(plans)


def test_a_frame_that_is_taken_back_to_another_place() -> None:
    # A link may have let the peer work on the range itself, and then nothing is copied.
    def swap(ops: list[Op]) -> None:
        first, second = ops[3:]
        assert isinstance(first, Copy)
        assert isinstance(second, Copy)
        ops[3:] = [
            replace(first, target=second.target),
            replace(second, target=first.target),
        ]

    text = r"rank 0 op #3 .*takes a frame back to another place than the one it was lent for"
    refused(lend_plans(), 0, swap, text)


@pytest.mark.parametrize("buffer", [Buffer.INPUT, Buffer.OUTPUT])
def test_a_range_used_while_it_is_lent(buffer: Buffer) -> None:
    def touch(ops: list[Op]) -> None:
        lent = ops[0]
        assert isinstance(lent, Send)
        assert lent.back is not None
        offset, size_bytes = lent.back.offset, 64
        scratch = Range(Buffer.OUTPUT, 128, size_bytes)  # of this rank's own shard
        ops.append(Copy(5, scratch, Range(buffer, offset, size_bytes)))

    # In place, INPUT is where the peer writes; OUTPUT is that in any case.
    refused(lend_plans(), 1, touch, r"may overwrite|reads bytes that nothing has written")


@pytest.mark.parametrize(
    ("index", "changes", "text"),
    [
        (0, {"back": Range(Buffer.INPUT, 64, 128)}, r"takes back into INPUT"),
        (0, {"back": Range(Buffer.OUTPUT, 64, 64)}, r"lends 128 bytes and takes back 64"),
        (0, {"back": Range(Buffer.OUTPUT, 300, 128)}, r"lie outside OUTPUT"),
        (
            2,
            {"sources": (Range(Buffer.INPUT, 0, 64), FromLent(1), FromPeer(2))},
            r"takes a frame back, which only a copy can",
        ),
        (
            2,
            {"sources": (Range(Buffer.INPUT, 0, 64), FromAll(1), FromPeer(2))},
            r"gives back a frame that was sent to all",
        ),
        (3, {"source": FromLent(0)}, r"rank 0 is not a peer of rank 0"),
    ],
)
def test_malformed_operations(index: int, changes: dict[str, Any], text: str) -> None:
    refused(lend_plans(), 0, changing(index, **changes), rf"rank 0 op #{index} .*{text}")


def test_nothing_is_lent_to_all() -> None:
    back = Range(Buffer.OUTPUT, 0, 64)
    text = r"rank 0 op #3 .*lends a frame to all"
    refused(plans_of(Algorithm.TWO_SHOT), 0, changing(3, back=back, refer=Refer.NEVER), text)
