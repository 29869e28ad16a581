"""Collectives over hosts whose links lose, repeat, reorder and damage frames: the bits stay right.

Every rank holds its results against what the placement promises (``reference.fold``), and the same
program on one host must have given the same bits wherever the placement does not change the order
of folding: with one rank on each host everywhere. ``--full-matrix`` tries 2, 3 and 4 hosts of 1 and
2 ranks, each link, each share of frames that the kernel drops, and the faults of the link itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from hashlib import blake2b
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

import jetstream
from jetstream.testing import NoNetworkError, RankPool, reference

Array = NDArray[Any]
Key = tuple[str, str, str, int, str]

LINKS = ("udp", "packet", "xdp")
DROPS = (0.001, 0.01, 0.05)
FAULTS = "drop=0.01,dup=0.02,reorder=0.03,corrupt=0.01,seed=11"
PLACEMENTS = tuple(
    tuple(rank // width for rank in range(hosts * width)) for hosts in (2, 3, 4) for width in (1, 2)
)
#: The ordinary run: each link, each kind of disturbance, one and two ranks on a host.
SHORT = (
    ("udp", (0, 0, 1, 1), 0.05),
    ("packet", (0, 1), 0.05),
    ("packet", (0, 1, 2), FAULTS),
    ("xdp", (0, 1), 0.05),
)
ALGORITHMS = ("one_shot", "two_shot", "lend", "hierarchical", "hierarchical_one_shot")
#: Every element type, every reduction, every size of a partial fold.
REDUCTIONS = (
    *(("float32", "sum"), ("float32", "avg"), ("float64", "prod"), ("bfloat16", "sum")),
    *(("float16", "avg"), ("float8_e5m2", "prod"), ("float8_e4m3fn", "max"), ("int16", "avg")),
    *(("int8", "min"), ("int32", "sum"), ("int64", "band"), ("uint8", "bxor"), ("uint16", "bor")),
    *(("uint32", "prod"), ("uint64", "max"), ("bool", "sum")),
    *(("complex64", "prod"), ("complex128", "avg"), ("float32", "premul_sum")),
)
REDUCTIONS_SHORT = (("float32", "sum"), ("bfloat16", "avg"), ("int16", "prod"))
#: One frame, several frames, several chunks.
COUNTS = (7, 900, 20_000)
COUNTS_SHORT = (9000, 7)
PATIENCE_S = 300.0


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "disturbed" not in metafunc.fixturenames:
        return
    full = bool(metafunc.config.getoption("--full-matrix"))
    every = [(k, p, d) for p in PLACEMENTS for k in LINKS for d in (*DROPS, FAULTS)]
    cases = every if full else SHORT
    names = [f"{k}-{max(p) + 1}x{len(p) // (max(p) + 1)}-{d}" for k, p, d in cases]
    metafunc.parametrize("disturbed", [(*case, full) for case in cases], ids=names)


@cache
def contribution(dtype: str, count: int, rank: int) -> Array:
    """Values whose fold depends on the order and whose product stays finite."""
    values = np.random.default_rng([rank, count]).uniform(-1.5, 1.5, (count, 2))
    kind = np.dtype(getattr(ml_dtypes, dtype, None) or dtype)
    if kind.kind == "c":
        return (values @ [1, 1j]).astype(kind)
    if kind.kind in "iu":
        return (values[:, 0] * 90).astype(np.int64).astype(kind)
    return (values[:, 0] > 0 if kind.kind == "b" else values[:, 0]).astype(kind)


class Checker:
    """One rank's comparisons: with the reference, and what is needed for those with one host."""

    def __init__(self, comm: jetstream.Communicator, hosts: tuple[int, ...]) -> None:
        self.comm = comm
        self.hosts = hosts
        self.digests: dict[Key, bytes] = {}
        self.compared = 0

    def inputs(self, dtype: str, count: int) -> list[Array]:
        """Of all ranks."""
        return [contribution(dtype, count, rank) for rank in range(self.comm.size)]

    def fold(self, arrays: list[Array], op: str, *, is_digest: bool = False) -> Array:
        """What the placement promises for the first ranks."""
        scales = [rank + 2 for rank in range(len(arrays))] if op == "premul_sum" else None
        hosts = () if is_digest else self.hosts[: len(arrays)]
        return reference.fold(arrays, op, scales=scales, hosts=hosts)

    def check(self, key: Key, got: Array, right: Array, on_one_host: Array | None = None) -> None:
        """``on_one_host``: what one host promises, where that is something else."""
        self.compared += 1
        same = reference.same_bits(got.reshape(-1), right.reshape(-1))
        assert same, f"{key} on rank {self.comm.rank}"
        if on_one_host is None or reference.same_bits(right, on_one_host):
            self.digests[key] = blake2b(got.tobytes(), digest_size=16).digest()

    def check_fold(self, key: Key, got: Array, arrays: list[Array], op: str) -> None:
        self.check(key, got, self.fold(arrays, op), self.fold(arrays, op, is_digest=True))


