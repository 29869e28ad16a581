"""The verifier proves every plan that the compiler makes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jetstream.collectives import builder
from jetstream.collectives.algorithms import ALGORITHMS, HIERARCHICAL, two_shot
from jetstream.collectives.calls import COUNTED, PREFIXES, REDUCING, ROOTED, Call
from jetstream.collectives.parts import Splits
from jetstream.collectives.verify import verify_call
from jetstream.dtypes import Algorithm, DType, Kind, RedOp
from jetstream.errors import PlanError

CHUNK_BYTES = 64
CHUNK_COUNT = CHUNK_BYTES // DType.FLOAT32.itemsize


REDOPS = [redop for redop in RedOp if redop is not RedOp.AVG]


def make_call(
    kind: Kind, algorithm: Algorithm, world: int, count: int, *, root: int = 0, **parts: Any
) -> Call:
    return Call(
        kind=kind,
        redop=RedOp.SUM,
        dtype=DType.FLOAT32,
        count=count,
        root=root,
        world=world,
        algorithm=algorithm,
        chunk_bytes=CHUNK_BYTES,
        **parts,
    )


def counts(algorithm: Algorithm, world: int) -> list[int]:
    """Nothing, one element, less than a chunk, and 1, 2, 3 chunks per operation, ragged or not."""
    parts = world if algorithm is Algorithm.TWO_SHOT else 1
    chunks = [CHUNK_COUNT, CHUNK_COUNT + 1, 2 * CHUNK_COUNT, 3 * CHUNK_COUNT - 1]
    return [0, 1, 7, *(parts * count for count in chunks), 3 * parts * CHUNK_COUNT - 5]


@pytest.mark.parametrize("world", [*range(1, 10), 12, 16])
@pytest.mark.parametrize(("kind", "algorithm"), ALGORITHMS)
def test_proves_plans(kind: Kind, algorithm: Algorithm, world: int) -> None:
    for count in [0] if kind is Kind.BARRIER else counts(algorithm, world):
        for root in {0, world // 2, world - 1} if kind in ROOTED else {0}:
            verify_call(make_call(kind, algorithm, world, count, root=root))


@pytest.mark.parametrize("chunks", [0, 2])
@pytest.mark.parametrize(("kind", "algorithm"), ALGORITHMS)
def test_proves_plans_of_64_ranks(kind: Kind, algorithm: Algorithm, chunks: int) -> None:
    parts = 64 if algorithm is Algorithm.TWO_SHOT else 1
    count = max(0, chunks * parts * CHUNK_COUNT - 3)
    verify_call(make_call(kind, algorithm, 64, 0 if kind is Kind.BARRIER else count))


def unequal_counts(world: int, turn: int) -> tuple[int, ...]:
    """Nothing, one element, a chunk, several, ragged: another order for every turn."""
    sizes = (0, 1, CHUNK_COUNT, 3 * CHUNK_COUNT - 5, CHUNK_COUNT + 1, 7)
    return tuple(sizes[(rank * 5 + turn) % len(sizes)] for rank in range(world))


@pytest.mark.parametrize("world", [*range(2, 17), 64])
@pytest.mark.parametrize("kind", sorted(COUNTED))
def test_proves_plans_with_counts(kind: Kind, world: int) -> None:
    for turn in range(3 if world < 64 else 1):
        counts = unequal_counts(world, turn)
        for root in {0, world - 1} if kind in ROOTED else {0}:
            call = make_call(kind, Algorithm.DIRECT, world, sum(counts), root=root, counts=counts)
            verify_call(call)


def splits_of(world: int, turn: int) -> list[Splits]:
    """All ranks' splits, from a matrix whose rows and columns differ."""
    rows = [unequal_counts(world, turn + 2 * rank) for rank in range(world)]
    columns = list(zip(*rows, strict=True))
    return [Splits(rows[rank], columns[rank]) for rank in range(world)]


@pytest.mark.parametrize("world", [*range(1, 17), 64])
def test_proves_plans_with_splits(world: int) -> None:
    call = make_call(Kind.ALL_TO_ALL, Algorithm.DIRECT, world, 0, has_splits=True)
    for turn in range(4 if world < 64 else 1):
        verify_call(call, splits_of(world, turn))
    verify_call(call, [Splits((0,) * world, (0,) * world)] * world)


