"""The timed loop of bench, over ranks that are threads: what it counts, and faults it must see."""

from __future__ import annotations

import gc
import queue
import sys
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jetstream.bench.config import BenchConfig, parse_ops
from jetstream.bench.kinds import COLLECTIVES, KINDS, REDUCING, ROOTED, Case, build
from jetstream.bench.measure import ITERATIONS_MIN, Effort, Samples, gather_text, measure
from jetstream.bench.worker import measure_all
from jetstream.dtypes import DType
from jetstream.testing import reference

_WAIT_S = 20.0

Fault = Callable[["ThreadComm", str, np.ndarray], None]


def ops_of(dtype: DType) -> list[str]:
    return [redop.label for redop in dtype.redops if redop.label in parse_ops(["all"])]


class World:
    """What the threads share."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.barrier = threading.Barrier(size, timeout=_WAIT_S)
        self.slots: list[Any] = [None] * size
        pairs = [(a, b) for a in range(size) for b in range(size)]
        self.mail = {pair: queue.Queue[np.ndarray]() for pair in pairs}


class ThreadComm:
    """A communicator between threads, slow and plainly right, with a place for a fault."""

    def __init__(self, world: World, rank: int, fault: Fault | None) -> None:
        self.rank, self.size = rank, world.size
        self.last_op = SimpleNamespace(algorithm="one_shot")
        self.calls = 0
        self.kept: list[np.ndarray] = []
        self._world, self._fault = world, fault

    def _exchange(self, x: np.ndarray) -> list[np.ndarray]:
        self._world.slots[self.rank] = x.copy()
        self._world.barrier.wait()
        values = list(self._world.slots)
        self._world.barrier.wait()
        return values

    def _finish(self, kind: str, result: np.ndarray) -> np.ndarray:
        self.calls += 1
        if self._fault is not None:
            self._fault(self, kind, result)
        return result

    def _fold(self, x: np.ndarray, op: str) -> np.ndarray:
        return reference.fold(self._exchange(x), op)

    def all_reduce(self, x: np.ndarray, op: str = "sum") -> np.ndarray:
        x[...] = self._fold(x, op).astype(x.dtype)
        return self._finish("all_reduce", x)

    def all_gather(self, x: np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
        gathered = np.concatenate(self._exchange(x))
        if out is None:
            return gathered
        out[...] = gathered
        return self._finish("all_gather", out)

    def reduce_scatter(self, x: np.ndarray, op: str = "sum", *, out: np.ndarray) -> np.ndarray:
        first = self.rank * out.size
        out[...] = self._fold(x, op)[first : first + out.size].astype(x.dtype)
        return self._finish("reduce_scatter", out)

    def all_to_all(self, x: np.ndarray, *, out: np.ndarray) -> np.ndarray:
        rows = [sent.reshape(self.size, -1)[self.rank] for sent in self._exchange(x)]
        out[...] = np.concatenate(rows)
        return self._finish("all_to_all", out)

    def reduce(self, x: np.ndarray, root: int, op: str = "sum") -> np.ndarray | None:
        folded = self._fold(x, op).astype(x.dtype)
        if self.rank != root:
            return None
        x[...] = folded
        return self._finish("reduce", x)

    def gather(self, x: np.ndarray, root: int, *, out: np.ndarray) -> np.ndarray | None:
        gathered = np.concatenate(self._exchange(x))
        if self.rank != root:
            return None
        out[...] = gathered
        return self._finish("gather", out)

    def scatter(self, x: np.ndarray, root: int, *, out: np.ndarray) -> np.ndarray:
        out[...] = self._exchange(x)[root].reshape(self.size, -1)[self.rank]
        return self._finish("scatter", out)

    def scan(self, x: np.ndarray, op: str = "sum") -> np.ndarray:
        x[...] = reference.fold(self._exchange(x)[: self.rank + 1], op).astype(x.dtype)
        return self._finish("scan", x)

    def exscan(self, x: np.ndarray, op: str = "sum") -> np.ndarray:
        below = self._exchange(x)[: self.rank]
        x[...] = reference.fold(below, op).astype(x.dtype) if below else x
        return self._finish("exscan", x)

    def broadcast(self, x: np.ndarray, root: int = 0) -> np.ndarray:
        x[...] = self._exchange(x)[root]
        return self._finish("broadcast", x)

    def barrier(self) -> None:
        self._world.barrier.wait()

    def send(self, x: np.ndarray, dst: int) -> None:
        self._world.mail[self.rank, dst].put(x.copy())

    def isend(self, x: np.ndarray, dst: int) -> Any:
        self.send(x, dst)
        return SimpleNamespace(wait=lambda: None)

    def recv(self, out: np.ndarray, src: int) -> np.ndarray:
        out[...] = self._world.mail[src, self.rank].get(timeout=_WAIT_S)
        return self._finish("recv", out)

    def time_launches(
        self, kind: str, x: np.ndarray, iterations: int, *, op: str = "sum"
    ) -> np.ndarray:
        del kind, x, op
        return np.full(iterations, 1000 * (self.rank + 1), np.uint64)


def on_ranks(size: int, function: Callable[[Any], Any], *, fault: Fault | None = None) -> list[Any]:
    """Runs function(comm) on `size` threads and returns their results in rank order."""
    world = World(size)
    results: list[Any] = [None] * size
    errors: list[BaseException] = []

    def body(rank: int) -> None:
        try:
            results[rank] = function(ThreadComm(world, rank, fault))
        except BaseException as error:
            errors.append(error)
            world.barrier.abort()

    threads = [threading.Thread(target=body, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_WAIT_S * 2)
    if errors:
        raise errors[0]
    return results


def samples_of(case: Case, *, fault: Fault | None = None, **effort: Any) -> Samples:
    """Measures a case and returns rank 0's samples, after comparing them with the others'."""
    settings = Effort(**{"iterations": 9, "warmup": 2, **effort})
    results = on_ranks(case.world, lambda comm: measure(comm, case, settings), fault=fault)
    for result in results[1:]:
        assert (result.latency_ns == results[0].latency_ns).all()
        assert (result.wrong, result.ranks_agree) == (results[0].wrong, results[0].ranks_agree)
    return results[0]


def case_of(kind: str, world: int, size_bytes: int = 96, dtype: str = "float32") -> Case:
    redop = "sum" if kind in REDUCING else "none"
    root = world - 1 if kind in ROOTED else -1
    return Case(kind, world, size_bytes, dtype, redop, root)


@pytest.mark.parametrize(
    ("kind", "world"),
    [
        *((kind, world) for kind in KINDS for world in (2, 3)),
        *((kind, 1) for kind in COLLECTIVES),
    ],
)
def test_right_data_is_found_right(kind: str, world: int) -> None:
    samples = samples_of(case_of(kind, world))
    assert samples.wrong == 0
    assert samples.ranks_agree is not False
    assert samples.latency_ns.shape == (9,)
    assert (samples.latency_ns > 0).all()


def types_and_reductions() -> list[tuple[str, str]]:
    """Every type and every reduction, each in few pairs: how operands are made depends on both."""
    full = (DType.FLOAT32, DType.BFLOAT16, DType.INT8, DType.UINT64)
    return [
        (dtype.label, op)
        for number, dtype in enumerate(DType)
        for place, op in enumerate(ops_of(dtype))
        if dtype in full or place % 4 == number % 4
    ]


@pytest.mark.parametrize(("dtype", "redop"), types_and_reductions())
def test_every_type_and_reduction(dtype: str, redop: str) -> None:
    assert samples_of(Case("all_reduce", 2, 64, dtype, redop), iterations=2).wrong == 0
    assert samples_of(Case("reduce_scatter", 2, 64, dtype, redop), iterations=2).wrong == 0


def flip_last_bit(comm: ThreadComm, kind: str, result: np.ndarray) -> None:
    if comm.rank == 1 and kind != "recv" and result.dtype == np.float32:
        result.reshape(-1).view(np.uint32)[-1] ^= 1


def answer_with_older(lag: int) -> Fault:
    """Every result is that of `lag` calls before, as from a buffer used again too early."""

    def fault(comm: ThreadComm, kind: str, result: np.ndarray) -> None:
        if result.dtype == np.float32:
            comm.kept.append(result.copy())
            result[...] = comm.kept[-1 - lag] if len(comm.kept) > lag else 0

    return fault


def swap_halves(comm: ThreadComm, kind: str, result: np.ndarray) -> None:
    if result.dtype == np.float32 and result.size % 2 == 0:
        result[...] = np.roll(result, result.size // 2)


@pytest.mark.parametrize("kind", [kind for kind in COLLECTIVES if kind != "barrier"])
@pytest.mark.parametrize(
    "fault", [flip_last_bit, answer_with_older(1), answer_with_older(2), swap_halves]
)
def test_wrong_data_is_counted(kind: str, fault: Fault) -> None:
    samples = samples_of(case_of(kind, 2), fault=fault)
    assert samples.wrong is not None
    assert samples.wrong > 0
    if fault is flip_last_bit:
        assert samples.wrong == samples.checks
        is_same = kind in ("all_reduce", "all_gather", "broadcast")
        assert samples.ranks_agree is (False if is_same else None)


def test_two_roundings_are_wrong() -> None:
    def round_twice(comm: ThreadComm, kind: str, result: np.ndarray) -> None:
        if result.dtype == np.float16:
            result[...] = (result.astype(np.float32) * 1.0005).astype(np.float16)

    samples = samples_of(case_of("all_reduce", 3, 512, "float16"), fault=round_twice)
    assert samples.wrong
    assert samples.ranks_agree is True


def test_wrong_messages_are_counted() -> None:
    def fault(comm: ThreadComm, kind: str, result: np.ndarray) -> None:
        if kind == "recv":
            result[0] += 1

    assert samples_of(case_of("sendrecv", 3), fault=fault).wrong == 3 * 5
    assert samples_of(case_of("pingpong", 2), fault=fault).wrong


def test_without_check_nothing_is_said() -> None:
    samples = samples_of(case_of("all_reduce", 2), check=False, fault=flip_last_bit)
    assert (samples.wrong, samples.checks, samples.ranks_agree) == (None, 0, None)


def test_all_ranks_choose_the_same_number_of_iterations() -> None:
    """However long they take; never below the minimum."""

    def slow(comm: ThreadComm, kind: str, result: np.ndarray) -> None:
        time.sleep(0.002 * (1 + comm.rank))

    samples = samples_of(case_of("all_reduce", 2), iterations=None, budget_s=0.01, fault=slow)
    assert samples.latency_ns.size == ITERATIONS_MIN
    assert samples.latency_ns.min() >= 4e6  # the slower rank's sleep


def test_fast_operations_get_many_iterations() -> None:
    """Unless another program has the core while it is found out how long they take."""
    case = case_of("all_reduce", 1)
    sizes = (samples_of(case, iterations=None, budget_s=0.1).latency_ns.size for _ in range(20))
    assert any(size > 5 * ITERATIONS_MIN for size in sizes)


def test_pingpong_reports_half_a_round_trip_of_the_first_of_a_pair() -> None:
    delays_ns: list[int] = []

    def delay(comm: ThreadComm, kind: str, result: np.ndarray) -> None:
        if comm.rank == 1:
            begin_ns = time.perf_counter_ns()
            time.sleep(0.01)
            delays_ns.append(time.perf_counter_ns() - begin_ns)

    samples = samples_of(case_of("pingpong", 3), fault=delay)
    assert 5e6 <= np.median(samples.latency_ns) < np.median(delays_ns)


def test_launched_from_c() -> None:
    samples = samples_of(case_of("all_reduce", 2), launch="c")
    assert (samples.latency_ns == 2000).all()
    assert samples.wrong == 0


def test_garbage_collection_is_off_in_the_loop_and_back_after() -> None:
    seen: list[bool] = []

    def look(comm: ThreadComm, kind: str, result: np.ndarray) -> None:
        if result.dtype == np.float32:
            seen.append(gc.isenabled())

    assert gc.isenabled()
    samples_of(case_of("all_reduce", 1), fault=look)
    assert gc.isenabled()
    assert seen
    assert not any(seen)


def test_the_loop_allocates_nothing_that_stays() -> None:
    from jetstream.bench.measure import _launch_python

    def blocks(iterations: int) -> int:
        case = case_of("barrier", 1)
        comm: Any = SimpleNamespace(rank=0, size=1, barrier=lambda: None)
        operation = build(comm, case)
        latency_ns = np.zeros(iterations, np.int64)
        before = sys.getallocatedblocks()
        _launch_python(comm, case, operation, latency_ns, 0, iterations)
        return sys.getallocatedblocks() - before

    blocks(10)
    assert abs(blocks(20_000) - blocks(10)) < 20


def test_input_is_rewritten_before_every_call() -> None:
    """An in-place sum that was not would grow from call to call."""
    seen: list[float] = []

    def keep(comm: ThreadComm, kind: str, result: np.ndarray) -> None:
        if result.dtype == np.float32:
            seen.append(float(np.abs(result).max()))

    samples_of(case_of("all_reduce", 1), iterations=200, fault=keep)
    assert max(seen) < 4.0


def test_gather_text_keeps_rank_order() -> None:
    texts = on_ranks(3, lambda comm: gather_text(comm, f"rank {comm.rank} \u00fc"))
    assert texts[0] == ("rank 0 \u00fc", "rank 1 \u00fc", "rank 2 \u00fc")


def test_measure_all_reports_every_case_in_order() -> None:
    config = BenchConfig(("all_reduce", "barrier"), 2, (8, 64), iterations=4, warmup=1)
    events: list[dict[str, Any]] = []

    def body(comm: Any) -> int:
        return measure_all(comm, config, events.append if comm.rank == 0 else lambda event: None)

    assert on_ranks(2, body) == [0, 0]
    assert [e["event"] for e in events] == ["start", *["case", "row"] * 3, "end"]
    rows = [e["row"] for e in events if e["event"] == "row"]
    assert [(row["kind"], row["size_bytes"]) for row in rows] == [
        ("all_reduce", 8),
        ("all_reduce", 64),
        ("barrier", 0),
    ]
    assert all(row["algorithm"] == "one_shot" and row["iterations"] == 4 for row in rows)
    assert [rank["host"] for rank in events[0]["ranks"]] == [events[0]["machine"]["host"]] * 2


def test_measure_all_says_when_data_was_wrong() -> None:
    config = BenchConfig(("all_reduce",), 2, (64,), iterations=4, warmup=1)
    statuses = on_ranks(
        2, lambda comm: measure_all(comm, config, lambda event: None), fault=flip_last_bit
    )
    assert statuses == [1, 1]
