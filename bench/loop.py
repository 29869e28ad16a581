"""The measuring loop that every contestant called from Python shares.

What is timed, and how, is described in METHODOLOGY.md; c/floor.c does the same in C.
"""

from __future__ import annotations

import argparse
import gc
import json
import mmap
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

SAMPLES_MAX = 1 << 16
WORDS_PER_RANK = 16  # 128 B: no two ranks write into one cache line, or into adjacent ones
VALUE_WORD, ECHO_WORD = 2, 3  # words 0 and 1 hold arrivals
ECHOES = 200  # exchanges of one line in a probe
START_MARGIN_NS = 1000  # from the later arrival to the common start
SIZE_BUDGET_S = 0.6  # slow contestants do fewer iterations
RUN_LIMIT_S = 120  # SIGALRM ends a run that hangs

Latencies = npt.NDArray[np.uint64]


class Meeting:
    """Shared memory through which the ranks of one run meet and exchange their latencies.

    It belongs to the benchmark, not to a contestant, so that all are synchronised the same way.
    Relies on stores becoming visible in program order (x86-64). `path` must name a fresh file.
    """

    def __init__(self, path: str, rank: int, size: int) -> None:
        words_bytes = size * WORDS_PER_RANK * 8
        total_bytes = words_bytes + size * SAMPLES_MAX * 8
        with Path(path).open("r+b") as file:
            file.truncate(total_bytes)
            memory = mmap.mmap(file.fileno(), total_bytes)
        self.rank = rank
        self.size = size
        self._words = memoryview(memory).cast("Q")
        flat = np.frombuffer(memory, np.uint64, offset=words_bytes)
        self._latencies = flat.reshape(size, SAMPLES_MAX)
        self._latencies[rank] = 0  # faults the pages in
        self._others = [other for other in range(size) if other != rank]
        self._meetings = 0
        self._echoes = 0
        self._start_ns = 0

    def meet(self) -> None:
        """Wait for all ranks; all of them return at the same time, within some 0.1 us.

        Each rank stamps its arrival; the start is a margin after the last one. Arrivals alternate
        between two words, so that none is overwritten before all have read it; a fresh one is
        recognised by being later than the last start.
        """
        words = self._words
        slot = self._meetings & 1
        self._meetings += 1
        last_ns = time.perf_counter_ns()
        words[self.rank * WORDS_PER_RANK + slot] = last_ns
        for other in self._others:
            index = other * WORDS_PER_RANK + slot
            while (arrival_ns := words[index]) <= self._start_ns:
                pass
            last_ns = max(last_ns, arrival_ns)
        self._start_ns = start_ns = last_ns + START_MARGIN_NS
        while time.perf_counter_ns() < start_ns:
            pass

    def line_us(self) -> float:
        """The median time of one line from core to core, as Python sees it.

        A hypervisor may move the virtual cores closer together or further apart at any time; this
        tells which of them a measurement met. Ranks 0 and 1 take part; rank 0's result counts.
        """
        words, clock = self._words, time.perf_counter_ns
        own = ECHO_WORD + self.rank * WORDS_PER_RANK
        peer = ECHO_WORD + (WORDS_PER_RANK if self.rank == 0 else 0)
        times_ns = []
        self.meet()
        for echo in range(self._echoes + 1, self._echoes + ECHOES + 1):
            begin_ns = clock()
            if self.rank == 0:
                words[own] = echo
            while words[peer] < echo:
                pass
            if self.rank == 1:
                words[own] = echo
            times_ns.append(clock() - begin_ns)
        self._echoes += ECHOES
        return sorted(times_ns)[ECHOES // 2] / 2000

    def largest(self, value: int) -> int:
        """The largest of the ranks' values, which must be non-negative."""
        self._words[self.rank * WORDS_PER_RANK + VALUE_WORD] = value
        self.meet()
        words = (rank * WORDS_PER_RANK + VALUE_WORD for rank in range(self.size))
        result = max(self._words[word] for word in words)
        self.meet()
        return result

    def slower_rank(self, latency_ns: Latencies) -> Latencies:
        """The latency of the slowest rank in each iteration: shape (iterations,), uint64, ns."""
        count = len(latency_ns)
        self._latencies[self.rank, :count] = latency_ns
        self.meet()
        result: Latencies = self._latencies[:, :count].max(axis=0)
        self.meet()
        return result


def parse_arguments(description: str | None) -> argparse.Namespace:
    """Read `--shared FILE [--launched] BYTES:ITERATIONS...`; also bounds the run time."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--shared", required=True, help="a fresh empty file that all ranks map")
    parser.add_argument("--launched", action="store_true", help="jetstream only: launch from C")
    parser.add_argument("sizes", nargs="+", metavar="BYTES:ITERATIONS")
    arguments = parser.parse_args()
    arguments.sizes = [tuple(map(int, size.split(":"))) for size in arguments.sizes]
    signal.alarm(RUN_LIMIT_S)
    return arguments


def pin(rank: int) -> None:
    """Pin to the rank-th allowed core. Call it before a library starts its threads."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})


def _fill(x: npt.NDArray[np.float32], iteration: int, rank: int) -> None:
    x.fill(iteration % 8 + rank)


def _expected(iteration: int, size: int) -> int:
    return size * (iteration % 8) + size * (size - 1) // 2


def _time_calls(
    meeting: Meeting,
    x: npt.NDArray[np.float32],
    operation: Callable[..., object],
    operands: tuple[Any, ...],
    iterations: int,
) -> Latencies:
    """Latency of `iterations` calls, ns. Only the call itself is inside the timed window."""
    clock = time.perf_counter_ns
    meet = meeting.meet
    rank, size = meeting.rank, meeting.size
    latency_ns = np.zeros(iterations, np.uint64)
    for iteration in range(iterations):
        _fill(x, iteration, rank)
        meet()
        begin_ns = clock()
        operation(*operands)
        end_ns = clock()
        latency_ns[iteration] = end_ns - begin_ns
        if x[-1] != _expected(iteration, size):
            raise SystemExit(f"wrong result in iteration {iteration}: {x[-1]}")
    return latency_ns


def _verify(
    meeting: Meeting,
    x: npt.NDArray[np.float32],
    operation: Callable[..., object],
    operands: tuple[Any, ...],
) -> None:
    """One operation on data that differs at each index; every element is checked."""
    pattern = np.arange(x.size, dtype=np.int64) % 1021
    x[:] = pattern + meeting.rank
    operation(*operands)
    if not np.array_equal(x, meeting.size * pattern + _expected(0, meeting.size)):
        raise SystemExit(f"wrong result at {x.nbytes} B")


def report(
    meeting: Meeting, size_bytes: int, iterations: int, measure: Callable[[int], Latencies]
) -> None:
    """Warm up, call `measure(iterations)` between two probes, and print a JSON line on rank 0.

    Percentiles (nearest rank) are of the slower rank of each iteration.
    """
    warmup = max(2, min(50, iterations // 50))
    begin_ns = time.perf_counter_ns()
    measure(warmup)
    each_ns = meeting.largest((time.perf_counter_ns() - begin_ns) // warmup)
    iterations = min(iterations, max(3, int(SIZE_BUDGET_S * 1e9) // max(1, each_ns)))
    before_us = meeting.line_us()
    latency_ns = measure(iterations)
    after_us = meeting.line_us()
    ordered = np.sort(meeting.slower_rank(latency_ns))
    record: dict[str, object] = {"bytes": size_bytes}
    for key, per_mille in (("p50_us", 500), ("p99_us", 990), ("p999_us", 999)):
        record[key] = int(ordered[iterations * per_mille // 1000]) / 1000
    record |= {"iters": iterations, "line_us": [before_us, after_us]}
    if meeting.rank == 0:
        print(json.dumps(record), flush=True)


def run(
    meeting: Meeting,
    sizes: list[tuple[int, int]],
    bind: Callable[[npt.NDArray[np.float32]], tuple[Callable[..., object], tuple[Any, ...]]],
) -> None:
    """Measure one contestant at all sizes.

    `bind(x)` returns the operation and its operands, such that `operation(*operands)` sums `x`
    (float32, private memory) over all ranks in place and returns when `x` holds the result.
    """
    gc.disable()
    for size_bytes, iterations in sizes:
        x = np.zeros(size_bytes // 4, np.float32)
        measure = partial(_time_calls, meeting, x, *bind(x))
        _verify(meeting, x, *bind(x))
        report(meeting, size_bytes, iterations, measure)
        gc.collect()
