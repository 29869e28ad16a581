"""Calls and the choice of algorithm and chunk size."""

from __future__ import annotations

from typing import Any

import pytest

from jetstream.collectives.calls import CHUNK_ALIGN, CHUNK_BYTES_MAX, RANKS_MAX, Call
from jetstream.collectives.compile import build_plan
from jetstream.collectives.select import CHUNK_BYTES, ONE_SHOT_BYTES_MAX, algorithms_of, choose
from jetstream.dtypes import Algorithm, DType, Kind, RedOp
from jetstream.errors import ArgumentError, PlanError

REAL_KINDS = [kind for kind in Kind if kind is not Kind.NONE]


def make_call(kind: Kind = Kind.ALL_REDUCE, **changes: Any) -> Call:
    fields: dict[str, Any] = {
        "redop": RedOp.SUM,
        "dtype": DType.FLOAT32,
        "count": 0 if kind is Kind.BARRIER else 6,
        "root": 0,
        "world": 3,
        "algorithm": algorithms_of(kind)[0],
        "chunk_bytes": 64,
    }
    return Call(kind=kind, **(fields | changes))


@pytest.mark.parametrize(
    ("call", "text", "input_bytes", "output_bytes"),
    [
        (make_call(), "all_reduce(float32, sum, count=6)", 24, 24),
        (make_call(Kind.ALL_GATHER), "all_gather(float32, count=6)", 24, 72),
        (
            make_call(Kind.REDUCE_SCATTER, redop=RedOp.AVG),
            "reduce_scatter(float32, avg, count=6)",
            72,
            24,
        ),
        (make_call(Kind.BROADCAST, root=2), "broadcast(float32, count=6, root=2)", 24, 24),
        (make_call(Kind.BARRIER), "barrier()", 0, 0),
    ],
)
def test_description_and_sizes(call: Call, text: str, input_bytes: int, output_bytes: int) -> None:
    assert call.describe() == text
    assert (call.input_bytes, call.output_bytes) == (input_bytes, output_bytes)
    assert call.divisor == (3 if call.redop is RedOp.AVG else 1)


@pytest.mark.parametrize(
    ("kind", "changes", "text"),
    [
        (Kind.ALL_REDUCE, {"world": 0}, "0 ranks"),
        (Kind.ALL_REDUCE, {"world": RANKS_MAX + 1}, "257 ranks"),
        (Kind.BROADCAST, {"root": 3}, "root 3 of 3 ranks"),
        (Kind.BROADCAST, {"root": -1}, "root -1"),
        (Kind.ALL_REDUCE, {"root": 1}, "root 1"),
        (Kind.ALL_REDUCE, {"count": -1}, "-1 elements"),
        (Kind.BARRIER, {"count": 1}, "1 elements"),
        (Kind.ALL_GATHER, {"count": 2**60}, "larger than memory"),
        (Kind.ALL_REDUCE, {"chunk_bytes": 0}, "chunks of 0 bytes"),
        (Kind.ALL_REDUCE, {"chunk_bytes": 96}, "chunks of 96 bytes"),
        (Kind.ALL_REDUCE, {"chunk_bytes": CHUNK_BYTES_MAX + 64}, "chunks of 32832 bytes"),
    ],
)
def test_impossible_calls_are_refused(kind: Kind, changes: dict[str, int], text: str) -> None:
    with pytest.raises(PlanError, match=text):
        make_call(kind, **changes)


def test_compiling_refuses_what_does_not_exist() -> None:
    with pytest.raises(PlanError, match="rank 3 of 3 ranks"):
        build_plan(make_call(), 3)
    with pytest.raises(PlanError, match=r"broadcast.* has no algorithm two_shot"):
        build_plan(make_call(Kind.BROADCAST, algorithm=Algorithm.TWO_SHOT), 0)


@pytest.mark.parametrize("kind", REAL_KINDS)
@pytest.mark.parametrize("world", [1, 2, 3, 5, 16, 64, 256])
def test_every_choice_can_be_compiled(kind: Kind, world: int) -> None:
    for nbytes in (0, 4, 8192, 65536, 2**20, 2**32):
        algorithm, chunk_bytes = choose(kind, nbytes, world)
        count = 0 if kind is Kind.BARRIER else nbytes // 4
        call = make_call(
            kind, world=world, count=count, algorithm=algorithm, chunk_bytes=chunk_bytes
        )
        assert build_plan(call, world - 1).ops


def test_all_reduce_changes_algorithm_at_the_threshold() -> None:
    for world, limit in ONE_SHOT_BYTES_MAX:
        assert choose(Kind.ALL_REDUCE, limit, world)[0] is Algorithm.ONE_SHOT
        assert choose(Kind.ALL_REDUCE, limit + 1, world)[0] is Algorithm.TWO_SHOT


def test_chunks_grow_with_the_operation() -> None:
    limits = [limit for limit, _ in CHUNK_BYTES if limit is not None]
    sizes = [size for _, size in CHUNK_BYTES]
    assert limits == sorted(limits) and sizes == sorted(sizes)
    assert all(size % CHUNK_ALIGN == 0 and size <= CHUNK_BYTES_MAX for size in sizes)
    for limit, size in zip(limits, sizes, strict=False):
        assert choose(Kind.BROADCAST, limit, 2)[1] == size
        assert choose(Kind.BROADCAST, limit + 1, 2)[1] > size
        # Of two-shot, each operation works on a shard.
        assert choose(Kind.ALL_REDUCE, 4 * limit, 4, forced=Algorithm.TWO_SHOT)[1] == size


def test_the_choice_can_be_forced() -> None:
    assert choose(Kind.ALL_REDUCE, 8, 2, forced=Algorithm.TWO_SHOT)[0] is Algorithm.TWO_SHOT
    assert choose(Kind.ALL_REDUCE, 2**30, 2, forced=Algorithm.ONE_SHOT)[0] is Algorithm.ONE_SHOT
    with pytest.raises(ArgumentError, match="broadcast has no algorithm two_shot, only direct"):
        choose(Kind.BROADCAST, 8, 2, forced=Algorithm.TWO_SHOT)


def test_limits_are_those_of_the_data_plane() -> None:
    lib = pytest.importorskip("jetstream._native", reason="the data plane is not built").lib
    assert CHUNK_BYTES_MAX == lib.JS_PLAN_CHUNK_BYTES_MAX
    assert CHUNK_ALIGN == lib.JS_PLAN_CHUNK_ALIGN
    assert RANKS_MAX == lib.JS_RANKS_MAX
