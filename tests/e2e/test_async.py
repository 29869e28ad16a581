"""Operations in flight: many of them, waited for in any order, or not at all."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from jetstream.communicator import Communicator
from jetstream.errors import TimedOutError
from jetstream.testing.plugin import Pools
from jetstream.work import Work

#: More than the send queue has places.
MANY = 1000


def run_many_collectives(comm: Communicator) -> None:
    arrays = [np.full(3, n + comm.rank, np.int64) for n in range(MANY)]
    works = [comm.all_reduce(x, async_op=True) for x in arrays]
    for n in (MANY - 1, 0, MANY // 2):  # in any order
        assert works[n].wait() is arrays[n]
    for n, (work, x) in enumerate(zip(works, arrays, strict=True)):
        assert work.wait() is x
        assert (x == n * comm.size + sum(range(comm.size))).all(), n


def run_many_messages(comm: Communicator) -> None:
    peer = 1 - comm.rank
    outs = [np.empty(2, np.int64) for _ in range(MANY)]
    works = []
    for n, out in enumerate(outs):
        works += [comm.irecv(out, peer), comm.isend(np.array([n, comm.rank]), peer)]
    for work in works:
        work.wait()
    assert [out.tolist() for out in outs] == [[n, peer] for n in range(MANY)]


def run_every_kind(comm: Communicator) -> None:
    size, rank = comm.size, comm.rank
    x = np.full(4, rank + 1.0)
    works: list[Work] = [
        comm.all_reduce(x.copy(), async_op=True),
        comm.all_gather(x, async_op=True),
        comm.reduce_scatter(np.full(size, rank, np.int32), async_op=True),
        comm.broadcast(np.full(2, rank), root=size - 1, async_op=True),
        comm.barrier(async_op=True),
    ]
    results = [work.wait() for work in works]
    assert results[0].tolist() == [sum(range(1, size + 1))] * 4
    assert results[1].tolist() == np.repeat(np.arange(1.0, size + 1), 4).tolist()
    assert results[2].tolist() == [sum(range(size))]
    assert results[3].tolist() == [size - 1] * 2
    assert results[4] is None
    assert all(work.is_done and work.done() for work in works)
    assert "done" in repr(works[0])


def run_timeout_then_success(comm: Communicator) -> None:
    """A wait that times out leaves the operation in flight."""
    x = np.ones(5)
    if comm.rank == 0:
        work = comm.all_reduce(x, async_op=True)
        for _ in range(3):
            with pytest.raises(TimedOutError, match=r"all_reduce .*rank 1"):
                work.wait(timeout=0.02)
            assert not work.done()
        assert "in flight" in repr(work)
        comm.send(np.zeros(1), 1)  # only now may the other one begin
        assert (work.wait(timeout=30) == 2).all()
        assert (work.wait(timeout=0) == 2).all(), "a result can be had twice"
    else:
        comm.recv(np.empty(1), 0)
        assert (comm.all_reduce(x) == 2).all()


def run_done_makes_progress(comm: Communicator) -> None:
    work = comm.all_reduce(np.ones(200_000), async_op=True)
    deadline_s = time.monotonic() + 30
    while not work.done():
        assert time.monotonic() < deadline_s
    assert (work.wait() == comm.size).all()


def run_dropped(comm: Communicator) -> None:
    """Nobody keeps the Work or the arrays; what comes later still works."""
    for n in range(MANY):
        comm.all_reduce(np.full(1000, n, np.float32), async_op=True)
    peer = (comm.rank + 1) % comm.size
    for n in range(50):
        comm.isend(np.full(5000, n), peer)
    for n in range(50):
        assert (comm.recv(np.empty(5000, np.int64), (comm.rank - 1) % comm.size) == n).all()
    assert (comm.all_reduce(np.ones(3)) == comm.size).all()


def run_interleaved(comm: Communicator) -> None:
    """Ordinary calls while others are in flight: all in the order in which they were made."""
    x, y, z = (np.full(10_000, v + comm.rank) for v in (0, 10, 20))
    work = comm.all_reduce(x, async_op=True)
    comm.all_reduce(y)
    assert work.done(), "it came first"
    later = comm.all_reduce(z, async_op=True)
    comm.barrier()
    ranks = sum(range(comm.size))
    assert (work.wait() == ranks).all() and (later.wait() == 20 * comm.size + ranks).all()
    assert (y == 10 * comm.size + ranks).all()


def run_left_in_flight(comm: Communicator) -> list[int]:
    """Sends in flight still go out when a rank closes."""
    if comm.rank == 0:
        comm.isend(np.arange(300_000), 1)
        return []
    time.sleep(0.3)
    got = comm.recv(np.empty(300_000, np.int64), 0)
    return [int(got[0]), int(got[-1])]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize(
    "run",
    [run_many_collectives, run_every_kind, run_done_makes_progress, run_dropped, run_interleaved],
)
def test_in_flight(rank_pools: Pools, run: Any, world: int) -> None:
    rank_pools(world).run(run)


@pytest.mark.parametrize("run", [run_many_messages, run_timeout_then_success])
def test_in_flight_between_two(rank_pools: Pools, run: Any) -> None:
    rank_pools(2).run(run)


def test_close_lets_sends_go_out(rank_pools: Pools) -> None:
    assert rank_pools(2).run(run_left_in_flight) == [[], [0, 299_999]]
