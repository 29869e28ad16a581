"""Symmetric arrays are read where they lie, and are their owner's again when a call returns."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from jetstream.collectives.refer import REFER_BYTES
from jetstream.communicator import Communicator
from jetstream.dtypes import Kind
from jetstream.errors import JetstreamError, PeerDiedError
from jetstream.testing.plugin import Pools

Array = np.ndarray[Any, np.dtype[Any]]

SPOILT = -1.0
#: Rounds of the tests that use arrays again and again, by ranks.
ROUNDS = {2: 2000, 3: 400}


def make(comm: Communicator, count: int, value: float, *, symmetric: bool = True) -> Array:
    array: Array = comm.empty(count) if symmetric else np.empty(count, np.float32)
    array[:] = value
    return array


def frames_referred(comm: Communicator) -> int:
    return comm.counters()["frames_referred"]


# --- what is not copied -----------------------------------------------------------------------


def calls(comm: Communicator, x: Array, wide: Array) -> dict[Kind, Callable[[], Any]]:
    """A call of every kind that has an input on this rank; of ``x``, or of a part per rank."""
    return {
        Kind.ALL_REDUCE: lambda: comm.all_reduce(x, out=np.empty_like(x), algo="two_shot"),
        Kind.ALL_GATHER: lambda: comm.all_gather(x),
        Kind.REDUCE_SCATTER: lambda: comm.reduce_scatter(wide),
        Kind.BROADCAST: lambda: comm.broadcast(x),
        Kind.ALL_TO_ALL: lambda: comm.all_to_all(wide),
        Kind.REDUCE: lambda: comm.reduce(x, root=1),
        Kind.GATHER: lambda: comm.gather(x, root=1),
        Kind.SCATTER: lambda: comm.scatter(wide, out=np.empty_like(x)),
        Kind.SCAN: lambda: comm.scan(x, out=np.empty_like(x)),
        Kind.EXSCAN: lambda: comm.exscan(x, out=np.empty_like(x)),
    }


def run_what_refers(comm: Communicator, count: int, symmetric: bool) -> dict[str, int]:
    x = make(comm, count, 1.0, symmetric=symmetric)
    wide = make(comm, count * comm.size, 1.0, symmetric=symmetric)
    found = {}
    for kind, call in calls(comm, x, wide).items():
        before = frames_referred(comm)
        call()
        found[kind.label] = frames_referred(comm) - before
    return found


def test_what_refers(rank_pools: Pools) -> None:
    """On rank 0, which sends in every kind: symmetric arrays that are large enough."""
    pool = rank_pools(2)
    least = {kind.label: size // 4 for kind, size in REFER_BYTES.items()}
    largest, smallest = max(least.values()), min(least.values())
    # Two-shot sends half of the array each way.
    assert all(pool.run(run_what_refers, 2 * largest, True)[0].values())
    assert not any(pool.run(run_what_refers, 2 * largest, False)[0].values())
    assert not any(pool.run(run_what_refers, smallest - 1, True)[0].values())
    some = pool.run(run_what_refers, smallest, True)[0]
    assert {label for label, frames in some.items() if frames} == {
        label for label, count in least.items() if count == smallest
    }


# --- used again at once -----------------------------------------------------------------------


def run_used_again(comm: Communicator, seed: int, mixed: bool) -> None:
    """Every input is spoilt as soon as its call has returned; no rank may ever see that."""
    plan, own = random.Random(seed), random.Random(seed + 1 + comm.rank)
    n, r = comm.size, comm.rank
    whole = n * (n - 1) / 2
    for _ in range(ROUNDS[n]):
        count, base, root = plan.randrange(500, 30_000), plan.randrange(1000), plan.randrange(n)
        kind = plan.choice(list(REFER_BYTES))
        if own.random() < 0.05:
            time.sleep(own.random() * 0.001)
        is_wide = kind in (Kind.REDUCE_SCATTER, Kind.SCATTER, Kind.ALL_TO_ALL)
        symmetric = not mixed or own.random() < 0.5
        x = make(comm, count * n if is_wide else count, base + r, symmetric=symmetric)
        out: Array | None = None
        expected: Any
        if mixed and kind in (Kind.ALL_REDUCE, Kind.SCAN) and plan.random() < 0.5:
            out = make(comm, count, 0.0, symmetric=own.random() < 0.5)
        match kind:
            case Kind.ALL_REDUCE:
                got = comm.all_reduce(x, out=out, algo=plan.choice(("two_shot", "lend")))
                expected = n * base + whole
            case Kind.ALL_GATHER:
                got = comm.all_gather(x)
                expected = np.repeat(base + np.arange(n), count)
            case Kind.REDUCE_SCATTER:
                got, expected = comm.reduce_scatter(x), n * base + whole
            case Kind.BROADCAST:
                got, expected = comm.broadcast(x, root), base + root
            case Kind.ALL_TO_ALL:
                got = comm.all_to_all(x)
                expected = np.repeat(base + np.arange(n), count)
            case Kind.REDUCE:
                got, expected = comm.reduce(x, root=root), n * base + whole
            case Kind.GATHER:
                got = comm.gather(x, root=root)
                expected = np.repeat(base + np.arange(n), count)
            case Kind.SCATTER:
                room = np.empty(count, np.float32)
                got = comm.scatter(x if r == root else None, root, out=room)
                expected = base + root
            case Kind.SCAN:
                got = comm.scan(x, out=out)
                expected = (r + 1) * base + r * (r + 1) / 2
            case _:
                got = comm.exscan(x) if r else comm.exscan(x, out=np.zeros_like(x))
                expected = r * base + r * (r - 1) / 2
        kept = None if got is None else got.copy()
        x[:] = SPOILT
        if kept is not None and (kind not in (Kind.REDUCE, Kind.GATHER) or r == root):
            assert (kept == expected).all(), (kind, count, base, root)


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("mixed", [False, True])
def test_used_again(rank_pools: Pools, world: int, mixed: bool) -> None:
    rank_pools(world).run(run_used_again, 7 * world + mixed, mixed)


def run_freed(comm: Communicator) -> None:
    """The next array takes the place of the one just sent."""
    for n in range(ROUNDS[comm.size]):
        got = comm.all_gather(make(comm, 20_000, n + comm.rank)).reshape(comm.size, -1)
        other = make(comm, 20_000, SPOILT)
        for rank in range(comm.size):
            assert (got[rank] == n + rank).all()
        del other


def test_freed(rank_pools: Pools) -> None:
    rank_pools(3).run(run_freed)


def run_messages(comm: Communicator, seed: int) -> None:
    """Messages round the ranks, several in flight; an array is spoilt once its send is complete."""
    plan, own = random.Random(seed), random.Random(seed + 1 + comm.rank)
    n, r = comm.size, comm.rank
    for base in range(ROUNDS[n] // 8):
        step = plan.randrange(1, n)
        counts = [plan.choice((10, 3000, 16_384, 50_001, 200_000)) for _ in range(4)]
        works = []
        for tag, count in enumerate(counts):
            x = make(comm, count, base + r + tag, symmetric=own.random() < 0.7)
            works.append((comm.isend(x, (r + step) % n, tag), x))
        for tag in plan.sample(range(4), 4):
            source = (r - step) % n
            got = comm.recv(np.empty(counts[tag], np.float32), source, tag)
            assert (got == base + source + tag).all(), (base, tag, counts)
        for work, x in works:
            work.wait()
            x[:] = SPOILT
        if r == 0:
            comm.send(x := make(comm, 100_000, base), 1)
            x[:] = SPOILT
        elif r == 1:
            assert (comm.recv(np.empty(100_000, np.float32), 0) == base).all()


@pytest.mark.parametrize("world", [2, 3])
def test_messages(rank_pools: Pools, world: int) -> None:
    rank_pools(world).run(run_messages, world)


def run_which_messages(comm: Communicator) -> list[bool]:
    """Whether a message of so many bytes was read in place: of symmetric arrays, private ones."""
    found = []
    for symmetric in (True, False):
        for nbytes in (65_532, 65_536, 1 << 20):
            before = frames_referred(comm)
            if comm.rank == 0:
                comm.send(make(comm, nbytes // 4, 3.0, symmetric=symmetric), 1)
            else:
                assert (comm.recv(np.empty(nbytes // 4, np.float32), 0) == 3.0).all()
            found.append(frames_referred(comm) > before)
    return found


def test_which_messages(rank_pools: Pools) -> None:
    found = rank_pools(2).run(run_which_messages)
    assert found == [[False, True, True, False, False, False], [False] * 6]


# --- what fails -------------------------------------------------------------------------------


def run_left_alone(comm: Communicator, delay_s: float, how: str) -> str:
    """Rank 0 gives up a broadcast in flight and writes to its array; nobody may take that."""
    x = make(comm, 2_000_000, 5.0)
    comm.barrier()
    if comm.rank == 0:
        comm.broadcast(x, async_op=True)
        time.sleep(delay_s)
        getattr(comm, how)()
        x[:] = SPOILT
        return "gave up"
    x[:] = 0.0
    try:
        comm.broadcast(x)
    except JetstreamError as error:
        return type(error).__name__
    assert (x == 5.0).all()
    return "received"


def run_message_left_alone(comm: Communicator, delay_s: float) -> str:
    """As above, of a message."""
    x = make(comm, 2_000_000, 5.0)
    comm.barrier()
    if comm.rank == 0:
        comm.isend(x, 1)
        time.sleep(delay_s)
        comm.abort()
        x[:] = SPOILT
        return "gave up"
    x[:] = 0.0
    try:
        comm.recv(x, 0)
    except JetstreamError as error:
        return type(error).__name__
    assert (x == 5.0).all()
    return "received"


def test_message_left_alone(rank_pools: Pools) -> None:
    plan = random.Random(4)
    for _ in range(8):
        rank_pools(2).run(run_message_left_alone, plan.random() * 0.003)


@pytest.mark.parametrize("how", ["abort", "close"])
def test_left_alone(rank_pools: Pools, how: str) -> None:
    plan = random.Random(3)
    for _ in range(8):
        rank_pools(3).run(run_left_alone, plan.random() * 0.004, how)


def run_until_failure(comm: Communicator, kind: str) -> str:
    """Rank 2 is killed at some moment."""
    x, wide = make(comm, 1_000_000, 1.0), make(comm, 1_000_000 * comm.size, 1.0)
    call = calls(comm, x, wide)[Kind[kind.upper()]]
    call()
    if comm.rank == 2:
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGKILL)).start()
    try:
        while True:
            call()
    except PeerDiedError as error:
        return str(error)


@pytest.mark.parametrize("kind", ["broadcast", "all_gather", "reduce", "all_to_all"])
def test_a_reader_that_dies(rank_pools: Pools, kind: str) -> None:
    """Who waits for a dead rank to read its array is told."""
    for outcome in rank_pools(3).collect(run_until_failure, kind)[:2]:
        assert outcome.is_ok and "rank 2" in outcome.value, outcome
