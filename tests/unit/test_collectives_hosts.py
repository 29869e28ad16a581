"""Plans over several hosts: what the verifier refuses, what crosses the wire, what is chosen."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from jetstream.collectives.algorithms import ALGORITHMS, HIERARCHICAL
from jetstream.collectives.calls import CHUNK_ALIGN, PREFIXES, Call
from jetstream.collectives.compile import build_plan, compile_plan
from jetstream.collectives.ir import (
    FromAll,
    FromPeer,
    Op,
    RankPlan,
    Reduce,
    Refer,
    Send,
    ToAll,
    ToPeer,
)
from jetstream.collectives.lower import decode_plan, encode_plan
from jetstream.collectives.parts import Splits
from jetstream.collectives.placement import place
from jetstream.collectives.select import (
    HIERARCHICAL_ONE_SHOT_BYTES_MAX,
    REMOTE_CHUNK_BYTES_MAX,
    REMOTE_ONE_SHOT_BYTES_MAX,
    Rule,
    Selection,
    choose,
    limit_chunk,
)
from jetstream.collectives.template import compile_splits
from jetstream.collectives.verify import verify_plans
from jetstream.dtypes import Algorithm, DType, Kind, RedOp
from jetstream.errors import PlanError
from jetstream.testing import reference

TWO_BY_TWO = (0, 1, 0, 1)
EVERYTHING = [*ALGORITHMS, *HIERARCHICAL]


def make_call(kind: Kind, algorithm: Algorithm, world: int = 4, **changes: Any) -> Call:
    count = 0 if kind is Kind.BARRIER else 100
    call = Call(kind, RedOp.SUM, DType.FLOAT32, count, 0, world, algorithm, 128)
    return replace(call, **changes)


def plans_of(call: Call, hosts: Sequence[int] = TWO_BY_TWO) -> list[RankPlan]:
    return [build_plan(call, rank, hosts=hosts) for rank in range(call.world)]


# --- placement -------------------------------------------------------------------------------


def test_hosts_are_numbered_by_their_lowest_ranks() -> None:
    placement = place((7, 3, 7, 0, 3), 5)
    assert placement == place((1, 2, 1, 9, 2), 5)
    assert placement.hosts == (0, 1, 0, 2, 1)
    assert placement.groups == ((0, 2), (1, 4), (3,))
    assert placement.by_host([4, 0, 1]) == [[0], [1, 4]]
    assert [placement.counterpart(rank, 2) for rank in range(5)] == [3] * 5
    assert [placement.counterpart(rank, 1) for rank in range(5)] == [1, 1, 4, 1, 4]
    assert placement.dependants(3) == (0, 1, 2, 4)
    assert place((), 3).is_one_host and place((4, 4, 4), 3).is_one_host
    with pytest.raises(PlanError, match="2 hosts for 3 ranks"):
        place((0, 1), 3)


@pytest.mark.parametrize(("kind", "algorithm"), ALGORITHMS)
def test_on_one_host_plans_are_what_they_were(kind: Kind, algorithm: Algorithm) -> None:
    call = make_call(kind, algorithm)
    for rank in range(4):
        assert compile_plan(call, rank, hosts=(5, 5, 5, 5)) == compile_plan(call, rank)


@pytest.mark.parametrize(("kind", "algorithm"), HIERARCHICAL)
def test_without_neighbours_there_is_no_hierarchy(kind: Kind, algorithm: Algorithm) -> None:
    flat = Algorithm.DIRECT
    if kind is Kind.ALL_REDUCE:
        is_short = algorithm is Algorithm.HIERARCHICAL_ONE_SHOT
        flat = Algorithm.ONE_SHOT if is_short else Algorithm.TWO_SHOT
    for hosts, rank in itertools.product([(0, 0, 0, 0), (3, 2, 1, 0)], range(4)):
        found = build_plan(make_call(kind, algorithm), rank, hosts=hosts)
        assert found.ops == build_plan(make_call(kind, flat), rank, hosts=hosts).ops


@pytest.mark.parametrize("redop", [RedOp.SUM, RedOp.AVG])
@pytest.mark.parametrize(("kind", "algorithm"), EVERYTHING)
def test_the_way_through_bytes_and_back(kind: Kind, algorithm: Algorithm, redop: RedOp) -> None:
    redop = RedOp.SUM if kind in PREFIXES else redop
    for plan in plans_of(make_call(kind, algorithm, dtype=DType.BFLOAT16, redop=redop)):
        assert decode_plan(encode_plan(plan), hosts=TWO_BY_TWO) == plan


def test_splits_over_hosts_are_filled_in() -> None:
    call = make_call(Kind.ALL_TO_ALL, Algorithm.DIRECT, count=0, has_splits=True)
    splits = Splits((5, 0, 7, 9), (5, 2, 0, 4))
    filled = compile_splits(call, 0, splits, TWO_BY_TWO)
    assert filled == compile_plan(call, 0, splits, TWO_BY_TWO)


# --- what the verifier refuses -----------------------------------------------------------------


def refused(
    call: Call,
    victim: int,
    change: Callable[[Op], Op],
    text: str,
    hosts: Sequence[int] = TWO_BY_TWO,
) -> None:
    """Changes all operations of a rank that ``change`` does not leave as they are."""
    plans = plans_of(call, hosts)
    verify_plans(plans)
    ops = tuple(change(op) for op in plans[victim].ops)
    assert ops != plans[victim].ops
    plans[victim] = replace(plans[victim], ops=ops)
    with pytest.raises(PlanError, match=text):
        verify_plans(plans)


def swap(index_of: Callable[[Reduce], bool], **changes: Any) -> Callable[[Op], Op]:
    def change(op: Op) -> Op:
        return replace(op, **changes) if isinstance(op, Reduce) and index_of(op) else op

    return change


ONE_SHOT = make_call(Kind.ALL_REDUCE, Algorithm.ONE_SHOT)
SHORT = make_call(Kind.ALL_REDUCE, Algorithm.HIERARCHICAL_ONE_SHOT)


def test_nothing_is_lent_or_referred_to_between_hosts() -> None:
    def refer(op: Op) -> Op:
        is_remote = isinstance(op, Send) and op.to == ToPeer(1)
        return replace(op, refer=Refer.ALWAYS) if is_remote else op

    refused(ONE_SHOT, 0, refer, "lends to another host, or publishes there by reference")


def test_the_stream_to_all_ends_at_the_host() -> None:
    def from_all(op: Op) -> Op:
        if not isinstance(op, Reduce):
            return op
        sources = tuple(FromAll(1) if source == FromPeer(1) else source for source in op.sources)
        return replace(op, sources=sources)

    refused(ONE_SHOT, 0, from_all, "rank 1 is on another host, to which no such stream leads")
    alone = replace(ONE_SHOT, world=2)

    def to_all(op: Op) -> Op:
        return replace(op, to=ToAll()) if isinstance(op, Send) else op

    refused(alone, 0, to_all, "there is nobody to send to", hosts=(0, 1))


def test_ranks_that_know_other_hosts() -> None:
    plans = [*plans_of(ONE_SHOT)[:3], plans_of(ONE_SHOT, (0, 0, 1, 1))[3]]
    with pytest.raises(PlanError, match=r"rank 3: hosts \(0, 0, 1, 1\) are not rank 0's"):
        verify_plans(plans)


def test_a_fold_that_is_not_by_host() -> None:
    def one_by_one(plan: RankPlan) -> RankPlan:
        """All contributions in one fold, in the order of hosts."""
        *sends, first, second, last = plan.ops
        assert isinstance(first, Reduce) and isinstance(second, Reduce)
        sources = (*first.sources, *second.sources)
        edges = tuple(edge for edge in last.after if edge.op_index < len(sends))
        ops = [*sends, replace(last, lane=3, sources=sources, partials=False, after=edges)]
        return replace(plan, ops=tuple(ops))

    plans = [one_by_one(plan) for plan in plans_of(ONE_SHOT)]
    with pytest.raises(PlanError, match="OUTPUT bytes 0 to 128 are not folded by host"):
        verify_plans(plans)
    # Where that makes no difference, it is what the compiler does itself.
    for redop, dtype in ((RedOp.MAX, DType.FLOAT32), (RedOp.SUM, DType.INT32)):
        exact = replace(ONE_SHOT, redop=redop, dtype=dtype)
        assert not any(isinstance(op, Reduce) and op.partials for op in plans_of(exact)[0].ops)


def test_hosts_in_another_order() -> None:
    def turn(op: Op) -> Op:
        is_last = isinstance(op, Reduce) and op.partials
        return replace(op, sources=op.sources[::-1]) if is_last else op

    refused(SHORT, 0, turn, r"folded in the order \[1, 3, 0, 2\], not \[0, 2, 1, 3\]")


def test_partial_folds_taken_for_elements() -> None:
    last = swap(lambda op: op.partials, partials=False)
    refused(SHORT, 0, last, "takes partial folds for elements, or elements for them")

    def remote(op: Op) -> Op:
        if not isinstance(op, Send) or not isinstance(op.to, ToPeer):
            return op
        return replace(op, source=replace(op.source, scale=0))

    refused(SHORT, 0, remote, "takes partial folds for elements|for what it is not: partial folds")


def test_partial_folds_in_the_wrong_place() -> None:
    def move(op: Op) -> Op:
        if not isinstance(op, Reduce) or op.target.scale == 0:
            return op
        return replace(op, target=replace(op.target, offset=4, bytes=4))

    refused(SHORT, 0, move, "partial folds do not lie in SCRATCH at a multiple of 64 bytes|source")
    integers = replace(SHORT, dtype=DType.INT16, redop=RedOp.AVG)

    def make(op: Op) -> Op:
        if not isinstance(op, Reduce):
            return op
        return replace(op, target=replace(op.target, scale=1))

    refused(integers, 0, make, "has no partial folds")
    with pytest.raises(PlanError, match="4 times a chunk is more than 131072 bytes"):
        large = replace(SHORT, dtype=DType.FLOAT8_E5M2, count=65536, chunk_bytes=65536)
        verify_plans(plans_of(large))


# --- what crosses the wire ----------------------------------------------------------------------


def wire_bytes(call: Call, hosts: Sequence[int]) -> list[int]:
    """What each rank sends to other hosts."""
    placement = place(hosts, call.world)
    return [
        sum(
            op.source.size_bytes
            for op in plan.ops
            if isinstance(op, Send)
            and isinstance(op.to, ToPeer)
            and not placement.is_local(plan.rank, op.to.peer)
        )
        for plan in plans_of(call, hosts)
    ]


@pytest.mark.parametrize(
    ("kind", "algorithm", "dtype", "hosts", "shares"),
    [
        # In shares of the array, or of a part: what the page promises.
        (Kind.ALL_REDUCE, Algorithm.ONE_SHOT, DType.FLOAT32, TWO_BY_TWO, 2),
        (Kind.ALL_REDUCE, Algorithm.TWO_SHOT, DType.FLOAT32, TWO_BY_TWO, 1),
        (Kind.ALL_REDUCE, Algorithm.HIERARCHICAL_ONE_SHOT, DType.FLOAT32, TWO_BY_TWO, 1),
        (Kind.ALL_REDUCE, Algorithm.HIERARCHICAL, DType.FLOAT32, TWO_BY_TWO, 1 / 2),
        (Kind.ALL_REDUCE, Algorithm.HIERARCHICAL, DType.BFLOAT16, TWO_BY_TWO, 3 / 4),
        (Kind.ALL_REDUCE, Algorithm.HIERARCHICAL, DType.FLOAT32, (0, 0, 1, 1, 2, 2, 3, 3), 3 / 4),
        (Kind.ALL_GATHER, Algorithm.DIRECT, DType.FLOAT32, TWO_BY_TWO, 2),
        (Kind.ALL_GATHER, Algorithm.HIERARCHICAL, DType.FLOAT32, TWO_BY_TWO, 1),
        (Kind.REDUCE_SCATTER, Algorithm.DIRECT, DType.FLOAT32, TWO_BY_TWO, 2),
        (Kind.REDUCE_SCATTER, Algorithm.HIERARCHICAL, DType.FLOAT32, TWO_BY_TWO, 1),
    ],
)
def test_ranks_share_the_wire(
    kind: Kind, algorithm: Algorithm, dtype: DType, hosts: tuple[int, ...], shares: float
) -> None:
    call = make_call(kind, algorithm, len(hosts), dtype=dtype, count=1024 * len(hosts))
    assert wire_bytes(call, hosts) == [shares * call.count_bytes] * len(hosts)


def test_the_root_deals_with_one_rank_of_each_host() -> None:
    hosts = (0, 0, 1, 1, 2)
    call = make_call(Kind.BROADCAST, Algorithm.HIERARCHICAL, 5, count=1024, root=1)
    assert wire_bytes(call, hosts) == [0, 2 * 4096, 0, 0, 0]
    call = make_call(Kind.REDUCE, Algorithm.HIERARCHICAL, 5, count=1024, root=1)
    assert wire_bytes(call, hosts) == [0, 0, 4096, 0, 4096]


# --- what is chosen -----------------------------------------------------------------------------


def test_choice_over_hosts() -> None:
    limits = (HIERARCHICAL_ONE_SHOT_BYTES_MAX, HIERARCHICAL_ONE_SHOT_BYTES_MAX + 1)
    shared, three, two = place(TWO_BY_TWO, 4), place((0, 1, 2), 3), place((0, 1), 2)
    found = [choose(Kind.ALL_REDUCE, size, 4, placement=shared)[0] for size in limits]
    assert found == [Algorithm.HIERARCHICAL_ONE_SHOT, Algorithm.HIERARCHICAL]
    limits = (REMOTE_ONE_SHOT_BYTES_MAX, REMOTE_ONE_SHOT_BYTES_MAX + 1)
    found = [choose(Kind.ALL_REDUCE, size, 3, placement=three)[0] for size in limits]
    assert found == [Algorithm.ONE_SHOT, Algorithm.TWO_SHOT]
    assert choose(Kind.ALL_REDUCE, 2**30, 2, placement=two)[0] is Algorithm.ONE_SHOT
    assert choose(Kind.BARRIER, 0, 4, placement=shared)[0] is Algorithm.HIERARCHICAL
    assert choose(Kind.GATHER, 9, 4, placement=shared)[0] is Algorithm.DIRECT
    forced = choose(Kind.BROADCAST, 9, 4, placement=shared, forced=Algorithm.DIRECT)
    assert forced[0] is Algorithm.DIRECT
    # Measured on one host.
    rules = {(4, Kind.ALL_REDUCE): (Rule(None, Algorithm.LEND, 64),)}
    found_rule = choose(Kind.ALL_REDUCE, 9, 4, placement=shared, selection=Selection(rules=rules))
    assert found_rule == choose(Kind.ALL_REDUCE, 9, 4, placement=shared)
    spread = Selection(rules={((2, 2), Kind.ALL_REDUCE): (Rule(8, Algorithm.TWO_SHOT, 64),)})
    for size, is_ruled in ((8, True), (9, False)):
        found_rule = choose(Kind.ALL_REDUCE, size, 4, placement=shared, selection=spread)
        assert (found_rule == (Algorithm.TWO_SHOT, 64)) == is_ruled
        assert found_rule[0] is not choose(Kind.ALL_REDUCE, size, 4, selection=spread)[0]


def test_chunks_are_limited_between_hosts() -> None:
    shared = place(TWO_BY_TWO, 4)
    assert limit_chunk(131072, 4, place((), 4)) == 131072
    for scale in (0, 1, 2, 4):
        size = limit_chunk(131072, scale, shared)
        assert size * max(1, scale) == REMOTE_CHUNK_BYTES_MAX and size % CHUNK_ALIGN == 0
    assert limit_chunk(64, 4, shared) == 64


@pytest.mark.parametrize(
    "hosts", [(0,) * 128 + (1,) * 128, tuple(range(64)) * 4, (0, *range(255)), tuple(range(256))]
)
def test_every_choice_over_hosts_can_be_compiled(hosts: tuple[int, ...]) -> None:
    placement = place(hosts, 256)
    for kind in Kind:
        if kind is Kind.NONE or (kind in PREFIXES and placement.host_count > 128):
            continue
        for nbytes in (0, 65536) if kind is not Kind.BARRIER else (0,):
            algorithm, chunk_bytes = choose(kind, nbytes, 256, placement=placement)
            call = Call(kind, RedOp.SUM, DType.FLOAT32, nbytes // 4, 0, 256, algorithm, chunk_bytes)
            for rank in (0, 255):
                plan = build_plan(call, rank, hosts=hosts)
                assert plan.lane_count <= 256 and 1 <= len(plan.ops) <= 1024


# --- the reference ----------------------------------------------------------------------------


def test_reference_folds_by_host() -> None:
    ones = [np.array([2.0**24 if rank == 0 else 1.0], np.float32) for rank in range(4)]
    assert reference.fold(ones, "sum")[0] == 2.0**24
    assert reference.fold(ones, "sum", hosts=(0, 0, 1, 1))[0] == 2.0**24 + 2
    assert reference.fold(ones, "max", hosts=(0, 0, 1, 1))[0] == 2.0**24
    complex_ones = [(one + 1j * one).astype(np.complex64) for one in ones]
    average = reference.fold(complex_ones, "avg", hosts=(0, 0, 1, 1))
    assert average[0] == (2.0**24 + 2) / 4 * (1 + 1j)
