"""Random programs, as graphs and call by call: the same bits in all arrays."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from jetstream.communicator import Communicator
from jetstream.testing.plugin import Pools

PROGRAMS = 25
LAUNCHES = 3
ARRAYS = 4
KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
Arrays = list[np.ndarray[Any, np.dtype[np.int64]]]


class Program:
    """A chain of operations, the same on all ranks, each of which does its own part."""

    def __init__(self, comm: Communicator, seed: int) -> None:
        self.comm = comm
        self.plan = random.Random(seed)
        self.count = self.plan.choice((1, 6, 600, 30_000)) * comm.size
        self.seed = seed
        self.pending: list[Any] = []

    def make_arrays(self) -> Arrays:
        make = self.comm.zeros if self.seed % 3 == 0 else np.zeros
        arrays = [make(self.count, np.int64) for _ in range(ARRAYS)]
        for n, array in enumerate(arrays):
            array[:] = np.arange(self.count) * (n + 1) + 1000 * self.comm.rank
        return arrays

    def run(self, arrays: Arrays, call: Callable[[Any, Any], None]) -> None:
        """``call(function, array)`` carries out a function, now or in the graph."""
        self.plan.seed(self.seed)
        for _ in range(self.plan.randint(1, 12)):
            getattr(self, self.plan.choice((
                "collective", "collective", "message", "exchange", "function", "pass_on", "join",
            )))(arrays, call)  # fmt: skip
        self.join(arrays, call)

    def pick(self, arrays: Arrays, n: int) -> Arrays:
        return self.plan.sample(arrays, n)

    def collective(self, arrays: Arrays, _call: Any) -> None:
        self.join(arrays, _call)
        x, y = self.pick(arrays, 2)
        comm, part = self.comm, self.count // self.comm.size
        root = self.plan.randrange(comm.size)
        match self.plan.randrange(6):
            case 0:
                comm.all_reduce(x, self.plan.choice(("sum", "max", "bxor")))
            case 1:
                comm.all_gather(x[:part], out=y)
            case 2:
                comm.reduce_scatter(x, "min", out=y[:part])
            case 3:
                comm.broadcast(x, root)
            case 4:
                comm.all_to_all(x, out=y)
            case _:
                comm.barrier()

    def message(self, arrays: Arrays, _call: Any) -> None:
        """From one rank to another, perhaps itself, of a part of an array."""
        x, y = self.pick(arrays, 2)
        source, target = (self.plan.randrange(self.comm.size) for _ in range(2))
        start = self.plan.randrange(self.count)
        length = self.plan.randrange(self.count - start + 1)
        tag = self.plan.randrange(3)
        part, room = x[start : start + length], y[start : start + length]
        self.join(arrays, _call)
        if source == target == self.comm.rank:
            work = self.comm.irecv(room, source, tag)
            self.comm.send(part, target, tag)
            work.wait()
        elif self.comm.rank == source:
            self.comm.send(part, target, tag)
        elif self.comm.rank == target:
            self.comm.recv(room, source, None if self.plan.getrandbits(1) else tag)
            return
        self.plan.getrandbits(1)

    def exchange(self, arrays: Arrays, _call: Any) -> None:
        """Everybody with its neighbours; waited for by the next join."""
        x, y = self.pick(arrays, 2)
        self.join(arrays, _call)
        comm, tag = self.comm, 7 + self.plan.randrange(3)
        right, left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
        self.pending = [comm.irecv(y, left, tag), comm.isend(x, right, tag)]

    def pass_on(self, arrays: Arrays, _call: Any) -> None:
        """What has been received is sent on, twice through the same array."""
        self.join(arrays, _call)
        x = self.pick(arrays, 1)[0]
        comm = self.comm
        if comm.rank == 0:
            comm.send(x, comm.size - 1)
            comm.recv(x, 1)
        else:
            comm.recv(x, (comm.rank + 1) % comm.size)
            comm.send(x, comm.rank - 1)

    def function(self, arrays: Arrays, call: Callable[[Any, Any], None]) -> None:
        self.join(arrays, call)
        x = self.pick(arrays, 1)[0]
        factor = self.plan.choice((2, 3))

        def work(_address: int) -> None:
            x[:] = x * factor + self.comm.rank

        call(work, x)

    def join(self, _arrays: Arrays, _call: Any) -> None:
        for work in self.pending:
            work.wait()
        self.pending = []


def run_programs(comm: Communicator, first: int) -> None:
    for seed in range(first, first + PROGRAMS):
        program = Program(comm, seed)
        plain, fixed = program.make_arrays(), program.make_arrays()
        with comm.capture() as graph:
            program.run(fixed, lambda function, x: graph.call(KERNEL(function), x))
        for _ in range(LAUNCHES):
            program.run(plain, lambda function, _: function(0))
            if seed % 2 == 0:
                graph()
                check(fixed, plain, seed, graph.nodes)
        if seed % 2:  # not beside the messages of the plain calls, which theirs would meet
            for work in [graph.launch() for _ in range(LAUNCHES)]:
                work.wait()
            check(fixed, plain, seed, graph.nodes)


def check(fixed: Arrays, plain: Arrays, seed: int, nodes: tuple[str, ...]) -> None:
    for n, (got, wanted) in enumerate(zip(fixed, plain, strict=True)):
        assert np.array_equal(got, wanted), (seed, n, nodes)


@pytest.mark.parametrize("progress", ["inline", "thread"])
@pytest.mark.parametrize("size", [2, 3])
def test_programs(rank_pools: Pools, size: int, progress: str) -> None:
    pool = rank_pools(size, env={"JETSTREAM_PROGRESS": progress})
    pool.run(run_programs, 1000 * size)
