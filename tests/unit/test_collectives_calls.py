"""Calls and the choice of algorithm and chunk size."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetstream import config
from jetstream.collectives import Splits, parts
from jetstream.collectives.algorithms import ALGORITHMS
from jetstream.collectives.calls import CHUNK_ALIGN, CHUNK_BYTES_MAX, RANKS_MAX, ROOTED, Call
from jetstream.collectives.compile import build_plan
from jetstream.collectives.ir import Send
from jetstream.collectives.select import (
    BUILT_IN,
    CHUNK_BYTES,
    ONE_SHOT_BYTES_MAX,
    ONE_SHOT_BYTES_MAX_CROWDED,
    REDUCE_DIRECT,
    Rule,
    Selection,
    algorithms_of,
    choose,
    is_crowded,
)
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
        (make_call(Kind.ALL_TO_ALL), "all_to_all(float32, count=6)", 72, 72),
        (make_call(Kind.REDUCE, root=1), "reduce(float32, sum, count=6, root=1)", 24, 24),
        (make_call(Kind.REDUCE), "reduce(float32, sum, count=6, root=0)", 24, 0),
        (make_call(Kind.GATHER, root=1), "gather(float32, count=6, root=1)", 24, 72),
        (make_call(Kind.GATHER, root=2), "gather(float32, count=6, root=2)", 24, 0),
        (make_call(Kind.SCATTER, root=1), "scatter(float32, count=6, root=1)", 72, 24),
        (make_call(Kind.SCATTER, root=2), "scatter(float32, count=6, root=2)", 0, 24),
        (make_call(Kind.SCAN), "scan(float32, sum, count=6)", 24, 24),
        (make_call(Kind.EXSCAN, redop=RedOp.MAX), "exscan(float32, max, count=6)", 24, 24),
        (
            make_call(Kind.ALL_GATHER, counts=(1, 2, 3)),
            "all_gather(float32, counts=[1, 2, 3])",
            8,
            24,
        ),
        (
            make_call(Kind.REDUCE_SCATTER, counts=(0, 5, 1)),
            "reduce_scatter(float32, sum, counts=[0, 5, 1])",
            24,
            20,
        ),
    ],
)
def test_description_and_sizes(call: Call, text: str, input_bytes: int, output_bytes: int) -> None:
    assert call.describe() == text
    assert (call.input_bytes(1), call.output_bytes(1)) == (input_bytes, output_bytes)
    assert call.divisor == (3 if call.redop is RedOp.AVG else 1)


@pytest.mark.parametrize(
    ("kind", "changes", "text"),
    [
        (Kind.ALL_REDUCE, {"world": 0}, "0 ranks"),
        (Kind.ALL_REDUCE, {"world": RANKS_MAX + 1}, "257 ranks"),
        (Kind.BROADCAST, {"root": 3}, "root 3 of 3 ranks"),
        (Kind.BROADCAST, {"root": -1}, "root -1"),
        (Kind.ALL_REDUCE, {"root": 1}, "root 1"),
        (Kind.GATHER, {"root": 3}, "root 3 of 3 ranks"),
        (Kind.SCAN, {"root": 1}, "root 1"),
        (Kind.SCAN, {"redop": RedOp.AVG}, "no average of a prefix"),
        (Kind.EXSCAN, {"redop": RedOp.AVG}, "no average of a prefix"),
        (Kind.ALL_REDUCE, {"counts": (1, 2, 3)}, "the kind has no counts"),
        (Kind.ALL_TO_ALL, {"counts": (1, 2, 3)}, "the kind has no counts"),
        (Kind.ALL_GATHER, {"counts": (1, 5)}, "3 counts, zero or more"),
        (Kind.ALL_GATHER, {"counts": (-1, 5, 2)}, "3 counts, zero or more"),
        (Kind.ALL_GATHER, {"counts": (1, 2, 4)}, "do not add up to 6"),
        (Kind.ALL_GATHER, {"counts": (2, 2, 2)}, "written without counts"),
        (Kind.ALL_GATHER, {"has_splits": True, "count": 0}, "only all_to_all has splits"),
        (Kind.ALL_TO_ALL, {"has_splits": True}, "6 elements"),
        (Kind.ALL_TO_ALL, {"count": 2**60}, "larger than memory"),
        (Kind.ALL_REDUCE, {"count": -1}, "-1 elements"),
        (Kind.BARRIER, {"count": 1}, "1 elements"),
        (Kind.ALL_GATHER, {"count": 2**60}, "larger than memory"),
        (Kind.ALL_REDUCE, {"chunk_bytes": 0}, "chunks of 0 bytes"),
        (Kind.ALL_REDUCE, {"chunk_bytes": 96}, "chunks of 96 bytes"),
        (Kind.ALL_REDUCE, {"chunk_bytes": CHUNK_BYTES_MAX + 64}, "chunks of 131136 bytes"),
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


def test_splits_are_checked() -> None:
    call = make_call(Kind.ALL_TO_ALL, count=0, has_splits=True)
    with pytest.raises(PlanError, match="splits are needed"):
        build_plan(call, 0)
    with pytest.raises(PlanError, match="splits are needed"):
        build_plan(make_call(Kind.ALL_TO_ALL), 0, Splits((1, 1, 1), (1, 1, 1)))
    for bad in ((1, 2), (1, -1, 2), (1, 2**32, 2)):
        with pytest.raises(PlanError, match="3 splits from 0 to 4294967295 are needed"):
            build_plan(call, 0, Splits(bad, (1, 1, 1)))
        with pytest.raises(PlanError, match="3 splits from 0"):
            build_plan(call, 0, Splits((1, 1, 1), bad))
    with pytest.raises(PlanError, match="rank 1 sends 5 elements to itself and awaits 1"):
        build_plan(call, 1, Splits((1, 5, 1), (1, 1, 1)))
    assert call.input_bytes(1, Splits((1, 5, 2), (7, 5, 0))) == 32
    assert call.output_bytes(1, Splits((1, 5, 2), (7, 5, 0))) == 48


@given(counts=st.lists(st.integers(0, 2**40), min_size=1, max_size=70).map(tuple))
def test_counts_travel_in_one_word(counts: tuple[int, ...]) -> None:
    word = parts.pack_counts(counts)
    assert 0 < word < 2**63 + 2**62
    assert word == parts.pack_counts(counts)
    if parts.is_packed(word):
        assert parts.unpack_counts(word, len(counts)) == counts
    else:
        assert max(counts) >> 62 // len(counts)
    for rank in range(len(counts)):
        other = (*counts[:rank], counts[rank] + 1, *counts[rank + 1 :])
        assert parts.pack_counts(other) != word


def test_words_of_parts_are_those_of_the_data_plane() -> None:
    lib = pytest.importorskip("jetstream._native", reason="the data plane is not built").lib
    assert parts.pack_counts(()) == 0
    assert parts.pack_counts((1, 2)) >> lib.JS_PARTS_SHIFT == lib.JS_PARTS_PACKED
    assert parts.pack_counts((1, 2**60)) >> lib.JS_PARTS_SHIFT == lib.JS_PARTS_HASHED
    assert parts.PARTS_SPLITS >> lib.JS_PARTS_SHIFT == lib.JS_PARTS_SPLITS
    assert list(Kind) == [getattr(lib, f"JS_KIND_{kind.name}") for kind in Kind]


def test_long_counts_are_cut_in_texts() -> None:
    assert parts.format_counts((3, 0)) == "[3, 0]"
    assert parts.format_counts(range(17)).endswith("14, 15, ...]")


#: Bytes that a rank sends and reads, operations of its plan, as docs/algorithms.md has them: by
#: world, rank, root and bytes of a part.
COSTS: dict[tuple[Kind, Algorithm], Callable[[int, int, int, int], tuple[int, int, int]]] = {
    (Kind.ALL_REDUCE, Algorithm.ONE_SHOT): lambda n, r, root, b: (b, n * b, 2),
    (Kind.ALL_REDUCE, Algorithm.TWO_SHOT): lambda n, r, root, b: (b, 2 * b - b // n, 2 * n),
    (Kind.ALL_REDUCE, Algorithm.LEND): lambda n, r, root, b: (
        (b - b // n, 2 * b - b // n, 2 * n - 1)
    ),
    (Kind.ALL_GATHER, Algorithm.DIRECT): lambda n, r, root, b: (b, n * b, n + 1),
    (Kind.REDUCE_SCATTER, Algorithm.DIRECT): lambda n, r, root, b: ((n - 1) * b, n * b, n),
    (Kind.ALL_TO_ALL, Algorithm.DIRECT): lambda n, r, root, b: ((n - 1) * b, n * b, 2 * n - 1),
    (Kind.BROADCAST, Algorithm.DIRECT): lambda n, r, root, b: (b, b, 2) if r == root else (0, b, 1),
    (Kind.REDUCE, Algorithm.DIRECT): lambda n, r, root, b: (
        (0, n * b, 1) if r == root else (b, 0, 1)
    ),
    (Kind.REDUCE, Algorithm.TWO_SHOT): lambda n, r, root, b: (
        (b - b // n, 2 * b - b // n, 2 * n - 1) if r == root else (b, b, n + 1)
    ),
    (Kind.GATHER, Algorithm.DIRECT): lambda n, r, root, b: (
        (0, n * b, n) if r == root else (b, 0, 1)
    ),
    (Kind.SCATTER, Algorithm.DIRECT): lambda n, r, root, b: (
        ((n - 1) * b, b, n) if r == root else (0, b, 1)
    ),
    (Kind.SCAN, Algorithm.DIRECT): lambda n, r, root, b: ((n - 1 - r) * b, (r + 1) * b, n - r),
    (Kind.EXSCAN, Algorithm.DIRECT): lambda n, r, root, b: (
        ((n - 1 - r) * b, r * b, n - r if r else n - 1)
    ),
    (Kind.BARRIER, Algorithm.DIRECT): lambda n, r, root, b: (0, 0, n),
}


@pytest.mark.parametrize(("kind", "algorithm"), ALGORITHMS)
def test_costs_are_those_of_the_page(kind: Kind, algorithm: Algorithm) -> None:
    for world in (2, 3, 5):
        count = 0 if kind is Kind.BARRIER else 16 * world  # one cache line a shard
        root = world - 1 if kind in ROOTED else 0
        call = make_call(kind, algorithm=algorithm, world=world, root=root, count=count)
        for rank in range(world):
            ops = build_plan(call, rank).ops
            sent = sum(op.bytes for op in ops if isinstance(op, Send))
            read = sum(op.bytes * len(op.sources) for op in ops if not isinstance(op, Send))
            wanted = COSTS[kind, algorithm](world, rank, root, call.count_bytes)
            assert (sent, read, len(ops)) == wanted, (world, rank)


def test_algorithms_can_be_forced_for_every_kind() -> None:
    assert sorted(config.KINDS) == sorted(kind.label for kind in REAL_KINDS)
    assert set(config.ALGORITHMS) == {algorithm.label for algorithm in Algorithm}


@pytest.mark.parametrize("kind", REAL_KINDS)
@pytest.mark.parametrize("world", [1, 2, 3, 5, 16, 64, 256])
def test_every_choice_can_be_compiled(kind: Kind, world: int) -> None:
    sizes = (0, 4, 8192, 65536, 2**20, 2**32)
    for nbytes, selection in itertools.product(sizes, (BUILT_IN, CROWDED)):
        algorithm, chunk_bytes = choose(kind, nbytes, world, selection=selection)
        count = 0 if kind is Kind.BARRIER else nbytes // 4
        call = make_call(
            kind, world=world, count=count, algorithm=algorithm, chunk_bytes=chunk_bytes
        )
        assert build_plan(call, world - 1).ops


CROWDED = Selection(crowded=True)


@pytest.mark.parametrize("world", [2, 3, 64])
def test_all_reduce_changes_algorithm_at_the_threshold(world: int) -> None:
    for selection, limit in (
        (BUILT_IN, ONE_SHOT_BYTES_MAX),
        (CROWDED, ONE_SHOT_BYTES_MAX_CROWDED),
    ):
        below = choose(Kind.ALL_REDUCE, limit, world, selection=selection)
        above = choose(Kind.ALL_REDUCE, limit + 1, world, selection=selection)
        assert (below[0], above[0]) == (Algorithm.ONE_SHOT, Algorithm.LEND)


def test_reduce_changes_algorithm_in_large_worlds() -> None:
    world, limit = REDUCE_DIRECT
    assert choose(Kind.REDUCE, 2**30, world)[0] is Algorithm.DIRECT
    assert choose(Kind.REDUCE, limit, world + 1)[0] is Algorithm.DIRECT
    assert choose(Kind.REDUCE, limit + 1, world + 1)[0] is Algorithm.TWO_SHOT
    assert choose(Kind.REDUCE, 2**30, world + 1, selection=CROWDED)[0] is Algorithm.DIRECT


@pytest.mark.parametrize(
    ("cpus", "crowded"),
    [
        ([{0, 1}, {0, 1}], False),
        ([{0, 1}, {0, 1}, {0, 1}], False),
        ([{0, 1}] * 4, True),
        ([{0}, {1}], False),
        ([{0}, {0}], True),
        ([{0}, {0}, {1}, {2, 3}], True),
        ([set(range(16))] * 24, False),
        ([set(range(16))] * 25, True),
    ],
)
def test_crowded(cpus: list[set[int]], crowded: bool) -> None:
    assert is_crowded(tuple(map(frozenset, cpus))) is crowded


def test_rules_come_before_the_tables() -> None:
    rules = (Rule(1000, Algorithm.LEND, 4096), Rule(None, Algorithm.ONE_SHOT, 128))
    selection = Selection(rules={(3, Kind.ALL_REDUCE): rules})
    pick = partial(choose, Kind.ALL_REDUCE, selection=selection)
    assert pick(0, 3) == pick(1000, 3) == (Algorithm.LEND, 4096)
    assert pick(1001, 3) == pick(2**40, 3) == (Algorithm.ONE_SHOT, 128)
    # What is forced keeps its measured chunk size if it is the one that was measured.
    assert pick(1000, 3, forced=Algorithm.LEND) == (Algorithm.LEND, 4096)
    assert pick(1000, 3, forced=Algorithm.ONE_SHOT) == choose(Kind.ALL_REDUCE, 1000, 3)
    # Other worlds and kinds have no rules.
    assert pick(1000, 2) == choose(Kind.ALL_REDUCE, 1000, 2)
    assert choose(Kind.REDUCE, 1, 3, selection=selection) == choose(Kind.REDUCE, 1, 3)


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
