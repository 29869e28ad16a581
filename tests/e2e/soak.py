"""Works the library for a long time: random operations, every result checked, memory watched.

    python tests/e2e/soak.py --seconds 600 --ranks 2..8

Runs in rounds, one world size after the other. In a round all ranks draw the same collectives and
messages of random sizes and types from a common seed, and delays of their own. Each rank checks
each of its results. The processes of a world stay for all its rounds, so that memory that is not
given back adds up. Exit status 0 if all results were right and no rank's memory grew.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jetstream.communicator import Communicator
from jetstream.dtypes import DType, RedOp, dtype_of
from jetstream.testing import RankPool
from jetstream.testing.reference import fold, same_bits

DTYPES = tuple(dtype.label for dtype in DType)
KINDS = ("all_reduce", "all_gather", "reduce_scatter", "broadcast", "barrier", "ring", "storm")
COUNTS = (0, 1, 3, 10, 11, 100, 1000, 4096, 20_000, 100_000, 400_000)
OPERATIONS_BETWEEN_VOTES = 20
ROUND_S = 5.0
#: How much a rank's private memory may grow after its first rounds: pages of a fragmented heap.
WARM_ROUNDS = 3
GROWTH_MAX_BYTES = 8 << 20

#: Arenas of threads and free lists would hold on to memory that nobody uses any more.
MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "131072"}

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass
class Tally:
    """What one rank did in one round."""

    operations: int = 0
    checked_bytes: int = 0
    memory_bytes: int = 0


class Soak:
    """One rank's part of one round. ``plan`` draws the same on all ranks, ``own`` does not."""

    def __init__(self, comm: Communicator, seed: int) -> None:
        self.comm = comm
        self.plan = random.Random(seed)
        self.own = random.Random(seed + 1 + comm.rank)
        self.tally = Tally()

    def run(self, seconds: float) -> Tally:
        deadline_s = time.monotonic() + seconds
        while self._goes_on(deadline_s):
            for _ in range(OPERATIONS_BETWEEN_VOTES):
                getattr(self, f"do_{self.plan.choice(KINDS)}")()
                self.tally.operations += 1
                if self.plan.random() < 0.05:  # somebody is late
                    time.sleep(self.own.random() * 0.01)
        return self.tally

    def _goes_on(self, deadline_s: float) -> bool:
        """The same answer on all ranks: none may stop while another one goes on."""
        vote = np.array([time.monotonic() < deadline_s], np.uint8)
        return bool(self.comm.all_reduce(vote, "min")[0])

    def check(self, got: Array, expected: Array, *what: object) -> None:
        if not same_bits(got, expected):
            wrong = np.flatnonzero(got.reshape(-1) != expected.reshape(-1))
            raise AssertionError(f"{what}: {len(wrong)} wrong elements, first {wrong[:4]}")
        self.tally.checked_bytes += got.nbytes

    def arrays(self, multiple: int = 1) -> list[Array]:
        """What each rank contributes: a multiple of so many elements."""
        kind = DType[self.plan.choice(DTYPES).upper()].numpy
        count = -(-self.plan.choice(COUNTS) // multiple) * multiple
        start = self.plan.randrange(1000)
        base = np.arange(start, start + count + self.comm.size) % 251
        return [base[r : r + count].astype(kind) for r in range(self.comm.size)]

    def place(self, array: Array) -> Array:
        """A copy in private or in symmetric memory, each rank as it likes."""
        if self.own.random() < 0.5:
            return array.copy()
        copied = self.comm.empty(array.shape, array.dtype)
        copied[:] = array
        return copied

    def room(self, like: Array, count: int | None = None) -> Array | None:
        """An output of some kind for ``count`` elements, or None."""
        if self.own.random() < 0.3:
            return None
        return self.place(np.zeros(like.size if count is None else count, like.dtype))

    def choose_op(self, arrays: list[Array]) -> str:
        """A reduction that the element type has and that needs no more than its name."""
        redops = dtype_of(arrays[0].dtype).redops
        return self.plan.choice([op.label for op in redops if op is not RedOp.PREMUL_SUM])

    def do_all_reduce(self) -> None:
        arrays = self.arrays()
        op = self.choose_op(arrays)
        algo = self.plan.choice((None, "one_shot", "two_shot", "lend"))
        is_async = self.plan.random() < 0.3
        x = self.place(arrays[self.comm.rank])
        result = self.comm.all_reduce(x, op, out=self.room(x), algo=algo, async_op=is_async)
        got = result.wait() if is_async else result
        self.check(got, fold(arrays, op), "all_reduce", x.dtype, x.size, op, algo)

    def do_all_gather(self) -> None:
        arrays = self.arrays()
        mine = self.place(arrays[self.comm.rank])
        got = self.comm.all_gather(mine, out=self.room(mine, mine.size * self.comm.size))
        self.check(got, np.concatenate(arrays), "all_gather", got.dtype, arrays[0].size)

    def do_reduce_scatter(self) -> None:
        arrays = self.arrays(self.comm.size)
        op = self.choose_op(arrays)
        mine = self.place(arrays[self.comm.rank])
        got = self.comm.reduce_scatter(mine, op, out=self.room(mine, mine.size // self.comm.size))
        expected = np.split(fold(arrays, op), self.comm.size)[self.comm.rank]
        self.check(got, expected, "reduce_scatter", got.dtype, arrays[0].size, op)

    def do_broadcast(self) -> None:
        arrays = self.arrays()
        root = self.plan.randrange(self.comm.size)
        got = self.comm.broadcast(self.place(arrays[self.comm.rank]), root)
        self.check(got, arrays[root], "broadcast", got.dtype, got.size, root)

    def do_barrier(self) -> None:
        self.comm.barrier()

    def do_ring(self) -> None:
        arrays = self.arrays()
        tag, step = self.plan.randrange(5), self.plan.randrange(self.comm.size)
        target = (self.comm.rank + step) % self.comm.size
        source = (self.comm.rank - step) % self.comm.size
        work = self.comm.isend(self.place(arrays[self.comm.rank]), target, tag)
        got = self.comm.recv(self.place(np.zeros_like(arrays[source])), source, tag)
        work.wait()
        self.check(got, arrays[source], "ring", got.dtype, got.size, step)

    def do_storm(self) -> None:
        """Messages between random pairs, received in any order, a collective among them."""
        size, rank = self.comm.size, self.comm.rank
        messages = [
            (self.plan.randrange(size), self.plan.randrange(size), self.plan.choice(COUNTS[:9]))
            for _ in range(4 * size)
        ]
        works = [
            self.comm.isend(np.full(count, number, np.int32), target, tag=number)
            for number, (source, target, count) in enumerate(messages)
            if source == rank
        ]
        total = self.comm.all_reduce(np.ones(5), async_op=True)
        mine = [number for number, message in enumerate(messages) if message[1] == rank]
        self.own.shuffle(mine)
        for number in mine:
            source, _, count = messages[number]
            got = self.comm.recv(np.empty(count, np.int32), source, tag=number)
            self.check(got, np.full(count, number, np.int32), "storm", source, number)
        for work in works:
            work.wait()
        self.check(total.wait(), np.full(5, float(size)), "all_reduce in a storm")


def anonymous_bytes() -> int:
    """Private memory of this process."""
    ctypes.CDLL(None).malloc_trim(0)  # what is free, but not yet given back, is no leak
    # Counted page by page: the sums in /proc/self/status are only about right.
    pages = Path("/proc/self/smaps_rollup").read_text()
    return int(pages.split("Anonymous:")[1].split()[0]) * 1024


def run_round(comm: Communicator, seed: int, seconds: float) -> Tally:
    tally = Soak(comm, seed).run(seconds)
    gc.collect()
    assert comm.heap.used_bytes == 0, comm.heap
    tally.memory_bytes = anonymous_bytes()
    return tally


def soak_world(body: Callable[..., Tally], world: int, seconds: float, seed: int) -> bool:
    """Runs rounds on one pool of ranks; returns whether memory stayed flat. Raises RankError."""
    deadline_s = time.monotonic() + seconds
    first: list[int] = []
    total = Tally()
    number = 0
    with RankPool(world, fresh=True, timeout_s=120, env=MALLOC) as pool:
        while time.monotonic() < deadline_s or number <= WARM_ROUNDS:
            tallies = pool.run(body, seed + number, min(ROUND_S, seconds / 8))
            number += 1
            total.operations += tallies[0].operations
            total.checked_bytes += sum(tally.checked_bytes for tally in tallies)
            memory = [tally.memory_bytes for tally in tallies]
            if number == WARM_ROUNDS:
                first = memory
            print(
                f"world {world}: round {number}, {total.operations} operations, "
                f"{total.checked_bytes / 1e9:.1f} GB checked, "
                f"largest rank {max(memory) >> 20} MiB",
                flush=True,
            )
    growth = max(now - then for now, then in zip(memory, first, strict=True))
    print(f"world {world}: memory grew by {growth / (1 << 20):.1f} MiB at most", flush=True)
    return growth <= GROWTH_MAX_BYTES


def parse_ranks(text: str) -> range:
    low, _, high = text.partition("..")
    return range(int(low), int(high or low) + 1)


def soak_main(body: Callable[..., Tally], description: str) -> int:
    """The command line: rounds of ``body(comm, seed, seconds)``; returns the exit status."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600.0, help="all worlds together (600)")
    parser.add_argument("--ranks", type=parse_ranks, default=range(2, 9), help="4 or 2..8 (2..8)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    share_s = options.seconds / len(options.ranks)
    flat = [soak_world(body, world, share_s, options.seed) for world in options.ranks]
    if not all(flat):
        print("memory has grown")
        return 1
    print("all results right, memory flat")
    return 0


if __name__ == "__main__":
    sys.exit(soak_main(run_round, str(__doc__)))
