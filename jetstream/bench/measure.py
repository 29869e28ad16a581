"""The timed loop: fresh input, call, clock; results checked at several iterations of each size.

Every iteration is timed by itself, on every rank, with the clock around the call alone. What is
reported for an iteration is the slower rank's time. Between two calls a rank rewrites its input,
outside of the timed part, because an input that stays in the cache flatters the result.
"""

from __future__ import annotations

import gc
import statistics
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from jetstream.bench.kinds import COLLECTIVES, Case, Operation, build
from jetstream.bench.reference import SHIFTS, count_wrong
from jetstream.bench.stats import slowest_rank

if TYPE_CHECKING:
    from jetstream.communicator import Communicator

__all__ = [
    "ITERATIONS_MIN",
    "Effort",
    "Samples",
    "gather_text",
    "measure",
    "no_garbage_collection",
]

ITERATIONS_MIN = 20
_ITERATIONS_MAX = 1_000_000
_SETTLE_CALLS = 2
_BATCH_ENOUGH = 2500
_LARGE_BYTES = 16 << 20

Latencies = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to measure one case, and how."""

    budget_s: float = 1.0
    iterations: int | None = None  # None: as many as fit into the budget, at least ITERATIONS_MIN
    warmup: int = 10
    check: bool = True
    launch: str = "python"  # or "c": a loop in C posts the operations


@dataclass(frozen=True, slots=True)
class Samples:
    """What a case gave, the same on every rank."""

    latency_ns: Latencies  # of each iteration, slower rank
    wrong: int | None  # elements, over all ranks and checks; None: not checked
    checks: int
    ranks_agree: bool | None  # None: not checked, or ranks get different data
    algorithm: str = ""  # that the library chose; empty for messages


def measure(comm: Communicator, case: Case, effort: Effort) -> Samples:
    """Runs one case on all ranks together; every rank must call it with the same arguments."""
    operation = build(comm, case)
    run = _launch_c if effort.launch == "c" else _launch_python
    checker = _Checker(operation, case)
    with no_garbage_collection():
        iterations = _settle(comm, case, operation, effort, run)
        latency_ns = np.full(iterations, -1, np.int64)  # written: no page faults in the loop
        first = 0
        for last in _checkpoints(iterations, case, effort):
            _align(comm, operation, first)
            run(comm, case, operation, latency_ns, first, last)
            if effort.check:
                if effort.launch == "c":  # a loop on one input has no result to compare
                    _call_once(operation, last - 1)
                checker.check(last - 1)
            first = last
        algorithm = _algorithm(comm, case)
    collected = _collect(comm, operation, latency_ns, checker if effort.check else None)
    return replace(collected, algorithm=algorithm)


def gather_text(comm: Communicator, text: str, *, width: int = 256) -> tuple[str, ...]:
    """Returns every rank's text, cut to `width` bytes of UTF-8, in rank order."""
    cell = np.zeros(width, np.uint8)
    encoded = text.encode()[:width]
    cell[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    cells = comm.all_gather(cell).reshape(comm.size, width)
    return tuple(bytes(row).rstrip(b"\0").decode(errors="replace") for row in cells)


class _Checker:
    """Compares results with the reference and remembers a checksum of each."""

    def __init__(self, operation: Operation, case: Case) -> None:
        self._operation = operation
        self._same_everywhere = case.same_everywhere
        self.wrong = 0
        self.checksums: list[int] = []

    def check(self, iteration: int) -> None:
        """Checks the result that iteration `iteration` left."""
        operation = self._operation
        self.wrong += count_wrong(operation.result, operation.parts, iteration % SHIFTS)
        if self._same_everywhere:
            self.checksums.append(zlib.crc32(operation.result.view(np.uint8).data))
        else:
            self.checksums.append(0)

    @property
    def compares_ranks(self) -> bool:
        """Whether the checksums of all ranks have to be equal."""
        return self._same_everywhere


_Run = Callable[["Communicator", Case, Operation, Latencies, int, int], None]


def _launch_python(
    comm: Communicator,
    case: Case,
    operation: Operation,
    latency_ns: Latencies,
    first: int,
    last: int,
) -> None:
    """Times iterations first to last - 1; allocates nothing but the clock's integers."""
    del comm, case
    clock, copy, call = time.perf_counter_ns, np.copyto, operation.call
    target, windows, elapsed_ns = operation.target, operation.windows, latency_ns.data
    for iteration in range(first, last):
        copy(target, windows[iteration % SHIFTS])
        begin_ns = clock()
        call()
        elapsed_ns[iteration] = clock() - begin_ns


def _launch_c(
    comm: Communicator,
    case: Case,
    operation: Operation,
    latency_ns: Latencies,
    first: int,
    last: int,
) -> None:
    """Lets C launch iterations first to last - 1; the input is written once, before the first."""
    np.copyto(operation.target, operation.windows[first % SHIFTS])
    redop = "sum" if case.redop == "none" else case.redop
    latency_ns[first:last] = comm.time_launches(case.kind, operation.target, last - first, op=redop)


def _call_once(operation: Operation, iteration: int) -> None:
    np.copyto(operation.target, operation.windows[iteration % SHIFTS])
    operation.call()


def _align(comm: Communicator, operation: Operation, iteration: int) -> None:
    """Brings the ranks together and the buffers back into the cache after a check."""
    comm.barrier()
    for _ in range(_SETTLE_CALLS):
        _call_once(operation, iteration + SHIFTS - 1)


def _settle(comm: Communicator, case: Case, operation: Operation, effort: Effort, run: _Run) -> int:
    """Warms up and returns the number of iterations, the same on all ranks.

    The first batch also loads plans and touches memory, so it counts only where it is long. The
    others take the median of several runs: one interruption must not look like a slow operation.
    """
    batch = max(effort.warmup, 1)
    elapsed_s = _largest(comm, _batch_s(comm, case, operation, run, batch))
    if effort.iterations is not None:
        return effort.iterations
    is_told = elapsed_s >= effort.budget_s / 4
    while not is_told:
        batch *= 4
        runs_s = [_batch_s(comm, case, operation, run, batch) for _ in range(3)]
        elapsed_s = _largest(comm, statistics.median(runs_s))
        is_told = elapsed_s >= effort.budget_s / 60 or batch >= _BATCH_ENOUGH
    fitting = int(effort.budget_s / max(elapsed_s / batch, 1e-9))
    return min(max(fitting, ITERATIONS_MIN), _ITERATIONS_MAX)


def _batch_s(
    comm: Communicator, case: Case, operation: Operation, run: _Run, iterations: int
) -> float:
    """Runs some iterations and returns the seconds they took with all that is around them."""
    latency_ns = np.full(iterations, -1, np.int64)
    begin_ns = time.perf_counter_ns()
    run(comm, case, operation, latency_ns, 0, iterations)
    return (time.perf_counter_ns() - begin_ns) * 1e-9


def _checkpoints(iterations: int, case: Case, effort: Effort) -> list[int]:
    """Lists where the loop stops for a check: after the first, the last and some in between."""
    if not effort.check:
        return [iterations]
    parts = 2 if case.size_bytes >= _LARGE_BYTES else 4
    stops = {1, *(iterations * part // parts for part in range(1, parts + 1))}
    return sorted(stops - {0})


def _algorithm(comm: Communicator, case: Case) -> str:
    record = comm.last_op if case.kind in COLLECTIVES else None
    return "" if record is None else record.algorithm


def _largest(comm: Communicator, value: float) -> float:
    return float(comm.all_reduce(np.array([value]), "max")[0])


def _collect(
    comm: Communicator, operation: Operation, latency_ns: Latencies, checker: _Checker | None
) -> Samples:
    """Brings the ranks' latencies and verdicts together."""
    own_ns = latency_ns // operation.divisor if operation.divisor else np.zeros_like(latency_ns)
    all_ns = comm.all_gather(own_ns).reshape(comm.size, -1)
    if checker is None:
        return Samples(slowest_rank(all_ns), None, 0, None)
    wrong = int(comm.all_reduce(np.array([checker.wrong], np.int64), "sum")[0])
    checksums = comm.all_gather(np.array(checker.checksums, np.int64)).reshape(comm.size, -1)
    agree = bool((checksums == checksums[0]).all()) if checker.compares_ranks else None
    return Samples(slowest_rank(all_ns), wrong, len(checker.checksums), agree)


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Collects garbage now, and not again before the end of the block."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