def reduce_everything(checker: Checker, dtype: str, op: str, count: int) -> None:
    comm, root = checker.comm, count % checker.comm.size
    arrays = checker.inputs(dtype, count)
    x = arrays[comm.rank]
    scale = {"scale": comm.rank + 2} if op == "premul_sum" else {}

    def key(kind: str, algo: str | None = None) -> Key:
        return kind, dtype, op, count, str(algo)

    for algo in (None, *ALGORITHMS):
        got = comm.all_reduce(x.copy(), op, algo=algo, **scale)
        checker.check_fold(key("all_reduce", algo), got, arrays, op)
    for algo in (None, "direct", "two_shot"):
        got = comm.reduce(x.copy(), root, op, algo=algo, **scale)
        if comm.rank == root:
            checker.check_fold(key("reduce", algo), got, arrays, op)
    if op != "avg":
        got = comm.scan(x.copy(), op, **scale)
        checker.check_fold(key("scan"), got, arrays[: comm.rank + 1], op)
        got = comm.exscan(x.copy(), op, **scale)
        below = arrays[: comm.rank]
        if below:
            checker.check_fold(key("exscan"), got, below, op)
    parts = [count // comm.size + (rank == 1) for rank in range(comm.size)]
    for name, counts in (("even", [count // comm.size] * comm.size), ("uneven", parts)):
        end = sum(counts[: comm.rank + 1])
        own = slice(end - counts[comm.rank], end)
        given = np.resize(x, sum(counts))
        unequal = {} if name == "even" else {"counts": counts}
        got = comm.reduce_scatter(given, op, **unequal, **scale)
        pieces = [np.resize(array, sum(counts))[own] for array in arrays]
        checker.check_fold(key("reduce_scatter", name), got, pieces, op)


def move_everything(checker: Checker, dtype: str, count: int) -> None:
    comm, root, size = checker.comm, count % checker.comm.size, checker.comm.size
    arrays = checker.inputs(dtype, count)
    x = arrays[comm.rank]
    counts = [count - (rank == 0) for rank in range(size)]  # the first rank has one less
    cut = [array[:length] for array, length in zip(arrays, counts, strict=True)]

    def key(kind: str, parts: str = "even") -> Key:
        return kind, dtype, "", count, parts

    checker.check(key("broadcast"), comm.broadcast(x.copy(), root), arrays[root])
    checker.check(key("all_gather"), comm.all_gather(x), np.concatenate(arrays))
    got = comm.all_gather(cut[comm.rank], counts=counts)
    checker.check(key("all_gather", "uneven"), got, np.concatenate(cut))
    for name, own, sizes, whole in (
        ("even", x, None, arrays),
        ("uneven", cut[comm.rank], counts, cut),
    ):
        got = comm.gather(own, root, counts=sizes)
        if comm.rank == root:
            checker.check(key("gather", name), got, np.concatenate(whole))
        given = np.concatenate(whole) if comm.rank == root else None
        got = comm.scatter(given, root, out=np.empty_like(own), counts=sizes)
        checker.check(key("scatter", name), got, own)
    block = max(1, count // size)
    sent = [np.resize(array, block * size) for array in arrays]
    right = np.concatenate([array[comm.rank * block :][:block] for array in sent])
    checker.check(key("all_to_all"), comm.all_to_all(sent[comm.rank]), right)
    # Rank r sends r + j + 1 elements to rank j.
    splits = [comm.rank + other + 1 for other in range(size)]
    offset = [sum(r + j + 1 for j in range(comm.rank)) for r in range(size)]
    sent = [np.resize(array, sum(r + j + 1 for j in range(size))) for r, array in enumerate(arrays)]
    right = np.concatenate([sent[r][offset[r] :][: splits[r]] for r in range(size)])
    got = comm.all_to_all(sent[comm.rank], input_splits=splits, output_splits=splits)
    checker.check(key("all_to_all", "uneven"), got, right)
    comm.barrier()


def call_everything(
    comm: jetstream.Communicator, hosts: tuple[int, ...], full: bool
) -> tuple[dict[Key, bytes], dict[str, int]]:
    """Digests of what one host must give as well; the number of results held against the reference,
    and what has befallen the frames.
    """
    checker = Checker(comm, hosts)
    counts = COUNTS if full else COUNTS_SHORT
    reductions = REDUCTIONS if full else REDUCTIONS_SHORT
    for turn, (dtype, op) in enumerate(reductions):
        few = counts if full and turn < 4 else (counts[turn % len(counts)],)
        for count in few:
            reduce_everything(checker, dtype, op, count)
    for dtype in ("float32", "uint8") if full else ("uint8",):
        for count in counts:
            move_everything(checker, dtype, count)
    return checker.digests, {"compared": checker.compared} | losses(comm, hosts)


def losses(comm: jetstream.Communicator, hosts: tuple[int, ...]) -> dict[str, int]:
    if len(set(hosts)) == 1:
        return {}
    far = [rank for rank in range(comm.size) if hosts[rank] != hosts[comm.rank]]
    peers = [comm.peer_counters(rank) for rank in far]
    found = {
        name: sum(peer[name] for peer in peers)
        for name in ("frames_sent", "retransmits", "spurious", "duplicates", "timeouts")
    }
    return found | comm.link_counters()


class OneHost:
    """The digests of one host, made once for each number of ranks."""

    def __init__(self) -> None:
        self._made: dict[tuple[int, bool], list[dict[Key, bytes]]] = {}

    def __call__(self, world: int, full: bool) -> list[dict[Key, bytes]]:
        if (world, full) not in self._made:
            with RankPool(world, timeout_s=PATIENCE_S) as pool:
                results = pool.run(call_everything, (0,) * world, full)
            self._made[world, full] = [digests for digests, _ in results]
        return self._made[world, full]


@pytest.fixture(scope="module")
def on_one_host() -> Iterator[OneHost]:
    yield OneHost()


def test_bits_are_those_of_one_host(
    disturbed: tuple[str, tuple[int, ...], float | str, bool], on_one_host: OneHost
) -> None:
    link, hosts, disturbance, full = disturbed
    is_faults = isinstance(disturbance, str)
    how: dict[str, Any] = {"faults" if is_faults else "kernel_drop": disturbance}
    try:
        with RankPool(len(hosts), hosts=hosts, link=link, timeout_s=PATIENCE_S, **how) as pool:
            results = pool.run(call_everything, hosts, full)
    except NoNetworkError as error:
        pytest.skip(str(error))
    for rank, ((digests, _), single) in enumerate(
        zip(results, on_one_host(len(hosts), full), strict=True)
    ):
        wrong = [key for key, digest in digests.items() if single[key] != digest]
        assert not wrong, f"rank {rank}: not as on one host: {wrong[:5]}"
        assert digests
    befallen = {name: sum(found[name] for _, found in results) for name in results[0][1]}
    if disturbance != min(DROPS):
        assert befallen["retransmits"] > 0
    if is_faults:
        assert befallen["faults"] > 0 and befallen["refused_crc"] > 0
    print(f"{sum(len(digests) for digests, _ in results)} results as on one host; {befallen}")
