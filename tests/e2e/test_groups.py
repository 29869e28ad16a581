"""Communicators of some of the ranks: what they compute, progress, threads."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from jetstream.communicator import Communicator
from jetstream.errors import (
    ArgumentError,
    BusyError,
    ClosedError,
)
from jetstream.testing.plugin import Pools

MIB = 1 << 20


def check_sums(comm: Communicator, seed: int) -> None:
    """A few collectives of which every rank knows the result."""
    draw = random.Random(seed)
    for count in (1, draw.randrange(2, 3000)):
        x = np.arange(count, dtype=np.int64) * (comm.rank + 1)
        comm.all_reduce(x)
        assert (x == np.arange(count) * (comm.size * (comm.size + 1) // 2)).all()
    parts = comm.all_gather(np.array([seed, comm.rank]))
    assert parts.tolist() == [v for rank in range(comm.size) for v in (seed, rank)]
    root = draw.randrange(comm.size)
    y = np.array([float(comm.rank)])
    assert comm.broadcast(y, root=root)[0] == root
    comm.barrier()


def check_ring(comm: Communicator, tag: int) -> None:
    """Everybody sends to its neighbour."""
    received = np.zeros(5000)
    work = comm.isend(np.full(5000, float(comm.rank)), (comm.rank + 1) % comm.size, tag)
    comm.recv(received, (comm.rank - 1) % comm.size, tag)
    work.wait()
    assert (received == (comm.rank - 1) % comm.size).all()


# --- what they compute ------------------------------------------------------------------------


def run_split(comm: Communicator) -> None:
    halves = comm.split(comm.rank % 2, key=-comm.rank)
    assert halves is not None
    members = [rank for rank in reversed(range(comm.size)) if rank % 2 == comm.rank % 2]
    assert (halves.rank, halves.size) == (members.index(comm.rank), len(members))
    assert halves.local_rank == halves.rank and len(halves.hosts) == halves.size
    assert halves.all_gather(np.array([comm.rank])).tolist() == members
    check_sums(halves, 1)
    check_sums(comm, 2)
    with comm.dup() as twin, halves.dup() as grandchild:
        assert (twin.rank, twin.size) == (comm.rank, comm.size)
        for i in range(3):
            for each in (twin, comm, grandchild, halves):
                check_sums(each, i)
                check_ring(each, i)
    halves.close()
    with pytest.raises(ClosedError):
        halves.barrier()
    with pytest.raises(ClosedError):
        halves.split(0)
    check_sums(comm, 3)


@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_ranks_of_one_color_form_a_communicator(ranks: int, rank_pools: Pools) -> None:
    rank_pools(ranks).run(run_split)


def run_symmetric(comm: Communicator) -> None:
    """Arrays of the segment work in each of them, whichever made them."""
    pair = comm.split(comm.rank // 2, key=-comm.rank)
    assert pair is not None
    members = [rank for rank in range(comm.size) if rank // 2 == comm.rank // 2]
    for maker in (comm, pair):
        x = maker.empty(200_000, "int64")
        for _ in range(3):
            for each, ranks in ((pair, members), (comm, list(range(comm.size)))):
                x[:] = 1 << comm.rank
                each.all_reduce(x)
                assert (x == sum(1 << rank for rank in ranks)).all()
        x[:] = comm.rank
        whole = pair.all_gather(x, out=maker.empty(400_000, "int64"))
        assert (
            whole.reshape(2, -1)
            == np.array([pair.size - 1 - r for r in range(2)])[:, None] + members[0]
        ).all()
    pair.close()
    assert (x == comm.rank).all()


@pytest.mark.ranks(4)
def test_symmetric_arrays_in_all_of_them(comm: Communicator) -> None:
    run_symmetric(comm)


def run_membership(comm: Communicator) -> None:
    only = comm.split(None if comm.rank == 1 else 7)
    assert (only is None) == (comm.rank == 1)
    assert comm.split(-3) is None
    keys = comm.split(np.int64(2**40), key=comm.rank // 2)
    assert keys is not None and keys.rank == comm.rank, "equal keys: by rank"
    keys.timeout = 1.5
    child = keys.dup()
    assert child.timeout == 1.5 and comm.timeout != 1.5
    if only is not None:
        check_sums(only, 4)
    for bad in ("0", 1.5, 2**63):
        with pytest.raises(ArgumentError, match="color"):
            comm.split(bad)  # type: ignore[arg-type]
        with pytest.raises(ArgumentError, match="key"):
            comm.split(0, bad)  # type: ignore[arg-type]
    check_sums(comm, 5)


@pytest.mark.ranks(3)
def test_ranks_may_stay_out(comm: Communicator) -> None:
    run_membership(comm)


@pytest.mark.ranks(2)
def test_a_group_of_others_is_refused_before_anybody_waits(comm: Communicator) -> None:
    def exchange(*_values: int) -> list[list[int]]:
        raise AssertionError("the others have been asked")

    with pytest.raises(ArgumentError, match="not in members"):
        comm.open_group([1 - comm.rank], exchange)
    check_sums(comm, 6)


def run_random(comm: Communicator, seed: int) -> None:
    """Random trees of communicators, used in a random order that their members agree on."""
    draw = random.Random(seed)  # the same on all ranks
    made: list[tuple[Communicator | None, list[int]]] = [(comm, list(range(comm.size)))]
    for step in range(40):
        parent, members = draw.choice(made)
        colors = {rank: draw.randrange(-1, 3) for rank in members}
        keys = {rank: draw.randrange(3) for rank in members}
        by_key = sorted(members, key=lambda rank: (keys[rank], members.index(rank)))
        groups = [[rank for rank in by_key if colors[rank] == color] for color in range(3)]
        child = None
        if parent is not None:
            rank = members[parent.rank]
            child = parent.split(colors[rank], keys[rank])
        for group in groups:
            is_in = child is not None and members[parent.rank] in group if parent else False
            if group:
                made.append((child if is_in else None, group))
                if is_in and child is not None:
                    assert child.all_gather(np.array([comm.rank])).tolist() == group
        for each, _ in draw.sample(made, min(4, len(made))):
            if each is not None:
                check_sums(each, step)
                check_ring(each, step)
        if len(made) > 12:
            index = draw.randrange(1, len(made))
            closing, _ = made.pop(index)
            if closing is not None:
                closing.close()
    order = [each for each, _ in made[1:] if each is not None]
    random.Random(seed + comm.rank).shuffle(order)  # every rank in its own order
    for each in order:
        each.close()


@pytest.mark.parametrize("ranks", [2, 4, 7])
def test_random_trees_of_communicators(ranks: int, rank_pools: Pools) -> None:
    rank_pools(ranks).run(run_random, ranks)


# --- progress ---------------------------------------------------------------------------------


def run_crossing(comm: Communicator) -> None:
    """Work in flight in one communicator gets on while its ranks wait in another."""
    other = comm.dup()
    peer = 1 - comm.rank
    big = np.full(3_000_000, comm.rank)
    received = np.empty_like(big)
    for _ in range(3):
        received[:] = -1
        send = other.isend(big, peer)
        if comm.rank == 0:
            other.recv(received, peer)
            comm.barrier()
        else:
            receive = other.irecv(received, peer)
            comm.barrier()  # rank 0 comes when it has got all of this rank's message
            receive.wait()
        send.wait()
        assert (received == peer).all()
    work = other.all_reduce(np.ones(100_000), async_op=True)
    if comm.rank == 0:
        work.wait()
        comm.send(np.zeros(1), 1)
    else:
        comm.recv(np.zeros(1), 0)  # sent only after the sum, for which this rank is needed
    work.wait()


@pytest.mark.ranks(2, timeout_s=40)
def test_a_wait_in_one_serves_the_others(comm: Communicator) -> None:
    run_crossing(comm)


def in_threads(count: int, body: Callable[[int], None]) -> None:
    """Runs ``body`` in threads of its own and raises what the first of them raised."""
    errors: list[BaseException] = []

    def run(index: int) -> None:
        try:
            body(index)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


def run_threads(comm: Communicator) -> None:
    comms = [comm.dup() for _ in range(4)]
    pair = comm.split(comm.rank // 2)
    assert pair is not None
    comms.append(pair)

    def body(index: int) -> None:
        for i in range(60):
            check_sums(comms[index], 100 * index + i)
            check_ring(comms[index], i)
        if index == 3:  # threads make communicators, too, each from its own
            for _ in range(5):
                with comms[index].dup() as child:
                    check_sums(child, index)

    in_threads(len(comms), body)
    check_sums(comm, 9)


@pytest.mark.parametrize("ranks", [2, 4])
def test_threads_on_communicators_of_their_own(ranks: int, rank_pools: Pools) -> None:
    rank_pools(ranks).run(run_threads)


def run_busy(comm: Communicator) -> None:
    other = comm.dup()
    if comm.rank == 0:
        waiting = threading.Thread(target=other.recv, args=(np.zeros(1), 1))
        before = other.counters()["sleeps"]
        waiting.start()
        while other.counters()["sleeps"] == before:  # until it is inside, and waits
            time.sleep(0.001)
        assert other.iprobe(0) is None
        with pytest.raises(BusyError):
            other.close()
        check_sums(comm, 1)
        comm.barrier()
        waiting.join(20)
        other.close()
    else:
        check_sums(comm, 1)
        comm.barrier()
        other.send(np.zeros(1), 0)


@pytest.mark.ranks(2)
def test_a_second_thread_in_one_is_refused(comm: Communicator) -> None:
    run_busy(comm)
