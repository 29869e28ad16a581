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
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import waiting

SAMPLES_MAX = 1 << 16
WORDS_PER_RANK = 16  # 128 B: no two ranks write into one cache line, or into adjacent ones
VALUE_WORD, ECHO_WORD = 2, 3  # words 0 and 1 hold arrivals
ECHOES = 200  # exchanges of one line in a probe
START_MARGIN_NS = 1000  # from the later arrival to the common start
SLOW_NS = 10_000_000  # an operation that takes longer is not warmed up
RUN_LIMIT_S = 120  # SIGALRM ends a run that hangs
PATTERN = 29  # elements repeat after so many: sums over 8 ranks are exact in bfloat16

Latencies = npt.NDArray[np.uint64]
Array = npt.NDArray[Any]
Operation = tuple[Callable[..., object], tuple[Any, ...]]  # a call and its operands


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
        self._is_crowded = size > (os.cpu_count() or 1)  # a spinner keeps another rank waiting
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
                if self._is_crowded:
                    os.sched_yield()
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
        if self.rank > 1 or self._is_crowded:
            return 0.0
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

    def gather(self, value: int) -> list[int]:
        """The ranks' values, which must be non-negative."""
        self._words[self.rank * WORDS_PER_RANK + VALUE_WORD] = value
        self.meet()
        words = (rank * WORDS_PER_RANK + VALUE_WORD for rank in range(self.size))
        values = [self._words[word] for word in words]
        self.meet()
        return values

    def slower_rank(self, latency_ns: Latencies) -> Latencies:
        """The latency of the slowest rank in each iteration: shape (iterations,), uint64, ns."""
        count = len(latency_ns)
        self._latencies[self.rank, :count] = latency_ns
        self.meet()
        result: Latencies = self._latencies[:, :count].max(axis=0)
        self.meet()
        return result


@dataclass(frozen=True)
class Case:
    """What is measured: a collective, its size in bytes, how often at most."""

    collective: str
    size_bytes: int
    iterations: int

    @classmethod
    def parse(cls, text: str) -> Case:
        """From `COLLECTIVE:BYTES:ITERATIONS`."""
        name, size_bytes, iterations = text.split(":")
        return cls(name, int(size_bytes), int(iterations))


def parse_arguments(description: str | None) -> argparse.Namespace:
    """Read the command line of a contestant; also bounds the run time."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--shared", required=True, help="a fresh empty file that all ranks map")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--ranks", type=int, default=2, help="where the program starts them")
    parser.add_argument("--rank", type=int, help="peer_torch.py: run this one alone")
    parser.add_argument("--budget", type=float, default=0.6, help="seconds for one case at most")
    parser.add_argument("--library", help="peer_torch.py: gloo, vllm or deepspeed")
    parser.add_argument("--memory", help="jetstream: private or symmetric", default="private")
    parser.add_argument("--persistent", action="store_true", help="jetstream: comm.persistent")
    parser.add_argument("--launched", action="store_true", help="jetstream: launch from C")
    parser.add_argument("cases", nargs="+", metavar="COLLECTIVE:BYTES:ITERATIONS", type=Case.parse)
    arguments = parser.parse_args()
    signal.alarm(RUN_LIMIT_S)
    return arguments


def pin(rank: int) -> None:
    """Pin to the rank-th allowed core. Call it before a library starts its threads."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})


class Elements:
    """Arrays of one dtype. bfloat16 is held as the upper halves of float32, in uint16."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self.storage = np.dtype(np.float32 if dtype == "float32" else np.uint16)

    def encode(self, values: Any) -> Array:
        """Small integers as elements."""
        floats = np.asarray(values, np.float32)
        if self.dtype == "float32":
            return floats
        return (floats.view(np.uint32) >> 16).astype(np.uint16)

    def decode(self, array: Array) -> Array:
        """Elements as float32."""
        if self.dtype == "float32":
            return array
        return (array.astype(np.uint32) << 16).view(np.float32)


def expected(collective: str, inputs: Array, rank: int) -> Array:
    """What `collective` gives `rank`; inputs: shape (ranks, elements), the ranks' inputs."""
    size = len(inputs)
    if collective.startswith("all_reduce"):
        return inputs.sum(axis=0)
    if collective == "reduce_scatter":
        return inputs.sum(axis=0).reshape(size, -1)[rank]
    if collective == "all_gather":
        return inputs.reshape(-1)
    if collective == "all_to_all":
        return inputs.reshape(size, size, -1)[:, rank].reshape(-1)
    if collective == "sendrecv":
        return inputs[rank & ~1]  # the even rank of a pair gets its own message back
    return inputs[0]


