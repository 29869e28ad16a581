"""Persistent calls, and ordinary ones that have been made before: the short ways to a plan."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import jetstream
from jetstream.communicator import Communicator
from jetstream.errors import (
    ArgumentError,
    ClosedError,
    CommunicatorAbortedError,
    MismatchError,
    TimedOutError,
)
from jetstream.testing import RankPool
from jetstream.testing.plugin import Pools

ROUNDS = 20


def run_all_kinds(comm: Communicator) -> None:
    """Every kind, launched often with other contents each time."""
    size, rank = comm.size, comm.rank
    part, whole = np.zeros((3, 5)), np.zeros((3 * size, 5))
    other, gathered = np.zeros((3, 5)), np.zeros((3 * size, 5))
    root_out = gathered if rank == 1 else None
    calls = {
        "all_reduce": comm.persistent("all_reduce", part, "max", out=other),
        "in place": comm.persistent("all_reduce", whole),
        "all_gather": comm.persistent("all_gather", part, out=gathered),
        "reduce_scatter": comm.persistent("reduce_scatter", whole, "min", out=other),
        "all_to_all": comm.persistent("all_to_all", whole, out=gathered),
        "broadcast": comm.persistent("broadcast", part, 1),
        "reduce": comm.persistent("reduce", part, root=1, out=other if rank == 1 else None),
        "gather": comm.persistent("gather", part, root=1, out=root_out),
        "scatter": comm.persistent("scatter", whole, 0, out=other),
        "scan": comm.persistent("scan", part, out=other),
        "barrier": comm.persistent("barrier"),
    }
    everyone = range(size)
    for n in range(ROUNDS):
        parts = [np.full((3, 5), 100.0 * n + r) for r in everyone]
        wholes = [np.arange(15.0 * size).reshape(-1, 5) + r + n for r in everyone]
        expected: dict[str, Any] = {
            "all_reduce": parts[-1],
            "in place": sum(wholes),
            "all_gather": np.concatenate(parts),
            "reduce_scatter": wholes[0][3 * rank : 3 * rank + 3],
            "all_to_all": np.concatenate([w[3 * rank : 3 * rank + 3] for w in wholes]),
            "broadcast": parts[1],
            "reduce": sum(parts) if rank == 1 else None,
            "gather": np.concatenate(parts) if rank == 1 else None,
            "scatter": wholes[0][3 * rank : 3 * rank + 3],
            "scan": sum(parts[: rank + 1]),
            "barrier": None,
        }
        for name, call in calls.items():
            part[:], whole[:], other[:], gathered[:] = parts[rank], wholes[rank], -1, -1
            result = call() if n % 2 else call.start().wait()
            assert (result is None) == (expected[name] is None), name
            assert result is None or (result == expected[name]).all(), (name, n)


def test_all_kinds(rank_pools: Pools) -> None:
    for size in (2, 3):
        rank_pools(size).run(run_all_kinds, timeout_s=120)


def run_mixed_ways(comm: Communicator) -> None:
    """One rank's persistent call meets ordinary ones of the others."""
    x = np.ones(1000, np.float32)
    step = comm.persistent("all_reduce", x)
    for n in range(ROUNDS):
        x[:] = comm.rank
        if n % comm.size == comm.rank:
            assert step() is x
        elif n % 2:
            comm.all_reduce(x)
        else:
            comm.all_reduce(x, timeout=60.0)
        assert (x == comm.size * (comm.size - 1) / 2).all()


def test_mixed_ways(rank_pools: Pools) -> None:
    rank_pools(3).run(run_mixed_ways, timeout_s=120)


def run_repeated(comm: Communicator) -> None:
    """Calls that look like one before, and are not: nothing about them may be taken over."""
    size = comm.size
    total = size * (size + 1) / 2
    dtypes = (np.float32, np.int32, np.uint32, ml_dtypes.bfloat16, np.float64, np.complex64)
    counts = (1, 2, 3, 4, 6, 8, 12, 16, 100, 4096)
    for _, dtype, count, op in itertools.product(range(2), dtypes, counts, ("sum", "prod")):
        x = np.full(count, comm.rank + 1, dtype)
        y = np.zeros(count, dtype)
        assert comm.all_reduce(x, op, out=y) is y
        expected = total if op == "sum" else float(np.prod(range(1, size + 1)))
        assert (y == np.array(expected).astype(dtype)).all(), (dtype, count, op)
        assert comm.all_reduce(x, op) is x and (x == y).all()
        # Other shapes with as many elements; memory that is not in one piece.
        square = np.full((count, 1, 1), comm.rank + 1, dtype)
        assert comm.all_reduce(square, op) is square and (square.reshape(-1) == y).all()
        wide = np.full((count, 2), comm.rank + 1, dtype)[:, 0]
        if count > 1:
            with pytest.raises(ArgumentError, match="not C-contiguous"):
                comm.all_reduce(wide, op)
        assert (comm.all_reduce(wide, op, out=x) == y).all()