@pytest.mark.parametrize("peer_lanes_max", [1, 2, 3])
@pytest.mark.parametrize(("kind", "algorithm"), ALGORITHMS)
def test_proves_plans_whose_peers_share_lanes(
    kind: Kind, algorithm: Algorithm, peer_lanes_max: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Worlds above 128 ranks share lanes; a lower limit shows the same in a small world.
    monkeypatch.setattr(builder, "_PEER_LANES_MAX", peer_lanes_max)
    count = 0 if kind is Kind.BARRIER else 7 * 3 * CHUNK_COUNT
    verify_call(make_call(kind, algorithm, 7, count))


#: The host of each rank: one each, some each, as many or not, one after the other or in turns.
PLACEMENTS = [
    (0, 1),
    (0, 1, 2),
    (0, 0, 1, 1),
    (0, 1, 0, 1),
    (0, 1, 1),
    (2, 0, 2, 1, 0, 1),
    (0, 1, 1, 2, 2, 2),
    (0, 1, 2, 3, 1, 0, 2),
]
#: Reductions with partial folds as large as elements, larger, and with none.
FOLDS = [
    (DType.FLOAT32, RedOp.SUM),
    (DType.BFLOAT16, RedOp.AVG),
    (DType.FLOAT8_E5M2, RedOp.PROD),
    (DType.FLOAT16, RedOp.MAX),
    (DType.INT16, RedOp.AVG),
]


@pytest.mark.parametrize("hosts", PLACEMENTS)
@pytest.mark.parametrize(("kind", "algorithm"), [*ALGORITHMS, *HIERARCHICAL])
def test_proves_plans_over_hosts(kind: Kind, algorithm: Algorithm, hosts: tuple[int, ...]) -> None:
    world = len(hosts)
    is_long = algorithm is Algorithm.HIERARCHICAL
    other = FOLDS[1 + PLACEMENTS.index(hosts) % (len(FOLDS) - 1)]
    for dtype, redop in (FOLDS[0], other) if kind in REDUCING else FOLDS[:1]:
        redop = RedOp.SUM if redop is RedOp.AVG and kind in PREFIXES else redop
        step = CHUNK_BYTES // dtype.itemsize
        sizes = (1, world * step + 5, *((5 * world * step,) if is_long else ()))
        for count in [0] if kind is Kind.BARRIER else sizes:
            for root in {0, world - 1} if kind in ROOTED else {0}:
                call = make_call(kind, algorithm, world, count, root=root)
                verify_call(replace(call, dtype=dtype, redop=redop), hosts=hosts)


@pytest.mark.parametrize("kind", [Kind.ALL_GATHER, Kind.REDUCE_SCATTER])
def test_proves_hierarchical_plans_with_counts(kind: Kind) -> None:
    for turn, hosts in enumerate(PLACEMENTS):
        counts = unequal_counts(len(hosts), turn)
        call = make_call(kind, Algorithm.HIERARCHICAL, len(hosts), sum(counts), counts=counts)
        verify_call(call, hosts=hosts)


def test_proves_splits_over_hosts() -> None:
    call = make_call(Kind.ALL_TO_ALL, Algorithm.DIRECT, 5, 0, has_splits=True)
    verify_call(call, splits_of(5, 1), hosts=(0, 1, 0, 1, 1))


@pytest.mark.parametrize("lanes_max", [1, 2])
@pytest.mark.parametrize(("kind", "algorithm"), [*ALGORITHMS, *HIERARCHICAL])
def test_proves_plans_over_hosts_whose_peers_share_lanes(
    kind: Kind, algorithm: Algorithm, lanes_max: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builder, "_PEER_LANES_MAX_REMOTE", lanes_max)
    monkeypatch.setattr(builder, "_PARTIAL_LANES_MAX", lanes_max)
    hosts = (0, 1, 2, 2, 1, 0, 3, 3)
    if kind in PREFIXES:
        with pytest.raises(PlanError, match=r"scan\(.*\): \d hosts are too many"):
            verify_call(make_call(kind, algorithm, 8, 1), hosts=hosts)
        return
    count = 0 if kind is Kind.BARRIER else 8 * 3 * CHUNK_COUNT
    verify_call(make_call(kind, algorithm, 8, count), hosts=hosts)


@st.composite
def calls(draw: st.DrawFn) -> Call:
    kind, algorithm = draw(st.sampled_from(list(ALGORITHMS)))
    world = draw(st.integers(1, 9))
    chunk_bytes = CHUNK_BYTES * draw(st.integers(1, 3))
    dtype = draw(st.sampled_from(DType))
    redops = [op for op in dtype.redops if kind not in PREFIXES or op is not RedOp.AVG]
    largest = 4 * chunk_bytes * (world if algorithm is Algorithm.TWO_SHOT else 1)
    return Call(
        kind=kind,
        redop=draw(st.sampled_from(redops)),
        dtype=dtype,
        count=0 if kind is Kind.BARRIER else draw(st.integers(0, largest // dtype.itemsize)),
        root=draw(st.integers(0, world - 1)) if kind in ROOTED else 0,
        world=world,
        algorithm=algorithm,
        chunk_bytes=chunk_bytes,
    )


@given(call=calls())
@settings(max_examples=100, deadline=None, database=None)
def test_proves_plans_of_any_call(call: Call) -> None:
    verify_call(call)


@given(
    elements=st.integers(0, 5000), itemsize=st.sampled_from([1, 2, 4, 8]), world=st.integers(1, 99)
)
def test_shards_cover_the_array_once_and_evenly(elements: int, itemsize: int, world: int) -> None:
    total_bytes = elements * itemsize
    parts = two_shot.shards(total_bytes, world)
    assert len(parts) == world
    assert [low for low, _ in parts[1:]] == [low + size for low, size in parts[:-1]]
    assert parts[0][0] == 0 and sum(parts[-1]) == total_bytes
    assert all(low % 64 == 0 or low == total_bytes for low, _ in parts)
    lines = [-(-size // 64) for _, size in parts]
    assert max(lines) - min(lines) <= 1