class Bench:
    """One contestant's cases, measured one after another.

    `bind(collective, x, out)` returns a call and its operands, such that `call(*operands)` reads x
    and returns when `out` holds the result. `out` is `x` for all_reduce and broadcast. `new(n,
    dtype)` makes an array of n elements; they are x and out.
    """

    def __init__(
        self,
        meeting: Meeting,
        arguments: argparse.Namespace,
        bind: Callable[[str, Array, Array], Operation],
        new: Callable[[int, Any], Array] = np.zeros,
    ) -> None:
        self.meeting = meeting
        self.arguments = arguments
        self.elements = Elements(arguments.dtype)
        self._bind = bind
        self._new = new

    def run(self) -> None:
        """Measure all cases."""
        gc.disable()
        for case in self.arguments.cases:
            name, measure = waiting.MEASURES.get(case.collective, (case.collective, None))
            x, out = self._arrays(name, case.size_bytes)
            operation = self._bind(name, x, out)
            self._verify(name, x, out, operation)
            if measure is None:
                self.report(case, partial(self._time_calls, case, x, out, operation))
            else:
                self._print(case, measure(self.meeting, case.iterations, operation, (x, out)))
            del x, out, operation
            gc.collect()

    def _print(self, case: Case, record: dict[str, Any]) -> None:
        if self.meeting.rank == 0:
            head = {"collective": case.collective, "bytes": case.size_bytes}
            print(json.dumps(head | record), flush=True)

    def _arrays(self, collective: str, size_bytes: int) -> tuple[Array, Array]:
        size = self.meeting.size
        count = max(1, size_bytes // self.elements.storage.itemsize)
        if collective in ("reduce_scatter", "all_to_all"):
            count = max(size, count // size * size)
        factor = {"all_gather": size, "reduce_scatter": 1 / size}.get(collective, 1)
        x = self._new(count, self.elements.storage)
        if collective in ("all_reduce", "broadcast", "barrier"):
            return x, x
        return x, self._new(int(count * factor), self.elements.storage)

    def _verify(self, collective: str, x: Array, out: Array, operation: Operation) -> None:
        """One operation on data that differs at each index; every element is checked."""
        call, operands = operation
        rank = self.meeting.rank
        pattern = np.arange(x.size) % PATTERN
        inputs = np.stack([pattern + other for other in range(self.meeting.size)])
        x[:] = self.elements.encode(inputs[rank])
        self.meeting.meet()
        call(*operands)
        if collective != "barrier":
            want = expected(collective, inputs, rank)
            if not np.array_equal(self.elements.decode(out), want):
                raise SystemExit(f"wrong result of {collective} at {x.nbytes} B")

    def _time_calls(
        self, case: Case, x: Array, out: Array, operation: Operation, iterations: int
    ) -> Latencies:
        """Latency of `iterations` calls, ns. Only the call itself is inside the timed window."""
        call, operands = operation
        clock, meet, rank = time.perf_counter_ns, self.meeting.meet, self.meeting.rank
        values = [np.full((self.meeting.size, 1), float(i)) for i in range(8)]
        ranks = np.arange(self.meeting.size).reshape(-1, 1)
        whole = [np.repeat(value + ranks, self.meeting.size, axis=1) for value in values]
        is_checked = case.collective != "barrier"
        fills = [self.elements.encode([i + rank])[0] for i in range(8)]
        wants = [self.elements.encode(expected(case.collective, w, rank))[-1] for w in whole]
        divisor = 2 if case.collective == "sendrecv" else 1  # half a round trip
        latency_ns = np.zeros(iterations, np.uint64)
        for iteration in range(iterations):
            x.fill(fills[iteration % 8])
            meet()
            begin_ns = clock()
            call(*operands)
            end_ns = clock()
            latency_ns[iteration] = (end_ns - begin_ns) // divisor
            if is_checked and out[-1] != wants[iteration % 8]:
                raise SystemExit(f"wrong result of {case.collective} in iteration {iteration}")
        return latency_ns

    def report(self, case: Case, measure: Callable[[int], Latencies]) -> None:
        """Warm up, call `measure(iterations)` between two probes, print a JSON line on rank 0.

        Percentiles (nearest rank) are of the slower rank of each iteration.
        """
        meeting = self.meeting
        for warmup in (2, max(2, min(50, case.iterations // 50))):
            begin_ns = time.perf_counter_ns()
            measure(warmup)
            each_ns = max(meeting.gather((time.perf_counter_ns() - begin_ns) // warmup))
            if each_ns > SLOW_NS:
                break
        affordable = max(3, int(self.arguments.budget * 1e9) // max(1, each_ns))
        iterations = min(case.iterations, affordable)
        before_us = meeting.line_us()
        latency_ns = measure(iterations)
        after_us = meeting.line_us()
        ordered = np.sort(meeting.slower_rank(latency_ns))
        record: dict[str, Any] = {}
        for key, per_mille in (("p50_us", 500), ("p99_us", 990), ("p999_us", 999)):
            record[key] = int(ordered[iterations * per_mille // 1000]) / 1000
        record |= {"iters": iterations, "line_us": [before_us, after_us]}
        self._print(case, record)


def echo(send: Callable[[Any], object], receive: Callable[[Any], object], is_first: bool) -> Any:
    """A round trip as an operation on (message, room): the first rank gets its message back."""

    def lead(x: Any, out: Any) -> None:
        send(x)
        receive(out)

    def follow(_x: Any, out: Any) -> None:
        receive(out)
        send(out)

    return lead if is_first else follow