def run_refused(comm: Communicator) -> None:
    """What is refused the first time is refused when the like of it is known, too."""
    x, y = np.ones(12, np.float32), np.ones(12, np.float32)
    backwards = np.ones(12, ">f4")
    fixed = np.ones(12, np.float32)
    fixed.flags.writeable = False
    shared = np.ones(24, np.float32)
    for _ in range(3):
        comm.all_reduce(x)
        comm.all_reduce(x, out=y)
        comm.all_gather(x, out=np.empty(12 * comm.size, np.float32))
        comm.reduce_scatter(np.ones((2 * comm.size, 3)), out=np.empty((2, 3)))
        comm.all_to_all(np.ones((2 * comm.size, 3)), out=np.empty((2 * comm.size, 3)))
        with pytest.raises(ArgumentError, match="read-only"):
            comm.all_reduce(fixed)
        assert (comm.all_reduce(fixed, out=y) == comm.size).all()
        for bad in (backwards, [1.0] * 12, np.float32(1), np.ones(12, "U3"), None, 3):
            with pytest.raises(ArgumentError):
                comm.all_reduce(bad)
        for bad in (np.ones(11, np.float32), np.ones(12), fixed, "text"):
            with pytest.raises(ArgumentError):
                comm.all_reduce(x, out=bad)
        with pytest.raises(ArgumentError, match="overlap"):
            comm.all_reduce(shared[:12], out=shared[5:17])
        with pytest.raises(ArgumentError):  # as many elements as before, in three rows
            comm.reduce_scatter(np.ones((3, 2 * comm.size)), out=np.empty((2, 3)))
        with pytest.raises(ArgumentError):
            comm.all_to_all(np.ones((3, 2 * comm.size)), out=np.empty((2 * comm.size, 3)))
        for root in (-1, comm.size, 0.5, None, [0], "0"):
            with pytest.raises(ArgumentError, match="root"):
                comm.broadcast(x, root)
            with pytest.raises(ArgumentError, match="root"):
                comm.reduce(x, root)
        comm.barrier()


class Named(np.ndarray[Any, Any]):
    """A subclass, which takes the long way."""


def run_subclass(comm: Communicator) -> None:
    for _ in range(3):
        x = np.ones(5).view(Named)
        assert comm.all_reduce(x) is x and (np.asarray(x) == comm.size).all()
        assert (comm.all_reduce(np.ones(5)) == comm.size).all()


def run_parts_in_place(comm: Communicator) -> None:
    """Input that is this rank's part of the output, after calls with memory apart."""
    for n in range(4):
        everything = np.zeros(6 * comm.size)
        own = everything[6 * comm.rank : 6 * comm.rank + 6]
        own[:] = comm.rank + n
        if n % 2:
            own = own.copy()
        comm.all_gather(own, out=everything)
        assert (everything == np.repeat(np.arange(comm.size) + n, 6)).all()


@pytest.mark.parametrize("run", [run_repeated, run_refused, run_subclass, run_parts_in_place])
def test_ordinary_calls_again(rank_pools: Pools, run: Any) -> None:
    rank_pools(2).run(run, timeout_s=120)


def test_bad_input() -> None:
    with jetstream.init() as comm:
        x = np.ones((4, 4))
        for name in ("allreduce", "send", "split", "none", "persistent"):
            with pytest.raises(ArgumentError, match=f"{name!r} is not one of all_reduce"):
                comm.persistent(name, x)
        with pytest.raises(ArgumentError, match="async_op"):
            comm.persistent("all_reduce", x, async_op=True)
        with pytest.raises(ArgumentError, match="scale"):
            comm.persistent("all_reduce", x, "premul_sum", scale=2)
        with pytest.raises(ArgumentError, match="not C-contiguous"):
            comm.persistent("all_reduce", x.T, out=x.copy())
        with pytest.raises(ArgumentError, match="not C-contiguous"):
            comm.persistent("all_reduce", x=x.T, out=x.copy())
        with pytest.raises(ArgumentError, match=r"op .* is not one of sum"):
            comm.persistent("all_reduce", x, ["sum"])
        with pytest.raises(ArgumentError, match="axis"):
            comm.persistent("all_gather", x, axis=1)
        with pytest.raises(ArgumentError, match="axis"):  # its parts would be copied now
            comm.persistent("reduce_scatter", x, axis=1)
        with pytest.raises(ArgumentError, match="timeout"):
            comm.persistent("all_reduce", x, timeout=-1)
        with pytest.raises(TypeError):
            comm.persistent("all_reduce", x, colour=1)
        assert (comm.persistent("all_reduce", x)() == 1).all()


def test_closed() -> None:
    """Nothing that was prepared or remembered may reach the freed communicator."""
    comm = jetstream.init()
    x = np.ones(4)
    step = comm.persistent("all_reduce", x)
    step()
    comm.all_reduce(x)
    comm.close()
    later = partial(comm.all_reduce, x, async_op=True)
    for call in (step, step.start, lambda: comm.all_reduce(x), later, comm.barrier):
        with pytest.raises(ClosedError):
            call()
    with pytest.raises(ClosedError):
        comm.persistent("all_reduce", x)


def run_plans_pushed_out(comm: Communicator) -> None:
    """A persistent call keeps its plan, also when thousands of others push plans out."""
    x = np.ones(8)
    step = comm.persistent("all_reduce", x)
    unequal = comm.persistent("all_gather", x[:1], counts=(1,) * comm.size)
    for count in range(1, 4200):
        comm.all_reduce(np.empty(count, np.uint8))
        if count < 100:
            counts = [count] + [1] * (comm.size - 1)
            comm.all_gather(np.ones(counts[comm.rank], np.int8), counts=counts)
    x[:] = 1
    assert (step() == comm.size).all() and (unequal() == comm.size).all()
    loaded = comm.counters()["plans"]
    del step
    gc.collect()
    assert loaded > 4096


def test_plans_pushed_out() -> None:
    with RankPool(1, timeout_s=300) as pool:
        pool.run(run_plans_pushed_out)


def run_late(comm: Communicator, seen: Path) -> tuple[str, str]:
    """A persistent call has its own timeout; the communicator is unusable after it."""
    x = np.ones(4)
    step = comm.persistent("all_reduce", x, timeout=0.5)
    step()
    if comm.rank == 1:
        while not seen.exists():
            time.sleep(0.01)
        with pytest.raises(CommunicatorAbortedError):
            step()
        return "", ""
    begin = time.monotonic()
    with pytest.raises(TimedOutError) as caught:
        step()
    assert time.monotonic() - begin < 20
    with pytest.raises(TimedOutError) as again:
        comm.all_reduce(x)
    seen.touch()
    return str(caught.value), str(again.value)


def test_timeout(rank_pools: Pools, tmp_path: Path) -> None:
    first, _again = rank_pools(2).run(run_late, tmp_path / "seen")[0]
    assert "all_reduce" in first and "0.5 s" in first and "rank 1" in first


def run_different(comm: Communicator) -> str:
    x = np.ones(4)
    comm.all_reduce(x)
    with pytest.raises(MismatchError) as caught:
        comm.all_reduce(x) if comm.rank else comm.persistent("all_reduce", x, "max")()
    return str(caught.value)


def test_mismatch(rank_pools: Pools) -> None:
    for text in rank_pools(2).run(run_different):
        assert "sum" in text and "max" in text


def run_interrupted(comm: Communicator, how: str, seen: Path) -> str:
    """Ctrl-C in a long wait: this rank stops, the other one is told."""
    x = np.ones(4)
    step = comm.persistent("all_reduce", x)
    comm.all_reduce(x)
    if comm.rank == 1:
        while not seen.exists():
            time.sleep(0.01)
        with pytest.raises(CommunicatorAbortedError):
            comm.all_reduce(x)
        return ""
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        timer.start()
        step() if how == "persistent" else comm.all_reduce(x)
    seen.touch()
    timer.join()
    return ""


@pytest.mark.parametrize("how", ["persistent", "ordinary"])
def test_interrupt(rank_pools: Pools, how: str, tmp_path: Path) -> None:
    rank_pools(2).run(run_interrupted, how, tmp_path / "seen")
